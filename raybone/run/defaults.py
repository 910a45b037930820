"""What a study need not say: its name, epochs, metric and space, filled in before it is checked."""

from __future__ import annotations

import re
from typing import Any

from raybone.models import load, task_of

# What a study may be ranked by: the metrics that the bootstrap over patients knows, and the loss;
# the usual one first.
METRICS = {
    "detection": ("AP", "AP50", "AP75", "val_loss"),
    "segmentation": ("dice", "iou", "precision", "sensitivity", "val_loss"),
    "classification": ("AUC", "accuracy", "sensitivity", "specificity", "PPV", "NPV", "val_loss"),
}
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
    found: dict[str, Any] = {"name": name or model, "epochs": EPOCHS}
    if not isinstance(model, str):
        found["metric"] = METRICS["detection"][
            0
        ]  # any will do: the missing model is what must be told
    elif "metric" not in content:
        found["metric"] = METRICS[task_of(model)][0]
    if isinstance(model, str) and isinstance(fixed, dict) and "space" not in content:
        found["space"] = {
            key: param for key, param in load(model).SPACE.items() if key not in fixed
        }
    return {**found, **content}
