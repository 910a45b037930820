"""The study YAML: frozen, unknown keys refused, bounds in the types, all problems reported at
once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.metadata import entry_points, packages_distributions
from typing import Any, Literal, Self

from pydantic import (
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from raybone.errors import WrongInput
from raybone.study.metric import METRICS, Direction, Metric
from raybone.study.param import Param, Strict, Tracker, Value
from raybone.study.soundness import settled, unsound

MODELS = "raybone.models"  # group of the entry points by which packages offer models
# Packages of the extra raybone[models], by what the names of their models begin with
EXTRAS = {
    "smp": "segmentation-models-pytorch",
    "timm": "timm",
    "nnunet": "dynamic-network-architectures",
}
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
    scheduler: Literal["fold_race", "cohort_race", "asha", "full"] = Field(
        "fold_race",
        description="fold_race trains one fold first, then the better part fold by fold; "
        "cohort_race decides each rung once, and starts no configuration that has no chance; asha "
        "all folds, by epochs; full everything",
    )
    type: Literal["promotion", "stopping"] = Field(
        "promotion",
        description="fold_race: whether a configuration waits "
        "at a rung for its promotion, or is judged once as it arrives",
    )
    risk: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="cohort_race: expected loss of the pick against exhaustive cross-validation, "
        "as a share of its score, down to which the search goes on; weights of all that it stopped "
        "stay, as a smaller one goes on with them",
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


class ModelBlock(Strict):
    """What a study says of one of its models; it goes before what the study says of all."""

    fixed: dict[str, Value] = Field(
        default_factory=dict, description="hyper-parameters of this model that stay"
    )
    space: dict[str, Param] = Field(
        default_factory=dict, description="hyper-parameters of this model that are searched"
    )
    without: tuple[str, ...] = Field(
        (),
        description="hyper-parameters of the study that this model has not, or is not to be given",
    )


class Study(Strict):
    """One study: one model or several, a dataset, a space, and the means to search it."""

    name: str = Field(
        min_length=1,
        max_length=60,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="letters, digits and ._-; left out, that of the file",
    )
    dataset: str = Field(description="folder that `raybone prepare` made, or its fsspec URL")
    model: str = Field(description="a name of the menu: `raybone models`")
    models: dict[str, ModelBlock] = Field(
        default_factory=dict,
        description="instead of `model`, several of one task, each with what is its own; a list "
        "of names will do",
    )
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
    track: tuple[Tracker, ...] = Field(
        (), description="trackers to tell as it runs, such as mlflow:URI: see `raybone track`"
    )
    resolved: Resolved | None = None

    @model_validator(mode="before")
    @classmethod
    def _models_alone(cls, content: Any) -> Any:
        """A study over models has no ``model``, and its models may be names alone."""
        if not isinstance(content, dict) or "models" not in content:
            return content
        return {"model": "", **content, "models": blocks_of(content["models"])}

    @field_validator("models")
    @classmethod
    def _one_or_several(
        cls, value: dict[str, ModelBlock], info: ValidationInfo
    ) -> dict[str, ModelBlock]:
        model = info.data.get("model")
        if model and value:
            raise ValueError(f"stands beside model, which is {model!r}; keep one of the two")
        if model == "" and not value:
            raise ValueError("must name a model at the least, got none; name one")
        return value

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str, info: ValidationInfo) -> str:
        for name in METRICS:
            if name.lower() == value.lower():
                return name
        if any(map(from_outside, info.data.get("models") or [info.data.get("model", "")])):
            return value  # its task may have metrics of its own, as is seen when it is loaded
        raise ValueError(f"must be one of {', '.join(METRICS)}, got {value!r}")

    @model_validator(mode="after")
    def _is_sound(self) -> Study:
        if problems := unsound(self):
            raise ValueError("\n".join(problems))
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Its models."""
        return tuple(self.models) or (self.model,)

    def of(self, name: str) -> Self:
        """This study with one of its models alone, as a study of ``model: NAME`` would be."""
        if not self.models:
            return self
        block = self.models[name]
        fixed = {k: v for k, v in self.fixed.items() if k not in {*block.without, *block.space}}
        fixed |= block.fixed
        out, gone = {*block.without, *block.fixed}, {*block.without} - {*block.fixed, *block.space}
        shared = {
            key: param
            for key, param in self.space.items()
            if key not in out and not gone & {*(param.when or ())}
        }
        points = tuple(
            {k: v for k, v in point.items() if k != "model"}
            for point in self.search.points
            if point.get("model") == name
        )
        alone: dict[str, Any] = {
            "model": name,
            "models": {},
            "fixed": fixed,
            "space": settled({**shared, **block.space}, {"model": name, **fixed}),
            "search": self.search.model_copy(update={"points": points}),
        }
        if self.resolved:
            alone["resolved"] = self.resolved.model_copy(update={"prior": None})
        return self.model_copy(update=alone)

    def under(self, params: Mapping[str, Any]) -> Self:
        """``of`` the model of a configuration; in a study over models, ``params`` name theirs."""
        return self.of(str(params.get("model", self.names[0])))

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """All hyper-parameters of a configuration: those that stay, and those that were drawn."""
        values = {**self.under(params).fixed, **params}
        if self.models:
            values.pop("model", None)
        return values

    def with_own(self, alone: Study) -> Self:
        """This study with what a changed ``of`` one of its models holds in place of its own."""
        if not self.models:
            return self.model_copy(
                update={"fixed": alone.fixed, "space": alone.space, "search": alone.search}
            )
        name, block = alone.model, self.models[alone.model]
        own = {
            "fixed": {k: alone.fixed[k] for k in block.fixed},
            "space": {k: alone.space.get(k, p) for k, p in block.space.items()},
        }
        changed = iter(alone.search.points)
        points = tuple(
            {"model": name, **next(changed)} if point.get("model") == name else point
            for point in self.search.points
        )
        return self.model_copy(
            update={
                "models": {**self.models, name: block.model_copy(update=own)},
                "search": self.search.model_copy(update={"points": points}),
            }
        )

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
            f"metric: {self.metric} is one that {self.names[0]} must bring, but its study was "
            "never begun; search it first"
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


def blocks_of(models: Any) -> Any:
    """What ``models:`` may hold, names alone or names without a block, as names with blocks."""
    if isinstance(models, list | tuple) and all(isinstance(name, str) for name in models):
        return {name: {} for name in models}
    if isinstance(models, dict):
        return {name: {} if block is None else block for name, block in models.items()}
    return models


def from_outside(model: str) -> bool:
    """Whether this name is one of another package: MODULE:ATTRIBUTE or an entry point."""
    return ":" in model or model in entry_points(group=MODELS).names


def packages_of(study: Study) -> list[str]:
    """The distributions that must be installed wherever a study is trained, beside raybone."""
    packages = {"raybone[trackers]"} if study.track else set[str]()
    for name in study.names:
        module, colon, _ = name.partition(":")
        if colon:
            top = module.partition(".")[0]
            packages |= set(packages_distributions().get(top, [top]))
        if package := EXTRAS.get(name.partition("/")[0]):
            packages.add(package)
        offered = entry_points(group=MODELS, name=name)
        packages |= {entry.dist.name for entry in offered if entry.dist}
    return sorted(packages)


class ResolvedStudy(Study):
    """A study that was checked against its dataset and model."""

    resolved: Resolved

    def with_prior(self, prior: Prior | None) -> ResolvedStudy:
        """This study with another warm start, or with none."""
        resolved = self.resolved.model_copy(update={"prior": prior})
        return self.model_copy(update={"resolved": resolved})
