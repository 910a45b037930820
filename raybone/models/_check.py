"""The contract suite of models, for those of the menu and for outsiders' own."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from raybone.data.loader import Batch
from raybone.models._model import Model
from raybone.types import Prediction

SHAPES = ((256, 64), (128, 128), (32, 32))


def problems(model: Model, steps: int, lr: float, small: Mapping[str, Any]) -> list[str]:
    """What ``raybone.models.check`` gives."""
    torch.manual_seed(0)
    config = model.Config.model_validate(small)
    net, channels = model.build(config), model.graph.channels if model.graph else 1
    told = [] if model.SOURCE else ["SOURCE: must say where the architecture comes from"]
    for key, param in model.SPACE.items():
        for value in param.choice or param.bounds or ():
            try:
                model.Config.model_validate({key: value})
            except ValidationError:
                told.append(f"SPACE: {key} must have values that Config takes, got {value!r}")
    told += _predicted(net, channels)
    empty = batch_of(empty=True, stacked=channels > 1)
    torch.stack(list(net.train()(empty).values())).sum().backward()  # type: ignore[no-untyped-call]
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    if not grads or not all(torch.isfinite(g).all() for g in grads):
        told.append("a batch without lesions: must give finite losses and gradients")
    told += _learned(net, batch_of(2, 128, 64, stacked=channels > 1), steps, lr)
    told += _kept(net, model.build(config), torch.rand(1, channels, 256, 64))
    if any(t.device.type != "meta" for t in [*net.to("meta").parameters(), *net.buffers()]):
        told.append("to: every parameter and buffer must move with the module")
    return told


def batch_of(
    count: int = 4, height: int = 256, width: int = 64, empty: bool = False, stacked: bool = False
) -> Batch:
    """Scans of noise with one bright square each, or none.

    Args:
        stacked: masks are a second channel, and every other scan is positive.
    """
    rng = np.random.default_rng(0)
    image_NCHW = torch.from_numpy(rng.random((count, 1, height, width), np.float32) * 0.2)
    mask_NCHW = torch.zeros(image_NCHW.shape, dtype=torch.uint8)
    boxes = []
    for n in range(0 if empty else count):
        x, y = 8 + 6 * n, 20 + height // 8 * n
        image_NCHW[n, 0, y : y + 24, x : x + 24] = 1
        mask_NCHW[n, 0, y : y + 24, x : x + 24] = 1
        boxes.append(torch.tensor([[x, y, x + 24, y + 24]], dtype=torch.float32))
    boxes = boxes or [torch.zeros(0, 4)] * count
    labels = [torch.zeros(len(b), dtype=torch.int64) for b in boxes]
    if stacked:
        image_NCHW = torch.cat([image_NCHW, mask_NCHW.float()], 1)
        labels = [torch.tensor([int(not empty and n % 2 == 0)]) for n in range(count)]
    return Batch(image_NCHW, boxes, labels, mask_NCHW, torch.arange(count))


def trained(net: nn.Module, batch: Batch, steps: int, lr: float) -> list[float]:
    """Losses of some steps of AdamW on one batch."""
    optimizer, losses = torch.optim.AdamW(net.parameters(), lr=lr), []
    net.train()
    for _ in range(steps):
        loss = torch.stack(list(net(batch).values())).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def _predicted(net: nn.Module, channels: int) -> list[str]:
    """Predictions lie inside images of any shape."""
    told = []
    for height, width in SHAPES:
        with torch.no_grad():
            predictions = net.eval()(torch.rand(2, channels, height, width))
        where = f"eval mode, images of {height}x{width}"
        if len(predictions) != 2 or not all(isinstance(p, Prediction) for p in predictions):
            told.append(f"{where}: must give a Prediction an image, got {len(predictions)}")
            continue
        for p in predictions:
            limits_4 = np.array([width, height, width, height])
            if not ((p.boxes_N4 >= 0) & (p.boxes_N4 <= limits_4)).all():
                told.append(f"{where}: boxes must lie inside the image")
            if len(p.boxes_N4) and (np.diff(p.scores_N) > 0).any():
                told.append(f"{where}: boxes must be best first")
            if p.mask_CHW is not None and not (
                p.mask_CHW.shape[1:] == (height, width)
                and 0 <= p.mask_CHW.min() <= p.mask_CHW.max() <= 1
            ):
                told.append(f"{where}: masks must be probabilities of the image's shape")
    return told


def _learned(net: nn.Module, batch: Batch, steps: int, lr: float) -> list[str]:
    """The loss falls, and a copy goes on as the network itself does."""
    losses = trained(net, batch, steps, lr)
    other, runs = copy.deepcopy(net), []
    for one in (net, other):
        torch.manual_seed(1)  # R-CNNs draw the boxes that they train with
        runs.append(trained(one, batch, 2, lr))
    told = [] if runs[0] == runs[1] else ["a copy: must train on exactly as the network does"]
    if not losses[-1] < 0.5 * losses[0]:
        told.append(
            f"train mode: must learn two images in {steps} steps, but the loss went from "
            f"{losses[0]:.3g} to {losses[-1]:.3g}; give more steps or another lr"
        )
    return told


def _kept(net: nn.Module, other: nn.Module, image_NCHW: Tensor) -> list[str]:
    """Saved and loaded, a network predicts the same."""
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    with torch.no_grad():
        first, second = net.eval()(image_NCHW)[0], other.eval()(image_NCHW)[0]
    same = all(np.array_equal(*pair) for pair in zip(vars(first).values(), vars(second).values()))
    return [] if same else ["state_dict: must hold all that a prediction depends on"]
