"""Trained folds on other scans: scored, or asked for masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed as dist

from raybone.data.dataset import Dataset
from raybone.data.loader import ScanSamples, validation_loader
from raybone.data.tiles_and_targets import Mined
from raybone.models import load
from raybone.models._model import Model, TrainingConfig
from raybone.storage import Folder
from raybone.train.checkpoint import LAST, earlier_fold, fill, read_checkpoint
from raybone.train.evaluate import evaluate
from raybone.train.samples import scored_samples
from raybone.types import Scan


def evaluate_weights(
    dataset: Dataset,
    model: Model,
    config: TrainingConfig,
    folder: Folder,
    scans: list[Scan],
    gpu: bool = False,
) -> dict[str, float] | None:
    """Metrics of a fold's ``last.pt`` on other scans, or None when it has none.

    Args:
        folder: where the fold's ``last.pt`` lives.
    """
    state = read_checkpoint(folder)
    if state is None:
        return None
    mined = Mined({s.scan_id: [] for s in scans})  # for the loss, which is not used then
    samples = scored_samples(dataset, scans, model, config, mined)
    return applied(model, config, state, samples, device_of(gpu))[0]


def mined_masks(
    dataset: Dataset, place: str, fold: int, scans: list[Scan], device: torch.device
) -> Mined:
    """What the model of this fold of an earlier configuration finds on scans, for negative mining.

    That model has seen the training patients of this fold alone, so that its findings may be
    trained on.

    Args:
        place: folder of the configuration.
    """
    state = earlier_fold(place, fold)
    model = load(state["model"])
    config = model.Config.model_validate(state["config"])
    mined = Mined({s.scan_id: [] for s in scans})  # that model may have been mined itself
    samples = scored_samples(dataset, scans, model, config, mined)
    findings = applied(model, config, state, samples, device)[1]
    return Mined({f["scan_id"]: f["masks"] for f in findings})


def applied(
    model: Model,
    config: TrainingConfig,
    state: dict[str, Any],
    samples: ScanSamples,
    device: torch.device,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics and findings of a fold's averaged weights on samples, over all ranks; in batches as
    small as those that it was trained with.
    """
    module = model.build(config)
    fill(module, state["average"], LAST)
    rank, world = ranks()
    count = max(4 * config.batch // int(state.get("parts", 1)), 1)
    loader = validation_loader(samples, count, rank, world, config.loader_workers)
    return evaluate(module.to(device).requires_grad_(False), samples, loader, model, device)


def device_of(gpu: bool) -> torch.device:
    """The CPU, or this process's current GPU."""
    return torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")


def ranks() -> tuple[int, int]:
    """The rank of this process and the number of them."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
