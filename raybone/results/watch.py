"""What a study is doing, from its folder alone: facts, and the lines that tell them where there is
no terminal.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from raybone.hpo.fold_race import name_of
from raybone.hpo.lease import EXPIRES, Lease
from raybone.hpo.races import expected
from raybone.hpo.state import Configuration, State, gpu_hours_of
from raybone.results.leaderboard import over_folds
from raybone.results.logs import in_words
from raybone.results.study_folder import StudyFolder
from raybone.study.spec import ResolvedStudy
from raybone.types import printable

LEADERS = 5
HOW = ("passed", "waiting", "stopped", "coming", "failed")  # what a configuration may do at a rung


@dataclass(frozen=True)
class Rung:
    """A rung of the ladder: how many have passed it (on the last one, are complete), were stopped
    there, and so on.

    waiting: have done it and wait for what follows; coming, failed: on the way there from the rung
    before.
    """

    name: str
    passed: int
    waiting: int
    stopped: int
    coming: int
    failed: int


@dataclass(frozen=True)
class Best:
    """A leader: of the highest rung that any configuration has finished, by its mean over the folds
    of that rung.

    low, high: Nadeau & Bengio's 95 % interval, ``nb`` of the leaderboard; NaN for one fold. params:
    its searched hyper-parameters.
    """

    config_id: str
    rung: str
    value: float
    low: float
    high: float
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Running:
    """A configuration at work: the rung it goes to (0-based), its folds at work (fold, epoch,
    score), and how fast.

    epochs: of each fold at that rung. share: of the epochs up to there that are done.
    epoch_seconds, seconds: of an epoch, and what is left to that rung; images_per_s, memory_gb,
    gpu_use: of training, the most that an epoch held, and the part of the time in which its GPU was
    at work. NaN while unknown.
    """

    config_id: str
    target: int
    folds: tuple[tuple[int, int, float], ...]
    epochs: int
    share: float
    epoch_seconds: float
    seconds: float
    images_per_s: float = math.nan
    memory_gb: float = math.nan
    gpu_use: float = math.nan


@dataclass(frozen=True)
class Status:
    """What there is to tell of a study; ``driven`` is whether a driver is at work, ``leaders`` are
    the best, at most ``LEADERS``, best first.
    """

    study: ResolvedStudy
    state: State
    driven: bool
    rungs: tuple[Rung, ...]
    leaders: tuple[Best, ...]
    running: tuple[Running, ...]

    @property
    def best(self) -> Best | None:
        """The first leader."""
        return self.leaders[0] if self.leaders else None

    @property
    def title(self) -> str:
        """Name and models."""
        return f"{self.study.name}: {', '.join(self.study.names)}"

    @property
    def progress(self) -> str:
        """How far, how long, and how it ended or what is left."""
        study, state = self.study, self.state
        end = state.end or time_left(study, state)
        if not self.driven and not state.end:
            end = "no driver: `raybone search` with the same --out resumes it"
        return (
            f"{len(state.configurations)}/{state.planned(study.search.trials)} configurations · "
            f"{state.fold_epochs} fold epochs · {clock(state.seconds)} · {end}"
        )

    @property
    def tally(self) -> Counter[str]:
        """How many configurations are in each status; what an end cuts off is stopped."""
        counts = Counter[str](self.state.counts)
        if self.state.end:
            counts["stopped"] += counts.pop("running", 0) + counts.pop("paused", 0)
        return counts

    @property
    def counts(self) -> str:
        """How many configurations are in each status, and what limits are used up by."""
        counts = self.tally
        told = [
            f"{counts[s]} {s}"
            for s in ("running", "paused", "complete", "stopped", "failed")
            if counts[s]
        ]
        allowed = (
            [f"{self.study.limits.failed_trials} failures are allowed"] if counts["failed"] else []
        )
        return " · ".join([*told, *allowed, *self._limits()])

    def news(self, most: int, *kinds: str) -> list[str]:
        """The last events of these kinds in words."""
        ladder = self.study.resolved.ladder
        return [
            in_words(e, ladder) for e in [e for e in self.state.news if e["event"] in kinds][-most:]
        ]

    def _limits(self) -> list[str]:
        limits, state = self.study.limits, self.state
        spent = {
            "hours": state.seconds / 3600,
            "gpu_hours": gpu_hours_of(self.study, state),
        }
        return [
            f"{used:.1f} of {getattr(limits, name):g} {name.replace('_', '-')}"
            for name, used in spent.items()
            if math.isfinite(getattr(limits, name))
        ]


def watch(
    out: str, show: Callable[[Status, bool], None], follow: bool = True, poll: float = 2.0
) -> None:
    """Show a study until it ends, from its folder alone, wherever it runs.

    Args:
        show: is given the facts, again and again, and whether anything happened since it was given
            them last.
    Raises:
        WrongInput: no study there, or its journal is damaged or cut.
    """
    folder = StudyFolder(out)
    study, journal = folder.study, folder.journal()
    folder.state  # noqa: B018  # refuses a journal that was cut
    state, lease = State(), Lease(folder.files)
    status: Status | None = None
    while True:
        news = False
        for event in journal.events():
            state.apply(event)
            news = True
        driven = lease.holder(0.0 if follow else EXPIRES) is not None
        if status is None or news or driven != status.driven:
            status, news = status_of(study, state, driven), True
        show(status, news)
        if not follow or state.end or not driven:
            return
        time.sleep(poll)


def status_of(study: ResolvedStudy, state: State, driven: bool = True) -> Status:
    """The facts of a study."""
    return Status(
        study,
        state,
        driven,
        _rungs(study, state),
        _leaders(study, state),
        tuple(_running(study, state, c) for c in state.running if not state.end),
    )


def status_lines(status: Status) -> list[str]:
    """A study in at most a screen of lines."""
    ladder, study = status.rungs, status.study
    lines = [f"{status.title} · {status.progress}", status.counts]
    for number, rung in enumerate(ladder, 1):
        there = ", ".join(f"{getattr(rung, how)} {how}" for how in HOW if getattr(rung, how))
        lines.append(f"  rung {number} of {len(ladder)}: {rung.name:<22} {there or 'nobody yet'}")
    lines += [
        best_line(study, status.best),
        *([busy_line(study, status.state)] if status.state.fold_epochs else []),
    ]
    lines += ["  " + running_line(study, r) for r in status.running]
    told = [*status.news(8, "decision", "again", "slots"), *status.news(3, "failed")]
    return [printable(line) for line in [*lines, *("  " + line for line in told)]]


def status_json(status: Status) -> str:
    """A study as a JSON document, with null where a number is not known."""
    state = status.state
    content = {
        "study": status.study.name,
        "models": status.study.names,
        "trials": state.planned(status.study.search.trials),
        "driven": status.driven,
        "end": state.end or None,
        "counts": {name: count for name, count in status.tally.items() if count},
        "fold_epochs": state.fold_epochs,
        "seconds": state.seconds,
        "busy_share": state.busy_share,
        "rungs": status.rungs,
        "leaders": status.leaders,
        "running": status.running,
    }
    return orjson.dumps(content, option=orjson.OPT_INDENT_2).decode()


def busy_line(study: ResolvedStudy, state: State) -> str:
    """How much of the machines' time went into epochs."""
    what = "GPU time" if study.resources.gpus else "time of the training slots"
    again = sum(e["event"] == "again" for e in state.news)
    starts = f", {again} runs were started again" if again else ""
    return f"{state.busy_share:.0%} of the {what} went into epochs{starts}"


