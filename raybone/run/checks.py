"""A study against its dataset and model: every problem at once, before anything is trained."""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raybone.data.annotations import foci
from raybone.data.dataset import Dataset, open_dataset
from raybone.errors import InvalidConfig, WrongInput
from raybone.hpo.races import rungs_of
from raybone.hpo.sampler import propose
from raybone.hpo.state import State
from raybone.models._model import names_study
from raybone.models._weights import copy_into, dataset_of_fold, start_from, weights_file
from raybone.results.lineage import winner_of
from raybone.run.members import Member, collect, members_of
from raybone.storage import Folder
from raybone.study.metric import METRICS
from raybone.study.relocate import looked_up
from raybone.study.space import beyond_trials, left_by_rules
from raybone.study.spec import Resolved, ResolvedStudy, Study
from raybone.tasks import configured
from raybone.train.checkpoint import earlier_fold
from raybone.version import version

# Proposals that a model may refuse before a study of fixed values that it does not take is refused
FEW = 10
AIR = 2.0  # times the median size of an image from which on the largest canvas is worth a warning
SMALL = 10  # per cent of the lesions that are smaller than the smallest anchor


def resolve(study: Study, out: Folder | None = None) -> tuple[ResolvedStudy, Dataset]:
    """Look up the dataset and the models, check the study against both, and resolve it.

    Raises:
        WrongInput: all problems, one line each.
    """
    problems = [line] if (line := left_by_rules(study)) else list[str]()
    dataset = collect(problems, lambda: open_dataset(study.dataset, study.search.test_fold))
    if dataset:
        study = _with_anchors(study, smallest_anchor(dataset))
    members = members_of(study, problems)
    study, started = _with_places(study, members, dataset, problems)
    if dataset:
        problems += _check_folds(study, dataset)
        for member in members:
            problems += member.task.problems(dataset, member.model.name, member.config)
            problems += _check_unlabelled(member, dataset)
    if problems or not dataset:
        raise WrongInput(*dict.fromkeys(problems))
    steps = min(_steps(m, dataset) for m in members)
    task = members[0].task
    warnings = [*dataset.meta.get("fold_warnings", ()), *started]
    warnings += filter(None, [beyond_trials(study), _air(dataset), _no_score(study)])
    for member in members:
        warnings += task.warnings(dataset, member.config, _sizes(member))
    resolved = Resolved(
        direction=study.direction if study.metric in task.metrics else None,
        dataset_hash=dataset.hash,
        code_version=version(),
        folds=dataset.folds,
        steps=steps,
        ladder=rungs_of(study, dataset.folds, steps),
        warnings=tuple(dict.fromkeys(warnings)),
    )
    if out is not None and out.local:
        _check_disk(study, members, Path(out.path), dataset.folds)
    absolute = (
        study.dataset if "://" in study.dataset else str(Path(study.dataset).expanduser().resolve())
    )
    checked = study.model_copy(update={"dataset": absolute}).resolved_as(resolved)
    for member in members:
        if member.built() is None:
            first_taken(checked.of(member.model.name))
    return checked, dataset


def check_alone(study: Study) -> None:
    """Check what can be told of a study without its dataset, which only the cluster may reach.

    Raises:
        WrongInput: all problems, one line each.
    """
    problems = [line] if (line := left_by_rules(study)) else list[str]()
    members_of(_with_anchors(study, None), problems)
    if problems:
        raise WrongInput(*dict.fromkeys(problems))


def _with_anchors(study: Study, anchor: float | None) -> Study:
    """The study with this number where it says ``anchor: dataset``; None leaves the key out."""

    def fixed(values: dict[str, Any]) -> dict[str, Any]:
        if values.get("anchor") != "dataset":
            return values
        rest = {k: v for k, v in values.items() if k != "anchor"}
        return rest if anchor is None else {**rest, "anchor": anchor}

    blocks = {
        name: block.model_copy(update={"fixed": fixed(block.fixed)})
        for name, block in study.models.items()
    }
    return study.model_copy(update={"fixed": fixed(study.fixed), "models": blocks})


