"""Kill -9 the workers of a study again and again while folds train: all start again and no fold is
lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from faults import WORKER, Killer

from raybone.run.local import search as search_locally
from raybone.run.ray.tuner import search
from raybone.study.files import parse_study


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
    killer = Killer(tmp_path / "st", *((epochs, WORKER) for epochs in (3, 7, 11, 15)))
    assert search(parse_study(study), str(tmp_path / "st")).kind == "complete"
    assert killer.all_killed()
    boards = [
        pd.read_csv(tmp_path / n / "leaderboard.csv").drop(columns=["train_seconds", "gpu_hours"])
        for n in ("st", "whole")
    ]
    pd.testing.assert_frame_equal(*boards)
