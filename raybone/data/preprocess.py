"""From counts to what a network sees: window, square root, size."""

from __future__ import annotations

import cv2
import numpy as np

from raybone.types import Array

STRIDE = 32  # coarsest level of the detectors and depth of the U-Net


def to_intensity(counts_HW: Array, high: float) -> Array:
    """Counts to [0, 1], float32, shape (H, W): clipped at ``high`` and square-rooted.

    The square root makes the spread of Poisson counts the same everywhere (Anscombe 1948), so that
    a rib next to a full bladder keeps its contrast.
    """
    return np.sqrt(np.minimum(counts_HW.astype(np.float32), high) / np.float32(high))


def canvas_of(height: int, width: int, long_side: int) -> tuple[int, int]:
    """(H, W) of the network's input for a scan: the long side as asked, same aspect, both multiples
    of STRIDE.
    """
    scale = long_side / max(height, width)
    return _up(round(height * scale)), _up(round(width * scale))


def resize(image_HW: Array, long_side: int) -> tuple[Array, float]:
    """Resize so that the longer side has ``long_side`` pixels; returns the image and the scale."""
    scale = long_side / max(image_HW.shape)
    if scale == 1:
        return image_HW, 1.0
    size = (max(1, round(image_HW.shape[1] * scale)), max(1, round(image_HW.shape[0] * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image_HW, size, interpolation=how), scale


def pad(image_HW: Array, canvas: tuple[int, int]) -> Array:
    """Put the image at the top left of a canvas of zeros (air, not grey) of shape (H, W); itself
    when it fills it.

    Axes before the last two, as of masks (C, H, W), stay.
    """
    *others, height, width = image_HW.shape
    if (height, width) == canvas:
        return image_HW
    out_HW = np.zeros((*others, *canvas), image_HW.dtype)
    out_HW[..., :height, :width] = image_HW
    return out_HW


def _up(side: int) -> int:
    return max(STRIDE, -(-side // STRIDE) * STRIDE)
