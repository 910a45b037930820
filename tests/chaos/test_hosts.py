"""Two hosts with a network between them train one fold together; one is cut off in mid-run, and
nothing is lost.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
import yaml

from raybone.hpo.journal import Journal
from raybone.storage import Folder

NETWORK, HEAD, FAR = "10.77.0", "10.77.0.1", "10.77.0.2"
TOOLS = ("ip", "unshare", "nsenter", "mount", "hostname")
# Both sides of a cut notice it in seconds instead of in a minute, and nobody has a token lying
# about.
SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # the tests' own Ray turns it off, for itself
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
# Titles of processes that a cluster has without any job; the last is Ray Train's, one for all jobs
# and for ever.
RESTING = (
    "ray::IDLE",
    "ray::DashboardAgent",
    "ray::RuntimeEnvAgent",
    "ray::_AutoscalingCoordinatorActor",
)
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


class Host:
    """What a process takes for a machine: name, address, processes, /dev/shm, Ray's files, a cable
    to the switch.

    Its /etc/hosts says that its name is 127.0.1.1, as Debian's does. The disk is the same for all
    hosts.
    """

    def __init__(self, switch: str, number: int, place: Path) -> None:
        self.switch, self.port = switch, f"port{number}"
        self.name, self.address, self.place = (
            f"{switch}-{number}",
            f"{NETWORK}.{number}",
            place / f"host{number}",
        )
        (self.place / "ray").mkdir(parents=True)
        (self.place / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 host{number}\n")
        ip("netns", "add", self.name)
        ip(
            "link",
            "add",
            "name",
            "eth0",
            "netns",
            self.name,
            "type",
            "veth",
            "peer",
            "name",
            self.port,
            "netns",
            switch,
        )
        ip("-n", switch, "link", "set", self.port, "master", "bridge", "up")
        ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            ip("-n", self.name, "link", "set", link, "up")
        boot = (
            f"cd {self.place} && mount --bind hosts /etc/hosts && mount -t tmpfs tmpfs /dev/shm && "
            f"mkdir -p /tmp/ray && mount --bind ray /tmp/ray && hostname host{number} && touch up "
            "&& exec sleep infinity"
        )
        self.power = subprocess.Popen(
            [
                "ip",
                "netns",
                "exec",
                self.name,
                "unshare",
                "--uts",
                "--pid",
                "--fork",
                "--mount-proc",
                "--kill-child",
                "sh",
                "-ec",
                boot,
            ]
        )
        wait_for(lambda: (self.place / "up").exists() or self.power.poll() is not None, 20)
        self.init = psutil.Process(self.power.pid).children()[0].pid

    def run(self, *command: str, out: str) -> subprocess.Popen[bytes]:
        """Start a command here; what it says goes to that file of the host's folder."""
        with (self.place / out).open("ab") as file:
            return subprocess.Popen(
                ["nsenter", "-t", str(self.init), "-n", "-m", "-u", "-p", "--", *command],
                stdout=file,
                stderr=file,
                env={**os.environ, **SETTINGS},
            )

    def ray(self, role: str) -> None:
        """Be a node of the cluster, and one again whenever Ray ends, as under systemd or
        Kubernetes.
        """
        start = (
            f"{Path(sys.executable).parent}/ray start {role} --node-ip-address {self.address} "
            "--num-cpus 1 --object-store-memory 100000000 --disable-usage-stats --block"
        )
        self.run("sh", "-c", f"while :; do {start}; sleep 1; done", out="ray.log")

    def cable(self, state: str) -> None:
        """Pull the cable out of the switch (down): packets vanish and nobody is told. Or put it in
        (up).
        """
        ip("-n", self.switch, "link", "set", self.port, state)

    def processes(self) -> list[str]:
        """Titles of Ray's processes here that work for somebody."""
        here, titles = os.readlink(f"/proc/{self.init}/ns/net"), []  # noqa: PTH115
        for process in psutil.process_iter():
            try:
                if os.readlink(f"/proc/{process.pid}/ns/net") == here:  # noqa: PTH115
                    titles.append(" ".join(process.cmdline()))
            except (OSError, psutil.Error):
                continue
        return [t for t in titles if t.startswith("ray::") and not t.startswith(RESTING)]

    def switch_off(self) -> None:
        """All of its processes die at once."""
        self.power.kill()
        self.power.wait()


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


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def wait_for(condition: Callable[[], Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.1)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Two hosts of one CPU each that are a Ray cluster, or a skip that says what is missing."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"two hosts need {', '.join(missing)} (iproute2, util-linux)")
    switch, hosts = f"rb{os.getpid()}", list[Host]()
    try:
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
    except subprocess.CalledProcessError as error:
        subprocess.run(["ip", "netns", "delete", switch], capture_output=True)
        pytest.skip(
            f"two hosts need root with CAP_NET_ADMIN and CAP_SYS_ADMIN: {error.stderr.strip()}"
        )
    try:
        for number in (1, 2):
            hosts.append(Host(switch, number, tmp_path))
        yield Cluster(*hosts)
    finally:
        for host in hosts:
            host.switch_off()
        for name in (switch, f"{switch}-1", f"{switch}-2"):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


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
