"""Classes: of each lesion, or of each scan by a label, one probability."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np

from raybone.data.annotations import is_focus
from raybone.data.dataset import Dataset
from raybone.metrics.lesions import classification_metrics, weighted_classification
from raybone.tasks.base import Masks, Outcome, Task
from raybone.types import Array, Finding, Prediction, Scan

if TYPE_CHECKING:
    from raybone.data.loader import Batch, Change, ScanSamples
    from raybone.data.tiles_and_targets import TargetSamples
    from raybone.models._model import TrainingConfig
    from raybone.models.classifiers._classifier import ClassifierConfig


class Classification(Task):
    """Whether a lesion, or a scan, is positive."""

    name = "classification"
    ranked = ("AUC", "accuracy", "sensitivity", "specificity", "PPV", "NPV", "val_loss")
    alone = "accuracy"
    judged = True

    def usable(self, scans: Sequence[Scan]) -> list[Scan]:
        """All of them: by their label, or for no lesion at all."""
        return list(scans)

    def unlabelled(self, scans: Sequence[Scan], config: TrainingConfig) -> list[Scan]:
        """Scans without the label, as if it were 0; no lesions, which are known once they are
        outlined.
        """
        target = _target(config)
        return _as_unknown([s for s in scans if target and not targets(s, [], target)], target)

    def samples(
        self,
        images: Masks,
        scans: list[Scan],
        config: TrainingConfig,
        change: Change | None = None,
        masks: Masks | None = None,
    ) -> ScanSamples:
        """One sample a lesion, or one a scan."""
        from raybone.data.loader import Look
        from raybone.data.tiles_and_targets import TargetSamples

        names, target = list(config.categories), _target(config)
        items = [(row, *item) for row, s in enumerate(scans) for item in targets(s, names, target)]
        return TargetSamples(images, scans, Look(names, config.imgsz), items, change)

    def predicted(self, images: Masks, scans: list[Scan], config: TrainingConfig) -> ScanSamples:
        """All scans, whose label is not known yet, or all lesions."""
        target = _target(config)
        unknown = _as_unknown(scans, target) if target else scans
        return self.samples(images, unknown, config)

    def count(self, scans: Sequence[Scan], config: TrainingConfig) -> int:
        """Lesions, or scans that have the label."""
        return sum(len(targets(s, list(config.categories), _target(config))) for s in scans)

    def names(self, config: TrainingConfig) -> list[str]:
        """The label, where scans are classified; of lesions what a positive one is."""
        return [_target(config) or " or ".join(config.categories)]

    def words(self, batch: Batch, config: TrainingConfig) -> list[str]:
        """What each image is."""
        of = _target(config) or " or ".join(config.categories)
        return [f"{of}: {'yes' if y.sum() else 'no'}" for y in batch.labels]

    def lacking(self, dataset: Dataset, model: str, config: TrainingConfig) -> list[str]:
        """Nothing where scans are classified: those without the label are left out."""
        return [] if _target(config) else super().lacking(dataset, model, config)

    def problems(self, dataset: Dataset, model: str, config: TrainingConfig) -> list[str]:
        """Every fold needs positives and negatives to be scored by."""
        target, names = _target(config), list(config.categories)
        lines = [] if target else super().problems(dataset, model, config)
        if lines and set(config.categories) - set(dataset.categories):
            return lines
        what = f"label {target} 0 and 1" if target else f"lesions of {', '.join(names)} and others"
        folds = {f"fold {k}": dataset.validation(k) for k in range(dataset.folds)}
        if dataset.test:
            folds["the test group"] = dataset.test
        problems = []
        for which, scans in folds.items():
            count = Counter(positive for s in scans for _, positive in targets(s, names, target))
            if not (count[True] and count[False]):
                problems.append(
                    f"dataset {dataset.path}: every fold and the test group need {what} to be "
                    f"scored by, {which} has {count[True]} positive and {count[False]} negative; "
                    "prepare it with another split, or classify something else"
                )
        return problems

    def parts(
        self, samples: ScanSamples, index: int, prediction: Prediction
    ) -> Iterator[tuple[int, Prediction]]:
        """The sample itself, as a scan has several."""
        yield index, prediction

    def placed(
        self, samples: ScanSamples, index: int, prediction: Prediction
    ) -> tuple[int, Prediction]:
        """The box of the lesion, or none where it is the scan."""
        row, lesion, _ = cast("TargetSamples", samples).items[index]
        if lesion < 0:
            return row, prediction
        box_N4 = np.array([samples.scans[row].lesions[lesion].box_xyxy], np.float32)
        return row, replace(prediction, boxes_N4=box_N4, labels_N=np.zeros(1, np.int64))

    def findings(self, samples: ScanSamples, index: int, prediction: Prediction) -> list[Finding]:
        """The probability, with the truth and the lesion (-1 for the scan) that it is of."""
        samples = cast("TargetSamples", samples)
        row, lesion, positive = samples.items[index]
        return [
            {
                "index": index,
                "scan_id": samples.scans[row].scan_id,
                "lesion": lesion,
                "positive": positive,
                "score": round(float(prediction.scores_N[0]), 7),  # ties would cost AUC
            }
        ]

    def score(self, outcome: Outcome) -> dict[str, float]:
        """``classification_metrics``; where scans are classified, the AUC of patients as well: of
        the highest score of a patient's scans against whether one of them is positive.
        """
        own = classification_metrics(*_judged(outcome.findings), outcome.threshold)
        whole = [f for f in outcome.findings if f["lesion"] < 0]
        if not whole:
            return own
        auc = classification_metrics(*_patients(whole, outcome.scans))["AUC"]
        return {**own, "patient_AUC": auc}

    def resampled(self, outcome: Outcome, weights_BN: Array) -> dict[str, Array]:
        """All metrics; samples of a scan are drawn together."""
        row_of = {s.scan_id: n for n, s in enumerate(outcome.scans)}
        own = [f for f in outcome.findings if f["scan_id"] in row_of]
        weights_BD = weights_BN[:, [row_of[f["scan_id"]] for f in own]]
        return weighted_classification(*_judged(own), weights_BD, outcome.threshold)

    def scored(self, outcome: Outcome) -> tuple[Array, Array, int]:
        """Probabilities, the truth, and the number of positives."""
        score_N, truth_N = _judged(outcome.findings)
        return score_N, truth_N, int(truth_N.sum())

    def patient_scores(self, outcome: Outcome) -> tuple[Array, Array]:
        """Of what was classified."""
        return _patients(outcome.findings, outcome.scans)

    def false_positives(self, outcome: Outcome) -> float:
        """NaN, as nothing is searched for."""
        return math.nan

    def seen(self, findings: Sequence[Finding], scans: Sequence[Scan]) -> list[Scan]:
        """Scans with a sample."""
        known = {f["scan_id"] for f in findings}
        return [s for s in scans if s.scan_id in known]

    def negative(self, outcome: Outcome) -> set[str]:
        """Scans with a negative sample."""
        return {f["scan_id"] for f in outcome.findings if not f["positive"]}

    def positive(self, outcome: Outcome) -> set[str]:
        """Scans with a positive sample."""
        return {f["scan_id"] for f in outcome.findings if f["positive"]}


def targets(scan: Scan, categories: list[str], target: str) -> list[tuple[int, bool]]:
    """(index of the lesion or -1, whether it is positive) of all that is to be classified in a
    scan.
    """
    if not target:
        return [(n, le.category in categories) for n, le in enumerate(scan.lesions) if is_focus(le)]
    value = dict(scan.labels).get(target)
    return [(-1, value == "1")] if value in ("0", "1") else []


def _as_unknown(scans: Sequence[Scan], target: str) -> list[Scan]:
    """The scans with a label that says nothing, so that each is a sample."""
    return [replace(s, labels=((target, "0"),)) for s in scans]


def _target(config: TrainingConfig) -> str:
    return cast("ClassifierConfig", config).target


def _patients(findings: Sequence[Finding], scans: Sequence[Scan]) -> tuple[Array, Array]:
    """The highest score of each patient, and whether something of theirs is positive."""
    patient_of = {s.scan_id: s.patient_id for s in scans}
    by_patient = defaultdict[str, list[Finding]](list)
    for finding in findings:
        by_patient[patient_of[finding["scan_id"]]].append(finding)
    score_P = np.array([max(f["score"] for f in own) for own in by_patient.values()])
    return score_P, np.array([any(f["positive"] for f in own) for own in by_patient.values()], bool)


def _judged(findings: Sequence[Finding]) -> tuple[Array, Array]:
    """Scores and truth of what was classified."""
    score_N = np.array([f["score"] for f in findings], float)
    return score_N, np.array([f["positive"] for f in findings], bool)


TASK = Classification()
