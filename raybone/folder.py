"""A folder on a disk or an object store, through fsspec; a file in it is whole or absent."""

from __future__ import annotations

import os
import re
import threading
from typing import Any

import fsspec

from raybone.records import WrongInput


class Folder:
    """A path or fsspec URL; names below it are relative and use ``/``."""

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self.url = plain_url(str(url)).rstrip("/") or "/"
        try:
            self.fs, self.path = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise WrongInput(f"{self.url}: must be a path or a URL that fsspec knows, but: {error}") from None
        self.local = "file" in ([self.fs.protocol] if isinstance(self.fs.protocol, str) else self.fs.protocol)

    def __reduce__(self) -> tuple[Any, ...]:
        return Folder, (self.url,)

    def child(self, name: str) -> Folder:
        """The folder of that name below this one."""
        return Folder(f"{self.url}/{_below(name)}")

    def read(self, name: str) -> bytes | None:
        """Content of a file, or None when there is none."""
        try:
            return bytes(self.fs.cat_file(f"{self.path}/{_below(name)}"))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file so that a reader sees the old one or the new one, never a part."""
        target = f"{self.path}/{_below(name)}"
        if not self.local:
            self.fs.pipe_file(target, content)
            return
        self.fs.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH120
        temporary = f"{target}.{os.getpid()}-{threading.get_ident()}.tmp"
        try:
            with open(temporary, "wb") as file:  # noqa: PTH123
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)  # noqa: PTH105
        finally:
            if os.path.exists(temporary):  # noqa: PTH110
                os.unlink(temporary)  # noqa: PTH108

    def names(self, name: str = "") -> list[str]:
        """Sorted names in a folder below this one; none when it does not exist."""
        try:
            self.fs.invalidate_cache()
            found = self.fs.ls(f"{self.path}/{_below(name)}".rstrip("/"), detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(f).rstrip("/").rsplit("/", 1)[-1] for f in found)

    def delete(self, name: str) -> None:
        """Delete a file or a folder with all in it; fine when it is not there."""
        target = f"{self.path}/{_below(name)}"
        if self.fs.exists(target):
            self.fs.rm(target, recursive=True)


def plain_url(url: str) -> str:
    """A path or URL as it is given.

    Raises:
        WrongInput: it chains filesystems, whose caches would show an old lease, or holds a password, which would be
            in the journal, in logs and in the list of jobs.
    """
    if re.search("://[^/]*:[^/]*@", url):
        raise WrongInput(f"{url.partition('://')[0]}://...: must hold no password, as logs would; give it by the "
                         "environment, as its filesystem documents")
    if "::" in url:
        raise WrongInput(f"{url}: must be one path or URL, not a chain with '::'; give the last part alone")
    return url


def _below(name: str) -> str:
    """A name that stays below its folder: names of configurations are read from the journal."""
    if ".." in name.split("/"):
        raise WrongInput(f"{name!r}: must be a name below the study folder; restore the journal from a copy")
    return name
