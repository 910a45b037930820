"""What the hyper-parameters say of scores: who has a chance, who is likely better than it seems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from scipy.special import ndtr, ndtri

from raybone.hpo.cohort.plan import CohortRule, normal_scores
from raybone.hpo.cohort.surrogate import modelled
from raybone.types import Array

FEWEST = 8  # configurations with a score below which it says nothing


class Guide:
    """A model of scores by features, told anew of each rung.

    Args:
        x: features of each configuration, (D,), None where they are not known. Scores are given by
            configuration, more is better.
    """

    def __init__(self, rule: CohortRule) -> None:
        self.rule, self.x = rule, dict[str, Array | None]()
        self._guesses = lru_cache(maxsize=1)(self._modelled)

    def knows(self, names: Sequence[str]) -> bool:
        """Whether there is enough for a model of these."""
        known = all(self.x[c] is not None for c in names)
        return known and len(names) >= FEWEST and self.rule.mix > 0

    def merits(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Mean of the normal score and of what the model makes of it."""
        if not scores:
            return {}
        z_N = normal_scores(np.array([*scores.values()]))
        if self.knows([*scores]):
            X_ND = self._features([*scores])
            z_N = (1 - self.rule.mix) * z_N + self.rule.mix * modelled(X_ND, z_N, X_ND)[0]
        return dict(zip(scores, z_N.tolist()))

    def chances(self, scores: Mapping[str, float], pool: Mapping[str, Array]) -> dict[str, float]:
        """Chance of each of a pool to be among the share that is kept."""
        z_N = normal_scores(np.array([*scores.values()]))
        mean_M, sd_M = modelled(self._features([*scores]), z_N, np.array([*pool.values()], float))
        chance_M = 1 - ndtr((ndtri(1 - self.rule.keep) - mean_M) / sd_M)
        return dict(zip(pool, chance_M.tolist()))

    def guesses(
        self, scores: Mapping[str, float], pool: Mapping[str, Array]
    ) -> dict[str, tuple[float, float]]:
        """Mean and variance of the score that each of a pool would have; none without a model."""
        if not pool or not self.knows([*scores]):
            return {}
        found = self._guesses(tuple(scores.items()), tuple((c, *x) for c, x in pool.items()))
        return dict(zip(pool, found))

    def _modelled(
        self, scores: Sequence[tuple[str, float]], pool: Sequence[tuple[str, float]]
    ) -> list[tuple[float, float]]:
        X_ND, y_N = self._features([c for c, _ in scores]), np.array([v for _, v in scores])
        mean_M, sd_M = modelled(X_ND, y_N, np.array([x for _, *x in pool]))
        return list(zip(mean_M.tolist(), (sd_M**2).tolist()))

    def _features(self, names: Sequence[str]) -> Array:
        return np.array([self.x[c] for c in names], float)
