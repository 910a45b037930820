"""A named actor between the driver and the training runs: epochs flow to the driver, work and the
stop flag from it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import ray

from raybone.hpo.brain import Work
from raybone.types import Segment

NAMESPACE = "raybone"


@ray.remote(num_cpus=0)
class Hub:
    """Holds messages until the driver drains them; lives and dies with the driver."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._work: dict[str, Work] = {}
        self._open: dict[str, list[Segment]] = {}
        self._claimed: dict[str, Segment] = {}
        self._groups: dict[str, list[str]] = {}
        self._heard: dict[str, set[tuple[int, int]]] = {}
        self._arrivals: Counter[str] = Counter()
        self._stop = False

    def here(self, run: str) -> None:
        """A worker of a run has begun."""
        self._arrivals[run] += 1

    def arrivals(self, run: str) -> int:
        """How often a worker of a run has begun."""
        return self._arrivals[run]

    def put(self, message: dict[str, Any]) -> bool:
        """Queue a message for the driver: an epoch, or why a run starts again.

        Returns:
            Whether the run should stop.
        """
        self._messages.append(message)
        if epoch := message.get("epoch"):
            self._heard.setdefault(message["run"], set()).add((epoch["fold"], epoch["epoch"]))
        return self._stop

    def heard(self, run: str) -> int:
        """Different epochs that a run has sent so far; after a restart it sends old ones again."""
        return len(self._heard.get(run, ()))

    def drain(self, stop: bool) -> list[dict[str, Any]]:
        """All messages since the last call; sets whether the runs should stop after their epoch."""
        self._stop = stop
        messages, self._messages = self._messages, []
        return messages

    def halt(self) -> None:
        """The runs should end after their epoch; nothing is drained any more."""
        self._stop = True

    def assign(self, work: Work) -> None:
        """What a configuration is to do next; its folds are handed out longest first, so that runs
        end together.
        """
        self._work[work.config_id] = work
        self._open[work.config_id] = sorted(work.segments, key=lambda s: s.stop - s.start)

    def reopen(self, config_id: str) -> list[str]:
        """A trial (again) begins its work: everything is to be handed out, whatever a dead
        predecessor had claimed.

        Returns the placement groups of its earlier runs, which such a death leaves behind.
        """
        self.assign(self._work[config_id])
        self._claimed = {
            run: s for run, s in self._claimed.items() if not run.startswith(f"{config_id}-")
        }
        return self._groups.pop(config_id, [])

    def holds(self, config_id: str, group: str) -> None:
        """A run of this configuration has that placement group."""
        self._groups.setdefault(config_id, []).append(group)

    def widen(self, config_id: str, runs: int) -> None:
        """A configuration may use that many runs from now on."""
        self._work[config_id] = replace(self._work[config_id], runs=runs)

    def work(self, config_id: str) -> Work:
        """What this configuration is to do now."""
        return self._work[config_id]

    def claim(self, config_id: str, run: str, finished: bool) -> Segment | None:
        """The next segment of a run; one that died gets again what it had, None when all are handed
        out.

        Args:
            run: the run's name, the same after a restart.
            finished: the run has ended the segment it had.
        """
        if finished:
            self._claimed.pop(run, None)
        if run not in self._claimed and self._open[config_id]:
            self._claimed[run] = self._open[config_id].pop()
        return self._claimed.get(run)

    def open(self) -> dict[str, int]:
        """Segments not handed out yet, by configuration."""
        return {config_id: len(segments) for config_id, segments in self._open.items()}

    def stop_wanted(self) -> bool:
        """Whether runs should end after their epoch."""
        return self._stop


def find(name: str) -> Any:
    """The hub of that name, from any process of the cluster."""
    return ray.get_actor(name, namespace=NAMESPACE)
