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

from raybone.run.local import search as search_locally
from raybone.study.files import parse_study


def test_a_study_killed_and_then_interrupted_equals_an_undisturbed_one(
    study: dict[str, Any], tmp_path: Path
) -> None:
    study = {**study, "epochs": 6}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    search_locally(parse_study(study), str(tmp_path / "whole"))
    out = tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "raybone",
        "search",
        str(tmp_path / "study.yaml"),
        "--out",
        str(out),
    ]
    for wanted, end in ((5, signal.SIGKILL), (15, signal.SIGINT)):
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 120
        while (
            len(epochs_of(out)) < wanted and time.monotonic() < deadline and driver.poll() is None
        ):
            time.sleep(0.05)
        os.kill(driver.pid, end)
        assert driver.wait() == (-9 if end == signal.SIGKILL else 1)
        known = epochs_of(out)
        assert wanted <= len(known) <= 36
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    epochs = epochs_of(out)
    assert len(epochs) == len(set(epochs)) == 36
    assert epochs[: len(known)] == known
    timing = ["train_seconds", "gpu_hours"]
    boards = [
        pd.read_csv(p / "leaderboard.csv").drop(columns=timing) for p in (out, tmp_path / "whole")
    ]
    pd.testing.assert_frame_equal(*boards)
