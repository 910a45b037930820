"""Annotation files that lie beside a scan: LabelMe JSON and VOC xml; NIfTI labels and mask images
have their own rooms.

Each reader takes the file's bytes and the scan's shape (H, W), and gives the lesions in scan pixels
with the names that the file uses. A file that is not of its format raises ValueError with the
reason; one annotation of it that cannot be read is left out, with a remark.
"""

from __future__ import annotations

import base64
import binascii
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw

from raybone.data.annotations import (
    EMPTY,
    MOST_LESIONS,
    SWAPPED,
    TINY,
    UNREAD,
    Annotated,
    Remarks,
    lesion_of_mask,
    made_for,
)
from raybone.data.ingest.annotations.claims import load_json, load_xml
from raybone.data.ingest.pictures import open_image
from raybone.types import Array, Lesion

BOXES = ("rectangle", "bbox")
POLYGONS = ("polygon", "rotation", "oriented_rectangle", "quadrilateral")
FAR = 8  # sides of a scan: a corner that is further away is of another scale
NO_PICTURE = "is an annotation, not a scan, and no scan has its name"


def read_labelme(content: bytes, shape: tuple[int, int]) -> Annotated:
    """LabelMe and X-AnyLabeling JSON of any version; shapes of one group_id and label are one
    lesion.

    Boxes may have two or four corners; polygons, turned boxes, circles and masks keep their
    outline. Polygons are filled as labelme's own ``shape_to_mask`` does, so that its export and
    ours agree. A file without a size, as before version 3.3, is of its scan's.
    """
    document = _loaded(load_json, content)
    if not isinstance(document, dict) or not isinstance(document.get("shapes"), list):
        raise ValueError(
            "has an annotation that is JSON without a list of shapes; export it as LabelMe"
        )
    size = _size(document.get("imageHeight"), document.get("imageWidth"))
    if size and size != shape:
        raise made_for(shape, size)
    if len(document["shapes"]) > MOST_LESIONS:
        raise ValueError(
            f"has an annotation with {len(document['shapes'])} shapes, over {MOST_LESIONS}; look "
            "at it"
        )
    parts: dict[Any, list[tuple[dict[str, Any], Array]]] = defaultdict(list)
    remarks, lesions, lost = Remarks(), list[Lesion](), 0
    for number, item in enumerate(document["shapes"]):
        try:
            points = [(float(x), float(y)) for x, y in item["points"]]
            if not (np.abs(np.array(points)) <= FAR * max(shape)).all():  # NaN as well
                raise ValueError("corners")
            if item.get("shape_type") in BOXES:
                lesions.append(_labelme_box(item, points))
                continue
            if len(points) > 2 and np.max(points) <= 1 and np.any(np.mod(points, 1)):
                remarks[TINY] += 1
                lost += 1
                continue
            mask_HW = _drawn(item, points, shape)
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError):
            remarks[UNREAD] += 1
            lost += 1
            continue
        if mask_HW is None or not mask_HW.any():
            remarks[EMPTY] += 1
            lost += 1
        else:
            group = item.get("group_id")
            parts[(str(item.get("label")), str(group)) if group is not None else number].append(
                (item, mask_HW)
            )
    for shapes in parts.values():
        lesion = lesion_of_mask(np.any([m for _, m in shapes], axis=0), _label(shapes[0][0]))
        lesions.append(
            Lesion(lesion.box_xyxy, lesion.category, lesion.rle, _difficult(shapes[0][0]))
        )
    return Annotated([lesions], size, remarks, lost)


def labelme_image(content: bytes) -> bytes:
    """The image that a LabelMe file carries in itself.

    Raises:
        ValueError: it carries none.
    """
    data = load_json(content).get("imageData")
    if not isinstance(data, str) or not data:
        raise ValueError(NO_PICTURE)
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error:
        raise ValueError("is LabelMe JSON whose imageData is no base64; save it again") from None


