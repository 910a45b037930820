"""The journal: numbered segments of JSON lines, only ever added to; everything else is derived from it.

A driver opens a segment of its own and appends to it; on an object store, which cannot append, every flush is a
segment. A line that a crash tore is cut off when the study is opened again.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

import yaml

from raybone.folder import Folder
from raybone.records import WrongInput
from raybone.spec import Study, parse_study

Event = dict[str, Any]


def read_resolved(folder: Folder) -> Study:
    """The study of a study folder.

    Raises:
        WrongInput: there is none.
    """
    content = folder.read("study.yaml")
    if content is None:
        raise WrongInput(f"study {folder.url}: must be a study folder, but has no study.yaml; "
                         "give the folder that `raybone search --out` made")
    study = parse_study(yaml.safe_load(content), where=f"{folder.url}/study.yaml")
    if study.resolved is None:
        raise WrongInput(f"study {folder.url}: its study.yaml must be one that `raybone search` wrote, but has no "
                         "`resolved`; give another folder")
    return study


class Journal:
    """Reader and writer of STUDY/journal. Only the driver that holds the study's lease may append."""

    def __init__(self, study: Folder) -> None:
        self.folder = study.child("journal")
        self._lock = threading.Lock()
        self._file: TextIO | None = None
        self._next = 0

    def events(self) -> Iterator[Event]:
        """All events, oldest first.

        Raises:
            WrongInput: a line in the middle of a segment is broken.
        """
        for name in self.folder.names():
            if name.endswith(".jsonl"):
                yield from self._segment(name)

    def append(self, event: str, **content: Any) -> Event:
        """Write one event so that it survives a crash of the machine; returns it with its time (Unix seconds)."""
        line = {"event": event, "time": round(time.time(), 3), **content}
        with self._lock:
            self._write(json.dumps(line, separators=(",", ":")) + "\n")
        return line

    def _write(self, text: str) -> None:
        if not self.folder.local:
            self._next = self._next or self._first_free()
            self.folder.write(f"{self._next:06d}.jsonl", text.encode())
            self._next += 1
            return
        if self._file is None:
            number = self._first_free()
            self.folder.fs.makedirs(self.folder.path, exist_ok=True)
            self._file = open(f"{self.folder.path}/{number:06d}.jsonl", "a", encoding="utf-8")  # noqa: PTH123, SIM115
        self._file.write(text)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _first_free(self) -> int:
        names = [n for n in self.folder.names() if n.endswith(".jsonl")]
        if names:
            self._cut_torn_tail(names[-1])
        return int(names[-1].partition(".")[0]) + 1 if names else 1

    def _cut_torn_tail(self, name: str) -> None:
        content = self.folder.read(name) or b""
        if content and not content.endswith(b"\n"):
            self.folder.write(name, content[: content.rfind(b"\n") + 1])

    def _segment(self, name: str) -> Iterator[Event]:
        lines = (self.folder.read(name) or b"").split(b"\n")
        # The last part is empty after a whole line, or what is left of a torn one.
        for number, line in enumerate(lines[:-1], 1):
            try:
                event = json.loads(line)
                if not isinstance(event, dict) or "event" not in event:
                    raise ValueError("no event")
            except ValueError:
                raise WrongInput(f"{self.folder.url}/{name} line {number}: must be an event as JSON, got "
                                 f"{line[:40]!r}; restore the file from a copy") from None
            yield event

    def close(self) -> None:
        """Close the segment; a later append opens another."""
        with self._lock:
            if self._file:
                self._file.close()
                self._file = None
