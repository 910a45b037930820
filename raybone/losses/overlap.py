"""Losses on the overlap of masks."""

from __future__ import annotations

import torch
from torch import Tensor


def dice_loss(probability_NCHW: Tensor, target_NCHW: Tensor, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss, 1 - (2 |PT| + s) / (|P| + |T| + s), pooled over the batch, mean over categories.

    Args:
        probability_NCHW: in [0, 1].
        target_NCHW: 0 or 1, same shape.
        smooth: keeps an empty target finite and learnable.
    Source: Milletari et al. 2016 (arXiv:1606.04797), with unsquared sums.
    """
    axes = (0, 2, 3)
    both_C = (probability_NCHW * target_NCHW).sum(axes)
    all_C = probability_NCHW.sum(axes) + target_NCHW.sum(axes)
    return (1 - (2 * both_C + smooth) / (all_C + smooth)).mean()


def one_hot(mask_NHW: Tensor, categories: int) -> Tensor:
    """Class map (0 background, label + 1) to a float target (N, C, H, W) without the background."""
    labels_C = torch.arange(1, categories + 1, device=mask_NHW.device)
    return (mask_NHW[:, None] == labels_C[None, :, None, None]).float()
