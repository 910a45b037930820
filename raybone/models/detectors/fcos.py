"""FCOS (Tian et al. 2019, arXiv:1904.01355): boxes from points, without anchors, on a pyramid that
begins at stride 4.

torchvision's network and losses; its own pyramid begins at stride 8. Each level takes boxes whose
farthest side is 4 to 8 strides away, as torchvision's do.
"""

from __future__ import annotations

from pydantic import Field
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator

from raybone.errors import InvalidConfig
from raybone.models._model import Model
from raybone.models.detectors._torchvision import (
    DEPTHS,
    GRAPH,
    IMAGENET,
    SPACE,
    DetectorConfig,
    backbone,
    builder,
)
from raybone.study.param import Param

NORMED = 32  # groups of channels that its heads norm together


class Config(DetectorConfig):
    """Hyper-parameters of a one-stage detector without anchors."""

    anchor: float = Field(0, ge=0, le=0, description="0: it has no anchors")
    octaves: int = Field(1, ge=1, le=1, description="1: there is one point a cell")
    radius: float = Field(
        1.5, gt=0, le=5, description="strides around a lesion's centre whose points learn its box"
    )


def make(config: Config, depth: int) -> FCOS:
    """The network alone, as torchvision has it, with levels P2 to P6.

    Raises:
        InvalidConfig: its heads cannot share out the channels over their groups of norms.
    """
    if config.channels % NORMED:
        raise InvalidConfig(f"channels {config.channels} must be a multiple of {NORMED} in fcos")
    points = AnchorGenerator(tuple((4 * 2**level,) for level in range(5)), ((1.0,),) * 5)
    return FCOS(
        backbone(depth, config.channels),
        len(config.categories),
        anchor_generator=points,
        center_sampling_radius=config.radius,
        score_thresh=config.conf,
        nms_thresh=config.iou,
        detections_per_img=config.max_det,
    )


MODELS = [
    Model(
        f"fcos_r{d}",
        "detection",
        Config,
        builder(make, d, 0),
        {**{k: v for k, v in SPACE.items() if k != "anchor"}, "radius": Param(uniform=(1.0, 3.0))},
        "Tian et al. 2019, arXiv:1904.01355; torchvision",
        weights=IMAGENET[d],
        graph=GRAPH,
    )
    for d in DEPTHS
]
