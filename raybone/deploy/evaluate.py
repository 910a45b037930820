"""External validation: how good a bundle is on patients that none of its models was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from raybone.data.cache import intensities_of
from raybone.data.dataset import Dataset, open_dataset
from raybone.data.loader import validation_loader
from raybone.deploy.bundle import Bundle
from raybone.deploy.calibrate import Said
from raybone.deploy.ensemble import outputs
from raybone.deploy.out_of_distribution import oddities
from raybone.errors import WrongInput
from raybone.metrics.calibration import calibrated, calibration_error, reliability
from raybone.metrics.lesions import RATES, froc
from raybone.metrics.operating_point import Cases
from raybone.tasks import task_named
from raybone.tasks.groups import Group, Score, Scorer
from raybone.types import Array, Scan


@dataclass(frozen=True)
class Evaluation:
    """What a bundle scores on other patients.

    metric: by which its study was ranked. internal: its mean over the folds of that study. scores:
    every metric, with an interval where a study may be ranked by it. froc: sensitivity by false
    positives a scan; empty where nothing is searched for. calibration: count, error, and
    error_calibrated by the bundle's own numbers, and the ``reliability`` of what those give.
    threshold: the operating point, at which sensitivity, precision and the like are. left_out:
    scans without truth.
    """

    metric: str
    scores: dict[str, Score]
    internal: float | None
    froc: dict[str, float]
    calibration: dict[str, Any]
    threshold: float
    groups: tuple[Group, ...]
    scans: int
    patients: int
    left_out: int
    warnings: tuple[str, ...]


def evaluate(
    bundle: Bundle,
    dataset: Path | str,
    *,
    test: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Scores of all members together on the annotated scans of a dataset.

    Intervals are of patients drawn anew (see ``patient_draws``); the models stay what they are.

    Args:
        test: on the dataset's test group alone.
    Raises:
        WrongInput: a patient or a scan was trained on, the dataset was prepared otherwise, or it
            has nothing to score by.
    """
    opened, task = open_dataset(dataset), task_named(bundle.model.task)
    everyone = opened.test if test else list(opened.scans)
    wanted = [s for s in task.usable(everyone) if task.count([s], bundle.config)]
    _check(bundle, opened, wanted, test)
    window = bundle.meta["preprocessing"]["window"]
    scans = [replace(s, high=window or s.high) for s in wanted]
    said = _said(bundle, opened, scans, progress)
    outcome = said.outcome(bundle.threshold)
    own = bundle.meta["score"]
    of = Scorer.by(str(own["metric"]), task, opened)
    metric = of.metric
    scored = task.scored(outcome)
    return Evaluation(
        metric=metric,
        scores=of.scores(outcome),
        internal=own.get(f"{metric}_mean"),
        froc=_froc(scored, len(scans)) if task.free_response else {},
        calibration=_calibration(said.cases(), bundle.meta["calibration"]),
        threshold=bundle.threshold,
        groups=tuple(of.groups(outcome)),
        scans=len(scans),
        patients=len({s.patient_id for s in scans}),
        left_out=len(everyone) - len(scans),
        warnings=tuple(_warnings(bundle, opened, scans)),
    )


def evaluation_lines(made: Evaluation) -> Iterator[str]:
    """An evaluation for people."""
    left = f"; {made.left_out} without truth are left out" if made.left_out else ""
    yield f"{made.scans} scans of {made.patients} patients, none of them trained on{left}"
    if made.internal is not None:
        yield f"{made.metric} in its own study: {made.internal:.3f}, mean over the folds"
    yield f"what scores at least {made.threshold:.3g}, its operating point, counts as found"
    yield from (f"{name} {score}" for name, score in made.scores.items())
    if made.froc:
        points = ", ".join(f"{value:.3f} at {rate}" for rate, value in made.froc.items())
        yield f"sensitivity by false positives a scan: {points}"
    if made.calibration:
        after = made.calibration.get("error_calibrated")
        own = "" if after is None else f", {after:.3f} with the bundle's own calibration"
        yield f"calibration error {made.calibration['error']:.3f}{own}"
    for group in made.groups:
        yield (
            f"{group.by} {group.name}: {made.metric} {group.score}, {group.scans} scans of "
            f"{group.patients} patients"
        )
    yield from (f"warning: {line}" for line in made.warnings)


