"""The same work on many inputs in other processes: in order, in flat memory, surviving the death of a process."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
CHUNK = 16  # items sent at once: fewer make the sending dearer, more make the progress coarser


@dataclass(frozen=True)
class Died:
    """Stands for the result of an item whose process died at work, such as a decoder that crashed."""


def spread(work: Callable[[Item], Result], items: Sequence[Item], processes: int) -> Iterator[Result | Died]:
    """``work(item)`` for each item, in order; at most a few chunks are in memory.

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
        # Any of the items sent may be the one that kills: each gets a process of its own, then the rest goes on.
        for chunk in [c for c, _ in sent]:
            for item in chunk:
                yield _alone(work, item)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _alone(work: Callable[[Item], Result], item: Item) -> Result | Died:
    with _pool(1) as pool:
        try:
            return _submit(pool, work, item).result()
        except BrokenProcessPool:
            return Died()


def _pool(processes: int) -> ProcessPoolExecutor:
    # Not fork: the caller may hold threads of Ray or torch. The server that workers are forked from imports once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["raybone.prepare"])
    return ProcessPoolExecutor(processes, context, _hush)


def _submit(pool: ProcessPoolExecutor, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Submit without a __main__ that the new processes would import: it may be a script, and may import much."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        return pool.submit(work, *arguments)
    finally:
        sys.modules["__main__"] = main


def _chunk(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [work(item) for item in items]


def _hush() -> None:
    """Decoders and readers speak of what they read, on any channel they know: their processes are silent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
