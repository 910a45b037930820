"""RT-DETR l and x on one channel: Ultralytics' network and losses under the raybone contract.

A transformer chooses 300 boxes at most, each for one lesion, so that no boxes are merged.
There is no ONNX graph: what it chooses first, by scores that may tie, changes every box after.
"""

from __future__ import annotations

from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from raybone.data.loader import Batch
from raybone.models._model import TrainingConfig, in_full_precision
from raybone.models.detectors import yolo
from raybone.models.detectors._ultralytics import boxes_of, family, network, targets
from raybone.study.param import Param
from raybone.types import Prediction

STRIDE = 32  # pixels of the coarsest features; images are filled up to a multiple


class Config(TrainingConfig):
    """RT-DETR's own hyper-parameters; the weights of the losses are Ultralytics'."""

    denoising: int = Field(
        100, ge=0, le=1000, description="boxes made of the lesions by noise, to learn from; 0: none"
    )
    conf: float = Field(0.001, ge=0, lt=1, description="lowest score of a detection")
    max_det: int = Field(100, ge=1, description="detections an image; COCO AP counts 100")


class Rtdetr(nn.Module):
    """Ultralytics' RTDETRDetectionModel with one input channel."""

    def __init__(self, config: Config, yaml: str) -> None:
        super().__init__()
        self.config = config
        self.net = network(yaml, config)
        self.net.criterion = self.net.init_criterion()
        head = self.net.model[-1]
        head.num_denoising = config.denoising
        # Anchors have the precision of the features, and boxes are sums of what these give.
        in_full_precision(*head.input_proj, head.enc_bbox_head, *head.dec_bbox_head, head)

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor] | list[Prediction]:
        """Losses of a Batch in train mode, means over its lesions; a Prediction an image in eval
        mode.
        """
        if self.training:
            return self._losses(cast(Batch, batch))
        image_NCHW = cast(Tensor, batch)
        filled_NCHW = _filled(image_NCHW)
        rows_NQ6 = yolo.raw(self.net(filled_NCHW)).float()
        height, width = filled_NCHW.shape[2:]
        centre_NQ2, half_NQ2 = rows_NQ6[..., :2], rows_NQ6[..., 2:4] / 2
        boxes_NQ4 = torch.cat([centre_NQ2 - half_NQ2, centre_NQ2 + half_NQ2], 2)
        boxes_NQ4 = boxes_NQ4 * boxes_NQ4.new_tensor([width, height, width, height])
        rows_NQ6 = torch.cat([boxes_NQ4, rows_NQ6[..., 4:]], 2)
        return [
            boxes_of(
                rows_Q6[rows_Q6[:, 4] > self.config.conf][: self.config.max_det], image_NCHW.shape
            )
            for rows_Q6 in rows_NQ6
        ]

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        """Of all layers, and of denoising."""
        parts: dict[str, Tensor] = {}
        # Ultralytics gives their sum alone.
        watch = self.net.criterion.register_forward_hook(lambda *call: parts.update(call[2]))
        try:
            self.net(targets(batch._replace(image_NCHW=_filled(batch.image_NCHW))))
        finally:
            watch.remove()
        return {
            f"{name}_loss": torch.stack([v for k, v in parts.items() if kind in k]).sum()
            for name, kind in (("box", "bbox"), ("giou", "giou"), ("cls", "class"))
        }


def _filled(image_NCHW: Tensor) -> Tensor:
    """Images of sides that are multiples of STRIDE, with 0 below and on the right."""
    height, width = image_NCHW.shape[2:]
    return functional.pad(image_NCHW, (0, -width % STRIDE, 0, -height % STRIDE))


SPACE = {**yolo.SPACE, "lr0": Param(log_uniform=(3e-5, 1e-3))}
SOURCE = "Zhao et al. 2023, arXiv:2304.08069; Ultralytics, AGPL-3.0; one channel"
MODELS = family("rt-detr/rtdetr-{}", Rtdetr, Config, SPACE, SOURCE, sizes="lx")
