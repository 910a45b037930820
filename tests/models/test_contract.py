"""One suite for every model of the folder: a new file is tested before its author writes a test."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

import raybone.models
from raybone.errors import InvalidConfig, WrongInput
from raybone.models import MENU, check, load, menu
from raybone.models._check import batch_of, trained
from raybone.models._model import Model

FILES = sorted(
    f"{p.parent.name}.{p.stem}"
    for p in Path(raybone.models.__file__).parent.glob("[a-z]*/[!_]*.py")
)
# The smallest model of each file.
SMALL = {stem: next(name for name in MENU if MENU[name] == stem) for stem in FILES}
_NARROW = {"imgsz": 128, "channels": 32, "anchor": 0.125}
SMALLER = {
    "unet": {"width": 8, "depth": 3},
    "msma_unet": {"width": 8},
    "unet_plus_plus": {"width": 4},
    "resunet_a": {"width": 4},
    "hybrid_att_unet_plus_plus": {"width": 4},
    "rar_unet": {"width": 8, "depth": 3},
    "multi_inception_unet": {"width": 8, "depth": 3},
    "double_unet": {"width": 16},
    "smp/Unet": {"encoder": "resnet18"},
    "nnunet": {"width": 8, "depth": 3},
    "retinanet_r18": _NARROW,
    "fcos_r18": {"imgsz": 128, "channels": 32},
    "rtdetr-l": {"denoising": 20},
    **{
        name: {**_NARROW, "head": 64, "rois": 64}
        for name in ("faster_rcnn_r18", "cascade_rcnn_r18")
    },
}
# Steps to learn a batch by heart, and the learning rate for that: large networks need few of them,
# and small ones.
ANCHORED = ("faster_rcnn_r18", "cascade_rcnn_r18", "retinanet_r18")
PACE = {
    **dict.fromkeys((*ANCHORED, "fcos_r18"), (24, 4e-4)),
    **dict.fromkeys(("yolo11n", "yolo26n", "yolo11n-seg", "yolo26n-seg"), (30, 3e-3)),
    "rtdetr-l": (12, 1e-3),
    "lesion_resnet50": (12, 4e-4),
    **dict.fromkeys(("double_unet", "unet_plus_plus"), (24, 1e-2)),
    "msma_unet": (30, 3e-3),
    **dict.fromkeys(("cmunext-s", "resunet_a"), (16, 1e-2)),
    "amsunet": (8, 1e-2),
    **dict.fromkeys(("rar_unet", "multi_inception_unet"), (16, 1e-2)),
    "hybrid_att_unet_plus_plus": (24, 1e-2),
    **dict.fromkeys(("smp/Unet", "nnunet", "timm/resnet18"), (12, 3e-3)),
}


def build(name: str) -> tuple[Model, torch.nn.Module]:
    """A small model with fixed weights."""
    model = load(name)
    torch.manual_seed(0)
    return model, model.build(model.Config(**SMALLER.get(name, {})))


def stacked(model: Model) -> bool:
    """Whether its images have the lesion's mask as a second channel."""
    return model.task == "classification"


def test_the_menu_is_what_the_files_offer() -> None:
    offered = {}
    for stem in FILES:
        module = import_module(f"raybone.models.{stem}")
        offered.update({m.name: stem for m in getattr(module, "MODELS", None) or [module.MODEL]})
    assert offered == MENU
    assert [name for name, *_ in menu()] == list(MENU)


def test_an_unknown_model_lists_the_menu() -> None:
    with pytest.raises(
        WrongInput, match=r"must be a name of the menu, got 'yolo11'; did you mean yolo11"
    ) as caught:
        load("yolo11")
    assert all(name in caught.value.problems[0] for name in MENU)


@pytest.mark.parametrize("name", MENU)
def test_every_model_builds_with_defaults_and_has_a_source_and_a_sound_space(name: str) -> None:
    model = load(name)
    trained = sum(p.numel() for p in model.build(model.Config()).parameters() if p.requires_grad)
    (row,) = (row for row in menu() if row[0] == name)
    assert row == (name, model.task, trained, model.SOURCE)
    assert model.SOURCE
    for key, param in model.SPACE.items():
        for value in param.choice or param.bounds or ():
            model.Config.model_validate({key: value})


