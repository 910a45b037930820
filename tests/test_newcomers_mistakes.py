"""What a newcomer mistypes, takes for something else or has lost: one line that names the cure."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from bundles import bundle_of
from pretend import pretend

from raybone.cli import main


@pytest.fixture(scope="module")
def here(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pretended study, ``ours``, of the dataset ``ds``."""
    place = tmp_path_factory.mktemp("newcomer")
    shutil.copytree(dataset, place / "ds")
    pretend(place / "ours", place / "ds", replicates=0)
    return place


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("phantom text", "phantom: text must be an empty folder or absent, but is a file"),
        ("phantom big --height 100000", "height in steps of 4 from 64 to 4096, got 24, 0 and 100"),
        ("leaderboard ours --csv no/x.csv", "--csv: must be a file in a folder that is there, got"),
        ("leaderboard ours --csv ds", "--csv: must be a file in a folder that is there, got 'ds'"),
        ("export ours --coco no/c.json", "--coco: must be a file in a folder that is there"),
        ("simulate --curves text --plot no/x.png", "--plot: must be a file in a folder that is"),
        (
            "simulate --curves text",
            "--curves text: must be an npz of recorded curves, but: is none",
        ),
        ("prepare ds x --key ds", "--key ds: must be a file, but is a folder; name a file in it"),
        ("prepare ds x --split no.csv", "--split: must be a file that can be read, but: No such"),
        ("inspect ours", "must be a folder made by `raybone prepare`, but it is a study; give the"),
        ("inspect no", "must be a folder made by `raybone prepare`, but it is not there; check"),
        ("predict no ds --out x", "must be a folder made by `raybone refit`, but it is not there"),
        ("preview latin.yaml", "latin.yaml: must be YAML in UTF-8, but is not; save it as that"),
        ("preview no.yaml", "no.yaml: must be a study's YAML file, but: No such file or directory"),
        ("add ours batch=2 batch=4", "batch: must be given once; leave the others out"),
        ("preview s.yaml --wat 3", "preview: --wat 3: is unknown; see `raybone preview --help`"),
        ("report ours --dataset other", "was begun on the dataset of hash"),
        ("compare ours --dataset other", "was begun on the dataset of hash"),
        ("watch ours --serve 127.0.0.1:0 --dataset other", "was begun on the dataset of hash"),
        ("track ours --to mlflow:http://me:word@host/", "without a name and password"),
        ("track ours --to mlflow:http://me:word@host/", "as mlflow:http://host/; set them as"),
        ("forget ds nobody --key another", "and the --key that it was prepared with, which"),
        ("init ds --hours -1 --out new.yaml", "init: --gpus must be 0 or more and --hours over 0"),
    ],
)
def test_a_mistake_is_one_line_of_wrong_input(
    here: Path,
    words: str,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(here)
    (here / "text").write_text("something")
    (here / "another").write_text("0123")
    (here / "another").chmod(0o600)
    (here / "latin.yaml").write_bytes("name: Müller".encode("latin-1"))
    other = here / "other"
    if not other.exists():
        shutil.copytree(here / "ds", other)
        meta = json.loads((other / "dataset.json").read_text())
        (other / "dataset.json").write_text(json.dumps({**meta, "hash": "0" * 16}))
    assert main(words.split()) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert line in told
    assert "word" not in told.replace("password", "")


def test_a_wrong_value_is_told_once_and_in_the_words_of_yaml(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {
        "dataset": "ds",
        "model": "unet",
        "epochs": "many",
        "search": 3,
        "fixed": {"lr0": float("nan")},
        "track": "mlflow:x",
    }
    (here / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    assert main(["preview", str(here / "wrong.yaml")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("wrong.yaml: ")[2].partition(", got")[0] for line in lines] == [
        "epochs: must be a whole number",
        "fixed.lr0: must be a finite number, text, true or false, or a list of numbers or of texts",
        "search: must be a mapping",
        "track: must be a list",
    ]


def test_the_end_of_a_journal_that_is_gone_is_told_by_all_that_read_it(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(here / "ours", cut)
    assert main(["leaderboard", str(cut)]) == 0
    (journal,) = (cut / "journal").iterdir()
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: len(lines) // 2]))
    capsys.readouterr()
    for words in (["report"], ["leaderboard"], ["watch", "--once"], ["compare"]):
        assert main([words[0], str(cut), *words[1:]]) == 2, words
        assert "which is gone or cut, knows" in capsys.readouterr().err


def test_a_patient_who_is_not_there_is_not_blamed_on_the_right_key(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    assert main(["prepare", str(cohort), str(tmp_path / "ds"), "--key", str(key)]) == 0
    capsys.readouterr()
    assert main(["forget", str(tmp_path / "ds"), "nobody", "--key", str(key)]) == 2
    told = capsys.readouterr().err
    assert "the source's id; who was deleted is not known any more" in told
    assert str(key) not in told


def test_a_stop_says_when_nobody_is_there_to_hear_it(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(here / "ours", tmp_path / "ours")
    assert main(["stop", str(tmp_path / "ours")]) == 0
    assert "no search is at work on it" in capsys.readouterr().out


def test_the_lowest_score_of_boxes_is_not_one_of_masks(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle_of(tmp_path / "bundle", "unet", ["malignant"], width=4, depth=2)
    asked = ["predict", tmp_path / "bundle", cohort, "--out", tmp_path / "out", "--least", "0.9"]
    assert main([*map(str, asked)]) == 2
    assert "--least is of a detector's boxes, but this bundle is for seg" in capsys.readouterr().err


def test_a_preview_counts_no_more_than_a_space_has_and_says_which_limit_ends_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = {
        "dataset": str(here / "ds"),
        "model": "unet",
        "epochs": 3,
        "metric": "dice",
        "space": {"fliplr": {"choice": [0.0, 0.5]}, "batch": {"choice": [2, 4, 8]}},
        "search": {"trials": 500, "scheduler": "full", "reject": ["batch == 8"]},
        "limits": {"hours": 0.01},
    }
    (here / "finite.yaml").write_text(yaml.safe_dump(study))
    asked = ["preview", str(here / "finite.yaml"), "--epoch-seconds", "100", "--slots", "64"]
    assert main([*asked, "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    folds = 3
    assert seen["rungs"] == [["3 folds x 3 epochs", 4, 4 * folds * 3]]
    assert (seen["exhaustive"], seen["slots"]) == (4 * folds * 3, 4)
    assert main(asked) == 0
    assert "more than the limits of the study" in capsys.readouterr().out


def test_a_table_of_three_folds_is_simulated_with_three(
    capsys: pytest.CaptureFixture[str],
) -> None:
    curves = Path(__file__).parents[1] / "benchmarks/curves/bccd-yolo11n.npz"
    asked = ["simulate", "--curves", str(curves), "--repeats", "1", "--schedulers", "full"]
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["full"]["fold_epochs"] == pytest.approx(24 * 3 * 30)


def test_a_parameter_that_one_configuration_alone_has_is_in_the_table(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {
        "optimizer": {"choice": ["AdamW", "SGD"]},
        "momentum": {"choice": [0.9], "when": {"optimizer": "SGD"}},
    }
    pretend(tmp_path / "cond", here / "ds", replicates=0, space=space, search={"sampler": "grid"})
    assert main(["leaderboard", str(tmp_path / "cond")]) == 0
    assert "momentum" in capsys.readouterr().out


def test_a_tracker_that_never_answers_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from raybone.run import followers

    hangs = [sys.executable, "-c", "import time; time.sleep(600)"]
    run = subprocess.Popen
    monkeypatch.setattr(followers, "PATIENCE", 0.2)
    monkeypatch.setattr(followers.subprocess, "Popen", lambda words, **how: run(hangs, **how))
    with followers.tracked(["mlflow:http://host"], "runs/ours"):
        pass
    told = capsys.readouterr()
    assert "mlflow:http://host was not told all in 0.2 s; `raybone track runs/ours --to" in (
        told.out + told.err
    )
