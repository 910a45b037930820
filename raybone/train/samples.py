"""Which samples a model trains on and is scored on."""

from __future__ import annotations

from dataclasses import dataclass

from raybone.data.cache import Intensities
from raybone.data.dataset import Dataset
from raybone.data.loader import Change, ScanSamples
from raybone.data.tiles_and_targets import Otsu
from raybone.models._model import Model, TrainingConfig
from raybone.tasks import task_named
from raybone.tasks.base import Masks, Task
from raybone.types import Scan


@dataclass(frozen=True)
class FoldJob:
    """A configuration of a model to be trained on the patients outside a fold.

    epochs: length of the full run. seed: of weights and augmentation.
    """

    dataset: Dataset
    model: Model
    config: TrainingConfig
    fold: int
    epochs: int
    seed: int = 0

    @property
    def task(self) -> Task:
        """What the model predicts."""
        return task_named(self.model.task)


def training_samples(job: FoldJob, seed: int, mined: Masks | None = None) -> ScanSamples:
    """What a fold is trained on, with augmentation.

    Args:
        seed: of augmentation and of the order of samples.
        mined: non-metastasis as an earlier study's model of this fold found it, where the
            configuration asks for that.
    """
    config = job.config
    scans = job.task.usable(job.dataset.training(job.fold, config.negatives))
    change = Change(config, seed, job.epochs - config.close_mosaic)
    images = Intensities(job.dataset, config.imgsz)
    return job.task.samples(images, scans, config, change, _masks(job.dataset, config, mined))


def unlabelled_samples(job: FoldJob) -> ScanSamples | None:
    """Scans of a fold's training patients of which nothing is known, with augmentation; None where
    there are none. Those in no fold are among them, whatever ``negatives`` says.
    """
    config = job.config
    scans = job.task.unlabelled(job.dataset.training(job.fold), config)
    if not scans:
        return None
    change = Change(config, job.seed, job.epochs - config.close_mosaic)
    return job.task.samples(Intensities(job.dataset, config.imgsz), scans, config, change)


def scored_samples(
    dataset: Dataset,
    scans: list[Scan],
    model: Model,
    config: TrainingConfig,
    mined: Masks | None = None,
) -> ScanSamples:
    """What a model is scored on: these scans as they are."""
    task, images = task_named(model.task), Intensities(dataset, config.imgsz)
    masks = _masks(dataset, config, mined)
    return task.samples(images, task.usable(scans), config, masks=masks)


def _masks(dataset: Dataset, config: TrainingConfig, mined: Masks | None) -> Masks | None:
    return Otsu(dataset) if config.otsu else mined
