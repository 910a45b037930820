"""Annotation files: each format gives back what was written, and any damage is a reason and not a
traceback.
"""

from __future__ import annotations

import base64
import json
import re
from functools import partial
from io import BytesIO
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from raybone.data.annotations import (
    BARE,
    CUT,
    EMPTY,
    IN_BETWEEN,
    INVERTED,
    NO_AXES,
    OUTSIDE,
    SWAPPED,
    TINY,
    TURNED,
    TWICE,
    UNKNOWN,
    UNREAD,
    Annotated,
    fitted,
    lesions_of_mask,
    mask_of,
    rle_of,
    term_of,
)
from raybone.data.ingest.annotations.coco import read_coco_file, read_coco_image
from raybone.data.ingest.annotations.formats import labelme_image, read_labelme, read_voc
from raybone.data.ingest.annotations.masks import read_mask
from raybone.data.ingest.annotations.nifti import read_nifti
from raybone.phantom.export import _shapes
from raybone.types import Lesion

SHAPE = (24, 20)
ITK = np.diag([-2.0, -2.0, 1, 1])  # the affine of an image whose rows run down
MASKS = arrays(bool, (24, 20), elements=st.booleans())


def labelme(shapes: list[dict[str, Any]], height: int = 24, width: int = 20) -> bytes:
    return json.dumps(
        {"shapes": shapes, "imageHeight": height, "imageWidth": width, "imageData": None}
    ).encode()


