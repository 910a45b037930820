"""Categories that overlap, categories that are no lesions, crowds, and scans that nobody
annotated.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from faults import unseal
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from raybone.cli import main
from raybone.data.annotations import lesion_of_mask, mask_of, rle_of
from raybone.data.cache import Intensities
from raybone.data.dataset import Dataset, open_dataset
from raybone.data.folds import assign_folds
from raybone.data.ingest.prepare import prepare
from raybone.data.inspect import inspect
from raybone.deploy.calibrate import calibrate, out_of_fold
from raybone.errors import WrongInput
from raybone.models import load
from raybone.run.checks import resolve
from raybone.study.files import parse_study
from raybone.tasks import task_named
from raybone.tasks.base import Outcome
from raybone.tasks.classification import targets
from raybone.train.samples import FoldJob, scored_samples, training_samples
from raybone.types import Array, Finding, Lesion, Prediction, Scan

BOTH = ["malignant", "bone"]
SIDE = 64


def disc(x: float, y: float, radius: float) -> Array:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


def scan(name: str, *lesions: Lesion, patient: str = "", flags: tuple[str, ...] = ()) -> Scan:
    return Scan(
        name, patient or name, "anterior", SIDE, SIDE, 1.0, 0, 1.0, lesions=lesions, flags=flags
    )


def crowd(lesion: Lesion) -> Lesion:
    return replace(lesion, crowd=True)


def masks(name: str, *found: Array) -> Finding:
    return {"scan_id": name, "masks": [rle_of(mask_HW) for mask_HW in found]}


def boxes(name: str, *found: tuple[float, float, float, float, float, int]) -> Finding:
    return {
        "scan_id": name,
        "boxes": [f[:4] for f in found],
        "scores": [f[4] for f in found],
        "labels": [f[5] for f in found],
    }


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients' slices with a bone, and on all but one a lesion inside it, through `raybone
    prepare`.
    """
    place, rng = tmp_path_factory.mktemp("slices"), np.random.default_rng(0)
    for folder in ("images", "masks", "masks_bone"):
        (place / "raw" / folder).mkdir(parents=True)
    for number in range(6):
        bone_HW, lesion_HW = (
            disc(30, 26 + 2 * number, 18),
            disc(34, 24 + 2 * number, 6) if number else disc(0, 0, 0),
        )
        image_HW = rng.integers(0, 40, (SIDE, SIDE)) + 80 * bone_HW + 90 * lesion_HW
        for folder, values_HW in (
            ("images", image_HW),
            ("masks", 255 * lesion_HW),
            ("masks_bone", 255 * bone_HW),
        ):
            cv2.imwrite(str(place / "raw" / folder / f"{number}.png"), values_HW.astype(np.uint8))
    (place / "raw" / "labels.csv").write_text(
        "file,patient_id\n" + "".join(f"images/{n}.png,{n}\n" for n in range(6))
    )
    prepare(place / "raw", place / "ds", layout="masks", folds=2, key=place / "key")
    return place


@pytest.fixture
def opened(slices: Path) -> Dataset:
    return open_dataset(slices / "ds")


def pixels(scan: Scan, category: str) -> Array:
    found = [mask_of(le.rle) for le in scan.lesions if le.category == category]
    return np.any([*found, np.zeros((scan.height, scan.width), bool)], axis=0)


@pytest.mark.parametrize("names", [BOTH, BOTH[::-1]])
def test_a_lesion_inside_a_bone_stays_a_target_of_both(opened: Dataset, names: list[str]) -> None:
    model = load("unet")
    config = model.Config(
        categories=names, imgsz=SIDE, width=4, depth=2, fliplr=0, translate=0, scale=0, batch=1
    )
    samples = training_samples(FoldJob(opened, model, config, 0, 1), 0)
    places = [
        n
        for n, s in enumerate(samples.scans)
        if any(le.category == "malignant" for le in s.lesions)
    ]
    batch = samples.collate([samples[1, n] for n in places])
    for mask_CHW, place in zip(batch.mask_NCHW.numpy(), places):
        np.testing.assert_array_equal(
            mask_CHW, [pixels(samples.scans[place], name) for name in names]
        )
        assert mask_CHW.all(0).sum() > 50
    net = model.build(config).train()
    net.net = torch.nn.Identity()
    right = batch._replace(image_NCHW=40 * batch.mask_NCHW.float() - 20)
    assert {k: float(v) for k, v in net(right).items()} == pytest.approx(
        {"dice_loss": 0, "cross_entropy_loss": 0}, abs=1e-6
    )
    wrong = right._replace(
        image_NCHW=right.image_NCHW * torch.tensor([1.0, -1.0])[None, :, None, None]
    )
    assert float(net(wrong)["cross_entropy_loss"]) == pytest.approx(
        5
    )  # half of 20, on one of two channels


