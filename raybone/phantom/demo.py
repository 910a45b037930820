"""The demonstration study: a phantom cohort and a search small enough for two cores and minutes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raybone.data.ingest.prepare import prepare
from raybone.errors import WrongInput
from raybone.phantom.phantom import key_beside, phantom
from raybone.study.files import parse_study
from raybone.study.spec import Study

PATIENTS, SEED, FOLDS = 24, 7, 3
STUDY: dict[str, Any] = {
    "name": "demo",
    "model": "unet",
    "epochs": 15,
    "metric": "dice",
    "fixed": {"batch": 2, "nbs": 2, "width": 8, "depth": 3},
    "space": {
        "lr0": {"log_uniform": [0.0003, 0.03]},
        "imgsz": {"choice": [128, 192, 256]},
        "fliplr": {"choice": [0.0, 0.5]},
    },
    "search": {"trials": 5, "sampler": "sobol", "scheduler": "fold_race", "seed": 1},
}
Progress = Callable[[int, int], None]


def prepare_demo(out: Path, phantom_progress: Progress, prepare_progress: Progress) -> Study:
    """Make OUT/phantom/scans and OUT/dataset unless they are there, and return the study; a demo
    cut short goes on.

    Raises:
        WrongInput: OUT holds something else.
    """
    if out.exists() and not out.is_dir():
        raise WrongInput(f"demo: {out} must be a folder, but is a file; choose another --out")
    if not (out / "dataset").exists():
        shutil.rmtree(out / "phantom", ignore_errors=True)
        cohort = phantom(out / "phantom" / "scans", PATIENTS, SEED, progress=phantom_progress)
        key = key_beside(cohort)
        prepare(cohort, out / "dataset", prepare_progress, layout="dicom", folds=FOLDS, key=key)
    return parse_study({**STUDY, "dataset": str(out / "dataset")}, where="demo")
