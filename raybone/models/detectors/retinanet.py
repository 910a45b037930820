"""RetinaNet with focal loss (Lin et al. 2017, arXiv:1708.02002), on a pyramid that begins at stride
4.

torchvision's network and losses; its own pyramid begins at stride 8, which is coarse for lesions of
6 to 40 pixels.
"""

from __future__ import annotations

from pydantic import Field
from torchvision.models.detection import RetinaNet, RetinaNet_ResNet50_FPN_Weights
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from raybone.models._model import Model
from raybone.models.detectors._torchvision import (
    DEPTHS,
    GRAPH,
    IMAGENET,
    SPACE,
    DetectorConfig,
    anchors,
    backbone,
    builder,
)
from raybone.study.param import Param


class Config(DetectorConfig):
    """Hyper-parameters of a one-stage detector with anchors."""

    octaves: int = Field(
        3, ge=1, le=4, description="anchor sizes a level, evenly within the octave"
    )
    p2: bool = Field(True, description="begin the pyramid at stride 4 instead of 8")


def make(config: Config, depth: int) -> RetinaNet:
    """The network alone, as torchvision has it: levels P2 to P6 with p2, else P3 to P7."""
    c = config.channels
    pyramid = backbone(depth, c) if config.p2 else backbone(depth, c, 2, LastLevelP6P7(c, c))
    return RetinaNet(
        pyramid,
        len(config.categories),
        anchor_generator=anchors(config),
        score_thresh=config.conf,
        nms_thresh=config.iou,
        detections_per_img=config.max_det,
    )


SOURCE = "Lin et al. 2017, arXiv:1708.02002; torchvision"
COCO = {50: {"coco": RetinaNet_ResNet50_FPN_Weights.COCO_V1.url}}
MODELS = [
    Model(
        f"retinanet_r{d}",
        "detection",
        Config,
        builder(make, d, 0),
        {**SPACE, "p2": Param(choice=(True, False))},
        SOURCE,
        weights={**IMAGENET[d], **COCO.get(d, {})},
        graph=GRAPH,
    )
    for d in DEPTHS
]
