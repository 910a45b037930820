"""A package that is installed brings a reader of its own format and a step; it is made here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]
CODE = """
import io
from dataclasses import replace

import numpy as np

from raybone.data.ingest.dicom.frames import Facts
from raybone.data.ingest.steps import Step


def read(content, name):
    if not content.startswith(b"TOY!"):
        return None
    counts_HW = np.load(io.BytesIO(content[4:]))
    if name.startswith("float"):
        counts_HW = counts_HW / 2
    return [(counts_HW, Facts(name.split("-")[0], "anterior", 2.0))]


HALF = Step(lambda views: [replace(v, values_HW=v.values_HW // 2) for v in views])
"""
POINTS = """[raybone.readers]
toy = toy_camera:read

[raybone.steps]
half = toy_camera:HALF
gone = toy_camera:GONE
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site-packages of the toy, as pip leaves it."""
    site = tmp_path_factory.mktemp("site")
    (site / "toy_camera.py").write_text(CODE)
    info = site / "toy_camera-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-camera\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    return site


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Four patients in the toy's format, and one file that breaks its reader."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(4):
        with (folder / f"p{number}-a.toy").open("wb") as file:
            file.write(b"TOY!")
            np.save(file, np.full((64, 32), 10 + number, np.uint16))
    (folder / "broken.toy").write_bytes(b"TOY!")
    (folder / "float.toy").write_bytes((folder / "p0-a.toy").read_bytes())
    return folder


def prepare(site: Path, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """`raybone prepare` where that package is installed."""
    command = [sys.executable, "-m", "raybone", "prepare", str(folder), str(folder.parent / "ds")]
    own = {**os.environ, "PYTHONPATH": f"{site}:{ROOT}"}
    return subprocess.run(
        [*command, "--folds", "2", "--key", str(folder.parent / "key"), "--show-paths", *more],
        capture_output=True,
        text=True,
        check=False,
        env=own,
    )


def test_its_format_is_read_and_its_step_applied(package: Path, scans: Path) -> None:
    run = prepare(package, scans, "--steps", "half")
    assert run.returncode == 0, run.stderr
    assert "4 scans of 4 patients" in run.stdout
    assert "broken.toy: not taken: ended the reader toy (EOFError)" in run.stdout
    assert "float.toy: not taken: has frames by the reader toy that are not uint16" in run.stdout
    meta = json.loads((scans.parent / "ds" / "dataset.json").read_text())
    assert meta["preprocessing"]["steps"] == ["half"]
    from raybone.data.dataset import open_dataset

    dataset = open_dataset(scans.parent / "ds")
    assert sorted(int(dataset.counts(s)[0, 0]) for s in dataset.scans) == [5, 5, 6, 6]
    assert {s.pixel_mm for s in dataset.scans} == {2.0}


def test_what_is_not_there_is_said_in_one_line(package: Path, scans: Path, tmp_path: Path) -> None:
    run = prepare(package, scans, "--steps", "gone")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.count("\n") == 1
    assert "raybone.steps: gone = toy_camera:GONE must be there" in run.stderr
    points = package / "toy_camera-1.0.dist-info" / "entry_points.txt"
    points.write_text("[raybone.readers]\nlost = no_such_module:read\n")
    run = prepare(package, scans)
    points.write_text(POINTS)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "raybone.readers: lost = no_such_module:read must be there" in run.stderr
    run = prepare(tmp_path, scans, "--steps", "half")
    assert run.returncode == 2
    assert "--steps: no step is called half; there are body_range" in run.stderr
    run = prepare(tmp_path, scans)
    assert "no scan was taken from 6 inputs" in run.stderr
