"""Scans a second of prepare and of the training loader, side by side with the plain ways, and what
they keep in memory.

``python benchmarks/data.py`` takes some minutes and 2 GB in the temporary folder, and writes
results/data.json.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pydicom
import torch
from machine import by_turns, keep, median
from pydicom.pixels import apply_modality_lut
from pydicom.uid import JPEG2000Lossless
from torch.utils.data import DataLoader

from raybone.data.augment import Augmentation
from raybone.data.cache import STEPS, Intensities
from raybone.data.dataset import Dataset, open_dataset
from raybone.data.ingest.dicom.frames import write_scan
from raybone.data.ingest.prepare import prepare
from raybone.data.loader import Change, EpochSampler, Look, ScanSamples
from raybone.data.preprocess import resize, to_intensity
from raybone.types import Array, Scan

BATCH, ROUNDS = 8, 5


def main() -> None:
    """Run all and print a table for each."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        result["prepare"] = {
            kind: preparing(root / kind, kind, files)
            for kind, files in (("uncompressed", 1000), ("jpeg2000", 200))
        }
        dataset = open_dataset(
            prepare(root / "uncompressed", root / "ds", folds=2, key=root / "key").path
        )
        result["readers"] = readers(root / "ds")
        result["loader"] = loading(dataset, root / "uncompressed", root / "png")
        result["memory"] = [flat(root / "many", count) for count in (1000, 10_000)]
    print(f"peak memory of prepare: {result['memory']}")
    keep("data", result)


def preparing(source: Path, kind: str, files: int) -> dict[str, Any]:
    """prepare against loops of pydicom in one process: reading alone, and the same job."""
    source.mkdir()
    rng = np.random.default_rng(0)
    shape_HW = np.repeat(np.repeat(rng.gamma(0.5, 12, (128, 32)), 8, 0), 8, 1)
    for number in range(files):
        path = source / f"{number}.dcm"
        write_scan(
            path,
            rng.poisson(shape_HW).astype(np.uint16),
            patient=f"P{number}",
            view="anterior",
            pixel_mm=2.26,
            uid=str(number),
        )
        if kind == "jpeg2000":
            scan = pydicom.dcmread(path)
            scan.compress(JPEG2000Lossless)
            scan.save_as(path)
    paths = sorted(source.iterdir())
    seconds = by_turns(
        {
            "loop: read alone": lambda out: [pydicom.dcmread(p).pixel_array for p in paths],
            "loop: read and np.save": lambda out: [
                np.save(out / f"{p.stem}.npy", _values(p)) for p in paths
            ],
            "loop: the same job": lambda out: [_same_job(p, out) for p in paths],
            "raybone prepare": lambda out: prepare(source, out / "ds", folds=2, key=out / "key"),
        },
        ROUNDS,
    )
    return _table(f"prepare, {kind}", seconds, files, "raybone prepare")


def loading(dataset: Dataset, source: Path, png: Path) -> dict[str, Any]:
    """An epoch of the training loader against reading PNG or DICOM each epoch, with the same
    windowing and batching.
    """
    png.mkdir()
    scans = list(dataset.scans)[:256]
    dicom = {}
    for path in sorted(source.iterdir()):
        values_HW = pydicom.dcmread(path).pixel_array
        dicom[hashlib.sha256(b"1024x256:" + values_HW.tobytes()).hexdigest()[:12]] = path
    for scan in scans:
        cv2.imwrite(str(png / f"{scan.scan_id}.png"), np.asarray(dataset.counts(scan)))
    readers_of: dict[str, Callable[[Scan], Array] | None] = {
        "raybone": None,
        "PNG": lambda s: cv2.imread(str(png / f"{s.scan_id}.png"), cv2.IMREAD_UNCHANGED),
        "DICOM": lambda s: pydicom.dcmread(dicom[s.scan_id[1:13]]).pixel_array,
    }
    result = {}
    for name, hyper in (("plain", None), ("mosaic", Augmentation(mosaic=1.0))):
        for workers in (0, 2, 4):
            runs = {
                kind: _epochs(_samples(dataset, scans, hyper, read), workers)
                for kind, read in readers_of.items()
            }
            seconds = by_turns(
                {kind: lambda _, it=it: next(it) for kind, it in runs.items()}, ROUNDS
            )
            result[f"{name}, {workers} workers"] = _table(
                f"loader, {name}, {workers} workers", seconds, len(scans), "raybone"
            )
    return result


