"""Studies on Ray: one local cluster for all tests here."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import ray
import yaml
from event_files import last_of
from faults import TRIAL, WORKER, Killer, epochs_of
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune import Callback, ExperimentAnalysis
from ray.tune.logger import JsonLoggerCallback, TBXLoggerCallback

import raybone as rb
from raybone.errors import WrongInput
from raybone.hpo.brain import Brain
from raybone.hpo.journal import Journal
from raybone.results.study_folder import StudyFolder
from raybone.run.local import search as search_locally
from raybone.run.ray.cluster import Cluster
from raybone.run.ray.resources import slots
from raybone.run.ray.tuner import search
from raybone.storage import Folder
from raybone.study.files import parse_study

TIMING = ["train_seconds", "gpu_hours", "images_per_s", "memory_gb", "gpu_use"]
pytestmark = pytest.mark.usefixtures("local_ray")
Mapping = dict[str, Any]


def board(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "leaderboard.csv")


def free_cpus() -> float:
    return float(ray.available_resources().get("CPU", 0))


def test_a_study_on_ray_under_three_faults_equals_the_undisturbed_one_without_ray(
    held_out: Path, study: Mapping, tmp_path: Path
) -> None:
    """Its driver, a worker and a trial are killed; `make chaos` injects more."""
    study = {
        **study,
        "dataset": str(held_out),
        "epochs": 4,
        "search": {**study["search"], "trials": 1},
    }
    out = tmp_path / "ray"
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    driver = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "raybone",
            "search",
            str(tmp_path / "study.yaml"),
            "--out",
            str(out),
            "--address",
            ray.get_runtime_context().gcs_address,
        ],
        stdout=subprocess.DEVNULL,
    )
    search_locally(parse_study(study), str(tmp_path / "local"))
    while driver.poll() is None and not ((out / "journal").exists() and len(epochs_of(out)) >= 3):
        time.sleep(0.05)
    driver.kill()
    assert driver.wait() == -9
    known = epochs_of(out)
    killer = Killer(out, (len(known) + 2, WORKER), (len(known) + 5, TRIAL))
    assert search(parse_study(study), str(out)).kind == "complete"
    assert killer.all_killed()
    on_ray, local = (board(tmp_path / n).drop(columns=TIMING) for n in ("ray", "local"))
    pd.testing.assert_frame_equal(on_ray, local)
    assert on_ray["dice_test"].notna().sum() == 1
    epochs = epochs_of(out)
    assert epochs[: len(known)] == known
    assert len(epochs) == len(set(epochs)) == 12


def test_two_workers_train_one_fold_together_and_no_process_listens_to_the_network(
    study: Mapping, tmp_path: Path
) -> None:
    heard: dict[str, set[str]] = {}

    def listen(_: Brain) -> None:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                heard.setdefault(process.name(), set()).update(
                    c.laddr.ip.removeprefix("::ffff:")
                    for c in process.net_connections()
                    if c.status == "LISTEN"
                )

    two = {
        **study,
        "resources": {"workers": 2},
        "epochs": 2,
        "search": {**study["search"], "trials": 1},
    }
    assert search(parse_study(two), str(tmp_path / "two"), tell=listen).kind == "complete"
    assert heard["raylet"] == {"127.0.0.1"}
    assert {ip for ips in heard.values() for ip in ips} == {"127.0.0.1"}, heard
    table = board(tmp_path / "two")
    assert list(table["state"]) == ["complete"]
    assert (table["epochs_done"] == 6).all()
    assert math.isfinite(table["dice_pooled"][0])


def test_a_person_ends_one_configuration_after_its_epoch_and_adds_another(
    study: Mapping, tmp_path: Path
) -> None:
    out = str(tmp_path / "st")

    def ask(brain: Brain) -> None:
        first = brain.state.configurations.get("c000")
        if first and first.epochs and not StudyFolder(out).stop.of:
            StudyFolder(out).ask_to_stop("c000")
            StudyFolder(out).ask_for(["lr0=0.01", "fliplr=0"])

    assert search(parse_study({**study, "epochs": 8}), out, tell=ask).kind == "complete"
    table = board(tmp_path / "st").set_index("config_id")
    assert table["state"]["c000"].startswith("stopped@")
    assert table["state"]["c001"] == table["state"]["c002"] == "complete"
    spent = [config_id for config_id, _, _ in epochs_of(tmp_path / "st")]
    assert spent.count("c001") == 24 > spent.count("c000") >= 1
    # One that is added to a search that is over is begun by the next.
    StudyFolder(out).ask_for(["lr0=0.02", "fliplr=0"])
    assert search(parse_study({**study, "epochs": 8}), out).kind == "complete"
    assert board(tmp_path / "st").set_index("config_id")["state"]["c003"] == "complete"


def test_a_race_pauses_promotes_and_stops_and_a_crash_in_a_worker_fails_its_configuration_alone(
    study: Mapping, tmp_path: Path
) -> None:
    """The smallest rate learns nothing and loses against sensible ones; the largest diverges."""
    wild = {
        **study,
        "metric": "val_loss",
        "epochs": 5,
        "fixed": {
            **study["fixed"],
            "optimizer": "SGD",
            "clip": 1e30,
            "warmup_epochs": 0,
            "batch": 1,
            "nbs": 1,
            "lrf": 1,
            "weight_decay": 1.0,
            "imgsz": 64,
        },
        "space": {"lr0": {"choice": [0.01, 10.0, 1e-7, 0.02]}},
        "search": {"trials": 4, "sampler": "grid", "scheduler": "fold_race"},
    }
    assert search(parse_study(wild), str(tmp_path / "race")).kind == "complete"
    table = board(tmp_path / "race").set_index("cfg.lr0")
    assert table["state"].to_dict() == {
        0.01: "complete",
        0.02: "complete",
        1e-7: "stopped@1x5",
        10.0: "failed",
    }
    assert "must be finite" in table["reason"][10.0]
    actions = {
        e["action"] for e in Journal(Folder(tmp_path / "race")).events() if e["event"] == "decision"
    }
    assert actions == {"promote", "stop", "complete"}


class Heard(Callback):
    """Any callback of Tune: keeps what it hears, and kills the process of the first trial that
    reports, while Tune pauses it.
    """

    def __init__(self) -> None:
        self.results: list[Mapping] = []
        self.trials: list[Any] = []

    def on_trial_result(self, *_: Any, result: Mapping, **__: Any) -> None:
        if not self.results:
            psutil.Process(result["pid"]).kill()
        self.results.append(result)

    def on_experiment_end(self, trials: list[Any], **_: Any) -> None:
        self.trials = trials


def test_callbacks_of_tune_hear_the_hyper_parameters_and_the_metrics_of_each_rung(
    study: Mapping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that is killed on its way to a pause tells of its rung twice: it counts once."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    heard, place = Heard(), f"sqlite:///{tmp_path}/mlflow.db"
    callbacks = [
        TBXLoggerCallback(),
        JsonLoggerCallback(),
        MLflowLoggerCallback(tracking_uri=place, experiment_name="tiny"),
        heard,
    ]
    raced = {**study, "epochs": 2, "search": {**study["search"], "scheduler": "fold_race"}}
    backend = rb.Cluster(callbacks=callbacks)
    results = rb.search(rb.Study(**raced), tmp_path / "st", backend=backend, progress=False)
    table = results.leaderboard().set_index("config_id")
    assert list(table["state"]) == ["complete", "complete"]
    events = Journal(Folder(tmp_path / "st")).events()
    finished = sorted((e["config_id"], e["rung"]) for e in events if e["event"] == "rung")
    assert finished == [(config_id, rung) for config_id in ("c000", "c001") for rung in range(2)]

    rungs = sorted(
        {(r["config"]["config_id"], r["rung"], r["folds"], r["epochs"]) for r in heard.results}
    )
    steps = [(0, 1, 2), (1, 3, 6)]  # rung, folds, fold epochs
    assert rungs == [(config_id, *step) for config_id in ("c000", "c001") for step in steps]
    assert {trial.status for trial in heard.trials} == {"TERMINATED"}
    import mlflow

    runs = mlflow.search_runs(experiment_names=["tiny"]).set_index("params.config_id")
    (tune_folder,) = (tmp_path / "st" / "logs" / "ray").glob("tune-hub-*")
    frame = ExperimentAnalysis(str(tune_folder)).dataframe().set_index("config/config_id")
    for config_id, row in table.iterrows():
        expected = pytest.approx(row["val_loss_mean"], abs=1e-6)
        assert runs.loc[config_id, "metrics.val_loss"] == expected
        assert frame.loc[config_id, "val_loss"] == expected
        assert last_of(tune_folder / str(config_id))["ray/tune/val_loss"] == expected
        assert float(runs.loc[config_id, "params.lr0"]) == pytest.approx(row["cfg.lr0"])
        assert frame.loc[config_id, "config/lr0"] == pytest.approx(row["cfg.lr0"])


@pytest.mark.parametrize(("gpus", "fitting"), [(0.4, 16), (0.5, 16), (0.6, 8), (1, 8), (3, 2)])
def test_shares_of_a_gpu_are_of_one_gpu(
    study: Mapping, monkeypatch: pytest.MonkeyPatch, gpus: float, fitting: int
) -> None:
    monkeypatch.setattr(
        ray,
        "nodes",
        lambda: [
            {"Alive": True, "Resources": {"CPU": 64.0, "GPU": 8.0}},
            {"Alive": True, "Resources": {"CPU": 64.0}},
            {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
        ],
    )
    assert slots(parse_study({**study, "resources": {"gpus": gpus}})) == fitting


@pytest.mark.parametrize("wait", [math.nan, math.inf, -1.0])
def test_nobody_waits_for_ever(wait: float) -> None:
    with pytest.raises(WrongInput, match=r"--wait .*: must be a number of minutes"):
        Cluster(wait=wait)


@pytest.mark.parametrize("resources", [{"workers": 4}, {"cpus": 64}, {"gpus": 1}])
def test_more_than_the_cluster_has_is_one_clear_line(
    study: Mapping, tmp_path: Path, resources: Mapping
) -> None:
    with pytest.raises(WrongInput, match=r"resources: a run takes .* room for"):
        search(parse_study({**study, "resources": resources}), str(tmp_path / "st"))
    assert not (tmp_path / "st").exists()


def test_nothing_is_left_behind() -> None:
    """All CPUs are free again and no placement group is left, after all searches above."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and free_cpus() < 2:
        time.sleep(0.2)
    assert free_cpus() == 2
    states = [group["state"] for group in ray.util.placement_group_table().values()]
    assert set(states) <= {"REMOVED"}


