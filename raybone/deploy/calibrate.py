"""How sure a configuration's scores are, from what its fold models said of patients they had not
seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.special import expit, logit
from torch import Tensor

from raybone.data.loader import validation_loader
from raybone.deploy.ensemble import outputs
from raybone.metrics.calibration import EDGE, calibrated, calibration_error, platt
from raybone.tasks.base import Outcome
from raybone.train.checkpoint import fill
from raybone.train.samples import FoldJob, scored_samples
from raybone.types import Array, Finding

# Pixels are too many to keep: their logits are counted in steps of 1/20.
STEPS, FAR = 20, 14
Scored = tuple[Array, Array, Array]  # scores, share of them that is true, weights


class Levels:
    """Probabilities of pixels, counted by their logit: of those that are true, and the others."""

    def __init__(self) -> None:
        self._counts_2L = np.zeros((2, 2 * FAR * STEPS + 1))

    def add(self, pixels: Iterable[tuple[Array, Array]]) -> None:
        """Count probabilities and truth, as ``Task.levels`` has them."""
        for p_HW, truth_HW in pixels:
            logit_HW = logit(p_HW.clip(EDGE, 1 - EDGE)).clip(-FAR, FAR)
            level_HW = np.rint((logit_HW + FAR) * STEPS).astype(int)
            for true in (0, 1):  # no pixel of a crowd
                levels = level_HW[truth_HW == true]
                self._counts_2L[true] += np.bincount(levels, minlength=self._counts_2L.shape[1])

    def scored(self) -> Scored:
        """Each probability that occurs, the share of its pixels that is true, and their number."""
        total_L = self._counts_2L.sum(0)
        seen_L = total_L > 0
        return (
            expit(np.arange(len(total_L)) / STEPS - FAR)[seen_L],
            (self._counts_2L[1] / np.maximum(total_L, 1))[seen_L],
            total_L[seen_L],
        )


def calibrate(
    job: FoldJob,
    findings: Sequence[Sequence[Finding]],
    states: Sequence[Mapping[str, Tensor]],
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Platt's slope and intercept over all folds, and the calibration error without and with them.

    The error with them is cross-fitted: each fold is judged by what the others give.

    Args:
        job: the configuration, whichever its fold.
        findings: of each fold's predictions.json; not needed of masks, which are cut there.
        states: weights of each fold, whose masks are predicted once more; none where they are gone.
    Returns:
        of (what is scored), count, slope, intercept, error, error_calibrated; or the reason why
        there is none.
    """
    if not (states if job.task.rescored else findings):
        return {"reason": "weights or predictions of folds are gone"}
    if job.task.rescored:
        folds = [
            _pixels(replace(job, fold=k), state, device, progress) for k, state in enumerate(states)
        ]
    else:
        folds = [_scored(replace(job, fold=k), own) for k, own in enumerate(findings)]
    score_N, truth_N, weight_N = _together(folds)
    if not 0 < (weight_N * truth_N).sum() < weight_N.sum():
        return {
            "reason": "there are no out-of-fold scores of both kinds, true and false, to learn from"
        }
    slope, intercept = platt(score_N, truth_N, weight_N)
    if slope <= 0:
        return {"reason": "out-of-fold scores do not tell true from false"}
    crossed_N = np.concatenate(
        [
            calibrated(fold[0], *platt(*_together([f for f in folds if f is not fold])))
            for fold in folds
        ]
    )
    return {
        "of": job.task.counted,
        "count": int(weight_N.sum()),
        "slope": round(slope, 6),
        "intercept": round(intercept, 6),
        "error": round(calibration_error(score_N, truth_N, weight_N), 6),
        "error_calibrated": round(calibration_error(crossed_N, truth_N, weight_N), 6),
    }


def _scored(job: FoldJob, findings: Sequence[Finding]) -> Scored:
    """Scores of a fold's findings, and whether each is right."""
    scans, names = job.dataset.validation(job.fold), list(job.config.categories)
    score_N, truth_N, _ = job.task.scored(Outcome(findings, scans, names))
    return score_N, truth_N.astype(float), np.ones(len(score_N))


def _together(folds: Sequence[Scored]) -> Scored:
    score_N, truth_N, weight_N = (np.concatenate(part) for part in zip(*folds))
    return score_N, truth_N, weight_N


def _pixels(
    job: FoldJob,
    state: Mapping[str, Tensor],
    device: torch.device,
    progress: Callable[[int, int], None],
) -> Scored:
    """Probabilities of all pixels of a fold's validation scans by its own model."""
    config, names = job.config, list(job.config.categories)
    module = job.model.build(config)
    fill(module, state, f"last.pt of fold {job.fold}")
    samples = scored_samples(job.dataset, job.dataset.validation(job.fold), job.model, config)
    loader, levels = validation_loader(samples, config.batch, 0, 1, config.loader_workers), Levels()
    predicted = outputs(job.task, [module.to(device).eval()], samples, loader, device)
    for number, (row, (prediction,)) in enumerate(predicted, 1):
        levels.add(job.task.levels(samples.scans[row], prediction, names))
        progress(number, len(samples.scans))
    return levels.scored()
