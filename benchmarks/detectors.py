"""Each detector side by side with the stock way of training it: images a second, memory, FLOPs, and
AP.

    python benchmarks/detectors.py            all of it; about forty minutes on two cores
    python benchmarks/detectors.py speed      the first table alone, or ap the second, or evaluator

Stock is Ultralytics' own trainer, which letterboxes a scan to a square, and torchvision's factories
as they come, which resize it to 800 pixels across or 1333 along and have anchors from 32 pixels on.
Both start from random weights, as raybone's do. Every row of the first table is a process of its
own; a step is clipping, optimiser and average as well, but not the waiting for its batch. In the
second table torchvision's anchors are tried on raybone's canvas and loop, without torchvision's
resizing, which would take 6.8 times the pixels. One seed, one fold.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from machine import by_turns, keep
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from raybone.data.cache import Intensities
from raybone.data.dataset import Dataset, open_dataset
from raybone.data.ingest.prepare import prepare
from raybone.data.loader import Batch, Change, Look, ScanSamples, training_loader
from raybone.data.preprocess import to_intensity
from raybone.metrics.boxes import box_metrics
from raybone.models import MENU, load
from raybone.phantom.phantom import phantom
from raybone.run.checks import smallest_anchor
from raybone.storage import Folder
from raybone.tasks import task_named
from raybone.tasks.base import Outcome
from raybone.train.fit import fit
from raybone.train.samples import FoldJob
from raybone.types import Prediction, Scan

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
FULL, BATCH = 1024, 4
OURS = (
    [n for n in MENU if n != "unet"]
    if GPU
    else ["yolo11n", "yolo11s", "faster_rcnn_r50", "cascade_rcnn_r50", "retinanet_r50"]
)
STOCK = {
    "yolo11n": "ultralytics",
    "yolo11s": "ultralytics",
    "faster_rcnn_r50": "torchvision",
    "retinanet_r50": "torchvision",
}
HOW = {"yolo11n": ["channels_last", "compile"], "faster_rcnn_r50": ["channels_last"]}
STEPS = 40 if GPU else {"yolo11n": 12, "yolo11s": 8}
# The second table: from scratch, on scans of half the size.
HALF, EPOCHS = 512, 12
TRAINED = {
    "imgsz": HALF,
    "batch": 2,
    "nbs": 2,
    "optimizer": "AdamW",
    "schedule": "cosine",
    "translate": 0.05,
    "scale": 0.1,
    "gamma": 0.3,
}
NARROW = {"channels": 64, "head": 256, "rois": 128, "lr0": 0.0005}


def main() -> None:
    """Measure what is asked for, print it and keep it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="*", default=["speed", "ap", "evaluator"])
    parser.add_argument("--one", nargs=2, metavar=("ROW", "DATASET"))
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.one:
        print("row " + json.dumps(row(*options.one)))
        return
    for part in options.part:
        with tempfile.TemporaryDirectory() as place:
            found = {"speed": speed, "ap": accuracy, "evaluator": evaluator}[part](Path(place))
        keep(f"detectors_{part}", found)


def cohort(place: Path, height: int, patients: int) -> Dataset:
    """Phantom patients in three folds."""
    phantom(place / "raw", patients=patients, seed=7, height=height)
    return open_dataset(prepare(place / "raw", place / "ds", folds=3, key=place / "raw.key").path)


def speed(place: Path) -> dict[str, Any]:
    """The first table: medians over training steps at 1024x256."""
    cohort(place, FULL, 24)
    rows: dict[str, Any] = {}
    for name in OURS:
        wanted = [f"raybone {name}", *(f"raybone {name} {how}" for how in HOW.get(name, []))]
        for key in [*wanted, *([f"{STOCK[name]} {name}"] if name in STOCK else [])]:
            done = subprocess.run(
                [sys.executable, __file__, "--one", key, str(place / "ds")],
                capture_output=True,
                text=True,
            )
            told = [line for line in done.stdout.splitlines() if line.startswith("row ")]
            rows[key] = (
                json.loads(told[0][4:])
                if told
                else {"failed": done.stderr.strip().splitlines()[-1][:300]}
            )
            print(key, rows[key], flush=True)
    ratios = {
        name: rows[f"raybone {name}"]["images_per_second"]
        / rows[f"{stock} {name}"]["images_per_second"]
        for name, stock in STOCK.items()
        if "images_per_second" in rows.get(f"{stock} {name}", {})
    }
    print("images a second, times stock:", ratios)
    return {"canvas": f"{FULL}x{FULL // 4}", "batch": BATCH, "rows": rows, "times_stock": ratios}


