"""Writes syne_tune.json: what Syne Tune's rung systems decide on streams of scores.

    pip install syne-tune==0.13.0 --no-deps && pip install dill sortedcontainers
    python tests/hpo/referee/record.py

Run in an environment of its own: Syne Tune pins a numpy that raybone cannot use. Factors are powers
of two: a third is no binary number, so that Syne Tune sometimes turns down a score that is the
quantile itself (4 arrivals, factor 3).
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from syne_tune.optimizer.schedulers.hyperband_promotion import PromotionRungSystem
from syne_tune.optimizer.schedulers.hyperband_stopping import StoppingRungSystem

LEVELS, LAST = [1, 3, 9], 27


def score(trial: int, level: int, noise: random.Random) -> float:
    return round(trial * 7919 % 101 / 101 + noise.gauss(0, 0.2) / level, 6)


def stopping(factor: float, seed: int) -> list[list[object]]:
    """[trial, rung, score, goes on] in the order of a random stream."""
    noise = random.Random(seed)
    rungs = StoppingRungSystem(LEVELS, [1 / factor] * len(LEVELS), "score", "max", "epoch", LAST)
    alive, story = dict.fromkeys(range(40), 0), []
    for trial in alive:
        rungs.on_task_add(str(trial), 0)
    while alive:
        trial = noise.choice(sorted(alive))
        level = alive[trial]
        value = score(trial, LEVELS[level], noise)
        # The rung systems are told every milestone once, in order.
        goes = rungs.on_task_report(str(trial), {"score": value, "epoch": LEVELS[level]}, 0)[
            "task_continues"
        ]
        story.append([trial, level, value, bool(goes)])
        if goes and level + 1 < len(LEVELS):
            alive[trial] += 1
        else:
            del alive[trial]
    return story


def promotion(factor: float, seed: int) -> list[list[object]]:
    """["arrive", trial, rung, score] and ["ask", trial or None, rung it goes to or None]."""
    noise = random.Random(seed)
    rungs = PromotionRungSystem(LEVELS, [1 / factor] * len(LEVELS), "score", "max", "epoch", LAST)
    story: list[list[object]] = []
    running: list[tuple[int, int]] = []
    fresh = 0
    for _ in range(300):
        if running and (len(running) == 4 or noise.random() < 0.6):
            trial, level = running.pop(noise.randrange(len(running)))
            if level < len(LEVELS):
                value = score(trial, LEVELS[level], noise)
                rungs.on_task_report(str(trial), {"score": value, "epoch": LEVELS[level]}, 0)
                story.append(["arrive", trial, level, value])
            rungs.on_task_remove(str(trial))
            continue
        asked = rungs.on_task_schedule(str(fresh))
        if "trial_id" in asked:
            trial, level = int(asked["trial_id"]), [*LEVELS, LAST].index(asked["milestone"])
            rungs.on_task_add(
                str(trial),
                0,
                new_config=False,
                milestone=asked["milestone"],
                resume_from=asked["resume_from"],
            )
            story.append(["ask", trial, level])
        else:
            trial, level = fresh, 0
            fresh += 1
            rungs.on_task_add(str(trial), 0, new_config=True)
            story.append(["ask", None, None])
        running.append((trial, level))
    return story


if __name__ == "__main__":
    cases = [
        {"kind": kind.__name__, "factor": factor, "seed": seed, "story": kind(factor, seed)}
        for kind in (stopping, promotion)
        for factor in (2, 2.25, 4, 8)
        for seed in range(4)
    ]
    Path(__file__).with_name("syne_tune.json").write_text(
        json.dumps(cases, separators=(",", ":")) + "\n"
    )
