"""One driver a study: a lease file that its holder renews, and that a dead holder loses."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

from raybone.errors import WrongInput
from raybone.storage import Folder

NAME = "lease.json"
EXPIRES = 30.0  # seconds without renewal after which a holder elsewhere counts as dead
FIELDS = {"token": str, "host": str, "boot": str, "pid": int, "started": str}


class Lease:
    """Held from ``take`` to ``drop``; call ``renew`` at least every EXPIRES / 3 seconds."""

    def __init__(self, study: Folder) -> None:
        self.study = study
        self.token = secrets.token_hex(8)
        self.taken = self.lost = False
        self._seen: dict[str, Any] | None = None
        self._since = 0.0  # when that was seen first, by this machine's clock

    def take(self, wait: float = EXPIRES, poll: float = 0.5) -> None:
        """Take the lease, waiting for a dead holder's to run out.

        Whether a holder on another machine lives is judged by its renewals, as clocks of two
        machines may differ.

        Args:
            wait: seconds without a renewal after which it counts as dead.
        Raises:
            WrongInput: another driver is alive and renews it.
        """
        if held := self.holder(wait, poll):
            raise WrongInput(
                f"study {self.study.url}: one driver at a time, and process {held['pid']} on "
                f"{held['host']} is at work on it; wait, or `raybone stop` it"
            )
        self.renew()
        # Two drivers that found the lease free at once: the later writer keeps it, the other sees
        # that here.
        time.sleep(0.05)
        if (self._read() or {}).get("token") != self.token:
            raise WrongInput(
                f"study {self.study.url}: another driver took it at the same moment; try again"
            )
        self.taken = True

    def renew(self) -> None:
        """Tell others that this driver lives; sets ``lost`` when another has taken the study over
        meanwhile.
        """
        held = self._read()
        if self.taken and held and held["token"] != self.token:
            self.lost = True
            return
        content = {
            "token": self.token,
            "host": socket.gethostname(),
            "boot": _boot(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "time": time.time(),
        }
        self.study.write(NAME, json.dumps(content).encode())

    def drop(self) -> None:
        """Give the lease back, if it is still this driver's."""
        if (self._read() or {}).get("token") == self.token:
            self.study.delete(NAME)

    def holder(self, wait: float = 0.0, poll: float = 0.5) -> dict[str, Any] | None:
        """The holder, unless it is known to be dead; one elsewhere is when this reader sees no
        renewal for EXPIRES.

        Args:
            wait: seconds to look for a renewal before that is said; 0, for who asks again and
                again, does not wait.
        """
        while (held := self._read()) and not self._gone(held):
            now, renewed = time.monotonic(), self._seen not in (None, held)
            if held != self._seen:
                self._seen, self._since = held, now
            if _here(held) or renewed:
                return held
            if now - self._since > (wait or EXPIRES):
                return None
            if not wait:
                return held
            time.sleep(poll)
        return None

    def _read(self) -> dict[str, Any] | None:
        """What the file says; a damaged one counts as free, as a living holder writes it anew."""
        try:
            held = json.loads(self.study.read(NAME) or b"null")
        except (ValueError, RecursionError):
            return None
        sound = isinstance(held, dict) and all(
            isinstance(held.get(name), kind) for name, kind in FIELDS.items()
        )
        return held if sound else None

    def _gone(self, held: dict[str, Any]) -> bool:
        """Whether the holder was a process of this machine, and is no more."""
        return _here(held) and _started(held["pid"]) != held["started"]


def _here(held: dict[str, Any]) -> bool:
    return bool(held["host"] == socket.gethostname() and held["boot"] == _boot() and _boot())


def _boot() -> str:
    """This boot of this machine, so that a pid of an earlier boot or another container is not taken
    for ours.
    """
    path = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    return (
        (path.read_text().strip() + str(space.readlink()))
        if path.exists() and space.exists()
        else ""
    )


def _started(pid: int) -> str:
    """Start time of a living process, so that a pid used again is not taken for the holder; empty
    when dead.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
