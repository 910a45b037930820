"""Annotations of several formats as lesions, and COCO in and out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from raybone.records import Array, Lesion, Scan, WrongInput

Remarks = Counter[str]
MOST_PIXELS = 1 << 28
# What a source may call the dataset's categories; ``prepare --categories`` adds to it. nidus and physiological are
# BS-80K's words; M is the metastasis of 3-class labels.
TERMS = {"malignant": ("nidus", "metastasis", "metastases", "metastatic", "bone metastasis", "lesion", "tumor",
                       "tumour", "m", "bm"),
         "benign": ("physiological", "physiologic", "degenerative", "non-metastatic"),
         "bone": ("bones", "skeleton"), "other": ()}
NOT_LESIONS = ("bone", "other")  # categories that are no foci: not counted where lesions are
COCO_KEYS = ("'images'", "'categories'", "'annotations'", "'id'", "'file_name'", "'image_id'", "'category_id'",
             "'height'", "'width'", "'name'", "'counts'", "'size'")
# The rules for what annotations get wrong; each is counted and named by scan.
CUT = "box beyond the border of its scan: cut there"
OUTSIDE = "box outside its scan: left out"
EMPTY = "box or shape without area: left out"
UNKNOWN = "annotation of an unknown category: kept as other (see --categories)"
NO_SCAN = "annotation without its scan: left out"
IN_BETWEEN = "mask with in-between values: above half of the brightest value is lesion"


def rle_of(mask_HW: Array) -> dict[str, Any]:
    """COCO run-length code of a boolean mask of shape (H, W)."""
    code = coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return {"size": [int(n) for n in code["size"]], "counts": code["counts"].decode("ascii")}


def mask_of(rle: dict[str, Any]) -> Array:
    """The boolean mask, shape (H, W), of a COCO run-length code."""
    return np.asarray(coco_mask.decode(rle), bool)


def lesion_mask(lesion: Lesion, height: int, width: int) -> Array:
    """The boolean mask, shape (H, W), of a lesion; a box without a mask is its rectangle."""
    if lesion.rle:
        return mask_of(lesion.rle)
    mask_HW = np.zeros((height, width), bool)
    x1, y1, x2, y2 = (round(v) for v in lesion.box_xyxy)
    mask_HW[y1:y2, x1:x2] = True
    return mask_HW


def is_focus(lesion: Lesion) -> bool:
    """Whether an annotation counts as a lesion: it is neither of NOT_LESIONS nor a crowd."""
    return not lesion.crowd and lesion.category not in NOT_LESIONS


def foci(scan: Scan) -> list[Lesion]:
    """The lesions of a scan that count."""
    return [le for le in scan.lesions if is_focus(le)]


def lesion_of_mask(mask_HW: Array, category: str) -> Lesion:
    """The one lesion, of any number of parts, of a boolean mask that is not empty."""
    rows, columns = np.nonzero(mask_HW.any(1))[0], np.nonzero(mask_HW.any(0))[0]
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return Lesion(box, category, rle_of(mask_HW))


def lesions_of_mask(mask_HW: Array, category: str) -> tuple[Lesion, ...]:
    """One lesion for each 8-connected component of a boolean mask."""
    count, labels_HW, stats_N5, _ = cv2.connectedComponentsWithStats(mask_HW.astype(np.uint8), connectivity=8)
    lesions = []
    for label in range(1, count):
        x, y, w, h = (float(v) for v in stats_N5[label, :4])
        lesions.append(Lesion((x, y, x + w, y + h), category, rle_of(labels_HW == label)))
    return tuple(lesions)


def read_coco(path: Path, trusted: bool = False) -> tuple[dict[str, list[Lesion]], dict[str, dict[str, Any]], Remarks]:
    """Lesions and image entries of a COCO file, both by ``file_name``, and remarks on annotations that fit no entry.

    Boxes are xywh in the file; segmentation may be polygons or RLE, and gives the box where there is none. What is not
    trusted is checked before pycocotools sees it, which checks nothing.
    Raises:
        WrongInput: the file is not COCO.
    """
    remarks: Remarks = Counter()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images = {i["id"]: i for i in content["images"]}
        names = {c["id"]: str(c["name"]) for c in content["categories"]}
        lesions: dict[str, list[Lesion]] = {str(i["file_name"]): [] for i in images.values()}
        for item in content["annotations"]:
            image = images.get(item["image_id"])
            if image is None:
                remarks[NO_SCAN] += 1
                continue
            rle = _rle(item.get("segmentation"), int(image["height"]), int(image["width"]), trusted)
            x, y, w, h = (float(v) for v in (item.get("bbox") or (coco_mask.toBbox(rle) if rle else (0, 0, 0, 0))))
            lesions[str(image["file_name"])].append(
                Lesion((x, y, x + w, y + h), names.get(item["category_id"], ""), rle, bool(item.get("iscrowd"))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        key = f" {error}" if isinstance(error, KeyError) and str(error) in COCO_KEYS else ""
        raise WrongInput(f"annotations: must be COCO (images, categories, annotations), but there is a "
                         f"{type(error).__name__}{key} in it; export it again") from None
    return lesions, {str(i["file_name"]): i for i in images.values()}, remarks


def term_of(name: str, aliases: Mapping[str, str]) -> str | None:
    """The dataset's category for a name in the source: as ``aliases`` say, else the field's terms; None is unknown."""
    word = spelled(name)
    return aliases.get(word) or next((term for term, words in TERMS.items() if word == term or word in words), None)


def spelled(name: str) -> str:
    """A category's name in small letters with single spaces."""
    return " ".join(name.lower().replace("_", " ").split())


