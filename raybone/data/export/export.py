"""A dataset as files of another tool, with the same patient folds: to run that tool on the split
that a study was searched on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from raybone.data.dataset import open_dataset
from raybone.data.export.cvat import write_cvat
from raybone.data.export.fiftyone import write_fiftyone
from raybone.data.export.formats import Written, write_coco, write_nnunet, write_yolo
from raybone.errors import WrongInput
from raybone.private import put, sweep, workplace

Format = Literal["coco", "yolo", "nnunet", "cvat", "fiftyone"]
WRITERS = {
    "coco": write_coco,
    "yolo": write_yolo,
    "nnunet": write_nnunet,
    "cvat": write_cvat,
    "fiftyone": write_fiftyone,
}
Progress = Callable[[int, int], None]


def export(
    dataset: Path | str,
    out: Path | str,
    to: str,
    progress: Progress = lambda done, total: None,
) -> Written:
    """Write the annotated scans of a dataset, whole or not at all; files are named by scan_id and
    name no patient.

    Args:
        out: folder to make.
        to: ``coco`` (counts as 16-bit PNG, foldK_train.json and foldK_val.json), ``yolo`` (8-bit
            PNG as a network sees them, foldK.yaml), ``nnunet`` (a raw dataset of counts with
            splits_final.json), ``cvat`` (8-bit PNG, annotations.xml with the folds as subsets) or
            ``fiftyone`` (8-bit PNG, a FiftyOneDataset with the folds as tags). The test group has
            files, a subset or a tag of its own.
    Raises:
        WrongInput: no such format, nothing annotated, lesions that the format cannot hold, or
            ``out`` exists.
    """
    opened, lines = open_dataset(dataset), list[str]()
    if to not in WRITERS:
        lines.append(f"--to: must be one of {', '.join(get_args(Format))}, got {to}; choose one")
    if "://" in str(out):
        lines.append(f"--out {out}: must be a folder of this machine; copy it from there")
    elif os.path.lexists(out):
        lines.append(f"--out {out}: must not exist yet; choose another name or remove it")
    if not (opened.categories and any(s.annotated for s in opened.scans)):
        lines.append(
            f"dataset {dataset}: needs annotated lesions to export, but has none (labels of scans "
            "are not exported); prepare it with annotations"
        )
    if lines:
        raise WrongInput(*lines)
    out = Path(out)
    sweep(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with workplace(out) as place:
        half = place / "new"
        half.mkdir()
        written = WRITERS[to](opened, half, out.resolve(), progress)
        put(half, out)
    return written
