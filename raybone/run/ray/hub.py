"""A named actor between the driver, Tune's trials and the slots: work flows to the slots, epochs to
the driver, and what a rung gave to the trial.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import ray
from ray.util.placement_group import PlacementGroup

from raybone.hpo.brain import Work
from raybone.types import Epoch, Pooled, Segment

NAMESPACE = "raybone"
RETRIES = 2  # of a work whose slots died without an epoch since the last one did
CLAIM_SECONDS = 1.0  # that a slot waits for work before it asks again
IDLE_SECONDS = 60.0  # without work after which a slot retires, so that an autoscaler may take nodes
Outcome = Literal["done", "interrupted", "dropped", "failed", "halt"]
Metrics = dict[str, float]


@dataclass(frozen=True)
class Task:
    """What a slot does next: a segment to train, or None to pool what all folds have found."""

    work: Work
    segment: Segment | None


@dataclass(frozen=True)
class Ended:
    """How a slot's task ended; ``pooled`` once the last fold of a configuration is there."""

    outcome: Outcome = "done"
    reason: str = ""
    pooled: Pooled | None = None


@dataclass(frozen=True)
class Said:
    """What the driver learns at each look.

    messages: epochs, pooled metrics and deaths since the last look. open: segments that no slot has
    taken up, by configuration; tasks: those that a slot may take up now. here: slots whose workers
    have come; idle: how many of them wait.
    """

    messages: list[dict[str, Any]]
    open: dict[str, int]
    tasks: int
    here: set[str]
    idle: int


@dataclass
class _Rung:
    """A work, and how far it is."""

    work: Work
    epochs: set[tuple[int, int]]
    latest: dict[int, Metrics]
    open: list[Segment]
    deaths: int = 0
    ended: Ended | None = None
    end: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Held:
    """What a slot has whose workers have come; ``idle`` is since when, in seconds; ``reason`` why
    it ends itself.
    """

    group: PlacementGroup | None
    idle: float
    task: Task | None = None
    reason: str = ""


