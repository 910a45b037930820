"""A Ray Train run with the resources of a study, and what is to blame when it ends in an error."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray import train
from ray.exceptions import RayError
from ray.train.torch import TorchConfig, TorchTrainer

from raybone.errors import WrongInput
from raybone.results.study_folder import LOGS
from raybone.run.ray.backend import GroupOfTheLoop
from raybone.run.ray.resources import per_worker
from raybone.storage import Folder
from raybone.study.spec import Study

Blame = Literal["room", "machine", "process", "code"]


def trainer(
    study: Study,
    folder: str,
    name: str,
    loop: Callable[[], Any],
    max_failures: int = 0,
) -> TorchTrainer:
    """A Ray Train run, under a name never used before, as Ray would go on with its own records.

    Args:
        loop: what each worker calls; its arguments are bound, not Ray's config, which the
            controller reads: it would import torch. max_failures: how often Ray Train starts it
            again.
    """
    resources = study.resources
    return TorchTrainer(
        loop,
        torch_config=cast(TorchConfig, GroupOfTheLoop()),
        scaling_config=train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus > 0,
            resources_per_worker=per_worker(study),
        ),
        run_config=train.RunConfig(
            name=f"{name}-{uuid.uuid4().hex[:8]}",
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


def cause_of(error: Exception) -> tuple[str, Blame]:
    """The first worker's own error in one line, out of Train's wrapping, and what is to blame for
    it.
    """
    if isinstance(error, train.PreemptionError):
        return "its node was taken back", "room"
    found: Any = getattr(error, "controller_failure", error)
    # Ray's own of Train have no public name.
    if type(found).__name__ == "WorkerGroupStartupTimeoutError":
        return "no room for its workers in time", "room"
    # When one worker dies the others fail as well, of broken connections: what killed the first one
    # counts.
    workers = sorted(getattr(error, "worker_failures", {}).values(), key=lambda e: not _of_ray(e))
    found = workers[0] if workers else found
    found = getattr(found, "health_check_failure", found)
    blame: Blame = "code"
    if isinstance(found, OSError | WrongInput) and not isinstance(found, RayError):
        blame = "machine"
    elif _of_ray(found):
        blame = "process"
    lines = [line.strip() for line in str(found).splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line or "Exception" in line]
    # A traceback says at its end what it is; Ray says it first, and goes on with guesses at length.
    said = (named or (lines[:1] if blame == "process" else lines) or ["no message"])[-1]
    return (
        f"{type(found).__name__}: {said.partition('. ')[0] if blame == 'process' else said}",
        blame,
    )


def _of_ray(error: Exception) -> bool:
    """Whether Ray or Ray Train says it, and not what runs on them."""
    return isinstance(error, RayError) or type(error).__module__.startswith("ray.train")
