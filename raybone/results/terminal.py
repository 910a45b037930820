"""What a person sees on a terminal: the ranking, the progress of a search, bars."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from raybone.types import printable

if TYPE_CHECKING:
    import pandas as pd

    from raybone.errors import EndReason
    from raybone.hpo.brain import Brain
    from raybone.types import Epoch


EVERY = 10.0  # seconds between two lines on the running folds
NAME = 15  # letters of a name in the table of models


def tell_end(reason: EndReason, out: str) -> None:
    """The end of a search on the terminal."""
    from raybone.results.study_folder import StudyFolder

    folder = StudyFolder(out)
    table = folder.table()
    show_table(table)
    tried, trials, skipped = len(table), folder.study.search.trials, len(folder.state.skipped)
    if skipped:
        say(
            f"{skipped} of {trials} configurations were not worth a start, by their "
            f"hyper-parameters; `raybone logs {shlex.quote(out)}` names them"
        )
    if reason.kind == "complete" and tried + skipped < trials:
        say(
            f"the space is used up: {tried} of search.trials {trials}; search.reject or the model "
            "refused the rest, if there is one"
        )
    say(
        f"{'done' if reason.kind == 'complete' else reason}: {out.rstrip('/')}/leaderboard.csv; "
        f"`raybone report {shlex.quote(out)}` makes a page of it"
    )


def show_table(table: pd.DataFrame, brief: bool = False) -> None:
    """A leaderboard's columns that a person reads first, and unless it is to be brief what was
    searched.
    """
    from raybone.results.leaderboard import brief_of

    if table.empty:
        say("no configuration has begun")
        return
    first = brief_of(table)
    metric = first[4].removesuffix("_mean")
    shown = table[first].astype(object)
    for name in shown:
        shown[name] = [
            f"{v:.3f}" if isinstance(v, float) else v
            for v in shown[name].where(shown[name].notna(), "")
        ]
    shown["rank"] = [f"{r:.0f}" if r == r else "" for r in table["rank"].astype(float)]
    high = shown.pop(f"{metric}_nb_high")
    shown[f"{metric}_nb_low"] = [
        f"{low}-{top}" if low else "" for low, top in zip(shown[f"{metric}_nb_low"], high)
    ]
    if table["model"].nunique() == 1:
        shown.pop("model")
    searched = [
        c
        for c in table.columns
        if c.startswith("cfg.") and table[c].astype(str).nunique(dropna=False) > 1
    ]
    for name in () if brief else searched:
        shown[name.removeprefix("cfg.")] = table[name]
    shown = shown.loc[:, (shown.astype(str) != "").any()].rename(
        columns={
            f"{metric}_mean": metric,
            f"{metric}_nb_low": "95 %",
            "config_id": "config",
            f"{metric}_corrected": "corrected",
            f"{metric}_test": "test",
        }
    )
    say(shown.to_string(index=False, na_rep="", float_format="{:.3g}".format))
    for warning in filter(None, table["warnings"].fillna("").unique()):
        say(f"warning: {warning}")


def show_by_model(table: pd.DataFrame) -> None:
    """The table of models as two, of scores and of costs, each within 120 columns."""
    if table.empty:
        say("no configuration has begun")
        return
    import pandas as pd

    from raybone.results.leaderboard import metric_of

    metric, scores, costs = metric_of(table), [], []
    for row in table.to_dict("records"):
        name = row["model"] if len(row["model"]) <= NAME else f"{row['model'][: NAME - 3]}..."
        best = row["config_id"]
        scores.append(
            {
                "model": name,
                "config": best if len(best) <= NAME else f"...{best[3 - NAME :]}",
                "complete": f"{row['complete']}/{row['configurations']}",
                metric: _digits(row[f"{metric}_mean"]),
                "95 %": _span(row, f"{metric}_nb"),
                "corrected": _digits(row[f"{metric}_corrected"]),
                "to the best": _digits(row["delta_to_best"]),
                "its 95 %": _span(row, "delta_ci"),
                "p": _digits(row["p_holm"]),
                "verdict": row["verdict"],
            }
        )
        size = row["parameters"]
        costs.append(
            {
                "model": name,
                "train hours": _digits(row["train_hours"]),
                "GPU hours": _digits(row["gpu_hours"]),
                "parameters": f"{size:,.0f}" if size == size else "",
                **({"ms an image": _digits(row["ms"])} if "ms" in row else {}),
            }
        )
    for rows in (scores, costs):
        say(pd.DataFrame(rows).to_string(index=False))
    for line in _by_model_notes(table):
        say(line)


def _by_model_notes(table: pd.DataFrame) -> list[str]:
    """What a reader must know of the table of models."""
    pairs = int(table.filter(like="p_holm[").notna().sum().sum()) // 2
    notes, tried = [], dict(zip(table["model"], table["configurations"]))
    if pairs:
        notes.append(
            f"p is Nadeau & Bengio's against the best, after Holm's correction for {pairs} "
            f"pair{'s' * (pairs > 1)} of models; the verdict goes by it"
        )
    if len(set(tried.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in tried.items())
        notes.append(
            f"warning: the best of more configurations looks better ({counts}); corrected is the "
            "mean without that choice"
        )
    if "ms_on" in table:
        notes += [f"ms an image, fresh weights: {on}" for on in table["ms_on"].dropna().unique()]
    return [*notes, *(f"warning: {w}" for w in table["warnings"].unique() if w)]


def _digits(value: float) -> str:
    """Three decimals, or one of what is large; nothing for NaN."""
    if value != value:
        return ""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _span(row: dict[Any, Any], name: str) -> str:
    """An interval by the name of its columns."""
    low, high = _digits(row[f"{name}_low"]), _digits(row[f"{name}_high"])
    return low and f"{low} to {high}"


def progress() -> Callable[[Brain], None]:
    """Lines on what happens: news at once, the running folds every few seconds."""
    from raybone.results.logs import in_words
    from raybone.results.watch import (
        best_line,
        busy_line,
        clock,
        running_line,
        status_of,
        time_left,
        warm_lines,
    )
    from raybone.study.space import trials

    told = {"news": -1, "time": 0.0, "version": -1}
    began = time.monotonic()

    def tell(brain: Brain) -> None:
        study, state = brain.study, brain.state
        now, rungs = clock(time.monotonic() - began), study.resolved.ladder
        if told["news"] < 0:
            told["news"] = state.old_news
            say(
                f"{study.name}: {trials(study)} configurations of {', '.join(study.names)}, "
                f"{brain.slots} run(s) at once, rungs (folds x epochs): "
                f"{', '.join(f'{k}x{e}' for k, e in rungs)}"
            )
            for line in warm_lines(study):
                say(line)
        for event in state.news[int(told["news"]) :]:
            say(f"[{now}] {in_words(event, rungs)}")
            told["news"] += 1
        if state.end and state.fold_epochs:
            say(f"[{now}] {busy_line(study, state)}")
        if brain.version != told["version"] and time.monotonic() - told["time"] >= EVERY:
            told["time"], told["version"] = time.monotonic(), brain.version
            status = status_of(study, state)
            running = " | ".join(running_line(study, r) for r in status.running)
            say(
                f"[{now}] {running or 'starting'} | {best_line(study, status.best)} | "
                f"{time_left(study, state)}"
            )

    return tell


def show(text: str, file: TextIO | None = None, end: str = "\n") -> None:
    """Print text for people, with ? for all that a terminal may take for a command.

    Raises:
        BrokenPipeError: the reader has closed the pipe. What was not printed is dropped, and so is
            all that follows.
    """
    file = file or sys.stdout
    try:
        print(printable(text), file=file, end=end, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
        raise


def say(text: str, file: TextIO | None = None, end: str = "\n") -> None:
    """``show``, for work that goes on when the reader has closed the pipe."""
    with contextlib.suppress(BrokenPipeError):
        show(text, file, end)


def epoch_line(epoch: Epoch) -> None:
    """An epoch of a training without folds."""
    told = ", ".join(f"{name} {value:.4f}" for name, value in epoch.metrics.items())
    say(f"epoch {epoch.epoch}: {told} in {epoch.seconds:.1f} s")


def bar(what: str) -> Callable[[int, int], None]:
    """A progress bar on a terminal; a line every tenth elsewhere, once it takes over two
    seconds.
    """
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