def first_taken(study: ResolvedStudy) -> dict[str, Any]:
    """The first proposal that its model takes.

    Raises:
        WrongInput: ``FEW`` are refused.
    """
    state, reason = State(), "nothing is proposed"
    for _ in range(FEW):
        params = propose(study, state, 0)
        if params is None:
            break
        try:
            parameters(study, params)
            return params
        except InvalidConfig as error:
            reason = str(error)
            state.apply({"event": "invalid", "time": 0.0, "params": params, "reason": reason})
    raise WrongInput(
        f"space: {study.model} must take one of its configurations, but: {reason}; change fixed or "
        "space"
    )


def parameters(study: Study, params: dict[str, Any]) -> int:
    """The number of trained parameters of the network of a configuration.

    Raises:
        InvalidConfig: its model does not take it.
    """
    model, config = configured(study, params)
    return sum(p.numel() for p in model.build(config).parameters() if p.requires_grad)


def smallest_anchor(dataset: Dataset) -> float:
    """Side of the smallest anchors as a share of the scan's long side, from the lesions' own boxes.

    A tenth of the lesions outside the test group is smaller (geometric mean of the sides);
    categories are not told apart. One number of all folds: that it knows the size of validation
    lesions is no leak that could be felt.
    """
    sides = [
        math.sqrt((x2 - x1) * (y2 - y1)) / max(s.height, s.width)
        for s in dataset.scans
        if dataset.fold_of[s.patient_id] >= 0
        for x1, y1, x2, y2 in (le.box_xyxy for le in foci(s))
    ]
    return round(float(np.percentile(sides, SMALL)), 4) if sides else 0.0


def _with_places(
    study: Study, members: Sequence[Member], dataset: Dataset | None, problems: list[str]
) -> tuple[Study, tuple[str, ...]]:
    """The study with the full path of every file and earlier study it may start from, and what
    these are.
    """
    told: dict[str, str] = {}
    member_of = {m.model.name: m for m in members}

    def path_of(member: Member, given: Any) -> Any:
        if not given or not isinstance(given, str):
            return given
        file = collect(problems, lambda: weights_file(given, member.model))
        if file and dataset is not None and dataset_of_fold(file) == dataset.hash:
            problems.append(
                f"weights {file}: must not be of a fold of this dataset, whose training patients "
                "other folds validate on; give its study as init_from"
            )
        module = member.built()
        counts = collect(problems, lambda: start_from(module, file)) if file and module else None
        if counts:
            told[str(file)] = (
                f"started from {counts[0]} of {counts[1]} tensors of {file.name}; whether it has "
                "seen patients of this dataset is not known"
            )
        return str(file or given)

    def winner(member: Member, key: str, given: Any) -> Any:
        if dataset is None or not names_study(key, given):
            return given
        found = collect(problems, lambda: winner_of(given, member.study, dataset, key))
        module = member.built()
        if not found or (
            key == "init_from"
            and module
            and not collect(
                problems,
                lambda: copy_into(module, earlier_fold(found[0], 0)["average"], f"{key} {given}"),
            )
        ):
            return given
        told.update([found])
        return found[0]

    def look_up(name: str, key: str, given: Any) -> Any:
        if name not in member_of:
            return given
        member = member_of[name]
        return path_of(member, given) if key == "weights" else winner(member, key, given)

    return looked_up(study, look_up), tuple(told.values())


def _check_folds(study: Study, dataset: Dataset) -> list[str]:
    if len(dataset.fold_of) < 2 or dataset.folds < 2:
        return [
            f"dataset {dataset.path}: cross-validation by patient needs at least 2 patients, got "
            f"{len(dataset.fold_of)}; add scans of other patients"
        ]
    if study.search.folds not in (None, dataset.folds):
        return [
            f"search.folds: must be the dataset's {dataset.folds}, got {study.search.folds}; "
            f"prepare the dataset with --folds {study.search.folds}"
        ]
    if study.search.test_fold and dataset.folds < 3:
        return [
            f"search.test_fold: needs at least 3 folds, one to train on, got {dataset.folds}; "
            "prepare the dataset with more --folds"
        ]
    return []


