"""What a study need not say: its name, epochs, metric and space, filled in before it is checked."""

from __future__ import annotations

import re
from typing import Any

from raybone.models import load, task_of
from raybone.study.spec import from_outside
from raybone.tasks import task_named

EPOCHS = 100  # Ultralytics' default


def complete(content: dict[str, Any], stem: str = "") -> dict[str, Any]:
    """A study's mapping with what it leaves out: a search space comes from the model, without what
    is fixed.

    Args:
        stem: of the study's file, which names it; without one the model does.
    Raises:
        WrongInput: something is looked up of a model that is not in the menu.
    """
    model, fixed = content.get("model"), content.get("fixed") or {}
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("._-")[:60]
    if isinstance(model, str) and from_outside(model):
        load(model)  # makes the metrics of its task known
    found: dict[str, Any] = {"name": name or model, "epochs": EPOCHS}
    if not isinstance(model, str):
        found["metric"] = "val_loss"  # any will do: the missing model is what must be told
    elif "metric" not in content:
        found["metric"] = task_named(task_of(model)).ranked[0]
    if isinstance(model, str) and isinstance(fixed, dict) and "space" not in content:
        found["space"] = {
            key: param for key, param in load(model).SPACE.items() if key not in fixed
        }
    return {**found, **content}
