"""Annotations of all formats as lesions in the dataset's terms, and a dataset's own COCO file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from raybone.metrics.burden import regions
from raybone.types import Array, Lesion, Scan

Remarks = Counter[str]
MOST_PIXELS = 1 << 28
# What a source may call the dataset's categories; ``prepare --categories`` adds to it. nidus and
# physiological are BS-80K's words; M is the metastasis of 3-class labels.
TERMS = {
    "malignant": (
        "nidus",
        "metastasis",
        "metastases",
        "metastatic",
        "bone metastasis",
        "lesion",
        "tumor",
        "tumour",
        "m",
        "bm",
    ),
    "benign": ("physiological", "physiologic", "degenerative", "non-metastatic"),
    "bone": ("bones", "skeleton"),
    "other": (),
    **regions(),
}
# Categories that are no foci: not counted where lesions are.
NOT_LESIONS = ("bone", "other", *regions())
MOST_LESIONS = 1000  # of a mask; more islands are noise, or a picture
# The rules for what annotations get wrong; each is counted and named by scan.
CUT = "box beyond the border of its scan: cut there"
OUTSIDE = "box outside its scan: left out"
EMPTY = "box or shape without area: left out"
TINY = "box of less than a pixel: left out; are its numbers shares of the scan?"
UNREAD = "annotation that cannot be read: left out"
UNKNOWN = "annotation of an unknown category: kept as other (see --categories)"
NO_SCAN = "annotation without its scan: left out"
TWICE = "annotation that stands there twice: once is enough"
SWAPPED = "box whose corners are swapped: put right"
CROWD = "annotation marked as crowd, ignore or difficult: kept apart, neither trained on nor scored"
BRUSHED = "mask of CVAT's brush, which CVAT marks as crowd: taken as one lesion"
BARE = "box whose outline cannot be read: kept as a box alone"
DISAGREE = "box that does not frame its mask: the mask's own box is taken; one of the two is wrong"
IN_BETWEEN = "mask with in-between values: above half of the brightest value is lesion"
INVERTED = "mask whose border and most of whose pixels are bright: turned over"
TURNED = "mask stored upside down or mirrored: brought upright by its header"
NO_AXES = "NIfTI whose header says nothing of directions: taken as it is stored"
LEFT_OUT = (OUTSIDE, EMPTY, TINY, UNREAD)


@dataclass(frozen=True)
class Annotated:
    """What one annotation says of a scan.

    frames: the lesions of each frame, with the names that the file uses. size: (H, W) of the scan
    that it was made for, or None. lost: annotations in it that were left out.
    """

    frames: list[list[Lesion]]
    size: tuple[int, int] | None = None
    remarks: Remarks = field(default_factory=Counter)
    lost: int = 0


def made_for(shape: tuple[int, int], size: tuple[int, int]) -> ValueError:
    """The error of an annotation that was made for a scan of another size, both (H, W)."""
    return ValueError(
        f"is {shape[0]}x{shape[1]}, but its annotation was made for {size[0]}x{size[1]}"
    )


def rle_of(mask_HW: Array) -> dict[str, Any]:
    """COCO run-length code of a boolean mask of shape (H, W)."""
    code = coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return {"size": [int(n) for n in code["size"]], "counts": code["counts"].decode("ascii")}


def mask_of(rle: dict[str, Any]) -> Array:
    """The boolean mask, shape (H, W), of a COCO run-length code."""
    return np.asarray(coco_mask.decode(rle), bool)


def cut_out(lesion: Lesion) -> tuple[int, int, Array] | None:
    """Left and top of a lesion's mask and what is inside them, bool, without margin; None where it
    has no pixel.
    """
    mask_HW = mask_of(lesion.rle) if lesion.rle else np.zeros((0, 0), bool)
    if not mask_HW.any():
        return None
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    inside_HW = mask_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return int(columns[0]), int(rows[0]), inside_HW


def is_rle(rle: Any, shape: tuple[int, int]) -> bool:
    """Whether it is the compressed run-length code of a mask of this shape (H, W).

    pycocotools checks nothing, and ends the process over some that are none.
    """
    try:
        runs = runs_of(rle["counts"])
    except (TypeError, ValueError, KeyError):
        return False
    return (
        rle["size"] == list(shape)
        and min(runs, default=0) >= 0
        and sum(runs) == shape[0] * shape[1]
    )


def runs_of(text: str) -> list[int]:
    """Run lengths of COCO's compressed form: 5 bits a character, from the third run on as
    differences.

    Raises:
        ValueError: a run has over 35 bits, or the last one does not end.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        value |= (code & 0x1F) << shift
        shift += 5
        if shift > 35:
            break
        if not code & 0x20:
            value -= (code & 0x10) and 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("a run that does not end")
    return runs