def _check_unlabelled(member: Member, dataset: Dataset) -> list[str]:
    config, folds = member.config, range(dataset.folds)
    wanted = config.unlabelled or "unlabelled" in member.study.space
    lacking = [k for k in folds if not member.task.unlabelled(dataset.training(k), config)]
    if not wanted or not lacking:
        return []
    return [
        f"unlabelled: {member.model.name} needs scans without annotation (or without its target, "
        f"where scans are classified) to train every fold on, but fold {lacking[0]} of dataset "
        f"{dataset.path} has none; leave it out"
    ]


def _sizes(member: Member) -> list[int]:
    """The image sizes of the study, as far as they are named."""
    param = member.study.space.get("imgsz")
    values = (param.choice or param.bounds or ()) if param else (member.config.imgsz,)
    return sorted(v for v in values if isinstance(v, int))


def _no_score(study: Study) -> str:
    """That the target is a score that no model can have, as 90 of a share of 1; empty where it is
    one.
    """
    target, metric = study.limits.target, METRICS.get(study.metric)
    if target is None or metric is None or metric.within(target) == target:
        return ""
    beyond = (target > metric.high) == (study.sign > 0)
    what = "it ends no search" if beyond else "the first complete configuration ends the search"
    return (
        f"limits.target: {target:g} is no {study.metric}, which is between {metric.low:g} and "
        f"{metric.high:g}: {what}"
    )


def _air(dataset: Dataset) -> str:
    """That a few scans make the canvas of all much larger than most need, which costs time alone;
    empty where they do not.
    """
    shapes = [
        (s.height / max(s.height, s.width), s.width / max(s.height, s.width)) for s in dataset.scans
    ]
    high, wide = (max(sides) for sides in zip(*shapes))
    times = high * wide / statistics.median(h * w for h, w in shapes)
    return (
        f"scans of other shapes make every image to train on {times:.1f} times as large as most "
        "are; prepare them apart"
        if times >= AIR
        else ""
    )


def _steps(member: Member, dataset: Dataset) -> int:
    """Optimiser steps of an epoch of the smallest fold at the largest batch of the space."""
    study, config = member.study, member.config
    sizes = [
        p.choice or p.bounds or () for name, p in study.space.items() if name in ("batch", "nbs")
    ]
    largest = max(
        [
            float(config.batch),
            float(config.nbs),
            *(float(str(v)) for values in sizes for v in values if v != "auto"),
        ]
    )
    # Two views that share a canvas are one image of the batch.
    pairs = (
        2
        if config.montage
        or ("montage" in study.space and True in (study.space["montage"].choice or ()))
        else 1
    )
    trained = [
        member.task.usable(dataset.training(fold, config.negatives))
        for fold in range(dataset.folds)
    ]
    return min(math.ceil(member.task.count(scans, config) / pairs / largest) for scans in trained)


def _check_disk(study: Study, members: Sequence[Member], out: Path, folds: int) -> None:
    """Room for the weights: kept configurations, and one more at work with its optimiser's
    state.
    """
    parent = out
    while not parent.exists():
        parent = parent.parent
    built = [module for m in members if (module := m.built()) is not None]
    largest = max((sum(p.numel() for p in module.parameters()) for module in built), default=0)
    need = folds * 4 * largest * (3 * study.keep + 8)
    free = shutil.disk_usage(parent).free
    if free < need:
        raise WrongInput(
            f"--out {out}: the study needs about {need / 1e6:.0f} MB for weights, but the disk has "
            f"{free / 1e6:.0f} MB free; free some, choose another place, or set keep lower"
        )
