"""The driver: Ray Tune runs what the brain decides, and the journal is written here and nowhere
else.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from raybone.errors import RunFailed, WrongInput
from raybone.hpo.brain import Brain, Work
from raybone.hpo.fold_race import score
from raybone.results.study_folder import ConfigurationFolder
from raybone.run.local import HALTED, OpenStudy, conclude, open_study
from raybone.run.ray.connection import connection
from raybone.run.ray.hub import NAMESPACE, Hub
from raybone.run.ray.resources import ROOM_SECONDS, no_room, per_worker, room, slots
from raybone.run.ray.trial import run_trial, storage
from raybone.run.ray.worker import examine_remotely
from raybone.study.spec import ResolvedStudy, Study
from raybone.types import Epoch

# Every Ray head has this resource: a trial is a light process beside the driver, and its training
# runs elsewhere.
TRIAL = {"node:__internal_head__": 0.0005}
DRAIN_SECONDS = 0.3
TRIAL_RETRIES = 3
# Between two asks for the same nodes: a search that ends takes back what all have asked for
ASK_SECONDS = 60.0
PATIENCE = 600.0  # seconds without room for a run after which a search gives up, at the least


def search(
    study: Study,
    out: str,
    address: str | None = None,
    tell: Callable[[Brain], None] = lambda brain: None,
    warm: Sequence[str] = (),
    wait: float = 0,
) -> str:
    """Run or resume a study on Ray; returns why it ended.

    Args:
        address: of a Ray cluster; None starts one on this machine for the run, unless RAY_ADDRESS
            is set or this process is connected already.
        tell: called a few times a second with the brain, for progress.
        warm: leaderboards or study folders to propose from.
        wait: minutes to wait for nodes at the start; in mid-run for those that went, but 10 at the
            least.
    Raises:
        WrongInput: before anything is trained.
        RunFailed: machines or storage failed for too long, too many configurations failed, or the
            study folder cannot be written.
    """
    if not 0 <= wait < math.inf:
        raise WrongInput(f"--wait {wait:g}: must be a number of minutes, 0 or more")
    logging.getLogger("ray.tune").setLevel(
        logging.CRITICAL
    )  # tracebacks of trials that are started again
    with contextlib.ExitStack() as stack:

        def connect(checked: ResolvedStudy) -> int:
            stack.enter_context(connection(address))
            stack.callback(
                request_resources, bundles=[]
            )  # else an autoscaler would keep what was asked for, for ever
            return slots(checked, 60 * wait)

        opened = stack.enter_context(open_study(study, out, connect, warm))
        with _Driver(opened, tell, max(60 * wait, PATIENCE)).at_work() as driver:
            try:
                _tuner(driver).fit()
            except Exception:
                # At the end Tune reads its own records, which a full disk has cut; the journal is
                # what counts.
                if not opened.brain.done:
                    driver.raise_error()
                    raise
            driver.raise_error()
            driver.drain()
        driver.raise_error()
        if not opened.brain.done and not opened.brain.stopping:
            raise KeyboardInterrupt  # Tune ends its loop at Ctrl-C as if all were done
        reason = conclude(opened, functools.partial(_examine, patience=driver.patience))
        tell(opened.brain)
        return reason


def _tuner(driver: _Driver) -> tune.Tuner:
    study, folder = driver.opened.study, driver.opened.folder.files.absolute
    return tune.Tuner(
        tune.with_resources(run_trial, tune.PlacementGroupFactory([TRIAL])),
        param_space={"study": study, "folder": folder, "hub": driver.name},
        tune_config=tune.TuneConfig(
            num_samples=study.search.trials,
            search_alg=_FromBrain(driver),
            scheduler=_scheduler(driver),
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(
            name=f"tune-{driver.name}",
            **storage(folder),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=TRIAL_RETRIES),
        ),
    )


class _Driver:
    """Joins Tune's callbacks, the hub and the brain; a thread drains the hub while Tune works."""

    def __init__(self, opened: OpenStudy, tell: Callable[[Brain], None], patience: float) -> None:
        self.opened, self.brain, self.tell, self.patience = opened, opened.brain, tell, patience
        self.name = f"hub-{secrets.token_hex(6)}"
        self.hub: Any = Hub.options(  # type: ignore[attr-defined]
            name=self.name, namespace=NAMESPACE, resources=TRIAL
        ).remote()
        self.paused: dict[str, Any] = {}
        self._error: BaseException | None = None
        self._draining = threading.Lock()
        self._over = threading.Event()
        self._looked = self._roomy = time.monotonic()
        self._asked, self._asked_at = 0, self._looked

    @contextlib.contextmanager
    def at_work(self) -> Iterator[_Driver]:
        """Drain in the background for the time of the block."""
        thread = threading.Thread(target=self._loop, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join()
            ray.kill(self.hub)

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles its scheduler and searcher for Tuner.restore, which is not used: the journal
        # is the truth.
        return object, ()

    def drain(self) -> None:
        """Bring what the runs have said into the journal."""
        with self._draining:
            for message in ray.get(self.hub.drain.remote(bool(self.brain.stopping))):
                if "again" in message:
                    self.brain.again(message["config_id"], message["again"])
                else:
                    self.brain.epoch(message["config_id"], Epoch(**message["epoch"]))
            if self.brain.spare():
                for config_id, runs in self.brain.widen(ray.get(self.hub.open.remote())).items():
                    ray.get(self.hub.widen.remote(config_id, runs))

    def begin(self, work: Work) -> bool:
        """Take work up and leave it where the trial finds it; whether that could be recorded."""
        try:
            ray.get(self.hub.assign.remote(self.brain.start(work)))
        except Exception as error:
            self._fail(error)
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
        # What the journal cannot be told is nobody's failure, and is found again in last.pt.
        self.brain.interrupt(config_id)
        return True

    def _take_in(self, config_id: str, result: dict[str, Any]) -> bool:
        self.drain()
        if result["outcome"] == "failed":
            self.brain.fail(config_id, result["reason"])
            return True
        if result["outcome"] in ("interrupted", "halt"):
            self.brain.interrupt(
                config_id, f"{HALTED}: {result['reason']}" if result["outcome"] == "halt" else ""
            )
            return True
        if result.get("pooled"):
            self.brain.pooled(config_id, result["pooled"])
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
        self.brain.stopping = self.brain.stopping or f"driver: {error}"
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
            self.brain.stopping = (
                self.brain.stopping
                or f"{HALTED}: {no_room(study)}, for {self.patience / 60:.0f} min"
            )
        wanted = self.brain.wanted(ray.get(self.hub.open.remote()))
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


class _FromBrain(Searcher):
    """New configurations, and those of an earlier driver, when the brain wants them."""

    def __init__(self, driver: _Driver) -> None:
        super().__init__(metric="rung", mode="max")
        self.driver = driver

    def suggest(self, trial_id: str) -> Any:  # noqa: ARG002
        """A configuration to start, None to wait, or FINISHED."""
        if self.driver.brain.done:
            return Searcher.FINISHED
        work = self.driver.brain.peek()
        if work is None or work.config_id in self.driver.paused or not self.driver.begin(work):
            return None
        return {"config_id": work.config_id}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing: the scheduler has told the brain."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the truth."""


class _Race(TrialScheduler):
    """fold_race and full: a configuration that has finished a rung waits until the brain promotes
    it.
    """

    def __init__(self, driver: _Driver) -> None:
        super().__init__()
        self.driver = driver

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Nothing to prepare."""

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:  # noqa: ARG002
        """The trial's process died; Tune starts it again unless it did so too often."""
        if trial.should_recover():
            return
        config_id = trial.config["config_id"]
        self.driver.brain.interrupt(
            config_id, f"{HALTED}: the Tune trial of {config_id} died {TRIAL_RETRIES + 1} times"
        )

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Any) -> None:
        """Nothing: its last result said all."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Nothing: the brain closes what waits when the search ends."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:  # noqa: ARG002
        """STOP what is final, CONTINUE what is promoted at once, PAUSE the rest."""
        config_id = trial.config["config_id"]
        if self.driver.finished_rung(config_id, result):
            return TrialScheduler.STOP
        work = self.driver.brain.peek()
        if work and work.config_id == config_id:
            return TrialScheduler.CONTINUE if self.driver.begin(work) else TrialScheduler.STOP
        self.driver.paused[config_id] = trial
        return TrialScheduler.PAUSE

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The paused trial whose turn it is; at the end of the search, all of them are ended."""
        waiting = {c: t for c, t in self.driver.paused.items() if t.status == "PAUSED"}
        if self.driver.brain.done:
            for config_id, trial in waiting.items():
                del self.driver.paused[config_id]
                tune_controller.stop_trial(trial)
            return None
        work = self.driver.brain.peek()
        if work is None or work.config_id not in waiting or not self.driver.begin(work):
            return None
        return self.driver.paused.pop(work.config_id)

    def debug_string(self) -> str:
        """What Tune prints about this scheduler."""
        return "raybone"


