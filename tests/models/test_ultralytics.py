"""YOLO26, RT-DETR and YOLOs with masks beside Ultralytics' own model, loss, predictor and files (YOLO11 is in test_parity.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raybone.data.dataset import open_dataset
from raybone.data.loader import CROWD, Batch
from raybone.deploy.onnx import export_onnx
from raybone.models import load
from raybone.models._check import batch_of, trained
from raybone.models.detectors._ultralytics import export, targets
from raybone.storage import Folder
from raybone.tasks import ranked_by, task_named
from raybone.train.fit import fit
from raybone.train.samples import FoldJob

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
    kind = tasks.SegmentationModel if "-seg" in yaml else kind
    theirs: nn.Module = kind(yaml, ch=1, nc=1, verbose=False)
    theirs.args = get_cfg(overrides={"overlap_mask": False})
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


SEG = ("yolo11n-seg", "yolo26n-seg")


@pytest.mark.parametrize("name", SEG)
def test_the_losses_of_boxes_and_masks_are_ultralytics_own(name: str) -> None:
    ours = built(name, **({"o2m": 0.8} if "26" in name else {}))
    batch = batch_of()
    given = {**targets(batch), "sem_masks": torch.zeros(4, 64, 16)}
    given["masks"] = torch.nn.functional.avg_pool2d(batch.mask_NCHW.float(), 4)[
        :, 0
    ]  # one lesion each
    theirs = steps(ultralytics(f"{name}.yaml", ours), given)
    told = steps(ours, batch)
    assert told == pytest.approx(theirs, rel=1e-5)
    assert told[0] != pytest.approx(told[2], rel=1e-3)


@pytest.mark.parametrize("name", SEG)
def test_an_exported_yolo_with_masks_opens_in_ultralytics_and_draws_the_same(
    name: str, tmp_path: Path
) -> None:
    """Box and mask of the best detection of a network with first weights."""
    from ultralytics import YOLO

    module = built(name, conf=1e-5, max_det=1)
    if name == "yolo11n-seg":  # its first scores are equal until its norms have seen a batch
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 1.0
        module(batch_of())
    export(module, tmp_path / "best.pt")
    module.half().float()  # the file is in half precision
    image_HW = np.random.default_rng(0).integers(0, 256, (256, 64), np.uint8)
    with torch.no_grad():
        ours = module.eval()(torch.from_numpy(image_HW[None, None] / np.float32(255)))[0]
    opened = YOLO(tmp_path / "best.pt")
    nms = False if "26" in name else None
    theirs = opened.predict(
        image_HW[..., None], imgsz=[256, 64], conf=1e-5, iou=0.7, max_det=1, nms=nms, verbose=False
    )[0]
    assert opened.task == "segment"
    assert same(ours, theirs)
    (drawn_HW,) = theirs.masks.data.numpy().astype(bool)
    assert drawn_HW.sum() > 20
    # A pixel at the edge may be half inside: processors round it either way.
    assert ((ours.mask_CHW[0] > ours.scores_N[0] / 2) != drawn_HW).sum() <= 2


def test_a_lesion_has_the_pixels_of_its_category_inside_its_box() -> None:
    module = built("yolo11n-seg", mask_ratio=2, categories=("malignant", "bone"))
    mask_NCHW = torch.zeros(2, 2, 32, 32, dtype=torch.uint8)
    mask_NCHW[0, 0, 4:8, 4:8] = 1
    mask_NCHW[0, 0, 20:25, 10:14] = 1
    mask_NCHW[0, 1, 4:30, 4:30] = 1
    mask_NCHW[0, 0, 0:2, 0:2] = CROWD
    boxes = [torch.tensor([[4, 4, 8, 8], [10, 20, 14, 25], [4, 4, 30, 30.0]]), torch.zeros(0, 4)]
    labels = [torch.tensor([0, 0, 1]), torch.zeros(0, dtype=torch.int64)]
    batch = Batch(torch.zeros(2, 1, 32, 32), boxes, labels, mask_NCHW, torch.arange(2))
    masks_MHW = module._targets(batch)["masks"]
    assert masks_MHW.shape == (3, 16, 16)
    assert (4 * masks_MHW.sum((1, 2))).tolist() == [16, 20, 26 * 26]
    assert masks_MHW[1, 12, 5] == 0.5  # half of its pixels


@pytest.mark.parametrize(("metric", "task"), [("dice", "segmentation"), ("AP50", "detection")])
def test_one_network_is_scored_by_its_masks_or_by_its_boxes(
    metric: str, task: str, dataset: Path, tmp_path: Path
) -> None:
    model = ranked_by(load("yolo11n-seg"), metric)
    assert model.task == task
    config = model.Config.model_validate({"batch": 4, "nbs": 4, "imgsz": 128, "warmup_epochs": 0})
    job = FoldJob(open_dataset(dataset), model, config, 0, 2)
    (*_, last) = fit(job, Folder(tmp_path / "fold"), metric, 2)
    assert 0 <= last.metrics[metric] <= 1
    assert last.metrics["train_loss"] > 0


def test_a_metric_of_no_task_leaves_a_model_as_it_is() -> None:
    for name, metric in (("yolo11n", "dice"), ("yolo11n-seg", "AUC"), ("unet", "AP")):
        assert ranked_by(load(name), metric).task == load(name).task


def test_masks_cannot_be_learned_from_boxes_alone_for_either_metric(dataset: Path) -> None:
    opened = open_dataset(dataset)
    scans = [
        replace(s, lesions=tuple(replace(le, rle=None) for le in s.lesions)) for s in opened.scans
    ]
    bare = replace(opened, scans=scans)
    for metric in ("dice", "AP"):
        model = ranked_by(load("yolo11n-seg"), metric)
        problems = task_named(model.task).problems
        assert problems(opened, model.name, model.Config()) == []
        (line,) = problems(bare, model.name, model.Config())
        assert "yolo11n-seg needs lesion masks, but" in line
