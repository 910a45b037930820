"""The brain on made-up curves: ladder, promotion, race, ties, NaN, and the same decisions from the
journal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raybone.errors import EndReason, InvalidConfig
from raybone.hpo.brain import Brain
from raybone.hpo.fold_race import Race, Rule, ladder
from raybone.hpo.journal import Journal
from raybone.hpo.state import State
from raybone.storage import Folder
from raybone.study.spec import Limits, Resolved, ResolvedStudy, Study
from raybone.types import Epoch

Curve = Callable[[dict[str, Any], int, int], dict[str, float]]


def make_study(
    trials: int = 12, folds: int = 5, epochs: int = 27, scheduler: str = "fold_race", **search: Any
) -> ResolvedStudy:
    study = Study.model_validate(
        {
            "name": "s",
            "dataset": "d",
            "model": "m",
            "epochs": epochs,
            "metric": "AP",
            "space": {"quality": {"uniform": [0, 1]}},
            "search": {"trials": trials, "sampler": "random", "scheduler": scheduler, **search},
        }
    )
    rungs = ladder(epochs, folds, 1000) if scheduler == "fold_race" else ((folds, epochs),)
    resolved = Resolved(dataset_hash="h", code_version="v", folds=folds, ladder=rungs)
    return study.resolved_as(resolved)


def good(params: dict[str, Any], fold: int, epoch: int) -> dict[str, float]:
    """Better quality scores better at every epoch; folds differ alike for all."""
    return {"AP": params["quality"] * epoch / 27 + 0.01 * fold, "val_loss": 1 - params["quality"]}


def play(brain: Brain, curve: Curve = good, most: int = 10**6) -> int:
    """Do all work, one configuration at a time; returns the fold epochs spent."""
    spent = 0
    while (work := brain.peek()) and spent < most:
        work = brain.start(work)
        for segment in work.segments:
            for epoch in range(segment.start + 1, segment.stop + 1):
                brain.epoch(
                    work.config_id,
                    Epoch(segment.fold, epoch, curve(work.params, segment.fold, epoch), 1.0),
                )
                spent += 1
        brain.rung_done(work.config_id, work.rung)
    return spent


def start(
    study: Study, folder: Path, check: Callable[[dict[str, Any]], int] = lambda p: 1, slots: int = 1
) -> Brain:
    return Brain(study, Journal(Folder(folder)), check, slots)


def test_the_ladder_is_the_recommended_one_and_respects_the_first_steps() -> None:
    assert ladder(100, 10, 1000) == (
        (1, 7),
        (1, 19),
        (2, 33),
        (2, 67),
        (3, 100),
        (4, 100),
        (6, 100),
        (8, 100),
        (10, 100),
    )
    assert ladder(27, 5, 1000) == ((1, 2), (1, 5), (2, 9), (2, 18), (3, 27), (4, 27), (5, 27))
    assert ladder(20, 3, 8) == ((1, 17), (3, 20))
    assert ladder(3, 2, 10) == ((1, 3), (2, 3))
    assert ladder(1, 5, 1)[-1] == (5, 1)


def test_the_best_configuration_wins_with_a_fraction_of_the_training(tmp_path: Path) -> None:
    study = make_study(trials=40)
    brain = start(study, tmp_path)
    spent = play(brain)
    brain.finish()
    best = max(brain.state.configurations.values(), key=lambda c: c.params["quality"])
    assert best.status == "complete"
    assert spent < 40 * 5 * 27 / 4
    assert sum(c.rung >= 4 for c in brain.state.configurations.values()) >= 2
    assert {c.status for c in brain.state.configurations.values()} == {"complete", "stopped"}


def test_slots_follow_the_machines_and_their_time_is_accounted_for(tmp_path: Path) -> None:
    brain = start(make_study(trials=4, scheduler="full", folds=2), tmp_path)
    first = brain.start(brain.peek())
    assert brain.peek() is None
    assert brain.wanted({first.config_id: 1}) == 1 + 1 + 3
    brain.resize(3)
    assert brain.widen({first.config_id: 1}) == {}  # new configurations come first
    assert brain.start(brain.peek()).config_id != first.config_id
    brain.resize(0)
    assert brain.peek() is None
    brain.again(first.config_id, "its node\nis gone")
    state = State(Journal(Folder(tmp_path)).events())
    assert (state.slots, [e["reason"] for e in state.news if e["event"] == "again"]) == (
        0,
        ["its node is gone"],
    )
    events = [
        {"event": "start", "slots": 2, "up": 0.0},
        {"event": "config", "config_id": "c", "params": {}, "up": 1.0},
        {"event": "slots", "slots": 4, "up": 3.0},
        {
            "event": "epoch",
            "config_id": "c",
            "fold": 0,
            "epoch": 1,
            "metrics": {},
            "seconds": 7.0,
            "up": 5.0,
        },
        {"event": "start", "slots": 1, "up": 9.0},
        {"event": "end", "reason": "complete", "up": 10.0},
    ]
    assert State(events).slot_seconds == 2 * 3 + 4 * 2 + 1
    assert State(events).busy_share == 7 / 15


def test_a_search_that_has_lost_all_machines_waits_for_them_unless_nothing_is_left_to_do(
    tmp_path: Path,
) -> None:
    brain = start(make_study(trials=2, scheduler="full", folds=2), tmp_path)
    play(brain, most=1)
    brain.resize(0)
    assert brain.peek() is None
    assert not brain.done
    brain.resize(1)
    play(brain)
    brain.resize(0)
    assert brain.done


def test_a_resumed_search_asks_for_room_for_all_that_was_cut_off(tmp_path: Path) -> None:
    study = make_study(trials=3, scheduler="full", folds=2)
    brain = start(study, tmp_path, slots=3)
    for _ in range(3):
        brain.start(brain.peek())
    brain.journal.close()
    again = start(study, tmp_path, slots=1)
    again.start(again.peek())
    assert again.wanted({}) == 3


def test_full_trains_every_fold_of_every_configuration(tmp_path: Path) -> None:
    brain = start(make_study(trials=4, scheduler="full"), tmp_path)
    assert play(brain) == 4 * 5 * 27
    assert all(c.status == "complete" for c in brain.state.configurations.values())


def test_decisions_are_the_same_given_the_journal(tmp_path: Path) -> None:
    study = make_study(trials=20, sampler="tpe")
    whole = start(study, tmp_path / "whole")
    play(whole)
    halves = start(study, tmp_path / "halves")
    play(halves, most=200)
    halves.journal.close()
    again = start(study, tmp_path / "halves")
    play(again)

    def story(state: State) -> list[tuple[Any, ...]]:
        return [(d["config_id"], d["action"], d["rung"], d["reason"]) for d in state.news]

    assert story(again.state) == story(whole.state)
    assert [c.params for c in again.state.configurations.values()] == [
        c.params for c in whole.state.configurations.values()
    ]


def test_work_cut_off_by_a_crash_is_finished_first_and_nothing_is_done_twice(
    tmp_path: Path,
) -> None:
    study = make_study(trials=3, scheduler="full")
    brain = start(study, tmp_path)
    work = brain.start(brain.peek())
    for epoch in range(1, 11):
        brain.epoch(work.config_id, Epoch(0, epoch, good(work.params, 0, epoch), 1.0))
    brain.epoch(work.config_id, Epoch(0, 10, {"AP": 99.0}, 1.0))  # said twice: the first counts
    brain.journal.close()
    again = start(study, tmp_path)
    resumed = again.peek()
    assert resumed.config_id == work.config_id
    assert not resumed.new
    assert (resumed.segments[0].start, resumed.segments[0].stop) == (10, 27)
    play(again)
    events = Journal(Folder(tmp_path)).events()
    lines = [(e["config_id"], e["fold"], e["epoch"]) for e in events if e["event"] == "epoch"]
    assert len(lines) == len(set(lines)) == 3 * 5 * 27


def test_work_is_not_forgotten_when_driver_after_driver_dies_before_taking_it_up(
    tmp_path: Path,
) -> None:
    study = make_study(trials=2, scheduler="full")
    brain = start(study, tmp_path)
    work = brain.start(brain.peek())
    for _ in range(3):
        brain.journal.close()
        brain = start(study, tmp_path)
    assert brain.peek().config_id == work.config_id
    assert play(brain) == 2 * 5 * 27


@pytest.mark.parametrize("scheduler", ["fold_race", "full"])
def test_a_journal_cut_after_any_event_leads_to_the_same_end(
    scheduler: str, tmp_path: Path
) -> None:
    study = make_study(trials=6, epochs=4, scheduler=scheduler)
    whole = start(study, tmp_path / "whole")
    play(whole)
    whole.finish()
    lines = (tmp_path / "whole" / "journal" / "000001.jsonl").read_bytes().splitlines(keepends=True)

    def outcome(brain: Brain) -> dict[str, tuple[str, int]]:
        return {
            c.id: (c.status, sum(map(len, c.epochs.values())))
            for c in brain.state.configurations.values()
        }

    for kept in range(1, len(lines) - 1):
        journal = tmp_path / str(kept) / "journal"
        journal.mkdir(parents=True)
        (journal / "000001.jsonl").write_bytes(b"".join(lines[:kept]))
        again = start(study, tmp_path / str(kept))
        play(again)
        again.finish()
        assert outcome(again) == outcome(whole), lines[kept - 1]


def test_hours_between_two_drivers_are_not_counted() -> None:
    events = [("start", 0.0), ("end", 60.0), ("start", 0.0), ("end", 30.0)]
    state = State([{"event": kind, "up": up, "reason": ""} for kind, up in events])
    assert state.seconds == pytest.approx(90)


def test_a_torn_last_line_is_cut_and_a_broken_middle_is_refused(tmp_path: Path) -> None:
    from raybone.errors import WrongInput

    study = make_study(trials=2, scheduler="full")
    brain = start(study, tmp_path)
    play(brain)
    brain.journal.close()
    segment = tmp_path / "journal" / "000001.jsonl"
    whole = segment.read_bytes()
    segment.write_bytes(whole + b'{"event":"epoch","con')
    before = len(list(Journal(Folder(tmp_path)).events()))
    again = start(study, tmp_path)
    assert segment.read_bytes() == whole
    assert len(list(Journal(Folder(tmp_path)).events())) == before + 1
    again.journal.close()
    segment.write_bytes(whole[:20] + b"\n" + whole)
    with pytest.raises(WrongInput, match=r"000001\.jsonl line 1"):
        list(Journal(Folder(tmp_path)).events())


def test_nan_is_the_worst_and_ties_break_by_validation_loss(tmp_path: Path) -> None:
    def curve(params: dict[str, Any], fold: int, epoch: int) -> dict[str, float]:
        scored = good(params, fold, epoch)
        if params["quality"] > 0.9:
            return {"AP": math.nan, "val_loss": math.nan}
        return {**scored, "AP": 0.0} if epoch < 9 else scored

    brain = start(make_study(trials=30), tmp_path)
    play(brain, curve)
    brain.finish()
    complete = [c for c in brain.state.configurations.values() if c.status == "complete"]
    assert complete
    assert all(0.5 < c.params["quality"] <= 0.9 for c in complete)


def test_failures_are_counted_and_end_the_study(tmp_path: Path) -> None:
    study = make_study(trials=30).model_copy(
        update={"limits": make_study().limits.model_copy(update={"failed_trials": 2})}
    )
    brain = start(study, tmp_path)
    for _ in range(3):
        work = brain.start(brain.peek())
        brain.fail(work.config_id, "ValueError: line one\nline two")
    assert brain.peek() is None
    assert brain.done
    reason = brain.finish()
    assert reason == EndReason("limits.failed_trials", "3 configurations failed, more than 2")
    assert State(Journal(Folder(tmp_path)).events()).end == str(reason)
    assert brain.state.configurations["c000"].reason == "ValueError: line one line two"


def test_a_configuration_that_the_model_refuses_is_drawn_again_and_does_not_count(
    tmp_path: Path,
) -> None:
    def check(params: dict[str, Any]) -> int:
        if params["quality"] < 0.5:
            raise InvalidConfig("too low")
        return 1

    brain = start(make_study(trials=6, scheduler="full"), tmp_path, check)
    play(brain)
    assert len(brain.state.configurations) == 6
    assert min(c.params["quality"] for c in brain.state.configurations.values()) >= 0.5


def test_spare_slots_go_to_folds_that_wait(tmp_path: Path) -> None:
    brain = start(make_study(trials=1, scheduler="full"), tmp_path, slots=3)
    work = brain.start(brain.peek())
    assert brain.spare() == 2
    assert brain.widen({work.config_id: 4}) == {work.config_id: 3}
    assert brain.spare() == 0


def budget(trials: int, **limits: Any) -> Study:
    return make_study(trials=trials, scheduler="full", epochs=1, folds=5).model_copy(
        update={"limits": Limits.model_validate(limits)}
    )


def noisy(spread: float) -> Curve:
    """A flat optimum at quality 0.5, on which folds disagree."""

    def curve(params: dict[str, Any], fold: int, epoch: int) -> dict[str, float]:  # noqa: ARG001
        return {
            "AP": 0.6
            - (params["quality"] - 0.5) ** 2
            + spread * (fold - 2) * (1 + params["quality"]),
            "val_loss": 0.0,
        }

    return curve


@pytest.mark.parametrize(("metric", "target"), [("AP", 0.7), ("val_loss", 0.3)])
def test_a_target_ends_the_search_when_a_complete_configuration_is_as_good(
    tmp_path: Path, metric: str, target: float
) -> None:
    def curve(params: dict[str, Any], fold: int, epoch: int) -> dict[str, float]:  # noqa: ARG001
        return {"AP": params["quality"], "val_loss": 1 - params["quality"]}

    study = budget(50, target=target).model_copy(update={"metric": metric})
    brain = start(study, tmp_path)
    play(brain, curve)
    reason = brain.finish()
    qualities = [c.params["quality"] for c in brain.state.configurations.values()]
    assert qualities[-1] >= 0.7 > max(qualities[:-1])
    assert (
        str(reason) == f"limits.target: c{len(qualities) - 1:03d} reached {metric} "
        f"{qualities[-1] if metric == 'AP' else 1 - qualities[-1]:.4f}, the target is {target:g}"
    )
    brain.journal.close()
    assert start(study, tmp_path).peek() is None
    higher = start(
        budget(50, target=2.0 if metric == "AP" else -2.0).model_copy(update={"metric": metric}),
        tmp_path,
    )
    play(higher, curve)
    assert len(higher.state.configurations) == 50
    assert higher.finish().kind == "complete"


def test_a_converged_search_ends_with_its_evidence_and_a_sharp_one_goes_on(tmp_path: Path) -> None:
    blurred = start(budget(60, converged=True), tmp_path / "blurred")
    play(blurred, noisy(0.1))
    done = len(blurred.state.configurations)
    assert 20 <= done < 60
    reason = blurred.finish()
    assert reason.kind == "limits.converged"
    assert reason.detail.startswith(f"after {done} complete configurations at most ")
    sharp = start(budget(24, converged=True), tmp_path / "sharp")
    play(sharp, noisy(0.0))
    assert sharp.finish().kind == "complete"
    without = start(budget(24), tmp_path / "without")
    play(without, noisy(0.1))
    assert without.finish().kind == "complete"


def test_a_rival_that_is_not_finite_drops_nobody() -> None:
    race = Race(ladder(27, 5, 1000))
    full = race.full
    race.arrive("nan", full, [math.nan] * 3)
    assert race.judge("nan", full).action == "stop"
    race.end("nan", "stop")
    for config_id in ("a", "b", "c"):
        race.arrive(config_id, full, [0.5, 0.5, 0.5])
        assert race.judge(config_id, full) is None


def test_two_run_in_full_however_far_behind_the_second_is(tmp_path: Path) -> None:
    def curve(params: dict[str, Any], _: int, epoch: int) -> dict[str, float]:
        best = params["quality"] > 0.9
        return {"AP": 0.9 if best else 0.1 * params["quality"] * epoch / 27, "val_loss": 1.0}

    for trials in (2, 5, 12):
        brain = start(make_study(trials=trials), tmp_path / str(trials))
        play(brain, curve)
        brain.finish()
        assert brain.state.counts["complete"] >= 2


def test_idle_slots_take_a_racing_configuration_through_several_rungs_and_a_crash_changes_nothing(
    tmp_path: Path,
) -> None:
    study = make_study(trials=3, folds=10)
    brain, at_work, jumps = start(study, tmp_path, slots=8), {}, 0
    for _ in range(400):
        if (work := brain.peek()) and work.config_id not in at_work:
            rung = brain.state.configurations[work.config_id].rung if not work.new else -1
            jumps += work.rung > rung + 1
            at_work[work.config_id] = brain.start(work)
            if jumps:
                break
        elif at_work:
            config_id, work = at_work.popitem()
            for segment in work.segments:
                for epoch in range(segment.start + 1, segment.stop + 1):
                    brain.epoch(
                        config_id,
                        Epoch(segment.fold, epoch, good(work.params, segment.fold, epoch), 1.0),
                    )
            brain.rung_done(config_id, work.rung)
    assert jumps == 1
    brain.journal.close()
    again = start(study, tmp_path, slots=8)
    resumed = {work.config_id: work.rung for work in [again.peek()]}
    assert resumed.items() <= {c.id: c.target for c in brain.state.configurations.values()}.items()
    play(again)
    again.finish()
    told = [
        (e["config_id"], e["fold"], e["epoch"])
        for e in Journal(Folder(tmp_path)).events()
        if e["event"] == "epoch"
    ]
    assert len(told) == len(set(told))
    assert again.state.counts["complete"] >= 2


def test_asha_is_left_to_ray_whatever_the_type(tmp_path: Path) -> None:
    study = make_study(trials=3, scheduler="asha")
    study = study.model_copy(
        update={"resolved": study.resolved.model_copy(update={"ladder": ((5, 9), (5, 27))})}
    )
    brain = start(study, tmp_path)
    for _ in range(3):
        work = brain.start(brain.peek())
        for segment in work.segments:
            for epoch in range(1, 10):
                brain.epoch(
                    work.config_id,
                    Epoch(segment.fold, epoch, good(work.params, segment.fold, epoch), 1.0),
                )
        assert brain.rung_done(work.config_id, 0) is None


def test_a_race_of_millimetres_decides_as_one_of_metres() -> None:
    """A prior that is not in units of the metric made decisions depend on these."""
    rungs, dice = ladder(27, 5, 1000), np.random.default_rng(0)
    table_NK = 5 + dice.normal(0, 1, (8, 1)) + dice.normal(0, 0.3, (8, 5))
    found = []
    for unit in (1.0, 1000.0, 0.001):
        race, last = Race(rungs, Rule(relative=True), sign=-1), len(rungs) - 1
        for n, row_K in enumerate(-unit * table_NK[:5]):
            race.arrive(f"c{n}", last, row_K.tolist())
        spread = np.sqrt(race.residual_variance()) / unit
        race.arrive("c7", race.full, (-unit * table_NK[7][:3]).tolist())
        decision = race.judge("c7", race.full)
        found.append((round(float(spread), 9), decision and decision.action))
    assert len(set(found)) == 1


def test_scores_that_are_no_shares_are_not_told_apart_by_the_noise_of_shares() -> None:
    """Eight equally good configurations, whose folds differ by half a per cent, at the first rung of
    several folds, before any is complete.
    """
    race, rng = Race(ladder(100, 5, 1000), Rule(relative=True), -1), np.random.default_rng(1)
    out = []
    for number in range(8):
        folds = -500 * (1 + rng.normal(0, 0.005, race.ladder[race.full][0]))
        race.arrive(f"c{number}", race.full, folds.tolist())
        out.append(race.judge(f"c{number}", race.full))
    assert [decision for decision in out if decision] == []


def test_what_a_limit_ends_of_asha_goes_on_when_it_is_raised(tmp_path: Path) -> None:
    study = make_study(trials=3, folds=2, scheduler="asha")
    rungs = tuple((2, epochs) for epochs in (1, 3, 9, 27))
    study = study.resolved_as(study.resolved.model_copy(update={"ladder": rungs}))
    brain = start(study, tmp_path, slots=3)
    assert play(brain) == 3 * 2
    brain.study = study.model_copy(update={"limits": Limits(hours=1e-9)})
    assert brain.finish().kind == "limits.hours"
    assert start(study, tmp_path).peek() is not None


def test_who_has_no_score_at_the_end_is_no_finalist() -> None:
    rungs = ladder(27, 5, 1000)
    race, last = Race(rungs), len(rungs) - 1
    for name, end in (("c0", math.nan), ("c1", math.nan), ("c2", 0.4)):
        race.arrive(name, race.full, [0.5, 0.5, 0.5])
        if name != "c2":
            race.go(name, last)
            race.arrive(name, last, [0.5, 0.5, 0.5, 0.5, end])
    step = race.last_push()
    assert step
    assert step.config_id == "c2"
