"""One model of everyone, trained as a Ray Train run of the study's resources."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import ray.train
from ray.util.queue import Queue

from raybone.errors import FitFailed, RunFailed
from raybone.run.everyone import epochs_of_everyone
from raybone.run.ray.connection import connection, in_ray
from raybone.run.ray.group import join
from raybone.run.ray.resources import slots
from raybone.run.ray.slots import POLL_SECONDS
from raybone.run.ray.trainer import cause_of, trainer
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
        epochs, ended = Queue(actor_options={"num_cpus": 0}), list[str]()
        loop = partial(_loop, study, folder.url, params, epochs)

        def run() -> None:
            try:
                given: Any = trainer(study, folder.url, "refit", loop, RETRIES).fit()
                value = given.return_value
                ended.append(str((value[0] if isinstance(value, list) else value) or ""))
            except Exception as error:
                ended.append(cause_of(error)[0])

        training, last = in_ray(run), 0
        training.start()
        try:
            while training.is_alive() or not epochs.empty():
                training.join(POLL_SECONDS)
                for epoch in epochs.get_nowait_batch(epochs.qsize()):
                    if epoch.epoch > last:  # a run that had died tells of the same ones again
                        last = epoch.epoch
                        tell(epoch)
        finally:
            epochs.shutdown(force=True)  # a run that is still at work ends with it
        (reason,) = ended
        if reason:
            raise RunFailed(
                f"refit: the training failed: {reason}; mend that and start the same command "
                "again: it resumes"
            )


def _loop(study: ResolvedStudy, folder: str, params: dict[str, Any], epochs: Queue) -> str:
    """Train; returns why the training itself failed, which no other attempt would mend."""
    settle(study)
    join(study)
    try:
        for epoch in epochs_of_everyone(study, Folder(folder), params):
            if ray.train.get_context().get_world_rank() == 0:
                epochs.put(epoch)
            ray.train.report({"epoch": epoch.epoch})
    except FitFailed as error:
        return str(error)
    return ""
