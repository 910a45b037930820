"""One configuration of a study: its folds trained, what they give together, and the test group."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import numpy as np

from raybone.data.dataset import Dataset
from raybone.hpo.brain import Work
from raybone.metrics.intervals import freedom, patient_draws
from raybone.results.study_folder import ConfigurationFolder, StudyFolder
from raybone.study.metric import FALSE_POSITIVES
from raybone.study.spec import ResolvedStudy
from raybone.tasks import configured, task_named
from raybone.tasks.base import Outcome, Task
from raybone.tasks.operating import operated_in_short
from raybone.train.apply import evaluate_weights
from raybone.train.fit import fit
from raybone.train.samples import FoldJob
from raybone.types import Epoch, Pooled, Segment


def train(folder: StudyFolder, dataset: Dataset, work: Work, segment: Segment) -> Iterator[Epoch]:
    """The epochs of one segment of a work, through ``fit``."""
    study, fold = folder.study, segment.fold
    model, config = configured(study, work.params)
    return fit(
        FoldJob(dataset, model, config, fold, study.epochs, study.search.seed),
        folder.configuration(work.config_id).fold(fold),
        study.metric,
        segment.stop,
        segment.start,
        study.resources.gpus > 0,
    )


def pool(folder: StudyFolder, dataset: Dataset, work: Work) -> Pooled | None:
    """What the findings of all folds together give, or None while a fold's final predictions are
    missing.
    """
    study, folds = folder.study, folder.configuration(work.config_id).predictions(dataset)
    if folds is None:
        return None
    findings = list(chain.from_iterable(folds))
    scans = list(chain.from_iterable(map(dataset.validation, range(dataset.folds))))
    model, config = configured(study, work.params)
    outcome, task = Outcome(findings, scans, [*config.categories]), task_named(model.task)
    metrics = {**task.score(outcome), FALSE_POSITIVES: task.false_positives(outcome)}
    if not task.rescored:
        parts = zip(folds, map(dataset.validation, range(dataset.folds)))
        each = [replace(outcome, findings=own, scans=held_out) for own, held_out in parts]
        metrics |= operated_in_short(task, each)
    return Pooled(metrics, *_bootstrap(study, dataset, task, outcome))


def examine(tested: ConfigurationFolder, dataset: Dataset) -> dict[str, float]:
    """Mean score of a configuration's fold models on the test group; empty when the weights of one
    are gone.
    """
    study = tested.folder.study
    (model, config), gpu = configured(study, tested.params), study.resources.gpus > 0
    scores = [
        evaluate_weights(dataset, model, config, tested.fold(fold), dataset.test, gpu)
        for fold in range(dataset.folds)
    ]
    known = [s for s in scores if s is not None]
    if len(known) < dataset.folds:
        return {}
    return {m: sum(s[m] for s in known) / len(known) for m in known[0]}


def _bootstrap(
    study: ResolvedStudy, dataset: Dataset, task: Task, outcome: Outcome
) -> tuple[tuple[float, ...], float]:
    """Replicates of the mean over folds, and their degrees of freedom; patients are drawn alike in
    every configuration.

    Patients who may be one person, as slices that look alike, are drawn together. Empty for
    val_loss, which is not known by patient, and where a fold has one person, or, of samples that
    are judged, one with a negative.
    """
    person: dict[str, tuple[str, int]] = {
        p: (dataset.group_of[p], f) for p, f in dataset.fold_of.items()
    }
    folds = map(dataset.validation, range(dataset.folds))
    scans_of = [task.seen(outcome.findings, scans) for scans in folds]
    scans = list(chain.from_iterable(scans_of))
    persons = list(dict.fromkeys(person[s.patient_id] for s in scans))
    fold_P = np.array([fold for _, fold in persons])
    patients_K = np.bincount(fold_P, minlength=dataset.folds)
    negative = task.negative(outcome)
    well = {person[s.patient_id] for s in scans if s.scan_id in negative}
    well_K = np.bincount([fold for _, fold in well], minlength=dataset.folds)
    # Of one person of a kind, who is always drawn, there is no spread.
    if study.metric == "val_loss" or min(patients_K.min(), well_K.min()) < 2:
        return (), math.nan
    positive = task.positive(replace(outcome, scans=scans))
    sick = {person[s.patient_id] for s in scans if s.scan_id in positive}
    seeds = [int(dataset.hash, 16), study.search.seed]
    draws_BP = patient_draws(fold_P, np.array([p in sick for p in persons]), seeds)
    column = {p: number for number, p in enumerate(persons)}
    scores = []
    for held_out in scans_of:
        draws_BS = draws_BP[:, [column[person[s.patient_id]] for s in held_out]]
        of_metric = task.resampled(replace(outcome, scans=held_out), draws_BS)
        scores.append(of_metric[study.metric])
    scores_KB = np.array(scores)
    return tuple(scores_KB.mean(0).tolist()), freedom(scores_KB, patients_K)
