"""The journal as a ranked table: one row a configuration, best first, with folds, intervals and
paired tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raybone.errors import WrongInput
from raybone.hpo.state import Configuration, State, gpu_hours
from raybone.metrics.intervals import (
    bootstrap_interval,
    bootstrap_p,
    corrected_interval,
    corrected_p,
    corrected_winner,
)
from raybone.study.spec import DIRECTIONS, FALSE_POSITIVES, ResolvedStudy
from raybone.types import Array

if TYPE_CHECKING:
    import pandas as pd


def leaderboard(study: ResolvedStudy, state: State) -> pd.DataFrame:
    """Rows of all configurations; only complete ones have a rank, the others follow in order of
    progress.

    A fold's score is that of its final epoch. ``ci`` and ``delta_ci`` are 95 % intervals of the
    patient bootstrap: what the trained fold models would score on other patients, on folds of this
    size. ``nb`` and ``p_to_best`` are Nadeau & Bengio's, which allow for other training patients as
    well; they stand in ``ci`` and ``delta_ci`` too where there is no bootstrap: val_loss, folds of
    one patient, rows that are not complete. No p is corrected for the number of configurations.
    ``corrected`` is the winner's score without the curse of the choice among complete rows.
    """
    return _ranked(
        {c.id: (study, c, bool(state.end)) for c in state.configurations.values()}, [study]
    )


def merged_leaderboard(boards: Mapping[str, tuple[ResolvedStudy, State]]) -> pd.DataFrame:
    """The rows of several studies as one leaderboard; a config_id has the study's place before it,
    as in ``a/c003``.

    Args:
        boards: study and state by the place that messages and rows name.
    Raises:
        WrongInput: the rows would not be comparable: metric, dataset, folds or categories differ,
            or the losses of different models are compared.
    """
    first, *others = boards
    traits = {place: _traits(study) for place, (study, _) in boards.items()}
    problems = [
        f"leaderboard {place}: studies in one leaderboard must agree, but {name} is {value} there "
        f"and {traits[first][name]} in {first}; leave one out"
        for place in others
        for name, value in traits[place].items()
        if value != traits[first].get(name, value)
    ]
    if problems:
        raise WrongInput(*problems)
    entries = {
        f"{place}/{c.id}": (study, c, bool(state.end))
        for place, (study, state) in boards.items()
        for c in state.configurations.values()
    }
    return _ranked(entries, [study for study, _ in boards.values()])


# A row's study and configuration, and whether the study has ended.
Entry = tuple[ResolvedStudy, Configuration, bool]


def _traits(study: ResolvedStudy) -> dict[str, object]:
    """What must agree for scores to be comparable."""
    return {
        "metric": study.metric,
        "dataset": study.resolved.dataset_hash,
        "number of folds": study.resolved.folds,
        "categories": study.fixed.get("categories", ["malignant"]),
        "target": study.fixed.get("target", ""),
        "test_fold": study.search.test_fold,
        **({"model (of a loss)": study.model} if study.metric == "val_loss" else {}),
    }


def _ranked(entries: Mapping[str, Entry], studies: Sequence[ResolvedStudy]) -> pd.DataFrame:
    rows = [
        {**_row(study, c, ended), "config_id": name} for name, (study, c, ended) in entries.items()
    ]
    study = studies[0]
    mean = f"{study.metric}_mean"
    worst = -math.inf if study.direction == "maximize" else math.inf
    sign = -1 if study.direction == "maximize" else 1
    # A complete row is as good as its score, however long its study trains; the others stand in
    # order of progress.
    rows.sort(
        key=lambda r: (
            r["state"] != "complete",
            *_progress(r),
            sign * (r[mean] if math.isfinite(r[mean]) else worst),
            r["config_id"],
        )
    )
    complete = [r for r in rows if r["state"] == "complete"]
    for rank, row in enumerate(complete, 1):
        row["rank"] = rank
        row["delta_to_best"] = row[mean] - complete[0][mean]
        row |= _against(row, complete[0], entries) if rank > 1 else {"verdict": "best"}
    if complete:
        folds_CK = np.array([_folds(study, row) for row in complete])
        complete[0][f"{study.metric}_corrected"] = -sign * corrected_winner(-sign * folds_CK)
    looks = [name for name, (_, c, _) in entries.items() if c.test]
    for row in rows if len(looks) > 1 else ():
        row["warnings"] = "; ".join(
            filter(
                None,
                [
                    row["warnings"],
                    f"the test group was looked at {len(looks)} times ({', '.join(looks)})",
                ],
            )
        )
    import pandas as pd  # training processes import this file, and have no table to make

    table = pd.DataFrame(rows, columns=_columns(studies, [c for _, c, _ in entries.values()]))
    table["rank"] = table["rank"].astype("Int64")
    return table


def brief_of(table: pd.DataFrame) -> list[str]:
    """The names of the columns that a reviewer reads first."""
    m = next(c for c in table.columns if c.endswith("_nb_low")).removesuffix("_nb_low")
    first = (
        "rank",
        "config_id",
        "model",
        "state",
        f"{m}_mean",
        f"{m}_nb_low",
        f"{m}_nb_high",
        "verdict",
        f"{m}_corrected",
        f"{m}_test",
    )
    return [name for name in first if name in table.columns]


def interval(
    study: ResolvedStudy, configuration: Configuration, folds_K: Array
) -> tuple[float, float]:
    """``ci`` of the mean of these fold scores: of the patient bootstrap where there is one, else
    Nadeau & Bengio's.
    """
    low, high = (
        bootstrap_interval(
            float(folds_K.mean()), np.array(configuration.replicates), configuration.freedom
        )
        if configuration.replicates
        else corrected_interval(folds_K)
    )
    return _within(study, low), _within(study, high)


def _progress(row: dict[str, Any]) -> tuple[int, int]:
    return (0, 0) if row["state"] == "complete" else (-row["folds_done"], -row["epochs_done"])


def _row(study: ResolvedStudy, configuration: Configuration, ended: bool) -> dict[str, Any]:
    folds, metric = study.resolved.folds, study.metric
    lengths = [len(configuration.epochs.get(k, ())) for k in range(folds)]
    final = {
        m: [_final(configuration, k, m) for k in range(folds)]
        for m in (metric, *DIRECTIONS, *_seen([configuration])[1])
    }
    started = [v for v, n in zip(final[metric], lengths) if n]
    # A fold without a finite score makes the mean NaN: it is not left out.
    values = np.array(started, float)
    mean = float(values.mean()) if len(values) else math.nan
    nb_low, nb_high = corrected_interval(values)
    low, high = interval(study, configuration, values)
    return {
        "rank": None,
        "config_id": configuration.id,
        "model": study.model,
        "state": _state(configuration, ended),
        "folds_done": sum(n == study.epochs for n in lengths),
        "epochs_done": sum(lengths),
        f"{metric}_mean": mean,
        f"{metric}_sd": float(values.std(ddof=1)) if len(values) > 1 else math.nan,
        f"{metric}_ci_low": low,
        f"{metric}_ci_high": high,
        f"{metric}_pooled": configuration.pooled.get(metric, math.nan),
        **{f"{metric}_fold{k}": v for k, v in enumerate(final[metric])},
        **{
            f"{m}_mean": float(np.mean(v))
            for m, v in final.items()
            if m != metric and np.isfinite(v).all()
        },
        "train_seconds": round(configuration.train_seconds, 1),
        "gpu_hours": round(gpu_hours(study, configuration.train_seconds), 4),
        "parameters": configuration.parameters,
        **{f"cfg.{k}": v for k, v in {**study.fixed, **configuration.params}.items()},
        "seed": study.search.seed,
        "dataset_hash": study.resolved.dataset_hash,
        "code_version": study.resolved.code_version,
        "reason": configuration.reason if configuration.status == "failed" else "",
        "warnings": "; ".join(filter(None, [*study.resolved.warnings, configuration.untested])),
        f"{metric}_nb_low": _within(study, nb_low),
        f"{metric}_nb_high": _within(study, nb_high),
        f"{metric}_test": configuration.test.get(metric, math.nan),
        f"{metric}_test_folds": float(
            np.mean([_final(configuration, k, f"test_{metric}") for k in range(folds)])
        ),
        FALSE_POSITIVES: configuration.pooled.get(FALSE_POSITIVES, math.nan),
    }


def _within(study: ResolvedStudy, limit: float) -> float:
    """A limit of an interval, no further than the metric goes: all but the loss are between 0 and
    1.
    """
    return limit if study.direction == "minimize" else float(np.clip(limit, 0.0, 1.0))


def _against(
    row: dict[str, Any], best: dict[str, Any], entries: Mapping[str, Entry]
) -> dict[str, Any]:
    """Paired comparison of a complete row with the best; studies of other seeds have drawn other
    patients.
    """
    (study, one, _), (_, other, _) = (entries[r["config_id"]] for r in (row, best))
    folds_K, best_K = _folds(study, row), _folds(study, best)
    found = {"p_to_best": corrected_p(folds_K, best_K), "p_to_best_bootstrap": math.nan}
    if (
        one.replicates
        and len(one.replicates) == len(other.replicates)
        and row["seed"] == best["seed"]
    ):
        paired = (
            row["delta_to_best"],
            np.array(one.replicates) - np.array(other.replicates),
            min(one.freedom, other.freedom),
        )
        low, high = bootstrap_interval(*paired)
        found["p_to_best_bootstrap"] = bootstrap_p(*paired)
    else:
        low, high = corrected_interval(folds_K - best_K)
    return {
        **found,
        "delta_ci_low": low,
        "delta_ci_high": high,
        "verdict": _verdict(found["p_to_best"]),
    }


def _verdict(p_value: float) -> str:
    """One word a pair: by the test that allows for other training patients (Nadeau & Bengio 2003),
    at 5 %.
    """
    return "worse" if p_value < 0.05 else "not told apart"


def _final(configuration: Configuration, fold: int, metric: str) -> float:
    """The metric at the last epoch that the fold has, NaN when it has none."""
    return configuration.epochs[fold].last(metric) if fold in configuration.epochs else math.nan


def _state(configuration: Configuration, ended: bool) -> str:
    if configuration.status == "stopped" or (ended and configuration.status == "paused"):
        runs = [len(r) for r in configuration.epochs.values()]
        return f"stopped@{len(runs)}x{max(runs, default=0)}"
    return configuration.status if configuration.status in ("complete", "failed") else "running"


def _folds(study: ResolvedStudy, row: dict[str, Any]) -> Any:
    return np.array([row[f"{study.metric}_fold{k}"] for k in range(study.resolved.folds)])


def _columns(
    studies: Sequence[ResolvedStudy], configurations: Sequence[Configuration]
) -> list[str]:
    study = studies[0]
    m = study.metric
    seen, parts = _seen(configurations)
    params = list(dict.fromkeys(name for s in studies for name in [*s.fixed, *s.space]))
    return [
        "rank",
        "config_id",
        "model",
        "state",
        "folds_done",
        "epochs_done",
        f"{m}_mean",
        f"{m}_sd",
        f"{m}_ci_low",
        f"{m}_ci_high",
        f"{m}_pooled",
        *(f"{m}_fold{k}" for k in range(study.resolved.folds)),
        *(f"{o}_mean" for o in DIRECTIONS if o != m and o in seen),
        "delta_to_best",
        "p_to_best",
        "train_seconds",
        "gpu_hours",
        "parameters",
        *(f"cfg.{p}" for p in params),
        "seed",
        "dataset_hash",
        "code_version",
        "reason",
        "warnings",
        f"{m}_nb_low",
        f"{m}_nb_high",
        "delta_ci_low",
        "delta_ci_high",
        "p_to_best_bootstrap",
        f"{m}_corrected",
        f"{m}_test",
        FALSE_POSITIVES,
        *([f"{m}_test_folds"] if study.search.test_fold else []),
        "verdict",
        *(f"{part}_mean" for part in parts),
    ]


def _seen(configurations: Sequence[Configuration]) -> tuple[set[str], list[str]]:
    """The metrics that there are, and those of one category, such as ``dice[bone]``."""
    seen = {k for c in configurations for run in c.epochs.values() for k in run.metrics}
    return seen, sorted(k for k in seen if k.endswith("]") and not k.startswith("test_"))
