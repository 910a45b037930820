"""Frozen values that travel between the rooms.

Axes: H height, W width, N count, C categories. Boxes are xyxy, in pixels, float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Finding = dict[str, Any]  # one of predictions.json
RUN = ("=", "+", "-", "@", "\t", "\r")  # what begins a formula


def safe_cell(value: Any) -> Any:
    """A cell of a CSV table that no spreadsheet runs: text that begins like a formula gets an
    apostrophe before it.

    Source: OWASP, CSV Injection.
    """
    return f"'{value}" if isinstance(value, str) and value[:1] in RUN else value


def plain_cell(text: str) -> str:
    """The text that ``safe_cell`` made a cell of."""
    return text[1:] if text[:1] == "'" and text[1:2] in RUN else text


def printable(text: str) -> str:
    """Text with ? for all that a terminal may take for a command: names of files and words of
    programs hold anything.

    >>> printable("a\\x1b[2J")
    'a?[2J'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


@dataclass(frozen=True)
class Lesion:
    """One annotated focus, or a bone or another structure that is no lesion (categories ``bone``,
    ``other`` and the regions of the skeleton).

    box_xyxy: (x1, y1, x2, y2) in pixels, 0 <= x1 < x2 <= W and 0 <= y1 < y2 <= H. category: a name
    of the dataset's categories, such as "malignant". rle: COCO run-length mask of the scan's size
    ({"size": [H, W], "counts": str}), or None for a box alone. crowd: a region with many foci, or
    one that its reader called difficult: not trained on, and what is found there counts neither for
    nor against (COCO's iscrowd).
    """

    box_xyxy: tuple[float, float, float, float]
    category: str
    rle: dict[str, Any] | None = None
    crowd: bool = False


@dataclass(frozen=True)
class Scan:
    """One image of one patient as the dataset knows it; ``row`` is its place in pixels/HxW.npy.

    high: upper edge of the display window, in counts. instance: pseudonym of the source object, the
    same for copies. flags: what to be wary of, such as burned-in-text, lossy, not-square,
    unannotated, modality-CT. labels: (name, value) pairs.
    """

    scan_id: str
    patient_id: str
    view: str
    height: int
    width: int
    pixel_mm: float | None
    row: int
    high: float
    site: str = "unknown"
    scanner: str = "unknown"
    instance: str = ""
    flags: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    lesions: tuple[Lesion, ...] = ()

    @property
    def pixels(self) -> str:
        """A hash of the pixels, which a scan_id begins with; copies have a number after it."""
        return self.scan_id.partition("-")[0]

    @property
    def annotated(self) -> bool:
        """Whether its lesions are known, even if there are none."""
        return "unannotated" not in self.flags


@dataclass(frozen=True)
class Prediction:
    """What a model says about one image, in pixels of that image.

    boxes_N4 float32 xyxy; scores_N float32 in [0, 1], best first; labels_N int64, 0-based category;
    mask_CHW float32 probabilities in [0, 1], or None for a detector. A classifier has one score and
    no box.
    """

    boxes_N4: Array = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    scores_N: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    labels_N: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    mask_CHW: Array | None = None


@dataclass(frozen=True)
class Epoch:
    """One finished epoch (1-based) of one fold (0-based): metrics on the validation patients,
    seconds it took, and what else it did.

    cost: images_per_s in training; memory_gb, the most that was allocated on the GPU, or without
    one what the process held at its end; parts in which a batch went through the network; gpu_use,
    the part of the training's time in which the first worker's GPU was at work, where its driver
    tells. machine: what it ran on, in short.
    """

    fold: int
    epoch: int
    metrics: dict[str, float]
    seconds: float
    cost: dict[str, float] = field(default_factory=dict)
    machine: str = ""


@dataclass(frozen=True)
class Pooled:
    """What the out-of-fold findings of a complete configuration give.

    metrics: over all findings together. replicates: patient bootstrap of the study's metric, mean
    over folds; empty where there is none. freedom: degrees of freedom of their variance.
    """

    metrics: dict[str, float]
    replicates: tuple[float, ...] = ()
    freedom: float = math.nan


@dataclass(frozen=True)
class Segment:
    """A stretch of training: epochs ``start + 1 .. stop`` of one fold."""

    fold: int
    start: int
    stop: int


@dataclass(frozen=True)
class Decision:
    """What the brain does with a configuration at a rung, against whom and on what evidence."""

    config_id: str
    action: Literal["promote", "stop", "drop", "complete"]  # it is a person who drops one
    rung: int
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)
