"""What a study ran on: told once, in the leaderboard and the report, and when it is another one."""

from __future__ import annotations

import json
import platform
import socket
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
import yaml

from raybone import environment as place
from raybone.cli import main
from raybone.results.study_folder import StudyFolder


def test_it_names_versions_and_machine_and_nobody() -> None:
    found = place.environment()
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"] == metadata.version("torch")
    assert found["cores"] >= 1
    assert found["memory_gb"] >= 1
    assert socket.gethostname() not in json.dumps(found)


def test_gpus_are_those_that_nvidia_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 550.54, 143771 MiB'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = place.environment.__wrapped__()
    assert found["gpus"] == ["NVIDIA H200, 550.54, 143771 MiB"]
    assert "NVIDIA H200, 550.54" in place.in_short(found)


def test_a_study_that_goes_on_elsewhere_says_so(
    study: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, out = tmp_path / "study.yaml", str(tmp_path / "run")
    path.write_text(yaml.safe_dump({**study, "epochs": 1, "search": {"trials": 1}}))
    for _ in range(2):
        assert main(["search", str(path), "--out", out, "--local"]) == 0
    assert "not as before" not in capsys.readouterr().out
    here = place.environment()
    other = {**here, "python": "3.99.0", "packages": {**here["packages"], "torch": "9.9.9"}}
    for place_of in ("run.session", "train.fit"):
        monkeypatch.setattr(f"raybone.{place_of}.environment", lambda: other)
    assert main(["search", str(path), "--out", out, "--local", "--set", "search.trials=2"]) == 0
    said = capsys.readouterr().out
    assert f"python 3.99.0 (was {here['python']})" in said
    assert f"torch 9.9.9 (was {here['packages']['torch']})" in said
    state = StudyFolder(out).state
    assert state.environments == {"driver": [here, other]}
    machines = pd.read_csv(f"{out}/leaderboard.csv", index_col="config_id")["machines"]
    assert machines["c000"] == place.in_short(here)
    assert machines["c001"] == place.in_short(other)
    assert main(["report", out]) == 0
    page = (tmp_path / "run/report.html").read_text()
    assert "What it was trained on." in page
    assert "torch 9.9.9" in page
    capsys.readouterr()
    assert main(["logs", out]) == 0
    assert "the driver runs on raybone" in capsys.readouterr().out
