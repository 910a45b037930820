"""YOLO26-seg n, s, m, l, x on one channel: YOLO26 with masks, as YOLO11-seg has them."""

from __future__ import annotations

from functools import partial
from typing import cast

from torch import nn

from raybone.models._model import Model, TrainingConfig
from raybone.models.detectors import yolo, yolo26
from raybone.models.detectors._ultralytics import ADDRESS, export
from raybone.models.detectors.yolo_seg import Masked, WithMasks


class Config(yolo26.Config, Masked):
    """YOLO26-seg's own hyper-parameters."""


class Yolo26Seg(WithMasks, yolo26.Yolo26):
    """Ultralytics' SegmentationModel with the heads of YOLO26; its assigner compares masks too."""


def _build(config: TrainingConfig, name: str) -> nn.Module:
    return Yolo26Seg(cast(Config, config), f"26/{name}")


# An ONNX file has one output here, which boxes and masks are not.
MODELS = [
    Model(
        name,
        "segmentation",
        Config,
        partial(_build, name=name),
        yolo.SPACE,
        yolo26.SOURCE,
        reduction="sum",
        weights={"coco": ADDRESS.format(name)},
        native=(".pt", export),
        also=("detection",),
    )
    for name in ("yolo26n-seg", "yolo26s-seg", "yolo26m-seg", "yolo26l-seg", "yolo26x-seg")
]
