"""How often the leaderboard's intervals hold what they promise, on cohorts drawn from a population
that is known.

Three estimands: the mean score of the five trained fold models on the whole population (``fold
models``); their expected score on validation folds of the cohort's size, which is not the same, as
on few patients AP is higher and Dice lower (``folds of this size``: the former plus the mean error
over all cohorts); and the expected population score over training sets of that size (``training
sets``). A fold's model is really fitted on its training patients: a linear discriminant of pixels,
scored by Dice, or of candidate boxes, scored by AP50. Patients differ in lesion burden, contrast,
background and false candidates. ``python benchmarks/coverage.py`` takes some minutes on one core
and writes results/coverage.json.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from machine import keep
from scipy import stats

from raybone.metrics.boxes import RECALL_R, box_metrics, weighted_ap
from raybone.metrics.intervals import (
    bootstrap_interval,
    corrected_interval,
    corrected_winner,
    freedom,
    patient_draws,
)
from raybone.metrics.masks import overlap_metrics, pixel_counts, weighted_overlap
from raybone.types import Array, Prediction

FOLDS, POPULATION, PIXELS, FEATURES, LEVEL = 5, 2000, 100, 6, 0.95
COHORTS = {24: 1000, 60: 1000, 200: 400}
CHOSEN = "bootstrap sd, t of Satterthwaite"  # what the leaderboard's ci is
Draw = Callable[[Array], Array]


@dataclass(frozen=True)
class Population:
    """N patients: M pixels or candidates each, with D features; truth_NM is 1 lesion, 0 none, -1 no
    candidate.

    lesions_N: lesions of each patient, found by a candidate or not.
    """

    features_NMD: Array
    truth_NM: Array
    lesions_N: Array


def main() -> None:
    """Run all and print a table for each."""
    scale = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    result: dict[str, Any] = {
        "folds": FOLDS,
        "population": POPULATION,
        "level": LEVEL,
        "coverage": {},
        "winner": {},
    }
    check_population_ap()
    for metric, people in (("dice", pixel_patients()), ("AP50", candidate_patients())):
        for patients, cohorts in COHORTS.items():
            cell = coverage(metric, people, patients, round(cohorts * scale))
            result["coverage"][f"{metric}, {patients} patients"] = cell
            _print(metric, patients, cell)
    for patients in COHORTS:
        cell = result["winner"][f"dice, {patients} patients"] = winner(
            pixel_patients(), patients, round(400 * scale)
        )
        print(f"winner of 15, dice, {patients} patients: {cell}")
    if scale == 1:
        keep("coverage", result)


def pixel_patients(seed: int = 1) -> Population:
    """Patients with pixels of six features, a third of them without a lesion."""
    rng = np.random.default_rng(seed)
    many_N = np.minimum(np.rint(rng.lognormal(2.5, 0.8, POPULATION)), PIXELS // 2) * (
        rng.random(POPULATION) > 0.3
    )
    truth_NM = (np.arange(PIXELS) < many_N[:, None]).astype(int)
    contrast_N = np.exp(rng.normal(0, 0.3, POPULATION))
    features_NMD = rng.normal(0, 1, (POPULATION, PIXELS, FEATURES)) + rng.normal(
        0, 0.3, (POPULATION, 1, FEATURES)
    )
    features_NMD += (truth_NM * contrast_N[:, None])[..., None] * 0.9
    return Population(features_NMD, truth_NM, many_N)


def candidate_patients(seed: int = 2, most: int = 24) -> Population:
    """Patients with candidate boxes of six features; a tenth of the lesions has no candidate."""
    rng = np.random.default_rng(seed)
    many_N = np.minimum(rng.geometric(0.35, POPULATION), 8) * (rng.random(POPULATION) > 0.3)
    hits_N = rng.binomial(many_N, 0.9)
    all_N = np.minimum(hits_N + rng.poisson(5 * np.exp(rng.normal(0, 0.5, POPULATION))), most)
    place_M = np.arange(most)
    truth_NM = np.where(place_M < hits_N[:, None], 1, np.where(place_M < all_N[:, None], 0, -1))
    contrast_N = np.exp(rng.normal(0, 0.3, POPULATION))
    features_NMD = rng.normal(0, 1, (POPULATION, most, FEATURES)) + rng.normal(
        0, 0.3, (POPULATION, 1, FEATURES)
    )
    features_NMD += ((truth_NM == 1) * contrast_N[:, None])[..., None] * 0.6
    return Population(features_NMD, truth_NM, many_N)


def coverage(metric: str, people: Population, patients: int, cohorts: int) -> dict[str, Any]:
    """Share of cohorts whose interval holds each estimand, and the mean width, for every kind of
    interval.
    """
    rng = np.random.default_rng([patients, len(metric)])
    truth_C, intervals, estimate_C = (
        np.zeros(cohorts),
        dict[str, list[tuple[float, float]]](),
        np.zeros(cohorts),
    )
    for cohort in range(cohorts):
        taken_N, fold_N = _cohort(people, patients, rng)
        models = [_fit(people, taken_N[fold_N != k], np.arange(FEATURES)) for k in range(FOLDS)]
        truth_C[cohort] = np.mean([_population_score(metric, people, model) for model in models])
        units = [
            _units(metric, people, taken_N[fold_N == k], model) for k, model in enumerate(models)
        ]
        found, estimate_C[cohort] = _intervals(
            metric, units, fold_N, people.lesions_N[taken_N] > 0, cohort
        )
        for name, ends in found.items():
            intervals.setdefault(name, []).append(ends)
    cell: dict[str, Any] = {
        "cohorts": cohorts,
        "population_score": _round(truth_C.mean()),
        "sd_over_training_sets": _round(truth_C.std(ddof=1)),
        "bias_of_the_mean": _round((estimate_C - truth_C).mean()),
        "intervals": {},
    }
    expected_C = truth_C + (estimate_C - truth_C).mean()
    for name, ends in intervals.items():
        low_C, high_C = np.array(ends).T
        held = {
            estimand: float(np.mean((low_C <= value) & (value <= high_C)))
            for estimand, value in (
                ("folds of this size", expected_C),
                ("fold models", truth_C),
                ("training sets", truth_C.mean()),
            )
        }
        cell["intervals"][name] = {
            "width": _round(np.mean(high_C - low_C)),
            "below": _round((truth_C < low_C).mean()),
            "above": _round((truth_C > high_C).mean()),
            **{
                k: {"covers": _round(v), "error": _round((v * (1 - v) / cohorts) ** 0.5)}
                for k, v in held.items()
            },
        }
    return cell


def winner(people: Population, patients: int, cohorts: int) -> dict[str, Any]:
    """Mean error of the best configuration's CV mean, as it is and corrected, against its score on
    the population.

    The fifteen configurations use four of the six features each.
    """
    rng = np.random.default_rng([patients, 7])
    subsets = [
        np.array([i for i in range(FEATURES) if i not in (a, b)])
        for a in range(FEATURES)
        for b in range(a)
    ]
    fixed_C, raw_C, corrected_C = np.zeros((3, cohorts))
    for cohort in range(cohorts):
        taken_N, fold_N = _cohort(people, patients, rng)
        models = [[_fit(people, taken_N[fold_N != k], s) for k in range(FOLDS)] for s in subsets]
        folds_CK = np.array(
            [
                [
                    overlap_metrics(_units("dice", people, taken_N[fold_N == k], m).sum(0))["dice"]
                    for k, m in enumerate(of)
                ]
                for of in models
            ]
        )
        best = int(folds_CK.mean(1).argmax())
        first, truth = (
            np.mean([_population_score("dice", people, m) for m in models[c]]) for c in (0, best)
        )
        fixed_C[cohort] = folds_CK[0].mean() - first
        raw_C[cohort] = folds_CK[best].mean() - truth
        corrected_C[cohort] = corrected_winner(folds_CK) - truth
    return {
        "configurations": len(subsets),
        "cohorts": cohorts,
        **{
            name: {"bias": _round(v.mean()), "error": _round(v.std(ddof=1) / cohorts**0.5)}
            for name, v in (
                ("one configuration not chosen", fixed_C),
                ("mean", raw_C),
                ("corrected", corrected_C),
            )
        },
    }


def check_population_ap() -> None:
    """The population's AP, found without matching, must be box_metrics's."""
    people = candidate_patients()
    taken_N = np.arange(300)
    model = _fit(people, taken_N, np.arange(FEATURES))
    part = Population(
        people.features_NMD[taken_N], people.truth_NM[taken_N], people.lesions_N[taken_N]
    )
    reference = box_metrics(*_boxes(people, taken_N, model), 1)["AP50"]
    assert abs(_population_score("AP50", part, model) - reference) < 1e-9, reference


def _cohort(people: Population, patients: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Patients and their folds, dealt out by burden as `prepare` does; no fold is without a
    lesion.
    """
    while True:
        taken_N = rng.integers(0, POPULATION, patients)
        taken_N = taken_N[np.argsort(-people.lesions_N[taken_N], kind="stable")]
        if (people.lesions_N[taken_N][:FOLDS] > 0).all():
            return taken_N, np.arange(patients) % FOLDS


