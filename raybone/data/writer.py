"""Makes a dataset folder: counts are stored scan by scan, by several processes at once; the tables
come last.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from raybone.data.annotations import to_coco
from raybone.data.dataset import COLUMNS, FORMAT, SEALED, seal_of
from raybone.private import lock
from raybone.types import Array, Scan, safe_cell

# Bytes before the data of a .npy file: numpy pads the header, so that a growing array keeps its
# length
HEADER = 128


def store(folder: Path, counts_HW: Array, scan: Scan) -> tuple[Scan, str]:
    """Put counts, uint16 of shape (H, W), into the array of their shape.

    Several processes may do so at once, unless the file system has no locks.

    Returns:
        the scan with its size, row and display window, and the digest of its pixels.
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
    high = round(_percentile(data), 3)
    return replace(scan, height=height, width=width, row=row, high=high), digest_of(data)


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
        self._copies: dict[str, int] = {}
        self._digest_of: dict[str, str] = {}

    def add(self, scan: Scan, digest: str) -> Scan:
        """Append a scan that ``store`` stored; returns it with its id, which is from its pixels."""
        copy = self._copies[digest] = self._copies.get(digest, 0) + 1
        scan_id = f"s{digest[:12]}" + (f"-{copy}" if copy > 1 else "")
        self.scans.append(replace(scan, scan_id=scan_id))
        self._digest_of[scan_id] = digest
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
        """Scans of the same pixels with different annotations."""
        said: dict[str, list[Scan]] = {}
        for scan in self.scans:
            if not {"unannotated", "taken-as-negative"} & set(scan.flags):
                said.setdefault(self._digest_of[scan.scan_id], []).append(scan)
        return [
            scan.scan_id
            for many in said.values()
            if any(scan.lesions != many[0].lesions for scan in many)
            for scan in many
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
        coco = to_coco(self.scans, meta["categories"])
        (self.path / "annotations.json").write_text(json.dumps(coco), encoding="utf-8")
        content["sealed"] = {name: seal_of(self.path / name) for name in SEALED}
        (self.path / "dataset.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        return content

    def _table(self, name: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
        with (self.path / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerows([safe_cell(value) for value in row] for row in (columns, *rows))


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


def _coarse(size: int) -> int:
    """A file's length up to the next power of two of at least 1 KiB: an exact one may say which
    file it is.
    """
    return 1 << max(10, (size - 1).bit_length()) if size else 0


def _cells(scan: Scan, labels: list[str]) -> list[Any]:
    own = [getattr(scan, c) for c in COLUMNS]
    values = [" ".join(v) if isinstance(v, tuple) else "" if v is None else v for v in own]
    return values + [dict(scan.labels).get(name, "") for name in labels]
