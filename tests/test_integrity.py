"""What no seal covered: weights and windows that are not numbers, links, edited datasets, journals
that are gone.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from raybone.cli import main
from raybone.data.dataset import open_dataset
from raybone.deploy.bundle import open_bundle
from raybone.errors import WrongInput
from raybone.hpo.journal import Journal
from raybone.storage import Folder


def cli(*words: object) -> int:
    return main([str(w) for w in words])


@pytest.fixture(scope="module")
def done(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of one configuration and its bundle, beside a copy of their dataset."""
    place = tmp_path_factory.mktemp("done")
    shutil.copytree(dataset, place / "ds")
    study = {
        "name": "tiny",
        "dataset": str(place / "ds"),
        "model": "unet",
        "epochs": 1,
        "metric": "dice",
        "fixed": {"batch": 4, "nbs": 4, "width": 4, "depth": 2, "imgsz": 64, "lr0": 0.01},
        "search": {"trials": 1, "sampler": "random", "scheduler": "full"},
    }
    (place / "s.yaml").write_text(yaml.safe_dump(study))
    assert cli("search", place / "s.yaml", "--out", place / "st", "--local") == 0
    assert cli("refit", place / "st", "--out", place / "bundle") == 0
    return place


@pytest.fixture
def place(done: Path, tmp_path: Path) -> Path:
    """A copy that a test may harm; the study finds its dataset where it was."""
    shutil.copytree(done, tmp_path / "p")
    return tmp_path / "p"


def refused(capsys: pytest.CaptureFixture[str], rule: str, *words: object) -> None:
    """The command ends in one line that holds the rule."""
    capsys.readouterr()
    code = cli(*words)
    told = capsys.readouterr().err.splitlines()
    assert code in (1, 2), told
    assert rule in told[-1]
    assert told[-1].startswith("raybone: ")
    assert not [line for line in told if "Traceback" in line]


def nan(tensors: dict[str, Any]) -> dict[str, Any]:
    """The same with a NaN in the first tensor of numbers with a point."""
    name = next(n for n, v in tensors.items() if v.is_floating_point())
    return {**tensors, name: torch.full_like(tensors[name], math.nan)}


