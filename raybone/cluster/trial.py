"""The body of a Tune trial: one configuration, taken from rung to rung by Ray Train runs."""

from __future__ import annotations

import json
import tempfile
import traceback
import uuid
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import train, tune
from ray._raylet import PlacementGroupID
from ray.train.torch import TorchTrainer
from ray.util.placement_group import PlacementGroup, remove_placement_group

from raybone.cluster.hub import find
from raybone.cluster.network import RaysNetwork
from raybone.cluster.worker import Job, train_loop
from raybone.folder import Folder
from raybone.spec import Study

POLL_SECONDS = 1.0
RETRIES = 2  # of a run whose worker died, without an epoch in between; a fold goes on from its last epoch


def run_trial(config: dict[str, Any]) -> None:
    """Do what the hub says, report between rungs only, until Tune pauses or ends this trial.

    Tune never sees a trial with live training: a killed nested run would leak its placement group.
    """
    study, folder, hub = config["study"], config["folder"], config["hub"]
    while True:
        work = ray.get(find(hub).work.remote(config["config_id"]))
        result = _run(Job(study, folder, hub, work, ""))
        with tempfile.TemporaryDirectory() as place:
            # Tune can pause a function only from a checkpoint; all that matters is in last.pt and the journal.
            (Path(place) / "rung.json").write_text(json.dumps({"rung": work.rung}), encoding="utf-8")
            tune.report({"rung": work.rung, **result}, checkpoint=tune.Checkpoint.from_directory(place))


def _run(job: Job) -> dict[str, Any]:
    """Train the folds of a rung in as many runs as the hub allows, which may grow; the outcome of the worst run."""
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
        trace = traceback.format_exc()
        Folder(job.folder).write(f"logs/{job.work.config_id}.txt", trace.encode())
        return {"outcome": "failed", "reason": _cause(error), "pooled": None}
    worst = next((r for o in ("failed", "interrupted") for r in results if r["outcome"] == o), None)
    pooled = next((r["pooled"] for r in results if r.get("pooled")), None)
    return {"outcome": "done", "reason": "", **(worst or {}), "pooled": pooled}


def _train(job: Job) -> dict[str, Any]:
    """One run of Ray Train, or several in a row as long as each gets on: a long run may lose many a worker."""
    job = replace(job, run=f"{job.work.config_id}-{job.work.rung}-{uuid.uuid4().hex[:8]}")
    hub, heard = find(job.hub), 0
    while True:
        try:
            value = _trainer(job).fit().return_value
            return dict(value[0] if isinstance(value, list) else value)
        except train.WorkerGroupError:
            before, heard = heard, ray.get(hub.heard.remote(job.run))
            if heard == before:
                raise


def _trainer(job: Job) -> TorchTrainer:
    """Under a name never used before: ``last.pt`` is what it resumes from, not Train's storage."""
    resources = job.study.resources
    return TorchTrainer(
        train_loop, train_loop_config={"job": job}, torch_config=RaysNetwork("nccl" if resources.gpus else "gloo"),
        scaling_config=train.ScalingConfig(num_workers=resources.workers, use_gpu=resources.gpus > 0,
                                           resources_per_worker=per_worker(job.study)),
        run_config=train.RunConfig(name=f"{job.run}-{uuid.uuid4().hex[:4]}",
                                   storage_path=storage(job.folder),
                                   failure_config=train.FailureConfig(max_failures=RETRIES,
                                                                      controller_failure_limit=RETRIES)))


def per_worker(study: Study) -> dict[str, float]:
    """Ray resources of one training worker."""
    resources = study.resources
    return {"CPU": resources.cpus, **({"GPU": resources.gpus} if resources.gpus else {})}


def storage(folder: str) -> str:
    """Where Ray keeps its own records of a study; every node must reach it."""
    return f"{folder}/logs/ray" if "://" in folder else str(Path(folder).resolve() / "logs" / "ray")


def _cause(error: Exception) -> str:
    """The first worker's own error in one line, out of Train's wrapping."""
    workers = getattr(error, "worker_failures", None)
    inner: Any = next(iter(workers.values())) if workers else error
    while getattr(inner, "cause", None) is not None:
        inner = inner.cause
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line or "Exception" in line]
    return f"{type(inner).__name__}: {(named or lines or ['no message'])[-1]}"
