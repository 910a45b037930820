"""The lease: one living driver a study."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raybone.errors import WrongInput
from raybone.hpo.lease import Lease
from raybone.storage import Folder


def test_a_second_driver_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    code = (
        "import sys, time; from raybone.storage import Folder; from raybone.hpo.lease import "
        "Lease;Lease(Folder(sys.argv[1])).take(); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(WrongInput, match=f"process {holder.pid} on"):
            Lease(Folder(tmp_path)).take()
    finally:
        holder.kill()
        holder.wait()
    Lease(Folder(tmp_path)).take()  # its holder is dead: taken over at once


@pytest.mark.parametrize("skew", [-1e6, 0.0, 1e6])
def test_a_lease_of_another_machine_is_waited_for_whatever_its_clock_says(
    tmp_path: Path, skew: float
) -> None:
    import time

    held = {
        "token": "x",
        "host": "elsewhere",
        "boot": "b",
        "pid": os.getpid(),
        "started": "1",
        "time": time.time() + skew,
    }
    (tmp_path / "lease.json").write_text(json.dumps(held))
    began = time.monotonic()
    lease = Lease(Folder(tmp_path))
    lease.take(wait=0.5, poll=0.1)
    assert time.monotonic() - began > 0.5
    lease.drop()
    assert not (tmp_path / "lease.json").exists()


def test_a_lease_that_is_renewed_elsewhere_is_respected(tmp_path: Path) -> None:
    import threading
    import time

    def renew() -> None:
        while not over.wait(0.05):
            held = {
                "token": "x",
                "host": "elsewhere",
                "boot": "b",
                "pid": 1,
                "started": "1",
                "time": time.time(),
            }
            Folder(tmp_path).write("lease.json", json.dumps(held).encode())

    over = threading.Event()
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        while not (tmp_path / "lease.json").exists():
            time.sleep(0.01)
        with pytest.raises(WrongInput, match="one driver at a time"):
            Lease(Folder(tmp_path)).take(poll=0.1)
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("skew", [-1e6, 1e6])
def test_a_reader_judges_a_holder_elsewhere_by_its_renewals_and_by_no_clock(
    tmp_path: Path, skew: float
) -> None:
    import time

    def renew(number: int) -> None:
        held = {
            "token": "x",
            "host": "elsewhere",
            "boot": "b",
            "pid": 1,
            "started": "1",
            "time": time.time() + skew + number,
        }
        (tmp_path / "lease.json").write_text(json.dumps(held))

    renew(0)
    reader, began = Lease(Folder(tmp_path)), time.monotonic()
    assert reader.holder() is not None  # nobody knows yet
    assert reader.holder(wait=0.3, poll=0.05) is None
    assert time.monotonic() - began >= 0.3
    renew(1)
    assert reader.holder(wait=0.3, poll=0.05) is not None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "7",
        "[[1, 2]]",
        "{" * 5000,
        "[" * 100_000,
        '{"token": "x"}',
        "\x00",
        '{"token": "x", "host": "h", "boot": "", "pid": "1", "started": "1"}',
        '{"pid": ' + "9" * 5000 + "}",
    ],
)
def test_a_damaged_lease_is_nobodys(tmp_path: Path, content: str) -> None:
    (tmp_path / "lease.json").write_text(content)
    assert Lease(Folder(tmp_path)).holder() is None
    lease = Lease(Folder(tmp_path))
    lease.take(wait=0.0)
    assert lease.holder() is not None
    (tmp_path / "lease.json").write_text(content)
    lease.renew()
    assert not lease.lost
    lease.drop()
    assert not (tmp_path / "lease.json").exists()
