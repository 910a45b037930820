"""Faster R-CNN with a feature pyramid (Ren et al. 2015, arXiv:1506.01497; Lin et al. 2017,
arXiv:1612.03144).

torchvision's network and losses, with ResNet-50 or ResNet-101, as in the benchmark of BS-80K.
"""

from __future__ import annotations

from pydantic import Field
from torchvision.models.detection import FasterRCNN, FasterRCNN_ResNet50_FPN_Weights
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from raybone.models._model import Model
from raybone.models.detectors._torchvision import (
    DEPTHS,
    IMAGENET,
    SPACE,
    DetectorConfig,
    anchors,
    backbone,
    builder,
)


class Config(DetectorConfig):
    """Hyper-parameters of a two-stage detector."""

    rpn_iou: float = Field(
        0.5,
        gt=0.3,
        lt=1,
        description="IoU from which an anchor is a lesion's; few anchors "
        "overlap a small lesion by torchvision's 0.7",
    )
    head: int = Field(1024, ge=8, le=8192, description="neurons of the second stage's layers")
    rois: int = Field(
        512, ge=1, description="proposals an image that the second stage is trained with"
    )


def make(config: Config, depth: int) -> FasterRCNN:
    """The network alone, as torchvision has it; label 0 is the background."""
    return FasterRCNN(
        backbone(depth, config.channels),
        rpn_anchor_generator=anchors(config),
        rpn_fg_iou_thresh=config.rpn_iou,
        box_head=TwoMLPHead(config.channels * 7 * 7, config.head),
        box_predictor=FastRCNNPredictor(config.head, len(config.categories) + 1),
        box_batch_size_per_image=config.rois,
        box_score_thresh=config.conf,
        box_nms_thresh=config.iou,
        box_detections_per_img=config.max_det,
    )


SOURCE = "Ren et al. 2015, arXiv:1506.01497, with FPN; torchvision"
COCO = {50: {"coco": FasterRCNN_ResNet50_FPN_Weights.COCO_V1.url}}
MODELS = [
    Model(
        f"faster_rcnn_r{d}",
        "detection",
        Config,
        builder(make, d, 1),
        SPACE,
        SOURCE,
        weights={**IMAGENET[d], **COCO.get(d, {})},
    )
    for d in DEPTHS
]
