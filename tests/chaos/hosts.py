"""What processes take for machines: hosts on a switch, of network and other namespaces."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

NETWORK = "10.77.0"
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


@contextlib.contextmanager
def hosts(count: int, place: Path) -> Iterator[list[Host]]:
    """Hosts on one switch, or a skip that says what is missing."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"hosts need {', '.join(missing)} (iproute2, util-linux)")
    switch, made = f"rb{os.getpid()}", list[Host]()
    try:
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
    except subprocess.CalledProcessError as error:
        subprocess.run(["ip", "netns", "delete", switch], capture_output=True)
        pytest.skip(f"hosts need root with CAP_NET_ADMIN and CAP_SYS_ADMIN: {error.stderr.strip()}")
    try:
        for number in range(1, count + 1):
            made.append(Host(switch, number, place))
        yield made
    finally:
        for host in made:
            host.switch_off()
        for name in (switch, *(host.name for host in made)):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def wait_for(condition: Callable[[], Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.1)
