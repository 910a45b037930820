"""Kill -9 a Tune trial, or its workers again and again, while folds train: all start again and no fold is lost."""

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

TRIAL, WORKER = ("ray::run_trial", "ray::ImplicitFunc"), ("ray::RayTrainWorker",)


def kill_at(out: Path, epochs: tuple[int, ...], titles: tuple[str, ...], killed: list[int]) -> None:
    """Wait for each of these numbers of epochs, and kill a process of this cluster with such a title."""
    for wanted in epochs:
        while sum(e["event"] == "epoch" for e in Journal(Folder(out)).events()) < wanted:
            time.sleep(0.1)
        for process in psutil.Process().children(recursive=True):
            if any(title in " ".join(process.cmdline()) for title in titles):
                process.kill()
                killed.append(process.pid)
                break


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(("epochs", "titles"), [((3,), TRIAL), ((3, 7, 11, 15), WORKER)])
def test_what_is_killed_is_started_again_and_no_fold_is_lost(study: dict[str, Any], tmp_path: Path,
                                                             epochs: tuple[int, ...], titles: tuple[str, ...]) -> None:
    """Workers die more often than RETRIES, but not without an epoch in between."""
    study = {**study, "epochs": 8, "search": {**study["search"], "trials": 1}, "resources": {"concurrent": 1}}
    search_locally(parse_study(study), str(tmp_path / "whole"))
    killed: list[int] = []
    killer = threading.Thread(target=kill_at, args=(tmp_path / "st", epochs, titles, killed))
    killer.start()
    assert search(parse_study(study), str(tmp_path / "st")) == "complete"
    killer.join()
    assert len(killed) == len(epochs)
    boards = [pd.read_csv(tmp_path / n / "leaderboard.csv").drop(columns=["train_seconds", "gpu_hours"])
              for n in ("st", "whole")]
    pd.testing.assert_frame_equal(*boards)
