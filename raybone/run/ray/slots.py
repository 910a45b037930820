"""Slots: long-lived Ray Train runs that take segments from the hub, a thread of the driver each."""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import threading
import time
import traceback
from collections.abc import Mapping
from functools import partial

import ray
from ray import train
from ray.exceptions import RayError
from ray.util import remove_placement_group
from ray.util.placement_group import PlacementGroup

from raybone.results.study_folder import StudyFolder
from raybone.run.ray.connection import in_ray
from raybone.run.ray.hub import Held, Outcome, find
from raybone.run.ray.trainer import cause_of, trainer
from raybone.run.ray.worker import Slot, serve
from raybone.study.spec import ResolvedStudy

POLL_SECONDS = 1.0
LOSS_SECONDS = 30.0  # by when Ray's head has noticed the loss of a node
NOBODY_SECONDS = 300.0  # after which nobody counts on a slot whose workers have not come
CLOSE_SECONDS = 45.0  # that slots have to retire at the end of a search
CUT_SECONDS = 8.0  # that they have when their workers are killed


class Slots:
    """The slots of a search: as many as there is work and room for.

    Each is one public ``TorchTrainer.fit``. One that dies, retires or has grown too much is gone;
    another is begun where there is work for it.
    """

    def __init__(self, study: ResolvedStudy, folder: str, hub: str) -> None:
        self._study, self._folder, self._hub = study, folder, hub
        self._living: dict[str, tuple[threading.Thread, float]] = {}
        self._here: set[str] = set()
        self._dead = dict.fromkeys(_dead_nodes(), -math.inf)
        self._over = False

    def follow(self, wanted: int, here: set[str], room: int) -> None:
        """Begin slots for what waits.

        Args:
            wanted: tasks that no slot has or waits for; here: slots whose workers have come; room:
                slots that fit the machines at once.
        """
        now = time.monotonic()
        self._here |= here
        self._living = {
            name: (thread, since)
            for name, (thread, since) in self._living.items()
            if thread.is_alive() and (name in self._here or now < since + NOBODY_SECONDS)
        }
        coming = [name for name in self._living if name not in self._here]
        for _ in range(min(wanted - len(coming), room - len(self._living))):
            name = f"slot-{secrets.token_hex(4)}"
            thread = in_ray(self._run, name)
            self._living[name] = thread, now
            thread.start()

    def close(self, groups: Mapping[str, PlacementGroup | None], patience: float) -> None:
        """Wait for the slots, which the hub sends away, those that are coming too, so that no
        thread is in Ray when it shuts down.

        Args:
            groups: of the slots whose workers have come: what is left of them after ``patience``
                seconds, in an epoch, ends with its placement group.
        """
        self._over = True
        self._join(patience)
        for name, group in groups.items():
            if group and name in self._living and self._living[name][0].is_alive():
                remove_placement_group(group)
        self._join(CUT_SECONDS)

    def _join(self, patience: float) -> None:
        until = time.monotonic() + patience
        for thread, _ in self._living.values():
            thread.join(max(0.0, until - time.monotonic()))

    def _run(self, name: str) -> None:
        """One slot, from its start to its end."""
        slot = Slot(self._study, self._folder, self._hub, name)
        try:
            if not self._over:
                trainer(self._study, self._folder, name, partial(serve, slot)).fit()
        except Exception as error:
            self._died(name, error)

    def _died(self, name: str, error: Exception) -> None:
        reason, blame = cause_of(error)
        counts = blame != "room" and not (blame in self._of_a_node() and self._lost_a_node())
        if blame == "room":
            logging.getLogger(__name__).warning(
                "waiting for room: %s; `ray status` shows what others use of the cluster", reason
            )
        if self._over:
            return  # all is told, and a call would start another Ray
        ours = isinstance(error, train.TrainingFailedError)
        outcome: Outcome = "failed" if ours and blame != "machine" else "halt"
        with contextlib.suppress(RayError, ValueError):  # without a hub there is no search
            held: Held | None = ray.get(find(self._hub).died.remote(name, reason, outcome, counts))
            if held and held.group:
                # Ray frees that of a run whose controller was killed only where a dashboard runs.
                remove_placement_group(held.group)
            if held and held.task:
                folder = StudyFolder(self._folder)
                log = folder.configuration(held.task.work.config_id).log
                with contextlib.suppress(OSError):  # the reason is told in any case
                    folder.files.write(log, traceback.format_exc().encode())
        time.sleep(POLL_SECONDS)

    def _of_a_node(self) -> tuple[str, ...]:
        """What the loss of a node looks like: of several workers, those that are left fail as if by
        their code.
        """
        return ("process", "code") if self._study.resources.workers > 1 else ("process",)

    def _lost_a_node(self) -> bool:
        """Whether a node is dead that was not a while ago; of several workers, the others may
        notice it before Ray's head does.
        """
        until = time.monotonic() + (LOSS_SECONDS if self._study.resources.workers > 1 else 0)
        while not self._over:
            now = time.monotonic()
            for node in _dead_nodes():
                self._dead.setdefault(node, now)
            lost = any(now < at + LOSS_SECONDS for at in self._dead.values())
            if lost or now >= until:
                return lost
            time.sleep(POLL_SECONDS)
        return False


def _dead_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}
