"""A study beside the figures that the papers published, which are of other data: its winner, and
the rows of its table.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from importlib.resources import files
from typing import Any

import numpy as np

from raybone.data.dataset import Dataset, open_dataset
from raybone.errors import WrongInput
from raybone.hpo.state import Configuration
from raybone.metrics.intervals import corrected_interval
from raybone.metrics.subgroups import confusion, group_of_count, roc, subgroup_table
from raybone.results.leaderboard import trained
from raybone.results.study_folder import ConfigurationFolder, StudyFolder
from raybone.study.metric import METRICS, named
from raybone.study.spec import ResolvedStudy
from raybone.tasks import task_of
from raybone.types import Finding

# The mean that a study of double U-Nets prints of its folds: F1 of mean precision and sensitivity
F1_OF_MEANS = "F1 of means"
OTHER = (
    "published figures are of other patients, scanners and readers: they say what to expect, not "
    "who is better"
)


def compare(url: str, dataset: str = "") -> dict[str, Any]:
    """The winner of a study folder beside what is published of its system, and a classifier's
    subgroups.

    Returns:
        study, config_id, dataset_hash, note; rows: metric, mean over folds, low and high of Nadeau
        & Bengio's interval, test (mean over test folds, NaN without), and ``published``, a list of
        {system, variant, table, value}, empty where the paper has none; configurations: all that
        are complete, best first, with the hyper-parameters in which they differ and the mean of
        each of those metrics, as the rows of a paper's table; subgroups, confusion and
        roc of a classifier's out-of-fold predictions, or ``not_shown``, why there are none. What a
        paper published of a ``subgroup`` has a row of its own, with ours of that subgroup (of all
        folds together).
    Raises:
        WrongInput: it has no complete configuration.
    """
    folder = StudyFolder(url, dataset)
    study, best = folder.study, folder.winner()
    if best is None:
        raise WrongInput(
            f"compare {url}: needs a complete configuration, but has none; let the search end"
        )
    cases: dict[str, Any] = {}
    if task_of(study).judged:
        if why := unfetched(study, dataset):
            cases = {"not_shown": f"no subgroups: {why}"}
        else:
            opened = open_dataset(study.dataset)
            cases = classified(opened, findings_of(best, opened))
    rows = beside(study, best.record, cases.get("subgroups", {}))
    return {
        "study": study.name,
        "config_id": best.id,
        "dataset_hash": study.resolved.dataset_hash,
        "note": OTHER,
        "rows": rows,
        "configurations": table_of(
            study, folder.complete(), list(dict.fromkeys(row["metric"] for row in rows))
        ),
        **cases,
    }


def table_of(
    study: ResolvedStudy, complete: list[ConfigurationFolder], metrics: list[str]
) -> list[dict[str, Any]]:
    """``configurations`` of ``compare``: of each the means of these metrics over the folds, and
    what differs among them.
    """
    params = {c.id: c.params for c in complete}
    names = dict.fromkeys(name for own in params.values() for name in own)
    differ = [n for n in names if len({repr(own.get(n)) for own in params.values()}) > 1]
    folds = study.resolved.folds
    return [
        {
            "config_id": c.id,
            "params": {name: params[c.id].get(name) for name in differ},
            **{m: _measured(c.record, folds, m, trained(study))["mean"] for m in metrics},
        }
        for c in complete
    ]


def unfetched(study: ResolvedStudy, moved: str) -> str:
    """Why the dataset of a study is not looked at, if it is not: its study.yaml may be a
    stranger's.

    Args:
        moved: where the user says that the dataset is, if they do.
    """
    if moved or "://" not in study.dataset:
        return ""
    return (
        f"the dataset is at {study.dataset!r}, an address that study.yaml names and that is not "
        "asked; if you trust it, give it as --dataset"
    )


def beside(
    study: ResolvedStudy, best: Configuration, subgroups: dict[str, Any]
) -> list[dict[str, Any]]:
    """``rows`` of ``compare``: what a complete configuration scored, and what is published.

    Args:
        subgroups: of ``classified``; none for other tasks.
    """
    published = figures(study.name)
    groups: dict[str, Any] = {}
    for table in subgroups.values():
        groups |= table["groups"]
    # Of each metric and subgroup, what papers say of it; ours come first.
    said: dict[tuple[str, str], list[dict[str, Any]]] = {(study.metric, ""): []}
    for figure in published:
        shown = {k: figure[k] for k in ("system", "variant", "table", "value")}
        said.setdefault((figure["metric"], figure["subgroup"]), []).append(shown)
    measured = {m for run in best.epochs.values() for m in run.metrics if m in METRICS}
    measured |= {F1_OF_MEANS} if {"precision", "sensitivity"} <= measured else set()
    rows = []
    for (metric, part), figures_of_it in said.items():
        if metric in measured - {"val_loss"} and part in ("", *groups):
            own = _measured(best, study.resolved.folds, metric, trained(study))
            if part:
                own = dict.fromkeys(own, math.nan) | {"mean": groups[part][metric]}
            rows.append({"metric": metric, "subgroup": part, **own, "published": figures_of_it})
    return rows


def figures(study: str) -> list[dict[str, Any]]:
    """The published figures of the system that a study of this name repeats; none for other names.

    ``subgroup`` is what a figure of a part of the cases is of, by the name that it has here; empty
    for all cases.
    """
    text = files("raybone.results").joinpath("published.csv").read_text(encoding="utf-8")
    return [
        {
            **row,
            "metric": named(row["metric"]),
            "value": float(row["value"]),
            "subgroup": row["variant"].removesuffix(" lesions")
            if row["dataset"].endswith("subgroup")
            else "",
        }
        for row in csv.DictReader(text.splitlines())
        if row["study"] == study
    ]


def findings_of(best: ConfigurationFolder, dataset: Dataset) -> list[Finding]:
    """What a complete configuration predicts of each fold's validation patients, out of fold, fold
    after fold.

    Raises:
        WrongInput: the dataset is not the study's, or predictions of a fold's final epoch are gone.
    """
    same = dataset.hash == best.folder.study.resolved.dataset_hash
    folds = best.predictions(dataset) if same else None
    if folds is None:
        raise WrongInput(
            f"study {best.folder.url}: needs its dataset and the predictions of all folds of "
            f"{best.id}, but one has changed or is gone; put it back"
        )
    return [finding for fold in folds for finding in fold]


def classified(dataset: Dataset, findings: list[Finding]) -> dict[str, Any]:
    """Subgroup tables, confusion and ROC of a classifier's out-of-fold predictions."""
    scans = {s.scan_id: s for s in dataset.scans}
    score_N = np.array([f["score"] for f in findings], float)
    truth_N = np.array([f["positive"] for f in findings], bool)
    on_scan = Counter(f["scan_id"] for f in findings)
    labels = [dict(scans[f["scan_id"]].labels) for f in findings]
    groups = {"lesions on the scan": [group_of_count(on_scan[f["scan_id"]]) for f in findings]}
    for name in dict.fromkeys(name for own in labels for name in own):
        groups[name] = [own.get(name, "unknown") for own in labels]
    return {
        "subgroups": {
            name: subgroup_table(score_N, truth_N, group_N)
            for name, group_N in groups.items()
            if 1 < len(set(group_N)) <= 10
        },
        "confusion": confusion(score_N, truth_N),
        "roc": roc(score_N, truth_N),
    }


