"""What holds patients' data is its owner's alone, and is whole or gone however the one process that
makes it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raybone.cli import main
from raybone.data.cache import Intensities
from raybone.data.dataset import open_dataset
from raybone.data.remote import private_cache
from raybone.private import workplace

# Runs a command in a copy of a folder again and again, hurt at its first step, its second, and so
# on, each time followed by another command, if wanted, and the same one unharmed; prints (exit
# code, what was told, dot files left) of the first and of the last.
HURT = """
import errno, json, os, shutil, signal, sys, tempfile
import raybone.results.forget
from raybone.cli import main

home, how, stride, between, words = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5:]

def hurt():
    if how == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.kill(os.getpid(), getattr(signal, how))

def run(place, step, words):
    child = os.fork()
    if not child:
        left, opened = step, set()
        def hook(event, found):
            nonlocal left
            new = event == "open" and isinstance(found[0], str) and found[2] & (os.O_WRONLY | os.O_RDWR)
            if new and found[0] not in opened or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
                opened.add(found[0])
                left -= 1
                if left == 0:
                    hurt()
        os.chdir(place)
        tempfile.tempdir = place + "/tmp"
        file = os.open(place + ".told", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.addaudithook(hook)
        code = main(words)
        os._exit(code or (100 if step and left <= 0 else 0))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, open(place + ".told").read(), [n for n in os.listdir(place) if n.startswith(".")]

step, found = 1, []
while not found or found[-1][0]:
    place = f"{home}/{step}"
    shutil.copytree(f"{home}/0", place)
    found.append(run(place, step, words))
    if between:
        code, told, dots = run(place, 0, between.split())
        assert not code and "partial" not in str(dots), (told, dots)
    found[-1] += run(place, 0, words)
    step += stride
print(json.dumps(found))
"""


@pytest.fixture
def home(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a dataset ds, its key with the map, and the cache of a training on it in
    tmp.
    """
    home = tmp_path / "0"
    (home / "tmp").mkdir(parents=True)
    assert (
        main(["prepare", str(cohort), str(home / "ds"), "--folds", "3", "--key", str(home / "key")])
        == 0
    )
    monkeypatch.setattr("tempfile.tempdir", str(home / "tmp"))
    Intensities(open_dataset(home / "ds"), 64)
    return home


def traces(home: Path, patient: str) -> list[bytes]:
    """What of a patient's is in the dataset and the map."""
    dataset = open_dataset(home / "ds")
    scans = [s for s in dataset.scans if s.patient_id == patient]
    cached = Intensities(dataset, 64)
    return [
        patient.encode(),
        b"PHANTOM-0004",
        *(s.scan_id.encode() for s in scans),
        *(dataset.counts(s).tobytes() for s in scans),
        *(cached(s).tobytes() for s in scans),
    ]


def files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


def patient_of(home: Path) -> str:
    (table,) = home.glob("key.*.sources.csv")
    scan_id = next(
        line.split(",")[1] for line in table.read_text().splitlines() if "PHANTOM-0004" in line
    )
    return next(s.patient_id for s in open_dataset(home / "ds").scans if s.scan_id == scan_id)


@pytest.mark.parametrize(
    ("how", "stride", "between"),
    [
        ("SIGKILL", 1, ""),
        ("SIGKILL", 4, "inspect ds"),
        ("full", 3, ""),
        ("SIGINT", 5, ""),
        ("SIGHUP", 8, ""),
    ],
)
def test_a_forget_that_is_cut_short_at_any_step_is_ended_by_the_same_command(
    how: str, stride: int, between: str, home: Path
) -> None:
    looked = traces(home, patient_of(home))
    assert all(any(trace in p.read_bytes() for p in files(home)) for trace in looked)
    kept = {
        s.scan_id: open_dataset(home / "ds").counts(s).copy()
        for s in open_dataset(home / "ds").scans
    }
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            HURT,
            str(home.parent),
            how,
            str(stride),
            between,
            "forget",
            "ds",
            "PHANTOM-0004",
            "--key",
            "key",
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    *hurt, whole = json.loads(done.stdout)
    assert whole[0] == 0
    assert len(hurt) > 20 / stride
    said = "1 patient(s) with 2 scan(s) deleted, 8 patients left"
    for step, (first, before, left, code, told, dots) in enumerate(hurt):
        place = home.parent / str(1 + step * stride)
        case = (how, 1 + step * stride, before, told)
        assert first == (-signal.SIGKILL if how == "SIGKILL" else 1) or (first, said in before) == (
            100,
            True,
        ), case
        assert (code == 0 and said in told) or (said in before and "has no patient" in told), case
        assert "Traceback" not in before + told
        assert how in ("SIGKILL", "full") or set(left) <= {".ds.forgotten"}, case
        assert [(p, t[:20]) for p in files(place) for t in looked if t in p.read_bytes()] == [], (
            case
        )
        assert dots == [], case
        after = open_dataset(place / "ds")
        assert len(after.scans) == 16
        assert all(np.array_equal(after.counts(s), kept[s.scan_id]) for s in after.scans)
        (table,) = place.glob("key.*.sources.csv")
        assert after.hash in table.name
        assert table.read_text().count("PHANTOM") == 16


def test_one_process_at_a_time_works_on_a_dataset(
    home: Path, cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = open_dataset(home / "ds")
    (home / "link").symlink_to("ds")
    for target, words in (
        ("ds", ["forget", home / "link", "PHANTOM-0004"]),
        ("new", ["prepare", cohort, home / "new"]),
    ):
        with workplace(home / target):
            assert main([*map(str, words), "--key", str(home / "key")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert (
            "one process works on it at a time, and another raybone does; wait until it has ended"
            in line
        )
    assert open_dataset(home / "ds") == before
    assert not (home / "new").exists()


def test_of_two_that_forget_at_once_each_has_deleted_what_it_says(home: Path) -> None:
    names = ["PHANTOM-0004", "PHANTOM-0005", "PHANTOM-0006"]
    code = (
        "import sys, raybone.results.forget; from raybone.cli import main; print(); input(); "
        "sys.exit(main(sys.argv[1:]))"
    )
    children = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                code,
                "forget",
                str(home / "ds"),
                name,
                "--key",
                str(home / "key"),
                "--among",
                str(home / "tmp"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name in names
    ]
    for child in children:
        assert child.stdout
        assert child.stdout.readline()
    for child in children:
        assert child.stdin
        child.stdin.write(b"\n")
        child.stdin.flush()
    told = [child.communicate(timeout=60)[1] for child in children]
    codes = [child.returncode for child in children]
    assert 0 in codes
    assert all(
        code == 0 or (code == 2 and b"one process works on it" in err)
        for code, err in zip(codes, told)
    )
    (table,) = home.glob("key.*.sources.csv")
    assert [name in table.read_text() for name in names] == [code == 2 for code in codes]
    assert len(open_dataset(home / "ds").fold_of) == 9 - codes.count(0)


@contextlib.contextmanager
def building(target: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that builds something there until it is killed."""
    code = (
        "import sys; from pathlib import Path; from raybone.private import workplace\n"
        "with workplace(Path(sys.argv[1])) as place:\n"
        "    (place / 'pixels').write_text('of somebody')\n    print(flush=True)\n    input()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout
        assert child.stdout.readline()
        yield child
    finally:
        child.kill()
        child.wait()


def test_what_a_killed_process_left_is_removed_by_the_next_verb_and_a_living_ones_is_not(
    home: Path,
) -> None:
    cache = private_cache()
    with building(home / "ds"), building(home / "ds.v2"), building(cache / "x"):
        assert main(["inspect", str(home / "ds")]) == 0
        assert private_cache() == cache
        assert len([p for p in files(home) if p.name == "pixels"]) == 3
    with building(home / "ds.v2"):
        assert main(["inspect", str(home / "ds"), "--png", str(home / "sheet.png")]) == 0
        assert private_cache() == cache
        assert [p.parent.name for p in files(home) if p.name == "pixels"] == [".ds.v2.new.partial"]
    assert (
        main(["prepare", str(home / "absent"), str(home / "ds.v2"), "--key", str(home / "key")])
        == 2
    )
    assert {p.name for p in home.iterdir()} - {p.name for p in home.glob("key*")} == {
        "ds",
        "sheet.png",
        "tmp",
    }
    assert [p.name for p in cache.iterdir() if p.name.startswith(".")] == []


def test_where_files_cannot_be_locked_a_folder_is_the_lock(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    before, held = open_dataset(home / "ds"), home / ".ds.new.held"
    held.mkdir()
    monkeypatch.setattr(fcntl, "flock", none)
    words = ["forget", str(home / "ds"), "PHANTOM-0004", "--key", str(home / "key")]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{held}: says that another raybone is at work" in line
    assert open_dataset(home / "ds") == before
    assert main(["inspect", str(home / "ds")]) == 0
    held.rmdir()
    assert main(words) == 0
    assert len(open_dataset(home / "ds").fold_of) == len(before.fold_of) - 1
    assert not list(home.glob(".ds.*"))
