"""One model of everyone, trained as a Ray Train run of the study's resources."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import ray
import ray.train
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.queue import Queue

from raybone.errors import FitFailed, RunFailed
from raybone.run.everyone import epochs_of_everyone
from raybone.run.ray.connection import connection
from raybone.run.ray.resources import slots
from raybone.run.ray.trial import POLL_SECONDS, cause_of, trainer
from raybone.run.ray.worker import settle
from raybone.storage import Folder
from raybone.study.spec import ResolvedStudy
from raybone.types import Epoch

RETRIES = 3  # of a run that dies; it goes on from last.pt


def train_on_ray(
    study: ResolvedStudy,
    folder: Folder,
    params: dict[str, Any],
    address: str | None,
    tell: Callable[[Epoch], None],
) -> None:
    """Train on all patients but the test group, and leave ``last.pt`` in the folder, which every
    node must reach.

    Args:
        address: of a Ray cluster; None starts one on this machine, unless RAY_ADDRESS is set.
    Raises:
        WrongInput: the cluster has no room for the study's resources.
        RunFailed: the training failed.
    """
    with connection(address):
        slots(study)
        epochs = Queue(actor_options={"num_cpus": 0})
        controller: Any = _Controller.remote()  # type: ignore[attr-defined]
        training = controller.run.remote(study, folder.url, params, epochs)
        last, done = 0, list[Any]()
        while not done:
            done, _ = ray.wait([training], timeout=POLL_SECONDS)
            for epoch in epochs.get_nowait_batch(epochs.qsize()):
                if epoch.epoch > last:  # a run that had died tells of the same ones again
                    last = epoch.epoch
                    tell(epoch)
        if reason := ray.get(training):
            raise RunFailed(
                f"refit: the training failed: {reason}; mend that and start the same command "
                "again: it resumes"
            )


@ray.remote(num_cpus=0)
class _Controller:
    """Runs the training: Ray Train wants to be in an actor."""

    def run(self, study: ResolvedStudy, folder: str, params: dict[str, Any], epochs: Queue) -> str:
        """Train; returns why that failed, or nothing."""
        try:
            done = (
                trainer(
                    study,
                    folder,
                    f"refit-{uuid.uuid4().hex[:8]}",
                    _loop,
                    {"study": study, "folder": folder, "params": params, "epochs": epochs},
                    lambda group: None,
                    RETRIES,
                )
                .fit()
                .return_value
            )
        except TrainingFailedError as error:
            return cause_of(error)[0]
        return str((done[0] if isinstance(done, list) else done) or "")


def _loop(config: dict[str, Any]) -> str:
    """Train; returns why the training itself failed, which no other attempt would mend."""
    settle(config["study"])
    try:
        for epoch in epochs_of_everyone(
            config["study"], Folder(config["folder"]), config["params"]
        ):
            if ray.train.get_context().get_world_rank() == 0:
                config["epochs"].put(epoch)
            ray.train.report({"epoch": epoch.epoch})
    except FitFailed as error:
        return str(error)
    return ""
