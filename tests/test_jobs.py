"""The studies of the papers run from their files, on a phantom in the layout of their data."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from raybone.cli import main
from raybone.data.dataset import open_dataset
from raybone.data.ingest.prepare import prepare
from raybone.run.checks import resolve
from raybone.study.files import read_study
from raybone.tasks import configured

JOBS = Path(__file__).resolve().parents[1] / "jobs"
SMALL = [
    "epochs=1",
    "search.trials=1",
    "search.folds=2",
    "search.scheduler=full",
    "search.sampler=random",
    "space.imgsz.choice=[64]",
    "resources={cpus: 1, gpus: 0}",
    "limits={}",
    "fixed.batch=4",
    "fixed.nbs=4",
    "fixed.warmup_epochs=0",
]
ONE_STAGE = ["fixed.channels=16", "space.anchor.choice=[0.0625]"]
TWO_STAGE = [*ONE_STAGE, "fixed.head=16", "fixed.rois=16"]
NARROW = {"yolo11": [], "retinanet": ONE_STAGE, "faster_rcnn": TWO_STAGE, "cascade_rcnn": TWO_STAGE}


@pytest.fixture(scope="module")
def bs80k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantom patients in BS-80K's layout, prepared with two folds."""
    place = tmp_path_factory.mktemp("bs80k")
    assert (
        main(
            [
                "phantom",
                str(place / "raw"),
                "--patients",
                "4",
                "--height",
                "128",
                "--layout",
                "bs80k",
            ]
        )
        == 0
    )
    assert (
        main(
            [
                "prepare",
                str(place / "raw"),
                str(place / "ds"),
                "--layout",
                "bs80k",
                "--folds",
                "2",
                "--key",
                str(place / "key"),
            ]
        )
        == 0
    )
    return place / "ds"


@pytest.mark.parametrize("name", ["yolo11", "faster_rcnn", "cascade_rcnn", "retinanet"])
def test_a_detector_of_bs80k_runs_from_its_file(name: str, bs80k: Path, tmp_path: Path) -> None:
    job = JOBS / f"bs80k_{name}.yaml"
    assert read_study(job).search.folds == 5
    assert (
        main(
            [
                "search",
                str(job),
                "--out",
                str(tmp_path / "study"),
                "--local",
                "--set",
                f"dataset={bs80k}",
                *SMALL,
                *NARROW[name],
            ]
        )
        == 0
    )
    (row,) = pd.read_csv(tmp_path / "study" / "leaderboard.csv").to_dict("records")
    assert row["state"] == "complete"
    assert 0 <= row["AP_mean"] <= row["AP50_mean"] <= 1
    assert row["model"].startswith(name)


SEGMENTERS = {
    "wbbs_double_unet": [],
    "wbbs_double_unet_otsu": [],
    "wbbs_double_unet_mining": ["fixed.nm=otsu"],
    "wbbs_transfer": ["fixed.init_from=''"],
    "spect_msma_unet": ["fixed.tile=32"],
    "bmseg_unet": [],
}
CLASSIFIERS = [f"lesion_{name}" for name in ("resnet50", "inception_v3", "vgg16", "densenet169")]


@pytest.mark.parametrize("name", [*SEGMENTERS, *CLASSIFIERS])
def test_a_study_of_the_papers_is_sound_and_begins_with_their_settings(
    name: str, dataset: Path
) -> None:
    """The jobs run whole in `make papers`; what they name of earlier studies is left out here."""
    study = read_study(JOBS / f"{name}.yaml")
    assert study.model == {
        "wbbs_transfer": "double_unet",
        "bmseg_unet": "unet",
        "spect_msma_unet": "msma_unet",
    }.get(name, "double_unet" if name.startswith("wbbs") else name)
    if name.startswith("wbbs"):
        assert (study.search.folds, study.search.test_fold) == (10, True)
        assert [p["lr0"] for p in study.search.points] == [1e-4, 1e-4]
    if name != "bmseg_unet":  # no augmentation but what is searched, Adam at a constant rate
        assert {k: study.fixed[k] for k in ("scale", "translate", "ema", "lrf")} == {
            "scale": 0,
            "translate": 0,
            "ema": 0,
            "lrf": 1,
        }
    small = [f"dataset={dataset}", "search.folds=3", "fixed.imgsz=64", *SEGMENTERS.get(name, [])]
    resolved, _ = resolve(
        read_study(JOBS / f"{name}.yaml", small if name != "bmseg_unet" else small[:2])
    )
    for point in study.search.points:
        configured(resolved, dict(point))


