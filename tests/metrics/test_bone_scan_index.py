"""The bone scan index: its weights, and what lesions of a made-up skeleton come to."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from raybone.data.annotations import NOT_LESIONS, term_of
from raybone.metrics.burden import bone_scan_index, bones, regions
from raybone.types import Array

PUBLIC = [
    "skull",
    "cervical",
    "thoracic",
    "lumbar",
    "ribs",
    "sternum",
    "clavicle",
    "scapula",
    "humerus",
    "sacrum",
    "pelvis",
    "femur",
]
NONE_HW = np.zeros((40, 130), bool)


def skeleton(*missing: str) -> dict[str, Array]:
    """The twelve regions of the public masks, ten columns each, but those that a view lacks."""
    masks = {}
    for number, name in enumerate(PUBLIC):
        masks[name] = NONE_HW.copy()
        masks[name][:, 10 * number : 10 * number + 10] = True
    return {name: mask_HW for name, mask_HW in masks.items() if name not in missing}


def test_the_weights_are_those_of_the_source() -> None:
    assert sum(bone.weight for bone in bones().values()) == pytest.approx(100.1)
    seen = bone_scan_index([(NONE_HW, skeleton())])
    assert (seen.index, seen.covered, seen.outside_px) == (0, pytest.approx(67.3), 0)


@pytest.mark.parametrize(
    ("involved", "index"),
    [
        (PUBLIC, 67.3),
        (["pelvis"], 7.5),
        (["sternum", "clavicle"], 1.3),
        (["lumbar"], 8.3 / 4),  # a fourth of the pixels of the one weight of the spine
    ],
)
def test_bones_that_are_involved_throughout_count_their_weight(
    involved: list[str], index: float
) -> None:
    lesions_HW = np.any([skeleton()[name] for name in involved], axis=0)
    assert bone_scan_index([(lesions_HW, skeleton())] * 2).index == pytest.approx(index)


def test_half_of_a_bone_counts_half_and_one_of_two_sides_as_well() -> None:
    lesions_HW = skeleton()["pelvis"].copy()
    lesions_HW[20:] = False
    assert bone_scan_index([(lesions_HW, skeleton())] * 2).index == pytest.approx(3.75)
    one_side_HW = skeleton()["humerus"].copy()
    one_side_HW[:, :85] = False
    assert bone_scan_index([(one_side_HW, skeleton())] * 2).index == pytest.approx(3.3)


def test_a_lesion_in_one_view_counts_against_the_bone_of_both() -> None:
    lesions_HW = skeleton()["femur"] | skeleton()["sternum"]
    behind = skeleton("sternum")
    seen = bone_scan_index([(lesions_HW, skeleton()), (NONE_HW, behind)])
    assert seen.bones["femora"].share == 0.5
    assert seen.bones["sternum"].share == 1  # only the front shows it
    assert seen.index == pytest.approx(17.8 / 2 + 0.3)


def test_what_lies_on_no_bone_is_told_and_in_no_index() -> None:
    lesions_HW = NONE_HW.copy()
    lesions_HW[:5, 115:125] = True
    seen = bone_scan_index([(lesions_HW, skeleton())])
    assert seen.outside_px == 25
    assert seen.index == pytest.approx(17.8 * 25 / 400)
    unseen = bone_scan_index([(lesions_HW, skeleton("femur"))])
    assert (unseen.index, unseen.outside_px) == (0, 50)
    assert unseen.covered == pytest.approx(67.3 - 17.8)


def test_a_scan_of_half_the_size_has_nearly_the_same_index() -> None:
    def sized(mask_HW: Array, scale: float) -> Array:
        size = (round(130 * scale), round(40 * scale))
        soft_HW = cv2.resize(mask_HW.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        return np.asarray(soft_HW > 0.5)

    rng, large_HW = np.random.default_rng(0), np.zeros((160, 520), np.uint8)
    for y, x in rng.integers((15, 15), (145, 465), (8, 2)):
        cv2.circle(large_HW, (int(x), int(y)), 14, 1, -1)
    whole, half = (
        bone_scan_index(
            [
                (
                    sized(large_HW, scale),
                    {name: sized(mask_HW, scale) for name, mask_HW in skeleton().items()},
                )
            ]
        ).index
        for scale in (4, 2)
    )
    assert whole > 1
    assert half == pytest.approx(whole, rel=0.05)


def test_regions_are_no_lesions_and_have_the_names_that_masks_use() -> None:
    assert set(PUBLIC) <= set(regions()) <= set(NOT_LESIONS)
    assert term_of("Cervical vertebrae", {}) == "cervical"
    assert term_of("rib", {}) == "ribs"
    assert term_of("malignant", {}) == "malignant"
