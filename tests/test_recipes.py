"""The training recipes of the papers, through the command line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from raybone.cli import main
from raybone.data.annotations import mask_of
from raybone.data.dataset import Dataset, open_dataset
from raybone.data.folds import TRAINING
from raybone.data.ingest.steps import body_mask
from raybone.data.loader import masks_of
from raybone.data.tiles_and_targets import Mined
from raybone.models import load
from raybone.run.checks import resolve
from raybone.storage import Folder
from raybone.study.files import read_study
from raybone.train.apply import evaluate_weights, mined_masks
from raybone.train.samples import FoldJob, scored_samples, training_samples
from raybone.types import Scan

JOBS = Path(__file__).resolve().parents[1] / "jobs"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort whose patients without metastases are in training alone, and a study of it that
    keeps test folds.
    """
    place = tmp_path_factory.mktemp("recipes")
    raw, key = str(place / "raw"), str(place / "key")
    assert main(["phantom", raw, "--patients", "12", "--height", "128", "--seed", "5"]) == 0
    assert (
        main(
            [
                "prepare",
                raw,
                str(place / "ds"),
                "--folds",
                "3",
                "--key",
                key,
                "--negatives",
                "training",
            ]
        )
        == 0
    )
    write(place / "first.yaml", place)
    assert searched(place, "first") == 0
    return place


def write(path: Path, place: Path) -> None:
    content = {
        "name": "first",
        "dataset": str(place / "ds"),
        "model": "unet",
        "epochs": 2,
        "metric": "dice",
        "fixed": {
            "imgsz": 64,
            "batch": 8,
            "nbs": 8,
            "width": 4,
            "depth": 2,
            "warmup_epochs": 0,
            "ema": 0.5,
        },
        "space": {"lr0": {"choice": [0.02]}},
        "search": {"trials": 1, "sampler": "random", "scheduler": "full", "test_fold": True},
    }
    path.write_text(yaml.safe_dump(content))


def searched(place: Path, name: str, *sets: str) -> int:
    return main(
        [
            "search",
            str(place / "first.yaml"),
            "--out",
            str(place / name),
            "--local",
            "--set",
            f"name={name}",
            *sets,
        ]
    )


def row(place: Path, name: str) -> dict[str, Any]:
    (found,) = pd.read_csv(place / name / "leaderboard.csv").to_dict("records")
    assert found["state"] == "complete"
    return found


def test_patients_without_metastases_are_in_every_training_part_and_in_no_other(
    place: Path,
) -> None:
    dataset = open_dataset(place / "ds", test_fold=True)
    spare = {p for p, fold in dataset.fold_of.items() if fold == TRAINING}
    assert spare
    assert dataset.meta["counts"]["training_patients"] == len(spare)
    assert {
        p
        for p in dataset.fold_of
        if not any(
            le.category == "malignant"
            for s in dataset.scans
            if s.patient_id == p
            for le in s.lesions
        )
    } == spare
    for fold in range(dataset.folds):
        parts = [
            {s.patient_id for s in scans}
            for scans in (dataset.training(fold), dataset.validation(fold), dataset.reported(fold))
        ]
        assert spare <= parts[0]
        assert not any(a & b for i, a in enumerate(parts) for b in parts[i + 1 :])
        assert set.union(*parts) == set(dataset.fold_of)
        assert {s.patient_id for s in dataset.training(fold, negatives=False)} == parts[0] - spare
    assert [dataset.reported(k) for k in range(3)] == [
        dataset.validation((k + 1) % 3) for k in range(3)
    ]