def test_a_softmax_gives_a_pixel_to_the_first_category_and_what_is_left_to_non_metastasis(
    opened: Dataset,
) -> None:
    model = load("unet")
    config = model.Config(categories=BOTH, imgsz=SIDE, nm="elsewhere")
    samples = scored_samples(
        opened, list(opened.scans), model, config, lambda s: np.ones((s.height, s.width), bool)
    )
    for place, known in enumerate(samples.scans):
        lesion, bone = (pixels(known, name) for name in BOTH)
        np.testing.assert_array_equal(
            samples[-1, place][1].mask_CHW, [lesion, bone & ~lesion, ~(lesion | bone)]
        )


def test_scores_of_several_categories_are_the_means_of_what_scikit_learn_says_of_each(
    opened: Dataset,
) -> None:
    rng = np.random.default_rng(1)
    names = [*BOTH, "benign"]  # which is nowhere
    said = {
        s.scan_id: [
            np.roll(pixels(s, c), int(rng.integers(1, 5)), 1) | disc(50, 50, 3) for c in BOTH
        ]
        for s in opened.scans
    }
    findings = [masks(name, *found, disc(9, 9, 4)) for name, found in said.items()]
    ours = task_named("segmentation").score(Outcome(findings, opened.scans, names))
    ways = {
        "dice": f1_score,
        "iou": jaccard_score,
        "precision": precision_score,
        "sensitivity": recall_score,
    }
    for name, way in ways.items():
        each = [
            [
                way(pixels(s, c).ravel(), said[s.scan_id][k].ravel())
                for s in opened.scans
                if pixels(s, c).any()
            ]
            for k, c in enumerate(BOTH)
        ]
        pooled = [
            way(
                *(
                    np.concatenate(parts)
                    for parts in zip(
                        *((pixels(s, c).ravel(), said[s.scan_id][k].ravel()) for s in opened.scans)
                    )
                )
            )
            for k, c in enumerate(BOTH)
        ]
        assert [ours[f"{name}[{c}]"] for c in BOTH] == pytest.approx(pooled)
        assert ours[name] == pytest.approx(np.mean(pooled))
        assert ours[f"scan_{name}"] == pytest.approx(np.mean([np.mean(e) for e in each]))
        assert math.isnan(ours[f"{name}[benign]"])
    assert (
        ours["dice[bone]"] - ours["dice[malignant]"] > 0.1
    )  # a mean over pixels would be the bone's
    draws = np.array([[1] * 6, [0, 2, 1, 1, 1, 1]])
    drawn = task_named("segmentation").resampled(Outcome(findings, opened.scans, names), draws)
    assert {k: v[0] for k, v in drawn.items()} == pytest.approx({k: ours[k] for k in drawn})
    repeated = [
        replace(s, scan_id=f"{s.scan_id}-{n}")
        for s, times in zip(opened.scans, draws[1])
        for n in range(times)
    ]
    again = [
        {**f, "scan_id": s.scan_id}
        for s in repeated
        for f in findings
        if s.scan_id.startswith(f["scan_id"])
    ]
    copied = task_named("segmentation").score(Outcome(again, repeated, names))
    assert {k: v[1] for k, v in drawn.items()} == pytest.approx({k: copied[k] for k in drawn})


def test_one_category_alone_has_no_figures_in_brackets(opened: Dataset) -> None:
    findings = [masks(s.scan_id, pixels(s, "malignant")) for s in opened.scans]
    ours = task_named("segmentation").score(Outcome(findings, opened.scans, ["malignant"]))
    assert ours["dice"] == 1
    assert not any("[" in name for name in ours)


