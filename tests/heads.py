"""A Ray cluster as somebody else set it up: with a token, a dashboard, and without a raybone that
works.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray

ROOT = Path(__file__).resolve().parents[1]
RAY = Path(sys.executable).with_name("ray")


@dataclass
class Head:
    """A running cluster of one node with two CPUs."""

    url: str
    gcs: str
    token: str
    place: Path

    def command(self, *words: object, **environment: str) -> subprocess.Popen[str]:
        """Start a command as a person on another machine would: another HOME, the token alone."""
        return subprocess.Popen(
            [str(w) for w in words],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=elsewhere(self.place, {"RAY_AUTH_TOKEN": self.token, **environment}),
        )

    def raybone(self, *words: object, **environment: str) -> subprocess.Popen[str]:
        """Start the command line from there."""
        return self.command(sys.executable, "-m", "raybone", *words, **environment)


def elsewhere(place: Path, more: dict[str, str]) -> dict[str, str]:
    """The environment of another user, without what is empty."""
    home = place / "home"
    home.mkdir(exist_ok=True)
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHONPATH"))}
    return {
        k: v for k, v in {**bare, "HOME": str(home), "PYTHONPATH": str(ROOT), **more}.items() if v
    }


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output of a command."""
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


@contextlib.contextmanager
def running_head() -> Iterator[Head]:
    """Sockets need a short path; the broken raybone is found first on the node, unless a job brings
    its own.
    """
    with tempfile.TemporaryDirectory(prefix="rj-", ignore_cleanup_errors=True) as folder:
        place, token = Path(folder), secrets.token_hex(16)
        (place / "own" / "raybone").mkdir(parents=True)
        (place / "own" / "raybone" / "__init__.py").write_text(
            "raise ImportError('the raybone of the node')"
        )
        with contextlib.ExitStack() as stack:
            kept = [stack.enter_context(socket.create_server(("", 0))) for _ in range(4)]
            ports = [s.getsockname()[1] for s in kept]
        names = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
        bins = f"{RAY.parent}:{os.environ['PATH']}"
        process = subprocess.Popen(
            [
                str(RAY),
                "start",
                "--head",
                "--block",
                "--num-cpus=2",
                "--object-store-memory=200000000",
                f"--temp-dir={place}/ray",
                "--include-dashboard=true",
                *(f"--{n}={p}" for n, p in zip(names, ports)),
            ],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=elsewhere(
                place,
                {
                    "PATH": bins,
                    "PYTHONPATH": f"{place}/own",
                    "RAY_AUTH_MODE": "token",
                    "RAY_AUTH_TOKEN": token,
                    "RAY_USAGE_STATS_ENABLED": "0",
                    "OMP_NUM_THREADS": "1",
                },
            ),
        )
        made = Head(
            f"http://127.0.0.1:{ports[1]}",
            f"{ray.util.get_node_ip_address()}:{ports[0]}",
            token,
            place,
        )
        try:
            wait_for(lambda: answers(made), process)
            yield made
        finally:
            mine = [psutil.Process(process.pid)]
            mine += mine[0].children(recursive=True)
            process.terminate()
            for left in psutil.wait_procs(mine, timeout=3)[1]:
                with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                    left.kill()
            process.wait()


def answers(head: Head) -> bool:
    """Whether the job server is there."""
    request = urllib.request.Request(
        f"{head.url}/api/jobs/", headers={"Authorization": f"Bearer {head.token}"}
    )
    try:
        return bool(urllib.request.urlopen(request, timeout=5).status == 200)
    except OSError:
        return False


def wait_for(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Look ten times a second until it is true, as long as the process lives and for three
    minutes.
    """
    deadline = time.monotonic() + 180
    while not true() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    assert true(), process.stdout and process.stdout.read()
