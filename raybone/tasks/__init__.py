"""What is predicted: boxes, masks, classes, a file each, and what others register."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from raybone.errors import InvalidConfig, WrongInput
from raybone.models import load
from raybone.study.files import problems_of
from raybone.study.metric import METRICS
from raybone.study.spec import Study
from raybone.tasks.base import Task

if TYPE_CHECKING:
    from raybone.models._model import Model, TrainingConfig

BUILT_IN = ("detection", "segmentation", "classification")
_TASKS: dict[str, Task] = {}


def register(task: Task) -> None:
    """Make a task known by its name, and its metrics to studies.

    Raises:
        ValueError: another task has that name.
    """
    if type(_TASKS.setdefault(task.name, task)) is not type(task):
        raise ValueError(f"task {task.name}: is known already; give yours another name")
    METRICS.update(task.metrics)


def task_named(name: str) -> Task:
    """The task of that name; nothing of the others is imported.

    Raises:
        WrongInput: it was never registered.
    """
    if name not in _TASKS and name in BUILT_IN:
        register(import_module(f"raybone.tasks.{name}").TASK)
    if name not in _TASKS:
        raise WrongInput(
            f"task: must be one of {', '.join({**dict.fromkeys(BUILT_IN), **_TASKS})}, got "
            f"{name!r}; let the module of its model call raybone.tasks.register"
        )
    return _TASKS[name]


def ranked_by(model: Model, metric: str) -> Model:
    """The model for the first of its tasks that this metric ranks; for its own where none is."""
    tasks = (model.task, *model.also)
    return replace(
        model, task=next((t for t in tasks if metric in task_named(t).ranked), model.task)
    )


def task_of(study: Study) -> Task:
    """What the models of a study predict."""
    return task_named(ranked_by(load(study.names[0]), study.metric).task)


def configured(study: Study, params: Mapping[str, Any]) -> tuple[Model, TrainingConfig]:
    """The model of a configuration for the study's task, and its hyper-parameters: the study's
    fixed values and those that were drawn.

    Raises:
        InvalidConfig: the values do not go together, or the batch cannot be shared out evenly.
    """
    name = study.under(params).model
    model = ranked_by(load(name), study.metric)
    try:
        config = model.Config.model_validate(study.values(params))
    except ValidationError as error:
        raise InvalidConfig("; ".join(problems_of(error, name, model.Config))) from None
    if config.batch % study.resources.workers:
        raise InvalidConfig(
            f"batch {config.batch} cannot be shared out over {study.resources.workers} workers"
        )
    return model, config
