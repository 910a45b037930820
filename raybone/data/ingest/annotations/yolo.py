"""Labels of YOLO: a text file an image, a line a lesion, in shares of the image's sides; and the
names of their classes.

Source: Ultralytics, "Object Detection Datasets Overview" and "Instance Segmentation Datasets
Overview".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from raybone.data.annotations import (
    EMPTY,
    MOST_LESIONS,
    UNREAD,
    Annotated,
    Remarks,
    lesion_of_mask,
)
from raybone.errors import WrongInput
from raybone.study.yaml12 import NO_YAML, load_yaml
from raybone.types import Array, Lesion

CLASSES = "classes.txt"  # what labelImg writes, a name a line
SLACK = 1e-3  # by which a share may be beyond 0 and 1, as tools round
Names = tuple[tuple[str, tuple[int, ...]], ...]


def read_yolo(
    content: bytes, shape: tuple[int, int], names: Mapping[str, tuple[int, ...]]
) -> Annotated:
    """Boxes (class, centre x and y, width, height) and outlines (class, three or more corners) of a
    label file; an empty one says that there is no lesion.

    Args:
        names: numbers of each category; a class without a name is ``class N``.
    """
    lines = [line.split() for line in content.decode("utf-8-sig", "replace").splitlines()]
    lines = [line for line in lines if line]
    if len(lines) > MOST_LESIONS:
        raise ValueError(
            f"has an annotation with {len(lines)} lines, over {MOST_LESIONS}; look at it"
        )
    name_of = {number: name for name, numbers in names.items() for number in numbers}
    lesions, remarks, lost = list[Lesion](), Remarks(), 0
    for line in lines:
        try:
            lesion = _lesion(line, shape, name_of)
        except (ValueError, OverflowError):
            remarks[UNREAD] += 1
            lost += 1
            continue
        if lesion is None:
            remarks[EMPTY] += 1
            lost += 1
        else:
            lesions.append(lesion)
    return Annotated([lesions], None, +remarks, lost)


def classes_of(files: Mapping[str, Path]) -> Names:
    """The names of classes that a folder says, in the YAML with ``names``, or in classes.txt.

    Raises:
        WrongInput: there are several YAML files that name them otherwise, the only one cannot be
            read, or a name is no text.
    """
    told = [_named(path) for name, path in files.items() if name.endswith((".yaml", ".yml"))]
    found = [names for names in told if names]
    if not found:
        lists = [path for name, path in files.items() if name.rpartition("/")[2] == CLASSES]
        texts = [path.read_text("utf-8-sig", "replace").splitlines() for path in lists]
        found = [
            {n: word.strip() for n, word in enumerate(words) if word.strip()} for words in texts
        ]
    if not found and None in told:
        raise WrongInput(
            "--layout yolo: a YAML file cannot be read, and no other names the classes; save it in "
            "UTF-8, as Ultralytics reads it, with each key once"
        )
    if any(names != found[0] for names in found):
        raise WrongInput(
            f"--layout yolo: all YAML files, or all {CLASSES}, must give classes the same names, "
            "but they differ; leave one of them in SOURCE"
        )
    numbers: dict[str, list[int]] = {}
    for number, word in (found[0] if found else {}).items():
        numbers.setdefault(word, []).append(number)
    return tuple((word, tuple(own)) for word, own in numbers.items())


def is_yolo(files: Mapping[str, Path]) -> bool:
    """Whether files lie as YOLO's do: an image in images/, and its labels in labels/."""
    notes = {label_of(name) for name in files if "images" in name.split("/")[:-1]}
    return any(name in notes for name in files if name.endswith(".txt"))


def label_of(image: str) -> str:
    """The name of an image's label file: labels/ for the last images/, and .txt."""
    before, _, below = f"/{image}".rpartition("/images/")
    return f"{before}/labels/{below.rpartition('.')[0]}.txt".lstrip("/")


def _lesion(line: list[str], shape: tuple[int, int], name_of: Mapping[int, str]) -> Lesion | None:
    """The lesion of a line, None for one without an area."""
    share_N = np.array([float(v) for v in line[1:]])
    number = int(float(line[0]))  # NumPy writes 0 as 0.0, and Ultralytics reads it so
    name = name_of.get(number, f"class {number}")
    corners = len(share_N) >= 6 and len(share_N) % 2 == 0
    inside = bool(((share_N >= -SLACK) & (share_N <= 1 + SLACK)).all())  # not of NaN
    if number < 0 or number != float(line[0]) or not inside or not (corners or len(share_N) == 4):
        raise ValueError(line)
    height, width = shape
    if corners:
        mask_HW = _filled(share_N.reshape(-1, 2).clip(0, 1) * (width, height), shape)
        return lesion_of_mask(mask_HW, name) if mask_HW.any() else None
    x, y, across, down = (share_N * (width, height, width, height)).tolist()
    box = (x - across / 2, y - down / 2, x + across / 2, y + down / 2)
    return Lesion(box, name) if across > 0 and down > 0 else None


def _filled(corners_N2: Array, shape: tuple[int, int]) -> Array:
    canvas = Image.new("L", (shape[1], shape[0]), 0)
    ImageDraw.Draw(canvas).polygon([(x, y) for x, y in corners_N2.tolist()], outline=1, fill=1)
    return np.asarray(canvas, bool)


def _named(path: Path) -> dict[int, str] | None:
    """The names in a YAML file, none where it is of something else; None of one that is none."""
    try:
        content = load_yaml(path.read_text(encoding="utf-8-sig"))
    except (OSError, *NO_YAML):
        return None
    names = content.get("names") if isinstance(content, dict) else None
    pairs = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(pairs, dict):
        return {}
    if not all(isinstance(n, int) and isinstance(word, str) for n, word in pairs.items()):
        raise WrongInput(
            "--layout yolo: the names of a YAML file must be texts by their number; correct it"
        )
    return pairs
