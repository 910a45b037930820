"""The models of a study, each with its hyper-parameters, and what is wrong with them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import ValidationError

from raybone.errors import InvalidConfig, WrongInput
from raybone.models import load
from raybone.models._model import Model, TrainingConfig, names_study
from raybone.study.files import problems_of
from raybone.study.soundness import PLACES
from raybone.study.spec import Study
from raybone.tasks import ranked_by, task_named
from raybone.tasks.base import Task

# What is scored: by other values, other tasks.
SCORED = ("categories", "target")
# What val_loss is made of.
LOSSES = ("dice", "cross_entropy", "focal_tversky", "nm", "box", "cls", "dfl")


@dataclass(frozen=True)
class Member:
    """One model of a study, with the study of it alone and the fixed values as its
    configuration.
    """

    study: Study
    model: Model
    config: TrainingConfig

    @property
    def task(self) -> Task:
        """What the model predicts."""
        return task_named(self.model.task)

    def built(self) -> Any:
        """Returns the network of the fixed values, or None where they need a searched one to go
        together.
        """
        try:
            return self.model.build(self.config)
        except InvalidConfig:
            return None


def collect(problems: list[str], look_up: Callable[[], Any]) -> Any:
    """What ``look_up`` returns, or None where it is wrong input, which joins the problems."""
    try:
        return look_up()
    except WrongInput as error:
        problems.extend(error.problems)
        return None


def members_of(study: Study, problems: list[str]) -> list[Member]:
    """The models with their fixed values, those that are right; ``problems`` gets a line of each
    that is not.
    """
    members, tasks = [], dict[str, str]()
    for name in study.names:
        model = collect(problems, partial(_ranked, name, study.metric))
        if not model:
            continue
        tasks.setdefault(model.task, name)
        ranked = task_named(model.task).ranked
        if study.metric not in ranked:
            problems.append(
                f"metric: {name} is a {model.task} model and is ranked by one of "
                f"{', '.join(ranked)}; got {study.metric}"
            )
        config = _check_space(study, model, problems)
        if config:
            problems += _check_shares(study.of(name), config)
            members.append(Member(study.of(name), model, config))
    if len(tasks) > 1:
        kinds = " and ".join(f"{name} is a {task} model" for task, name in tasks.items())
        problems.append(f"models: must be of one task, but {kinds}; make a study of each task")
    problems += _check_shared(study, members)
    return members


def _ranked(name: str, metric: str) -> Model:
    return ranked_by(load(name), metric)


def _check_shared(study: Study, members: Sequence[Member]) -> list[str]:
    """What a study over models says of all must be of some, and scores must be comparable."""
    problems, blocks = [], study.models.values()
    for where, keys in (("fixed", study.fixed), ("space", study.space)):
        for key, value in keys.items() if blocks else ():
            if all(key in block.without for block in blocks):
                known = sorted({k for m in members for k in m.model.Config.model_fields})
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"they have {', '.join(known)}"
                if key in known:
                    hint = "take it out of one model's `without`"
                problems.append(
                    f"{where}.{key}: no model of this study ({', '.join(study.names)}) has such a "
                    f"hyper-parameter; {hint}"
                )
            values = getattr(value, "choice", None) or (value,)
            if key in PLACES and any(v and (key != "nm" or names_study(key, v)) for v in values):
                problems.append(
                    f"{where}.{key}: is of one model alone; move it to models.NAME.{where}.{key}"
                )
    for member in members if blocks else ():
        sayable = {*study.fixed, *study.space, *member.model.Config.model_fields}
        for key in study.models[member.model.name].without:
            if key not in sayable:
                near = difflib.get_close_matches(key, sorted(sayable), n=1)
                problems.append(
                    f"models.{member.model.name}.without: {key!r} is no hyper-parameter of the "
                    f"study; {f'did you mean {near[0]!r}?' if near else 'leave it out'}"
                )
    for key in SCORED:
        values = {m.model.name: getattr(m.config, key, "") for m in members}
        if len(set(values.values())) > 1:
            problems.append(
                f"models: must have the same {key} to be compared, but have {values}; put it "
                "under fixed"
            )
    return problems


def _check_space(study: Study, model: Model, problems: list[str]) -> TrainingConfig | None:
    """Fixed values and both ends of every searched one must be values the model takes."""
    known, alone = set(model.Config.model_fields), study.of(model.name)
    own = study.models[model.name].space if study.models else {}
    try:
        config = model.Config.model_validate(alone.fixed)
    except ValidationError as error:
        problems += problems_of(error, f"fixed ({model.name})", model.Config)
        config = None
    for name, param in alone.space.items():
        where = f"models.{model.name}.space" if name in own else "space"
        if name in SCORED:
            problems.append(
                f"{where}.{name}: changes what is scored, so that scores of other values cannot be "
                "compared; put one under fixed"
            )
        if name in LOSSES and study.metric == "val_loss":
            problems.append(
                f"{where}.{name}: changes what val_loss is made of, so that those of other values "
                "cannot be compared; put one under fixed, or rank by another metric"
            )
        if name not in known:
            problems.append(
                f"{where}.{name}: {model.name} has no such hyper-parameter; it has "
                f"{', '.join(sorted(known))}"
            )
            continue
        wrong = _refused(model, name, param.choice or param.bounds or ())
        if not wrong and param.bounds and param.kind != "int_uniform":
            low, high = param.bounds  # whole ends may be taken where nothing between them is
            if _refused(model, name, (low + (high - low) / math.e,)):
                truth = model.Config.model_fields[name].annotation is bool
                what = "true or false; use choice" if truth else "whole; use int_uniform"
                wrong = [f"{name}: {param.kind} draws fractions, but it is {what}"]
        problems += [f"{where}.{line}" for line in wrong]
    return config


def _refused(model: Model, name: str, values: Sequence[Any]) -> list[str]:
    """Why the model takes none of these values, one line each."""
    wrong = list[str]()
    for value in values:
        try:
            model.Config.model_validate({name: value})
        except ValidationError as error:
            wrong += _plain(error)
    return wrong


def _check_shares(study: Study, config: TrainingConfig) -> list[str]:
    """Batches that the workers of a run cannot share out evenly would be others than their rows
    say.
    """
    workers, param = study.resources.workers, study.space.get("batch")
    values = (param.choice or ()) if param else (config.batch,)
    uneven = [str(v) for v in values if isinstance(v, int) and v % workers]
    where = "space.batch" if param else "fixed.batch"
    return (
        [
            f"{where}: must be a multiple of the {workers} resources.workers, got "
            f"{', '.join(uneven)}; change one of them"
        ]
        if uneven
        else []
    )


def _plain(error: ValidationError) -> list[str]:
    return [line.removeprefix(": ") for line in problems_of(error, "", TrainingConfig)]
