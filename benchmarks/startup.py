"""What a Ray Train run costs that trains nothing: raybone's Trainer, side by side with Ray's own.

    python benchmarks/startup.py

Both run inside an actor, as inside a Tune trial, with one worker that returns at once.
"""

from __future__ import annotations

import functools
import json
import uuid
from pathlib import Path
from typing import Any

import machine

from raybone.run.ray.connection import connection
from raybone.run.ray.trainer import Trainer

# After raybone, which sets what Ray reads when it is imported.
import ray  # isort: skip
from ray import train  # isort: skip
from ray.train.torch import TorchConfig, TorchTrainer  # isort: skip

REPEATS = 7
TRAINERS = {
    "raybone": functools.partial(Trainer, placed=lambda group: None),
    "TorchTrainer": TorchTrainer,
}


@ray.remote(num_cpus=0)
class Trial:
    """Stands for a Tune trial."""

    def fit(self, name: str, place: str) -> Any:
        """One run."""
        trainer = TRAINERS[name](
            lambda config: "done",
            train_loop_config={},
            torch_config=TorchConfig("gloo"),
            scaling_config=train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=train.RunConfig(name=uuid.uuid4().hex, storage_path=place),
        )
        return trainer.fit().return_value


def main() -> None:
    """Measure and keep."""
    with connection(None):
        trials = {name: Trial.remote() for name in TRAINERS}

        def run(name: str, place: Path) -> None:
            assert ray.get(trials[name].fit.remote(name, str(place))) is not None

        runs = {name: functools.partial(run, name) for name in TRAINERS}
        machine.by_turns(runs, 1)  # the first run in a process imports what later ones have
        seconds = machine.by_turns(runs, REPEATS)
    rows = {
        name: {"median_seconds": machine.median(s), "seconds": s} for name, s in seconds.items()
    }
    ratio = rows["TorchTrainer"]["median_seconds"] / rows["raybone"]["median_seconds"]
    print(json.dumps({**rows, "ratio": ratio}, indent=1))
    machine.keep("startup", {"repeats": REPEATS, "empty_run": rows, "ratio": ratio})


if __name__ == "__main__":
    main()
