"""The dataset folder: dataset.json, scans.csv, pixels/HxW.npy, annotations.json, folds.csv,
rejected.csv.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raybone.data.annotations import read_coco
from raybone.data.folds import TEST, TRAINING
from raybone.data.ingest.sources import is_image
from raybone.data.remote import local_copy
from raybone.errors import DamagedFile, WrongInput
from raybone.private import sweep
from raybone.types import Array, Scan, plain_cell

if TYPE_CHECKING:
    from raybone.study.spec import ResolvedStudy

FORMAT = 1
COLUMNS = (
    "scan_id",
    "patient_id",
    "view",
    "height",
    "width",
    "pixel_mm",
    "row",
    "high",
    "site",
    "scanner",
    "instance",
    "flags",
)
LOOKED_AT = 10_000  # files of a folder that is no dataset, of which the scans are counted
SEALED = ("scans.csv", "folds.csv", "annotations.json")  # whose edits nothing else would show


@dataclass(frozen=True)
class Dataset:
    """A checked dataset: its scans with lesions, and the fold of each patient.

    test_fold: whether each fold leaves the next one (after the last the first) out of its training,
    to be reported on. group_of: of each patient the one that stands for all who may be the same
    person, and share its fold. stamp: which dataset.json it was read from, so that pixels of
    another one put in its place are not taken for its.
    """

    path: Path
    meta: dict[str, Any]
    scans: tuple[Scan, ...]
    fold_of: dict[str, int]
    test_fold: bool = False
    stamp: tuple[int, int] = (0, 0)
    group_of: Mapping[str, str] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Hash of pixels, annotations and folds; independent of pseudonyms."""
        return str(self.meta["hash"])

    @property
    def folds(self) -> int:
        """Number of cross-validation folds."""
        return len({f for f in self.fold_of.values() if f >= 0})

    @property
    def categories(self) -> list[str]:
        """Category names in annotation order."""
        return list(self.meta["categories"])

    def training(self, fold: int, negatives: bool = True) -> list[Scan]:
        """Scans of the patients of all folds but this one, and of those who are in training alone
        if wanted.
        """
        out = {
            fold,
            TEST,
            *(() if negatives else (TRAINING,)),
            *((self._next(fold),) if self.test_fold else ()),
        }
        return [s for s in self.scans if self.fold_of[s.patient_id] not in out]

    def validation(self, fold: int) -> list[Scan]:
        """Scans of the patients of this fold."""
        return [s for s in self.scans if self.fold_of[s.patient_id] == fold]

    def reported(self, fold: int) -> list[Scan]:
        """Scans of the fold that is neither trained on nor validates here; none without
        ``test_fold``.
        """
        return self.validation(self._next(fold)) if self.test_fold else []

    @property
    def test(self) -> list[Scan]:
        """Scans of the patients of the test group, which no fold holds; often none."""
        return self.validation(TEST)

    def _next(self, fold: int) -> int:
        return (fold + 1) % self.folds

    def counts(self, scan: Scan) -> Array:
        """The scan's counts, uint16, shape (H, W), as a read-only view of the memory map.

        Raises:
            DamagedFile: another dataset lies there since it was opened.
        """
        if _stamp(self.path) != self.stamp:
            raise DamagedFile(
                f"dataset {self.path}: was replaced while it was in use; put the old one back "
                f"(hash {self.hash}), then give the same command"
            )
        path = self.path / "pixels" / f"{scan.height}x{scan.width}.npy"
        made = path.stat()
        return _pixels(path, made.st_ino, made.st_mtime_ns)[scan.row]


