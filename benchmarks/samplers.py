"""How far the best configuration that a sampler has found is behind the best there is, on made-up
studies.

Smooth scores over small spaces, with and without a conditional parameter, told with noise as folds
have it; every configuration is scored at once. ``python benchmarks/samplers.py`` takes some minutes
on one core and writes results/samplers.json.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from machine import keep

from raybone.hpo.sampler import propose
from raybone.hpo.state import State
from raybone.study.spec import Resolved, Study

SEEDS, NOISE, LOOKS = 12, 0.02, (8, 12, 16, 24)
LR0: dict[str, Any] = {"lr0": {"log_uniform": [1e-5, 1e-1]}}


def _rate(params: dict[str, Any]) -> float:
    return 0.1 * (math.log10(params["lr0"]) + 3) ** 2


# Space, and how far a configuration is behind the best.
STUDIES: dict[str, tuple[dict[str, Any], Callable[[dict[str, Any]], float]]] = {
    "2 parameters": (
        {**LR0, "decay": {"uniform": [0, 1]}},
        lambda p: _rate(p) + 0.3 * (p["decay"] - 0.3) ** 2,
    ),
    "3 parameters, one a choice": (
        {**LR0, "imgsz": {"choice": [512, 768, 1024]}, "fliplr": {"uniform": [0, 0.5]}},
        lambda p: _rate(p) + 0.08 * (p["imgsz"] != 768) + 0.5 * (p["fliplr"] - 0.2) ** 2,
    ),
    "4 parameters, one conditional": (
        {
            **LR0,
            "depth": {"int_uniform": [2, 4]},
            "opt": {"choice": ["SGD", "AdamW"]},
            "momentum": {"uniform": [0.5, 0.9], "when": {"opt": "SGD"}},
        },
        lambda p: (
            _rate(p)
            + 0.05 * abs(p["depth"] - 3)
            + (0.3 * (0.9 - p["momentum"]) if "momentum" in p else 0.1)
        ),
    ),
}


def behind(
    sampler: str, space: dict[str, Any], lag: Callable[[dict[str, Any]], float], seed: int
) -> list[float]:
    """How far the best of the first n is behind, for each n of LOOKS."""
    study = Study.model_validate(
        {
            "name": "s",
            "dataset": "d",
            "model": "m",
            "epochs": 1,
            "metric": "AP",
            "space": space,
            "search": {"sampler": sampler, "seed": seed},
        }
    )
    study = study.resolved_as(Resolved(dataset_hash="", code_version="", folds=2, ladder=((1, 1),)))
    state, lags, rng = State(), [], np.random.default_rng(seed)
    for index in range(LOOKS[-1]):
        params = propose(study, state, index) or {}
        lags.append(lag(params))
        config = {"config_id": f"c{index}"}
        state.apply({"event": "config", "params": params, **config})
        state.apply(
            {
                "event": "epoch",
                "fold": 0,
                "epoch": 1,
                "seconds": 1.0,
                **config,
                "metrics": {"AP": 0.7 - lags[-1] + NOISE * rng.normal(), "val_loss": 0.0},
            }
        )
        state.apply({"event": "rung", "rung": 0, **config})
    return [min(lags[:n]) for n in LOOKS]


if __name__ == "__main__":
    rows = []
    for name, (space, lag) in STUDIES.items():
        for sampler in ("random", "sobol", "tpe", "gp"):
            began = time.perf_counter()
            found = np.array([behind(sampler, space, lag, seed) for seed in range(SEEDS)])
            rows.append(
                {
                    "study": name,
                    "sampler": sampler,
                    "behind": {
                        n: [round(float(v.mean()), 4), round(float(v.std(ddof=1) / SEEDS**0.5), 4)]
                        for n, v in zip(LOOKS, found.T)
                    },
                    "seconds_a_proposal": round(
                        (time.perf_counter() - began) / SEEDS / LOOKS[-1], 3
                    ),
                }
            )
            print(
                f"{name:<30} {sampler:<7}",
                "  ".join(f"{n}: {m:.4f} +- {e:.4f}" for n, (m, e) in rows[-1]["behind"].items()),
                f"  {rows[-1]['seconds_a_proposal']} s",
                flush=True,
            )
    keep("samplers", {"seeds": SEEDS, "noise": NOISE, "rows": rows})
