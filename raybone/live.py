"""The facts of a study as a picture for a terminal."""

from __future__ import annotations

import math

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raybone.watch import Status, best_line, busy_line, clock

LEAST = 2  # lines of news that a low screen keeps


class Picture:
    """A study that fits the terminal it is drawn on: what is least urgent goes first when there is no room."""

    def __init__(self, status: Status) -> None:
        self.status = status

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        status, height = self.status, console.height
        fixed = 6 + len(status.rungs) + (len(status.running) + 1 if status.running else 0)
        room = max(LEAST, height - fixed - 3)
        failed, again = status.news("failed", max(1, room // 3)), status.news("again", max(1, room // 4))
        decided = status.news("decision", max(1, room - len(failed) - len(again)))
        parts: list[RenderableType] = [_plain(status.progress, ""), _plain(status.counts, "dim"), _ladder(status),
                                       _plain(best_line(status.study, status.best), "bold")]
        if status.state.fold_epochs:
            parts.append(_plain(busy_line(status.study, status.state), ""))
        if status.running:
            parts.append(_runs(status))
        for mark, style, lines in (("", "", decided), ("again: ", "yellow", again), ("FAILED: ", "red", failed)):
            parts += [_plain(mark + line, style) for line in lines]
        colour = "dim" if status.state.end or not status.driven else "green"
        yield Panel(Group(*parts), title=_plain(status.title, "bold"), title_align="left", border_style=colour)


def _plain(text: str, style: str) -> Text:
    """One line of text as it is: reasons of failures hold what programs said."""
    return Text("".join(c if c.isprintable() else "?" for c in text), style, no_wrap=True, overflow="ellipsis")


def _ladder(status: Status) -> Table:
    table = Table.grid(padding=(0, 1), expand=True)
    most = max([len(status.state.configurations), 1])
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    table.add_column(justify="right", no_wrap=True)
    for number, rung in enumerate(status.rungs, 1):
        told = f"{rung.done} done, {rung.stand} stand there" + (f", {rung.stopped} stopped" if rung.stopped else "")
        table.add_row(_plain(f"rung {number}  {rung.name}", ""), ProgressBar(most, rung.done), _plain(told, ""))
    return table


def _runs(status: Status) -> Table:
    table = Table(box=None, padding=(0, 1), expand=True, header_style="dim", show_edge=False)
    for name, justify in (("running", "left"), ("goes to", "left"), ("", "left"), ("fold: epoch, score", "left"),
                          ("time left", "right")):
        table.add_column(name, justify=justify, no_wrap=True, ratio=1 if name == "" else None,  # type: ignore[arg-type]
                         overflow="ellipsis")
    for run in status.running:
        folds = "  ".join(f"{k}: {n}/{status.study.epochs}, {score:.4f}" for k, n, score in run.folds)
        left = clock(run.seconds) if math.isfinite(run.seconds) else ""
        table.add_row(_plain(run.config_id, "bold"), _plain(run.rung, ""), ProgressBar(1.0, run.share),
                      _plain(folds or "starting a run", ""), left)
    return table
