"""Studies on Ray: one local cluster for all tests here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray

from raybone.cluster.tuner import search
from raybone.folder import Folder
from raybone.hpo.journal import Journal
from raybone.records import WrongInput
from raybone.search import search as search_locally
from raybone.spec import parse_study

TIMING = ["train_seconds", "gpu_hours"]
pytestmark = pytest.mark.usefixtures("local_ray")
Mapping = dict[str, Any]


def board(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "leaderboard.csv")


def free_cpus() -> float:
    return float(ray.available_resources().get("CPU", 0))


def test_a_full_study_on_ray_equals_the_one_without(held_out: Path, study: Mapping, tmp_path: Path) -> None:
    study = {**study, "dataset": str(held_out)}
    assert search(parse_study(study), str(tmp_path / "ray")) == "complete"
    search_locally(parse_study(study), str(tmp_path / "local"))
    on_ray, local = (board(tmp_path / n).drop(columns=TIMING).set_index("config_id").sort_index()
                     for n in ("ray", "local"))
    pd.testing.assert_frame_equal(on_ray, local)
    assert on_ray["dice_test"].notna().sum() == 1
    epochs = [(e["config_id"], e["fold"], e["epoch"]) for e in Journal(Folder(tmp_path / "ray")).events()
              if e["event"] == "epoch"]
    assert len(epochs) == len(set(epochs)) == 18


def test_two_workers_train_one_fold_together(study: Mapping, tmp_path: Path) -> None:
    two = {**study, "resources": {"workers": 2}, "epochs": 2, "search": {**study["search"], "trials": 1}}
    assert search(parse_study(two), str(tmp_path / "two")) == "complete"
    table = board(tmp_path / "two")
    assert list(table["state"]) == ["complete"]
    assert (table["epochs_done"] == 6).all()
    assert math.isfinite(table["dice_pooled"][0])


def test_a_race_pauses_promotes_and_stops_and_a_crash_in_a_worker_fails_its_configuration_alone(
        study: Mapping, tmp_path: Path) -> None:
    """The smallest rate learns nothing and loses against sensible ones; the largest diverges."""
    wild = {**study, "metric": "val_loss", "epochs": 5,
            "fixed": {**study["fixed"], "optimizer": "SGD", "clip": 1e30, "warmup_epochs": 0, "batch": 1, "nbs": 1,
                      "lrf": 1, "weight_decay": 1.0, "imgsz": 64},
            "space": {"lr0": {"choice": [0.01, 10.0, 1e-7, 0.02]}},
            "search": {"trials": 4, "sampler": "grid", "scheduler": "fold_race"}}
    assert search(parse_study(wild), str(tmp_path / "race")) == "complete"
    table = board(tmp_path / "race").set_index("cfg.lr0")
    assert table["state"].to_dict() == {0.01: "complete", 0.02: "complete", 1e-7: "stopped@1x5", 10.0: "failed"}
    assert "the gradient must be finite" in table["reason"][10.0]
    actions = {e["action"] for e in Journal(Folder(tmp_path / "race")).events() if e["event"] == "decision"}
    assert actions == {"promote", "stop", "complete"}


@pytest.mark.parametrize("resources", [{"workers": 3}, {"cpus": 64}, {"gpus": 1}])
def test_more_than_the_cluster_has_is_one_clear_line(study: Mapping, tmp_path: Path, resources: Mapping) -> None:
    with pytest.raises(WrongInput, match=r"resources: a run takes .* room for"):
        search(parse_study({**study, "resources": resources}), str(tmp_path / "st"))
    assert not (tmp_path / "st").exists()


def test_nothing_is_left_behind() -> None:
    """All CPUs are free again and no placement group is left, after all searches above."""
    import time

    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and free_cpus() < 2:
        time.sleep(0.2)
    assert free_cpus() == 2
    states = [group["state"] for group in ray.util.placement_group_table().values()]
    assert set(states) <= {"REMOVED"}
