"""What a study may say, as the code knows it: tables for people, a JSON schema for editors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel

from raybone.errors import InvalidConfig, WrongInput
from raybone.models import MENU, TIMM, load, menu, missing
from raybone.study.metric import METRICS
from raybone.study.param import Param
from raybone.study.spec import Limits, ModelBlock, Resources, Search, Study
from raybone.tasks import task_named

DRAFT = "https://json-schema.org/draft/2020-12/schema"
LEAST = ("dataset", "model")  # the keys that a study cannot do without
BOUNDS = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
    "multipleOf": "a multiple of",
}
PAGE = """# Every key of a study

Written from the code by `make reference`; `raybone schema` tells editors the same.

## A study

`dataset` and `model` are enough. What a study leaves out is filled in when it starts, and stands in
`study.yaml` of the study folder.

{study}
`space: {{}}` searches nothing: one configuration of `fixed` values is trained on every fold.

## Several models in one study

`models: [yolo11n, retinanet_r50]` searches both under one budget and ranks them together. A mapping
gives a model what is its own; that goes before what the study says of all:

```yaml
models:
  yolo11n:
  retinanet_r50: {{fixed: {{p2: true}}, space: {{octaves: {{choice: [1, 3]}}}}}}
space: {{lr0: {{log_uniform: [0.0001, 0.01]}}, imgsz: {{choice: [512, 1024]}}}}
```

`model` is then one more searched parameter: rules may name it (`model == 'yolo11n' and imgsz >
800`), points do, and `when: {{model: yolo11n}}` keeps a parameter of `space` to one model. What a
model has not, such as `octaves` of YOLO, it does without. Where neither the study nor a model has a
`space`, each model starts from its own. `weights`, `init_from` and a study in `nm` stand with their
model. All models are of one task and find the same categories; `val_loss` does not rank them. A
race by promotion takes the best configuration of each model through all folds, however far behind
it is, so that `raybone leaderboard STUDY --by-model` can compare them.

{block}
## How it is searched

{search}
## What one training run takes

{resources}
## When it ends

Raise a limit and give the same command to go on.

{limits}
## A searched hyper-parameter

One distribution, such as `lr0: {{log_uniform: [0.001, 0.1]}}`, and a condition if it needs one,
such as `momentum: {{uniform: [0.6, 0.98], when: {{optimizer: SGD}}}}`.

{param}
## Hyper-parameters of all models

Each may stand in `fixed` or in `space`. Models have more of their own, and some have other
defaults: `raybone models unet` lists all that one has, and the space that is searched where a study
names none.

{shared}"""


@dataclass(frozen=True)
class Key:
    """One key: its name, type, default (JSON; empty without one), the values it may have, and its
    meaning.
    """

    name: str
    type: str
    default: str
    values: str
    meaning: str


def hyper_parameters(name: str) -> dict[str, Any]:
    """A model with all that a study may fix or search of it.

    Returns:
        name, task, parameters, source, the names that `weights` knows, hyperparameters, and space,
        which is searched where a study names none.
    Raises:
        WrongInput: no such model, or one that cannot be built.
    """
    model = load(name)
    try:
        row = {row[0]: row for row in menu()}.get(name) or model.row()
    except InvalidConfig as error:
        raise WrongInput(f"model: {error}") from None
    return {
        **dict(zip(("name", "task", "parameters", "source"), row)),
        "weights": list(model.weights),
        "hyperparameters": [asdict(key) for key in _keys(model.Config)],
        "space": {
            key: param.model_dump(exclude_none=True, mode="json")
            for key, param in model.SPACE.items()
        },
    }


def hyper_parameter_lines(found: dict[str, Any]) -> list[str]:
    """The same as a table for people."""
    rows = [
        Key("hyper-parameter", "type", "default", "values", "meaning"),
        *(Key(**row) for row in found["hyperparameters"]),
    ]
    wide = [max(len(cell) for cell in column) for column in zip(*(_cells(row) for row in rows))]
    return [
        f"{found['name']}: {found['task']}, {found['parameters'] / 1e6:.1f} M parameters; "
        f"{found['source']}",
        *("  ".join(f"{cell:<{n}}" for cell, n in zip(_cells(row), wide)).rstrip() for row in rows),
        f"weights that it knows: {', '.join(found['weights']) or 'none'}",
        "searched where a study names no space:",
        *(f"  {key}: {json.dumps(param)}" for key, param in found["space"].items()),
    ]


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a study's YAML: keys, types, bounds, and each model's
    hyper-parameters.
    """
    found, names = _study(), dict[Any, list[str]]()
    found["properties"]["model"] |= _named(MENU, outside=True)
    found["properties"]["metric"]["enum"] = list(METRICS)
    found["$defs"]["Param"]["oneOf"] = [
        {"required": [name]} for name in Param.model_fields if name != "when"
    ]
    blocks = dict[str, Any]()
    for name in MENU:
        if missing(name):
            blocks[name] = {}  # known by its name alone
            continue
        model = load(name)
        names.setdefault(((model.task, *model.also), model.Config), []).append(name)
        blocks[name] = {"anyOf": [{"type": "null"}, _block(model.Config)]}
    found["properties"]["models"] = {
        "description": found["properties"]["models"]["description"],
        "anyOf": [
            {"type": "array", "items": _named(MENU, outside=True), "minItems": 1},
            {
                "type": "object",
                "properties": blocks,
                "patternProperties": {f"^{TIMM}": blocks[f"{TIMM}resnet18"]},
                "additionalProperties": False,
            },
        ],
    }
    found["allOf"] = [
        {
            "if": {"properties": {"model": _named(many)}, "required": ["model"]},
            "then": {"properties": {"metric": {"enum": _ranked(tasks)}, **_of_model(config)}},
        }
        for (tasks, config), many in names.items()
    ]
    return {"$schema": DRAFT, **found}


