"""Kill -9 the workers of a study again and again while folds train: all start again and no fold is
lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from faults import WORKER, Killer

from raybone.errors import RunFailed
from raybone.run.local import search as search_locally
from raybone.run.ray.tuner import search
from raybone.study.files import parse_study
from tests.chaos.harness import events


@pytest.mark.usefixtures("local_ray")
def test_what_is_killed_again_and_again_is_started_again_and_no_fold_is_lost(
    study: dict[str, Any], tmp_path: Path
) -> None:
    """Workers die more often than RETRIES, but not without an epoch in between."""
    study = {
        **study,
        "epochs": 8,
        "search": {**study["search"], "trials": 1},
        "resources": {"concurrent": 1},
    }
    search_locally(parse_study(study), str(tmp_path / "whole"))
    killer = Killer(tmp_path / "st", *((epochs, WORKER) for epochs in (3, 7, 11)))
    assert search(parse_study(study), str(tmp_path / "st")).kind == "complete"
    assert killer.all_killed()
    boards = [
        pd.read_csv(tmp_path / n / "leaderboard.csv").drop(
            columns=["train_seconds", "gpu_hours", "images_per_s", "memory_gb", "gpu_use"]
        )
        for n in ("st", "whole")
    ]
    pd.testing.assert_frame_equal(*boards)


@pytest.mark.usefixtures("local_ray")
def test_an_epoch_that_does_not_end_is_given_up_and_the_reason_is_told(
    study: dict[str, Any], tmp_path: Path
) -> None:
    long = {**study["fixed"], "imgsz": 512, "width": 32, "depth": 5, "batch": 1, "nbs": 1}
    study = {
        **study,
        "fixed": long,
        "search": {**study["search"], "trials": 1},
        "resources": {"concurrent": 1},
        "limits": {"stall_minutes": 0.05},
    }
    reason = "no epoch ended within limits.stall_minutes 0.05"
    with pytest.raises(RunFailed, match=reason):
        search(parse_study(study), str(tmp_path / "st"))
    table = pd.read_csv(tmp_path / "st" / "leaderboard.csv")
    assert list(table["state"]) == ["failed"]
    again = [str(e["reason"]) for e in events(tmp_path / "st") if e["event"] == "again"]
    assert again
    assert all(told.endswith(reason) for told in again)
