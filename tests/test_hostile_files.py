"""Files that would cost a person's memory, time or secrecy cost one line, and what is beside them
is taken.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from faults import unseal
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from raybone.data.annotations import rle_of
from raybone.data.dataset import open_dataset
from raybone.data.ingest.dicom.frames import NotTaken, read_frames
from raybone.data.ingest.prepare import Prepared, prepare
from raybone.deploy.onnx import export_onnx
from raybone.errors import DamagedFile, WrongInput
from raybone.models import load
from raybone.models._weights import start_from
from raybone.storage import Folder
from raybone.study.files import read_study
from raybone.study.yaml12 import load_yaml
from raybone.train.findings import read_findings

LIMIT = 400 << 20  # bytes beyond what the imports took

NIFTI = """
import nibabel, numpy as np
from raybone.data.ingest.annotations.nifti import read_nifti
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
from raybone.data.ingest.pictures import counts_of_image
file = io.BytesIO()
Image.new("L", (13000, 13000)).save(file, "PNG")
content = file.getvalue()
def work():
    counts_of_image(content)
"""
DEEP = """
import struct, zlib
from raybone.data.ingest.pictures import counts_of_image
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


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (NIFTI, "has an annotation in NIfTI of over 16777216 values, which is no scan"),
        (PICTURE, "has more pixels than any scan; is it a slide or a poster?"),
        (DEEP, "has more pixels than any scan; is it a slide or a poster?"),
    ],
    ids=["nifti", "picture", "picture of 16 bits"],
)
def test_a_small_file_that_unpacks_to_much_is_refused_before_it_does(
    code: str, reason: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code + LIMITED.format(limit=LIMIT)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
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


def test_an_archive_that_would_lose_a_scan_or_is_too_deep_is_told_and_leaves_nothing(
    cohort: Path, tmp_path: Path
) -> None:
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
        "is a zip archive with two members of one name, of which one would be lost",
    ]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["ds"]


