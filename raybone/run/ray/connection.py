"""Connecting to a Ray cluster, or to one of this machine's own."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray._private import ray_constants

from raybone.data.ingest.parallel import cores
from raybone.errors import WrongInput
from raybone.run.ray.access import check
from raybone.run.ray.hub import NAMESPACE

# A socket's name may have 107 bytes, and Ray's end in
# /session_DATE_TIME_MICROSECONDS_PID/sockets/plasma_store.
LONGEST = (
    107
    - len("/raybone-xxxxxxxx/r")
    - len("/session_2026-11-28_22-52-46_101842_4194304/sockets/plasma_store")
)
SHORT = ("/tmp", "/var/tmp", "/dev/shm")
IN_RAY = "in Ray"


@contextlib.contextmanager
def connection(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one for the run that no other user of this machine or outside
    can reach.

    Raises:
        WrongInput: nothing answers at the address, or no folder has a name that is short enough.
    """
    if ray.is_initialized():
        yield
        return
    asked = "--address" if address else "RAY_ADDRESS"
    address = address or os.environ.get("RAY_ADDRESS")
    if address and address.startswith(("http://", "https://")):
        raise WrongInput(
            f"{asked} {address}: is a dashboard, where `raybone submit` sends jobs; to search from "
            "here give HOST:6379 of the cluster, or unset RAY_ADDRESS for a Ray of this machine"
        )
    on_term = signal.getsignal(signal.SIGTERM)
    with contextlib.ExitStack() as stack:
        folder = "" if address else stack.enter_context(_alone())
        stack.callback(_leave)
        with _blocked(signal.SIGTERM, signal.SIGHUP):
            if address:
                _join(address, asked)
            else:
                _start(f"{folder}/r")
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_term)  # Ray's own prints a stack and aborts
        yield


def in_ray(run: Callable[..., None], *words: str) -> threading.Thread:
    """A thread for a run of Ray Train; a daemon, as Ctrl-C waits for no training."""
    return threading.Thread(target=run, args=words, name=IN_RAY, daemon=True)


def _leave() -> None:
    """Disconnect, unless a thread is still in Ray: its end would be that of this process, without
    its exit code.
    """
    if all(thread.name != IN_RAY for thread in threading.enumerate()):
        ray.shutdown()


def _join(address: str, asked: str) -> None:
    """Connect to the cluster at an address that was given by an option or a variable."""
    try:
        check(address)
        ray.init(address=address, **_quiet())
    except WrongInput:
        raise
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise WrongInput(
            f"{asked} {address}: a Ray cluster must answer there, but: "
            f"{' '.join(str(error).split())[:200]}; check the address"
        ) from None


@contextlib.contextmanager
def _alone() -> Iterator[str]:
    """What a Ray that no other user reaches needs while it runs: a closed folder, in which it opens
    its own to everybody, and its switch.
    """
    folder = _folder()
    try:
        # For a Ray that no other host joins: else it takes 127.0.0.1 for this host's address in the
        # network, and listens on every interface. The switch is read when ray is imported, and a
        # user may have done that: hence the private name.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        ray_constants.ENABLE_RAY_CLUSTER = False
        yield folder
    finally:
        os.environ.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", None)
        ray_constants.ENABLE_RAY_CLUSTER = True
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: str) -> None:
    """Start a Ray of this machine's own, with its files in a folder."""
    # With no mode set, Ray turns token authentication on, and takes this token instead of writing
    # one to HOME.
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(
        address="local",
        num_cpus=cores(),
        include_dashboard=False,
        _temp_dir=folder,
        object_store_memory=200 * 2**20,
        _node_ip_address="127.0.0.1",
        _system_config={"enable_metrics_collection": False},
        **_quiet(),
    )


@contextlib.contextmanager
def _blocked(*signals: signal.Signals) -> Iterator[None]:
    """Signals that wait for the end of the block, and that processes begun in it never hear.

    As Ray does with Ctrl-C: what a batch system tells every process is for the driver to heed.
    Ray's driver ends its process at once, with 1, when it misses the processes that it started.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _quiet() -> dict[str, Any]:
    """What every ``ray.init`` is called with."""
    return {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "namespace": NAMESPACE,
        "runtime_env": {"env_vars": _environment()},
    }


def _folder() -> str:
    """A new folder for Ray that only this user can enter, in the temporary one or, if its name is
    long, in another.
    """
    usual = tempfile.gettempdir()
    for parent in (usual, *SHORT):
        with contextlib.suppress(OSError):
            if len(os.fsencode(parent)) <= LONGEST:
                return tempfile.mkdtemp(prefix="raybone-", dir=parent)
    raise WrongInput(
        f"TMPDIR {usual}: must be a name of at most {LONGEST} bytes, as a local Ray has sockets "
        f"below it, and {', '.join(SHORT)} cannot be written; set TMPDIR to a shorter one"
    )


def _environment() -> dict[str, str]:
    """Environment of every process of the run: raybone's Ray settings, and threads that do not
    starve each other.
    """
    kinds = ("RAY_TRAIN_", "RAY_USAGE_", "TUNE_")
    return {**{n: v for n, v in os.environ.items() if n.startswith(kinds)}, "OMP_NUM_THREADS": "1"}
