"""The dataset folder: dataset.json, scans.csv, pixels/HxW.npy, annotations.json, folds.csv, rejected.csv."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from raybone.data.annotations import read_coco, to_coco
from raybone.records import Array, Scan, WrongInput

FORMAT = 1
COLUMNS = ("scan_id", "patient_id", "view", "height", "width", "pixel_mm", "row", "high", "site")


@dataclass(frozen=True)
class Dataset:
    """A checked dataset: its scans with lesions, and the fold of each patient."""

    path: Path
    meta: dict[str, Any]
    scans: tuple[Scan, ...]
    fold_of: dict[str, int]

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

    def training(self, fold: int) -> list[Scan]:
        """Scans of the patients of all folds but this one."""
        return [s for s in self.scans if self.fold_of[s.patient_id] not in (fold, -1)]

    def validation(self, fold: int) -> list[Scan]:
        """Scans of the patients of this fold."""
        return [s for s in self.scans if self.fold_of[s.patient_id] == fold]

    def counts(self, scan: Scan) -> Array:
        """The scan's counts, uint16, shape (H, W), as a read-only view of the memory map."""
        return _pixels(self.path / "pixels" / f"{scan.height}x{scan.width}.npy")[scan.row]


def open_dataset(path: Path | str) -> Dataset:
    """Open a dataset folder.

    Raises:
        WrongInput: it is missing, of another format version, or its files disagree.
    """
    path = Path(path)
    if not (path / "dataset.json").is_file():
        raise WrongInput(f"dataset {path}: must be a folder made by `raybone prepare`, but it has no dataset.json; "
                         f"run `raybone prepare SOURCE {path}`")
    try:
        meta = json.loads((path / "dataset.json").read_text(encoding="utf-8"))
        if meta["format"] != FORMAT:
            raise WrongInput(f"dataset {path}: format must be {FORMAT}, got {meta['format']}; prepare it again")
        lesions, _ = read_coco(path / "annotations.json")
        scans = tuple(_scan(row, tuple(lesions[row["scan_id"]])) for row in _rows(path / "scans.csv"))
        fold_of = {row["patient_id"]: int(row["fold"]) for row in _rows(path / "folds.csv")}
        missing = {s.patient_id for s in scans} - set(fold_of)
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, WrongInput):
            raise
        raise WrongInput(f"dataset {path}: its files must agree, but {type(error).__name__}: {str(error)[:100]}; "
                         "prepare it again") from None
    if missing:
        raise WrongInput(f"dataset {path}: every patient needs a fold in folds.csv, {len(missing)} have none "
                         f"(first {min(missing)}); prepare it again")
    return Dataset(path, meta, scans, fold_of)


class DatasetWriter:
    """Fills a folder with scans one at a time, in flat memory; ``finish`` makes it whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "pixels").mkdir(parents=True)
        self._files: dict[tuple[int, int], tuple[BinaryIO, int]] = {}
        self._scans: list[Scan] = []
        self._taken: dict[str, int] = {}
        self._digests: dict[str, list[str]] = {}

    def add(self, counts_HW: Array, scan: Scan) -> Scan:
        """Append one scan; returns it with its id (from its pixels), size, row and display window filled in."""
        height, width = counts_HW.shape
        file, row = self._files.get((height, width)) or (self._create(height, width), 0)
        file.write(np.ascontiguousarray(counts_HW, "<u2").tobytes())
        self._files[height, width] = (file, row + 1)
        digest = hashlib.sha256(f"{height}x{width}:".encode() + counts_HW.astype("<u2").tobytes()).hexdigest()
        copy = self._taken[digest] = self._taken.get(digest, 0) + 1
        scan_id = f"s{digest[:12]}" + (f"-{copy}" if copy > 1 else "")
        high = float(np.percentile(counts_HW, 99.9)) or float(counts_HW.max())
        full = replace(scan, scan_id=scan_id, height=height, width=width, row=row, high=round(high, 3))
        self._scans.append(full)
        note = [digest, scan.view, [[le.box_xyxy, le.category, le.rle] for le in scan.lesions]]
        self._digests.setdefault(scan.patient_id, []).append(
            hashlib.sha256(json.dumps(note, sort_keys=True).encode()).hexdigest())
        return full

    @property
    def scans(self) -> list[Scan]:
        """What was added so far."""
        return self._scans

    def patient_content(self) -> dict[str, str]:
        """A hash of each patient's scans and lesions, independent of names and of the order of files."""
        return {p: hashlib.sha256("".join(sorted(d)).encode()).hexdigest() for p, d in self._digests.items()}

    def finish(self, fold_of: dict[str, int], categories: list[str], meta: dict[str, Any],
               rejected: Iterable[tuple[str, int, str]]) -> dict[str, Any]:
        """Close the arrays and write the tables; returns the content of dataset.json."""
        for (height, width), (file, count) in self._files.items():
            file.seek(0)
            _header(file, (count, height, width))
            file.close()
        folds = sorted(f"{digest}:{fold_of[patient]}" for patient, digest in self.patient_content().items())
        content = {"format": FORMAT, "hash": hashlib.sha256("\n".join(folds).encode()).hexdigest()[:16], **meta}
        self._table("scans.csv", COLUMNS, ([_cell(getattr(s, c)) for c in COLUMNS] for s in self._scans))
        self._table("folds.csv", ("patient_id", "fold"), sorted(fold_of.items()))
        self._table("rejected.csv", ("input_id", "bytes", "reason"), rejected)
        coco = to_coco(self._scans, categories)
        (self.path / "annotations.json").write_text(json.dumps(coco), encoding="utf-8")
        (self.path / "dataset.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        return content

    def _create(self, height: int, width: int) -> BinaryIO:
        file = (self.path / "pixels" / f"{height}x{width}.npy").open("wb")
        _header(file, (0, height, width))
        return file

    def _table(self, name: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
        with (self.path / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows)


@lru_cache(maxsize=64)
def _pixels(path: Path) -> Array:
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


def _header(file: BinaryIO, shape: tuple[int, int, int]) -> None:
    # numpy pads the header for a growing first axis, so a rewrite with the final count has the same length.
    np.lib.format.write_array_header_1_0(file, {"descr": "<u2", "fortran_order": False, "shape": shape})


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _scan(row: dict[str, str], lesions: tuple[Any, ...]) -> Scan:
    return Scan(row["scan_id"], row["patient_id"], row["view"], int(row["height"]), int(row["width"]),
                float(row["pixel_mm"]) if row["pixel_mm"] else None, int(row["row"]), float(row["high"]),
                row["site"], lesions)


def _cell(value: Any) -> Any:
    return "" if value is None else value
