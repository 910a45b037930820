"""How sure a configuration's scores are, from what its fold models said of patients they had not
seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import expit, logit
from torch import Tensor

from raybone.data.dataset import Dataset
from raybone.data.loader import masks_of, validation_loader
from raybone.deploy.ensemble import outputs
from raybone.metrics.calibration import EDGE, calibrated, calibration_error, platt
from raybone.models._model import Model, TrainingConfig
from raybone.train.checkpoint import fill
from raybone.train.evaluate import scored
from raybone.train.findings import Finding
from raybone.train.samples import scored_samples
from raybone.types import Array

# Pixels are too many to keep: their logits are counted in steps of 1/20.
STEPS, FAR = 20, 14
Scored = tuple[Array, Array, Array]  # scores, share of them that is true, weights


def calibrate(
    dataset: Dataset,
    model: Model,
    config: TrainingConfig,
    findings: Sequence[Sequence[Finding]],
    states: Sequence[Mapping[str, Tensor]],
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Platt's slope and intercept over all folds, and the calibration error without and with them.

    The error with them is cross-fitted: each fold is judged by what the others give.

    Args:
        findings: of each fold's predictions.json; not needed for segmenters, whose masks are cut
            there.
        states: weights of each fold, which segmenters are run with once more; none where they are
            gone.
    Returns:
        of (what is scored), count, slope, intercept, error, error_calibrated; or the reason why
        there is none.
    """
    names = list(config.categories)
    if not (states if model.task == "segmentation" else findings):
        return {"reason": "weights or predictions of folds are gone"}
    if model.task == "segmentation":
        folds = [
            _pixels(dataset, model, config, k, state, device, progress)
            for k, state in enumerate(states)
        ]
    else:
        judged = [
            scored(found, dataset.validation(k), names, model.task)
            for k, found in enumerate(findings)
        ]
        folds = [
            (score_N, truth_N.astype(float), np.ones(len(score_N)))
            for score_N, truth_N, _ in judged
        ]
    score_N, truth_N, weight_N = (np.concatenate(p) for p in zip(*folds))
    if not 0 < (weight_N * truth_N).sum() < weight_N.sum():
        return {
            "reason": "there are no out-of-fold scores of both kinds, true and false, to learn from"
        }
    slope, intercept = platt(score_N, truth_N, weight_N)
    if slope <= 0:
        return {"reason": "out-of-fold scores do not tell true from false"}
    crossed_N = np.concatenate(
        [
            calibrated(
                folds[k][0],
                *platt(
                    *(
                        np.concatenate([f[i] for j, f in enumerate(folds) if j != k])
                        for i in range(3)
                    )
                ),
            )
            for k in range(len(folds))
        ]
    )
    return {
        "of": {"segmentation": "pixels", "detection": "boxes", "classification": "samples"}[
            model.task
        ],
        "count": int(weight_N.sum()),
        "slope": round(slope, 6),
        "intercept": round(intercept, 6),
        "error": round(calibration_error(score_N, truth_N, weight_N), 6),
        "error_calibrated": round(calibration_error(crossed_N, truth_N, weight_N), 6),
    }


def _pixels(
    dataset: Dataset,
    model: Model,
    config: TrainingConfig,
    fold: int,
    state: Mapping[str, Tensor],
    device: torch.device,
    progress: Callable[[int, int], None],
) -> Scored:
    """Probabilities of all pixels of a fold's validation scans by its own model, counted by their
    logit.
    """
    module = model.build(config)
    fill(module, state, f"last.pt of fold {fold}")
    samples = scored_samples(dataset, dataset.validation(fold), model, config)
    loader = validation_loader(samples, config.batch, 0, 1, config.loader_workers)
    levels = 2 * FAR * STEPS + 1
    counts_2L = np.zeros((2, levels))
    for number, (place, (prediction,)) in enumerate(
        outputs([module.to(device).eval()], samples, loader, device), 1
    ):
        truth_CHW = masks_of(samples.scans[place], config.categories)
        for truth_HW, p_HW in zip(
            truth_CHW, prediction.mask_CHW if prediction.mask_CHW is not None else ()
        ):
            level_HW = np.rint(
                (logit(p_HW.clip(EDGE, 1 - EDGE)).clip(-FAR, FAR) + FAR) * STEPS
            ).astype(int)
            for true in (0, 1):
                counts_2L[true] += np.bincount(
                    level_HW[truth_HW == true], minlength=levels
                )  # no pixel of a crowd
        progress(number, len(samples.scans))
    total_L = counts_2L.sum(0)
    seen_L = total_L > 0
    return (
        expit(np.arange(levels) / STEPS - FAR)[seen_L],
        (counts_2L[1] / np.maximum(total_L, 1))[seen_L],
        total_L[seen_L],
    )
