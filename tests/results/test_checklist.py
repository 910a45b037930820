"""The sheet of CLAIM and TRIPOD+AI: what a study knows stands there, and what it does not is
named.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from raybone.cli import main
from raybone.data.dataset import open_dataset
from raybone.data.ingest.prepare import prepare
from raybone.results.study_folder import StudyFolder


@pytest.fixture(scope="module")
def searched(held_out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("checklist")
    fixed = {"batch": 4, "nbs": 4, "width": 4, "depth": 2, "imgsz": 128}
    study = {
        "name": "sheet",
        "dataset": str(held_out),
        "model": "unet",
        "epochs": 1,
        "fixed": fixed,
        "space": {"lr0": {"log_uniform": [1e-3, 3e-2]}},
        "search": {"trials": 1},
    }
    (place / "study.yaml").write_text(yaml.safe_dump(study))
    assert main(["search", str(place / "study.yaml"), "--out", str(place / "run"), "--local"]) == 0
    return place / "run"


def rows(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[int, dict[str, Any]]:
    capsys.readouterr()
    assert main(["checklist", *map(str, arguments), "--json"]) == 0
    return {row["item"]: row for row in json.loads(capsys.readouterr().out)}


def test_every_item_is_there_with_what_is_known_or_missing(
    searched: Path, held_out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet, dataset = rows(capsys, searched), open_dataset(held_out)
    assert [*sheet] == [*range(1, 45)]
    assert all(row["known"] or row["missing"] for row in sheet.values())
    patients = len(set(dataset.fold_of))
    assert f"{len(dataset.scans)} scans of {patients} patients" in sheet[35]["known"]
    assert f"test group: {dataset.meta['counts']['test_patients']} patients" in sheet[36]["known"]
    best = StudyFolder(str(searched)).table().iloc[0]
    assert f"dice {best['dice_mean']:.3f}" in sheet[37]["known"]
    assert f"test group {best['dice_test']:.3f}" in sheet[37]["known"]
    assert sheet[20]["known"] == "by patient"
    assert sheet[10]["known"] == "whole scans"
    assert "torch" in sheet[23]["known"]
    assert "'width': 4" in sheet[25]["known"]
    assert "log_uniform" in sheet[25]["known"]
    for item in (4, 18, 34, 44):
        assert (sheet[item]["known"], sheet[item]["missing"]) == ("", "to be written")


def test_what_models_of_a_study_start_from_and_search_is_told(
    searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = yaml.safe_load((searched.parent / "study.yaml").read_text())
    del study["model"]
    study |= {
        "models": {"unet": {"space": {"init_from": {"choice": ["", str(searched)]}}}},
        "search": {"trials": 2, "sampler": "grid", "scheduler": "full"},
        "space": {"lr0": {"choice": [0.01]}},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    assert (
        main(["search", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "b"), "--local"]) == 0
    )
    sheet = rows(capsys, tmp_path / "b")
    assert sheet[24]["known"] == f"init_from {searched}/runs/c000"
    assert "unet: fixed" in sheet[25]["known"]
    assert "init_from: {choice:" in sheet[25]["known"]


def test_inputs_are_files_and_tiles_are_told(
    searched: Path, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiled = prepare(cohort, tmp_path / "ds", folds=3, steps=["lesion_tile"], key=tmp_path / "key")
    inputs = len([*cohort.rglob("*.dcm")])
    study = yaml.safe_load((searched.parent / "study.yaml").read_text())
    study |= {"dataset": str(tiled.path), "space": {"tile": {"choice": [0, 64]}}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    run = str(tmp_path / "run")
    assert main(["search", str(tmp_path / "study.yaml"), "--out", run, "--local"]) == 0
    sheet = rows(capsys, run)
    assert sheet[35]["known"].startswith(f"{inputs} inputs; ")
    by_truth = "tiles of the scans, of which those with lesions by the truth were taken"
    assert sheet[10]["known"] == f"{by_truth}, tiles of 64 pixels"


def test_it_is_a_table_of_markdown(searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["checklist", str(searched)]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 46
    assert {line.count("|") for line in table} == {7}


def test_without_its_dataset_it_says_so(
    searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["checklist", str(searched), "--dataset", str(tmp_path / "gone")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
