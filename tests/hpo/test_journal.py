"""The journal under crashes and hands: nothing is lost without a word, and a replay is the live
run.
"""

from __future__ import annotations

import errno
import os
import random
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raybone.errors import RunFailed, WrongInput
from raybone.hpo.brain import Brain
from raybone.hpo.journal import Journal
from raybone.hpo.state import State
from raybone.storage import Folder
from raybone.types import Epoch
from tests.hpo.test_race import good, make_study, play, start


def picture(brain: Brain) -> dict[str, Any]:
    """All that decides what the brain does next."""
    state, race = brain.state, brain.race
    return {
        "configurations": {
            c.id: (
                c.params,
                c.status,
                c.rung,
                c.target,
                c.reason,
                {
                    k: (list(r.seconds), {m: list(v) for m, v in r.metrics.items()})
                    for k, r in c.epochs.items()
                },
            )
            for c in state.configurations.values()
        },
        "arrivals": state.arrivals,
        "news": state.news,
        "counts": +state.counts,
        "epochs": (state.fold_epochs, state.train_seconds),
        "failed": race.failed,
        "rungs": [(r.ranked, r.waiting) for r in race.rungs],
        "contenders": race.contenders,
        "variance": race.residual_variance(),
        "next": race.next_step(),
    }


def random_life(brain: Brain, seed: int, steps: int) -> None:
    """Several runs at once, folds in any order, NaN, failures; cut off anywhere."""
    noise = random.Random(seed)
    at_work: dict[str, list[tuple[int, int]]] = {}
    rungs: dict[str, int] = {}
    for _ in range(steps):
        work = brain.peek() if noise.random() < 0.5 else None
        if work and work.config_id not in at_work:
            brain.start(work)
            at_work[work.config_id] = [
                (s.fold, e) for s in work.segments for e in range(s.start + 1, s.stop + 1)
            ]
            rungs[work.config_id] = work.rung
        elif at_work:
            config_id = noise.choice(sorted(at_work))
            if noise.random() < 0.02:
                brain.fail(config_id, "lost")
                del at_work[config_id]
                continue
            if at_work[config_id]:
                fold, epoch = at_work[config_id].pop(0)
                params = brain.state.configurations[config_id].params
                metrics = {
                    m: v + noise.gauss(0, 0.05) for m, v in good(params, fold, epoch).items()
                }
                if noise.random() < 0.02:
                    metrics["AP"] = float("nan")
                brain.epoch(config_id, Epoch(fold, epoch, metrics, noise.random()))
            if not at_work[config_id]:
                brain.rung_done(config_id, rungs[config_id])
                del at_work[config_id]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    steps=st.integers(0, 400),
    kind=st.sampled_from(["promotion", "stopping"]),
)
def test_replay_gives_the_state_of_the_live_run(
    tmp_path_factory: pytest.TempPathFactory, seed: int, steps: int, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("life")
    study = make_study(trials=12, folds=4, epochs=6, type=kind)
    live = start(study, folder, slots=3)
    random_life(live, seed, steps)
    live.journal.close()
    replayed = start(study, folder, slots=3)
    # A new driver's start is itself an event: the live brain takes it in as well.
    for event in list(Journal(Folder(folder)).events())[-1:]:
        live._apply(event)
    assert repr(picture(replayed)) == repr(picture(live))


def written(folder: Path) -> list[Path]:
    """A journal of three drivers."""
    study = make_study(trials=8, folds=3, epochs=4)
    for seed in range(3):
        brain = start(study, folder, slots=2)
        random_life(brain, seed, 40)
        brain.journal.close()
    return sorted((folder / "journal").iterdir())


def edit_a_score(segments: list[Path]) -> None:
    lines = segments[1].read_bytes().split(b"\n")
    at = next(i for i, line in enumerate(lines) if b'"epoch"' in line)
    lines[at] = lines[at].replace(b'"AP":', b'"AP":0.9,"was":', 1)
    segments[1].write_bytes(b"\n".join(lines))


def lose_a_line(segments: list[Path]) -> None:
    lines = segments[0].read_bytes().splitlines(keepends=True)
    segments[0].write_bytes(b"".join(lines[:5] + lines[6:]))


def swap_two_lines(segments: list[Path]) -> None:
    lines = segments[0].read_bytes().splitlines(keepends=True)
    segments[0].write_bytes(b"".join([*lines[:3], lines[4], lines[3], *lines[5:]]))


def lose_the_end_of_a_segment(segments: list[Path]) -> None:
    lines = segments[0].read_bytes().splitlines(keepends=True)
    segments[0].write_bytes(b"".join(lines[:-1]))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (edit_a_score, r"000002\.jsonl line \d+: its checksum"),
        (lose_a_line, r"000001\.jsonl line 6: its checksum"),
        (swap_two_lines, r"000001\.jsonl line 4: its checksum"),
        (lose_the_end_of_a_segment, r"000002\.jsonl line 1: its checksum"),
        (lambda segments: segments[1].unlink(), r"000002\.jsonl: every segment must be there"),
        (lambda segments: segments[0].unlink(), r"000001\.jsonl: every segment must be there"),
        (
            lambda segments: segments[0].write_text("no json\n"),
            r"000001\.jsonl line 1: must be an event",
        ),
    ],
    ids=["score", "line", "order", "end", "middle", "first", "text"],
)
def test_what_a_hand_or_a_disk_did_is_one_clear_line(harm: Any, says: str, tmp_path: Path) -> None:
    harm(written(tmp_path))
    with pytest.raises(WrongInput, match=says):
        start(make_study(trials=8, folds=3, epochs=4), tmp_path)


