"""The driver joins Tune's callbacks, the hub, the slots and the brain; it alone writes the
journal.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError

from raybone.errors import EndReason, RunFailed
from raybone.hpo.brain import Brain, Work
from raybone.run.ray.hub import NAMESPACE, Hub, Said
from raybone.run.ray.resources import ROOM_SECONDS, no_room, per_worker, room
from raybone.run.ray.slots import CLOSE_SECONDS, Slots
from raybone.run.session import OpenStudy

# Every Ray head has this resource: a trial is light, beside the driver, and trains nothing.
TRIAL = {"node:__internal_head__": 0.0005}
DRAIN_SECONDS = 0.3
# Between two asks for the same nodes: a search that ends takes back what all have asked for
ASK_SECONDS = 60.0


class Driver:
    """Joins Tune's callbacks, the hub, the slots and the brain; a thread drains the hub while Tune
    works.
    """

    def __init__(self, opened: OpenStudy, tell: Callable[[Brain], None], patience: float) -> None:
        self.opened, self.brain, self.tell, self.patience = opened, opened.brain, tell, patience
        self.name = f"hub-{secrets.token_hex(6)}"
        self.hub: Any = (
            ray.remote(num_cpus=0)(Hub)
            .options(name=self.name, namespace=NAMESPACE, resources=TRIAL)
            .remote()
        )
        self.slots = Slots(opened.study, opened.folder.files.absolute, self.name)
        self.paused: dict[str, Any] = {}
        self._error: BaseException | None = None
        self._draining = threading.Lock()
        self._over = threading.Event()
        self._looked = self._roomy = time.monotonic()
        self._asked, self._asked_at = 0, self._looked
        self._open: dict[str, int] = {}

    @contextlib.contextmanager
    def at_work(self) -> Iterator[Driver]:
        """Drain in the background for the time of the block."""
        thread = threading.Thread(target=self._loop, daemon=True)
        thread.start()
        patience = 0.0
        try:
            yield self
            patience = CLOSE_SECONDS
        finally:
            self._over.set()
            thread.join()
            self.close(patience)

    def close(self, patience: float = CLOSE_SECONDS) -> None:
        """End slots and hub; a slot that is in an epoch has ``patience`` seconds."""
        groups: dict[str, Any] = {}
        with contextlib.suppress(RayError):  # what killed the hub is told elsewhere
            groups = ray.get(self.hub.close.remote())
        self.slots.close(groups, patience)
        ray.kill(self.hub)

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles its scheduler and searcher for Tuner.restore, which is not used: the journal
        # is the truth.
        return object, ()

    def drain(self, last: bool = False) -> None:
        """Bring what the slots have said into the journal, and begin slots for what waits, unless
        it is the last time.
        """
        with self._draining:
            dropped = frozenset(self.brain.dropped)
            said: Said = ray.get(self.hub.drain.remote(bool(self.brain.stopping), dropped))
            for message in said.messages:
                if "runs_on" in message:
                    self.brain.runs_on("worker", message["runs_on"])
                    continue
                config_id = message["config_id"]
                if "again" in message:
                    self.brain.again(config_id, message["again"])
                elif "pooled" in message:
                    self.brain.pooled(config_id, message["pooled"])
                else:
                    self.brain.epoch(config_id, message["epoch"])
            if self.brain.spare():
                for config_id, runs in self.brain.widen(said.open).items():
                    ray.get(self.hub.widen.remote(config_id, runs))
            self._open = said.open
            if not (last or self.brain.stopping):
                self.slots.follow(said.tasks - said.idle, said.here, self.brain.slots)

    def begin(self, work: Work) -> bool:
        """Take work up and leave it where the trial finds it; whether that could be recorded."""
        try:
            work = self.brain.start(work)
            had = {
                fold: (len(run), {name: run.last(name) for name in run.metrics})
                for fold, run in self.brain.state.configurations[work.config_id].epochs.items()
            }
            ray.get(self.hub.assign.remote(work, had))
        except Exception as error:
            self._fail(error)
        if self._error:
            self.brain.interrupt(work.config_id)
        return not self._error

    def finished_rung(self, config_id: str, result: dict[str, Any]) -> bool:
        """Take in what a trial reports after a rung; whether that ends the configuration's
        trial.
        """
        try:
            if not self._error:
                return self._take_in(config_id, result)
        except Exception as error:
            self._fail(error)
        # What cannot be written to the journal is no failure, and is read from last.pt again.
        self.brain.interrupt(config_id)
        return True

    def _take_in(self, config_id: str, result: dict[str, Any]) -> bool:
        self.drain()
        if result["outcome"] == "failed":
            self.brain.fail(config_id, result["reason"])
            return True
        if result["outcome"] == "dropped":
            self.brain.stop(config_id)
            return True
        if result["outcome"] == "halt":
            self.brain.stop_for(EndReason("halted", result["reason"]))
        if result["outcome"] in ("interrupted", "halt"):
            self.brain.interrupt(config_id)
            return True
        if self.brain.state.configurations[config_id].rung >= result["rung"]:
            return (
                False  # told before, by a trial that died, or could not save, on its way to a pause
            )
        return self.brain.rung_done(config_id, result["rung"]) is not None

    def raise_error(self) -> None:
        """Raise what went wrong in the background or in one of Tune's callbacks."""
        if isinstance(self._error, RayError):
            raise RunFailed(
                f"driver: {type(self._error).__name__}: "
                f"{' '.join(str(self._error).split())[:200]}; start the same command again"
            ) from self._error
        if self._error:
            raise self._error

    def _fail(self, error: BaseException) -> None:
        """Nothing more can be recorded: hand out no work, end the runs, and let the main thread say
        why.
        """
        self._error = self._error or error
        self.brain.stop_for(EndReason("driver", str(error)))
        self.hub.halt.remote()

    def _follow_the_cluster(self) -> None:
        """Take notice of nodes that came or went, and ask an autoscaler for those that could be
        used.
        """
        now, study = time.monotonic(), self.opened.study
        if now < self._looked + ROOM_SECONDS:
            return
        self._looked, fitting = now, room(study)
        self.brain.resize(fitting)
        self._roomy = now if fitting else self._roomy
        if now - self._roomy > self.patience:
            minutes = f"{self.patience / 60:.0f} min"
            self.brain.stop_for(EndReason("halted", f"{no_room(study)}, for {minutes}"))
        wanted = self.brain.wanted(self._open)
        most = study.resources.concurrent
        wanted = wanted if most == "auto" else min(wanted, most)
        if wanted != self._asked or now > self._asked_at + ASK_SECONDS:
            request_resources(bundles=[per_worker(study)] * study.resources.workers * wanted)
            self._asked, self._asked_at = wanted, now

    def _loop(self) -> None:
        while not self._over.wait(DRAIN_SECONDS):
            try:
                self.drain()
                self._follow_the_cluster()
                self.opened.stop_wanted()
                self.opened.publish()
                with self.brain.lock:
                    self.tell(self.brain)
            except BaseException as error:
                self._fail(error)
                return
