"""The process group of a slot's workers, over the network by which Ray reaches their nodes.

Ray's own would meet at a TCP store that listens on every interface and asks for no token; it is
formed here by torch's public calls instead, and Ray is told to form none (``GroupOfTheLoop``).
"""

from __future__ import annotations

import os
import socket
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import ray.train
import ray.train.collective
import ray.util
import torch.distributed

from raybone.study.spec import Study


def join(study: Study) -> None:
    """Form the process group; one worker needs none, and no nccl, which takes GPU memory."""
    context = ray.train.get_context()
    if context.get_world_size() == 1:
        return
    here = ray.util.get_node_ip_address()
    _choose_interface(here)
    torch.distributed.init_process_group(
        "nccl" if study.resources.gpus else "gloo",
        init_method=from_rank_zero(_meeting(here)),
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        timeout=timedelta(minutes=study.limits.stall_minutes),
    )


def from_rank_zero(value: Any) -> Any:
    """The value of the first worker, on all of them; under a kilobyte."""
    if ray.train.get_context().get_world_size() == 1:
        return value
    return ray.train.collective.broadcast_from_rank_zero(value)


def _meeting(here: str) -> str:
    """Where the workers meet: on a machine that no other can reach, in a file of Ray's session, in
    whose folder a worker begins.
    """
    if here == "127.0.0.1":
        return f"file://{Path.cwd()}/group-{uuid.uuid4().hex}"
    with socket.socket() as free:
        free.bind((here, 0))
        return f"tcp://{here}:{free.getsockname()[1]}"


def _choose_interface(here: str) -> None:
    """Gloo would listen where the host's name leads: on Debian to 127.0.1.1, which no other host
    can reach.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if here in [a.address for a in addresses]:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
