"""One model of everyone: training without a validation fold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from raybone.data.dataset import dataset_of
from raybone.data.folds import TEST, TRAINING
from raybone.storage import Folder
from raybone.study.spec import ResolvedStudy
from raybone.tasks import configured
from raybone.train.fit import fit
from raybone.train.samples import FoldJob
from raybone.types import Epoch


def epochs_of_everyone(
    study: ResolvedStudy, folder: Folder, params: dict[str, Any]
) -> Iterator[Epoch]:
    """Train on all patients but the test group; the epochs have no score, as no patient is
    left to give one.

    What a configuration builds on of an earlier study (init_from, nm) is that of its first fold.
    """
    model, config = configured(study, params)
    dataset = replace(dataset_of(study), test_fold=False)
    fold_of = {p: f if f in (TEST, TRAINING) else 1 for p, f in dataset.fold_of.items()}
    job = FoldJob(
        replace(dataset, fold_of=fold_of), model, config, 0, study.epochs, study.search.seed
    )
    yield from fit(job, folder, study.metric, study.epochs, gpu=study.resources.gpus > 0)
