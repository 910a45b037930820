"""What each worker of a slot runs: ``fit``, segment after segment, its epochs forwarded to the
driver. It decides nothing.
"""

from __future__ import annotations

import errno
import faulthandler
import math
import os
import threading
import time
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import ray.util
import torch

from raybone.data.dataset import Dataset, dataset_of
from raybone.environment import environment
from raybone.errors import FitFailed
from raybone.results.study_folder import StudyFolder
from raybone.run.configuration import examine, pool, train
from raybone.run.ray.group import from_rank_zero, join
from raybone.run.ray.hub import Ended, Task, find
from raybone.study.spec import ResolvedStudy
from raybone.train.memory import free, resident
from raybone.types import Epoch

GROWTH = 2.0  # times the memory after the first segment, above which a slot's process is replaced
WATCH_SECONDS = 1.0


@dataclass(frozen=True)
class Slot:
    """Everything a slot needs to know; travels to each of its workers."""

    study: ResolvedStudy
    folder: str
    hub: str
    name: str


class Watchdog:
    """Ends this process when an epoch does not: one that hangs is better dead, as the dead are
    replaced.
    """

    def __init__(self, slot: Slot) -> None:
        self._slot, self._fold, self._due = slot, 0, math.inf
        # One thread from the start: where no memory is left, Thread.start() waits for ever.
        threading.Thread(target=self._watch, daemon=True).start()

    def expect(self, fold: int) -> None:
        """An epoch of that fold begins."""
        minutes = self._slot.study.limits.stall_minutes
        self._fold, self._due = fold, time.monotonic() + 60 * minutes

    def rest(self) -> None:
        """It has ended."""
        self._due = math.inf

    def _watch(self) -> None:
        while time.monotonic() < self._due:
            time.sleep(WATCH_SECONDS)
        faulthandler.dump_traceback()  # into Ray's log of this worker
        minutes = self._slot.study.limits.stall_minutes
        reason = f"fold {self._fold}: no epoch ended within limits.stall_minutes {minutes:g}"
        hub = find(self._slot.hub)
        ray.wait([hub.gives_up.remote(self._slot.name, reason)], timeout=10)
        os._exit(1)


def serve(slot: Slot) -> None:
    """Do the hub's tasks until it sends the slot away, or until its memory has grown too much."""
    settle(slot.study)
    join(slot.study)
    dataset, folder = dataset_of(slot.study), StudyFolder(slot.folder)
    if ray.train.get_context().get_world_rank() == 0:
        group = ray.util.get_current_placement_group()
        ray.get(find(slot.hub).here.remote(slot.name, group, environment()))
    watchdog = Watchdog(slot)
    ended, first, stays = None, 0, True
    while stays:
        task, stays = _claim(slot, ended, leaves=bool(first) and resident() > GROWTH * first)
        ended = _do(slot, task, folder, dataset, watchdog) if task else None
        if ended:
            free()
            first = first or (resident() if task and task.segment else 0)


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


def _do(slot: Slot, task: Task, folder: StudyFolder, dataset: Dataset, watchdog: Watchdog) -> Ended:
    """Train the task's segment, or pool."""
    work, segment = task.work, task.segment
    if segment is None:
        mine = ray.train.get_context().get_world_rank() == 0
        return Ended(pooled=pool(folder, dataset, work) if mine else None)
    try:
        watchdog.expect(segment.fold)
        for epoch in train(folder, dataset, work, segment):
            watchdog.rest()
            if _told(slot, work.config_id, epoch):
                return Ended("interrupted")
            watchdog.expect(segment.fold)
    except FitFailed as error:
        if error.alone:  # the others wait for this one, and end with its process
            ray.get(find(slot.hub).gives_up.remote(slot.name, str(error)))
            raise
        return Ended("failed", str(error))
    finally:
        watchdog.rest()
    return Ended()


def _claim(slot: Slot, ended: Ended | None, leaves: bool) -> tuple[Task | None, bool]:
    """The slot's next task and whether it goes on, the same on every rank.

    Ray broadcasts no more than a kilobyte: the other ranks ask for the task themselves.
    """
    hub, rank = find(slot.hub), ray.train.get_context().get_world_rank()
    said: Any = ray.get(hub.claim.remote(slot.name, ended, leaves)) if rank == 0 else None
    goes_on = from_rank_zero(True if isinstance(said, Task) else said)
    has = from_rank_zero(isinstance(said, Task))
    if not has:
        return None, goes_on
    task = said if rank == 0 else ray.get(hub.task.remote(slot.name))
    from_rank_zero(None)  # else the first could be done with it before the others ask
    return task, True


def _told(slot: Slot, config_id: str, epoch: Epoch) -> bool:
    """Tell the hub of an epoch; whether to stop, the same on every rank.

    The hub has it before the segment goes on, so that it is not lost with a worker that dies by
    then.
    """
    mine = ray.train.get_context().get_world_rank() == 0
    stop = ray.get(find(slot.hub).put.remote(config_id, epoch)) if mine else None
    return bool(from_rank_zero(stop))