class Killed(BaseException):
    """A driver that goes without a word."""


def test_a_cohort_race_ends_on_ray_as_it_does_here_also_when_its_driver_is_killed(
    study: Mapping, tmp_path: Path
) -> None:
    """One at a time, so that what arrives first is the same; the driver goes in mid-rung."""
    race = {
        **study,
        "metric": "val_loss",
        "epochs": 4,
        "fixed": {**study["fixed"], "imgsz": 64},
        "search": {"trials": 8, "sampler": "random", "scheduler": "cohort_race", "seed": 2},
        "resources": {"concurrent": 1},
    }
    search_locally(parse_study(race), str(tmp_path / "here"))

    def kill(brain: Brain) -> None:
        if brain.state.fold_epochs >= 7 and not brain.state.end:
            raise Killed

    with pytest.raises(Killed):
        search(parse_study(race), str(tmp_path / "ray"), tell=kill)
    assert search(parse_study(race), str(tmp_path / "ray")).kind == "complete"
    told = []
    for name in ("here", "ray"):
        events = [*Journal(Folder(tmp_path / name)).events()]
        wanted = [e for e in events if e["event"] in ("config", "decision")]
        told.append([{k: v for k, v in e.items() if k not in ("time", "up")} for e in wanted])
        epochs = [(e["config_id"], e["fold"], e["epoch"]) for e in events if e["event"] == "epoch"]
        assert len(epochs) == len(set(epochs))
    assert told[0] == told[1]
    assert "stop" in {e.get("action") for e in told[0]}
