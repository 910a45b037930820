"""YOLO11-seg n, s, m, l, x on one channel: Ultralytics' network of boxes and a mask of each.

It is trained on both and serves studies of masks and of boxes, by their metric.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from raybone.data.loader import Batch
from raybone.models._model import TrainingConfig
from raybone.models.detectors import yolo
from raybone.models.detectors._ultralytics import boxes_of, crop_mask, family, targets
from raybone.types import Prediction


class Masked(TrainingConfig):
    """What a detector with masks has of its own; it has neither a third class nor tiles."""

    nm: ClassVar[str] = ""
    tile: ClassVar[int] = 0
    mask_ratio: Literal[1, 2, 4] = Field(
        4,
        description="pixels of the image to one of the masks that are learned; 1 and 2 take memory",
    )

    @model_validator(mode="after")
    def _known(self) -> Masked:
        if self.unlabelled:
            raise ValueError(
                "unlabelled scans have no sure mask of each box; set it to 0, or take a detector "
                "of boxes or a segmenter"
            )
        return self

    @property
    def masked(self) -> bool:
        """Whether a detector learns from the lesions' masks too."""
        return True


class Config(yolo.Config, Masked):
    """YOLO11-seg's own hyper-parameters."""


class WithMasks:
    """What masks add to a YOLO of boxes."""

    config: Any

    def _targets(self, batch: Batch) -> dict[str, Any]:
        """Masks of lesions: the pixels of a lesion's category inside its box, as shares of coarser
        pixels. Lesions whose boxes overlap have what is in both.
        """
        side = self.config.mask_ratio
        share_NCHW = functional.avg_pool2d((batch.mask_NCHW == 1).float(), side)
        masks = []
        for share_CHW, boxes_M4, labels_M in zip(share_NCHW, batch.boxes, batch.labels):
            touched_M4 = torch.cat([(boxes_M4 / side)[:, :2].floor(), boxes_M4[:, 2:] / side], 1)
            masks.append(crop_mask(share_CHW[labels_M], touched_M4))
        return {
            **targets(batch),
            "masks": torch.cat(masks),
            "sem_masks": share_NCHW.argmax(1),
        }

    def _predictions(self, rows: list[Tensor], output: Any, shape: torch.Size) -> list[Prediction]:
        """Boxes, and for each category and pixel the highest score times probability of a mask."""
        predictions = []
        for rows_NK, bases_KHW in zip(rows, output[0][1].detach().float()):
            rows_NK = rows_NK.detach()
            mask_CHW = rows_NK.new_zeros(len(self.config.categories), *shape[2:])
            for row_K in rows_NK:
                logits_HW = torch.einsum("k,khw->hw", row_K[6:], bases_KHW)
                full_1HW = functional.interpolate(
                    logits_HW[None, None], shape[2:], mode="bilinear"
                )[0]
                inside_1HW = crop_mask(full_1HW.sigmoid() * row_K[4], row_K[None, :4])
                own_HW = mask_CHW[int(row_K[5])]
                torch.maximum(own_HW, inside_1HW[0], out=own_HW)
            boxes, mask = boxes_of(rows_NK, shape), mask_CHW.cpu().numpy()
            predictions.append(Prediction(boxes.boxes_N4, boxes.scores_N, boxes.labels_N, mask))
        return predictions


class YoloSeg(WithMasks, yolo.Yolo):
    """Ultralytics' SegmentationModel with one input channel."""


# An ONNX file has one output here, which boxes and masks are not.
MODELS = family(
    "11/yolo11{}-seg",
    YoloSeg,
    Config,
    yolo.SPACE,
    yolo.SOURCE,
    task="segmentation",
    reduction="sum",
    also=("detection",),
)
