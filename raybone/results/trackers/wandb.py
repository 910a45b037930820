"""Weights & Biases, offline: a run a configuration, in a project named like the study, for
``wandb sync`` from a machine that may reach the network.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

# It asks git, the system and its own server about everything.
os.environ.update(
    WANDB_MODE="offline",
    WANDB_SILENT="true",
    WANDB_ERROR_REPORTING="false",
    WANDB_DISABLE_GIT="true",
    WANDB_DISABLE_CODE="true",
)

import wandb

from raybone.errors import WrongInput
from raybone.hpo.events import Event
from raybone.hpo.state import Configuration, State
from raybone.models._model import portable
from raybone.results.study_folder import StudyFolder
from raybone.storage import fold_name

ENDS = ("complete", "stopped", "failed")


class Wandb:
    """DIR/wandb/offline-run-* of each configuration once it has ended; of all, when the study has,
    or is told once.
    """

    def __init__(self, place: Path, folder: StudyFolder) -> None:
        self.place, self.study = place, folder.study
        self._epochs: dict[str, dict[int, dict[str, float]]] = defaultdict(dict)  # by epoch
        self._ended: list[str] = []
        self._last = ""

    def tell(self, event: Event, state: State) -> None:
        """Keep an epoch, or the end of a configuration, until ``flush``."""
        self._last, config_id = event["event"], event.get("config_id", "")
        if event["event"] == "epoch":
            known = self._epochs[config_id].setdefault(event["epoch"], {})
            fold = fold_name(event["fold"])
            values = {f"{fold}/{m}": v for m, v in event["metrics"].items() if v is not None}
            known |= {**values, f"{fold}/seconds": event["seconds"]}
        elif config_id and state.configurations[config_id].status in ENDS:
            self._ended.append(config_id)

    def flush(self, state: State, last: bool) -> None:
        """Write a run of each configuration that has ended, of all the last time."""
        for config_id in [*self._epochs] if last else self._ended:
            if epochs := self._epochs.pop(config_id, {}):
                self._write(state.configurations[config_id], epochs)
        self._ended.clear()
        if last:
            wandb.teardown()  # a run's end does not wait until its file is written

    def _write(self, configuration: Configuration, epochs: dict[int, dict[str, float]]) -> None:
        study, c = self.study, configuration
        run = wandb.init(
            project=study.name,
            group=study.resolved.dataset_hash,
            name=c.id,
            dir=str(self.place),
            config={**portable(c.params), "metric": study.metric, "epochs": study.epochs},
            tags=[c.status],
            reinit="create_new",
            settings=wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True),
        )
        for epoch, values in sorted(epochs.items()):
            run.log(values, step=epoch)
        mean = c.mean(study.resolved.folds, study.epochs, study.metric)
        summary: dict[str, Any] = {"status": c.status, "reason": c.reason}
        run.summary.update({**summary, **({f"{study.metric}_mean": mean} if mean == mean else {})})
        run.finish(exit_code=int(c.status == "failed"))


def outlet(place: str, folder: StudyFolder) -> Wandb:
    """The tracker of a folder to be made.

    Raises:
        WrongInput: it exists.
    """
    if os.path.lexists(place):
        raise WrongInput(f"--to wandb:{place}: must not exist yet; choose another folder")
    Path(place).mkdir(parents=True)
    return Wandb(Path(place), folder)
