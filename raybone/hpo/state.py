"""What the journal says, folded into one picture of the study."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from raybone.errors import WrongInput
from raybone.hpo.events import Event
from raybone.study.space import identity
from raybone.study.spec import Study

Status = Literal["running", "paused", "stopped", "complete", "failed"]
NEWS = (
    "decision",
    "again",
    "slots",
    "failed",
    "environment",
    "asked",
)  # events that a person wants to hear of


class Run:
    """The epochs of one fold in columns, as a study may have a million of them; epoch 1 is the
    first entry.
    """

    __slots__ = ("metrics", "seconds")

    def __init__(self) -> None:
        self.metrics: dict[str, array[float]] = {}
        self.seconds = array("d")

    def append(self, metrics: dict[str, float | None], seconds: float) -> None:
        """One more epoch; None, and a metric that other epochs have and this one has not, is
        NaN.
        """
        if metrics.keys() != self.metrics.keys():
            for name in metrics.keys() - self.metrics.keys():
                self.metrics[name] = array("d", [math.nan] * len(self.seconds))
            metrics = {name: metrics.get(name) for name in self.metrics}
        for name, value in metrics.items():
            self.metrics[name].append(math.nan if value is None else value)
        self.seconds.append(seconds)

    def __len__(self) -> int:
        return len(self.seconds)

    def last(self, metric: str) -> float:
        """The metric at the last epoch, NaN when not there."""
        column = self.metrics.get(metric)
        return column[-1] if column else math.nan

    def mean(self, metric: str, epoch: int, smooth: int) -> float:
        """Mean of the metric over the last ``smooth`` epochs up to ``epoch``; NaN when not
        there.
        """
        column = self.metrics.get(metric, ())
        if not 0 < epoch <= len(column):
            return math.nan
        values = column[max(epoch - smooth, 0) : epoch]
        return sum(values) / len(values)


@dataclass
class Configuration:
    """One configuration and all that happened to it; ``rung`` is the last one it finished, -1
    before the first.
    """

    id: str
    params: dict[str, Any]
    parameters: int = 0
    # When it began and when it was complete, stopped or failed, in seconds since 1970; else NaN.
    began: float = math.nan
    ended: float = math.nan
    status: Status = "paused"
    rung: int = -1
    target: int = -1
    epochs: dict[int, Run] = field(default_factory=dict)
    pooled: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    replicates: list[float] = field(default_factory=list)
    freedom: float = math.nan
    test: dict[str, float] = field(default_factory=dict)
    untested: str = ""
    # Parts in which a batch goes through the network, as memory is short.
    parts: int = 1
    # Of the last epoch, and the most memory of any, NaN while unknown.
    images_per_s: float = math.nan
    memory_gb: float = math.nan
    gpu_use: float = math.nan
    # What it was trained on, in short.
    machines: dict[str, None] = field(default_factory=dict)
    # Of all epochs; NaN where no driver has told how many GPUs a run had.
    gpu_seconds: float = 0.0
    # Folds that have had an epoch since the way to ``target`` began.
    at_work: set[int] = field(default_factory=set)

    def fold_score(self, fold: int, epoch: int, metric: str, smooth: int = 1) -> float:
        """Mean of the metric over the last ``smooth`` epochs up to ``epoch``; NaN when not
        there.
        """
        return self.epochs[fold].mean(metric, epoch, smooth) if fold in self.epochs else math.nan

    def mean(self, folds: int, epoch: int, metric: str, smooth: int = 1) -> float:
        """Mean of ``fold_score`` over the first folds; NaN when one is not there."""
        return sum(self.fold_score(k, epoch, metric, smooth) for k in range(folds)) / folds

    @property
    def epoch_seconds(self) -> list[float]:
        """Seconds of each epoch, fold after fold."""
        return [seconds for run in self.epochs.values() for seconds in run.seconds]

    @property
    def train_seconds(self) -> float:
        """Seconds of all epochs of all folds."""
        return sum(self.epoch_seconds)


def gpu_hours(study: Study, seconds: float) -> float:
    """What so many seconds of epochs take of the study's GPUs, as ``limits.gpu_hours`` counts."""
    return seconds / 3600 * study.resources.gpus * study.resources.workers


