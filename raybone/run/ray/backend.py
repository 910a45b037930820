"""What Ray Train is told of process groups: to form none, as the loop does, by ``group.join``.

In a file without torch, as each run's controller reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ray.train.backend import Backend, BackendConfig


class _FormsNone(Backend):
    share_cuda_visible_devices = True  # as nccl wants on one node


@dataclass
class GroupOfTheLoop(BackendConfig):
    """For ``TorchTrainer``, in place of a ``TorchConfig``."""

    backend: str = "of the loop"

    @property
    def backend_cls(self) -> type[Backend]:
        """What sets nothing up."""
        return _FormsNone
