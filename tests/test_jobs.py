"""The studies of the papers run from their files, on a phantom in the layout of their data."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from raybone.cli import main
from raybone.spec import read_study

JOBS = Path(__file__).resolve().parents[1] / "jobs"
SMALL = ["epochs=1", "search.trials=1", "search.folds=2", "search.scheduler=full", "search.sampler=random",
         "space.imgsz.choice=[64]", "resources={cpus: 1, gpus: 0}", "limits={}", "fixed.batch=4", "fixed.nbs=4",
         "fixed.warmup_epochs=0"]
NARROW = {"retinanet": ["fixed.channels=16"],
          **{name: ["fixed.channels=16", "fixed.head=16", "fixed.rois=16"] for name in ("faster_rcnn", "cascade_rcnn")}}


@pytest.fixture(scope="module")
def bs80k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantom patients in BS-80K's layout, prepared with two folds."""
    place = tmp_path_factory.mktemp("bs80k")
    assert main(["phantom", str(place / "raw"), "--patients", "4", "--height", "128", "--layout", "bs80k"]) == 0
    assert main(["prepare", str(place / "raw"), str(place / "ds"), "--layout", "bs80k", "--folds", "2",
                 "--key", str(place / "key")]) == 0
    return place / "ds"


@pytest.mark.parametrize("name", ["yolo11", "faster_rcnn", "cascade_rcnn", "retinanet"])
def test_a_detector_of_bs80k_runs_from_its_file(name: str, bs80k: Path, tmp_path: Path) -> None:
    job = JOBS / f"bs80k_{name}.yaml"
    assert read_study(job).search.folds == 5
    assert main(["search", str(job), "--out", str(tmp_path / "study"), "--local", "--set", f"dataset={bs80k}", *SMALL,
                 *NARROW.get(name, [])]) == 0
    (row,) = pd.read_csv(tmp_path / "study" / "leaderboard.csv").to_dict("records")
    assert row["state"] == "complete"
    assert 0 <= row["AP_mean"] <= row["AP50_mean"] <= 1
    assert row["model"].startswith(name)
