"""A network as an ONNX file, checked against torch; needs the extra ``raybone[onnx]``."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raybone.errors import RunFailed, WrongInput
from raybone.models._classifier import CHANNELS
from raybone.models._model import Model
from raybone.models._segmenter import Segmenter, probabilities

TOLERANCE = 1e-3  # of probabilities, and of pixels of a YOLO's boxes
NAMED = ("onnx", "onnxscript", "onnxruntime")


def refuse_onnx(model: Model) -> None:
    """Raise WrongInput where there is no export: a library is missing, or the network has no graph
    of its own.
    """
    missing = [name for name in NAMED if importlib.util.find_spec(name) is None]
    if missing:
        raise WrongInput(f"--onnx: needs {', '.join(missing)}; pip install 'raybone[onnx]'")
    if model.task == "detection" and not model.name.startswith("yolo"):
        raise WrongInput(
            f"--onnx: {model.name} chooses its boxes by rules that ONNX does not hold; segmenters, "
            "classifiers and yolo11 can be exported"
        )


def export_onnx(module: nn.Module, model: Model, canvas: tuple[int, int], path: Path) -> float:
    """Write a network whose input is image_NCHW in [0, 1], of any N, with the canvas's H and W.

    Its output is the probabilities of each pixel (N, C, H, W) of a segmenter, which is exported for
    one tile where it works on tiles; the probability (N, 1) of a classifier; and what a YOLO says
    before non-maximum suppression, (1, 4 + C, boxes) as cx, cy, w, h in pixels and scores, for N =
    1.

    Returns:
        The largest difference from torch on a random image.
    Raises:
        RunFailed: that is above TOLERANCE.
    """
    import numpy as np

    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when it is imported
    import onnxruntime

    net = _Graph(module, model).cpu().eval()
    images = 1 if model.task == "detection" else 2
    image_NCHW = torch.rand(
        images,
        CHANNELS if model.task == "classification" else 1,
        *canvas,
        generator=torch.Generator().manual_seed(0),
    )
    shapes: Any = None if images == 1 else ({0: torch.export.Dim("batch")},)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        expected = net(image_NCHW).numpy()
        torch.onnx.export(
            net,
            (image_NCHW,),
            path,
            input_names=["image_NCHW"],
            output_names=["output"],
            dynamo=True,
            external_data=False,
            verbose=False,
            dynamic_shapes=shapes,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image_NCHW": image_NCHW.numpy()})
    gap = float(np.abs(found - expected).max())
    if not gap <= TOLERANCE:
        raise RunFailed(
            f"{path}: must say what torch says, to {TOLERANCE:g}, but differs by {gap:g}; leave "
            "--onnx out"
        )
    return gap


class _Graph(nn.Module):
    """What is exported of a module."""

    def __init__(self, module: nn.Module, model: Model) -> None:
        super().__init__()
        self.module, self.task = module, model.task

    def forward(self, image_NCHW: Tensor) -> Tensor:
        net: Any = self.module.net
        if isinstance(self.module, Segmenter):
            output = net(image_NCHW)
            return probabilities(
                output[-1] if isinstance(output, list | tuple) else output, self.module.config
            )
        output = net(image_NCHW)
        if self.task == "classification":
            return torch.sigmoid(output)
        raw: Tensor = output[0] if isinstance(output, tuple) else output
        return raw
