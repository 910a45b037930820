"""The contract of a task: what differs between boxes, masks, classes and what others may predict.

A task works on plain arrays and values, and imports torch only where it makes samples. Findings are
the JSON values of predictions.json, one a scan or one a sample, each with its ``scan_id``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from raybone.data.annotations import NOT_LESIONS, foci, is_focus
from raybone.data.augment import LEAST_SIDE, lost_at
from raybone.data.dataset import Dataset
from raybone.data.folds import TEST
from raybone.metrics.lesions import THRESHOLD, patient_metrics
from raybone.study.metric import Metric
from raybone.types import Array, Finding, Lesion, Prediction, Scan

if TYPE_CHECKING:
    from raybone.data.loader import Batch, Change, ScanSamples
    from raybone.models._model import TrainingConfig

Masks = Callable[[Scan], Array]
Pair = tuple[Finding, Scan]


@dataclass(frozen=True)
class Outcome:
    """Findings, in any order, on scans, the categories that are looked for, and the score from
    which on a box or sample counts as found.
    """

    findings: Sequence[Finding]
    scans: Sequence[Scan]
    categories: list[str]
    threshold: float = THRESHOLD

    @property
    def pairs(self) -> list[Pair]:
        """Each scan that counts, with what was found on it."""
        by_id = {f["scan_id"]: f for f in self.findings}
        return [(by_id[s.scan_id], s) for s in self.scans if s.annotated]

    @property
    def labels(self) -> list[int]:
        """Labels of the categories that are lesions."""
        names = enumerate(self.categories)
        return [label for label, name in names if name not in NOT_LESIONS]


class Task:
    """A kind of prediction. What a method says here holds for a task that does not say otherwise.

    name: as a Model names it. ranked: the metrics that a study may be ranked by, the usual one
    first; ``resampled`` gives all of them but val_loss. metrics: those that raybone does not know.
    alone: the metric of one scan by itself. masks: whether its findings are masks, and its samples
    have some. rescored: whether its findings hold no scores, so that calibration runs the networks
    once more. judged: whether a finding is of one sample, with a ``score`` and whether that is
    ``positive`` in truth. free_response: whether what is rightly not found cannot be counted.
    counted: what is scored, in words.
    """

    name: ClassVar[str]
    ranked: ClassVar[tuple[str, ...]]
    alone: ClassVar[str]
    metrics: ClassVar[Mapping[str, Metric]] = {}
    masks: ClassVar[bool] = False
    rescored: ClassVar[bool] = False
    judged: ClassVar[bool] = False
    free_response: ClassVar[bool] = False
    counted: ClassVar[str] = "samples"

    # Samples

    def usable(self, scans: Sequence[Scan]) -> list[Scan]:
        """The scans that a model may learn from and be scored on: those that are annotated."""
        return [s for s in scans if s.annotated]

    def unlabelled(self, scans: Sequence[Scan], config: TrainingConfig) -> list[Scan]:
        """The scans that a model may learn from only by what it says of them itself."""
        return [s for s in scans if not s.annotated]

    def samples(
        self,
        images: Masks,
        scans: list[Scan],
        config: TrainingConfig,
        change: Change | None = None,
        masks: Masks | None = None,
    ) -> ScanSamples:
        """Samples of these scans.

        Args:
            images: gives the image of a scan, (H, W), with a long side of ``config.imgsz``.
            change: augmentation, of samples to train on; None for scans as they are.
            masks: gives what is non-metastasis in a scan, boolean, of its size; for tasks with
                masks.
        """
        from raybone.data.loader import Look, ScanSamples

        look = Look(list(config.categories), config.imgsz, config.masked, config.montage)
        return ScanSamples(images, scans, look, change)

    def predicted(self, images: Masks, scans: list[Scan], config: TrainingConfig) -> ScanSamples:
        """Samples to predict on: of all these scans, without a truth."""
        return Task.samples(self, images, scans, config)

    def count(self, scans: Sequence[Scan], config: TrainingConfig) -> int:
        """How many samples scans are; tiles are counted as if their scans went in whole."""
        return len(scans)

    def names(self, config: TrainingConfig) -> list[str]:
        """What is predicted, by the number of its label."""
        return list(config.categories)

    def words(self, batch: Batch, config: TrainingConfig) -> list[str]:
        """Words below each image in the picture of a batch; none where the truth is drawn."""
        return []

    # Checks

    def problems(self, dataset: Dataset, model: str, config: TrainingConfig) -> list[str]:
        """Why the dataset cannot be learned or scored, one line each."""
        lines = self.lacking(dataset, model, config)
        if set(config.categories) - set(dataset.categories):
            return lines
        folds = {dataset.fold_of[s.patient_id] for s, _ in self._lesions(dataset, config)}
        return [
            *lines,
            *(
                f"dataset {dataset.path}: every fold and the test group need a lesion to be scored "
                f"by, {which} has none of {', '.join(config.categories)}; prepare it with {how}"
                for fold, which, how in _parts(dataset)
                if fold not in folds
            ),
        ]

    def lacking(self, dataset: Dataset, model: str, config: TrainingConfig) -> list[str]:
        """What its annotations lack of what the model finds, one line each."""
        if missing := [c for c in config.categories if c not in dataset.categories]:
            return [
                f"categories: the dataset has {', '.join(dataset.categories) or 'none'}, not "
                f"{', '.join(missing)}; set fixed: {{categories: [...]}}"
            ]
        lesions = self._lesions(dataset, config)
        boxes = sum(le.rle is None for _, le in lesions) if self.masks or config.masked else 0
        return [
            f"model: {model} needs lesion masks, but {boxes} of {len(lesions)} lesions have a box "
            "alone; use a detector of boxes or annotate masks"
        ][: bool(boxes)]

    def warnings(self, dataset: Dataset, config: TrainingConfig, sizes: Sequence[int]) -> list[str]:
        """What the leaderboard warns of at these image sizes."""
        return []

    def _small(
        self, dataset: Dataset, config: TrainingConfig, sizes: Sequence[int]
    ) -> Iterator[tuple[int, str]]:
        """Sizes at which lesions outside the test group are under ``LEAST_SIDE`` pixels a side, and
        how many are.
        """
        scans = [
            replace(s, lesions=tuple(le for le in foci(s) if le.category in config.categories))
            for s in self.usable(dataset.scans)
            if dataset.fold_of[s.patient_id] != TEST
        ]
        total = sum(len(s.lesions) for s in scans)
        for size in sizes:
            if lost := lost_at(scans, size):
                yield size, f"{lost} of {total} lesions are under {LEAST_SIDE} pixels a side"

    def _lesions(self, dataset: Dataset, config: TrainingConfig) -> list[tuple[Scan, Lesion]]:
        """Lesions to train on and be scored by, with their scans."""
        return [
            (s, le)
            for s in self.usable(dataset.scans)
            for le in s.lesions
            if le.category in config.categories and not le.crowd
        ]

    # Predictions

    def parts(
        self, samples: ScanSamples, index: int, prediction: Prediction
    ) -> Iterator[tuple[int, Prediction]]:
        """What a prediction on a sample says of each of its scans, in pixels of the scan.

        Yields:
            The scan's index in ``samples.scans``, and its prediction.
        """
        width = samples.view_of(index)[1]
        for part, row in enumerate(samples.groups[index]):
            own = self.crop(prediction, part, width, 1 + samples.look.montage)
            yield row, self.in_scan(samples.scans[row], own, samples.size)

    def crop(self, prediction: Prediction, part: int, width: int, views: int) -> Prediction:
        """The part of a prediction that is of the ``part``-th of its views, each that wide."""
        return prediction

    def in_scan(self, scan: Scan, prediction: Prediction, size: int) -> Prediction:
        """A prediction on a canvas of a long side of ``size``, in pixels of the scan."""
        return prediction

    def agreed(self, members: Sequence[Prediction]) -> tuple[Prediction, Array]:
        """The mean of the fold models' predictions on one image, and the standard deviation of each
        score.
        """
        scores_MN = np.stack([m.scores_N for m in members])
        return Prediction(scores_N=scores_MN.mean(0)), scores_MN.std(0)

    def shown(self, prediction: Prediction, sd: Array, least: float) -> tuple[Prediction, Array]:
        """What of a prediction ``predict`` shows.

        Args:
            least: the lowest score that a person asked for.
        """
        return prediction, sd

    def cut(self, prediction: Prediction, least: Sequence[float]) -> Prediction:
        """A prediction in which what is found has a probability of 1, where findings hold no
        scores.

        Args:
            least: of each category, from which on it is found.
        """
        return prediction

    def placed(
        self, samples: ScanSamples, index: int, prediction: Prediction
    ) -> tuple[int, Prediction]:
        """The index of a sample's scan, and the prediction as boxes or masks of that scan."""
        return index, prediction

    # Findings

    def findings(self, samples: ScanSamples, index: int, prediction: Prediction) -> list[Finding]:
        """What a prediction on a sample says, as JSON; ``index`` is the order of findings."""
        return [
            {"index": row, "scan_id": samples.scans[row].scan_id, **self.finding(part)}
            for row, part in self.parts(samples, index, prediction)
        ]

    def finding(self, prediction: Prediction) -> Finding:
        """A prediction in pixels of its scan as a JSON value, without the scan."""
        raise NotImplementedError

    # Metrics

    def score(self, outcome: Outcome) -> dict[str, float]:
        """Metrics of findings against the scans' lesions.

        There is one finding a scan, or one for each sample. Scans without annotation, for which
        there need be none, do not count unless they are classified; nor does what is found in
        crowds. Categories that are no lesions, such as bone, are scored as others are, but in no
        metric of lesions or patients.
        """
        raise NotImplementedError

    def resampled(
        self,
        outcome: Outcome,
        weights_BN: Array,
    ) -> dict[str, Array]:
        """``score`` of B samples of the scans at once, each of shape (B,): the metrics that a study
        may be ranked by.

        Args:
            weights_BN: how many copies of scan n sample b holds.
        """
        raise NotImplementedError

    def scored(self, outcome: Outcome) -> tuple[Array, Array, int]:
        """Scores of what was found, whether each is right, and how many there were to find: what
        curves and calibration are of. None where findings have no scores.
        """
        return np.zeros(0), np.zeros(0, bool), 0

    def levels(
        self, scan: Scan, prediction: Prediction, categories: list[str]
    ) -> Iterator[tuple[Array, Array]]:
        """Probabilities and truth (0 or 1, else unknown) of a scan's pixels, a category each; for
        tasks that are ``rescored``.
        """
        yield from ()

    def false_positives(self, outcome: Outcome) -> float:
        """Mean number of findings on a scan without lesions of the categories; NaN when every scan
        has one, none of the categories is a lesion, and where nothing can be counted.

        A finding is a box with a score of at least the outcome's threshold, or an 8-connected
        component of a mask that was cut there.
        """
        clean = [s for s in outcome.scans if s.annotated and sick(s, outcome.categories) is False]
        if not clean or not outcome.labels:
            return math.nan
        return float(np.mean(self.alarms(replace(outcome, scans=clean))))

    def patient_scores(self, outcome: Outcome) -> tuple[Array, Array]:
        """The highest score that a patient's scans have, and whether one of them is positive, by
        patient; empty where findings have no scores.
        """
        return np.zeros(0), np.zeros(0, bool)

    def errors(self, outcome: Outcome) -> tuple[int, int]:
        """How many findings are false, and how many of what there was to find were missed."""
        score_D, hit_D, positives = self.scored(outcome)
        called_D = score_D >= outcome.threshold
        return int((called_D & ~hit_D).sum()), positives - int((called_D & hit_D).sum())

    def alarms(self, outcome: Outcome) -> list[float]:
        """How many findings of lesions each scan has; NaN where nothing can be counted."""
        return [math.nan]

    def seen(self, findings: Sequence[Finding], scans: Sequence[Scan]) -> list[Scan]:
        """Those of scans that a score is of, given what was found."""
        return self.usable(scans)

    def negative(self, outcome: Outcome) -> set[str]:
        """Ids of the scans beside which positive ones are scored: all."""
        return {s.scan_id for s in outcome.scans}

    def positive(self, outcome: Outcome) -> set[str]:
        """Ids of the scans with something to find; the bootstrap draws their patients apart from
        others.
        """
        return {
            s.scan_id
            for s in outcome.scans
            if any(le.category in outcome.categories and not le.crowd for le in s.lesions)
        }


