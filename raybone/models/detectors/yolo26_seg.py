"""YOLO26-seg n, s, m, l, x on one channel: YOLO26 with masks, as YOLO11-seg has them."""

from __future__ import annotations

from raybone.models.detectors import yolo, yolo26
from raybone.models.detectors._ultralytics import family
from raybone.models.detectors.yolo_seg import Masked, WithMasks


class Config(yolo26.Config, Masked):
    """YOLO26-seg's own hyper-parameters."""


class Yolo26Seg(WithMasks, yolo26.Yolo26):
    """Ultralytics' SegmentationModel with the heads of YOLO26; its assigner compares masks too."""


# An ONNX file has one output here, which boxes and masks are not.
MODELS = family(
    "26/yolo26{}-seg",
    Yolo26Seg,
    Config,
    yolo.SPACE,
    yolo26.SOURCE,
    task="segmentation",
    reduction="sum",
    also=("detection",),
)