def best_line(study: ResolvedStudy, best: Best | None) -> str:
    """The leader in words."""
    if best is None:
        return "best so far: none yet"
    sure = f" (95 %: {best.low:.3f} to {best.high:.3f})" if math.isfinite(best.low) else ""
    return f"best so far: {best.config_id} {study.metric} {best.value:.3f}{sure} over {best.rung}"


def in_short(params: Mapping[str, Any]) -> str:
    """Hyper-parameters in few words, such as ``lr0 0.0031 imgsz 512``."""
    return " ".join(
        f"{n} {v:.3g}" if isinstance(v, float) else f"{n} {v}" for n, v in params.items()
    )


def warm_lines(study: ResolvedStudy) -> list[str]:
    """What a study began with, if it began warm."""
    prior = study.resolved.prior
    return (
        [
            f"warm start: {len(prior.observations)} rows to propose from, {len(prior.points)} "
            f"tried first, {prior.left_out} left out as outside the space"
        ]
        if prior
        else []
    )


def running_line(study: ResolvedStudy, running: Running) -> str:
    """One running configuration: target rung, folds and epochs, last score, time to that rung."""
    folds = ", ".join(
        f"fold {k} epoch {n}/{running.epochs} {study.metric} {score:.3f}"
        for k, n, score in running.folds
    )
    left = (
        f"; {running.epoch_seconds:.3g} s an epoch, {clock(running.seconds)} to go"
        if math.isfinite(running.seconds)
        else ""
    )
    cost = (
        f"; {running.images_per_s:.3g} images/s, {running.memory_gb:.2g} GB"
        if math.isfinite(running.images_per_s)
        else ""
    )
    use = f", GPU at work {running.gpu_use:.0%}" if math.isfinite(running.gpu_use) else ""
    return (
        f"{running.config_id} to {name_of(study.resolved.ladder, running.target)}: "
        f"{folds or 'starting a run'}{left}{cost}{use}"
    )


