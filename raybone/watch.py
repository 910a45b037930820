"""What a study is doing, from its folder alone: facts, and the lines that tell them where there is no terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from raybone.folder import Folder
from raybone.hpo.journal import Journal, read_resolved
from raybone.hpo.lease import Lease
from raybone.hpo.race import START_UP, expected, ladder_of, name_of
from raybone.hpo.state import Configuration, State
from raybone.logs import in_words
from raybone.metrics.intervals import bootstrap_interval, corrected_interval
from raybone.spec import Study


@dataclass(frozen=True)
class Rung:
    """A rung of the ladder: configurations that have done it, of which so many stand there, and were stopped there."""

    name: str
    done: int
    stand: int
    stopped: int


@dataclass(frozen=True)
class Best:
    """The leader of the highest rung that any configuration has finished, by its mean over the folds of that rung.

    low, high: 95 % interval: of the bootstrap over patients once it is complete, else Nadeau & Bengio's over its folds;
    NaN for one fold.
    """

    config_id: str
    rung: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Running:
    """A configuration at work: the rung it goes to, its unfinished folds (fold, epoch, score), seconds to that rung."""

    config_id: str
    rung: str
    folds: tuple[tuple[int, int, float], ...]
    share: float
    seconds: float


@dataclass(frozen=True)
class Status:
    """What there is to tell of a study; ``driven`` is whether a driver is at work."""

    study: Study
    state: State
    driven: bool
    rungs: tuple[Rung, ...]
    best: Best | None
    running: tuple[Running, ...]

    @property
    def title(self) -> str:
        """Name and model."""
        return f"{self.study.name}: {self.study.model}"

    @property
    def progress(self) -> str:
        """How far, how long, and how it ended or what is left."""
        study, state = self.study, self.state
        end = state.end or time_left(study, state)
        if not self.driven and not state.end:
            end = "no driver: `raybone search` with the same --out resumes it"
        return (f"{len(state.configurations)}/{study.search.trials} configurations · {state.fold_epochs} fold epochs · "
                f"{clock(state.seconds)} · {end}")

    @property
    def counts(self) -> str:
        """How many configurations are in each status, and what limits are used up by."""
        counts = self.state.counts
        told = [f"{counts[s]} {s}" for s in ("running", "paused", "complete", "stopped", "failed") if counts[s]]
        return " · ".join([*told, *self._limits()])

    def news(self, kind: str, most: int) -> list[str]:
        """The last events of a kind in words."""
        ladder = ladder_of(self.study)
        return [in_words(e, ladder) for e in [e for e in self.state.news if e["event"] == kind][-most:]]

    def _limits(self) -> list[str]:
        limits, state, resources = self.study.limits, self.state, self.study.resources
        spent = {"hours": state.seconds / 3600,
                 "gpu_hours": state.train_seconds / 3600 * resources.gpus * resources.workers}
        return [f"{used:.1f} of {getattr(limits, name):g} {name.replace('_', '-')}" for name, used in spent.items()
                if math.isfinite(getattr(limits, name))]


def watch(out: str, show: Callable[[Status], None], follow: bool = True, poll: float = 2.0) -> None:
    """Show a study until it ends, from its folder alone, wherever it runs.

    Args:
        show: is given the facts, again and again.
    Raises:
        WrongInput: no study there.
    """
    folder = Folder(out)
    study = read_resolved(folder)
    journal, state = Journal(folder), State()
    while True:
        for event in journal.events():
            state.apply(event)
        driven = Lease(folder).holder() is not None
        show(status_of(study, state, driven))
        if not follow or state.end or not driven:
            return
        time.sleep(poll)


def status_of(study: Study, state: State, driven: bool = True) -> Status:
    """The facts of a study."""
    known, ladder = list(state.configurations.values()), ladder_of(study)
    rungs = tuple(Rung(name_of(ladder, r), sum(c.rung >= r for c in known), sum(c.rung == r for c in known),
                       sum(c.rung == r and c.status == "stopped" for c in known)) for r in range(len(ladder)))
    return Status(study, state, driven, rungs, _best(study, state), tuple(_running(study, c) for c in state.running))


def status_lines(status: Status) -> list[str]:
    """A study in at most a screen of lines."""
    ladder, study = status.rungs, status.study
    lines = [f"{status.title} · {status.progress}", status.counts]
    lines += [f"  rung {n} of {len(ladder)}: {r.name:<22} {r.done} done, {r.stand} stand there"
              + (f", {r.stopped} stopped there" if r.stopped else "") for n, r in enumerate(ladder, 1)]
    lines += [best_line(study, status.best), *([busy_line(study, status.state)] if status.state.fold_epochs else [])]
    lines += ["  " + running_line(study, r) for r in status.running]
    return lines + ["  " + line for kind, most in (("decision", 5), ("again", 3), ("failed", 3))
                    for line in status.news(kind, most)]


def busy_line(study: Study, state: State) -> str:
    """How much of the machines' time went into epochs."""
    what = "GPU time" if study.resources.gpus else "time of the training slots"
    again = sum(e["event"] == "again" for e in state.news)
    starts = f", {again} runs were started again" if again else ""
    return f"{state.busy_share:.0%} of the {what} went into epochs{starts}"


