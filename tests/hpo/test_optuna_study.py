"""Configurations as optuna sees them: one conversion for samplers, importances and plots."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from optuna.trial import TrialState
from pretend import pretend

import raybone
from raybone.cli import main
from raybone.hpo.optuna_study import as_optuna, importances
from raybone.hpo.sampler import propose
from raybone.results.study_folder import StudyFolder
from raybone.study.param import Param

SPACE = {
    "lr0": Param(log_uniform=(1e-4, 1e-1)),
    "categories": Param(choice=[["malignant"], ["malignant", "benign"]]),
    "momentum": Param(uniform=(0.5, 0.9)),
}


def test_a_configuration_without_a_value_runs_and_one_with_a_state_has_it() -> None:
    few = {"lr0": 0.01, "categories": ["malignant"]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = as_optuna(
            SPACE,
            [
                {"params": few, "value": 0.5},
                {"params": {**few, "momentum": 0.7}, "value": None},
                {"params": few, "value": None, "state": TrialState.FAIL},
            ],
            "minimize",
            name="study",
        )
    assert [t.state.name for t in made.trials] == ["COMPLETE", "RUNNING", "FAIL"]
    assert [set(t.distributions) for t in made.trials] == [set(few), set(SPACE), set(few)]
    assert (made.study_name, made.direction.name, made.best_value) == ("study", "MINIMIZE", 0.5)


def test_importances_go_by_the_order_of_the_configurations() -> None:
    ranked = [
        {"lr0": 10 ** (-4 + 3 * n / 50), "categories": ["malignant"], "momentum": 0.5 + n % 7 / 20}
        for n in range(50)
    ]
    shares = importances(SPACE, ranked)
    assert next(iter(shares)) == "lr0"
    assert sum(shares.values()) == pytest.approx(1)
    assert shares == importances(SPACE, ranked)


def test_no_other_file_makes_trials_of_configurations() -> None:
    root = Path(raybone.__file__).parent
    found = [p.relative_to(root) for p in root.rglob("*.py") if "create_trial(" in p.read_text()]
    assert found == [Path("hpo/optuna_study.py")]


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_sampler_gives_a_choice_between_lists_as_lists(sampler: str, tmp_path: Path) -> None:
    choice = [["malignant"], ["malignant", "benign"]]
    space = {"lr0": {"log_uniform": [1e-4, 1e-1]}, "categories": {"choice": choice}}
    study = pretend(tmp_path, space=space, search={"sampler": sampler, "trials": 12})
    folder = StudyFolder(tmp_path)
    proposals = [propose(study, folder.state, n) for n in range(20, 26)]
    assert {type(p["categories"]) for p in proposals} == {list}
    assert main(["report", str(tmp_path)]) == 0
    assert '"importance-0"' in (tmp_path / "report.html").read_text(), "of what is not hashable too"
