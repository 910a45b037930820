"""What Ultralytics' networks share: a quiet import, one channel, targets, and files it opens.

This is the one file that imports it.
"""

from __future__ import annotations

import copy
import logging
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from raybone.data.loader import Batch
from raybone.models._model import Model, TrainingConfig
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
from ultralytics.nn.tasks import (  # noqa: E402
    DetectionModel,
    RTDETRDetectionModel,
    SegmentationModel,
)
from ultralytics.utils import LOGGER, ROOT, SETTINGS  # noqa: E402
from ultralytics.utils.nms import non_max_suppression as non_max_suppression  # noqa: E402
from ultralytics.utils.ops import crop_mask as crop_mask  # noqa: E402
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

ADDRESS = "https://github.com/ultralytics/assets/releases/download/v8.4.0/{}.pt"


def family(
    yaml: str,
    module: Callable[..., nn.Module],
    config: type[TrainingConfig],
    space: dict[str, Param],
    source: str,
    sizes: str = "nsmlx",
    **more: Any,
) -> list[Model]:
    """The sizes of a network of Ultralytics as entries of the menu.

    Args:
        yaml: below its folder of models, such as ``11/yolo11{}``, with {} for the size.
        module: takes a configuration and ``yaml``.
        more: what else Model has.
    """
    return [
        Model(
            name=(name := yaml.format(size).rpartition("/")[2]),
            Config=config,
            build=partial(module, yaml=yaml.format(size)),
            SPACE=space,
            SOURCE=source,
            weights={"coco": ADDRESS.format(name)},
            native=(".pt", export),
            **{"task": "detection", **more},
        )
        for size in sizes
    ]


def network(yaml: str, config: TrainingConfig, **settings: float) -> DetectionModel:
    """Ultralytics' untrained network with one input channel.

    Args:
        yaml: below its folder of models, such as ``11/yolo11n``.
        settings: of the losses, by Ultralytics' names.
    """
    # By its full path: a file of that name in the current folder would be taken instead, and run.
    path = f"{ROOT}/cfg/models/{yaml}.yaml"
    kinds = {"rtdetr": RTDETRDetectionModel, "-seg": SegmentationModel, "": DetectionModel}
    kind = next(kind for part, kind in kinds.items() if part in yaml)
    net = kind(path, ch=1, nc=len(config.categories), verbose=False)
    net.nc, net.args = len(config.categories), get_cfg(overrides=settings)  # as its trainers do
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(".dfl" not in name)
    return net


def targets(batch: Batch) -> dict[str, Any]:
    """A Batch as Ultralytics' losses take it: centres and sizes as shares of the image."""
    height, width = batch.image_NCHW.shape[2:]
    boxes_M4 = torch.cat(batch.boxes)
    size_4 = boxes_M4.new_tensor([width, height, width, height])
    centre_M4 = torch.cat(
        [(boxes_M4[:, :2] + boxes_M4[:, 2:]) / 2, boxes_M4[:, 2:] - boxes_M4[:, :2]], 1
    )
    index = [
        torch.full((len(b),), float(i), device=boxes_M4.device) for i, b in enumerate(batch.boxes)
    ]
    return {
        "img": batch.image_NCHW,
        "batch_idx": torch.cat(index),
        "bboxes": centre_M4 / size_4,
        "cls": torch.cat(batch.labels).float()[:, None],
    }


def boxes_of(rows_N6: Tensor, shape: torch.Size) -> Prediction:
    """Rows of x, y, x, y, score and label, best first, as a Prediction inside an image of NCHW."""
    rows_N6 = rows_N6.detach().cpu()
    boxes_N4 = rows_N6[:, :4].clone()
    boxes_N4[:, 0::2] = boxes_N4[:, 0::2].clamp(0, shape[3])
    boxes_N4[:, 1::2] = boxes_N4[:, 1::2].clamp(0, shape[2])
    return Prediction(boxes_N4.numpy(), rows_N6[:, 4].numpy(), rows_N6[:, 5].long().numpy())


def export(module: Any, path: Path) -> None:
    """Write a file that ``ultralytics.YOLO(path)`` opens: half precision, one channel, pixels 0 to
    255 as it has them.

    Ultralytics letterboxes to a square and pads with grey unless it is told the scan's own shape:
    ``imgsz=[H, W]``.

    Args:
        module: has its network as ``net`` and its hyper-parameters as ``config``.
    """
    net = copy.deepcopy(module.net).cpu().half().eval()
    net.names = dict(enumerate(module.config.categories))
    net.criterion = None
    for part in net.modules():
        part._forward_hooks.clear()  # they are raybone's, which the file must do without
    task = "segment" if isinstance(net, SegmentationModel) else "detect"
    arguments = {**dict(module.net.args), "task": task, "imgsz": module.config.imgsz}
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
