"""The body of a Tune trial: one configuration, taken from rung to rung by Ray Train runs."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import ray
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray import train, tune
from ray._raylet import PlacementGroupID
from ray.exceptions import RayError
from ray.train.v2._internal.exceptions import RayTrainError, WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import PreemptionError, TrainingFailedError
from ray.util.placement_group import PlacementGroup, remove_placement_group

from raybone.errors import WrongInput
from raybone.results.study_folder import LOGS, StudyFolder
from raybone.run.ray.hub import find
from raybone.run.ray.network import RaysNetwork
from raybone.run.ray.resources import per_worker
from raybone.run.ray.trainer import Trainer
from raybone.run.ray.worker import Job, train_loop
from raybone.storage import Folder
from raybone.study.spec import Study

POLL_SECONDS = 1.0
LOSS_SECONDS = 30.0  # by when Ray's head has noticed the loss of a node
NOBODY_SECONDS = 300.0  # after which a run without a worker hangs
RETRIES = 2  # of a run that died without an epoch since it last did


def run_trial(config: dict[str, Any]) -> None:
    """Do what the hub says, report between rungs only, until Tune pauses or ends this trial.

    Tune never sees a trial with live training: a killed nested run would leak its placement group.
    """
    study, folder, hub = config["study"], config["folder"], config["hub"]
    while True:
        work = ray.get(find(hub).work.remote(config["config_id"]))
        result = _run(Job(study, folder, hub, work, ""))
        with tempfile.TemporaryDirectory() as place:
            # Tune can pause a function only from a checkpoint; all that matters is in last.pt and
            # the journal.
            (Path(place) / "rung.json").write_text(
                json.dumps({"rung": work.rung}), encoding="utf-8"
            )
            tune.report(
                {"rung": work.rung, **result}, checkpoint=tune.Checkpoint.from_directory(place)
            )


def _run(job: Job) -> dict[str, Any]:
    """Train the folds of a rung in as many runs as the hub allows, which may grow; the outcome of
    the worst run.
    """
    hub, running = find(job.hub), list[Future[dict[str, Any]]]()
    for group in ray.get(hub.reopen.remote(job.work.config_id)):
        # Ray frees the group of a run whose trial was killed only where a dashboard runs.
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
    try:
        with ThreadPoolExecutor(max(1, len(job.work.segments))) as pool:
            while not running or not all(future.done() for future in running):
                runs = ray.get(hub.work.remote(job.work.config_id)).runs
                running += [pool.submit(_train, job) for _ in range(runs - len(running))]
                wait(running, timeout=POLL_SECONDS)
        results = [future.result() for future in running]
    except Exception as error:
        with contextlib.suppress(OSError):  # the reason is told in any case
            folder = StudyFolder(job.folder)
            log = folder.configuration(job.work.config_id).log
            folder.files.write(log, traceback.format_exc().encode())
        if isinstance(error, TrainingFailedError):
            return {"outcome": "failed", "reason": cause_of(error)[0], "pooled": None}
        return {"outcome": "halt", "reason": f"{type(error).__name__}: {error}", "pooled": None}
    worst = next(
        (r for o in ("failed", "halt", "interrupted") for r in results if r["outcome"] == o), None
    )
    pooled = next((r["pooled"] for r in results if r.get("pooled")), None)
    return {"outcome": "done", "reason": "", **(worst or {}), "pooled": pooled}


def _train(job: Job) -> dict[str, Any]:
    """One run: a Ray Train run, and after each death another, in which a fold goes on from its last
    epoch.

    Returns:
        What ``train_loop`` returns, or the outcome halt when storage or machines fail, which does
        not count against the configuration.
    Raises:
        TrainingFailedError: it has died too often without an epoch between; the loss of a node does
            not count.
        Exception: of what no worker did.
    """
    job, hub, counted = (
        replace(job, run=f"{job.work.config_id}-{uuid.uuid4().hex[:8]}"),
        find(job.hub),
        0,
    )
    while True:
        dead, at = _dead_nodes(), ray.get(hub.heard.remote(job.run))
        try:
            with watched(job):
                return _fit(job)
        except (TrainingFailedError, OSError) as error:
            reason, blame = cause_of(error)
            counted = 0 if ray.get(hub.heard.remote(job.run)) > at else counted
            counted += blame != "room" and not (
                blame in _of_a_node(job) and _lost_a_node(job, dead)
            )
            if ray.get(hub.stop_wanted.remote()):
                return {"outcome": "interrupted"}
            if counted > RETRIES and blame == "machine":
                return {"outcome": "halt", "reason": reason}
            if counted > RETRIES:
                raise
            ray.get(hub.put.remote({"config_id": job.work.config_id, "again": reason}))
            time.sleep(counted)


@contextlib.contextmanager
def watched(job: Job) -> Iterator[None]:
    """Ends this process where a run still has no worker long after its start, so that Tune starts
    the trial again.

    Ray Train gives up by itself when there is no room; what hangs before a worker is there, nothing
    else would end.
    """
    hub = find(job.hub)
    before = ray.get(hub.arrivals.remote(job.run))

    def give_up() -> None:
        if ray.get(hub.arrivals.remote(job.run)) > before:
            return
        faulthandler.dump_traceback()  # into Ray's log of this trial
        reason = f"a run had no worker {NOBODY_SECONDS:g} s after its start"
        ray.wait([hub.put.remote({"config_id": job.work.config_id, "again": reason})], timeout=10)
        os._exit(1)

    timer = threading.Timer(NOBODY_SECONDS, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _fit(job: Job) -> dict[str, Any]:
    """One Ray Train run, under a name never used before: ``last.pt`` is what it resumes from, not
    Train's storage.
    """
    hub = find(job.hub)
    value = (
        trainer(
            job.study,
            job.folder,
            f"{job.work.config_id}-{job.work.rung}-{uuid.uuid4().hex[:8]}",
            train_loop,
            {"job": job},
            lambda group: ray.get(hub.holds.remote(job.work.config_id, group)),
        )
        .fit()
        .return_value
    )
    return dict(value[0] if isinstance(value, list) else value)


def trainer(
    study: Study,
    folder: str,
    name: str,
    loop: Callable[[dict[str, Any]], Any],
    config: dict[str, Any],
    placed: Callable[[str], None],
    max_failures: int = 0,
) -> Trainer:
    """A Ray Train run with the study's resources.

    Args:
        loop: what each worker calls with the config; max_failures: how often Ray Train starts it
            again.
    """
    resources = study.resources
    return Trainer(
        loop,
        train_loop_config=config,
        placed=placed,
        # A single process needs no nccl, which takes GPU memory.
        torch_config=RaysNetwork(
            "nccl" if resources.gpus and resources.workers > 1 else "gloo",
            timeout_s=round(60 * study.limits.stall_minutes),
        ),
        scaling_config=train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus > 0,
            resources_per_worker=per_worker(study),
        ),
        run_config=train.RunConfig(
            name=name,
            **storage(folder),
            failure_config=train.FailureConfig(
                max_failures=max_failures,
                max_preemption_failures=max_failures,
                controller_failure_limit=0,
            ),
        ),
    )


def storage(folder: str) -> dict[str, Any]:
    """Where Ray keeps its own records of a study; every node must reach it."""
    there = Folder(f"{folder}/{LOGS}/ray")
    if there.local or folder.startswith("s3://"):  # what Ray opens as raybone does
        return {"storage_path": str(Path(there.path).resolve()) if there.local else there.url}
    return {"storage_path": there.path, "storage_filesystem": PyFileSystem(FSSpecHandler(there.fs))}


def _of_a_node(job: Job) -> tuple[str, ...]:
    """What the loss of a node looks like: of several workers, those that are left fail as if by
    their code.
    """
    return ("process", "code") if job.study.resources.workers > 1 else ("process",)


def _lost_a_node(job: Job, dead: set[str]) -> bool:
    """Whether another node is dead than those; of several workers, the others may notice it before
    Ray's head does.
    """
    until = time.monotonic() + (LOSS_SECONDS if job.study.resources.workers > 1 else 0)
    while not (lost := _dead_nodes() > dead) and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    return lost


def cause_of(
    error: TrainingFailedError | OSError,
) -> tuple[str, Literal["room", "machine", "process", "code"]]:
    """The first worker's own error in one line, out of Train's wrapping, and what is to blame for
    it.
    """
    if isinstance(error, PreemptionError):
        return "its node was taken back", "room"
    found: Any = getattr(error, "controller_failure", error)
    if isinstance(found, WorkerGroupStartupTimeoutError):
        return "no room for its workers in time", "room"
    # When one worker dies the others fail as well, of broken connections: what killed the first one
    # counts.
    workers = sorted(
        getattr(error, "worker_failures", {}).values(),
        key=lambda e: not isinstance(e, RayTrainError),
    )
    found = workers[0] if workers else found
    found = getattr(found, "health_check_failure", found)
    blame: Literal["room", "machine", "process", "code"] = "code"
    if isinstance(found, OSError | WrongInput) and not isinstance(found, RayError):
        blame = "machine"
    elif isinstance(found, RayError | RayTrainError):
        blame = "process"
    lines = [line.strip() for line in str(found).splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line or "Exception" in line]
    # A traceback says at its end what it is; Ray says it first, and goes on with guesses at length.
    said = (named or (lines[:1] if blame == "process" else lines) or ["no message"])[-1]
    return (
        f"{type(found).__name__}: {said.partition('. ')[0] if blame == 'process' else said}",
        blame,
    )


def _dead_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}
