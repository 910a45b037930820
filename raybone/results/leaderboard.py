"""The journal as a ranked table: one row a configuration, best first, with folds, intervals and
paired tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raybone.errors import WrongInput
from raybone.hpo.fold_race import SMOOTH
from raybone.hpo.state import Configuration, State, gpu_hours_of
from raybone.metrics.intervals import (
    bootstrap_interval,
    bootstrap_p,
    corrected_interval,
    corrected_p,
    corrected_winner,
)
from raybone.study.metric import FALSE_POSITIVES, METRICS
from raybone.study.spec import ResolvedStudy
from raybone.types import Array, safe_cell

if TYPE_CHECKING:
    import pandas as pd


Boards = Mapping[str, tuple[ResolvedStudy, State]]
# A row's study and configuration, and whether the study has ended.
Entry = tuple[ResolvedStudy, Configuration, bool]


def leaderboard(study: ResolvedStudy, state: State) -> pd.DataFrame:
    """Rows of all configurations; only complete ones have a rank, the others follow in order of
    progress.

    A fold's score is that of its final epoch. ``ci`` and ``delta_ci`` are 95 % intervals of the
    patient bootstrap: what the trained fold models would score on other patients, on folds of this
    size. ``nb`` and ``p_to_best`` are Nadeau & Bengio's, which allow for other training patients as
    well; they stand in ``ci`` and ``delta_ci`` too where there is no bootstrap: val_loss, folds of
    one patient, rows that are not complete. No p is corrected for the number of configurations.
    ``corrected`` is the winner's score without the curse of the choice among complete rows.
    ``smoothed`` is the mean of the last three epochs, and ``rank_smoothed`` the order by it.
    """
    return merged_leaderboard({study.name: (study, state)})


def merged_leaderboard(boards: Boards) -> pd.DataFrame:
    """The rows of several studies as one leaderboard; see ``entries_of`` for names and errors."""
    return _ranked(entries_of(boards), [study for study, _ in boards.values()])


def entries_of(boards: Boards) -> dict[str, Entry]:
    """What the rows of a leaderboard are made of, by their config_id; of several studies, that has
    its study's path before it, as in ``a/c003``.

    Args:
        boards: study and state by the path that messages and rows name.
    Raises:
        WrongInput: the rows would not be comparable: metric, dataset, folds or categories differ,
            or the losses of different models are compared.
    """
    first, *others = boards
    traits = {url: _traits(study) for url, (study, _) in boards.items()}
    problems = [
        f"leaderboard {url}: studies in one leaderboard must agree, but {name} is {value} there "
        f"and {traits[first][name]} in {first}; leave one out"
        for url in others
        for name, value in traits[url].items()
        if value != traits[first].get(name, value)
    ]
    if problems:
        raise WrongInput(*problems)
    return {
        f"{url}/{c.id}" if others else c.id: (study, c, bool(state.end))
        for url, (study, state) in boards.items()
        for c in state.configurations.values()
    }


def _traits(study: ResolvedStudy) -> dict[str, object]:
    """What must agree for scores to be comparable."""
    first = study.of(study.names[0]).fixed
    return {
        "metric": study.metric,
        "dataset": study.resolved.dataset_hash,
        "number of folds": study.resolved.folds,
        "categories": first.get("categories", ["malignant"]),
        "target": first.get("target", ""),
        "test_fold": study.search.test_fold,
        **({"model (of a loss)": ", ".join(study.names)} if study.metric == "val_loss" else {}),
    }


def _ranked(entries: Mapping[str, Entry], studies: Sequence[ResolvedStudy]) -> pd.DataFrame:
    study, more = studies[0], _more(studies, [c for _, c, _ in entries.values()])
    rows = [
        {**_row(own, c, ended, more), "config_id": name}
        for name, (own, c, ended) in entries.items()
    ]
    mean = f"{study.metric}_mean"
    # A complete row is as good as its score, however long its study trains; the others stand in
    # order of progress.
    rows.sort(
        key=lambda r: (
            r["state"] != "complete",
            *_progress(r),
            _best_first(study, r[mean]),
            r["config_id"],
        )
    )
    complete = [r for r in rows if r["state"] == "complete"]
    for rank, row in enumerate(complete, 1):
        row["rank"] = rank
        row["delta_to_best"] = row[mean] - complete[0][mean]
        row |= against(row, complete[0], entries) if rank > 1 else {"verdict": "best"}
    smooth = f"{study.metric}_smoothed"
    for rank, row in enumerate(sorted(complete, key=lambda r: _best_first(study, r[smooth])), 1):
        row["rank_smoothed"] = rank
    if complete:
        complete[0][f"{study.metric}_corrected"] = corrected(study, complete)
    looks = [name for name, (_, c, _) in entries.items() if c.test]
    if len(looks) > 1:
        remark = f"the test group was looked at {len(looks)} times ({', '.join(looks)})"
        for row in rows:
            row["warnings"] = "; ".join(filter(None, [row["warnings"], remark]))
    import pandas as pd  # training processes import this file, and have no table to make

    columns = [*_row(study, Configuration("", {}), False, more)]  # of no rows as well
    table = pd.DataFrame(rows, columns=columns)
    ranks = ["rank", "rank_smoothed"]
    table[ranks] = table[ranks].astype("Int64")
    return table


def csv_of(table: pd.DataFrame) -> bytes:
    """The table as CSV, with no cell that a spreadsheet runs."""
    return table.map(safe_cell).to_csv(index=False).encode()


def metric_of(table: pd.DataFrame) -> str:
    """The metric that a leaderboard is ranked by."""
    return str(next(c for c in table.columns if c.endswith("_nb_low"))).removesuffix("_nb_low")


def brief_of(table: pd.DataFrame) -> list[str]:
    """The names of the columns that a reviewer reads first."""
    m = metric_of(table)
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


def over_folds(study: ResolvedStudy, folds_K: Array) -> tuple[float, float]:
    """``nb`` of the mean of these fold scores."""
    low, high = corrected_interval(folds_K, trained(study))
    return study.measure.within(low), study.measure.within(high)


def interval(
    study: ResolvedStudy, configuration: Configuration, folds_K: Array
) -> tuple[float, float]:
    """``ci`` of the mean of these fold scores: of the patient bootstrap where there is one, else
    Nadeau & Bengio's.
    """
    replicates_B = np.array(configuration.replicates)
    if not len(replicates_B):
        return over_folds(study, folds_K)
    low, high = bootstrap_interval(float(folds_K.mean()), replicates_B, configuration.freedom)
    return study.measure.within(low), study.measure.within(high)


def _progress(row: dict[str, Any]) -> tuple[int, int]:
    return (0, 0) if row["state"] == "complete" else (-row["folds_done"], -row["epochs_done"])


@dataclass(frozen=True)
class _More:
    """What the columns of a table depend on: other metrics than the study's, hyper-parameters,
    metrics of one category, such as ``dice[bone]``, and those at the operating point.
    """

    metrics: list[str]
    params: list[str]
    parts: list[str]
    operated: list[str]


def _more(studies: Sequence[ResolvedStudy], configurations: Sequence[Configuration]) -> _More:
    seen = {k for c in configurations for run in c.epochs.values() for k in run.metrics}
    return _More(
        [m for m in METRICS if m in seen and m != studies[0].metric],
        [*dict.fromkeys(key for s in studies for key in _keys(s))],
        sorted(k for k in seen if k.endswith("]") and not k.startswith("test_")),
        [*dict.fromkeys(k for c in configurations for k in c.pooled if k.startswith("operating_"))],
    )


def _keys(study: ResolvedStudy) -> list[str]:
    """The hyper-parameters of a study, and of its models."""
    own = [[*alone.fixed, *alone.space] for alone in map(study.of, study.names)]
    return [*study.fixed, *study.space, *(key for keys in own for key in keys)]


def _row(
    study: ResolvedStudy, configuration: Configuration, ended: bool, more: _More
) -> dict[str, Any]:
    """The cells of a configuration, in the order of the columns; what ranking gives is NaN yet."""
    folds, m, c = study.resolved.folds, study.metric, configuration
    lengths = [len(c.epochs.get(k, ())) for k in range(folds)]
    final = [_final(c, k, m) for k in range(folds)]
    # A fold without a finite score makes the mean NaN: it is not left out.
    values = np.array([v for v, n in zip(final, lengths) if n], float)
    nb_low, nb_high = over_folds(study, values)
    low, high = interval(study, c, values)
    params = study.values(c.params)
    test_folds = float(np.mean([_final(c, k, f"test_{m}") for k in range(folds)]))
    return {
        "rank": None,
        "config_id": c.id,
        "model": study.under(c.params).model,
        "state": _state(c, ended),
        "folds_done": sum(n == study.epochs for n in lengths),
        "epochs_done": sum(lengths),
        f"{m}_mean": float(values.mean()) if len(values) else math.nan,
        f"{m}_sd": float(values.std(ddof=1)) if len(values) > 1 else math.nan,
        f"{m}_ci_low": low,
        f"{m}_ci_high": high,
        f"{m}_pooled": c.pooled.get(m, math.nan),
        **{f"{m}_fold{k}": v for k, v in enumerate(final)},
        **{f"{other}_mean": _mean(c, folds, other) for other in more.metrics},
        "delta_to_best": math.nan,
        "p_to_best": math.nan,
        "train_seconds": round(c.train_seconds, 1),
        "gpu_hours": round(gpu_hours_of(study, c), 4),
        "parameters": c.parameters,
        **{f"cfg.{k}": params.get(k, math.nan) for k in more.params},
        "seed": study.search.seed,
        "dataset_hash": study.resolved.dataset_hash,
        "code_version": study.resolved.code_version,
        "reason": c.reason if c.status == "failed" else "",
        "warnings": "; ".join(filter(None, [*study.resolved.warnings, c.untested])),
        f"{m}_nb_low": nb_low,
        f"{m}_nb_high": nb_high,
        "delta_ci_low": math.nan,
        "delta_ci_high": math.nan,
        "p_to_best_bootstrap": math.nan,
        f"{m}_corrected": math.nan,
        f"{m}_test": c.test.get(m, math.nan),
        FALSE_POSITIVES: c.pooled.get(FALSE_POSITIVES, math.nan),
        **({f"{m}_test_folds": test_folds} if study.search.test_fold else {}),
        "verdict": math.nan,
        **{f"{part}_mean": _mean(c, folds, part) for part in more.parts},
        f"{m}_smoothed": smoothed(study, c),
        "rank_smoothed": None,
        "machines": "; ".join(c.machines),
        "images_per_s": c.images_per_s,
        "memory_gb": c.memory_gb,
        "gpu_use": c.gpu_use,
        **{name: c.pooled.get(name, math.nan) for name in more.operated},
    }


def _best_first(study: ResolvedStudy, score: float) -> float:
    return -study.sign * score if math.isfinite(score) else math.inf


def smoothed(study: ResolvedStudy, configuration: Configuration) -> float:
    """The score by which a race decides, from the last epochs of all folds; NaN unless they are
    there.
    """
    return configuration.mean(study.resolved.folds, study.epochs, study.metric, SMOOTH)


def _mean(configuration: Configuration, folds: int, metric: str) -> float:
    """Of the folds' last epochs; NaN unless each is finite."""
    values = [_final(configuration, k, metric) for k in range(folds)]
    return float(np.mean(values)) if np.isfinite(values).all() else math.nan


