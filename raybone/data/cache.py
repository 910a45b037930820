"""Scans as a network of some size sees them, made once a node and shared by its processes through
the page cache.
"""

from __future__ import annotations

import os
import shutil
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from raybone.data.dataset import Dataset
from raybone.data.preprocess import resize, to_intensity
from raybone.data.remote import private_cache
from raybone.private import put, workplace
from raybone.types import Array, Scan

VERSION = 2  # raise it with any change of to_intensity or resize
STEPS = (
    65535  # of an intensity between 0 and 1, which is kept in 16 bits until a batch is made of it
)


class Intensities:
    """Intensities of a dataset's scans, uint16, with a long side of ``size`` pixels; the same with
    a cache or without.

    What is not cached yet is made now, in a private folder of the machine's temporary one: 2 bytes
    a pixel, which may be removed at any time that nothing trains. Shapes for which the disk has
    less than twice the room are not cached.
    """

    def __init__(self, dataset: Dataset, size: int) -> None:
        self.dataset, self.size = dataset, size
        self.files: dict[tuple[int, int], tuple[Path, int]] = {}
        self._row: dict[str, int] = {}
        folder = private_cache()
        for shape in {(s.height, s.width) for s in dataset.scans}:
            # Datasets of one hash may have their rows in another order: the cache has its own, by
            # scan_id.
            scans = sorted(
                (s for s in dataset.scans if (s.height, s.width) == shape), key=lambda s: s.scan_id
            )
            self._row.update({s.scan_id: row for row, s in enumerate(scans)})
            path = folder / f"{dataset.hash}-{shape[0]}x{shape[1]}-{size}-v{VERSION}.npy"
            if folder.stat().st_uid == os.getuid() and (_sound(path) or self._make(path, scans)):
                self.files[shape] = (path, path.stat().st_mtime_ns)

    def __call__(self, scan: Scan) -> Array:
        """The intensities of a scan, (H, W); what a cache holds is read-only and not copied."""
        path = self.files.get((scan.height, scan.width))
        return np.asarray(_open(*path)[self._row[scan.scan_id]]) if path else self._made(scan)

    def _make(self, path: Path, scans: list[Scan]) -> bool:
        first_HW = self._made(scans[0])
        if shutil.disk_usage(path.parent).free < 2 * len(scans) * first_HW.nbytes:
            return False
        with workplace(path, wait=True) as own:
            if _sound(path):  # by now: another process was making it
                return True
            values_NHW = np.lib.format.open_memmap(
                own / "x", "w+", np.uint16, (len(scans), *first_HW.shape)
            )
            for row, scan in enumerate(scans):
                values_NHW[row] = self._made(scan)
            values_NHW.flush()
            # After the values, so that a cache without its sum is none.
            (own / "sum").write_text(str(_sum(own / "x")), encoding="utf-8")
            put(own / "x", path)
            put(own / "sum", path.with_suffix(".sum"))
        return True

    def _made(self, scan: Scan) -> Array:
        return intensities_of(self.dataset.counts(scan), scan.high, self.size)


def intensities_of(counts_HW: Array, high: float, size: int) -> Array:
    """Counts as intensities, uint16, with a long side of ``size`` pixels.

    Args:
        high: upper edge of the display window, in counts.
    """
    image_HW, _ = resize(to_intensity(counts_HW, high), size)
    return np.rint(image_HW * np.float32(STEPS)).astype(np.uint16)


def drop(dataset_hash: str) -> None:
    """Remove what this machine has cached of a dataset."""
    for path in private_cache().glob(f"{dataset_hash}-*"):
        path.unlink(missing_ok=True)


def _sound(path: Path) -> bool:
    """Whether a cache is there and what was written; read whole once a process, at the speed of
    memory.
    """
    try:
        found = path.stat()
        return _matches(path, found.st_ino, found.st_mtime_ns)
    except OSError:
        return False


@lru_cache(maxsize=64)
def _matches(path: Path, inode: int, changed: int) -> bool:  # noqa: ARG001  the file may be made anew
    return path.with_suffix(".sum").read_text(encoding="utf-8") == str(_sum(path))


def _sum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while part := file.read(1 << 24):
            total = zlib.crc32(part, total)
    return total


def as_float(image_HW: Array, out: Array | None = None) -> Array:
    """Intensities as float32 in [0, 1], which they may be already."""
    result_HW = np.empty(image_HW.shape, np.float32) if out is None else out
    np.copyto(result_HW, image_HW)  # twice as fast as a multiplication that converts
    if image_HW.dtype == np.uint16:
        result_HW *= np.float32(1 / STEPS)
    return result_HW


@lru_cache(maxsize=64)
def _open(path: Path, changed: int) -> Array:  # noqa: ARG001  the file may be made anew
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]
