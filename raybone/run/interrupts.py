"""A search that a signal ends: it finishes its epochs if there is time, and writes what it has."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from raybone.errors import EndReason

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Kubernetes and batch systems kill 30 s after SIGTERM; the slots take some of them to end.
GRACE_SECONDS = 12.0
LAST_SECONDS = 26.0


@contextlib.contextmanager
def heeding(stop: Callable[[EndReason], None]) -> Iterator[None]:
    """For the time of the block, the first signal calls ``stop``; what it would have done at once
    is done at the end of the block.

    A second signal does so at once, as do ``GRACE_SECONDS`` after one that is not Ctrl-C. The
    process is over ``LAST_SECONDS`` after that: where Ray's processes had the same signal, leaving
    Ray takes minutes, and all that counts is in the journal.
    """
    usual = {number: signal.getsignal(number) for number in SIGNALS}
    usual = {number: do for number, do in usual.items() if do not in (None, signal.SIG_IGN)}
    alarm = signal.getsignal(signal.SIGALRM)
    if threading.current_thread() is not threading.main_thread():
        usual.clear()
    heard = list[int]()

    def first(number: int, _: object) -> None:
        restore()
        heard.append(number)
        if number != signal.SIGINT:
            signal.signal(signal.SIGALRM, late)
            signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)
            end = threading.Timer(LAST_SECONDS, os._exit, (128 + number,))
            end.daemon = True
            end.start()
        stop(EndReason("interrupted", f"by {signal.Signals(number).name}"))

    def late(*_: Any) -> None:
        signal.raise_signal(heard[0])

    def restore() -> None:
        for number, do in usual.items():
            signal.signal(number, do)

    for number in usual:
        signal.signal(number, first)
    try:
        yield
    finally:
        if heard:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, alarm)
        restore()
    if heard:
        signal.raise_signal(heard[0])
