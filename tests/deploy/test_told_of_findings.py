"""What predictions say of bones beside lesions, of archives, of montages, and of what was asked."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from bundles import bundle_of

from raybone.data.annotations import rle_of
from raybone.data.dataset import open_dataset
from raybone.deploy.bundle import Bundle, open_bundle
from raybone.deploy.dicom.seg import write_segmentation
from raybone.deploy.dicom.source import MadeBy
from raybone.deploy.job import Options
from raybone.deploy.predict import is_made, predict
from raybone.tasks import task_named
from raybone.tasks.base import Outcome
from raybone.types import Lesion, Prediction, Scan

SMALL = {"width": 4, "depth": 2, "imgsz": 64}
SEGMENTATION = task_named("segmentation")
BOTH = ["malignant", "bone"]


def at(bundle: Bundle, **changes: Any) -> Bundle:
    """The bundle with other words in bundle.json."""
    known = json.loads((bundle.path / "bundle.json").read_text())
    (bundle.path / "bundle.json").write_text(json.dumps({**known, **changes}))
    return open_bundle(bundle.path)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A network that finds something everywhere."""
    made = bundle_of(tmp_path / "b", "unet", ["malignant"], **SMALL)
    return at(made, operating_point={"threshold": 0.0001})


@pytest.mark.parametrize(
    ("names", "count"), [(BOTH, 1), (["skull", "ribs"], 2), (["malignant", "benign"], 2)]
)
def test_bones_beside_lesions_decide_no_operating_point(
    names: list[str], count: int, dataset: Path
) -> None:
    scan = open_dataset(dataset).scans[0]
    prediction = Prediction(mask_CHW=np.zeros((2, scan.height, scan.width), np.float32))
    assert len([*SEGMENTATION.levels(scan, prediction, names)]) == count


def test_bones_beside_lesions_are_cut_at_one_half(tmp_path: Path) -> None:
    point = {"threshold": 0.05}
    several = at(bundle_of(tmp_path / "a", "unet", BOTH, **SMALL), operating_point=point)
    assert [several.least(name) for name in BOTH] == [0.05, 0.5]
    skeleton = at(bundle_of(tmp_path / "s", "unet", ["skull"], **SMALL), operating_point=point)
    assert skeleton.least("skull") == 0.05
    p_CHW = np.full((2, 32, 32), 0.1, np.float32)
    cut = SEGMENTATION.cut(Prediction(mask_CHW=p_CHW), [several.least(name) for name in BOTH])
    assert cut.mask_CHW is not None
    assert cut.mask_CHW.mean((1, 2)).tolist() == [1.0, 0.0]


def test_bones_are_no_findings_in_the_table_of_scans() -> None:
    lesion_HW, bones_HW = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    lesion_HW[4:9, 4:9] = True
    for row in (20, 30, 40):
        bones_HW[row : row + 4, 10:40] = True
    lesion = Lesion((4, 4, 9, 9), "malignant", rle_of(lesion_HW))
    bone = Lesion((10, 20, 40, 44), "bone", rle_of(bones_HW))
    scan = Scan("a", "p", "anterior", 64, 64, None, 0, 1.0, lesions=(lesion, bone))
    finding = {"scan_id": "a", "masks": [rle_of(lesion_HW), rle_of(bones_HW)]}
    outcome = Outcome([finding], [scan], BOTH)
    assert SEGMENTATION.errors(outcome) == (0, 0)
    assert SEGMENTATION.alarms(outcome) == [1]


def test_millimetres_of_pixels_that_are_not_square_are_not_made_up() -> None:
    masks = [np.zeros((64, 64), bool) for _ in range(2)]
    for mask_HW, column in zip(masks, (10, 20)):
        mask_HW[10:20, column : column + 8] = True
    lesion = Lesion((10, 10, 18, 20), "malignant", rle_of(masks[0]))
    scan = Scan("a", "p", "anterior", 64, 64, 2.0, 0, 1.0, lesions=(lesion,))
    finding = {"scan_id": "a", "masks": [rle_of(masks[1])]}
    known = SEGMENTATION.score(Outcome([finding], [scan], ["malignant"]))
    assert known["hd95_mm"] == pytest.approx(20.0)
    oblong = replace(scan, flags=("not-square",))
    assert np.isnan(SEGMENTATION.score(Outcome([finding], [oblong], ["malignant"]))["hd95_mm"])


