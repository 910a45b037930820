"""The best configurations together, through the command line."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from raybone.cli import main
from raybone.data.annotations import lesion_mask
from raybone.data.cache import Intensities
from raybone.data.dataset import open_dataset
from raybone.deploy.bundle import open_bundle
from raybone.models import load
from raybone.tasks.segmentation import Segmentation

SMALL = {
    **{"batch": 4, "nbs": 4, "depth": 2, "lr0": 0.03},
    **{"warmup_epochs": 0, "ema": 0.0, "cross_entropy": 0.0},
}


@pytest.fixture(scope="module")
def study(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of three U-Nets; one of them is given smaller scans, on which lesions vanish."""
    place = tmp_path_factory.mktemp("best")
    content = {
        "name": "best",
        "dataset": str(dataset),
        "model": "unet",
        "metric": "dice",
        "epochs": 8,
        "fixed": SMALL,
        "space": {"imgsz": {"choice": [256, 64]}, "width": {"choice": [8, 7]}},
        "search": {"sampler": "grid", "scheduler": "full", "trials": 3},
        "keep": 3,
    }
    file = place / "study.yaml"
    file.write_text(json.dumps(content))
    assert main(["search", str(file), "--out", str(place / "study"), "--local"]) == 0
    return place / "study"


def meta(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "bundle.json").read_text()))


def alike(study: Path) -> pd.DataFrame:
    """The winner, and the other configuration that is given scans of its size."""
    board = pd.read_csv(study / "leaderboard.csv")
    return board[board["cfg.imgsz"] == 256]


def dice_of(study: Path, dataset: Path, rows: pd.DataFrame, fold: int) -> float:
    """Dice of all pixels of a fold's scans, by the mean of its networks."""
    opened, unet, modules = open_dataset(dataset), load("unet"), []
    for config_id, width in zip(rows["config_id"], rows["cfg.width"]):
        modules.append(unet.build(unet.Config.model_validate({**SMALL, "width": width})).eval())
        file = study / f"runs/{config_id}/fold{fold}/last.pt"
        modules[-1].load_state_dict(torch.load(file, weights_only=True)["average"])
    both = total = 0
    for scan in opened.validation(fold):
        image_HW = Intensities(opened, 256)(scan).astype(np.float32) / 65535
        with torch.no_grad():
            said = [m(torch.from_numpy(image_HW)[None, None])[0].mask_CHW[0] for m in modules]
        found_HW = cv2.resize(np.mean(said, axis=0), (scan.width, scan.height)) >= 0.5
        truth_HW = np.zeros_like(found_HW)
        for lesion in (le for le in scan.lesions if le.category == "malignant"):
            truth_HW |= lesion_mask(lesion, scan.height, scan.width) > 0
        both += int((found_HW & truth_HW).sum())
        total += int(found_HW.sum() + truth_HW.sum())
    return 2 * both / total


def test_as_many_of_the_best_are_one_bundle_as_are_best_out_of_fold(
    study: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, rows = tmp_path / "bundle", alike(study)
    assert main(["refit", str(study), "--out", str(out), "--best", "3"]) == 0
    printed, content = capsys.readouterr().out, meta(out)
    score_NK = np.array([[dice_of(study, dataset, rows[:n], k) for k in range(3)] for n in (1, 2)])
    together = content["together"]
    np.testing.assert_allclose(together["by_number"], score_NK.mean(1), atol=2e-4)
    assert together["by_number"][0] == pytest.approx(rows["dice_mean"].iloc[0], abs=1e-5)
    best = int(score_NK.mean(1).argmax())
    crossed = [score_NK[np.delete(score_NK, k, axis=1).mean(1).argmax(), k] for k in range(3)]
    assert together["dice_mean"] == pytest.approx(np.mean(crossed), abs=2e-4)
    taken = [one["config_id"] for one in together["configurations"]]
    assert taken == list(rows["config_id"])[: best + 1]
    assert f"together are {', '.join(taken)}, of the best 2: dice" in printed
    assert f"{together['dice_mean']:.3f}" in printed
    card = (out / "README.md").read_text()
    assert all(f"| {value:.4f} |" in card for value in together["by_number"])


def test_each_network_of_it_is_as_it_was_trained(
    study: Path, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rising = itertools.count()
    monkeypatch.setattr(Segmentation, "score", lambda *_: {"dice": float(next(rising))})
    out = tmp_path / "bundle"
    assert main(["refit", str(study), "--out", str(out), "--best", "2"]) == 0
    rows, bundle = alike(study), open_bundle(out)
    names = [f"{row}-fold{k}.safetensors" for row in rows["config_id"] for k in range(3)]
    assert [member["file"] for member in bundle.meta["members"]] == names
    modules = bundle.members(torch.device("cpu"))
    weights = [sum(p.numel() for p in m.parameters()) for m in modules]
    assert weights == [int(n) for n in rows["parameters"] for _ in range(3)]
    assert weights[0] != weights[3]
    assert bundle.meta["kind"] == "ensemble of 2 configurations"
    assert main(["predict", str(out), str(cohort), "--out", str(tmp_path / "found")]) == 0
    found = json.loads((tmp_path / "found/predictions.json").read_text())
    assert found["members"] == 6

    content = meta(out)
    content["members"][4]["config"]["width"] = -1
    (out / "bundle.json").write_text(json.dumps(content))
    assert main(["predict", str(out), str(cohort), "--out", str(tmp_path / "again")]) == 2
