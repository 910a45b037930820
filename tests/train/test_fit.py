"""fit: a fold is a pure function of (configuration, fold, seed, dataset), stopped and resumed or
not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from raybone.data.dataset import open_dataset
from raybone.errors import FitFailed
from raybone.models import load
from raybone.storage import Folder
from raybone.train.fit import fit
from raybone.train.samples import FoldJob
from raybone.types import Epoch

SMALL = {"unet": {"width": 4, "depth": 2}, "yolo11n": {}}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(
    dataset: Path,
    folder: Path,
    name: str = "unet",
    stop: int = 4,
    known: int = 0,
    seed: int = 0,
    **hyper: Any,
) -> list[Epoch]:
    model = load(name)
    config = model.Config.model_validate(
        {"batch": 4, "nbs": 8, "imgsz": 128, "mosaic": 0.5, **SMALL[name], **hyper}
    )
    return list(
        fit(
            FoldJob(open_dataset(dataset), model, config, 0, 4, seed),
            Folder(folder),
            "val_loss",
            stop,
            known,
        )
    )


def metrics(epochs: list[Epoch]) -> list[dict[str, float]]:
    return [e.metrics for e in epochs]


@pytest.mark.parametrize("name", SMALL)
def test_stopped_and_resumed_it_equals_an_undisturbed_run_to_the_last_digit(
    name: str, dataset: Path, tmp_path: Path
) -> None:
    straight = run(dataset, tmp_path / "a", name)
    parts = run(dataset, tmp_path / "b", name, stop=2) + run(dataset, tmp_path / "b", name, known=2)
    assert [e.epoch for e in parts] == [1, 2, 3, 4]
    assert str(metrics(parts)) == str(metrics(straight))
    a, b = (torch.load(tmp_path / f / "last.pt", weights_only=True) for f in "ab")
    assert all(torch.equal(a["net"][k], b["net"][k]) for k in a["net"])
    assert (tmp_path / "a" / "predictions.json").read_bytes() == (
        tmp_path / "b" / "predictions.json"
    ).read_bytes()


def test_what_the_journal_misses_is_yielded_again_without_training(
    dataset: Path, tmp_path: Path
) -> None:
    first = run(dataset, tmp_path)
    before = (tmp_path / "last.pt").stat().st_mtime_ns
    again = run(dataset, tmp_path, known=1)
    assert [e.epoch for e in again] == [2, 3, 4]
    assert str(metrics(again)) == str(metrics(first[1:]))
    assert (tmp_path / "last.pt").stat().st_mtime_ns == before


def test_the_seed_changes_the_run_and_loader_processes_do_not(
    dataset: Path, tmp_path: Path
) -> None:
    plain = run(dataset, tmp_path / "a", stop=1)
    assert metrics(run(dataset, tmp_path / "b", stop=1, seed=1)) != metrics(plain)
    assert str(metrics(run(dataset, tmp_path / "c", stop=1, loader_workers=2))) == str(
        metrics(plain)
    )


def test_it_learns(dataset: Path, tmp_path: Path) -> None:
    epochs = run(dataset, tmp_path, lr0=0.02, nbs=4, mosaic=0)
    assert epochs[-1].metrics["val_loss"] < epochs[0].metrics["val_loss"]
    assert epochs[-1].metrics["train_loss"] < epochs[0].metrics["train_loss"]


def test_a_run_that_is_not_finite_ends_with_its_place(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FitFailed, match=r"fold 0 epoch \d.*: (the gradient|weights) must be finite.*lower lr0"
    ):
        run(
            dataset,
            tmp_path,
            optimizer="SGD",
            lr0=10,
            weight_decay=1,
            lrf=1,
            clip=1e30,
            warmup_epochs=0,
            batch=1,
            nbs=1,
            mosaic=0,
        )


def test_predictions_cover_the_validation_patients_and_only_them(
    dataset: Path, tmp_path: Path
) -> None:
    run(dataset, tmp_path, "yolo11n", stop=1)
    content = json.loads((tmp_path / "predictions.json").read_text())
    assert [f["scan_id"] for f in content["findings"]] == [
        s.scan_id for s in open_dataset(dataset).validation(0)
    ]
    assert content["epoch"] == 1
    for finding in content["findings"]:
        assert len(finding["boxes"]) == len(finding["scores"]) == len(finding["labels"])


def test_best_weights_are_those_of_the_best_epoch(dataset: Path, tmp_path: Path) -> None:
    epochs = run(dataset, tmp_path, lr0=0.02)
    best = torch.load(tmp_path / "best.pt", weights_only=True)["epoch"]
    losses = [e.metrics["val_loss"] for e in epochs]
    assert losses[best - 1] == min(losses)
    assert not any(math.isnan(v) for v in losses)


@pytest.mark.parametrize("schedule", ["multistep", "cosine", "linear"])
def test_the_learning_rate_falls_as_in_torchs_own_schedulers(
    schedule: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    plain = torch.optim.SGD.step

    def step(self: torch.optim.SGD, *_: Any) -> None:
        seen.append(self.param_groups[0]["lr"])
        plain(self)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    run(
        dataset,
        tmp_path,
        optimizer="SGD",
        schedule=schedule,
        warmup_epochs=0,
        lr0=0.1,
        lrf=0.1,
        batch=16,
        milestones=[0.25, 0.75],
    )
    (weight,) = [torch.zeros(1, requires_grad=True)]
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    theirs = {
        "multistep": lambda: torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3], 0.1),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4, 0.01),
        "linear": lambda: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 4),
    }[schedule]()
    expected = []
    for _ in range(4):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert seen == pytest.approx(expected)


def test_a_montage_trains_and_is_scored_scan_by_scan(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "yolo11n", stop=1, montage=True, mosaic=0, conf=0.0)
    content = json.loads((tmp_path / "predictions.json").read_text())
    scans = open_dataset(dataset).validation(0)
    assert [f["scan_id"] for f in content["findings"]] == [s.scan_id for s in scans]
    for finding, scan in zip(content["findings"], scans):
        assert finding["boxes"]
        assert all(0 <= x1 <= x2 <= scan.width for x1, _, x2, _ in finding["boxes"])


def test_channels_last_changes_no_more_than_rounding(dataset: Path, tmp_path: Path) -> None:
    plain, last = (
        run(dataset, tmp_path / str(f), "yolo11n", stop=1, channels_last=f) for f in (False, True)
    )
    assert last[0].metrics["val_loss"] == pytest.approx(plain[0].metrics["val_loss"], rel=1e-3)
    for name, channels in (("False", False), ("True", True)):
        weights = torch.load(tmp_path / name / "last.pt", weights_only=True)["net"][
            "net.model.1.conv.weight"
        ]
        assert weights.is_contiguous(memory_format=torch.channels_last) is channels