def _ranked(tasks: Iterable[str]) -> list[str]:
    """The metrics that rank one of these tasks."""
    return [*dict.fromkeys(metric for task in tasks for metric in task_named(task).ranked)]


def reference() -> str:
    """docs/study.md: every key of a study, and every hyper-parameter that all models share."""
    from raybone.models._model import TrainingConfig  # imports torch

    return PAGE.format(
        study=_table("", Study),
        search=_table("search.", Search),
        limits=_table("limits.", Limits),
        resources=_table("resources.", Resources),
        block=_table("models.NAME.", ModelBlock),
        param=_table("space.NAME.", Param),
        shared=_table("", TrainingConfig),
    )


def _table(prefix: str, kind: type[BaseModel]) -> str:
    lines = ["| key | type | default | values | meaning |", "|---|---|---|---|---|"]
    for key in _keys(kind):
        default = (
            f"`{key.default}`" if key.default else "must be given" if key.name in LEAST else ""
        )
        cells = (f"`{prefix}{key.name}`", key.type, default, key.values, key.meaning)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _study() -> dict[str, Any]:
    """The schema of a study without what only a search writes into it."""
    found = Study.model_json_schema()
    del found["properties"]["resolved"]
    found["$defs"] = {
        k: v for k, v in found["$defs"].items() if k not in ("Resolved", "Prior", "Observation")
    }
    found["required"] = ["dataset"]
    found["oneOf"] = [{"required": ["model"]}, {"required": ["models"]}]
    for prop in (found["properties"]["limits"], *found["$defs"]["Limits"]["properties"].values()):
        if prop.get("default") == math.inf or isinstance(
            prop.get("default"), dict
        ):  # infinity is no JSON
            del prop["default"]
    return found


def _named(names: Iterable[str], outside: bool = False) -> dict[str, Any]:
    """The schema of these names; with one of timm's, of all of timm's.

    Args:
        outside: also of a package's MODULE:ATTRIBUTE.
    """
    listed, patterns = list(names), [":"] if outside else []
    if any(name.startswith(TIMM) for name in listed):
        patterns.append(f"^{TIMM}")
    return {"anyOf": [{"enum": listed}, *({"pattern": pattern} for pattern in patterns)]}


def _block(config: type[BaseModel]) -> dict[str, Any]:
    """What stands below ``models.NAME``."""
    without = {"type": "array", "items": {"type": "string"}}
    return {
        "type": "object",
        "properties": {**_of_model(config), "without": without},
        "additionalProperties": False,
    }


def _of_model(config: type[BaseModel]) -> dict[str, Any]:
    known = config.model_json_schema()["properties"]
    space = {
        name: {"description": prop["description"], "$ref": "#/$defs/Param"}
        for name, prop in known.items()
    }
    known["batch"] = {
        "description": known["batch"]["description"],
        "anyOf": [known["batch"], {"const": "auto"}],
    }
    if anchor := known.get("anchor"):
        known["anchor"] = {
            "description": anchor["description"],
            "anyOf": [anchor, {"const": "dataset"}],
        }
    return {
        "fixed": {"properties": known, "additionalProperties": False},
        "space": {"properties": space, "additionalProperties": False},
    }


def _keys(kind: type[BaseModel]) -> list[Key]:
    found = _study() if kind is Study else kind.model_json_schema()
    return [
        Key(name, _type(prop), _default(prop), _values(prop), prop.get("description", ""))
        for name, prop in found["properties"].items()
    ]


def _type(prop: dict[str, Any]) -> str:
    if "anyOf" in prop:
        return " or ".join(
            dict.fromkeys(_type(p) for p in prop["anyOf"] if p.get("type") != "null")
        )
    if "const" in prop:
        return str(prop["const"])
    kind = "object" if "$ref" in prop else prop["type"]
    return {"string": "text", "array": "list", "object": "mapping", "boolean": "true or false"}.get(
        kind, kind
    )


def _default(prop: dict[str, Any]) -> str:
    value = prop.get("default")
    return (
        "" if value is None or value == math.inf or _type(prop) == "mapping" else json.dumps(value)
    )


def _values(prop: dict[str, Any]) -> str:
    """The values that a schema admits, in a few words."""
    said = [", ".join(map(str, prop["enum"]))] if "enum" in prop else []
    for part in (prop, *prop.get("anyOf", ()), prop.get("items", {})):
        said += [f"{sign} {part[bound]}" for bound, sign in BOUNDS.items() if bound in part]
    return ", ".join(said)


def _cells(key: Key) -> Iterable[str]:
    return asdict(key).values()


if __name__ == "__main__":
    print(reference(), end="")
