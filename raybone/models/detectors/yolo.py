"""YOLO11 n, s, m, l, x on one channel: Ultralytics' network and loss under the raybone contract.

Everything else (data, augmentation, optimiser, evaluation) is raybone's, the same for every
detector.
"""

from __future__ import annotations

import copy
import logging
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from raybone.data.loader import Batch
from raybone.models._model import Graph, Model, TrainingConfig, in_full_precision
from raybone.study.param import Param
from raybone.types import Prediction


def _quiet() -> None:
    """Keep Ultralytics from writing settings, installing packages and phoning home; before its
    first import.
    """
    folder = Path(tempfile.gettempdir()) / f"raybone-ultralytics-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():  # another user made it, and would choose the settings
        folder = Path(tempfile.mkdtemp(prefix="raybone-ultralytics-"))
    for key, value in {
        "YOLO_CONFIG_DIR": str(folder),
        "YOLO_OFFLINE": "1",
        "YOLO_AUTOINSTALL": "0",
        "YOLO_VERBOSE": "0",
        "MPLCONFIGDIR": str(folder),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }.items():
        os.environ.setdefault(key, value)


_quiet()

from ultralytics import __version__ as version  # noqa: E402
from ultralytics.cfg import get_cfg  # noqa: E402
from ultralytics.nn.tasks import DetectionModel  # noqa: E402
from ultralytics.utils import LOGGER, ROOT, SETTINGS  # noqa: E402
from ultralytics.utils.nms import non_max_suppression  # noqa: E402
from ultralytics.utils.patches import _image_open  # noqa: E402

Image.open = _image_open  # Pillow's own: theirs installs a package when an image cannot be read

LOGGER.setLevel(logging.WARNING)
# dict.update: Ultralytics' own setter writes the settings file.
dict.update(
    SETTINGS,
    dict.fromkeys(
        (
            "sync",
            "clearml",
            "comet",
            "dvc",
            "hub",
            "mlflow",
            "neptune",
            "raytune",
            "tensorboard",
            "wandb",
        ),
        False,
    ),
)


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
    """Ultralytics' DetectionModel with one input channel."""

    def __init__(self, config: Config, size: str) -> None:
        super().__init__()
        self.config = config
        # By its full path: a file of that name in the current folder would be taken instead, and
        # run.
        self.net = DetectionModel(
            f"{ROOT}/cfg/models/11/yolo11{size}.yaml",
            ch=1,
            nc=len(config.categories),
            verbose=False,
        )
        self.net.args = get_cfg(overrides={"box": config.box, "cls": config.cls, "dfl": config.dfl})
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(".dfl" not in name)
        self._set_reach(config.reach)
        in_full_precision(self.net.model[-1])

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor] | list[Prediction]:
        """Losses, summed over the batch, of a Batch in train mode; a Prediction an image in eval
        mode.
        """
        if self.training:
            return self._losses(cast(Batch, batch))
        image_NCHW = cast(Tensor, batch)
        output = self.net(image_NCHW)
        raw = output[0] if isinstance(output, tuple) else output
        found = non_max_suppression(
            raw.float(),
            self.config.conf,
            self.config.iou,
            multi_label=True,
            max_det=self.config.max_det,
            max_time_img=10.0,
        )
        return [self._prediction(f, image_NCHW.shape) for f in found]

    def _set_reach(self, reach: float) -> None:
        """Start with small boxes: the assigner's weight is IoU^6, which vanishes when every first
        box is huge.
        """
        head = self.net.model[-1]
        bins = torch.arange(head.reg_max, dtype=torch.float32)
        low, high = 0.0, 10.0
        for _ in range(50):  # the mean of softmax(-slope * bin) falls with the slope
            slope = (low + high) / 2
            low, high = (
                (slope, high)
                if float((torch.softmax(-slope * bins, 0) * bins).sum()) > reach
                else (low, slope)
            )
        for branch in head.cv2:
            branch[-1].bias.data[:] = 2.0 - (slope * bins).repeat(4)

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        height, width = batch.image_NCHW.shape[2:]
        boxes_M4 = torch.cat(batch.boxes)
        size_4 = boxes_M4.new_tensor([width, height, width, height])
        centre_M4 = torch.cat(
            [(boxes_M4[:, :2] + boxes_M4[:, 2:]) / 2, boxes_M4[:, 2:] - boxes_M4[:, :2]], 1
        )
        index = [
            torch.full((len(b),), float(i), device=boxes_M4.device)
            for i, b in enumerate(batch.boxes)
        ]
        target: dict[str, Any] = {
            "img": batch.image_NCHW,
            "batch_idx": torch.cat(index),
            "bboxes": centre_M4 / size_4,
            "cls": torch.cat(batch.labels).float()[:, None],
        }
        losses, _ = self.net(target)
        return dict(zip(("box_loss", "cls_loss", "dfl_loss"), losses))

    def _prediction(self, found_N6: Tensor, shape: torch.Size) -> Prediction:
        found_N6 = found_N6.detach().cpu()
        boxes_N4 = found_N6[:, :4].clone()
        boxes_N4[:, 0::2] = boxes_N4[:, 0::2].clamp(0, shape[3])
        boxes_N4[:, 1::2] = boxes_N4[:, 1::2].clamp(0, shape[2])
        return Prediction(boxes_N4.numpy(), found_N6[:, 4].numpy(), found_N6[:, 5].long().numpy())


def export(module: Yolo, path: Path) -> None:
    """Write a file that ``ultralytics.YOLO(path)`` opens: half precision, one channel, pixels 0 to
    255 as it has them.

    Ultralytics letterboxes to a square and pads with grey unless it is told the scan's own shape:
    ``imgsz=[H, W]``.
    """
    net = copy.deepcopy(module.net).cpu().half().eval()
    net.names = dict(enumerate(module.config.categories))
    net.criterion = None
    net.model[-1]._forward_hooks.clear()  # they are raybone's, which the file must do without
    arguments = {**dict(net.args), "task": "detect", "imgsz": module.config.imgsz}
    net.args = arguments
    torch.save(
        {
            "model": net,
            "ema": None,
            "train_args": arguments,
            "version": version,
            "license": "AGPL-3.0",
        },
        path,
    )


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
    output = module.net(image_NCHW)
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)


def _build(config: TrainingConfig, size: str) -> nn.Module:
    return Yolo(cast(Config, config), size)


ADDRESS = "https://github.com/ultralytics/assets/releases/download/v8.4.0/yolo11{}.pt"
MODELS = [
    Model(
        f"yolo11{s}",
        "detection",
        Config,
        partial(_build, size=s),
        SPACE,
        SOURCE,
        reduction="sum",
        weights={"coco": ADDRESS.format(s)},
        graph=Graph(_graph, any_batch=False),
        native=(".pt", export),
    )
    for s in "nsmlx"
]
