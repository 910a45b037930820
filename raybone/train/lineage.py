"""Earlier studies that a study builds on: whose winner its folds start from, or whose findings it
learns to leave.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raybone.data.dataset import Dataset, open_dataset
from raybone.data.folds import TEST
from raybone.errors import FitFailed, WrongInput
from raybone.models import load
from raybone.search.journal import read_resolved
from raybone.storage import Folder
from raybone.study.spec import Study
from raybone.train.checkpoint import read_checkpoint

KEYS = ("init_from", "nm")  # hyper-parameters that name an earlier study
OTSU = "otsu"  # nm's other value


def winner_of(given: str, study: Study, dataset: Dataset, key: str) -> tuple[str, str]:
    """The folder of the winner's fold models, and a line on what that means.

    Fold k of a study builds on fold k of an earlier one on the same dataset and folds, so that no
    model is trained, at any step, on a patient by whom it is judged; that the same folds chose the
    earlier winner remains. Of another dataset, and of those that its study was built on, no patient
    may be in this one, by pseudonym or by pixels.

    Args:
        given: a study folder, or one complete configuration of it as STUDY/runs/ID.
        key: the hyper-parameter that asks, one of KEYS.
    Raises:
        WrongInput: there is no winner with its weights, it is of another kind, or a patient may
            leak.
    """
    folder, wanted = _opened(given)
    earlier = _read(folder, given, key)
    config_id = _complete(folder, wanted)
    assert earlier.resolved is not None
    if not config_id or not all(
        "last.pt" in folder.names(f"runs/{config_id}/fold{k}")
        for k in range(earlier.resolved.folds)
    ):
        raise WrongInput(
            f"{key}: study {given} must have a complete configuration with the weights of all "
            f"folds, but "
            "has none; let it end first, with keep at least 1"
        )
    if key == "init_from" and earlier.model != study.model:
        raise WrongInput(
            f"{key}: study {given} must be of {study.model}, but is of {earlier.model}; give "
            f"another one"
        )
    if key == "nm" and load(earlier.model).task != "segmentation":
        raise WrongInput(
            f"{key}: study {given} must be of a segmenter, but is of {earlier.model}; give another "
            f"one"
        )
    place = f"{folder.url}/runs/{config_id}"
    if "config" not in earlier_fold(place, 0):
        raise WrongInput(
            f"{key}: study {given} was trained before its weights said how; train it again"
        )
    whom = _seen(given, earlier, dataset, key)
    return place, f"{key}: built on {config_id} of study {earlier.name}, trained on {whom}"


def earlier_fold(place: str, fold: int) -> dict[str, Any]:
    """``last.pt`` of this fold of an earlier configuration, or of its first where it has fewer
    folds.

    Args:
        place: folder of the configuration.
    Raises:
        FitFailed: its weights are gone.
    """
    folder = Folder(place)
    number = fold if f"fold{fold}" in folder.names() else 0
    state = read_checkpoint(folder.child(f"fold{number}"))
    if state is None:
        raise FitFailed(
            f"{place}/fold{number}: must have the weights of an earlier study, but last.pt is "
            f"gone; train "
            "that again, with a larger keep"
        )
    return state


def trained_before(places: Iterable[object]) -> set[str]:
    """Patients that earlier studies were trained on, and the ones before them: what their weights
    have seen.

    Args:
        places: values of the hyper-parameters KEYS; what names no study is passed over.
    Raises:
        WrongInput: a study or its dataset is gone.
    """
    seen = set[str]()
    for place in (p for p in places if isinstance(p, str) and p not in ("", OTSU)):
        study = _read(_opened(place)[0], place, "refit")
        dataset = open_dataset(study.dataset)
        if study.resolved is None or dataset.hash != study.resolved.dataset_hash:
            raise WrongInput(
                f"refit: whom study {place} was trained on cannot be known, as its dataset "
                f"{study.dataset} has changed; put the old one back, or train without that study"
            )
        seen |= {p for p, fold in dataset.fold_of.items() if fold != TEST}
        seen |= trained_before(places_of(study))
    return seen


def places_of(study: Study) -> set[object]:
    """What a study's hyper-parameters KEYS may be."""
    return {
        value
        for name in KEYS
        for value in (
            study.fixed.get(name),
            *((study.space[name].choice or ()) if name in study.space else ()),
        )
    }