def _fit(people: Population, taken_N: Array, used_D: Array) -> tuple[Array, float]:
    """Weights and offset of a linear discriminant on the pixels or candidates of these patients."""
    truth = people.truth_NM[taken_N].ravel()
    rows = people.features_NMD[taken_N].reshape(len(truth), -1)[:, used_D]
    groups = [rows[truth == label] for label in (0, 1)]
    means = [g.mean(0) for g in groups]
    spread_DD = sum((g - m).T @ (g - m) for g, m in zip(groups, means)) / sum(map(len, groups))
    weights_D = np.zeros(FEATURES)
    weights_D[used_D] = np.linalg.solve(spread_DD + 1e-6 * np.eye(len(used_D)), means[1] - means[0])
    offset = float(
        np.log(len(groups[1]) / len(groups[0])) - weights_D[used_D] @ (means[0] + means[1]) / 2
    )
    return weights_D, offset


def _scores(people: Population, taken_N: Array | slice, model: tuple[Array, float]) -> Array:
    return people.features_NMD[taken_N] @ model[0] + model[1]


def _units(metric: str, people: Population, taken_N: Array, model: tuple[Array, float]) -> Any:
    """What a metric is computed from: pixel counts of each patient, or boxes of each patient's
    scan.
    """
    if metric == "AP50":
        return _boxes(people, taken_N, model)
    masks = zip(people.truth_NM[taken_N] == 1, _scores(people, taken_N, model) > 0)
    return np.array([pixel_counts(truth_M, found_M) for truth_M, found_M in masks])


