"""Grad-CAM: heat lies where the network looks, by a network whose eyes are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from raybone.data.annotations import lesion_mask
from raybone.data.cache import Intensities
from raybone.data.dataset import open_dataset
from raybone.data.loader import ScanSamples
from raybone.models import load
from raybone.models.classifiers._classifier import Classifier
from raybone.tasks import task_named
from raybone.train.grad_cam import heat_map

CPU = torch.device("cpu")


@pytest.fixture
def samples(dataset: Path) -> ScanSamples:
    opened, model = open_dataset(dataset), load("timm/resnet18")
    config = model.Config(imgsz=128)
    task, images = task_named("classification"), Intensities(opened, 128)
    return task.samples(images, opened.validation(0), config)


def looking_at(channel: int, sign: float = 1.0) -> nn.Module:
    """A classifier that says yes, or no, to what is bright in a channel: the scan, or the mask."""
    first = nn.Conv2d(2, 1, 3, padding=1, bias=False)
    nn.init.zeros_(first.weight)
    with torch.no_grad():
        first.weight[0, channel] = 1 / 9
    last = nn.Linear(1, 1)
    nn.init.constant_(last.weight, sign)
    net = nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
    return Classifier(net).eval()


def test_a_network_that_looks_at_the_mask_is_hot_inside_the_lesion(samples: ScanSamples) -> None:
    for index in range(4):
        heat_HW = heat_map([looking_at(1)], samples, index, CPU)
        assert heat_HW is not None
        row, lesion, _ = samples.items[index]  # type: ignore[attr-defined]
        scan = samples.scans[row]
        assert heat_HW.shape == (scan.height, scan.width)
        inside_HW = lesion_mask(scan.lesions[lesion], scan.height, scan.width)
        assert heat_HW.max() <= 1
        assert heat_HW[inside_HW].mean() > 0.5 > 10 * heat_HW[~inside_HW].mean()


def test_what_speaks_against_the_class_is_cold_and_members_are_averaged(
    samples: ScanSamples,
) -> None:
    cold_HW = heat_map([looking_at(1, -1.0)], samples, 0, CPU)
    assert cold_HW is not None
    assert cold_HW.max() == 0
    hot_HW = heat_map([looking_at(1)], samples, 0, CPU)
    both_HW = heat_map([looking_at(1), looking_at(1, -1.0)], samples, 0, CPU)
    assert hot_HW is not None
    assert both_HW is not None
    np.testing.assert_allclose(both_HW, hot_HW / 2, atol=1e-6)


def test_a_network_without_maps_has_no_heat(samples: ScanSamples) -> None:
    flat = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1))
    assert heat_map([Classifier(flat).eval()], samples, 0, CPU) is None


@pytest.mark.parametrize("name", ["lesion_resnet50", "timm/resnet18"])
def test_networks_of_the_menu_have_heat_and_keep_their_weights_still(
    samples: ScanSamples, name: str
) -> None:
    model = load(name)
    torch.manual_seed(0)
    module = model.build(model.Config(imgsz=128)).eval().requires_grad_(False)
    heat_HW = heat_map([module], samples, 0, CPU)
    assert heat_HW is not None
    assert np.isfinite(heat_HW).all()
    assert all(p.grad is None for p in module.parameters())
    assert not any(m._forward_hooks for m in module.modules())
