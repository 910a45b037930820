"""A network as an ONNX file, checked against torch; needs the extra ``raybone[onnx]``."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from raybone.errors import RunFailed, WrongInput
from raybone.models._model import Graph, Model

TOLERANCE = 1e-3  # of probabilities, and of the sides of boxes as a share
NAMED = ("onnx", "onnxscript", "onnxruntime")


def refuse_onnx(model: Model) -> None:
    """Raise WrongInput where there is no export: a library is missing, or the network has no graph
    of its own.
    """
    missing = [name for name in NAMED if importlib.util.find_spec(name) is None]
    if missing:
        raise WrongInput(f"--onnx: needs {', '.join(missing)}; pip install 'raybone[onnx]'")
    if model.graph is None:
        raise WrongInput(
            f"--onnx: {model.name} has no ONNX file, as segmenters, classifiers, FCOS, RetinaNet "
            "and YOLOs without masks have; leave it out"
        )


def export_onnx(module: nn.Module, model: Model, canvas: tuple[int, int], path: Path) -> float:
    """Write a network whose input is image_NCHW in [0, 1], of any N, with the canvas's H and W.

    Its output is that of the model's ``graph``, for N = 1 where that takes one image.

    Returns:
        The largest difference from torch on a random image, of what is above 1 as a share of it.
    Raises:
        RunFailed: that is above TOLERANCE.
    """
    import numpy as np

    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when it is imported
    import onnxruntime

    graph = cast(Graph, model.graph)
    net = _Net(module, graph).cpu().eval()
    images, generator = 1 + graph.any_batch, torch.Generator().manual_seed(0)
    image_NCHW = torch.rand(images, graph.channels, *canvas, generator=generator)
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
    gap = float((np.abs(found - expected) / np.maximum(np.abs(expected), 1)).max())
    if not gap <= TOLERANCE:
        raise RunFailed(
            f"{path}: must say what torch says, to {TOLERANCE:g}, but differs by {gap:g}; leave "
            "--onnx out"
        )
    return gap


class _Net(nn.Module):
    """What is exported of a module."""

    def __init__(self, module: nn.Module, graph: Graph) -> None:
        super().__init__()
        self.module, self.graph = module, graph

    def forward(self, image_NCHW: Tensor) -> Tensor:
        return self.graph.forward(self.module, image_NCHW)
