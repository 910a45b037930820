"""COCO files of other tools: ids are unique or the file is refused, and one bad annotation costs
that annotation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from raybone.data.annotations import (
    BARE,
    BRUSHED,
    DISAGREE,
    MOST_PIXELS,
    UNREAD,
    Annotated,
    Remarks,
    runs_of,
)
from raybone.data.ingest.annotations.claims import load_json
from raybone.types import Lesion

AGREE = (
    0.5  # IoU of a box with the one around its mask; tools round differently, but not by so much
)


@dataclass(frozen=True)
class CocoImage:
    """One image of a COCO file, with its annotations as they stand there.

    size: (H, W), None where the file does not say it. known: patient_id, view and pixel_mm, if it
    has them.
    """

    file_name: str
    size: tuple[int, int] | None = None
    items: tuple[Mapping[str, Any], ...] = ()
    known: Mapping[str, str] = field(default_factory=dict)

    @property
    def weight(self) -> int:
        """Annotations; an image without any says something as well."""
        return max(1, len(self.items))


@dataclass(frozen=True)
class CocoFile:
    """The images of a COCO file, and how many annotations belong to none of them."""

    images: tuple[CocoImage, ...]
    orphans: int = 0


def read_coco_file(content: bytes) -> CocoFile:
    """A COCO file's images (instances or detection).

    Raises:
        ValueError: it is not COCO, or something that must be unique is not; the reason quotes no
            name.
    """
    document = load_json(content)
    images, items, categories = (
        _records(document, k) for k in ("images", "annotations", "categories")
    )
    names = {_key(c.get("id"), "categories"): str(c.get("name", "")) for c in categories}
    keys = [_key(i.get("id"), "images") for i in images]
    _unique(keys, "image id")
    _unique([_key(c.get("id"), "categories") for c in categories], "category id")
    _unique(
        [_key(a["id"], "annotations") for a in items if a.get("id") is not None], "annotation id"
    )
    for image in images:
        if not isinstance(image.get("file_name"), str) or not image["file_name"].strip():
            raise ValueError("is COCO with an image that has no file_name; export it again")
    _unique([i["file_name"].replace("\\", "/").removeprefix("./") for i in images], "file_name")
    of_image: dict[str, list[dict[str, Any]]] = defaultdict(list)
    known = set(keys)
    for item in items:
        key = _key(item.get("image_id"), "annotations")
        category = item.get("category_id")
        name = names.get(_key(category, "annotations"), "") if category is not None else ""
        of_image[key if key in known else ""].append({**item, "category": name})
    return CocoFile(
        tuple(
            CocoImage(
                i["file_name"],
                _size(i),
                tuple(of_image[key]),
                {k: str(i[k]) for k in ("patient_id", "view", "pixel_mm") if i.get(k) is not None},
            )
            for key, i in zip(keys, images)
        ),
        len(of_image[""]),
    )


def read_coco_image(image: CocoImage, shape: tuple[int, int]) -> Annotated:
    """The lesions of one image; boxes are xywh, outlines are polygons or run-length codes of the
    scan's shape (H, W).

    An outline that cannot be read leaves the box alone; an annotation with neither is left out,
    with a remark.
    """
    lesions, remarks, lost = list[Lesion](), Remarks(), 0
    for item in image.items:
        box = _box(item.get("bbox"))
        rle = _rle(item.get("segmentation"), shape)
        if item.get("segmentation") and rle is None:
            remarks[BARE if box else UNREAD] += 1
        if box is None and rle is None:
            remarks[UNREAD] += not item.get("segmentation")
            lost += 1
            continue
        if rle is not None:
            x, y, w, h = (float(v) for v in coco_mask.toBbox(rle))
            own = (x, y, x + w, y + h)
            if box is not None and _iou(box, own) < AGREE:
                remarks[DISAGREE] += 1
                box = own
            box = box or own
        assert box is not None
        crowd = any(_is_set(item.get(k)) for k in ("iscrowd", "ignore", "difficult"))
        if crowd and _is_brushed(item):
            crowd = False
            remarks[BRUSHED] += 1
        lesions.append(Lesion(box, item["category"], rle, crowd))
    return Annotated([lesions], image.size, +remarks, lost)


def _records(document: Any, key: str) -> list[dict[str, Any]]:
    values = document.get(key) if isinstance(document, dict) else None
    if not isinstance(values, list) or not all(isinstance(v, dict) for v in values):
        raise ValueError(f"is COCO whose {key} are no list of objects; export it again")
    return values


def _key(value: Any, where: str) -> str:
    """An id as text: 3, 3.0 and "3" are one, as tools write them."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or value == "":
        raise ValueError(
            f"is COCO with an id in its {where} that is no number or text; export it again"
        )
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    text = str(value).strip()
    return str(int(text)) if text.isdecimal() else text