def test_a_bundle_whose_weights_are_nan_is_refused_instead_of_finding_nothing(
    place: Path, cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, meta = (
        place / "bundle" / "fold0.safetensors",
        json.loads((place / "bundle" / "bundle.json").read_text()),
    )
    good = {name: value.clone() for name, value in load_file(file).items()}
    for bad, rule in (
        (nan(good), "must hold finite weights"),
        (dict(list(good.items())[:3]), "must hold the weights"),
    ):
        save_file(bad, file)
        meta["members"][0]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        (place / "bundle" / "bundle.json").write_text(json.dumps(meta))
        refused(capsys, rule, "predict", place / "bundle", cohort, "--out", place / "out")
        assert not (place / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"preprocessing": {"steps": [], "window": math.nan}},
        {"preprocessing": {"steps": [], "window": -1.0}},
        {"preprocessing": {"steps": 7, "window": None}},
        {"preprocessing": []},
        {"members": {}},
        {"members": [7]},
        {"members": [{"file": "../../x", "sha256": ""}]},
        {"categories": "malignant"},
        {"categories": ["a", "b", "c"]},
        {"config": []},
        {"config": {"width": 10**400}},
        {"likeness": {"mean": [[1, 2], [3]], "usual": {}}},
        {"likeness": {"mean": [[1.0]], "usual": {"nothing": [0, 1]}}},
        {"likeness": {"mean": "x", "usual": {}}},
        {"calibration": {"slope": "x"}},
        {"calibration": {"slope": math.inf}},
        {"patients": 7},
        {"model": ["unet"]},
        {"model": "../unet"},
        {"format": [1]},
        {"name": None},
    ],
)
def test_a_bundle_json_of_wrong_kinds_is_one_line(
    done: Path, change: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(done / "bundle", tmp_path / "b")
    meta = json.loads((tmp_path / "b" / "bundle.json").read_text())
    (tmp_path / "b" / "bundle.json").write_text(json.dumps({**meta, **change}))
    with pytest.raises(WrongInput) as caught:
        open_bundle(tmp_path / "b")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", ["[]", "7", "{}", "[" * 100_000, "\x00", '"x"', "null"])
def test_a_bundle_json_that_is_none_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text(content)
    with pytest.raises(WrongInput, match="must say what was trained and how"):
        open_bundle(tmp_path)


def test_weights_of_a_study_that_are_damaged_or_another_folds_end_in_one_line(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = place / "st" / "runs" / "c000" / "fold0" / "last.pt"
    state = torch.load(last, weights_only=True)
    other = torch.load(last.parent.parent / "fold1" / "last.pt", weights_only=True)
    shutil.rmtree(place / "st" / "journal")
    (place / "st" / "leaderboard.csv").unlink()
    again = ("search", place / "s.yaml", "--out", place / "st", "--local", "--set", "epochs=1")
    for bad, rule in (
        ({**state, "average": nan(state["average"])}, "must hold weights"),
        ({**state, "average": 7}, "must hold weights"),
        ([], "must hold weights"),
        ({}, "must hold weights"),
        (other, "trained with another fold"),
        ({**state, "dataset": "x"}, "another dataset"),
        ({**state, "net": {}}, "must hold the weights of this network"),
        ({**state, "history": [7]}, "must be what a training left"),
        ({**state, "updates": "x"}, "must be what a training left"),
        ({**state, "optimizer": {"param_groups": []}}, "must be what a training left"),
    ):
        torch.save(bad, last)
        refused(capsys, rule, *again)
    torch.save(state, last)
    assert cli(*again) == 0


def test_weights_to_start_from_must_be_finite(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(place / "st" / "runs" / "c000" / "fold0" / "last.pt", weights_only=True)
    torch.save(nan(state["average"]), place / "w.pt")
    refused(
        capsys,
        "must hold finite numbers",
        "search",
        place / "s.yaml",
        "--out",
        place / "new",
        "--local",
        "--set",
        f"fixed.weights={place / 'w.pt'}",
    )


@pytest.mark.parametrize(
    "link", ["runs", "runs/c000", "runs/c000/fold0", "runs/c000/fold0/last.pt"]
)
def test_links_in_a_study_folder_are_not_followed(
    place: Path, link: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "elsewhere"
    (place / "st" / link).rename(there)
    (place / "st" / link).symlink_to(there)
    files = sorted(p for p in there.rglob("*") if p.is_file())
    shutil.rmtree(place / "st" / "journal")
    (place / "st" / "leaderboard.csv").unlink()
    refused(
        capsys,
        "must be no link",
        "search",
        place / "s.yaml",
        "--out",
        place / "st",
        "--local",
        "--set",
        "keep=0",
    )
    assert there.exists()
    assert sorted(p for p in there.rglob("*") if p.is_file()) == files
    with pytest.raises(WrongInput, match="must be no link"):
        Folder(place / "st").delete(link)


@pytest.mark.parametrize("name", ["folds.csv", "scans.csv", "annotations.json"])
def test_a_dataset_edited_by_hand_is_not_the_one_its_hash_says(
    place: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = place / "ds" / name
    content = file.read_bytes()
    file.write_bytes(content.replace(b",0,", b",1,", 1) if name.endswith("csv") else content + b" ")
    for words in (
        ["inspect", place / "ds"],
        [
            "search",
            place / "s.yaml",
            "--out",
            place / "new",
            "--local",
            "--set",
            f"dataset={place / 'ds'}",
        ],
    ):
        refused(capsys, f"its hash stands for {name} as first written", *words)
    file.write_bytes(content)
    assert cli("inspect", place / "ds") == 0


@pytest.mark.parametrize("lost", ["gone", "empty"])
def test_a_leaderboard_that_its_journal_cannot_make_again_is_kept(
    place: Path, lost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    board = (place / "st" / "leaderboard.csv").read_bytes()
    (place / "st" / "journal").rename(place / "kept")
    if lost == "empty":
        (place / "st" / "journal").mkdir()
    for words in (
        ["leaderboard", place / "st"],
        ["search", place / "s.yaml", "--out", place / "st", "--local"],
    ):
        refused(
            capsys,
            "its leaderboard.csv has 1 rows, but its journal, which is gone or cut, knows 0",
            *words,
        )
    assert (place / "st" / "leaderboard.csv").read_bytes() == board
    shutil.rmtree(place / "st" / "journal", ignore_errors=True)
    (place / "kept").rename(place / "st" / "journal")
    assert cli("leaderboard", place / "st") == 0


def test_no_table_holds_a_formula_and_numbers_stay_numbers(
    study: dict[str, Any], tmp_path: Path
) -> None:
    resolved = {"dataset_hash": "h", "code_version": "v", "folds": 3, "ladder": [[3, 3]]}
    space = {"a": {"choice": ["=1+1", "+2", "-3", "@x", "\tx"]}, "b": {"uniform": [-9, 9]}}
    (tmp_path / "study.yaml").write_text(
        yaml.safe_dump({**study, "space": space, "resolved": resolved})
    )
    journal = Journal(Folder(tmp_path))
    for number, text in enumerate(space["a"]["choice"]):
        journal.append("config", config_id=f"c{number}", params={"a": text, "b": -number - 0.5})
    assert cli("leaderboard", tmp_path, "--csv", tmp_path / "copy.csv") == 0
    for name in ("leaderboard.csv", "copy.csv"):
        text = (tmp_path / name).read_text()
        cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
        assert not [
            c
            for c in cells
            if c[:1] in ("=", "+", "@", "\t") or (c[:1] == "-" and c[1:2] not in "0123456789")
        ]
        assert sorted(pd.read_csv(io.StringIO(text))["cfg.b"]) == [-4.5, -3.5, -2.5, -1.5, -0.5]


def test_a_label_may_be_called_like_a_formula(cohort: Path, tmp_path: Path) -> None:
    shutil.copytree(cohort, tmp_path / "in")
    names = sorted(
        p.relative_to(tmp_path / "in").as_posix() for p in (tmp_path / "in").rglob("*.dcm")
    )
    (tmp_path / "in" / "labels.csv").write_text(
        "file,=cmd\n" + "".join(f"{name},-1\n" for name in names)
    )
    assert cli("prepare", tmp_path / "in", tmp_path / "ds", "--key", tmp_path / "k") == 0
    assert ",'=cmd\n" in (tmp_path / "ds" / "scans.csv").read_text().replace("\r", "")
    assert {s.labels for s in open_dataset(tmp_path / "ds").scans} == {(("=cmd", "-1"),)}
