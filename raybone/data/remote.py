"""A dataset at a URL: copied once to each machine that reads it, and memory-mapped there by all its
processes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

from raybone.errors import WrongInput
from raybone.private import put, sweep_all, workplace
from raybone.storage import Folder, patiently

FILES = ("annotations.json", "scans.csv", "folds.csv", "rejected.csv")


def private_cache() -> Path:
    """The folder for copies and caches of this machine, readable by its owner alone."""
    folder = Path(tempfile.gettempdir()) / f"raybone-cache-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid == os.getuid():
        sweep_all(folder)
    return folder


def own_cache(what: str) -> Path:
    """``private_cache`` for a copy that must be made.

    Args:
        what: is copied, for the error.
    Raises:
        WrongInput: another user owns that folder.
    """
    cache = private_cache()
    if cache.stat().st_uid != os.getuid():
        raise WrongInput(
            f"{what}: its copy goes to {cache}, but that belongs to another user; set TMPDIR"
        )
    return cache


def local_copy(url: str) -> Path:
    """The folder on this machine that holds the dataset of that URL; of several processes one
    copies, others wait.

    A dataset that has changed at its URL is another copy. Copies may be removed at any time that
    nothing trains.

    Raises:
        WrongInput: there is no dataset, or the machine has no room for it.
    """
    there, cache = Folder(url), own_cache(f"dataset {url}")
    told = there.read("dataset.json")
    if told is None:
        raise WrongInput(
            f"dataset {url}: must be a folder made by `raybone prepare`, but it has no "
            "dataset.json; copy one there"
        )
    target = cache / f"dataset-{hashlib.sha256(url.encode() + told).hexdigest()[:16]}"
    with workplace(target, wait=True) as place:
        if not target.exists():
            _copy(there, place / "new", told)
            put(place / "new", target)
    return target


def _copy(there: Folder, part: Path, told: bytes) -> None:
    names = [*FILES, *(f"pixels/{name}" for name in there.names("pixels"))]
    sizes = [int(patiently(partial(there.fs.size, f"{there.path}/{name}")) or 0) for name in names]
    free = shutil.disk_usage(part.parent).free
    if free < sum(sizes) * 1.1:
        raise WrongInput(
            f"dataset {there.url}: its copy takes {sum(sizes) / 1e6:.0f} MB in "
            f"{part.parent.parent}, but {free / 1e6:.0f} MB are free; free some, or set TMPDIR"
        )
    logging.getLogger(__name__).warning(
        "copying dataset %s, %.0f MB, once for this machine", there.url, sum(sizes) / 1e6
    )
    (part / "pixels").mkdir(parents=True)
    for name, size in zip(names, sizes):
        patiently(partial(there.fs.get_file, f"{there.path}/{name}", str(part / name)))
        if (came := (part / name).stat().st_size) != size:
            raise OSError(f"dataset {there.url}: {name} has {size} bytes, but {came} came")
    (part / "dataset.json").write_bytes(told)
