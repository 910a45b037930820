"""The study in one process: complete, resumable, and clear about wrong input."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from faults import unseal

from raybone.cli import main
from raybone.errors import EndReason, RunFailed, WrongInput
from raybone.hpo.brain import Brain
from raybone.hpo.journal import Journal
from raybone.phantom.demo import STUDY, prepare_demo
from raybone.results.study_folder import StudyFolder
from raybone.run.ending import conclude
from raybone.run.local import search
from raybone.run.session import open_study
from raybone.storage import Folder
from raybone.study.files import parse_study

TIMING = ["train_seconds", "gpu_hours", "images_per_s", "memory_gb", "gpu_use"]
Mapping = dict[str, Any]


def board(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "leaderboard.csv")


def test_a_full_study_has_a_whole_leaderboard(study: Mapping, tmp_path: Path) -> None:
    assert search(parse_study(study), str(tmp_path / "st")).kind == "complete"
    table = board(tmp_path / "st")
    assert list(table["rank"]) == [1, 2]
    assert list(table["state"]) == ["complete"] * 2
    assert (table["epochs_done"] == 9).all()
    assert (table["dice_mean"].diff().dropna() <= 0).all()
    folds = table[["dice_fold0", "dice_fold1", "dice_fold2"]]
    pd.testing.assert_series_equal(folds.mean(axis=1), table["dice_mean"], check_names=False)
    # Folds that are equal, as those of one that has not begun to learn, have no interval.
    equal = folds.nunique(axis=1) == 1
    assert table[["dice_ci_low", "dice_ci_high"]][equal].isna().all(axis=None)
    inside = table["dice_mean"].between(table["dice_ci_low"], table["dice_ci_high"])
    assert (inside | equal).all()
    assert table["dice_pooled"].between(0, 1).all()
    assert table["delta_to_best"].iloc[0] == 0
    wanted = [
        "rank",
        "config_id",
        "model",
        "state",
        "folds_done",
        "epochs_done",
        "precision_mean",
        "sensitivity_mean",
        "p_to_best",
        "parameters",
        "cfg.lr0",
        "cfg.imgsz",
        "seed",
        "dataset_hash",
        "code_version",
    ]
    assert set(wanted) <= set(table.columns)
    for fold in range(3):
        assert (tmp_path / "st" / "runs" / "c000" / f"fold{fold}" / "best.pt").exists()


def test_the_leaderboard_is_derived_from_the_journal_alone(study: Mapping, tmp_path: Path) -> None:
    out = tmp_path / "st"
    search(parse_study(study), str(out))
    before = (out / "leaderboard.csv").read_bytes()
    (out / "leaderboard.csv").unlink()
    StudyFolder(out).write_table()
    assert (out / "leaderboard.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("end", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_driver_that_a_signal_ends_resumes_to_the_same_leaderboard(
    study: Mapping, tmp_path: Path, end: int, code: int
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    search(parse_study(study), str(tmp_path / "whole"))
    killed = tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "raybone",
        "search",
        str(path),
        "--out",
        str(killed),
        "--local",
    ]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and driver.poll() is None:
        if sum(e["event"] == "epoch" for e in Journal(Folder(killed)).events()) >= 4:
            break
        time.sleep(0.02)
    os.kill(driver.pid, end)
    assert driver.wait() == code
    known = [
        (e["config_id"], e["fold"], e["epoch"])
        for e in Journal(Folder(killed)).events()
        if e["event"] == "epoch"
    ]
    assert 4 <= len(known) < 18
    assert subprocess.run(command, capture_output=True, check=True).returncode == 0
    events = list(Journal(Folder(killed)).events())
    epochs = [(e["config_id"], e["fold"], e["epoch"]) for e in events if e["event"] == "epoch"]
    assert len(epochs) == len(set(epochs)) == 18
    assert epochs[: len(known)] == known
    # Across processes the number of threads is the same: one.
    pd.testing.assert_frame_equal(
        board(killed).drop(columns=TIMING), board(tmp_path / "whole").drop(columns=TIMING)
    )


def test_a_finished_study_is_not_run_again_and_other_settings_are_refused(
    study: Mapping, tmp_path: Path
) -> None:
    out = str(tmp_path / "st")
    search(parse_study(study), out)
    epochs = sum(e["event"] == "epoch" for e in Journal(Folder(out)).events())
    search(parse_study({**study, "limits": {"hours": 5}}), out)
    assert sum(e["event"] == "epoch" for e in Journal(Folder(out)).events()) == epochs
    with pytest.raises(WrongInput, match=r"epochs, ladder differ|epochs differ"):
        search(parse_study({**study, "epochs": 4}), out)


def test_more_trials_extend_a_finished_study(study: Mapping, tmp_path: Path) -> None:
    search(parse_study(study), str(tmp_path / "st"))
    search(parse_study({**study, "search": {**study["search"], "trials": 3}}), str(tmp_path / "st"))
    assert (board(tmp_path / "st")["state"] == "complete").sum() == 3


def test_a_configuration_that_diverges_is_failed_with_its_reason_and_the_search_goes_on(
    study: Mapping, tmp_path: Path
) -> None:
    wild = {
        **study,
        "fixed": {
            **study["fixed"],
            "optimizer": "SGD",
            "clip": 1e30,
            "warmup_epochs": 0,
            "batch": 1,
            "nbs": 1,
            "lrf": 1,
        },
        "epochs": 5,
        "space": {"lr0": {"choice": [0.01, 10.0]}, "weight_decay": {"choice": [1.0]}},
        "search": {**study["search"], "sampler": "grid"},
    }
    search(parse_study(wild), str(tmp_path / "st"))
    table = board(tmp_path / "st").set_index("cfg.lr0")
    assert table["state"].to_dict() == {0.01: "complete", 10.0: "failed"}
    assert "must be finite" in table["reason"][10.0]
    with pytest.raises(RunFailed, match=r"limits\.failed_trials: 1 configurations failed"):
        search(parse_study({**wild, "limits": {"failed_trials": 0}}), str(tmp_path / "other"))


def test_a_race_stops_some_and_completes_two(study: Mapping, tmp_path: Path) -> None:
    race = {
        **study,
        "epochs": 4,
        "space": {"lr0": {"choice": [0.02, 1e-5, 0.03, 2e-5]}},
        "search": {"trials": 4, "sampler": "grid", "scheduler": "fold_race"},
    }
    search(parse_study(race), str(tmp_path / "st"))
    table = board(tmp_path / "st")
    assert set(table[table["state"] == "complete"]["cfg.lr0"]) == {0.02, 0.03}
    assert list(table["state"][2:]) == ["stopped@1x4"] * 2
    assert table["rank"][2:].isna().all()
    assert not (tmp_path / "st" / "runs" / "c001" / "fold0" / "last.pt").exists()


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"dataset": "/nowhere"}, "must be a folder made by `raybone prepare`"),
        ({"model": "unett"}, "did you mean unet"),
        ({"metric": "AP"}, "unet is a segmentation model"),
        ({"space": {"lr0": {"uniform": [0.0, 100.0]}}}, r"space\.lr0"),
        ({"space": {"learning_rate": {"uniform": [0.1, 1.0]}}}, "no such hyper-parameter"),
        ({"fixed": {"imgsz": 3}}, r"fixed \(unet\): imgsz"),
        (
            {"fixed": {"categories": ["melanoma"]}},
            "the dataset has malignant, benign, not melanoma",
        ),
        ({"search": {"folds": 5}}, "must be the dataset's 3, got 5"),
        ({"resources": {"workers": 2}}, "--local is one process"),
        ({"search": {"scheduler": "asha"}}, "asha is Ray's own"),
    ],
)
def test_wrong_studies_are_refused_before_anything_is_trained(
    study: Mapping, tmp_path: Path, change: Mapping, rule: str
) -> None:
    with pytest.raises(WrongInput, match=rule):
        search(parse_study({**study, **change}), str(tmp_path / "st"))
    assert not (tmp_path / "st").exists()


def test_several_problems_come_together(study: Mapping, tmp_path: Path) -> None:
    wrong = {**study, "dataset": "/nowhere", "metric": "AP", "fixed": {"widht": 4}}
    with pytest.raises(WrongInput) as caught:
        search(parse_study(wrong), str(tmp_path / "x"))
    assert len(caught.value.problems) == 3


def test_one_patient_gives_a_dataset_that_search_refuses(tmp_path: Path, study: Mapping) -> None:
    from raybone.data.ingest.prepare import prepare
    from raybone.phantom.phantom import phantom

    made = prepare(phantom(tmp_path / "src", 1, 5, height=128), tmp_path / "ds", key=tmp_path / "k")
    with pytest.raises(WrongInput, match=r"at least 2 patients, got 1"):
        search(parse_study({**study, "dataset": str(made.path)}), str(tmp_path / "st"))


def test_boxes_without_masks_do_not_fit_a_segmenter(
    dataset: Path, study: Mapping, tmp_path: Path
) -> None:
    import json
    import shutil

    shutil.copytree(dataset, tmp_path / "ds")
    content = json.loads((tmp_path / "ds" / "annotations.json").read_text())
    for item in content["annotations"]:
        del item["segmentation"]
    (tmp_path / "ds" / "annotations.json").write_text(json.dumps(content))
    unseal(tmp_path / "ds")
    with pytest.raises(WrongInput, match=r"unet needs lesion masks"):
        search(parse_study({**study, "dataset": str(tmp_path / "ds")}), str(tmp_path / "st"))


def test_a_full_disk_is_one_line_before_training(
    study: Mapping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(
        WrongInput, match=r"needs about .* MB for weights, but the disk has 0 MB free"
    ):
        search(parse_study(study), str(tmp_path / "st"))


def test_the_journal_and_leaderboard_work_on_an_object_store(study: Mapping) -> None:
    """fsspec's memory store: no append, so every flush is a segment."""
    out = "memory://bucket/study"
    search(parse_study(study), out)
    folder = Folder(out)
    assert len(folder.names("journal")) == len(list(Journal(folder).events()))
    table = pd.read_csv(io.BytesIO(folder.read("leaderboard.csv") or b""))
    assert list(table["state"]) == ["complete"] * 2


