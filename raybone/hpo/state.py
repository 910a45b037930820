"""What the journal says, folded into one picture of the study."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from raybone.hpo.journal import Event
from raybone.records import Epoch

Status = Literal["running", "paused", "stopped", "complete", "failed"]


@dataclass
class Configuration:
    """One configuration and all that happened to it; ``rung`` is the last one it finished, -1 before the first."""

    id: str
    params: dict[str, Any]
    parameters: int = 0
    status: Status = "paused"
    rung: int = -1
    target: int = -1
    epochs: dict[int, list[Epoch]] = field(default_factory=dict)
    pooled: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    replicates: list[float] = field(default_factory=list)
    freedom: float = math.nan
    test: dict[str, float] = field(default_factory=dict)
    untested: str = ""

    def fold_score(self, fold: int, epoch: int, metric: str, smooth: int = 1) -> float:
        """Mean of the metric over the last ``smooth`` epochs up to ``epoch``; NaN when not there."""
        run = self.epochs.get(fold, [])[:epoch][-smooth:]
        if len(self.epochs.get(fold, [])) < epoch or not run:
            return math.nan
        return sum(e.metrics.get(metric, math.nan) for e in run) / len(run)

    @property
    def train_seconds(self) -> float:
        """Seconds of all epochs of all folds."""
        return sum(e.seconds for run in self.epochs.values() for e in run)


class State:
    """The study as the journal tells it; ``apply`` is the only way in, so a replay gives the same state."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.configurations: dict[str, Configuration] = {}
        # Order in which configurations finished each rung.
        self.arrivals: dict[int, list[str]] = {}
        self.decisions: list[Event] = []
        self.last_time = 0.0
        self.seconds = 0.0
        self.slots = 1
        self.end = ""
        for event in events:
            self.apply(event)

    def apply(self, event: Event) -> None:
        """Take in one event; kinds not known here are passed over."""
        # The time between two drivers is nobody's.
        if event["event"] != "start" and self.last_time:
            self.seconds += max(event["time"] - self.last_time, 0.0)
        self.last_time = event["time"]
        handle = getattr(self, "_on_" + event["event"], None)
        if handle:
            handle(event)

    def known(self, config_id: str, fold: int) -> int:
        """Number of epochs of a fold that are in the journal."""
        return len(self.configurations[config_id].epochs.get(fold, []))

    @property
    def running(self) -> list[Configuration]:
        """Configurations at work."""
        return [c for c in self.configurations.values() if c.status == "running"]

    @property
    def failed(self) -> int:
        """How many configurations failed."""
        return sum(c.status == "failed" for c in self.configurations.values())

    def _on_start(self, event: Event) -> None:
        self.slots = event.get("slots", 1)
        self.end = ""
        for configuration in self.configurations.values():
            if configuration.status == "running":
                configuration.status = "paused"

    def _on_end(self, event: Event) -> None:
        self.end = event["reason"]

    def _on_config(self, event: Event) -> None:
        self.configurations[event["config_id"]] = Configuration(event["config_id"], event["params"],
                                                                event.get("parameters", 0))

    def _on_work(self, event: Event) -> None:
        configuration = self.configurations[event["config_id"]]
        configuration.status, configuration.target = "running", event["rung"]

    def _on_epoch(self, event: Event) -> None:
        run = self.configurations[event["config_id"]].epochs.setdefault(event["fold"], [])
        metrics = {k: math.nan if v is None else v for k, v in event["metrics"].items()}
        if event["epoch"] == len(run) + 1:
            run.append(Epoch(event["fold"], event["epoch"], metrics, event["seconds"]))

    def _on_rung(self, event: Event) -> None:
        configuration = self.configurations[event["config_id"]]
        configuration.status, configuration.rung = "paused", event["rung"]
        self.arrivals.setdefault(event["rung"], []).append(event["config_id"])

    def _on_pooled(self, event: Event) -> None:
        configuration = self.configurations[event["config_id"]]
        configuration.pooled, configuration.freedom = event["metrics"], event.get("freedom", math.nan)
        configuration.replicates = [math.nan if v is None else v for v in event.get("replicates", ())]

    def _on_test(self, event: Event) -> None:
        configuration = self.configurations[event["config_id"]]
        configuration.test, configuration.untested = event["metrics"], event.get("reason", "")

    def _on_decision(self, event: Event) -> None:
        self.decisions.append(event)
        status: dict[str, Status] = {"stop": "stopped", "complete": "complete"}
        configuration = self.configurations[event["config_id"]]
        configuration.status = status.get(event["action"], configuration.status)
        configuration.reason = event["reason"]

    def _on_failed(self, event: Event) -> None:
        configuration = self.configurations[event["config_id"]]
        configuration.status, configuration.reason = "failed", event["reason"]