class _Asha(_Race):
    """Ray's own ASHAScheduler on lockstep folds; its rungs are filled again from the journal."""

    def __init__(self, driver: _Driver) -> None:
        super().__init__(driver)
        study = driver.opened.study
        self.epochs = [e for _, e in study.resolved.ladder]
        # Ray counts milestones as grace x factor^n; rungs are told as such powers, so that rounded
        # epochs hit them.
        self.asha = ASHAScheduler(
            time_attr="clock",
            metric="score",
            mode="max",
            grace_period=1,
            reduction_factor=3,
            max_t=max(3 ** (len(self.epochs) - 1), 2),
        )
        trials = {c: SimpleNamespace(trial_id=c) for c in self.driver.brain.state.configurations}
        for trial in trials.values():
            self.asha.on_trial_add(None, trial)
        for rung, arrived in sorted(self.driver.brain.state.arrivals.items()):
            for config_id in arrived:
                told = self._told(config_id, rung)
                stopped = (
                    self.asha.on_trial_result(None, trials[config_id], told) == TrialScheduler.STOP
                )
                if stopped and self.driver.brain.state.configurations[config_id].status == "paused":
                    self._stop(config_id, told)
        self.trials = trials

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Every milestone goes to Ray's scheduler once and in order."""
        config_id = trial.config["config_id"]
        if self.driver.finished_rung(config_id, result):
            return TrialScheduler.STOP
        if config_id not in self.trials:
            self.trials[config_id] = SimpleNamespace(trial_id=config_id)
            self.asha.on_trial_add(None, self.trials[config_id])
        told = self._told(config_id, result["rung"])
        if (
            self.asha.on_trial_result(tune_controller, self.trials[config_id], told)
            == TrialScheduler.CONTINUE
        ):
            # What a limit ends here goes on when the search is resumed.
            on = not self.driver.brain.over_limit() and self.driver.begin(
                self.driver.brain.follow(config_id)
            )
            return TrialScheduler.CONTINUE if on else TrialScheduler.STOP
        self._stop(config_id, told)
        return TrialScheduler.STOP

    def _stop(self, config_id: str, told: dict[str, Any]) -> None:
        epochs = self.epochs[told["training_iteration"] - 1]
        self.driver.brain.stop(
            config_id, f"Ray's ASHA: {told['score']:.4f} is below the cutoff at {epochs} epochs"
        )

    def _told(self, config_id: str, rung: int) -> dict[str, Any]:
        """A result as Ray's ASHA takes it; NaN would pass every rung, so it is a very low
        number.
        """
        value = score(
            self.driver.opened.study, self.driver.brain.state.configurations[config_id], rung
        )
        return {"clock": 3**rung, "score": max(value, -1e12), "training_iteration": rung + 1}


def _examine(best: ConfigurationFolder, patience: float) -> dict[str, float]:
    """``search.examine`` where a training worker would run, as the driver may have no GPU."""
    folder, study = best.folder, best.folder.study
    need = per_worker(study)
    task = ray.remote(num_cpus=need["CPU"], num_gpus=need.get("GPU", 0))(examine_remotely)
    asked, roomy = task.remote(folder.files.absolute, best.id), time.monotonic()
    while not ray.wait([asked], timeout=ROOM_SECONDS)[0]:
        roomy = time.monotonic() if room(study) else roomy
        if time.monotonic() - roomy > patience or folder.stop is not None:
            ray.cancel(asked)
            raise TimeoutError(f"it was stopped, or {no_room(study)}")
    return dict(ray.get(asked))


def _scheduler(driver: _Driver) -> TrialScheduler:
    return _Asha(driver) if driver.opened.study.search.scheduler == "asha" else _Race(driver)