def test_a_bone_is_scored_as_a_mask_and_is_no_lesion(opened: Dataset) -> None:
    """Masks and boxes of bones alone: nobody is called sick, and no lesion is found or missed by
    them.
    """
    empty = disc(0, 0, 0)
    said = [masks(s.scan_id, empty, pixels(s, "bone")) for s in opened.scans]
    found = task_named("segmentation").score(Outcome(said, opened.scans, BOTH))
    assert (found["dice[bone]"], found["dice[malignant]"], found["dice"]) == (1, 0, 0.5)
    assert (
        found["lesion_sensitivity"],
        found["lesion_precision"],
        found["patient_sensitivity"],
    ) == (0, 0, 0)
    known = [
        boxes(s.scan_id, *((*le.box_xyxy, 0.9, 1) for le in s.lesions if le.category == "bone"))
        for s in opened.scans
    ]
    found = task_named("detection").score(Outcome(known, opened.scans, BOTH))
    assert (found["AP"], found["FROC"], found["sensitivity"], found["patient_sensitivity"]) == (
        0.5,
        0,
        0,
        0,
    )
    assert task_named("detection").false_positives(Outcome(known, opened.scans, BOTH)) == 0
    scores, hits, count = task_named("detection").scored(Outcome(known, opened.scans, BOTH))
    assert (len(scores), len(hits), count) == (0, 0, 5)
    bones = [boxes(f["scan_id"], *((*b, 0.9, 0) for b in f["boxes"])) for f in known]
    alone = task_named("detection").score(Outcome(bones, opened.scans, ["bone"]))
    assert alone["AP"] == 1
    assert all(
        math.isnan(alone[k]) for k in ("FROC", "sensitivity", "precision", "patient_precision")
    )


def test_bones_and_crowds_are_counted_nowhere_as_lesions(slices: Path, opened: Dataset) -> None:
    assert opened.categories == BOTH
    assert opened.meta["counts"]["lesions"] == 5
    found = inspect(slices / "ds")
    assert found["counts"]["categories"] == {"malignant": 5, "bone": 6}
    assert sum(fold["lesions"] for fold in found["counts"]["per_fold"].values()) == 5
    assert found["fingerprint"]["lesions_per_scan"] == pytest.approx(5 / 6, abs=1e-3)
    assert max(found["fingerprint"]["lesion_side_px"]) < 15  # bones are 35 pixels wide
    spot = lesion_of_mask(disc(20, 20, 5), "malignant")
    many = scan(
        "a", spot, replace(spot, category="bone"), crowd(spot), replace(spot, category="benign")
    )
    assert targets(many, ["malignant"], "") == [(0, True), (3, False)]
    assert targets(many, ["benign"], "") == [(0, False), (3, True)]


def test_bones_do_not_weigh_in_the_folds() -> None:
    """Four patients of 3, 2, 1 and 0 lesions are dealt out in that order, however many bones they
    have.
    """
    spot = lesion_of_mask(disc(20, 20, 5), "malignant")
    bones = (replace(spot, category="bone"), crowd(spot), replace(spot, category="other"))
    scans = [scan(f"s{n}", *[spot] * (3 - n), *bones * (9 * n)) for n in range(4)]
    assert assign_folds(scans, {s.patient_id: s.patient_id for s in scans}, 2) == {
        "s0": 0,
        "s1": 1,
        "s2": 1,
        "s3": 0,
    }


