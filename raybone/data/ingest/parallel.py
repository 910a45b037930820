"""The same work on many inputs in other processes: in order, in flat memory, surviving the death of
a process.
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
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
CHUNK = 16  # items sent at once: fewer make the sending dearer, more make the progress coarser


@dataclass(frozen=True)
class Died:
    """Stands for the result of an item whose process died at work, such as a decoder that
    crashed.
    """


def spread(
    work: Callable[[Item], Result], items: Sequence[Item], processes: int
) -> Generator[Result | Died]:
    """``work(item)`` for each item, in order; at most a few chunks are in memory.

    Closing it before its end, as an interruption does, ends the processes at once.

    Args:
        work: a function of a module, which returns and never raises.
        processes: how many work at once.
    """
    waiting = deque(items[i : i + CHUNK] for i in range(0, len(items), CHUNK))
    while waiting:
        sent: deque[tuple[Sequence[Item], Future[list[Result]]]] = deque()
        with _pool(processes) as pool:
            try:
                while waiting or sent:
                    while waiting and len(sent) < 2 * processes:
                        sent.append((waiting[0], _submit(pool, _chunk, work, waiting[0])))
                        waiting.popleft()
                    yield from sent[0][1].result()
                    sent.popleft()
            except BrokenProcessPool:
                pass
        # Any of the items sent may be the one that kills: each gets a process of its own, then the
        # rest goes on.
        for chunk in [c for c, _ in sent]:
            for item in chunk:
                yield _alone(work, item)


def cores(groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: those it is bound to, or what the CPU quotas of its control
    groups come to.

    Args:
        groups, mount: where Linux tells of control groups, v1 or v2.
    """
    bound = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min([bound, *(int(quota) for quota in _quotas(groups, mount))]))


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


def _alone(work: Callable[[Item], Result], item: Item) -> Result | Died:
    with _pool(1) as pool:
        try:
            return _submit(pool, work, item).result()
        except BrokenProcessPool:
            return Died()


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """A pool that is waited for when its work is done, and whose processes are killed when it is
    left before.
    """
    # Not fork: the caller may hold threads of Ray or torch. The server that workers are forked from
    # imports once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["raybone.data.ingest.prepare"])
    _serve()
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, context, _hush)
    try:
        yield pool
    except BaseException:  # an interruption among them: nobody needs what is still being read
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    pool.shutdown()


def _serve() -> None:
    """Start the server, if there is none yet, deaf and dumb: a Ctrl-C or hang-up is told of by this
    process alone.
    """
    unblocked, own = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP}), os.dup(2)
    try:
        resource_tracker.ensure_running()  # which unblocks SIGINT itself
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 2)
        os.close(nothing)
        forkserver.ensure_running()
    finally:
        os.dup2(own, 2)
        os.close(own)
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)


def _submit(pool: ProcessPoolExecutor, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Submit without a __main__ that the new processes would import: it may be a script, and may
    import much.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        return pool.submit(work, *arguments)
    finally:
        sys.modules["__main__"] = main


def _chunk(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [work(item) for item in items]


def _hush() -> None:
    """Decoders and readers speak of what they read, on any channel they know: their processes are
    silent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    """End with the process that this one reads for: the pool waits for ever when that was
    killed.
    """
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
