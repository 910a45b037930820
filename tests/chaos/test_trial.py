"""Kill -9 the process of a Tune trial while its folds train: Tune starts it again and no fold is lost."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from raybone.cluster.tuner import search
from raybone.folder import Folder
from raybone.hpo.journal import Journal
from raybone.search import search as search_locally
from raybone.spec import parse_study


def kill_the_trial(out: Path, killed: list[int]) -> None:
    """Wait for the third epoch, then kill this cluster's trial process."""
    while sum(e["event"] == "epoch" for e in Journal(Folder(out)).events()) < 3:
        time.sleep(0.1)
    mine = psutil.Process().children(recursive=True)
    for process in mine:
        if any(word in " ".join(process.cmdline()) for word in ("ray::run_trial", "ray::ImplicitFunc")):
            process.kill()
            killed.append(process.pid)
            return


@pytest.mark.usefixtures("local_ray")
def test_a_killed_trial_is_started_again_and_no_fold_is_lost(study: dict[str, Any], tmp_path: Path) -> None:
    study = {**study, "epochs": 8, "search": {**study["search"], "trials": 1}}
    search_locally(parse_study(study), str(tmp_path / "whole"))
    killed: list[int] = []
    killer = threading.Thread(target=kill_the_trial, args=(tmp_path / "st", killed))
    killer.start()
    assert search(parse_study(study), str(tmp_path / "st")) == "complete"
    killer.join()
    assert len(killed) == 1
    boards = [pd.read_csv(tmp_path / n / "leaderboard.csv").drop(columns=["train_seconds", "gpu_hours"])
              for n in ("st", "whole")]
    pd.testing.assert_frame_equal(*boards)