def open_dataset(path: Path | str, test_fold: bool = False) -> Dataset:
    """Open a dataset folder, or the copy on this machine of one at an fsspec URL.

    Raises:
        WrongInput: it is missing, of another format version, or its files disagree.
    """
    path = local_copy(str(path)) if "://" in str(path) else Path(path).expanduser()
    sweep(path.resolve())
    if not (path / "dataset.json").is_file():
        raise WrongInput(_unprepared(path))
    try:
        stamp = _stamp(path)
        meta = json.loads((path / "dataset.json").read_text(encoding="utf-8"))
        if meta["format"] != FORMAT:
            raise WrongInput(
                f"dataset {path}: format must be {FORMAT}, got {meta['format']}; prepare it again"
            )
        seals = meta.get("sealed", {})  # none in datasets of before there were seals
        if edited := [
            name for name in SEALED if name in seals and seal_of(path / name) != seals[name]
        ]:
            raise WrongInput(
                f"dataset {path}: its hash stands for {', '.join(edited)} as first written, but "
                "that was changed since; put it back, or prepare it again (--split gives folds)"
            )
        lesions = read_coco(path / "annotations.json")
        if {le.category for many in lesions.values() for le in many} - set(meta["categories"]):
            raise ValueError("annotations.json and scans or categories")
        scans = tuple(
            _scan(row, tuple(lesions[row["scan_id"]])) for row in _rows(path / "scans.csv")
        )
        rows = _rows(path / "folds.csv")
        fold_of = {row["patient_id"]: int(row["fold"]) for row in rows}
        group_of = {row["patient_id"]: row.get("group") or row["patient_id"] for row in rows}
        if not all(0 <= s.high < math.inf for s in scans):
            raise ValueError("scans.csv: high must be a finite number")
        missing = {s.patient_id for s in scans} - set(fold_of)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, WrongInput):
            raise
        raise WrongInput(
            f"dataset {path}: its files must agree, but {type(error).__name__}: "
            f"{str(error)[:100]}; prepare it again"
        ) from None
    if missing:
        raise WrongInput(
            f"dataset {path}: every patient needs a fold in folds.csv, {len(missing)} have none "
            f"(first {min(missing)}); prepare it again"
        )
    return Dataset(path, meta, scans, fold_of, test_fold, stamp, group_of)


def seal_of(file: Path) -> str:
    """SHA-256 of a file, by which later edits are seen."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _unprepared(path: Path) -> str:
    """What is wrong with a folder that has no dataset.json: most often it holds the scans
    themselves.
    """
    made = f"dataset {path}: must be a folder made by `raybone prepare`, but it"
    if not path.exists():
        return f"{made} is not there; check the path, or run `raybone prepare SOURCE {path}`"
    files = [f for f in islice(path.rglob("*"), LOOKED_AT) if f.is_file()]
    images, dicom = sum(is_image(f.name) for f in files), sum(_begins_dicom(f) for f in files)
    for name, what in (("*.yaml", "study"), ("bundle.json", "bundle")):
        if not images + dicom and any(path.glob(name)):
            return f"{made} is a {what}; give the dataset"
    if not images + dicom:
        return f"{made} has no dataset.json; run `raybone prepare SOURCE data/NAME`"
    return (
        f"dataset {path}: holds {dicom} DICOM files and {images} images, but no dataset.json: run "
        f"`raybone prepare {shlex.quote(str(path))} data/NAME` and give that folder"
    )


def _begins_dicom(path: Path) -> bool:
    from raybone.data.ingest.dicom.frames import (
        is_dicom,  # imports pydicom, which training needs not
    )

    with path.open("rb") as file:
        return is_dicom(file.read(132))


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when dataset.json is written anew; nothing known where it is gone."""
    try:
        found = (path / "dataset.json").stat()
    except OSError:
        return 0, 1
    return found.st_ino, found.st_mtime_ns


@lru_cache(maxsize=64)
def _pixels(path: Path, inode: int, changed: int) -> Array:  # noqa: ARG001  the file may be made anew
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {plain_cell(k): plain_cell(v) for k, v in row.items()}
            for row in csv.DictReader(file, restval="")
        ]


def _scan(row: dict[str, str], lesions: tuple[Any, ...]) -> Scan:
    labels = tuple((k, v) for k, v in row.items() if k not in COLUMNS and v)
    return Scan(
        row["scan_id"],
        row["patient_id"],
        row["view"],
        int(row["height"]),
        int(row["width"]),
        float(row["pixel_mm"]) if row["pixel_mm"] else None,
        int(row["row"]),
        float(row["high"]),
        row["site"],
        row["scanner"],
        row["instance"],
        tuple(row["flags"].split()),
        labels,
        lesions,
    )


def dataset_of(study: ResolvedStudy) -> Dataset:
    """The dataset that a study was made on, wherever its path leads now.

    Raises:
        WrongInput: another one lies there.
    """
    dataset = open_dataset(study.dataset, study.search.test_fold)
    if dataset.hash != study.resolved.dataset_hash:
        raise WrongInput(
            f"dataset {study.dataset}: study {study.name} was begun on the dataset of hash "
            f"{study.resolved.dataset_hash}, but this one is {dataset.hash}; put the old one back, "
            "say where it is now (--dataset), or start another study"
        )
    return dataset
