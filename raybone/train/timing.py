"""How long a network takes for one image on this machine."""

from __future__ import annotations

import statistics
import time

import torch

from raybone.data.preprocess import canvas_of
from raybone.models._model import Model, TrainingConfig

LEAST, MOST = 3, 15  # images that count, the fewer the longer they take
ENOUGH = 3.0  # seconds


def milliseconds(model: Model, config: TrainingConfig, shape: tuple[int, int]) -> float:
    """Median time of one image in eval mode, alone in its batch, with fresh weights, in full
    precision as ``predict`` has it.

    Fresh weights find other boxes than trained ones, and more or fewer of them, so that what a
    detector does about boxes that overlap may take another time after training.

    Args:
        shape: (H, W) of a scan.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = model.build(config).to(device).eval()  # some try a backward pass of theirs
    with torch.random.fork_rng(), torch.no_grad():
        image_NCHW = torch.rand(image_of(model, config, shape)).to(device)
        _seconds(module, image_NCHW)  # the first prepares what the others use
        seconds = list[float]()
        while len(seconds) < LEAST or (len(seconds) < MOST and sum(seconds) < ENOUGH):
            seconds.append(_seconds(module, image_NCHW))
    return 1000 * statistics.median(seconds)


def image_of(model: Model, config: TrainingConfig, shape: tuple[int, int]) -> tuple[int, ...]:
    """(1, C, H, W) of the image that the model sees of a scan of (H, W)."""
    height, width = canvas_of(*shape, config.imgsz)
    channels = model.graph.channels if model.graph else 1
    return 1, channels, height, width * (2 if config.montage else 1)


def machine() -> str:
    """What ``milliseconds`` times on, in words: the GPU, or threads of the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads != 1)}"


def _seconds(module: torch.nn.Module, image_NCHW: torch.Tensor) -> float:
    _wait(image_NCHW)
    began = time.perf_counter()
    module(image_NCHW)
    _wait(image_NCHW)
    return time.perf_counter() - began


def _wait(image_NCHW: torch.Tensor) -> None:
    """Until a GPU has done what it was asked."""
    if image_NCHW.is_cuda:
        torch.cuda.synchronize()
