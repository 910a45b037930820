"""A named actor between the driver and the training runs: epochs flow to the driver, work and the stop flag from it."""

from __future__ import annotations

from typing import Any

import ray

from raybone.hpo.brain import Work

NAMESPACE = "raybone"


@ray.remote(num_cpus=0)
class Hub:
    """Holds messages until the driver drains them; lives and dies with the driver."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._work: dict[str, Work] = {}
        self._stop = False

    def put(self, message: dict[str, Any]) -> None:
        """A message from a training run."""
        self._messages.append(message)

    def drain(self, stop: bool) -> list[dict[str, Any]]:
        """All messages since the last call; sets whether the runs should stop after their epoch."""
        self._stop = stop
        messages, self._messages = self._messages, []
        return messages

    def assign(self, work: Work) -> None:
        """What a configuration is to do next."""
        self._work[work.config_id] = work

    def work(self, config_id: str) -> Work:
        """What this configuration is to do now."""
        return self._work[config_id]

    def stop_wanted(self) -> bool:
        """Whether runs should end after their epoch."""
        return self._stop


def find(name: str) -> Any:
    """The hub of that name, from any process of the cluster."""
    return ray.get_actor(name, namespace=NAMESPACE)
