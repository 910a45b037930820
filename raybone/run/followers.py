"""Trackers that a study names: processes beside its driver, which read the journal alone.

One that is down or dies stops nothing; `raybone track` tells it afterwards.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

FOLDERS = ("tensorboard", "wandb")  # whose place is a folder to be made
PATIENCE = 60.0  # seconds that a tracker has to tell the end


@contextlib.contextmanager
def tracked(to: Sequence[str], out: str) -> Iterator[None]:
    """Tell trackers of a study folder for the time of the block, and what is left at its end.

    A study that is resumed is told whole once more, into a folder of the next number.
    """
    words = [sys.executable, "-m", "raybone", "track", out, "--follow", "--to"]
    started = [
        subprocess.Popen(
            [*words, _free(place)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        for place in to
    ]
    patience = 0.0
    try:
        yield
        patience = PATIENCE
    finally:
        for process in started:
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()


def _free(to: str) -> str:
    kind, _, place = to.partition(":")
    if kind not in FOLDERS:
        return to
    names = itertools.chain([place], (f"{place}-{n}" for n in itertools.count(2)))
    return f"{kind}:{next(name for name in names if not os.path.lexists(name))}"
