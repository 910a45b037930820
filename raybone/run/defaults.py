"""What a study need not say: its name, epochs, metric and space, filled in before it is checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from raybone.models import load, task_of
from raybone.study.spec import blocks_of, from_outside
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
    model, blocks = content.get("model"), blocks_of(content.get("models"))
    names = [model] if isinstance(model, str) else [*blocks] if isinstance(blocks, dict) else []
    if not all(isinstance(name, str) for name in names):
        names = []  # as is told when it is checked
    for name in filter(from_outside, names):
        load(name)  # makes the metrics of its task known
    own = re.sub(r"[^A-Za-z0-9._-]+", "-", stem or "-".join(names)).strip("._-")[:60]
    said: dict[str, Any] = {"name": own or model, "epochs": EPOCHS}
    if not names:
        said["metric"] = "AP"  # any will do: the missing model is what must be told
    elif "metric" not in content:
        said["metric"] = task_named(_task(names)).ranked[0]
    if isinstance(blocks, dict) and names == [*blocks]:
        content = {**content, "models": _blocks(blocks, content)}
    elif names and isinstance(content.get("fixed") or {}, dict) and "space" not in content:
        said["space"] = _space(names[0], content.get("fixed") or {})
    return {**said, **content}


def _task(names: Sequence[str]) -> str:
    """What all these models can do, or else what the first one does."""
    if len(names) == 1:
        return task_of(names[0])
    tasks = [(model.task, *model.also) for model in map(load, names)]
    return next((t for t in tasks[0] if all(t in other for other in tasks)), tasks[0][0])


def _space(name: str, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The space that a model suggests, without what is fixed."""
    return {key: param for key, param in load(name).SPACE.items() if key not in fixed}


def _blocks(blocks: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """The blocks of a study over models, each with a space, and with what its model has not of what
    the study says of all.
    """
    shared = {key: content.get(key) or {} for key in ("fixed", "space")}
    parts = [*shared.values(), *blocks.values()]
    for block in blocks.values():
        parts += [block.get(key) or {} for key in shared] if isinstance(block, dict) else []
    if not all(isinstance(value, dict) for value in parts):
        return dict(blocks)  # as is told when it is checked
    whole = dict[str, Any]()
    for name, block in blocks.items():
        known = load(name).Config.model_fields
        # "model" is no hyper-parameter, and told when it is checked
        lacks = [k for k in (*shared["fixed"], *shared["space"]) if k not in {*known, "model"}]
        said = block.get("without") or []
        lacks = [k for k in lacks if k not in said] if isinstance(said, list | tuple) else []
        whole[name] = {**block, **({"without": [*said, *lacks]} if lacks else {})}
        if "space" not in content and "space" not in block:
            whole[name]["space"] = _space(name, {**shared["fixed"], **(block.get("fixed") or {})})
    return whole
