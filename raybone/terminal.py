"""What a person sees on a terminal: the ranking, the progress of a search, bars."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from raybone.records import printable

if TYPE_CHECKING:
    import pandas as pd

    from raybone.hpo.brain import Brain
    from raybone.records import Epoch


def tell_end(reason: str, out: str) -> None:
    """The end of a search on the terminal."""
    import io

    import pandas as pd

    from raybone.folder import Folder
    from raybone.hpo.journal import read_resolved

    folder = Folder(out)
    table = pd.read_csv(io.BytesIO(folder.read("leaderboard.csv") or b""))
    show_table(table)
    tried, trials = len(table), read_resolved(folder).search.trials
    if reason == "complete" and tried < trials:
        say(f"the space is used up: {tried} of search.trials {trials}; search.reject or the model refused the rest, "
            "if there is one")
    say(f"{'done' if reason == 'complete' else reason}: {out.rstrip('/')}/leaderboard.csv; `raybone report "
        f"{shlex.quote(out)}` makes a page of it")


def show_table(table: pd.DataFrame) -> None:
    """A leaderboard's columns that a person reads first."""
    metric = next(c for c in table.columns if c.endswith("_ci_low")).removesuffix("_ci_low")
    searched = [c for c in table.columns if c.startswith("cfg.") and table[c].astype(str).nunique() > 1]
    columns = ["rank", "config_id", "state", "epochs_done", f"{metric}_mean", f"{metric}_nb_low", f"{metric}_nb_high",
               "verdict", *searched]
    shown = table[columns].rename(columns=lambda c: c.removeprefix("cfg."))
    shown["rank"] = [f"{r:.0f}" if r == r else "" for r in shown["rank"].astype(float)]
    say(shown.to_string(index=False, na_rep="", float_format=lambda v: f"{v:.4g}"))
    for warning in filter(None, table["warnings"].fillna("").unique()):
        say(f"warning: {warning}")


def progress() -> Callable[[Brain], None]:
    """Lines on what happens: news at once, the running folds every few seconds."""
    from raybone.hpo.race import ladder_of
    from raybone.logs import in_words
    from raybone.watch import best_line, busy_line, clock, running_line, status_of, time_left

    told = {"news": -1, "time": 0.0, "version": -1}
    began = time.monotonic()
    every = 2.0 if sys.stdout.isatty() else 10.0

    def tell(brain: Brain) -> None:
        study, state = brain.study, brain.state
        now, rungs = clock(time.monotonic() - began), ladder_of(study)
        if told["news"] < 0:
            told["news"] = state.old_news
            say(f"{study.name}: {study.search.trials} configurations of {study.model}, {brain.slots} run(s) at once, "
                f"rungs (folds x epochs): {', '.join(f'{k}x{e}' for k, e in rungs)}")
            if study.resolved and (prior := study.resolved.prior):
                say(f"warm start: {len(prior.observations)} rows to propose from, {len(prior.points)} tried first, "
                    f"{prior.left_out} left out as outside the space")
        for event in state.news[int(told["news"]):]:
            say(f"[{now}] {in_words(event, rungs)}")
            told["news"] += 1
        if state.end and state.fold_epochs:
            say(f"[{now}] {busy_line(study, state)}")
        if brain.version != told["version"] and time.monotonic() - told["time"] >= every:
            told["time"], told["version"] = time.monotonic(), brain.version
            status = status_of(study, state)
            running = " | ".join(running_line(study, r) for r in status.running)
            say(f"[{now}] {running or 'starting'} | {best_line(study, status.best)} | "
                f"{time_left(study, state)}")

    return tell


def show(text: str, file: TextIO | None = None, end: str = "\n") -> None:
    """Print text for people, with ? for all that a terminal may take for a command.

    Raises:
        BrokenPipeError: nobody reads any more. What was not printed is dropped, and so is all that follows.
    """
    file = file or sys.stdout
    try:
        print(printable(text), file=file, end=end, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
        raise


def say(text: str, file: TextIO | None = None, end: str = "\n") -> None:
    """``show``, for work that goes on although nobody reads of it."""
    with contextlib.suppress(BrokenPipeError):
        show(text, file, end)


def epoch_line(epoch: Epoch) -> None:
    """An epoch of a training without folds."""
    told = ", ".join(f"{name} {value:.4f}" for name, value in epoch.metrics.items())
    say(f"epoch {epoch.epoch}: {told} in {epoch.seconds:.1f} s")


def bar(what: str) -> Callable[[int, int], None]:
    """A progress bar on a terminal; a line every tenth elsewhere, once it takes over two seconds."""
    began, last = time.monotonic(), [0]

    def tell(done: int, total: int) -> None:
        if sys.stderr.isatty():
            filled = 30 * done // total
            end = "\n" if done == total else ""
            say("", sys.stderr, f"\r{what} [{'#' * filled:.<30}] {done}/{total}{end}")
        elif time.monotonic() - began > 2 and 10 * done // total > last[0]:
            last[0] = 10 * done // total
            say(f"{what} {done}/{total}", file=sys.stderr)

    return tell
