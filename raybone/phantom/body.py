"""The body of a phantom patient: soft tissue, organs and bones as shapes on the 1024x256 grid of a
whole-body scan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import cv2
import numpy as np
import yaml

from raybone.study.param import Strict
from raybone.types import Array

HEIGHT, WIDTH = 1024, 256
View = Literal["anterior", "posterior"]
VIEWS: tuple[View, View] = ("anterior", "posterior")


@dataclass(frozen=True)
class Patient:
    """What makes one phantom patient: size, tilt, counts and contrast; hard ones have few counts
    and faint foci.
    """

    name: str
    stretch: float
    girth: float
    tilt: float
    counts: float
    bone: float
    bladder: float
    kidneys: float
    injection: float
    hard: bool


class Shape(Strict):
    """A part of the body, in pixels about the midline: an ellipse (x, y, half axes), or points.

    ``width`` is that of a stroke along the points; with none they are the corners of an area.
    ``uptake`` is what is seen of it from the front and from behind, ``region`` the region of the
    skeleton that it is of.
    """

    uptake: tuple[float, float]
    ellipse: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()
    width: int = 0
    region: str = ""


def pose(patient: Patient, view: View) -> Array:
    """Affine 2x3 of the patient's size and tilt; the back view is the mirror image."""
    matrix_23 = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), patient.tilt, 1.0)
    matrix_23 = matrix_23 @ np.array(
        [
            [patient.girth, 0, WIDTH / 2 * (1 - patient.girth)],
            [0, patient.stretch, 90 * (1 - patient.stretch)],
            [0, 0, 1],
        ]
    )
    if view == "posterior":
        matrix_23 = np.array([[-1, 0, WIDTH - 1], [0, 1, 0]], float) @ np.vstack(
            [matrix_23, [0, 0, 1]]
        )
    return np.asarray(matrix_23, np.float64)


def body(patient: Patient, view: View) -> Array:
    """Activity of a healthy body, about 1 in soft tissue, float32 (HEIGHT, WIDTH)."""
    anatomy = _anatomy()
    soft_HW = _drawn(view, anatomy["soft"], anatomy["soft, each side"])
    bone_HW = _drawn(view, anatomy["bone"], [*_ribs(view), *anatomy["bone, each side"]])
    # The rim of the skull stands over what is there.
    cv2.ellipse(bone_HW, _at(0, 120), (32 * 16, 36 * 16), 0, 180, 360, 1.4, 4, cv2.LINE_AA, 4)
    bladder = Shape(ellipse=(0, 436, 15, 12), uptake=(patient.bladder, patient.bladder * 0.6))
    kidney = Shape(ellipse=(32, 340, 9, 15), uptake=(patient.kidneys * 0.25, patient.kidneys))
    injection = Shape(ellipse=(100, 352, 4, 6), uptake=(patient.injection, patient.injection))
    organ_HW = _drawn(view, [bladder, injection], [kidney])
    soft_HW = cv2.GaussianBlur(soft_HW, (0, 0), 5)
    bone_HW = cv2.GaussianBlur(bone_HW, (0, 0), 1.2)
    whole_HW = soft_HW + patient.bone * bone_HW + organ_HW
    posed_HW = cv2.warpAffine(whole_HW, pose(patient, view), (WIDTH, HEIGHT))
    return np.asarray(posed_HW + 0.02, np.float32)


def skeleton(patient: Patient, view: View, height: int = HEIGHT) -> dict[str, Array]:
    """The pixels of each region of the skeleton that a view shows, boolean (height, height / 4);
    regions overlap.
    """
    anatomy, warp_23, drawn = _anatomy(), pose(patient, view), dict[str, Array]()
    for side, shape in _sided(anatomy["bone"], [*_ribs(view), *anatomy["bone, each side"]]):
        if shape.uptake[VIEWS.index(view)]:
            layer_HW = cv2.warpAffine(_layer(side, shape, 1.0), warp_23, (WIDTH, HEIGHT))
            before_HW = drawn.get(shape.region, np.zeros_like(layer_HW))
            drawn[shape.region] = np.maximum(before_HW, layer_HW)
    size = (height // 4, height)
    return {
        region: cv2.resize(layer_HW, size, interpolation=cv2.INTER_AREA) >= 0.5
        for region, layer_HW in drawn.items()
    }


@cache
def _anatomy() -> dict[str, list[Shape]]:
    content = yaml.safe_load(
        files("raybone.phantom").joinpath("anatomy.yaml").read_text(encoding="utf-8")
    )
    return {
        name: [Shape.model_validate(shape) for shape in shapes] for name, shapes in content.items()
    }


def _ribs(view: View) -> Iterator[Shape]:
    """Ribs of a side: twelve down and out from the spine behind, ten of them up and in to the
    sternum in front.
    """
    front, turn_T = view == "anterior", np.linspace(0, 1, 9)
    for number in range(10 if front else 12):
        top = 212 + number * 10.5
        reach = 50 + 14 * np.sin(np.pi * (number + 1) / 13)
        if front:
            xs = 12 + (reach - 12) * np.sin(turn_T * np.pi / 2)
            ys = top + 8 + 30 * turn_T**2 * (1 - number / 18)
        else:
            xs = 8 + (reach - 8) * np.sin(turn_T * np.pi / 2)
            ys = top - 2 + 26 * turn_T**1.5
        yield Shape(
            points=tuple(zip(xs.tolist(), ys.tolist())), width=3, uptake=(0.75, 0.9), region="ribs"
        )


def _drawn(view: View, middle: Sequence[Shape], each_side: Sequence[Shape]) -> Array:
    """The sum of shapes, float32 (HEIGHT, WIDTH); those of each side are given for the right of the
    image.
    """
    image_HW = np.zeros((HEIGHT, WIDTH), np.float32)
    for side, shape in _sided(middle, each_side):
        image_HW += _layer(side, shape, shape.uptake[VIEWS.index(view)])
    return image_HW


def _sided(middle: Sequence[Shape], each_side: Sequence[Shape]) -> Iterator[tuple[int, Shape]]:
    """Shapes with their side, -1 or 1."""
    yield from ((1, shape) for shape in middle)
    yield from ((side, shape) for side in (-1, 1) for shape in each_side)


def _layer(side: int, shape: Shape, value: float) -> Array:
    """One shape, float32 (HEIGHT, WIDTH)."""
    layer_HW = np.zeros((HEIGHT, WIDTH), np.float32)
    points_N2 = np.array([_at(side * x, y) for x, y in shape.points], np.int32)
    if shape.ellipse:
        x, y, *axes = shape.ellipse
        size = [round(a * 16) for a in axes]
        cv2.ellipse(layer_HW, _at(side * x, y), size, 0, 0, 360, value, -1, cv2.LINE_AA, 4)
    elif shape.width:
        cv2.polylines(layer_HW, [points_N2], False, value, shape.width, cv2.LINE_AA, 4)
    else:
        cv2.fillPoly(layer_HW, [points_N2], value, cv2.LINE_AA, 4)
    return layer_HW


def _at(x: float, y: float) -> tuple[int, int]:
    """OpenCV's fixed-point place (4 fractional bits) of a point given about the midline."""
    return round((WIDTH / 2 + x) * 16), round(y * 16)