def time_left(study: ResolvedStudy, state: State) -> str:
    """A guess from the seconds an epoch took so far, the ladder and the number of runs at once."""
    if not state.fold_epochs:
        return "time left: not known yet"
    search = study.search.model_copy(update={"trials": state.planned(study.search.trials)})
    total = sum(row[2] for row in expected(study.model_copy(update={"search": search})))
    remaining = max(total - state.fold_epochs, 0.0) * _epoch_seconds_to_come(study, state)
    return f"about {clock(remaining / max(state.slots, 1))} left"


def _epoch_seconds_to_come(study: ResolvedStudy, state: State) -> float:
    """Mean seconds of the fold epochs that are left: of each model its own, in the share of the
    configurations that it has at work or to come.
    """
    total = state.planned(study.search.trials)
    new = max(total - len(state.configurations), 0) / len(study.names)
    weights = dict.fromkeys(study.names, new)
    for c in state.configurations.values():
        weights[c.params.get("model", study.model)] += c.status in ("running", "paused")
    seconds = sum(state.mean_seconds(name) * weight for name, weight in weights.items())
    mean = seconds / (sum(weights.values()) or math.nan)
    return mean if math.isfinite(mean) else state.mean_seconds("")


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
        if minutes >= 60
        else f"{minutes}:{rest:02d}"
    )


def _rungs(study: ResolvedStudy, state: State) -> tuple[Rung, ...]:
    ladder = study.resolved.ladder
    tally = [dict.fromkeys(HOW, 0) for _ in ladder]
    for c in state.configurations.values():
        away = (
            c.status in ("running", "failed")
            or c.rung < 0
            or (c.status == "paused" and c.target > c.rung)
        )
        complete = c.status == "complete"
        for rung in tally[: max(0, min(c.rung + 1, c.target)) if away else c.rung + complete]:
            rung["passed"] += 1
        if not complete:
            how = c.status if c.status in HOW else "coming" if away else "waiting"
            tally[max(c.target, 0) if away else c.rung][how] += 1
    return tuple(Rung(name_of(ladder, number), **rung) for number, rung in enumerate(tally))


def _leaders(study: ResolvedStudy, state: State) -> tuple[Best, ...]:
    ladder, found = study.resolved.ladder, []
    for configuration in state.configurations.values():
        folds, epochs = ladder[configuration.rung]
        folds_K = np.array(
            [configuration.fold_score(k, epochs, study.metric) for k in range(folds)]
        )
        if configuration.rung >= 0 and np.isfinite(folds_K).all():
            found.append(
                (configuration.rung, study.sign * float(folds_K.mean()), configuration, folds_K)
            )
    found.sort(key=lambda one: one[:2], reverse=True)
    return tuple(
        Best(c.id, name_of(ladder, rung), study.sign * value, *over_folds(study, folds_K), c.params)
        for rung, value, c, folds_K in found[:LEADERS]
    )


def _running(study: ResolvedStudy, state: State, configuration: Configuration) -> Running:
    """A running configuration; its time left counts the folds at work as side by side."""
    folds, epochs = study.resolved.ladder[configuration.target]
    runs = configuration.epochs
    at_work = tuple(
        (k, len(runs[k]), runs[k].last(study.metric))
        for k in sorted(configuration.at_work)
        if len(runs[k]) < epochs
    )
    todo = sum(max(0, epochs - len(runs.get(k, ()))) for k in range(folds))
    seconds = configuration.epoch_seconds
    of_model = state.mean_seconds(study.under(configuration.params).model)
    each = float(np.median(seconds)) if seconds else of_model
    return Running(
        configuration.id,
        configuration.target,
        at_work,
        epochs,
        1 - todo / (folds * epochs),
        each,
        todo * each / max(len(at_work), 1),
        configuration.images_per_s,
        configuration.memory_gb,
        configuration.gpu_use,
    )
