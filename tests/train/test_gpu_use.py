"""How much of the time a GPU was at work, on a driver that is made up."""

from __future__ import annotations

import math
import time

import pytest
import torch
from pynvml import NVMLError_NotSupported

from raybone.train import gpu_use
from raybone.train.gpu_use import GpuUse

CUDA = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_use, "SECONDS", 0.01)


def test_it_is_the_mean_of_what_the_driver_says_while_the_block_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = list[int]()

    def utilization(device: torch.device) -> int:
        assert device == CUDA
        said.append(100 if len(said) % 2 else 40)
        return said[-1]

    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    with GpuUse(CUDA) as use:
        while len(said) < 4:
            time.sleep(0.005)
    assert use.share == pytest.approx(sum(said) / len(said) / 100)
    looks = len(said)
    time.sleep(0.05)
    assert len(said) == looks, "it looks no more when the block has ended"


def test_a_block_that_ends_at_once_has_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_use, "SECONDS", 60.0)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 70)
    with GpuUse(CUDA) as use:
        pass
    assert use.share == 0.7


def test_without_a_gpu_and_where_the_driver_does_not_tell_it_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: torch.device) -> int:
        raise NVMLError_NotSupported()

    with GpuUse(torch.device("cpu")) as use:
        pass
    assert math.isnan(use.share)
    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    with GpuUse(CUDA) as use:
        time.sleep(0.05)
    assert math.isnan(use.share)


def test_a_block_that_fails_ends_the_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 70)
    use = GpuUse(CUDA)
    with pytest.raises(ValueError, match="diverged"), use:
        raise ValueError("diverged")
    assert not use._thread.is_alive()
