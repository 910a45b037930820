"""Ultralytics' own trainer, given what raybone's loop is given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from raybone.data.cache import Intensities
from raybone.data.loader import Change, Look, ScanSamples, training_loader

STILL = {"mosaic": 0.0, "fliplr": 0.0, "translate": 0.0, "scale": 0.0}


def mixed(*parts: int) -> int:
    """The seed that fit makes of several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def stock_trainer(model: Any, config: Any, opened: Any, epochs: int) -> Any:
    """Ultralytics' DetectionTrainer on raybone's batches of fold 0: its loop, optimiser, schedule,
    loss and average.

    ``told`` are the losses of its epochs, ``ema.ema`` are its averaged weights.
    """
    from ultralytics.models.yolo.detect import DetectionTrainer

    samples = ScanSamples(
        Intensities(opened, config.imgsz),
        opened.training(0),
        Look(["malignant"], config.imgsz),
        Change(config, mixed(0, 0, 1)),
    )

    class Loader:
        num_workers, batch_size, dataset = 0, config.batch, samples

        def __init__(self) -> None:
            self.batches, self.sampler = training_loader(samples, config.batch, 0, 1, 0)

        def __len__(self) -> int:
            return len(self.batches)

        def __iter__(self) -> Iterator[Any]:
            return iter(self.batches)

    class Stock(DetectionTrainer):
        def get_dataset(self) -> dict[str, Any]:
            return {"train": "", "val": "", "nc": 1, "names": {0: "malignant"}, "channels": 1}

        def get_dataloader(self, *_: Any, **__: Any) -> Loader:
            return Loader()

        def get_model(self, *_: Any, **__: Any) -> nn.Module:
            torch.manual_seed(mixed(0, 0, 0))
            return model.build(config).net

        def preprocess_batch(self, batch: Any) -> dict[str, Any]:
            boxes = torch.cat(batch.boxes)
            size = boxes.new_tensor([*batch.image_NCHW.shape[:1:-1]] * 2)
            middle = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
            index = [torch.full((len(b),), float(i)) for i, b in enumerate(batch.boxes)]
            return {
                "img": batch.image_NCHW,
                "batch_idx": torch.cat(index),
                "bboxes": middle / size,
                "cls": torch.cat(batch.labels).float()[:, None],
            }

        def _get_warmup_iterations(self, batches: int) -> int:
            return round(min(self.args.warmup_epochs, self.epochs - 1) * batches)

        def get_validator(self) -> Any:
            return SimpleNamespace(metrics=SimpleNamespace(keys=[]))

        def validate(self) -> tuple[dict[str, float], float]:
            return {}, 0.0

        def set_class_weights(self) -> None: ...

        def save_model(self) -> None: ...

        def final_eval(self) -> None: ...

    names = (
        "optimizer",
        "lr0",
        "lrf",
        "momentum",
        "weight_decay",
        "warmup_epochs",
        "warmup_momentum",
        "warmup_bias_lr",
        "nbs",
        "batch",
        "imgsz",
        "box",
        "cls",
        "dfl",
    )
    trainer = Stock(
        overrides={
            **{n: getattr(config, n) for n in names},
            "epochs": epochs,
            "device": "cpu",
            "workers": 0,
            "amp": False,
            "plots": False,
            "val": False,
            "close_mosaic": 0,
            "model": "yolo11n.yaml",
            "data": "x.yaml",
            "project": str(Path.cwd() / "stock"),
            "exist_ok": True,
        }
    )
    trainer.told = []
    trainer.add_callback(
        "on_train_epoch_start", lambda t: setattr(t.train_loader.sampler, "epoch", t.epoch + 1)
    )
    trainer.add_callback(
        "on_train_epoch_end", lambda t: t.told.append(sum(float(v) for v in t.tloss.values()))
    )
    return trainer
