"""Trackers that a study names: processes beside its driver, which read the journal alone.

One that is down or dies stops nothing; `raybone track` tells it afterwards.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from raybone.results.terminal import say
from raybone.results.trackers.track import DRIVER

FOLDERS = ("tensorboard", "wandb")  # whose place is a folder to be made
PATIENCE = 60.0  # seconds that trackers have to tell the end
GRACE = 5.0


@contextlib.contextmanager
def tracked(to: Sequence[str], out: str) -> Iterator[None]:
    """Tell trackers of a study folder for the time of the block, and what is left at its end.

    A study that is resumed is told whole once more, into a folder of the next number.
    """
    words = [sys.executable, "-m", "raybone", "track", out, "--follow", "--to"]
    how: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    how["env"] = {**os.environ, DRIVER: str(os.getpid())}
    places = [_free(place) for place in to]
    started = [subprocess.Popen([*words, place], **how) for place in places]
    until = 0.0
    try:
        yield
        until = time.monotonic() + PATIENCE
    finally:
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
        for place, process in zip(places, started):
            if until and process.poll() is None:
                told = shlex.join(["raybone", "track", out, "--to", place])
                late = f"warning: {place} was not told all in {PATIENCE:g} s; `{told}` tells it"
                say(late, file=sys.stderr)
            process.terminate()
        for process in started:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()  # it hangs, and holds nothing that another needs


def _free(to: str) -> str:
    kind, _, place = to.partition(":")
    if kind not in FOLDERS:
        return to
    names = itertools.chain([place], (f"{place}-{n}" for n in itertools.count(2)))
    return f"{kind}:{next(name for name in names if not os.path.lexists(name))}"
