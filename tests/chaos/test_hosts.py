"""Two hosts with a network between them train one fold together; one is cut off in mid-run, and
nothing is lost.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from hosts import NETWORK, Host, hosts, wait_for

from raybone.hpo.journal import Journal
from raybone.storage import Folder

HEAD, FAR = (f"{NETWORK}.{number}" for number in (1, 2))
# What Ray's head says, twice a second: living nodes, where each placement group is, and how many
# CPUs are free.
OBSERVER = """
import json, sys, time, ray
from ray.util import placement_group_table
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
while True:
    nodes = {n["NodeID"]: n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"]}
    groups = [(g["state"], sorted(nodes.get(n, "") for n in g["bundles_to_node_id"].values()))
              for g in placement_group_table().values()]
    print(json.dumps({"nodes": sorted(nodes.values()), "groups": groups,
                      "cpus": ray.available_resources().get("CPU", 0)}), flush=True)
    time.sleep(0.5)
"""


class Cluster:
    """Two hosts, the switch between them, and somebody who watches Ray's head."""

    def __init__(self, head: Host, far: Host) -> None:
        self.head, self.far, self.address = head, far, f"{HEAD}:6379"
        head.ray("--head --port 6379 --include-dashboard=false")
        far.ray(f"--address {self.address}")
        wait_for(lambda: "Ray runtime started" in (head.place / "ray.log").read_text(), 90)
        head.run(sys.executable, "-c", OBSERVER, self.address, out="observer")
        wait_for(lambda: self.seen()["nodes"] == [HEAD, FAR], 90)

    def seen(self) -> dict[str, Any]:
        """The last thing that the observer said."""
        lines = (self.head.place / "observer").read_text().split("\n")[:-1]
        return (
            dict(json.loads(lines[-1]))
            if lines and lines[-1].startswith("{")
            else {"nodes": [], "groups": []}
        )

    def search(self, study: Path, out: Path) -> subprocess.Popen[bytes]:
        """raybone's driver, on the head."""
        return self.head.run(
            sys.executable,
            "-m",
            "raybone",
            "search",
            str(study),
            "--out",
            str(out),
            "--address",
            self.address,
            out=f"{out.name}.log",
        )


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Two hosts of one CPU each that are a Ray cluster."""
    with hosts(2, tmp_path) as made:
        yield Cluster(*made)


def epochs_of(out: Path) -> list[dict[str, Any]]:
    """Finished fold epochs in the journal, in order."""
    return [e for e in Journal(Folder(out)).events() if e["event"] == "epoch"]


def test_a_host_cut_off_in_mid_run_costs_time_and_nothing_else(
    cluster: Cluster, study: dict[str, Any], tmp_path: Path
) -> None:
    study = {
        **study,
        "epochs": 12,
        "resources": {"workers": 2, "cpus": 1},
        "fixed": {**study["fixed"], "batch": 2, "width": 8, "imgsz": 256},
        "search": {**study["search"], "trials": 1},
    }
    file, whole, out = tmp_path / "study.yaml", tmp_path / "whole", tmp_path / "cut"
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    assert cluster.search(file, whole).wait(300) == 0
    assert len(epochs_of(whole)) == 36

    driver = cluster.search(file, out)
    wait_for(lambda: len(epochs_of(out)) >= 10, 300)
    assert ["CREATED", [HEAD, FAR]] in cluster.seen()["groups"]  # one worker on each host
    cluster.far.cable("down")
    wait_for(lambda: cluster.seen()["nodes"] == [HEAD], 120)
    before = epochs_of(out)
    time.sleep(5)
    assert len(before) < 36
    assert epochs_of(out) == before
    assert driver.poll() is None
    cluster.far.cable("up")
    assert driver.wait(300) == 0

    epochs = epochs_of(out)
    assert epochs[: len(before)] == before
    assert sorted((e["fold"], e["epoch"]) for e in epochs) == [
        (f, n) for f in range(3) for n in range(1, 13)
    ]
    # Seconds are a fingerprint: an epoch that was trained again would have others in last.pt than
    # in the journal.
    for fold in range(3):
        state = torch.load(
            out / "runs" / epochs[0]["config_id"] / f"fold{fold}" / "last.pt", weights_only=True
        )
        told = {e["epoch"]: e["seconds"] for e in epochs if e["fold"] == fold}
        assert {e["epoch"]: e["seconds"] for e in state["history"]} == told
    boards = [
        pd.read_csv(p / "leaderboard.csv").drop(
            columns=["train_seconds", "gpu_hours", "images_per_s", "memory_gb", "gpu_use"]
        )
        for p in (out, whole)
    ]
    pd.testing.assert_frame_equal(*boards)

    assert cluster.seen()["nodes"] == [HEAD, FAR]
    wait_for(lambda: {state for state, _ in cluster.seen()["groups"]} == {"REMOVED"}, 30)
    wait_for(lambda: cluster.seen()["cpus"] == 2, 30)
    left = cluster.head.processes() + cluster.far.processes()
    for _ in range(60):
        if not left:
            break
        time.sleep(0.5)
        left = cluster.head.processes() + cluster.far.processes()
    assert left == []
