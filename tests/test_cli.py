"""The front door: exit codes, one line an error, JSON."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from raybone.cli import VERBS, main, parser
from raybone.hpo.journal import Journal
from raybone.run.preview import START_UP
from raybone.storage import Folder


def cli(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def test_phantom_prepare_inspect_search_leaderboard_watch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], study: dict[str, Any]
) -> None:
    place = tmp_path / 'it\'s a "path"'
    assert cli("phantom", place / "ph", "--patients", 4, "--height", 128) == 0
    assert cli("prepare", place / "ph", place / "ds", "--folds", 2, "--key", place / "key") == 0
    assert "8 scans of 4 patients" in capsys.readouterr().out
    assert cli("inspect", place / "ds", "--json") == 0
    assert json.loads(capsys.readouterr().out)["counts"]["scans"] == 8
    (place / "study.yaml").write_text(yaml.safe_dump({**study, "dataset": str(place / "ds")}))
    assert (
        cli(
            "search",
            place / "study.yaml",
            "--out",
            place / "st",
            "--local",
            "--set",
            "epochs=1",
            "search.trials=1",
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "c000" in out
    assert "done: " in out
    assert cli("leaderboard", place / "st", "--csv", tmp_path / "copy.csv") == 0
    assert (tmp_path / "copy.csv").read_text().startswith("rank,config_id,model,state,")
    capsys.readouterr()
    assert cli("leaderboard", place / "st", "--brief", "--csv", tmp_path / "brief.csv") == 0
    # Where every fold scores the same, as one that has not begun to learn, there is no interval.
    assert capsys.readouterr().out.split()[:4] == ["rank", "config", "state", "dice"]
    assert (tmp_path / "brief.csv").read_text().splitlines()[0] == (
        "rank,config_id,model,state,dice_mean,dice_nb_low,dice_nb_high,verdict,dice_corrected,dice_test"
    )
    assert cli("watch", place / "st", "--once") == 0
    assert "best so far: c000 dice" in capsys.readouterr().out
    assert cli("stop", place / "st") == 0


def test_models_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("models", "--json") == 0
    rows = {r["name"]: r for r in json.loads(capsys.readouterr().out)}
    assert rows["yolo11n"]["task"] == "detection"
    assert 2.5e6 < rows["yolo11n"]["parameters"] < 2.7e6
    assert set(rows["unet"]) == {"name", "task", "parameters", "source"}


def test_the_menu_is_told_without_torch() -> None:
    """Importing it and building every network took half a minute."""
    code = (
        "import sys; import raybone.cli as c; c.main(['models']); print({'torch', "
        "'torchvision'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "unet " in run.stdout
    assert run.stdout.endswith("set()\n")


def test_preview_counts_before_spending(
    study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(study))
    assert cli("preview", tmp_path / "s.yaml", "--set", "search.trials=10") == 0
    assert "90 fold epochs expected" in capsys.readouterr().out


def test_preview_takes_epoch_times_as_given_or_from_an_earlier_study(
    study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**study, "resources": {"gpus": 0.5}}))
    assert cli("preview", tmp_path / "s.yaml", "--epoch-seconds", 40, "--slots", 4, "--json") == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["rungs"] == [["3 folds x 3 epochs", 2, 18]]
    assert seen["hours"] == pytest.approx((18 * 40 + 2 * START_UP) / 3600)
    # Two configurations are no more than two runs.
    assert seen["wall_hours"] == pytest.approx(seen["hours"] / 2)
    assert seen["gpu_hours"] == pytest.approx(18 * 40 / 3600 / 2)
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    resolved = {"dataset_hash": "h", "code_version": "v", "folds": 3, "ladder": [[3, 3]]}
    (earlier / "study.yaml").write_text(yaml.safe_dump({**study, "resolved": resolved}))
    journal = Journal(Folder(earlier))
    journal.append("config", config_id="c0", params={})
    for epoch, seconds in enumerate([90.0, 7.0, 8.0], 1):
        journal.append("epoch", config_id="c0", fold=0, epoch=epoch, metrics={}, seconds=seconds)
    assert cli("preview", tmp_path / "s.yaml", "--epochs-from", earlier) == 0
    assert "8.0 s a fold epoch (the median of 3 fold epochs of " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        (["--epoch-seconds", "0"], "must be over 0"),
        (["--epoch-seconds", "nan"], "must be over 0"),
        (["--epoch-seconds", "1", "--epochs-from", "x"], "leave one out"),
        (["--slots", "0"], "at least 1"),
        (["--epochs-from", "nowhere"], "must be a study folder"),
    ],
)
def test_a_preview_with_wrong_numbers_is_one_line(
    study: dict[str, Any],
    tmp_path: Path,
    more: list[str],
    rule: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(study))
    assert cli("preview", tmp_path / "s.yaml", *more) == 2
    error = capsys.readouterr().err
    assert rule in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "none.yaml", "--out", "x"],
        ["prepare", "none", "x"],
        ["inspect", "none"],
        ["watch", "none"],
        ["stop", "none"],
        ["leaderboard", "none"],
        ["nonsense"],
        [],
        ["phantom", "x", "--patients", "many"],
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("raybone: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_is_no_folder_is_wrong_input() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "raybone", "leaderboard", "/dev/full"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "must be a study folder" in run.stderr


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_every_line_of_a_docstring_is_an_argument(
    verb: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as left:
        main([verb.__name__, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    doc = inspect.getdoc(verb) or ""
    assert doc.partition("\n")[0] in " ".join(shown.split())
    parameters = inspect.signature(verb).parameters
    entries = re.findall(r"^    (\w+)[^:\n]*:", doc, re.MULTILINE)
    assert set(entries) <= set(parameters)
    options = [name for name in entries if parameters[name].kind is inspect.Parameter.KEYWORD_ONLY]
    assert all(f"--{name.replace('_', '-')}" in shown for name in options)


def test_an_option_of_several_words_may_be_repeated() -> None:
    words = ["search", "s.yaml", "--out", "o", "--set", "a=1", "b=2", "--set", "c=3"]
    options = parser().parse_args(words)
    assert options.set == ["a=1", "b=2", "c=3"]
    assert parser().parse_args(words[:4]).set == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("raybone le", {"leaderboard"}),
        ("raybone leaderboard runs/a --b", {"--brief", "--by-model"}),
    ],
)
def test_a_shell_completes_verbs_and_options(line: str, words: set[str], tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    shell = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    command = [sys.executable, "-m", "raybone"]
    subprocess.run(command, env=os.environ | shell, check=True, capture_output=True)
    assert {word.strip() for word in answer.read_text().split("\v")} == words
