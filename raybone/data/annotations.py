"""Annotations of several formats as lesions, and COCO in and out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from raybone.records import Array, Lesion, Scan, WrongInput


def rle_of(mask_HW: Array) -> dict[str, Any]:
    """COCO run-length code of a boolean mask of shape (H, W)."""
    code = coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return {"size": [int(n) for n in code["size"]], "counts": code["counts"].decode("ascii")}


def mask_of(rle: dict[str, Any]) -> Array:
    """The boolean mask, shape (H, W), of a COCO run-length code."""
    return np.asarray(coco_mask.decode(rle), bool)


def lesions_of_mask(mask_HW: Array, category: str) -> tuple[Lesion, ...]:
    """One lesion for each 8-connected component of a boolean mask."""
    count, labels_HW, stats_N5, _ = cv2.connectedComponentsWithStats(mask_HW.astype(np.uint8), connectivity=8)
    lesions = []
    for label in range(1, count):
        x, y, w, h = (float(v) for v in stats_N5[label, :4])
        lesions.append(Lesion((x, y, x + w, y + h), category, rle_of(labels_HW == label)))
    return tuple(lesions)


def read_coco(path: Path) -> tuple[dict[str, list[Lesion]], dict[str, dict[str, Any]]]:
    """Lesions and image entries of a COCO file, both by ``file_name``.

    Boxes are xywh in the file; segmentation may be polygons or RLE.
    Raises:
        WrongInput: the file is not COCO.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images = {int(i["id"]): i for i in content["images"]}
        names = {int(c["id"]): str(c["name"]) for c in content["categories"]}
        lesions: dict[str, list[Lesion]] = {str(i["file_name"]): [] for i in images.values()}
        for item in content["annotations"]:
            image = images[int(item["image_id"])]
            x, y, w, h = (float(v) for v in item["bbox"])
            rle = _rle(item.get("segmentation"), int(image["height"]), int(image["width"]))
            box = (max(x, 0.0), max(y, 0.0), min(x + w, float(image["width"])), min(y + h, float(image["height"])))
            if box[2] > box[0] and box[3] > box[1]:
                lesions[str(image["file_name"])].append(Lesion(box, names[int(item["category_id"])], rle))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WrongInput(f"annotations.json: must be COCO (images, categories, annotations), "
                         f"but {type(error).__name__} at {str(error)[:80]}; export it again") from None
    return lesions, {str(i["file_name"]): i for i in images.values()}


def to_coco(scans: Iterable[Scan], categories: list[str]) -> dict[str, Any]:
    """A COCO mapping of the scans' lesions; image ids count from 1 in the order given, file_name is the scan_id."""
    number = {name: i + 1 for i, name in enumerate(categories)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, scan in enumerate(scans, 1):
        images.append({"id": image_id, "file_name": scan.scan_id, "height": scan.height, "width": scan.width})
        for lesion in scan.lesions:
            x1, y1, x2, y2 = lesion.box_xyxy
            area = float(coco_mask.area(lesion.rle)) if lesion.rle else (x2 - x1) * (y2 - y1)
            item = {"id": len(annotations) + 1, "image_id": image_id, "category_id": number[lesion.category],
                    "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": 0}
            annotations.append({**item, "segmentation": lesion.rle} if lesion.rle else item)
    return {"info": {"description": "raybone dataset"}, "images": images, "annotations": annotations,
            "categories": [{"id": i, "name": name} for name, i in number.items()]}


def _rle(segmentation: Any, height: int, width: int) -> dict[str, Any] | None:
    """RLE text of a COCO segmentation given as polygons, an uncompressed or a compressed RLE."""
    if not segmentation:
        return None
    try:
        if isinstance(segmentation, list):
            code = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            code = coco_mask.frPyObjects(segmentation, height, width)
        else:
            code = {"size": segmentation["size"], "counts": segmentation["counts"].encode("ascii")}
    except Exception:  # pycocotools raises bare Exceptions
        raise ValueError(f"segmentation {str(segmentation)[:40]}") from None
    return {"size": [int(n) for n in code["size"]], "counts": code["counts"].decode("ascii")}
