"""The best configurations together, through the command line."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from pretend import pretend
from scipy.special import logit

from raybone.cli import main
from raybone.data.annotations import lesion_mask, mask_of
from raybone.data.cache import Intensities
from raybone.data.dataset import open_dataset
from raybone.deploy import best_together
from raybone.deploy.bundle import open_bundle
from raybone.models import load
from raybone.results.study_folder import StudyFolder
from raybone.study.metric import Metric
from raybone.tasks.segmentation import Segmentation
from raybone.train.checkpoint import write_checkpoint

SMALL = {"batch": 4, "nbs": 4, "depth": 2}


@pytest.fixture(scope="module")
def study(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of four U-Nets that have learned nothing; each is given scans as one other is."""
    place = tmp_path_factory.mktemp("best") / "study"
    pretend(
        place,
        dataset,
        fixed=SMALL,
        space={"imgsz": {"choice": [256, 128]}, "width": {"choice": [8, 7]}},
        search={"sampler": "grid", "trials": 4},
        keep=4,
    )
    folder, unet, opened = StudyFolder(place), load("unet"), open_dataset(dataset)
    for number, one in enumerate(folder.complete()):
        for fold in range(3):
            torch.manual_seed(10 * number + fold)
            module = unet.build(unet.Config.model_validate({**SMALL, **one.params})).eval()
            image_HW = Intensities(opened, int(one.params["imgsz"]))(opened.scans[0])
            # They find what is bright, somewhere in a tenth of the scan.
            with torch.no_grad():
                at, median = np.unravel_index(image_HW.argmax(), image_HW.shape), np.median
                first_HW = logit(said(module, image_HW))
                module.net.head.bias.zero_()
                module.net.head.weight *= 300 * np.sign(first_HW[at] - median(first_HW))
                second_HW = logit(said(module, image_HW))
                module.net.head.bias -= float(np.quantile(second_HW, 0.9))
            weights = module.state_dict()
            write_checkpoint(one.fold(fold), {"average": weights})
    return place


def said(module: Any, image_HW: np.ndarray) -> np.ndarray:
    """The probability of each pixel of intensities as they are kept."""
    with torch.no_grad():
        image_NCHW = torch.from_numpy(image_HW.astype(np.float32) / 65535)[None, None]
        return np.asarray(module(image_NCHW)[0].mask_CHW[0])


def meta(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "bundle.json").read_text()))


@pytest.mark.parametrize(
    ("metric", "model", "more"),
    [
        ("AP50", "fcos_r18", {"channels": 32}),
        ("AUC", "timm/resnet18", {}),
    ],
)
def test_detectors_and_classifiers_are_put_together_too(
    metric: str, model: str, more: dict[str, Any], dataset: Path, cohort: Path, tmp_path: Path
) -> None:
    place, fixed = tmp_path / "study", {"imgsz": 128, "batch": 4, "nbs": 4, **more}
    space = {"lr0": {"choice": [0.01, 0.001]}}
    pretend(
        place,
        dataset,
        metric,
        model=model,
        fixed=fixed,
        space=space,
        search={"sampler": "grid", "trials": 2},
        keep=2,
    )
    loaded = load(model)
    for number, one in enumerate(StudyFolder(place).complete()):
        for fold in range(3):
            torch.manual_seed(10 * number + fold)
            module = loaded.build(loaded.Config.model_validate({**fixed, **one.params}))
            write_checkpoint(one.fold(fold), {"average": module.state_dict()})
    out = tmp_path / "bundle"
    assert main(["refit", str(place), "--out", str(out), "--best", "2"]) == 0
    content = meta(out)
    tried = content["together"]["by_number"]
    assert len(tried) == 2
    assert all(0 <= score <= 1 for score in tried)
    taken = 1 + int(np.argmax(tried))
    assert len(content["members"]) == 3 * taken
    assert len(open_bundle(out).members(torch.device("cpu"))) == 3 * taken
    said = ["predict", str(out), str(cohort), "--out", str(tmp_path / "found")]
    assert main(said) == 0


@dataclass(frozen=True)
class Job:
    task: Any
    dataset: Any
    fold: int = 0


def test_of_an_error_the_least_is_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of the first alone, and of two together, in each fold."""
    errors_KN = ([1.0, 2.0], [1.1, 2.1], [0.9, 1.9])
    task = SimpleNamespace(
        ranked=("MAE",),
        metrics={"MAE": Metric("minimize", 0, math.inf)},
        score=lambda error: {"MAE": error},
    )

    def said(job: Job, *_: object) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(outcome=lambda e=error: e, findings=[], cases=lambda: None)
            for error in errors_KN[job.fold]
        ]

    monkeypatch.setattr(best_together, "said_of", said)
    several = [SimpleNamespace(config=None, states=[None] * 3) for _ in range(2)]
    job = Job(task, SimpleNamespace(folds=3))
    made = best_together.best_together(job, several, "MAE", torch.device("cpu"))
    assert (len(made.members), made.score["MAE_mean"]) == (1, 1.0)


def alike(study: Path) -> pd.DataFrame:
    """The winner, and the other configuration that is given scans of its size."""
    board = StudyFolder(study).table()
    return board[board["cfg.imgsz"] == board["cfg.imgsz"][0]]


def dice_of(study: Path, dataset: Path, rows: pd.DataFrame, fold: int) -> float:
    """Dice of all pixels of a fold's scans, by the mean of its networks."""
    opened, unet, modules = open_dataset(dataset), load("unet"), []
    for config_id, width in zip(rows["config_id"], rows["cfg.width"]):
        modules.append(unet.build(unet.Config.model_validate({**SMALL, "width": width})).eval())
        file = study / f"runs/{config_id}/fold{fold}/last.pt"
        modules[-1].load_state_dict(torch.load(file, weights_only=True)["average"])
    both = total = 0
    for scan in opened.validation(fold):
        image_HW = Intensities(opened, int(rows["cfg.imgsz"].iloc[0]))(scan)
        each = [said(module, image_HW) for module in modules]
        found_HW = cv2.resize(np.mean(each, axis=0), (scan.width, scan.height)) >= 0.5
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
    assert len(set(together["by_number"])) == 2
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
    study: Path,
    cohort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
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
    assert len(set(weights[:3])) == len(set(weights[3:])) == 1
    assert weights[0] != weights[3], "one is wider"
    assert bundle.meta["kind"] == "ensemble of 2 configurations"
    ((frame, _),) = bundle.predict(next(cohort.rglob("*.dcm")))
    assert mask_of(frame.masks["malignant"]).shape == (256, 64)

    monkeypatch.setattr(Segmentation, "score", lambda *_: {"dice": float("nan")})
    capsys.readouterr()
    assert main(["refit", str(study), "--out", str(tmp_path / "none"), "--best", "2"]) == 2
    assert "--best 2: dice must be defined in every fold" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()

    content = meta(out)
    content["members"][4]["config"]["width"] = -1
    (out / "bundle.json").write_text(json.dumps(content))
    assert main(["predict", str(out), str(cohort), "--out", str(tmp_path / "again")]) == 2
