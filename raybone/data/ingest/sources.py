"""Inputs with what goes with them, and the account of all annotations: which found a scan, and
which did not.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from raybone.data.annotations import Remarks
from raybone.data.ingest.annotations.coco import CocoImage

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
LABELS = "labels.csv"
# What exporters and operating systems leave behind, by file, by folder and by the end of a stem.
LEFT_FILES = ("thumbs.db", "desktop.ini", ".ds_store")
LEFT_FOLDERS = (
    "__macosx",
    "segmentationclass",
    "segmentationobject",
    "segmentationclasspng",
    "segmentationclassnpy",
    "segmentationclassvisualization",
    "segmentationobjectvisualization",
    "overlay",
    "overlays",
    "visualization",
    "visualizations",
    "@eadir",
)
LEFT_STEMS = ("_overlay", "_viz", "-overlay")
LEFT_OVER = "is a left-over of an exporter or a system, not a scan"
DEEPEST = 64  # folders in folders; Python's own tools give up at some hundreds
LOST_SHARE = 0.05  # of annotations that may find no scan before prepare refuses


@dataclass(frozen=True)
class Beside:
    """An annotation file of a scan.

    kind: how it is read; ``other`` stands for one that cannot be, for the reason in ``why``.
    category: of a mask. names: values of each category in a mask or labels, where the source says
    so.
    """

    path: Path
    kind: Literal["labelme", "voc", "nifti", "mask", "yolo", "other"]
    category: str = ""
    names: tuple[tuple[str, tuple[int, ...]], ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Source:
    """One input file with what its layout says about it.

    name: its path below SOURCE. kind: ``dicom`` or ``image`` alone, or ``any``. coco: its images in
    COCO files. beside: its annotation files. picture: whether the scan is inside an annotation
    file. aside: why it is no scan.
    """

    path: Path
    name: str
    kind: Literal["dicom", "image", "any"] = "any"
    patient: str = ""
    view: str = ""
    pixel_mm: float | None = None
    coco: tuple[CocoImage, ...] = ()
    beside: tuple[Beside, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    picture: bool = False
    aside: str = ""


@dataclass(frozen=True)
class Account:
    """An annotation file and how many of its annotations found no scan.

    name: its path below SOURCE. many: whether it is for many scans; unread: whether it cannot be
    read at all. fits: the scans that one annotation fits alike, where that is why. first: the first
    name in it that leads nowhere.
    """

    name: str
    annotations: int
    lost: int
    why: str
    many: bool = False
    unread: bool = False
    fits: tuple[str, ...] = ()
    first: str = ""


@dataclass
class Sources:
    """What a layout makes of a folder: every input in order of name, remarks, and accounts of
    annotations.
    """

    layout: str
    inputs: list[Source] = field(default_factory=list)
    remarks: Remarks = field(default_factory=Counter)
    accounts: list[Account] = field(default_factory=list)

    def below(self, prefix: str) -> Sources:
        """The same with all names below a folder."""
        inputs = [replace(s, name=prefix + s.name) for s in self.inputs]
        accounts = [
            replace(a, name=prefix + a.name, fits=tuple(prefix + n for n in a.fits))
            for a in self.accounts
        ]
        return Sources(self.layout, inputs, self.remarks, accounts)


def complaints(accounts: Sequence[Account], show_paths: bool) -> list[str]:
    """Why a source is refused for its annotations, a line each; none where they are in order.

    Refused is a file that fits several scans alike, a file of many scans of which all annotations
    find none, and a source in which more than ``LOST_SHARE`` of all do.
    """
    lines, total, lost = [], sum(a.annotations for a in accounts), sum(a.lost for a in accounts)
    hint = "" if show_paths else "; --show-paths names them"
    for account in (a for a in accounts if a.fits):
        which = (
            f"{account.name}: fits {' and '.join(account.fits)} alike"
            if show_paths
            else f"an annotation fits {len(account.fits)} scans alike{hint}"
        )
        lines.append(
            f"prepare: {which}; rename one, or say which is meant (imagePath, filename, file_name)"
        )
    for account in (a for a in accounts if a.many and a.lost == a.annotations and not a.fits):
        what = account.name if show_paths else "an annotation file"
        first = f", the first for {account.first}" if show_paths and account.first else ""
        none = (
            ""
            if account.unread
            else f": none of its {account.annotations} annotations finds a scan{first}"
        )
        lines.append(
            f"prepare: {what} {account.why}{none}; correct it, or leave it out with "
            f"--allow-unmatched{hint}"
        )
    if not lines and lost > LOST_SHARE * total:
        lines.append(
            f"prepare: {lost} of {total} annotations find no scan, over {100 * LOST_SHARE:.0f} %; "
            f"correct their names, or leave them out with --allow-unmatched{hint}"
        )
        lines += [f"prepare: {a.name}: {a.why}" for a in accounts if a.lost and show_paths][:20]
    return lines


def told(accounts: Sequence[Account], counts: Mapping[str, int], negative: bool) -> list[str]:
    """What became of the annotations, in lines for people; none where there are none.

    Args:
        counts: of dataset.json. negative: whether scans without annotation count as scans without
            lesion.
    """
    if not accounts:
        return []
    parts = [
        f"annotations: {counts['annotations'] - counts['annotations_lost']} of "
        f"{counts['annotations']} found their scan"
    ]
    unused = sum(a.lost == a.annotations for a in accounts)
    parts += [f"files that no scan uses: {unused}"] * bool(unused)
    parts += [f"of scans that were not taken: {counts['annotations_of_rejected']}"] * bool(
        counts["annotations_of_rejected"]
    )
    parts += [f"left out: {counts['annotations_left_out']}"] * bool(counts["annotations_left_out"])
    lines = ["; ".join(parts)]
    if counts["unannotated"]:
        how = (
            "taken as scans without lesion"
            if negative
            else "neither trained on nor scored; --unannotated negative takes them as scans "
            "without lesion"
        )
        lines.append(
            f"scans without annotation, where others have one: {counts['unannotated']} ({how})"
        )
    return lines


def walk(root: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Every file by its name below the root, links followed once; and why folders and files are not
    looked into.
    """
    files: dict[str, Path] = {}
    aside: dict[str, str] = {}
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        aside[Path(error.filename).relative_to(root).as_posix()] = (
            "is a folder that cannot be opened"
        )

    for folder, below, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below.sort()
        if len(Path(folder).relative_to(root).parts) >= DEEPEST:
            aside |= {
                (Path(folder) / name)
                .relative_to(root)
                .as_posix(): f"is a folder more than {DEEPEST} folders deep"
                for name in below
            }
            below.clear()
        for name in sorted(names):
            path = Path(folder) / name
            files[path.relative_to(root).as_posix()] = path
    files = {n: p for n, p in files.items() if not is_labels(n)}
    aside |= {
        n: "is a labels.csv below SOURCE: one is read in SOURCE itself, with files by their path "
        "from there; move it"
        for n, p in files.items()
        if is_labels(p.name)
    }
    aside |= {n: "is no regular file" for n, p in files.items() if _is_special(p)}
    aside |= {n: LEFT_OVER for n in files if is_left_over(n, files)}
    return {n: p for n, p in files.items() if n not in aside}, aside


