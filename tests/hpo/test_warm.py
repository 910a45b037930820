"""A warm start: earlier leaderboards steer a new search, and are never mixed with its ranking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from pretend import pretend

from raybone.cli import main
from raybone.errors import WrongInput
from raybone.hpo.sampler import observations, propose
from raybone.hpo.state import State
from raybone.hpo.warm_start import warm_start as warm_start_from
from raybone.results.study_folder import StudyFolder, earlier_rows
from raybone.study.files import parse_study, write_study
from raybone.study.spec import Prior, Resolved, Study

SPACE = {
    "lr0": {"log_uniform": [1e-4, 1e-1]},
    "imgsz": {"choice": [512, 1024]},
    "opt": {"choice": ["SGD", "AdamW"]},
    "momentum": {"uniform": [0.5, 0.9], "when": {"opt": "SGD"}},
}


def make_study(**change: Any) -> Study:
    return Study.model_validate(
        {
            "name": "s",
            "dataset": "d",
            "model": "m",
            "epochs": 9,
            "metric": "AP",
            "fixed": {"batch": 16},
            "space": SPACE,
            "search": {"sampler": "tpe"},
            **change,
        }
    )


def warm_start(study: Study, sources: list[str]) -> Prior:
    """As `raybone search --warm-start` reads them."""
    return warm_start_from(study, {source: earlier_rows(source) for source in sources})


def board(path: Path, rows: list[dict[str, Any]], metric: str = "AP") -> str:
    """A leaderboard with columns as raybone writes them; a row's ``score`` is its mean."""
    table = [
        {
            "rank": None,
            "state": "complete",
            "folds_done": 3,
            "epochs_done": 27,
            "cfg.batch": 16,
            **{k: v for k, v in row.items() if k != "score"},
            f"{metric}_mean": row["score"],
            f"{metric}_ci_low": 0.0,
            f"{metric}_ci_high": 1.0,
        }
        for row in rows
    ]
    pd.DataFrame(table).to_csv(path, index=False)
    return str(path)


def adam(lr0: float, score: float, imgsz: int = 512, **more: Any) -> dict[str, Any]:
    return {
        "cfg.lr0": lr0,
        "cfg.imgsz": imgsz,
        "cfg.opt": "AdamW",
        "cfg.momentum": None,
        "score": score,
        **more,
    }


def test_rows_stand_by_progress_then_score_and_the_three_best_are_tried_first(
    tmp_path: Path,
) -> None:
    rows = [
        adam(0.001, 0.3),
        adam(0.002, 0.5),
        adam(0.003, 0.4),
        adam(0.004, 0.2),
        adam(0.002, 0.45),
        adam(0.005, 0.9, state="stopped@1x9", folds_done=1, epochs_done=9),
        {**adam(0.006, 0.1), "cfg.opt": "SGD", "cfg.momentum": 0.7},
    ]
    prior = warm_start(make_study(), [board(tmp_path / "old.csv", rows)])
    standing = {
        o.params["lr0"]: o.standing
        for o in prior.observations
        if o.standing < 0.7 or o.params["lr0"] != 0.002
    }
    assert [p["lr0"] for p in prior.points] == [0.002, 0.003, 0.001]
    assert min(standing, key=standing.__getitem__) == 0.005
    sgd = next(o.params for o in prior.observations if o.params["opt"] == "SGD")
    assert sgd == {"lr0": 0.006, "imgsz": 512, "opt": "SGD", "momentum": 0.7}
    assert prior.left_out == 0


def test_rows_that_the_space_or_the_fixed_values_do_not_hold_are_left_out_and_counted(
    tmp_path: Path,
) -> None:
    rows = [
        adam(0.001, 0.3),
        adam(0.5, 0.9),
        adam(0.002, 0.8, imgsz=768),
        adam(0.003, 0.7, **{"cfg.batch": 8}),
        {**adam(0.004, 0.6), "cfg.opt": "SGD"},
        adam(0.005, 0.5, state="failed"),
        adam(0.09, 0.6),
    ]
    study = make_study(search={"reject": ["lr0 > 0.08 and batch == 16"]})
    prior = warm_start(study, [board(tmp_path / "old.csv", rows)])
    assert [o.params["lr0"] for o in prior.observations] == [0.001]
    assert prior.left_out == 5


