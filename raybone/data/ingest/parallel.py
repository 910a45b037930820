"""The same work on many inputs in other processes: in order, in flat memory, surviving the death of
a process and ending what hangs.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessPool

from raybone.errors import MachineFault

Item = TypeVar("Item")
Result = TypeVar("Result")
SECONDS = 120.0  # that the work on one item may take
AHEAD = 16  # items a process that are sent before the first of them is done


@dataclass(frozen=True)
class Ended:
    """Stands for the result of an item whose process was ended, with the reason."""

    reason: str


def spread(
    work: Callable[[Item], Result], items: Sequence[Item], processes: int
) -> Generator[Result | Ended]:
    """Yields ``work(item)`` for each item, in order; only some results are in memory.

    An item that crashes its process, or is at work for more than SECONDS, costs no other item its
    result. Closing it before its end, as an interruption does, ends the processes at once.

    Args:
        work: a function of a module.
        processes: how many work at once.
    Raises:
        MachineFault: the machine ends the processes before they are at work.
        Exception: what ``work`` raises.
    """
    _serve()
    pool = ProcessPool(max(1, processes), initializer=_hush, context=_Context())
    sent = deque[Future[Result]]()
    try:
        for item in items:
            sent.append(pool.schedule(work, (item,), timeout=SECONDS))
            if len(sent) == AHEAD * processes:
                yield _result(sent.popleft())
        while sent:
            yield _result(sent.popleft())
    except BrokenProcessPool:
        raise MachineFault(
            "the processes that read scans are ended by this machine before they begin; free "
            "memory, then try again"
        ) from None
    finally:
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()


def _result(future: Future[Any]) -> Any:
    try:
        return future.result()
    except ProcessExpired:
        return Ended("ended the process that read it: a decoder crashed")
    except TimeoutError as error:
        if isinstance(error.errno, int):  # the system's own, of a storage that is away
            raise
        return Ended(f"took over {SECONDS:g} s to read")


def cores(groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: those it is bound to, or what the CPU quotas of its control
    groups come to.

    Args:
        groups, mount: where Linux tells of control groups, v1 or v2.
    """
    quotas = [int(quota) for quota in _quotas(groups, mount)]
    return max(1, min([len(os.sched_getaffinity(0)), *quotas]))


def _quotas(groups: Path, mount: Path) -> Iterator[float]:
    """Cores that each control group around this process may use, where that is limited."""
    for line in groups.read_text(encoding="utf-8").splitlines() if groups.is_file() else ():
        kinds, _, path = line.partition(":")[2].partition(":")
        if kinds and "cpu" not in kinds.split(","):
            continue
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if kinds else ("cpu.max",)
        top, below = mount / ("cpu" * bool(kinds)), PurePath(path.lstrip("/"))
        for place in (
            below,
            *below.parents,
        ):  # a container may see only the last of them, at the top
            with contextlib.suppress(OSError, ValueError):  # no such group here, or no limit: "max"
                quota, period = (
                    int(word) for name in names for word in (top / place / name).read_text().split()
                )
                if quota > 0 < period:
                    yield quota / period


class _Reader(ForkServerProcess):
    """A process without a __main__ to import: it may be a script, and may import much."""

    def start(self) -> None:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = main


class _Context(ForkServerContext):
    # Not fork: the caller may hold threads of Ray or torch.
    Process = _Reader


def _serve() -> None:
    """Start the server, if there is none yet, deaf and dumb: a Ctrl-C or hang-up is told of by this
    process alone.
    """
    # Processes are forked from it, so that they import once.
    forkserver.set_forkserver_preload(["raybone.data.ingest.read"])
    unblocked, own = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP}), os.dup(2)
    try:
        _silence(2)
        resource_tracker.ensure_running()  # which unblocks SIGINT itself
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        forkserver.ensure_running()
    finally:
        os.dup2(own, 2)
        os.close(own)
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)


def _hush() -> None:
    """Decoders and readers speak of what they read, on any channel they know: their processes are
    silent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Pebble's own handler would run when a decoder comes back to Python.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    _silence(1, 2)
    threading.Thread(target=_follow, daemon=True).start()


def _silence(*streams: int) -> None:
    with Path(os.devnull).open("wb") as nothing:
        for stream in streams:
            os.dup2(nothing.fileno(), stream)


def _follow() -> None:
    """End with the process that this one reads for: the pool waits for ever when that was
    killed.
    """
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
