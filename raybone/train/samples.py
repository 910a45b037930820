"""Which samples a model trains on and is scored on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

from raybone.data.dataset import Dataset
from raybone.data.loader import ScanSamples
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
    scans, names = (
        usable(dataset.training(fold, config.negatives), model.task),
        list(config.categories),
    )
    close_at = epochs - config.close_mosaic
    if isinstance(config, ClassifierConfig):
        return TargetSamples(dataset, scans, names, config.imgsz, config.target, config, seed)
    third = _third(dataset, config, mined)
    if isinstance(config, SegmenterConfig) and config.tile:
        return TileSamples(
            dataset,
            scans,
            names,
            config.imgsz,
            config.tile,
            config.tiles == "lesions",
            config,
            seed,
            close_at,
            non_metastasis=third,
        )
    return ScanSamples(
        dataset,
        scans,
        names,
        config.imgsz,
        model.task == "segmentation",
        config,
        seed,
        close_at,
        config.montage,
        third,
    )


def scored_samples(
    dataset: Dataset,
    scans: list[Scan],
    model: Model,
    config: TrainingConfig,
    mined: Masks | None = None,
    unannotated: bool = False,
) -> ScanSamples:
    """What a model is scored on: these scans as they are.

    Args:
        unannotated: take all of them, to predict on rather than to score.
    """
    scans, names = scans if unannotated else usable(scans, model.task), list(config.categories)
    if isinstance(config, ClassifierConfig):
        return TargetSamples(dataset, scans, names, config.imgsz, config.target)
    return ScanSamples(
        dataset,
        scans,
        names,
        config.imgsz,
        model.task == "segmentation",
        montage=config.montage,
        non_metastasis=_third(dataset, config, mined),
    )


def wants_mining(config: TrainingConfig) -> str:
    """The configuration folder of the earlier study whose findings are non-metastasis; empty for
    none.
    """
    nm = config.nm if isinstance(config, SegmenterConfig) else ""
    return "" if nm == OTSU else nm


def _third(dataset: Dataset, config: TrainingConfig, mined: Masks | None) -> Masks | None:
    nm = cast(str, getattr(config, "nm", ""))
    return Otsu(dataset) if nm == OTSU else mined if nm else None