@pytest.mark.parametrize("name", SMALL.values())
def test_every_file_keeps_the_contract(name: str) -> None:
    assert check(load(name), *PACE.get(name, (45, 3e-3)), **SMALLER.get(name, {})) == []


@pytest.mark.parametrize("name", SMALL.values())
def test_it_is_these_lesions_that_are_learned(name: str) -> None:
    """Those of other images fit worse."""
    model, net = build(name)
    batch = batch_of(2, 128, 64, stacked=stacked(model)) if name in PACE else batch_of()
    trained(net, batch, *PACE.get(name, (45, 3e-3)))
    swapped = batch._replace(
        boxes=batch.boxes[::-1], labels=batch.labels[::-1], mask_NCHW=batch.mask_NCHW.flip(0)
    )
    with torch.no_grad():
        right, wrong = (float(torch.stack(list(net(b).values())).sum()) for b in (batch, swapped))
    assert right < 0.75 * wrong


@pytest.mark.parametrize("name", SMALL.values())
def test_a_prediction_has_what_its_task_needs(name: str) -> None:
    model, net = build(name)
    with torch.no_grad():
        (p,) = net.eval()(torch.rand(1, 1 + stacked(model), 128, 128))
    if model.task == "detection":
        assert p.boxes_N4.shape == (len(p.scores_N), 4)
    elif model.task == "classification":
        assert p.scores_N.shape == (1,)
        assert 0 <= p.scores_N[0] <= 1
    else:
        assert p.mask_CHW.shape == (1, 128, 128)


DETECTORS = [name for name in SMALL.values() if load(name).task == "detection"]


@pytest.mark.parametrize(
    "name", [n for n in DETECTORS if n != "faster_rcnn_r18"]
)  # Cascade has all its parts
def test_boxes_keep_their_precision_under_bfloat16(name: str) -> None:
    """Beyond 512 pixels bfloat16 knows multiples of 4 alone: a small lesion there would be lost."""
    model = load(name)
    torch.manual_seed(0)
    net = model.build(
        model.Config(
            **{
                **SMALLER.get(name, {}),
                "imgsz": 768,
                **({"anchor": 0.01} if name in ANCHORED else {}),
            }
        )
    ).train()
    batch = batch_of(1, 768, 64)
    batch.boxes[0] = torch.tensor([[40, 702.5, 46, 705], [20, 740, 29, 751]])
    batch.labels[0] = torch.zeros(2, dtype=torch.int64)
    told = []
    for half in (False, True):
        torch.manual_seed(1)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            told.append({k: float(v) for k, v in net(batch).items()})
    assert all(np.isfinite(v) for v in told[1].values())
    boxes = [k for k in told[0] if "rpn" in k or "box" in k or "regression" in k]
    # The second stage is trained with other proposals when the first scores a little differently.
    exact = [k for k in boxes if k in ("loss_rpn_box_reg", "bbox_regression", "box_loss")]
    assert exact
    assert {k: told[1][k] for k in exact} == pytest.approx({k: told[0][k] for k in exact}, rel=0.03)


@pytest.mark.parametrize("name", ANCHORED)
def test_anchors_that_would_fall_together_are_refused(name: str) -> None:
    model = load(name)
    with pytest.raises(InvalidConfig, match=r"anchor 0.004 at imgsz 512 is under 4 pixels"):
        model.build(model.Config(anchor=0.004, imgsz=512))
    cells = model.build(model.Config(imgsz=512, channels=16)).net
    generator = getattr(cells, "anchor_generator", None) or cells.rpn.anchor_generator
    for level in generator.cell_anchors:
        assert (
            len({tuple(a.tolist()) for a in level}) >= len(level) - 1
        )  # two of nine round alike at 4 pixels


def test_channels_that_fcos_cannot_share_out_are_refused() -> None:
    model = load("fcos_r18")
    with pytest.raises(InvalidConfig, match="channels 40 must be a multiple of 32 in fcos"):
        model.build(model.Config(channels=40))
