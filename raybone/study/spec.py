"""The study YAML: frozen, unknown keys refused, bounds in the types, all problems reported at
once.
"""

from __future__ import annotations

import difflib
import math
from importlib.metadata import entry_points, packages_distributions
from typing import Any, Literal

from pydantic import (
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from raybone.errors import WrongInput
from raybone.study.constraints import holds, problem_of
from raybone.study.metric import METRICS, Direction, Metric
from raybone.study.param import Param, Strict, Value

MODELS = "raybone.models"  # group of the entry points by which packages offer models
# Of anything that is counted: more is a slip, and overflows what torch and Ray count in
MOST = 1_000_000


class Search(Strict):
    """How the space is searched."""

    trials: int = Field(16, ge=1, le=MOST, description="configurations to try")
    sampler: Literal["random", "sobol", "grid", "tpe", "gp"] = Field(
        "tpe",
        description="what proposes; gp is a Gaussian process, for few parameters; grid needs "
        "choices alone",
    )
    scheduler: Literal["fold_race", "asha", "full"] = Field(
        "fold_race",
        description="fold_race trains one fold first, then the better part fold by fold; asha all "
        "folds, "
        "by epochs; full everything",
    )
    type: Literal["promotion", "stopping"] = Field(
        "promotion",
        description="fold_race: whether a configuration waits "
        "at a rung for its promotion, or is judged once as it arrives",
    )
    folds: int | None = Field(
        None, ge=2, description="the dataset's number of folds; another number is refused"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of proposals, weights and augmentation")
    test_fold: bool = Field(
        False,
        description="keep the next fold out of each fold's training and score it once, at "
        "the end: 8:1:1 with 10 folds",
    )
    points: tuple[dict[str, Value], ...] = Field(
        (), description="tried first, in order; what one leaves out is drawn"
    )
    reject: tuple[str, ...] = Field(
        (), description="expressions over parameters; a proposal that one is true of is drawn again"
    )


class Resources(Strict):
    """What one training run takes."""

    workers: int = Field(1, ge=1, le=MOST, description="data-parallel processes")
    cpus: int = Field(
        1, ge=1, le=MOST, description="CPU cores a worker; also its number of threads"
    )
    gpus: float = Field(
        0, ge=0, le=MOST, description="GPUs a worker; a fraction only when workers is 1"
    )
    concurrent: int | Literal["auto"] = Field(
        "auto", description="training runs at once; auto fills the cluster"
    )

    @model_validator(mode="after")
    def _whole_gpus(self) -> Resources:
        if self.gpus % 1 and (self.workers > 1 or self.gpus > 1):
            raise ValueError(
                f"gpus may be a fraction below 1 only when workers is 1, got gpus={self.gpus} "
                f"workers={self.workers}; use whole GPUs"
            )
        return self

    @field_validator("concurrent")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"must be at least 1 or auto, got {value}")
        return value


class Limits(Strict):
    """When to stop handing out new work; running folds finish their epoch ladder step."""

    hours: float = Field(
        math.inf, gt=0, allow_inf_nan=True, description="of searching in all; no end if left out"
    )
    gpu_hours: float = Field(
        math.inf, gt=0, allow_inf_nan=True, description="of training; no end if left out"
    )
    failed_trials: int = Field(
        8, ge=0, description="end the study when more configurations than this have failed"
    )
    stall_minutes: float = Field(
        60, gt=0, le=MOST, description="a worker whose epoch takes longer is replaced"
    )
    target: float | None = Field(
        None, description="end when a complete configuration's mean over folds is as good"
    )
    converged: bool = Field(
        False,
        description="end when less is to be gained than the folds can tell, by Makarova et "
        "al. 2022; after 20 complete configurations",
    )


class Observation(Strict):
    """A configuration of an earlier study, and its standing in it: the share of rows below, in (0,
    1).
    """

    params: dict[str, Value]
    standing: float = Field(gt=0, lt=1)


class Prior(Strict):
    """What a warm start took from earlier leaderboards: points to try first, and observations to
    propose from.
    """

    points: tuple[dict[str, Value], ...] = ()
    observations: tuple[Observation, ...] = ()
    left_out: int = Field(0, ge=0, description="rows outside the space or the fixed values")


class Resolved(Strict):
    """What was looked up once, when the study was first started."""

    dataset_hash: str
    code_version: str
    folds: int
    ladder: tuple[tuple[int, int], ...] = Field(
        description="rungs as (folds, epochs), the last one is the full run"
    )
    steps: int | None = Field(None, ge=1, description="optimiser steps an epoch, at the least")
    warnings: tuple[str, ...] = ()
    prior: Prior | None = None
    direction: Direction | None = Field(
        None, description="of a metric that the model's task brought"
    )


class Study(Strict):
    """One study: a model, a dataset, a space, and the means to search it."""

    name: str = Field(
        min_length=1,
        max_length=60,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="letters, digits and ._-; left out, that of the file",
    )
    dataset: str = Field(description="folder that `raybone prepare` made, or its fsspec URL")
    model: str = Field(description="a name of the menu: `raybone models`")
    epochs: int = Field(
        ge=1, le=MOST, description="epochs of a full run of one fold; left out, 100"
    )
    metric: str = Field(
        description="what ranks; left out, AP for boxes, dice for masks, AUC for classes"
    )
    fixed: dict[str, Value] = Field(default_factory=dict, description="hyper-parameters that stay")
    space: dict[str, Param] = Field(
        default_factory=dict,
        description="hyper-parameters that are searched; left out, "
        "those that the model suggests and that are not fixed",
    )
    search: Search = Field(Search(), description="how the space is searched")
    resources: Resources = Field(Resources(), description="what one training run takes")
    limits: Limits = Field(Limits(), description="when to stop")
    keep: int = Field(
        5, ge=0, le=MOST, description="configurations whose weights are kept at the end"
    )
    resolved: Resolved | None = None

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str, info: ValidationInfo) -> str:
        for name in METRICS:
            if name.lower() == value.lower():
                return name
        if from_outside(info.data.get("model", "")):
            return value  # its task may have metrics of its own, as is seen when it is loaded
        raise ValueError(f"must be one of {', '.join(METRICS)}, got {value!r}")

    @model_validator(mode="after")
    def _space_is_sound(self) -> Study:
        problems = [
            f"space.{k}: is also in fixed; keep it in one of the two"
            for k in self.space
            if k in self.fixed
        ]
        for name, param in self.space.items():
            for other, value in (param.when or {}).items():
                if other not in self.space or other == name:
                    problems.append(
                        f"space.{name}.when: {other!r} must be another searched parameter"
                    )
                elif self.space[other].when:
                    problems.append(
                        f"space.{name}.when: {other!r} is conditional itself; conditions go one "
                        "level deep"
                    )
                elif not self.space[other].admits(value):
                    problems.append(
                        f"space.{name}.when: {other} is never {value!r}; give a value that it can "
                        "have"
                    )
            if self.search.sampler == "grid" and param.choice is None:
                problems.append(
                    f"space.{name}: the grid sampler needs choice, got {param.kind}; list the "
                    "values"
                )
        if self.search.type == "stopping" and self.search.scheduler != "fold_race":
            problems.append(
                "search.type: stopping is a kind of fold_race, got scheduler "
                f"{self.search.scheduler}; leave it out"
            )
        problems = problems or self._rules_and_points()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _rules_and_points(self) -> list[str]:
        values = {
            **{k: [v] for k, v in self.fixed.items()},
            **{k: list(p.choice or p.bounds or ()) for k, p in self.space.items()},
        }
        problems = [
            f"search.reject.{i}: {rule[:60]!r} {problem}"
            for i, rule in enumerate(self.search.reject)
            if (problem := problem_of(rule, values))
        ]
        points = self.search.points
        for place, point in enumerate(points):
            wrong = misfits(self, point)
            if not wrong and not problems:
                wrong = [
                    f"is rejected by {rule!r}; change one of the two"
                    for rule in self.search.reject
                    if holds(rule, {**self.fixed, **point})
                ]
            if point in points[:place]:
                wrong.append(f"is point {points.index(point)} again; give it once")
            problems += [f"search.points.{place}: {line}" for line in wrong]
        if len(points) > self.search.trials:
            problems.append(
                f"search.points: {len(points)} points do not fit into {self.search.trials} trials; "
                "raise search.trials"
            )
        return problems

    @property
    def measure(self) -> Metric:
        """What is known of its metric.

        Raises:
            WrongInput: it is a metric of a model that was never loaded.
        """
        if self.metric in METRICS:
            return METRICS[self.metric]
        if self.resolved and self.resolved.direction:
            return Metric(self.resolved.direction, -math.inf, math.inf)
        raise WrongInput(
            f"metric: {self.metric} is one that {self.model} must bring, but its study was never "
            "begun; search it first"
        )

    @property
    def direction(self) -> Direction:
        """Which end of the metric is good, as ``measure`` has it."""
        return self.measure.direction

    @property
    def sign(self) -> int:
        """What its scores are multiplied by where they are compared, so that more is better: 1, or
        -1.
        """
        return self.measure.sign

    def resolved_as(self, resolved: Resolved) -> ResolvedStudy:
        """This study with what was looked up for it."""
        return ResolvedStudy.model_validate({**dict(self), "resolved": resolved})