def comparison_lines(compared: dict[str, Any]) -> list[str]:
    """What ``compare`` gives, for a person."""
    lines = [
        f"{compared['study']}: {compared['config_id']} on dataset {compared['dataset_hash']}; "
        f"{compared['note']}",
        f"{'metric':<12} {'ours':<26} {'test folds':<11} published",
    ]
    for row in compared["rows"]:
        ours, part = f"{row['mean']:.4f}", row["subgroup"]
        if not math.isfinite(row["mean"]):
            ours = "undefined" if part else "undefined in a fold"
        if math.isfinite(row["low"]):
            ours += f" ({row['low']:.4f} to {row['high']:.4f})"
        if part:
            ours += f", {part}"
        test = f"{row['test']:.4f}" if math.isfinite(row["test"]) else ""
        said = [
            f"{p['value']:.4f} {', '.join(filter(None, (p['system'], p['variant'])))} "
            f"({p['table']})"
            for p in row["published"]
        ] or ["none"]
        lines += [
            f"{row['metric']:<12} {ours:<26} {test:<11} {said[0]}",
            *(f"{'':<52}{more}" for more in said[1:]),
        ]
    lines += _table_lines(compared["configurations"])
    names = ("sensitivity", "specificity", "accuracy", "PPV", "NPV")
    for name, table in compared.get("subgroups", {}).items():
        lines += ["", f"{name:<22}{'count':>7}" + "".join(f"{m:>13}" for m in (*names, "AUC"))]
        lines += [
            f"{group:<22}{v['count']:>7}" + "".join(f"{v[m]:>13.4f}" for m in (*names, "AUC"))
            for group, v in table["groups"].items()
        ]
        lines.append(
            f"{'p (chi-square)':<29}"
            + "".join(f"{table['chi_square'][m]['p']:>13.2g}" for m in names)
        )
    lines += [compared["not_shown"]] if "not_shown" in compared else []
    if "confusion" in compared:
        lines += [
            "",
            "confusion: " + ", ".join(f"{k} {v}" for k, v in compared["confusion"].items()),
        ]
    return lines


def _table_lines(configurations: list[dict[str, Any]]) -> list[str]:
    """All complete configurations, where there are several."""
    if len(configurations) < 2:
        return []
    metrics = [name for name in configurations[0] if name not in ("config_id", "params")]
    head = f"{'configuration':<14}" + "".join(f"{m:>{max(13, len(m) + 2)}}" for m in metrics)
    lines = ["", head + "  where they differ"]
    for own in configurations:
        means = "".join(f"{own[m]:>{max(13, len(m) + 2)}.4f}" for m in metrics)
        params = ", ".join(f"{k} {_short(v)}" for k, v in own["params"].items() if v is not None)
        lines.append(f"{own['config_id']:<14}{means}  {params}")
    return lines


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _measured(best: Configuration, folds: int, metric: str, parts: int) -> dict[str, float]:
    if metric == F1_OF_MEANS:
        means = [_measured(best, folds, name, parts) for name in ("precision", "sensitivity")]
        f1 = {k: 2 / sum(1 / m[k] if m[k] else math.inf for m in means) for k in ("mean", "test")}
        return {"low": math.nan, "high": math.nan, **f1}
    values_K, tests_K = (
        np.array([best.epochs[k].last(name) for k in range(folds)])
        for name in (metric, f"test_{metric}")
    )
    low, high = map(METRICS[metric].within, corrected_interval(values_K, parts))
    return {
        "mean": float(values_K.mean()),
        "low": low,
        "high": high,
        "test": float(tests_K.mean()),
    }
