"""Imports point left, and heavy libraries stay in their rooms; inside functions as well."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "raybone"
# Rooms and files from left to right; those of one entry do not depend on order, but never on what
# is right of them.
ORDER = [
    {"records"},
    {"private"},
    {"rules", "folder", "arguments", "yaml12"},
    {"spec", "checkpoint"},
    {"data", "losses", "metrics", "hpo", "places"},
    {"models"},
    {"earlier", "defaults"},
    {"samples", "memory", "reference", "findings"},
    {"phantom", "prepare", "inspect", "contact", "evaluate", "overlay"},
    {"resolve", "ensemble"},
    {"fit", "bundle", "calibrate"},
    {"frames"},
    {"leaderboard", "warm", "preview", "demo", "simulate", "record"},
    {"search", "compare"},
    {"logs", "charts"},
    {"watch", "report", "refit", "predict", "forget"},
    {"cluster", "terminal"},
    {"live"},
    {"cli"},
]
HOME_OF = {
    "ray": {"cluster"},
    "ultralytics": {"models/yolo.py"},
    "pydicom": {
        "data/dicom.py",
        "data/header.py",
        "data/pixels.py",
        "data/planar.py",
        "data/windows.py",
        "data/segmentation.py",
        "data/segments.py",
    },
    "highdicom": {"data/segmentation.py"},
    "nibabel": {"data/nifti.py"},
    "torch": {
        "data/loader.py",
        "checkpoint.py",
        "memory.py",
        "losses",
        "models",
        "evaluate.py",
        "earlier.py",
        "fit.py",
        "search.py",
        "preview.py",
        "cluster/worker.py",
        "bundle.py",
        "refit.py",
        "predict.py",
        "ensemble.py",
        "calibrate.py",
    },
    "altair": {"charts.py"},
    "vl_convert": {"charts.py"},
    "jinja2": {"report.py", "refit.py"},
    "safetensors": {"bundle.py"},
    "rich": {"live.py"},
    "optuna": {"hpo", "charts.py"},
    "pycocotools": {"data/annotations.py", "data/coco.py"},
    "faster_coco_eval": {"metrics/boxes.py"},
    "torchvision": {"models"},
    "monai": {"models"},
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
    """``raybone.data.dicom`` -> ``data``; the package itself -> empty."""
    return [*name.split("."), ""][1]


def rank(room: str) -> int:
    """Place of a room from the left."""
    return next(i for i, rooms in enumerate(ORDER) if room in rooms)


def breaches(path: str, source: str) -> list[str]:
    """What a file of that path (below raybone/) breaks."""
    room, wrong = path.split("/")[0].removesuffix(".py"), []
    if room == "__init__":
        room = "records"
    for name, line in imports_of(source):
        if name.startswith("."):
            wrong.append(f"{path}:{line} relative import {name}")
        elif name.split(".")[0] == "raybone":
            target = room_of(name)
            if target and target != room and rank(target) >= rank(room):
                wrong.append(f"{path}:{line} imports {name}, which is not left of {room}")
        else:
            homes = HOME_OF.get(name.split(".")[0], {path})
            if path not in homes and path.split("/")[0] not in homes:
                wrong.append(f"{path}:{line} imports {name}, whose home is {sorted(homes)}")
    return wrong


@pytest.mark.parametrize("path", sorted(str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py")))
def test_file_keeps_to_its_layer(path: str) -> None:
    assert breaches(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("fit.py", "import ray"),
        ("hpo/race.py", "import torch"),
        ("data/folds.py", "from raybone.fit import fit"),
        ("cli.py", "def f():\n    import torch"),
        ("models/unet.py", "from ultralytics import YOLO"),
        ("search.py", "from . import fit"),
        ("spec.py", "def f():\n    from raybone.models import load"),
        ("data/folds.py", "from raybone.metrics.boxes import box_metrics"),
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
