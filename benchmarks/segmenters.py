"""What each recipe for segmenters is worth on a phantom, beside its paper; and speed beside a plain
MONAI loop.

    python benchmarks/segmenters.py            both tables; about half an hour on two cores
    python benchmarks/segmenters.py recipes    the first alone, or speed the second

The recipes are those of the study of Double U-Nets on whole-body scans, on a small U-Net and a
phantom: other data and another network, so that a difference may come out otherwise than there;
nothing was tuned until it agreed. Intervals are Nadeau & Bengio's, of the paired differences over
folds; the paper has none. Of the other cohort's patients those without metastases are dealt out to
its folds, where the paper trains on all of them. The plain loop is MONAI's: dictionary transforms,
CacheDataset, DataLoader, its network and DiceCELoss, on the same scans, canvas, batch and
optimiser.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import keep

from raybone.data.dataset import open_dataset
from raybone.data.ingest.prepare import prepare
from raybone.data.loader import masks_of
from raybone.data.preprocess import to_intensity
from raybone.hpo.journal import Journal
from raybone.hpo.state import State
from raybone.metrics.intervals import corrected_interval
from raybone.models import load
from raybone.phantom.phantom import phantom
from raybone.results.compare import figures
from raybone.run.local import search
from raybone.storage import Folder
from raybone.study.files import parse_study
from raybone.train.fit import _Run
from raybone.train.samples import FoldJob

FOLDS, EPOCHS = 5, 16
FIXED = {
    "imgsz": 256,
    "batch": 4,
    "nbs": 4,
    "width": 8,
    "depth": 4,
    "dice": 1.0,
    "cross_entropy": 0.0,
    "weight_decay": 0.0,
    "ema": 0.0,
    "lrf": 1.0,
    "warmup_epochs": 0,
    "scale": 0.1,
    "translate": 0.05,
}
# Recipe: what it changes, and the study whose published figures are of it.
RECIPES: dict[str, tuple[dict[str, Any], str]] = {
    "two classes": ({"negatives": False}, "wbbs-double-unet"),
    "Otsu": ({"negatives": False, "nm": "otsu"}, "wbbs-double-unet-otsu"),
    "Otsu, negatives": ({"nm": "otsu"}, "wbbs-double-unet-otsu-negatives"),
    "mining": ({"negatives": False, "nm": "two classes"}, "wbbs-double-unet-mining"),
    "mining, negatives": ({"nm": "two classes"}, "wbbs-double-unet-mining-negatives"),
    "Otsu, negatives, transfer": ({"nm": "otsu", "init_from": "other cohort"}, "wbbs-transfer"),
}
METRICS = ("dice", "precision", "sensitivity")
TIMED, SIZE, BATCH, ROUNDS = ("res_unet", "attention_unet", "unet_plus_plus"), 256, 4, 3
SPEED = {
    "imgsz": SIZE,
    "batch": BATCH,
    "nbs": BATCH,
    "width": 16,
    "scale": 0.0,
    "translate": 0.0,
    "fliplr": 0.5,
}


def main() -> None:
    """Measure what is asked for, print it and keep it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="*", default=["recipes", "speed"])
    parser.add_argument("--one", nargs=3, metavar=("WHO", "MODEL", "DATASET"))
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.one:
        print("row " + json.dumps(speed_row(*options.one)))
        return
    for part in options.part:
        with tempfile.TemporaryDirectory() as place:
            found = {"recipes": recipes, "speed": speed}[part](Path(place))
        keep(f"segmenters_{part}", found)


def cohort(place: Path, patients: int, seed: int, height: int, negatives: str) -> Path:
    """A prepared phantom; its patients are nobody else's."""
    phantom(place / "raw", patients=patients, seed=seed, height=height)
    return prepare(
        place / "raw", place / "ds", folds=FOLDS, key=place / "key", negatives=negatives
    ).path


def recipes(place: Path) -> dict[str, Any]:
    """The first table: each recipe's metrics over folds, and what it changes against two
    classes.
    """
    ours = cohort(place / "ours", 40, 11, 256, "training")
    other = cohort(place / "other", 40, 12, 256, "folds")
    scores = {"other cohort": trained(place, "other cohort", other, {"nm": "otsu"})}
    for name, (changes, _) in RECIPES.items():
        paths = {
            k: str(place / v) if v in ("two classes", "other cohort") else v
            for k, v in changes.items()
        }
        scores[name] = trained(place, name, ours, paths)
    rows = {}
    for name, (_, study) in RECIPES.items():
        row: dict[str, Any] = {}
        for metric in METRICS:
            folds_K, base_K = (np.array(scores[n][metric]) for n in (name, "two classes"))
            low, high = corrected_interval(folds_K - base_K, len(folds_K) - 2)
            said, base = (published(s, metric) for s in (study, "wbbs-double-unet"))
            row[metric] = {
                "mean": float(folds_K.mean()),
                "test": float(np.mean(scores[name][f"test_{metric}"])),
                "change": float((folds_K - base_K).mean()),
                "low": low,
                "high": high,
                "published": said,
                "published_change": round(said - base, 4),
            }
        rows[name] = row
        print(name, {m: {k: round(v, 3) for k, v in r.items()} for m, r in row.items()}, flush=True)
    dataset = open_dataset(ours)
    return {
        "folds": FOLDS,
        "epochs": EPOCHS,
        "settings": FIXED,
        "counts": dataset.meta["counts"],
        "rows": rows,
    }


