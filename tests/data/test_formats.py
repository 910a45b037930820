"""Annotation files: each format gives back what was written, and any damage is a reason and not a traceback."""

from __future__ import annotations

import base64
import json
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from raybone.data.annotations import (
    CUT,
    EMPTY,
    OUTSIDE,
    UNKNOWN,
    fitted,
    lesions_of_mask,
    mask_of,
    read_coco,
    rle_of,
    term_of,
)
from raybone.data.export import _shapes
from raybone.data.formats import labelme_image, read_labelme, read_mask, read_nifti, read_voc
from raybone.records import Lesion, WrongInput

MASKS = arrays(bool, (24, 20), elements=st.booleans())


def labelme(shapes: list[dict[str, Any]], height: int = 24, width: int = 20) -> bytes:
    return json.dumps({"shapes": shapes, "imageHeight": height, "imageWidth": width, "imageData": None}).encode()


def png(values: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


@given(MASKS)
def test_labelme_polygons_give_back_masks_without_holes(mask_HW: np.ndarray) -> None:
    from scipy.ndimage import binary_fill_holes

    lesions = [le for le in lesions_of_mask(mask_HW, "malignant")
               if (binary_fill_holes(mask_of(le.rle)) == mask_of(le.rle)).all()]
    shapes = [shape for group, le in enumerate(lesions) for shape in _shapes(le, group, mask_HW.shape)]
    assert read_labelme(labelme(shapes))[0] == [lesions]


@given(MASKS)
def test_nifti_labels_give_back_components(mask_HW: np.ndarray) -> None:
    slices_WHN = np.stack([mask_HW.T * 2, mask_HW.T], -1).astype(np.uint8)
    frames, size, _ = read_nifti(nibabel.Nifti1Image(slices_WHN, np.diag([-2, -2, 1, 1])).to_bytes())
    assert size == mask_HW.shape
    assert [tuple(f) for f in frames] == [lesions_of_mask(mask_HW, name) for name in ("benign", "malignant")]


@given(MASKS)
def test_rle_and_mask_images_give_back_masks(mask_HW: np.ndarray) -> None:
    np.testing.assert_array_equal(mask_of(rle_of(mask_HW)), mask_HW)
    (lesions,), size, remarks = read_mask(png(mask_HW.astype(np.uint8) * 255), "bone")
    assert (tuple(lesions), size, remarks) == (lesions_of_mask(mask_HW, "bone"), (24, 20), {})


def test_labelme_rectangles_circles_masks_and_what_has_no_area() -> None:
    part_HW = np.zeros((3, 4), np.uint8)
    part_HW[1:, 1:] = 1
    (lesions,), size, remarks = read_labelme(labelme([
        {"label": "a", "shape_type": "rectangle", "points": [[9, 8], [2.5, 3]]},
        {"label": "b", "shape_type": "circle", "points": [[10, 10], [13, 10]]},
        {"label": "c", "shape_type": "mask", "points": [[5, 15], [8, 17]],
         "mask": base64.b64encode(png(part_HW)).decode()},
        {"label": "d", "shape_type": "point", "points": [[1, 1]]},
        {"label": "e", "shape_type": "linestrip", "points": [[1, 1], [5, 5]]}]))
    boxes = {le.category: le.box_xyxy for le in lesions}
    assert size == (24, 20)
    assert boxes == {"a": (2.5, 3, 9, 8), "b": (7, 7, 14, 14), "c": (6, 16, 9, 18)}
    assert remarks == {EMPTY: 2}


def test_voc_boxes_keep_their_corners() -> None:
    xml = b"""<annotation><size><width>20</width><height>24</height></size>
    <object><name>nidus</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>7</ymax></bndbox></object>
    </annotation>"""
    assert read_voc(xml) == ([[Lesion((1, 2, 9, 7), "nidus")]], (24, 20), {})


def test_an_image_inside_a_labelme_file_is_found() -> None:
    content = png(np.ones((4, 4), np.uint8))
    assert labelme_image(json.dumps({"imageData": base64.b64encode(content).decode()}).encode()) == content
    with pytest.raises(ValueError, match="no scan has its name"):
        labelme_image(labelme([]))


DAMAGED = [
    b"{}", b"[" * 5000, b'<?xml version="1.0" encoding="foo"?><annotation/>', b'{"shapes": [{}]}', b"<annotation>",
    b"<!DOCTYPE a [<!ENTITY b 'c'>]><annotation/>", labelme([{"label": 1, "points": [["x", None]]}]), bytes(400),
    labelme([{"label": "a", "shape_type": "rectangle", "points": [["1", "2"], ["3", "4"]]}]), b"\x1f\x8b" + bytes(40),
    labelme([], 10**9, 10**9), b"\x89PNG\r\n\x1a\n" + bytes(40)]


@settings(max_examples=100)
@given(st.binary(max_size=300) | st.sampled_from(DAMAGED))
def test_any_damage_is_a_reason(content: bytes) -> None:
    for read in (read_labelme, read_voc, read_nifti, lambda c: read_mask(c, "bone")):
        try:
            for lesions in read(content)[0]:
                fitted(lesions, 24, 20, {})
        except ValueError as reason:
            assert len(str(reason)) < 100


def test_boxes_are_cut_left_out_or_renamed_by_rule() -> None:
    lesions, remarks = fitted([Lesion((-5, 2, 10, 9), "nidus"), Lesion((30, 2, 40, 9), "nidus"),
                               Lesion((5, 5, 5, 9), "nidus"), Lesion((float("nan"), 0, 4, 4), "nidus"),
                               Lesion((1, 1, 2, 2), "Mr Smith"), Lesion((1, 1, 2, 2), "Fracture ")], 24, 20,
                              {"fracture": "fracture"})
    assert [(le.box_xyxy, le.category) for le in lesions] == [
        ((0, 2, 10, 9), "malignant"), ((1, 1, 2, 2), "other"), ((1, 1, 2, 2), "fracture")]
    assert remarks == {CUT: 1, OUTSIDE: 1, EMPTY: 2, UNKNOWN: 1}
    with pytest.raises(ValueError, match="is 24x20, but a mask of it is 3x4"):
        fitted([Lesion((0, 0, 2, 2), "m", rle_of(np.ones((3, 4), bool)))], 24, 20, {})


@pytest.mark.parametrize(("word", "term"), [("Nidus", "malignant"), ("bone_metastasis", "malignant"),
                                            ("M", "malignant"), ("physiological", "benign"), ("Bones", "bone"),
                                            ("wrist", None)])
def test_words_of_the_field_become_categories(word: str, term: str | None) -> None:
    assert term_of(word, {}) == term


@given(MASKS)
def test_coco_runs_are_checked_and_give_back_masks(mask_HW: np.ndarray) -> None:
    assert coco({"segmentation": rle_of(mask_HW)})[0]["a.png"][0].rle == rle_of(mask_HW)


@pytest.mark.parametrize("change", [
    {"segmentation": [[0, 0, 1e9, 0, 5, 5]]}, {"segmentation": [[0, 0, float("nan"), 0, 5, 5]]},
    {"segmentation": {"size": [24, 20], "counts": [3, 4]}}, {"segmentation": {"size": [24, 20], "counts": "abc"}},
    {"segmentation": {"size": [10**9, 10**9], "counts": [10**18]}}, {"segmentation": "x"}, {"bbox": ["x"]},
    {"bbox": 3}, {"category_id": []}, {"height": float("inf")}])
def test_damaged_coco_is_one_line(change: dict[str, Any]) -> None:
    with pytest.raises(WrongInput, match="must be COCO"):
        coco(change)


def coco(change: dict[str, Any]) -> Any:
    """What is read of a COCO file of one image and one annotation with this change."""
    height = change.pop("height", 24)
    item = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], **change}
    content = {"images": [{"id": 1, "file_name": "a.png", "height": height, "width": 20}], "annotations": [item],
               "categories": [{"id": 1, "name": "malignant"}]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotations.json"
        path.write_text(json.dumps(content))
        return read_coco(path)
