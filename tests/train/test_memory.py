"""What needs more memory than the machine has is said before the system ends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from raybone.cli import main
from raybone.data.loader import Batch
from raybone.models import load
from raybone.train.memory import memory_bytes, step_bytes


def test_a_step_that_no_machine_here_can_take_is_told_by_preview_and_fails_its_configuration_in_a_search(
    study: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("raybone.train.memory.memory_bytes", lambda: 1_000_000_000)
    fixed = {"batch": 8, "nbs": 8, "imgsz": 4096, "width": 32}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**study, "fixed": fixed, "epochs": 1}))
    assert main(["preview", str(tmp_path / "s.yaml")]) == 2
    said = capsys.readouterr().err
    assert "preview: a training step of 8 images of 4096x1024 pixels takes about" in said
    assert "lower batch, imgsz or the width of the model, or say what an epoch takes" in said
    assert (
        main(
            [
                "search",
                str(tmp_path / "s.yaml"),
                "--local",
                "--out",
                str(tmp_path / "st"),
                "--set",
                "search.trials=1",
            ]
        )
        == 1
    )
    (row,) = pd.read_csv(tmp_path / "st" / "leaderboard.csv").to_dict("records")
    assert row["state"] == "failed"
    assert "takes about" in row["reason"]


@pytest.mark.parametrize("name", ["unet", "yolo11n"])
def test_what_a_step_keeps_is_what_autograd_saved(name: str) -> None:
    """Half the pixels are tried; all are counted in full, by the same hooks."""
    model = load(name)
    net = model.build(model.Config()).train()
    images = Batch(
        torch.rand(2, 1, 512, 128),
        [torch.tensor([[10.0, 20, 60, 90]])] * 2,
        [torch.tensor([0])] * 2,
        torch.zeros(2, 1, 512, 128, dtype=torch.uint8),
        torch.arange(2),
    )
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.random.get_rng_state()
    guess = step_bytes(net, images)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    kept: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in net.parameters()}

    def keep(saved: torch.Tensor) -> torch.Tensor:
        storage = saved.untyped_storage()
        kept.update(
            {} if storage.data_ptr() in parameters else {storage.data_ptr(): storage.nbytes()}
        )
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        losses = net(images)
    assert losses
    assert guess == pytest.approx(sum(kept.values()), rel=0.15)


def test_a_control_group_may_have_less_than_the_machine(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 4000 kB\nMemAvailable: 10 kB\n")
    assert memory_bytes(tmp_path / "meminfo", tmp_path) == 4000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_bytes(tmp_path / "meminfo", tmp_path) == 4000 * 1024
    (tmp_path / "memory.max").write_text("3000\n")
    assert memory_bytes(tmp_path / "meminfo", tmp_path) == 3000
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("2500\n")
    assert memory_bytes(tmp_path / "meminfo", tmp_path) == 2500
    assert memory_bytes(tmp_path / "none", tmp_path) is None


def test_tiles_take_what_images_of_their_size_take() -> None:
    """The step that is tried is of small images, which are no whole scans to slide over."""
    model, kept = load("unet"), []
    for tile in (0, 512):
        config = model.Config.model_validate({"width": 4, "depth": 2, "tile": tile})
        torch.manual_seed(0)
        images = Batch(
            torch.rand(2, 1, 512, 512),
            [torch.zeros(0, 4)] * 2,
            [torch.zeros(0, dtype=torch.int64)] * 2,
            torch.zeros(2, 1, 512, 512, dtype=torch.uint8),
            torch.arange(2),
        )
        kept.append(step_bytes(model.build(config).train(), images))
    assert kept[1] == kept[0] > 0
