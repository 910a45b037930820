"""What a pick may lose against exhaustive cross-validation, by the scores of the search itself, and
who should go on to lose less.

Axes: N configurations, D draws. Every configuration that a rung kept back would have had a score
over all folds in full; those that went on from the rung tell how it follows from the one it has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raybone.hpo.cohort.plan import Stage
from raybone.hpo.fold_race import Evidence, Ladder
from raybone.types import Array

DRAWS = 400
FEWEST = 3  # that went on from a rung, below which it says nothing of those that did not
PRIOR, WEIGHT = 0.03, 4  # of residuals: a share of the best score, and observations

Belief = tuple[float, float]  # mean and variance


@dataclass(frozen=True)
class Risk:
    """Expected loss of a pick, and what each configuration has of it, in units of the score."""

    loss: float
    share: Mapping[str, float]

    def per(self, unit: float) -> Risk:
        """In another unit."""
        return Risk(self.loss / unit, {c: share / unit for c, share in self.share.items()})

    def steps(
        self, on: Mapping[str, int], ladder: Ladder, plan: Sequence[Stage], first: int
    ) -> list[tuple[str, int, tuple[str, Evidence]]]:
        """Configurations, the rung to which each would go next, and why; first is whose share is
        the largest for what that costs.

        Args:
            on: rung at which each stands; those that have not begun go to rung ``first``.
        """
        found = list[tuple[float, str, int, tuple[str, Evidence]]]()
        for c, share in self.share.items():
            here = ladder[on[c]] if c in on else (0, 0)
            if share and here != ladder[-1]:
                to = _after(here, ladder, plan) if c in on else first
                cost = math.prod(ladder[to]) - math.prod(here)
                part = share / self.loss
                words = f"{part:.0%} of the risk is its own; {cost} fold epochs tell more"
                found.append((share / cost, c, to, (words, {"share": part})))
        found.sort(key=lambda step: (-step[0], step[1]))
        return [(c, to, why) for _, c, to, why in found]


def _after(here: tuple[int, int], ladder: Ladder, plan: Sequence[Stage]) -> int:
    """The next rung of one configuration by itself."""
    for stage in plan:
        folds, epochs = max(stage.folds, here[0]), max(stage.epochs, here[1])
        if (folds, epochs) > here and (folds > 1 or epochs >= 1.25 * here[1]):
            return next(i for i, (k, e) in enumerate(ladder) if k >= folds and e >= epochs)
    return len(ladder) - 1


def residual(full: Mapping[str, Sequence[float]]) -> float:
    """Variance of configuration x fold residuals at full length, by Helmert contrasts: each fold
    against the mean of those before it.
    """
    rows = [row for row in full.values() if all(map(math.isfinite, row))]
    squares, freedom = 0.0, 0
    for fold in range(1, max(map(len, rows), default=0)):
        rest = np.array([r[fold] - sum(r[:fold]) / fold for r in rows if len(r) > fold])
        if len(rest) < 2:
            break
        squares += float(((rest - rest.mean()) ** 2).sum()) * fold / (fold + 1)
        freedom += len(rest) - 1
    best = abs(max((sum(r) / len(r) for r in rows), default=0.0))
    return (WEIGHT * (PRIOR * best) ** 2 + squares) / (WEIGHT + freedom)


@dataclass(frozen=True)
class Told:
    """What a rung tells of each configuration that arrived there, or may be thought to.

    x: mean and variance of its score there. least: variance of a final score about the line
    through those that went on, worth WEIGHT observations. slope: that it is drawn to, None: of
    equal spreads.
    """

    x: Mapping[str, Belief]
    least: float
    slope: float | None = None


def beliefs(full: Mapping[str, float], rungs: Sequence[Told]) -> dict[str, Belief]:
    """What each configuration's score over all folds in full would be.

    Args:
        full: those that are known. rungs: the others, from the first on.
    """
    known = {c: (score, 0.0) for c, score in full.items()}
    for told in reversed(rungs):
        behind = {c: x for c, x in told.x.items() if c not in known}
        beyond = [c for c in told.x if c in known]
        if behind and len(beyond) >= (FEWEST if told.slope is None else 1):
            x_N = np.array([told.x[c][0] for c in beyond])
            y_2N = np.array([known[c] for c in beyond]).T
            known |= _line(x_N, y_2N, told.least, told.slope, behind)
    return known


def _line(
    x_N: Array, y_2N: Array, least: float, usual: float | None, behind: Mapping[str, Belief]
) -> dict[str, Belief]:
    """Predictions by a line through those that went on. They were chosen by x, so that it is true
    for the others as well.

    Args:
        y_2N: means and variances of what x should tell. least: variance about the line, worth
            WEIGHT observations. usual: slope to which it is drawn, None: that of equal spreads.
    """
    count, dx_N, dy_N = len(x_N), x_N - x_N.mean(), y_2N[0] - y_2N[0].mean()
    spread = float(dx_N @ dx_N)
    ridge = spread / count + least + 1e-18
    if usual is None:
        usual = math.sqrt(float(dy_N @ dy_N) / (spread + 1e-18))
    slope = max((float(dx_N @ dy_N) + ridge * usual) / (spread + ridge), 0.0)
    rest_N = dy_N - slope * dx_N
    rest_N = rest_N - np.median(rest_N)
    # Scores have a ceiling and a long lower tail: the upper half says what may be gained yet.
    upper_N = rest_N[rest_N > 0]
    squares = float(upper_N @ upper_N) * count / max(len(upper_N), 1)
    variance = (WEIGHT * least + squares) / (WEIGHT + count)
    found = {}
    for c, (x, x_variance) in behind.items():
        far = max(x - float(x_N.mean()), float(dx_N.min()))  # no less sure than at their edge
        sure = 1 + 1 / count + far**2 / (spread + ridge)
        mean = float(y_2N[0].mean()) + slope * (x - float(x_N.mean()))
        found[c] = mean, variance * sure + float(y_2N[1].mean()) + slope**2 * x_variance
    return found


def risk(known: Mapping[str, Belief], pick: float) -> Risk:
    """Expected loss of a pick with that score, over what the others may be."""
    names = sorted(known)
    mean_N, variance_N = np.array([known[c] for c in names]).T
    z_DN = np.random.default_rng(0).standard_normal((DRAWS, len(names)))
    drawn_DN = mean_N + np.sqrt(variance_N) * z_DN
    loss_D = np.maximum(drawn_DN.max(1) - pick, 0)
    share_N = np.bincount(drawn_DN.argmax(1), loss_D, len(names)) / DRAWS
    return Risk(float(loss_D.mean()), dict(zip(names, share_N.tolist())))