def _is_special(path: Path) -> bool:
    """Whether it is a pipe, a device or a socket, which may never end; what cannot be reached is
    left to its reader.
    """
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def is_left_over(name: str, files: Mapping[str, Path]) -> bool:
    """Whether a file is what tools leave beside scans and annotations."""
    path = PurePosixPath(name)
    folders = [p.lower() for p in path.parts[:-1]]
    if (
        path.name.startswith("._")
        or path.name.lower() in LEFT_FILES
        or set(folders) & set(LEFT_FOLDERS)
    ):
        return True
    if path.stem.lower().endswith(LEFT_STEMS) and path.suffix.lower() in IMAGES:
        return True
    # labelme_json_to_dataset unpacks NAME.json into NAME_json/
    return path.parent.name.endswith("_json") and f"{path.parent.as_posix()[:-5]}.json" in files


def of_a_system(name: str) -> bool:
    """Whether a file or folder is what macOS or Windows leave beside others."""
    return name.lower() in (*LEFT_FILES, "__macosx") or name.startswith("._")


def is_labels(name: str) -> bool:
    """Whether a file is the table of labels."""
    return name.lower() == LABELS


def is_image(name: str) -> bool:
    """Whether a file is called like an image."""
    return PurePosixPath(name).suffix.lower() in IMAGES


def spacing_mm(value: str | None) -> float | None:
    """Parse a spacing in mm; None for what is no positive number. A decimal comma is a point."""
    try:
        number = float((value or "").replace(",", "."))
    except ValueError:
        return None
    return number if 0 < number < 1000 else None


def mask_folder(name: str) -> re.Match[str] | None:
    """The match of a folder of masks, whose first group is the category."""
    return re.fullmatch(r"masks(?:_(\w+))?", name)