def test_what_was_rejected_cannot_be_guessed_from_its_hash_or_length(
    cohort: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    shutil.copytree(cohort, source)
    note = b"Mrs. Example, born 1950"
    (source / "note.txt").write_bytes(note)
    made = _prepared(source, tmp_path)
    with (made.path / "rejected.csv").open(newline="") as file:
        (row,) = [
            r for r in csv.DictReader(file) if "archive" not in r["reason"] and r["bytes"] == "1024"
        ]
    assert hashlib.sha256(note).hexdigest()[:16] not in row["input_id"]
    again = prepare(source, tmp_path / "out" / "other", folds=2, key=tmp_path / "other")
    assert row["input_id"] not in [r[0] for r in again.rejected]


def test_the_runtime_of_onnx_is_imported_with_its_telemetry_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text(
        "import os\nraise ImportError(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    model = load("unet")
    with pytest.raises(ImportError, match=r"^1$"):
        export_onnx(model.build(model.Config()), model, (64, 64), tmp_path / "a.onnx")


def test_a_deflated_file_that_unpacks_to_more_than_a_scan_is_refused_before_it_is_unpacked(
    cohort: Path,
) -> None:
    header = pydicom.dcmread(next(cohort.rglob("*.dcm")))
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    header.PixelData = bytes(1 << 20)
    buffer = io.BytesIO()
    header.save_as(buffer)
    plain = zlib.decompress(buffer.getvalue()[(start := _dataset_at(buffer.getvalue())) :], -15)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = (
        buffer.getvalue()[:start]
        + packer.compress(plain)
        + b"".join(packer.compress(bytes(1 << 24)) for _ in range(17))
        + packer.flush()
    )
    assert len(bomb) < 400_000
    for content in (bomb, bomb[132:]):
        with pytest.raises(NotTaken, match="unpacks to over 268435456 bytes"):
            read_frames(content, "x.dcm")
    with pytest.raises(NotTaken, match="is a deflated DICOM file that is damaged"):
        read_frames(bomb[:start] + b"\xff" * 100, "x.dcm")
    header.PixelData = b"\1\0" * (len(header.PixelData) // 2)
    header.save_as(buffer := io.BytesIO())
    assert read_frames(buffer.getvalue(), "x.dcm")[0][0].max() == 1


def _dataset_at(content: bytes) -> int:
    return 144 + int.from_bytes(content[140:144], "little")


def test_frames_beyond_those_of_the_header_are_told_and_not_decoded(cohort: Path) -> None:
    header = pydicom.dcmread(next(cohort.rglob("*.dcm")))
    shape = (header.Rows, header.Columns)
    for compressed in (False, True):
        header.PixelData, header.NumberOfFrames = (
            np.arange(20, dtype="<u2").repeat(shape[0] * shape[1]).tobytes(),
            20,
        )
        if compressed:
            header.compress(RLELossless)
        header.NumberOfFrames = 2
        header.EnergyWindowVector = header.DetectorVector = [1, 1]
        buffer = io.BytesIO()
        header.save_as(buffer)
        frames = read_frames(buffer.getvalue(), "x.dcm", None)
        assert {counts_HW.shape for counts_HW, _ in frames} == {shape}
        assert all("more-pixels" in facts.flags for _, facts in frames)


def test_a_compressed_file_of_next_to_nothing_is_no_scan(cohort: Path) -> None:
    header = pydicom.dcmread(next(cohort.rglob("*.dcm")))
    header.Rows = header.Columns = 16384
    header.file_meta.TransferSyntaxUID = JPEGLSLossless
    header.PixelData = encapsulate([b"\xff\xd8" + bytes(998)])
    buffer = io.BytesIO()
    header.save_as(buffer)
    with pytest.raises(NotTaken, match="it was cut short or its header is wrong"):
        read_frames(buffer.getvalue(), "x.dcm")


def test_folders_in_folders_without_end_are_told(cohort: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    shutil.copytree(cohort, source)
    before = Path.cwd()
    os.chdir(source)
    for _ in range(1200):
        Path("d").mkdir()
        os.chdir("d")
    os.chdir(before)
    made = _prepared(source, tmp_path)
    assert [r[2] for r in made.rejected if "folders deep" in r[2]] == [
        "is a folder more than 64 folders deep"
    ]
    subprocess.run(["rm", "-r", str(source)], check=True)


def test_a_few_lines_of_yaml_that_merge_each_other_end_at_once(tmp_path: Path) -> None:
    lines = [
        "a0: &a0 {x: 1}",
        *(f"a{n + 1}: &a{n + 1} {{<<: [*a{n}, *a{n}], k{n}: 1}}" for n in range(40)),
    ]
    study = tmp_path / "s.yaml"
    study.write_text("\n".join(lines))
    with pytest.raises(WrongInput, match="over 1000 keys"):
        read_study(str(study))
    assert load_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}


RUNS = ["", "0", "oooooooooooooooooooooo", "1" * 1000, "\x00", "é", "PPYo1", 7, None, [3, 4]]


@pytest.mark.parametrize(
    "rle",
    [
        *({"size": [256, 64], "counts": runs} for runs in RUNS),
        7,
        "x",
        {"size": [999999, 999999], "counts": "o^Pgm1"},
        {"size": [256], "counts": ""},
    ],
)
def test_a_mask_that_is_no_run_length_code_is_told_when_a_dataset_is_opened(
    dataset: Path, rle: object, tmp_path: Path
) -> None:
    shutil.copytree(dataset, tmp_path / "ds")
    unseal(tmp_path / "ds")
    file = tmp_path / "ds" / "annotations.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["segmentation"] = rle
    file.write_text(json.dumps(content))
    with pytest.raises(WrongInput, match="a mask must be a run-length code that fills its scan"):
        open_dataset(tmp_path / "ds")


def test_predictions_that_no_training_wrote_are_told(dataset: Path, tmp_path: Path) -> None:
    scans = open_dataset(dataset).scans
    good = {
        "scan_id": scans[0].scan_id,
        "masks": [rle_of(np.ones((scans[0].height, scans[0].width), bool))],
    }
    box = {"scan_id": scans[0].scan_id, "boxes": [[1, 2, 3, 4]], "scores": [0.5], "labels": [0]}
    place = Folder(tmp_path)
    place.write("predictions.json", json.dumps({"epoch": 3, "findings": [good, box]}).encode())
    assert read_findings(place, 3, scans) == [good, box]
    assert read_findings(place, 4, scans) is None
    for bad in (
        [],
        7,
        {"epoch": 3},
        *({"epoch": 3, "findings": [one]} for one in (7, {**good, "scan_id": "x"})),
        *(
            {"epoch": 3, "findings": [{**good, **more}]}
            for more in (
                {"masks": [7]},
                {"masks": [{"size": [999999, 999999], "counts": "o^Pgm1"}]},
                {"masks": [{}]},
            )
        ),
        *(
            {"epoch": 3, "findings": [{**box, **more}]}
            for more in (
                {"boxes": [[1, 2, 3]]},
                {"scores": []},
                {"labels": [-1]},
                {"scores": [math.nan]},
            )
        ),
    ):
        place.write("predictions.json", json.dumps(bad).encode())
        with pytest.raises(DamagedFile, match="must be what a training left there"):
            read_findings(place, 3, scans)


def _prepared(source: Path, place: Path) -> Prepared:
    return prepare(source, place / "out" / "ds", folds=2, key=place / "k")