def test_a_limit_that_ended_a_study_can_be_raised_and_the_search_goes_on(
    study: Mapping, tmp_path: Path
) -> None:
    out, short = str(tmp_path / "st"), {**study, "epochs": 1}

    def states(reason: str, **limits: float) -> list[str]:
        ended = search(parse_study({**short, "limits": limits}), out)
        assert str(ended).startswith(reason)
        return list(board(tmp_path / "st")["state"])

    assert states("limits.hours: 0.00 h are over", hours=1e-9) == []
    assert states("limits.target: c000 reached dice", target=-1.0) == ["complete"]
    assert states("limits.target: c000 reached dice", target=-1.0) == ["complete"]
    assert states("limits.hours: 0.00 h are over", hours=1e-9, target=-1.0) == ["complete"]
    assert states("complete", hours=5.0, target=2.0) == ["complete"] * 2
    short["search"] = {**study["search"], "trials": 3}
    assert states("complete") == ["complete"] * 3


def test_one_configuration_is_stopped_and_the_others_go_on(
    study: Mapping, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    race = {
        **study,
        "epochs": 4,
        "space": {"lr0": {"choice": [0.02, 1e-5, 0.03, 0.01]}},
        "search": {"trials": 4, "sampler": "grid", "scheduler": "fold_race"},
    }
    out, asked = tmp_path / "st", list[str]()

    def ask(brain: Brain) -> None:
        best = brain.state.configurations.get("c000")
        if best and not asked and best.epochs:
            assert main(["stop", str(out), "--config", "c000"]) == 0
            asked.append(capsys.readouterr().err)

    assert search(parse_study(race), str(out), ask).kind == "complete"
    assert asked
    table = board(out).set_index("config_id")
    assert table["state"]["c000"] == "stopped@1x1"  # of four: its run ends with its epoch
    best = StudyFolder(out).state.configurations["c000"]
    assert best.reason == "a person has stopped it"
    assert (table["state"] == "complete").sum() == 2
    # It stays so, and nothing else is asked of the study when it is resumed.
    assert search(parse_study(race), str(out)).kind == "complete"
    assert board(out).set_index("config_id")["state"].equals(table["state"])
    for config_id, how in (
        ("c000", "stopped"),
        ("c999", "not there"),
        (table.index[0], "complete"),
    ):
        assert main(["stop", str(out), "--config", config_id]) == 2
        assert f"it is {how}; `raybone watch" in capsys.readouterr().err


def test_a_configuration_that_a_person_adds_begins_next_and_beyond_the_trials(
    study: Mapping, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = [{"lr0": rate, "fliplr": 0.5} for rate in (0.002, 0.004)]
    race = {**study, "epochs": 1, "search": {**study["search"], "points": points}}
    out, asked = str(tmp_path / "st"), list[str]()

    def ask(brain: Brain) -> None:
        if brain.state.fold_epochs and not asked:
            assert main(["add", out, "lr0=0.003", "fliplr=0"]) == 0
            asked.append(capsys.readouterr().out)

    assert search(parse_study(race), out, ask).kind == "complete"
    assert asked == [f"{out}: lr0 0.003, fliplr 0.0: begins next\n"]
    # The points of the study keep their order, and all of them are tried.
    tried = [c.params["lr0"] for c in StudyFolder(out).state.configurations.values()]
    assert tried == [0.002, 0.003, 0.004]
    assert main(["watch", out, "--once"]) == 0
    assert "3/3 configurations" in capsys.readouterr().out
    # Resumed, it is not tried again; one that is added to a finished study is.
    assert search(parse_study(race), out).kind == "complete"
    assert len(board(tmp_path / "st")) == 3
    assert main(["add", out, "lr0=0.005", "fliplr=0.5"]) == 0
    assert "`raybone search` begins it" in capsys.readouterr().out
    assert main(["add", out, "lr0=0.005", "fliplr=0.5"]) == 2
    assert "that one waits, or was refused; change a value" in capsys.readouterr().err
    assert search(parse_study(race), out).kind == "complete"
    assert list(board(tmp_path / "st")["state"]) == ["complete"] * 4


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["lr0=0.003"], "fliplr: must be given, such as fliplr=..."),
        (["lr0=3", "fliplr=0"], "lr0 must be of log_uniform [0.001, 0.03], got 3; change it"),
        (["lr=0.003"], "'lr' is not searched; did you mean 'lr0'?"),
        (["lr0"], "lr0: must be key=value, such as lr0=0.003"),
        (["lr0=0.029", "fliplr=0"], "a rule of search.reject is true of it; change a value"),
        (["lr0=0.002", "fliplr=0.5"], "c000 is that one; change a value"),
    ],
)
def test_what_is_no_configuration_of_the_space_is_not_added(
    words: list[str],
    problem: str,
    study: Mapping,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = {"points": [{"lr0": 0.002, "fliplr": 0.5}], "reject": ["lr0 > 0.028"]}
    short = {**study, "epochs": 1, "search": {**study["search"], "trials": 1, **known}}
    with open_study(parse_study(short), str(tmp_path / "st")) as opened:
        work = opened.brain.peek()
        assert work
        opened.brain.start(work)
    assert main(["add", str(tmp_path / "st"), *words]) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "st" / "asked").exists()


