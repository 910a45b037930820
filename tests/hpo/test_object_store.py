"""A study on S3: of several drivers one alone writes a segment of the journal, by the store's own
condition.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from raybone.cli import main
from raybone.errors import RunFailed, WrongInput
from raybone.hpo.journal import Journal
from raybone.storage import Folder

DRIVER = """
import json, sys
from raybone.errors import RunFailed
from raybone.hpo.journal import Journal
from raybone.storage import Folder
journal, wrote = Journal(Folder(sys.argv[1])), []
sys.stdin.readline()
try:
    for n in range(30):
        journal.append("end", reason=f"{sys.argv[2]} {n}")
        wrote.append(n)
except RunFailed as error:
    print(json.dumps([wrote, str(error)]))
else:
    print(json.dumps([wrote, ""]))
"""


# One request at a time, as S3 itself has it of one key: moto looks and then writes, and two of its
# threads may do so at once.
SERVER = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
application = DomainDispatcherApplication(create_backend_app)
run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=False)
"""


KEYS = ("environment", "profile", "session", "named profile", "process")


def bucket_of(keys: str) -> str:
    return f"-{keys.replace(' ', '-')}"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket on a server of this machine, which Arrow and obstore find in the environment."""
    import boto3

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "phantom")
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
            patch.setenv(name, "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", url)
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.2)
            for name in ("", *map(bucket_of, KEYS)):
                boto3.client("s3", endpoint_url=url).create_bucket(Bucket=f"bones{name}")
            yield "s3://bones"
        finally:
            server.terminate()
            server.wait()


def test_a_file_is_made_once(bucket: str) -> None:
    folder = Folder(f"{bucket}/once")
    folder.create("a/b.txt", b"one")
    folder.create("a/b.txt", b"one")  # as after an answer that was lost
    with pytest.raises(FileExistsError):
        folder.create("a/b.txt", b"two")
    assert folder.read("a/b.txt") == b"one"
    with pytest.raises(FileNotFoundError):
        Folder("s3://nowhere/x").create("y", b"z")


@pytest.fixture(params=KEYS)
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where the keys lie, as the end of a bucket's name: a bucket is opened once."""
    where = bucket_of(request.param)
    if request.param == "environment":
        yield where
        return
    name = "bones" if request.param == "named profile" else "default"
    token = "aws_session_token = phantom\n" if request.param == "session" else ""
    profile = "aws_access_key_id = phantom\naws_secret_access_key = phan%tom\n"
    file = tmp_path / "credentials"
    if request.param == "process":
        said = {"Version": 1, "AccessKeyId": "phantom", "SecretAccessKey": "phantom"}
        (tmp_path / "said.json").write_text(json.dumps(said))
        profile = f"credential_process = cat {tmp_path}/said.json\n"
    file.write_text(f"[{name}]\n{profile}{token}[other]\nrole_arn = arn:aws:iam::1:role/x\n")
    with pytest.MonkeyPatch.context() as patch:
        for gone in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(gone)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
        if name != "default":
            patch.setenv("AWS_PROFILE", name)
            patch.setenv("AWS_DEFAULT_PROFILE", "other")  # which Arrow does not heed
        yield where


def test_of_many_that_write_at_once_one_succeeds(bucket: str, keys: str) -> None:
    folder = Folder(f"{bucket}{keys}/study")

    def attempt(number: int) -> bool:
        try:
            folder.create("000001.jsonl", b"%d" % number)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        told = list(pool.map(attempt, range(16)))
    assert told.count(True) == 1
    assert folder.read("000001.jsonl") == b"%d" % told.index(True)


@pytest.mark.parametrize(
    ("profile", "lacks", "line"),
    [
        (
            "[bones]\naws_access_key_id = a\n",
            "",
            "s3://: profile bones of AWS: Partial credentials",
        ),
        ("[bones]\naws_access_key_id = a\n", "botocore.session", "pip install 'raybone[aws]'"),
    ],
)
def test_a_profile_that_cannot_be_read_is_one_line(
    bucket: str,
    profile: str,
    lacks: str,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "credentials").write_text(profile)
    folder = Folder(f"{bucket}-unread/study")
    for gone in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(gone)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "bones")
    if lacks:
        monkeypatch.setitem(sys.modules, lacks, None)
    with pytest.raises(WrongInput, match=re.escape(line)):
        folder.create("x", b"1")


def test_two_drivers_write_one_journal_without_a_gap(bucket: str) -> None:
    url = f"{bucket}/two"
    drivers = [
        subprocess.Popen(
            [sys.executable, "-c", DRIVER, url, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    time.sleep(3)  # both have started
    for driver in drivers:
        assert driver.stdin
        driver.stdin.write("go\n")
        driver.stdin.flush()
    told: list[Any] = [json.loads(driver.communicate()[0]) for driver in drivers]
    reasons = [e["reason"] for e in Journal(Folder(url)).events()]  # its checksums hold
    wrote = [f"{name} {n}" for name, (ns, _) in zip("ab", told) for n in ns]
    assert sorted(reasons) == sorted(wrote)
    lost = [said for _, said in told if said]
    assert len(lost) == 1
    assert "another has taken the study over" in lost[0]


def test_a_driver_that_lost_its_study_ends(bucket: str) -> None:
    first = Journal(Folder(f"{bucket}/lost"))
    first.append("end", reason="one")
    second = Journal(Folder(f"{bucket}/lost"))
    second.append("end", reason="two")
    with pytest.raises(RunFailed, match="another has taken the study over"):
        first.append("end", reason="three")
    assert [e["reason"] for e in Journal(Folder(f"{bucket}/lost")).events()] == ["one", "two"]


def test_a_search_runs_on_it_and_goes_on(
    bucket: str, study: dict[str, object], tmp_path: Path
) -> None:
    path, out = tmp_path / "study.yaml", f"{bucket}/study"
    fast = {"trials": 1, "scheduler": "full", "folds": 3}
    path.write_text(yaml.safe_dump({**study, "epochs": 1, "search": fast}))
    for trials in (1, 2):
        more = ["--set", f"search.trials={trials}"]
        assert main(["search", str(path), "--out", out, "--local", *more]) == 0
    board = Folder(out).read("leaderboard.csv")
    assert board
    assert board.decode().count("complete") == 2