def _unique(keys: Iterable[str], what: str) -> None:
    twice = sum(n > 1 for n in Counter(keys).values())
    if twice:
        raise ValueError(
            f"is COCO in which {twice} {what}s stand for several things; each must be unique: "
            "nobody can tell what is meant; export it again"
        )


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """(H, W), of which 0 or nothing means unknown."""
    found = []
    for key in ("height", "width"):
        value = image.get(key)
        try:
            number = float(value) if value not in (None, "") else 0.0
        except (TypeError, ValueError, OverflowError):
            number = -1.0
        if not number.is_integer() or not 0 <= number <= MOST_PIXELS:
            raise ValueError(
                f"is COCO with an image whose {key} is no number of pixels; export it again"
            )
        found.append(int(number))
    return (found[0], found[1]) if all(found) else None


def _box(value: Any) -> tuple[float, float, float, float] | None:
    """xyxy of an xywh box, None for what is none."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 4:
        return None
    try:
        x, y, w, h = (float(v) for v in value)
    except (TypeError, ValueError, OverflowError):
        return None
    return (x, y, x + w, y + h) if np.isfinite([x, y, w, h]).all() and w > 0 and h > 0 else None


def _rle(segmentation: Any, shape: tuple[int, int]) -> dict[str, Any] | None:
    """A run-length code of what is drawn, None for what cannot be.

    pycocotools checks nothing and ends the process over some input: everything is checked before it
    sees it.
    """
    height, width = shape
    try:
        if isinstance(segmentation, list):
            # VIA writes the corners of one polygon without a list around them.
            flat = all(isinstance(v, int | float) for v in segmentation)
            parts = [segmentation] if flat else segmentation
            if any(len(p) % 2 for p in parts):
                return None
            polygons = [p for p in parts if len(p) >= 6]
            corners = np.array([float(v) for polygon in polygons for v in polygon])
            # NaN as well; far outside is another scan's scale
            if not len(corners) or not (np.abs(corners) <= 2 * max(height, width)).all():
                return None
            # pycocotools takes some 100 bytes a pixel of outline, and no lesion's has as many as
            # its scan.
            if (
                sum(np.abs(np.diff(np.reshape(p, (-1, 2)), axis=0)).max(1).sum() for p in polygons)
                > height * width
            ):
                return None
            code = coco_mask.merge(
                coco_mask.frPyObjects([list(map(float, p)) for p in polygons], height, width)
            )
        elif isinstance(segmentation, dict):
            counts, size = segmentation["counts"], [int(n) for n in segmentation["size"]]
            runs = [int(n) for n in counts] if isinstance(counts, list) else runs_of(counts)
            if (
                min(runs, default=0) < 0
                or sum(runs) != size[0] * size[1]
                or not 0 < sum(runs) <= MOST_PIXELS
            ):
                return None
            code = coco_mask.frPyObjects({"size": size, "counts": runs}, *size)
        else:
            return None
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError):
        return None
    if not coco_mask.area(code):
        return None
    return {"size": [int(n) for n in code["size"]], "counts": code["counts"].decode("ascii")}


def _is_set(value: Any) -> bool:
    return value in (1, True, "1", "true", "True")


def _is_brushed(item: Mapping[str, Any]) -> bool:
    """Whether CVAT wrote an annotation that was drawn with its brush: it calls every mask a
    crowd.
    """
    attributes = item.get("attributes")
    return (
        isinstance(item.get("segmentation"), dict)
        and isinstance(attributes, dict)
        and "occluded" in attributes
    )


def _iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return common / max(area_a + area_b - common, 1e-9)
