"""A YOLO trained for long enough to find lesions: by our loop, and by Ultralytics' own trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stock import STILL, stock_trainer

from raybone.data.dataset import open_dataset
from raybone.models import load
from raybone.storage import Folder
from raybone.train.apply import evaluate_weights
from raybone.train.fit import fit
from raybone.train.samples import FoldJob

EPOCHS = 40


@pytest.mark.endurance
def test_after_240_steps_both_have_the_same_ap(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the training scans, as AP on three patients is mostly 0."""
    model = load("yolo11n")
    config = model.Config.model_validate(
        {"batch": 2, "nbs": 2, "imgsz": 256, "optimizer": "AdamW", "lr0": 0.002, **STILL}
    )
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    opened, ours = open_dataset(dataset), Folder(tmp_path / "ours")
    epochs = list(fit(FoldJob(opened, model, config, 0, EPOCHS), ours, "AP", EPOCHS))
    stock = stock_trainer(model, config, opened, EPOCHS)
    stock.train()
    torch.set_num_threads(1)
    torch.save(
        {"average": {f"net.{k}": v for k, v in stock.ema.ema.state_dict().items()}},
        tmp_path / "last.pt",
    )
    mine, theirs = (
        evaluate_weights(opened, model, config, f, opened.training(0))
        for f in (ours, Folder(tmp_path))
    )
    print(mine, theirs)
    assert [e.metrics["train_loss"] for e in epochs] == pytest.approx(stock.told, abs=1e-4)
    assert mine["AP"] == pytest.approx(theirs["AP"], abs=1e-4)
    assert mine["AP50"] > 0.1
