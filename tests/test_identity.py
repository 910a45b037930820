"""No identity of the source in any file of a dataset or study, in any log, message or terminal line."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import yaml
from pydicom.dataset import Dataset
from pydicom.valuerep import VR

from raybone.data.dicom import write_scan
from raybone.phantom import phantom

SECRET = "Qxjzw"
DATE = "19911231"
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value")
UID = "1.2.826.0.1.99.4242"
TEXTS = {VR.AE, VR.CS, VR.LO, VR.LT, VR.PN, VR.SH, VR.ST, VR.UC, VR.UT, VR.UR}


def plant(scan: Dataset, number: int) -> None:
    """The secret in every text element, a date in every date, a UID in every UID; private, nested and overlong."""
    for element in list(scan):
        if element.VR == VR.SQ:
            for item in element.value:
                plant(item, number)
        elif element.VR in TEXTS and element.keyword not in ("Modality", "PhotometricInterpretation", "ImageType"):
            element.value = f"{SECRET}{number}"
    for keyword in ("PatientName", "PatientID", "OtherPatientIDs", "PatientComments", "ImageComments",
                    "StudyDescription", "InstitutionName", "StationName", "OperatorsName", "ReferringPhysicianName",
                    "AccessionNumber",
                    "Manufacturer", "ManufacturerModelName", "ProtocolName", "SeriesDescription", "DeviceSerialNumber"):
        setattr(scan, keyword, f"{SECRET}{number}")
    scan.StudyDate = scan.PatientBirthDate = scan.AcquisitionDate = DATE
    scan.StudyInstanceUID, scan.SeriesInstanceUID, scan.SOPInstanceUID = (f"{UID}.{number}.{k}" for k in range(3))
    block = scan.private_block(0x11, f"{SECRET} MEDICAL", create=True)
    block.add_new(1, "LO", SECRET)
    inner = Dataset()
    inner.PatientName = inner.ImageComments = SECRET
    block.add_new(2, "SQ", [inner])
    scan.RequestAttributesSequence = [inner]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of scans, notes and hopeless files, all of which name the patient everywhere they can."""
    root = tmp_path_factory.mktemp("in") / f"{SECRET} {DATE}"
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        path = root / f"{SECRET}-{number}" / f"{SECRET}_{DATE}.dcm"
        path.parent.mkdir()
        write_scan(path, rng.poisson(5, (96, 64)).astype(np.uint16), patient="P", view="anterior", pixel_mm=2, uid="1")
        scan = pydicom.dcmread(path)
        plant(scan, number)
        if number == 4:
            scan.Modality = SECRET.upper()
        if number == 5:
            scan.ImageType = ["ORIGINAL", "PRIMARY", SECRET.upper(), "EMISSION"]
        if number == 6:
            scan.PixelSpacing = None
            scan.add_new("Rows", "US", 97)
        scan.save_as(path, enforce_file_format=False)
    shapes = [{"label": SECRET, "shape_type": "rectangle", "points": [[1, 1], [9, 9]]}]
    note = {"shapes": shapes, "imageHeight": 96, "imageWidth": 64, "imagePath": SECRET, "imageData": None}
    (root / f"{SECRET}-0" / f"{SECRET}_{DATE}.json").write_text(json.dumps(note))
    (root / f"{SECRET}-1" / f"{SECRET}_{DATE}.xml").write_text(f"<{SECRET}")
    (root / f"{SECRET}.txt").write_text(f"{SECRET} {DATE}")
    (root / f"note {SECRET}.json").write_text(json.dumps({"patient": SECRET}))
    with zipfile.ZipFile(root / f"{SECRET}.zip", "w") as archive:
        archive.writestr(f"{SECRET}/{SECRET}.dcm", (root / f"{SECRET}-3" / f"{SECRET}_{DATE}.dcm").read_bytes()[:700])
    (root / f"broken-{SECRET}.zip").write_bytes(b"PK\x03\x04" + SECRET.encode())
    return root


