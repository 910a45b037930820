"""What pre-training on phantoms gives on real data: slices of BM-Seg and pictures of BCCD, with
and without it, in one study.

    python benchmarks/pretraining.py BMSEG BCCD [--epochs 30] [--only bmseg|bccd]

BMSEG has images and masks, BCCD JPEGImages and Annotations. A U-Net and a YOLO11n are trained on a
phantom first; the folds of the study then start from nothing, or from its winner's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import machine
from PIL import Image

from raybone.data.ingest.prepare import prepare
from raybone.phantom.phantom import phantom
from raybone.results.study_folder import StudyFolder
from raybone.run.local import search
from raybone.study.files import parse_study

FOLDS, PATIENTS, SEED = 3, 36, 21
UNET = {"batch": 4, "nbs": 4, "width": 12, "depth": 3, "lr0": 0.003}
YOLO = {"batch": 4, "nbs": 4, "lr0": 0.002, "warmup_epochs": 0.5, "ema_tau": 50, "conf": 0.01}
# Of each: model, metric, what stays, image sizes of the phantom and of the real data.
ROWS: dict[str, tuple[str, str, dict[str, Any], int, int]] = {
    "bmseg": ("unet", "dice", UNET, 256, 192),
    "bccd": ("yolo11n", "AP50", YOLO, 256, 96),
}


def bmseg(source: Path, place: Path) -> Path:
    """The slices, each a patient as nobody says whose it is."""
    return prepare(source, place / "ds", layout="masks", folds=FOLDS, key=place / "key").path


def bccd(source: Path, place: Path) -> Path:
    """The pictures' green channel, where cells absorb."""
    scans = place / "scans"
    (scans / "images").mkdir(parents=True)
    for picture in sorted((source / "JPEGImages").glob("*.jpg")):
        green = Image.open(picture).convert("RGB").getchannel("G")
        green.save(scans / "images" / f"{picture.stem}.png")
    for boxes in (source / "Annotations").glob("*.xml"):
        shutil.copy(boxes, scans)
    names = {name: name for name in ("RBC", "WBC", "Platelets")}
    key = place / "key"
    return prepare(scans, place / "ds", folds=FOLDS, key=key, categories=names).path


def searched(place: Path, **content: Any) -> StudyFolder:
    """A study, run in full in this process."""
    how = {"scheduler": "full", "sampler": "grid", **content.pop("search", {})}
    search(parse_study({**content, "search": how}), str(place))
    return StudyFolder(place)


def measured(name: str, source: Path, place: Path, epochs: int, seeds: int) -> dict[str, Any]:
    """Scores with and without, and what the leaderboard says of their difference."""
    model, metric, fixed, small, size = ROWS[name]
    scans = phantom(place / "phantom", PATIENTS, SEED, height=256)
    made = prepare(scans, place / "phantom-ds", folds=FOLDS, key=place / "phantom-key")
    common = {"model": model, "metric": metric, "epochs": epochs}
    one = {"lr0": {"choice": [fixed["lr0"]]}}
    fixed = {k: v for k, v in fixed.items() if k != "lr0"}
    first = searched(
        place / "first",
        name="phantom",
        dataset=str(made.path),
        fixed={**fixed, "imgsz": small},
        space=one,
        search={"trials": 1},
        **common,
    )
    dataset = bmseg(source, place) if name == "bmseg" else bccd(source, place)
    categories = ["malignant"] if name == "bmseg" else ["RBC", "WBC", "Platelets"]
    rows = []
    for seed in range(seeds):
        folder = searched(
            place / f"study-{seed}",
            name=name,
            dataset=str(dataset),
            fixed={**fixed, "imgsz": size, "categories": categories},
            space={**one, "init_from": {"choice": ["", first.url]}},
            search={"trials": 2, "seed": seed},
            **common,
        )
        table = folder.table()
        at = {bool(row["cfg.init_from"]): row for row in table.to_dict("records")}
        folds = [[at[how][f"{metric}_fold{k}"] for k in range(FOLDS)] for how in (False, True)]
        rows.append({"seed": seed, "from nothing": folds[0], "pre-trained": folds[1]})
        print(name, rows[-1], flush=True)
    gaps = [b - a for r in rows for a, b in zip(r["from nothing"], r["pre-trained"])]
    mean = sum(gaps) / len(gaps)
    kept = {
        "metric": metric,
        "phantom": float(first.table()[f"{metric}_mean"].iloc[0]),
        "epochs": epochs,
        "rows": rows,
        "mean_gain": mean,
        "gain_of_each_fold": gaps,
    }
    print(name, kept, flush=True)
    return kept


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bmseg", type=Path)
    parser.add_argument("bccd", type=Path)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--only", choices=ROWS, help="of these data alone; the others' figures stay"
    )
    chosen = parser.parse_args()
    kept = machine.RESULTS / "pretraining.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if chosen.only and kept.exists() else {}
    for which in [chosen.only] if chosen.only else ROWS:
        with tempfile.TemporaryDirectory() as folder:
            source = getattr(chosen, which)
            found[which] = measured(which, source, Path(folder), chosen.epochs, chosen.seeds)
            machine.keep("pretraining", found)