class Hub:
    """Lives and dies with the driver, as a Ray actor."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._rungs: dict[str, _Rung] = {}
        self._slots: dict[str, Held] = {}
        self._dead: set[str] = set()
        self._barren = 0
        self._stop = self._over = False
        self._changed = asyncio.Event()

    async def assign(self, work: Work, had: dict[int, tuple[int, Metrics]]) -> None:
        """What a configuration is to do next; its folds are handed out longest first, so that they
        end together.

        Args:
            had: epochs that each fold has had, and the metrics of the last.
        """
        folds = sorted(work.segments, key=lambda s: s.stop - s.start)
        epochs = {(fold, epoch + 1) for fold, (count, _) in had.items() for epoch in range(count)}
        latest = {fold: metrics for fold, (count, metrics) in had.items() if count}
        self._rungs.pop(work.config_id, None)  # what is assigned last is last in the queue
        self._rungs[work.config_id] = _Rung(work, epochs, latest, folds)
        self._settle(work.config_id)
        self._wake()

    async def widen(self, config_id: str, runs: int) -> None:
        """A configuration may use that many slots from now on."""
        rung = self._rungs[config_id]
        rung.work = replace(rung.work, runs=runs)
        self._wake()

    async def drain(self, stop: bool, dropped: Collection[str] = ()) -> Said:
        """All messages since the last call; sets whether slots should stop after their epoch, all
        or those of some configurations.
        """
        if stop and not self._stop:
            self._halt()
        for config_id in self._rungs.keys() & dropped:
            self._end(config_id, Ended("dropped"))
        messages, self._messages = self._messages, []
        at_work = {c: r for c, r in self._rungs.items() if not r.ended}
        waiting = {c: len(r.open) for c, r in at_work.items()}
        tasks = sum(self._claimable(config_id) for config_id in at_work)
        idle = sum(slot.task is None for slot in self._slots.values())
        return Said(messages, waiting, tasks, {*self._slots}, idle)

    async def halt(self) -> None:
        """Slots should end after their epoch; nothing is drained any more."""
        self._halt()

    async def close(self) -> dict[str, PlacementGroup | None]:
        """The search is over: slots retire; returns the placement groups of those that are here."""
        self._halt()
        self._over = True
        self._wake()
        return {name: held.group for name, held in self._slots.items()}

    async def rung(self, config_id: str) -> dict[str, Any]:
        """Wait until the configuration's work has ended, for Tune's trial of it.

        Returns:
            The last metrics, means over its folds; rung, folds and fold epochs it has had; the
            outcome, and a reason if it is not "done".
        """
        rung = self._rungs[config_id]
        await rung.end.wait()
        assert rung.ended
        return {
            **_means(rung.latest),
            "rung": rung.work.rung,
            "folds": len(rung.latest),
            "epochs": len(rung.epochs),
            "outcome": rung.ended.outcome,
            "reason": rung.ended.reason,
        }

    async def here(
        self, slot: str, group: PlacementGroup | None, runs_on: dict[str, Any] | None = None
    ) -> None:
        """The workers of a slot have come, hold that placement group, and run on that."""
        if runs_on:
            self._messages.append({"runs_on": runs_on})
        if slot not in self._dead:  # its run may have ended before it could end them
            self._slots[slot] = Held(group, time.monotonic())

    async def claim(self, slot: str, ended: Ended | None, leaves: bool) -> Task | bool:
        """The next task of a slot; waits a moment for one.

        Args:
            ended: how the task that it had has ended; leaves: it takes no other.
        Returns:
            The task; whether to ask again when there is none.
        """
        mine = self._slots.get(slot)
        if mine is None:
            return False  # it has died already
        had, mine.task = mine.task, None
        if ended and had:
            mine.idle = time.monotonic()
            self._end_task(had, ended)
        until = time.monotonic() + CLAIM_SECONDS
        while not (leaves or self._over) and self._slots.get(slot) is mine:
            mine.task = self._next()
            if mine.task:
                return mine.task
            if (left := until - time.monotonic()) <= 0:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)
        stays = not leaves and not self._over and time.monotonic() < mine.idle + IDLE_SECONDS
        if not stays:
            self._slots.pop(slot, None)
        return stays

    async def task(self, slot: str) -> Task | None:
        """What a slot has to do, for the workers of it that did not claim it."""
        return self._slots[slot].task

    async def put(self, config_id: str, epoch: Epoch) -> bool:
        """An epoch for the driver; one that a slot trains again after a death comes again.

        Returns:
            Whether to stop.
        """
        rung = self._rungs[config_id]
        if rung.ended and rung.ended.outcome != "dropped":
            return True
        self._messages.append({"config_id": config_id, "epoch": epoch})
        if (epoch.fold, epoch.epoch) not in rung.epochs:
            rung.epochs.add((epoch.fold, epoch.epoch))
            rung.deaths = self._barren = 0
        rung.latest[epoch.fold] = epoch.metrics
        return self._stop or rung.ended is not None

    async def gives_up(self, slot: str, reason: str) -> None:
        """Why a slot's process ends itself: a better reason than how it died."""
        if mine := self._slots.get(slot):
            mine.reason = reason

    async def died(self, slot: str, reason: str, outcome: Outcome, counts: bool) -> Held | None:
        """A slot has died; what it had is handed out again, unless that failed too often.

        Args:
            outcome: of the work, if this was once too often. counts: whether it may have been the
                work's fault.
        Returns:
            What it had, if its workers had come.
        """
        gone = self._slots.pop(slot, None)
        self._dead.add(slot)
        if gone and gone.task:
            self._lost(gone.task, Ended(outcome, gone.reason or reason), counts)
        self._barren += counts and gone is None
        if self._barren > RETRIES and not any(held.task for held in self._slots.values()):
            for config_id in self._rungs:
                self._end(config_id, Ended("halt", reason))
        self._wake()
        return gone

    def _lost(self, task: Task, ended: Ended, counts: bool) -> None:
        config_id = task.work.config_id
        rung = self._rungs[config_id]
        if task.segment:
            rung.open.append(task.segment)
        rung.deaths += counts
        if rung.deaths > RETRIES and not self._stop:
            self._end(config_id, ended)
        elif not self._stop and not rung.ended:
            self._messages.append({"config_id": config_id, "again": ended.reason})
        self._settle(config_id)

    def _next(self) -> Task | None:
        """The next task of the work that was assigned first and has one."""
        if self._stop:
            return None
        for config_id, rung in self._rungs.items():
            if not rung.ended and self._claimable(config_id):
                return Task(rung.work, rung.open.pop() if rung.open else None)
        return None

    def _claimable(self, config_id: str) -> int:
        """Tasks of a work that slots may take up now; when all its folds are trained, it is still
        to be pooled.
        """
        rung, taken = self._rungs[config_id], len(self._taken(config_id))
        return min(len(rung.open), rung.work.runs - taken) if rung.open else int(not taken)

    def _end_task(self, task: Task, ended: Ended) -> None:
        config_id = task.work.config_id
        if ended.pooled:
            self._messages.append({"config_id": config_id, "pooled": ended.pooled})
        last = ended.outcome in ("failed", "halt") or task.segment is None
        self._end(config_id, ended if last else None)

    def _end(self, config_id: str, ended: Ended | None) -> None:
        """End a work, if it is to end; its trial hears of it when no slot has it any more."""
        rung = self._rungs[config_id]
        rung.ended = rung.ended or ended
        self._settle(config_id)

    def _halt(self) -> None:
        self._stop = True
        for config_id in self._rungs:
            self._settle(config_id)

    def _settle(self, config_id: str) -> None:
        """A work that no slot has is over if it has ended, or all is to stop."""
        rung = self._rungs[config_id]
        if self._taken(config_id):
            return
        if self._stop and not rung.ended:
            rung.ended = Ended("interrupted")
        if rung.ended:
            rung.end.set()

    def _taken(self, config_id: str) -> list[Task]:
        tasks = [s.task for s in self._slots.values() if s.task]
        return [task for task in tasks if task.work.config_id == config_id]

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _means(latest: dict[int, Metrics]) -> Metrics:
    """Mean of each metric over the folds; NaN where one has none."""
    names = dict.fromkeys(name for metrics in latest.values() for name in metrics)
    return {
        name: sum(metrics.get(name, math.nan) for metrics in latest.values()) / len(latest)
        for name in names
    }


def find(name: str) -> Any:
    """The hub of that name, from any process of the cluster."""
    return ray.get_actor(name, namespace=NAMESPACE)
