"""External validation: scores are those of outside implementations, and whom the bundle knows is
refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import bundle_of
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import roc_auc_score

from raybone.cli import main
from raybone.data.annotations import foci
from raybone.data.dataset import Dataset, open_dataset
from raybone.data.loader import masks_of
from raybone.deploy.bundle import Bundle
from raybone.deploy.evaluate import Evaluation, evaluate, evaluation_lines
from raybone.errors import WrongInput
from raybone.types import Prediction, Scan

RNG = np.random.default_rng(0)
SMALL = {"imgsz": 128, "width": 4, "depth": 2}


def boxes_of(scan: Scan) -> Prediction:
    """Lesions, moved by up to two pixels, and two alarms, with scores of which most are right."""
    truth_N4 = np.array([le.box_xyxy for le in foci(scan) if le.category == "malignant"])
    moved_N4 = truth_N4.reshape(-1, 4) + RNG.uniform(-2, 2, (len(truth_N4), 1))
    alarms_24 = np.array([[1, 1, 9, 9], [20, 20, 30, 40]], float)
    scores_N = np.append(RNG.uniform(0.4, 1, len(moved_N4)), RNG.uniform(0, 0.7, 2))
    order_N = np.argsort(-scores_N)
    boxes_N4 = np.concatenate([moved_N4, alarms_24]).clip(0)[order_N].astype(np.float32)
    return Prediction(boxes_N4, scores_N[order_N].astype(np.float32), np.zeros(len(order_N), int))


def mask_of_scan(scan: Scan) -> Prediction:
    """Lesions, moved by a pixel, with probabilities over a half, and some noise elsewhere."""
    truth_CHW = np.roll(masks_of(scan, ["malignant"]) == 1, 1, 1)
    noise_CHW = RNG.uniform(0, 0.45, truth_CHW.shape)
    return Prediction(mask_CHW=np.where(truth_CHW, 0.9, noise_CHW).astype(np.float32))


def chance_of(scan: Scan) -> Prediction:
    """Of an abnormal scan mostly above a half."""
    abnormal = dict(scan.labels)["abnormal"] == "1"
    score = RNG.uniform(0.3, 1) if abnormal else RNG.uniform(0, 0.7)
    return Prediction(scores_N=np.array([score], np.float32))


Says = Callable[[Scan], Prediction]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Prediction]:
    """What the networks say of each scan, by its id."""
    known = dict[str, Prediction]()

    def said(
        task: Any, members: Any, samples: Any, *_: object
    ) -> Iterator[tuple[int, list[Prediction]]]:
        how: dict[str, Says] = {
            "detection": boxes_of,
            "segmentation": mask_of_scan,
            "classification": chance_of,
        }
        for index in range(len(samples)):
            scan = samples.scan_of(index)
            known[scan.scan_id] = how[task.name](scan)
            yield index, [known[scan.scan_id]] * len(members)

    monkeypatch.setattr("raybone.deploy.evaluate.outputs", said)
    return known


def named(place: Path, model: str, **config: Any) -> Bundle:
    return bundle_of(place / model.replace("/", "-"), model, ["malignant"], 2, **config)


def labelled(opened: Dataset, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """The dataset with a label of every scan, as `evaluate` will open it."""
    scans = tuple(
        replace(
            s,
            labels=(
                ("abnormal", "01"[n % 3 > 0]),
                ("half", "first" if n < 10 else "second"),
            ),
        )
        for n, s in enumerate(opened.scans)
    )
    changed = replace(opened, scans=scans)
    monkeypatch.setattr("raybone.deploy.evaluate.open_dataset", lambda _: changed)
    return changed


def test_boxes_score_as_pycocotools_says(
    dataset: Path, tmp_path: Path, told: dict[str, Prediction]
) -> None:
    made = evaluate(named(tmp_path, "fcos_r18", channels=32), dataset)
    scans = [*open_dataset(dataset).scans]
    truth, found = COCO(), list[list[float]]()
    known = [
        (number, le)
        for number, scan in enumerate(scans, 1)
        for le in foci(scan)
        if le.category == "malignant"
    ]
    truth.dataset = {
        "images": [{"id": n} for n in range(1, len(scans) + 1)],
        "categories": [{"id": 1, "name": "malignant"}],
        "annotations": [
            {"id": k, "image_id": n, "category_id": 1, "iscrowd": 0, **as_coco(le.box_xyxy)}
            for k, (n, le) in enumerate(known, 1)
        ],
    }
    truth.createIndex()
    for number, scan in enumerate(scans, 1):
        own = told[scan.scan_id]
        for box_4, score in zip(np.round(own.boxes_N4.astype(float), 2), own.scores_N):
            x1, y1, x2, y2 = box_4
            found.append([number, x1, y1, x2 - x1, y2 - y1, round(float(score), 5), 1])
    judge = COCOeval(truth, truth.loadRes(np.array(found)), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    for name, theirs in zip(("AP", "AP50", "AP75"), judge.stats):
        assert made.scores[name].value == pytest.approx(theirs, abs=1e-9)
        assert made.scores[name].low < theirs < made.scores[name].high
    assert [*made.froc] == ["0.25", "0.5", "1", "2", "4", "8"]
    assert (made.scans, made.patients, made.left_out) == (18, 9, 0)


def as_coco(box: tuple[float, ...]) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    return {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}


def test_masks_score_as_their_pixels_do(
    dataset: Path, tmp_path: Path, told: dict[str, Prediction]
) -> None:
    made = evaluate(named(tmp_path, "unet", **SMALL), dataset)
    both = size = 0
    gap = list[float]()
    for scan in open_dataset(dataset).scans:
        truth_HW, probability_HW = (
            masks_of(scan, ["malignant"])[0] == 1,
            told[scan.scan_id].mask_CHW[0],
        )
        found_HW = probability_HW >= 0.5
        both += int((truth_HW & found_HW).sum())
        size += int(truth_HW.sum() + found_HW.sum())
        gap.append(float(probability_HW.mean()))
    assert made.scores["dice"].value == pytest.approx(2 * both / size, abs=1e-9)
    assert made.metric == "dice"
    assert made.froc == {}
    pixels = sum(s.height * s.width for s in open_dataset(dataset).scans)
    assert made.calibration["count"] == pixels
    # Noise up to 0.45 where nothing is: the mean gap is about that of the means.
    assert made.calibration["error"] == pytest.approx(np.mean(gap), abs=0.01)


def test_classes_score_as_sklearn_says_and_subgroups_are_told(
    dataset: Path,
    tmp_path: Path,
    told: dict[str, Prediction],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = named(tmp_path, "timm/resnet18", imgsz=64, target="abnormal")
    scans = labelled(open_dataset(dataset), monkeypatch).scans
    made = evaluate(bundle, dataset)
    truth = [dict(s.labels)["abnormal"] == "1" for s in scans]
    scores = [float(told[s.scan_id].scores_N[0]) for s in scans]
    assert made.scores["AUC"].value == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
    groups = {(g.by, g.name): g for g in made.groups}
    half = [n for n, s in enumerate(scans) if dict(s.labels)["half"] == "first"]
    expected = roc_auc_score([truth[n] for n in half], [scores[n] for n in half])
    assert groups["half", "first"].score.value == pytest.approx(expected, abs=1e-9)
    assert groups["half", "first"].scans == len(half)
    assert {name for by, name in groups if by == "view"} == {"anterior", "posterior"}
    lines = [*evaluation_lines(made)]
    assert lines[0] == "18 scans of 9 patients, none of them trained on"
    assert any(re.fullmatch(r"AUC 0\.\d+ \(95 %: .*\)", line) for line in lines)


@pytest.mark.parametrize("what", ["patients", "pixels"])
def test_whom_it_was_trained_on_is_refused(
    what: str, dataset: Path, tmp_path: Path, told: dict[str, Prediction]
) -> None:
    bundle = named(tmp_path, "unet", **SMALL)
    scan = open_dataset(dataset).scans[0]
    bundle.meta[what] = [scan.patient_id if what == "patients" else scan.pixels]
    with pytest.raises(WrongInput, match="it was on 1 of 9"):
        evaluate(bundle, dataset)
    assert told == {}


def test_what_cannot_be_scored_is_refused_in_a_line_each(dataset: Path, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "b", "unet", ["bone"], steps=("tile",), **SMALL)
    del bundle.meta["pixels"]
    with pytest.raises(WrongInput) as error:
        evaluate(bundle, dataset, test=True)
    assert [
        re.sub(r".*: (must|needs|the dataset)", r"\1", p)[:40] for p in error.value.problems
    ] == [
        "must be of scans of the steps [], got ['",
        "must say which scans it was trained on, ",
        "the dataset has malignant, benign, not b",
        "needs scans with a truth to score by; it",
    ]


@pytest.mark.usefixtures("told")
def test_one_patient_has_scores_without_an_interval(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_dataset(dataset)
    sick = next(s for s in opened.scans if s.lesions)
    alone = replace(opened, scans=tuple(s for s in opened.scans if s.patient_id == sick.patient_id))
    monkeypatch.setattr("raybone.deploy.evaluate.open_dataset", lambda _: alone)
    made: Evaluation = evaluate(named(tmp_path, "unet", **SMALL), dataset)
    assert made.patients == 1
    assert 0 < made.scores["dice"].value < 1
    assert np.isnan(made.scores["dice"].low)
    assert f"dice {made.scores['dice'].value:.3f}" in [*evaluation_lines(made)]


@pytest.mark.usefixtures("told")
def test_json_has_null_where_there_is_no_number(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = named(tmp_path, "unet", **SMALL)
    assert main(["evaluate", str(bundle.path), str(dataset), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["metric"] == "dice"
    assert said["scores"]["scan_dice"]["low"] is None
    assert said["scores"]["dice"]["low"] < said["scores"]["dice"]["value"]
    assert {g["by"] for g in said["groups"]} >= {"view", "lesions on the scan"}
    assert main(["evaluate", str(bundle.path), str(tmp_path / "none")]) == 2
    assert "raybone: dataset" in capsys.readouterr().err
