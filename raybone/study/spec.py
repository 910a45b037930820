"""The study YAML: frozen, unknown keys refused, bounds in the types, all problems reported at
once.
"""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from raybone.errors import WrongInput
from raybone.study.constraints import holds, problem_of
from raybone.study.metric import METRICS, Direction, Metric
from raybone.study.yaml12 import NO_YAML, Dumper, load_yaml

MODELS = "raybone.models"  # group of the entry points by which packages offer models
# Of anything that is counted: more is a slip, and overflows what torch and Ray count in
MOST = 1_000_000
# Aliases let a few lines of YAML stand for more than any memory holds.
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
Value = float | int | str | bool | list[str] | list[float] | None


class Strict(BaseModel):
    """Base of every configuration: no unknown key, no change after construction, finite numbers."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )


class Param(Strict):
    """One searched hyper-parameter: exactly one distribution, and optionally when it exists at
    all.
    """

    uniform: tuple[float, float] | None = Field(None, description="[low, high]")
    log_uniform: tuple[float, float] | None = Field(None, description="[low, high], 0 < low")
    int_uniform: tuple[int, int] | None = Field(None, description="[low, high], both included")
    choice: tuple[Value, ...] | None = Field(
        None, min_length=1, description="the values to choose from"
    )
    when: dict[str, Value] | None = Field(
        None, description="other searched parameters and the value they must have"
    )

    @model_validator(mode="before")
    @classmethod
    def _names_a_distribution(cls, value: Any) -> Any:
        if isinstance(value, dict | Param):
            return value
        if not isinstance(value, list):
            raise ValueError(
                f"must name a distribution, got {_SHORT.repr(value)}; put a single value under "
                "fixed"
            )
        pair = len(value) == 2 and all(type(v) in (int, float) for v in value)
        values = ", ".join(map(_SHORT.repr, value[:3])) + ", ..." * (len(value) > 3)
        raise ValueError(
            f"must be one of uniform, log_uniform, int_uniform, choice, such as {{choice: "
            f"[{values}]}}"
            f"{f' or {{uniform: [{values}]}}' * pair}, got a list; write it so"
        )

    @model_validator(mode="after")
    def _one_distribution(self) -> Param:
        given = [
            k
            for k in ("uniform", "log_uniform", "int_uniform", "choice")
            if getattr(self, k) is not None
        ]
        if len(given) != 1:
            raise ValueError(
                "needs exactly one of uniform, log_uniform, int_uniform, choice; got "
                f"{given or 'none'}"
            )
        bounds = self.bounds
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError(
                f"{given[0]} needs low < high, got {list(bounds)}; for one value use `fixed:`"
            )
        if self.log_uniform and self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform needs low > 0, got {self.log_uniform[0]}; use uniform")
        return self

    @property
    def bounds(self) -> tuple[float, float] | None:
        """(low, high) of a numeric distribution, None for a choice."""
        return self.uniform or self.log_uniform or self.int_uniform

    def admits(self, value: Any) -> bool:
        """Whether the distribution can draw this value."""
        if self.choice is not None:  # 0 is 0.0 but not False
            return any(
                v == value and isinstance(v, bool) == isinstance(value, bool) for v in self.choice
            )
        low, high = self.bounds or (0.0, 0.0)
        kinds = int if self.int_uniform else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high


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
                    f"space.{name}: the grid sampler needs choice, got {_kind(param)}; list the "
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


class ResolvedStudy(Study):
    """A study that was checked against its dataset and model."""

    resolved: Resolved

    def with_prior(self, prior: Prior | None) -> ResolvedStudy:
        """This study with another warm start, or with none."""
        resolved = self.resolved.model_copy(update={"prior": prior})
        return self.model_copy(update={"resolved": resolved})


def read_study(
    path: Path | str,
    overrides: list[str] | None = None,
    complete: Callable[[dict[str, Any], str], dict[str, Any]] = lambda content, stem: content,
) -> Study:
    """Read a study YAML, with ``key=value`` overrides on dotted keys (values are YAML).

    Args:
        complete: fills in what the mapping leaves out, given the file's stem.
    Raises:
        WrongInput: every problem of the file, one line each.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise WrongInput(
            f"{path}: a study is a readable YAML file, but: {reason}; check the path"
        ) from None
    content = parse_yaml(text, str(path))
    for item in overrides or []:
        _override(content, item)
    return parse_study(complete(content, path.stem), where=str(path))