def corrected(study: ResolvedStudy, complete: Sequence[dict[str, Any]]) -> float:
    """The score of the best of these complete rows without the curse of the choice among them."""
    folds_CK = np.array([_folds(study, row) for row in complete])
    return study.sign * corrected_winner(study.sign * folds_CK)


def against(
    row: dict[str, Any], best: dict[str, Any], entries: Mapping[str, Entry]
) -> dict[str, Any]:
    """Paired comparison of a complete row with the best, or with another complete one; studies of
    other seeds have drawn other patients.

    Returns:
        The columns of a leaderboard: p_to_best, p_to_best_bootstrap, delta_ci_low, delta_ci_high
        and verdict.
    """
    (study, one, _), (_, other, _) = (entries[r["config_id"]] for r in (row, best))
    folds_K, best_K = _folds(study, row), _folds(study, best)
    mean = f"{study.metric}_mean"
    tests = {
        "p_to_best": corrected_p(folds_K, best_K, trained(study)),
        "p_to_best_bootstrap": math.nan,
    }
    if (
        one.replicates
        and len(one.replicates) == len(other.replicates)
        and row["seed"] == best["seed"]
    ):
        paired = (
            row[mean] - best[mean],
            np.array(one.replicates) - np.array(other.replicates),
            min(one.freedom, other.freedom),
        )
        low, high = bootstrap_interval(*paired)
        tests["p_to_best_bootstrap"] = bootstrap_p(*paired)
    else:
        low, high = corrected_interval(folds_K - best_K, trained(study))
    return {
        **tests,
        "delta_ci_low": low,
        "delta_ci_high": high,
        "verdict": verdict(tests["p_to_best"]),
    }


def verdict(p_value: float) -> str:
    """One word a pair: by the test that allows for other training patients (Nadeau & Bengio 2003),
    at 5 %; none where there is no p.
    """
    if math.isnan(p_value):
        return ""
    return "worse" if p_value < 0.05 else "not told apart"


def trained(study: ResolvedStudy) -> int:
    """Parts of the patients that a fold of a study trains on."""
    return study.resolved.folds - 1 - study.search.test_fold


def _final(configuration: Configuration, fold: int, metric: str) -> float:
    """The metric at the last epoch that the fold has, NaN when it has none."""
    return configuration.epochs[fold].last(metric) if fold in configuration.epochs else math.nan


def _state(configuration: Configuration, ended: bool) -> str:
    if configuration.status == "stopped" or (
        ended and configuration.status in ("paused", "running")
    ):
        runs = [len(r) for r in configuration.epochs.values()]
        return f"stopped@{len(runs)}x{max(runs, default=0)}"
    return configuration.status if configuration.status in ("complete", "failed") else "running"


def _folds(study: ResolvedStudy, row: dict[str, Any]) -> Any:
    return np.array([row[f"{study.metric}_fold{k}"] for k in range(study.resolved.folds)])
