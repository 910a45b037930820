"""Kill the driver of a study on Ray, or press Ctrl-C: nothing is redone and the leaderboard is the
same.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from faults import epochs_of

from raybone.hpo.journal import Journal
from raybone.run.interrupts import GRACE_SECONDS
from raybone.run.local import search as search_locally
from raybone.storage import Folder
from raybone.study.files import parse_study

SEARCH = [sys.executable, "-m", "raybone", "search"]


def test_a_study_killed_and_then_interrupted_equals_an_undisturbed_one(
    study: dict[str, Any], tmp_path: Path
) -> None:
    study = {**study, "epochs": 6}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    search_locally(parse_study(study), str(tmp_path / "whole"))
    out = tmp_path / "killed"
    command = [*SEARCH, str(tmp_path / "study.yaml"), "--out", str(out)]
    for wanted, end, code in (
        (5, signal.SIGKILL, -9),
        (12, signal.SIGTERM, 143),
        (20, signal.SIGINT, 130),
    ):
        least = max(wanted, len(epochs_of(out)) + 3)  # it is at work, and not on its way there
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 120
        while len(epochs_of(out)) < least and time.monotonic() < deadline and driver.poll() is None:
            time.sleep(0.05)
        # Batch systems tell Ray's processes as well.
        (os.killpg if end == signal.SIGTERM else os.kill)(driver.pid, end)
        assert driver.wait(30) == code
        known = epochs_of(out)
        assert wanted <= len(known) <= 36
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    epochs = epochs_of(out)
    assert len(epochs) == len(set(epochs)) == 36
    assert epochs[: len(known)] == known
    timing = ["train_seconds", "gpu_hours", "images_per_s", "memory_gb", "gpu_use"]
    boards = [
        pd.read_csv(p / "leaderboard.csv").drop(columns=timing) for p in (out, tmp_path / "whole")
    ]
    pd.testing.assert_frame_equal(*boards)


def test_an_evicted_driver_leaves_an_epoch_that_is_too_long_and_exits_within_30_s(
    study: dict[str, Any], tmp_path: Path
) -> None:
    long = {**study["fixed"], "imgsz": 512, "width": 32, "depth": 5, "batch": 1, "nbs": 1}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**study, "fixed": long}))
    out, began = tmp_path / "evicted", time.monotonic()
    driver = subprocess.Popen(
        [*SEARCH, str(tmp_path / "study.yaml"), "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not epochs_of(out) and time.monotonic() < began + 300:
        time.sleep(0.1)
    driver.send_signal(signal.SIGTERM)  # at the begin of an epoch
    _, said = driver.communicate(timeout=30)
    assert driver.returncode == 143
    assert said == "raybone: interrupted; the same command resumes it\n"
    epochs = [e for e in Journal(Folder(out)).events() if e["event"] == "epoch"]
    assert all(e["seconds"] > GRACE_SECONDS for e in epochs)
    assert 1 <= len(epochs) <= 2  # one in each slot
