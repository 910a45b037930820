"""What would make a search silently wrong ends it in one line, blames no configuration, and can be mended."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from raybone.cli import main
from raybone.hpo.brain import Brain
from raybone.records import DamagedFile, WrongInput
from raybone.resolve import dataset_of
from raybone.search import search
from raybone.spec import parse_study, read_study

Mapping = dict[str, Any]


def small(study: Mapping, **more: Any) -> Mapping:
    return {**study, "epochs": 2, "search": {**study["search"], "trials": 1}, **more}


def board(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "leaderboard.csv")


@pytest.fixture
def place(study: Mapping, dataset: Path, tmp_path: Path) -> Path:
    """A folder with a dataset of its own and a study of it."""
    shutil.copytree(dataset, tmp_path / "ds")
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(small(study, dataset=str(tmp_path / "ds"))))
    return tmp_path


def leave(_: Brain) -> None:
    """As Ctrl-C after the first epoch."""
    raise KeyboardInterrupt


def searched(place: Path, *sets: str, out: str = "st") -> int:
    return main(["search", str(place / "s.yaml"), "--out", str(place / out), "--local", "--set", "name=tiny", *sets])


def test_a_dataset_that_is_replaced_under_a_search_ends_it(place: Path, held_out: Path,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    study = read_study(place / "s.yaml", ["space={imgsz: {choice: [64, 96]}}", "search.sampler=grid", "search.trials=2",
                                          "fixed={batch: 4, nbs: 4, width: 4, depth: 2}"])

    def replace(brain: Brain) -> None:
        if "c000" in brain.state.configurations and brain.state.configurations["c000"].status == "complete" and \
                not (place / "old").exists():
            (place / "ds").rename(place / "old")
            shutil.copytree(held_out, place / "ds")

    with pytest.raises(DamagedFile, match="was replaced while it was in use; put the old one back"):
        search(study, str(place / "st"), replace)
    assert "failed" not in (place / "st" / "leaderboard.csv").read_text()
    resolved = read_study(place / "st" / "study.yaml")
    with pytest.raises(WrongInput, match="was begun on the dataset of hash"):
        dataset_of(resolved)
    assert main(["refit", str(place / "st"), "--out", str(place / "bundle")]) == 2
    assert "put the old one back, say where it is now (--dataset)" in capsys.readouterr().err
    shutil.rmtree(place / "ds")
    (place / "old").rename(place / "ds")
    assert search(study, str(place / "st")) == "complete"
    assert list(board(place / "st")["state"]) == ["complete", "complete"]


def test_a_study_goes_on_with_its_dataset_at_another_place(place: Path) -> None:
    assert searched(place) == 0
    (place / "ds").rename(place / "moved")
    assert searched(place, f"dataset={place / 'moved'}", "search.trials=2") == 0
    assert list(board(place / "st")["state"]) == ["complete", "complete"]


def test_results_are_read_with_the_dataset_at_another_place(place: Path) -> None:
    assert searched(place) == 0
    (place / "ds").rename(place / "moved")
    moved = ["--dataset", str(place / "moved")]
    assert main(["refit", str(place / "st"), "--out", str(place / "bundle")]) == 2
    assert main(["refit", str(place / "st"), "--out", str(place / "bundle"), *moved]) == 0
    assert main(["compare", str(place / "st"), *moved]) == 0
    assert main(["report", str(place / "st"), *moved]) == 0
    assert "the dataset at" not in (place / "st" / "report.html").read_text()


def test_a_batch_that_the_workers_cannot_share_out_is_refused(study: Mapping) -> None:
    from raybone.resolve import resolve

    two = {"resources": {"workers": 2}}
    for wrong, line in ((small(study, **two, fixed={**study["fixed"], "batch": 3}), "fixed.batch: must be a multiple"),
                        (small(study, **two, fixed={"width": 4}, space={"batch": {"choice": [1, 2, 3]}}),
                         "space.batch: must be a multiple of the 2 resources.workers, got 1, 3; change")):
        with pytest.raises(WrongInput, match=line):
            resolve(parse_study(wrong))
    drawn = small(study, **two, fixed={"width": 4, "imgsz": 64}, space={"batch": {"int_uniform": [2, 9]}})
    resolve(parse_study(drawn))


def test_a_search_without_a_result_is_no_success(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A map of one pixel cannot be normalised in a batch of one."""
    for _ in range(2):
        assert searched(place, "fixed={imgsz: 32, width: 4, depth: 5, batch: 1, nbs: 1, warmup_epochs: 0}",
                        "search.trials=2") == 1
        told = capsys.readouterr().err.splitlines()[-1]
        assert "none of its 2 configurations came to a result, most often: ValueError: Expected more than 1" in told
        assert "start another study" in told


def test_fixed_values_that_the_model_never_takes_are_refused_before_a_search(
        place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["model=faster_rcnn_r50", "metric=AP", "fixed={imgsz: 64, batch: 2}",
            "space={lr0: {log_uniform: [0.001, 0.01]}}"]
    assert searched(place, *more) == 2
    assert "must take one of its configurations, but: anchor" in capsys.readouterr().err
    assert main(["preview", str(place / "s.yaml"), "--epoch-seconds", "1", "--set", *more]) == 2
    assert not (place / "st").exists()


def test_a_checkpoint_cut_short_ends_the_search_and_can_be_put_back(place: Path,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(read_study(place / "s.yaml", ["name=tiny"]), str(place / "st"), leave)
    last = place / "st" / "runs" / "c000" / "fold0" / "last.pt"
    good = last.read_bytes()
    for bad in (good[:1000], b"nothing"):
        last.write_bytes(bad)
        assert searched(place) == 1
        told = capsys.readouterr().err.splitlines()[-1]
        assert f"{last}: must hold weights, but is damaged or cut short ({len(bad)} bytes" in told
        assert "failed" not in (place / "st" / "leaderboard.csv").read_text()
    last.write_bytes(good)
    assert searched(place) == 0
    assert searched(place, out="undisturbed") == 0
    pd.testing.assert_series_equal(board(place / "st")["dice_mean"], board(place / "undisturbed")["dice_mean"])


def test_weights_of_other_hyper_parameters_are_not_taken_for_a_configurations_own(
        place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, lr in (("st", "0.01"), ("other", "0.02")):
        with pytest.raises(KeyboardInterrupt):
            search(read_study(place / "s.yaml", [f"space.lr0={{choice: [{lr}]}}"]), str(place / name), leave)
    shutil.copy(place / "other/runs/c000/fold0/last.pt", place / "st/runs/c000/fold0/last.pt")
    assert main(["search", str(place / "s.yaml"), "--out", str(place / "st"), "--local", "--set",
                 "space.lr0={choice: [0.01]}"]) == 1
    assert "must be of this configuration, but was trained with other hyper-parameters" in capsys.readouterr().err
