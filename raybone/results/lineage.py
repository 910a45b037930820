"""Earlier studies that a study builds on: whose winner its folds start from, or whose findings it
learns to leave.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from raybone.data.dataset import Dataset, open_dataset
from raybone.data.folds import TEST
from raybone.errors import WrongInput
from raybone.models._model import EARLIER, TrainingConfig, names_study
from raybone.results.study_folder import StudyFolder, study_at
from raybone.study.spec import ResolvedStudy, Study
from raybone.tasks import task_of
from raybone.train.checkpoint import earlier_fold


def winner_of(given: str, study: Study, dataset: Dataset, key: str) -> tuple[str, str]:
    """The folder of the winner's fold models, and a line on what that means.

    Fold k of a study builds on fold k of an earlier one on the same dataset and folds, so that no
    model is trained, at any step, on a patient by whom it is judged; that the same folds chose the
    earlier winner remains. Of another dataset, and of those that its study was built on, no patient
    may be in this one, by pseudonym or by pixels.

    Args:
        given: a study folder, or one complete configuration of it as STUDY/runs/ID.
        key: the hyper-parameter that asks, one of EARLIER.
    Raises:
        WrongInput: there is no winner with its weights, it is of another kind, or a patient may
            leak.
    """
    folder, wanted = _opened(given, key)
    earlier = folder.study
    complete = [c for c in folder.complete() if wanted in ("", c.id)]
    if key == "init_from" and study.model in earlier.names:
        complete = [c for c in complete if earlier.under(c.params).model == study.model]
    best = next(iter(complete), None)
    if best is None or not best.has_weights():
        raise WrongInput(
            f"{key}: study {given} must have a complete configuration with the weights of all "
            "folds, but has none; let it end first, with keep at least 1"
        )
    models = ", ".join(earlier.names)
    if key == "init_from" and study.model not in earlier.names:
        raise WrongInput(
            f"{key}: study {given} must be of {study.model}, but is of {models}; give another one"
        )
    if key == "nm" and not task_of(earlier).masks:
        raise WrongInput(
            f"{key}: study {given} must be of a segmenter, but is of {models}; give another one"
        )
    if "config" not in earlier_fold(best.url, 0):
        raise WrongInput(
            f"{key}: study {given} was trained before its weights said how; train it again"
        )
    whom = _seen(given, earlier, dataset, key)
    return best.url, f"{key}: built on {best.id} of study {earlier.name}, trained on {whom}"


def trained_before(studies: Iterable[str]) -> tuple[set[str], set[str]]:
    """Patients and pixels (``Scan.pixels``) that earlier studies were trained on, and the ones
    before them: what their weights have seen.

    Args:
        studies: their folders, or those of their configurations.
    Raises:
        WrongInput: a study or its dataset is gone.
    """
    patients, pixels = set[str](), set[str]()
    for place in studies:
        study = _opened(place, "refit")[0].study
        dataset = open_dataset(study.dataset)
        if dataset.hash != study.resolved.dataset_hash:
            raise WrongInput(
                f"refit: whom study {place} was trained on cannot be known, as its dataset "
                f"{study.dataset} has changed; put the old one back, or train without that study"
            )
        own = {p for p, fold in dataset.fold_of.items() if fold != TEST}
        earlier = trained_before(places_of(study))
        patients |= own | earlier[0]
        pixels |= {s.pixels for s in dataset.scans if s.patient_id in own} | earlier[1]
    return patients, pixels


def places_of(study: Study) -> set[str]:
    """The earlier studies that a study may build on."""
    found = list[Any]()
    for alone in map(study.of, study.names):
        for key in EARLIER:
            choice = alone.space[key].choice if key in alone.space else None
            found += [v for v in (alone.fixed.get(key), *(choice or ())) if names_study(key, v)]
    return set(found)


def built_on(config: TrainingConfig) -> dict[str, str]:
    """The earlier configurations that this one builds on, by the hyper-parameter that says so."""
    values = {key: getattr(config, key, "") for key in EARLIER}
    return {key: value for key, value in values.items() if names_study(key, value)}


def _opened(given: str, key: str) -> tuple[StudyFolder, str]:
    """As ``study_at``; that it is no study is said of the hyper-parameter."""
    folder, config_id = study_at(given)
    try:
        folder.study  # noqa: B018
        return folder, config_id
    except WrongInput as error:
        raise WrongInput(*(f"{key} {given}: {problem}" for problem in error.problems)) from None


def _seen(given: str, earlier: ResolvedStudy, dataset: Dataset, key: str) -> str:
    """Whom the earlier models have seen, in words."""
    if earlier.resolved.dataset_hash == dataset.hash:
        if dataset.test_fold and not earlier.search.test_fold:
            raise WrongInput(
                f"{key}: the folds of study {given} were trained on this study's test folds, which "
                "leaks; run it with search.test_fold: true as well"
            )
        return "the same folds, which chose it too"
    try:
        other = open_dataset(earlier.dataset)
    except WrongInput as error:
        raise WrongInput(
            f"{key}: whom study {given} was trained on cannot be known ({error.problems[0]}); put "
            "its dataset back"
        ) from None
    if other.hash != earlier.resolved.dataset_hash:
        raise WrongInput(
            f"{key}: dataset {earlier.dataset} has changed since study {given} was trained on it; "
            "put the old one back"
        )
    patients, pixels = set(other.fold_of), {s.pixels for s in other.scans}
    common = {s.patient_id for s in dataset.scans if s.patient_id in patients or s.pixels in pixels}
    if common:
        raise WrongInput(
            f"{key}: study {given} was trained on {len(common)} patients of this dataset (first "
            f"{min(common)}) under other folds, which leaks; give a study of other patients, or of "
            "this very dataset"
        )
    words = f"{len(patients)} other patients"
    keys = {d.meta.get("pseudonyms", d.path) for d in (dataset, other)}
    if len(keys) > 1 or not (dataset.meta["patients_known"] and other.meta["patients_known"]):
        words += " (unless known by other pseudonyms and other pixels: prepare both with one --key)"
    return "; ".join([words, *_before(given, earlier, dataset, key), *earlier.resolved.warnings])


def _before(given: str, earlier: ResolvedStudy, dataset: Dataset, key: str) -> list[str]:
    """Whom the studies that a study of other patients was built on have seen, in words."""
    words = []
    for place in sorted(places_of(earlier)):
        first = _opened(place, key)[0].study
        if first.resolved.dataset_hash == dataset.hash:
            raise WrongInput(
                f"{key}: study {given} was built on study {first.name}, which was trained on this "
                "dataset under folds that do not match; give another one"
            )
        words.append(f"before that {_seen(place, first, dataset, key)}")
    return words
