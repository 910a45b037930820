"""YOLO11 n, s, m, l, x on one channel: Ultralytics' network and loss under the raybone contract.

Everything else (data, augmentation, optimiser, evaluation) is raybone's, the same for every
detector.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from raybone.data.loader import Batch
from raybone.models._model import Graph, TrainingConfig, in_full_precision
from raybone.models.detectors._ultralytics import (
    boxes_of,
    family,
    network,
    non_max_suppression,
    targets,
)
from raybone.study.param import Param
from raybone.types import Prediction


class Config(TrainingConfig):
    """YOLO11's own hyper-parameters; the gains are Ultralytics' defaults."""

    box: float = Field(7.5, gt=0, description="gain of the box loss")
    cls: float = Field(0.5, gt=0, description="gain of the class loss")
    dfl: float = Field(1.5, gt=0, description="gain of the distribution focal loss")
    reach: float = Field(
        0.5,
        gt=0.2,
        le=7.5,
        description="strides from a cell to the sides of the box it predicts "
        "before training; Ultralytics' 7.5 is blind to lesions under about 30 px",
    )
    conf: float = Field(0.001, ge=0, lt=1, description="lowest score of a detection")
    iou: float = Field(
        0.7, gt=0, le=1, description="IoU above which non-maximum suppression merges"
    )
    max_det: int = Field(100, ge=1, description="detections an image; COCO AP counts 100")


class Yolo(nn.Module):
    """Ultralytics' DetectionModel with one input channel.

    Args:
        yaml: its name below Ultralytics' folder of models.
    """

    def __init__(self, config: Config, yaml: str) -> None:
        super().__init__()
        self.config = config
        gains = {"box": config.box, "cls": config.cls, "dfl": config.dfl}
        self.net = network(yaml, config, **gains, overlap_mask=False)
        start_small(self.net.model[-1], config.reach)
        in_full_precision(self.net.model[-1])

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor] | list[Prediction]:
        """Losses, summed over the batch, of a Batch in train mode; a Prediction an image in eval
        mode.
        """
        if self.training:
            return self._losses(cast(Batch, batch))
        image_NCHW = cast(Tensor, batch)
        output = self.net(image_NCHW)
        rows = non_max_suppression(
            raw(output).float(),
            self.config.conf,
            self.config.iou,
            multi_label=True,
            max_det=self.config.max_det,
            max_time_img=10.0,
            nc=len(self.config.categories),
            end2end=self.net.end2end,
        )
        return self._predictions(rows, output, image_NCHW.shape)

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        losses, named = self.net(self._targets(batch))
        return dict(zip(named, losses))

    def _targets(self, batch: Batch) -> dict[str, Any]:
        return targets(batch)

    def _predictions(self, rows: list[Tensor], _: Any, shape: torch.Size) -> list[Prediction]:
        return [boxes_of(rows_N6, shape) for rows_N6 in rows]


def start_small(head: Any, reach: float) -> None:
    """Start with small boxes: the assigner's weight is IoU^6, which vanishes when every first box
    is huge.
    """
    for branch in (*head.cv2, *getattr(head, "one2one_cv2", ())):
        branch[-1].bias.data[:] = _bias(head.reg_max, reach)
        if head.reg_max == 1:  # no softmax damps the noise of the first weights
            branch[-1].weight.data *= 0.1


def _bias(bins: int, reach: float) -> Tensor | float:
    """The bias with which a head of that many bins a side predicts boxes that reach so far."""
    if bins == 1:  # a side is a number of strides, not a distribution over them
        return reach
    bins_R = torch.arange(bins, dtype=torch.float32)
    low, high = 0.0, 10.0
    for _ in range(50):  # the mean of softmax(-slope * bin) falls with the slope
        slope = (low + high) / 2
        low, high = (
            (slope, high)
            if float((torch.softmax(-slope * bins_R, 0) * bins_R).sum()) > reach
            else (low, slope)
        )
    return 2.0 - (slope * bins_R).repeat(4)


def raw(output: Any) -> Tensor:
    """What a network of Ultralytics gives first in eval mode, beside its raw parts and masks."""
    return raw(output[0]) if isinstance(output, tuple) else cast(Tensor, output)


SPACE = {
    "lr0": Param(log_uniform=(1e-4, 1e-2)),
    "imgsz": Param(choice=(512, 768, 1024)),
    "mosaic": Param(choice=(0.0, 0.5, 1.0)),
    "fliplr": Param(uniform=(0.0, 0.5)),
    "gamma": Param(uniform=(0.0, 0.5)),
}
SOURCE = "Ultralytics YOLO11 (Jocher & Qiu 2024), AGPL-3.0; one channel"


def _graph(module: Yolo, image_NCHW: Tensor) -> Tensor:
    """Before non-maximum suppression, (1, 4 + C, boxes): cx, cy, w, h in pixels, and scores."""
    return raw(module.net(image_NCHW))


MODELS = family(
    "11/yolo11{}",
    Yolo,
    Config,
    SPACE,
    SOURCE,
    reduction="sum",
    graph=Graph(_graph, any_batch=False),
)
