"""One driver a study: a lease file that its holder renews, and that a dead holder loses."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

from raybone.folder import Folder
from raybone.records import WrongInput

NAME = "lease.json"
EXPIRES = 30.0  # seconds without renewal after which a holder elsewhere counts as dead


class Lease:
    """Held from ``take`` to ``drop``; call ``renew`` at least every EXPIRES / 3 seconds."""

    def __init__(self, study: Folder) -> None:
        self.study = study
        self.token = secrets.token_hex(8)
        self.taken = self.lost = False

    def take(self, wait: float = EXPIRES, poll: float = 0.5) -> None:
        """Take the lease, waiting for a dead holder's to run out.

        Whether a holder on another machine lives is judged by its renewals, as clocks of two machines may differ.

        Args:
            wait: seconds without a renewal after which it counts as dead.
        Raises:
            WrongInput: another driver is alive and renews it.
        """
        first, began = self._read(), time.monotonic()
        while (held := self._read()) and not self._gone(held):
            if _here(held) or held != first:
                raise WrongInput(f"study {self.study.url}: one driver at a time, and process {held['pid']} on "
                                 f"{held['host']} is at work on it; wait, or `raybone stop` it")
            if time.monotonic() - began > wait:
                break
            time.sleep(poll)
        self.renew()
        # Two drivers that found the lease free at once: the later writer keeps it, the other sees that here.
        time.sleep(0.05)
        if (self._read() or {}).get("token") != self.token:
            raise WrongInput(f"study {self.study.url}: another driver took it at the same moment; try again")
        self.taken = True

    def renew(self) -> None:
        """Tell others that this driver lives; sets ``lost`` when another has taken the study over meanwhile."""
        held = self._read()
        if self.taken and held and held["token"] != self.token:
            self.lost = True
            return
        content = {"token": self.token, "host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(),
                   "started": _started(os.getpid()), "time": time.time()}
        self.study.write(NAME, json.dumps(content).encode())

    def drop(self) -> None:
        """Give the lease back, if it is still this driver's."""
        if (self._read() or {}).get("token") == self.token:
            self.study.delete(NAME)

    def holder(self) -> dict[str, Any] | None:
        """The holder, unless it is known to be dead; one elsewhere is by the clocks of both machines."""
        held = self._read()
        if held is None or self._gone(held):
            return None
        return held if _here(held) or time.time() - float(held["time"]) <= EXPIRES else None

    def _read(self) -> dict[str, Any] | None:
        content = self.study.read(NAME)
        try:
            return dict(json.loads(content)) if content else None
        except ValueError:
            return None

    def _gone(self, held: dict[str, Any]) -> bool:
        """Whether the holder was a process of this machine, and is no more."""
        return _here(held) and _started(held["pid"]) != held["started"]


def _here(held: dict[str, Any]) -> bool:
    return bool(held["host"] == socket.gethostname() and held["boot"] == _boot() and _boot())


def _boot() -> str:
    """This boot of this machine, so that a pid of an earlier boot or another container is not taken for ours."""
    path = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    return (path.read_text().strip() + str(space.readlink())) if path.exists() and space.exists() else ""


def _started(pid: int) -> str:
    """Start time of a living process, so that a pid used again is not taken for the holder; empty when dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
