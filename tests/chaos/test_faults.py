"""Seven kinds of faults in two studies: the leaderboard is the undisturbed one, digit by digit, and nothing
is left behind.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from faults import TRIAL, WORKER

from raybone.run.local import search as search_locally
from raybone.study.files import parse_study
from tests.chaos.harness import Cluster, Driver, Trained, events, progress, table, until

FAULTS = int(os.environ.get("FAULTS", "7"))  # in each of the two studies


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        yield cluster
    finally:
        cluster.end()


@pytest.fixture
def long_study(study: dict[str, Any]) -> dict[str, Any]:
    """Epochs of about a second, enough of them for all faults, with a metric that no two folds
    share.
    """
    return {
        **study,
        "metric": "val_loss",
        "epochs": 24,
        "fixed": {**study["fixed"], "imgsz": 256, "batch": 2, "nbs": 2},
        "limits": {"stall_minutes": 0.5},
    }


class Faults:
    """What can happen to a study on a cluster, each a method."""

    def __init__(self, cluster: Cluster, driver: Driver) -> None:
        self.cluster, self.driver, self.dice = cluster, driver, random.Random(5)

    def killed_worker(self) -> bool:
        return self._signal(signal.SIGKILL, *WORKER)

    def hanging_worker(self) -> bool:
        return self._signal(signal.SIGSTOP, *WORKER)

    def killed_trial(self) -> bool:
        return self._signal(signal.SIGKILL, *TRIAL)

    def killed_driver(self) -> bool:
        self.driver.process.kill()
        self.driver.process.wait()
        return True

    def killed_raylet(self) -> bool:
        found = self.cluster.raylets()
        if found:
            self.dice.choice(found).kill()
        return bool(found)

    def node_leaves_and_another_joins(self) -> bool:
        self.cluster.kill(self.dice.choice(self.cluster.nodes))
        time.sleep(5)
        return True

    def killed_head(self) -> bool:
        for popen in [*self.cluster.nodes, self.cluster.head]:
            if popen and popen.poll() is None:
                self.cluster.kill(popen)
        self.cluster.nodes.clear()
        self.driver.process.wait(120)
        self.cluster.start()
        return True

    def _signal(self, number: int, *names: str) -> bool:
        found = self.cluster.processes(*names)
        if found:
            self.dice.choice(found).send_signal(number)
        return bool(found)

    def plan(self, count: int) -> Iterator[Callable[[], bool]]:
        """So many faults: one of each kind, then the costly ones less often."""
        shares = {
            self.killed_worker: 9,
            self.killed_trial: 4,
            self.hanging_worker: 2,
            self.killed_driver: 4,
            self.killed_raylet: 3,
            self.node_leaves_and_another_joins: 2,
            self.killed_head: 1,
        }
        each, kinds = [*shares], [kind for kind, share in shares.items() for _ in range(share)]
        self.dice.shuffle(each)
        self.dice.shuffle(kinds)
        return iter([*each, *(kinds * (count // len(kinds) + 1))][:count])


def torment(
    driver: Driver, faults: Faults, cluster: Cluster, count: int, out: Path
) -> Counter[str]:
    """Inject faults, each after every running configuration has got on since the last one; returns
    those injected.
    """
    done, plan = Counter[str](), faults.plan(count)
    fault, before = next(plan, None), dict[str, int]()
    deadline = time.monotonic() + 1500
    while time.monotonic() < deadline:
        if driver.process.poll() is not None:
            if driver.process.returncode == 0:
                return done
            driver.start()
        cluster.complete()
        epochs, running = progress(out)
        on = running and all(epochs[c] > before.get(c, 0) for c in running)
        if fault and on and driver.process.poll() is None and fault():
            done[getattr(fault, "__name__", "")] += 1
            print(f"{time.monotonic():.0f} s: {fault.__name__} at {epochs}", flush=True)
            fault, before = next(plan, None), progress(out)[0]
        time.sleep(0.2)
    raise AssertionError(f"not at its end after {done}; see {driver.log}")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scheduler", ["full", "fold_race"])
def test_a_study_under_faults_is_the_undisturbed_one(
    scheduler: str, long_study: dict[str, Any], tmp_path: Path, cluster: Cluster
) -> None:
    trials = {"full": 3, "fold_race": 5}[scheduler]  # a race trains less of each
    study = {
        **long_study,
        "search": {**long_study["search"], "scheduler": scheduler, "trials": trials},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    out = tmp_path / "out"
    trained, driver = Trained(out), Driver(cluster, tmp_path / "study.yaml", out)
    faults = Faults(cluster, driver)
    done = torment(driver, faults, cluster, FAULTS, out)
    counts = trained.end()
    print(dict(done), f"{driver.starts} drivers", flush=True)
    assert sum(done.values()) == FAULTS

    epochs = [(e["config_id"], e["fold"], e["epoch"]) for e in events(out) if e["event"] == "epoch"]
    assert len(epochs) == len(set(epochs))
    # An epoch in flight when its process dies may have been saved already, and is then not trained
    # again.
    assert sum(counts.values()) == len(epochs)
    assert "failed" not in set(table(out)["state"])
    if scheduler == "full":
        search_locally(parse_study(study), str(tmp_path / "whole"))
        pd.testing.assert_frame_equal(table(out), table(tmp_path / "whole"))
    until(
        lambda: not cluster.processes(*WORKER, *TRIAL, "ray::Hub", "ray::TrainController"),
        60,
        "the end of all runs",
    )
    assert groups_left(cluster) == []


def groups_left(cluster: Cluster) -> list[str]:
    """States of placement groups that still hold resources."""
    import subprocess
    import sys

    code = (
        "import ray; ray.init(address='auto', logging_level='ERROR'); print(*[g['state'] for g in "
        "ray.util.placement_group_table().values()])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**cluster.environment, "RAY_ADDRESS": cluster.address},
        capture_output=True,
        text=True,
        check=True,
    )
    return [state for state in run.stdout.split() if state != "REMOVED"]
