"""Published figures: as the papers print them, and beside ours of the same cases."""

from __future__ import annotations

import csv
import math
import re
from importlib.resources import files
from pathlib import Path

import pytest
from pretend import pretend

from raybone.cli import main
from raybone.hpo.state import Configuration, Run
from raybone.results.compare import beside, compare

# Liu et al. 2021, Table 3: sensitivity, specificity, accuracy, PPV, NPV in per cent.
TABLE_3 = {
    "lesion-resnet50": (81.30, 81.14, 81.23, 81.89, 80.61),
    "lesion-inception-v3": (77.29, 84.02, 80.61, 83.53, 78.00),
    "lesion-vgg16": (78.73, 83.51, 81.13, 83.39, 79.14),
    "lesion-densenet169": (67.90, 85.73, 76.71, 83.17, 72.16),
}
# The same, in the text: AUC of subgroups.
TEXT = {"1-3": 0.847, "4-6": 0.838, ">6": 0.862, "lung": 0.870, "prostate": 0.900, "breast": 0.899}


def published() -> list[dict[str, str]]:
    return list(
        csv.DictReader(
            files("raybone.results").joinpath("published.csv").read_text("utf-8").splitlines()
        )
    )


@pytest.mark.parametrize("study", TABLE_3)
def test_lesion_classifiers_have_the_figures_of_their_paper(study: str) -> None:
    rows = {
        r["metric"]: float(r["value"])
        for r in published()
        if (r["study"], r["table"]) == (study, "Table 3")
    }
    names = ("sensitivity", "specificity", "accuracy", "PPV", "NPV")
    assert rows == pytest.approx({name: value / 100 for name, value in zip(names, TABLE_3[study])})


def test_a_figure_that_is_quoted_names_whose_it_is() -> None:
    (row,) = (r for r in published() if "Papandrianos" in r["system"])
    assert (row["value"], row["dataset"]) == ("0.9161", "778 BS images")
    assert row["source"].startswith("Papandrianos et al., as quoted by")


def test_a_papers_subgroups_stand_beside_ours_and_its_missing_auc_beside_nothing(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(tmp_path / "st", dataset, "AUC", name="lesion-resnet50")
    found = compare(str(tmp_path / "st"))
    rows = {(r["metric"], r["subgroup"]): r for r in found["rows"]}
    assert rows["AUC", ""]["published"] == []
    ours = {
        name: group["AUC"]
        for table in found["subgroups"].values()
        for name, group in table["groups"].items()
    }
    shared = TEXT.keys() & ours.keys()
    assert len(shared) >= 4
    assert main(["compare", str(tmp_path / "st")]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^AUC +\S+ \(\S+ to \S+\) +none$", told, re.MULTILINE)
    for name in shared:
        row = rows["AUC", name]
        assert str(row["mean"]) == str(ours[name])  # a group of one class has none
        mine = "undefined" if math.isnan(ours[name]) else f"{ours[name]:.4f}"
        assert [p["value"] for p in row["published"]] == [TEXT[name]]
        assert re.search(rf"^AUC +{mine}, {name} +{TEXT[name]:.4f} ResNet50", told, re.MULTILINE)
    assert len(re.findall(r"^AUC .*ResNet50, scan", told, re.MULTILINE)) == len(shared)


def test_the_interval_of_a_metric_ends_where_the_metric_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = {"metric": "hd95_mm", "subgroup": "", "system": "", "variant": "", "table": ""}
    monkeypatch.setattr("raybone.results.compare.figures", lambda study: [{**figure, "value": 9.0}])
    study, best = pretend(tmp_path / "st"), Configuration("c000", {})
    for fold, (dice, millimetres) in enumerate([(0.9, 12.0), (0.95, 30.0), (1.0, 14.0)]):
        best.epochs[fold] = Run()
        best.epochs[fold].append({"dice": dice, "hd95_mm": millimetres}, 1.0)
    dice_row, distance_row = beside(study, best, {})
    assert (dice_row["metric"], dice_row["high"]) == ("dice", 1.0)
    assert distance_row["metric"] == "hd95_mm"
    assert distance_row["mean"] == pytest.approx(56 / 3)
    assert distance_row["low"] == 0.0
    assert distance_row["high"] > 30


def test_all_complete_configurations_are_rows_of_a_table(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the points of an ablation: best first, with what they differ in, and nothing else."""
    search = {"trials": 6, "scheduler": "full"}
    pretend(tmp_path / "st", dataset, name="spect-msma-unet", search=search)
    found = compare(str(tmp_path / "st"))
    own = found["configurations"]
    assert len(own) == 6
    assert own[0]["config_id"] == found["config_id"]
    dice = [row["dice"] for row in own]
    assert dice == sorted(dice, reverse=True)
    assert dice[0] == pytest.approx(found["rows"][0]["mean"])
    assert "lr0" in own[0]["params"]
    assert main(["compare", str(tmp_path / "st")]) == 0
    shown = capsys.readouterr().out
    assert all(f"{row['config_id']:<14}" in shown for row in own)
    assert "where they differ" in shown
