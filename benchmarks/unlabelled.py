"""What scans without annotation are worth: a U-Net with the outlines of a quarter of the patients,
with and without the others' scans, side by side with all outlines.

    python benchmarks/unlabelled.py [--epochs 60] [--seeds 2]

The same phantom patients, folds and seed in all; where outlines are hidden, all models are scored
on the same patients, those of the quarter.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import numpy as np

from raybone.data.dataset import Dataset, open_dataset
from raybone.data.folds import TRAINING
from raybone.data.ingest.prepare import prepare
from raybone.models import load
from raybone.phantom.phantom import phantom
from raybone.storage import Folder
from raybone.train.fit import fit
from raybone.train.samples import FoldJob

PATIENTS, HEIGHT, FOLDS, SEED, SHARE = 48, 256, 3, 5, 4
HYPER = {"imgsz": HEIGHT, "batch": 4, "nbs": 4, "width": 8, "depth": 3, "lr0": 0.003}


def hidden(opened: Dataset, drop: bool) -> Dataset:
    """The dataset with the outlines of every ``SHARE``-th patient of a fold; the others are in
    training alone.

    Args:
        drop: whether the others' outlines go; else they are trained on.
    """
    by_fold: dict[int, list[str]] = {}
    for patient, fold in sorted(opened.fold_of.items()):
        by_fold.setdefault(fold, []).append(patient)
    kept = {p for patients in by_fold.values() for p in patients[::SHARE]}
    fold_of = {p: fold if p in kept else TRAINING for p, fold in opened.fold_of.items()}
    scans = tuple(
        replace(s, flags=("unannotated",), lesions=()) if drop and s.patient_id not in kept else s
        for s in opened.scans
    )
    return replace(opened, fold_of=fold_of, scans=scans)


def dice(dataset: Dataset, epochs: int, seed: int, place: Path, **more: Any) -> list[float]:
    """Dice of each fold, mean of the last three epochs."""
    model, values = load("unet"), list[float]()
    config = model.Config.model_validate({**HYPER, **more})
    for fold in range(FOLDS):
        job = FoldJob(dataset, model, config, fold, epochs, seed)
        done = list(fit(job, Folder(place / str(fold)), "dice", epochs))
        values.append(float(np.mean([e.metrics["dice"] for e in done[-3:]])))
    return values


def main(epochs: int, seeds: int) -> None:
    """Measure and keep."""
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        scans = phantom(place / "scans", PATIENTS, SEED, height=HEIGHT)
        made = prepare(scans, place / "ds", folds=FOLDS, key=place / "key")
        opened = open_dataset(made.path)
        arms: dict[str, tuple[Dataset, dict[str, Any]]] = {
            "a quarter of the outlines": (hidden(opened, True), {}),
            "and the others' scans": (hidden(opened, True), {"unlabelled": 1.0}),
            "and these with a weight of 0.2": (hidden(opened, True), {"unlabelled": 0.2}),
            "all outlines": (hidden(opened, False), {}),
        }
        for seed in range(seeds):
            for name, (dataset, more) in arms.items():
                found = dice(dataset, epochs, seed, place / f"{name}-{seed}", **more)
                rows.setdefault(name, []).extend(found)
                print(f"seed {seed}, {name}: {np.round(found, 3).tolist()}", flush=True)
    kept = {name: {"dice": values, "mean": float(np.mean(values))} for name, values in rows.items()}
    first, *others = arms
    gains = {name: np.array(rows[name]) - np.array(rows[first]) for name in others}
    gain = {
        name: {
            "mean": float(own.mean()),
            "standard_error": float(own.std(ddof=1) / np.sqrt(len(own))),
        }
        for name, own in gains.items()
    }
    print(kept, gain)
    machine.keep("unlabelled", {"epochs": epochs, "patients": PATIENTS, "arms": kept, "gain": gain})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    chosen = parser.parse_args()
    main(chosen.epochs, chosen.seeds)
