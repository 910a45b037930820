"""The study folder as an object: what a study left, wherever it lies and however far it came."""

from __future__ import annotations

import ast
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pretend import pretend

from raybone.data.dataset import open_dataset
from raybone.errors import DamagedFile, WrongInput
from raybone.results.study_folder import StudyFolder, study_at
from raybone.study.spec import ResolvedStudy
from raybone.train.checkpoint import write_checkpoint

ROOT = Path(__file__).resolve().parents[2] / "raybone"
# What is spelled in one file: the names of files and folders of a study, and who reads its journal
HOMES = {
    "last.pt": "train/checkpoint.py",
    "best.pt": "train/checkpoint.py",
    "study.yaml": "results/study_folder.py",
    "leaderboard.csv": "results/study_folder.py",
    "curves.npz": "results/study_folder.py",
    "runs": "results/study_folder.py",
    "runs/": "results/study_folder.py",
    "fold": "storage.py",
    "lease.json": "hpo/lease.py",
    "journal": "hpo/journal.py",
    "Journal": "results/study_folder.py",
}
# A job's own files, and where a study folder is made without --out
OTHERS = {"run/ray/jobs.py", "run/kubernetes.py"}


def spelled(source: str) -> Iterator[str]:
    """The names of HOMES that a file spells: as a whole text, before a value, or as a call."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value in HOMES and node.value != "fold":
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            for text, after in zip(node.values, node.values[1:]):
                ends = isinstance(text, ast.Constant) and isinstance(after, ast.FormattedValue)
                if ends and (name := re.search(r"(?:^|/)(runs/|fold)$", text.value)):
                    yield name[1]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield from {"Journal"} & {node.func.id}


def test_nobody_else_spells_the_layout_of_a_study_folder() -> None:
    texts = {str(p.relative_to(ROOT)): p.read_text() for p in ROOT.rglob("*.py")}
    wrong = [
        f"{path} spells {name}, which {HOMES[name]} does"
        for path, text in texts.items()
        if path not in OTHERS
        for name in spelled(text)
        if path != HOMES[name]
    ]
    assert wrong == []
    assert set(HOMES.values()) <= {p for p, text in texts.items() if any(spelled(text))}


@pytest.mark.parametrize(
    "source",
    [
        'folder.child(f"runs/{config_id}/x")',
        'f"{url}/runs/{name}"',
        'f"{base}/fold{k}"',
        'folder.child(f"fold{k}")',
        'torch.load(path / "last.pt")',
        'folder.read("leaderboard.csv")',
        "State(Journal(folder).events())",
    ],
)
def test_what_spells_it_is_seen(source: str) -> None:
    assert list(spelled(source))


@pytest.mark.parametrize("source", ['f"{m}_fold{k}"', 'f"fold {k}"', '{"fold": 1}', 'f"fold {x}"'])
def test_columns_and_words_do_not_spell_it(source: str) -> None:
    assert not list(spelled(source))


@pytest.fixture(params=["path", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A study folder that is not there yet, on a disk and on an object store."""
    store = f"memory://folder-{time.monotonic_ns()}/st"
    return str(tmp_path / "st") if request.param == "path" else store


def test_it_gives_what_a_study_left(url: str, dataset: Path) -> None:
    made = pretend(url, dataset, failing=1, search={"trials": 4})
    folder = StudyFolder(url)
    assert folder.study == made
    assert folder.state.end == "complete"
    table = folder.table()
    assert list(table["state"]) == ["complete"] * 3 + ["failed"]
    best = folder.winner()
    assert best is not None
    assert best.id == table["config_id"][0]
    assert [c.id for c in folder.complete()] == list(table["config_id"][:3])
    assert best.params == folder.state.configurations[best.id].params
    opened = open_dataset(dataset)
    folds = best.predictions()
    assert folds is not None
    assert folds == best.predictions(opened)
    for fold, findings in enumerate(folds):
        assert [f["scan_id"] for f in findings] == [s.scan_id for s in opened.validation(fold)]
    assert folder.complete()[1].predictions(opened) is None
    for written in (folder.table(), folder.write_table()):
        assert written.equals(table)


def test_weights_are_those_of_a_fold_until_they_are_dropped(url: str) -> None:
    pretend(url, search={"trials": 1})
    best = StudyFolder(url).winner()
    assert best is not None
    assert best.weights(0) is None
    for fold in (0, 1, 2):
        assert not best.has_weights()
        average = {"w": torch.full((2,), float(fold))}
        write_checkpoint(best.fold(fold), {"average": average})
    assert best.has_weights()
    assert best.weights(2)["w"].tolist() == [2.0, 2.0]
    assert best.weights(None) is None
    best.fold(1).write("last.pt", b"PK")
    with pytest.raises(DamagedFile, match=r"fold1/last\.pt: must hold weights"):
        best.weights(1)
    best.drop_weights()
    assert best.weights(2) is None