def test_two_studies_count_by_their_own_standing_not_by_their_scores(tmp_path: Path) -> None:
    easy = board(tmp_path / "easy.csv", [adam(0.001 * i, 0.9 + 0.01 * i) for i in range(1, 5)])
    hard = board(tmp_path / "hard.csv", [adam(0.01 * i, 0.01 * i) for i in range(1, 9)])
    points = warm_start(make_study(), [easy, hard]).points
    assert [p["lr0"] for p in points] == [0.08, 0.004, 0.07]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (None, "but there is none"),
        ("", "has none"),
        ("state,folds_done,epochs_done,AP_mean,AP_ci_low\n", "has none"),
        ("a,b\n1,2\n", "lacks its columns"),
        ("\x00\xff,PK\n1,2,3\n", "lacks its columns"),
        (
            "state,folds_done,epochs_done,dice_mean,dice_ci_low,cfg.lr0\ncomplete,3,9,1,1,1\n",
            "but is by dice",
        ),
        (
            "state,folds_done,epochs_done,AP_mean,AP_ci_low,cfg.lr0\ncomplete,3,9,1,1,99\n",
            "none of 1 is",
        ),
    ],
)
def test_what_is_no_such_leaderboard_is_refused_in_one_line(
    tmp_path: Path, text: str | None, rule: str
) -> None:
    path = tmp_path / 'it\'s "old".csv'
    if text is not None:
        path.write_text(text, encoding="latin-1")
    with pytest.raises(WrongInput, match=rule) as caught:
        warm_start(make_study(), [str(path)])
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)


def test_a_study_folder_gives_the_same_start_as_its_leaderboard(tmp_path: Path) -> None:
    folder = tmp_path / "st"
    old = pretend(folder, failing=2, search={"scheduler": "fold_race"})
    StudyFolder(folder).write_table()
    (folder / "leaderboard.csv").rename(tmp_path / "old.csv")
    typed = warm_start(old, [str(folder)])
    assert {type(o.params["batch"]) for o in typed.observations} == {int}
    assert {"momentum" in o.params for o in typed.observations} == {True, False}
    assert len(typed.observations) == 10
    assert typed == warm_start(old, [str(tmp_path / "old.csv")])
    (folder / "study.yaml").unlink()
    with pytest.raises(WrongInput, match="but there is none"):
        warm_start(old, [str(folder)])


def test_tpe_proposes_where_earlier_rows_were_good_and_the_study_file_alone_carries_that(
    tmp_path: Path,
) -> None:
    rows = [adam(10 ** (-4 + 3 * i / 39), -abs(i - 30)) for i in range(40)]
    study = make_study()
    prior = warm_start(study, [board(tmp_path / "old.csv", rows)])
    resolved = Resolved(dataset_hash="h", code_version="v", folds=3, ladder=((3, 9),), prior=prior)
    started = study.resolved_as(resolved)
    again = parse_study(yaml.safe_load(write_study(started))).resolved_as(resolved)
    assert again == started
    assert len(observations(again, State())) == 40
    proposals = [propose(again, State(), index) for index in range(3, 13)]
    good = 10 ** (-4 + 3 * 30 / 39)
    assert sum(good / 4 < p["lr0"] < good * 4 for p in proposals if p) >= 6
    assert [propose(again, State(), index) for index in range(3)] == [
        {k: v for k, v in p.items() if v is not None} for p in prior.points
    ]


def test_a_search_takes_a_warm_start_and_keeps_it(
    study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**study, "epochs": 1}))
    command = ["search", str(tmp_path / "study.yaml"), "--local", "--out"]
    assert main([*command, str(tmp_path / "first")]) == 0
    assert main([*command, str(tmp_path / "second"), "--warm-start", str(tmp_path / "first")]) == 0
    assert "warm start: 2 rows to propose from, 2 tried first" in capsys.readouterr().out
    boards = [pd.read_csv(tmp_path / n / "leaderboard.csv") for n in ("first", "second")]
    assert sorted(boards[0]["cfg.lr0"]) == sorted(boards[1]["cfg.lr0"])
    for name in ("leaderboard.csv", "study.yaml"):
        (tmp_path / "first" / name).rename(tmp_path / name)
    resumed = [*command, str(tmp_path / "second"), "--set", "search.trials=3"]
    assert main(resumed) == 0
    assert len(pd.read_csv(tmp_path / "second" / "leaderboard.csv")) == 3
    assert main([*resumed, "--warm-start", str(tmp_path / "second")]) == 2
    assert main([*command, str(tmp_path / "third"), "--warm-start", str(tmp_path / "first")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "keeps its warm start" in errors[0]
    assert "but there is none" in errors[1]
    assert not (tmp_path / "third").exists()