def read_voc(content: bytes, shape: tuple[int, int]) -> Annotated:
    """Pascal VOC xml: boxes. Corners are taken as pixel coordinates from 0, which is what labelImg
    writes.

    An object that is marked difficult is a crowd: neither trained on nor scored, as in VOC's own
    evaluation.
    """
    root = _loaded(load_xml, content)
    if root.tag != "annotation":
        raise ValueError("has an annotation that is xml, but not of Pascal VOC; export it as VOC")
    size = _size(root.findtext("size/height"), root.findtext("size/width"))
    if size and size != shape:
        raise made_for(shape, size)
    lesions, remarks, lost = list[Lesion](), Remarks(), 0
    for item in root.iter("object"):
        try:
            x1, y1, x2, y2 = (
                float(_text(item, f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax")
            )
            if not max(abs(x1), abs(y1), abs(x2), abs(y2)) <= FAR * max(shape):  # NaN as well
                raise ValueError("corners")
        except ValueError:
            remarks[UNREAD] += 1
            lost += 1
            continue
        remarks[SWAPPED] += x1 > x2 or y1 > y2
        lesions.append(
            Lesion(
                (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)),
                (item.findtext("name") or "").strip(),
                None,
                (item.findtext("difficult") or "").strip() == "1",
            )
        )
    return Annotated([lesions], size, +remarks, lost)


def _loaded(load: Callable[[bytes], Any], content: bytes) -> Any:
    try:
        return load(content)
    except ValueError as error:
        raise ValueError(f"has an annotation that {error}") from None


def _labelme_box(item: dict[str, Any], points: list[tuple[float, float]]) -> Lesion:
    if len(points) not in (2, 4):
        raise ValueError("corners")
    (x1, y1), (x2, y2) = np.min(points, axis=0).tolist(), np.max(points, axis=0).tolist()
    return Lesion((x1, y1, x2, y2), _label(item), None, _difficult(item))


def _drawn(
    item: dict[str, Any], points: list[tuple[float, float]], shape: tuple[int, int]
) -> Array | None:
    """The mask (H, W) of a shape with an area, None for points and lines."""
    kind = item.get("shape_type") or "polygon"
    if kind == "mask":
        part_HW = np.asarray(open_image(base64.b64decode(item["mask"])).convert("L")) > 0
        full_HW = np.zeros(shape, bool)
        left, top = (round(v) for v in points[0])
        part_HW = part_HW[max(0, -top) :, max(0, -left) :]
        left, top = max(0, left), max(0, top)
        target_HW = full_HW[top : top + part_HW.shape[0], left : left + part_HW.shape[1]]
        target_HW[...] = part_HW[: target_HW.shape[0], : target_HW.shape[1]]
        return full_HW
    canvas = Image.new("L", (shape[1], shape[0]), 0)
    draw = ImageDraw.Draw(canvas)
    if kind in POLYGONS and len(points) > 2:
        draw.polygon(points, outline=1, fill=1)
    elif kind == "circle" and len(points) == 2:
        (x, y), (u, v) = points
        radius = float(np.hypot(x - u, y - v))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=1, fill=1)
    else:
        return None
    return np.asarray(canvas, bool)


def _label(item: dict[str, Any]) -> str:
    label = item.get("label")
    return label if isinstance(label, str) else ""


def _difficult(item: dict[str, Any]) -> bool:
    flags = item.get("flags")
    return item.get("difficult") is True or (
        isinstance(flags, dict) and flags.get("difficult") is True
    )


def _size(height: Any, width: Any) -> tuple[int, int] | None:
    """(H, W) of an annotation, None where it says nothing or 0.

    Raises:
        ValueError: it says something that is no size.
    """
    try:
        size = [float(v) if v not in (None, "") else 0.0 for v in (height, width)]
    except (TypeError, ValueError, OverflowError):
        size = [-1.0]
    if not all(v.is_integer() and v >= 0 for v in size):
        raise ValueError(
            "has an annotation whose height and width are no numbers of pixels; export it again"
        )
    return (int(size[0]), int(size[1])) if all(size) else None


def _text(place: ElementTree.Element, path: str) -> str:
    text = place.findtext(path)
    if text is None:
        raise ValueError(path)
    return text.strip().replace(",", ".")
