"""Grad-CAM: where in its image a classifier sees what speaks for its class.

Source: Selvaraju et al. 2017, arXiv:1610.02391, on the last map of features that has an extent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from raybone.data.loader import ScanSamples
from raybone.data.preprocess import resize
from raybone.models.classifiers._classifier import Classifier
from raybone.train.checkpoint import fill
from raybone.train.samples import FoldJob, scored_samples
from raybone.types import Array


def heat_map(
    modules: Sequence[nn.Module], samples: ScanSamples, index: int, device: torch.device
) -> Array | None:
    """What speaks for the class of a sample, float32 (H, W) of its scan: the mean over classifiers
    of maps whose largest value is 1; None where a network has no such map.

    Args:
        modules: in eval mode, on the device.
    """
    image_NCHW = samples.collate([samples[-1, index]]).to(device).image_NCHW
    maps = [_grad_cam(module, image_NCHW) for module in modules]
    known = [heat_HW for heat_HW in maps if heat_HW is not None]
    if len(known) < len(maps):
        return None
    scan = samples.scan_of(index)
    blank_HW = np.zeros((scan.height, scan.width), np.float32)
    height, width = resize(blank_HW, samples.size)[0].shape  # the rest of the canvas is air
    mean_HW = np.mean(known, axis=0)[:height, :width]
    return cv2.resize(mean_HW, (scan.width, scan.height), interpolation=cv2.INTER_LINEAR)


def out_of_fold(job: FoldJob, weights: Mapping[str, Tensor], index: int) -> Array | None:
    """``heat_map`` of a sample of a fold's validation patients, by the model of that fold."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng():
        module = job.model.build(job.config)
    fill(module, weights, f"fold {job.fold}")
    samples = scored_samples(job.dataset, job.dataset.validation(job.fold), job.model, job.config)
    return heat_map([module.to(device).eval()], samples, index, device)


def _grad_cam(module: nn.Module, image_NCHW: Tensor) -> Array | None:
    """Float32 (H, W) in [0, 1], of one image."""
    if not isinstance(module, Classifier):  # another package's, whose logit nobody knows
        return None
    kept = list[Tensor]()

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
            kept.append(output)

    hooks = [m.register_forward_hook(keep) for m in module.modules() if not [*m.children()]]
    try:
        with torch.enable_grad():
            logit_N1 = module.net(image_NCHW.clone().requires_grad_())
            if not kept:
                return None
            (slope_1CHW,) = torch.autograd.grad(logit_N1.sum(), kept[-1])
    finally:
        for hook in hooks:
            hook.remove()
    weight_1C11 = slope_1CHW.mean((2, 3), keepdim=True)
    heat_11HW = (weight_1C11 * kept[-1].detach()).sum(1, keepdim=True).relu()
    size = image_NCHW.shape[2:]
    heat_HW = nn.functional.interpolate(heat_11HW, size, mode="bilinear")[0, 0].float()
    return np.asarray((heat_HW / heat_HW.max().clamp(min=1e-12)).cpu().numpy())
