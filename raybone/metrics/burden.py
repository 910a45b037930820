"""The bone scan index: how much of the skeleton lesions involve, from masks of lesions and of
bones.

Source: Imbriaco et al. 1998, Clin Cancer Res 4:1765, in the planar form that programs use: of each
bone the share of its pixels, in both views together, times its share of the skeleton's weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
import yaml

from raybone.types import Array


@dataclass(frozen=True)
class Bone:
    """A bone of the table of weights.

    weight: its share of the skeleton's weight, both sides, in percent. regions: what it is drawn
    as, with further names of each.
    """

    weight: float
    regions: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Involved:
    """What lesions are on one bone, in pixels of all views."""

    lesion_px: int
    bone_px: int

    @property
    def share(self) -> float:
        """Of the bone's pixels, from 0 to 1; 0 of a bone that no view shows."""
        return self.lesion_px / self.bone_px if self.bone_px else 0.0


@dataclass(frozen=True)
class Burden:
    """The bone scan index of a patient.

    index: percent of the skeleton's weight, from 0 to ``covered``. covered: weight of the bones
    that any view shows, in percent; what lies in others is not counted. bones: of each bone that is
    shown. outside_px: pixels of lesions that lie on no bone, and are in no index.
    """

    index: float
    covered: float
    bones: dict[str, Involved]
    outside_px: int


@cache
def bones() -> dict[str, Bone]:
    """The table of weights, from skeleton.yaml, which names its source."""
    text = files("raybone.metrics").joinpath("skeleton.yaml").read_text(encoding="utf-8")
    table = yaml.safe_load(text)
    return {name: Bone(**bone) for name, bone in table.items()}


@cache
def regions() -> dict[str, Sequence[str]]:
    """Further names of each region of the skeleton."""
    return {name: others for bone in bones().values() for name, others in bone.regions.items()}


def bone_scan_index(views: Sequence[tuple[Array, Mapping[str, Array]]]) -> Burden:
    """The bone scan index of one patient.

    Args:
        views: of each view the pixels of all lesions, boolean (H, W), and those of each region,
            by its name. Regions may overlap, as ribs and scapulae do; others than those of the
            table are passed over. A pixel of two lesions counts once.
    """
    found = {name: _involved(views, bone) for name, bone in bones().items()}
    seen = {name: involved for name, involved in found.items() if involved.bone_px}
    return Burden(
        index=sum(bones()[name].weight * involved.share for name, involved in seen.items()),
        covered=sum(bones()[name].weight for name in seen),
        bones=seen,
        outside_px=sum(
            int((lesions_HW & ~_joined(masks, regions(), lesions_HW)).sum())
            for lesions_HW, masks in views
        ),
    )


def _involved(views: Sequence[tuple[Array, Mapping[str, Array]]], bone: Bone) -> Involved:
    lesion_px = bone_px = 0
    for lesions_HW, masks in views:
        bone_HW = _joined(masks, bone.regions, lesions_HW)
        lesion_px += int((lesions_HW & bone_HW).sum())
        bone_px += int(bone_HW.sum())
    return Involved(lesion_px, bone_px)


def _joined(masks: Mapping[str, Array], names: Mapping[str, object], like_HW: Array) -> Array:
    """The pixels of any of these regions."""
    whole_HW = np.zeros(like_HW.shape, bool)
    for name in names:
        if name in masks:
            whole_HW |= masks[name]
    return whole_HW