def _boxes(
    people: Population, taken_N: Array, model: tuple[Array, float]
) -> tuple[list[Any], list[Prediction]]:
    """Lesions on a grid; a candidate of a lesion has its box, a false one a box of its own."""
    truths, predictions = [], []
    for label_M, score_M, lesions in zip(
        people.truth_NM[taken_N],
        _scores(people, taken_N, model),
        people.lesions_N[taken_N].astype(int),
    ):
        place_M = np.where(label_M == 1, np.arange(len(label_M)), 50 + np.arange(len(label_M)))[
            label_M >= 0
        ]
        truths.append((_grid(np.arange(lesions)), np.zeros(lesions, np.int64)))
        probability_M = 1 / (1 + np.exp(-score_M[label_M >= 0]))
        predictions.append(
            Prediction(_grid(place_M), probability_M, np.zeros(len(place_M), np.int64))
        )
    return truths, predictions


def _grid(place_N: Array) -> Array:
    return np.column_stack([20 * place_N, 0 * place_N, 20 * place_N + 10, 0 * place_N + 10]).astype(
        np.float32
    )


def _population_score(metric: str, people: Population, model: tuple[Array, float]) -> float:
    score_NM = _scores(people, slice(None), model)
    if metric == "dice":
        return overlap_metrics(pixel_counts(people.truth_NM == 1, score_NM > 0))["dice"]
    real_NM = people.truth_NM >= 0
    hit_D = (people.truth_NM == 1)[real_NM][np.argsort(-score_NM[real_NM], kind="stable")]
    true_D = np.cumsum(hit_D)
    best_D = np.maximum.accumulate((true_D / np.arange(1, len(hit_D) + 1))[::-1])[::-1]
    at_R = np.searchsorted(true_D / people.lesions_N.sum(), RECALL_R, side="left")
    return float(np.append(best_D, 0)[at_R].mean())


def _intervals(
    metric: str, units: list[Any], fold_N: Array, sick_N: Array, seed: int
) -> tuple[dict[str, tuple[float, float]], float]:
    """Every kind of interval of one cohort, and the mean over its folds."""
    count = len(fold_N)
    less_BN, full_BN = patient_draws(fold_N, sick_N, seed), _full_draws(fold_N, sick_N, seed)
    rows = np.concatenate(
        [np.ones((1, count), int), less_BN, full_BN, 1 - np.eye(count, dtype=int)]
    )
    with np.errstate(invalid="ignore"):
        folds_KB = np.array(
            [
                weighted_ap(*unit, 1, rows[:, fold_N == k])[metric]
                if metric == "AP50"
                else weighted_overlap(unit, rows[:, fold_N == k])[metric]
                for k, unit in enumerate(units)
            ]
        )
    means_B = folds_KB.mean(0)
    mean, less_B, full_B, left_N = np.split(means_B, np.cumsum([1, len(less_BN), len(full_BN)]))
    value = float(mean[0])
    tail = stats.norm.cdf(stats.t.ppf(0.5 - LEVEL / 2, count - FOLDS))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, count - FOLDS) * less_B.std(ddof=1))
    spread_KB = folds_KB[:, 1 : 1 + len(less_BN)]
    plain = stats.t.interval(LEVEL, FOLDS - 1, value, stats.sem(folds_KB[:, 0]))
    found = {
        "percentile, n drawn": _quantiles(full_B, 0.5 - LEVEL / 2, 0.5 + LEVEL / 2),
        "percentile, n-1 drawn": _quantiles(less_B, 0.5 - LEVEL / 2, 0.5 + LEVEL / 2),
        "expanded percentile, n-1 drawn": _quantiles(less_B, tail, 1 - tail),
        "BCa, n drawn": _bca(full_B, value, left_N, fold_N, 0.5 - LEVEL / 2),
        "expanded BCa, n-1 drawn": _bca(less_B, value, left_N, fold_N, tail),
        "bootstrap sd, t of n-K": (value - half, value + half),
        CHOSEN: bootstrap_interval(value, less_B, freedom(spread_KB, np.bincount(fold_N))),
        "t of the folds": (float(plain[0]), float(plain[1])),
        "Nadeau-Bengio": corrected_interval(folds_KB[:, 0]),
    }
    if metric == "dice":
        found["bootstrap-t, n drawn"] = _bootstrap_t(units, fold_N, full_BN, value)
    return found, value


