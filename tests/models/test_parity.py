"""Our loop against the makers' own ways: Ultralytics' trainer, and torchvision's models as they
come.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stock import STILL, stock_trainer
from test_contract import SMALLER
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, retinanet_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator

from raybone.data.dataset import open_dataset
from raybone.models import load
from raybone.models._check import batch_of, trained
from raybone.storage import Folder
from raybone.train.fit import fit
from raybone.train.samples import FoldJob

EPOCHS = 3


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_yolo_trains_as_in_ultralytics_own_trainer(
    optimizer: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same fold, order and augmentation: the loss of every epoch to 1e-4, and what the averages
    find.
    """
    model = load("yolo11n")
    config = model.Config.model_validate(
        {
            "batch": 4,
            "nbs": 4,
            "imgsz": 128,
            "optimizer": optimizer,
            "lr0": 0.002,
            "warmup_epochs": 1,
            **STILL,
        }
    )
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)  # Ultralytics sets what it likes
    opened, folder = open_dataset(dataset), Folder(tmp_path / "ours")
    ours = list(fit(FoldJob(opened, model, config, 0, EPOCHS), folder, "AP", EPOCHS))
    stock = stock_trainer(model, config, opened, EPOCHS)
    stock.train()
    torch.set_num_threads(1)
    assert [e.metrics["train_loss"] for e in ours] == pytest.approx(stock.told, abs=1e-4)
    average = torch.load(tmp_path / "ours" / "last.pt", weights_only=True)["average"]
    for name, value in (
        (n, v) for n, v in stock.ema.ema.state_dict().items() if v.is_floating_point()
    ):
        torch.testing.assert_close(average[f"net.{name}"], value, atol=1e-4, rtol=1e-3)
    module = model.build(config).eval()
    image_NCHW = torch.rand(2, 1, 128, 32)
    found = []
    for state in (average, {f"net.{k}": v for k, v in stock.ema.ema.state_dict().items()}):
        module.load_state_dict(state)
        with torch.no_grad():
            found.append(module(image_NCHW))
    assert all(len(one.scores_N) for one in found[0])
    for one, other in zip(*found):
        np.testing.assert_allclose(one.boxes_N4, other.boxes_N4, atol=1e-2)
        np.testing.assert_allclose(one.scores_N, other.scores_N, atol=1e-4)


def test_an_exported_yolo_opens_in_ultralytics_and_finds_the_same(tmp_path: Path) -> None:
    from ultralytics import YOLO

    from raybone.models.detectors._ultralytics import export

    module = load("yolo11n").build(load("yolo11n").Config(conf=0.01))
    trained(module, batch_of(), 20, 3e-3)
    export(module, tmp_path / "best.pt")
    image_HW = (batch_of(1).image_NCHW[0, 0].numpy() * 255).astype(np.uint8)
    with torch.no_grad():
        ours = module.eval()(torch.from_numpy(image_HW[None, None] / np.float32(255)))[0]
    opened = YOLO(tmp_path / "best.pt")
    theirs = opened.predict(
        image_HW[..., None], imgsz=[256, 64], conf=0.01, iou=0.7, max_det=100, verbose=False
    )[0]
    assert opened.names == {0: "malignant"}
    assert len(ours.scores_N) == len(theirs) > 0
    # The file is in half precision, in which scores may tie.
    boxes = [b[np.lexsort(np.rint(b / 8).T)] for b in (theirs.boxes.xyxy.numpy(), ours.boxes_N4)]
    np.testing.assert_allclose(*boxes, atol=0.5)
    np.testing.assert_allclose(theirs.boxes.conf.numpy(), ours.scores_N, atol=0.01)


def bare_faster_rcnn() -> nn.Module:
    """torchvision's own model with the arguments that ours stand for."""
    sizes = tuple((16.0 * 2**level,) for level in range(5))
    net = fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=2,
        image_mean=[0.0],
        image_std=[1.0],
        _skip_resize=True,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5),
        rpn_fg_iou_thresh=0.5,
        box_batch_size_per_image=32,
    )
    net.backbone.body.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return net


def bare_retinanet() -> nn.Module:
    """torchvision's own model, from stride 8 on."""
    sizes = tuple(
        tuple(16.0 * 2 ** (level + third / 3) for third in range(3)) for level in range(5)
    )
    net = retinanet_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=1,
        image_mean=[0.0],
        image_std=[1.0],
        _skip_resize=True,
        anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5),
    )
    net.backbone.body.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return net


@pytest.mark.parametrize(
    ("name", "bare", "own", "first"),
    [
        ("faster_rcnn_r50", bare_faster_rcnn, {"rois": 32}, 1),
        ("retinanet_r50", bare_retinanet, {"p2": False}, 0),
    ],
)
def test_the_losses_of_every_step_are_torchvisions(
    name: str, bare: Callable[[], nn.Module], own: dict[str, Any], first: int
) -> None:
    """torchvision's own factories, with our first weights and fed the same tensors."""
    model = load(name)
    ours, theirs = (
        model.build(model.Config.model_validate({"imgsz": 128, "anchor": 0.125, **own})),
        bare(),
    )
    theirs.load_state_dict({k.removeprefix("net."): v for k, v in ours.state_dict().items()})
    batch = batch_of(2, 128, 32)
    targets = [{"boxes": b, "labels": y + first} for b, y in zip(batch.boxes, batch.labels)]
    told = []
    for net, given in ((ours, (batch,)), (theirs, (list(batch.image_NCHW), targets))):
        torch.manual_seed(0)  # both draw the boxes that they train with
        optimizer, losses = torch.optim.SGD(net.train().parameters(), 1e-3), []
        for _ in range(3):
            parts = net(*given)
            optimizer.zero_grad()
            torch.stack(list(parts.values())).sum().backward()
            optimizer.step()
            losses.append({k: float(v.detach()) for k, v in parts.items()})
        told.append(losses)
    for one, other in zip(*told):
        assert one == pytest.approx(other, rel=1e-6)
    assert told[0][0] != pytest.approx(told[0][2], rel=1e-3)


def test_the_cascade_asks_for_more_overlap_at_every_stage_and_learns_from_scans_without_lesions() -> (
    None
):
    model = load("cascade_rcnn_r18")
    net = model.build(model.Config.model_validate(SMALLER["cascade_rcnn_r18"])).train()
    assert [m.high_threshold for m in net.net.roi_heads.matchers] == [0.5, 0.6, 0.7]
    full, empty = (net(batch_of(2, 128, 64, empty=e)) for e in (False, True))
    assert list(full) == list(empty)
    assert sum("classifier" in name for name in full) == 3
    assert full["loss_box_reg_0"] > 0
    assert all(empty[name] == 0 for name in empty if "box_reg" in name)
    mixed_batch = batch_of(2, 128, 64)
    mixed_batch.boxes[0], mixed_batch.labels[0] = (
        torch.zeros(0, 4),
        torch.zeros(0, dtype=torch.int64),
    )
    assert all(torch.isfinite(v) for v in net(mixed_batch).values())