def test_a_study_of_two_categories_runs_and_shows_each(
    slices: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ranked by the mean; journal, leaderboard, compare, report and a bundle hold what is of one
    category.
    """
    study = {
        "name": "both",
        "dataset": str(slices / "ds"),
        "model": "unet",
        "epochs": 3,
        "metric": "dice",
        "fixed": {
            "categories": BOTH,
            "imgsz": SIDE,
            "batch": 3,
            "nbs": 3,
            "width": 4,
            "depth": 2,
            "ema": 0.0,
            "warmup_epochs": 0,
        },
        "space": {"lr0": {"choice": [0.02]}},
        "search": {"trials": 1, "sampler": "random", "scheduler": "full"},
    }
    (slices / "both.yaml").write_text(yaml.safe_dump(study))
    place = str(slices / "runs")
    assert main(["search", str(slices / "both.yaml"), "--out", place, "--local"]) == 0
    (row,) = pd.read_csv(slices / "runs" / "leaderboard.csv").to_dict("records")
    assert (
        list(row)[-7] == "sensitivity[malignant]_mean"
    )  # at the end, after what rows of one category have
    events = [
        json.loads(line)
        for path in sorted((slices / "runs/journal").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    last = {
        e["fold"]: e["metrics"] for e in events if e.get("event") == "epoch" and e["epoch"] == 3
    }
    for name in ("dice", "scan_iou"):
        assert row[f"{name}_mean"] == pytest.approx(np.mean([m[name] for m in last.values()]))
        assert row[f"{name}[bone]_mean"] == pytest.approx(
            np.mean([m[f"{name}[bone]"] for m in last.values()])
        )
    for metrics in last.values():
        assert metrics["dice"] == pytest.approx(
            (metrics["dice[bone]"] + metrics["dice[malignant]"]) / 2
        )
    for command in (
        ["leaderboard", place],
        ["compare", place],
        ["report", place],
        ["logs", place],
        ["refit", place, "--out", str(slices / "bundle")],
        [
            "predict",
            str(slices / "bundle"),
            str(slices / "raw/images"),
            "--out",
            str(slices / "found"),
        ],
    ):
        assert main(command) == 0, command
    capsys.readouterr()
    said = json.loads((slices / "found" / "predictions.json").read_text())
    assert len(said["scans"]) == 6
    assert set(said["scans"][0]["masks"]) == set(BOTH)


def test_pixels_of_a_crowd_count_in_no_loss(opened: Dataset) -> None:
    """Whatever the network says there, and with three classes as well."""
    spot, region = (
        lesion_of_mask(disc(20, 20, 5), "malignant"),
        crowd(lesion_of_mask(disc(24, 40, 9), "malignant")),
    )
    first = opened.training(0)[0]
    scans = tuple(replace(s, lesions=(spot, region)) if s is first else s for s in opened.scans)
    crowded, model = replace(opened, scans=scans), load("unet")
    for nm in ("", "otsu"):
        config = model.Config(
            imgsz=SIDE, width=4, depth=2, fliplr=0, translate=0, scale=0, focal_tversky=1.0, nm=nm
        )
        samples = training_samples(FoldJob(crowded, model, config, 0, 1), 0)
        sample = samples[1, 0][1]
        assert len(sample.boxes_N4) == 1
        inside = disc(24, 40, 9) & ~disc(20, 20, 5)
        np.testing.assert_array_equal(sample.mask_CHW == 2, [inside] * config.channels)
        np.testing.assert_array_equal(sample.mask_CHW[0] == 1, disc(20, 20, 5))
        batch = samples.collate([samples[1, 0]])
        net = model.build(config).train()
        net.net = torch.nn.Identity()
        told = []
        for change in (inside, ~inside):
            logits = torch.zeros(1, config.channels, SIDE, SIDE)
            logits[..., torch.from_numpy(change)] = 3.0
            told.append({k: float(v) for k, v in net(batch._replace(image_NCHW=logits)).items()})
        plain = {
            k: float(v) for k, v in net(batch._replace(image_NCHW=torch.zeros_like(logits))).items()
        }
        assert told[0] == pytest.approx(plain, rel=1e-6)
        assert abs(sum(told[1].values()) - sum(plain.values())) > 0.1


def test_masks_in_a_crowd_count_neither_for_nor_against() -> None:
    spot, region = (
        lesion_of_mask(disc(20, 20, 6), "malignant"),
        crowd(lesion_of_mask(disc(40, 40, 12), "malignant")),
    )
    scans = [scan("a", spot, region), scan("b", patient="a")]
    quiet = [masks("a", disc(20, 20, 6)), masks("b", disc(0, 0, 0))]
    plain = task_named("segmentation").score(Outcome(quiet, scans, ["malignant"]))
    assert (plain["dice"], plain["lesion_precision"], plain["hd95_mm"]) == (1, 1, 0)
    # One finding inside the crowd, one that juts out of it by less than half, one that is mostly
    # outside.
    for extra, precision in ((disc(40, 40, 8), 1), (disc(48, 48, 4), 1), (disc(54, 54, 5), 0.5)):
        loud = [masks("a", disc(20, 20, 6) | extra), quiet[1]]
        found = task_named("segmentation").score(Outcome(loud, scans, ["malignant"]))
        outside = int((extra & ~disc(40, 40, 12)).sum())
        assert found["lesion_precision"] == precision
        assert found["precision"] == pytest.approx(113 / (113 + outside), abs=0.01)
        drawn = task_named("segmentation").resampled(
            Outcome(loud, scans, ["malignant"]), np.array([[1, 1]])
        )
        assert {k: v[0] for k, v in drawn.items()} == {k: found[k] for k in drawn}
    assert math.isnan(
        task_named("segmentation").false_positives(Outcome(quiet, scans[:1], ["malignant"]))
    )


def test_boxes_in_a_crowd_call_nobody_sick() -> None:
    """A patient of crowds alone is neither sick nor well; a box in a crowd is no finding of a sick
    one.
    """
    region = crowd(Lesion((10, 10, 40, 40), "malignant"))
    scans = [scan("a", region), scan("b", Lesion((50, 50, 60, 60), "malignant"), region), scan("c")]
    inside = (12, 12, 20, 20, 0.9, 0)
    findings = [boxes("a", inside), boxes("b", inside), boxes("c")]
    found = task_named("detection").score(Outcome(findings, scans, ["malignant"]))
    assert (found["patient_sensitivity"], found["patient_precision"], found["precision"]) == (
        0,
        0,
        0,
    )
    assert task_named("detection").false_positives(Outcome(findings, scans, ["malignant"])) == 0
    findings[1] = boxes("b", inside, (50, 50, 60, 60, 0.8, 0))
    found = task_named("detection").score(Outcome(findings, scans, ["malignant"]))
    assert (
        found["AP"],
        found["patient_sensitivity"],
        found["patient_precision"],
        found["precision"],
    ) == (1, 1, 1, 1)
    assert task_named("detection").scored(Outcome(findings, scans, ["malignant"]))[2] == 1


class Bright(torch.nn.Module):
    """Takes the brightness of a pixel for its probability, in both categories."""

    def forward(self, image_NCHW: torch.Tensor) -> list[Prediction]:
        return [Prediction(mask_CHW=np.repeat(image_CHW, 2, 0)) for image_CHW in image_NCHW.numpy()]


def with_unannotated(opened: Dataset, *places: int) -> Dataset:
    return replace(
        opened,
        scans=tuple(
            replace(s, flags=("unannotated",), lesions=()) if n in places else s
            for n, s in enumerate(opened.scans)
        ),
    )


@pytest.mark.parametrize("name", ["unet", "retinanet_r50"])
def test_scans_that_nobody_annotated_are_neither_trained_on_nor_scored(
    opened: Dataset, name: str
) -> None:
    partly, model = with_unannotated(opened, 1, 4), load(name)
    unknown = {partly.scans[n].scan_id for n in (1, 4)}
    config = model.Config(imgsz=SIDE)
    for fold in range(2):
        trained = training_samples(FoldJob(partly, model, config, fold, 1), 0)
        judged = scored_samples(partly, partly.validation(fold), model, config)
        images = Intensities(partly, SIDE)
        every = task_named(model.task).predicted(images, partly.validation(fold), config)
        assert {s.scan_id for s in trained.scans} == {
            s.scan_id for s in partly.training(fold)
        } - unknown
        assert {s.scan_id for s in judged.scans} == {
            s.scan_id for s in partly.validation(fold)
        } - unknown
        assert every.scans == partly.validation(fold)
    classifier = load("lesion_resnet50")
    labelled = [replace(s, labels=(("abnormal", "1"),)) for s in partly.scans]
    assert (
        len(
            scored_samples(
                partly, labelled, classifier, classifier.Config(imgsz=SIDE, target="abnormal")
            )
        )
        == 6
    )
    assert len(scored_samples(partly, labelled, classifier, classifier.Config(imgsz=SIDE))) == sum(
        le.category != "bone" for s in partly.scans for le in s.lesions
    )


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_scores_are_those_of_the_annotated_scans_alone(opened: Dataset, task: Any) -> None:
    partly = with_unannotated(opened, 1, 4)
    known = [s for s in partly.scans if s.annotated]
    findings = [
        {
            **masks(s.scan_id, np.roll(pixels(s, "malignant"), 2, 0)),
            **boxes(s.scan_id, (9, 9, 30, 30, 0.7, 0)),
        }
        for s in known
    ]
    draws = np.array([[1, 5, 1, 0, 7, 2]])
    ours = task_named(task)
    for way in (ours.score, ours.scored, ours.false_positives):
        a, b = (way(Outcome(findings, scans, ["malignant"])) for scans in (partly.scans, known))
        np.testing.assert_equal(a, b)
    a = ours.resampled(Outcome(findings, partly.scans, ["malignant"]), draws)
    b = ours.resampled(Outcome(findings, known, ["malignant"]), draws[:, [0, 2, 3, 5]])
    np.testing.assert_equal(a, b)


def test_a_fold_or_test_group_that_nobody_annotated_is_refused(
    slices: Path, tmp_path: Path
) -> None:
    prepare(slices / "raw", tmp_path / "ds", layout="masks", folds=2, key=slices / "key", holdout=2)
    unseal(tmp_path / "ds")
    study = parse_study(
        {
            "name": "x",
            "dataset": str(tmp_path / "ds"),
            "model": "unet",
            "epochs": 1,
            "metric": "dice",
        }
    )
    opened = resolve(study)[1]
    table = pd.read_csv(tmp_path / "ds/scans.csv", keep_default_na=False)
    for fold, said in (
        (
            1,
            "every fold and the test group need a lesion to be scored by, fold 1 has none of "
            "malignant",
        ),
        (-1, "the test group has none of malignant; prepare it with another --holdout"),
    ):
        mine = table["patient_id"].map(opened.fold_of) == fold
        table.assign(flags=np.where(mine, "unannotated", "")).to_csv(
            tmp_path / "ds/scans.csv", index=False
        )
        with pytest.raises(WrongInput, match=said):
            resolve(study)


def test_calibration_counts_pixels_of_no_crowd_and_of_no_bone_beside_lesions(
    opened: Dataset,
) -> None:
    region = crowd(lesion_of_mask(disc(50, 10, 6), "malignant"))
    scans = tuple(replace(s, lesions=(*s.lesions, region)) for s in opened.scans)
    model = replace(load("unet"), build=lambda config: Bright())
    told = [
        calibrate(
            "pixels",
            out_of_fold(
                FoldJob(
                    replace(opened, scans=some),
                    model,
                    model.Config(categories=BOTH, imgsz=SIDE),
                    0,
                    1,
                ),
                (),
                ({}, {}),
                torch.device("cpu"),
            ),
        )
        for some in (opened.scans, scans)
    ]
    assert told[0]["slope"] > 0
    assert told[0]["count"] == 6 * SIDE * SIDE
    assert told[1]["count"] == told[0]["count"] - 6 * int(disc(50, 10, 6).sum())


def test_a_search_over_partly_annotated_scans_predicts_and_scores_the_annotated_ones(
    slices: Path, tmp_path: Path
) -> None:
    for folder in ("images", "masks", "masks_bone"):
        for path in sorted((slices / "raw" / folder).iterdir()):
            if folder == "images" or path.stem not in ("2", "3"):
                (tmp_path / "raw" / folder).mkdir(parents=True, exist_ok=True)
                (tmp_path / "raw" / folder / path.name).write_bytes(path.read_bytes())
    (tmp_path / "raw/labels.csv").write_bytes((slices / "raw/labels.csv").read_bytes())
    prepare(tmp_path / "raw", tmp_path / "ds", layout="masks", folds=2, key=slices / "key")
    opened = open_dataset(tmp_path / "ds")
    study = {
        "name": "partly",
        "dataset": str(tmp_path / "ds"),
        "model": "unet",
        "epochs": 2,
        "metric": "dice",
        "fixed": {
            "imgsz": SIDE,
            "batch": 2,
            "nbs": 2,
            "width": 4,
            "depth": 2,
            "ema": 0.0,
            "warmup_epochs": 0,
        },
        "space": {"lr0": {"choice": [0.02]}},
        "search": {"trials": 1, "sampler": "random", "scheduler": "full"},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    assert (
        main(["search", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "runs"), "--local"])
        == 0
    )
    (row,) = pd.read_csv(tmp_path / "runs/leaderboard.csv").to_dict("records")
    assert row["state"] == "complete"
    said = [
        f["scan_id"]
        for path in (tmp_path / "runs/runs/c000").glob("fold*/predictions.json")
        for f in json.loads(path.read_text())["findings"]
    ]
    assert sorted(said) == sorted(s.scan_id for s in opened.scans if s.annotated)
    assert len(said) == 4
    assert main(["report", str(tmp_path / "runs")]) == 0
    assert "its predictions are not of the scans" not in (tmp_path / "runs/report.html").read_text()
