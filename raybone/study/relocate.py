"""The files and earlier studies that a study starts from, wherever it names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from raybone.study.soundness import PLACES
from raybone.study.spec import Study


def relocated(study: Study, move: Callable[[str], str]) -> Study:
    """The study with other places of the files and earlier studies that it starts from, wherever
    they stand, and of the trackers that it is told to.

    Args:
        move: gives the new place; names that are no places (otsu, a model's own weights) stay.
    """

    def moved(_: str, key: str, value: Any) -> Any:
        if not isinstance(value, str) or value in ("", "otsu") or "://" in value:
            return value
        file = "/" in value or Path(value).suffix in (".pt", ".pth", ".safetensors")
        return move(value) if file or key != "weights" else value

    track = tuple(_followed(to, move) for to in study.track)
    return looked_up(study, moved).model_copy(update={"track": track})


def _followed(to: str, move: Callable[[str], str]) -> str:
    """A tracker's address with another place of its folder or database; a server's stays."""
    kind, _, place = to.partition(":")
    scheme = "sqlite:///" if place.startswith("sqlite:///") else ""
    file = place.removeprefix(scheme)
    return to if "://" in file else f"{kind}:{scheme}{move(file)}"


def looked_up(study: Study, look_up: Callable[[str, str, Any], Any]) -> Study:
    """The study with other values of the hyper-parameters that name a file or an earlier study.

    Args:
        look_up: gives the new value, of the model, the hyper-parameter's name and the old value.
    """
    for name in study.names:
        alone = study.of(name)
        # What stands with all models is no place, as is checked
        own = study.models.get(name, alone)
        for key in PLACES:
            if key in own.fixed:
                fixed = {**alone.fixed, key: look_up(name, key, alone.fixed[key])}
                alone = alone.model_copy(update={"fixed": fixed})
            searched = alone.space.get(key) if key in own.space else None
            if searched and (choice := searched.choice):
                alone = renamed(alone, key, {v: look_up(name, key, v) for v in choice})
        study = study.with_own(alone)
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