def parse_yaml(text: str | bytes, where: str) -> dict[str, Any]:
    """The mapping that a study's text holds.

    Raises:
        WrongInput: it is no YAML, or no mapping.
    """
    try:
        content = load_yaml(text)
    except NO_YAML as error:
        raise WrongInput(
            f"{where}: must be YAML: {' '.join(str(error).split())}; mend that line"
        ) from None
    if not isinstance(content, dict):
        raise WrongInput(
            f"{where}: a study is a YAML mapping, got {type(content).__name__}; "
            "see `raybone example smoke`"
        )
    return content


def parse_study(content: dict[str, Any], where: str = "study") -> Study:
    """Check a study given as a mapping.

    Raises:
        WrongInput: every problem, one line each: where, the rule, what came, what to do.
    """
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise WrongInput(*problems_of(error, where, Study)) from None


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
            kind = _kind(space[name])
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


def write_study(study: Study) -> str:
    """The study as YAML text which ``read_study`` reads back to an equal study."""
    content = study.model_dump(mode="json", exclude_none=True)
    content["limits"] = {
        k: v for k, v in study.limits.model_dump().items() if v not in (math.inf, None)
    }
    return str(yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True))


def problems_of(error: ValidationError, where: str, model: type[BaseModel]) -> list[str]:
    """Flatten a pydantic error into one line a problem: where, the rule, what came, what to do."""
    lines: list[str] = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        given = item.get("input")
        given = _SHORT.repr(given) if isinstance(given, dict | list) else repr(given)
        given = given if len(given) <= 60 else given[:57] + "..."
        place = f"{where}: {key}" if key else where
        if item["type"] == "extra_forbidden":
            names = _names_at(model, item["loc"][:-1])
            near = difflib.get_close_matches(str(item["loc"][-1]), names, n=1)
            lines.append(
                f"{place}: unknown key; "
                + (f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(names)}")
            )
        elif item["type"] == "missing":
            lines.append(f"{place}: is required but missing; add it")
        elif item["type"] == "value_error":
            for part in str(item["ctx"]["error"]).split("\n"):
                lines.append(
                    f"{where if part.startswith(('space.', 'search.')) else place}: {part}"
                )
        else:
            lines.append(
                f"{place}: {item['msg'][0].lower()}{item['msg'][1:]}, got {given}; change it"
            )
    return lines


def _names_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The field names of the model found by walking ``location`` from ``model``."""
    for part in location:
        field = model.model_fields.get(str(part))
        kind = field.annotation if field else None
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            model = kind
        elif str(part) == "space":
            model = Param
    return list(model.model_fields)


def _override(content: dict[str, Any], item: str) -> None:
    key, sep, text = item.partition("=")
    if not sep or not key.strip():
        raise WrongInput(f"--set {item}: must be key=value, such as search.trials=8")
    *path, last = key.strip().split(".")
    node = content
    for part in path:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise WrongInput(
                f"--set {item}: {part!r} holds a value, not a mapping; set {part} itself"
            )
    try:
        node[last] = load_yaml(text)
    except NO_YAML:
        raise WrongInput(f"--set {item}: {text!r} must be a YAML value; quote it") from None


def _kind(param: Param) -> str:
    return next(
        k
        for k in ("uniform", "log_uniform", "int_uniform", "choice")
        if getattr(param, k) is not None
    )
