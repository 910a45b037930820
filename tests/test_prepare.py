"""prepare: every input ends in scans.csv or rejected.csv, and no identity leaves the source."""

from __future__ import annotations

import csv
import json
import stat
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from raybone.data.dataset import open_dataset
from raybone.data.dicom import write_scan
from raybone.phantom import phantom
from raybone.prepare import prepare
from raybone.records import WrongInput


def test_folds_and_hash_depend_on_pixels_and_not_on_the_key(cohort: Path, dataset: Path, tmp_path: Path) -> None:
    other = prepare(cohort, tmp_path / "ds", folds=3, key=tmp_path / "another key")
    first, second = open_dataset(dataset), open_dataset(other.path)
    assert first.hash == second.hash
    assert {s.scan_id: first.fold_of[s.patient_id] for s in first.scans} == \
        {s.scan_id: second.fold_of[s.patient_id] for s in second.scans}
    assert {s.patient_id for s in first.scans}.isdisjoint({s.patient_id for s in second.scans})
    assert stat.S_IMODE((tmp_path / "another key").stat().st_mode) == 0o600
    for table in tmp_path.glob("*.sources.csv"):
        assert stat.S_IMODE(table.stat().st_mode) == 0o600


def test_patients_are_in_one_fold_and_folds_share_the_burden(dataset: Path) -> None:
    opened = open_dataset(dataset)
    for fold in range(3):
        train, valid = opened.training(fold), opened.validation(fold)
        assert {s.patient_id for s in train}.isdisjoint({s.patient_id for s in valid})
        assert len(train) + len(valid) == len(opened.scans)
        assert sum(len(s.lesions) for s in valid) > 0


def test_counts_come_back_as_they_were_in_the_dicom(cohort: Path, dataset: Path) -> None:
    opened = open_dataset(dataset)
    source = sorted(pydicom.dcmread(f).pixel_array.tobytes() for f in cohort.rglob("*.dcm"))
    assert sorted(opened.counts(s).tobytes() for s in opened.scans) == source


def test_what_is_not_taken_is_named_by_hash_and_reason(tmp_path: Path) -> None:
    source = phantom(tmp_path / "it's \"src\"", 2, height=128)
    (source / "notes.txt").write_text("Patient Secret")
    (source / "broken.dcm").write_bytes(next(source.rglob("*.dcm")).read_bytes()[:900])
    ct = pydicom.dcmread(next(source.rglob("*.dcm")))
    ct.Modality = "CT"
    ct.save_as(source / "ct-of-Secret")
    made = prepare(source, tmp_path / "ds", folds=2, key=tmp_path / "k")
    with (made.path / "rejected.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert {r["reason"] for r in rows} >= {"is not a DICOM file", "Modality is CT, not NM"}
    assert len({r["reason"] for r in rows}) == 3
    assert made.meta["counts"]["scans"] == 4


def test_no_identity_of_the_source_is_in_any_file_of_the_dataset(tmp_path: Path) -> None:
    secret = "Qxjzw"
    source = tmp_path / f"folder-{secret}"
    source.mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        path = source / f"{secret}-{number}.dcm"
        write_scan(path, rng.poisson(5, (64, 64)).astype(np.uint16), patient=f"{secret}{number}", view="anterior",
                   pixel_mm=2, uid=str(number))
        scan = pydicom.dcmread(path)
        scan.PatientName = scan.InstitutionName = scan.ImageComments = scan.StudyDescription = secret
        scan.StudyDate = "19991231"
        scan.private_block(0x11, secret, create=True).add_new(1, "LO", secret)
        scan.save_as(path)
    made = prepare(source, tmp_path / "ds", folds=2, key=tmp_path / "k")
    content = b"".join(p.read_bytes() for p in made.path.rglob("*") if p.is_file())
    names = "".join(str(p.relative_to(tmp_path)) for p in made.path.rglob("*"))
    for trace in (secret, "19991231", str(pydicom.dcmread(source / f"{secret}-0.dcm").SOPInstanceUID)):
        assert trace.encode() not in content
        assert trace not in names


def test_a_dataset_is_whole_or_absent(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(WrongInput, match="no scan was taken"):
        prepare(empty, tmp_path / "ds", key=tmp_path / "k")
    assert {p.name for p in tmp_path.iterdir()} <= {"empty", "k"}
    with pytest.raises(WrongInput, match="must be a folder"):
        prepare(tmp_path / "nothing", tmp_path / "ds")
    with pytest.raises(WrongInput, match="must not exist"):
        prepare(empty, empty)


def test_fewer_patients_than_folds_gives_a_warning(tmp_path: Path) -> None:
    source = phantom(tmp_path / "src", 2, height=128)
    made = prepare(source, tmp_path / "ds", folds=5, key=tmp_path / "k")
    assert made.meta["counts"]["folds"] == 2
    assert any("fewer than 5 folds" in w for w in made.meta["warnings"])


def test_masks_with_in_between_values_and_of_another_size(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    image_HW = np.full((40, 48), 99, np.uint8)
    mask_HW = np.zeros((40, 48), np.uint8)
    mask_HW[5:10, 6:12] = 250
    mask_HW[10:12, 6:12] = 90  # compression noise
    mask_HW[30:34, 30:40] = 250
    for name, mask in (("a", mask_HW), ("b", mask_HW[:20])):
        Image.fromarray(np.stack([image_HW] * 3, -1)).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
        image_HW += 1
    made = prepare(tmp_path, tmp_path.parent / "masks-ds", "masks", folds=2, key=tmp_path.parent / "k")
    boxes = [le.box_xyxy for s in open_dataset(made.path).scans for le in s.lesions]
    assert boxes == [(6.0, 5.0, 12.0, 10.0), (30.0, 30.0, 40.0, 34.0)]
    assert made.rejected[0][2] == "is 40x48, but its annotation was made for 20x48"
    assert any("in-between" in w for w in made.meta["warnings"])
    assert not made.meta["patients_known"]


def test_pydicoms_own_bone_scan_is_taken_with_negatives_clipped(tmp_path: Path) -> None:
    path = Path(str(get_testdata_file("JPEG2000.dcm")))
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "no extension").write_bytes(path.read_bytes())
    made = prepare(tmp_path / "src", tmp_path / "ds", key=tmp_path / "k")
    opened = open_dataset(made.path)
    (scan,) = opened.scans
    assert (scan.height, scan.width, scan.pixel_mm, scan.view) == (1024, 256, 2.26, "unknown")
    expected = np.clip(pydicom.dcmread(path).pixel_array, 0, None)
    np.testing.assert_array_equal(opened.counts(scan), expected)


def test_the_real_scan_in_three_encodings(shared: Path, tmp_path: Path) -> None:
    made = prepare(shared / "data" / "dicom", tmp_path / "ds", key=tmp_path / "k")
    opened = open_dataset(made.path)
    assert len(opened.scans) + len(made.rejected) == 3
    assert len({s.patient_id for s in opened.scans}) == 1
    assert {opened.counts(s).max() for s in opened.scans} >= {278}


def test_annotations_without_a_scan_are_reported(cohort: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(cohort, tmp_path / "src")
    next((tmp_path / "src").rglob("*.dcm")).unlink()
    made = prepare(tmp_path / "src", tmp_path / "ds", folds=2, key=tmp_path / "k")
    assert any("1 x annotated scan that is not there" in w for w in made.meta["warnings"])
    content = json.loads((made.path / "dataset.json").read_text())
    assert content["counts"]["scans"] == 17
