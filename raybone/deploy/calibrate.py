"""How sure a configuration's scores are, from what its fold models said of patients they had not
seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy.special import expit, logit
from torch import Tensor

from raybone.data.loader import ScanSamples, validation_loader
from raybone.deploy.ensemble import outputs
from raybone.metrics.calibration import EDGE, calibration_error, crossed, platt, reliability
from raybone.metrics.lesions import THRESHOLD
from raybone.metrics.operating_point import Cases, Rule, together
from raybone.models._model import TrainingConfig
from raybone.tasks.base import Outcome, Task
from raybone.tasks.operating import cases_in, operated
from raybone.train.checkpoint import fill
from raybone.train.samples import FoldJob, scored_samples
from raybone.types import Array, Finding, Prediction

# Pixels are too many to keep: their logits are counted in steps of 1/20.
STEPS, FAR = 20, 14


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

    def cases(self) -> Cases:
        """Each probability that occurs, the share of its pixels that is true, and their number."""
        total_L, positives = self._counts_2L.sum(0), float(self._counts_2L[1].sum())
        seen_L = total_L > 0
        return Cases(
            expit(np.arange(len(total_L)) / STEPS - FAR)[seen_L],
            (self._counts_2L[1] / np.maximum(total_L, 1))[seen_L],
            total_L[seen_L],
            positives,
            scans=0,
        )


@dataclass
class Said:
    """What is said of samples: the findings, and of masks the probabilities of all pixels."""

    task: Task
    samples: ScanSamples
    findings: list[Finding] = field(default_factory=list)
    levels: Levels = field(default_factory=Levels)

    def add(self, index: int, prediction: Prediction, least: Sequence[float] = ()) -> None:
        """Take a prediction as ``outputs`` gives it.

        Args:
            least: of each category, from which on masks are found; none for one half.
        """
        if self.task.judged:
            self.findings += self.task.findings(self.samples, index, prediction)
            return
        scan, names = self.samples.scans[index], self.samples.look.categories
        cut = self.task.cut(prediction, least) if least else prediction
        self.findings.append({"scan_id": scan.scan_id, **self.task.finding(cut)})
        self.levels.add(self.task.levels(scan, prediction, names))

    def outcome(self, threshold: float = THRESHOLD) -> Outcome:
        """The findings on their scans."""
        names = self.samples.look.categories
        return Outcome(self.findings, self.samples.scans, names, threshold)

    def cases(self) -> Cases:
        """Scores and the truth."""
        return self.levels.cases() if self.task.rescored else cases_in(self.task, self.outcome())


def said_of(
    job: FoldJob,
    members: Sequence[tuple[TrainingConfig, Mapping[str, Tensor]]],
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Said]:
    """What the first of a fold's models says of its validation scans, the first two together, and
    so on.

    Args:
        job: the fold, and how scans are given to all.
        members: configuration and weights of each.
    """
    samples = scored_samples(job.dataset, job.dataset.validation(job.fold), job.model, job.config)
    loader = validation_loader(samples, job.config.batch, 0, 1, job.config.loader_workers)
    modules = []
    for config, state in members:
        modules.append(job.model.build(config).to(device).eval())
        fill(modules[-1], state, f"last.pt of fold {job.fold}")
    several = [Said(job.task, samples) for _ in members]
    predicted = outputs(job.task, modules, samples, loader, device)
    for number, (index, predictions) in enumerate(predicted, 1):
        for count, said in enumerate(several, 1):
            said.add(index, job.task.agreed(predictions[:count])[0])
        progress(number, max(number, len(samples)))
    return several


def out_of_fold(
    job: FoldJob,
    findings: Sequence[Sequence[Finding]],
    states: Sequence[Mapping[str, Tensor]],
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Cases]:
    """What each fold's model says of the patients it has not seen; empty where that is gone.

    Args:
        job: the configuration, whichever its fold.
        findings: of each fold's predictions.json; not needed of masks, which are cut there.
        states: weights of each fold, whose masks are predicted once more; none where they are gone.
    """
    if not job.task.rescored:
        names, data = list(job.config.categories), job.dataset
        seen = [Outcome(own, data.validation(k), names) for k, own in enumerate(findings)]
        return [cases_in(job.task, outcome) for outcome in seen]
    return [
        said_of(replace(job, fold=k), [(job.config, own)], device, progress)[0].cases()
        for k, own in enumerate(states)
    ]


def calibrate(of: str, folds: Sequence[Cases]) -> dict[str, Any]:
    """Platt's slope and intercept over all folds, and the calibration error without and with them.

    The error with them is cross-fitted: each fold is judged by what the others give.

    Args:
        of: what is scored, in words.
    Returns:
        of, count, slope, intercept, error, error_calibrated, and the ``reliability`` of what is
        calibrated; or the reason why there is none.
    """
    if not folds:
        return {"reason": "weights or predictions of folds are gone"}
    every = together(folds)
    score_N, truth_N, weight_N = every.score_N, every.truth_N, every.weight_N
    if not 0 < (weight_N * truth_N).sum() < weight_N.sum():
        return {
            "reason": "there are no out-of-fold scores of both kinds, true and false, to learn from"
        }
    slope, intercept = platt(score_N, truth_N, weight_N)
    if slope <= 0:
        return {"reason": "out-of-fold scores do not tell true from false"}
    crossed_N = crossed([(f.score_N, f.truth_N, f.weight_N) for f in folds])
    return {
        "of": of,
        "count": int(weight_N.sum()),
        "slope": round(slope, 6),
        "intercept": round(intercept, 6),
        "error": round(calibration_error(score_N, truth_N, weight_N), 6),
        "error_calibrated": round(calibration_error(crossed_N, truth_N, weight_N), 6),
        "reliability": reliability(crossed_N, truth_N, weight_N),
    }


def operate(
    job: FoldJob, rule: Rule, folds: Sequence[Cases], findings: Sequence[Sequence[Finding]]
) -> dict[str, Any]:
    """``operated`` on the folds of a configuration; the usual threshold where they are gone."""
    if not folds:
        if rule.name == "score":
            return {"rule": str(rule), "threshold": rule.value, "folds": []}
        reason = "weights or predictions of folds are gone"
        return {"rule": str(rule), "threshold": THRESHOLD, "reason": reason}
    names = list(job.config.categories)
    outcomes = [Outcome(own, job.dataset.validation(k), names) for k, own in enumerate(findings)]
    return operated(job.task, rule, folds, outcomes)
