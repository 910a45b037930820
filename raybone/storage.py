"""A folder on a disk or an object store, through fsspec; a file in it is whole or absent."""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import fsspec

from raybone.errors import WrongInput

# What a network file system or an object store says while it is away; a full disk or a wrong name
# is not among them.
AWAY = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.EREMOTEIO,
    errno.ENOLINK,
}
# Arrow's errors of S3 have no number.
S3_AWAY = re.compile(
    "AWS Error (NETWORK_CONNECTION|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|SLOW_DOWN|THROTTLING|"
    "REQUEST_TIMEOUT)|HTTP status 5.."
)
# What fsspec opens, but cannot keep files in.
NO_STORE = {"data", "git", "github", "http_sync", "libarchive", "reference", "tar", "zip"}
OUTAGE = 120.0  # seconds that a storage may be away
Result = TypeVar("Result")


def patiently(operation: Callable[[], Result]) -> Result:
    """Do it again, at growing intervals, while the storage is away; raises the last error after
    OUTAGE seconds.
    """
    began, pause = time.monotonic(), 0.5
    while True:
        try:
            return operation()
        except OSError as error:
            away = error.errno in AWAY or (error.errno is None and S3_AWAY.search(str(error)))
            if not away or time.monotonic() - began > OUTAGE:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


