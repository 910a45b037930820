"""TensorBoard's event files, read back."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


def scalars_of(folder: Path) -> Iterator[tuple[str, int, float, float]]:
    """Tag, step, value and time of each scalar in a folder's files, which are TFRecords."""
    for path in folder.rglob("events.out.tfevents.*"):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            for value in event.summary.value:
                yield value.tag, event.step, value.simple_value, event.wall_time
            place += length + 16


def last_of(folder: Path) -> dict[str, float]:
    """The value of each tag at its last step."""
    by_step = sorted(scalars_of(folder), key=lambda scalar: scalar[1])
    return {tag: value for tag, _, value, _ in by_step}