def run(*arguments: Any, **keywords: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, with all that it and its children say."""
    return subprocess.run([sys.executable, "-m", "raybone.cli", *map(str, arguments)], capture_output=True, text=True,
                          check=False, **keywords)


def test_nothing_planted_anywhere_comes_out(source: Path, tmp_path: Path) -> None:
    made = run("prepare", source, tmp_path / "ds", "--folds", 2, "--key", tmp_path / "keys" / "k")
    looked = [run("inspect", tmp_path / "ds", *more) for more in (("--png", tmp_path / "sheet.png"), ("--json",))]
    assert [made.returncode, *(c.returncode for c in looked)] == [0, 0, 0], made.stderr
    content = b"\n".join(p.read_bytes() for p in (tmp_path / "ds").rglob("*") if p.is_file())
    names = "\n".join(str(p.relative_to(tmp_path)) for p in (tmp_path / "ds").rglob("*"))
    said = "\n".join(c.stdout + c.stderr for c in (made, *looked))
    for trace in (SECRET, SECRET.upper(), SECRET.lower(), DATE, UID, "MEDICAL"):
        assert trace.encode() not in content, trace
        assert trace not in names + said, trace
    counts = json.loads((tmp_path / "ds" / "dataset.json").read_text())["counts"]
    # 8 scans, of which Modality, size and annotation refuse three; two notes, two archives' contents.
    assert counts["scans"] == 5
    assert counts["rejected"] == 7
    assert not list(tmp_path.glob(".*"))


def test_the_terminal_names_files_when_asked_and_the_map_is_its_owners(source: Path, tmp_path: Path) -> None:
    made = run("prepare", source, tmp_path / "ds", "--folds", 2, "--key", tmp_path / "k", "--show-paths")
    assert f"{SECRET}.txt: not taken: is not a DICOM file" in made.stdout
    (table,) = tmp_path.glob("k.*.sources.csv")
    assert stat.S_IMODE(table.stat().st_mode) == stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600
    assert len(table.read_text().splitlines()) == 1 + 12


@pytest.mark.parametrize("case", ["nothing there", "no scans", "bad annotations", "bad labels", "bad split", "closed"])
def test_no_message_names_the_source(case: str, tmp_path: Path) -> None:
    root = tmp_path / SECRET
    more: list[Any] = []
    if case != "nothing there":
        phantom(root, 2, height=128, layout="coco" if case == "bad annotations" else "dicom")
    if case == "no scans":
        for path in root.rglob("*.dcm"):
            path.write_text(SECRET)
    elif case == "bad annotations":
        coco = json.loads((root / "annotations.json").read_text())
        coco["images"][0]["id"] = {SECRET: 1}
        (root / "annotations.json").write_text(json.dumps(coco))
    elif case == "bad labels":
        (root / "labels.csv").write_text("patient_id,note\n" + "".join(f"{n},{SECRET}{n}\n" for n in range(9)))
    elif case == "bad split":
        (tmp_path / "s.csv").write_text(f"patient_id,fold\n{SECRET},0\n{SECRET},1\n")
        more = ["--split", tmp_path / "s.csv"]
    elif case == "closed":
        shutil.rmtree(root)
        root.write_text(SECRET)
    made = run("prepare", root, tmp_path / "ds", "--key", tmp_path / "k", *more)
    assert made.returncode == 2
    assert sum(line.startswith("raybone: ") for line in made.stderr.splitlines()) == 1
    assert SECRET not in made.stdout + made.stderr
    assert not (tmp_path / "ds").exists()


def test_a_study_names_nobody_either(study: dict[str, object], cohort: Path, tmp_path: Path) -> None:
    """The cohort's patients are called PHANTOM-0001 and so on, in files of that name."""
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**study, "epochs": 1}))
    done = run("search", tmp_path / "s.yaml", "--out", tmp_path / "study", "--local")
    assert done.returncode == 0, done.stderr
    files = [p for p in (tmp_path / "study").rglob("*") if p.is_file()]
    assert {"leaderboard.csv", "study.yaml", "predictions.json"} <= {p.name for p in files}
    uid = str(pydicom.dcmread(next(cohort.rglob("*.dcm"))).StudyInstanceUID)
    for trace in ("PHANTOM-0", cohort.name + "/", uid):
        assert not [p.name for p in files if trace.encode() in p.read_bytes() or trace in str(p.relative_to(tmp_path))]
        assert trace not in done.stdout + done.stderr
