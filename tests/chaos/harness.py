"""A Ray cluster of this test's own, a driver on it, and the faults that are injected into both."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
    FakeMultiNodeProvider,
)

from raybone.hpo.journal import Journal
from raybone.hpo.state import State
from raybone.storage import Folder

TIMING = ["train_seconds", "gpu_hours", "images_per_s", "memory_gb", "gpu_use"]
PATIENCE = 600.0  # seconds for anything that must happen


def until(what: Callable[[], object], seconds: float = PATIENCE, wanted: str = "it") -> None:
    """Wait for something to be true."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"{wanted} did not happen within {seconds:.0f} s"
        time.sleep(0.1)


class Cluster:
    """A head without CPUs and nodes of one CPU each, every one a process group, with a token and
    ports of its own.
    """

    def __init__(
        self, nodes: int = 2, num_gpus: int = 0, autoscaled: int = 0, **environment: str
    ) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="rbc-", dir="/tmp"))
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
            "OMP_NUM_THREADS": "1",
            "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "15",
        }
        # The last one is of the Ray that other tests share, which no node joins.
        for name in ("RAY_ADDRESS", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
            self.environment.pop(name, None)
        self.environment.update(environment)
        self.count, self.num_gpus, self.autoscaled = nodes, num_gpus, autoscaled
        self.head: subprocess.Popen[bytes] | None = None
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.start()

    def start(self) -> None:
        """Start the head and its nodes."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        autoscaler = [f"--autoscaling-config={self._autoscaler()}"] if self.autoscaled else []
        self.head = self._ray(
            "--head",
            f"--port={port}",
            "--num-cpus=0",
            f"--temp-dir={self.place}",
            "--include-dashboard=false",
            *autoscaler,
        )
        until(lambda: _listens(port), wanted="the head's start")
        for _ in range(self.count):
            self.join()

    def _autoscaler(self) -> Path:
        """Ray's autoscaler v2 with its provider for tests, whose nodes are processes of this
        machine.
        """
        self.environment.update(
            RAY_FAKE_CLUSTER="1",
            AUTOSCALER_UPDATE_INTERVAL_S="1",
            RAY_enable_autoscaler_v2="1",
            RAY_CLOUD_INSTANCE_ID=FAKE_HEAD_NODE_ID,
            RAY_OVERRIDE_NODE_ID_FOR_TESTING=FAKE_HEAD_NODE_ID,
        )
        node = {
            "resources": {"CPU": 1, "object_store_memory": 100000000},
            "node_config": {},
            "min_workers": 0,
            "max_workers": self.autoscaled,
        }
        # As an external one: Ray's wheels lack the defaults of its own name.
        provider = {
            "type": "external",
            "module": f"{FakeMultiNodeProvider.__module__}.FakeMultiNodeProvider",
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": self.address,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
        }
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        unused = (
            "setup_commands",
            "head_setup_commands",
            "worker_setup_commands",
            "cluster_synced_files",
        )
        path = self.place / "autoscaler.json"
        path.write_text(
            json.dumps(
                {
                    "cluster_name": "fake",
                    "max_workers": self.autoscaled,
                    "idle_timeout_minutes": 0.1,
                    "provider": provider,
                    "head_node_type": FAKE_HEAD_NODE_TYPE,
                    "available_node_types": {FAKE_HEAD_NODE_TYPE: head, "worker": node},
                    **{name: [] for name in unused},
                }
            )
        )
        return path

    def complete(self) -> None:
        """As many nodes as there should be: on a busy machine one may give up while it starts."""
        self.nodes = [node for node in self.nodes if node.poll() is None]
        while len(self.nodes) < self.count:
            self.join()

    def join(self) -> None:
        """A node joins."""
        self.nodes.append(
            self._ray(f"--address={self.address}", "--num-cpus=1", f"--num-gpus={self.num_gpus}")
        )

    def _ray(self, *options: str) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--block",
            "--disable-usage-stats",
            "--object-store-memory=100000000",
            *options,
        ]
        with (self.place / "ray.log").open("ab") as log:
            return subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def processes(self, *names: str) -> list[psutil.Process]:
        """Living processes of the cluster whose command line begins with one of the names."""
        found = []
        for process in psutil.process_iter(["cmdline", "environ", "status"]):
            line = " ".join(process.info["cmdline"] or ())
            mine = (process.info["environ"] or {}).get("RAY_AUTH_TOKEN") == self.environment[
                "RAY_AUTH_TOKEN"
            ]
            if (
                mine
                and line.startswith(names or ("",))
                and process.info["status"] != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
        return found

    def kill(self, popen: subprocess.Popen[bytes]) -> None:
        """End a head or a node with all its processes at once, as a machine that loses its
        power.
        """
        for process in [
            psutil.Process(popen.pid),
            *psutil.Process(popen.pid).children(recursive=True),
        ]:
            with _gone():
                process.kill()
        popen.wait()

    def raylets(self) -> list[psutil.Process]:
        """The raylets of the nodes, not of the head."""
        living = [psutil.Process(node.pid) for node in self.nodes if node.poll() is None]
        return [p for node in living for p in node.children(recursive=True) if p.name() == "raylet"]

    def end(self) -> None:
        """End all that this cluster has started."""
        for process in self.processes():
            if process.pid != os.getpid():
                with _gone():
                    process.kill()
        for popen in [self.head, *self.nodes]:
            if popen:
                popen.wait()


class Trained:
    """Counts how often each fold's ``last.pt`` is written anew, which is once an epoch that was
    trained to its end.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.counts, self._seen = out, Counter[str](), dict[str, int]()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> Counter[str]:
        """Stop counting."""
        self._over.set()
        self._thread.join()
        return self.counts

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            for path in self.out.glob("runs/*/fold*/last.pt"):
                with _gone():
                    made, name = path.stat().st_mtime_ns, str(path.relative_to(self.out))
                    if self._seen.get(name) != made:
                        self._seen[name] = made
                        self.counts[name] += 1


class Driver:
    """`raybone search` on the cluster, in a process of its own, started again whenever a fault ends
    it.
    """

    def __init__(
        self, cluster: Cluster, study: Path, out: Path, *options: str, log: Path | None = None
    ) -> None:
        self.cluster, self.study, self.out, self.options = cluster, study, out, options
        self.log = log or out.with_suffix(".log")
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Start or resume."""
        self.starts += 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "raybone",
                    "search",
                    str(self.study),
                    "--out",
                    str(self.out),
                    "--address",
                    self.cluster.address,
                    "--wait",
                    "3",
                    *self.options,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.cluster.environment,
                start_new_session=True,
            )

    def wait(self) -> int:
        """The exit code."""
        return self.process.wait(PATIENCE)


def events(out: Path) -> list[dict[str, object]]:
    """The journal so far."""
    return list(Journal(Folder(out)).events()) if (out / "journal").exists() else []


def progress(out: Path) -> tuple[dict[str, int], list[str]]:
    """Fold epochs by configuration, and the configurations at work."""
    state = State(events(out))
    return (
        {c.id: sum(map(len, c.epochs.values())) for c in state.configurations.values()},
        [c.id for c in state.running],
    )


def table(out: Path) -> pd.DataFrame:
    """The leaderboard without its timing columns."""
    return pd.read_csv(out / "leaderboard.csv").drop(columns=TIMING)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class _gone:  # noqa: N801
    """A process or file that is gone by now is fine."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, *_: object) -> bool:
        return kind is not None and issubclass(
            kind, psutil.NoSuchProcess | FileNotFoundError | ProcessLookupError
        )
