"""TensorBoard's event files, read back."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def records_of(folder: Path) -> Iterator[Any]:
    """Records of the runs that W&B wrote offline: protocol buffers in blocks of 32 KiB, as LevelDB
    keeps its log.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        content, place, parts = path.read_bytes(), 7, b""
        while place + 7 <= len(content):
            if 32768 - place % 32768 < 7:  # no room for a header
                place += 32768 - place % 32768
            _, length, kind = struct.unpack_from("<IHB", content, place)
            parts += content[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # whole, or the last part
                record = Record()
                record.ParseFromString(parts)
                parts = b""
                yield record
