"""The patient bootstrap against outside implementations and explicit resampling."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, precision_score, recall_score

from raybone.metrics.boxes import SIZES, box_metrics, lesion_hits, weighted_ap
from raybone.metrics.intervals import (
    bootstrap_interval,
    bootstrap_p,
    corrected_winner,
    freedom,
    patient_draws,
)
from raybone.metrics.lesions import lesion_metrics
from raybone.metrics.masks import pixel_counts, weighted_means, weighted_overlap
from raybone.types import Prediction

Cohort = tuple[list[tuple[np.ndarray, np.ndarray]], list[Prediction]]


def cohort(
    rng: np.random.Generator, scans: int, most: int, levels: int, categories: int = 2
) -> Cohort:
    """Scans of 0 to 3 lesions and up to ``most`` boxes, near lesions or anywhere, with so many
    levels of scores.
    """
    truth, predictions = [], []
    for _ in range(scans):
        lesions, found = rng.integers(0, 4), rng.integers(0, most + 1)
        corner = rng.uniform(0, 200, (lesions, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(8, 30, (lesions, 2))], axis=1)
        truth.append((boxes.astype(np.float32), rng.integers(0, categories, lesions)))
        far = rng.uniform(0, 200, (found, 2))
        guess = np.concatenate([far, far + 20], axis=1)
        if lesions:
            near = boxes[rng.integers(0, lesions, found)] + rng.normal(0, 2, (found, 4))
            guess = np.where(rng.random((found, 1)) < 0.5, near, guess)
        scores = np.sort(rng.integers(0, levels, found) / levels)[::-1].astype(np.float32)
        predictions.append(
            Prediction(guess.astype(np.float32), scores, rng.integers(0, categories, found))
        )
    return truth, predictions


def crowds_of(
    rng: np.random.Generator, truth: list[tuple[np.ndarray, np.ndarray]]
) -> list[tuple[np.ndarray, ...]]:
    """Up to two regions a scan, around lesions or anywhere."""
    found = []
    for boxes, _ in truth:
        near = boxes[: rng.integers(0, 2), :2] - 5
        corner = np.concatenate([near, rng.uniform(0, 180, (rng.integers(0, 2), 2))])
        region = np.concatenate(
            [corner, corner + rng.uniform(20, 80, corner.shape)], axis=1
        ).astype(np.float32)
        found.append((region, rng.integers(0, 2, len(region))))
    return found


@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize("levels", [1, 3, 20, 10_000])
def test_weighted_ap_is_that_of_the_scans_repeated(levels: int, crowded: bool) -> None:
    """One level makes all scores ties; small cohorts have draws without lesions and scans without
    boxes.
    """
    rng = np.random.default_rng(levels)
    for scans, most in ((1, 4), (3, 0), (4, 6), (12, 8)):
        truth, predictions = cohort(rng, scans, most, levels)
        crowds = (
            crowds_of(rng, truth) if crowded else [(box[:0], label[:0]) for box, label in truth]
        )
        draws = np.concatenate(
            [np.ones((1, scans), int), rng.multinomial(scans, np.full(scans, 1 / scans), 4)]
        )
        weighted = weighted_ap(truth, predictions, 2, draws, crowds)
        for sample, weights in enumerate(draws):
            repeated = np.repeat(np.arange(scans), weights)
            plain = box_metrics(
                *([part[i] for i in repeated] for part in (truth, predictions)),
                2,
                [crowds[i] for i in repeated],
            )
            for name, values_B in weighted.items():
                assert values_B[sample] == pytest.approx(plain[name], abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize("levels", [1, 50])
def test_ap_and_ar_are_pycocotools_to_the_ninth_digit(levels: int, crowded: bool) -> None:
    """pycocotools itself, told the same limits of size; of lesions and findings, what it has
    matched and ignored.
    """
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(5)
    truth, predictions = cohort(rng, 20, 130, levels)
    crowds = crowds_of(rng, truth) if crowded else ()
    coco = COCO()
    boxes = [
        (i, box, label, crowd)
        for crowd, parts in enumerate((truth, crowds))
        for i, part in enumerate(parts)
        for box, label in zip(*part)
    ]
    annotations = [
        {
            "id": n,
            "image_id": i,
            "category_id": int(label),
            "iscrowd": crowd,
            "bbox": [*box[:2], *(box[2:] - box[:2])],
            "area": float(np.prod(box[2:] - box[:2])),
        }
        for n, (i, box, label, crowd) in enumerate(boxes, 1)
    ]
    coco.dataset = {
        "info": {},
        "images": [{"id": i} for i in range(20)],
        "categories": [{"id": 0}, {"id": 1}],
        "annotations": annotations,
    }
    rows = [
        [i, *box[:2], *(box[2:] - box[:2]), score, label]
        for i, p in enumerate(predictions)
        for box, score, label in zip(p.boxes_N4.astype(float), p.scores_N, p.labels_N)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(np.array(rows)), "bbox")
        evaluation.params.areaRng[1:] = [list(limits) for limits in SIZES.values()]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ours = box_metrics(truth, predictions, 2, crowds)
    names = ["AP", "AP50", "AP75", *SIZES]
    assert [ours[name] for name in names] == pytest.approx(evaluation.stats[:6], abs=1e-9)
    assert ours["AR"] == pytest.approx(evaluation.stats[8], abs=1e-9)
    assert 0 < ours["AP_medium"] < 1
    for lesions in ([0, 1], [1], []):
        seen = [
            e
            for e in evaluation.evalImgs
            if e and e["aRng"] == [0, 1e10] and e["category_id"] in lesions
        ]
        score, hit, ignored = (
            (
                np.concatenate([np.zeros(0), *parts])
                for parts in zip(
                    *((e["dtScores"], e["dtMatches"][0] > 0, e["dtIgnore"][0]) for e in seen)
                )
            )
            if seen
            else np.zeros((3, 0))
        )
        assert (ignored > 0).any() == (crowded and bool(lesions))
        counts = ignored == 0
        found, hits = lesion_hits(truth, predictions, 2, crowds, lesions)
        assert sorted(zip(found, hits)) == sorted(zip(score[counts], hit[counts] > 0))
        expected = lesion_metrics(
            found, hits, sum(int(np.isin(labels, lesions).sum()) for _, labels in truth), 20
        )
        some = box_metrics(truth, predictions, 2, crowds, lesions)
        assert {k: some[k] for k in expected} == pytest.approx(expected, nan_ok=True)
        assert some["AP"] == ours["AP"]


def test_weighted_overlap_is_scikit_learns_on_the_scans_repeated() -> None:
    rng = np.random.default_rng(0)
    truth, found = rng.random((5, 16, 8)) < 0.2, rng.random((5, 16, 8)) < 0.3
    draws = rng.multinomial(5, np.full(5, 0.2), 3)
    weighted = weighted_overlap(np.array([pixel_counts(t, f) for t, f in zip(truth, found)]), draws)
    for sample, weights in enumerate(draws):
        flat = np.repeat(truth, weights, 0).ravel(), np.repeat(found, weights, 0).ravel()
        for name, outside in (
            ("dice", f1_score),
            ("precision", precision_score),
            ("sensitivity", recall_score),
        ):
            assert weighted[name][sample] == pytest.approx(outside(*flat))


def test_weighted_means_are_over_the_categories_that_a_sample_holds() -> None:
    """The second category is on one scan of five, the third on none."""
    rng = np.random.default_rng(1)
    truth, found = rng.random((5, 3, 16, 8)) < 0.2, rng.random((5, 3, 16, 8)) < 0.3
    truth[1:, 1] = truth[:, 2] = False
    draws = np.array([[1, 1, 1, 1, 1], [0, 2, 1, 1, 1], [0, 0, 0, 0, 0]])
    counts = np.array([[pixel_counts(t, f) for t, f in zip(*pair)] for pair in zip(truth, found)])
    means = weighted_means(counts, draws)
    for sample, held in enumerate([[0, 1], [0]]):
        drawn = [np.repeat(part, draws[sample], 0) for part in (truth, found)]
        for name, outside in (
            ("dice", f1_score),
            ("precision", precision_score),
            ("sensitivity", recall_score),
        ):
            each = [outside(*(part[:, c].ravel() for part in drawn)) for c in held]
            assert means[name][sample] == pytest.approx(np.mean(each))
    assert all(math.isnan(values[2]) for values in means.values())


def test_weighted_overlap_is_undefined_where_no_lesion_is_drawn() -> None:
    weighted = weighted_overlap(np.array([[0, 3, 0], [4, 0, 4]]), np.array([[1, 0], [0, 1]]))
    assert math.isnan(weighted["dice"][0])
    assert [weighted[m][1] for m in ("dice", "precision", "sensitivity")] == pytest.approx(
        [2 / 3, 1, 0.5]
    )


def test_draws_stay_in_their_fold_hold_a_lesion_and_repeat_by_seed() -> None:
    fold = np.array([0, 0, 0, 1, 1, 1, 1])
    sick = np.array([True, False, False, True, True, False, False])
    draws = patient_draws(fold, sick, [7, 1])
    assert draws.shape == (1000, 7)
    assert (draws[:, fold == 0].sum(1) == 2).all()
    assert (draws[:, fold == 1].sum(1) == 3).all()
    assert (draws[:, (fold == 0) & sick].sum(1) > 0).all()
    assert (draws == patient_draws(fold, sick, [7, 1])).all()
    assert (draws != patient_draws(fold, sick, [7, 2])).any()


@pytest.mark.parametrize(("fold", "sick"), [([0, 1, 1], [1, 1, 1]), ([0, 0, 1, 1], [0, 0, 1, 1])])
def test_a_fold_of_one_patient_or_without_lesion_has_no_bootstrap(
    fold: list[int], sick: list[int]
) -> None:
    with pytest.raises(ValueError, match="fold 0: a bootstrap needs 2 patients and a lesion"):
        patient_draws(np.array(fold), np.array(sick, bool), 0)


def test_the_bootstrap_error_of_one_fold_is_scipys_made_unbiased() -> None:
    """scipy draws n of n patients, which makes the variance of a mean smaller by (n - 1) / n."""
    rng = np.random.default_rng(3)
    counts = rng.integers(1, 40, (12, 3))

    def dice(*columns: np.ndarray, axis: int) -> np.ndarray:
        hit, false, missed = (c.sum(axis=axis) for c in columns)
        return 2 * hit / (2 * hit + false + missed)

    outside = stats.bootstrap(
        tuple(counts.T), dice, paired=True, n_resamples=20_000, method="percentile", rng=rng
    )
    draws = patient_draws(np.zeros(12, int), np.ones(12, bool), 0, 20_000)
    replicates = weighted_overlap(counts, draws)["dice"]
    low, high = bootstrap_interval(0.5, replicates, 11)
    error = (high - low) / 2 / stats.t.ppf(0.975, 11)
    assert (low + high) / 2 == pytest.approx(0.5)
    assert error == pytest.approx(outside.standard_error * (12 / 11) ** 0.5, rel=0.05)


def test_the_mean_of_equal_folds_has_all_their_degrees_of_freedom_and_one_wild_fold_only_its_own() -> (
    None
):
    even = np.tile(np.random.default_rng(0).normal(size=500), (5, 1))
    assert freedom(even, np.full(5, 9)) == pytest.approx(40)
    wild = even * np.array([1, 0, 0, 0, 0])[:, None]
    assert freedom(wild, np.full(5, 9)) == pytest.approx(8)
    assert freedom(0 * even, np.full(5, 9)) == 40


def test_the_paired_p_is_below_five_percent_where_the_interval_leaves_out_zero() -> None:
    replicates = np.random.default_rng(1).normal(0.1, 0.04, 1000)
    for delta in (-0.2, -0.05, 0.05, 0.08, 0.1, 0.2):
        low, high = bootstrap_interval(delta, replicates, 12)
        assert (bootstrap_p(delta, replicates, 12) < 0.05) == (not low <= 0 <= high)
    assert bootstrap_p(0.0, np.zeros(9), 12) == 1.0
    # Replicates that are all the same say nothing of others.
    assert math.isnan(bootstrap_p(0.1, np.full(9, 0.1), 12))
    assert all(math.isnan(v) for v in bootstrap_interval(0.1, np.full(9, 0.1), 12))
    assert all(math.isnan(v) for v in bootstrap_interval(0.5, np.array([0.4, math.nan]), 12))


def test_the_corrected_winner_is_chosen_on_the_other_folds() -> None:
    """Without fold 0 the second is best, without folds 1 and 2 the first is."""
    folds = np.array([[0.9, 0.5, 0.5], [0.4, 0.6, 0.6], [math.nan, 1, 1]])
    assert corrected_winner(folds) == pytest.approx((0.4 + 0.5 + 0.5) / 3)
    assert corrected_winner(folds[:1]) == pytest.approx(folds[0].mean())


def test_a_thousand_scans_of_a_hundred_boxes_take_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Told, not asserted: how long depends on the machine."""
    rng = np.random.default_rng(0)
    truth, predictions = cohort(rng, 200, 100, 10**5, 1)
    began = time.perf_counter()
    replicates = weighted_ap(
        truth, predictions, 1, rng.multinomial(200, np.full(200, 1 / 200), 1000)
    )
    with capsys.disabled():
        print(
            f"\n1000 replicates of AP on 200 scans (a fold of five): "
            f"{time.perf_counter() - began:.2f} s"
        )
    assert np.isfinite(replicates["AP"]).all()
