"""The bone scan index of phantom patients: of lesions and skeletons that models find, against that
of the truth.

    python benchmarks/burden.py [--epochs 40] [--pages FOLDER] [--place FOLDER]

A U-Net of lesions and one of the skeleton are trained on 24 patients in three folds and make the
index of 24 others, whose counts they have not seen.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import machine
import numpy as np
from scipy import stats

from raybone.data.dataset import Dataset, open_dataset
from raybone.data.ingest.prepare import prepare
from raybone.data.loader import masks_of
from raybone.deploy.bundle import Bundle, open_bundle
from raybone.deploy.burden import Chain, burden
from raybone.deploy.refit import refit
from raybone.metrics.burden import bone_scan_index, regions
from raybone.phantom.phantom import phantom
from raybone.results.study_folder import StudyFolder
from raybone.run.local import search
from raybone.study.files import parse_study

PATIENTS, HEIGHT, SEED = 24, 512, 11
PUBLISHED = 0.9337  # Shimizu et al. 2020, doi 10.1007/s11548-019-02105-x, 246 scans
FOUND = {"lesions": "masks", "skeleton": "skeleton"}  # what is learned, and its layout


def dataset(place: Path, layout: str, seed: int) -> tuple[Dataset, dict[str, str]]:
    """A cohort, prepared, and the patient's name of each scan; both layouts of a seed are of the
    same patients.
    """
    scans = phantom(place / f"{layout}-{seed}-scans", PATIENTS, seed, layout, HEIGHT)
    made = prepare(scans, place / f"{layout}-{seed}", folds=3, key=place / "key")
    names = {scan_id: Path(path).name.split("_")[0] for _, scan_id, path in made.sources}
    return open_dataset(made.path), names


def learned(place: Path, what: str, epochs: int) -> Bundle:
    """A bundle of fold models."""
    data, _ = dataset(place, FOUND[what], SEED)
    categories = ["malignant"] if what == "lesions" else data.categories
    study: dict[str, Any] = {
        "name": what,
        "dataset": str(data.path),
        "model": "unet",
        "epochs": epochs,
        "metric": "dice",
        "fixed": {
            "imgsz": HEIGHT,
            "batch": 2,
            "nbs": 2,
            "width": 8,
            "depth": 4,
            "lr0": 0.003,
            "categories": categories,
        },
        "search": {"trials": 1, "scheduler": "full"},
    }
    search(parse_study(study), str(place / what))
    refit(StudyFolder(place / what), place / f"{what}-bundle")
    return open_bundle(place / f"{what}-bundle")


def truth(place: Path) -> dict[str, float]:
    """The index of the truth, by the patient's name."""
    (found, names), (drawn, _) = (dataset(place, own, SEED + 1) for own in FOUND.values())
    bones, views = {s.scan_id: s for s in drawn.scans}, dict[str, list[Any]]()
    seen = [name for name in drawn.categories if name in regions()]
    for scan in found.scans:
        masks = dict(zip(seen, masks_of(bones[scan.scan_id], seen) == 1))
        own_HW = masks_of(scan, ["malignant"])[0] == 1
        views.setdefault(names[scan.scan_id], []).append((own_HW, masks))
    return {name: bone_scan_index(many).index for name, many in views.items()}


def main() -> None:
    """Train, compare, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--pages", help="folder to make for the patients' pages")
    parser.add_argument("--place", help="folder for cohorts, studies and bundles, to keep them")
    given = parser.parse_args()
    epochs = given.epochs
    with tempfile.TemporaryDirectory() as folder:
        place = Path(given.place or folder)
        place.mkdir(parents=True, exist_ok=True)
        chain = Chain(learned(place, "lesions", epochs), learned(place, "skeleton", epochs))
        scores = {what: StudyFolder(place / what).table()["dice_mean"][0] for what in FOUND}
        true = truth(place)
        patients = burden(chain, [str(place / f"masks-{SEED + 1}-scans")], given.pages)
        found = {Path(p.views[0][0].source).name.split("_")[0]: p for p in patients}
    names = sorted(true)
    x_N = np.array([true[n] for n in names])
    y_N = np.array([found[n].burden.index for n in names])
    result = stats.pearsonr(x_N, y_N)
    low, high = result.confidence_interval(0.95)
    spans = [(found[n].low, found[n].high) for n in names]
    inside = np.mean([lo <= x <= hi for x, (lo, hi) in zip(x_N, spans) if lo is not None])
    kept = {
        "patients": len(names),
        "height": HEIGHT,
        "epochs": epochs,
        "dice": {what: round(float(value), 3) for what, value in scores.items()},
        "index_true": [round(float(v), 3) for v in x_N],
        "index_found": [round(float(v), 3) for v in y_N],
        "pearson_r": round(float(result.statistic), 4),
        "pearson_r_95": [round(float(low), 4), round(float(high), 4)],
        "published_r": PUBLISHED,
        "mean_difference": round(float(np.mean(y_N - x_N)), 3),
        "truth_inside_the_interval": round(float(inside), 3),
    }
    machine.keep("burden", kept)
    print(
        f"{len(names)} patients: r {result.statistic:.3f} ({low:.3f} to {high:.3f}), published "
        f"{PUBLISHED}; mean difference {np.mean(y_N - x_N):+.2f} %; the truth lies inside the "
        f"members' interval in {100 * inside:.0f} %; Dice {kept['dice']}"
    )


if __name__ == "__main__":
    main()
