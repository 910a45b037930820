"""What a terminal or a pipe is told: nothing that it takes for a command, and no work ends because
nobody reads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from raybone.cli import main
from raybone.data.dataset import open_dataset
from raybone.hpo.journal import Journal
from raybone.storage import Folder

ESCAPE = "\x1b]0;owned\x07\x9b2J\u202e"


def unread(*arguments: object) -> int:
    """The exit code of a command into a pipe that nobody reads, errors and all."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            [sys.executable, "-m", "raybone", *map(str, arguments)],
            stdout=writer,
            stderr=writer,
            timeout=120,
            check=False,
        ).returncode
    finally:
        os.close(writer)


def harmless(text: str) -> bool:
    """Whether a text is printable but for its lines."""
    return all(c.isprintable() or c in "\n\r\t" for c in text)


def test_a_reader_that_leaves_ends_no_work_and_exit_code_0_means_done(
    cohort: Path, study: dict[str, Any], tmp_path: Path
) -> None:
    made = tmp_path / "ds"
    assert unread("prepare", cohort, made, "--folds", 3, "--key", tmp_path / "key") == 0
    assert len(open_dataset(made).scans) == 18
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**study, "dataset": str(made), "epochs": 1}))
    assert unread("search", tmp_path / "s.yaml", "--out", tmp_path / "st", "--local") == 0
    board = (tmp_path / "st" / "leaderboard.csv").read_text().splitlines()
    assert [line.split(",")[3] for line in board[1:]] == ["complete", "complete"]
    assert unread("prepare", cohort, made) == 2  # it exists: what nobody reads is still wrong
    for verb in ("logs", "watch", "leaderboard"):
        assert unread(verb, tmp_path / "st") == 0


def hostile_study(study: dict[str, Any], place: Path) -> None:
    """A study folder whose every free text is an escape sequence."""
    place.mkdir()
    space = {"model_name": {"choice": [ESCAPE, "b"]}}
    resolved = {
        "dataset_hash": "h",
        "code_version": "v",
        "folds": 3,
        "ladder": [[3, 3]],
        "warnings": [ESCAPE],
    }
    (place / "study.yaml").write_text(
        yaml.safe_dump({**study, "space": space, "resolved": resolved})
    )
    journal = Journal(Folder(place))
    journal.append("start", slots=1)
    for name, value in (("c0", ESCAPE), (f"c1{ESCAPE}", "b")):
        journal.append("config", config_id=name, params={"model_name": value})
        journal.append("failed", config_id=name, reason=ESCAPE)
    journal.append("end", reason=ESCAPE)


@pytest.mark.parametrize("words", [["leaderboard"], ["logs"], ["watch", "--once"]])
def test_a_study_from_elsewhere_says_nothing_to_the_terminal(
    study: dict[str, Any], tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    hostile_study(study, tmp_path / "st")
    assert main([words[0], str(tmp_path / "st"), *words[1:]]) == 0
    told = capsys.readouterr()
    assert "c1?]0;owned" in told.out
    assert harmless(told.out + told.err)


def test_names_of_files_and_places_say_nothing_to_the_terminal(
    cohort: Path, study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number, scan in enumerate(sorted(cohort.rglob("*.dcm"))):
        (source / f"{number}{ESCAPE}.dcm").write_bytes(scan.read_bytes())
    (source / f"no\nscan\udcff{ESCAPE}.txt").write_text("x")
    assert (
        main(
            [
                "prepare",
                str(source),
                str(tmp_path / "ds"),
                "--key",
                str(tmp_path / "k"),
                "--show-paths",
            ]
        )
        == 0
    )
    told = capsys.readouterr()
    assert "no scan\\udcff?]0;owned??2J?.txt: not taken: " in told.out
    assert harmless(told.out + told.err)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**study, "dataset": f"no\nwhere{ESCAPE}"}))
    for verb in (["preview", str(tmp_path / "s.yaml")], ["leaderboard", f"no\nwhere{ESCAPE}"]):
        assert main(verb) == 2
        told = capsys.readouterr()
        assert "no where?]0;owned??2J?" in told.err
        assert told.err.count("\n") == 1
        assert harmless(told.out + told.err)