def gpu_hours_of(study: Study, spent: Configuration | State) -> float:
    """What a configuration, or all of them, took of GPUs, whose number may change when a study is
    resumed.
    """
    known = spent.gpu_seconds
    return known / 3600 if math.isfinite(known) else gpu_hours(study, spent.train_seconds)


class State:
    """The study as the journal tells it; ``apply`` is the only way in, so a replay gives the same
    state.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.configurations: dict[str, Configuration] = {}
        # Order in which configurations finished each rung.
        self.arrivals: dict[int, list[str]] = {}
        # What there is to tell, and how much of it is of earlier drivers.
        self.news: list[Event] = []
        self.old_news = 0
        # Hyper-parameters that are tried, or that the model refused.
        self.taken: set[str] = set()
        # Those that a person asked for and that have not begun; how many have.
        self.asked: dict[str, dict[str, Any]] = {}
        self.added = 0
        # Whether the space is used up.
        self.exhausted = False
        # Why it refused them.
        self.refused: list[str] = []
        # Hyper-parameters that were not worth a start.
        self.skipped: list[dict[str, Any]] = []
        self.fold_epochs = 0
        self.train_seconds = self.gpu_seconds = 0.0
        self._gpus = math.nan  # of a run
        # Seconds and fold epochs of each model of a study over models.
        self._spent: dict[str, tuple[float, int]] = {}
        # What drivers and workers ran on, each once, in the order of time.
        self.environments: dict[str, list[dict[str, Any]]] = {}
        self.slots = 1
        self.slot_seconds = 0.0
        self.end = ""
        self._handlers = {
            n.removeprefix("_on_"): getattr(self, n) for n in dir(self) if n.startswith("_on_")
        }
        self._earlier = self._up = 0.0
        for event in events:
            self.apply(event)

    def apply(self, event: Event) -> None:
        """Take in one event; kinds not known here are passed over."""
        if event["event"] != "start":
            self.slot_seconds += self.slots * max(event.get("up", 0.0) - self._up, 0.0)
        if event["event"] in NEWS:
            self.news.append(event)
        if handle := self._handlers.get(event["event"]):
            handle(event)
        self._up = max(event.get("up", 0.0), self._up)

    def known(self, config_id: str, fold: int) -> int:
        """Number of epochs of a fold that are in the journal."""
        return len(self.configurations[config_id].epochs.get(fold, ()))

    @property
    def seconds(self) -> float:
        """Seconds that drivers have worked on the study, by their steady clocks."""
        return self._earlier + self._up

    @property
    def busy_share(self) -> float:
        """Share of the time of all slots, since the study began, that went into epochs; NaN before
        the first.
        """
        return self.train_seconds / self.slot_seconds if self.slot_seconds else math.nan

    def mean_seconds(self, model: str) -> float:
        """Mean seconds of a fold epoch of a model of a study over models, else of all; NaN before
        the first epoch.
        """
        seconds, epochs = self._spent.get(model, (self.train_seconds, self.fold_epochs))
        return seconds / epochs if epochs else math.nan

    def planned(self, trials: int) -> int:
        """How many configurations there will be, as far as is known: the study's trials, and those
        that a person asked for.
        """
        known = len(self.configurations) + len(self.asked)
        return known if self.exhausted else max(known, trials + self.added + len(self.asked))

    @property
    def counts(self) -> Counter[Status]:
        """How many configurations are in each status."""
        return Counter(c.status for c in self.configurations.values())

    @property
    def running(self) -> list[Configuration]:
        """Configurations at work."""
        return [c for c in self.configurations.values() if c.status == "running"]

    def _of(self, event: Event) -> Configuration:
        if event["config_id"] not in self.configurations:
            raise WrongInput(
                f"journal: {event['event']!r} must be of a configuration that was begun, but is of "
                f"{event['config_id']!r}; restore the journal from a copy"
            )
        return self.configurations[event["config_id"]]

    def _on_start(self, event: Event) -> None:
        self.slots, self._gpus = event.get("slots", 1), event.get("gpus", math.nan)
        self.end, self.old_news = "", len(self.news)
        # Time without a driver is not counted.
        self._earlier, self._up = self.seconds, 0.0
        for configuration in self.running:
            configuration.status = "paused"

    def _on_slots(self, event: Event) -> None:
        self.slots = event["slots"]

    def _on_environment(self, event: Event) -> None:
        self.environments.setdefault(event["of"], []).append(event["known"])

    def _on_end(self, event: Event) -> None:
        self.end = event["reason"]

    def _on_config(self, event: Event) -> None:
        self.configurations[event["config_id"]] = Configuration(
            event["config_id"],
            event["params"],
            event.get("parameters", 0),
            event.get("time", math.nan),
        )
        self.taken.add(identity(event["params"]))
        self.added += self.asked.pop(identity(event["params"]), None) is not None
        self.skipped = [params for params in self.skipped if params != event["params"]]

    def _on_invalid(self, event: Event) -> None:
        self.taken.add(identity(event["params"]))
        self.asked.pop(identity(event["params"]), None)
        self.refused.append(event["reason"])

    def _on_asked(self, event: Event) -> None:
        self.asked[identity(event["params"])] = event["params"]

    def _on_exhausted(self, _: Event) -> None:
        self.exhausted = True

    def _on_skipped(self, event: Event) -> None:
        self.skipped.append(event["params"])

    def _on_work(self, event: Event) -> None:
        configuration = self._of(event)
        configuration.ended = math.nan  # one that was stopped may go on, for a smaller risk
        configuration.target, configuration.status, configuration.at_work = (
            event["rung"],
            "running",
            set(),
        )

    def _on_epoch(self, event: Event) -> None:
        configuration = self._of(event)
        runs = configuration.epochs
        run = runs.get(event["fold"])
        if run is None:
            run = runs[event["fold"]] = Run()
        if event["epoch"] == len(run) + 1:
            run.append(event["metrics"], event["seconds"])
            configuration.at_work.add(event["fold"])
            cost = event.get("cost", {})
            configuration.images_per_s = cost.get("images_per_s", math.nan)
            configuration.gpu_use = cost.get("gpu_use", math.nan)
            memory = cost.get("memory_gb", math.nan)
            configuration.memory_gb = float(np.fmax(configuration.memory_gb, memory))
            if (parts := int(cost.get("parts", 1))) > configuration.parts:
                configuration.parts = parts
                self.news.append({**event, "event": "parts", "parts": parts})
            if machine := event.get("machine"):
                configuration.machines[machine] = None
            self.fold_epochs += 1
            self.train_seconds += event["seconds"]
            configuration.gpu_seconds += event["seconds"] * self._gpus
            self.gpu_seconds += event["seconds"] * self._gpus
            if model := configuration.params.get("model"):
                seconds, epochs = self._spent.get(model, (0.0, 0))
                self._spent[model] = seconds + event["seconds"], epochs + 1

    def _on_rung(self, event: Event) -> None:
        configuration = self._of(event)
        configuration.rung, configuration.status = event["rung"], "paused"
        self.arrivals.setdefault(event["rung"], []).append(event["config_id"])

    def _on_pooled(self, event: Event) -> None:
        configuration = self._of(event)
        configuration.pooled, configuration.freedom = (
            event["metrics"],
            event.get("freedom", math.nan),
        )
        configuration.replicates = [
            math.nan if v is None else v for v in event.get("replicates", ())
        ]

    def _on_test(self, event: Event) -> None:
        configuration = self._of(event)
        configuration.test, configuration.untested = event["metrics"], event.get("reason", "")

    def _on_decision(self, event: Event) -> None:
        status: dict[str, Status] = {"stop": "stopped", "drop": "stopped", "complete": "complete"}
        configuration = self._of(event)
        configuration.status = status.get(event["action"], configuration.status)
        configuration.reason = event["reason"]
        if event["action"] in status:
            configuration.ended = event.get("time", math.nan)

    def _on_failed(self, event: Event) -> None:
        configuration = self._of(event)
        configuration.reason, configuration.status = event["reason"], "failed"
        configuration.ended = event.get("time", math.nan)
