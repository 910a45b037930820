"""A hundred searches in a row whose two folds begin at once: none hangs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from raybone.data.ingest.prepare import prepare
from raybone.run.ray.tuner import search
from raybone.study.files import parse_study

SEARCHES = 100


@pytest.mark.endurance
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("local_ray")
def test_a_hundred_searches_of_two_folds_end(
    study: dict[str, Any], cohort: Path, tmp_path: Path
) -> None:
    """Threads that started two folds of one process at once used to lock each other out, in 2 of 21
    searches.
    """
    prepare(cohort, tmp_path / "ds", folds=2, key=cohort.with_suffix(".key"))
    small = parse_study(
        {
            **study,
            "dataset": str(tmp_path / "ds"),
            "epochs": 1,
            "space": {},
            "fixed": {"batch": 8, "width": 4, "depth": 1, "imgsz": 64},
            "search": {"trials": 1, "sampler": "grid", "scheduler": "full"},
        }
    )
    seconds = []
    for number in range(SEARCHES):
        began = time.monotonic()
        assert search(small, str(tmp_path / f"st{number}")).kind == "complete"
        seconds.append(time.monotonic() - began)
    print(
        f"{SEARCHES} searches: median {sorted(seconds)[SEARCHES // 2]:.1f} s, longest "
        f"{max(seconds):.1f} s"
    )