def lesion_mask(lesion: Lesion, height: int, width: int) -> Array:
    """The boolean mask, shape (H, W), of a lesion; a box without a mask is its rectangle."""
    if lesion.rle:
        return mask_of(lesion.rle)
    mask_HW = np.zeros((height, width), bool)
    x1, y1, x2, y2 = (round(v) for v in lesion.box_xyxy)
    mask_HW[y1:y2, x1:x2] = True
    return mask_HW


def decisive(categories: Sequence[str]) -> list[str]:
    """The categories that an operating point and a calibration are of: the lesions, or all where
    there are none. What is larger by far, as bones are, would else decide for them.
    """
    lesions = [name for name in categories if name not in NOT_LESIONS]
    return lesions or list(categories)


def is_focus(lesion: Lesion) -> bool:
    """Whether an annotation counts as a lesion: it is neither of NOT_LESIONS nor a crowd."""
    return not lesion.crowd and lesion.category not in NOT_LESIONS


def foci(scan: Scan) -> list[Lesion]:
    """The lesions of a scan that count."""
    return [le for le in scan.lesions if is_focus(le)]


def nothing_to_learn(scans: Sequence[Scan]) -> list[str]:
    """A line where no scan has a lesion, a bone or a label of two classes; none otherwise."""
    drawn = any(le.category != "other" and not le.crowd for s in scans for le in s.lesions)
    if drawn or {"0", "1"} <= {value for s in scans for _, value in s.labels}:
        return []
    return [
        "no scan has a lesion: there is nothing to train on; prepare it with the annotations "
        "beside the scans (docs/data.md)"
    ]


def lesion_of_mask(mask_HW: Array, category: str) -> Lesion:
    """The one lesion, of any number of parts, of a boolean mask that is not empty."""
    rows, columns = np.nonzero(mask_HW.any(1))[0], np.nonzero(mask_HW.any(0))[0]
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return Lesion(box, category, rle_of(mask_HW))


def lesions_of_mask(mask_HW: Array, category: str) -> tuple[Lesion, ...]:
    """One lesion for each 8-connected component of a boolean mask."""
    count, labels_HW, stats_N5, _ = cv2.connectedComponentsWithStats(
        mask_HW.astype(np.uint8), connectivity=8
    )
    lesions = []
    for label in range(1, count):
        x, y, w, h = (float(v) for v in stats_N5[label, :4])
        lesions.append(Lesion((x, y, x + w, y + h), category, rle_of(labels_HW == label)))
    return tuple(lesions)


def islands_of_mask(mask_HW: Array, category: str) -> list[Lesion]:
    """``lesions_of_mask`` of a mask from outside.

    Raises:
        ValueError: it has more islands than a scan has lesions.
    """
    count = cv2.connectedComponents(mask_HW.astype(np.uint8), connectivity=8)[0] - 1
    if count > MOST_LESIONS:
        raise ValueError(
            f"has a mask of {count} islands, over {MOST_LESIONS}: it is noise or a picture, not "
            "lesions; save it as labels"
        )
    return list(lesions_of_mask(mask_HW, category))