def _check(bundle: Bundle, dataset: Dataset, scans: Sequence[Scan], test: bool) -> None:
    """Refuse what cannot be scored, or was learned."""
    meta, task = bundle.meta, task_named(bundle.model.task)
    lines = [f"evaluate {bundle.path}: {line}" for line in bundle.other_steps(dataset)]
    if "pixels" not in meta:
        lines.append(
            f"evaluate {bundle.path}: must say which scans it was trained on, but is of an older "
            "raybone; refit it again"
        )
    patients, pixels = set(meta["patients"]), set(meta.get("pixels", ()))
    seen = (s for s in dataset.scans if s.patient_id in patients or s.pixels in pixels)
    persons = {dataset.group_of[s.patient_id] for s in seen}
    everyone = {s.patient_id for s in scans}
    if known := {p for p in everyone if dataset.group_of[p] in persons}:
        lines.append(
            f"evaluate {bundle.path}: needs patients that it was not trained on, but it was on "
            f"{len(known)} of {len(everyone)} (first {min(known)}), or on scans that look like "
            "theirs; give other patients, or --test where a group was held out"
        )
    part = replace(dataset, scans=tuple(dataset.test)) if test else dataset
    if dataset.categories:
        lines += task.lacking(part, bundle.model.name, bundle.config)
    if not scans:
        whose = "its test group has" if test else "it has"
        lines.append(f"dataset {dataset.path}: needs scans with a truth to score by; {whose} none")
    if lines:
        raise WrongInput(*lines)


def _said(
    bundle: Bundle,
    dataset: Dataset,
    scans: list[Scan],
    progress: Callable[[int, int], None],
) -> Said:
    """What the members agree on."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, task = bundle.config, task_named(bundle.model.task)

    def images(scan: Scan) -> Array:
        return intensities_of(dataset.counts(scan), scan.high, config.imgsz)

    samples = task.samples(images, scans, config)
    said, loader = Said(task, samples), validation_loader(samples, 4, 0, 1, 0)
    predicted = outputs(task, bundle.members(device), samples, loader, device)
    for number, (index, members) in enumerate(predicted, 1):
        least = [*map(bundle.least, config.categories)]
        said.add(index, task.agreed(members)[0], least)
        progress(number, len(samples))
    return said


def _froc(scored: tuple[Array, Array, int], scans: int) -> dict[str, float]:
    score_D, hit_D, lesions = scored
    return dict(zip(map("{:g}".format, RATES), froc(score_D, hit_D, lesions, scans).tolist()))


def _calibration(cases: Cases, own: Mapping[str, Any]) -> dict[str, Any]:
    score_N, truth_N, weight_N = cases.score_N, cases.truth_N, cases.weight_N
    if not len(score_N):
        return {}
    known: dict[str, Any] = {
        "count": float(weight_N.sum()),
        "error": calibration_error(score_N, truth_N, weight_N),
    }
    if own.get("slope") is not None:
        probability_N = calibrated(score_N, own["slope"], own["intercept"])
        known["error_calibrated"] = calibration_error(probability_N, truth_N, weight_N)
        score_N = probability_N
    known["reliability"] = reliability(score_N, truth_N, weight_N)
    return known


def _warnings(bundle: Bundle, dataset: Dataset, scans: Sequence[Scan]) -> Iterator[str]:
    meta = bundle.meta
    if not dataset.meta["patients_known"] or dataset.meta.get("pseudonyms") != meta["pseudonyms"]:
        yield (
            "patients are compared by pixels alone, as the dataset was prepared with another key "
            "than the training scans or does not know its patients: one may have been trained on, "
            "by another scan"
        )
    likeness = meta["likeness"]
    odd = [o for s in scans if (o := oddities(dataset.counts(s), s.high, likeness))]
    if odd:
        yield f"{len(odd)} of {len(scans)} scans are unlike the training scans (first: {odd[0][0]})"
