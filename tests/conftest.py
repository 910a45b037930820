"""One phantom, one dataset and one local Ray for the whole run of the suite; nothing is written to
the real HOME.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

_HOME = tempfile.mkdtemp(prefix="raybone-home-")
os.environ.update(
    HOME=_HOME,
    XDG_CONFIG_HOME=f"{_HOME}/.config",
    YOLO_CONFIG_DIR=f"{_HOME}/ultralytics",
    OMP_NUM_THREADS="1",
)
Path(_HOME, "ultralytics").mkdir()
os.environ.pop("RAY_ADDRESS", None)

# A suite that is started in the background ignores Ctrl-C, and under nohup hang-ups, and so would
# every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Nothing is written into the checkout, and a slow machine is no failure.
settings.register_profile("raybone", database=None, deadline=None)
settings.load_profile("raybone")

LONG = Path(__file__).with_name("long.txt")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make long` runs."""
    lines = LONG.read_text(encoding="utf-8").splitlines()
    named = {line for line in lines if line and not line.startswith("#")}
    for item in items:
        file, _, test = item.nodeid.partition("::")
        if {item.nodeid, f"{file}::{test.partition('[')[0]}", file} & named:
            item.add_marker("long")


SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real scans, or a skip that says so."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no ../shared here: real scans are not tested")
    return SHARED


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine phantom patients at 256x64, as DICOM."""
    from raybone.phantom.phantom import phantom

    return phantom(tmp_path_factory.mktemp("phantom") / "cohort", patients=9, seed=3, height=256)


@pytest.fixture(scope="session")
def dataset(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort prepared with three folds."""
    from raybone.data.ingest.prepare import prepare

    path = tmp_path_factory.mktemp("dataset") / "ds"
    prepare(cohort, path, folds=3, key=cohort.with_suffix(".key"))
    return path


@pytest.fixture(scope="session")
def held_out(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort with three patients in a test group and two in each of three folds."""
    from raybone.data.ingest.prepare import prepare

    return prepare(
        cohort,
        tmp_path_factory.mktemp("held") / "ds",
        folds=3,
        key=cohort.with_suffix(".key"),
        holdout=3,
    ).path


@pytest.fixture
def study(dataset: Path) -> dict[str, object]:
    """A study of seconds, as a mapping: a tiny U-Net on small scans."""
    return {
        "name": "tiny",
        "dataset": str(dataset),
        "model": "unet",
        "epochs": 3,
        "metric": "dice",
        "fixed": {"batch": 4, "nbs": 4, "width": 4, "depth": 2, "imgsz": 128},
        "space": {"lr0": {"log_uniform": [1e-3, 3e-2]}, "fliplr": {"choice": [0.0, 0.5]}},
        "search": {"trials": 2, "sampler": "random", "scheduler": "full", "seed": 0},
    }


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of this run's own, with two CPUs, that searches in this process join."""
    from raybone.run.ray.connection import connection

    with connection(None):
        yield
