"""A dataset at a URL is copied once to a machine, and again when it has changed."""

from __future__ import annotations

import errno
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from raybone.data.dataset import open_dataset
from raybone.data.ingest.parallel import spread
from raybone.data.ingest.prepare import prepare
from raybone.errors import WrongInput


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and counts what is asked for."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *given: object) -> None:
        pass


@pytest.fixture
def served(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, str]]:
    shutil.copytree(dataset, tmp_path / "served" / "ds")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    Server.asked.clear()
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Server, directory=tmp_path / "served")
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path / "served" / "ds", f"http://127.0.0.1:{server.server_port}/ds"
        server.shutdown()


def test_many_readers_of_a_url_share_one_copy_with_the_same_pixels(
    served: tuple[Path, str], dataset: Path
) -> None:
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(open_dataset, [served[1]] * 8))
    assert len({o.path for o in opened}) == 1
    pixels = [path for path in Server.asked if path.endswith(".npy")]
    assert len(pixels) == len(set(pixels)) > 0
    here = open_dataset(dataset)
    assert (opened[0].hash, opened[0].fold_of, opened[0].scans) == (
        here.hash,
        here.fold_of,
        here.scans,
    )
    for scan in here.scans:
        assert np.array_equal(opened[0].counts(scan), here.counts(scan))


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_readers_on_a_disk_without_locks_share_a_copy_and_leave_no_other(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcntl.flock", no_locks)
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(open_dataset, [served[1]] * 8))
    assert len({o.path for o in opened}) == 1
    assert [p for p in (tmp_path / "tmp").rglob("*") if p.name == "dataset.json"] == [
        opened[0].path / "dataset.json"
    ]


def test_a_dataset_made_on_a_disk_without_locks_is_the_same(
    cohort: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    monkeypatch.setattr("fcntl.flock", no_locks)
    monkeypatch.setattr(
        "raybone.data.ingest.read.spread",
        lambda work, items, processes: used.append(processes) or spread(work, items, processes),
    )
    made = prepare(cohort, tmp_path / "ds", folds=3, key=cohort.with_suffix(".key"))
    assert made.meta["hash"] == open_dataset(dataset).hash
    assert used == [1]


def test_a_dataset_that_changed_at_its_url_is_copied_again(served: tuple[Path, str]) -> None:
    first = open_dataset(served[1]).path
    told = served[0] / "dataset.json"
    told.write_text(told.read_text().replace('"hash": "', '"hash": "0'))
    assert open_dataset(served[1]).path != first


def test_a_copy_that_is_cut_short_or_has_no_room_leaves_nothing(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "raybone.data.remote.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0)
    )
    with pytest.raises(WrongInput, match=r"its copy takes .* MB .* but 0 MB are free"):
        open_dataset(served[1])
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(
        "raybone.data.remote.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("cut"))
    )
    with pytest.raises(OSError, match="cut"):
        open_dataset(served[1])
    left = [p.name for p in (tmp_path / "tmp").rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert left == []


def test_a_url_without_a_dataset_is_one_clear_line(served: tuple[Path, str]) -> None:
    with pytest.raises(WrongInput, match=r"/nothing: must be a folder made by `raybone prepare`"):
        open_dataset(served[1] + "/nothing")
