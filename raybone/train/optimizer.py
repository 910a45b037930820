"""The optimiser of a fold, and how its learning rate falls."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from raybone.models._model import TrainingConfig


def optimizer_of(net: nn.Module, config: TrainingConfig, accumulate: int) -> torch.optim.Optimizer:
    """Three groups: biases and norms without weight decay, weights with it (scaled to the nominal
    batch).
    """
    norms = tuple(v for k, v in vars(nn).items() if "Norm" in k and isinstance(v, type))
    groups: dict[str, list[Tensor]] = {"bias": [], "weight": [], "norm": []}
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                kind = (
                    "bias" if "bias" in name else "norm" if isinstance(module, norms) else "weight"
                )
                groups[kind].append(parameter)
    decay = config.weight_decay * config.batch * accumulate / config.nbs
    params = [
        {"params": p, "kind": k, "weight_decay": decay if k == "weight" else 0.0}
        for k, p in groups.items()
        if p
    ]
    if config.optimizer == "SGD":
        return torch.optim.SGD(
            params, lr=config.lr0, momentum=config.momentum, nesterov=config.momentum > 0
        )
    return torch.optim.AdamW(params, lr=config.lr0, betas=(config.momentum, 0.999))


def decay(config: TrainingConfig, share: float) -> float:
    """Learning rate as a share of lr0, after this share of the epochs."""
    if config.schedule == "multistep":
        return float(config.lr_drop ** sum(share >= m for m in config.milestones))
    shape = (
        (1 + math.cos(math.pi * share)) / 2 if config.schedule == "cosine" else max(1 - share, 0)
    )
    return shape * (1 - config.lrf) + config.lrf
