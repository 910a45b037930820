"""Whether the parts of a study go together: space, conditions, rules and points, of each of its
models.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raybone.study.constraints import holds, problem_of
from raybone.study.param import Param, Value

if TYPE_CHECKING:
    from raybone.study.spec import Study


# Hyper-parameters that may name a file or an earlier study, which are of one model.
PLACES = ("weights", "init_from", "nm")


def unsound(study: Study) -> list[str]:
    """What is wrong with a study that can be told without its model and dataset, one line each."""
    problems = [*_twice("", study.fixed, study.space), *_of_models(study)]
    for name in study.names:
        own = study.models[name].space if study.models else {}
        for key, problem in _of_space(study.of(name)):
            problems.append(f"{f'models.{name}.' if key in own else ''}space.{key}{problem}")
        problems += _of_places(study.of(name))
    search = study.search
    if search.type == "stopping" and search.scheduler != "fold_race":
        problems.append(
            f"search.type: stopping is a kind of fold_race, got scheduler {search.scheduler}; "
            "leave it out"
        )
    if search.type == "stopping" and len(study.names) > 1:
        problems.append(
            "search.type: stopping may end all configurations of a model early, so that models "
            "could not be compared; leave it out"
        )
    if search.risk is not None and search.scheduler != "cohort_race":
        problems.append(
            f"search.risk: only cohort_race knows what it risks, got scheduler {search.scheduler}; "
            "leave it out, or set search.scheduler=cohort_race"
        )
    # What is wrong with what all models share is wrong with each of them.
    return list(dict.fromkeys(problems)) or _of_rules_and_points(study)


def misfits(study: Study, point: Mapping[str, Value]) -> list[str]:
    """Why a point, which may leave parameters out, is not one of the study's space: one line a
    reason.
    """
    if not study.models:
        return _misfits(study, point)
    known = {k: v for k, v in point.items() if k != "model"}
    if "model" not in point:
        wrong = [_misfits(study.of(name), known) for name in study.names]
        return [] if [] in wrong else wrong[0]
    name = point["model"]
    if name not in study.names:
        return [f"model must be one of {', '.join(study.names)}, got {name!r}; change it"]
    return _misfits(study.of(str(name)), known)


def settled(space: Mapping[str, Param], known: Mapping[str, Any]) -> dict[str, Param]:
    """A space without what depends on values that are known, or without that condition."""
    settled = {}
    for key, param in space.items():
        when = param.when or {}
        if any(known.get(other, value) != value for other, value in when.items()):
            continue
        rest = {other: value for other, value in when.items() if other not in known}
        settled[key] = param if rest == when else param.model_copy(update={"when": rest or None})
    return settled


def _twice(where: str, fixed: Mapping[str, Value], space: Mapping[str, Param]) -> list[str]:
    return [
        f"{where}space.{key}: is also in fixed; keep it in one of the two"
        for key in space
        if key in fixed
    ]


def _of_models(study: Study) -> list[str]:
    """What is wrong with the blocks of models, and with what names a model."""
    problems = list[str]()
    if not study.models:
        return problems
    for name, block in study.models.items():
        problems += _twice(f"models.{name}.", block.fixed, block.space)
        for key, param in block.space.items():
            if (wanted := (param.when or {}).get("model", name)) != name:
                problems.append(
                    f"models.{name}.space.{key}.when: model is {name!r} here, got {wanted!r}; "
                    "leave it out"
                )
    for key, param in study.space.items():
        when = param.when or {}
        wanted = when.get("model", study.names[0])
        if places := [other for other in when if other in PLACES]:
            problems.append(
                f"space.{key}.when: {places[0]} is of one model alone; move space.{key} to it"
            )
        overruled = any(key in {*b.fixed, *b.space, *b.without} for b in study.models.values())
        if wanted not in study.names:
            problems.append(
                f"space.{key}.when: model must be one of {', '.join(study.names)}, got {wanted!r}; "
                "change it, or list that model"
            )
        elif not overruled and not any(key in study.of(n).space for n in study.names):
            problems.append(
                f"space.{key}.when: {when} is true of no model of this study; change it, or leave "
                f"space.{key} out"
            )
    for where, keys in (("space", study.space), ("fixed", study.fixed)):
        if "model" in keys:
            problems.append(f"{where}.model: the models stand under models; leave it out")
    if len(study.names) > 1 and study.metric == "val_loss":
        problems.append(
            "metric: val_loss of different models cannot be compared; rank by another metric"
        )
    return problems


def _of_space(study: Study) -> list[tuple[str, str]]:
    """Parameters of a study of one model, and what is wrong with them."""
    problems = []
    for name, param in study.space.items():
        for other, value in (param.when or {}).items():
            if other not in study.space or other == name:
                problem = f"{other!r} must be another searched parameter"
            elif study.space[other].when:
                problem = f"{other!r} is conditional itself; conditions go one level deep"
            elif not study.space[other].admits(value):
                problem = f"{other} is never {value!r}; give a value that it can have"
            else:
                continue
            problems.append((name, f".when: {problem}"))
        if study.search.sampler == "grid" and param.choice is None:
            needs = f": the grid sampler needs choice, got {param.kind}; list the values"
            problems.append((name, needs))
    return problems


def _of_places(study: Study) -> list[str]:
    """Addresses with a password, which would lie in study.yaml and whatever is made of it."""
    places = {key: [study.fixed[key]] for key in PLACES if key in study.fixed}
    places |= {key: [*(study.space[key].choice or ())] for key in PLACES if key in study.space}
    return [
        f"{key}: must be an address without a name and password; set them in the environment, as "
        "its filesystem documents"
        for key, values in places.items()
        if any(re.search("://[^/]*:[^/]*@", str(value)) for value in values)
    ]


def _of_rules_and_points(study: Study) -> list[str]:
    values = dict[str, list[Any]]()
    for name in study.names:
        own = study.of(name)
        for key, value in own.fixed.items():
            values.setdefault(key, []).append(value)
        for key, param in own.space.items():
            values.setdefault(key, []).extend(param.choice or param.bounds or ())
    if study.models:
        values["model"] = list(study.names)
    problems = [
        f"search.reject.{i}: {rule[:60]!r} {problem}"
        for i, rule in enumerate(study.search.reject)
        if (problem := problem_of(rule, values))
    ]
    points = study.search.points
    for place, point in enumerate(points):
        wrong = misfits(study, point)
        if not wrong and not problems:
            whole = {**study.values(point), **point} if _whole(study, point) else dict(point)
            wrong = [
                f"is rejected by {rule!r}; change one of the two"
                for rule in study.search.reject
                if holds(rule, whole)
            ]
        if study.models and "model" not in point and (mine := [k for k in point if k in PLACES]):
            wrong.append(f"{mine[0]} is of one model alone; add model: NAME")
        if point in points[:place]:
            wrong.append(f"is point {points.index(point)} again; give it once")
        problems += [f"search.points.{place}: {line}" for line in wrong]
    if len(points) > study.search.trials:
        problems.append(
            f"search.points: {len(points)} points do not fit into {study.search.trials} trials; "
            "raise search.trials"
        )
    return problems


def _whole(study: Study, point: Mapping[str, Value]) -> bool:
    """Whether the model of a point is known, and with it what stays fixed."""
    return not study.models or "model" in point


def _misfits(study: Study, point: Mapping[str, Value]) -> list[str]:
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