def test_slices_of_a_patient_share_a_fold_by_the_labels_that_the_job_makes(tmp_path: Path) -> None:
    """Twelve slices of four patients; the line of the job's comment is run as it stands."""
    raw, rng = tmp_path / "raw", np.random.default_rng(0)
    for folder in ("images", "masks"):
        (raw / folder).mkdir(parents=True)
    for number in range(12):
        mask_HW = np.zeros((64, 64), np.uint8)
        mask_HW[20:30, 10 + number : 30] = 255
        for folder, image_HW in (
            ("images", rng.integers(0, 200, (64, 64)).astype(np.uint8)),
            ("masks", mask_HW),
        ):
            cv2.imwrite(str(raw / folder / f"p {number % 4}_{number}.png"), image_HW)
    (line,) = (
        said[1:].strip()
        for said in (JOBS / "bmseg_unet.yaml").read_text().splitlines()
        if "labels.csv" in said and said.strip("# ").startswith("(")
    )
    folds = []
    for name in ("without", "with"):
        made = prepare(raw, tmp_path / name, layout="masks", folds=3, key=tmp_path / "key")
        whose = {scan_id: Path(path).name[:3] for _, scan_id, path in made.sources if scan_id}
        opened = open_dataset(made.path)
        assert len(whose) == len(opened.scans) == 12
        folds.append({(whose[s.scan_id], opened.fold_of[s.patient_id]) for s in opened.scans})
        assert made.meta["counts"]["patients"] == (12 if name == "without" else 4)
        subprocess.run(["sh", "-c", line], cwd=raw, check=True)
    assert len(folds[0]) > 4 == len(folds[1])
    assert {fold for _, fold in folds[1]} == {0, 1, 2}


def test_three_classes_by_otsu_run_from_their_file(dataset: Path, tmp_path: Path) -> None:
    settings = [s for s in SMALL if not s.startswith(("space", "search.folds"))]
    assert (
        main(
            [
                "search",
                str(JOBS / "wbbs_double_unet_otsu.yaml"),
                "--out",
                str(tmp_path / "study"),
                "--local",
                "--set",
                f"dataset={dataset}",
                "search.folds=3",
                *settings,
                "fixed.imgsz=64",
                "fixed.width=8",
                "search.points=[]",
            ]
        )
        == 0
    )
    (row,) = pd.read_csv(tmp_path / "study" / "leaderboard.csv").to_dict("records")
    assert row["state"] == "complete"
    assert 0 <= row["dice_test_folds"] <= 1


def test_anchors_come_from_the_lesions_of_the_dataset_outside_the_test_group(
    held_out: Path,
) -> None:
    study = read_study(
        JOBS / "bs80k_retinanet.yaml",
        [
            f"dataset={held_out}",
            "search.folds=3",
            "fixed.anchor=dataset",
            "space={lr0: {uniform: [0.001, 0.01]}}",
        ],
    )
    resolved, dataset = resolve(study)
    sides = [
        math.sqrt((b[2] - b[0]) * (b[3] - b[1])) / s.height
        for fold in range(3)
        for s in dataset.validation(fold)
        for b in (le.box_xyxy for le in s.lesions)
    ]
    anchor = resolved.fixed["anchor"]
    assert isinstance(anchor, float)
    assert sum(side < anchor for side in sides) / len(sides) == pytest.approx(0.1, abs=0.05)
    model, config = configured(resolved, {"imgsz": 512, "channels": 16})
    sizes = model.build(config).net.anchor_generator.sizes
    assert sizes[0][0] == pytest.approx(anchor * 512)
    assert [level[0] / sizes[0][0] for level in sizes] == pytest.approx([1, 2, 4, 8, 16])
    stock = model.build(
        configured(resolved, {"channels": 16})[1].model_copy(update={"anchor": 0.0})
    )
    assert stock.net.anchor_generator.sizes[0][0] == 32  # torchvision's own