def _opened(given: str) -> tuple[Folder, str]:
    """The study folder, and the configuration where one is named."""
    folder = Folder(given if "://" in given else Path(given).resolve())
    place, runs, config_id = folder.url.rpartition("/runs/")
    named = (
        runs and folder.read("study.yaml") is None and Folder(place).read("study.yaml") is not None
    )
    return (Folder(place), config_id) if named else (folder, "")


def _read(folder: Folder, given: str, key: str) -> Study:
    try:
        return read_resolved(folder)
    except WrongInput as error:
        raise WrongInput(*(f"{key} {given}: {problem}" for problem in error.problems)) from None


def _complete(folder: Folder, wanted: str) -> str:
    """The configuration of that name when it is complete; without a name the first of the
    leaderboard.
    """
    rows = csv.DictReader(io.StringIO((folder.read("leaderboard.csv") or b"").decode()))
    return next(
        (
            row["config_id"]
            for row in rows
            if row["state"] == "complete" and wanted in ("", row["config_id"])
        ),
        "",
    )


def _seen(given: str, earlier: Study, dataset: Dataset, key: str) -> str:
    """Whom the earlier models have seen, in words."""
    assert earlier.resolved is not None
    if earlier.resolved.dataset_hash == dataset.hash:
        if dataset.test_fold and not earlier.search.test_fold:
            raise WrongInput(
                f"{key}: the folds of study {given} were trained on this study's test folds, which "
                f"leaks; "
                "run it with search.test_fold: true as well"
            )
        return "the same folds, which chose it too"
    try:
        other = open_dataset(earlier.dataset)
    except WrongInput as error:
        raise WrongInput(
            f"{key}: whom study {given} was trained on cannot be known ({error.problems[0]}); put "
            f"its "
            "dataset back"
        ) from None
    if other.hash != earlier.resolved.dataset_hash:
        raise WrongInput(
            f"{key}: dataset {earlier.dataset} has changed since study {given} was trained on it; "
            f"put the "
            "old one back"
        )
    patients, pixels = set(other.fold_of), {s.scan_id.partition("-")[0] for s in other.scans}
    common = {
        s.patient_id
        for s in dataset.scans
        if s.patient_id in patients or s.scan_id.partition("-")[0] in pixels
    }
    if common:
        raise WrongInput(
            f"{key}: study {given} was trained on {len(common)} patients of this dataset (first "
            f"{min(common)}) under other folds, which leaks; give a study of other patients, or of "
            f"this "
            "very dataset"
        )
    words = f"{len(patients)} other patients"
    keys = {d.meta.get("pseudonyms", d.path) for d in (dataset, other)}
    if len(keys) > 1 or not (dataset.meta["patients_known"] and other.meta["patients_known"]):
        words += " (unless known by other pseudonyms and other pixels: prepare both with one --key)"
    return "; ".join([words, *_before(given, earlier, dataset, key), *earlier.resolved.warnings])


def _before(given: str, earlier: Study, dataset: Dataset, key: str) -> list[str]:
    """Whom the studies that a study of other patients was built on have seen, in words."""
    words = []
    for place in sorted(
        p for p in places_of(earlier) if isinstance(p, str) and p not in ("", OTSU)
    ):
        folder, _ = _opened(place)
        first = _read(folder, place, key)
        assert first.resolved is not None
        if first.resolved.dataset_hash == dataset.hash:
            raise WrongInput(
                f"{key}: study {given} was built on study {first.name}, which was trained on this "
                f"dataset "
                "under folds that do not match; give another one"
            )
        words.append(f"before that {_seen(place, first, dataset, key)}")
    return words
