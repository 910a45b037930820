"""The network between training workers: the one over which Ray reaches their nodes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import psutil
import ray.util
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


@dataclass
class RaysNetwork(TorchConfig):
    """Process groups that meet at the addresses by which Ray knows the nodes."""

    @property
    def backend_cls(self) -> Any:
        """What sets the process group up."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_choose_interface)
        super().on_start(worker_group, backend_config)


def _choose_interface() -> None:
    """Gloo would listen where the host's name leads: on Debian to 127.0.1.1, which no other host can reach."""
    here = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if here in [a.address for a in addresses]:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
