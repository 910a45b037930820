"""Weights of a fold in a study folder: the only place that reads and writes them."""

from __future__ import annotations

import io
from pickle import UnpicklingError
from typing import Any, cast

import torch

from raybone.folder import Folder
from raybone.records import DamagedFile


def read_checkpoint(folder: Folder, name: str = "last.pt", device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """What ``write_checkpoint`` wrote, or None where there is no such file.

    Raises:
        DamagedFile: it was cut short, or holds more than tensors and plain values, which could run code.
    """
    content = folder.read(name)
    if content is None:
        return None
    try:
        return cast(dict[str, Any], torch.load(io.BytesIO(content), map_location=device, weights_only=True))
    except (RuntimeError, UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise DamagedFile(f"{folder.url}/{name}: must hold weights and nothing that runs, but is damaged, cut short or "
                          f"another file ({len(content)} bytes, {type(error).__name__}); put a good copy there, or "
                          "remove it and the fold starts again; then give the same command") from None


def write_checkpoint(folder: Folder, name: str, state: dict[str, Any]) -> None:
    """Write tensors and plain values so that a reader sees the old file or the new one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    folder.write(name, buffer.getvalue())
