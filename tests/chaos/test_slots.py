"""What a slot leaves behind: thirty segments of other models and sizes, and a thousand of one epoch."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from faults import WORKER

from raybone.hpo.brain import Brain, Work
from raybone.run.ray.driver import Driver
from raybone.run.ray.tuner import search
from raybone.run.session import open_study
from raybone.study.files import parse_study
from raybone.types import Segment

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(3600)]
SEGMENTS = int(os.environ.get("RAYBONE_SEGMENTS", "1000"))


class Bench:
    """A hub with one slot, as a driver has them, and what the slot's processes hold."""

    def __init__(self, study: dict[str, Any], out: Path) -> None:
        self.driver: Any = None
        self.study, self.out, self.count = study, out, 0

    def run(self, params: Iterator[dict[str, Any]]) -> list[dict[str, float]]:
        """Train a segment of one epoch with each; what the worker, the driver and Ray hold after."""
        held = []
        with open_study(parse_study(self.study), str(self.out)) as opened:
            self.driver = Driver(opened, lambda brain: None, 600)
            for number, given in enumerate(params):
                name = f"b{number:04d}"
                work = Work(name, given, 0, (Segment(0, 0, 1),))
                ray.get(self.driver.hub.assign.remote(work, {}))
                rung = self.driver.hub.rung.remote(name)
                while not ray.wait([rung], timeout=0.05)[0]:
                    said = ray.get(self.driver.hub.drain.remote(False))
                    self.driver.slots.follow(said.tasks - said.idle, said.here, 1)
                assert ray.get(rung)["outcome"] == "done", ray.get(rung)
                held.append(holdings())
            self.driver.close()
        return held


def holdings() -> dict[str, float]:
    """Resident MB and open files of the worker and of this process, and Ray's processes."""
    here = psutil.Process()
    titles: Counter[str] = Counter()
    found = dict[str, float](workers=0)
    for process in here.children(recursive=True):
        try:
            title = (process.cmdline() or [""])[0]
            titles[title] += title.startswith("ray::") and not title.startswith("ray::IDLE")
            if title.startswith(WORKER):
                found = {
                    "pid": process.pid,
                    "workers": found.get("workers", 0) + 1,
                    "worker_mb": found.get("worker_mb", 0) + process.memory_info().rss / 2**20,
                    "worker_files": found.get("worker_files", 0) + process.num_fds(),
                }
        except psutil.NoSuchProcess:
            continue
    return {
        **found,
        "driver_mb": here.memory_info().rss / 2**20,
        "driver_files": here.num_fds(),
        "actors": sum(titles.values()),
    }


def slope(values: list[float]) -> float:
    """Growth by the segment, after the first fifth, in which caches fill."""
    tail = values[len(values) // 5 :]
    return float(np.polyfit(range(len(tail)), tail, 1)[0])


def test_thirty_segments_of_other_models_and_sizes_leave_memory_flat(
    study: dict[str, Any], tmp_path: Path
) -> None:
    several = {
        **{k: v for k, v in study.items() if k not in ("model", "fixed", "space")},
        "models": ["unet", "res_unet", "attention_unet"],
        "fixed": {"batch": 4, "nbs": 4},
        "space": {"imgsz": {"choice": [64, 128, 256]}, "width": {"choice": [4, 8, 16]}},
    }
    names, sizes, widths = ["unet", "res_unet", "attention_unet"], [64, 256, 128], [16, 4, 8]
    given = (
        {"model": names[n % 3], "imgsz": sizes[n // 3 % 3], "width": widths[n // 9 % 3]}
        for n in range(30)
    )
    held = Bench(several, tmp_path / "st").run(given)
    print([round(h["worker_mb"]) for h in held], {h["pid"] for h in held})
    assert len({h["pid"] for h in held}) == 1
    # The largest comes early; what the later ones hold is no more.
    assert max(h["worker_mb"] for h in held[20:]) < 1.1 * max(h["worker_mb"] for h in held[:10])


@pytest.mark.endurance
def test_a_thousand_segments_of_one_epoch_in_one_search_let_nothing_grow(
    study: dict[str, Any], tmp_path: Path
) -> None:
    """Configurations of three folds; the driver holds the state of each, so it may grow by little."""
    small = {
        **study,
        "epochs": 1,
        "fixed": {**study["fixed"], "imgsz": 32},
        "search": {**study["search"], "trials": SEGMENTS // 3, "scheduler": "full"},
        "space": {"lr0": {"log_uniform": [1e-3, 1e-2]}},
    }
    held, began = list[dict[str, float]](), time.monotonic()

    def look(brain: Brain) -> None:
        if brain.state.fold_epochs > len(held):
            held.append(holdings())

    assert search(parse_study(small), str(tmp_path / "st"), tell=look).kind == "complete"
    whole = [h for h in held if h["workers"] == 2]
    print(
        f"{SEGMENTS // 3} configurations in {time.monotonic() - began:.0f} s",
        *({k: round(v, 1) for k, v in whole[n].items()} for n in (0, len(whole) // 5, -1)),
        sep="\n",
    )
    assert len(whole) > 0.9 * len(held)
    assert len({h["pid"] for h in whole}) <= 2
    # A tenth of a megabyte a segment would be 100 MB in all; a file a segment ends a search.
    assert slope([h["worker_mb"] for h in whole]) < 0.1
    assert slope([h["driver_mb"] for h in whole]) < 0.2
    assert abs(slope([h["worker_files"] for h in whole])) < 0.01
    assert abs(slope([h["driver_files"] for h in whole])) < 0.01
    assert abs(slope([h["actors"] for h in whole])) < 0.01