def test_a_reader_goes_on_where_it_stopped_and_waits_for_a_line_that_is_being_written(
    tmp_path: Path,
) -> None:
    writer, reader = Journal(Folder(tmp_path)), Journal(Folder(tmp_path))
    writer.append("one")
    assert [e["event"] for e in reader.events()] == ["one"]
    writer.append("two")
    segment = tmp_path / "journal" / "000001.jsonl"
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-10])
    assert list(reader.events()) == []
    segment.write_bytes(whole)
    assert [e["event"] for e in reader.events()] == ["two"]
    assert list(reader.events()) == []


def test_a_clock_that_jumps_does_not_spend_the_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(trials=4).model_copy(
        update={"limits": make_study().limits.model_copy(update={"hours": 1.0})}
    )
    brain = start(study, tmp_path)
    monkeypatch.setattr("time.time", lambda: 4e9)
    brain.start(brain.peek())
    monkeypatch.setattr("time.time", lambda: 10.0)
    brain.journal.append("note")
    brain.journal.close()
    monkeypatch.undo()
    assert State(Journal(Folder(tmp_path)).events()).seconds < 60
    assert start(study, tmp_path).peek() is not None


def test_an_object_store_keeps_an_event_a_segment(tmp_path: Path) -> None:
    folder = Folder(f"memory://{tmp_path.name}")
    for number in range(3):
        writer = Journal(folder)
        writer.append("note", number=2 * number)
        writer.append("note", number=2 * number + 1)
    assert [e["number"] for e in Journal(folder).events()] == list(range(6))
    assert folder.child("journal").names()[-1] == "000006.jsonl"


@pytest.mark.parametrize("place", ["disk", "store"])
def test_what_a_driver_wrote_after_it_lost_its_lease_is_left_out(
    place: str, tmp_path: Path
) -> None:
    folder = Folder(tmp_path if place == "disk" else f"memory://{tmp_path.name}")
    study = make_study(trials=6, scheduler="full")
    old = Brain(study, Journal(folder), lambda params: 1, 1)
    old.start(old.peek())
    new = Brain(study, Journal(folder), lambda params: 1, 1)
    if place == "disk":
        old.finish()
    else:
        with pytest.raises(RunFailed, match="another has taken the study over"):
            old.finish()
    new.start(new.peek())
    events = [e["event"] for e in Journal(folder).events()]
    assert events == ["start", "config", "work", "start", "work"]
    new.journal.close()
    assert Brain(study, Journal(folder), lambda params: 1, 1).peek().config_id == "c000"


def test_a_write_that_fails_costs_no_more_than_its_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (Folder(tmp_path), Folder(f"memory://{tmp_path.name}")):
        journal = Journal(folder)
        journal.append("one")

        def fail(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as broken:
            broken.setattr("os.fsync", fail)
            broken.setattr(type(folder.fs), "pipe_file", fail, raising=False)
            with pytest.raises(OSError, match="No space"):
                journal.append("lost")
        journal.append("two")
        # On a disk the line had been written before its flush failed: it may stay, whole.
        assert [e["event"] for e in Journal(folder).events() if e["event"] != "lost"] == [
            "one",
            "two",
        ]


@pytest.mark.parametrize("where", ["{}", "memory://{}"])
def test_a_storage_that_is_away_for_a_while_costs_nothing_and_doubles_nothing(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raybone.storage.time.sleep", lambda seconds: None)
    folder, failures = Folder(where.format(tmp_path)), iter(range(2))
    journal = Journal(folder)
    journal.append("one")

    def away(*given: Any, work: Any, **more: Any) -> None:
        work(*given, **more)  # the worst case: what is reported as lost had come onto the disk
        if next(failures, None) is not None:
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        pipe = type(folder.fs).pipe_file
        broken.setattr("os.fsync", partial(away, work=os.fsync))
        broken.setattr(type(folder.fs), "pipe_file", partialmethod(away, work=pipe))
        journal.append("two")
        journal.append("three")
    assert next(failures, None) is None
    assert [e["event"] for e in Journal(folder).events()] == ["one", "two", "three"]


def test_words_that_are_no_unicode_can_be_written_and_read(tmp_path: Path) -> None:
    brain = start(make_study(), tmp_path)
    work = brain.start(brain.peek())
    brain.fail(work.config_id, b"no such file: M\xfcller.dcm".decode("utf-8", "surrogateescape"))
    brain.journal.close()
    assert "ller.dcm" in start(make_study(), tmp_path).state.configurations["c000"].reason


@pytest.mark.parametrize(
    ("scheduler", "kind"),
    [("fold_race", "promotion"), ("fold_race", "stopping"), ("full", "promotion")],
)
def test_a_judgement_survives_two_deaths_before_it_was_made(
    scheduler: str, kind: str, tmp_path: Path
) -> None:
    study = make_study(trials=4, epochs=2, folds=3, scheduler=scheduler, type=kind)
    whole = start(study, tmp_path / "whole")
    play(whole)
    whole.finish()
    lines = (tmp_path / "whole" / "journal" / "000001.jsonl").read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines):
        if b'"event":"rung"' in line:
            folder = tmp_path / str(number)
            (folder / "journal").mkdir(parents=True)
            (folder / "journal" / "000001.jsonl").write_bytes(b"".join(lines[: number + 1]))
            Journal(Folder(folder)).append("start", slots=1)  # and dead again
            again = start(study, folder)
            play(again)
            again.finish()
            assert {c.id: c.status for c in again.state.configurations.values()} == {
                c.id: c.status for c in whole.state.configurations.values()
            }