def best_line(study: Study, best: Best | None) -> str:
    """The leader in words."""
    if best is None:
        return "best so far: none yet"
    sure = f" ({best.low:.4f} to {best.high:.4f})" if math.isfinite(best.low) else ""
    return f"best so far: {best.config_id} {study.metric} {best.value:.4f}{sure} over {best.rung}"


def running_line(study: Study, running: Running) -> str:
    """One running configuration: target rung, folds and epochs, last score, time to that rung."""
    folds = ", ".join(f"fold {k} epoch {n}/{study.epochs} {study.metric} {score:.4f}" for k, n, score in running.folds)
    left = f"; {clock(running.seconds)} to go" if math.isfinite(running.seconds) else ""
    return f"{running.config_id} to {running.rung}: {folds or 'starting a run'}{left}"


def time_left(study: Study, state: State) -> str:
    """A guess from the seconds an epoch took so far, the ladder and the number of runs at once."""
    if not state.fold_epochs or study.resolved is None:
        return "time left: not known yet"
    rows = expected(study)
    total = sum(row[2] for row in rows)
    starts = sum(row[1] for row in rows) - sum(c.rung + 1 for c in state.configurations.values())
    training = max(total - state.fold_epochs, 0.0) * state.train_seconds / state.fold_epochs
    remaining = training + max(starts, 0.0) * START_UP
    return f"about {clock(remaining / max(state.slots, 1))} left"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _best(study: Study, state: State) -> Best | None:
    sign = 1 if study.direction == "maximize" else -1
    ladder, leader = ladder_of(study), None
    for configuration in state.configurations.values():
        folds, epochs = ladder[configuration.rung]
        folds_K = np.array([configuration.fold_score(k, epochs, study.metric) for k in range(folds)])
        value = float(folds_K.mean())
        if configuration.rung >= 0 and math.isfinite(value) and (
                leader is None or (configuration.rung, sign * value) > leader[0]):
            leader = (configuration.rung, sign * value), configuration, folds_K
    if leader is None:
        return None
    (rung, _), configuration, folds_K = leader
    value = float(folds_K.mean())
    low, high = bootstrap_interval(value, np.array(configuration.replicates), configuration.freedom) \
        if configuration.replicates else corrected_interval(folds_K)
    return Best(configuration.id, name_of(ladder, rung), value, low, high)


def _running(study: Study, configuration: Configuration) -> Running:
    """A running configuration; its time left counts the folds that have begun as side by side."""
    folds, epochs = ladder_of(study)[configuration.target]
    runs = configuration.epochs
    unfinished = tuple((k, len(run), run.last(study.metric)) for k, run in sorted(runs.items())
                       if run and len(run) < epochs)
    todo = sum(max(0, epochs - len(runs.get(k, ()))) for k in range(folds))
    seconds = [s for run in runs.values() for s in run.seconds]
    left = todo * float(np.median(seconds)) / max(len(unfinished), 1) if seconds else math.nan
    return Running(configuration.id, name_of(ladder_of(study), configuration.target), unfinished,
                   1 - todo / (folds * epochs), left)
