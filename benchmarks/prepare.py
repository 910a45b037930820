"""Scans a second of prepare, beside those of another checkout: ``python benchmarks/prepare.py
OTHER`` (some minutes).

Sources are a phantom-like cohort as DICOM, as PNG with a LabelMe file each, and as PNG with one
COCO file; the two checkouts take turns. Writes results/prepare.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from machine import keep, median

from raybone.data.ingest.dicom.frames import write_scan

HERE, SCANS, ROUNDS = Path(__file__).resolve().parents[1], 2000, 5
OUTLINE = [
    [100 + 9 * float(np.cos(a)), 400 + 12 * float(np.sin(a))] for a in np.linspace(0, 6.2, 24)
]
CODE = (
    "import sys; from raybone.data.ingest.prepare import prepare; prepare(sys.argv[1], "
    "sys.argv[2], folds=5, key=sys.argv[3])"
)


def main() -> None:
    """Measure and keep."""
    other = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        place, found = Path(folder), {}
        for kind in ("dicom", "labelme", "coco"):
            source = cohort(place / kind, kind)
            seconds: dict[str, list[float]] = {"this checkout": [], "the other": []}
            for turn in range(ROUNDS + 1):
                for name, root in (("this checkout", HERE), ("the other", other)):
                    took = once(root, source, place / f"{kind}-{turn}-{name[:3]}", place / "key")
                    seconds[name] += [took] * bool(turn)  # the first turn warms the disk
            rates = {name: round(SCANS / median(times), 1) for name, times in seconds.items()}
            found[kind] = {
                "scans_per_s": rates,
                "ratio": round(rates["this checkout"] / rates["the other"], 2),
            }
            print(kind, found[kind], flush=True)
    versions = {
        name: subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for name, root in (("this checkout", HERE), ("the other", other))
    }
    keep("prepare", {"scans": SCANS, "rounds": ROUNDS, "commits": versions, **found})


def once(root: Path, source: Path, out: Path, key: Path) -> float:
    """Seconds of one run, with its start, as a person waits for it."""
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", CODE, str(source), str(out), str(key)],
        check=True,
        cwd=source,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.monotonic() - began


def cohort(folder: Path, kind: str) -> Path:
    """Scans of 512x128 with one outline each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(SCANS):
        counts_HW = rng.poisson(20, (512, 128)).astype(np.uint16)
        name = f"{number:05d}"
        if kind == "dicom":
            write_scan(
                folder / f"{name}.dcm",
                counts_HW,
                patient=str(number // 2),
                view="anterior",
                pixel_mm=2,
                uid=name,
            )
        else:
            cv2.imwrite(str(folder / f"{name}.png"), counts_HW)
        if kind == "labelme":
            shape = {"label": "metastasis", "shape_type": "polygon", "points": OUTLINE}
            (folder / f"{name}.json").write_text(
                json.dumps(
                    {
                        "imagePath": f"{name}.png",
                        "imageHeight": 512,
                        "imageWidth": 128,
                        "shapes": [shape],
                    }
                )
            )
    if kind == "coco":
        flat = [v for corner in OUTLINE for v in corner]
        (folder / "annotations.json").write_text(
            json.dumps(
                {
                    "images": [
                        {"id": n, "file_name": f"{n:05d}.png", "height": 512, "width": 128}
                        for n in range(SCANS)
                    ],
                    "annotations": [
                        {"id": n, "image_id": n, "category_id": 1, "segmentation": [flat]}
                        for n in range(SCANS)
                    ],
                    "categories": [{"id": 1, "name": "metastasis"}],
                }
            )
        )
    return folder


if __name__ == "__main__":
    main()
