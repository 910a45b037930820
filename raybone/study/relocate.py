"""The files and earlier studies that a study starts from, wherever it names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from raybone.study.spec import Study


def relocated(study: Study, move: Callable[[str], str]) -> Study:
    """The study with other places of the files and earlier studies that it starts from, wherever
    they stand.

    Args:
        move: gives the new place; names that are no places (otsu, a model's own weights) stay.
    """
    for key in ("weights", "init_from", "nm"):

        def moved(value: Any, key: str = key) -> Any:
            named = (
                key != "weights"
                or "/" in str(value)
                or Path(str(value)).suffix in (".pt", ".pth", ".safetensors")
            )
            place = (
                isinstance(value, str)
                and value
                and value != "otsu"
                and "://" not in value
                and named
            )
            return move(value) if place else value

        if key in study.fixed:
            study = study.model_copy(
                update={"fixed": {**study.fixed, key: moved(study.fixed[key])}}
            )
        if key in study.space and (choice := study.space[key].choice):
            study = renamed(study, key, {v: moved(v) for v in choice})
    return study


def renamed(study: Study, key: str, names: dict[Any, Any]) -> Study:
    """The study with other values of a searched choice, wherever they stand but in rules."""
    space = {
        name: p.model_copy(
            update={"when": {k: names.get(v, v) if k == key else v for k, v in p.when.items()}}
        )
        if p.when
        else p
        for name, p in study.space.items()
    }
    space[key] = space[key].model_copy(update={"choice": tuple(names.values())})
    points = tuple(
        {**p, key: names.get(p[key], p[key])} if key in p else p for p in study.search.points
    )
    return study.model_copy(
        update={"space": space, "search": study.search.model_copy(update={"points": points})}
    )
