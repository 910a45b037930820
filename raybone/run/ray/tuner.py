"""A search on Ray: Tune runs what the brain decides."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import tune
from ray.autoscaler.sdk import request_resources

from raybone.errors import EndReason
from raybone.hpo.brain import Brain
from raybone.results.study_folder import ConfigurationFolder
from raybone.run.ending import conclude
from raybone.run.interrupts import heeding
from raybone.run.ray.cluster import Cluster
from raybone.run.ray.connection import connection
from raybone.run.ray.driver import TRIAL, Driver
from raybone.run.ray.resources import ROOM_SECONDS, no_room, per_worker, room, slots
from raybone.run.ray.schedulers import TRIAL_RETRIES, AshaScheduler, FromBrain, RaceScheduler
from raybone.run.ray.trainer import storage
from raybone.run.ray.trial import Trial
from raybone.run.ray.worker import examine_remotely
from raybone.run.session import open_study
from raybone.study.spec import ResolvedStudy, Study

HERE = Cluster()
PATIENCE = 600.0  # seconds without room for a run after which a search gives up, at the least


def search(
    study: Study,
    out: str,
    cluster: Cluster = HERE,
    tell: Callable[[Brain], None] = lambda brain: None,
    warm: Sequence[str] = (),
) -> EndReason:
    """Run or resume a study on Ray; returns why it ended.

    Args:
        tell: called a few times a second with the brain, for progress.
        warm: leaderboards or study folders to propose from.
    Raises:
        WrongInput: before anything is trained.
        RunFailed: machines or storage failed for too long, too many configurations failed, or the
            study folder cannot be written.
    """
    # Else it prints tracebacks of trials that are started again.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:

        def connect(checked: ResolvedStudy) -> int:
            stack.enter_context(connection(cluster.address))
            # Else an autoscaler would keep what was asked for, for ever.
            stack.callback(request_resources, bundles=[])
            return slots(checked, 60 * cluster.wait)

        patience = max(60 * cluster.wait, PATIENCE)
        opened = stack.enter_context(open_study(study, out, connect, warm))
        stack.enter_context(heeding(opened.brain.stop_for))
        with Driver(opened, tell, patience).at_work() as driver:
            try:
                _tuner(driver, cluster.callbacks).fit()
            except Exception:
                # At the end Tune reads its own records, which a full disk has cut; the journal is
                # what counts.
                if not opened.brain.done:
                    driver.raise_error()
                    raise
            driver.raise_error()
            driver.drain(last=True)
        driver.raise_error()
        if not opened.brain.done and not opened.brain.stopping:
            raise KeyboardInterrupt  # Tune ends its loop at SIGUSR1 as if all were done
        reason = conclude(opened, functools.partial(_examine, patience=patience))
        tell(opened.brain)
        return reason


def _tuner(driver: Driver, callbacks: Sequence[tune.Callback]) -> tune.Tuner:
    study, folder = driver.opened.study, driver.opened.folder.files.absolute
    scheduler = AshaScheduler if study.search.scheduler == "asha" else RaceScheduler
    return tune.Tuner(
        tune.with_resources(
            tune.with_parameters(Trial, hub=driver.name), tune.PlacementGroupFactory([TRIAL])
        ),
        tune_config=tune.TuneConfig(
            num_samples=-1,  # the brain says when there is nothing left
            search_alg=FromBrain(driver),
            scheduler=scheduler(driver),
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=f"tune-{driver.name}",
            **storage(folder),
            verbose=0,
            callbacks=[*callbacks],
            failure_config=tune.FailureConfig(max_failures=TRIAL_RETRIES),
        ),
    )


def _name(trial: Any) -> str:
    return str(trial.config["config_id"])


def _examine(best: ConfigurationFolder, patience: float) -> dict[str, float]:
    """``examine`` where a training worker would run, as the driver may have no GPU."""
    folder, study = best.folder, best.folder.study
    need = per_worker(study)
    task = ray.remote(num_cpus=need["CPU"], num_gpus=need.get("GPU", 0))(examine_remotely)
    asked, roomy = task.remote(folder.files.absolute, best.id), time.monotonic()
    while not ray.wait([asked], timeout=ROOM_SECONDS)[0]:
        roomy = time.monotonic() if room(study) else roomy
        if time.monotonic() - roomy > patience or folder.stop.whole:
            ray.cancel(asked)
            raise TimeoutError(f"it was stopped, or {no_room(study)}")
    return dict(ray.get(asked))
