"""The phantom: the same seed gives the same cohort, and its truth is where its counts are."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from raybone.data.annotations import mask_of
from raybone.data.dataset import open_dataset
from raybone.data.ingest.prepare import prepare
from raybone.errors import WrongInput
from raybone.phantom.phantom import key_beside, phantom


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    a, b, c = (
        phantom(tmp_path / n, 2, seed, height=128) for n, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    names = sorted(str(p.relative_to(a)) for p in a.rglob("*") if p.is_file())
    assert names == sorted(str(p.relative_to(b)) for p in b.rglob("*") if p.is_file())
    assert all((a / n).read_bytes() == (b / n).read_bytes() for n in names)
    assert (a / "annotations.json").read_bytes() != (c / "annotations.json").read_bytes()


def test_scans_are_whole_body_dicom_with_both_views(cohort: Path) -> None:
    files = sorted(cohort.rglob("*.dcm"))
    assert len(files) == 18
    views = [
        pydicom.dcmread(f).DetectorInformationSequence[0].ViewCodeSequence[0].CodeMeaning
        for f in files
    ]
    assert sorted(views) == ["Anterior projection"] * 9 + ["Posterior projection"] * 9
    scan = pydicom.dcmread(files[0])
    assert (scan.Modality, scan.Rows, scan.Columns) == ("NM", 256, 64)


def test_malignant_lesions_are_hotter_than_what_surrounds_them(dataset: Path) -> None:
    opened = open_dataset(dataset)
    gains = []
    for scan in opened.scans:
        counts_HW = opened.counts(scan).astype(float)
        for lesion in scan.lesions:
            if lesion.category == "malignant":
                x1, y1, x2, y2 = (int(v) for v in lesion.box_xyxy)
                around = counts_HW[max(y1 - 6, 0) : y2 + 6, max(x1 - 6, 0) : x2 + 6]
                gains.append(counts_HW[mask_of(lesion.rle)].mean() / max(np.median(around), 1))
    assert len(gains) > 20
    assert np.mean(np.array(gains) > 1) > 0.9


@pytest.mark.parametrize("layout", ["coco", "masks"])
def test_every_layout_is_prepared_to_the_same_malignant_pixels(layout: str, tmp_path: Path) -> None:
    """Masks folders know one category and no patients; the pixels and masks are the same."""

    def area(kind: str) -> tuple[int, int]:
        phantom(tmp_path / kind, 3, 5, kind, 128)
        made = prepare(tmp_path / kind, tmp_path / f"{kind}-ds", folds=2, key=tmp_path / "key")
        scans = open_dataset(made.path).scans
        return len(scans), sum(
            int(
                np.any(
                    [mask_of(le.rle) for le in s.lesions if le.category == "malignant"], axis=0
                ).sum()
            )
            for s in scans
        )

    assert area(layout) == area("dicom")


def test_impossible_requests_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for keywords in (
        {"out": tmp_path / "full"},
        {"out": tmp_path / "x", "patients": 0},
        {"out": tmp_path / "x", "height": 63},
        {"out": tmp_path / "x", "layout": "tiff"},
    ):
        with pytest.raises(WrongInput, match="phantom"):
            phantom(**keywords)


def run(*command: str | Path) -> str:
    """What an outside program says of a file, or a skip when it is not installed."""
    if not shutil.which(str(command[0])):
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_dciodvfy_finds_no_error_in_a_phantom_scan(cohort: Path) -> None:
    for path in sorted(cohort.rglob("*.dcm"))[:2]:
        said = run("dciodvfy", path)
        assert "NMImage" in said
        assert "Error" not in said


def test_a_second_reader_sees_the_same_counts(cohort: Path, tmp_path: Path) -> None:
    path = next(cohort.rglob("*.dcm"))
    run("dcm2pnm", "--write-16-bit-pnm", "--min-max-window", path, tmp_path / "out.pgm")
    seen_HW = cv2.imread(str(tmp_path / "out.pgm"), cv2.IMREAD_UNCHANGED).astype(float)
    counts_HW = pydicom.dcmread(path).pixel_array
    assert seen_HW.shape == counts_HW.shape
    assert np.corrcoef(seen_HW.ravel(), counts_HW.ravel())[0, 1] > 0.9999


def test_the_key_lies_beside_the_cohort_and_another_one_is_kept(tmp_path: Path) -> None:
    cohort = phantom(tmp_path / "scans", 1, 1, height=128)
    key = key_beside(cohort)
    assert key == tmp_path / "scans.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    made = prepare(cohort, tmp_path / "ds", folds=2, key=key)
    assert made.rejected == ()
    (tmp_path / "own.key").write_text("a key of somebody")
    with pytest.raises(WrongInput, match="must be absent or a phantom's key"):
        phantom(tmp_path / "own", 1, 1, height=128)
    assert (tmp_path / "own.key").read_text() == "a key of somebody"
    assert not (tmp_path / "own").exists()


def test_the_skeleton_is_prepared_as_regions_that_a_segmenter_can_learn(tmp_path: Path) -> None:
    """The same patients and counts as of the other layouts; the sternum is seen in front alone."""
    for layout in ("masks", "skeleton"):
        phantom(tmp_path / layout, 3, 5, layout, 512)
        prepare(tmp_path / layout, tmp_path / f"{layout}-ds", folds=3, key=tmp_path / "key")
    opened = open_dataset(tmp_path / "skeleton-ds")
    other = {s.scan_id: s for s in open_dataset(tmp_path / "masks-ds").scans}
    assert {s.scan_id for s in opened.scans} == set(other)
    assert opened.meta["warnings"] == []
    for scan in opened.scans:
        seen = {le.category for le in scan.lesions}
        assert {"skull", "thoracic", "ribs", "pelvis", "femur"} <= seen
        assert ("sternum" in seen, "scapula" in seen) == (
            scan.view == "anterior",
            scan.view == "posterior",
        )


def test_masks_of_numbers_are_read_as_the_regions_that_they_stand_for(tmp_path: Path) -> None:
    """As the public skeleton masks are kept: a number a region, later ones on top."""
    phantom(tmp_path / "scans", 2, 5, "skeleton", 512)
    names = ("ribs", "scapula", "pelvis")
    (tmp_path / "scans" / "masks").mkdir()
    for path in sorted((tmp_path / "scans" / "images").iterdir()):
        index_HW = np.zeros((512, 128), np.uint8)
        for number, name in enumerate(names, 1):
            mask = tmp_path / "scans" / f"masks_{name}" / path.name
            if mask.exists():
                index_HW[cv2.imread(str(mask), cv2.IMREAD_UNCHANGED) > 0] = number
        cv2.imwrite(str(tmp_path / "scans" / "masks" / path.name), index_HW)
    for folder in (tmp_path / "scans").glob("masks_*"):
        shutil.rmtree(folder)
    categories = {str(number): name for number, name in enumerate(names, 1)}
    key = tmp_path / "key"
    prepare(tmp_path / "scans", tmp_path / "ds", folds=2, key=key, categories=categories)
    opened = open_dataset(tmp_path / "ds")
    assert set(opened.categories) == set(names)
    behind = [s for s in opened.scans if s.view == "posterior"]
    assert all({le.category for le in s.lesions} == set(names) for s in behind)
