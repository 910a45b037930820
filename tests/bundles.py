"""Bundles of networks that have learned nothing, in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from raybone.deploy.bundle import Bundle, Network, write_bundle
from raybone.models import load
from raybone.tasks import task_named

SIZE = 512


def bundle_of(
    place: Path,
    model: str,
    categories: list[str],
    members: int = 1,
    steps: tuple[str, ...] = (),
    **config: Any,
) -> Bundle:
    """A bundle of networks that have learned nothing."""
    own = load(model)
    fixed = own.Config.model_validate(
        {"imgsz": SIZE, "batch": 1, "nbs": 1, "categories": categories, **config}
    )
    meta = {
        "name": place.name,
        "kind": "fold models",
        "model": model,
        "task": own.task,
        "config": fixed.model_dump(mode="json"),
        "categories": task_named(own.task).names(fixed),
        "preprocessing": {"steps": list(steps), "window": None},
        "calibration": {},
        "likeness": {"mean": [[0.0]], "usual": {}},
        "pseudonyms": "",
        "patients": [],
        "pixels": [],
        "score": {"metric": task_named(own.task).ranked[0]},
    }
    networks = {}
    for k in range(members):
        torch.manual_seed(k)
        networks[f"fold{k}"] = Network(own.build(fixed).state_dict())
    return write_bundle(place, meta, networks, "card")
