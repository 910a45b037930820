"""Masks as images: where the lesion is, or why that cannot be known.

A mask may be 0 and 1, 0 and 255, one colour on another, opaque on transparent, or indices of
classes. A guess would turn the background of a scan into a lesion, or drop a class; what says not
which of its values are lesion is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from raybone.data.annotations import (
    IN_BETWEEN,
    INVERTED,
    Annotated,
    Remarks,
    islands_of_mask,
    made_for,
)
from raybone.data.ingest.pictures import open_image
from raybone.types import Array, Lesion

FEW = 16  # values or colours: more than classes have are compression or smoothing
IGNORE = "ignore"  # what nnU-Net calls the class that is neither trained on nor scored
VOID = 255  # the outline that VOC leaves out, in index masks
MOST_BRIGHT = 0.5  # share of a scan that lesions may cover


def read_mask(
    content: bytes, category: str, shape: tuple[int, int], names: Mapping[str, tuple[int, ...]]
) -> Annotated:
    """The lesions of a mask image made for a scan of this shape (H, W).

    Args:
        category: what it is a mask of; empty where its values are classes in any case.
        names: values of each category of an index mask, as nnU-Net's dataset.json or the user says;
            a binary mask needs none. What is called ignore is kept as a crowd.
    Raises:
        ValueError: it is none, or nothing says which of its values are lesion.
    """
    values, kind = _values(content, shape)
    named = {v for many in names.values() for v in many}
    if not category or (
        kind in ("grey", "index") and named & {int(v) for v in np.unique(values)} - {0}
    ):
        return _classes(_indices(values, kind), names, named)
    remarks = Remarks()
    mask_HW = _opaque(values) if kind == "alpha" else _bright(_levels(values, kind), kind, remarks)
    if _all_around(mask_HW) and mask_HW.mean() > MOST_BRIGHT:
        mask_HW = ~mask_HW
        remarks[INVERTED] += 1
    if mask_HW.mean() > MOST_BRIGHT:
        raise ValueError(
            f"has a mask that covers {100 * mask_HW.mean():.0f} % of it, which no lesion does; "
            "make the lesion the brighter part"
        )
    return Annotated([islands_of_mask(mask_HW, category)], shape, remarks)


def _values(content: bytes, shape: tuple[int, int]) -> tuple[Array, str]:
    """Pixels, and what they are: ``grey`` (H, W), ``index`` (H, W), ``colour`` (H, W, 3) or
    ``alpha`` (H, W, 4).
    """
    try:
        image = open_image(content)
    except ValueError as error:
        raise ValueError(f"has a mask that {error}") from None
    if (image.height, image.width) != shape:
        raise made_for(shape, (image.height, image.width))
    if image.mode == "P" and "transparency" not in image.info:
        colours_HW3 = np.asarray(image.convert("RGB"))
        # Savers that want small files keep black and white in a palette of any order.
        return (colours_HW3, "colour") if _is_grey(colours_HW3) else (np.asarray(image), "index")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba_HW4 = np.asarray(image.convert("RGBA"))
        plain = (rgba_HW4[..., 3] == rgba_HW4[0, 0, 3]).all()
        return (rgba_HW4[..., :3], "colour") if plain else (rgba_HW4, "alpha")
    if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image), "grey"
    return np.asarray(image.convert("RGB")), "colour"


def _opaque(rgba_HW4: Array) -> Array:
    """Where a mask is opaque, if all of that has one colour.

    Raises:
        ValueError: it has several, which may be classes.
    """
    inside_HW = rgba_HW4[..., 3] > rgba_HW4[..., 3].max() / 2
    colours = np.unique(rgba_HW4[inside_HW][:, :3], axis=0)
    if 1 < len(colours) <= FEW:
        raise ValueError(
            f"has a mask of {len(colours)} colours on transparent, and nothing says which are "
            "lesion; save one mask a category in black and white"
        )
    return np.asarray(inside_HW)


def _levels(values: Array, kind: str) -> Array:
    """Brightness (H, W) of a mask; of a coloured one, how far each pixel is from the colour
    around.
    """
    if kind != "colour" or _is_grey(values):
        return values[..., 0] if values.ndim == 3 else values
    border_N3 = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    around, times = np.unique(border_N3, axis=0, return_counts=True)
    colours = np.unique(values.reshape(-1, 3), axis=0)
    if len(colours) > 2 and len(colours) <= FEW:
        raise ValueError(
            f"has a mask of {len(colours)} colours, and nothing says which are lesion; save one "
            "mask a category in black and white"
        )
    return np.abs(values.astype(int) - around[times.argmax()].astype(int)).max(-1)


def _bright(level_HW: Array, kind: str, remarks: Remarks) -> Array:
    """The brighter of two values; or of many that lie close to two, as compression and smoothing
    leave them.
    """
    if level_HW.dtype == bool:
        return level_HW
    if kind == "index":
        level_HW = np.where(level_HW == VOID, 0, level_HW)
    if not np.isfinite(level_HW).all():
        raise ValueError("has a mask with values that are not finite; save it as 0 and 255")
    seen, top = np.unique(level_HW), float(level_HW.max())
    if len(seen) == 1 and top > 0:
        raise ValueError("has a mask with one value all over; make the lesion the brighter part")
    if len(seen) <= 2:
        return np.asarray(level_HW > seen[0]) if len(seen) == 2 else np.zeros(level_HW.shape, bool)
    if len(seen) <= FEW or seen[0] < 0:
        listed = ", ".join(f"{v:g}" for v in seen[:6])
        raise ValueError(
            f"has a mask of the values {listed}{' ...' if len(seen) > 6 else ''}, and nothing says "
            "which are lesion; name them, as in --categories 1=malignant 2=benign, or save it as 0 "
            "and 255"
        )
    bright_HW, between_HW = level_HW > top / 2, (level_HW > top / 8) & (level_HW < top * 7 / 8)
    if between_HW.sum() > bright_HW.sum():
        raise ValueError(
            f"has a mask of {len(seen)} values of which most lie between dark and bright: it is a "
            "probability map or a picture; save it as 0 and 255"
        )
    remarks[IN_BETWEEN] += 1
    return np.asarray(bright_HW)


def _indices(values: Array, kind: str) -> Array:
    """Class of each pixel of a mask whose classes have names."""
    if kind in ("grey", "index"):
        return values
    if _is_grey(values[..., :3]):
        return np.asarray(values[..., 0])
    raise ValueError(
        "has a mask in colours, but its classes are numbers; save it with one number a class"
    )


def class_islands(mask_HW: Array, name: str, names: Iterable[str]) -> list[Lesion]:
    """Islands of one of several named classes; what is to be ignored is a crowd of each other."""
    found = islands_of_mask(mask_HW, name)
    if name != IGNORE:
        return found
    others = [other for other in names if other != IGNORE]
    return [replace(le, category=other, crowd=True) for other in others for le in found]


def _classes(index_HW: Array, names: Mapping[str, tuple[int, ...]], named: set[int]) -> Annotated:
    seen = {int(v) for v in np.unique(index_HW)} - {0}
    void = {VOID} if seen - {VOID} <= named and seen != {VOID} else set()
    unknown = sorted(seen - named - void)
    if unknown:
        raise ValueError(
            f"has a mask of the values {', '.join(map(str, unknown[:6]))}, which have no name; "
            f"name them, as in --categories {unknown[0]}=malignant"
        )
    lesions = list[Lesion]()
    for name, values in names.items():
        lesions += class_islands(np.isin(index_HW, values), name, names)
    return Annotated([lesions], (index_HW.shape[0], index_HW.shape[1]))


def _all_around(mask_HW: Array) -> bool:
    """Whether nine tenths of the border are in a mask."""
    border_N = np.concatenate([mask_HW[0], mask_HW[-1], mask_HW[:, 0], mask_HW[:, -1]])
    return float(border_N.mean()) >= 0.9


def _is_grey(colour_HW3: Any) -> bool:
    return bool((colour_HW3 == colour_HW3[..., :1]).all())