def trained(
    place: Path, name: str, dataset: Path, changes: dict[str, Any]
) -> dict[str, list[float]]:
    """Metrics of each fold at the last epoch."""
    study = parse_study(
        {
            "name": name.replace(",", "").replace(" ", "-"),
            "dataset": str(dataset),
            "model": "unet",
            "epochs": EPOCHS,
            "metric": "dice",
            "fixed": {**FIXED, **changes},
            "space": {"lr0": {"choice": [0.002]}},
            "resources": {"cpus": 2},
            "search": {"trials": 1, "sampler": "random", "scheduler": "full", "test_fold": True},
        }
    )
    search(study, str(place / name))
    (configuration,) = State(Journal(Folder(str(place / name))).events()).configurations.values()
    names = [m for base in METRICS for m in (base, f"test_{base}")]
    return {m: [configuration.epochs[k].last(m) for k in range(FOLDS)] for m in names}


def published(study: str, metric: str) -> float:
    """The paper's figure with the Dice loss."""
    return next(
        f["value"]
        for f in figures(study)
        if f["metric"] == metric and f["variant"].endswith("dice")
    )


def speed(place: Path) -> dict[str, Any]:
    """The second table: images a second of whole training epochs, data included, each in a process
    of its own.
    """
    dataset = cohort(place, 24, 7, SIZE, "folds")
    rows: dict[str, list[dict[str, Any]]] = {}
    for _, model, who in (
        (n, m, w) for n in range(ROUNDS) for m in TIMED for w in ("raybone", "monai")
    ):
        done = subprocess.run(
            [sys.executable, __file__, "--one", who, model, str(dataset)],
            capture_output=True,
            text=True,
            check=True,
        )
        (told,) = [line for line in done.stdout.splitlines() if line.startswith("row ")]
        rows.setdefault(f"{who} {model}", []).append(json.loads(told[4:]))
        print(who, model, rows[f"{who} {model}"][-1], flush=True)
    middle = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in rows.items()
    }
    ratios = {
        key: {m: middle[f"raybone {m}"][key] / middle[f"monai {m}"][key] for m in TIMED}
        for key in ("images_per_second", "peak_mb")
    }
    print("times MONAI's loop:", ratios)
    return {
        "canvas": f"{SIZE}x{SIZE // 4}",
        "batch": BATCH,
        "rounds": ROUNDS,
        "rows": middle,
        "all": rows,
        "times_monai": ratios,
    }


def speed_row(who: str, name: str, path: str) -> dict[str, Any]:
    """One row of the second table, in this process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, images = (ours if who == "raybone" else monais)(name, path)
    return {
        "images_per_second": images / statistics.median(seconds[1:]),
        "epochs": len(seconds),
        "peak_mb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3),
    }


def ours(name: str, path: str) -> tuple[list[float], int]:
    """Seconds of training epochs of raybone's loop, and images in each."""
    dataset, model = open_dataset(path), load(name)
    with tempfile.TemporaryDirectory() as place:
        job = FoldJob(dataset, model, model.Config(**SPEED), 0, 4)
        run = _Run(job, Folder(place), "dice", torch.device("cpu"))
        seconds = []
        for number in range(1, 5):
            began = time.perf_counter()
            run._train(number)
            seconds.append(time.perf_counter() - began)
    return seconds, len(dataset.training(0))


def monais(name: str, path: str) -> tuple[list[float], int]:
    """The same of a plain loop of MONAI's parts; scans are kept in memory at the canvas's size."""
    from monai.data import CacheDataset, DataLoader
    from monai.losses import DiceCELoss
    from monai.transforms import Compose, EnsureChannelFirstd, EnsureTyped, RandFlipd, Resized

    dataset = open_dataset(path)
    scans = [
        {
            "image": to_intensity(dataset.counts(s), s.high),
            "mask": masks_of(s, ["malignant"])[0].astype(np.float32),
        }
        for s in dataset.training(0)
    ]
    both = ["image", "mask"]
    steps = Compose(
        [
            EnsureChannelFirstd(both, channel_dim="no_channel"),
            EnsureTyped(both),
            Resized(both, (SIZE, SIZE // 4), mode=("area", "nearest")),
            RandFlipd(both, 0.5, 1),
        ]
    )
    loader = DataLoader(CacheDataset(scans, steps, progress=False), batch_size=BATCH, shuffle=True)
    model = load(name)
    net = model.build(model.Config(**SPEED)).net.train()
    optimizer, loss = (
        torch.optim.AdamW(net.parameters(), 1e-3),
        DiceCELoss(sigmoid=True, batch=True),
    )
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        for batch in loader:
            output = net(batch["image"].as_tensor())
            optimizer.zero_grad()
            loss(
                output[-1] if isinstance(output, list) else output, batch["mask"].as_tensor()
            ).backward()
            optimizer.step()
        seconds.append(time.perf_counter() - began)
    return seconds, len(scans)


if __name__ == "__main__":
    main()