def test_fixed_values_that_only_a_searched_one_makes_whole_are_a_study(
    bs80k: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default anchor is too small at imgsz 64, the searched one is not; a fixed one that is is
    refused.
    """
    base = [
        "search",
        str(JOBS / "bs80k_retinanet.yaml"),
        "--local",
        "--set",
        f"dataset={bs80k}",
        *(s for s in SMALL if "imgsz" not in s),
        "fixed.imgsz=64",
        "fixed.channels=16",
    ]
    good = [*base, "space={anchor: {choice: [0.0625]}}"]
    assert main([*good, "--out", str(tmp_path / "good")]) == 0
    assert "complete" in capsys.readouterr().out
    bad = [*base, "space={lr0: {choice: [0.01]}}", "fixed.anchor=0.008"]
    assert main([*bad, "--out", str(tmp_path / "bad")]) == 2
    assert (
        "must take one of its configurations, but: anchor 0.008 at imgsz 64 is under 4 pixels"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "bad").exists()


def test_images_of_bs80k_are_classified_and_patients_by_their_worst_view(tmp_path: Path) -> None:
    raw, dataset, out = (str(tmp_path / name) for name in ("raw", "ds", "study"))
    words = ["--patients", "16", "--height", "128", "--layout", "bs80k", "--seed", "2"]
    assert main(["phantom", raw, *words]) == 0
    key = str(tmp_path / "key")
    assert main(["prepare", raw, dataset, "--layout", "bs80k", "--folds", "2", "--key", key]) == 0
    settings = [s for s in SMALL if not s.startswith("space")]
    own = [f"dataset={dataset}", "models=[timm/resnet18]", "fixed.imgsz=64", *settings]
    job = str(JOBS / "bs80k_abnormal.yaml")
    assert main(["search", job, "--out", out, "--local", "--set", *own]) == 0
    (row,) = pd.read_csv(tmp_path / "study" / "leaderboard.csv").to_dict("records")
    assert row["state"] == "complete"
    assert 0 <= row["AUC_mean"] <= 1
    assert 0 <= row["patient_AUC_mean"] <= 1
    assert read_study(JOBS / "bs80k_regions.yaml").fixed["target"] == "abnormal"


def test_lesions_and_bone_that_overlap_are_learned_together(tmp_path: Path) -> None:
    """Slices with a bone around each lesion; both have a Dice of their own."""
    raw, rng = tmp_path / "raw", np.random.default_rng(0)
    for folder in ("images", "masks", "masks_bone"):
        (raw / folder).mkdir(parents=True)
    for number in range(9):
        bone_HW, lesion_HW = np.zeros((2, 64, 64), np.uint8)
        cv2.circle(bone_HW, (30 + number, 30), 18, 255, -1)
        cv2.circle(lesion_HW, (26 + number, 28), 6, 255, -1)
        image_HW = rng.integers(0, 40, (64, 64)) + bone_HW // 3 + lesion_HW // 3
        parts = {"images": image_HW.astype(np.uint8), "masks": lesion_HW, "masks_bone": bone_HW}
        for folder, picture_HW in parts.items():
            cv2.imwrite(str(raw / folder / f"p{number}_0.png"), picture_HW)
    prepare(raw, tmp_path / "ds", layout="masks", folds=3, key=tmp_path / "key")
    own = [
        f"dataset={tmp_path / 'ds'}",
        "models={hybrid_att_unet_plus_plus: {fixed: {width: 4, imgsz: 64}}}",
        "epochs=2",
        "search={trials: 1, scheduler: full, sampler: random, folds: 3}",
        "space={lr0: {choice: [0.01]}}",
        "resources={cpus: 1, gpus: 0}",
        "fixed={categories: [malignant, bone], batch: 2, nbs: 2, warmup_epochs: 0, ema: 0.0}",
    ]
    job, out = str(JOBS / "bmseg_bone.yaml"), str(tmp_path / "study")
    assert main(["search", job, "--out", out, "--local", "--set", *own]) == 0
    (row,) = pd.read_csv(tmp_path / "study" / "leaderboard.csv").to_dict("records")
    assert 0 <= row["dice[bone]_mean"] <= 1
    both = (row["dice[bone]_mean"] + row["dice[malignant]_mean"]) / 2
    assert row["dice_mean"] == pytest.approx(both, abs=1e-6)