def from_outside(model: str) -> bool:
    """Whether this name is one of another package: MODULE:ATTRIBUTE or an entry point."""
    return ":" in model or model in entry_points(group=MODELS).names


def packages_of(model: str) -> list[str]:
    """The distributions that must be installed wherever this model is trained, beside raybone."""
    module, colon, _ = model.partition(":")
    if colon:
        top = module.partition(".")[0]
        return sorted(set(packages_distributions().get(top, [top])))
    offered = entry_points(group=MODELS, name=model)
    return sorted({entry.dist.name for entry in offered if entry.dist})


class ResolvedStudy(Study):
    """A study that was checked against its dataset and model."""

    resolved: Resolved

    def with_prior(self, prior: Prior | None) -> ResolvedStudy:
        """This study with another warm start, or with none."""
        resolved = self.resolved.model_copy(update={"prior": prior})
        return self.model_copy(update={"resolved": resolved})


def misfits(study: Study, point: dict[str, Any]) -> list[str]:
    """Why a point, which may leave parameters out, is not one of the study's space: one line a
    reason.
    """
    problems, space = [], study.space
    implied: dict[str, Any] = dict(point)
    for name, value in point.items():
        if name not in space:
            near = difflib.get_close_matches(name, space, n=1)
            problems.append(
                f"{name!r} is fixed; leave it out"
                if name in study.fixed
                else f"{name!r} is not searched; "
                + (
                    f"did you mean {near[0]!r}?"
                    if near
                    else f"the space has {', '.join(space) or 'nothing'}"
                )
            )
            continue
        if not space[name].admits(value):
            kind = space[name].kind
            problems.append(
                f"{name} must be of {kind} {list(getattr(space[name], kind))}, got {value!r}; "
                "change it"
            )
        for other, needed in (space[name].when or {}).items():
            if implied.setdefault(other, needed) != needed:
                problems.append(
                    f"{name} exists when {other} is {needed!r}, got {implied[other]!r}; leave one "
                    "out"
                )
    return problems
