"""What a training run takes, and how many of them the cluster has room for."""

from __future__ import annotations

import logging
import time

import ray
from ray.autoscaler.sdk import request_resources

from raybone.errors import WrongInput
from raybone.study.spec import Study

ROOM_SECONDS = 2.0  # between two looks at the cluster's nodes


def per_worker(study: Study) -> dict[str, float]:
    """Ray resources of one training worker."""
    resources = study.resources
    return {"CPU": resources.cpus, **({"GPU": resources.gpus} if resources.gpus else {})}


def slots(study: Study, wait: float = 0) -> int:
    """Training runs that fit the cluster at once.

    Args:
        wait: seconds to wait for an autoscaler that is asked for nodes, while not even one fits.
    Raises:
        WrongInput: not even one fits.
    """
    began, asked = time.monotonic(), False
    while not (fitting := room(study)):
        if time.monotonic() - began > wait:
            raise WrongInput(
                f"resources: {no_room(study)}; ask for less, add nodes, or --wait for them"
            )
        if not asked:
            logging.getLogger(__name__).warning(
                "waiting up to %g minutes for nodes: %s", wait / 60, no_room(study)
            )
        asked = True
        request_resources(bundles=[per_worker(study)] * study.resources.workers)
        time.sleep(min(ROOM_SECONDS, wait))
    return fitting


def no_room(study: Study) -> str:
    """What a run takes and what the cluster has, when not even one fits."""
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    have = ", ".join(f"{sum(n.get(k, 0) for n in nodes):g} {k}s" for k in ("CPU", "GPU"))
    want = " and ".join(f"{v:g} {k}s" for k, v in per_worker(study).items())
    return (
        f"a run takes {study.resources.workers} worker(s) with {want} each, but the cluster's "
        f"{len(nodes)} node(s) have {have} in all and room for {_places(study)}"
    )


def room(study: Study) -> int:
    """Training runs that fit now, no more than ``resources.concurrent``."""
    wanted, fitting = study.resources.concurrent, _places(study) // study.resources.workers
    return fitting if wanted == "auto" else min(wanted, fitting)


def _places(study: Study) -> int:
    """Workers that fit all living nodes together; what others use of them now is not taken off."""
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    return sum(min(_fit(node.get(k, 0), v) for k, v in per_worker(study).items()) for node in nodes)


def _fit(has: float, each: float) -> int:
    """How often a node's CPUs or GPUs can be given out; a share of a GPU is of one GPU."""
    return int(has / each + 1e-6) if each >= 1 else int(has + 1e-6) * int(1 / each + 1e-6)
