"""Plain ways to search, replayed on recorded curves: what a race has to beat.

Axes: N configurations in the order in which they are tried, K folds, E epochs. Scores are means of
the last epochs, more is better. Each decides as one worker would; several are taken to be never
idle, so that their hours are the least possible.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import rankdata, wilcoxon

from raybone.types import Array

FINALISTS = 10  # of `one_fold_first`
FACTOR = 3  # of the halvings, as in their papers
P = 0.1  # below which Optuna's WilcoxonPruner stops, its default
CROSSED = (
    90  # percentile of the distances of crossing curves that PASHA takes for noise, its default
)


@dataclass(frozen=True)
class Found:
    """Fold epochs that each configuration has had, (N,), and the place of the pick."""

    epochs_N: Array
    pick: int


@dataclass(frozen=True)
class Baseline:
    """A way to search by its name: smoothed scores (N, K, E) in."""

    name: str
    search: Callable[[Array], Found]


def early_stopped(S_NKE: Array) -> Found:
    """Cross-validation in full that ends where the mean so far is below the worst fold of the best.

    Source: the forgiving rule of Bergman, Purucker and Hutter 2024, arXiv:2405.03389.
    """
    final_NK = S_NKE[:, :, -1]
    means_NK = np.cumsum(final_NK, 1) / np.arange(1, final_NK.shape[1] + 1)

    def stops(n: int, best: int) -> Array:
        return means_NK[n] < final_NK[best].min()

    return _fold_by_fold(S_NKE, stops)


def wilcoxon_pruned(S_NKE: Array) -> Found:
    """Cross-validation in full that ends where the folds so far are worse than those of the best,
    by Wilcoxon's signed-rank test.

    Source: ``optuna.pruners.WilcoxonPruner``; its figures agree with the pruner's.
    """
    final_NK = S_NKE[:, :, -1]

    def stops(n: int, best: int) -> Array:
        rest_K = final_NK[n] - final_NK[best]
        counts = range(1, len(rest_K) + 1)
        return np.array([k > 1 and rest_K[:k].mean() < 0 and _worse(rest_K[:k]) for k in counts])

    return _fold_by_fold(S_NKE, stops)


def one_fold_first(S_NKE: Array) -> Found:
    """One fold in full for all, the other folds for the ten best of it."""
    count, folds, epochs = S_NKE.shape
    best = np.argsort(-S_NKE[:, 0, -1], kind="stable")[:FINALISTS]
    epochs_N = np.full(count, epochs)
    epochs_N[best] = folds * epochs
    return Found(epochs_N, int(best[np.argmax(S_NKE[best, :, -1].mean(1))]))


def hyperband(S_NKE: Array) -> Found:
    """Brackets of successive halving on all folds together, from early to late, until all are
    tried.

    Source: Li et al. 2018, JMLR 18(185).
    """
    count, folds, epochs = S_NKE.shape
    most = math.floor(math.log(epochs, FACTOR) + 1e-9)
    epochs_N, scores, tried = np.zeros(count, int), np.full(count, -np.inf), 0
    for early in itertools.cycle(range(most, -1, -1)):
        if tried == count:
            return Found(folds * epochs_N, int(np.argmax(scores)))
        size = math.ceil((most + 1) / (early + 1) * FACTOR**early)
        left = np.arange(tried, min(tried + size, count))
        tried += len(left)
        for rung in range(early, -1, -1):
            end = max(1, round(epochs / FACTOR**rung))
            epochs_N[left] = end
            score_N = S_NKE[left, :, end - 1].mean(1)
            if rung == 0:
                scores[left] = score_N
            keep = max(1, len(left) // FACTOR)
            left = left[np.argsort(-score_N, kind="stable")[:keep]]
    raise AssertionError


def pasha(S_NKE: Array) -> Found:
    """Successive halving on all folds together that ends where the order of the best is the same at
    two rungs, but for noise.

    Source: Bohdal et al. 2023, arXiv:2207.06940, decided rung by rung.
    """
    count, folds, epochs = S_NKE.shape
    M_NE = S_NKE.mean(1)
    ends = [1]
    while ends[-1] < epochs:
        ends.append(min(FACTOR * ends[-1], epochs))
    left, epochs_N = np.arange(count), np.full(count, ends[0])
    for before, end in itertools.pairwise(ends):
        keep = max(1, len(left) // FACTOR)
        left = left[np.argsort(-M_NE[left, before - 1], kind="stable")[:keep]]
        epochs_N[left] = end
        if len(left) == 1 or _settled(M_NE[left, :end], before):
            break
    return Found(folds * epochs_N, int(left[np.argmax(M_NE[left, end - 1])]))


BASELINES = (
    Baseline("early_stopped_cv", early_stopped),
    Baseline("one_fold_first", one_fold_first),
    Baseline("hyperband", hyperband),
    Baseline("pasha", pasha),
    Baseline("wilcoxon_pruner", wilcoxon_pruned),
)


def _fold_by_fold(S_NKE: Array, stops: Callable[[int, int], Array]) -> Found:
    """Each configuration in full on fold after fold, until ``stops`` of it and the best so far."""
    count, folds, epochs = S_NKE.shape
    means_N, best, epochs_N = S_NKE[:, :, -1].mean(1), 0, np.full(count, folds * epochs)
    for n in range(1, count):
        stops_K = stops(n, best)
        if stops_K.any():
            epochs_N[n] = (int(np.argmax(stops_K)) + 1) * epochs
        elif means_N[n] > means_N[best]:
            best = n
    return Found(epochs_N, best)


def _worse(rest_K: Array) -> bool:
    ranks_K = np.sign(rest_K) * rankdata(np.abs(rest_K))
    return _p_of(tuple(ranks_K.tolist())) < P


@lru_cache(100_000)
def _p_of(signed_ranks: tuple[float, ...]) -> float:
    """p of the one-sided test, which the ranks alone decide."""
    return float(wilcoxon(signed_ranks, alternative="less", zero_method="zsplit").pvalue)


def _settled(M_NE: Array, before: int) -> bool:
    """Whether the order at the last epoch is that at the rung before, but for differences like
    those of curves that cross each other twice.
    """
    ahead_NNE = np.sign(M_NE[:, None] - M_NE[None])
    turns_NN = (np.abs(np.diff(ahead_NNE, axis=2)) > 1).sum(2)
    gaps = np.abs(M_NE[:, None, -1] - M_NE[None, :, -1])[turns_NN >= 2]
    noise = float(np.percentile(gaps, CROSSED)) if len(gaps) else 0.0
    earlier, now = M_NE[:, before - 1], M_NE[:, -1]
    was, is_ = np.argsort(-earlier, kind="stable"), np.argsort(-now, kind="stable")
    return bool((np.abs(earlier[was] - earlier[is_]) <= noise).all())
