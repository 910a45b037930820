"""`raybone slurm`: a script that bash takes, with Slurm's options and the whole study in it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from raybone.cli import main
from raybone.study.files import parse_study, read_study


def script(
    capsys: pytest.CaptureFixture[str], study: dict[str, Any], place: Path, *more: str
) -> str:
    (place / "study.yaml").write_text(yaml.safe_dump(study))
    capsys.readouterr()
    assert main(["slurm", str(place / "study.yaml"), "--out", str(place / "run"), *more]) == 0
    text = capsys.readouterr().out
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    return text


def options(text: str) -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE)
    return dict(found)


def test_it_asks_for_what_the_study_needs_and_goes_back_into_the_queue(
    study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resources = {"workers": 2, "gpus": 1, "cpus": 4, "concurrent": 3}
    text = script(
        capsys, {**study, "resources": resources, "limits": {"hours": 9}}, tmp_path, "--nodes", "2"
    )
    asked = options(text)
    assert asked["nodes"] == "2"
    assert asked["gpus-per-node"] == "3"
    assert asked["cpus-per-task"] == "13"
    assert asked["time"] == "13:00:00"
    assert asked["signal"] == "B:USR1@120"
    assert "requeue" in asked
    assert "--num-cpus 13 --num-gpus 3" in text
    plain = options(script(capsys, study, tmp_path))
    assert (plain["cpus-per-task"], plain["time"]) == ("3", "24:00:00")
    assert "gpus-per-node" not in plain


def test_the_study_travels_whatever_is_in_it(
    study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "/data/it's $(touch gone) `x` \\ EOF"
    text = script(capsys, {**study, "dataset": hostile}, tmp_path)
    # As the shell of the job would write it down
    found = re.search(r"^(cat > .*?^STUDY-\w+)$", text, re.MULTILINE | re.DOTALL)
    assert found
    place = tmp_path / "job"
    place.mkdir()
    subprocess.run(["bash", "-c", f"place={place}\n{found[1]}\n"], check=True, cwd=place)
    assert [p.name for p in place.iterdir()] == ["study.yaml"]
    sent = parse_study(yaml.safe_load((place / "study.yaml").read_text()))
    assert sent == read_study(tmp_path / "study.yaml")


def test_relative_places_are_those_of_the_folder_it_is_made_in(
    study: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    text = script(capsys, {**study, "dataset": "data/x"}, tmp_path)
    assert f"dataset: {tmp_path}/data/x" in text
    assert f"out={tmp_path}/run" in text


@pytest.mark.parametrize("nodes", ["0", "9"])
def test_more_nodes_than_workers_are_refused(
    nodes: str, study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    words = ["slurm", str(tmp_path / "study.yaml"), "--out", "run", "--nodes", nodes]
    assert main(words) == 2
    assert "must be from 1 to 2" in capsys.readouterr().err
