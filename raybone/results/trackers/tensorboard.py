"""TensorBoard's event files: a run a fold, below its configuration."""

from __future__ import annotations

import os
from collections import defaultdict
from itertools import count
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

from raybone.errors import WrongInput
from raybone.hpo.events import Event
from raybone.hpo.state import State
from raybone.models._model import portable
from raybone.results.study_folder import StudyFolder
from raybone.storage import fold_name


class TensorBoard:
    """DIR/CONFIGURATION/foldK with the metrics of each epoch at the time it ended, and the
    hyper-parameters with the final means of what is complete.
    """

    def __init__(self, place: Path, folder: StudyFolder) -> None:
        self.place, self.study = place, folder.study
        self._told: dict[tuple[str, int], int] = defaultdict(int)  # epochs of a fold
        self._waiting: dict[str, list[Event]] = defaultdict(list)  # epochs by run
        self._complete: list[tuple[str, dict[str, Any], float]] = []
        self._number = count()

    def tell(self, event: Event, state: State) -> None:
        """Keep an epoch, or the end of a configuration, until ``flush``."""
        if event["event"] == "epoch":
            fold = event["config_id"], event["fold"]
            if event["epoch"] > self._told[fold]:
                self._told[fold] = event["epoch"]
                self._waiting[f"{fold[0]}/{fold_name(fold[1])}"].append(event)
        elif event["event"] == "decision" and event["action"] == "complete":
            c = state.configurations[event["config_id"]]
            mean = c.mean(self.study.resolved.folds, self.study.epochs, self.study.metric)
            self._complete.append((c.id, portable(c.params), mean))

    def flush(self, state: State, last: bool) -> None:  # noqa: ARG002
        """Write a file a run of what is new; each is closed, as a writer that is open costs a
        thread and files of the system.
        """
        for name, events in self._waiting.items():
            writer = self._writer(name)
            for event in events:
                for metric, value in event["metrics"].items():
                    if value is not None:
                        writer.add_scalar(metric, value, event["epoch"], walltime=event["time"])
            writer.close()
        for name, params, mean in self._complete:
            writer = self._writer(name)
            plain = {
                k: v if isinstance(v, bool | int | float | str) else str(v)
                for k, v in params.items()
            }
            metrics = {f"{self.study.metric}_mean": mean}
            writer.add_hparams(plain, metrics, name=".", global_step=self.study.epochs)
            writer.close()
        self._waiting.clear()
        self._complete.clear()

    def _writer(self, name: str) -> Any:
        # Files of one second would have one name.
        suffix = f".{next(self._number)}"
        return SummaryWriter(str(self.place / name), filename_suffix=suffix)


def outlet(place: str, folder: StudyFolder) -> TensorBoard:
    """The tracker of a folder to be made.

    Raises:
        WrongInput: it exists.
    """
    if os.path.lexists(place):
        raise WrongInput(f"--to tensorboard:{place}: must not exist yet; choose another folder")
    return TensorBoard(Path(place), folder)
