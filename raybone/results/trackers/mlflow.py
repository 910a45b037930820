"""MLflow: a run for the study, in it one a configuration, in that one a fold."""

from __future__ import annotations

import hashlib
import math
import os
import re
import tempfile
from collections import defaultdict
from functools import cached_property
from pathlib import Path

# It phones home, and asks a server that is down for minutes.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")

import requests
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from raybone.errors import MachineFault, WrongInput
from raybone.hpo.events import Event
from raybone.hpo.state import Configuration, State
from raybone.models._model import portable
from raybone.results.leaderboard import csv_of
from raybone.results.report import report
from raybone.results.study_folder import LEADERBOARD, REPORT, StudyFolder
from raybone.results.trackers.track import shown
from raybone.storage import fold_name

MOST = 1000  # metrics of one call, and letters of a value; MLflow takes no more
KEY, SENT = "raybone.key", "raybone.epochs"
ENDS = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
STORES = ("http://", "https://", "sqlite:///")
DOWN = (MlflowException, requests.RequestException, SQLAlchemyError, OSError)


class MLflow:
    """What was sent is known by a tag of each run, so that the same command goes on where it ended.

    A fold's run has its metrics by epoch, a configuration's its hyper-parameters and the means over
    the folds of each rung, the study's the leaderboard.
    """

    def __init__(self, uri: str, folder: StudyFolder) -> None:
        self.uri, self.folder, self.study = uri, folder, folder.study
        self.key = ""  # of the study, by its first event: its path says where it lies
        self._waiting: dict[str, list[Event]] = defaultdict(list)  # events by configuration
        self._runs: dict[str, str] = {}
        self._sent: dict[str, int] = {}
        self._began = self._last = 0  # milliseconds

    @cached_property
    def client(self) -> MlflowClient:
        """What talks to it; made when it is first needed, as MLflow opens a database at once."""
        return MlflowClient(tracking_uri=self.uri)

    def tell(self, event: Event, state: State) -> None:  # noqa: ARG002
        """Keep an event of a configuration until ``flush``."""
        self._last = _milliseconds(event)
        if not self.key:
            self._began = self._last
            first = f"{self.study.name} {event['time']}"
            self.key = hashlib.sha256(first.encode()).hexdigest()[:16]
        if "config_id" in event:
            self._waiting[event["config_id"]].append(event)

    def flush(self, state: State, last: bool) -> None:  # noqa: ARG002
        """Send what waits.

        Raises:
            MachineFault: the server does not answer, or the database is none.
        """
        try:
            for config_id in list(self._waiting):
                self._send(state.configurations[config_id], self._waiting[config_id])
                del self._waiting[config_id]
            if state.end:
                self._finish(state)
        except DOWN as error:
            why = shown(" ".join(str(error).split()))[:150]
            raise MachineFault(
                f"--to mlflow:{shown(self.uri)}: must answer, but {type(error).__name__}: {why}; "
                "what it has is kept, the same command goes on from there"
            ) from None

    def _send(self, configuration: Configuration, events: list[Event]) -> None:
        """Metrics of the folds, then of the rungs, and how the configuration ended."""
        began = _milliseconds(events[0])
        own = self._run(configuration.id, began)
        known = [Param(k, str(v)[:MOST]) for k, v in portable(configuration.params).items()]
        self.client.log_batch(own, params=known)
        folds: dict[int, list[Event]] = defaultdict(list)
        for event in events:
            if event["event"] == "epoch":
                folds[event["fold"]].append(event)
        for fold, epochs in sorted(folds.items()):
            first = _milliseconds(epochs[0]) - round(1000 * epochs[0]["seconds"])
            self._epochs(self._run(f"{configuration.id}/{fold_name(fold)}", first), epochs)
        means = []
        for event in events:
            if event["event"] == "rung":
                count, epoch = self.study.resolved.ladder[event["rung"]]
                value = configuration.mean(count, epoch, self.study.metric)
                name = f"{self.study.metric}_mean"
                means.append(Metric(name, value, _milliseconds(event), count * epoch))
        if means:
            self.client.log_batch(own, metrics=[m for m in means if math.isfinite(m.value)])
        if end := ENDS.get(configuration.status):
            self._end(configuration, end, _milliseconds(events[-1]))

    def _end(self, configuration: Configuration, how: str, when: int) -> None:
        own = [n for n in self._runs if n.partition("/")[0] == configuration.id]
        for name in own:
            self.client.set_terminated(self._runs[name], how, when)
        if own and configuration.reason:
            self.client.set_tag(self._runs[configuration.id], "reason", configuration.reason[:MOST])

    def _epochs(self, run: str, events: list[Event]) -> None:
        """Metrics of the epochs that the run has not."""
        metrics, sent = list[Metric](), self._sent[run]
        for event in events:
            if event["epoch"] <= sent:
                continue
            sent = event["epoch"]
            values = {**event["metrics"], "seconds": event["seconds"]}
            for name, value in values.items():
                if value is not None:
                    plain = re.sub(r"[^/\w.\- :]", "_", name.replace("[", "/").replace("]", ""))
                    metrics.append(Metric(plain, value, _milliseconds(event), event["epoch"]))
        for start in range(0, len(metrics), MOST):
            self.client.log_batch(run, metrics=metrics[start : start + MOST])
        if metrics:
            self.client.set_tag(run, SENT, str(sent))
            self._sent[run] = sent

    def _run(self, name: str, began: int) -> str:
        """The id of a run by its name, made where there is none: the study's (empty), a
        configuration's or a fold's.
        """
        if name in self._runs:
            return self._runs[name]
        parent = self._run(name.rpartition("/")[0], self._began) if name else ""
        key, experiment = f"{self.key}/{name}", self._experiment()
        found = self.client.search_runs([experiment], f"tags.`{KEY}` = '{key}'")
        if found:
            run = found[0].info.run_id
            self.client.update_run(run, "RUNNING")
            self._sent[run] = int(found[0].data.tags.get(SENT, 0))
        else:
            tags = {KEY: key, "study": self.study.name}
            tags |= {"mlflow.parentRunId": parent} if parent else {}
            made = self.client.create_run(experiment, began, tags, name or self.study.name)
            run = made.info.run_id
            self._sent[run] = 0
        self._runs[name] = run
        return run

    def _experiment(self) -> str:
        known = self.client.get_experiment_by_name(self.study.name)
        if known:
            return str(known.experiment_id)
        # Else MLflow would put artefacts of a local file below the current folder.
        _, _, file = self.uri.partition("sqlite:///")
        place = (Path(file).absolute().parent / "mlflow-artifacts").as_uri() if file else None
        return str(self.client.create_experiment(self.study.name, artifact_location=place))

    def _finish(self, state: State) -> None:
        """What goes on no more is told so, and the study's own run ends with its table and its
        report, without scans: these stay where the dataset is.

        Raises:
            WrongInput: the store of artefacts cannot be reached from here.
        """
        waiting = [c for c in state.configurations.values() if c.status in ("running", "paused")]
        for configuration in waiting:
            self._end(configuration, "KILLED", self._last)
        run, table = self._run("", self._began), csv_of(StudyFolder(self.folder.url).table())
        self.client.set_terminated(run, "KILLED" if waiting else "FINISHED", self._last)
        with tempfile.TemporaryDirectory() as place:
            page = f"{place}/{REPORT}"
            report(self.folder.url, page, scans=False, moved=self.folder.moved)
            self._keep(run, table.decode(), page)

    def _keep(self, run: str, table: str, page: str) -> None:
        try:
            self.client.log_text(run, table, LEADERBOARD)
            self.client.log_artifact(run, page)
        except DOWN:
            raise
        except Exception as error:  # of the library of some store, which may not be installed
            raise WrongInput(
                f"--to mlflow:{shown(self.uri)}: the study is there, but leaderboard and report "
                f"need the server's store of artefacts, and: {type(error).__name__}: "
                f"{shown(str(error))[:100]}; install what it wants, or let the server serve them"
            ) from None


def _milliseconds(event: Event) -> int:
    return round(event["time"] * 1000)


def outlet(place: str, folder: StudyFolder) -> MLflow:
    """The tracker at an address.

    Raises:
        WrongInput: it is neither a server's nor that of a file of SQLite's.
    """
    if not place.startswith(STORES) or place in STORES:
        raise WrongInput(
            f"--to mlflow:{shown(place)}: must be the http address of a server or sqlite:///FILE, "
            "as MLflow takes no folders of files any more; give one of these"
        )
    return MLflow(place, folder)