def row(key: str, path: str) -> dict[str, Any]:
    """One row of the first table, in this process."""
    who, name, *how = key.split()
    steps = STEPS if isinstance(STEPS, int) else STEPS.get(name, 4)
    dataset = open_dataset(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if who == "ultralytics":
        seconds, waits, net, shape = stock_yolo(
            name, dataset, FULL, BATCH, steps, Path(path).parent / "stock"
        )
    else:
        net, shape = (
            (torchvision_net(name), (3, 1344, 336))
            if who == "torchvision"
            else (our_net(name, "channels_last" in how), (1, FULL, FULL // 4))
        )
        run = torch.compile(net) if "compile" in how else net
        seconds, waits = stepped(run, batches(name, dataset), steps, who, "channels_last" in how)
    memory = (
        torch.cuda.max_memory_allocated() / 1e6
        if GPU
        else (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    )
    middle = statistics.median(seconds[2:] if len(seconds) > 4 else seconds[1:])
    return {
        "images_per_second": BATCH / middle,
        "step_seconds": middle,
        "steps": len(seconds),
        "peak_mb": round(memory),
        "forward_gflop_per_image": flops(net, shape),
        "waiting_share": sum(waits) / (sum(waits) + sum(seconds)),
    }


def our_net(name: str, last: bool) -> nn.Module:
    """raybone's model with its defaults."""
    net = load(name).build(load(name).Config(imgsz=FULL)).to(DEVICE)
    return net.to(memory_format=torch.channels_last) if last else net


def torchvision_net(name: str) -> nn.Module:
    """torchvision's factory as it comes, without weights."""
    from torchvision.models import detection

    make = {
        "faster_rcnn_r50": detection.fasterrcnn_resnet50_fpn,
        "retinanet_r50": detection.retinanet_resnet50_fpn,
    }
    net: nn.Module = make[name](weights=None, weights_backbone=None, num_classes=2).to(DEVICE)
    return net


def batches(name: str, dataset: Dataset) -> Iterator[Batch]:
    """The training batches of fold 0 for ever, with the model's default augmentation."""
    config = load(name).Config(imgsz=FULL, batch=BATCH)
    look, images = Look(["malignant"], FULL), Intensities(dataset, FULL)
    samples = ScanSamples(images, dataset.training(0), look, Change(config))
    loader, sampler = training_loader(samples, BATCH, 0, 1, 8 if GPU else 0)
    while True:
        yield from loader
        sampler.epoch += 1


def stepped(
    net: Callable[..., Any], given: Iterator[Batch], steps: int, who: str, last: bool
) -> tuple[list[float], list[float]]:
    """Seconds of each training step, and those before it that were spent waiting for its batch."""
    module = net
    assert isinstance(module, nn.Module)
    module.train()
    optimizer = torch.optim.SGD(
        [p for p in module.parameters() if p.requires_grad], 1e-4, momentum=0.9
    )
    seconds, waits = [], []
    average = copy.deepcopy(module).requires_grad_(False) if who == "raybone" else None
    for _ in range(steps):
        began = time.perf_counter()
        batch = next(given).to(DEVICE, torch.channels_last if last else torch.contiguous_format)
        fetched = time.perf_counter()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU):
            losses = (
                net(batch)
                if who == "raybone"
                else net(
                    [image.expand(3, -1, -1) for image in batch.image_NCHW],
                    [{"boxes": b, "labels": y + 1} for b, y in zip(batch.boxes, batch.labels)],
                )
            )
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        if average is not None:  # what raybone's loop does as well, as Ultralytics' does
            nn.utils.clip_grad_norm_(module.parameters(), 10.0)
        optimizer.step()
        if average is not None:
            with torch.no_grad():
                for mean, value in zip(average.state_dict().values(), module.state_dict().values()):
                    mean.lerp_(value, 0.01) if mean.is_floating_point() else mean.copy_(value)
        if GPU:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - fetched)
        waits.append(fetched - began)
    return seconds, waits


def flops(net: nn.Module, shape: tuple[int, ...]) -> float:
    """GFLOP of a prediction on one image (multiply and add are two); pooling of regions is not
    counted.
    """
    image = torch.rand(1, *shape, device=DEVICE)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(image if shape[0] == 1 or not hasattr(net, "transform") else list(image))
    return round(counter.get_total_flops() / 1e9, 1)


def stock_yolo(
    model: str, dataset: Dataset, size: int, batch: int, steps: int, place: Path, **more: Any
) -> tuple[list[float], list[float], nn.Module, tuple[int, ...]]:
    """Steps of Ultralytics' own trainer on the training scans of fold 0 as image files, letterboxed
    to a square.
    """
    load(model)  # sets Ultralytics' environment before its first import
    from ultralytics.models.yolo.detect import DetectionTrainer

    if not place.exists():
        for part, scans in (("train", dataset.training(0)), ("val", dataset.validation(0))):
            write_yolo(dataset, scans, place, part)
        (place / "data.yaml").write_text(
            f"path: {place.resolve()}\ntrain: images/train\nval: images/val\n"
            "names: {0: malignant}\n"
        )
    marks: list[tuple[str, float]] = []

    def mark(kind: str) -> Callable[[Any], None]:
        def note(_: Any) -> None:
            marks.append((kind, time.perf_counter()))
            if sum(k == "end" for k, _ in marks) >= steps:
                raise StopIteration

        return note

    trainer = DetectionTrainer(
        overrides={
            "model": f"{model}.yaml",
            "pretrained": False,
            "data": str(place / "data.yaml"),
            "imgsz": size,
            "batch": batch,
            "nbs": batch,
            "epochs": 100,
            "optimizer": "SGD",
            "device": 0 if GPU else "cpu",
            "amp": "bf16" if GPU else False,
            "workers": 8 if GPU else 0,
            "plots": False,
            "val": False,
            "project": str(place / "runs"),
            "exist_ok": True,
            **more,
        }
    )
    trainer.final_eval = lambda: None  # it would validate twice more
    if steps:
        trainer.add_callback("on_train_batch_start", mark("start"))
        trainer.add_callback("on_train_batch_end", mark("end"))
    torch.set_num_threads(2)
    with contextlib.suppress(StopIteration):
        trainer.train()
    starts, ends = ([t for k, t in marks if k == kind] for kind in ("start", "end"))
    net = trainer.model
    return (
        [e - s for s, e in zip(starts, ends)],
        [s - e for s, e in zip(starts[1:], ends)],
        net,
        (3, size, size),
    )


def write_yolo(dataset: Dataset, scans: list[Scan], place: Path, part: str) -> None:
    """Scans as the image and text files that Ultralytics reads."""
    for kind in ("images", "labels"):
        (place / kind / part).mkdir(parents=True)
    for scan in scans:
        image_HW = to_intensity(dataset.counts(scan), scan.high)
        cv2.imwrite(
            str(place / "images" / part / f"{scan.scan_id}.png"),
            np.rint(image_HW * 255).astype(np.uint8),
        )
        lines = [
            f"0 {(x1 + x2) / 2 / scan.width} {(y1 + y2) / 2 / scan.height} "
            f"{(x2 - x1) / scan.width} {(y2 - y1) / scan.height}"
            for x1, y1, x2, y2 in (le.box_xyxy for le in scan.lesions if le.category == "malignant")
        ]
        (place / "labels" / part / f"{scan.scan_id}.txt").write_text("\n".join(lines))


def accuracy(place: Path) -> dict[str, Any]:
    """The second table: metrics on the patients of fold 0, at equal epochs and at equal time."""
    dataset = cohort(place, HALF, 36)
    rows: dict[str, Any] = {}

    def told(key: str, epochs: int, seconds: float, metrics: dict[str, float]) -> None:
        rows[key] = {
            "epochs": epochs,
            "seconds": seconds,
            **{m: metrics[m] for m in ("AP", "AP50", "FROC", "AR")},
        }
        print(key, rows[key], flush=True)

    small, stock = {"anchor": smallest_anchor(dataset)}, {"anchor": 0.0, "rpn_iou": 0.7}
    for key, name, own in (
        ("raybone yolo11n", "yolo11n", {"lr0": 0.002}),
        ("raybone faster_rcnn_r50", "faster_rcnn_r50", {**NARROW, **small}),
        (
            "raybone faster_rcnn_r50 with torchvision's anchors alone",
            "faster_rcnn_r50",
            {**NARROW, **stock},
        ),
    ):
        model, began = load(name), time.perf_counter()
        config = model.Config.model_validate({**TRAINED, **own})
        done = list(
            fit(
                FoldJob(dataset, model, config, 0, EPOCHS),
                Folder(place / key),
                "AP",
                EPOCHS,
                gpu=GPU,
            )
        )
        told(key, EPOCHS, time.perf_counter() - began, done[-1].metrics)
    ours = rows["raybone yolo11n"]["seconds"]
    for label, epochs in (("equal epochs", EPOCHS), ("equal time", 0)):
        if not epochs:  # what it manages in our time
            epochs = max(
                1, int(EPOCHS * ours / rows["ultralytics yolo11n, equal epochs"]["seconds"])
            )
        began = time.perf_counter()
        stock_yolo(
            "yolo11n",
            dataset,
            HALF,
            2,
            0,
            place / "stock",
            epochs=epochs,
            optimizer="AdamW",
            lr0=0.002,
            momentum=0.9,
            warmup_bias_lr=0.0,
            cos_lr=True,
            warmup_epochs=1,
            name=label.replace(" ", "_"),
        )
        told(
            f"ultralytics yolo11n, {label}",
            epochs,
            time.perf_counter() - began,
            judged(
                dataset,
                place / "stock" / "runs" / label.replace(" ", "_") / "weights" / "last.pt",
                place,
            ),
        )
    return {
        "canvas": f"{HALF}x{HALF // 4}",
        "training": len(dataset.training(0)),
        "held_out": len(dataset.validation(0)),
        "settings": {**TRAINED, "faster_rcnn_r50": NARROW},
        "rows": rows,
    }


def evaluator(_: Path) -> dict[str, Any]:
    """Seconds of the metrics of 1,000 images with 100 detections each, by turns with pycocotools
    for the same AP.
    """
    rng = np.random.default_rng(0)
    truth, predictions = [], []
    for _number in range(1000):
        lesions = _boxes(rng, int(rng.integers(0, 8)))
        guesses = np.concatenate(
            [lesions + rng.normal(0, 2, lesions.shape), _boxes(rng, 100 - len(lesions))]
        )
        truth.append((lesions.astype(np.float32), np.zeros(len(lesions), np.int64)))
        predictions.append(
            Prediction(
                guesses.astype(np.float32),
                rng.random(100).astype(np.float32),
                np.zeros(100, np.int64),
            )
        )
    told: dict[str, float] = {}

    def ours(_: Path) -> None:
        told["raybone"] = box_metrics(truth, predictions, 1)["AP"]

    def reference(_: Path) -> None:
        told["pycocotools"] = by_pycocotools(truth, predictions)

    seconds = by_turns({"raybone": ours, "pycocotools": reference}, 5)
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    found = {
        "images": 1000,
        "detections": 100_000,
        "median_seconds": medians,
        "AP": told,
        "ratio": medians["pycocotools"] / medians["raybone"],
    }
    print(found)
    return found


def _boxes(rng: np.random.Generator, count: int) -> Any:
    corner_N2 = rng.random((count, 2)) * [200, 900]
    return np.concatenate([corner_N2, corner_N2 + rng.uniform(6, 40, (count, 2))], 1)


def by_pycocotools(truth: list[Any], predictions: list[Prediction]) -> float:
    """AP of the reference evaluator, with as many ranges of area as raybone has."""
    coco = COCO()
    boxes = [
        (i, *box) for i, (found, _) in enumerate(truth) for box in found.astype(float).tolist()
    ]
    coco.dataset = {
        "info": {},
        "images": [{"id": i} for i in range(len(truth))],
        "categories": [{"id": 1}],
        "annotations": [
            {
                "id": n,
                "image_id": i,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
            }
            for n, (i, x1, y1, x2, y2) in enumerate(boxes, 1)
        ],
    }
    rows = np.concatenate(
        [
            np.column_stack(
                [
                    np.full(len(p.scores_N), i),
                    p.boxes_N4[:, :2],
                    p.boxes_N4[:, 2:].astype(float) - p.boxes_N4[:, :2],
                    p.scores_N,
                    np.ones(len(p.scores_N)),
                ]
            )
            for i, p in enumerate(predictions)
        ]
    )
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(rows), "bbox")
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    return float(evaluation.eval["precision"][:, :, 0, 0, 0].mean())


def judged(dataset: Dataset, weights: Path, place: Path) -> dict[str, float]:
    """raybone's metrics of what Ultralytics' file finds in its own way on the held-out scans."""
    from ultralytics import YOLO

    net, findings = YOLO(weights), []
    for scan in dataset.validation(0):
        found = net.predict(
            place / "stock" / "images" / "val" / f"{scan.scan_id}.png",
            imgsz=HALF,
            conf=0.001,
            iou=0.7,
            max_det=100,
            verbose=False,
        )[0].boxes
        findings.append(
            {
                "scan_id": scan.scan_id,
                "boxes": _listed(found.xyxy),
                "scores": _listed(found.conf),
                "labels": [int(v) for v in _listed(found.cls)],
            }
        )
    return task_named("detection").score(Outcome(findings, dataset.validation(0), ["malignant"]))


def _listed(values: Tensor) -> Any:
    return values.cpu().tolist()


if __name__ == "__main__":
    main()
