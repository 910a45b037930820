"""Labels in NIfTI, as ITK-SNAP, 3D Slicer and dcm2niix store them, on the pixels of a planar
scan.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from io import BytesIO

import nibabel
import numpy as np

from raybone.data.annotations import NO_AXES, TURNED, Annotated, Remarks, islands_of_mask, made_for
from raybone.data.ingest.annotations.masks import class_islands
from raybone.types import Array, Lesion

MOST_SLICES = 4096
MOST_BYTES = 1 << 28  # of an unpacked NIfTI: a small file may unpack to more than the memory
MOST_VALUES = 1 << 24  # each takes up to 40 bytes while it is read
WHOLE = 0.01  # a label may be so far from a whole number, as resampling leaves it
# Directions of columns and rows in a scan without any: to the left and to the back (PS3.3
# C.7.6.2.1.1), or down.
FLAT, UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
LABELS = {1: "malignant", 2: "benign"}


def read_nifti(
    content: bytes,
    shape: tuple[int, int],
    axes: tuple[float, ...] | None,
    names: Mapping[str, tuple[int, ...]],
) -> Annotated:
    """Labels of a scan, a slice a frame, where the viewers show them.

    The header's affine says along which way rows and columns run; labels of a file that runs from
    the bottom up, as dcm2niix stores, are turned. An affine that is the identity, or none, says
    nothing.

    Args:
        shape: (H, W) of the scan. axes: its direction cosines (Image Orientation), None where it
            has none.
        names: values of a category; others are called by their number, 1 malignant and 2 benign.
    Raises:
        ValueError: it is no labels of such a scan, with the reason.
    """
    image = _opened(content)
    values_WHN, affine_44, known = _plane(image, shape)
    remarks = Remarks()
    if known:
        values_WHN, changed = _upright(values_WHN, affine_44, axes)
        remarks[TURNED] += changed
    else:
        remarks[NO_AXES] += 1
    if values_WHN.shape[1::-1] != shape:
        raise made_for(shape, (values_WHN.shape[1], values_WHN.shape[0]))
    labels_WHN = _whole(values_WHN)
    frames = [_lesions(labels_HW, names) for labels_HW in labels_WHN.transpose(2, 1, 0)]
    return Annotated(frames, shape, +remarks)


def _opened(content: bytes) -> nibabel.Nifti1Image:
    try:
        if content[:2] == b"\x1f\x8b":
            with gzip.open(BytesIO(content)) as file:
                content = file.read(MOST_BYTES)
        kind = (
            nibabel.Nifti2Image
            if content[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")
            else nibabel.Nifti1Image
        )
        image = kind.from_bytes(content)
        bits = int(image.header["bitpix"])
        bytes_needed = int(np.prod(image.shape, dtype=np.float64)) * bits // 8
    except (EOFError, OSError, zlib.error):
        raise ValueError(
            "has an annotation in NIfTI that is damaged or cut short; export it again"
        ) from None
    except Exception:  # nibabel has errors of many kinds, all of which mean the header
        raise ValueError(
            "has an annotation that is called NIfTI and is none; export it again"
        ) from None
    if not 0 < bytes_needed <= len(content):
        raise ValueError(
            "has an annotation in NIfTI with fewer values than its header says; export it again"
        )
    if np.prod(image.shape, dtype=np.float64) > MOST_VALUES:
        raise ValueError(
            f"has an annotation in NIfTI of over {MOST_VALUES} values, which is no scan"
        )
    return image


def _plane(image: nibabel.Nifti1Image, shape: tuple[int, int]) -> tuple[Array, Array, bool]:
    """Values (W, H, N), the affine whose first two columns are of W and H, and whether it says
    anything.
    """
    dims = (*image.shape, 1, 1, 1)[: max(3, len(image.shape))]
    # A coronal volume of one slice has the slice in the middle.
    order = (
        (0, 2, 1) if dims[1] == 1 < dims[2] else (1, 2, 0) if dims[0] == 1 < dims[2] else (0, 1, 2)
    )
    width, height = dims[order[0]], dims[order[1]]
    if {width, height} != set(shape):
        raise made_for(shape, (height, width))
    frames = int(np.prod(dims, dtype=np.float64)) // (width * height)
    if not 0 < frames <= MOST_SLICES:
        raise ValueError(f"has an annotation in NIfTI of {frames} slices, which is no scan")
    try:
        values = np.asarray(image.dataobj).reshape(dims).transpose(*order, *range(3, len(dims)))
    except (OSError, ValueError):  # its values begin or end elsewhere than its header says
        raise ValueError(
            "has an annotation in NIfTI that is damaged or cut short; export it again"
        ) from None
    affine_44 = image.affine.copy()
    affine_44[:, :3] = affine_44[:, order]
    said = bool(image.header["sform_code"] or image.header["qform_code"])
    return (
        values.reshape(width, height, -1),
        affine_44,
        said and not np.allclose(image.affine[:3, :3], np.eye(3)),
    )


def _upright(
    values_WHN: Array, affine_44: Array, axes: tuple[float, ...] | None
) -> tuple[Array, bool]:
    """Values whose first axis runs along the scan's columns and whose second runs down its rows."""
    ways_32 = affine_44[:3, :2] / np.maximum(np.linalg.norm(affine_44[:3, :2], axis=0), 1e-9)
    # NIfTI grows to the right, the front and the head; DICOM to the left, the back and the head.
    ways_32 = ways_32 * np.array([[-1.0], [-1.0], [1.0]])
    for wanted in [axes] if axes else [FLAT, UPRIGHT]:
        # How much each axis of the array runs along columns and along rows.
        agree_22 = ways_32.T @ np.array(wanted, float).reshape(2, 3).T
        crossed = bool(np.abs(agree_22[0, 0]) < np.abs(agree_22[0, 1]))
        pair = (agree_22[0, 1], agree_22[1, 0]) if crossed else (agree_22[0, 0], agree_22[1, 1])
        if min(abs(pair[0]), abs(pair[1])) < 0.7:
            continue
        along = values_WHN.transpose(1, 0, 2) if crossed else values_WHN
        signs = (pair[1], pair[0]) if crossed else pair
        along = along[:: 1 if signs[0] > 0 else -1, :: 1 if signs[1] > 0 else -1]
        return along, bool(crossed or min(signs) < 0)
    raise ValueError(
        "has an annotation in NIfTI that lies across its scan; export it from the scan itself"
    )


