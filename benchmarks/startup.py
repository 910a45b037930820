"""What a segment of one epoch costs: a Ray Train run for each, side by side with a warm slot.

    python benchmarks/startup.py

Both train the same tiny U-Net on the same phantom, one worker on a local Ray. Seconds are from when
the hub has a segment to when it hears of its end, by turns.
"""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine

from raybone.data.ingest.prepare import prepare
from raybone.hpo.brain import Work
from raybone.phantom.phantom import phantom
from raybone.run.ray.connection import connection
from raybone.run.ray.driver import Driver
from raybone.run.session import OpenStudy, open_study
from raybone.study.files import parse_study
from raybone.types import Segment

import ray  # isort: skip  # after raybone, which sets what Ray reads when it is imported

REPEATS = 7
LOOK = 0.05


def opened_in(place: Path, stack: Any) -> OpenStudy:
    """A study of seconds."""
    phantom(place / "scans", patients=6, seed=3, height=256)
    prepare(place / "scans", place / "ds", folds=3)
    study = {
        "name": "startup",
        "metric": "dice",
        "dataset": str(place / "ds"),
        "model": "unet",
        "epochs": 1,
        "fixed": {"batch": 4, "nbs": 4, "width": 4, "depth": 2, "imgsz": 64},
        "space": {"lr0": {"choice": [0.01, 0.02]}},
    }
    return stack.enter_context(open_study(parse_study(study), str(place / "study")))


class Bench:
    """A hub with slots, as a driver has them, without Tune and a journal."""

    def __init__(self, opened: OpenStudy) -> None:
        self.driver = Driver(opened, lambda brain: None, 600)
        self.count = 0

    def segment(self, place: Path) -> None:  # noqa: ARG002
        """Train one segment, in the slot that is there or in a new one."""
        self.count += 1
        name = f"b{self.count:03d}"
        work = Work(name, {"lr0": 0.01}, 0, (Segment(0, 0, 1),))
        ray.get(self.driver.hub.assign.remote(work, {}))
        rung = self.driver.hub.rung.remote(name)
        while not ray.wait([rung], timeout=LOOK)[0]:
            said = ray.get(self.driver.hub.drain.remote(False))
            self.driver.slots.follow(said.tasks - said.idle, said.here, 1)
        assert ray.get(rung)["outcome"] == "done", ray.get(rung)

    def close(self) -> None:
        """Send the slot away."""
        self.driver.close()


def alone(opened: OpenStudy, place: Path) -> None:
    """One segment in a run of its own."""
    bench = Bench(opened)
    bench.segment(place)
    bench.close()


def main() -> None:
    """Measure and keep."""
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        opened = opened_in(place, stack)
        stack.enter_context(connection(None))
        warm = Bench(opened)
        stack.callback(warm.close)
        runs: dict[str, Callable[[Path], object]] = {
            "a run each": functools.partial(alone, opened),
            "a warm slot": warm.segment,
        }
        machine.by_turns(runs, 1)  # the first of each imports what later ones have
        seconds = machine.by_turns(runs, REPEATS)
    rows = {
        name: {"median_seconds": machine.median(s), "seconds": s} for name, s in seconds.items()
    }
    ratio = rows["a run each"]["median_seconds"] / rows["a warm slot"]["median_seconds"]
    print(json.dumps({**rows, "ratio": ratio}, indent=1))
    machine.keep("startup", {"repeats": REPEATS, "segment_of_one_epoch": rows, "ratio": ratio})


if __name__ == "__main__":
    main()
