"""Which samples a model trains on and is scored on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import cast

from raybone.data.cache import Intensities, intensities_of
from raybone.data.dataset import Dataset
from raybone.data.loader import Sampling, ScanSamples
from raybone.data.tiles_and_targets import Otsu, TargetSamples, TileSamples
from raybone.models._classifier import ClassifierConfig
from raybone.models._model import Model, TrainingConfig
from raybone.models._segmenter import SegmenterConfig
from raybone.train.checkpoint import OTSU
from raybone.types import Array, Scan, Task

Masks = Callable[[Scan], Array]


def usable(scans: Iterable[Scan], task: Task) -> list[Scan]:
    """The scans that a model of this task may learn from and be scored on.

    A scan that nobody annotated is no scan without lesions. Classifiers take it: by its label, or
    for no lesion at all.
    """
    return [s for s in scans if s.annotated or task == "classification"]


def training_samples(
    dataset: Dataset,
    model: Model,
    config: TrainingConfig,
    fold: int,
    seed: int,
    epochs: int,
    mined: Masks | None = None,
) -> ScanSamples:
    """What a fold is trained on, with augmentation.

    Args:
        epochs: length of the full run.
        mined: non-metastasis as an earlier study's model of this fold found it, where the
            configuration asks for that.
    """
    scans = usable(dataset.training(fold, config.negatives), model.task)
    sampling = replace(
        _sampling(dataset, model, config, mined),
        hyper=config,
        seed=seed,
        close_at=epochs - config.close_mosaic,
    )
    images = Intensities(dataset, config.imgsz)
    if isinstance(config, ClassifierConfig):
        # Each sample has its own class: there is no mosaic to end.
        return TargetSamples(images, scans, replace(sampling, close_at=None), config.target)
    if isinstance(config, SegmenterConfig) and config.tile:
        return TileSamples(images, scans, sampling, config.tile, config.tiles == "lesions")
    return ScanSamples(images, scans, sampling)


def scored_samples(
    dataset: Dataset,
    scans: list[Scan],
    model: Model,
    config: TrainingConfig,
    mined: Masks | None = None,
) -> ScanSamples:
    """What a model is scored on: these scans as they are."""
    sampling = _sampling(dataset, model, config, mined)
    return _plain(Intensities(dataset, config.imgsz), usable(scans, model.task), sampling, config)


def predicted_samples(
    scans: list[Scan], counts_of: Callable[[Scan], Array], config: TrainingConfig
) -> ScanSamples:
    """What a model predicts on: these scans, whatever is known of them.

    Args:
        counts_of: gives the counts of a scan, uint16 of shape (H, W); asked for a batch at a time.
    """

    def images(scan: Scan) -> Array:
        return intensities_of(counts_of(scan), scan.high, config.imgsz)

    sampling = Sampling(list(config.categories), config.imgsz, montage=config.montage)
    return _plain(images, scans, sampling, config, unlabelled=True)


def _plain(
    images: Masks,
    scans: list[Scan],
    sampling: Sampling,
    config: TrainingConfig,
    unlabelled: bool = False,
) -> ScanSamples:
    """Scans as they are, or what there is to classify in them."""
    if isinstance(config, ClassifierConfig):
        return TargetSamples(images, scans, sampling, config.target, unlabelled)
    return ScanSamples(images, scans, sampling)


def wants_mining(config: TrainingConfig) -> str:
    """The configuration folder of the earlier study whose findings are non-metastasis; empty for
    none.
    """
    nm = config.nm if isinstance(config, SegmenterConfig) else ""
    return "" if nm == OTSU else nm


def _sampling(
    dataset: Dataset, model: Model, config: TrainingConfig, mined: Masks | None
) -> Sampling:
    nm = cast(str, getattr(config, "nm", ""))
    return Sampling(
        list(config.categories),
        config.imgsz,
        model.task == "segmentation",
        config.montage,
        Otsu(dataset) if nm == OTSU else mined if nm else None,
    )