def _whole(values_WHN: Array) -> Array:
    """Labels as whole numbers."""
    if values_WHN.dtype.kind not in "fiub" or not np.isfinite(values_WHN).all():
        raise ValueError(
            "has an annotation in NIfTI whose values are no numbers; save it as labels"
        )
    if (values_WHN < 0).any():  # 255 in a signed byte is -1, and no background
        raise ValueError(
            "has an annotation in NIfTI with labels below 0; save it with those of lesions above 0"
        )
    if values_WHN.dtype.kind != "f":
        return values_WHN
    labels_WHN = np.rint(values_WHN)
    if float(np.abs(values_WHN - labels_WHN).max()) > WHOLE:
        raise ValueError(
            "has an annotation in NIfTI with fractions, which is a probability map and no labels; "
            "save it as labels"
        )
    return labels_WHN.astype(np.int64)


def _lesions(labels_HW: Array, names: Mapping[str, tuple[int, ...]]) -> list[Lesion]:
    seen = [int(v) for v in np.unique(labels_HW[labels_HW > 0])]
    if len(seen) > len(names) + 256:
        raise ValueError(
            f"has an annotation in NIfTI of {len(seen)} labels, which is no segmentation"
        )
    lesions = list[Lesion]()
    for name, values in names.items():
        lesions += class_islands(np.isin(labels_HW, values), name, names)
    named = {v for values in names.values() for v in values}
    for value in (v for v in seen if v not in named):
        lesions += islands_of_mask(labels_HW == value, LABELS.get(value, f"label {value}"))
    return lesions