def test_a_cohort_race_takes_no_more_and_a_damaged_list_is_said(
    study: Mapping, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for scheduler in ("cohort_race", "full"):
        how = {**study["search"], "scheduler": scheduler}
        with open_study(parse_study({**study, "search": how}), str(tmp_path / scheduler)):
            pass
    words = ["lr0=0.003", "fliplr=0"]
    assert main(["add", str(tmp_path / "cohort_race"), *words]) == 2
    assert "start another study with --warm-start" in capsys.readouterr().err
    (tmp_path / "full" / "asked").mkdir()
    (tmp_path / "full" / "asked" / "0000.json").write_text("lr0=0.003")
    assert main(["add", str(tmp_path / "full"), *words]) == 2
    assert "must be what `raybone add` wrote; delete it" in capsys.readouterr().err


def test_who_is_asked_for_while_nobody_drives_is_stopped_when_it_is_resumed(
    study: Mapping, tmp_path: Path
) -> None:
    out = str(tmp_path / "st")
    race = {**study, "epochs": 4, "search": {**study["search"], "scheduler": "fold_race"}}

    def leave(brain: Brain) -> None:
        if brain.state.configurations["c000"].rung >= 0:
            StudyFolder(out).ask_to_stop()

    assert search(parse_study(race), out, leave).kind == "stopped"
    StudyFolder(out).ask_to_stop("c000")
    assert search(parse_study(race), out).kind == "complete"  # the request before is fulfilled
    states = board(tmp_path / "st").set_index("config_id")["state"]
    assert states["c000"].startswith("stopped@")
    assert states["c001"] == "complete"


def test_a_search_that_machines_halted_has_failed_and_one_that_a_person_stopped_has_not(
    study: Mapping, tmp_path: Path
) -> None:
    out = str(tmp_path / "st")
    with open_study(parse_study(study), out) as opened:
        opened.brain.stop_for(EndReason("halted", "limits.target: is what the disk says"))
        opened.brain.stop_for(EndReason("stopped"))
        with pytest.raises(RunFailed, match=r"halted: limits\.target: is .*; mend that and start"):
            conclude(opened)
    with open_study(parse_study(study), out) as opened:
        opened.brain.stop_for(EndReason("stopped"))
        assert str(conclude(opened)) == "stopped by `raybone stop`"


def test_after_too_many_failures_a_higher_limit_lets_the_search_go_on(
    study: Mapping, tmp_path: Path
) -> None:
    wild = {
        **study,
        "fixed": {
            **study["fixed"],
            "optimizer": "SGD",
            "clip": 1e30,
            "warmup_epochs": 0,
            "batch": 1,
            "nbs": 1,
            "lrf": 1,
            "weight_decay": 1.0,
        },
        "epochs": 5,
        "space": {"lr0": {"choice": [10.0, 9.0, 0.01]}},
        "search": {**study["search"], "sampler": "grid"},
    }
    wild["search"]["trials"] = 3
    for limit in (0, 1):
        with pytest.raises(
            RunFailed, match=f"limits.failed_trials: {limit + 1} configurations failed"
        ):
            search(parse_study({**wild, "limits": {"failed_trials": limit}}), str(tmp_path / "st"))
    higher = parse_study({**wild, "limits": {"failed_trials": 2}})
    assert search(higher, str(tmp_path / "st")).kind == "complete"
    assert sorted(board(tmp_path / "st")["state"]) == ["complete", "failed", "failed"]


def test_rules_that_leave_nothing_are_wrong_input(study: Mapping, tmp_path: Path) -> None:
    wrong = parse_study(
        {**study, "search": {**study["search"], "reject": ["lr0 > 0 or batch == 3"]}}
    )
    with pytest.raises(WrongInput, match=r"search\.reject: must leave a part of the space"):
        search(wrong, str(tmp_path / "st"))


def test_points_are_tried_first_and_are_trials(study: Mapping, tmp_path: Path) -> None:
    spec = parse_study(
        {
            **study,
            "epochs": 1,
            "search": {**study["search"], "points": [{"lr0": 0.02, "fliplr": 0}]},
        }
    )
    search(spec, str(tmp_path / "st"))
    assert list(
        board(tmp_path / "st").set_index("config_id").loc["c000", ["cfg.lr0", "cfg.fliplr"]]
    ) == [0.02, 0.0]
    assert len(board(tmp_path / "st")) == 2
    with pytest.raises(WrongInput, match="but search differ"):
        search(parse_study({**study, "epochs": 1}), str(tmp_path / "st"))


def test_the_demonstration_has_its_data_in_its_study_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raybone.phantom.demo.PATIENTS", 6)
    monkeypatch.setattr(
        "raybone.phantom.demo.STUDY",
        {**STUDY, "epochs": 1, "search": {**STUDY["search"], "trials": 1}},
    )
    for _ in range(2):  # the second time it goes on
        demo = prepare_demo(tmp_path / "demo", lambda *_: None, lambda *_: None)
        assert search(demo, str(tmp_path / "demo")).kind == "complete"
    assert len(board(tmp_path / "demo")) == 1
