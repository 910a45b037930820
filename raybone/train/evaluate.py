"""From a network and scans to findings in scan pixels, and their metrics."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import distributed as dist
from torch import nn

from raybone.data.loader import Batch, Loader, ScanSamples
from raybone.models._model import Model
from raybone.tasks import task_named
from raybone.tasks.base import Outcome, Task
from raybone.types import Finding, Prediction


def evaluate(
    module: nn.Module, samples: ScanSamples, loader: Loader, model: Model, device: torch.device
) -> tuple[dict[str, float], list[Finding]]:
    """Metrics and findings of this module on the samples' scans, over all ranks.

    Every rank evaluates its own share and all ranks get the same metrics; findings are complete on
    rank 0.
    Returns:
        Metrics with ``val_loss`` (the training loss, mean over images, batch norm in eval mode;
        detectors divide by the positives of a batch, so that it depends on which scans share one),
        and findings in the order of the scans, ready for JSON.
    """
    task, findings = task_named(model.task), list[Finding]()
    loss = torch.zeros(2, dtype=torch.float64)
    for batch in loader:
        batch = batch.to(device)
        with torch.no_grad():
            images = len(batch.index_N)
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(0)  # R-CNNs draw the boxes that their loss is of
                total = _loss(module, batch) * (images if model.reduction == "mean" else 1)
            loss += torch.tensor([total, images], dtype=torch.float64)
            module.eval()
            predictions = cast(list[Prediction], module(batch.image_NCHW))
        for index, prediction in zip(batch.index_N.tolist(), predictions):
            findings += task.findings(samples, index, prediction)
    if not dist.is_initialized():
        return _metrics(findings, samples, task, loss), findings
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (findings, loss))
    everything = [f for part, _ in gathered for f in part]
    first = dist.get_rank() == 0
    metrics = [
        _metrics(everything, samples, task, sum(part for _, part in gathered)) if first else {}
    ]
    dist.broadcast_object_list(metrics, 0)
    return metrics[0], everything


def _loss(module: nn.Module, batch: Batch) -> float:
    """The training loss without training: statistics of batch norm stay as they are."""
    module.train()
    for part in module.modules():
        if isinstance(
            part,
            nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd | nn.MultiheadAttention,
        ):
            part.eval()
    return float(sum(module(batch).values()))


def _metrics(
    findings: list[Finding], samples: ScanSamples, task: Task, loss: Any
) -> dict[str, float]:
    findings.sort(key=lambda f: f["index"])
    total, count = (float(v) for v in loss)
    return {
        **task.score(Outcome(findings, samples.scans, samples.look.categories)),
        "val_loss": total / max(count, 1.0),
    }