def test_a_segmentation_of_bones_does_not_call_them_abnormal(cohort: Path, tmp_path: Path) -> None:
    source = sorted(cohort.rglob("*.dcm"))[0]
    header = pydicom.dcmread(source, stop_before_pixels=True)
    mask_HW = np.zeros((header.Rows, header.Columns), bool)
    mask_HW[10:20, 10:20] = True
    for names, label in ((["skull"], "SKELETON"), (["malignant", "skull"], "LESIONS")):
        out = tmp_path / f"{label}.dcm"
        write_segmentation(source, 0, dict.fromkeys(names, mask_HW), MadeBy("unet"), out)
        made = pydicom.dcmread(out)
        assert made.ContentLabel == label
        *_, skull = made.SegmentSequence
        kinds = skull.SegmentedPropertyCategoryCodeSequence, skull.SegmentedPropertyTypeCodeSequence
        assert [k[0].CodeMeaning for k in kinds] == ["Anatomical Structure", "Bone"]


def test_a_classifier_of_either_kind_says_so(tmp_path: Path) -> None:
    judge = bundle_of(tmp_path / "j", "lesion_resnet50", ["malignant", "benign"], imgsz=64)
    assert judge.meta["categories"] == ["malignant or benign"]


def test_the_same_is_asked_only_of_the_same_bundle_and_files(
    bundle: Bundle, cohort: Path, tmp_path: Path
) -> None:
    scans, out = tmp_path / "incoming", tmp_path / "out"
    shutil.copytree(sorted(cohort.iterdir())[0], scans)
    usual = Options("NM")
    predict(bundle, [str(scans)], out, usual)
    assert is_made(bundle, [str(scans)], out, usual)
    assert not is_made(bundle, [str(scans)], out, Options("NM", 0.5))
    assert not is_made(bundle, [str(scans)], tmp_path / "none", usual)
    shutil.copy(next(scans.glob("*.dcm")), scans / "another.dcm")
    assert not is_made(bundle, [str(scans)], out, usual)
    (scans / "another.dcm").unlink()
    assert is_made(bundle, [str(scans)], out, usual)
    stricter = at(bundle, operating_point={"threshold": 0.7})
    assert not is_made(stricter, [str(scans)], out, usual)


def test_dicom_in_an_archive_is_said_to_lack_its_objects(
    bundle: Bundle, cohort: Path, tmp_path: Path
) -> None:
    folder = sorted(cohort.iterdir())[0]
    shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    found = predict(bundle, [str(tmp_path / "packed.zip")], tmp_path / "out", Options("NM"))
    assert found.without == len(found.frames) == 2
    assert all("in an archive; unpack it" in " ".join(f.notes) for f in found.frames)
    assert not [*(tmp_path / "out").glob("*.dcm")]


@pytest.mark.parametrize(("model", "more"), [("fcos_r18", {"channels": 64}), ("unet", SMALL)])
def test_what_is_found_on_a_scan_does_not_depend_on_the_others(
    model: str, more: dict[str, Any], tmp_path: Path
) -> None:
    """Air that makes one scan as wide as another is seen by a network."""
    made = bundle_of(tmp_path / "b", model, ["malignant"], **{"imgsz": 64, **more})
    made = at(made, operating_point={"threshold": 0.0001})
    rng = np.random.default_rng(0)
    for name, width in (("a", 64), ("square", 256)):
        values_HW = rng.poisson(30, (256, width)).astype(np.uint16)
        cv2.imwrite(str(tmp_path / f"{name}.png"), values_HW)
    names = [str(tmp_path / f"{name}.png") for name in ("a", "square")]
    (alone,) = predict(made, names[:1], None, Options("NM")).frames
    first, _ = predict(made, names, None, Options("NM")).frames
    assert alone.findings
    assert first.findings == alone.findings


def test_a_view_of_a_montage_is_its_own(cohort: Path, tmp_path: Path) -> None:
    steps = ("brightness", "knee_cut", "montage")
    joined = bundle_of(tmp_path / "b", "unet", ["malignant"], steps=steps, **SMALL)
    found = predict(joined, [str(sorted(cohort.iterdir())[0])], None, Options("NM"))
    assert sorted(f.view for f in found.frames) == ["anterior", "posterior"]