def png(values: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


@given(MASKS)
def test_labelme_polygons_give_back_masks_without_holes(mask_HW: np.ndarray) -> None:
    from scipy.ndimage import binary_fill_holes

    lesions = [
        le
        for le in lesions_of_mask(mask_HW, "malignant")
        if (binary_fill_holes(mask_of(le.rle)) == mask_of(le.rle)).all()
    ]
    shapes = [
        shape for group, le in enumerate(lesions) for shape in _shapes(le, group, mask_HW.shape)
    ]
    assert read_labelme(labelme(shapes), SHAPE).frames == [lesions]


@given(MASKS)
def test_nifti_labels_give_back_components(mask_HW: np.ndarray) -> None:
    slices_WHN = np.stack([mask_HW.T * 2, mask_HW.T], -1).astype(np.uint8)
    read = read_nifti(nibabel.Nifti1Image(slices_WHN, ITK).to_bytes(), SHAPE, None, {})
    assert (read.size, read.remarks) == (SHAPE, {})
    assert [tuple(f) for f in read.frames] == [
        lesions_of_mask(mask_HW, name) for name in ("benign", "malignant")
    ]


@given(MASKS)
def test_rle_and_mask_images_give_back_masks(mask_HW: np.ndarray) -> None:
    np.testing.assert_array_equal(mask_of(rle_of(mask_HW)), mask_HW)
    assume(mask_HW.mean() <= 0.5)
    read = read_mask(png(mask_HW.astype(np.uint8) * 255), "bone", SHAPE, {})
    assert (tuple(read.frames[0]), read.size, read.remarks) == (
        lesions_of_mask(mask_HW, "bone"),
        SHAPE,
        {},
    )


def test_labelme_rectangles_circles_masks_and_what_has_no_area() -> None:
    part_HW = np.zeros((3, 4), np.uint8)
    part_HW[1:, 1:] = 1
    read = read_labelme(
        labelme(
            [
                {"label": "a", "shape_type": "rectangle", "points": [[9, 8], [2.5, 3]]},
                {"label": "b", "shape_type": "circle", "points": [[10, 10], [13, 10]]},
                {
                    "label": "c",
                    "shape_type": "mask",
                    "points": [[5, 15], [8, 17]],
                    "mask": base64.b64encode(png(part_HW)).decode(),
                },
                {"label": "d", "shape_type": "point", "points": [[1, 1]]},
                {"label": "e", "shape_type": "linestrip", "points": [[1, 1], [5, 5]]},
            ]
        ),
        SHAPE,
    )
    assert read.size == SHAPE
    assert {le.category: le.box_xyxy for le in read.frames[0]} == {
        "a": (2.5, 3, 9, 8),
        "b": (7, 7, 14, 14),
        "c": (6, 16, 9, 18),
    }
    assert (read.remarks, read.lost) == ({EMPTY: 2}, 2)


def test_voc_boxes_keep_their_corners() -> None:
    xml = b"""<annotation><size><width>20</width><height>24</height></size>
    <object><name>nidus</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>7</ymax></bndbox></object>
    </annotation>"""
    assert read_voc(xml, SHAPE) == Annotated([[Lesion((1, 2, 9, 7), "nidus")]], SHAPE)


def test_an_image_inside_a_labelme_file_is_found() -> None:
    content = png(np.ones((4, 4), np.uint8))
    assert (
        labelme_image(json.dumps({"imageData": base64.b64encode(content).decode()}).encode())
        == content
    )
    with pytest.raises(ValueError, match="no scan has its name"):
        labelme_image(labelme([]))


DAMAGED = [
    b"{}",
    b"[" * 5000,
    b'<?xml version="1.0" encoding="foo"?><annotation/>',
    b'{"shapes": [{}]}',
    b"<annotation>",
    b"<!DOCTYPE a [<!ENTITY b 'c'>]><annotation/>",
    labelme([{"label": 1, "points": [["x", None]]}]),
    bytes(400),
    labelme([{"label": "a", "shape_type": "rectangle", "points": [["1", "2"], ["3", "4"]]}]),
    b"\x1f\x8b" + bytes(40),
    labelme([], 10**9, 10**9),
    b"\x89PNG\r\n\x1a\n" + bytes(40),
]


@settings(max_examples=100)
@given(st.binary(max_size=300) | st.sampled_from(DAMAGED))
def test_any_damage_is_a_reason(content: bytes) -> None:
    for read in (
        partial(read_labelme, shape=SHAPE),
        partial(read_voc, shape=SHAPE),
        partial(read_nifti, shape=SHAPE, axes=None, names={}),
        partial(read_mask, category="bone", shape=SHAPE, names={}),
    ):
        try:
            for lesions in read(content).frames:
                fitted(lesions, 24, 20, {})
        except ValueError as reason:
            assert re.match("(is|has) ", str(reason))
            assert len(str(reason)) < 200


def test_boxes_are_cut_left_out_or_renamed_by_rule() -> None:
    lesions, remarks = fitted(
        [
            Lesion((-5, 2, 10, 9), "nidus"),
            Lesion((30, 2, 40, 9), "nidus"),
            Lesion((5, 5, 5, 9), "nidus"),
            Lesion((float("nan"), 0, 4, 4), "nidus"),
            Lesion((0.31, 0.15, 0.43, 0.23), "nidus"),
            Lesion((-5, 2, 10, 9), "nidus"),
            Lesion((1, 1, 2, 2), "Mr Smith"),
            Lesion((1, 1, 2, 2), "Fracture "),
        ],
        24,
        20,
        {"fracture": "fracture"},
    )
    assert [(le.box_xyxy, le.category) for le in lesions] == [
        ((0, 2, 10, 9), "malignant"),
        ((1, 1, 2, 2), "other"),
        ((1, 1, 2, 2), "fracture"),
    ]
    assert remarks == {CUT: 1, OUTSIDE: 1, EMPTY: 2, UNKNOWN: 1, TINY: 1, TWICE: 1}
    with pytest.raises(ValueError, match="is 24x20, but a mask of it is 3x4"):
        fitted([Lesion((0, 0, 2, 2), "m", rle_of(np.ones((3, 4), bool)))], 24, 20, {})


@pytest.mark.parametrize(
    ("word", "term"),
    [
        ("Nidus", "malignant"),
        ("bone_metastasis", "malignant"),
        ("M", "malignant"),
        ("physiological", "benign"),
        ("Bones", "bone"),
        ("wrist", None),
    ],
)
def test_words_of_the_field_become_categories(word: str, term: str | None) -> None:
    assert term_of(word, {}) == term


@pytest.mark.parametrize(
    "points", [[[3, 4], [9, 12]], [[9, 12], [3, 4]], [[3, 4], [9, 4], [9, 12], [3, 12]]]
)
def test_labelme_boxes_have_two_or_four_corners_in_any_order(points: list[list[float]]) -> None:
    read = read_labelme(
        labelme([{"label": "a", "shape_type": "rectangle", "points": points}]), SHAPE
    )
    assert read.frames == [[Lesion((3, 4, 9, 12), "a")]]


def test_labelme_of_all_ages_and_xanylabeling_are_read() -> None:
    """Before 3.3 without a size and without kinds of shapes; turned boxes and difficult ones of
    X-AnyLabeling.
    """
    square = [[3, 4], [9, 4], [9, 12], [3, 12]]
    old = {
        "version": "2.9",
        "shapes": [{"label": "a", "line_color": None, "points": square}],
        "imagePath": "x.png",
    }
    empty = {**old, "imageHeight": None, "imageWidth": None}
    turned = {
        "label": "a",
        "shape_type": "rotation",
        "points": [[6, 2], [10, 6], [6, 10], [2, 6]],
        "direction": 0.78,
    }
    hard = {"label": "a", "shape_type": "rectangle", "points": [[3, 4], [9, 12]], "difficult": True}
    for document in (old, empty):
        (lesion,) = read_labelme(json.dumps(document).encode(), SHAPE).frames[0]
        assert lesion.box_xyxy == (3, 4, 10, 13)
    (lesion,) = read_labelme(labelme([turned]), SHAPE).frames[0]
    assert lesion.box_xyxy == (2, 2, 11, 11)
    assert mask_of(lesion.rle).sum() == 41  # a diamond, not its box
    assert read_labelme(labelme([hard]), SHAPE).frames == [[Lesion((3, 4, 9, 12), "a", None, True)]]


def test_one_bad_shape_costs_that_shape() -> None:
    good = {"label": "a", "shape_type": "rectangle", "points": [[3, 4], [9, 12]]}
    read = read_labelme(
        labelme([good, {"label": "b"}, {**good, "points": [[1e9, 0], [3, 3]]}]), SHAPE
    )
    assert read == Annotated([[Lesion((3, 4, 9, 12), "a")]], SHAPE, {UNREAD: 2}, 2)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            json.dumps(
                {"shapes": [{"label": "\u8f6c\u79fb", "points": []}]}, ensure_ascii=False
            ).encode("gbk"),
            "JSON that is not in UTF-8; save it as UTF-8",
        ),
        (b'{"shapes": [', "JSON with an error in line 1, column 13"),
        (b"[1, 2]", "JSON without a list of shapes"),
        (labelme([], 48, 40), "is 24x20, but its annotation was made for 48x40"),
        (
            json.dumps({"shapes": [], "imageHeight": "tall", "imageWidth": 3}).encode(),
            "no numbers of pixels",
        ),
    ],
)
def test_reasons_of_labelme_are_true(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_labelme(content, SHAPE)


def voc(name: str, box: tuple[Any, ...] = (1, 2, 9, 7), more: str = "") -> str:
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return f"<annotation><object><name>{name}</name>{more}<bndbox>{corners}</bndbox></object></annotation>"


@pytest.mark.parametrize(
    ("encoding", "word"),
    [
        ("gbk", "\u8f6c\u79fb"),
        ("gb2312", "\u8f6c\u79fb"),
        ("shift_jis", "\u8ee2\u79fb"),
        ("euc-kr", "\uc804\uc774"),
        ("utf-16", "\u8f6c\u79fb"),
        ("utf-8-sig", "\u8f6c\u79fb"),
        ("latin-1", "m\u00e9tastase"),
    ],
)
def test_voc_in_any_encoding_is_read(encoding: str, word: str) -> None:
    declared = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>\n'
    (lesion,) = read_voc((declared + voc(word)).encode(encoding), SHAPE).frames[0]
    assert lesion.category == word


def test_voc_corners_are_put_right_and_difficult_objects_are_crowds() -> None:
    read = read_voc(voc("nidus", (9, 7, 1, 2)).encode(), SHAPE)
    assert read == Annotated([[Lesion((1, 2, 9, 7), "nidus")]], None, {SWAPPED: 1})
    assert read_voc(voc("m", more="<difficult>1</difficult>").encode(), SHAPE).frames[0][0].crowd
    assert read_voc(voc("m", ("a", 2, 9, 7)).encode(), SHAPE) == Annotated(
        [[]], None, {UNREAD: 1}, 1
    )


SPOT_HW = np.zeros(SHAPE, np.uint8)
SPOT_HW[4:8, 3:9] = 1
CLASSES_HW = SPOT_HW.copy()
CLASSES_HW[12:14, 3:9] = 2
CLASSES_HW[16:18, 3:9] = 3


def spot_of(
    affine: np.ndarray, values_WHN: np.ndarray, axes: tuple[float, ...] | None = None
) -> Annotated:
    return read_nifti(
        nibabel.Nifti1Image(np.ascontiguousarray(values_WHN), affine).to_bytes(), SHAPE, axes, {}
    )


def test_nifti_lies_where_its_affine_says() -> None:
    plain_WHN = SPOT_HW.T[:, :, None]
    dcm2niix = np.diag([-2.0, 2.0, 1, 1])
    crossed = np.array([[0, -2, 0, 0], [-2, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    for affine, stored in (
        (ITK, plain_WHN),
        (dcm2niix, plain_WHN[:, ::-1]),
        (np.diag([2.0, 2, 1, 1]), plain_WHN[::-1, ::-1]),
        (crossed, plain_WHN.transpose(1, 0, 2)),
    ):
        read = spot_of(affine, stored)
        assert [tuple(f) for f in read.frames] == [lesions_of_mask(SPOT_HW > 0, "malignant")]
        assert read.remarks == ({} if affine is ITK else {TURNED: 1})
    coronal = np.array(
        [[-2, 0, 0, 0], [0, 0, 1, 0], [0, 2, 0, 0], [0, 0, 0, 1.0]]
    )  # rows from the feet up
    assert spot_of(coronal, plain_WHN[:, ::-1]).frames[0] == spot_of(ITK, plain_WHN).frames[0]
    back = (-1.0, 0.0, 0.0, 0.0, 0.0, -1.0)  # a posterior view: columns run to the patient's right
    posterior = np.array([[2, 0, 0, 0], [0, 0, 1, 0], [0, -2, 0, 0], [0, 0, 0, 1.0]])
    assert spot_of(posterior, plain_WHN, back) == spot_of(ITK, plain_WHN)
    assert spot_of(np.eye(4), plain_WHN).remarks == {NO_AXES: 1}
    with pytest.raises(ValueError, match="lies across its scan"):
        spot_of(np.array([[0, 0, 1, 0], [-2, 0, 0, 0], [0, -2, 0, 0], [0, 0, 0, 1.0]]), plain_WHN)


def test_nifti_labels_may_be_nearly_whole_but_no_probabilities() -> None:
    plain_WHN = SPOT_HW.T[:, :, None].astype(np.float32)
    assert spot_of(ITK, plain_WHN * 1.001).frames == spot_of(ITK, plain_WHN).frames
    assert spot_of(ITK, plain_WHN[..., None]).frames == spot_of(ITK, plain_WHN).frames
    with pytest.raises(ValueError, match="probability map"):
        spot_of(ITK, plain_WHN * 0.37)
    dots_WHN = np.zeros((128, 128, 1), np.uint8)
    dots_WHN[::2, ::2] = 1
    with pytest.raises(ValueError, match="has a mask of 4096 islands, over 1000"):
        read_nifti(nibabel.Nifti1Image(dots_WHN, ITK).to_bytes(), (128, 128), None, {})


def palette(values_HW: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.fromarray(values_HW, "P")
    image.putpalette(colours + [0] * (768 - len(colours)))
    return image


def rgba(red: np.ndarray, green: np.ndarray, blue: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([red, green, blue, alpha]).astype(np.uint8), "RGBA")


FULL_HW, NONE_HW = np.full(SHAPE, 255), np.zeros(SHAPE)
JPEG_HW = np.clip(SPOT_HW * 240.0 + np.random.default_rng(0).integers(0, 12, SHAPE), 0, 255).astype(
    np.uint8
)
BINARY = {
    "0 and 1": Image.fromarray(SPOT_HW),
    "0 and 255": Image.fromarray(SPOT_HW * 255),
    "one bit": Image.fromarray(SPOT_HW > 0),
    "16 bits": Image.fromarray(SPOT_HW.astype(np.uint16) * 65535),
    "VOC palette": palette(SPOT_HW, [0, 0, 0, 128, 0, 0]),
    "VOC palette with an outline left out": palette(
        np.where(np.roll(SPOT_HW, 9, 0) > 0, 255, SPOT_HW).astype(np.uint8), [0, 0, 0, 128, 0, 0]
    ),
    "black and white in a palette the other way round": palette(1 - SPOT_HW, [255] * 3 + [0] * 3),
    "red on white": Image.fromarray(
        np.where(SPOT_HW[..., None] > 0, [255, 0, 0], [255] * 3).astype(np.uint8)
    ),
    "white on transparent": rgba(FULL_HW, FULL_HW, FULL_HW, SPOT_HW * 255),
    "black on transparent": rgba(NONE_HW, NONE_HW, NONE_HW, SPOT_HW * 255),
    "red on transparent": rgba(SPOT_HW * 255, NONE_HW, NONE_HW, SPOT_HW * 255),
    "opaque": rgba(SPOT_HW * 255, SPOT_HW * 255, SPOT_HW * 255, FULL_HW),
    "inverted": Image.fromarray(255 - SPOT_HW * 255),
    "as JPEG leaves it": Image.fromarray(JPEG_HW),
}


def file_of(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", BINARY)
def test_masks_of_one_lesion_give_that_lesion_however_they_are_saved(kind: str) -> None:
    read = read_mask(file_of(BINARY[kind]), "malignant", SHAPE, {})
    assert tuple(read.frames[0]) == lesions_of_mask(SPOT_HW > 0, "malignant")
    assert set(read.remarks) == {"inverted": {INVERTED}, "as JPEG leaves it": {IN_BETWEEN}}.get(
        kind, set()
    )


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.fromarray(CLASSES_HW), "values 0, 1, 2, 3, and nothing says which are lesion"),
        (Image.fromarray(CLASSES_HW.astype(np.uint16) * 1000), "values 0, 1000, 2000, 3000"),
        (palette(CLASSES_HW, [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]), "values 0, 1, 2, 3"),
        (
            palette(CLASSES_HW, [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]).convert("RGB"),
            "mask of 4 colours",
        ),
        (
            Image.fromarray(np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8)),
            "map or a picture",
        ),
        (Image.fromarray(np.full(SHAPE, 255, np.uint8)), "one value all over"),
        (Image.fromarray((np.indices(SHAPE)[0] > 5).astype(np.uint8)), "covers 75 % of it"),
        (
            Image.fromarray(np.zeros((5, 5), np.uint8)),
            "is 24x20, but its annotation was made for 5x5",
        ),
    ],
)
def test_masks_that_do_not_say_what_is_lesion_are_refused(image: Image.Image, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_mask(file_of(image), "malignant", SHAPE, {})


def test_classes_of_masks_may_be_named() -> None:
    names = {"malignant": (1, 3), "benign": (2,)}
    (first, second, third) = read_mask(
        file_of(Image.fromarray(CLASSES_HW)), "", SHAPE, names
    ).frames[0]
    assert [le.category for le in (first, second, third)] == ["malignant", "malignant", "benign"]
    with pytest.raises(ValueError, match="values 3, which have no name"):
        read_mask(file_of(Image.fromarray(CLASSES_HW)), "", SHAPE, {"malignant": (1, 2)})
    # A name for 1 does not turn masks of 0 and 255 into something else.
    read = read_mask(file_of(Image.fromarray(SPOT_HW * 255)), "bone", SHAPE, {"malignant": (1,)})
    assert read.frames[0][0].category == "bone"


@given(MASKS)
def test_coco_runs_are_checked_and_give_back_masks(mask_HW: np.ndarray) -> None:
    assume(mask_HW.any())
    read = coco({"segmentation": rle_of(mask_HW), "bbox": None})
    assert [le.rle for le in read.frames[0]] == [rle_of(mask_HW)]


@pytest.mark.parametrize(
    "outline",
    [
        [[-40, 40] * 1000],
        [[0, 0, 20, 0, 20, 24, 0, 24]] * 1000,  # longer than its scan has pixels
        [[0, 0, 1e9, 0, 5, 5]],
        [[0, 0, float("nan"), 0, 5, 5]],
        {"size": [24, 20], "counts": [3, 4]},
        [[1, 1]],
        [[]],
        {"size": [24, 20], "counts": "abc"},
        {"size": [10**9, 10**9], "counts": [10**18]},
        "x",
        [["a"] * 6],
        {"size": [24, 20], "counts": [480]},
    ],
)
def test_an_outline_that_cannot_be_read_leaves_the_box(outline: Any) -> None:
    read = coco({"segmentation": outline})
    assert read == Annotated([[Lesion((1, 1, 5, 5), "malignant")]], SHAPE, {BARE: 1})
    assert coco({"segmentation": outline, "bbox": None}).lost == 1


@pytest.mark.parametrize("box", [["x"], 3, None, [1, 1, -3, 4], [1, 1, float("nan"), 4]])
def test_an_annotation_that_cannot_be_read_is_left_out_and_said(box: Any) -> None:
    assert coco({"bbox": box}) == Annotated([[]], SHAPE, {UNREAD: 1}, 1)


@pytest.mark.parametrize(
    ("change", "crowd"),
    [
        ({"iscrowd": 1}, True),
        ({"iscrowd": 0}, False),
        ({"ignore": 1}, True),
        (
            {
                "iscrowd": 1,
                "segmentation": rle_of(SPOT_HW > 0),
                "bbox": None,
                "attributes": {"occluded": False},
            },
            False,
        ),
    ],
)
def test_crowds_are_kept_apart_but_for_masks_of_cvats_brush(
    change: dict[str, Any], crowd: bool
) -> None:
    (lesion,) = coco(change).frames[0]
    assert lesion.crowd is crowd


def test_a_box_that_does_not_frame_its_mask_gives_way_to_it() -> None:
    read = coco({"segmentation": [[10, 10, 15, 10, 15, 15, 10, 15]]})
    assert read.frames[0][0].box_xyxy == (10, 10, 15, 15)
    assert len(read.remarks) == 1
    assert not coco(
        {"segmentation": [1, 1, 5, 1, 5, 5, 1, 5]}
    ).remarks  # VIA leaves out the list around a polygon


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"images": [{"id": 1, "file_name": "a.png"}, {"id": "1", "file_name": "b.png"}]},
            "1 image ids stand for",
        ),
        (
            {"images": [{"id": 1, "file_name": "a\\b.png"}, {"id": 2, "file_name": "./a/b.png"}]},
            "1 file_names stand for",
        ),
        (
            {"categories": [{"id": 1, "name": "a"}, {"id": 1.0, "name": "b"}]},
            "1 category ids stand for several",
        ),
        (
            {"annotations": [{"id": 1, "image_id": 1, "category_id": 1}] * 2},
            "1 annotation ids stand for several",
        ),
        ({"images": [{"id": 1}]}, "no file_name"),
        ({"images": [{"id": None, "file_name": "a.png"}]}, "id in its images"),
        (
            {"images": [{"id": 1, "file_name": "a.png", "height": "tall"}]},
            "height is no number of pixels",
        ),
        ({"categories": None}, "categories are no list"),
        ({"annotations": [3]}, "annotations are no list"),
    ],
)
def test_a_coco_file_whose_keys_are_not_unique_is_refused(
    change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        coco_file(**change)


def test_ids_and_sizes_may_be_text_or_have_a_point() -> None:
    read = coco_file(
        images=[{"id": "1", "file_name": "a.png", "height": 24.0, "width": "20"}],
        annotations=[{"image_id": 1.0, "category_id": "1", "bbox": [1, 1, 4, 4]}, {"image_id": 7}],
    )
    assert read.images[0].size == SHAPE
    assert (len(read.images[0].items), read.orphans) == (1, 1)


def coco_file(**change: Any) -> Any:
    """What is read of a COCO file of one image and nothing on it, with this change."""
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 24, "width": 20}],
        "annotations": [],
        "categories": [{"id": 1, "name": "malignant"}],
        **change,
    }
    return read_coco_file(json.dumps(content).encode())


def coco(change: dict[str, Any]) -> Annotated:
    """What is read of one annotation, a box of 4x4, with this change."""
    item = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], **change}
    return read_coco_image(coco_file(annotations=[item]).images[0], SHAPE)
