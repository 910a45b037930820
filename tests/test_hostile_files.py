"""Files that would cost a person's memory, time or secrecy cost one line, and what is beside them is taken."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from raybone.models import load
from raybone.models._onnx import export_onnx
from raybone.models._weights import start_from
from raybone.prepare import Prepared, prepare
from raybone.records import WrongInput

LIMIT = 400 << 20  # bytes beyond what the imports took

NIFTI = """
import nibabel, numpy as np
from raybone.data.nifti import read_nifti
image = nibabel.Nifti1Image(np.zeros((64, 64, 1 << 14), np.uint8), np.eye(4))
image.header.set_slope_inter(1.5, 0)
content = __import__("gzip").compress(image.to_bytes(), 9)
del image
def work():
    read_nifti(content, (64, 64), None, {})
"""
PICTURE = """
import io
from PIL import Image
from raybone.data.pictures import counts_of_image
file = io.BytesIO()
Image.new("L", (13000, 13000)).save(file, "PNG")
content = file.getvalue()
def work():
    counts_of_image(content)
"""
DEEP = """
import struct, zlib
from raybone.data.pictures import counts_of_image
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
content = b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 13000, 13000, 16, 6, 0, 0, 0))
content += chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
def work():
    counts_of_image(content)
"""
LIMITED = """
import resource
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {limit}, used + {limit}))
try:
    work()
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize(("code", "reason"), [
    (NIFTI, "has an annotation in NIfTI of over 16777216 values, which is no scan"),
    (PICTURE, "has more pixels than any scan; is it a slide or a poster?"),
    (DEEP, "has more pixels than any scan; is it a slide or a poster?"),
], ids=["nifti", "picture", "picture of 16 bits"])
def test_a_small_file_that_unpacks_to_much_is_refused_before_it_does(code: str, reason: str) -> None:
    done = subprocess.run([sys.executable, "-c", code + LIMITED.format(limit=LIMIT)], capture_output=True,
                          text=True, timeout=120, check=False)
    assert done.stdout.strip() == reason, done.stderr


def test_weights_that_repeat_a_byte_to_any_size_are_refused(tmp_path: Path) -> None:
    model = load("unet")
    torch.save({"a": torch.zeros(1).expand(1 << 16, 1 << 14)}, tmp_path / "w.pt")
    assert (tmp_path / "w.pt").stat().st_size < 4096
    with pytest.raises(WrongInput, match="must hold every value that its tensors have"):
        start_from(model.build(model.Config()), tmp_path / "w.pt")


def test_pipes_and_devices_beside_a_scan_are_not_opened(cohort: Path, tmp_path: Path) -> None:
    scans = sorted(cohort.rglob("*.dcm"))[:6]
    source = tmp_path / "in"
    source.mkdir()
    for number, scan in enumerate(scans):
        shutil.copy(scan, source / f"{number}.dcm")
    os.mkfifo(source / "0.json")
    os.mkfifo(source / "pipe.zip")
    (source / "1.json").symlink_to("/dev/zero")
    made = _prepared(source, tmp_path)
    assert made.meta["counts"]["scans"] == 6
    assert sorted(r[2] for r in made.rejected) == ["is no regular file"] * 3


def test_an_archive_that_would_lose_a_scan_or_is_too_deep_is_told_and_leaves_nothing(cohort: Path,
                                                                                     tmp_path: Path) -> None:
    scans = sorted(cohort.rglob("*.dcm"))[:8]
    source = tmp_path / "in"
    source.mkdir()
    for number, scan in enumerate(scans[:6]):
        shutil.copy(scan, source / f"{number}.dcm")
    with zipfile.ZipFile(source / "twice.zip", "w") as archive:
        archive.write(scans[6], "a.dcm")
        archive.write(scans[7], "../a.dcm")
    with zipfile.ZipFile(source / "deep.zip", "w") as archive:
        archive.write(scans[6], "d/" * 1500 + "a.dcm")
    made = _prepared(source, tmp_path)
    assert sorted(r[2] for r in made.rejected) == [
        "is a zip archive with folders more than 64 deep",
        "is a zip archive with two members of one name, of which one would be lost"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["ds"]


def test_what_was_rejected_cannot_be_guessed_from_its_hash_or_length(cohort: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    shutil.copytree(cohort, source)
    note = b"Mrs. Example, born 1950"
    (source / "note.txt").write_bytes(note)
    made = _prepared(source, tmp_path)
    with (made.path / "rejected.csv").open(newline="") as file:
        (row,) = [r for r in csv.DictReader(file) if "archive" not in r["reason"] and r["bytes"] == "1024"]
    assert hashlib.sha256(note).hexdigest()[:16] not in row["input_id"]
    again = prepare(source, tmp_path / "out" / "other", folds=2, key=tmp_path / "other")
    assert row["input_id"] not in [r[0] for r in again.rejected]


def test_the_runtime_of_onnx_is_imported_with_its_telemetry_off(tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("import os\nraise ImportError(os.environ.get('ORT_DISABLE_TELEMETRY'))\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    model = load("unet")
    with pytest.raises(ImportError, match=r"^1$"):
        export_onnx(model.build(model.Config()), model, (64, 64), tmp_path / "a.onnx")


def _prepared(source: Path, place: Path) -> Prepared:
    return prepare(source, place / "out" / "ds", folds=2, key=place / "k")
