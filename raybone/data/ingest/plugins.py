"""What other packages bring to reading scans, by entry points: readers of formats, and steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import numpy as np

from raybone.data.ingest.dicom.frames import Facts, NotTaken
from raybone.errors import WrongInput
from raybone.types import Array

READERS, STEPS = "raybone.readers", "raybone.steps"
Frames = Sequence[tuple[Array, Facts]]
# Given a file's content and name: its frames as counts, uint16 (H, W), with what it says of each;
# None where the file is of another format.
Reader = Callable[[bytes, str], Frames | None]


def read_by_plugin(content: bytes, name: str) -> Frames | None:
    """The frames of a file by the first reader that knows its format; None where none does.

    Raises:
        NotTaken: that reader failed, or gave what are no counts.
    """
    for plugin, reader in readers():
        try:
            frames = reader(content, name)
        except Exception as error:  # of code that raybone does not know
            raise NotTaken(f"ended the reader {plugin} ({type(error).__name__})") from error
        if frames is None:
            continue
        if any(counts_HW.ndim != 2 or counts_HW.dtype != np.uint16 for counts_HW, _ in frames):
            raise NotTaken(f"has frames by the reader {plugin} that are not uint16 of shape (H, W)")
        return frames
    return None


def step_by_plugin(name: str) -> Any:
    """The ``raybone.data.ingest.steps.Step`` of that name; None where no package offers one.

    Raises:
        WrongInput: the package cannot be imported.
    """
    return next((_loaded(entry) for entry in entry_points(group=STEPS, name=name)), None)


def plugin_steps() -> list[str]:
    """The names of the steps that packages offer."""
    return sorted(entry_points(group=STEPS).names)


@cache
def readers() -> list[tuple[str, Reader]]:
    """The readers that packages offer, by name.

    Raises:
        WrongInput: a package cannot be imported.
    """
    return [(entry.name, _loaded(entry)) for entry in entry_points(group=READERS)]


def _loaded(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise WrongInput(
            f"{entry.group}: {entry.name} = {entry.value} must be there, but {error}; mend or "
            "remove that package"
        ) from None
