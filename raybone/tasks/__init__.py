"""What is predicted: boxes, masks, classes, a file each, and what others register."""

from __future__ import annotations

from importlib import import_module

from raybone.errors import WrongInput
from raybone.study.metric import METRICS
from raybone.tasks.base import Task

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
