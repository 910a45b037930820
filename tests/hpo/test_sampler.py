"""Samplers: bounds, conditions, repeats, and purity."""

from __future__ import annotations

import pytest

from raybone.hpo.sampler import propose
from raybone.hpo.space import grid
from raybone.hpo.state import State
from raybone.spec import Param, Study

SPACE = {
    "lr0": {"log_uniform": [1e-5, 1e-1]}, "depth": {"int_uniform": [2, 4]}, "opt": {"choice": ["SGD", "AdamW"]},
    "momentum": {"uniform": [0.5, 0.9], "when": {"opt": "SGD"}},
}


def study(sampler: str, space: dict[str, object] = SPACE, seed: int = 0) -> Study:
    return Study.model_validate({"name": "s", "dataset": "d", "model": "m", "epochs": 3, "metric": "AP", "space": space,
                                 "search": {"sampler": sampler, "seed": seed}})


@pytest.mark.parametrize("sampler", ["random", "sobol", "tpe"])
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
    space = {"a": {"choice": [1, 2]}, "b": {"choice": ["x", "y"]}, "c": {"choice": [7, 8, 9], "when": {"a": 1}}}
    spec, state, points = study("grid", space), State(), []
    for index in range(9):
        points.append(propose(spec, state, index))
        state.apply({"event": "config", "time": 1.0, "config_id": f"c{index}", "params": points[-1] or {}})
    assert len(list(grid({k: Param.model_validate(v) for k, v in space.items()}))) == 8
    assert points[8] is None
    assert len({str(p) for p in points[:8]}) == 8


def test_a_small_space_is_used_up_without_repeats() -> None:
    spec = study("random", {"a": {"choice": [1, 2, 3]}})
    state, found = State(), []
    for index in range(5):
        params = propose(spec, state, index)
        if params is not None:
            state.apply({"event": "config", "time": 1.0, "config_id": f"c{index}", "params": params})
            found.append(params["a"])
    assert sorted(found) == [1, 2, 3]


def test_tpe_learns_from_the_journal() -> None:
    from raybone.spec import Resolved

    spec = study("tpe", {"x": {"uniform": [0.0, 1.0]}})
    spec = spec.model_copy(update={"resolved": Resolved(dataset_hash="", code_version="", folds=2, ladder=((2, 3),))})
    state = State()
    for index in range(40):
        params = propose(spec, state, index)
        name = f"c{index}"
        state.apply({"event": "config", "time": 1.0, "config_id": name, "params": params})
        for fold in range(2):
            for epoch in (1, 2, 3):
                state.apply({"event": "epoch", "time": 1.0, "config_id": name, "fold": fold, "epoch": epoch,
                             "metrics": {"AP": -abs(params["x"] - 0.8), "val_loss": 0.0}, "seconds": 1.0})
        state.apply({"event": "rung", "time": 1.0, "config_id": name, "rung": 0})
    late = [c.params["x"] for c in list(state.configurations.values())[25:]]
    assert sum(abs(x - 0.8) < 0.2 for x in late) >= 10
