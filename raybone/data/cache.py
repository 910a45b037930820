"""Scans as a network of some size sees them, made once a node and shared by its processes through the page cache."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from raybone.data.dataset import Dataset
from raybone.data.preprocess import resize, to_intensity
from raybone.records import Array, Scan

VERSION = 1  # raise it with any change of to_intensity or resize
STEPS = 65535  # of an intensity between 0 and 1, which is kept in 16 bits until a batch is made of it


def intensity(dataset: Dataset, scan: Scan, size: int, cached: Path | None) -> Array:
    """The scan's intensities as uint16 with a long side of ``size`` pixels; the same with a cache or without.

    Args:
        cached: the file of the scan's shape that ``cache`` gave; what it holds is read-only and not copied.
    """
    return np.asarray(_open(cached)[scan.row]) if cached else _made(dataset, scan, size)


def as_float(image_HW: Array, out: Array | None = None) -> Array:
    """Intensities as float32 in [0, 1], which they may be already."""
    result_HW = np.empty(image_HW.shape, np.float32) if out is None else out
    np.copyto(result_HW, image_HW)  # twice as fast as a multiplication that converts
    if image_HW.dtype == np.uint16:
        result_HW *= np.float32(1 / STEPS)
    return result_HW


def cache(dataset: Dataset, size: int) -> dict[tuple[int, int], Path]:
    """A file of intensities for each shape of scan, made now where it is not there yet.

    They lie in a private folder of the machine's temporary one, take 2 bytes a pixel and may be removed at any time
    that nothing trains; shapes for which the disk has less than twice the room are left out.
    """
    folder = Path(tempfile.gettempdir()) / f"raybone-cache-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        return {}
    files = {}
    for shape in {(s.height, s.width) for s in dataset.scans}:
        scans = [s for s in dataset.scans if (s.height, s.width) == shape]
        path = folder / f"{dataset.hash}-{shape[0]}x{shape[1]}-{size}-v{VERSION}.npy"
        first_HW = _made(dataset, scans[0], size)
        rows = 1 + max(s.row for s in scans)
        if not path.exists():
            if shutil.disk_usage(folder).free < 2 * rows * first_HW.nbytes:
                continue
            with tempfile.TemporaryDirectory(dir=folder) as own:  # others may make the same file at the same time
                values_NHW = np.lib.format.open_memmap(Path(own, "x"), "w+", np.uint16, (rows, *first_HW.shape))
                for scan in scans:
                    values_NHW[scan.row] = _made(dataset, scan, size)
                values_NHW.flush()
                Path(own, "x").replace(path)
        files[shape] = path
    return files


def _made(dataset: Dataset, scan: Scan, size: int) -> Array:
    image_HW, _ = resize(to_intensity(dataset.counts(scan), scan.high), size)
    return np.rint(image_HW * np.float32(STEPS)).astype(np.uint16)


@lru_cache(maxsize=64)
def _open(path: Path) -> Array:
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]
