"""What the README says is so: its study is valid, its commands exist, its pins agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from raybone.cli import main
from raybone.models import load
from raybone.run.defaults import complete
from raybone.study.files import parse_study, read_study

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.S)


def test_the_study_of_the_readme_is_valid() -> None:
    (text,) = [body for kind, body in BLOCKS if kind == "yaml"]
    study = parse_study(yaml.safe_load(text))
    assert len(study.names) == 2
    for name in study.names:
        assert set(study.of(name).space) <= set(load(name).Config.model_fields)


def test_every_verb_that_the_readme_names_exists() -> None:
    verbs = {
        line.split()[1]
        for _, body in BLOCKS
        for line in body.splitlines()
        if line.startswith("raybone ")
    }
    assert verbs >= {"prepare", "inspect", "search", "watch"}
    for verb in verbs:
        with pytest.raises(SystemExit) as left:
            main([verb, "--help"])
        assert left.value.code == 0


def test_its_first_two_commands_are_targets_of_the_makefile() -> None:
    first = BLOCKS[1][1].split("\n")
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    assert [line.split()[1] for line in first if line] == ["demo", "test"]
    assert {"demo", "test", "install", "check"} <= set(targets)


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_study_of_jobs_is_valid(path: Path) -> None:
    study = read_study(path, complete=complete)
    for alone in map(study.of, study.names):
        model = load(alone.model)
        fixed = {k: v for k, v in alone.fixed.items() if (k, v) != ("anchor", "dataset")}
        model.Config.model_validate(fixed)
        assert set(alone.space) <= set(model.Config.model_fields)


def test_pins_of_ray_and_ultralytics_are_exact_and_the_same_everywhere() -> None:
    project, pins = (ROOT / "pyproject.toml").read_text(), (ROOT / "constraints.txt").read_text()
    for name in ("ray", "ultralytics"):
        (version,) = re.findall(rf'"{name}(?:\[.*\])?==([\d.]+)"', project)
        assert f"{name}=={version}" in pins


def test_no_file_names_a_package_index() -> None:
    assert "://" not in (ROOT / "constraints.txt").read_text()
