"""The rungs decide as outside implementations of ASHA do when fed the same stream."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raybone.hpo.fold_race import Race, Rule

CASES = json.loads((Path(__file__).parent / "referee" / "syne_tune.json").read_text())
LADDER = ((1, 1), (1, 3), (1, 9), (1, 27))


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c["kind"] == "stopping"],
    ids=lambda c: f"{c['factor']}-{c['seed']}",
)
def test_stopping_decides_as_syne_tune_does(case: dict[str, Any]) -> None:
    race = Race(LADDER, Rule(factor=case["factor"], promotion=False, races=False))
    decided = []
    for trial, rung, score, _ in case["story"]:
        race.arrive(str(trial), rung, [score])
        decided.append(race.judge(str(trial), rung) is None)
    assert decided == [goes for *_, goes in case["story"]]
    assert 0 < sum(decided) < len(decided)


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c["kind"] == "promotion"],
    ids=lambda c: f"{c['factor']}-{c['seed']}",
)
def test_promotion_decides_as_syne_tune_does(case: dict[str, Any]) -> None:
    race = Race(LADDER, Rule(factor=case["factor"], races=False))
    promoted = 0
    for event in case["story"]:
        if event[0] == "arrive":
            race.arrive(str(event[1]), event[2], [event[3]])
            continue
        step = race.next_step()
        assert [step and int(step.config_id), step and step.rung] == event[1:]
        if step:
            race.go(step.config_id, step.rung)
            promoted += 1
    assert promoted > 10


@pytest.mark.parametrize("factor", [2, 2.25, 3, 4])
def test_stopping_decides_as_rays_asha_wherever_the_newcomer_is_not_itself_the_cutoff(
    factor: float,
) -> None:
    # Ray compares a newcomer with a quantile of those before it; ours, as Syne Tune's, counts the
    # newcomer in. The two can differ only where the newcomer stands next to the quantile; the first
    # arrival goes on in both.
    from ray.tune.schedulers import ASHAScheduler

    noise, same, edge = random.Random(factor), 0, 0
    asha = ASHAScheduler(
        time_attr="t",
        metric="score",
        mode="max",
        grace_period=1,
        reduction_factor=factor,
        max_t=100,
    )
    race = Race(((1, 1), (1, 100)), Rule(factor=factor, promotion=False, races=False))
    for number in range(300):
        trial, score = SimpleNamespace(trial_id=str(number)), noise.random()
        race.arrive(str(number), 0, [score])
        asha.on_trial_add(None, trial)
        rays = (
            asha.on_trial_result(None, trial, {"t": 1, "score": score, "training_iteration": 1})
            == "CONTINUE"
        )
        place, before = race.rungs[0].place(str(number)), number
        if before and (before - 1) / factor < place < (before - 1) / factor + 1:
            edge += 1
            continue
        same += 1
        assert rays == (race.judge(str(number), 0) is None), number
    assert edge < 30 < same
