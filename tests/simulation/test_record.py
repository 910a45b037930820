"""A study recorded as a table: the curves of the journal, and schedulers replayed on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from raybone.cli import main
from raybone.errors import WrongInput
from raybone.hpo.journal import Journal
from raybone.results.study_folder import StudyFolder
from raybone.simulation.curves import read_curves
from raybone.storage import Folder
from raybone.study.files import parse_study, write_study


def test_the_full_grid_is_recorded_once_and_replayed(
    study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text(
        yaml.safe_dump(
            {**study, "search": {"trials": 3, "scheduler": "fold_race"}}, sort_keys=False
        )
    )
    out = tmp_path / "st"
    assert main(["search", str(tmp_path / "s.yaml"), "--out", str(out), "--local", "--record"]) == 0
    assert "3 of 3 configurations" in capsys.readouterr().out
    curves, table = (
        read_curves(out / "curves.npz"),
        pd.read_csv(out / "leaderboard.csv").sort_values("config_id"),
    )
    assert curves.T_CSKE.shape == (3, 1, 3, 3)
    assert np.isfinite(curves.steps)
    assert curves.X_CD is not None
    assert curves.X_CD.shape[0] == 3
    assert len(np.unique(curves.X_CD, axis=0)) == 3
    for fold in range(3):
        assert np.allclose(curves.T_CSKE[:, 0, fold, -1], table[f"dice_fold{fold}"])
    assert (
        main(
            [
                "simulate",
                "--curves",
                str(out / "curves.npz"),
                "--folds",
                "3",
                "--repeats",
                "2",
                "--json",
            ]
        )
        == 0
    )
    rows = json.loads(capsys.readouterr().out)
    assert rows["full"]["fold_epochs"] == pytest.approx(27)
    # The same command, without Ray and without a driver's memory: nothing is trained again.
    before = len(list(Journal(Folder(out)).events()))
    assert main(["search", str(tmp_path / "s.yaml"), "--out", str(out), "--local", "--record"]) == 0
    assert len(list(Journal(Folder(out)).events())) - before == 2
    # A study edited by hand is another study.
    changed = yaml.safe_load((out / "study.yaml").read_text())
    changed["resolved"]["ladder"] = [[1, 1], [3, 3]]
    (out / "study.yaml").write_text(yaml.safe_dump(changed))
    capsys.readouterr()
    assert main(["search", str(tmp_path / "s.yaml"), "--out", str(out), "--local", "--record"]) == 2
    error = capsys.readouterr().err
    assert "ladder differ" in error
    assert error.count("\n") == 1


def made(folder: Path, scores: list[list[float | None]], metric: str = "val_loss") -> str:
    """A study of one configuration a row, whose folds (two) end after as many epochs as there are
    scores.
    """
    study = parse_study(
        {
            "name": "s",
            "dataset": "d",
            "model": "m",
            "epochs": 2,
            "metric": metric,
            "space": {
                "opt": {"choice": ["SGD", "AdamW"]},
                "momentum": {"uniform": [0.5, 0.9], "when": {"opt": "SGD"}},
            },
            "resolved": {"dataset_hash": "h", "code_version": "v", "folds": 2, "ladder": [[2, 2]]},
        }
    )
    Folder(folder).write("study.yaml", write_study(study).encode())
    journal = Journal(Folder(folder))
    for number, row in enumerate(scores):
        params = {"opt": "AdamW"} if number % 2 else {"opt": "SGD", "momentum": 0.7}
        journal.append("config", config_id=f"c{number}", params=params)
        for place, score in enumerate(row):
            journal.append(
                "epoch",
                config_id=f"c{number}",
                fold=place // 2,
                epoch=place % 2 + 1,
                seconds=place + 1.0,
                metrics={metric: score},
            )
    return str(folder)


def test_only_whole_configurations_are_taken_and_nan_is_the_worst(tmp_path: Path) -> None:
    url = made(tmp_path, [[4.0, 3.0, 4.0, 2.0], [5.0, None, 5.0, 1.0], [1.0, 1.0, 1.0]])
    assert StudyFolder(url).write_curves() == (2, 3)
    curves = read_curves(tmp_path / "curves.npz")
    assert curves.T_CSKE[:, 0].tolist() == [[[-4, -3], [-4, -2]], [[-5, -5], [-5, -1]]]
    assert curves.seconds_C.tolist() == [2.5, 2.5]


@pytest.mark.parametrize(
    ("scores", "rule"), [([], "got 0"), ([[1.0, 1.0, 1.0, 1.0], [1.0]], "got 1")]
)
def test_too_little_for_a_table_is_one_line(
    tmp_path: Path, scores: list[list[float | None]], rule: str
) -> None:
    with pytest.raises(WrongInput, match=rule):
        StudyFolder(made(tmp_path, scores)).write_curves()


def test_no_study_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(WrongInput, match="must be a study folder"):
        StudyFolder(tmp_path).write_curves()
