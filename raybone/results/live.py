"""The facts of a study as a picture for a terminal."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from raybone.results.terminal import say
from raybone.results.watch import (
    HOW,
    Status,
    best_line,
    busy_line,
    clock,
    in_short,
    status_of,
    warm_lines,
    watch,
)
from raybone.types import printable

if TYPE_CHECKING:
    from raybone.hpo.brain import Brain

# Of HOW, each with a shape of its own, as not everybody sees colours.
SHAPES = dict(
    zip(HOW, (("█", "green"), ("▒", "cyan"), ("×", "magenta"), ("·", "yellow"), ("!", "red")))
)
NEWS = 3  # lines that one piece of news may take
EVERY = 1.0  # seconds between pictures of a search at work


def live(out: str, follow: bool = True) -> None:
    """Watch a study on a screen of its own; the last picture stays on the terminal when the study
    ends or is left.

    Raises:
        WrongInput: no study there.
    """
    console = Console()
    screen, last = Live(console=console, screen=True, auto_refresh=False), list[Picture]()

    def show(status: Status, _: bool) -> None:
        last[:] = [Picture(status)]
        if follow:  # drawn again when nothing happened, as the terminal may have another size
            screen.start()
            screen.update(last[0], refresh=True)

    try:
        watch(out, show, follow)
    finally:
        screen.stop()
        console.print(*last, end="")


@contextlib.contextmanager
def following() -> Iterator[Callable[[Brain], None]]:
    """Draws this process's own search in place, below all else that is printed; the last picture
    stays.
    """
    screen, drawn = Live(auto_refresh=False), -math.inf

    def tell(brain: Brain) -> None:
        nonlocal drawn
        if drawn < 0:
            for line in warm_lines(brain.study):
                say(line)
        if time.monotonic() - drawn >= EVERY or brain.state.end:
            with brain.lock:
                screen.start()
                screen.update(Picture(status_of(brain.study, brain.state)), refresh=True)
            drawn = time.monotonic()

    try:
        yield tell
    finally:
        screen.stop()


class Picture:
    """A study that fits the terminal it is drawn on: what is least urgent goes first when there is
    no room.
    """

    def __init__(self, status: Status) -> None:
        self.status = status

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        status, width = self.status, options.max_width - 4
        height = (options.height or options.max_height - 1) - 2  # a prompt follows what stays
        busy = [busy_line(status.study, status.state)] if status.state.fold_epochs else []

        def wrapped(text: str, style: str, most: int) -> list[Text]:
            lines = list(Text(printable(text), style).wrap(console, width))
            if len(lines) > most > 0:
                lines[most - 1].truncate(width - 1)
                lines[most - 1].append("…")
            return lines[:most]

        def latest(style: str, most: int, *kinds: str) -> list[Text]:
            lines: list[Text] = []
            for text in reversed(status.news(most, *kinds)):
                lines = [*wrapped(text, style, min(NEWS, most - len(lines))), *lines]
            return lines

        each = 2 if height > 14 else 1
        head = [
            *wrapped(status.progress, "", each),
            *wrapped(" · ".join([status.counts, *busy]), "", each),
            *wrapped(best_line(status.study, status.best), "bold", each),
        ]
        rungs = _rungs(status, width, max(2, height - len(head) - 7))
        room = height - len(head) - rungs.row_count - 1
        leaders = _leaders(status, width, room - 5)  # a run and what happened last are more urgent
        room -= leaders.row_count + 1 if leaders.row_count else 0
        runs = _runs(status, width, max(1, room // 2 - 1))
        room = max(0, room - (runs.row_count + 1 if status.running else 0))
        failed = latest("red", -(-room // 3), "failed")
        told = latest("", room - len(failed), "decision", "again", "slots")
        shown = [table for table in (leaders, runs) if table.row_count]
        yield Panel(
            Group(*head, rungs, *shown, *told, *failed),
            title_align="left",
            title=Text(printable(status.title), "bold"),
            border_style="dim" if status.state.end or not status.driven else "green",
        )


class _Bar:
    """Shares of a whole, each with its shape and colour; what is more than nothing is seen."""

    def __init__(self, *parts: tuple[float, tuple[str, str]]) -> None:
        self.parts = parts

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        bar, width = Text(no_wrap=True), options.max_width
        for share, (shape, colour) in self.parts:
            bar.append(shape * max(round(share * width), share > 0), colour)
        bar.truncate(width)
        yield bar

    def __rich_measure__(self, _: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(4, options.max_width)


def _grid(width: int, *columns: str) -> Table:
    """A table whose second column, a bar, takes what the others leave."""
    table = Table(box=None, padding=(0, 1, 0, 0), width=width, header_style="dim", pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(
            name,
            justify="right" if number > 1 else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if number == 1 else None,
        )
    return table


def _rungs(status: Status, width: int, most: int) -> Table:
    """The ladder: all rungs where there is room, else those up to the one after the highest that
    anybody goes to.
    """
    table = _grid(width, "folds x epochs", "", *(f"{SHAPES[how][0]} {how}" for how in HOW))
    highest = max(
        (n for n, r in enumerate(status.rungs, 1) if any(getattr(r, how) for how in HOW)), default=1
    )
    first = max(0, min(highest + 1, len(status.rungs)) - most)
    for number, (folds, epochs) in list(enumerate(status.study.resolved.ladder))[
        first : first + most
    ]:
        counts = [getattr(status.rungs[number], how) for how in HOW]
        trials = max(1, status.state.planned(status.study.search.trials))
        bar = _Bar(*((n / trials, SHAPES[how]) for n, how in zip(counts, HOW)))
        table.add_row(f"{number + 1}: {folds} x {epochs}", bar, *(str(n or "") for n in counts))
    return table


def _leaders(status: Status, width: int, most: int) -> Table:
    """The best so far with their hyper-parameters; one is in the head already."""
    table = _grid(
        width, "best", "hyper-parameters", status.study.metric[:8], "95 %", "folds x epochs"
    )
    for best in status.leaders[:most] if min(most, len(status.leaders)) > 1 else ():
        sure = f"{best.low:.3f}-{best.high:.3f}" if math.isfinite(best.low) else ""
        rung = " x ".join(word for word in best.rung.split() if word.isdecimal())
        table.add_row(
            best.config_id, Text(printable(in_short(best.params))), f"{best.value:.3f}", sure, rung
        )
    return table


def _runs(status: Status, width: int, most: int) -> Table:
    """The folds at work, or that a run is starting."""
    rows = [(run, fold) for run in status.running for fold in run.folds or [None]]
    name = "running, to rung" if len(rows) <= most else f"{most} of {len(rows)} running"
    table = _grid(width, name, "", "fold", "epoch", status.study.metric[:8], "s/epoch", "rung in")
    for run, fold in rows[:most]:
        told = (
            [str(fold[0]), f"{fold[1]}/{run.epochs}", f"{fold[2]:.3f}"]
            if fold
            else ["starts", "", ""]
        )
        speed = (
            [f"{run.epoch_seconds:.3g}", clock(run.seconds)]
            if math.isfinite(run.seconds)
            else ["", ""]
        )
        bar = _Bar((run.share, SHAPES["passed"]), (1 - run.share, ("░", "dim")))
        table.add_row(Text(f"{printable(run.config_id)} to {run.target + 1}"), bar, *told, *speed)
    return table
