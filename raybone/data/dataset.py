"""The dataset folder: dataset.json, scans.csv, pixels/HxW.npy, annotations.json, folds.csv,
rejected.csv.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import json
import math
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from raybone.data.annotations import read_coco, to_coco
from raybone.data.folds import TEST, TRAINING
from raybone.data.ingest.sources import is_image
from raybone.data.remote import local_copy
from raybone.errors import DamagedFile, WrongInput
from raybone.private import lock, sweep
from raybone.types import Array, Lesion, Scan, plain_cell, safe_cell

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
# Bytes before the data of a .npy file: numpy pads the header, so that a growing array keeps its
# length
HEADER = 128


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
            name for name in SEALED if name in seals and _seal(path / name) != seals[name]
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


@dataclass(frozen=True)
class Stored:
    """Where the counts of one scan lie, a hash of them, and their 99.9 percentile."""

    height: int
    width: int
    row: int
    digest: str
    high: float


def store(folder: Path, counts_HW: Array) -> Stored:
    """Put counts, uint16 of shape (H, W), into the array of their shape.

    Several processes may do so at once, unless the file system has no locks.
    """
    height, width = counts_HW.shape
    data = np.ascontiguousarray(counts_HW, "<u2")
    content = data.view(np.uint8).data
    file = os.open(folder / "pixels" / f"{height}x{width}.npy", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        locked = lock(file)
        # A row that a dying process left half-way is taken over.
        row = max(0, os.fstat(file).st_size - HEADER) // data.nbytes
        start = HEADER + row * data.nbytes
        os.ftruncate(file, start + data.nbytes)
        if locked:
            fcntl.flock(file, fcntl.LOCK_UN)
        if os.pwrite(file, content, start) != data.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(file)
    return Stored(height, width, row, digest_of(data), round(_percentile(data), 3))


def digest_of(counts_HW: Array) -> str:
    """SHA-256 of the size and the counts of a scan; a scan_id begins with it."""
    digest = hashlib.sha256(f"{counts_HW.shape[0]}x{counts_HW.shape[1]}:".encode())
    digest.update(np.ascontiguousarray(counts_HW, "<u2").view(np.uint8).data)
    return digest.hexdigest()


class DatasetWriter:
    """Makes a dataset of scans whose counts are stored in the folder; ``finish`` makes it whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "pixels").mkdir(parents=True)
        self.scans: list[Scan] = []
        self._taken: dict[str, int] = {}
        self._digest_of: dict[str, str] = {}

    def add(self, stored: Stored, scan: Scan) -> Scan:
        """Append one scan; returns it with its id (from its pixels), size, row and display window
        filled in.
        """
        copy = self._taken[stored.digest] = self._taken.get(stored.digest, 0) + 1
        scan_id = f"s{stored.digest[:12]}" + (f"-{copy}" if copy > 1 else "")
        self.scans.append(
            replace(
                scan,
                scan_id=scan_id,
                height=stored.height,
                width=stored.width,
                row=stored.row,
                high=stored.high,
            )
        )
        self._digest_of[scan_id] = stored.digest
        return self.scans[-1]

    def counts(self, scan: Scan) -> Array:
        """Counts of a scan that was added, uint16, shape (H, W)."""
        path = self.path / "pixels" / f"{scan.height}x{scan.width}.npy"
        return np.memmap(
            path,
            "<u2",
            "r",
            HEADER + scan.row * scan.height * scan.width * 2,
            (scan.height, scan.width),
        )

    def copies(self) -> list[tuple[str, str]]:
        """Pairs of patients with a scan of the same pixels."""
        first: dict[str, str] = {}
        pairs = (
            (first.setdefault(self._digest_of[s.scan_id], s.patient_id), s.patient_id)
            for s in self.scans
        )
        return [(a, b) for a, b in pairs if a != b]

    def copies_that_differ(self) -> list[str]:
        """Scans of the same pixels that somebody annotated in different ways."""
        said: dict[str, dict[str, tuple[Lesion, ...]]] = {}
        for scan in self.scans:
            if not {"unannotated", "taken-as-negative"} & set(scan.flags):
                said.setdefault(self._digest_of[scan.scan_id], {})[scan.scan_id] = scan.lesions
        return [
            scan_id
            for many in said.values()
            if any(le != next(iter(many.values())) for le in many.values())
            for scan_id in many
        ]

    def patient_content(self) -> dict[str, str]:
        """A hash of each patient's scans and lesions, independent of names and of the order of
        files.
        """
        digests: dict[str, list[str]] = {}
        for scan in self.scans:
            note = [
                self._digest_of[scan.scan_id],
                scan.view,
                [
                    [le.box_xyxy, le.category, le.rle, *(["crowd"] if le.crowd else [])]
                    for le in scan.lesions
                ],
                *([] if scan.annotated else ["unannotated"]),
            ]
            digests.setdefault(scan.patient_id, []).append(
                hashlib.sha256(json.dumps(note, sort_keys=True).encode()).hexdigest()
            )
        return {
            p: hashlib.sha256("".join(sorted(d)).encode()).hexdigest() for p, d in digests.items()
        }

    def finish(
        self,
        fold_of: dict[str, int],
        categories: list[str],
        meta: dict[str, Any],
        rejected: Iterable[tuple[str, int, str]],
        groups: Mapping[str, str],
    ) -> dict[str, Any]:
        """Complete the arrays and write the tables; returns the content of dataset.json.

        Args:
            groups: of each patient the one that stands for all who may be the same person.
        """
        for path in (self.path / "pixels").iterdir():
            height, width = (int(n) for n in path.stem.split("x"))
            rows = (path.stat().st_size - HEADER) // (2 * height * width)
            with path.open("r+b") as file:
                np.lib.format.write_array_header_1_0(
                    file, {"descr": "<u2", "fortran_order": False, "shape": (rows, height, width)}
                )
        folds = sorted(
            f"{digest}:{fold_of[patient]}" for patient, digest in self.patient_content().items()
        )
        content = {
            "format": FORMAT,
            "hash": hashlib.sha256("\n".join(folds).encode()).hexdigest()[:16],
            **meta,
        }
        labels = list(dict.fromkeys(name for s in self.scans for name, _ in s.labels))
        self._table("scans.csv", (*COLUMNS, *labels), (_cells(s, labels) for s in self.scans))
        folds_of = [(patient, fold, groups[patient]) for patient, fold in sorted(fold_of.items())]
        self._table("folds.csv", ("patient_id", "fold", "group"), folds_of)
        self._table(
            "rejected.csv",
            ("input_id", "bytes", "reason"),
            ((i, _coarse(n), r) for i, n, r in rejected),
        )
        coco = to_coco(self.scans, categories)
        (self.path / "annotations.json").write_text(json.dumps(coco), encoding="utf-8")
        content["sealed"] = {name: _seal(self.path / name) for name in SEALED}
        (self.path / "dataset.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        return content

    def _table(self, name: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
        with (self.path / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerows([safe_cell(value) for value in row] for row in (columns, *rows))


def _seal(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _coarse(size: int) -> int:
    """A file's length up to the next power of two of at least 1 KiB: an exact one may say which
    file it is.
    """
    return 1 << max(10, (size - 1).bit_length()) if size else 0


def _unprepared(path: Path) -> str:
    """What is wrong with a folder that has no dataset.json: most often it holds the scans
    themselves.
    """
    files = [f for f in islice(path.rglob("*"), LOOKED_AT) if f.is_file()]
    images, dicom = sum(is_image(f.name) for f in files), sum(_begins_dicom(f) for f in files)
    if not images + dicom:
        return (
            f"dataset {path}: must be a folder made by `raybone prepare`, but it has no "
            f"dataset.json; run `raybone prepare SOURCE {path}`"
        )
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


def _percentile(counts_HW: Array, share: float = 0.999) -> float:
    """np.percentile(counts, 99.9) from a histogram, 20 times faster on counts; the maximum when it
    is 0.
    """
    top = int(counts_HW.max())
    seen_C = np.cumsum(
        cv2.calcHist([counts_HW], [0], None, [top + 1], [0, top + 1]).ravel(), dtype=np.int64
    )
    place = share * (counts_HW.size - 1)
    low, high = (int(np.searchsorted(seen_C, int(place) + k, side="right")) for k in (0, 1))
    return (low + (place % 1) * (high - low)) or float(top)


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


def _cells(scan: Scan, labels: list[str]) -> list[Any]:
    own = [getattr(scan, c) for c in COLUMNS]
    values = [" ".join(v) if isinstance(v, tuple) else "" if v is None else v for v in own]
    return values + [dict(scan.labels).get(name, "") for name in labels]
