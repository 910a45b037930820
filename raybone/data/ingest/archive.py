"""Zipped folders of scans, unpacked for the time of reading."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raybone.data.ingest.dicom.frames import NotTaken
from raybone.data.ingest.sources import DEEPEST, of_a_system
from raybone.errors import WrongInput

UTF_8 = 0x800  # flag of a member whose name is in UTF-8 (APPNOTE 4.4.4)


@contextmanager
def unpacked(source: Path, place: Path) -> Iterator[tuple[list[tuple[str, Path]], dict[str, str]]]:
    """The folders to read as (prefix of names, folder), and why archives below the source are not
    among them.

    Args:
        source: a folder with or without zip archives in it, or a zip archive.
        place: folder on a disk with room; a private folder in it holds what is unpacked, and is
            removed at the end.
    Raises:
        WrongInput: there is no such source, or not enough room.
    """
    single = source.is_file()
    if not (source.is_dir() or (single and zipfile.is_zipfile(source))):
        raise WrongInput(
            "prepare: SOURCE must be a folder of scans or a zip archive, and is neither; check the "
            "path"
        )
    archives = [source] if single else _archives(source)
    roots, closed = [] if single else [("", source)], {}
    with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=place) as folder:
        for number, path in enumerate(archives):
            name = "" if single else path.relative_to(source).as_posix()
            target = Path(folder, str(number))
            try:
                _extract(path, target)
                roots.append((f"{name}/" if name else "", _top(target)))
            except WrongInput:
                raise
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise OSError(error.errno, error.strerror) from None  # without the file's name
                closed[name] = "is a zip archive that cannot be unpacked here"
            except NotTaken as reason:
                closed[name] = str(reason)
            except (
                zipfile.BadZipFile,
                RuntimeError,
                NotImplementedError,
                EOFError,
                ValueError,
                zlib.error,
            ):
                closed[name] = (
                    "is a zip archive that is broken, encrypted, empty or of an unknown kind"
                )
        if single and closed:
            raise WrongInput(f"prepare: SOURCE {closed['']}; unpack it and give the folder")
        yield roots, closed


def _archives(source: Path) -> list[Path]:
    """Zip archives below a folder; one that cannot be reached is left to the reader of scans, who
    tells it.
    """
    found = list[Path]()
    for folder, below, names in os.walk(source):
        if len(Path(folder).relative_to(source).parts) >= DEEPEST:
            below.clear()
        found += [Path(folder, name) for name in names if name.lower().endswith(".zip")]
    return sorted(p for p in found if os.path.isfile(p))  # noqa: PTH113  pathlib's raises, with the path


def _extract(path: Path, target: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if not archive.infolist():
            raise ValueError("empty")
        need = sum(i.file_size for i in archive.infolist())
        target.mkdir()
        if need > shutil.disk_usage(target).free:
            raise WrongInput(
                f"prepare: unpacking a zip archive beside DATASET needs {need / 1e9:.1f} GB, more "
                "than the disk has free; unpack it elsewhere and give the folder"
            )
        seen = dict[tuple[str, ...], tuple[int, int]]()
        for member in archive.infolist():
            member.filename = _name_of(member)
            place = tuple(
                p for p in member.filename.split("/") if p not in ("", ".", "..")
            )  # as ``extract`` has it
            if len(place) > DEEPEST:
                raise NotTaken(f"is a zip archive with folders more than {DEEPEST} deep")
            content = member.CRC, member.file_size
            if seen.setdefault(place, content) != content and not member.is_dir():
                raise NotTaken(
                    "is a zip archive with two members of one name, of which one would be lost"
                )
        for member in archive.infolist():
            archive.extract(member, target)


def _name_of(member: zipfile.ZipInfo) -> str:
    """A member's name with slashes; UTF-8 is often not declared, and other encodings stay as they
    came.
    """
    name = member.filename.replace("\\", "/")
    if member.flag_bits & UTF_8:
        return name
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        return name


def _top(folder: Path) -> Path:
    """The folder itself, or the only one in it."""
    # Finder's zip has a folder of its own beside it
    inside = [path for path in folder.iterdir() if not of_a_system(path.name)]
    return _top(inside[0]) if len(inside) == 1 and inside[0].is_dir() else folder
