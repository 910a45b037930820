"""What a study is doing, in lines for a terminal: state, running folds, best so far, decisions in words."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable

from raybone.folder import Folder
from raybone.hpo.journal import Journal, read_resolved
from raybone.hpo.lease import Lease
from raybone.hpo.race import START_UP, expected, ladder_of, name_of
from raybone.hpo.state import Configuration, State
from raybone.logs import in_words
from raybone.spec import Study


def watch(out: str, show: Callable[[list[str]], None], follow: bool = True, poll: float = 2.0) -> None:
    """Show a study until it ends, from its folder alone, wherever it runs.

    Args:
        show: is given all lines, again and again.
    Raises:
        WrongInput: no study there.
    """
    folder = Folder(out)
    study = read_resolved(folder)
    journal, state = Journal(folder), State()
    while True:
        for event in journal.events():
            state.apply(event)
        alive = Lease(folder).holder() is not None
        lines = status_lines(study, state)
        if not alive and not state.end:
            lines[0] += " (no driver: `raybone search` with the same --out resumes it)"
        show(lines)
        if not follow or state.end or not alive:
            return
        time.sleep(poll)


def status_lines(study: Study, state: State) -> list[str]:
    """A study in at most a screen of lines."""
    assert study.resolved is not None
    counts = state.counts
    lines = [f"{study.name}: {study.model} · {len(state.configurations)}/"
             f"{study.search.trials} configurations · {state.fold_epochs} fold epochs · "
             f"{clock(state.seconds)} · {state.end or time_left(study, state)}",
             " · ".join(f"{counts[s]} {s}" for s in ("running", "paused", "complete", "stopped", "failed")
                        if counts[s])]
    ladder = study.resolved.ladder
    reached = Counter(c.rung for c in state.configurations.values())
    lines += [f"  rung {r + 1} of {len(ladder)}: {name_of(ladder_of(study), r):<22} "
              f"{sum(n for k, n in reached.items() if k >= r)} done" for r in range(len(ladder))]
    lines += [best_line(study, state), *([busy_line(study, state)] if state.fold_epochs else [])]
    lines += ["  " + running_line(study, c) for c in state.running]
    for kind, most in (("decision", 5), ("again", 3), ("failed", 3)):
        lines += ["  " + in_words(e, ladder) for e in [e for e in state.news if e["event"] == kind][-most:]]
    return lines


def busy_line(study: Study, state: State) -> str:
    """How much of the machines' time went into epochs."""
    what = "GPU time" if study.resources.gpus else "time of the training slots"
    again = sum(e["event"] == "again" for e in state.news)
    starts = f", {again} runs were started again" if again else ""
    return f"{state.busy_share:.0%} of the {what} went into epochs{starts}"


def best_line(study: Study, state: State) -> str:
    """The leader of the highest rung that any configuration has finished, by its scores at that rung."""
    assert study.resolved is not None
    sign = 1 if study.direction == "maximize" else -1
    scored = []
    for configuration in state.configurations.values():
        folds, epochs = study.resolved.ladder[configuration.rung]
        value = sum(configuration.fold_score(k, epochs, study.metric) for k in range(folds)) / folds
        if configuration.rung >= 0 and math.isfinite(value):
            scored.append((configuration.rung, sign * value, configuration.id))
    if not scored:
        return "best so far: none yet"
    rung, value, config_id = max(scored)
    return f"best so far: {config_id} {study.metric} {sign * value:.4f} over {name_of(ladder_of(study), rung)}"


def running_line(study: Study, configuration: Configuration) -> str:
    """One running configuration: target rung, folds and epochs, last score."""
    folds = ", ".join(f"fold {k} epoch {len(r)}/{study.epochs} {study.metric} "
                      f"{r.last(study.metric):.4f}"
                      for k, r in sorted(configuration.epochs.items()) if r and len(r) < study.epochs)
    return f"{configuration.id} to {name_of(ladder_of(study), configuration.target)}: {folds or 'starting a run'}"


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
