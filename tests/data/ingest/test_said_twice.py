"""Inputs that say a thing twice, or what cannot be kept: never a guess, never another's words."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

from raybone.cli import main
from raybone.data.dataset import Dataset, open_dataset
from raybone.data.ingest.dicom import segments
from raybone.data.ingest.dicom.frames import write_scan
from raybone.data.ingest.dicom.header import NotTaken, flags_of
from raybone.data.ingest.dicom.segments import read_marks
from raybone.data.ingest.prepare import prepare
from raybone.deploy.dicom.seg import write_segmentation
from raybone.deploy.dicom.source import MadeBy
from raybone.errors import WrongInput

SHAPE = (64, 48)
SPOT_HW = np.zeros(SHAPE, np.uint8)
SPOT_HW[20:28, 10:22] = 1
LINE = "0 0.5 0.5 0.2 0.1\n"


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    counts_HW = np.random.default_rng(seed).poisson(40, SHAPE).astype(np.uint8)
    counts_HW[[0, -1]] = counts_HW[:, [0, -1]] = 0
    cv2.imwrite(str(path), counts_HW)


def mask(path: Path, mask_HW: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), mask_HW)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def prepared(place: Path, **options: object) -> Dataset:
    made = prepare(place / "in", place / "ds", folds=2, key=place / "k", **options)  # type: ignore[arg-type]
    return open_dataset(made.path)


def yolo(root: Path) -> None:
    for name, seed in (("a.png", 0), ("a.bmp", 1), ("b.png", 2)):
        picture(root / "images" / name, seed)
    for name in "ab":
        text(root / f"labels/{name}.txt", LINE)
    text(root / "data.yaml", "names: [metastasis]\n")


def nnunet_labels(root: Path) -> None:
    """A case with two label maps."""
    for case in "abc":
        picture(root / f"imagesTr/{case}_0000.png", ord(case))
        mask(root / f"labelsTr/{case}.png", SPOT_HW)
    mask(root / "labelsTr/a.bmp", SPOT_HW.T.copy().reshape(SHAPE))
    text(root / "dataset.json", json.dumps({"labels": {"background": 0, "metastasis": 1}}))


def nnunet_scans(root: Path) -> None:
    """A label map with two scans."""
    nnunet_labels(root)
    (root / "labelsTr/a.bmp").unlink()
    picture(root / "imagesTr/b_0000.bmp", 9)


@pytest.mark.parametrize("make", [yolo, nnunet_labels, nnunet_scans])
def test_an_annotation_of_two_scans_or_a_scan_of_two_annotations_is_refused(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / "in")
    with pytest.raises(WrongInput, match="an annotation fits 2 scans alike"):
        prepared(tmp_path)


def test_the_other_scans_keep_theirs_where_one_is_left_out(tmp_path: Path) -> None:
    yolo(tmp_path / "in")
    opened = prepared(tmp_path, allow_unmatched=True)
    assert sorted(len(s.lesions) for s in opened.scans) == [0, 0, 1]
    assert sum(s.annotated for s in opened.scans) == 1


@pytest.mark.parametrize("folder", ["wholeBodyANT", "chestANT"])
def test_lines_of_bs80k_that_contradict_each_other_are_refused(folder: str, tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"in/wholeBodyANT/{number:04d}.jpg", number)
        picture(tmp_path / f"in/chestANT/{number:04d}.jpg", number + 9)
    text(tmp_path / f"in/{folder}/label.txt", "0001.jpg 1\n0002.jpg 0\n0001.jpg 1\n0001.jpg 0\n")
    layout = "bs80k" if folder.startswith("whole") else "bs80k_regions"
    with pytest.raises(WrongInput, match="one says both 0 and 1"):
        prepared(tmp_path, layout=layout)


def test_numbers_that_a_person_names_are_of_masks_of_lesions_alone(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / f"in/images/{number}.png", number)
        index_HW = SPOT_HW + 2 * SPOT_HW[::-1]
        mask(tmp_path / f"in/masks/{number}.png", index_HW)
        mask(tmp_path / f"in/masks_bone/{number}.png", SPOT_HW[:, ::-1].copy())
    named = {"1": "malignant", "2": "benign"}
    opened = prepared(tmp_path, categories=named)
    found = [sorted(le.category for le in s.lesions) for s in opened.scans]
    assert found == [["benign", "bone", "malignant"]] * 4


def test_labels_below_nothing_are_no_background(tmp_path: Path) -> None:
    """255, saved as a signed byte, is -1."""
    (tmp_path / "in").mkdir()
    for number in range(3):
        write_scan(
            tmp_path / f"in/{number}.dcm",
            np.random.default_rng(number).poisson(40, SHAPE).astype(np.uint16),
            patient=str(number),
            view="anterior",
            pixel_mm=2,
            uid=str(number),
        )
        labels_WHN = (-SPOT_HW.astype(np.int8)).T[:, :, None]
        nibabel.save(
            nibabel.Nifti1Image(labels_WHN, np.diag([-2, -2, 2, 1])),
            tmp_path / f"in/{number}.nii.gz",
        )
    with pytest.raises(WrongInput, match="labels below 0; save it with those of lesions above 0"):
        prepared(tmp_path)


def test_one_lesion_under_two_names_of_one_meaning_is_one(tmp_path: Path) -> None:
    shapes = [
        {"label": name, "shape_type": "rectangle", "points": [[10, 20], [22, 28]]}
        for name in ("metastasis", "Metastases", "malignant", "bone")
    ]
    for number in range(4):
        picture(tmp_path / f"in/{number}.png", number)
        note = {"imagePath": f"{number}.png", "imageHeight": 64, "imageWidth": 48}
        text(tmp_path / f"in/{number}.json", json.dumps({**note, "shapes": shapes}))
    opened = prepared(tmp_path)
    assert [sorted(le.category for le in s.lesions) for s in opened.scans] == [
        ["bone", "malignant"]
    ] * 4


def test_a_scan_whose_annotation_could_not_be_kept_is_no_negative(tmp_path: Path) -> None:
    yolo(tmp_path / "in")
    (tmp_path / "in/images/a.bmp").unlink()
    text(tmp_path / "in/labels/b.txt", "0 nan 0.5 0.2 0.1\n")
    picture(tmp_path / "in/images/c.png", 5)
    opened = prepared(tmp_path, unannotated="negative")
    assert sorted(s.flags for s in opened.scans) == [
        (),
        ("taken-as-negative",),
        ("unannotated",),
    ]


def test_annotations_beside_images_with_masks_are_not_passed_over(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / f"in/images/{number}.png", number)
        mask(tmp_path / f"in/masks/{number}.png", SPOT_HW * 255)
    note = {"imagePath": "2.png", "imageHeight": 64, "imageWidth": 48, "shapes": []}
    text(tmp_path / "in/images/2.json", json.dumps(note))
    with pytest.raises(WrongInput, match="layout masks does not read; choose the layout"):
        prepared(tmp_path)


def test_rows_of_another_type_are_rows(segmentation: pydicom.Dataset, tmp_path: Path) -> None:
    scan = pydicom.dcmread(tmp_path / "scan.dcm")
    for keyword, number in (("Rows", "64"), ("Columns", "48")):
        del scan[keyword]
        scan.add_new(keyword, "LO", number)
    (tmp_path / "in").mkdir()
    scan.save_as(tmp_path / "in/scan.dcm")
    write_scan(
        tmp_path / "in/other.dcm",
        np.random.default_rng(1).poisson(40, SHAPE).astype(np.uint16),
        patient="2",
        view="anterior",
        pixel_mm=2,
        uid="2",
    )
    (tmp_path / "in/seg.dcm").write_bytes(written(segmentation, tmp_path / "whole.dcm"))
    opened = prepared(tmp_path)
    assert sorted((s.height, s.width, len(s.lesions)) for s in opened.scans) == [
        (64, 48, 0),
        (64, 48, 1),
    ]


@pytest.mark.parametrize("value", ["1.0", "NaN"])
def test_labels_are_read_as_they_were_before_pandas_wrote_them(value: str, tmp_path: Path) -> None:
    yolo(tmp_path / "in")
    (tmp_path / "in/images/a.bmp").unlink()
    lines = ["file,Patient_ID,Site,abnormal", "images/a.png,1.0,A,0.0", f"images/b.png,2,B,{value}"]
    text(tmp_path / "in/labels.csv", "\n".join(lines))
    opened = prepared(tmp_path)
    told = {s.labels for s in opened.scans}
    assert told == {(("abnormal", "0"),), (("abnormal", "1"),) if value == "1.0" else ()}
    assert len({s.site for s in opened.scans}) == 2


def test_outlines_in_shares_and_masks_that_begin_outside(tmp_path: Path) -> None:
    encoded = base64.b64encode(cv2.imencode(".png", np.full((10, 10), 255, np.uint8))[1]).decode()
    shapes = [
        {"label": "m", "shape_type": "polygon", "points": [[0.2, 0.3], [0.5, 0.3], [0.5, 0.5]]},
        {"label": "m", "shape_type": "mask", "points": [[-4, -3], [5, 6]], "mask": encoded},
    ]
    for number in range(3):
        picture(tmp_path / f"in/{number}.png", number)
        note = {"imagePath": f"{number}.png", "imageHeight": 64, "imageWidth": 48}
        text(tmp_path / f"in/{number}.json", json.dumps({**note, "shapes": shapes}))
    opened = prepared(tmp_path, categories={"m": "malignant"})
    assert [[le.box_xyxy for le in s.lesions] for s in opened.scans] == [[(0, 0, 6, 7)]] * 3
    assert any("are its numbers shares" in line for line in opened.meta["warnings"])


def test_an_outline_with_half_a_corner_is_its_box_alone(tmp_path: Path) -> None:
    parts = [[10, 20, 22, 20, 22, 28, 10, 28], [30, 40, 40, 40, 40, 50, 30]]
    notes = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [10, 20, 30, 30], "segmentation": parts}
        for n in range(3)
    ]
    images = [{"id": n, "file_name": f"{n}.png", "height": 64, "width": 48} for n in range(3)]
    for number in range(3):
        picture(tmp_path / f"in/{number}.png", number)
    names = [{"id": 1, "name": "metastasis"}]
    content = {"images": images, "annotations": notes, "categories": names}
    text(tmp_path / "in/a.json", json.dumps(content))
    opened = prepared(tmp_path)
    assert [[(le.box_xyxy, le.rle) for le in s.lesions] for s in opened.scans] == [
        [((10, 20, 40, 50), None)]
    ] * 3


def test_voc_may_have_a_namespace(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"in/{number}.png", number)
        text(
            tmp_path / f"in/{number}.xml",
            '<annotation xmlns="http://example.org/voc"><object><name>metastasis</name><bndbox>'
            "<xmin>10</xmin><ymin>20</ymin><xmax>22</xmax><ymax>28</ymax></bndbox></object>"
            "</annotation>",
        )
    opened = prepared(tmp_path)
    assert [[le.box_xyxy for le in s.lesions] for s in opened.scans] == [[(10, 20, 22, 28)]] * 3


def test_a_name_is_of_one_category(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yolo(tmp_path / "in")
    words = [str(tmp_path / "in"), str(tmp_path / "ds"), "--key", str(tmp_path / "k")]
    assert main(["prepare", *words, "--categories", "m=benign", "m=malignant"]) == 2
    assert "each name must be of one category" in capsys.readouterr().err


def test_a_lossy_syntax_is_told_where_no_tag_tells_it() -> None:
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    for syntax, flags in ((JPEGBaseline8Bit, ["lossy"]), (ExplicitVRLittleEndian, [])):
        header.file_meta.TransferSyntaxUID = syntax
        assert flags_of(header) == flags


def test_a_yaml_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    yolo(tmp_path / "in")
    (tmp_path / "in/images/a.bmp").unlink()
    (tmp_path / "in/data.yaml").write_bytes(
        "path: /home/Müller\nnames: [metastasis]".encode("latin-1")
    )
    with pytest.raises(WrongInput, match="a YAML file cannot be read, and no other names"):
        prepared(tmp_path)
    text(tmp_path / "in/Meier_Hans/data.yaml", "names: [[1]]\n")
    with pytest.raises(WrongInput, match="must be texts by their number") as told:
        prepared(tmp_path)
    assert "Meier" not in str(told.value)
    text(tmp_path / "in/Meier_Hans/data.yaml", "names: [metastasis]\n")
    assert {le.category for s in prepared(tmp_path).scans for le in s.lesions} == {"malignant"}


def test_one_hospital_that_is_not_named_is_no_site(tmp_path: Path) -> None:
    yolo(tmp_path / "in")
    (tmp_path / "in/images/a.bmp").unlink()
    picture(tmp_path / "in/images/c.png", 5)
    text(
        tmp_path / "in/labels.csv",
        "file,patient_id,site\nimages/a.png,1,A\nimages/b.png,2,B\nimages/c.png,3,\n",
    )
    words = [str(tmp_path / "in"), str(tmp_path / "ds"), "--key", str(tmp_path / "k")]
    assert main(["prepare", *words, "--folds", "site"]) == 2
    text(
        tmp_path / "in/labels.csv",
        "file,patient_id,site\nimages/a.png,1,A\nimages/b.png,2,B\nimages/c.png,3,B\n",
    )
    assert main(["prepare", *words, "--folds", "site"]) == 0


@pytest.fixture
def segmentation(tmp_path: Path) -> pydicom.Dataset:
    write_scan(
        tmp_path / "scan.dcm",
        np.random.default_rng(0).poisson(40, SHAPE).astype(np.uint16),
        patient="1",
        view="anterior",
        pixel_mm=2,
        uid="1",
    )
    out = tmp_path / "seg.dcm"
    write_segmentation(tmp_path / "scan.dcm", 0, {"malignant": SPOT_HW > 0}, MadeBy("test"), out)
    return pydicom.dcmread(out)


def written(dataset: pydicom.Dataset, path: Path) -> bytes:
    dataset.save_as(path)
    return path.read_bytes()


def test_what_a_damaged_segmentation_says_is_not_told(
    segmentation: pydicom.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoders quote what they cannot read, and raise what they like."""
    whole = written(segmentation, tmp_path / "whole.dcm")
    assert read_marks(whole, {})[0]
    for error in (
        struct.error("Hans Meier"),
        NotImplementedError("Hans Meier"),
        ValueError("Hans"),
    ):

        def broken(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(segments, "_marks", broken)
        with pytest.raises(NotTaken, match=f"damaged.*{type(error).__name__}") as told:
            read_marks(whole, {})
        assert "Hans" not in str(told.value)


@pytest.mark.parametrize("cut", [0.3, 0.5, 0.7, 0.9])
def test_a_segmentation_that_was_cut_short_is_rejected_by_itself(
    cut: float, segmentation: pydicom.Dataset, tmp_path: Path
) -> None:
    whole = written(segmentation, tmp_path / "whole.dcm")
    rng = np.random.default_rng(int(10 * cut))
    for _ in range(20):
        spoilt = bytearray(whole[: int(len(whole) * cut)] if cut < 0.9 else whole)
        for place in rng.integers(132, len(spoilt), 12):
            spoilt[place] = int(rng.integers(256))
        try:
            read_marks(bytes(spoilt), {})
        except NotTaken as told:
            assert "\n" not in str(told)


def test_a_segmentation_of_two_frames_at_once_says_not_which(
    segmentation: pydicom.Dataset, tmp_path: Path
) -> None:
    (groups,) = segmentation.PerFrameFunctionalGroupsSequence
    (image,) = groups.DerivationImageSequence[0].SourceImageSequence
    image.ReferencedFrameNumber = [1, 2]
    with pytest.raises(NotTaken, match="several images or frames of a scan"):
        read_marks(written(segmentation, tmp_path / "two.dcm"), {})
    image.ReferencedFrameNumber = [2, 2]
    ((mark,), _) = read_marks(written(segmentation, tmp_path / "one.dcm"), {})
    assert mark.frame == 1


def test_labels_may_begin_with_a_capital_and_are_read_in_the_source_alone(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / "in" / f"{name}.png", ord(name))
    text(tmp_path / "in/Labels.csv", "file,site\na.png,A\nb.png,B\n")
    text(tmp_path / "in/sub/labels.csv", "file,site\na.png,C\n")
    dataset = prepared(tmp_path)
    assert sorted(scan.site for scan in dataset.scans) == ["A", "B"]
    rejected = (tmp_path / "ds/rejected.csv").read_text()
    assert "is a labels.csv below SOURCE" in rejected


def test_labels_that_differ_in_capitals_alone_are_no_groups(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        picture(tmp_path / "in" / f"{name}.png", ord(name))
    text(tmp_path / "in/labels.csv", "file,grade\na.png,Malignant\nb.png,malignant \n")
    assert (
        main(["prepare", str(tmp_path / "in"), str(tmp_path / "ds"), "--key", str(tmp_path / "k")])
        == 2
    )
    told = capsys.readouterr().err
    assert "column 2 has values that differ in capitals or blanks alone" in told
    assert "Malignant" not in told


def test_what_coco_says_of_a_view_and_a_spacing_is_known_or_said_not_to_be(tmp_path: Path) -> None:
    given = [("a", "ANT", 2.5), ("b", "lateral", "wide"), ("c", "posterior", None)]
    images = []
    for number, (name, view, spacing) in enumerate(given):
        picture(tmp_path / "in" / f"{name}.png", number)
        size = {"height": SHAPE[0], "width": SHAPE[1]}
        more = {"view": view, "patient_id": name} | ({"pixel_mm": spacing} if spacing else {})
        images.append({"id": number, "file_name": f"{name}.png", **size, **more})
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [5, 5, 9, 9]} for n in range(3)]
    categories = [{"id": 1, "name": "malignant"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    text(tmp_path / "in/coco.json", json.dumps(content))
    made = prepare(tmp_path / "in", tmp_path / "ds", folds=2, key=tmp_path / "k")
    scans = open_dataset(made.path).scans
    assert sorted((s.view, s.pixel_mm or 0) for s in scans) == [
        ("anterior", 2.5),
        ("posterior", 0),
        ("unknown", 0),
    ]
    told = {rule: times for rule, times in made.meta["remark_times"].items() if "COCO" in rule}
    assert told == {
        "view in COCO that is neither anterior nor posterior: not known": 1,
        "pixel_mm in COCO that is no number of mm: not known": 1,
    }


def test_a_corner_of_voc_beyond_all_is_none(tmp_path: Path) -> None:
    def item(far: str) -> str:
        box = f"<xmin>2</xmin><ymin>2</ymin><xmax>{far}</xmax><ymax>20</ymax>"
        return f"<object><name>malignant</name><bndbox>{box}</bndbox></object>"

    for name, far in (("a", "1e999"), ("b", "30")):
        picture(tmp_path / "in" / f"{name}.png", ord(name))
        text(tmp_path / "in" / f"{name}.xml", f"<annotation>{item(far)}{item('9')}</annotation>")
    dataset = prepared(tmp_path, allow_unmatched=True)
    assert sorted(len(scan.lesions) for scan in dataset.scans) == [1, 2]
