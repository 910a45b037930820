"""A study as it is watched: the facts, the lines, and the picture on terminals of several sizes."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from raybone.cli import main
from raybone.folder import Folder
from raybone.hpo.journal import Journal, read_resolved
from raybone.hpo.state import State
from raybone.live import Picture
from raybone.metrics.intervals import corrected_interval
from raybone.resolve import resolve
from raybone.spec import Study, parse_study, write_study
from raybone.watch import Status, status_lines, status_of


@pytest.fixture
def raced(study: dict[str, Any]) -> Study:
    """A resolved study with three rungs: 1x3, 2x6 and 3x9."""
    found = resolve(parse_study({**study, "epochs": 9, "search": {"trials": 4, "scheduler": "fold_race"}}))[0]
    assert found.resolved is not None
    ladder = ((1, 3), (2, 6), (3, 9))
    return found.model_copy(update={"resolved": found.resolved.model_copy(update={"ladder": ladder})})


def events(reason: str = "out of memory") -> list[dict[str, Any]]:
    """One configuration at the second rung and on its way to the third, one stopped, one failed."""
    told: list[dict[str, Any]] = [{"event": "start", "slots": 2, "up": 0.0}]
    for name in ("c000", "c001", "c002"):
        told += [{"event": "config", "config_id": name, "params": {"lr0": float(name[1:]) + 1}},
                 {"event": "work", "config_id": name, "rung": 0}]
    for name, score in (("c000", 0.5), ("c001", 0.2)):
        told += [epoch(name, 0, n, score) for n in (1, 2, 3)] + [{"event": "rung", "config_id": name, "rung": 0}]
    told += [{"event": "decision", "config_id": "c001", "action": "stop", "rung": 0, "reason": "rank 2 of 2",
              "up": 40.0}, {"event": "failed", "config_id": "c002", "reason": reason},
             {"event": "work", "config_id": "c000", "rung": 1}]
    told += [epoch("c000", 0, n, 0.6) for n in (4, 5, 6)] + [epoch("c000", 1, n, 0.4) for n in range(1, 7)]
    told += [{"event": "rung", "config_id": "c000", "rung": 1}, {"event": "work", "config_id": "c000", "rung": 2},
             epoch("c000", 0, 7, 0.65), {**epoch("c000", 1, 7, 0.45), "up": 100.0}]
    return told


def epoch(name: str, fold: int, number: int, score: float) -> dict[str, Any]:
    return {"event": "epoch", "config_id": name, "fold": fold, "epoch": number, "metrics": {"dice": score},
            "seconds": 4.0}


def drawn(status: Status, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(Picture(status))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


def test_the_facts_of_a_study(raced: Study) -> None:
    status = status_of(raced, State(events()))
    assert [(r.done, r.stand, r.stopped) for r in status.rungs] == [(2, 1, 1), (1, 1, 0), (0, 0, 0)]
    assert status.best is not None
    assert (status.best.config_id, status.best.rung) == ("c000", "2 folds x 6 epochs")
    assert status.best.value == pytest.approx(0.5)
    assert (status.best.low, status.best.high) == pytest.approx(corrected_interval(np.array([0.6, 0.4])))
    (running,) = status.running
    assert running.folds == ((0, 7, 0.65), (1, 7, 0.45))
    assert running.share == pytest.approx(14 / 27)
    assert running.seconds == pytest.approx(13 * 4.0 / 2)  # of 27 epochs 14 are done; two folds run side by side
    assert status.news("failed", 3) == ["c002 failed: out of memory"]


def test_one_fold_has_no_interval_and_a_complete_configuration_has_that_of_its_patients(raced: Study) -> None:
    first = State(events()[:-14])
    best = status_of(raced, first).best
    assert best is not None
    assert math.isnan(best.low)
    done = State([*events(), {"event": "pooled", "config_id": "c000", "metrics": {}, "freedom": 5.0,
                              "replicates": [0.4, 0.5, 0.6]}])
    best = status_of(raced, done).best
    assert best is not None
    assert best.high - best.value == pytest.approx(2.5706 * 0.1, abs=1e-3)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (200, 60)])
def test_the_picture_fits_the_terminal_and_shows_what_counts(raced: Study, width: int, height: int) -> None:
    lines = drawn(status_of(raced, State(events())), width, height)
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    for part in ("tiny: unet", "3/4 configurations", "rung 2", "best so far: c000", "0.5000 (", "0: 7/9, 0.6500",
                 "FAILED: c002", "c001 stop", "0:26"):
        assert part in text, part


def test_a_low_terminal_keeps_what_runs_and_what_failed(raced: Study) -> None:
    many = [{"event": "decision", "config_id": "c001", "action": "promote", "rung": 0, "reason": f"number {n}"}
            for n in range(40)]
    lines = drawn(status_of(raced, State([*events(), *many])), 80, 16)
    assert len(lines) <= 16
    assert any("number 39" in line for line in lines)
    assert any("FAILED" in line for line in lines)


def test_reasons_are_neither_markup_nor_commands_to_the_terminal(raced: Study) -> None:
    status = status_of(raced, State(events("[red]boom[/red] [/] \x1b[2J\x07 'x\"")))
    text = "\n".join(drawn(status, 120, 30))
    assert "[red]boom[/red] [/] ?[2J? 'x\"" in text
    assert "\x07" not in text


def test_lines_hold_the_same_facts(raced: Study) -> None:
    text = "\n".join(status_lines(status_of(raced, State(events()), driven=False)))
    for part in ("no driver: `raybone search`", "2 done, 1 stand there, 1 stopped there", "0.5000 (", "0:26 to go",
                 "c002 failed: out of memory", "time of the training slots"):
        assert part in text, part


def test_a_study_of_nothing_yet(raced: Study) -> None:
    status = status_of(raced, State([]))
    assert "best so far: none yet" in "\n".join(status_lines(status))
    assert len(drawn(status, 80, 24)) <= 24


def test_limits_that_there_are_are_shown_as_used_up(raced: Study) -> None:
    limited = raced.model_copy(update={"limits": raced.limits.model_copy(update={"hours": 2.0})})
    assert "0.0 of 2 hours" in status_of(limited, State(events())).counts
    assert "hours" not in status_of(raced, State(events())).counts


def test_a_study_that_another_driver_runs_is_read_from_its_folder(raced: Study, tmp_path: Path,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(str(tmp_path / "st"))
    folder.write("study.yaml", write_study(raced).encode())
    journal = Journal(folder)
    for event in events():
        journal.append(**{k: v for k, v in event.items() if k != "up"})
    assert read_resolved(folder) == raced
    assert main(["watch", str(tmp_path / "st")]) == 0
    told = capsys.readouterr().out
    assert "no driver" in told
    assert "c000 to 3 folds x 9 epochs: fold 0 epoch 7/9 dice 0.6500" in told
