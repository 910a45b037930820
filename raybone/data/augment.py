"""Training-time augmentation of one-channel scans with boxes and masks; pure functions of a random
generator.

Hyper-parameter names and meanings are Ultralytics' where it has them; hsv has no meaning on one
channel, so gamma, count and Poisson changes stand in for it. The border is always 0, as air is on a
scan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from pydantic import Field

from raybone.data.cache import as_float
from raybone.study.param import Strict
from raybone.types import Array, Scan

LEAST_SIDE = 2  # pixels of a box that is trained on


class Augmentation(Strict):
    """The hyper-parameters of augmentation; every model's configuration has them."""

    fliplr: float = Field(0.5, ge=0, le=1, description="probability of a left-right flip")
    degrees: float = Field(0.0, ge=0, le=180, description="largest rotation, degrees either way")
    translate: float = Field(0.1, ge=0, le=1, description="largest shift as a share of the side")
    scale: float = Field(
        0.3, ge=0, lt=1, description="largest zoom in or out, as a share of the size"
    )
    mosaic: float = Field(0.0, ge=0, le=1, description="probability of a four-scan mosaic")
    close_mosaic: int = Field(0, ge=0, description="last epochs without mosaic")
    montage: bool = Field(
        False, description="anterior and posterior view of a patient side by side, as one image"
    )
    count_scale: float = Field(
        0.0, ge=0, le=3, description="counts change by up to a factor 1 + this either way"
    )
    gamma: float = Field(0.0, ge=0, le=3, description="gamma is up to 1 + this, or its reciprocal")
    poisson: float = Field(
        0.0, ge=0, le=0.95, description="largest share of counts thinned out, with Poisson noise"
    )


@dataclass(frozen=True)
class Sample:
    """image_HW uint16 or float32 intensities; boxes_N4 float32 xyxy pixels; labels_N; mask_CHW
    uint8 or None.

    A mask is 1 where its category lies, and whatever else the loader says; values are moved, never
    mixed.
    """

    image_HW: Array
    boxes_N4: Array
    labels_N: Array
    mask_CHW: Array | None


def augment(
    sample: Sample,
    hyper: Augmentation,
    rng: np.random.Generator,
    canvas: tuple[int, int],
    mates: Callable[[np.random.Generator], list[Sample]] | None = None,
) -> Sample:
    """One augmented sample on the canvas (H, W).

    Args:
        mates: draws three other samples for a mosaic; None where there are no mosaics.
    """
    height, width = canvas
    shift = (0.0, 0.0)
    if mates is not None and rng.random() < hyper.mosaic:
        sample, shift = _mosaic([sample, *mates(rng)], rng, canvas), (width / 2, height / 2)
    sample = _affine(sample, hyper, rng, canvas, shift)
    if rng.random() < hyper.fliplr:
        sample = _flip(sample, width)
    return replace(sample, image_HW=_intensity(sample.image_HW, hyper, rng))