class Folder:
    """A path or fsspec URL; names below it are relative and use ``/``."""

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self.url = plain_url(str(url)).rstrip("/") or "/"
        try:
            if self.url.startswith(
                "s3://"
            ):  # as Ray itself does, with AWS_* of the environment and no further library
                from fsspec.implementations.arrow import ArrowFSWrapper
                from pyarrow.fs import FileSystem

                store, self.path = patiently(
                    lambda: FileSystem.from_uri(self.url)
                )  # asks for the bucket's region
                self.fs = ArrowFSWrapper(store)
            else:
                self.fs, self.path = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError, TypeError) as error:
            raise WrongInput(
                f"{self.url}: must be a path or a URL that fsspec knows, but: {error}"
            ) from None
        self.local = "file" in (
            [self.fs.protocol] if isinstance(self.fs.protocol, str) else self.fs.protocol
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Folder, (self.url,)

    @property
    def absolute(self) -> str:
        """This folder's URL for processes that run in another folder."""
        return os.path.abspath(self.path) if self.local else self.url  # noqa: PTH100

    def child(self, name: str) -> Folder:
        """The folder of that name below this one."""
        self._at(name)
        return Folder(f"{self.url}/{name}")

    def read(self, name: str) -> bytes | None:
        """Content of a file, or None when there is none."""
        target = self._at(name)
        try:
            return bytes(patiently(lambda: self.fs.cat_file(target)))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file so that a reader sees the old one or the new one, never a part."""
        target = self._at(name)
        patiently(lambda: self._write(target, content))

    def create(self, name: str, content: bytes) -> None:
        """Write a file that is not there yet; of several that try at once one alone succeeds.

        Raises:
            FileExistsError: another has written it.
        """
        target = self._at(name)
        try:
            patiently(lambda: self._create(target, content))
        except FileExistsError:
            # An answer that was lost on its way is asked for again, and finds what it wrote.
            if self.read(name) != content:
                raise

    def names(self, name: str = "") -> list[str]:
        """Sorted names in a folder below this one; none when it does not exist."""
        self.fs.invalidate_cache()
        target = self._at(name).rstrip("/")
        try:
            found = patiently(lambda: self.fs.ls(target, detail=False))
        except FileNotFoundError:
            return []
        return sorted(str(f).rstrip("/").rsplit("/", 1)[-1] for f in found)

    def delete(self, name: str) -> None:
        """Delete a file or a folder with all in it; fine when it is not there."""
        target = self._at(name)
        if self.fs.exists(target):
            patiently(lambda: self.fs.rm(target, recursive=True))

    def _at(self, name: str) -> str:
        """The path of a name below this folder, on which there is no link that leads out of it."""
        parts = _below(name).split("/")
        for place in (
            f"{self.path}/{'/'.join(parts[:n])}" for n in range(1, len(parts) + 1) if self.local
        ):
            if os.path.islink(place):  # noqa: PTH114
                raise WrongInput(
                    f"{place}: must be no link, as what it leads to may be anybody's; put a folder "
                    "or file there itself"
                )
        return f"{self.path}/{name}"

    def _create(self, target: str, content: bytes) -> None:
        if self.local:
            self.fs.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH120
            with open(target, "xb") as file:  # noqa: PTH123
                file.write(content)
        elif self.url.startswith("s3://"):
            bucket, _, key = target.partition("/")
            _put_new(_bucket(bucket, str(self.fs.fs.region)), key, content)
        else:
            self.fs.pipe_file(target, content, mode="create")

    def _write(self, target: str, content: bytes) -> None:
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


def _login() -> Any:
    """Credentials of the profile of AWS that Arrow reads and obstore does not: keys, a login or a
    process; None where obstore finds by itself what there is.

    Raises:
        WrongInput: there is a profile, and nothing that reads it, or its login is over.
    """
    config, credentials = (
        os.environ.get(f"AWS_{key}_FILE", os.path.expanduser(f"~/.aws/{file}"))  # noqa: PTH111
        for key, file in (("CONFIG", "config"), ("SHARED_CREDENTIALS", "credentials"))
    )
    if "AWS_ACCESS_KEY_ID" in os.environ or not any(map(os.path.exists, (config, credentials))):
        return None
    try:
        from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]
        from botocore.session import Session  # type: ignore[import-untyped]
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise WrongInput(
            f"s3://: the profiles in {os.path.dirname(credentials)} are read with boto3, which is "  # noqa: PTH120
            "not installed; pip install 'raybone[aws]', or set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        ) from None
    name = os.environ.get("AWS_PROFILE", "default")  # Arrow heeds no AWS_DEFAULT_PROFILE
    session = Session(profile=name)
    try:
        if name not in session.available_profiles or not (found := session.get_credentials()):
            return None
        found.get_frozen_credentials()
    except (BotoCoreError, ClientError) as error:
        said = " ".join(str(error).split())[:200]
        raise WrongInput(f"s3://: profile {name} of AWS: {said}; log in, or mend it") from None
    return Boto3CredentialProvider(session)


def _put_new(bucket: Any, target: str, content: bytes) -> None:
    """Write an object of S3 on the condition that there is none; errors as a disk has them."""
    import obstore
    from obstore import exceptions as of

    try:
        obstore.put(bucket, target, content, mode="create")
    except (of.AlreadyExistsError, of.PreconditionError):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
    except (of.PermissionDeniedError, of.UnauthenticatedError):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), target) from None
    except of.NotFoundError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), target) from None
    except of.BaseError as error:
        said = " ".join(str(error).split())[:200]
        raise OSError(errno.EIO, said, target) from None


@cache
def _bucket(name: str, region: str) -> Any:
    """A bucket by a library that knows S3's conditional writes, which Arrow does not."""
    from obstore.store import S3Store

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    own: Any = {"endpoint": endpoint} if endpoint else {}
    http: Any = {"allow_http": True} if endpoint.startswith("http://") else {}
    if login := _login():
        own["credential_provider"] = login
    # ``patiently`` asks again
    return S3Store(name, client_options=http, retry_config={"max_retries": 2}, region=region, **own)


def plain_url(url: str) -> str:
    """A path or URL as it is given.

    Raises:
        WrongInput: it chains filesystems, whose caches would show an old lease, or holds a
            password, which would be in the journal, in logs and in the list of jobs.
    """
    if re.search("://[^/]*:[^/]*@", url):
        raise WrongInput(
            f"{url.partition('://')[0]}://...: must hold no password, as logs would; give it by "
            "the environment, as its filesystem documents"
        )
    if "::" in url:
        raise WrongInput(
            f"{url}: must be one path or URL, not a chain with '::'; give the last part alone"
        )
    if (kind := url.partition("://")[0]) in NO_STORE:
        raise WrongInput(
            f"{url}: must be a folder on a disk or an object store, but {kind} is neither; unpack "
            "or copy what it stands for, and give that place"
        )
    return url


def fold_name(fold: int) -> str:
    """What the weights of a fold are called: its folder in a study, its file in a bundle."""
    return f"fold{fold}"


def _below(name: str) -> str:
    """A name that stays below its folder: names of configurations are read from the journal."""
    if ".." in name.split("/"):
        raise WrongInput(
            f"{name!r}: must be a name below the study folder; restore the journal from a copy"
        )
    return name
