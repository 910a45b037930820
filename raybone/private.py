"""What holds patients' data: built beside its place by one process at a time, whole or absent, for
its owner alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from raybone.errors import WrongInput

SUFFIX = ".new.partial"
# What a file system without locks says to flock.
LOCKLESS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
PATIENCE = 60.0  # seconds for one at work where there are no locks


def lock(file: int) -> bool:
    """Wait for the lock of an open file, which its closing gives back; False where its file system
    has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in LOCKLESS:
            raise
        return False
    return True


@contextlib.contextmanager
def workplace(target: Path, wait: bool = False) -> Iterator[Path]:
    """A folder beside ``target`` to build it in, which is gone at the end however that comes.

    What a killed process left there is removed first; a folder that it had begun to exchange is put
    back.

    Args:
        target: the file or folder to make.
        wait: for a process that is at work on it.
    Raises:
        WrongInput: one is and nobody waits, or the folder around it is not there.
    """
    with _locked(target, wait):
        settle(target)
        try:
            _place(target).mkdir(mode=0o700)
            yield _place(target)
        finally:
            with _deaf():
                settle(target)


def sweep(target: Path) -> None:
    """Remove what a killed process left of ``target``, unless one is at work on it."""
    if _place(target).is_dir():
        # Who may only read leaves it to those who may write.
        with contextlib.suppress(WrongInput, OSError), _locked(target, wait=False):
            settle(target)


def sweep_all(folder: Path) -> None:
    """``sweep`` of everything in a folder of this user's own."""
    for left in folder.glob(f".*{SUFFIX}"):
        sweep(folder / left.name[1 : -len(SUFFIX)])


def put(built: Path, target: Path) -> None:
    """Put what was built in a workplace into its place: folders 0700, files 0600.

    Raises:
        WrongInput: a folder was to be made, and something has come to lie there.
    """
    if built.is_dir() and os.path.lexists(target):
        raise WrongInput(
            f"{target}: must not exist yet, but was made meanwhile; choose another name or remove "
            "it"
        )
    for path in (built, *built.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    built.replace(target)


def exchange(place: Path, target: Path) -> None:
    """Put ``new`` of a workplace where a folder is, with its modes; that one is ``old`` in the
    workplace then.
    """
    new = place / "new"
    for path in (new, *new.rglob("*")):
        before = target / path.relative_to(new)
        path.chmod(0o700 if path.is_dir() else 0o600)
        if before.exists():
            shutil.copymode(before, path)
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())  # what it stands for will be gone
    target.rename(place / "old")
    new.rename(target)


def write_private(path: Path, content: bytes) -> None:
    """Write a file so that a reader, its owner alone, sees the old one or the new one."""
    with workplace(path, wait=True) as place:
        (place / "new").write_bytes(content)
        put(place / "new", path)


def settle(target: Path) -> None:
    """Remove the workplace of a target, and put back what ``exchange`` has moved but not
    replaced.
    """
    place = _place(target)
    if place.is_dir() and not place.is_symlink():
        if (place / "old").exists() and (place / "new").exists() and not target.exists():
            (place / "old").rename(target)
        _remove(place)


def _remove(place: Path) -> None:
    """Remove a folder in which helpers of a killed process may write for some moments more."""
    for left in reversed(range(50)):
        try:
            shutil.rmtree(place)
            return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or not left:
                raise
        time.sleep(0.1)


def _place(target: Path) -> Path:
    return target.absolute().parent / f".{target.absolute().name}{SUFFIX}"


@contextlib.contextmanager
def _locked(target: Path, wait: bool) -> Iterator[None]:
    """Hold the lock file of a target, which is removed at the end: a dead process holds none."""
    path = _place(target).with_suffix(".lock")
    if not path.parent.is_dir():
        raise WrongInput(
            f"{target}: must lie in a folder that is there, and {path.parent} is not; check the "
            "path"
        )
    while True:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise WrongInput(
                    f"{target}: one process works on it at a time, and another raybone does; wait "
                    "until it has ended, then give the same command"
                ) from None
            except OSError as error:
                if error.errno not in LOCKLESS:
                    raise
                with _held(path, PATIENCE if wait else 0):
                    yield
                return
            if _is(path, file.fileno()):  # and not one that its holder has removed meanwhile
                try:
                    yield
                finally:
                    with _deaf():
                        path.unlink(missing_ok=True)
                return


@contextlib.contextmanager
def _held(path: Path, patience: float) -> Iterator[None]:
    """The lock of a file system without locks: a folder, which a killed process leaves behind."""
    held, end = path.with_suffix(".held"), time.monotonic() + patience
    while True:
        try:
            held.mkdir()
            break
        except FileExistsError:
            if time.monotonic() >= end:
                raise WrongInput(
                    f"{held}: says that another raybone is at work on what it is named after; wait "
                    "until it has ended, or remove it if it was killed, then give the same command"
                ) from None
        time.sleep(0.1)
    try:
        yield
    finally:
        with _deaf():
            held.rmdir()
            path.unlink(missing_ok=True)


def hear_signals() -> list[int]:
    """Signals from now on: an eviction or a closed terminal ends a verb as Ctrl-C does, and leaves
    nothing half.
    """
    heard = list[int]()

    def interrupt(number: int, _: object) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup wants it
                signal.signal(number, interrupt)
    return heard


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """A second Ctrl-C, or hang-up, waits until all is tidy."""
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
