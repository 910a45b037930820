"""Where a finding begins: the score that a rule chooses where the truth is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raybone.errors import WrongInput
from raybone.metrics.lesions import THRESHOLD
from raybone.types import Array

LARGEST_F1 = "max_f1"
# The rules that ask for a value, and the largest of each.
ASKED = {"sensitivity": 1.0, "specificity": 1.0, "fp_per_scan": math.inf, "score": 1.0}


@dataclass(frozen=True)
class Cases:
    """What was scored where the truth is known.

    score_N: in [0, 1]; truth_N: whether each is right, or the share of a group that is; weight_N:
    its size. positives: how many there were to find, those without a score as well. scans: on how
    many scans; 0 where false positives a scan are not counted. free_response: whether what is
    rightly not found cannot be counted.
    """

    score_N: Array
    truth_N: Array
    weight_N: Array
    positives: float
    scans: int
    free_response: bool = False


def together(several: Sequence[Cases]) -> Cases:
    """The cases of several folds as one."""
    score_N, truth_N, weight_N = (
        np.concatenate([getattr(c, name) for c in several])
        for name in ("score_N", "truth_N", "weight_N")
    )
    positives, scans = sum(c.positives for c in several), sum(c.scans for c in several)
    return Cases(score_N, truth_N, weight_N, positives, scans, several[0].free_response)


@dataclass(frozen=True)
class Counts:
    """True and false positives from a score on, of ``negatives`` (NaN where they cannot be counted)
    and ``positives`` on so many scans.
    """

    true: float
    false: float
    positives: float
    negatives: float
    scans: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(vars(self).values(), vars(other).values())))

    def figures(self) -> dict[str, float]:
        """Sensitivity, precision and F1; false positives a scan where boxes are counted, else
        specificity. NaN is left out.
        """
        called = self.true + self.false
        found = {
            "sensitivity": _share(self.true, self.positives),
            "precision": _share(self.true, called),
            "f1": _share(2 * self.true, called + self.positives),
            "specificity": 1 - _share(self.false, self.negatives),
            "fp_per_scan": _share(self.false, self.scans),
        }
        return {name: round(value, 6) for name, value in found.items() if math.isfinite(value)}


@dataclass(frozen=True)
class Rule:
    """How a score is chosen: ``max_f1``, or the least strict or strictest that keeps ``value``."""

    name: str = LARGEST_F1
    value: float = math.nan

    @classmethod
    def of(cls, text: str) -> Rule:
        """Read ``max_f1``, ``sensitivity=0.9``, ``specificity=0.95``, ``fp_per_scan=1`` or
        ``score=0.5``.

        Raises:
            WrongInput: another text.
        """
        name, equals, value = text.partition("=")
        if text == LARGEST_F1:
            return cls()
        try:
            rule = cls(name, float(value))
            if equals and 0 <= rule.value <= ASKED[name]:
                return rule
        except (KeyError, ValueError):
            pass
        raise WrongInput(
            f"--operate {text}: must be {LARGEST_F1}, or a value of "
            f"{', '.join(ASKED)}, such as sensitivity=0.9; change it"
        )

    def __str__(self) -> str:
        return self.name if self.name == LARGEST_F1 else f"{self.name}={self.value:g}"

    def choose(self, cases: Cases) -> float | None:
        """The score from which on a case is a finding; None where none keeps the rule.

        It lies halfway between two that occur. Of several that do, a sensitivity takes the highest,
        and a limit of false positives the lowest.
        """
        if self.name == "score":
            return self.value
        score_T, figures = _points(cases)
        if not len(score_T) or not cases.positives:
            return None
        if self.name == LARGEST_F1:
            place = int(np.argmax(figures["f1"]))
            kept = [place] if figures["f1"][place] > 0 else []
        else:
            value_T = figures.get(self.name, np.full(len(score_T), math.nan))
            limit = self.name == "fp_per_scan"
            kept_T = value_T <= self.value if limit else value_T >= self.value
            kept = np.flatnonzero(kept_T).tolist()
        if not kept:
            return None
        place = kept[0] if self.name in (LARGEST_F1, "sensitivity") else kept[-1]
        return float(np.mean(score_T[place : place + 2]))


def counted(cases: Cases, threshold: float) -> Counts:
    """What a score gives on these cases."""
    called_N = cases.score_N >= threshold
    true = float((cases.weight_N * cases.truth_N)[called_N].sum())
    return _counts(cases, true, float(cases.weight_N[called_N].sum()) - true)


def operating_point(rule: Rule, folds: Sequence[Cases]) -> dict[str, Any]:
    """The score that a rule chooses on all folds, and what is to be expected of it.

    Returns:
        rule, threshold; its figures are cross-fitted: each fold is judged by the score that the
        others choose, which stands in ``folds``. Where the rule cannot be kept, the usual threshold
        and the reason.
    """
    chosen = [rule.choose(together([f for f in folds if f is not fold])) for fold in folds]
    whole = rule.choose(together(folds))
    thresholds = [value for value in chosen if value is not None]
    if whole is None or len(thresholds) < len(folds):
        return {"rule": str(rule), "threshold": THRESHOLD, "reason": _reason(rule, folds)}
    first, *others = (counted(fold, value) for fold, value in zip(folds, thresholds))
    return {
        "rule": str(rule),
        "threshold": round(whole, 7),
        "folds": [round(value, 7) for value in thresholds],
        **sum(others, first).figures(),
    }


def _reason(rule: Rule, folds: Sequence[Cases]) -> str:
    every = together(folds)
    if not len(every.score_N) or not every.positives:
        return "there are no out-of-fold scores to choose from"
    known_T = _points(every)[1].get("f1" if rule.name == LARGEST_F1 else rule.name)
    if known_T is None:
        return f"{rule.name} cannot be counted of what this model finds"
    best = known_T.min() if rule.name == "fp_per_scan" else known_T.max()
    return f"out of fold, {rule.name} comes to {best:.3g} at best, in all or in some folds"


def _points(cases: Cases) -> tuple[Array, dict[str, Array]]:
    """Each score that occurs, from the highest on, and the figures that it gives, (T,) each."""
    order_N = np.argsort(-cases.score_N, kind="stable")
    score_N, weight_N = cases.score_N[order_N], cases.weight_N[order_N]
    true_N = np.cumsum(weight_N * cases.truth_N[order_N])
    false_N = np.cumsum(weight_N) - true_N
    last_N = np.append(np.diff(score_N) != 0, True)[: len(score_N)]
    true_T, false_T = true_N[last_N], np.maximum(false_N[last_N], 0)
    figures = {
        "f1": 2 * true_T / np.maximum(true_T + false_T + cases.positives, 1e-12),
        "sensitivity": true_T / max(cases.positives, 1e-12),
    }
    if cases.scans:
        figures["fp_per_scan"] = false_T / cases.scans
    wrong = float((cases.weight_N * (1 - cases.truth_N)).sum())
    if wrong and not cases.free_response:
        figures["specificity"] = 1 - false_T / wrong
    return score_N[last_N], figures


def _counts(cases: Cases, true: float, false: float) -> Counts:
    wrong = float((cases.weight_N * (1 - cases.truth_N)).sum())
    negatives = math.nan if cases.free_response else wrong
    return Counts(true, max(false, 0.0), cases.positives, negatives, cases.scans)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