def test_a_split_names_such_patients_training(place: Path, tmp_path: Path) -> None:
    dataset = open_dataset(place / "ds")
    names = {-2: "training"}
    lines = [f"{p},{names.get(f, f)}" for p, f in dataset.fold_of.items()]
    (tmp_path / "split.csv").write_text("patient_id,fold\n" + "\n".join(lines) + "\n")
    assert (
        main(
            [
                "prepare",
                str(place / "raw"),
                str(tmp_path / "ds"),
                "--key",
                str(place / "key"),
                "--split",
                str(tmp_path / "split.csv"),
            ]
        )
        == 0
    )
    assert open_dataset(tmp_path / "ds").hash == dataset.hash


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--negatives", "training", "--folds", "site"], "cannot go with --split"),
        (["--negatives", "some"], "must be folds or training"),
    ],
)
def test_wrong_negatives_are_refused(
    place: Path, tmp_path: Path, arguments: list[str], rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", str(place / "raw"), str(tmp_path / "ds"), *arguments]) == 2
    assert rule in capsys.readouterr().err


def test_the_test_folds_are_reported_beside_the_ranking_and_steer_nothing(place: Path) -> None:
    found = row(place, "first")
    events = [
        json.loads(line)
        for path in sorted((place / "first/journal").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    last = {
        e["fold"]: e["metrics"] for e in events if e.get("event") == "epoch" and e["epoch"] == 2
    }
    assert found["dice_test_folds"] == pytest.approx(
        np.mean([m["test_dice"] for m in last.values()])
    )
    assert found["dice_mean"] == pytest.approx(np.mean([m["dice"] for m in last.values()]))
    assert not any("test_dice" in e.get("metrics", ()) for e in events if e.get("epoch") == 1)
    dataset, model = open_dataset(place / "ds", test_fold=True), load("unet")
    for fold, metrics in last.items():
        folder = Folder(str(place / f"first/runs/c000/fold{fold}"))
        config = model.Config.model_validate(
            torch.load(place / f"first/runs/c000/fold{fold}/last.pt")["config"]
        )
        again = evaluate_weights(dataset, model, config, folder, dataset.reported(fold))
        assert again is not None
        assert (metrics["test_dice"], metrics["test_val_loss"]) == pytest.approx(
            (again["dice"], again["val_loss"])
        )


def test_test_folds_need_a_third_fold_to_train_on(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = [
        "prepare",
        str(place / "raw"),
        str(tmp_path / "two"),
        "--folds",
        "2",
        "--key",
        str(place / "key"),
    ]
    assert main(prepared) == 0
    assert searched(place, "two", f"dataset={tmp_path / 'two'}") == 2
    assert "search.test_fold: needs at least 3 folds" in capsys.readouterr().err


def test_otsu_makes_the_body_without_its_lesions_a_class(place: Path) -> None:
    assert searched(place, "otsu", "fixed.nm=otsu") == 0
    assert "val_loss_mean" in row(place, "otsu")
    dataset, model = open_dataset(place / "ds"), load("unet")
    samples = scored_samples(
        dataset, dataset.validation(0), model, model.Config(imgsz=128, nm="otsu")
    )
    _, sample = samples[-1, 0]
    scan = samples.scans[0]
    lesion, body = masks_of(scan, ["malignant"])[0] == 1, body_mask(dataset.counts(scan))
    np.testing.assert_array_equal(sample.mask_CHW, [lesion, body & ~lesion])
    assert 0.1 < body.mean() < 0.6


def test_mining_takes_each_folds_masks_from_the_model_that_never_saw_its_patients(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def spy(
        dataset: Dataset, where: str, fold: int, scans: list[Scan], device: torch.device
    ) -> Mined:
        asked.append(fold)
        assert {s.scan_id for s in scans} == {
            s.scan_id
            for part in (dataset.training(fold), dataset.validation(fold), dataset.reported(fold))
            for s in part
        }
        return mined_masks(dataset, where, fold, scans, device)

    monkeypatch.setattr("raybone.train.fit.mined_masks", spy)
    assert searched(place, "mined", f"fixed.nm={place / 'first'}") == 0
    assert asked == [0, 1, 2]
    assert (
        "nm: built on c000 of study first, trained on the same folds"
        in row(place, "mined")["warnings"]
    )
    dataset, model = open_dataset(place / "ds", test_fold=True), load("unet")
    masks = [
        mined_masks(
            dataset, str(place / "first/runs/c000"), fold, list(dataset.scans), torch.device("cpu")
        )
        for fold in range(3)
    ]
    for fold in range(3):  # what the fold's own predictions say of its validation patients
        said = json.loads((place / f"first/runs/c000/fold{fold}/predictions.json").read_text())[
            "findings"
        ]
        for finding in said:
            scan = next(s for s in dataset.scans if s.scan_id == finding["scan_id"])
            np.testing.assert_array_equal(masks[fold](scan), mask_of(finding["masks"][0]))
    config = model.Config(imgsz=128, nm=str(place / "first/runs/c000"))
    samples = scored_samples(
        dataset, dataset.training(0), model, config, lambda s: np.ones((s.height, s.width), bool)
    )
    _, sample = samples[-1, 0]
    np.testing.assert_array_equal(
        sample.mask_CHW.sum(0), 1
    )  # lesions are cut out of what was mined


def test_transfer_starts_each_fold_from_the_same_fold(place: Path) -> None:
    frozen = [
        "fixed.lr0=1e-12",
        "space={fliplr: {choice: [0.0]}}",
        "epochs=1",
        "fixed.weight_decay=0",
    ]
    assert searched(place, "transfer", f"fixed.init_from={place / 'first'}", *frozen) == 0
    for fold in range(3):
        old, new = (
            torch.load(place / f"{name}/runs/c000/fold{fold}/last.pt", weights_only=True)
            for name in ("first", "transfer")
        )
        for name, value in old["average"].items():
            if name.endswith("weight"):
                torch.testing.assert_close(new["net"][name], value)
    assert "init_from: built on c000" in row(place, "transfer")["warnings"]


def test_transfer_refuses_patients_who_would_leak(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other folds of the same patients, even under other pseudonyms; test folds that the first
    study trained on.
    """
    again, other = str(tmp_path / "again"), str(tmp_path / "other")
    prepared = [
        "prepare",
        str(place / "raw"),
        again,
        "--folds",
        "3",
        "--seed",
        "9",
        "--key",
        str(tmp_path / "k"),
    ]
    assert main(prepared) == 0
    assert searched(place, "leaking", f"dataset={again}", f"fixed.init_from={place / 'first'}") == 2
    assert "was trained on 12 patients of this dataset" in capsys.readouterr().err
    assert searched(place, "plain", "search.test_fold=false") == 0
    assert searched(place, "leaking", f"fixed.init_from={place / 'plain'}") == 2
    assert "were trained on this study's test folds" in capsys.readouterr().err
    assert (
        main(
            ["phantom", str(tmp_path / "raw"), "--patients", "6", "--height", "128", "--seed", "77"]
        )
        == 0
    )
    assert (
        main(["prepare", str(tmp_path / "raw"), other, "--folds", "3", "--key", str(place / "key")])
        == 0
    )
    assert (
        searched(place, "elsewhere", f"dataset={other}", f"fixed.init_from={place / 'first'}") == 2
    )
    assert (
        "was trained on 6 patients" in capsys.readouterr().err
    )  # phantoms have the same names whatever their seed
    shutil.rmtree(other)
    assert (
        main(
            ["prepare", str(tmp_path / "raw"), other, "--folds", "3", "--key", str(tmp_path / "k2")]
        )
        == 0
    )
    assert (
        searched(place, "elsewhere", f"dataset={other}", f"fixed.init_from={place / 'first'}") == 0
    )
    assert (
        "trained on 12 other patients (unless known by other pseudonyms"
        in row(place, "elsewhere")["warnings"]
    )
    # A study of other patients that was itself built on this dataset, whose folds have no like
    # there.
    assert searched(place, "back", f"fixed.init_from={place / 'elsewhere'}") == 2
    assert "was built on study first, which was trained on this dataset" in capsys.readouterr().err


def test_a_configuration_that_is_not_whole_is_no_start(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One fold's model in place of all would have seen the others' patients."""
    again = tmp_path / "first"
    shutil.copytree(place / "first", again)
    (again / "runs/c000/fold2/last.pt").unlink()
    for given in (again, again / "runs/c000", place / "first/runs/c001"):
        assert searched(place, "half", f"fixed.nm={given}") == 2
        assert (
            "must have a complete configuration with the weights of all folds"
            in capsys.readouterr().err
        )
    assert searched(place, "named", f"fixed.nm={place / 'first/runs/c000'}") == 0


def test_a_recipe_may_be_searched_and_its_study_resumes(place: Path) -> None:
    sets = [
        "space={nm: {choice: [otsu, %s]}, fliplr: {choice: [0.0], when: {nm: %s}}}"
        % ((place / "first",) * 2),
        "search.points=[{nm: %s}, {nm: otsu}]" % (place / "first"),
        "search.trials=2",
        "epochs=1",
        "fixed.lr0=0.01",
    ]
    assert searched(place, "either", *sets) == 0
    assert searched(place, "either", *sets) == 0
    table = pd.read_csv(place / "either" / "leaderboard.csv")
    assert list(table["state"]) == ["complete", "complete"]
    assert set(table["cfg.nm"]) == {"otsu", str(place / "first/runs/c000")}


def test_the_rows_of_a_paper_are_one_study(place: Path) -> None:
    """Otsu, mining and negatives are choices: six rows, each trained in its own way."""
    small = (
        "{imgsz: 64, batch: 8, nbs: 8, width: 4, depth: 2, lr0: 0.02, ema: 0.5, cross_entropy: 0}"
    )
    sets = [
        f"dataset={place / 'ds'}",
        "model=unet",
        "epochs=1",
        f"fixed={small}",
        f"space.nm.choice=['', otsu, {place / 'first'}]",
        "space.dice.choice=[1.0]",
        "space.focal_tversky.choice=[0.0]",
        "search.folds=3",
        "resources={}",
    ]
    out = str(place / "rows")
    job = str(JOBS / "wbbs_rows.yaml")
    assert main(["search", job, "--out", out, "--local", "--set", *sets]) == 0
    table = pd.read_csv(place / "rows" / "leaderboard.csv", keep_default_na=False)
    mined = str(place / "first/runs/c000")
    rows = {(nm, negatives) for nm in ("", "otsu", mined) for negatives in ("False", "True")}
    assert set(zip(table["cfg.nm"], map(str, table["cfg.negatives"]))) == rows
    assert list(table["state"]) == ["complete"] * 6
    assert table["val_loss_mean"].nunique() == 6


@pytest.mark.parametrize(
    ("sets", "rule"),
    [
        (["fixed.init_from=otsu"], "init_from otsu: study .*otsu: must be a study folder"),
        (
            ["fixed.init_from={first}", "fixed.width=8"],
            "init_from .*: must be of this architecture",
        ),
        (["fixed.init_from=nowhere"], "init_from nowhere: study .*nowhere: must be a study folder"),
        (["fixed.nm=nowhere"], "nm nowhere: study .*nowhere: must be a study folder"),
        (
            ["model=attention_unet", "fixed={{init_from: {first}}}"],
            "must be of attention_unet, but is of unet",
        ),
        (
            ["space.nm.choice=[otsu, nowhere]"],
            "nm nowhere: study .*nowhere: must be a study folder",
        ),
    ],
)
def test_wrong_earlier_studies_are_one_line(
    place: Path, sets: list[str], rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [s.format(first=place / "first") for s in sets]
    assert searched(place, "wrong", *sets) == 2
    said = capsys.readouterr().err
    assert re.search(rule, said)
    assert "Traceback" not in said


def test_tiles_are_trained_and_whole_scans_are_scored(place: Path) -> None:
    assert searched(place, "tiles", "fixed.tile=32", "fixed.tiles=lesions") == 0
    said = json.loads((place / "tiles/runs/c000/fold0/predictions.json").read_text())["findings"]
    assert {tuple(mask["size"]) for f in said for mask in f["masks"]} == {(128, 32)}
    dataset, model = open_dataset(place / "ds"), load("unet")
    every, sick = (
        training_samples(
            FoldJob(
                dataset,
                model,
                model.Config(imgsz=128, tile=32, tiles=tiles, fliplr=0, scale=0, translate=0),
                0,
                2,
            ),
            0,
        )
        for tiles in ("all", "lesions")
    )
    scans = dataset.training(0)
    assert len(every) == 7 * len(scans)
    whole = {s.scan_id: masks_of(s, ["malignant"])[0] for s in scans}
    with_lesions = sum(
        bool(whole[s.scan_id][y : y + 32].any()) for s in scans for y in range(0, 97, 16)
    )
    assert len(sick) == with_lesions
    for index in range(len(sick)):
        place_of, y, x = sick.places[index]
        _, sample = sick[1, index]
        assert sample.image_HW.shape == (32, 32)
        np.testing.assert_array_equal(
            sample.mask_CHW[0], whole[scans[place_of].scan_id][y : y + 32, x : x + 32]
        )


def stacked(dataset: Dataset, target: str = "") -> Any:
    model = load("lesion_resnet50")
    return scored_samples(
        dataset, list(dataset.scans), model, model.Config(imgsz=128, target=target)
    )


def test_one_sample_a_lesion_shows_the_whole_scan_and_that_lesion(place: Path) -> None:
    dataset = open_dataset(place / "ds")
    samples = stacked(dataset)
    lesions = [(s, le) for s in dataset.scans for le in s.lesions]
    assert len(samples) == len(lesions)
    batch = samples.collate([samples[-1, i] for i in range(len(samples))])
    assert batch.image_NCHW.shape == (len(lesions), 2, 128, 32)
    assert [int(v) for v in torch.cat(batch.labels)] == [
        le.category == "malignant" for _, le in lesions
    ]
    for index, (_, lesion) in enumerate(lesions):
        np.testing.assert_array_equal(batch.image_NCHW[index, 1].numpy(), mask_of(lesion.rle))
        assert batch.image_NCHW[index, 0].max() > 0


def test_a_lesion_of_few_pixels_stays_in_its_mask_however_small_the_scan_is_seen(
    place: Path,
) -> None:
    dataset, model = open_dataset(place / "ds"), load("lesion_resnet50")
    samples = scored_samples(dataset, list(dataset.scans), model, model.Config(imgsz=32))
    assert all(samples[-1, index][1].mask_CHW.any() for index in range(len(samples)))


def test_a_lesion_that_augmentation_moves_out_of_sight_keeps_its_class(place: Path) -> None:
    dataset, model = open_dataset(place / "ds"), load("lesion_resnet50")
    config = model.Config(imgsz=64, translate=1.0, degrees=90)
    samples = training_samples(FoldJob(dataset, model, config, 0, 2), 0)
    for index in range(len(samples)):
        _, sample = samples[1, index]
        assert sample.labels_N.tolist() == [samples.items[index][2]]


def test_lesions_are_classified_and_compared_by_subgroup(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, few = str(tmp_path / "raw"), str(tmp_path / "ds")
    assert main(["phantom", raw, "--patients", "6", "--height", "128", "--seed", "3"]) == 0
    assert main(["prepare", raw, few, "--folds", "2", "--key", str(place / "key")]) == 0
    assert (
        searched(
            place,
            "lesion",
            "model=lesion_resnet50",
            "metric=AUC",
            "epochs=1",
            "search.test_fold=false",
            f"dataset={few}",
            "fixed={imgsz: 64, batch: 16, nbs: 16, warmup_epochs: 0, ema: 0.0}",
            "space={lr0: {choice: [0.001]}}",
            "name=lesion-resnet50",
        )
        == 0
    )
    found = row(place, "lesion")
    assert 0 <= found["AUC_ci_low"] <= found["AUC_mean"] <= found["AUC_ci_high"] <= 1
    capsys.readouterr()
    assert main(["compare", str(place / "lesion"), "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)
    scored = sum(len(s.lesions) for s in open_dataset(few).scans)
    assert sum(said["confusion"].values()) == scored
    for table in said["subgroups"].values():
        assert sum(group["count"] for group in table["groups"].values()) == scored
    assert {"lesions on the scan", "primary_tumour"} <= set(said["subgroups"])
    assert said["roc"][0] == [0, 0]
    assert said["roc"][-1] == [1, 1]
    (whole,) = (r for r in said["rows"] if (r["metric"], r["subgroup"]) == ("accuracy", ""))
    assert [p["value"] for p in whole["published"]] == [0.8123]
    # Tables 4 and 5 of the paper, of each subgroup that is here
    parts = {
        r["subgroup"]: (p["value"], p["table"])
        for r in said["rows"]
        for p in r["published"]
        if r["metric"] == "sensitivity" and r["subgroup"]
    }
    paper = {"1-3": (0.5863, "Table 4"), "breast": (0.8165, "Table 5")}
    assert paper.items() & parts.items()
    assert all(parts[name] == paper[name] for name in parts.keys() & paper.keys())
    assert main(["compare", str(place / "lesion"), str(place / "first")]) == 0
    told = capsys.readouterr().out
    assert "other patients, scanners and readers" in told
    assert "p (chi-square)" in told


def test_scans_are_classified_by_a_label(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """BS-80K says of each scan whether it is abnormal; scans that it says nothing of are left
    out.
    """
    raw, ds = str(tmp_path / "raw"), str(tmp_path / "ds")
    assert (
        main(
            [
                "phantom",
                raw,
                "--patients",
                "14",
                "--height",
                "128",
                "--layout",
                "bs80k",
                "--seed",
                "5",
            ]
        )
        == 0
    )
    assert (
        main(
            ["prepare", raw, ds, "--layout", "bs80k", "--folds", "2", "--key", str(tmp_path / "k")]
        )
        == 0
    )
    dataset = open_dataset(ds)
    known = [dict(s.labels)["abnormal"] for s in dataset.scans]
    samples = stacked(dataset, "abnormal")
    assert [positive for _, _, positive in samples.items] == [v == "1" for v in known]
    assert len(stacked(dataset, "abnormal_elbowL")) == 0
    write(tmp_path / "first.yaml", tmp_path)
    sets = [
        "model=lesion_resnet50",
        "metric=accuracy",
        "epochs=1",
        "search.test_fold=false",
        "space={lr0: {choice: [0.001]}}",
    ]
    fixed = "fixed={imgsz: 64, batch: 24, nbs: 24, ema: 0.0, target: %s}"
    assert searched(tmp_path, "scans", *sets, fixed % "abnormal") == 0
    assert 0 <= row(tmp_path, "scans")["accuracy_mean"] <= 1
    for path in (tmp_path / "raw").rglob("*.xml"):
        path.unlink()  # labels are all that is left
    bare = [
        "prepare",
        raw,
        str(tmp_path / "bare"),
        "--layout",
        "bs80k",
        "--folds",
        "2",
        "--key",
        str(tmp_path / "k"),
    ]
    assert main(bare) == 0
    study = read_study(
        tmp_path / "first.yaml", [*sets, fixed % "abnormal", f"dataset={tmp_path / 'bare'}"]
    )
    assert resolve(study)[1].categories == []
    assert searched(tmp_path, "elbows", *sets, fixed % "abnormal_elbowL") == 2
    assert "label abnormal_elbowL 0 and 1 to be scored by" in capsys.readouterr().err


def test_a_study_without_a_winner_has_nothing_to_compare(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Folder(str(place / "empty"))
    folder.write("study.yaml", (place / "first/study.yaml").read_bytes())
    assert main(["compare", str(place / "empty")]) == 2
    assert "needs a complete configuration" in capsys.readouterr().err
