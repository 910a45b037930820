"""Samplers: bounds, conditions, repeats, and purity."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from raybone.errors import InvalidConfig
from raybone.hpo.brain import Brain
from raybone.hpo.journal import Journal
from raybone.hpo.sampler import observations, propose
from raybone.hpo.state import State
from raybone.storage import Folder
from raybone.study.files import parse_study
from raybone.study.space import beyond_trials, grid, left_by_rules
from raybone.study.spec import Resolved, ResolvedStudy, Study
from raybone.types import Epoch

SPACE = {
    "lr0": {"log_uniform": [1e-5, 1e-1]},
    "depth": {"int_uniform": [2, 4]},
    "opt": {"choice": ["SGD", "AdamW"]},
    "momentum": {"uniform": [0.5, 0.9], "when": {"opt": "SGD"}},
}


def study(
    sampler: str, space: dict[str, Any] = SPACE, seed: int = 0, search: dict[str, Any] | None = None
) -> ResolvedStudy:
    asked = parse_study(
        {
            "name": "s",
            "dataset": "d",
            "model": "m",
            "epochs": 3,
            "metric": "AP",
            "space": space,
            "search": {"sampler": sampler, "seed": seed, **(search or {})},
        }
    )
    return with_ladder(asked, ((1, 3),))


@pytest.mark.parametrize("sampler", ["random", "sobol", "tpe", "gp"])
def test_values_are_in_bounds_conditions_hold_and_the_seed_decides(sampler: str) -> None:
    points = [propose(study(sampler), State(), i) for i in range(24)]
    for point in points:
        assert 1e-5 <= point["lr0"] <= 1e-1
        assert point["depth"] in (2, 3, 4)
        assert ("momentum" in point) == (point["opt"] == "SGD")
    assert points == [propose(study(sampler), State(), i) for i in range(24)]
    assert points != [propose(study(sampler, seed=1), State(), i) for i in range(24)]
    assert {p["depth"] for p in points} == {2, 3, 4}
    assert sum(p["lr0"] < 1e-3 for p in points) in range(6, 19)


def test_the_grid_is_every_combination_once_and_then_ends() -> None:
    space = {
        "a": {"choice": [1, 2]},
        "b": {"choice": ["x", "y"]},
        "c": {"choice": [7, 8, 9], "when": {"a": 1}},
    }
    spec, state, points = study("grid", space), State(), []
    for index in range(9):
        points.append(propose(spec, state, index))
        state.apply(
            {"event": "config", "time": 1.0, "config_id": f"c{index}", "params": points[-1] or {}}
        )
    assert len(list(grid(study("grid", space)))) == 8
    assert points[8] is None
    assert len({str(p) for p in points[:8]}) == 8


def test_a_small_space_is_used_up_without_repeats() -> None:
    spec = study("random", {"a": {"choice": [1, 2, 3]}})
    state, found = State(), []
    for index in range(5):
        params = propose(spec, state, index)
        if params is not None:
            state.apply(
                {"event": "config", "time": 1.0, "config_id": f"c{index}", "params": params}
            )
            found.append(params["a"])
    assert sorted(found) == [1, 2, 3]


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_model_learns_from_the_journal(sampler: str) -> None:
    spec = with_ladder(study(sampler, {"x": {"uniform": [0.0, 1.0]}}), ((2, 3),))
    state = State()
    for index in range(40):
        params = propose(spec, state, index)
        name = f"c{index}"
        state.apply({"event": "config", "time": 1.0, "config_id": name, "params": params})
        for fold in range(2):
            for epoch in (1, 2, 3):
                state.apply(
                    {
                        "event": "epoch",
                        "time": 1.0,
                        "config_id": name,
                        "fold": fold,
                        "epoch": epoch,
                        "metrics": {"AP": -abs(params["x"] - 0.8), "val_loss": 0.0},
                        "seconds": 1.0,
                    }
                )
        state.apply({"event": "rung", "time": 1.0, "config_id": name, "rung": 0})
    late = [c.params["x"] for c in list(state.configurations.values())[25:]]
    assert sum(abs(x - 0.8) < 0.2 for x in late) >= 10


def with_ladder(spec: Study, ladder: tuple[tuple[int, int], ...]) -> ResolvedStudy:
    resolved = Resolved(dataset_hash="", code_version="", folds=2, ladder=ladder)
    return spec.resolved_as(resolved)


def truth(params: dict[str, Any]) -> float:
    """A smooth score, best at lr0 = 1e-3, depth 3 and AdamW."""
    return (
        0.7
        - 0.1 * (math.log10(params["lr0"]) + 3) ** 2
        - 0.05 * abs(params["depth"] - 3)
        - 0.1 * (params["opt"] == "SGD")
        - (0.2 * (0.9 - params["momentum"]) if "momentum" in params else 0)
    )


def run(spec: ResolvedStudy, state: State, name: str, rung: int) -> None:
    """Train a configuration up to a rung: scores of early epochs are lower, as those of a real
    curve.
    """
    folds, epochs = spec.resolved.ladder[rung]
    for fold in range(folds):
        for epoch in range(state.known(name, fold) + 1, epochs + 1):
            value = (
                truth(state.configurations[name].params) * (1 - math.exp(-epoch / 5)) + 0.02 * fold
            )
            state.apply(
                {
                    "event": "epoch",
                    "time": 1.0,
                    "config_id": name,
                    "fold": fold,
                    "epoch": epoch,
                    "metrics": {"AP": value, "val_loss": 0.0},
                    "seconds": 1.0,
                }
            )
    state.apply({"event": "rung", "time": 1.0, "config_id": name, "rung": rung})


def race(sampler: str, seed: int, trials: int = 36) -> State:
    """A fold race over made-up curves."""
    spec = with_ladder(
        study(sampler, seed=seed, search={"trials": trials}), ((1, 2), (1, 4), (2, 9), (2, 27))
    )
    brain = Brain(
        spec,
        Journal(Folder(f"memory://race-{sampler}-{seed}-{trials}-{time.monotonic_ns()}")),
        lambda params: 1,
        slots=1,
    )
    while work := brain.peek():
        brain.start(work)
        for segment in work.segments:
            for epoch in range(segment.start + 1, segment.stop + 1):
                value = truth(work.params) * (1 - math.exp(-epoch / 5)) + 0.02 * segment.fold
                brain.epoch(
                    work.config_id, Epoch(segment.fold, epoch, {"AP": value, "val_loss": 0.0}, 1.0)
                )
        brain.rung_done(work.config_id, work.rung)
    return brain.state


def test_tpe_that_sees_mostly_early_scores_beats_chance_at_equal_trials() -> None:
    def quality(sampler: str, seed: int) -> float:
        late = [truth(c.params) for c in race(sampler, seed).configurations.values()][18:]
        return sum(late) / len(late)

    gains = [quality("tpe", seed) - quality("random", seed) for seed in range(3)]
    assert min(gains) > 0.02
    assert sum(gains) / 3 > 0.06


def test_who_got_further_stands_higher_than_an_early_score_and_a_failure_lowest() -> None:
    spec = with_ladder(study("tpe"), ((1, 2), (1, 4)))
    state = State()
    for name, lr0, rungs in (
        ("a", 1e-3, 1),
        ("b", 1e-5, 2),
        ("c", 1e-3, 2),
        ("d", 1e-3, 1),
        ("e", 1e-2, 0),
    ):
        params = {"lr0": lr0, "depth": 3, "opt": "AdamW"}
        state.apply({"event": "config", "time": 1.0, "config_id": name, "params": params})
        for rung in range(rungs):
            run(spec, state, name, rung)
    state.apply({"event": "failed", "time": 1.0, "config_id": "d", "reason": "no memory"})
    assert [standing for _, standing in observations(spec, state)] == [
        3 / 8,
        5 / 8,
        7 / 8,
        1 / 8,
        None,
    ]


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_model_proposes_the_same_in_another_process_with_other_string_hashes(
    sampler: str,
) -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests/hpo'); from test_sampler import race; "
        f"print([c.params for c in race({sampler!r}, 0, 14).configurations.values()])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": "1"},
    ).stdout
    assert said.strip() == str([c.params for c in race(sampler, 0, 14).configurations.values()])


def test_ten_thousand_configurations_are_told_as_a_few_hundred_with_the_best_among_them() -> None:
    spec = with_ladder(study("tpe"), ((1, 1),))
    state = State()
    for index in range(10_000):
        params = {"lr0": 1e-4, "depth": 3, "opt": "AdamW"}
        state.apply({"event": "config", "time": 1.0, "config_id": f"c{index}", "params": params})
        value = 1.0 if index == 77 else index % 7 / 10
        state.apply(
            {
                "event": "epoch",
                "time": 1.0,
                "config_id": f"c{index}",
                "fold": 0,
                "epoch": 1,
                "metrics": {"AP": value, "val_loss": 0.0},
                "seconds": 1.0,
            }
        )
        state.apply({"event": "rung", "time": 1.0, "config_id": f"c{index}", "rung": 0})
    told = observations(spec, state)
    assert len(told) == 250
    assert max(standing for _, standing in told if standing) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("sampler", ["random", "sobol", "tpe", "gp"])
def test_points_come_first_in_order_and_what_they_leave_out_is_drawn(sampler: str) -> None:
    points = [
        {"lr0": 0.01, "depth": 2, "opt": "AdamW"},
        {"momentum": 0.6},
        {"opt": "AdamW", "lr0": 1e-5},
    ]
    spec = study(sampler, search={"points": points})
    proposed = [propose(spec, State(), index) for index in range(3)]
    assert proposed[0] == points[0]
    assert proposed[1].items() >= {"momentum": 0.6, "opt": "SGD"}.items()
    assert proposed[2].items() >= points[2].items()
    assert proposed == [propose(spec, State(), index) for index in range(3)]
    state = State([{"event": "config", "time": 1.0, "config_id": "c0", "params": points[0]}])
    assert propose(spec, state, 0) != points[0]


def test_a_grid_takes_its_points_first_and_every_other_combination_once() -> None:
    spec = study(
        "grid",
        {"a": {"choice": [1, 2, 3]}, "b": {"choice": [0.0, 0.5]}},
        search={"points": [{"a": 3, "b": 0}], "reject": ["a == 2 and b < 0.5"]},
    )
    assert filled(spec, 9) == [
        {"a": 3, "b": 0.0},
        {"a": 1, "b": 0.0},
        {"a": 1, "b": 0.5},
        {"a": 2, "b": 0.5},
        {"a": 3, "b": 0.5},
    ]


def filled(spec: Study, trials: int) -> list[dict[str, Any]]:
    """The configurations of a study that trains nothing."""
    state = State()
    for index in range(trials):
        params = propose(spec, state, index)
        if params is None:
            break
        state.apply({"event": "config", "time": 1.0, "config_id": f"c{index}", "params": params})
    return [c.params for c in state.configurations.values()]


@pytest.mark.parametrize("sampler", ["random", "sobol", "tpe", "gp"])
def test_what_a_rule_rejects_is_drawn_again_and_an_off_parameter_makes_it_false(
    sampler: str,
) -> None:
    spec = study(sampler, search={"reject": ["lr0 > 1e-3 or depth == 4", "momentum < 0.8"]})
    points = filled(spec, 16)
    assert len(points) == 16
    assert all(
        p["lr0"] <= 1e-3 and p["depth"] < 4 and p.get("momentum", 0.9) >= 0.8 for p in points
    )
    assert any("momentum" not in p for p in points)


def test_tpe_leaves_a_region_that_a_rule_rejects_although_the_best_scores_lie_there() -> None:
    spec = with_ladder(study("tpe", search={"reject": ["lr0 > 1e-4"]}), ((1, 1),))
    state = State()
    for index in range(20):
        state.apply(
            {
                "event": "config",
                "time": 1.0,
                "config_id": f"c{index}",
                "params": {"lr0": 1e-3 * (1 + index / 50), "depth": 3, "opt": "AdamW"},
            }
        )
        run(spec, state, f"c{index}", 0)
    assert all(propose(spec, state, index)["lr0"] <= 1e-4 for index in range(20, 24))


def test_a_part_that_hardly_any_point_lies_in_is_found_or_the_space_is_used_up_without_a_hang() -> (
    None
):
    space = {"a": {"uniform": [0.0, 1.0]}}
    assert (
        propose(study("random", space, search={"reject": ["a > 0.002"]}), State(), 0)["a"] <= 0.002
    )
    assert propose(study("tpe", space, search={"reject": ["a >= 0"]}), State(), 0) is None
    assert left_by_rules(study("random", space, search={"reject": ["a > 0.1"]})) == ""
    assert "all of 1000 random points are rejected" in left_by_rules(
        study("tpe", space, search={"reject": ["a >= 0"]})
    )
    nothing = left_by_rules(study("grid", {"a": {"choice": [1, 2]}}, search={"reject": ["a > 0"]}))
    assert (
        nothing
        == "search.reject: must leave a part of the space, but all combinations (of the first "
        "100000) are rejected; loosen a rule"
    )


@pytest.mark.parametrize(
    ("trials", "rules", "told"), [(3, [], True), (4, [], False), (3, ["a == 2"], False)]
)
def test_a_grid_that_goes_on_after_the_last_trial_is_told(
    trials: int, rules: list[str], told: bool
) -> None:
    space = {"a": {"choice": [1, 2, 3, 4]}}
    said = beyond_trials(study("grid", space, search={"trials": trials, "reject": rules}))
    assert said == told * (
        "search.trials: the grid has more combinations than the 3 that are tried, which are its "
        "first; raise it to try them all"
    )
    assert not beyond_trials(study("random", space, search={"trials": trials}))


@pytest.mark.parametrize("sampler", ["random", "sobol", "tpe", "gp", "grid"])
def test_what_a_model_refuses_is_redrawn_recorded_once_and_does_not_count(
    sampler: str, tmp_path: Path
) -> None:
    choices = {"a": {"choice": list(range(12))}, "b": {"choice": [0, 1]}}
    spec = with_ladder(
        study(sampler, choices, search={"trials": 8, "scheduler": "full"}), ((2, 1),)
    )

    def check(params: dict[str, Any]) -> int:
        if params["a"] % 3:
            raise InvalidConfig("a must be a multiple of 3")
        return 1

    journal = Journal(Folder(tmp_path))
    brain = Brain(spec, journal, check, slots=1)
    while work := brain.peek():
        work = brain.start(work)
        for segment in work.segments:
            brain.epoch(work.config_id, Epoch(segment.fold, 1, {"AP": 0.5, "val_loss": 0.0}, 1.0))
        brain.rung_done(work.config_id, work.rung)
    events = list(journal.events())
    refused = [str(e["params"]) for e in events if e["event"] == "invalid"]
    assert len(brain.state.configurations) == 8
    assert all(c.params["a"] % 3 == 0 for c in brain.state.configurations.values())
    assert len(refused) == len(set(refused)) > 0
