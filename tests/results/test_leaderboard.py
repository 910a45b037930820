"""Journal events as ranked rows: intervals, comparisons, the corrected winner and the test
group.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from faults import unseal
from pretend import pretend

from raybone.errors import WrongInput
from raybone.hpo.journal import Journal
from raybone.hpo.state import State
from raybone.metrics.intervals import bootstrap_interval, corrected_interval
from raybone.results.leaderboard import leaderboard, merged_leaderboard
from raybone.results.study_folder import StudyFolder
from raybone.run.local import search
from raybone.storage import Folder
from raybone.study.files import parse_study
from raybone.study.spec import Resolved, ResolvedStudy

Mapping = dict[str, Any]
NEW = [
    "nb_low",
    "nb_high",
    "delta_ci_low",
    "delta_ci_high",
    "p_to_best_bootstrap",
    "corrected",
    "test",
    "false_positives_per_lesion_free_scan",
]
FOLDS = {"a": [0.9, 0.52, 0.7], "b": [0.6, 0.6, 0.6]}


def made(metric: str = "dice", epochs: int = 1) -> ResolvedStudy:
    study = parse_study(
        {"name": "s", "dataset": "d", "model": "unet", "epochs": epochs, "metric": metric}
    )
    return study.resolved_as(
        Resolved(
            dataset_hash="0",
            code_version="0",
            folds=3,
            ladder=((3, epochs),),
            warnings=("few patients",),
        )
    )


def journal(metric: str = "dice", replicates: bool = True) -> list[Mapping]:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 0.05, 1000)
    events: list[Mapping] = []
    for name, folds in FOLDS.items():
        events.append({"event": "config", "config_id": name, "params": {}})
        events += [
            {
                "event": "epoch",
                "config_id": name,
                "fold": k,
                "epoch": 1,
                "metrics": {metric: v},
                "seconds": 1,
            }
            for k, v in enumerate(folds)
        ]
        drawn = [None, *(np.mean(folds) + shared + rng.normal(0, 0.01, 1000)).tolist()]
        events.append(
            {
                "event": "pooled",
                "config_id": name,
                "metrics": {"false_positives_per_lesion_free_scan": 0.25},
                **({"replicates": drawn, "freedom": 12.0} if replicates else {}),
            }
        )
        events.append({"event": "decision", "config_id": name, "action": "complete", "reason": ""})
    return [{"time": n, **e} for n, e in enumerate(events)]


def test_new_columns_stand_at_the_end_and_intervals_come_from_the_journals_replicates() -> None:
    events = journal()
    table = leaderboard(made(), State(events))
    assert [c.removeprefix("dice_") for c in table.columns[-15:]] == [
        *NEW,
        "verdict",
        "smoothed",
        "rank_smoothed",
        "machines",
        "images_per_s",
        "memory_gb",
        "gpu_use",
    ]
    assert list(table.columns[-17:-15]) == ["reason", "warnings"]
    best, second = table.iloc[0], table.iloc[1]
    drawn = {
        e["config_id"]: np.array(e["replicates"][1:]) for e in events if e["event"] == "pooled"
    }
    mean = float(np.mean(FOLDS["a"]))
    assert (best["dice_ci_low"], best["dice_ci_high"]) == pytest.approx(
        bootstrap_interval(mean, drawn["a"], 12)
    )
    assert (best["dice_nb_low"], best["dice_nb_high"]) == pytest.approx(
        np.clip(corrected_interval(np.array(FOLDS["a"])), 0, 1)
    )  # wider than the metric goes
    paired = bootstrap_interval(0.6 - mean, drawn["b"] - drawn["a"], 12)
    assert (second["delta_ci_low"], second["delta_ci_high"]) == pytest.approx(paired)
    assert second["p_to_best_bootstrap"] < 0.001 < second["p_to_best"]
    assert math.isnan(best["p_to_best_bootstrap"])
    assert best["false_positives_per_lesion_free_scan"] == 0.25
    assert list(table["verdict"]) == [
        "best",
        "not told apart",
    ]  # though the bootstrap alone would tell them apart


def test_a_configuration_that_is_behind_in_every_fold_is_worse() -> None:
    behind = {"a": [0.7, 0.7, 0.7], "b": [0.20, 0.21, 0.22]}
    level = [
        {**e, "metrics": {"dice": behind[e["config_id"]][e["fold"]]}}
        if e["event"] == "epoch"
        else e
        for e in journal()
    ]
    table = leaderboard(made(), State(level))
    assert list(table["verdict"]) == ["best", "worse"]
    assert table["p_to_best"][1] < 0.05


def test_the_winner_alone_has_a_corrected_score() -> None:
    table = leaderboard(made(), State(journal()))
    assert table["dice_corrected"][0] == pytest.approx(np.mean(FOLDS["a"]))
    assert math.isnan(table["dice_corrected"][1])
    losses = leaderboard(made("val_loss"), State(journal("val_loss")))
    assert list(losses["config_id"]) == ["b", "a"]
    assert losses["val_loss_corrected"][0] == pytest.approx(0.6)


def test_without_replicates_intervals_are_nadeau_and_bengios() -> None:
    table = leaderboard(made("val_loss"), State(journal("val_loss", replicates=False)))
    np.testing.assert_array_equal(table["val_loss_ci_low"], table["val_loss_nb_low"])
    paired = corrected_interval(np.array(FOLDS["a"]) - FOLDS["b"])
    assert (table["delta_ci_low"][1], table["delta_ci_high"][1]) == pytest.approx(paired)
    assert table["p_to_best_bootstrap"].isna().all()


def test_one_configuration_and_an_empty_journal_have_a_table() -> None:
    assert leaderboard(made(), State()).empty
    events = [
        e
        for e in journal()
        if e["config_id"] == "b" and e.get("fold", 0) == 0 and e["event"] != "pooled"
    ]
    row = leaderboard(made(), State(events)).iloc[0]
    assert math.isnan(row["dice_ci_low"])
    assert math.isnan(row["dice_corrected"])


def test_a_second_look_at_the_test_group_is_told_in_every_row() -> None:
    looks = [{"event": "test", "time": 99, "config_id": c, "metrics": {"dice": 0.4}} for c in "ab"]
    once, twice = (leaderboard(made(), State(journal() + looks[:n])) for n in (1, 2))
    assert list(once["dice_test"].fillna(-1)) == [0.4, -1]
    assert list(once["warnings"]) == ["few patients"] * 2
    assert (
        list(twice["warnings"]) == ["few patients; the test group was looked at 2 times (a, b)"] * 2
    )


def looks_at(out: Path) -> list[Mapping]:
    return [e for e in Journal(Folder(out)).events() if e["event"] == "test"]


def test_the_winner_meets_the_test_group_once_even_when_no_weights_are_kept(
    held_out: Path, study: Mapping, tmp_path: Path
) -> None:
    small = {**study, "dataset": str(held_out), "epochs": 1, "keep": 0}
    for _ in range(2):
        search(parse_study(small), str(tmp_path / "st"))
    table = pd.read_csv(tmp_path / "st" / "leaderboard.csv")
    (look,) = looks_at(tmp_path / "st")
    assert look["config_id"] == table["config_id"][0]
    assert table["dice_test"][0] == look["metrics"]["dice"]
    assert math.isnan(table["dice_test"][1])
    assert not list((tmp_path / "st").rglob("*.pt"))
    (drawn, other) = (
        e["replicates"] for e in Journal(Folder(tmp_path / "st")).events() if e["event"] == "pooled"
    )
    assert len(drawn) == len(other) == 1000


def test_patients_who_may_be_one_person_are_drawn_as_one(
    dataset: Path, study: Mapping, tmp_path: Path
) -> None:
    shutil.copytree(dataset, tmp_path / "ds")
    folds = pd.read_csv(dataset / "folds.csv")
    assert list(folds.columns) == ["patient_id", "fold", "group"]
    assert (folds["group"] == folds["patient_id"]).all()
    folds.loc[folds["fold"] == 0, "group"] = folds["patient_id"][folds["fold"] == 0].min()
    folds.to_csv(tmp_path / "ds" / "folds.csv", index=False)
    unseal(tmp_path / "ds")
    small = {
        **study,
        "dataset": str(tmp_path / "ds"),
        "epochs": 1,
        "search": {**study["search"], "trials": 1},
    }
    search(parse_study(small), str(tmp_path / "st"))
    (pooled,) = (e for e in Journal(Folder(tmp_path / "st")).events() if e["event"] == "pooled")
    assert not pooled.get("replicates")  # nobody can be drawn from a fold of one person


def test_weights_that_are_gone_are_a_warning_in_words(
    held_out: Path, study: Mapping, tmp_path: Path
) -> None:
    out = tmp_path / "st"
    small = {
        **study,
        "dataset": str(held_out),
        "epochs": 1,
        "search": {**study["search"], "trials": 1},
    }
    search(parse_study(small), str(out))
    for path in (out / "journal").iterdir():
        lines = path.read_text().splitlines(keepends=True)
        before = itertools.takewhile(lambda line: json.loads(line)["event"] != "test", lines)
        path.write_text("".join(before))
    (out / "runs" / "c000" / "fold1" / "last.pt").unlink()
    assert search(parse_study(small), str(out)).kind == "complete"
    assert pd.read_csv(out / "leaderboard.csv")["warnings"][0].endswith(
        "test group: c000 was not scored, as weights of its folds are gone"
    )
    assert [e["metrics"] for e in looks_at(out)] == [{}]


def test_studies_of_one_dataset_share_a_leaderboard_and_compare_their_rows() -> None:
    boards = {
        "runs/x": (made(), State(journal())),
        "y": (
            made().model_copy(update={"model": "other", "fixed": {"width": 8}}),
            State([e for e in journal() if e["config_id"] == "b"]),
        ),
    }
    table = merged_leaderboard(boards)
    alone = leaderboard(made(), State(journal()))
    assert list(table["config_id"]) == ["runs/x/a", "runs/x/b", "y/b"]
    assert list(table["rank"]) == [1, 2, 3]
    assert list(table["model"]) == ["unet", "unet", "other"]
    assert table["cfg.width"].tolist()[2] == 8
    for column in ("p_to_best", "p_to_best_bootstrap", "delta_ci_low"):
        assert table[column].tolist()[1] == pytest.approx(alone[column].tolist()[1])


def test_a_longer_study_does_not_rank_before_a_better_one() -> None:
    long = made().model_copy(update={"epochs": 2})
    events = [{**e, "metrics": {"dice": 0.3}} if e["event"] == "epoch" else e for e in journal()]
    later = [{**e, "epoch": 2} for e in events if e["event"] == "epoch"]
    long_state = State(
        sorted(
            [*events, *later],
            key=lambda e: (e["event"] != "config", e["event"] != "epoch", e.get("epoch", 0)),
        )
    )
    table = merged_leaderboard({"x": (long, long_state), "y": (made(), State(journal()))})
    assert table["config_id"].tolist()[0] == "y/a"
    assert table["dice_mean"].dropna().is_monotonic_decreasing


def test_other_seeds_have_drawn_other_patients_so_that_no_bootstrap_is_paired() -> None:
    study = made()
    seeded = study.model_copy(update={"search": study.search.model_copy(update={"seed": 1})})
    table = merged_leaderboard({"x": (study, State(journal())), "y": (seeded, State(journal()))})
    same, other = (table[table["config_id"] == f"{place}/b"].iloc[0] for place in "xy")
    assert math.isfinite(same["p_to_best_bootstrap"])
    assert math.isnan(other["p_to_best_bootstrap"])
    assert other["p_to_best"] == same["p_to_best"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"metric": "precision"}, "metric is precision there and dice in x"),
        ({"hash": "1"}, "dataset is 1 there"),
        ({"folds": 4}, "number of folds is 4"),
        ({"fixed": {"categories": ["benign"]}}, r"categories is \['benign'\]"),
        ({"metric": "val_loss", "model": "other"}, "metric is val_loss"),
    ],
)
def test_studies_that_are_not_comparable_are_refused_with_the_difference(
    change: Mapping, named: str
) -> None:
    study = made()
    resolved = study.resolved.model_copy(
        update={
            k: change.pop(o)
            for k, o in (("dataset_hash", "hash"), ("folds", "folds"))
            if o in change
        }
    )
    other = study.model_copy(update={"resolved": resolved, **change})
    with pytest.raises(WrongInput, match=f"leaderboard y: .*{named}.*leave one out"):
        merged_leaderboard({"x": (study, State(journal())), "y": (other, State(journal()))})


def test_losses_of_different_models_are_not_compared() -> None:
    boards = {
        name: (made("val_loss").model_copy(update={"model": name}), State(journal("val_loss")))
        for name in "xy"
    }
    with pytest.raises(WrongInput, match=r"model \(of a loss\) is y there and x in x"):
        merged_leaderboard(boards)


def test_the_smoothed_score_and_its_order_stand_beside_those_of_the_last_epoch() -> None:
    """c000 jumps at its last epoch, c001 was better in the mean of the last three."""
    events: list[Mapping] = []
    for name, values in {"c000": (0.1, 0.1, 0.7), "c001": (0.5, 0.5, 0.6)}.items():
        events.append({"event": "config", "config_id": name, "params": {"name": name}})
        events += [
            {
                "event": "epoch",
                "config_id": name,
                "fold": fold,
                "epoch": epoch,
                "metrics": {"dice": value},
                "seconds": 1,
            }
            for fold in range(3)
            for epoch, value in enumerate(values, 1)
        ]
        events.append({"event": "decision", "config_id": name, "action": "complete", "reason": ""})
    events = [{"time": n, **e} for n, e in enumerate(events)]
    table = leaderboard(made(epochs=3), State(events)).set_index("config_id")
    assert table.loc[["c000", "c001"], "rank"].tolist() == [1, 2]
    assert table.loc[["c000", "c001"], "rank_smoothed"].tolist() == [2, 1]
    assert table.loc["c000", "dice_smoothed"] == pytest.approx(0.3)


def test_with_a_test_fold_intervals_allow_for_what_a_fold_does_not_train_on(tmp_path: Path) -> None:
    tables = {}
    for test_fold in (False, True):
        place = tmp_path / str(test_fold)
        pretend(place, search={"trials": 3, "test_fold": test_fold}, replicates=0)
        tables[test_fold] = StudyFolder(place).table()
    folds = [c for c in tables[False] if c.startswith("dice_fold")]
    ratio = ((1 / 3 + 1 / 1) / (1 / 3 + 1 / 2)) ** 0.5
    for (_, plain), (_, held) in zip(*(tables[t].iterrows() for t in (False, True))):
        assert list(plain[folds]) == list(held[folds])
        expected = np.clip(corrected_interval(plain[folds].to_numpy(float), trained=1), 0, 1)
        assert (held["dice_nb_low"], held["dice_nb_high"]) == pytest.approx(tuple(expected))
    delta = [
        [t["delta_ci_high"].iloc[n] - t["delta_ci_low"].iloc[n] for n in (1, 2)]
        for t in tables.values()
    ]
    assert np.array(delta[1]) / delta[0] == pytest.approx([ratio, ratio])
    assert (tables[True]["p_to_best"] >= tables[False]["p_to_best"])[1:].all()
