"""What is published is internally right: every mean that can be computed again is."""

from __future__ import annotations

import csv
from collections import defaultdict
from importlib.resources import files
from pathlib import Path
from statistics import mean, stdev

import pytest
from pretend import pretend

from raybone.hpo.state import Configuration, Run
from raybone.results.compare import beside, comparison_lines, figures

HALF = 0.00011  # of the last digit that is printed, and of rounding the folds


def rows_of(name: str) -> list[dict[str, str]]:
    text = files("raybone.results").joinpath(name).read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))


def folds_of() -> dict[tuple[str, str, str, str], list[float]]:
    """Values of the folds by study, variant, table and metric."""
    found = defaultdict(list)
    for row in rows_of("published_folds.csv"):
        found[row["study"], row["variant"], row["table"], row["metric"]].append(float(row["value"]))
    return found


def test_means_and_deviations_are_those_of_the_folds() -> None:
    checked = 0
    for row in rows_of("published.csv"):
        table = row["table"].removesuffix(", mean of its folds")
        # The mean of Table 2's folds is "Our model" of Table 3.
        table = "Table 2" if row["study"] == "lesion-resnet50" else table
        values = folds_of().get((row["study"], row["variant"], table, row["metric"]))
        if values and row["std"]:
            assert float(row["value"]) == pytest.approx(mean(values), abs=HALF), row
            assert float(row["std"]) == pytest.approx(stdev(values), abs=HALF), row
            checked += 1
    assert checked == 38  # 11 variants of three metrics each, and five of a classifier


def test_the_f1_that_is_printed_as_a_mean_is_that_of_the_means() -> None:
    folds, checked = folds_of(), 0
    for row in rows_of("published.csv"):
        if row["metric"] == "F1 of means":
            key = row["study"], row["variant"], row["table"]
            p, s = (mean(folds[*key, name]) for name in ("precision", "sensitivity"))
            assert float(row["value"]) == pytest.approx(2 * p * s / (p + s), abs=HALF), row
            assert float(row["value"]) > mean(folds[*key, "F1"]) + 0.005
            checked += 1
    assert checked == 11


def test_each_fold_has_the_f1_of_its_precision_and_sensitivity() -> None:
    folds = folds_of()
    for study, variant, table, metric in folds:
        if metric == "F1":
            three = [folds[study, variant, table, m] for m in ("precision", "sensitivity", "F1")]
            assert len(three[0]) == 10
            for p, s, f1 in zip(*three):
                assert f1 == pytest.approx(2 * p * s / (p + s), abs=HALF), (table, variant, p, s)


def test_like_stands_beside_like(tmp_path: Path) -> None:
    """F1 of means is computed of ours as well; beside our mean of folds stands the paper's."""
    study, best = pretend(tmp_path / "st", name="wbbs-double-unet"), Configuration("c000", {})
    for fold, (p, s) in enumerate([(0.9, 0.3), (0.5, 0.5), (0.4, 0.7)]):
        best.epochs[fold] = Run()
        f1 = 2 * p * s / (p + s)
        best.epochs[fold].append({"dice": f1, "precision": p, "sensitivity": s}, 1.0)
    rows = {row["metric"]: row for row in beside(study, best, {})}
    assert rows["dice"]["mean"] == pytest.approx(mean([0.45, 0.5, 0.56 / 1.1]))
    assert rows["F1 of means"]["mean"] == pytest.approx(2 * 0.6 * 0.5 / 1.1)
    assert [p["value"] for p in rows["dice"]["published"]] == [0.6043]
    assert [p["value"] for p in rows["F1 of means"]["published"]] == [0.6227]
    nothing = dict.fromkeys(("study", "config_id", "dataset_hash", "note"), "")
    shown = {"rows": [*rows.values()], "configurations": []}
    lines = comparison_lines({**nothing, **shown})
    assert any(line.startswith("F1 of means") and "0.6227" in line for line in lines)


def test_every_study_of_a_paper_has_both_readings_or_neither() -> None:
    for study in {row["study"] for row in rows_of("published.csv")} - {""}:
        metrics = {f["metric"] for f in figures(study)}
        assert "F1 of means" not in metrics or "dice" in metrics