def read_coco(path: Path) -> dict[str, list[Lesion]]:
    """Lesions of a dataset's own annotations.json, by scan_id.

    Raises:
        ValueError, KeyError, TypeError: it is not as ``to_coco`` makes it.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    names = {c["id"]: str(c["name"]) for c in content["categories"]}
    scan_ids = {i["id"]: str(i["file_name"]) for i in content["images"]}
    shape_of = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    lesions: dict[str, list[Lesion]] = {scan_id: [] for scan_id in scan_ids.values()}
    for item in content["annotations"]:
        x, y, w, h = (float(v) for v in item["bbox"])
        if (rle := item.get("segmentation")) is not None and not is_rle(
            rle, shape_of[item["image_id"]]
        ):
            raise ValueError("a mask must be a run-length code that fills its scan")
        lesions[scan_ids[item["image_id"]]].append(
            Lesion((x, y, x + w, y + h), names[item["category_id"]], rle, bool(item["iscrowd"]))
        )
    return lesions


def term_of(name: str, aliases: Mapping[str, str]) -> str | None:
    """The dataset's category for a name in the source: as ``aliases`` say, else the field's terms;
    None is unknown.
    """
    word = spelled(name)
    return aliases.get(word) or next(
        (term for term, words in TERMS.items() if word == term or word in words), None
    )


def spelled(name: str) -> str:
    """A category's name in small letters with single spaces."""
    return " ".join(name.lower().replace("_", " ").split())


def fitted(
    lesions: Iterable[Lesion], height: int, width: int, aliases: Mapping[str, str]
) -> tuple[tuple[Lesion, ...], Remarks]:
    """Lesions in the dataset's categories and inside a scan of this size, and remarks on what had
    to be changed.

    Raises:
        ValueError: a mask has another size than the scan.
    """
    kept, seen, remarks = [], list[Lesion](), Counter[str]()
    for lesion in lesions:
        if lesion.rle and lesion.rle["size"] != [height, width]:
            raise ValueError(
                f"is {height}x{width}, but a mask of it is "
                f"{lesion.rle['size'][0]}x{lesion.rle['size'][1]}"
            )
        x1, y1, x2, y2 = lesion.box_xyxy
        box = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        if not (box[0] < box[2] and box[1] < box[3]):  # NaN as well
            remarks[EMPTY if not (x1 < x2 and y1 < y2) else OUTSIDE] += 1
            continue
        if not lesion.rle and min(x2 - x1, y2 - y1) < 1:
            remarks[TINY] += 1
            continue
        term = term_of(lesion.category, aliases)
        known = Lesion(lesion.box_xyxy, term or lesion.category, lesion.rle, lesion.crowd)
        if any(known == other for other in seen):
            remarks[TWICE] += 1
            continue
        seen.append(known)
        remarks[CUT] += box != lesion.box_xyxy
        remarks[UNKNOWN] += term is None
        remarks[CROWD] += lesion.crowd
        kept.append(Lesion(box, term or "other", lesion.rle, lesion.crowd))
    return tuple(kept), +remarks


def to_coco(scans: Iterable[Scan], categories: list[str]) -> dict[str, Any]:
    """A COCO mapping of the scans' lesions; image ids count from 1 in the order given, file_name is
    the scan_id.
    """
    number = {name: i + 1 for i, name in enumerate(categories)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, scan in enumerate(scans, 1):
        images.append(
            {"id": image_id, "file_name": scan.scan_id, "height": scan.height, "width": scan.width}
        )
        for lesion in scan.lesions:
            x1, y1, x2, y2 = lesion.box_xyxy
            area = float(coco_mask.area(lesion.rle)) if lesion.rle else (x2 - x1) * (y2 - y1)
            item = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": number[lesion.category],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": area,
                "iscrowd": int(lesion.crowd),
            }
            annotations.append({**item, "segmentation": lesion.rle} if lesion.rle else item)
    return {
        "info": {"description": "raybone dataset"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for name, i in number.items()],
    }
