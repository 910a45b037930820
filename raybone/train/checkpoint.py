"""Weights of a fold in a study folder: the only code that reads and writes them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from raybone.errors import DamagedFile, FitFailed
from raybone.storage import Folder, fold_name

LAST = "last.pt"  # what a fold resumes from
BEST = "best.pt"  # the average of the epoch with the best score, for other programs


def read_checkpoint(folder: Folder, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """What ``write_checkpoint`` wrote in a fold's folder, or None where there is no such file.

    Raises:
        DamagedFile: it was cut short, holds more than tensors and plain values, which could run
            code, or weights that are not finite, with which nothing is ever found.
    """
    content = folder.read(LAST)
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
            f"{folder.url}/{LAST}: must hold weights and nothing that runs, but is damaged, cut "
            f"short or another file ({len(content)} bytes, {type(error).__name__}); put a good "
            "copy there, or remove it and the fold starts again; then give the same command"
        ) from None


def earlier_fold(configuration: str, fold: int) -> dict[str, Any]:
    """The checkpoint of this fold of an earlier configuration, or of its first where it has fewer
    folds.

    Args:
        configuration: its folder.
    Raises:
        FitFailed: its weights are gone.
    """
    folder = Folder(configuration)
    name = fold_name(fold) if fold_name(fold) in folder.names() else fold_name(0)
    state = read_checkpoint(folder.child(name))
    if state is None and not folder.names():
        raise FitFailed(
            f"{configuration}: must be the configuration of an earlier study, but nothing is "
            "there; was it moved? Put it back"
        )
    if state is None:
        raise FitFailed(
            f"{configuration}/{name}: must have the weights of an earlier study, but {LAST} is "
            "gone; train that again, with a larger keep"
        )
    return state


def has_weights(fold: Folder) -> bool:
    """Whether a fold's folder has the weights of its last epoch."""
    return LAST in fold.names()


def drop_weights(fold: Folder) -> None:
    """Delete the weights in a fold's folder."""
    fold.delete(LAST)
    fold.delete(BEST)


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
            f"{' '.join(str(error).split())[:150]}; put the right file there"
        ) from None


def write_checkpoint(folder: Folder, state: dict[str, Any], name: str = LAST) -> None:
    """Write tensors and plain values so that a reader sees the old file or the new one.

    Args:
        name: LAST or BEST.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    folder.write(name, buffer.getvalue())
