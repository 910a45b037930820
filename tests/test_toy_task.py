"""A fourth task from outside, the number of lesions of a scan, without a change in raybone."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from raybone.cli import main
from raybone.data.loader import Batch
from raybone.errors import WrongInput
from raybone.models import check
from raybone.models._model import Model, TrainingConfig
from raybone.study.metric import Metric
from raybone.study.param import Param
from raybone.tasks import register, task_named
from raybone.tasks.base import Outcome, Task
from raybone.types import Prediction


class Counting(Task):
    name = "counting"
    ranked = ("MAE", "val_loss")
    alone = "MAE"
    metrics: ClassVar = {"MAE": Metric("minimize", high=math.inf)}

    def finding(self, prediction: Prediction) -> dict[str, Any]:
        return {"count": round(float(prediction.scores_N[0]), 5)}

    def score(self, outcome: Outcome) -> dict[str, float]:
        return {"MAE": float(self.errors(outcome).mean())}

    def resampled(self, outcome: Outcome, weights_BN: Any) -> dict[str, Any]:
        weights_BN = weights_BN[:, [s.annotated for s in outcome.scans]]
        return {"MAE": weights_BN @ self.errors(outcome) / weights_BN.sum(1)}

    def errors(self, outcome: Outcome) -> Any:
        pairs, names = outcome.pairs, outcome.categories
        truth_N = [sum(le.category in names for le in s.lesions) for _, s in pairs]
        return np.abs(np.array([f["count"] for f, _ in pairs]) - truth_N)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()
        )
        self.head = nn.Linear(8, 1)

    def forward(self, batch: Batch | torch.Tensor) -> Any:
        images = batch.image_NCHW if isinstance(batch, Batch) else batch
        count_N = self.head(self.net(images).amax((2, 3)))[:, 0]
        if isinstance(batch, Batch):
            truth_N = torch.tensor([float(len(b)) for b in batch.boxes])
            return {"l1": nn.functional.l1_loss(count_N, truth_N)}
        return [Prediction(scores_N=c) for c in count_N.detach().numpy()[:, None]]


register(Counting())
SPACE = {"lr0": Param(log_uniform=(1e-3, 1e-1))}
MODEL = Model("counter", "counting", TrainingConfig, lambda config: Counter(), SPACE, "this file")


@pytest.fixture(scope="module")
def counted(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of the toy."""
    out = tmp_path_factory.mktemp("counted")
    study = {
        "dataset": str(dataset),
        "model": "test_toy_task:MODEL",
        "epochs": 1,
        "fixed": {"imgsz": 64, "batch": 4, "nbs": 4, "scale": 0, "translate": 0},
        "search": {"trials": 2, "scheduler": "full", "sampler": "random"},
    }
    (out / "counting.yaml").write_text(yaml.safe_dump(study))
    assert main(["search", str(out / "counting.yaml"), "--out", str(out / "st"), "--local"]) == 0
    return out / "st"


def test_a_study_of_the_fourth_task_is_ranked_by_its_own_metric_least_first(counted: Path) -> None:
    table = pd.read_csv(counted / "leaderboard.csv")
    assert list(table["state"]) == ["complete"] * 2
    assert 0 < table["MAE_mean"][0] <= table["MAE_mean"][1]
    folds = [f"MAE_fold{k}" for k in range(3)]
    np.testing.assert_allclose(table[folds].mean(axis=1), table["MAE_mean"])
    assert (table["MAE_ci_low"] <= table["MAE_mean"]).all()
    said = json.loads((counted / "runs/c000/fold0/predictions.json").read_text())["findings"]
    assert {"count", "scan_id"} <= set(said[0])


def test_its_leaderboard_and_state_are_read_without_its_code(counted: Path) -> None:
    for verb in ("leaderboard", "watch"):
        more = ["--once"] if verb == "watch" else []
        command = [sys.executable, "-m", "raybone", verb, str(counted), *more]
        run = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
        assert (run.returncode, run.stderr) == (0, "")
        assert "MAE" in run.stdout


def test_its_report_has_its_metric_and_pictures_of_the_winners_scans(counted: Path) -> None:
    assert main(["report", str(counted), "--html", str(counted / "r.html")]) == 0
    page = (counted / "r.html").read_text()
    assert "MAE" in page
    assert "data:image/png;base64," in page