def sick(scan: Scan, categories: Sequence[str]) -> bool | None:
    """Whether a scan has lesions of the categories; None where it has crowds of them alone."""
    known = [
        is_focus(le)
        for le in scan.lesions
        if le.category in categories and le.category not in NOT_LESIONS
    ]
    return None if known and not any(known) else bool(known)


def patients_of(outcome: Outcome, counts: Sequence[float]) -> dict[str, float]:
    """Metrics of patients from the number of findings on each scan that counts.

    Patients with crowds alone are neither sick nor well, and are left out.
    """
    scans = [s for s in outcome.scans if s.annotated]
    states = [(s.patient_id, sick(s, outcome.categories)) for s in scans]
    ill = {patient for patient, state in states if state}
    doubtful = {patient for patient, state in states if state is None}
    called = {s.patient_id for s, count in zip(scans, counts) if count}
    patients = ill | {patient for patient, _ in states} - doubtful
    return patient_metrics(
        *(np.array([p in some for p in patients], bool) for some in (called, ill))
    )


def _parts(dataset: Dataset) -> list[tuple[int, str, str]]:
    """Each fold and the test group, by number and name, and how another is had."""
    folds = [(k, f"fold {k}", "fewer --folds") for k in range(dataset.folds)]
    test = (TEST, "the test group", "another --holdout or --split")
    return [*folds, test] if dataset.test else folds
