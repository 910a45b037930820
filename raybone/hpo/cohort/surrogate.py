"""A Gaussian process over the hyper-parameters of a few hundred configurations at most.

Axes: N configurations, M others, D features.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from raybone.types import Array

MOST = 300  # configurations that a process is told
LENGTHS, SLOPES, NUGGETS = (0.5, 1.0, 2.0), (0.0, 1.0), (0.03, 0.1, 0.3, 1.0, 3.0)


class Surrogate:
    """Squared exponential and linear kernel with a nugget, whose constants are those of the largest
    marginal likelihood on a grid (Rasmussen & Williams 2006, section 5.4.1).

    Args:
        X_ND: standardised features; y_N: what is modelled.
    """

    def __init__(self, X_ND: Array, y_N: Array) -> None:
        self._X_ND, self._mean = X_ND, float(y_N.mean())
        best = -math.inf
        for length, slope in itertools.product(LENGTHS, SLOPES):
            values_N, vectors_NN = np.linalg.eigh(_kernel(X_ND, X_ND, length, slope))
            values_N, z_N = np.maximum(values_N, 0), vectors_NN.T @ (y_N - self._mean)
            for nugget in NUGGETS:
                spread_N = values_N + nugget
                scale = float((z_N**2 / spread_N).mean()) + 1e-12
                likelihood = -0.5 * (len(y_N) * math.log(scale) + float(np.log(spread_N).sum()))
                if likelihood > best:
                    best, self._kind, self._nugget, self._scale = (
                        likelihood,
                        (length, slope),
                        nugget,
                        scale,
                    )
                    self._values_N, self._vectors_NN, self._z_N = values_N, vectors_NN, z_N

    def at(self, X_MD: Array) -> tuple[Array, Array]:
        """Mean and standard deviation, noise included, of configurations, (M,) each."""
        to_MN = _kernel(X_MD, self._X_ND, *self._kind) @ self._vectors_NN
        spread_N = self._values_N + self._nugget
        own_M = 1 + self._kind[1] * (X_MD**2).mean(1)
        rest_M = own_M + self._nugget - (to_MN**2 / spread_N).sum(1)
        mean_M = self._mean + to_MN @ (self._z_N / spread_N)
        return mean_M, np.sqrt(self._scale * np.maximum(rest_M, 1e-9))


def modelled(X_ND: Array, y_N: Array, X_MD: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of configurations, (M,) each, by a process fitted to others.

    Of very many it is told some of all places: the cost is that of their number to the third power.
    """
    few = np.argsort(y_N, kind="stable")
    few = few[np.unique(np.linspace(0, len(few) - 1, min(len(few), MOST)).round().astype(int))]
    centre_D, spread_D = X_ND[few].mean(0), X_ND[few].std(0)
    spread_D = np.where(spread_D > 0, spread_D, 1)
    model = Surrogate((X_ND[few] - centre_D) / spread_D, y_N[few])
    return model.at((X_MD - centre_D) / spread_D)


def _kernel(A_MD: Array, B_ND: Array, length: float, slope: float) -> Array:
    size = A_MD.shape[1]
    apart_MN = ((A_MD[:, None] - B_ND[None]) ** 2).sum(2) / size
    return np.asarray(np.exp(-0.5 * apart_MN / length**2) + slope * (A_MD @ B_ND.T) / size)