def test_a_metric_that_the_task_does_not_have_is_refused(
    counted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = str(counted.parent / "counting.yaml")
    command = ["search", study, "--out", str(counted.parent / "no"), "--local", "--set"]
    assert main([*command, "metric=RMSE"]) == 2
    assert "is a counting model and is ranked by one of MAE, val_loss; got RMSE" in (
        capsys.readouterr().err
    )
    assert main([*command, "model=test_toy_task:NONE"]) == 2
    assert "model: test_toy_task:NONE must be a model of a package" in capsys.readouterr().err
    assert main([*command, "model=json:dumps"]) == 2
    assert "model: json:dumps must be a raybone Model, got function" in capsys.readouterr().err


def test_a_bundle_of_it_opens_where_its_module_is_imported_and_names_no_other(
    counted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["refit", str(counted), "--out", str(tmp_path / "bundle")]) == 0
    meta = json.loads((tmp_path / "bundle/bundle.json").read_text())
    assert (meta["model"], meta["task"]) == ("test_toy_task:MODEL", "counting")
    assert "no out-of-fold scores" in meta["calibration"]["reason"]
    assert main(["phantom", str(tmp_path / "new"), "--patients", "1", "--height", "128"]) == 0
    run = ["predict", str(tmp_path / "bundle"), str(tmp_path / "new"), "--out"]
    assert main([*run, str(tmp_path / "counts")]) == 0
    frames = json.loads((tmp_path / "counts/predictions.json").read_text())["scans"]
    assert [len(frame["findings"]) for frame in frames] == [1, 1]
    assert [frame["findings"][0]["box"] for frame in frames] == [[0, 0, 32, 128]] * 2
    (tmp_path / "this_runs.py").write_text("raise SystemExit(7)")
    changed = json.dumps({**meta, "model": "this_runs:MODEL"})
    (tmp_path / "bundle/bundle.json").write_text(changed)
    run = ["predict", str(tmp_path / "bundle"), str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(run) == 2
    assert "this_runs:MODEL is code outside raybone, which no bundle" in capsys.readouterr().err


def test_the_contract_suite_passes_the_toy_and_tells_what_another_breaks() -> None:
    assert check(MODEL, imgsz=64) == []
    from dataclasses import replace

    class Broken(Counter):
        def forward(self, batch: Batch | torch.Tensor) -> Any:
            found = super().forward(batch)
            return found[:1] if isinstance(found, list) else {"l1": 0 * found["l1"]}

    with pytest.raises(WrongInput, match=r"task: must be one of detection, .*got 'guessing'"):
        task_named("guessing")
    told = check(replace(MODEL, build=lambda config: Broken(), SOURCE=""), imgsz=64)
    assert any("SOURCE" in line for line in told)
    assert any("a Prediction an image" in line for line in told)
    assert any("learn" in line for line in told)


def test_what_a_cluster_must_have_installed_is_named(
    counted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = str(counted.parent / "counting.yaml")
    capsys.readouterr()
    assert main(["submit", study, "--address", "http://127.0.0.1:1", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["packages"] == ["test_toy_task"]
    assert main(["manifests", study]) == 0
    job = yaml.safe_load(capsys.readouterr().out)
    assert job["metadata"]["annotations"] == {"raybone/packages": "test_toy_task"}
    assert main(["submit", study, "--address", "x", "--dry-run", "--set", "model=unet"]) == 0
    assert json.loads(capsys.readouterr().out)["packages"] == []
    assert main(["manifests", study, "--set", "model=unet"]) == 0
    assert "annotations" not in yaml.safe_load(capsys.readouterr().out)["metadata"]


def test_an_installed_package_offers_a_model_by_an_entry_point(tmp_path: Path) -> None:
    source = Path(__file__).read_text().partition("\n\n@pytest.fixture")[0]
    (tmp_path / "counters.py").write_text(source)
    (tmp_path / "counters-1.0.dist-info").mkdir()
    (tmp_path / "counters-1.0.dist-info/METADATA").write_text("Name: counters\nVersion: 1.0\n")
    (tmp_path / "counters-1.0.dist-info/entry_points.txt").write_text(
        "[raybone.models]\ncount_net = counters:MODEL\n"
    )
    code = (
        "from raybone.models import load, task_of; from raybone.run.defaults import complete; "
        "from raybone.study.files import parse_study as p; "
        "s = p(complete({'dataset': 'x', 'model': 'count_net'})); "
        "print(load('count_net').name, task_of('count_net'), s.metric, s.direction, *s.space)"
    )
    environment = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}", "PATH": "/usr/bin"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert run.stdout == "count_net counting MAE minimize lr0\n"
