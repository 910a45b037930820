"""YOLO26 n, s, m, l, x on one channel: Ultralytics' network with two heads, and its loss of both.

The one-to-many head learns as YOLO11's does, though its sides are numbers, not distributions; the
one-to-one head learns one box a lesion, so that no boxes are merged. It takes the features as they
are and does not train what is below it.
"""

from __future__ import annotations

from typing import cast

from pydantic import Field
from torch import Tensor

from raybone.data.loader import Batch
from raybone.models._model import Graph
from raybone.models.detectors import yolo
from raybone.models.detectors._ultralytics import family


class Config(yolo.Config):
    """YOLO26's own hyper-parameters."""

    dfl: float = Field(1.5, gt=0, description="gain of the L1 loss of the sides")
    reach: float = Field(
        0.75,
        gt=0.2,
        le=7.5,
        description="strides from a cell to the sides of the box it predicts before training; with "
        "Ultralytics' 2 lesions under 9 px have next to no weight",
    )
    o2m: float = Field(
        0.45,
        ge=0.05,
        le=0.95,
        description="weight of the loss of the one-to-many head; the other head has the rest. "
        "Ultralytics' falls from 0.8 to 0.1 over the epochs, whose mean this is",
    )
    nms: bool = Field(
        False,
        description="predict with the one-to-many head and non-maximum suppression (`iou`), as "
        "Ultralytics does unless it is told nms=False",
    )


class Yolo26(yolo.Yolo):
    """Ultralytics' DetectionModel with the heads of YOLO26."""

    def __init__(self, config: Config, yaml: str) -> None:
        super().__init__(config, yaml)
        self.net.end2end = not config.nms
        self.net.set_head_attr(max_det=config.max_det)

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        if getattr(self.net, "criterion", None) is None:
            # Its weights are fixed: a loss knows its batch, and not the epoch.
            self.net.criterion = self.net.init_criterion()
            weight = cast(Config, self.config).o2m
            self.net.criterion.o2m, self.net.criterion.o2o = weight, 1 - weight
        return super()._losses(batch)


def _graph(module: Yolo26, image_NCHW: Tensor) -> Tensor:
    """Before the best are chosen, (1, 4 + C, boxes): x, y, x, y in pixels, and scores of the
    one-to-one head; with ``nms`` as YOLO11's.
    """
    predicted, parts = module.net(image_NCHW)
    if not module.net.end2end:
        return cast(Tensor, predicted)
    return cast(Tensor, module.net.model[-1]._inference(parts["one2one"]))


SOURCE = "Ultralytics YOLO26 (Jocher & Qiu 2026), AGPL-3.0; one channel"
MODELS = family(
    "26/yolo26{}",
    Yolo26,
    Config,
    yolo.SPACE,
    SOURCE,
    reduction="sum",
    graph=Graph(_graph, any_batch=False),
)
