"""Folders of YOLO as they come from Ultralytics, labelImg and Roboflow."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from raybone.cli import main
from raybone.data.annotations import mask_of
from raybone.data.dataset import Dataset, open_dataset
from raybone.data.export.export import export
from raybone.data.ingest.annotations.yolo import label_of
from raybone.data.ingest.prepare import prepare
from raybone.errors import WrongInput

HEIGHT, WIDTH = 200, 100
LINES = {
    "a": "0 0.5 0.5 0.2 0.1\n1 0.2 0.25 0.1 0.05\n",
    "b": "0 0.1 0.1 0.5 0.1 0.5 0.4\n",  # an outline
    "c": "",
    "d": "1 0.5 0.5 1 1\n",
}


def folder(place: Path, image: str = "images/train", lines: dict[str, str] | None = None) -> Path:
    """A data set of four pictures that differ."""
    rng = np.random.default_rng(0)
    for name, text in (LINES if lines is None else lines).items():
        at = place / image / f"{name}.png"
        at.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(at), rng.integers(0, 255, (HEIGHT, WIDTH), np.uint8))
        note = place / label_of(f"{image}/{name}.png")
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(text)
    (place / "data.yaml").write_text(yaml.safe_dump({"names": ["malignant", "benign"], "nc": 2}))
    return place


def prepared(place: Path, out: Path, **options: object) -> Dataset:
    return open_dataset(prepare(place, out, folds=2, key=out.with_suffix(".key"), **options).path)  # type: ignore[arg-type]


@pytest.mark.parametrize("image", ["images/train", "train/images", "images", "set/images/a/b"])
def test_boxes_outlines_and_nothing_are_read_wherever_the_folders_lie(
    image: str, tmp_path: Path
) -> None:
    opened = prepared(folder(tmp_path / "raw", image), tmp_path / "ds")
    assert opened.meta["layout"] == "yolo"
    assert len(opened.scans) == 4
    assert all(s.annotated for s in opened.scans)
    lesions = sorted((le for s in opened.scans for le in s.lesions), key=lambda le: le.box_xyxy)
    assert [le.category for le in lesions] == ["benign", "malignant", "benign", "malignant"]
    outline = next(le for le in lesions if le.rle)
    assert outline.box_xyxy == pytest.approx((10, 20, 51, 81), abs=1)
    assert mask_of(outline.rle or {}).sum() == pytest.approx(40 * 60 / 2, rel=0.1)
    boxes = {tuple(round(v) for v in le.box_xyxy) for le in lesions if not le.rle}
    assert boxes == {(40, 90, 60, 110), (15, 45, 25, 55), (0, 0, 100, 200)}


def test_what_is_exported_comes_back(held_out: Path, tmp_path: Path) -> None:
    export(held_out, tmp_path / "yolo", "yolo")
    before, after = open_dataset(held_out), prepared(tmp_path / "yolo", tmp_path / "ds")

    def boxes(dataset: Dataset) -> list[tuple[object, ...]]:
        lesions = [le for s in dataset.scans for le in s.lesions]
        return sorted((le.category, *np.round(le.box_xyxy, 1)) for le in lesions)

    assert after.categories == before.categories
    assert boxes(after) == boxes(before)


def test_the_names_of_labelimg_are_taken_and_numbers_stand_without_any(tmp_path: Path) -> None:
    raw = folder(tmp_path / "raw")
    (raw / "data.yaml").unlink()
    assert prepared(raw, tmp_path / "unnamed").categories == ["other"]
    words = ["--categories", "class 0=malignant"]
    assert main(["prepare", str(raw), str(tmp_path / "named"), "--folds", "2", *words]) == 0
    assert sorted(open_dataset(tmp_path / "named").categories) == ["malignant", "other"]
    (raw / "labels/train/classes.txt").write_text("benign\nmetastasis\n")
    assert sorted(prepared(raw, tmp_path / "ds").categories) == ["benign", "malignant"]


@pytest.mark.parametrize(
    "line",
    ["0 0.5 0.5 0.2", "0 nan 0.5 0.1 0.1", "0 50 60 20 10", "x 0.5 0.5 0.1 0.1", "0.5 0.5 0.5 0.1 0.1", "0 0.5 0.5 0.2 0.1 0.9", "-1 0.5 0.5 0.1 0.1"],
)  # fmt: skip
def test_a_line_that_is_none_is_left_out_and_told(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = folder(tmp_path / "raw", lines={**LINES, "a": LINES["a"] + line + "\n"})
    assert main(["prepare", str(raw), str(tmp_path / "ds"), "--folds", "2"]) == 0
    assert "left out" in capsys.readouterr().out
    assert sum(len(s.lesions) for s in open_dataset(tmp_path / "ds").scans) == 4


def test_the_class_may_be_a_number_as_numpy_writes_it(tmp_path: Path) -> None:
    raw = folder(
        tmp_path / "raw", lines={**LINES, "a": "0.0 0.5 0.5 0.2 0.1\n1.000e+00 .2 .2 .1 .1\n"}
    )
    opened = prepared(raw, tmp_path / "ds")
    found = sorted(le.category for s in opened.scans for le in s.lesions)
    assert found == ["benign", "benign", "malignant", "malignant"]


def test_labels_without_an_image_are_counted_and_images_without_labels_are_unannotated(
    tmp_path: Path,
) -> None:
    raw = folder(tmp_path / "raw")
    (raw / "labels/train/c.txt").unlink()
    opened = prepared(raw, tmp_path / "ds")
    assert [s.annotated for s in opened.scans].count(False) == 1
    (raw / "labels/train/zzz.txt").write_text(LINES["a"])
    with pytest.raises(WrongInput, match="find no scan"):
        prepared(raw, tmp_path / "other")


def test_marks_of_byte_order_and_two_classes_of_one_name_lose_nothing(tmp_path: Path) -> None:
    raw = folder(tmp_path / "raw")
    note = raw / "labels/train/a.txt"
    note.write_bytes(b"\xef\xbb\xbf" + note.read_bytes())
    (raw / "data.yaml").write_text("names: {0: malignant, 1: malignant}\n")
    opened = prepared(raw, tmp_path / "ds")
    assert opened.categories == ["malignant"]
    assert sum(len(s.lesions) for s in opened.scans) == 4


def test_yaml_files_that_name_classes_otherwise_are_refused(tmp_path: Path) -> None:
    raw = folder(tmp_path / "raw")
    (raw / "other.yaml").write_text("names: {0: benign, 1: malignant}\n")
    with pytest.raises(WrongInput, match="the same names, but they differ"):
        prepared(raw, tmp_path / "ds")
    (raw / "other.yaml").write_text("names: [1, 2]\n")
    with pytest.raises(WrongInput, match="must be texts by their number"):
        prepared(raw, tmp_path / "ds")