def _mosaic(samples: list[Sample], rng: np.random.Generator, canvas: tuple[int, int]) -> Sample:
    """Four scans around a random centre of a canvas of twice the scan's own height and width."""
    height, width = canvas
    yc = int(rng.integers(height // 2, 2 * height - height // 2))
    xc = int(rng.integers(width // 2, 2 * width - width // 2))
    image_HW = np.zeros((2 * height, 2 * width), samples[0].image_HW.dtype)
    first_CHW = samples[0].mask_CHW
    mask_CHW = (
        None
        if first_CHW is None
        else np.zeros((len(first_CHW), 2 * height, 2 * width), first_CHW.dtype)
    )
    boxes, labels = [], []
    for place, part in enumerate(samples):
        h, w = part.image_HW.shape
        left, top = (xc - w if place % 2 == 0 else xc), (yc - h if place < 2 else yc)
        x1, y1, x2, y2 = (
            max(left, 0),
            max(top, 0),
            min(left + w, 2 * width),
            min(top + h, 2 * height),
        )
        image_HW[y1:y2, x1:x2] = part.image_HW[y1 - top : y2 - top, x1 - left : x2 - left]
        if mask_CHW is not None and part.mask_CHW is not None:
            mask_CHW[:, y1:y2, x1:x2] = part.mask_CHW[:, y1 - top : y2 - top, x1 - left : x2 - left]
        boxes.append(part.boxes_N4 + np.array([left, top, left, top], np.float32))
        labels.append(part.labels_N)
    whole = Sample(image_HW, np.concatenate(boxes), np.concatenate(labels), mask_CHW)
    return _clip(whole, whole.boxes_N4, 2 * height, 2 * width)


def _affine(
    sample: Sample,
    hyper: Augmentation,
    rng: np.random.Generator,
    canvas: tuple[int, int],
    shift: tuple[float, float],
) -> Sample:
    """Rotate, zoom and move about the image's centre, and crop to the canvas."""
    height, width = canvas
    angle = math.radians(rng.uniform(-hyper.degrees, hyper.degrees))
    zoom = rng.uniform(1 - hyper.scale, 1 + hyper.scale)
    move_x = rng.uniform(-hyper.translate, hyper.translate) * width
    move_y = rng.uniform(-hyper.translate, hyper.translate) * height
    if angle == 0 and zoom == 1 and move_x == 0 and move_y == 0 and sample.image_HW.shape == canvas:
        return sample
    centre_x, centre_y = shift[0] + width / 2, shift[1] + height / 2
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    matrix_23 = np.array(
        [
            [cos, -sin, width / 2 + move_x - cos * centre_x + sin * centre_y],
            [sin, cos, height / 2 + move_y - sin * centre_x - cos * centre_y],
        ],
        np.float64,
    )
    # OpenCV counts pixels from their centres, boxes from pixel corners.
    pixels_23 = matrix_23.copy()
    pixels_23[:, 2] += matrix_23[:, :2] @ [0.5, 0.5] - 0.5
    image_HW = cv2.warpAffine(
        sample.image_HW, pixels_23, (width, height), flags=cv2.INTER_LINEAR, borderValue=0
    )
    mask_CHW = (
        None
        if sample.mask_CHW is None
        else np.stack(
            [
                cv2.warpAffine(
                    m_HW, pixels_23, (width, height), flags=cv2.INTER_NEAREST, borderValue=0
                )
                for m_HW in sample.mask_CHW
            ]
        )
    )  # OpenCV warps four channels at most
    corners_N42 = sample.boxes_N4[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    moved_N42 = corners_N42 @ matrix_23[:, :2].T + matrix_23[:, 2]
    boxes_N4 = np.concatenate([moved_N42.min(1), moved_N42.max(1)], 1).astype(np.float32)
    return _clip(replace(sample, image_HW=image_HW, mask_CHW=mask_CHW), boxes_N4, height, width)


def lost_at(scans: Iterable[Scan], size: int) -> int:
    """Lesions whose boxes are under ``LEAST_SIDE`` when the long side of their scan has so many
    pixels.
    """
    return sum(
        min(x2 - x1, y2 - y1) * size < LEAST_SIDE * max(s.height, s.width)
        for s in scans
        for x1, y1, x2, y2 in (le.box_xyxy for le in s.lesions)
    )


def _clip(sample: Sample, boxes_N4: Array, height: int, width: int) -> Sample:
    """Cut boxes at the border and drop those of which under a tenth, or under 2 px a side, is
    left.
    """
    cut_N4 = boxes_N4.copy()
    cut_N4[:, 0::2] = cut_N4[:, 0::2].clip(0, width)
    cut_N4[:, 1::2] = cut_N4[:, 1::2].clip(0, height)
    sides_N2, before_N2 = cut_N4[:, 2:] - cut_N4[:, :2], boxes_N4[:, 2:] - boxes_N4[:, :2]
    stays_N = (sides_N2.min(1, initial=np.inf) >= LEAST_SIDE) & (
        sides_N2.prod(1) >= 0.1 * before_N2.prod(1)
    )
    return replace(sample, boxes_N4=cut_N4[stays_N], labels_N=sample.labels_N[stays_N])


def _flip(sample: Sample, width: int) -> Sample:
    """Mirror left and right; a lesion is a lesion on either side."""
    boxes_N4 = sample.boxes_N4.copy()
    boxes_N4[:, [0, 2]] = width - sample.boxes_N4[:, [2, 0]]
    mask_CHW = None if sample.mask_CHW is None else np.ascontiguousarray(sample.mask_CHW[..., ::-1])
    return replace(
        sample,
        image_HW=np.ascontiguousarray(sample.image_HW[:, ::-1]),
        boxes_N4=boxes_N4,
        mask_CHW=mask_CHW,
    )


def _intensity(image_HW: Array, hyper: Augmentation, rng: np.random.Generator) -> Array:
    """Counts and gamma changed by up to a factor 1 + x either way; fewer counts by thinning to 1 -
    poisson at least.
    """
    gamma, thin = _factor(rng, hyper.gamma), 1 - rng.uniform(0, hyper.poisson)
    scale = _factor(rng, hyper.count_scale)
    if not hyper.poisson and not hyper.gamma and not hyper.count_scale:
        return image_HW
    image_HW = as_float(image_HW)
    if hyper.poisson:
        # The image is sqrt(counts / high); about 200 counts at the top is what whole-body scans
        # have.
        counts_HW = rng.poisson(np.square(image_HW) * 200 * thin)
        image_HW = np.sqrt(counts_HW.astype(np.float32) / np.float32(200 * thin)).clip(0, 1)
    if hyper.count_scale:
        image_HW = np.minimum(image_HW * np.float32(math.sqrt(scale)), 1)
    if hyper.gamma:
        image_HW = image_HW ** np.float32(gamma)
    return image_HW.astype(np.float32, copy=False)


def _factor(rng: np.random.Generator, change: float) -> float:
    """A factor between 1 / (1 + change) and 1 + change, its logarithm's sign even."""
    power = rng.uniform(-change, change)
    return float((1 + abs(power)) ** math.copysign(1, power))
