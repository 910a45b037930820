"""Annotation files that lie beside a scan: LabelMe JSON, VOC xml, ITK-SNAP NIfTI and mask images.

Each reader takes the file's bytes and gives the lesions of every frame in scan pixels with the names the file uses, the
scan size (H, W) that the file was made for or None, and remarks. Only NIfTI knows several frames, one a slice. A file
that is not of its format raises ValueError with the reason.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections import defaultdict
from collections.abc import Callable
from io import BytesIO
from typing import Any
from xml.etree import ElementTree

import nibabel
import numpy as np
from PIL import Image, ImageDraw

from raybone.data.annotations import EMPTY, IN_BETWEEN, MOST_PIXELS, Remarks, lesion_of_mask, lesions_of_mask
from raybone.records import Array, Lesion

MOST_SLICES = 4096
MOST_BYTES = 1 << 31  # of an unpacked NIfTI: a small file may unpack to more than the memory
Annotated = tuple[list[list[Lesion]], tuple[int, int] | None, Remarks]


def read_labelme(content: bytes) -> Annotated:
    """LabelMe JSON: polygons, rectangles, circles and masks; shapes of one group_id and label are one lesion.

    Polygons are filled as labelme's own ``shape_to_mask`` does, so that its export and ours agree.
    """
    try:
        document = json.loads(content)
        size = (int(document["imageHeight"]), int(document["imageWidth"]))
        if not 0 < size[0] * size[1] <= MOST_PIXELS:
            raise ValueError
        parts: dict[Any, list[tuple[str, Array]]] = defaultdict(list)
        remarks, lesions = Remarks(), []
        for number, shape in enumerate(document["shapes"]):
            label, group = str(shape["label"]), shape.get("group_id")
            if shape.get("shape_type") == "rectangle":
                (xa, ya), (xb, yb) = ((float(x), float(y)) for x, y in shape["points"])
                lesions.append(Lesion((min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb)), label))
                continue
            mask_HW = _shape_mask(shape, size)
            if mask_HW is None or not mask_HW.any():
                remarks[EMPTY] += 1
            else:
                parts[(label, group) if group is not None else number].append((label, mask_HW))
    except Exception:  # whatever a hostile file provokes in json, Pillow and numpy
        raise ValueError("has an annotation that is not LabelMe JSON") from None
    lesions += [lesion_of_mask(np.any([m for _, m in shapes], axis=0), shapes[0][0]) for shapes in parts.values()]
    return [lesions], size, remarks


def labelme_image(content: bytes) -> bytes:
    """The image that a LabelMe file carries in itself.

    Raises:
        ValueError: it carries none.
    """
    try:
        return base64.b64decode(json.loads(content)["imageData"], validate=True)
    except Exception:
        raise ValueError("is an annotation, not a scan, and no scan has its name") from None


def read_voc(content: bytes) -> Annotated:
    """Pascal VOC xml: boxes. Corners are taken as pixel coordinates from 0, which is what labelImg writes."""
    try:
        if b"<!ENTITY" in content.replace(b"\0", b""):  # in UTF-16 as well
            raise ValueError
        root = ElementTree.fromstring(content)
        size = (int(_text(root, "size/height")), int(_text(root, "size/width"))) if root.find("size") is not None \
            else None
        lesions = []
        for item in root.iter("object"):
            x1, y1, x2, y2 = (float(_text(item, f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax"))
            lesions.append(Lesion((x1, y1, x2, y2), _text(item, "name")))
    except Exception:  # of the parser, of decoders it asks for, of numbers
        raise ValueError("has an annotation that is not VOC xml") from None
    return [lesions], size if size and all(size) else None, Remarks()


def read_nifti(content: bytes) -> Annotated:
    """ITK-SNAP's NIfTI labels of a scan, a slice a frame; label 1 is malignant, 2 benign, others have their number.

    The first axis of the array runs along the columns, as ITK stores it; orientation in the header is not applied.
    """
    try:
        image = nibabel.Nifti1Image.from_bytes(_gunzipped(content))
        values_WHN = np.asarray(image.dataobj)
        values_WHN = values_WHN.reshape(*values_WHN.shape[:2], -1)
        if not np.isfinite(values_WHN).all() or not 0 < values_WHN.shape[2] <= MOST_SLICES:
            raise ValueError
    except Exception:  # nibabel raises its own and zlib's
        raise ValueError("has an annotation that is not slices of NIfTI labels") from None
    frames = []
    for values_HW in values_WHN.transpose(2, 1, 0):
        names = {float(v): {1.0: "malignant", 2.0: "benign"}.get(float(v), f"label {v:g}")
                 for v in np.unique(values_HW[values_HW > 0])}
        frames.append([le for v, name in names.items() for le in lesions_of_mask(values_HW == v, name)])
    return frames, (int(values_WHN.shape[1]), int(values_WHN.shape[0])), Remarks()


def read_mask(content: bytes, category: str) -> Annotated:
    """A mask image; the brighter half of its range is lesion, so that compression noise is not."""
    try:
        with Image.open(BytesIO(content)) as image:
            mask_HW = np.asarray(image.convert("L") if image.mode in ("RGB", "RGBA", "P", "LA", "1") else image)
    except Exception:  # Pillow raises what its plugins raise
        raise ValueError("has a mask that cannot be read") from None
    top = float(mask_HW.max())
    remarks = Remarks()
    if not set(np.unique(mask_HW).tolist()) <= {0, top}:
        remarks[IN_BETWEEN] += 1
    lesions = list(lesions_of_mask(mask_HW > top / 2, category)) if top > 0 else []
    return [lesions], (mask_HW.shape[0], mask_HW.shape[1]), remarks


READERS: dict[str, Callable[[bytes], Annotated]] = {
    ".json": read_labelme, ".xml": read_voc, ".nii": read_nifti, ".nii.gz": read_nifti}


def _shape_mask(shape: dict[str, Any], size: tuple[int, int]) -> Array | None:
    points = [(float(x), float(y)) for x, y in shape["points"]]
    kind = shape.get("shape_type") or "polygon"
    if kind == "mask":
        part_HW = np.asarray(Image.open(BytesIO(base64.b64decode(shape["mask"]))).convert("L")) > 0
        full_HW = np.zeros(size, bool)
        left, top = (round(v) for v in points[0])
        target_HW = full_HW[top : top + part_HW.shape[0], left : left + part_HW.shape[1]]
        target_HW[...] = part_HW[: target_HW.shape[0], : target_HW.shape[1]]
        return full_HW
    canvas = Image.new("L", (size[1], size[0]), 0)
    draw = ImageDraw.Draw(canvas)
    if kind == "polygon" and len(points) > 2:
        draw.polygon(points, outline=1, fill=1)
    elif kind == "circle" and len(points) == 2:
        (x, y), (u, v) = points
        radius = float(np.hypot(x - u, y - v))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=1, fill=1)
    else:
        return None
    return np.asarray(canvas, bool)


def _text(place: ElementTree.Element, path: str) -> str:
    text = place.findtext(path)
    if text is None:
        raise ValueError(path)
    return text.strip()


def _gunzipped(content: bytes) -> bytes:
    if content[:2] != b"\x1f\x8b":
        return content
    with gzip.open(BytesIO(content)) as file:
        return file.read(MOST_BYTES)  # what is cut off makes it no NIfTI
