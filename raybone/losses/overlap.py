"""Losses on the overlap of masks."""

from __future__ import annotations

from torch import Tensor


def dice_loss(probability_NCHW: Tensor, target_NCHW: Tensor, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss, 1 - (2 |PT| + s) / (|P| + |T| + s), pooled over the batch, mean over
    categories.

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


def focal_tversky_loss(
    probability_NCHW: Tensor,
    target_NCHW: Tensor,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 0.75,
    smooth: float = 1.0,
) -> Tensor:
    """Focal Tversky loss, (1 - (|PT| + s) / (|PT| + alpha FP + beta FN + s)) ** gamma, mean over
    categories.

    Sums are pooled over the batch; alpha weighs false positives and beta false negatives, as in the
    study of whole-body scans that these values are of (Abraham & Khan 2019 have them the other way
    round).

    Args:
        probability_NCHW: in [0, 1].
        target_NCHW: 0 or 1, same shape.
    Source: Abraham & Khan 2019 (arXiv:1810.07842).
    """
    axes = (0, 2, 3)
    both_C = (probability_NCHW * target_NCHW).sum(axes)
    false_C = (probability_NCHW * (1 - target_NCHW)).sum(axes)
    missed_C = ((1 - probability_NCHW) * target_NCHW).sum(axes)
    tversky_C = (both_C + smooth) / (both_C + alpha * false_C + beta * missed_C + smooth)
    # A perfect category has an infinite slope.
    return ((1 - tversky_C).clamp(min=1e-7) ** gamma).mean()
