"""A study as a sheet of CLAIM 2024, with the items of TRIPOD+AI: what is known is filled in, the
gaps are named.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from raybone.data.annotations import foci
from raybone.data.dataset import Dataset, dataset_of
from raybone.data.folds import TEST, TRAINING
from raybone.environment import in_short
from raybone.errors import WrongInput
from raybone.models import load
from raybone.models._model import names_study
from raybone.results.compare import unfetched
from raybone.results.study_folder import StudyFolder
from raybone.storage import fold_name
from raybone.study.soundness import PLACES
from raybone.study.spec import ResolvedStudy, Study
from raybone.study.yaml12 import load_yaml
from raybone.types import Scan

GAP = "to be written"
PIECES = {
    "tile": "tiles of the scans",
    "lesion_tile": "tiles of the scans, of which those with lesions by the truth were taken",
}


@dataclass(frozen=True)
class Row:
    """One item: what it asks, where TRIPOD+AI does, what is known, and what the authors must add;
    either may be empty.
    """

    item: int
    section: str
    asks: str
    tripod: str
    known: str
    missing: str


def claim(url: str, moved: str = "") -> list[Row]:
    """The sheet of a study, finished or not.

    Args:
        moved: where the study's dataset is now, if it was moved.
    Raises:
        WrongInput: no study there, or its dataset is gone.
    """
    folder = StudyFolder(url, moved)
    study = folder.study
    if why := unfetched(study, moved):
        raise WrongInput(f"checklist {url}: needs the dataset, but {why}; give it with --dataset")
    dataset = dataset_of(study)
    answers = {
        **_of_data(dataset),
        **_of_training(folder),
        10: (_pieces(study, dataset.meta["preprocessing"]["steps"]), ""),
        **_of_results(folder),
    }
    text = files("raybone.results.reporting").joinpath("claim.yaml").read_text(encoding="utf-8")
    items: list[dict[str, Any]] = load_yaml(text)
    sheet = list[Row]()
    for item in items:
        known, missing = answers.get(item["item"], ("", GAP))
        sheet.append(Row(**item, known=known, missing=missing))
    return sheet


def claim_lines(name: str, rows: list[Row]) -> Iterator[str]:
    """The sheet as Markdown."""
    full, gaps = sum(not r.missing for r in rows), sum(not r.known for r in rows)
    yield f"# CLAIM 2024 and TRIPOD+AI: {name}"
    yield ""
    yield (
        f"Of {len(rows)} items {full} are known to raybone, {len(rows) - full - gaps} in part; "
        f"{gaps} are the authors' alone. Check each before it is sent."
    )
    yield ""
    yield "| CLAIM | TRIPOD+AI | section | asks for | known | missing |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        cells = (row.item, row.tripod, row.section, row.asks, row.known, row.missing)
        yield f"| {' | '.join(str(c).replace('|', '/') for c in cells)} |"


def _of_data(dataset: Dataset) -> dict[int, tuple[str, str]]:
    meta, scans = dataset.meta, dataset.scans
    counts, steps = meta["counts"], meta["preprocessing"]["steps"]
    sides = Counter(f"{s.height}x{s.width}" for s in scans)
    millimetres = sorted({s.pixel_mm for s in scans if s.pixel_mm})
    spacing = (
        f"{millimetres[0]:g} to {millimetres[-1]:g} mm a pixel"
        if millimetres
        else "size of pixels unknown"
    )
    scanners, sites = ({getattr(s, k) for s in scans} - {"unknown"} for k in ("scanner", "site"))
    views, flags = Counter(s.view for s in scans), Counter(f for s in scans for f in s.flags)
    lost = f"{counts['annotations_lost']} of {counts['annotations']} annotations found no scan"
    apart = "by image, as patients are not named; scans that look alike are one group"
    known = "by patient" if meta["patients_known"] else apart
    return {
        7: (
            f"dataset {dataset.hash}, layout {meta['layout']}, {len(sites)} named sites",
            "where it is from, and when",
        ),
        8: (
            f"{counts['rejected']} inputs were not taken; dataset.json and rejected.csv say why",
            "the criteria",
        ),
        9: (f"steps: {', '.join(steps) or 'none'}; {meta['preprocessing']['values']}", ""),
        11: (
            "pseudonyms by a key; headers are not kept; "
            f"{flags['burned-in-text']} scans are flagged for text in their pixels",
            "ethical approval",
        ),
        12: (f"{counts['unannotated']} scans without annotation; {lost}", ""),
        13: (
            f"{spacing}; {_most(sides)}; views {_most(views)}; {len(scanners)} named scanners",
            "tracer, activity, time after injection, collimator",
        ),
        14: (
            f"{counts['lesions']} annotated lesions of {', '.join(dataset.categories)}",
            "how they were made",
        ),
        19: (
            f"{dataset.folds} folds, {_dealt(meta)}"
            + (f"; test group of {counts['test_patients']} patients" if dataset.test else ""),
            "",
        ),
        20: (known, ""),
        21: (
            f"{counts['patients']} patients, {counts['scans']} scans",
            "a calculation of the size",
        ),
        35: (
            f"{counts.get('inputs', 'unknown number of')} inputs; {counts['rejected']} not taken"
            f"{_reasons(dataset)}; "
            f"{counts['scans']} scans of {counts['patients']} patients",
            "what came before these inputs",
        ),
        36: ("; ".join(_parts(dataset)), "age, sex, stage of the patients"),
    }


def _dealt(meta: Mapping[str, Any]) -> str:
    """How the patients were dealt to folds."""
    return {
        "site": "each of one site or scanner",
        "split": "as a given table has them",
    }.get(meta.get("folds_by", ""), f"alike in {meta['stratified_by'] or 'the number of lesions'}")


def _reasons(dataset: Dataset) -> str:
    """Why inputs were not taken, the most frequent first."""
    file = dataset.path / "rejected.csv"
    if not file.is_file():
        return ""
    with file.open(newline="", encoding="utf-8") as lines:
        known = Counter(row["reason"] for row in csv.DictReader(lines))
    return f" ({'; '.join(f'{n} {why}' for why, n in known.most_common(9))})" if known else ""


def _parts(dataset: Dataset) -> Iterator[str]:
    names = {TEST: "test group", TRAINING: "training alone"}
    by_fold: dict[int, list[Scan]] = {}
    for scan in dataset.scans:
        by_fold.setdefault(dataset.fold_of[scan.patient_id], []).append(scan)
    for fold, own in sorted(by_fold.items()):
        patients, lesions = len({s.patient_id for s in own}), sum(len(list(foci(s))) for s in own)
        name = names.get(fold) or fold_name(fold)
        yield f"{name}: {patients} patients, {len(own)} scans, {lesions} lesions"


def _of_training(folder: StudyFolder) -> dict[int, tuple[str, str]]:
    study, state = folder.study, folder.state
    search, models = study.search, [load(name) for name in map(_model_of(study), study.names)]
    ran = [in_short(e) for several in state.environments.values() for e in several]
    packages = [
        f"{n} {v}"
        for several in state.environments.values()
        for e in several
        for n, v in e["packages"].items()
    ]
    starts = dict.fromkeys(
        f"{key} {value}"
        for alone in map(study.of, study.names)
        for key in PLACES
        for value in (alone.fixed.get(key), *_choices(alone, key))
        if value and (key != "nm" or names_study(key, value))
    )
    searched = [
        f"{f'{name}: ' if study.models else ''}{_searched(study.of(name))}" for name in study.names
    ]
    return {
        1: ("deep learning", "the title"),
        6: (
            f"which of {len(study.names)} model(s) and which hyper-parameters have the best "
            f"{study.metric}",
            "",
        ),
        22: ("; ".join(f"{m.name} ({m.task}): {m.SOURCE}" for m in models), ""),
        23: (
            f"{'; '.join(dict.fromkeys(ran))}; {', '.join(dict.fromkeys(packages))}" if ran else "",
            "" if ran else "what it ran on",
        ),
        24: (", ".join(starts) or "random, by the seed", ""),
        25: (
            f"{len(state.configurations)} configurations by {search.sampler} and "
            f"{search.scheduler}, seed {search.seed}, {study.epochs} epochs, "
            f"{state.fold_epochs} fold epochs; {'; '.join(searched)}",
            "",
        ),
        26: (
            f"best mean {study.metric} of the folds at the last epoch, of complete configurations",
            "",
        ),
        27: ("one model a fold; `raybone refit` joins them by their mean", ""),
        42: (f"study.yaml of {study.name}, raybone {study.resolved.code_version}", "a protocol"),
        43: ("raybone is free software (AGPL-3.0-or-later)", "where models and data are to be had"),
    }


def _choices(study: Study, key: str) -> tuple[Any, ...]:
    return (study.space[key].choice or ()) if key in study.space else ()


def _searched(study: Study) -> str:
    """What is fixed and what is searched in a study of one model."""
    space = {k: p.model_dump(exclude_none=True, mode="json") for k, p in study.space.items()}
    text = yaml.safe_dump(space, default_flow_style=True, width=10_000).strip()
    return f"fixed {dict(study.fixed)}; searched {text}"


def _pieces(study: ResolvedStudy, steps: Sequence[str]) -> str:
    """What of a scan a network sees.

    Args:
        steps: of the dataset.
    """
    whole, seen = next((PIECES[step] for step in steps if step in PIECES), "whole scans"), []
    for alone in map(study.of, study.names):
        if load(alone.model).task == "classification" and not alone.fixed.get("target"):
            seen.append("a piece around each lesion")
            continue
        tiles = [alone.fixed.get("tile"), *_choices(alone, "tile")]
        sizes = [f"tiles of {tile} pixels" if tile else whole for tile in tiles if tile is not None]
        seen += sizes or [whole]
    return ", ".join(dict.fromkeys(seen))


def _model_of(study: ResolvedStudy) -> Any:
    return lambda name: study.of(name).model


def _of_results(folder: StudyFolder) -> dict[int, tuple[str, str]]:
    study, table = folder.study, folder.table()
    m, complete = study.metric, table[table["state"] == "complete"]
    judged = any(load(study.of(name).model).task == "classification" for name in study.names)
    answers = {
        28: (f"{m} ranks; definitions and sources are in the documentation of raybone.metrics", ""),
        29: (
            "95 % intervals of a bootstrap by patient and of Nadeau and Bengio, paired tests "
            "against the best, the winner's score without the choice",
            "",
        ),
        31: ("Grad-CAM in report and predict" if judged else "", "" if judged else GAP),
        32: (f"{study.resolved.folds}-fold cross-validation", ""),
        33: ("", "`raybone evaluate BUNDLE DATASET` on other patients"),
        39: ("the worst scans are in the report", "why they failed"),
    }
    if not len(complete):
        return {**answers, 37: ("", "no configuration is complete yet")}
    best: Mapping[Any, Any] = complete.iloc[0].to_dict()
    others = [
        f"{c.removesuffix('_mean')} {best[c]:.3f}"
        for c in map(str, table)
        if c.endswith("_mean") and best[c] == best[c]
    ]
    test = best[f"{m}_test"]
    answers[37] = (
        f"{best['config_id']} ({best['model']}): {m} {best[f'{m}_mean']:.3f} "
        f"(95 %: {best[f'{m}_nb_low']:.3f} to {best[f'{m}_nb_high']:.3f}), corrected for the "
        f"choice {best[f'{m}_corrected']:.3f}"
        + (f", test group {test:.3f}" if test == test else ""),
        "",
    )
    answers[38] = (", ".join(others), "")
    return answers


def _most(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.most_common(4))
