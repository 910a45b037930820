"""Which weights a study keeps, on made-up scores."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pretend import pretend

from raybone.hpo.brain import Brain
from raybone.hpo.lease import Lease
from raybone.results.study_folder import StudyFolder
from raybone.run.session import OpenStudy
from raybone.train.checkpoint import LAST


def kept(place: Path, dropped: set[str], **search: Any) -> dict[str, list[str]]:
    """Configurations by status whose weights are there once the study is published."""
    study = pretend(
        place,
        keep=2,
        search={"trials": 24, "scheduler": "cohort_race", "seed": 1, **search},
        failing=2,
    )
    folder = StudyFolder(place)
    for config_id in folder.state.configurations:
        folder.configuration(config_id).fold(0).write(LAST, b"weights")
    brain = Brain(study, folder.journal(), lambda params: 0, 1)
    brain.dropped |= dropped
    dataset: Any = SimpleNamespace(test=())
    OpenStudy(study, folder, dataset, brain, Lease(folder.files)).publish(last=True)
    there: dict[str, list[str]] = {}
    for c in folder.state.configurations.values():
        if LAST in folder.configuration(c.id).fold(0).names():
            there.setdefault(c.status, []).append(c.id)
    brain.journal.close()
    return there


def test_the_best_keep_their_weights_and_what_a_race_has_stopped_does_not(tmp_path: Path) -> None:
    there = kept(tmp_path, set())
    assert there.keys() == {"complete"}
    assert len(there["complete"]) == 2


@pytest.mark.parametrize("by_a_person", [False, True])
def test_a_search_for_a_risk_keeps_those_that_a_smaller_one_goes_on_with(
    by_a_person: bool, tmp_path: Path
) -> None:
    all_stopped = kept(tmp_path / "all", set(), risk=0.5)["stopped"]
    assert len(all_stopped) > 2
    dropped = {all_stopped[0]} if by_a_person else set[str]()
    there = kept(tmp_path / "st", dropped, risk=0.5)
    assert set(there["stopped"]) == set(all_stopped) - dropped
    assert len(there["complete"]) == 2
    assert "failed" not in there
