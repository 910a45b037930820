"""A study as a Ray job: what is sent, its submission, and its lines until it ends."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import re
import shlex
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import requests

import raybone
from raybone.errors import RunFailed, WrongInput
from raybone.run.ray.access import job_client
from raybone.storage import plain_url
from raybone.study.files import write_study
from raybone.study.relocate import relocated
from raybone.study.spec import Study, packages_of
from raybone.version import FILE, version

POLL_SECONDS = 2.0
SKELETON = "metrics/skeleton.yaml"  # which categories are bones: the one table that a search reads


@dataclass(frozen=True)
class Parcel:
    """What a submission sends: raybone's code and the study, never data and never a token.

    name: of the job, without its number. dataset, out: where the cluster's nodes find them.
    packages: what every node must have installed beside raybone's own. content: a zip archive.
    """

    name: str
    entrypoint: str
    dataset: str
    out: str
    files: tuple[str, ...]
    packages: tuple[str, ...]
    content: bytes = field(repr=False)


def pack(study: Study, out: str | None, wait: float = 0) -> Parcel:
    """Make the parcel of a study; relative places become absolute here, and the dataset is not
    read.

    Args:
        out: study folder or URL; None puts it into ``runs`` beside the dataset, a place that the
            nodes have to reach.
        wait: minutes that the job waits for nodes.
    """
    dataset = _absolute(study.dataset)
    out = _absolute(out or f"{dataset.rstrip('/').rpartition('/')[0]}/runs/{study.name}")
    root = Path(raybone.__file__).parent
    files = {
        f"raybone/{path.relative_to(root).as_posix()}": path.read_text("utf-8")
        for path in (*root.rglob("*.py"), root / SKELETON)
    }
    files[f"raybone/{FILE}"] = version()
    files["study.yaml"] = write_study(
        relocated(study, _absolute).model_copy(update={"dataset": dataset})
    )
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in sorted(
            files.items()
        ):  # with one date, as Ray names a package by its hash
            archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)
    words = [
        "python",
        "-m",
        "raybone",
        "search",
        "study.yaml",
        "--out",
        out,
        "--address",
        "auto",
        *(["--wait", f"{wait:g}"] if wait else []),
    ]
    return Parcel(
        f"raybone-{study.name}-{hashlib.sha256(out.encode()).hexdigest()[:8]}",
        shlex.join(words),
        dataset,
        out,
        tuple(sorted(files)),
        tuple(packages_of(study)),
        content.getvalue(),
    )


def submit(parcel: Parcel, address: str) -> str:
    """Submit a parcel to the job server at a URL; returns the job's id, which counts the
    submissions of a study.

    Raises:
        WrongInput: no access, or a job of this study folder is at work.
        RunFailed: the cluster did not take the job.
    """
    client = job_client(address)
    with _answers(address), tempfile.TemporaryDirectory() as place:
        earlier = [
            j
            for j in client.list_jobs()
            if re.fullmatch(f"{parcel.name}-[0-9]+", j.submission_id or "")
        ]
        if busy := [j.submission_id for j in earlier if not j.status.is_terminal()]:
            raise WrongInput(
                f"study {parcel.out}: one job at a time, and {busy[0]} is at work; see `raybone "
                "watch`, or `raybone stop` it and submit again"
            )
        number = 1 + max((int(j.submission_id.rpartition("-")[2]) for j in earlier), default=0)
        package = Path(place, "package.zip")
        package.write_bytes(parcel.content)
        return str(
            client.submit_job(
                entrypoint=parcel.entrypoint,
                runtime_env={"working_dir": str(package)},
                metadata={"study": parcel.out},
                submission_id=f"{parcel.name}-{number}",
            )
        )


def follow(job: str, address: str, tell: Callable[[str], None]) -> int:
    """Hand on what a job prints until it ends; returns its exit code, which is that of ``raybone
    search``.

    Raises:
        RunFailed: it was stopped or killed, or the connection is lost; Ctrl-C leaves the job at
            work.
    """
    client, told = job_client(address), 0

    async def read() -> None:
        nonlocal told
        seen = 0  # each connection begins with the first line
        async for text in client.tail_job_logs(job):
            tell(text[max(told - seen, 0) :])
            seen += len(text)
            told = max(told, seen)

    try:
        with _answers(address):
            while True:
                with contextlib.suppress(
                    RuntimeError, aiohttp.ClientError
                ):  # a proxy cuts what is silent for long
                    asyncio.run(read())
                info = client.get_job_info(job)
                if info.status.is_terminal():
                    break
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        raise RunFailed(
            f"job {job}: no longer followed, but still at work; `raybone stop` ends it"
        ) from None
    if info.status.value == "SUCCEEDED" or info.driver_exit_code in (1, 2):
        return int(info.driver_exit_code or 0)
    why = (
        "was stopped"
        if info.status.value == "STOPPED"
        else f"did not end by itself: {_last_line(info.message)}"
    )
    raise RunFailed(f"job {job}: {why}; submit it again with the same --out and it resumes")


@contextlib.contextmanager
def _answers(address: str) -> Iterator[None]:
    """Errors of the connection as one line."""
    try:
        yield
    except (requests.RequestException, RuntimeError) as error:
        raise RunFailed(
            f"--address {address}: the cluster must answer, but: {_last_line(str(error))}; what "
            "was submitted may be at work: see `raybone watch`"
        ) from None


def _last_line(text: str | None) -> str:
    return next(
        (line.strip() for line in reversed((text or "").splitlines()) if line.strip()),
        "nothing said",
    )[:300]


def _absolute(place: str) -> str:
    place = plain_url(place)
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))  # noqa: PTH100, PTH111
