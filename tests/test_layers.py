"""Imports point to lower floors, and heavy libraries stay in their rooms; inside functions as
well.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "raybone"
# Rooms from the ground up; those of one floor do not depend on order, but never on each other or on
# what is above them.
FLOORS = [
    {"version"},
    {"environment"},
    {"types", "errors"},
    {"private"},
    {"storage"},
    {"study", "metrics"},
    {"data"},
    {"hpo"},
    {"simulation"},
    {"models", "phantom"},
    {"tasks"},
    {"train"},
    {"results"},
    {"run"},
    {"deploy"},
    {"api"},
    {"cli"},
    {"__main__"},
]
# The only rooms or files that import a library.
HOME_OF = {
    "ray": {"run/ray/"},
    "ultralytics": {"models/detectors/_ultralytics.py"},
    "pydicom": {"data/ingest/dicom/", "deploy/dicom/"},
    "dicomweb_client": {"data/ingest/dicom/web.py"},
    "highdicom": {"deploy/dicom/"},
    "nibabel": {"data/ingest/annotations/nifti.py"},
    "torch": {
        "data/loader.py",
        "models/",
        "train/",
        "results/study_folder.py",
        "run/local.py",
        "run/preview.py",
        "run/ray/group.py",
        "run/ray/worker.py",
        "deploy/",
    },
    "torchvision": {"models/", "deploy/frames.py"},
    "monai": {"models/"},
    "segmentation_models_pytorch": {"models/segmenters/smp.py"},
    "timm": {"models/segmenters/smp.py", "models/classifiers/timm.py"},
    "dynamic_network_architectures": {"models/segmenters/nnunet.py"},
    "safetensors": {"models/_weights.py", "deploy/bundle.py"},
    "optuna": {"hpo/", "results/study_folder.py", "api.py"},
    "altair": {"results/charts/"},
    "jinja2": {"results/page.py", "deploy/patient_page.py", "deploy/refit.py"},
    "rich": {"results/live.py"},
    "mlflow": {"results/trackers/mlflow.py"},
    "tensorboardX": {"results/trackers/tensorboard.py"},
    "wandb": {"results/trackers/wandb.py"},
    "pycocotools": {"data/annotations.py", "data/ingest/annotations/coco.py"},
    "faster_coco_eval": {"metrics/boxes.py"},
}


def imports_of(source: str) -> list[tuple[str, int]]:
    """(dotted name, line) of every import, wherever it stands; relative ones start with a dot."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(("." * node.level + (node.module or ""), node.lineno))
    return found


def room_of(name: str) -> str:
    """``raybone.data.folds`` -> ``data``; the package itself -> empty."""
    return [*name.split("."), ""][1]


def floor(room: str) -> int:
    """Floor of a room, from the ground."""
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def breaches(path: str, source: str) -> list[str]:
    """What a file of that path (below raybone/) breaks."""
    room, wrong = path.split("/")[0].removesuffix(".py"), []
    if room == "__init__":
        room = "__main__"  # the public face, whose imports are lazy
    for name, line in imports_of(source):
        if name.startswith("."):
            wrong.append(f"{path}:{line} relative import {name}")
        elif name.split(".")[0] == "raybone":
            target = room_of(name)
            if target and target != room and floor(target) >= floor(room):
                wrong.append(f"{path}:{line} imports {name}, which is not below {room}")
        else:
            homes = HOME_OF.get(name.split(".")[0], {""})
            if not path.startswith(tuple(homes)):
                wrong.append(f"{path}:{line} imports {name}, whose home is {sorted(homes)}")
    return wrong


@pytest.mark.parametrize("path", sorted(str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py")))
def test_file_keeps_to_its_layer(path: str) -> None:
    assert breaches(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("train/fit.py", "import ray"),
        ("hpo/fold_race.py", "import torch"),
        ("data/folds.py", "from raybone.train.fit import fit"),
        ("cli.py", "def f():\n    import torch"),
        ("models/segmenters/unet.py", "from ultralytics import YOLO"),
        ("run/local.py", "from . import fit"),
        ("study/spec.py", "def f():\n    from raybone.models import load"),
        ("metrics/boxes.py", "from raybone.data.folds import TEST"),
        ("run/checks.py", "import raybone.deploy.refit"),
    ],
)
def test_a_breach_is_seen(path: str, source: str) -> None:
    assert breaches(path, source)


def test_importing_raybone_and_the_command_line_imports_neither_torch_nor_ray() -> None:
    import subprocess
    import sys

    code = (
        "import raybone.cli, sys; print(sorted({'torch', 'ray', 'ultralytics', 'pandas'} & "
        "set(sys.modules)))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )
