"""Ray's own ASHA on lockstep folds: longer than a unit test, as its second rung needs a hundred
steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raybone.run.ray.tuner import search
from raybone.study.files import parse_study


@pytest.mark.usefixtures("local_ray")
def test_asha_is_rays_own_on_lockstep_folds(study: dict[str, Any], tmp_path: Path) -> None:
    asha = {
        **study,
        "epochs": 27,
        "fixed": {**study["fixed"], "batch": 1, "nbs": 1, "imgsz": 64},
        "space": {"lr0": {"choice": [0.005, 1e-7]}},
        "search": {"trials": 2, "sampler": "grid", "scheduler": "asha"},
        "resources": {"concurrent": 1},
    }
    search(parse_study(asha), str(tmp_path / "st"))
    table = pd.read_csv(tmp_path / "st" / "leaderboard.csv")
    assert list(table["state"]) == ["complete", "stopped@3x9"]
    assert list(table["cfg.lr0"]) == [0.005, 1e-7]