def readers(path: Path) -> dict[str, float]:
    """Proportional set size, MB, of one and of eight processes that have read every scan of one
    dataset.
    """
    sizes = {}
    for count in (1, 8):
        context = multiprocessing.get_context("spawn")
        barrier, queue = context.Barrier(count), context.Queue()
        started = [
            context.Process(target=_read_all, args=(path, barrier, queue)) for _ in range(count)
        ]
        for process in started:
            process.start()
        sizes[f"{count} readers"] = round(sum(queue.get() for _ in started), 1)
        for process in started:
            process.join()
    sizes["pixels"] = round(sum(p.stat().st_size for p in (path / "pixels").iterdir()) / 1e6, 1)
    print(f"\nmapped pixels in memory, MB (proportional set size): {sizes}")
    return sizes


def flat(source: Path, files: int) -> dict[str, float]:
    """Peak of the memory, MB, that belongs to prepare and its processes alone, for so many files of
    256x64.
    """
    source.mkdir(exist_ok=True)
    rng = np.random.default_rng(1)
    for number in range(files):
        if not (source / f"{number}.dcm").exists():
            write_scan(
                source / f"{number}.dcm",
                rng.poisson(5, (256, 64)).astype(np.uint16),
                patient=f"P{number}",
                view="anterior",
                pixel_mm=9,
                uid=str(number),
            )
    began, peak = time.perf_counter(), 0.0
    process = psutil.Popen(
        [
            sys.executable,
            "-m",
            "raybone",
            "prepare",
            str(source),
            str(source.parent / f"ds-{files}"),
            "--key",
            str(source.parent / "key"),
        ],
        stdout=subprocess.DEVNULL,
    )
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):  # processes end while they are looked at
            peak = max(
                peak,
                sum(p.memory_full_info().uss for p in (process, *process.children(recursive=True))),
            )
        time.sleep(0.05)
    assert process.returncode == 0
    return {
        "files": files,
        "seconds": round(time.perf_counter() - began, 1),
        "peak_MB": round(peak / 1e6),
    }


def _samples(
    dataset: Dataset,
    scans: list[Scan],
    hyper: Augmentation | None,
    read: Callable[[Scan], Array] | None,
) -> ScanSamples:
    """The loader's samples, or the same ones read from a file each time."""

    def from_file(scan: Scan) -> Array:
        counts_HW = np.maximum(read(scan), 0) if read else dataset.counts(scan)
        image_HW, _ = resize(to_intensity(counts_HW, scan.high), 1024)
        return np.rint(image_HW * np.float32(STEPS)).astype(np.uint16) if hyper else image_HW

    images = from_file if read else Intensities(dataset, 1024)
    return ScanSamples(images, scans, Look(["malignant"], 1024), hyper and Change(hyper))


def _epochs(samples: ScanSamples, workers: int) -> Iterator[int]:
    loader = DataLoader(
        samples,
        BATCH,
        sampler=EpochSampler(len(samples), 0, 0, 1),
        num_workers=workers,
        collate_fn=samples.collate,
        persistent_workers=workers > 0,
    )
    for _ in loader:  # starts the workers and warms the files
        pass
    while True:
        yield sum(len(batch.index_N) for batch in loader)


def _values(path: Path) -> Array:
    scan = pydicom.dcmread(path)
    return np.asarray(apply_modality_lut(scan.pixel_array, scan))


def _same_job(path: Path, out: Path) -> None:
    """Ids by content, window and array of one scan, written down as a plain script would."""
    hashlib.sha256(path.read_bytes()).hexdigest()
    values_HW = np.clip(_values(path), 0, 65535).astype(np.uint16)
    name = hashlib.sha256(values_HW.tobytes()).hexdigest()
    np.percentile(values_HW, 99.9)
    np.save(out / f"{name[:12]}.npy", values_HW)


def _read_all(path: Path, barrier: Any, queue: Any) -> None:
    dataset = open_dataset(path)
    for scan in dataset.scans:
        dataset.counts(scan).sum()
    barrier.wait()
    lines = Path("/proc/self/smaps").read_text(encoding="utf-8").split("\n")
    total, inside = 0.0, False
    for line in lines:
        if "-" in line.split(" ")[0] and ":" not in line.split(" ")[0]:
            inside = line.endswith(".npy")
        elif inside and line.startswith("Pss:"):
            total += float(line.split()[1]) / 1000
    queue.put(total)
    barrier.wait()


def _table(title: str, seconds: dict[str, list[float]], scans: int, ours: str) -> dict[str, Any]:
    rows = {
        name: {
            "scans_per_s": round(scans / median(s), 1),
            "ratio": round(median(s) / median(seconds[ours]), 2),
        }
        for name, s in seconds.items()
    }
    print(f"\n{title}: median of {ROUNDS}")
    for name, row in rows.items():
        print(
            f"  {name:<24} {row['scans_per_s']:9.1f} scans/s   {ours} is {row['ratio']:5.2f} times "
            "as fast"
        )
    return rows


if __name__ == "__main__":
    main()
