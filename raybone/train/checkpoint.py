"""Weights of a fold in a study folder: the only place that reads and writes them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from raybone.errors import DamagedFile
from raybone.storage import Folder


def read_checkpoint(
    folder: Folder, name: str = "last.pt", device: torch.device | str = "cpu"
) -> dict[str, Any] | None:
    """What ``write_checkpoint`` wrote, or None where there is no such file.

    Raises:
        DamagedFile: it was cut short, holds more than tensors and plain values, which could run
            code, or weights that are not finite, with which nothing is ever found.
    """
    content = folder.read(name)
    if content is None:
        return None
    try:
        state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        if not finite(state["average"]):
            raise ValueError("not finite")
        return cast(dict[str, Any], state)
    except Exception as error:  # torch raises whatever the bytes lead it to
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise DamagedFile(
            f"{folder.url}/{name}: must hold weights and nothing that runs, but is damaged, cut "
            f"short or "
            f"another file ({len(content)} bytes, {type(error).__name__}); put a good copy there, "
            f"or "
            "remove it and the fold starts again; then give the same command"
        ) from None


def finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether no number of these tensors is NaN or infinite."""
    return all(bool(v.isfinite().all()) for v in tensors.values())


def fill(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load weights that were read from a file.

    Args:
        where: what to call the file.
    Raises:
        DamagedFile: they are not those of this network.
    """
    try:
        module.load_state_dict(tensors)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise DamagedFile(
            f"{where}: must hold the weights of this network, but "
            f"{' '.join(str(error).split())[:150]}; "
            "put the right file there"
        ) from None


def write_checkpoint(folder: Folder, name: str, state: dict[str, Any]) -> None:
    """Write tensors and plain values so that a reader sees the old file or the new one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    folder.write(name, buffer.getvalue())
