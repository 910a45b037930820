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
from collections.abc import Iterator

import ray

from raybone.cluster.access import check
from raybone.cluster.hub import NAMESPACE
from raybone.data.parallel import cores
from raybone.records import WrongInput


@contextlib.contextmanager
def connection(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one for the run with a folder, ports and a token of its own.

    Raises:
        WrongInput: nothing answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    asked = "--address" if address else "RAY_ADDRESS"
    address = address or os.environ.get("RAY_ADDRESS")
    if address and address.startswith(("http://", "https://")):
        raise WrongInput(f"{asked} {address}: is a dashboard, where `raybone submit` sends jobs; to search from here "
                         "give HOST:6379 of the cluster, or unset RAY_ADDRESS for a Ray of this machine")
    on_term = signal.getsignal(signal.SIGTERM)
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "namespace": NAMESPACE,
             "runtime_env": {"env_vars": _environment()}}
    place = None
    try:
        if address:
            try:
                check(address)
                ray.init(address=address, **quiet)
            except WrongInput:
                raise
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise WrongInput(f"{asked} {address}: a Ray cluster must answer there, but: "
                                 f"{' '.join(str(error).split())[:200]}; check the address") from None
        else:
            # With no mode set, Ray turns token authentication on, and takes this token instead of writing one to HOME.
            if "RAY_AUTH_TOKEN_PATH" not in os.environ:
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            place = tempfile.mkdtemp(prefix="raybone-")
            ray.init(address="local", num_cpus=cores(), include_dashboard=False, _temp_dir=place,
                     object_store_memory=200 * 2**20, **quiet)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_term)  # Ray's own prints a stack and aborts
        yield
    finally:
        ray.shutdown()
        if place:
            shutil.rmtree(place, ignore_errors=True)


def _environment() -> dict[str, str]:
    """Environment of every process of the run: raybone's Ray settings, and threads that do not starve each other."""
    kinds = ("RAY_TRAIN_", "RAY_USAGE_", "TUNE_")
    return {**{n: v for n, v in os.environ.items() if n.startswith(kinds)}, "OMP_NUM_THREADS": "1"}
