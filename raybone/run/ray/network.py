"""The network between training workers: the one over which Ray reaches their nodes."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from typing import Any

import psutil
import ray
import ray.util
from ray.train.torch import TorchConfig
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)


@dataclass
class RaysNetwork(TorchConfig):
    """Process groups that meet at the addresses by which Ray knows the nodes."""

    @property
    def backend_cls(self) -> Any:
        """What sets the process group up."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        if len(worker_group) == 1:
            return  # a single process needs no network
        if set(worker_group.execute(_choose_interface)) != {"127.0.0.1"}:
            super().on_start(worker_group, backend_config)
            return
        # torch's store listens on every interface and asks for no token: on one machine the workers
        # meet in a file.
        worker_group.execute(_set_torch_distributed_env_vars)
        meeting = (
            f"file://{worker_group.execute_single(0, _session_folder)}/group-{uuid.uuid4().hex}"
        )
        ray.get(
            [
                worker_group.execute_single_async(
                    rank,
                    _setup_torch_process_group,
                    backend=backend_config.backend,
                    world_rank=rank,
                    world_size=len(worker_group),
                    init_method=meeting,
                    timeout_s=backend_config.timeout_s,
                )
                for rank in range(len(worker_group))
            ]
        )


def _session_folder() -> str:
    """Ray's folder of this machine, which for a Ray of its own only its user can enter."""
    return str(ray._private.worker._global_node.get_session_dir_path())


def _choose_interface() -> str:
    """Gloo would listen where the host's name leads: on Debian to 127.0.1.1, which no other host
    can reach.

    Returns:
        The address by which Ray knows this node.
    """
    here = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if here in [a.address for a in addresses]:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    return here
