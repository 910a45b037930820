"""Where memory is short, batches go through the network in parts, and learn the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from raybone.cli import main
from raybone.data.dataset import open_dataset
from raybone.data.loader import Batch
from raybone.errors import FitFailed
from raybone.models import load
from raybone.storage import Folder
from raybone.train.checkpoint import read_checkpoint
from raybone.train.fit import fit
from raybone.train.samples import FoldJob
from raybone.types import Epoch

HYPER = {"imgsz": 64, "batch": 4, "nbs": 4, "width": 4, "depth": 2, "warmup_epochs": 0, "ema": 0.0}


def without_norms(module: nn.Module) -> nn.Module:
    """Batch norms see how many images there are; without them parts of a batch sum to it."""
    for name, child in module.named_children():
        setattr(module, name, nn.Identity() if isinstance(child, nn.BatchNorm2d) else child)
        without_norms(child)
    return module


class Short:
    """A U-Net on a device with room for so many images a step, from an epoch on."""

    def __init__(self, most: int, after: int = 0) -> None:
        self.most, self.steps_left = most, after
        self.sizes: list[int] = []

    def __deepcopy__(self, memo: Any) -> Short:
        return self  # the average of the weights is on the same device

    def build(self, config: Any) -> nn.Module:
        return Limited(without_norms(load("unet").build(config)), self)


class Limited(nn.Module):
    """A network on such a device."""

    def __init__(self, net: nn.Module, room: Short) -> None:
        super().__init__()
        self.net, self.room = net, room

    def forward(self, batch: Any) -> Any:
        room = self.room
        if isinstance(batch, Batch) and torch.is_grad_enabled():  # a step of training
            room.steps_left -= 1
            if room.steps_left < 0 and len(batch.index_N) > room.most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            room.sizes.append(len(batch.index_N))
        return self.net(batch)


def trained(dataset: Path, place: Path, room: Short, stop: int = 3) -> list[Epoch]:
    model = replace(load("unet"), build=room.build)
    config = model.Config.model_validate({**HYPER, "dice": 0.0, "cross_entropy": 1.0})
    job = FoldJob(open_dataset(dataset), model, config, 0, 3, 0)
    return list(fit(job, Folder(place), "dice", stop))


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("whole")
    epochs = trained(dataset, place, Short(4))
    state = read_checkpoint(Folder(place))
    assert state
    return {"epochs": epochs, "state": state}


@pytest.mark.parametrize(("most", "parts"), [(2, 2), (1, 4)])
def test_halves_and_quarters_learn_what_whole_batches_do(
    most: int, parts: int, whole: dict[str, Any], dataset: Path, tmp_path: Path
) -> None:
    room = Short(most)
    epochs = trained(dataset, tmp_path, room)
    assert max(room.sizes) == most
    assert [e.cost["parts"] for e in epochs] == [parts] * 3
    assert [e.cost["parts"] for e in whole["epochs"]] == [1] * 3
    state = read_checkpoint(Folder(tmp_path))
    assert state
    for name, values in whole["state"]["net"].items():
        torch.testing.assert_close(state["net"][name], values, atol=2e-4, rtol=2e-3)
    for one, other in zip(epochs, whole["epochs"]):
        assert one.metrics["train_loss"] == pytest.approx(other.metrics["train_loss"], abs=1e-4)


def test_an_epoch_that_ran_out_of_memory_in_its_midst_begins_again_from_the_last_one(
    whole: dict[str, Any], dataset: Path, tmp_path: Path
) -> None:
    steps = len(open_dataset(dataset).training(0)) // 4
    room = Short(2, after=steps + 1)  # one step of the second epoch has room yet
    epochs = trained(dataset, tmp_path, room)
    assert [e.cost["parts"] for e in epochs] == [1, 2, 2]
    assert epochs[0].metrics == pytest.approx(whole["epochs"][0].metrics, nan_ok=True, abs=0)
    state = read_checkpoint(Folder(tmp_path))
    assert state
    for name, values in whole["state"]["net"].items():
        torch.testing.assert_close(state["net"][name], values, atol=2e-4, rtol=2e-3)


def test_a_fold_that_goes_on_elsewhere_keeps_its_parts(dataset: Path, tmp_path: Path) -> None:
    trained(dataset, tmp_path, Short(2), stop=2)
    room = Short(4)
    epochs = trained(dataset, tmp_path, room)
    assert [e.cost["parts"] for e in epochs] == [2, 2, 2]
    assert max(room.sizes) == 2


def test_one_image_that_does_not_fit_fails_the_fold(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(FitFailed, match="CUDA out of memory"):
        trained(dataset, tmp_path, Short(0))


def test_an_epoch_says_what_it_took(whole: dict[str, Any]) -> None:
    for epoch in whole["epochs"]:
        assert epoch.cost["images_per_s"] > 0
        assert 0.1 < epoch.cost["memory_gb"] < 64


def test_an_automatic_batch_is_the_nominal_one_in_as_many_parts_as_fit(
    dataset: Path, tmp_path: Path
) -> None:
    model = load("unet")
    config = model.Config.model_validate({**HYPER, "batch": "auto", "nbs": 8})
    assert config.batch == 8
    assert model.Config.model_validate({"batch": "auto"}).batch == 16
    room = Short(2)
    job = FoldJob(open_dataset(dataset), replace(model, build=room.build), config, 0, 1, 0)
    (epoch,) = fit(job, Folder(tmp_path), "dice", 1)
    assert epoch.cost["parts"] == 4
    with pytest.raises(ValueError, match="batch"):
        model.Config.model_validate({"batch": "most"})


def test_a_study_may_ask_for_it(study: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    fixed = {**study["fixed"], "batch": "auto"}
    path.write_text(yaml.safe_dump({**study, "epochs": 1, "fixed": fixed, "search": {"trials": 1}}))
    assert main(["search", str(path), "--out", str(tmp_path / "run"), "--local"]) == 0
    board = pd.read_csv(tmp_path / "run/leaderboard.csv")
    assert list(board["cfg.batch"]) == ["auto"]
    assert list(board["state"]) == ["complete"]
