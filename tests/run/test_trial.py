"""A trial neither hangs on its own locks nor waits for a worker that never comes."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.train.v2._internal.execution.controller import TrainController

from raybone.run.ray import trial
from raybone.run.ray.hub import NAMESPACE, Hub
from raybone.run.ray.trainer import Trainer, built
from raybone.study.files import parse_study

pytestmark = pytest.mark.usefixtures("local_ray")
ROUNDS = 40


class OnlyBuilt(Trainer):
    """A run that ends where its workers would start."""

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        built(TrainController, **given)
        logging.getLogger("ray.train").info("built")
        return SimpleNamespace(error=None)


def test_forty_rungs_of_two_folds_start_side_by_side(
    study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the lock in ``built`` two threads wait for each other's locks of logging within a few
    rounds.
    """
    monkeypatch.setattr(trial, "Trainer", OnlyBuilt)
    parsed = parse_study(study)

    def start(name: str) -> None:
        trial.trainer(
            parsed, str(tmp_path), name, lambda config: None, {}, lambda group: None
        ).fit()

    for number in range(ROUNDS):
        threads = [
            threading.Thread(target=start, args=(f"{number}-{fold}",), daemon=True)
            for fold in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), f"round {number} hangs"


CHILD = """
import sys, time
from types import SimpleNamespace
import ray
from raybone.run.ray import trial
ray.init(sys.argv[1], log_to_driver=False)
trial.NOBODY_SECONDS = 0.5
with trial.watched(SimpleNamespace(hub=sys.argv[2], run=sys.argv[3], work=SimpleNamespace(config_id="c000"))):
    if sys.argv[4] == "comes":
        ray.get(trial.find(sys.argv[2]).here.remote(sys.argv[3]))
    time.sleep(5)
print("went on")
"""


@pytest.mark.parametrize("worker", ["comes", "never comes"])
def test_a_run_without_a_worker_ends_its_trial(worker: str) -> None:
    name = f"hub-{worker.replace(' ', '-')}"
    hub: Any = Hub.options(name=name, namespace=NAMESPACE).remote()  # type: ignore[attr-defined]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, ray.get_runtime_context().gcs_address, name, "run", worker],
        capture_output=True,
        text=True,
        timeout=120,
    )
    told = ray.get(hub.drain.remote(False))
    ray.kill(hub)
    if worker == "comes":
        assert (child.returncode, child.stdout.strip(), told) == (0, "went on", [])
    else:
        assert child.returncode == 1
        assert told == [{"config_id": "c000", "again": "a run had no worker 0.5 s after its start"}]
