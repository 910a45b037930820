"""What each Ray Train worker runs: ``fit``, epoch by epoch, forwarded to the driver. It decides
nothing.
"""

from __future__ import annotations

import errno
import faulthandler
import os
import threading
from dataclasses import asdict, dataclass
from typing import Any

import ray
import ray.train
import ray.train.collective
import ray.train.torch
import ray.util
import torch

from raybone.errors import FitFailed
from raybone.hpo.brain import Work
from raybone.results.study_folder import StudyFolder
from raybone.run.checks import dataset_of
from raybone.run.configuration import examine, pool, train
from raybone.run.ray.hub import find
from raybone.study.spec import ResolvedStudy
from raybone.types import Epoch, Segment


@dataclass(frozen=True)
class Job:
    """Everything a run needs to know; travels to every worker."""

    study: ResolvedStudy
    folder: str
    hub: str
    work: Work
    run: str


def train_loop(config: dict[str, Job]) -> dict[str, Any]:
    """Train segments of the job's work, one after another while the hub has any; returns how that
    ended.

    Returns:
        ``outcome`` is done, interrupted (the study is stopping) or failed with a ``reason``;
        ``pooled`` holds metrics over all folds once the last of them is there.
    """
    job = config["job"]
    ray.get(find(job.hub).here.remote(job.run))
    settle(job.study)
    dataset = dataset_of(job.study)
    folder = StudyFolder(job.folder)
    context, done = ray.train.get_context(), False
    try:
        while segment := _claim(job, context, finished=done):
            timer = _timer(job, segment)
            for epoch in train(folder, dataset, job.work, segment):
                timer.cancel()
                if _told(job, epoch, context):
                    return {"outcome": "interrupted"}
                timer = _timer(job, segment)
            timer.cancel()
            done = True
    except FitFailed as error:
        return {"outcome": "failed", "reason": str(error)}
    pooled = pool(folder, dataset, job.work) if context.get_world_rank() == 0 else None
    return {"outcome": "done", "pooled": pooled}


def settle(study: ResolvedStudy) -> None:
    """Take the threads and the GPU that the study and Ray give to this worker."""
    torch.set_num_threads(study.resources.cpus)
    if study.resources.gpus:
        if not torch.cuda.is_available():
            raise OSError(
                errno.ENODEV,
                f"Ray gives GPU {ray.get_gpu_ids()}, but torch finds none; mend the driver or the "
                "image of this machine",
                ray.util.get_node_ip_address(),
            )
        torch.cuda.set_device(ray.train.torch.get_device())


def examine_remotely(url: str, config_id: str) -> dict[str, float]:
    """``examine`` of a study folder as a Ray task with the resources of a training
    worker.
    """
    folder = StudyFolder(url)
    study = folder.study
    torch.set_num_threads(study.resources.cpus)
    return examine(folder.configuration(config_id), dataset_of(study))


def _timer(job: Job, segment: Segment) -> threading.Timer:
    """Ends this process when an epoch does not: one that hangs is better dead, as the dead are
    replaced.
    """
    minutes = job.study.limits.stall_minutes

    def give_up() -> None:
        faulthandler.dump_traceback()  # into Ray's log of this worker
        reason = f"fold {segment.fold}: no epoch ended within limits.stall_minutes {minutes:g}"
        ray.wait(
            [find(job.hub).put.remote({"config_id": job.work.config_id, "again": reason})],
            timeout=10,
        )
        os._exit(1)

    timer = threading.Timer(60 * minutes, give_up)
    timer.daemon = True
    timer.start()
    return timer


def _claim(job: Job, context: Any, finished: bool) -> Segment | None:
    """The run's next segment, the same on every rank."""
    mine = context.get_world_rank() == 0
    segment = (
        ray.get(find(job.hub).claim.remote(job.work.config_id, job.run, finished)) if mine else None
    )
    return _from_rank_zero(segment, context)


def _told(job: Job, epoch: Epoch, context: Any) -> bool:
    """Tell the hub and Ray Train of an epoch; whether to stop, the same on every rank.

    The hub has it before the run goes on: Train's own reports come later, and are lost with a
    worker that dies by then.
    """
    message = {"config_id": job.work.config_id, "run": job.run, "epoch": asdict(epoch)}
    stop = ray.get(find(job.hub).put.remote(message)) if context.get_world_rank() == 0 else None
    ray.train.report(message)
    return bool(_from_rank_zero(stop, context))


def _from_rank_zero(value: Any, context: Any) -> Any:
    return (
        ray.train.collective.broadcast_from_rank_zero(value)
        if context.get_world_size() > 1
        else value
    )
