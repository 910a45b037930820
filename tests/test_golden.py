"""What users and files see does not change while the code does: outputs beside those in golden/.

``RAYBONE_GOLDEN=write`` writes golden/ anew, and every test that wrote fails: look at the
difference before it is committed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raybone.cli import main

GOLDEN = Path(__file__).with_name("golden")
SEPARATE = ("body_range", "brightness", "knee_cut", "montage")
TILES = ("bladder", "body_mask", "max_min", "tile")


def run(*arguments: object) -> None:
    """A verb that succeeds."""
    assert main([str(a) for a in arguments]) == 0


def agree(name: str, now: str) -> None:
    """Compare a text with the golden file of that name, or write it."""
    own = {tempfile.gettempdir(), str(Path.cwd()), str(Path.home())} - {"/"}
    assert not [folder for folder in own if folder in now], "names a folder of this machine"
    path = GOLDEN / name
    if os.environ.get("RAYBONE_GOLDEN") == "write":
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(now, encoding="utf-8")
        pytest.fail(f"golden/{name} is written: look at its difference, then test it")
    assert now == path.read_text(encoding="utf-8"), f"golden/{name} is not what comes out now"


def as_text(content: Any) -> str:
    """JSON whose differences can be read: short lists and mappings on one line."""
    lines = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    flat = re.compile(r"([\[{])\s*([^\[\]{}]{1,300}?)\s*([\]}])")
    return flat.sub(lambda m: m[1] + re.sub(r"\n\s*", " ", m[2]) + m[3], lines) + "\n"


def dataset_files(dataset: Path) -> dict[str, Any]:
    """A dataset folder as text.

    Processes that read side by side store their scans in any order, so the row of a scan is
    replaced by a digest of the pixels there, and the seal of scans.csv is left out.
    """
    names = ("scans.csv", "folds.csv", "rejected.csv")
    tables = {name: (dataset / name).read_text(encoding="utf-8").splitlines() for name in names}
    documents = {
        name: json.loads((dataset / name).read_text(encoding="utf-8"))
        for name in ("annotations.json", "dataset.json")
    }
    del documents["dataset.json"]["sealed"]["scans.csv"]
    pixels = sorted(p.name for p in (dataset / "pixels").iterdir())
    header = tables["scans.csv"][0].split(",")
    assert header[3:7] == ["height", "width", "pixel_mm", "row"]
    for number, line in enumerate(tables["scans.csv"][1:], 1):
        cells = line.split(",")
        counts = np.load(dataset / "pixels" / f"{cells[3]}x{cells[4]}.npy")[int(cells[6])]
        cells[6] = hashlib.sha256(counts.tobytes()).hexdigest()[:12]
        tables["scans.csv"][number] = ",".join(cells)
    return {**tables, **documents, "pixels": pixels}


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A phantom of a layout, with a copy of a scan, half of one, and a file that is none."""

    @cache
    def cohort(layout: str) -> Path:
        root = tmp_path_factory.mktemp(layout) / "ph"
        run("phantom", root, "--patients", 4, "--height", 128, "--seed", 3, "--layout", layout)
        first = min(p for p in root.rglob("*") if p.suffix in (".dcm", ".png", ".jpg"))
        first.with_stem("copy").write_bytes(first.read_bytes())
        first.with_stem("half").write_bytes(first.read_bytes()[:300])
        (root / "notes.txt").write_text("no scan", encoding="utf-8")
        return root

    return cohort


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, so that paths in outputs are short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "layout", "options"),
    [
        ("dicom", "dicom", ()),
        ("coco", "coco", ()),
        ("labelme", "labelme", ()),
        ("masks", "masks", ()),
        ("bs80k", "bs80k", ()),
        ("montage", "dicom", ("--steps", *SEPARATE)),
        ("tiles", "labelme", ("--steps", *TILES, "--unannotated", "negative")),
        ("holdout", "coco", ("--holdout", 1, "--negatives", "training", "--seed", 1)),
    ],
)
def test_prepare_writes_the_same_dataset(
    name: str,
    layout: str,
    options: tuple[object, ...],
    cohorts: Callable[[str], Path],
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(cohorts(layout), "ph")
    capsys.readouterr()
    run("prepare", "ph", "ds", "--folds", 2, "--key", "ph.key", *options)
    said = capsys.readouterr().out.splitlines()
    agree(f"prepare_{name}.json", as_text({"stdout": said, **dataset_files(here / "ds")}))


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse has other words elsewhere")
def test_help_has_the_same_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = help_of(capsys)
    verbs = re.findall(r"^ {4}(\w+)", text, re.MULTILINE)
    assert len(verbs) > 15
    agree("help.txt", "\n".join([text, *(help_of(capsys, verb) for verb in verbs)]))


def help_of(capsys: pytest.CaptureFixture[str], *verb: str) -> str:
    """What --help prints."""
    with contextlib.suppress(SystemExit):
        main([*verb, "--help"])
    return capsys.readouterr().out