def fitted(lesions: Iterable[Lesion], height: int, width: int,
           aliases: Mapping[str, str]) -> tuple[tuple[Lesion, ...], Remarks]:
    """Lesions in the dataset's categories and inside a scan of this size, and remarks on what had to be changed.

    Raises:
        ValueError: a mask has another size than the scan.
    """
    kept, remarks = [], Counter[str]()
    for lesion in lesions:
        if lesion.rle and lesion.rle["size"] != [height, width]:
            raise ValueError(f"is {height}x{width}, but a mask of it is "
                             f"{lesion.rle['size'][0]}x{lesion.rle['size'][1]}")
        x1, y1, x2, y2 = lesion.box_xyxy
        box = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        if not (box[0] < box[2] and box[1] < box[3]):  # NaN as well
            remarks[EMPTY if not (x1 < x2 and y1 < y2) else OUTSIDE] += 1
            continue
        remarks[CUT] += box != lesion.box_xyxy
        term = term_of(lesion.category, aliases)
        remarks[UNKNOWN] += term is None
        kept.append(Lesion(box, term or "other", lesion.rle, lesion.crowd))
    return tuple(kept), +remarks


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
                    "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": int(lesion.crowd)}
            annotations.append({**item, "segmentation": lesion.rle} if lesion.rle else item)
    return {"info": {"description": "raybone dataset"}, "images": images, "annotations": annotations,
            "categories": [{"id": i, "name": name} for name, i in number.items()]}


def _rle(segmentation: Any, height: int, width: int, trusted: bool) -> dict[str, Any] | None:
    """RLE text of a COCO segmentation given as polygons, an uncompressed or a compressed RLE."""
    if not segmentation:
        return None
    if not trusted:
        _check(segmentation, height, width)
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


def _check(segmentation: Any, height: int, width: int) -> None:
    """Raise ValueError for polygons far outside the image and for runs that do not add up to it."""
    if not 0 < height * width <= MOST_PIXELS:
        raise ValueError("size")
    if isinstance(segmentation, list):
        corners = np.array([float(v) for polygon in segmentation for v in polygon])
        if not (np.abs(corners) <= 2 * max(height, width)).all():  # NaN as well
            raise ValueError("polygon")
        return
    counts, size = segmentation["counts"], [int(n) for n in segmentation["size"]]
    runs = counts if isinstance(counts, list) else _runs(counts)
    if min(runs, default=0) < 0 or sum(runs) != size[0] * size[1] or not 0 < sum(runs) <= MOST_PIXELS:
        raise ValueError("runs")


def _runs(text: str) -> list[int]:
    """Run lengths of COCO's compressed form: 5 bits a character, from the third run on as differences."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            value -= (code & 0x10) and 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs
