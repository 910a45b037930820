"""The journal: numbered segments of JSON lines, only ever added to; everything else is derived from
it.

A driver opens a segment of its own and appends to it; on an object store, which cannot append,
every flush is a segment. A line that a crash tore is cut off when the study is opened again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO, RawIOBase
from typing import Any

import orjson

from raybone.errors import RunFailed, WrongInput
from raybone.hpo.events import Event, check_event
from raybone.storage import Folder, patiently

FOLDER = "journal"
AT_ONCE = 16  # segments that are fetched together
SEAL = ',"crc":"'  # what comes before the checksum of a line


class Journal:
    """Reader and writer of STUDY/journal. Only the driver that holds the study's lease may append.

    Each line ends in a checksum over itself and the one before it, so that a line that is changed,
    lost or moved, and a segment that is missing, is seen.
    """

    def __init__(self, study: Folder) -> None:
        self.folder = study.child(FOLDER)
        self._lock = threading.Lock()
        self._file: RawIOBase | None = None
        self._next = 0
        # How far this reader has come: segment, bytes and lines of it, and the checksum there.
        self._segment, self._offset, self._line, self._crc = 0, 0, 0, 0
        self._tail = 0  # checksum of the last line in the journal
        self._tried: int | None = None  # checksum of the line that is being written
        self._began = time.monotonic()

    def events(self) -> Iterator[Event]:
        """All events that this reader has not given yet, oldest first.

        Raises:
            WrongInput: a line is broken, changed or missing.
        """
        names = self._segments()
        ahead = self._ahead(names)
        for name, after in zip(names, [*names[1:], None]):
            number = int(name.partition(".")[0])
            if number < self._segment:
                continue
            if number > self._segment:
                if number > self._segment + 1:
                    raise WrongInput(
                        f"{self.folder.url}/{self._segment + 1:06d}.jsonl: every segment must be "
                        f"there, but {name} follows {self._segment:06d}.jsonl; restore it from a "
                        "copy"
                    )
                self._segment, self._offset, self._line = number, 0, 0
            heir = self._first_line(after, ahead) if after else None
            with self._open(name, ahead) as file:
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # a crash tore it, or it is being written now
                    if heir and self._follows(heir):
                        # A driver that had lost its lease to the next segment's went on writing
                        break
                    event = self._read(name, line)
                    self._offset += len(line)
                    yield event

    def append(self, event: str, **content: Any) -> Event:
        """Write one event so that it survives a crash of the machine.

        Returns:
            The event with its time (Unix seconds) and ``up``, seconds that this driver has worked
            by a clock that does not jump.
        """
        with self._lock:
            line = {
                "event": event,
                "time": round(time.time(), 3),
                "up": round(time.monotonic() - self._began, 3),
                **content,
            }
            text = json.dumps(line, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
            self._tried = None
            patiently(lambda: self._put(text[:-1].encode("utf-8", "replace")))
        return line

    def close(self) -> None:
        """Close the segment; a later append opens another."""
        with self._lock:
            self._close()

    def _put(self, body: bytes) -> None:
        if not self._next:
            self._next = self._take_up()
            if self._tail == self._tried:
                return  # the attempt before had come onto the disk whole
        crc = self._tried = zlib.crc32(body, self._tail)
        try:
            self._write(body + f'{SEAL}{crc:08x}"}}\n'.encode())
        except BaseException:
            # What came onto the disk is not known: the next attempt or event finds out, and starts
            # a segment.
            self._close()
            raise
        self._tail = crc

    def _close(self) -> None:
        file, self._file, self._next = self._file, None, 0
        if file:
            with contextlib.suppress(OSError):  # it was synced, or its loss is known
                file.close()

    def _ahead(self, names: list[str]) -> dict[str, bytes]:
        """The segments that are yet to be read from an object store, where they never change:
        there is one for each event, and each is an answer to wait for.
        """
        if self.folder.local:
            return {}
        wanted = [name for name in names if int(name.partition(".")[0]) >= self._segment]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            contents = pool.map(self.folder.read, wanted)
            return {name: content for name, content in zip(wanted, contents) if content}

    def _open(self, name: str, ahead: Mapping[str, bytes]) -> Any:
        if name in ahead:
            return BytesIO(ahead[name])
        return self.folder.fs.open(f"{self.folder.path}/{name}", "rb")

    def _first_line(self, name: str, ahead: Mapping[str, bytes]) -> bytes | None:
        """The first line of a segment, None while it is being written."""
        with self._open(name, ahead) as file:
            line = file.readline()
        return bytes(line) if line.endswith(b"\n") else None

    def _follows(self, line: bytes) -> bool:
        """Whether a line comes next after what has been read."""
        body, _, crc = line.rpartition(SEAL.encode())
        return crc[:8] == b"%08x" % zlib.crc32(body, self._crc)

    def _read(self, name: str, line: bytes) -> Event:
        """Parse and check one line."""
        self._line += 1
        body, seal, crc = line.rpartition(SEAL.encode())
        known, self._crc = self._crc, zlib.crc32(body, self._crc)
        try:
            event = orjson.loads(line)
            check_event(event)
            if not seal:
                raise ValueError("no seal")
        except ValueError:
            raise WrongInput(
                f"{self.folder.url}/{name} line {self._line}: must be an event as JSON, got "
                f"{line[:40]!r}; restore the file from a copy"
            ) from None
        if crc[:8] != b"%08x" % self._crc:
            self._crc = known
            raise WrongInput(
                f"{self.folder.url}/{name} line {self._line}: its checksum must be that of the "
                "line and of all before it, but is not; it was changed, or lines before it are "
                "missing: restore the journal from a copy"
            )
        del event["crc"]
        return event

    def _write(self, line: bytes) -> None:
        name = f"{self._next:06d}.jsonl"
        if not self.folder.local:
            try:
                self.folder.create(name, line)
            except FileExistsError:
                raise RunFailed(
                    f"{self.folder.url}/{name}: one driver writes, but another has taken the study "
                    "over; this one ends"
                ) from None
            self._next += 1
            return
        if self._file is None:
            self.folder.fs.makedirs(self.folder.path, exist_ok=True)
            self._file = open(f"{self.folder.path}/{name}", "ab", buffering=0)  # noqa: PTH123, SIM115
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{self.folder.path}/{name}")
        os.fsync(self._file.fileno())

    def _take_up(self) -> int:
        """Read to the end, cut a torn last line off, and give the number of the next segment."""
        for _ in self.events():
            pass
        names = self._segments()
        content = self.folder.read(names[-1]) if names else None
        if content and not content.endswith(b"\n"):
            self.folder.write(names[-1], content[: content.rfind(b"\n") + 1])
        self._tail = self._crc
        return self._segment + 1

    def _segments(self) -> list[str]:
        names = [
            n
            for n in self.folder.names()
            if n.endswith(".jsonl") and n.partition(".")[0].isdecimal()
        ]
        return sorted(names, key=lambda n: int(n.partition(".")[0]))
