"""What the detectors built from torchvision's parts share: one channel, no resizing, anchors that
fit lesions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import (
    ResNet18_Weights,
    ResNet50_Weights,
    ResNet101_Weights,
    resnet18,
    resnet50,
    resnet101,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from raybone.data.loader import Batch
from raybone.errors import InvalidConfig
from raybone.models._model import Graph, TrainingConfig, in_full_precision
from raybone.study.param import Param
from raybone.types import Prediction

RESNETS = {18: resnet18, 50: resnet50, 101: resnet101}
DEPTHS = tuple(RESNETS)
SMALLEST = 4.0  # pixels
STRIDE = 32  # pixels of which an image has a multiple inside
# Known names of `weights:`, with torchvision's address of the file.
IMAGENET = {
    18: {"imagenet": ResNet18_Weights.IMAGENET1K_V1.url},
    50: {"imagenet": ResNet50_Weights.IMAGENET1K_V2.url},
    101: {"imagenet": ResNet101_Weights.IMAGENET1K_V2.url},
}


class DetectorConfig(TrainingConfig):
    """Hyper-parameters of the anchor-based detectors; where a default is not torchvision's, it says
    so.
    """

    optimizer: Literal["SGD", "AdamW"] = Field(
        "SGD", description=TrainingConfig.model_fields["optimizer"].description
    )
    lr0: float = Field(0.01, gt=0, le=10, description="peak learning rate")
    schedule: Literal["linear", "cosine", "multistep"] = Field(
        "multistep", description=TrainingConfig.model_fields["schedule"].description
    )
    batch: int = Field(4, ge=1, le=1024, description="images a step, over all workers")
    nbs: int = Field(
        4, ge=1, description="nominal batch: gradients are summed up to this many images a step"
    )
    channels: int = Field(256, ge=8, le=1024, description="channels of the feature pyramid")
    anchor: float = Field(
        0.008,
        ge=0,
        le=0.25,
        description="side of the smallest anchors as a share of the scan's "
        "long side, twice as much at each coarser level; 0 for torchvision's 32 to 512 pixels",
    )
    octaves: int = Field(
        1, ge=1, le=4, description="anchor sizes a level, evenly within the octave"
    )
    conf: float = Field(
        0.001, ge=0, lt=1, description="lowest score of a detection (torchvision's is 0.05)"
    )
    iou: float = Field(
        0.5, gt=0, le=1, description="IoU above which non-maximum suppression merges"
    )
    max_det: int = Field(100, ge=1, description="detections an image; COCO AP counts 100")


class Detector(nn.Module):
    """A torchvision detector under the raybone contract.

    Args:
        first: label of the first category: torchvision's R-CNNs keep 0 for the background.
    """

    def __init__(self, net: nn.Module, first: int) -> None:
        super().__init__()
        self.net, self.first = net, first
        self.net.transform = _AsItIs(0, 0, [0.0], [1.0])
        # torchvision computes anchors and boxes in the precision of the features.
        in_full_precision(
            *(
                m
                for m in net.modules()
                if isinstance(
                    m, BackboneWithFPN | RPNHead | RetinaNetHead | FCOSHead | FastRCNNPredictor
                )
            )
        )

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor] | list[Prediction]:
        """Losses, means over the batch, of a Batch in train mode; a Prediction an image in eval
        mode.
        """
        if not self.training:
            return [self._prediction(found) for found in self.net(list(cast(Tensor, batch)))]
        batch = cast(Batch, batch)
        targets = [
            {"boxes": b, "labels": y + self.first} for b, y in zip(batch.boxes, batch.labels)
        ]
        return cast(dict[str, Tensor], self.net(list(batch.image_NCHW), targets))

    def _prediction(self, found: dict[str, Tensor]) -> Prediction:
        return Prediction(
            found["boxes"].detach().float().cpu().numpy(),
            found["scores"].detach().float().cpu().numpy(),
            (found["labels"] - self.first).cpu().numpy(),
        )


def backbone(
    depth: int, channels: int, first: int = 1, extra: ExtraFPNBlock | None = None
) -> BackboneWithFPN:
    """ResNet with a feature pyramid for one channel, all of it trained.

    torchvision's own default freezes batch norm and the first layers, which from scratch leaves
    them random.

    Args:
        channels: of every level of the pyramid.
        first: stage of the ResNet that the pyramid begins with, 1 (stride 4) to 4 (stride 32).
        extra: coarser levels, else one by max pooling.
    """
    body = RESNETS[depth](norm_layer=nn.BatchNorm2d)
    body.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
    stages = range(first, 5)
    return BackboneWithFPN(
        body,
        {f"layer{n}": str(place) for place, n in enumerate(stages)},
        [body.inplanes // 2 ** (4 - n) for n in stages],
        channels,
        extra,
    )


def anchors(config: DetectorConfig, levels: int = 5) -> AnchorGenerator | None:
    """Anchors of three aspects whose sides double from level to level, or None for torchvision's
    own.

    Raises:
        InvalidConfig: the smallest are under 4 pixels: torchvision rounds half their sides, and
            they become one.
    """
    if not config.anchor:
        return None
    if config.anchor * config.imgsz < SMALLEST:
        raise InvalidConfig(
            f"anchor {config.anchor:g} at imgsz {config.imgsz} is under {SMALLEST:g} pixels"
        )
    steps = [2 ** (i / config.octaves) for i in range(config.octaves)]
    sizes = tuple(
        tuple(config.anchor * config.imgsz * 2**level * step for step in steps)
        for level in range(levels)
    )
    return AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * levels)


def one_stage(module: Detector, image_NCHW: Tensor) -> Tensor:
    """Of FCOS and RetinaNet before non-maximum suppression, (1, 4 + C, boxes): x, y, x, y in
    pixels, not cut at the sides, and scores.
    """
    net, (high, wide) = cast(Any, module.net), image_NCHW.shape[-2:]
    image_NCHW = functional.pad(image_NCHW, (0, -wide % STRIDE, 0, -high % STRIDE))
    features = list(net.backbone(image_NCHW).values())
    found = net.head(features)
    size = cast(tuple[int, int], tuple(image_NCHW.shape[-2:]))
    (anchor_A4,) = net.anchor_generator(ImageList(image_NCHW, [size]), features)
    decode = getattr(net.box_coder, "decode_single", net.box_coder.decode)  # FCOS has no former
    boxes_A4 = decode(found["bbox_regression"][0], anchor_A4)
    scores_AC = found["cls_logits"][0].sigmoid()
    if "bbox_ctrness" in found:
        scores_AC = (scores_AC * found["bbox_ctrness"][0].sigmoid()).sqrt()
    return torch.cat([boxes_A4, scores_AC], 1).T[None]


GRAPH = Graph(one_stage, any_batch=False)


def builder(
    make: Callable[[Any, int], nn.Module], depth: int, first: int
) -> Callable[[TrainingConfig], nn.Module]:
    """The ``build`` of a model: a detector of this depth under the contract."""
    return lambda config: Detector(make(config, depth), first)


class _AsItIs(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision has no types
    """Size, padding and intensities are the loader's: torchvision would resize to 800 pixels."""

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        return image, target


SPACE = {
    "lr0": Param(log_uniform=(1e-3, 3e-2)),
    "imgsz": Param(choice=(512, 768, 1024)),
    "anchor": Param(choice=(0.0, 0.008, 0.016)),
    "mosaic": Param(choice=(0.0, 0.5)),
    "fliplr": Param(uniform=(0.0, 0.5)),
    "gamma": Param(uniform=(0.0, 0.5)),
}
