"""What several fold models say of a scan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import nn

from raybone.data.loader import Loader, ScanSamples
from raybone.tasks.base import Task
from raybone.types import Prediction


def outputs(
    task: Task,
    modules: Sequence[nn.Module],
    samples: ScanSamples,
    loader: Loader,
    device: torch.device,
) -> Iterator[tuple[int, list[Prediction]]]:
    """A prediction a module of every scan, in pixels of the scan, by its index; of a classifier, of
    every sample.

    Args:
        modules: in eval mode, on the device.
    """
    for batch in loader:
        batch = batch.to(device)
        with torch.no_grad():
            members = [cast(list[Prediction], module(batch.image_NCHW)) for module in modules]
        for row, index in enumerate(batch.index_N.tolist()):
            parts = [dict(task.parts(samples, index, member[row])) for member in members]
            for key in parts[0]:
                yield key, [part[key] for part in parts]