def test_a_study_that_has_not_ended_has_what_there_is(url: str) -> None:
    pretend(url, stop_after=0)
    empty = StudyFolder(url)
    assert (empty.winner(), empty.complete(), len(empty.table())) == (None, [], 0)
    assert empty.to_optuna().trials == []
    pretend(url, stop_after=2)
    begun = StudyFolder(url)
    assert begun.state.end == ""
    assert list(begun.table()["state"]) == ["complete", "complete"]
    assert (empty.winner(), len(empty.table())) == (None, 0), "a folder is as it was first asked"


def test_optuna_gets_every_configuration_with_its_rungs(tmp_path: Path) -> None:
    pretend(tmp_path, failing=2, search={"scheduler": "fold_race"})
    folder = StudyFolder(tmp_path)
    study, rows = folder.to_optuna(), folder.table().set_index("config_id")
    assert study.study_name == "pretended"
    assert {t.user_attrs["config_id"] for t in study.trials} == set(rows.index)
    assert study.best_trial.user_attrs["config_id"] == folder.winner().id
    for trial in study.trials:
        row = rows.loc[trial.user_attrs["config_id"]]
        state = row["state"].partition("@")[0]
        name = {"complete": "COMPLETE", "stopped": "PRUNED", "failed": "FAIL"}[state]
        assert trial.state.name == name
        assert ("momentum" in trial.params) == (trial.params["optimizer"] == "SGD")
        if name != "FAIL":
            assert trial.intermediate_values[trial.last_step] == pytest.approx(row["dice_mean"])
        if name == "COMPLETE":
            assert trial.value == pytest.approx(row["dice_mean"])
            assert trial.last_step == 3 * 6
    assert {t.state.name for t in study.trials} == {"COMPLETE", "PRUNED", "FAIL"}


def test_what_is_no_study_is_told_when_it_is_asked(url: str) -> None:
    folder = StudyFolder(url)
    assert folder.text is None
    for ask in (lambda: folder.study, folder.table, folder.ask_to_stop, folder.winner):
        with pytest.raises(WrongInput, match=r"must be a study folder, but has no study\.yaml"):
            ask()
    folder.files.write("study.yaml", b"name: s\ndataset: d\nmodel: m\nepochs: 1\nmetric: AP\n")
    with pytest.raises(WrongInput, match="must be one that `raybone search` wrote"):
        StudyFolder(url).study  # noqa: B018


def test_a_damaged_journal_and_a_configuration_that_there_is_not_are_told(tmp_path: Path) -> None:
    pretend(tmp_path, search={"trials": 2})
    with pytest.raises(WrongInput, match=r"has no configuration 'c999'; .* lists them"):
        StudyFolder(tmp_path).configuration("c999").params  # noqa: B018
    with pytest.raises(WrongInput, match="must be a name below the study folder"):
        StudyFolder(tmp_path).configuration("../../x").fold(0)
    segment = next((tmp_path / "journal").iterdir())
    segment.write_bytes(segment.read_bytes().replace(b"c001", b"c007", 1))
    damaged = StudyFolder(tmp_path)
    assert isinstance(damaged.study, ResolvedStudy)
    with pytest.raises(WrongInput, match="restore the journal from a copy"):
        damaged.winner()


def test_a_configuration_is_named_by_its_folder(url: str, tmp_path: Path) -> None:
    pretend(url, search={"trials": 1})
    folder, config_id = study_at(f"{url}/runs/c000")
    assert (folder.url, config_id) == (StudyFolder(url).url, "c000")
    assert folder.configuration(config_id).url == f"{url}/runs/c000"
    assert study_at(url)[1] == ""
    assert study_at(str(tmp_path / "no" / "runs" / "c000"))[1] == ""


def test_a_moved_dataset_is_said_where_the_folder_is_opened(dataset: Path, tmp_path: Path) -> None:
    pretend(tmp_path / "study", dataset, search={"trials": 1}, replicates=0)
    assert StudyFolder(tmp_path / "study").study.dataset == str(dataset)
    shutil.copytree(dataset, tmp_path / "moved")
    moved = StudyFolder(tmp_path / "study", str(tmp_path / "moved"))
    assert moved.study.dataset == str(tmp_path / "moved")
    assert moved.winner().id == "c000"
    with pytest.raises(WrongInput, match="is not there; check the path"):
        StudyFolder(tmp_path / "study", "/elsewhere/ds").winner()
