"""Classification by subgroup: confusion, metrics, ROC, and whether subgroups differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raybone.metrics.lesions import THRESHOLD, classification_metrics, operating_points
from raybone.types import Array

# Which cells of a confusion count as right, and which as wrong, in each proportion.
PARTS = {
    "sensitivity": ("tp", "fn"),
    "specificity": ("tn", "fp"),
    "PPV": ("tp", "fp"),
    "NPV": ("tn", "fn"),
}


def group_of_count(lesions: int) -> str:
    """The groups of Liu et al. 2021: few, medium and extensive lesions on one scan."""
    return "1-3" if lesions <= 3 else "4-6" if lesions <= 6 else ">6"


def subgroup_table(score_N: Array, truth_N: Array, group_N: Sequence[str]) -> dict[str, Any]:
    """Metrics of each group, and a chi-square test of each proportion over the groups.

    Args:
        score_N: probability of being positive; truth_N: whether it is; group_N: the group of each.
    Returns:
        groups: by name, the metrics, ``count`` and ``confusion`` (tp, fp, fn, tn); chi_square: by
        metric, the statistic and its p, without correction; NaN where fewer than two groups have
        such cases.
    """
    names = sorted(set(group_N), key=lambda g: (g == ">6", g))
    inside = {name: np.array([g == name for g in group_N], bool) for name in names}
    cells = {name: confusion(score_N[at_N], truth_N[at_N]) for name, at_N in inside.items()}
    groups = {
        name: {
            "count": int(at_N.sum()),
            "confusion": cells[name],
            **classification_metrics(score_N[at_N], truth_N[at_N]),
        }
        for name, at_N in inside.items()
    }
    tests = {
        metric: _chi_square([[c[k] for k in parts] for c in cells.values()])
        for metric, parts in PARTS.items()
    }
    tests["accuracy"] = _chi_square(
        [[c["tp"] + c["tn"], c["fp"] + c["fn"]] for c in cells.values()]
    )
    return {"groups": groups, "chi_square": tests}


def confusion(score_N: Array, truth_N: Array) -> dict[str, int]:
    """True and false positives and negatives at ``THRESHOLD``."""
    called_N = score_N >= THRESHOLD
    counts = {
        "tp": called_N & truth_N,
        "fp": called_N & ~truth_N,
        "fn": ~called_N & truth_N,
        "tn": ~called_N & ~truth_N,
    }
    return {name: int(at_N.sum()) for name, at_N in counts.items()}


def roc(score_N: Array, truth_N: Array) -> list[tuple[float, float]]:
    """(1 - specificity, sensitivity) at each threshold, from (0, 0) to (1, 1); empty with one class
    alone.
    """
    if truth_N.all() or not truth_N.any():
        return []
    _, hits_T, false_T = operating_points(score_N, truth_N)
    return [(0.0, 0.0), *zip((false_T / false_T[-1]).tolist(), (hits_T / hits_T[-1]).tolist())]


def _chi_square(table: Sequence[Sequence[int]]) -> Mapping[str, float]:
    from scipy import stats  # takes a second to import

    known = [row for row in table if sum(row)]
    if len(known) < 2 or not all(map(sum, zip(*known))):
        return {"statistic": math.nan, "p": math.nan}
    found = stats.chi2_contingency(known, correction=False)
    return {"statistic": float(found.statistic), "p": float(found.pvalue)}
