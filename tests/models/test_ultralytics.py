"""YOLO26 and RT-DETR beside Ultralytics' own model, loss, predictor and files (YOLO11 is in test_parity.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raybone.deploy.onnx import export_onnx
from raybone.models import load
from raybone.models._check import batch_of, trained
from raybone.models.detectors._ultralytics import export, targets

IMAGE_HW = (batch_of(1).image_NCHW[0, 0].numpy() * 255).astype(np.uint8)


def built(name: str, **config: Any) -> Any:
    """A small model with fixed weights."""
    model = load(name)
    torch.manual_seed(0)
    return model.build(model.Config.model_validate(config))


def ultralytics(yaml: str, ours: Any) -> nn.Module:
    """Ultralytics' own model with our weights, as its trainer makes it."""
    from ultralytics.cfg import get_cfg
    from ultralytics.nn import tasks

    kind = tasks.RTDETRDetectionModel if "rtdetr" in yaml else tasks.DetectionModel
    theirs: nn.Module = kind(yaml, ch=1, nc=1, verbose=False)
    theirs.args = get_cfg()
    theirs.load_state_dict({k.removeprefix("net."): v for k, v in ours.state_dict().items()})
    return theirs.train()


def steps(net: nn.Module, given: Any) -> list[float]:
    """The losses of three steps of SGD."""
    torch.manual_seed(0)  # denoising draws
    optimizer, told = torch.optim.SGD(net.train().parameters(), 1e-4), []
    for _ in range(3):
        losses = net(given)
        loss = sum(losses.values()) if isinstance(losses, dict) else losses[0].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        told.append(float(loss.detach()))
    return told


def same(ours: Any, theirs: Any) -> bool:
    """Whether there are boxes and each has its like of that score; equal scores have no order."""
    rows_N5 = np.column_stack([ours.boxes_N4, 64 * ours.scores_N])
    inside_M4 = theirs.boxes.xyxy.numpy().clip(0, [64, 256, 64, 256])  # RT-DETR's may stand out
    rows_M5 = np.column_stack([inside_M4, 64 * theirs.boxes.conf.numpy()])
    gaps_NM = np.abs(rows_N5[:, None] - rows_M5).max(2)
    return (
        0 < len(rows_N5) == len(rows_M5) and max(gaps_NM.min(0).max(), gaps_NM.min(1).max()) < 0.01
    )


def test_the_losses_of_yolo26_are_ultralytics_own() -> None:
    """At the weights of both heads with which its schedule begins."""
    ours = built("yolo26n", o2m=0.8)
    batch = batch_of()
    theirs = steps(ultralytics("yolo26n.yaml", ours), targets(batch))
    told = steps(ours, batch)
    assert told == pytest.approx(theirs, rel=1e-5)
    assert told[0] != pytest.approx(told[2], rel=1e-3)


def test_each_head_of_yolo26_has_its_weight() -> None:
    (more,), (less,) = (trained(built("yolo26n", o2m=w), batch_of(), 1, 1e-3) for w in (0.9, 0.1))
    (middle,) = trained(built("yolo26n", o2m=0.5), batch_of(), 1, 1e-3)
    assert middle == pytest.approx((more + less) / 2, rel=1e-5)
    assert more != pytest.approx(less, rel=1e-3)


@pytest.mark.parametrize(("reach", "side"), [(0.75, 12), (2.0, 32)])
def test_the_first_boxes_of_yolo26_are_as_small_as_lesions(reach: float, side: int) -> None:
    """Of stride 8, 16 and 32: twice ``reach`` strides a side, give or take a fifth."""
    net = built("yolo26n", reach=reach, conf=0, max_det=2000).eval()
    with torch.no_grad():
        boxes_N4 = net(torch.full((1, 1, 512, 512), 0.1))[0].boxes_N4
    inside_N = (boxes_N4 > 0).all(1) & (boxes_N4 < 512).all(1)  # others are cut at the sides
    sides_N2 = (boxes_N4[:, 2:] - boxes_N4[:, :2])[inside_N]
    levels_N2 = side * 2.0 ** np.rint(np.log2(sides_N2 / side)).clip(0, 2)
    assert len(sides_N2) > 1000
    assert np.abs(sides_N2 / levels_N2 - 1).max() < 0.2


@pytest.mark.parametrize("nms", [False, True])
def test_an_exported_yolo26_opens_in_ultralytics_and_finds_the_same(
    nms: bool, tmp_path: Path
) -> None:
    from ultralytics import YOLO

    module = built("yolo26n", conf=1e-5, nms=nms, max_det=500)
    trained(module, batch_of(), 30, 3e-3)
    export(module, tmp_path / "best.pt")
    module.half().float()  # the file is in half precision
    with torch.no_grad():
        ours = module.eval()(torch.from_numpy(IMAGE_HW[None, None] / np.float32(255)))[0]
    theirs = YOLO(tmp_path / "best.pt").predict(
        IMAGE_HW[..., None],
        imgsz=[256, 64],
        conf=1e-5,
        iou=0.7,
        max_det=500,
        verbose=False,
        nms=None if nms else False,
    )[0]
    assert same(ours, theirs)


def test_yolo26_is_an_onnx_file_that_says_what_torch_says(tmp_path: Path) -> None:
    module = built("yolo26n")
    trained(module, batch_of(), 10, 3e-3)
    assert export_onnx(module, load("yolo26n"), (128, 64), tmp_path / "net.onnx") < 1e-3


def test_the_losses_of_rtdetr_are_ultralytics_own() -> None:
    ours = built("rtdetr-l", denoising=100)
    batch = batch_of(2, 128, 64)
    theirs = ultralytics("rtdetr-l.yaml", ours)
    theirs.nc = 1  # as its trainer does
    expected = steps(theirs, targets(batch))
    told = steps(ours, batch)
    assert told == pytest.approx(expected, rel=1e-5)
    assert told[0] != pytest.approx(told[2], rel=1e-3)


def test_denoising_is_a_part_of_rtdetrs_losses_that_may_be_left_out() -> None:
    batch = batch_of(2, 128, 64)
    (without,), (some,) = (
        trained(built("rtdetr-l", denoising=count), batch, 1, 1e-4) for count in (0, 4)
    )
    assert some > without + 1


def test_an_exported_rtdetr_opens_in_ultralytics_and_finds_the_same(tmp_path: Path) -> None:
    from ultralytics import RTDETR

    module = built("rtdetr-l", conf=1e-5, max_det=500)
    export(module, tmp_path / "best.pt")
    module.half().float()  # the file is in half precision
    with torch.no_grad():
        ours = module.eval()(torch.from_numpy(IMAGE_HW[None, None] / np.float32(255)))[0]
    theirs = RTDETR(tmp_path / "best.pt").predict(
        IMAGE_HW[..., None], imgsz=[256, 64], conf=1e-5, max_det=500, verbose=False
    )[0]
    assert same(ours, theirs)


def test_what_rtdetr_fills_up_holds_no_box() -> None:
    """Of sides that are no multiple of 32 pixels."""
    net = built("rtdetr-l", conf=0).eval()
    image_NCHW = torch.rand(1, 1, 100, 40)
    filled_NCHW = torch.zeros(1, 1, 128, 64)
    filled_NCHW[..., :100, :40] = image_NCHW
    with torch.no_grad():
        (cut,), (whole,) = net(image_NCHW), net(filled_NCHW)
    assert whole.boxes_N4[:, 3].max() > 100
    np.testing.assert_array_equal(cut.scores_N, whole.scores_N)
    np.testing.assert_array_equal(cut.boxes_N4, np.minimum(whole.boxes_N4, [40, 100, 40, 100]))
