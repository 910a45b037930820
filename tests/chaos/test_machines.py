"""What is nobody's bad configuration: a full disk, a storage that stands still, a GPU that is not
there, no memory.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml
from faults import WORKER

from raybone.run.local import search as search_locally
from raybone.study.files import parse_study
from tests.chaos.harness import Cluster, Driver, events, progress, table, until


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes that say they have a GPU each."""
    cluster = Cluster(num_gpus=1)
    try:
        yield cluster
    finally:
        cluster.end()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("undisturbed")


@pytest.fixture
def written(study: dict[str, Any], place: Path) -> Path:
    """A study's file, beside the folder ``whole`` of the undisturbed search."""
    study = {**study, "metric": "val_loss", "epochs": 12, "fixed": {**study["fixed"], "imgsz": 256}}
    (place / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    if not (place / "whole").exists():
        search_locally(parse_study(study), str(place / "whole"))
    return place / "study.yaml"


def mounted(command: list[str]) -> None:
    """Run a mount, or skip where it is not allowed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{command[0]} is not allowed here: {done.stderr.strip()}")


def last_line(driver: Driver) -> str:
    return driver.log.read_text().strip().splitlines()[-1]


def test_a_disk_that_fills_up_ends_a_search_in_one_line_and_space_lets_it_go_on(
    cluster: Cluster, written: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)])
    try:
        driver = Driver(cluster, written, disk / "out", log=tmp_path / "driver.log")
        until(lambda: len([e for e in events(disk / "out") if e["event"] == "epoch"]) >= 4)
        with (disk / "filler").open("wb") as filler:
            filler.write(bytes(shutil.disk_usage(disk).free))
        assert driver.wait() == 1
        assert "No space left on device" in last_line(driver)
        assert "Traceback" not in driver.log.read_text()
        (disk / "filler").unlink()
        driver.start()
        assert driver.wait() == 0
        pd.testing.assert_frame_equal(table(disk / "out"), table(written.parent / "whole"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_storage_that_stands_still_for_a_while_costs_nothing(
    cluster: Cluster, written: Path, tmp_path: Path
) -> None:
    disk, image = tmp_path / "disk", tmp_path / "image"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(64 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    mounted(["mount", "-o", "loop", str(image), str(disk)])
    try:
        driver = Driver(cluster, written, disk / "out", log=tmp_path / "driver.log")
        for wanted in (3, 20):
            until(
                lambda wanted=wanted: (
                    len([e for e in events(disk / "out") if e["event"] == "epoch"]) >= wanted
                )
            )
            subprocess.run(["fsfreeze", "-f", str(disk)], check=True)
            time.sleep(12)
            subprocess.run(["fsfreeze", "-u", str(disk)], check=True)
        assert driver.wait() == 0
        pd.testing.assert_frame_equal(table(disk / "out"), table(written.parent / "whole"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_gpu_that_is_not_there_is_one_clear_line_and_no_configuration_fails(
    cluster: Cluster, written: Path, tmp_path: Path
) -> None:
    driver = Driver(cluster, written, tmp_path / "out", "--set", "resources.gpus=1")
    assert driver.wait() == 1
    assert "but torch finds none; mend the driver or the image of this machine" in last_line(driver)
    assert "failed" not in {e["event"] for e in events(tmp_path / "out")}


def test_a_worker_without_memory_is_tried_again_and_says_why(
    cluster: Cluster, written: Path, tmp_path: Path
) -> None:
    driver = Driver(cluster, written, tmp_path / "out")
    until(lambda: sum(progress(tmp_path / "out")[0].values()) >= 3)
    worker = cluster.processes(*WORKER)[0]
    used = worker.memory_info().data
    psutil.Process(worker.pid).rlimit(resource.RLIMIT_DATA, (used, used))
    assert driver.wait() == 0
    reasons = [str(e["reason"]) for e in events(tmp_path / "out") if e["event"] == "again"]
    assert len(reasons) == 1
    assert "memory" in reasons[0] or "MemoryError" in reasons[0] or "bad_alloc" in reasons[0]
    pd.testing.assert_frame_equal(table(tmp_path / "out"), table(written.parent / "whole"))


def test_a_node_that_never_has_memory_ends_the_search_with_that_reason(
    written: Path, tmp_path: Path
) -> None:
    cluster = Cluster(0)
    try:
        # The node's raylet, not the head's, takes its memory for full.
        cluster.environment.update(
            RAY_memory_usage_threshold="0.0", RAY_memory_monitor_refresh_ms="250"
        )
        cluster.join()
        driver = Driver(cluster, written, tmp_path / "out", "--set", "search.trials=1")
        assert driver.wait() == 1
        # Its workers die before they take a segment: no configuration is to blame.
        assert "halted: OutOfMemoryError" in last_line(driver)
        assert "low on memory" in last_line(driver)
        assert "failed" not in {e["event"] for e in events(tmp_path / "out")}
    finally:
        cluster.end()