def _full_draws(fold_N: Array, sick_N: Array, seed: int) -> Array:
    """patient_draws, but with as many draws as patients."""
    rng = np.random.default_rng(seed)
    draws_BN = np.zeros((1000, len(fold_N)), int)
    for fold in range(FOLDS):
        inside, many = fold_N == fold, int((fold_N == fold).sum())
        open_B = np.ones(len(draws_BN), bool)
        while open_B.any():
            draws_BN[np.ix_(open_B, inside)] = rng.multinomial(
                many, np.full(many, 1 / many), open_B.sum()
            )
            open_B = draws_BN[:, inside & sick_N].sum(1) == 0
    return draws_BN


def _quantiles(values_B: Array, low: float, high: float) -> tuple[float, float]:
    a, b = np.quantile(values_B, [low, high])
    return float(a), float(b)


def _bca(
    values_B: Array, value: float, left_N: Array, fold_N: Array, tail: float
) -> tuple[float, float]:
    """Efron 1987, JASA 82:171; acceleration from the stratified jackknife (Davison & Hinkley 1997,
    section 5.3).
    """
    below = np.clip(np.mean(values_B < value) + np.mean(values_B == value) / 2, 1e-3, 1 - 1e-3)
    shift = stats.norm.ppf(below)
    pull_N = np.zeros(len(left_N))
    for fold in range(FOLDS):
        inside = (fold_N == fold) & np.isfinite(left_N)
        pull_N[inside] = (inside.sum() - 1) * (left_N[inside].mean() - left_N[inside])
    speed = (pull_N**3).sum() / (6 * max((pull_N**2).sum(), 1e-30) ** 1.5)
    ends = [shift + z for z in (stats.norm.ppf(tail), stats.norm.ppf(1 - tail))]
    low, high = (float(stats.norm.cdf(shift + z / (1 - speed * z))) for z in ends)
    return _quantiles(values_B, low, high)


def _bootstrap_t(
    units: list[Array], fold_N: Array, draws_BN: Array, value: float
) -> tuple[float, float]:
    """Studentised by the linearised standard error of Dice (a ratio of sums) in each fold."""
    rows = np.concatenate([np.ones((1, len(fold_N)), int), draws_BN])
    mean_B, variance_B = np.zeros(len(rows)), np.zeros(len(rows))
    for fold, counts_N3 in enumerate(units):
        weights_BN = rows[:, fold_N == fold]
        top_N, base_N = 2 * counts_N3[:, 0], 2 * counts_N3[:, 0] + counts_N3[:, 1] + counts_N3[:, 2]
        base_B = weights_BN @ base_N
        ratio_B = (weights_BN @ top_N) / base_B
        squares_B = (
            weights_BN @ top_N**2
            - 2 * ratio_B * (weights_BN @ (top_N * base_N))
            + ratio_B**2 * (weights_BN @ base_N**2)
        )
        mean_B += ratio_B / FOLDS
        variance_B += squares_B / base_B**2 * len(top_N) / (len(top_N) - 1) / FOLDS**2
    error_B = np.sqrt(np.maximum(variance_B, 1e-12))
    low, high = np.quantile((mean_B[1:] - value) / error_B[1:], [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return float(value - high * error_B[0]), float(value - low * error_B[0])


def _round(value: Any) -> float:
    return round(float(value), 4)


def _print(metric: str, patients: int, cell: dict[str, Any]) -> None:
    print(
        f"\n{metric}, {patients} patients, {cell['cohorts']} cohorts: population "
        f"{cell['population_score']}, "
        f"sd over training sets {cell['sd_over_training_sets']}, bias of the mean "
        f"{cell['bias_of_the_mean']}"
    )
    for name, row in cell["intervals"].items():
        print(
            f"  {name:<32}",
            " ".join(
                f"{k} {row[k]['covers']:.3f} ± {row[k]['error']:.3f}"
                for k in ("folds of this size", "fold models", "training sets")
            ),
            f"width {row['width']:.3f} below {row['below']:.3f} above {row['above']:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
