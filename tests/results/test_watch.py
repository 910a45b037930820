"""A study as it is watched: the facts, the lines, and the picture on terminals of several sizes."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pretend import pretend
from rich.console import Console

from raybone.cli import main
from raybone.hpo.journal import Journal
from raybone.hpo.lease import Lease
from raybone.hpo.state import State
from raybone.results.leaderboard import leaderboard
from raybone.results.live import Picture
from raybone.results.study_folder import StudyFolder
from raybone.results.watch import Status, status_json, status_lines, status_of, watch
from raybone.run.checks import resolve
from raybone.storage import Folder
from raybone.study.files import parse_study
from raybone.study.spec import ResolvedStudy


@pytest.fixture
def raced(study: dict[str, Any]) -> ResolvedStudy:
    """A resolved study with three rungs: 1x3, 2x6 and 3x9."""
    found = resolve(
        parse_study({**study, "epochs": 9, "search": {"trials": 4, "scheduler": "fold_race"}})
    )[0]
    ladder = ((1, 3), (2, 6), (3, 9))
    return found.model_copy(
        update={"resolved": found.resolved.model_copy(update={"ladder": ladder})}
    )


def events(reason: str = "out of memory") -> list[dict[str, Any]]:
    """One configuration at the second rung and on its way to the third, one stopped, one failed."""
    told: list[dict[str, Any]] = [{"event": "start", "slots": 2, "up": 0.0}]
    for name in ("c000", "c001", "c002"):
        told += [
            {"event": "config", "config_id": name, "params": {"lr0": float(name[1:]) + 1}},
            {"event": "work", "config_id": name, "rung": 0},
        ]
    for name, score in (("c000", 0.5), ("c001", 0.2)):
        told += [epoch(name, 0, n, score) for n in (1, 2, 3)] + [
            {"event": "rung", "config_id": name, "rung": 0}
        ]
    told += [
        {
            "event": "decision",
            "config_id": "c001",
            "action": "stop",
            "rung": 0,
            "reason": "rank 2 of 2",
            "up": 40.0,
        },
        {"event": "failed", "config_id": "c002", "reason": reason},
        {"event": "work", "config_id": "c000", "rung": 1},
    ]
    told += [epoch("c000", 0, n, 0.6) for n in (4, 5, 6)] + [
        epoch("c000", 1, n, 0.4) for n in range(1, 7)
    ]
    told += [
        {"event": "rung", "config_id": "c000", "rung": 1},
        {"event": "work", "config_id": "c000", "rung": 2},
        epoch("c000", 0, 7, 0.65),
        {**epoch("c000", 1, 7, 0.45), "up": 100.0},
    ]
    return told


def epoch(name: str, fold: int, number: int, score: float) -> dict[str, Any]:
    return {
        "event": "epoch",
        "config_id": name,
        "fold": fold,
        "epoch": number,
        "metrics": {"dice": score},
        "seconds": 4.0,
    }


def drawn(status: Status, width: int, height: int) -> list[str]:
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None
    )
    console.print(Picture(status))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


def test_the_facts_of_a_study(raced: ResolvedStudy) -> None:
    status = status_of(raced, State(events()))
    assert [(r.passed, r.waiting, r.stopped, r.coming, r.failed) for r in status.rungs] == [
        (1, 0, 1, 0, 1),
        (1, 0, 0, 0, 0),
        (0, 0, 0, 1, 0),
    ]
    assert status.best is not None
    assert (status.best.config_id, status.best.rung) == ("c000", "2 folds x 6 epochs")
    assert status.best.value == pytest.approx(0.5)
    assert (status.best.low, status.best.high) == (
        0,
        1,
    )  # Nadeau & Bengio's, no further than the metric goes
    (running,) = status.running
    assert running.folds == ((0, 7, 0.65), (1, 7, 0.45))
    assert running.share == pytest.approx(14 / 27)
    assert running.seconds == pytest.approx(
        13 * 4.0 / 2
    )  # of 27 epochs 14 are done; two folds run side by side
    assert (running.epochs, running.epoch_seconds) == (9, 4.0)
    assert status.news(3, "failed") == ["c002 failed: out of memory"]


def test_folds_that_run_one_after_the_other_are_not_taken_for_two_at_work(
    raced: ResolvedStudy,
) -> None:
    told = [
        {"event": "start", "slots": 1},
        {"event": "config", "config_id": "c000", "params": {}},
        {"event": "work", "config_id": "c000", "rung": 1},
        *(epoch("c000", k, n, 0.5) for k in (0, 1) for n in range(1, 7)),
        {"event": "rung", "config_id": "c000", "rung": 1},
        {"event": "work", "config_id": "c000", "rung": 2},
    ]
    (waits,) = status_of(raced, State(told)).running
    assert (waits.folds, waits.seconds) == ((), 15 * 4.0)
    (runs,) = status_of(raced, State([*told, epoch("c000", 0, 7, 0.6)])).running
    assert (runs.folds, runs.seconds) == (((0, 7, 0.6),), 14 * 4.0)


def test_one_fold_has_no_interval_and_a_complete_configuration_has_that_of_the_leaderboard(
    raced: ResolvedStudy,
) -> None:
    first = State(events()[:-14])
    best = status_of(raced, first).best
    assert best is not None
    assert math.isnan(best.low)
    pooled = {"metrics": {}, "freedom": 5.0, "replicates": [0.4, 0.5, 0.6]}
    full = State(
        [
            *events(),
            {"event": "pooled", "config_id": "c000", **pooled},
            *(epoch("c000", k, n, 0.2 * k) for k in range(3) for n in range(1, 10)),
            {"event": "rung", "config_id": "c000", "rung": 2},
        ]
    )
    best, row = status_of(raced, full).best, leaderboard(raced, full).iloc[0]
    assert best is not None
    assert [best.value, best.low, best.high] == [
        row[f"dice_{what}"] for what in ("mean", "nb_low", "nb_high")
    ]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (200, 60)])
def test_the_picture_fits_the_terminal_and_shows_what_counts(
    raced: ResolvedStudy, width: int, height: int
) -> None:
    lines = drawn(status_of(raced, State(events())), width, height)
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    for part in (
        "tiny: unet",
        "3/4 configurations",
        "2: 2 x 6",
        "best so far: c000",
        "0.500 (95 %",
        "c000 to 3",
        "7/9 0.650",
        "c002 failed",
        "c001 stop",
        "0:26",
        "× stopped",
        "8 failures are allowed",
        "c000 lr0 1 ",
    ):
        assert part in text, part


def test_a_long_ladder_and_many_runs_are_cut_to_where_things_happen(raced: ResolvedStudy) -> None:
    ladder = tuple((k, 9) for k in range(1, 20))
    long = raced.model_copy(
        update={"resolved": raced.resolved.model_copy(update={"ladder": ladder, "folds": 19})}
    )
    told = [{"event": "start", "slots": 40}]
    for n in range(40):
        told += [
            {"event": "config", "config_id": f"c{n:03d}", "params": {}},
            {"event": "work", "config_id": f"c{n:03d}", "rung": 14},
            epoch(f"c{n:03d}", 0, 1, 0.5),
        ]
    for height in (24, 40):
        text = "\n".join(lines := drawn(status_of(long, State(told)), 80, height))
        assert len(lines) < height
        assert "15: 15 x 9" in text
        assert "of 40 running" in text
        assert "c000 to 15" in text


def test_a_low_terminal_keeps_what_runs_and_what_failed(raced: ResolvedStudy) -> None:
    many = [
        {
            "event": "decision",
            "config_id": "c001",
            "action": "promote",
            "rung": 0,
            "reason": f"number {n}",
        }
        for n in range(40)
    ]
    lines = drawn(status_of(raced, State([*events(), *many])), 80, 16)
    assert len(lines) <= 16
    assert any("number 39" in line for line in lines)
    assert any("c002 failed" in line for line in lines)
    assert any("c000 to 3" in line for line in lines)


def test_reasons_are_neither_markup_nor_commands_to_the_terminal(raced: ResolvedStudy) -> None:
    status = status_of(raced, State(events("[red]boom[/red] [/] \x1b[2J\x07 'x\"")))
    text = "\n".join(drawn(status, 120, 30))
    assert "[red]boom[/red] [/] ?[2J? 'x\"" in text
    assert "\x07" not in text
    lines = "\n".join(status_lines(status))
    assert "[red]boom[/red] [/] ?[2J? 'x\"" in lines
    assert "\x1b" not in lines


def test_lines_hold_the_same_facts(raced: ResolvedStudy) -> None:
    text = "\n".join(status_lines(status_of(raced, State(events()), driven=False)))
    for part in (
        "no driver: `raybone search`",
        "1 passed, 1 stopped, 1 failed",
        "0.500 (95 %",
        "4 s an epoch, 0:26 to go",
        "c002 failed: out of memory",
        "time of the training slots",
    ):
        assert part in text, part


def test_a_study_of_nothing_yet(raced: ResolvedStudy) -> None:
    status = status_of(raced, State([]))
    assert "best so far: none yet" in "\n".join(status_lines(status))
    assert len(drawn(status, 80, 24)) <= 24


def test_a_study_whose_every_configuration_is_refused(raced: ResolvedStudy) -> None:
    told = {"event": "exhausted", "time": 1.0, "up": 1.0}
    status = status_of(raced, State([told]))
    assert len(drawn(status, 80, 24)) <= 24


def test_what_an_end_cuts_off_runs_no_more(raced: ResolvedStudy) -> None:
    end = {"event": "end", "reason": "stopped by `raybone stop`", "time": 9.0, "up": 101.0}
    status = status_of(raced, State([*events(), end]))
    assert status.running == ()
    assert "running" not in "\n".join(status_lines(status))
    assert json.loads(status_json(status))["counts"] == {"stopped": 2, "failed": 1}
    states = set(leaderboard(raced, status.state)["state"])
    assert "running" not in states


def test_one_that_has_only_just_begun_has_passed_nothing(raced: ResolvedStudy) -> None:
    first = events()[: next(n for n, e in enumerate(events()) if e["event"] == "work")]
    status = status_of(raced, State(first))
    assert sum(r.passed for r in status.rungs) == 0


def test_limits_that_there_are_are_shown_as_used_up(raced: ResolvedStudy) -> None:
    limited = raced.model_copy(update={"limits": raced.limits.model_copy(update={"hours": 2.0})})
    assert "0.0 of 2 hours" in status_of(limited, State(events())).counts
    assert "hours" not in status_of(raced, State(events())).counts


@pytest.fixture
def folder(raced: ResolvedStudy, tmp_path: Path) -> Folder:
    """A study folder with all these events."""
    folder = Folder(str(tmp_path / "st"))
    StudyFolder(folder.url).write_study(raced)
    journal = Journal(folder)
    for event in events():
        journal.append(**{k: v for k, v in event.items() if k != "up"})
    journal.close()
    assert StudyFolder(folder.url).study == raced
    return folder


def test_a_study_that_another_driver_runs_is_read_from_its_folder(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", folder.url]) == 0
    told = capsys.readouterr().out
    assert "no driver" in told
    assert "c000 to 3 folds x 9 epochs: fold 0 epoch 7/9 dice 0.650" in told


def test_lines_are_told_again_only_when_something_happened(folder: Folder) -> None:
    lease, told = Lease(folder), []
    lease.take()

    def show(status: Status, news: bool) -> None:
        told.append((status, news))
        if len(told) == 3:
            Journal(folder).append(
                "decision", config_id="c000", action="stop", rung=1, reason="late"
            )
        if len(told) == 4:
            lease.drop()

    watch(folder.url, show, poll=0.01)
    assert [news for _, news in told] == [True, False, False, True, True]
    assert told[0][0] is told[2][0]


@pytest.mark.parametrize("driven", [False, True])
def test_on_a_terminal_the_last_picture_stays_and_ctrl_c_leaves(
    folder: Folder, driven: bool
) -> None:
    lease = Lease(folder)
    if driven:
        lease.take()
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "raybone", "watch", folder.url],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
    )
    os.close(theirs)
    told = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error on Linux
        while part := os.read(ours, 10_000):
            told += part
            if driven and b"c002 failed" in told and b"1049l" not in told:
                process.send_signal(signal.SIGINT)
                driven = False
    os.close(ours)
    assert process.wait() == 0
    assert b"Traceback" not in told
    screen, _, stays = told.partition(b"\x1b[?1049l")  # xterm leaves its second screen
    assert b"c002 failed" in screen
    assert b"c002 failed: out of memory" in stays
    lease.drop()


def test_the_five_best_are_shown_with_their_hyper_parameters(raced: ResolvedStudy) -> None:
    told: list[dict[str, Any]] = [{"event": "start", "slots": 1}]
    for n in range(7):
        name = f"c{n:03d}"
        told += [
            {
                "event": "config",
                "config_id": name,
                "params": {"lr0": 0.00123456 * n, "imgsz": 64 * n},
            },
            {"event": "work", "config_id": name, "rung": 0},
            *(epoch(name, 0, e, n / 10) for e in (1, 2, 3)),
            {"event": "rung", "config_id": name, "rung": 0},
        ]
    status = status_of(raced, State(told))
    assert [b.config_id for b in status.leaders] == ["c006", "c005", "c004", "c003", "c002"]
    text = "\n".join(drawn(status, 80, 24))
    assert "c006 lr0 0.00741 imgsz 384" in text
    assert "c002 lr0 0.00247 imgsz 128" in text
    assert "c001 lr0" not in text


def test_a_search_on_a_terminal_draws_itself_and_leaves_its_last_picture(
    study: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**study, "epochs": 1}))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "raybone", "search", str(tmp_path / "s.yaml"), "--local"]
    done = subprocess.Popen(
        [*command, "--out", str(tmp_path / "st")],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
    )
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # the end of a terminal whose process has gone
        while part := os.read(ours, 65536):
            said += part
    os.close(ours)
    assert done.wait() == 0
    shown = said.decode()
    assert "tiny: checks its dataset and starts" in shown
    picture = shown[shown.rindex("╭") : shown.rindex("╰")]
    assert "2/2 configurations" in picture
    assert "complete" in picture
    assert "running" not in picture


def test_programs_read_a_study_and_its_table_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(tmp_path / "st", search={"trials": 5}, stop_after=3)
    assert main(["watch", str(tmp_path / "st"), "--once", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["end"] is None
    assert told["trials"] == 5
    assert sum(told["counts"].values()) >= 3
    assert main(["leaderboard", str(tmp_path / "st"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    table = StudyFolder(tmp_path / "st").table()
    assert [row["config_id"] for row in rows] == list(table["config_id"])
    assert rows[0]["dice_mean"] == pytest.approx(table["dice_mean"].iloc[0])
    assert rows[0]["dice_test"] is None
    assert main(["leaderboard", str(tmp_path / "st"), "--json", "--by-model"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["model"] == "unet"
    assert main(["watch", str(tmp_path / "st"), "--json"]) == 2
