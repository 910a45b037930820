"""Bundles through the command line: made of a study, used on scans, and named when a patient of
theirs is deleted.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
import yaml
from faults import unseal
from PIL import Image

from raybone.cli import main
from raybone.data.annotations import mask_of
from raybone.data.cache import Intensities
from raybone.data.dataset import open_dataset
from raybone.data.folds import TEST
from raybone.data.remote import private_cache
from raybone.deploy.bundle import open_bundle


@pytest.fixture(scope="module")
def place(held_out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two configurations on a cohort with a test group, whose winner is a bundle; and
    scans of others.
    """
    place = tmp_path_factory.mktemp("refit")
    write(
        place / "study.yaml",
        held_out,
        epochs=10,
        fixed={"cross_entropy": 0.0, "imgsz": 256, "ema": 0.0, "width": 8},
    )
    assert (
        main(["search", str(place / "study.yaml"), "--out", str(place / "study"), "--local"]) == 0
    )
    assert main(["refit", str(place / "study"), "--out", str(place / "bundle"), "--onnx"]) == 0
    assert (
        main(["phantom", str(place / "new"), "--patients", "2", "--height", "256", "--seed", "8"])
        == 0
    )
    return place


def write(path: Path, dataset: Path, **changes: Any) -> None:
    content: dict[str, Any] = {
        "name": "small",
        "dataset": str(dataset),
        "model": "unet",
        "epochs": 3,
        "metric": "dice",
        "space": {"lr0": {"choice": [0.03, 0.001]}},
        "search": {"trials": 2, "sampler": "grid", "scheduler": "full"},
        "keep": 1,
    }
    fixed = {
        "imgsz": 128,
        "batch": 4,
        "nbs": 4,
        "width": 4,
        "depth": 2,
        "warmup_epochs": 0,
        "ema": 0.5,
    }
    path.write_text(
        yaml.safe_dump({**content, **changes, "fixed": {**fixed, **changes.get("fixed", {})}})
    )


def meta(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "bundle.json").read_text()))


def predicted(out: Path) -> list[dict[str, Any]]:
    return list(json.loads((out / "predictions.json").read_text())["scans"])


def test_a_bundle_says_what_it_is_and_how_good(place: Path, held_out: Path) -> None:
    found, dataset = meta(place / "bundle"), open_dataset(held_out)
    board = next(csv.DictReader((place / "study/leaderboard.csv").open()))
    assert found["study"]["config_id"] == board["config_id"]
    assert found["score"]["dice_test"] == pytest.approx(float(board["dice_test"]), abs=1e-6)
    assert found["score"]["dice_mean"] == pytest.approx(float(board["dice_mean"]), abs=1e-6)
    assert set(found["patients"]) == {p for p, fold in dataset.fold_of.items() if fold != TEST}
    assert [m["file"] for m in found["members"]] == [f"fold{k}.safetensors" for k in range(3)]
    assert found["calibration"]["of"] == "pixels"
    assert found["calibration"]["error_calibrated"] < found["calibration"]["error"]
    point = found["operating_point"]
    assert point["rule"] == "max_f1"
    assert 0 < point["threshold"] < 1
    assert len(point["folds"]) == 3
    card = (place / "bundle/README.md").read_text()
    assert {g["by"] for g in found["subgroups"]} >= {"view"}
    assert "| view | anterior | 6 | 6 |" in card
    assert f"at least **{point['threshold']:.3g}** counts as found" in " ".join(card.split())
    assert f"| f1 | {point['f1']:.3f} |" in card
    assert len(found["calibration"]["reliability"]) > 1
    assert "not a medical device" in card
    assert "Trained on: nuclear medicine (NM); dataset" in " ".join(card.split())
    assert f"{float(board['dice_test']):.4f}" in card
    assert str(place) not in card + json.dumps(found)


def test_the_score_from_which_on_something_is_found_is_chosen_by_name(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    areas = []
    for rule in ("sensitivity=0.9", "score=0.5"):
        out = tmp_path / rule
        assert main(["refit", str(place / "study"), "--out", str(out), "--operate", rule]) == 0
        point = meta(out)["operating_point"]
        assert point["rule"] == rule
        assert f"at least {point['threshold']:.3g} ({rule})" in capsys.readouterr().out
        assert main(["predict", str(out), str(place / "new"), "--out", str(out / "found")]) == 0
        told = json.loads((out / "found/predictions.json").read_text())
        assert told["operating_point"] == point["threshold"]
        assert all(f["called"] for scan in told["scans"] for f in scan["findings"])
        areas.append(sum(f["area_px"] for scan in told["scans"] for f in scan["findings"]))
    assert areas[0] > areas[1] > 0
    for rule, why in (("fp_per_scan=1", "cannot be counted"), ("f2", "must be max_f1, or a value")):
        capsys.readouterr()
        again = ["refit", str(place / "study"), "--out", str(tmp_path / "no"), "--operate", rule]
        assert main(again) == 2
        assert why in capsys.readouterr().err
        assert not (tmp_path / "no").exists()


def test_it_is_scored_on_patients_it_does_not_know_and_on_no_other(
    place: Path, held_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own test group, other patients under another key, and those it was trained on."""
    bundle = str(place / "bundle")
    assert main(["evaluate", bundle, str(held_out), "--test", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    score = said["scores"]["dice"]
    assert said["patients"] == 3
    assert score["low"] < score["value"] < score["high"]
    assert said["internal"] == pytest.approx(meta(place / "bundle")["score"]["dice_mean"])
    assert said["warnings"] == []
    assert main(["evaluate", bundle, str(held_out)]) == 2
    assert "but it was on 6 of 9" in capsys.readouterr().err
    key = str(tmp_path / "key")
    new = ["prepare", str(place / "new"), str(tmp_path / "ds"), "--folds", "2", "--key", key]
    assert main(new) == 0
    assert main(["evaluate", bundle, str(tmp_path / "ds")]) == 0
    told = capsys.readouterr().out
    assert "4 scans of 2 patients, none of them trained on" in told
    assert "patients are compared by pixels alone" in told


def test_its_networks_are_the_fold_models(place: Path) -> None:
    bundle = open_bundle(place / "bundle")
    config_id = bundle.meta["study"]["config_id"]
    for k, module in enumerate(bundle.members(torch.device("cpu"))):
        weights = torch.load(place / f"study/runs/{config_id}/fold{k}/last.pt", weights_only=True)[
            "average"
        ]
        assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    assert [e["largest_difference"] < 1e-5 for e in bundle.meta["onnx"]] == [True] * 3
    assert (place / "bundle/fold2.onnx").stat().st_size > 1000


def test_predictions_are_those_of_the_fold_models_together(
    place: Path, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the scans it was trained on the ensemble finds about what the study says that its models
    find.
    """
    assert (
        main(["predict", str(place / "bundle"), str(cohort), "--out", str(tmp_path / "out")]) == 0
    )
    assert "scans a second" in capsys.readouterr().out
    frames = predicted(tmp_path / "out")
    assert len(frames) == 18
    assert {Path(f["source"]).relative_to(cohort).as_posix() for f in frames} == {
        p.relative_to(cohort).as_posix() for p in cohort.rglob("*.dcm")
    }
    truth = json.loads((cohort / "annotations.json").read_text())
    assert {i["file_name"] for i in truth["images"]} >= {
        Path(f["source"]).relative_to(cohort).as_posix() for f in frames
    }
    for frame in frames:
        mask_HW = mask_of(frame["masks"]["malignant"])
        assert mask_HW.shape == (frame["height"], frame["width"]) == (256, 64)
        assert sum(f["area_px"] for f in frame["findings"]) == mask_HW.sum()
        for finding in frame["findings"]:
            x1, y1, x2, y2 = (int(v) for v in finding["box"])
            assert mask_HW[y1:y2, x1:x2].any()
            assert meta(place / "bundle")["operating_point"]["threshold"] <= finding["score"] <= 1
            assert 0 <= finding["sd"] <= 0.5
            assert 0 < finding["probability"] < 1
        assert not frame["oddities"]
        assert Image.open(tmp_path / "out" / frame["files"][0]).size[1] >= 256
    rows = list(csv.DictReader((tmp_path / "out/predictions.csv").open()))
    assert {r["source"] for r in rows} == {f["source"] for f in frames}
    assert sum(r["category"] == "malignant" for r in rows) == sum(
        len(f["findings"]) for f in frames
    )


def test_the_members_mean_is_what_is_predicted(
    place: Path, held_out: Path, cohort: Path, tmp_path: Path
) -> None:
    from raybone.data.loader import validation_loader
    from raybone.deploy.ensemble import outputs
    from raybone.tasks import task_named
    from raybone.train.samples import scored_samples

    bundle, dataset = open_bundle(place / "bundle"), open_dataset(held_out)
    samples = scored_samples(dataset, list(dataset.scans), bundle.model, bundle.config)
    device, task = torch.device("cpu"), task_named("segmentation")
    expected = {}
    for n, members in outputs(
        task, bundle.members(device), samples, validation_loader(samples, 4, 0, 1, 0), device
    ):
        prediction, _ = task.agreed(members)
        np.testing.assert_allclose(
            prediction.mask_CHW, np.mean([m.mask_CHW for m in members], 0), atol=1e-6
        )
        expected[dataset.scans[n].scan_id] = prediction.mask_CHW[0] >= bundle.threshold
    assert (
        main(["predict", str(place / "bundle"), str(cohort), "--out", str(tmp_path / "out")]) == 0
    )
    masks = [mask_of(f["masks"]["malignant"]) for f in predicted(tmp_path / "out")]
    assert sorted(m.sum() for m in masks) == sorted(m.sum() for m in expected.values())
    assert any(m.any() for m in masks)


def test_a_segmentation_object_refers_to_its_source_and_holds_the_masks(
    place: Path, tmp_path: Path
) -> None:
    assert (
        main(["predict", str(place / "bundle"), str(place / "new"), "--out", str(tmp_path / "out")])
        == 0
    )
    frames = [f for f in predicted(tmp_path / "out") if f["findings"]]
    assert frames
    for frame in frames:
        file = tmp_path / "out" / f"{frame['number']:04d}.seg.dcm"
        made, source = pydicom.dcmread(file), pydicom.dcmread(frame["source"])
        np.testing.assert_array_equal(
            made.pixel_array.reshape(256, 64), mask_of(frame["masks"]["malignant"])
        )
        (group,) = made.PerFrameFunctionalGroupsSequence
        (image,) = group.DerivationImageSequence[0].SourceImageSequence
        assert image.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert made.SeriesDescription == "raybone small unet, bone metastases"
        assert (made.ContentLabel, made.SegmentSequence[0].SegmentLabel) == ("LESIONS", "malignant")
        assert (made.PatientID, made.StudyInstanceUID) == (
            source.PatientID,
            source.StudyInstanceUID,
        )
        if shutil.which("dciodvfy"):
            told = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True)
            assert "Error" not in told.stdout + told.stderr


def test_nothing_of_the_scans_stays_behind(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", None)
    assert (
        main(["predict", str(place / "bundle"), str(place / "new"), "--out", str(tmp_path / "out")])
        == 0
    )
    left = [p for p in (tmp_path / "temporary").rglob("*") if p.is_file()]
    assert left == []
    assert private_cache().parent == tmp_path / "temporary"
    assert {p.name for p in tmp_path.iterdir()} == {"out", "temporary"}


def test_what_holds_scans_or_patients_is_its_owners_alone(
    place: Path, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ds, key, study, bundle = (str(tmp_path / name) for name in ("ds", "key", "study", "bundle"))
    shutil.copytree(place / "study", study)
    before = os.umask(0o022)
    try:
        for words in (
            ["prepare", str(cohort), ds, "--folds", "3", "--key", key],
            ["inspect", ds, "--png", str(tmp_path / "sheet.png")],
            ["report", study],
            ["refit", study, "--out", bundle],
            ["predict", bundle, str(place / "new"), "--out", str(tmp_path / "found")],
            ["forget", ds, "PHANTOM-0004", "--key", key, "--among", ds],
        ):
            assert main(words) == 0
        Intensities(open_dataset(ds), 64)
    finally:
        os.umask(before)
    made = [
        p
        for name in ("ds", "bundle", "found", private_cache().name)
        for p in (tmp_path / name, *(tmp_path / name).rglob("*"))
    ]
    made += [tmp_path / "sheet.png", Path(study, "report.html"), *tmp_path.glob("key*")]
    assert len(made) > 30
    assert {
        p: oct(stat.S_IMODE(p.stat().st_mode))
        for p in made
        if stat.S_IMODE(p.stat().st_mode) != (0o700 if p.is_dir() else 0o600)
    } == {}
    # Others who are let in stay so, and a study's ranking is for whoever may enter its folder.
    Path(ds).chmod(0o750)
    Path(ds, "scans.csv").chmod(0o640)
    assert main(["forget", ds, "PHANTOM-0005", "--key", key, "--among", ds]) == 0
    assert [stat.S_IMODE(p.stat().st_mode) for p in (Path(ds), Path(ds, "scans.csv"))] == [
        0o750,
        0o640,
    ]
    assert stat.S_IMODE(Path(study, "leaderboard.csv").stat().st_mode) == 0o644


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, errno.ENOSPC])
def test_a_verb_that_does_not_come_to_its_end_leaves_nothing(
    way: int,
    place: Path,
    cohort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def die(*_: Path) -> None:
        if way == errno.ENOSPC:
            raise OSError(way, os.strerror(way))
        os.kill(os.getpid(), way)

    ds = tmp_path / "ds"
    shutil.copytree(place / "study", tmp_path / "study")
    assert (
        main(["prepare", str(cohort), str(ds), "--folds", "3", "--key", str(tmp_path / "key")]) == 0
    )
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    private_cache()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.setattr(Path, "replace", die)  # the last step of what is whole or absent
    for words in (
        ["prepare", str(cohort), str(tmp_path / "new"), "--key", str(tmp_path / "key")],
        ["inspect", str(ds), "--png", str(tmp_path / "sheet.png")],
        ["report", str(tmp_path / "study")],
        ["refit", str(place / "study"), "--out", str(tmp_path / "out")],
        ["predict", str(place / "bundle"), str(place / "new"), "--out", str(tmp_path / "found")],
        ["forget", str(ds), "PHANTOM-0004", "--key", str(tmp_path / "key"), "--among", str(ds)],
    ):
        capsys.readouterr()
        assert main(words) == 1
        told = capsys.readouterr().err.splitlines()[-1]
        assert told.startswith(
            "raybone: No space left" if way == errno.ENOSPC else "raybone: interrupted"
        ), words
        left = {p for p in tmp_path.rglob("*") if p.is_file() and p not in before}
        assert {p.name for p in left if not p.name.startswith("key.")} == set(), words
    assert all(p.read_bytes() == content for p, content in before.items())


def test_scans_that_look_otherwise_are_flagged_and_what_is_no_scan_is_named(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (200, 200), np.uint8)).save(tmp_path / "a 'picture.png")
    (tmp_path / "note.txt").write_text("no scan")
    scan = next((place / "new").rglob("*.dcm"))
    assert (
        main(
            [
                "predict",
                str(place / "bundle"),
                str(tmp_path / "a 'picture.png"),
                str(scan),
                str(tmp_path / "note.txt"),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    told = capsys.readouterr().out
    assert "a 'picture.png: unlike the training scans: aspect is 1" in told
    assert "note.txt: not taken: is not an image of the kinds" in told
    frames = {Path(f["source"]).name: f for f in predicted(tmp_path / "out")}
    assert frames[scan.name]["oddities"] == []
    assert len(frames["a 'picture.png"]["oddities"]) >= 2
    assert "the source is no DICOM object" in frames["a 'picture.png"]["notes"][0]


def test_one_model_of_all_patients_but_the_test_group(place: Path) -> None:
    assert (
        main(
            [
                "refit",
                str(place / "study"),
                "--out",
                str(place / "all"),
                "--rank",
                "2",
                "--all-patients",
                "--local",
            ]
        )
        == 0
    )
    found = meta(place / "all")
    assert [m["file"] for m in found["members"]] == ["all.safetensors"]
    assert found["kind"] == "one model of all patients"
    assert "The one model of all patients has none" in " ".join(
        (place / "all/README.md").read_text().split()
    )
    history = torch.load(
        place / f"study/runs/{found['study']['config_id']}/all/last.pt", weights_only=True
    )["history"]
    assert [set(e["metrics"]) for e in history] == [{"train_loss"}] * 10
    assert "are gone" in found["calibration"]["reason"]  # of rank 2 no weights are kept


def test_headers_without_preamble_dates_or_square_pixels_are_told_as_they_are(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = next((place / "new").rglob("anterior.dcm"))
    (tmp_path / "in").mkdir()
    header = pydicom.dcmread(scan)
    for keyword in ("StudyDate", "StudyID", "PatientBirthDate", "AccessionNumber"):
        delattr(header, keyword)
    header.PixelSpacing = [2.0, 4.0]
    header.save_as(tmp_path / "in" / "anonymous.dcm")
    (tmp_path / "in" / "bare.dcm").write_bytes(scan.read_bytes()[132:])
    (tmp_path / "in" / "a\nnote").write_text("no scan")
    (tmp_path / "in" / "another").write_text("no scan")
    assert (
        main(
            ["predict", str(place / "bundle"), str(tmp_path / "in"), "--out", str(tmp_path / "out")]
        )
        == 0
    )
    anonymous, bare = sorted(predicted(tmp_path / "out"), key=lambda f: f["source"])
    assert anonymous["findings"]
    assert anonymous["flags"] == ["not-square"]
    assert [len(f["findings"]) for f in (anonymous, bare)] == [len(anonymous["findings"])] * 2
    assert (
        {f["area_mm2"] for f in anonymous["findings"]}
        == {None}
        != {f["area_mm2"] for f in bare["findings"]}
    )
    assert [len(f["files"]) for f in (anonymous, bare)] == [3, 3]
    told = capsys.readouterr().out
    assert "in/another: not taken" in told
    assert "/a note: not taken" in told
    assert all(line.startswith((str(tmp_path / "out"), "warning: ")) for line in told.splitlines())
    assert [
        r["source"].rpartition("/")[2]
        for r in json.loads((tmp_path / "out/predictions.json").read_text())["rejected"]
    ] == ["a\nnote", "another"]


def test_a_segmentation_says_the_spacing_and_the_name_that_the_scan_does(
    place: Path, tmp_path: Path
) -> None:
    """A size of pixels from any element that areas are told by, or none at all; names in Korean and
    Japanese.
    """
    scan = next((place / "new").rglob("anterior.dcm"))
    (tmp_path / "in").mkdir()
    for name, spacing, charset, person in (
        (
            "detector",
            {"ImagerPixelSpacing": [2.4, 2.4]},
            ["", "ISO 2022 IR 149"],
            "Hong^Gildong=洪^吉洞=홍^길동",
        ),
        ("none", {}, ["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("wide", {"PixelSpacing": [2.0, 4.0]}, "GB18030", "王^小东"),
    ):
        header = pydicom.dcmread(scan)
        del header.PixelSpacing
        for keyword, value in {
            **spacing,
            "SpecificCharacterSet": charset,
            "PatientName": person,
        }.items():
            setattr(header, keyword, value)
        header.SOPInstanceUID = f"1.2.3.{len(name)}"
        header.save_as(tmp_path / "in" / f"{name}.dcm")
    assert (
        main(
            ["predict", str(place / "bundle"), str(tmp_path / "in"), "--out", str(tmp_path / "out")]
        )
        == 0
    )
    frames = {Path(f["source"]).stem: f for f in predicted(tmp_path / "out")}
    sizes: dict[str, list[float] | None] = {}
    for name, frame in frames.items():
        made = pydicom.dcmread(tmp_path / "out" / f"{frame['number']:04d}.seg.dcm")
        measures = made.SharedFunctionalGroupsSequence[0].get("PixelMeasuresSequence")
        sizes[name] = measures and [float(v) for v in measures[0].PixelSpacing]
        assert str(made.PatientName) == str(pydicom.dcmread(frame["source"]).PatientName)
        report = pydicom.dcmread(tmp_path / "out" / f"{frame['number']:04d}.sr.dcm")
        assert report.StudyInstanceUID == made.StudyInstanceUID
    assert sizes == {"detector": [2.4, 2.4], "none": None, "wide": [2.0, 4.0]}
    for found in frames["detector"]["findings"]:
        assert found["area_mm2"] == pytest.approx(found["area_px"] * 2.4**2, abs=0.06)
    assert {f["area_mm2"] for name in ("none", "wide") for f in frames[name]["findings"]} == {None}
    assert frames["none"]["notes"] == [
        "DICOM Segmentation without a size of pixels, which the source does not say"
    ]
    assert not frames["detector"]["notes"]


def test_findings_that_cannot_be_written_as_dicom_are_counted_and_scans_that_never_could_are_not(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = next((place / "new").rglob("anterior.dcm"))
    (tmp_path / "in").mkdir()
    header = pydicom.dcmread(scan)
    counts_HW = header.pixel_array.astype(np.uint8)
    Image.fromarray(counts_HW).save(tmp_path / "in" / "Error.png")
    del header.SOPInstanceUID
    header.save_as(tmp_path / "in" / "odd.dcm")
    out = str(tmp_path / "out")
    assert main(["predict", str(place / "bundle"), str(tmp_path / "in"), "--out", out]) == 0
    assert "warning: 1 scans lack a DICOM object, for" in capsys.readouterr().out
    notes = [frame["notes"] for frame in predicted(tmp_path / "out")]
    kinds = [sorted(note.partition(":")[0] for note in own) for own in notes]
    assert sorted(kinds, key=len) == [
        ["no DICOM Segmentation"],
        ["no DICOM Segmentation", "no DICOM Structured Report"],
    ]


@pytest.mark.usefixtures("local_ray")
def test_one_model_of_all_patients_on_ray_is_the_one_of_this_process(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = place / "here", place / "there"
    config_id = meta(place / "bundle")["study"]["config_id"]
    assert (
        main(["refit", str(place / "study"), "--out", str(here), "--all-patients", "--local"]) == 0
    )
    shutil.rmtree(place / f"study/runs/{config_id}/all")
    capsys.readouterr()
    monkeypatch.chdir(place)  # workers have another current folder
    assert main(["refit", "study", "--out", str(there), "--all-patients"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[:3]] == [
        f"epoch {n}" for n in (1, 2, 3)
    ]
    assert meta(here)["members"][0]["sha256"] == meta(there)["members"][0]["sha256"]


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["refit", "study", "--out", "x", "--rank", "3"], "has 2 complete configurations"),
        (["refit", "study", "--out", "x", "--rank", "2"], "are gone, as keep is 1"),
        (["refit", "study", "--out", "x", "--best", "2"], "keep is 1; leave it out"),
        (["refit", "study", "--out", "x", "--best", "0"], "--best 0: must be at least 1"),
        (["refit", "study", "--out", "x", "--best", "2", "--all-patients"], "a single configur"),
        (["refit", "study", "--out", "x", "--best", "2", "--rank", "2"], "as keep is 1"),
        (["refit", "study", "--out", "bundle"], "must not exist yet"),
        (["refit", "new", "--out", "x"], "must be a study folder"),
        (["refit", "study", "--out", "x", "--local"], "add --all-patients"),
        (["predict", "study", "new", "--out", "x"], "has no bundle.json"),
        (["predict", "bundle", "absent", "--out", "x"], "must be a file or folder of scans"),
        (["predict", "bundle", "new", "--out", "study"], "must not exist yet"),
        (["predict", "bundle", "new", "--out", "new/found"], "must not lie in a folder of scans"),
        (["predict", "bundle", "study.yaml", "--out", "x"], "no scan was taken"),
        (["forget", "absent", "p1"], "must be a folder made by"),
        (["forget", "absent", "p1", "--among", "nowhere"], "must be a folder to look through"),
        (["refit", "study", "--out", "s3://bucket/x"], "must be a folder of this machine"),
        (["predict", "bundle", "new", "--out", "x", "--least", "nan"], "a score from 0 to 1"),
    ],
)
def test_wrong_input_is_one_line(
    place: Path,
    arguments: list[str],
    rule: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert rule in told
    assert len(told.splitlines()) == 1
    assert not (place / "x").exists()


@pytest.mark.parametrize("harm", ["changed", "gone", "format", "json", "members"])
def test_a_damaged_bundle_is_refused(
    place: Path, harm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(place / "bundle", bad)
    if harm == "changed":
        content = bytearray((bad / "fold1.safetensors").read_bytes())
        content[-1] ^= 1
        (bad / "fold1.safetensors").write_bytes(content)
    elif harm == "gone":
        (bad / "fold1.safetensors").unlink()
    elif harm == "format":
        (bad / "bundle.json").write_text(json.dumps({**meta(bad), "format": 9}))
    elif harm == "members":
        (bad / "bundle.json").write_text(
            json.dumps({k: v for k, v in meta(bad).items() if k != harm})
        )
    else:
        (bad / "bundle.json").write_text("{")
    assert main(["predict", str(bad), str(place / "new"), "--out", str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_after_the_papers_steps_findings_are_told_in_pixels_of_the_source(tmp_path: Path) -> None:
    """Both views of a patient are one image for the model, and two frames for the reader."""
    assert (
        main(
            ["phantom", str(tmp_path / "raw"), "--patients", "10", "--height", "256", "--seed", "2"]
        )
        == 0
    )
    assert (
        main(
            [
                "prepare",
                str(tmp_path / "raw"),
                str(tmp_path / "ds"),
                "--folds",
                "2",
                "--key",
                str(tmp_path / "key"),
                "--steps",
                "body_range",
                "brightness",
                "knee_cut",
                "montage",
            ]
        )
        == 0
    )
    write(
        tmp_path / "s.yaml",
        tmp_path / "ds",
        epochs=14,
        search={"trials": 1, "sampler": "grid", "scheduler": "full"},
        space={"lr0": {"choice": [0.02]}},
        fixed={
            "cross_entropy": 0.0,
            "imgsz": 160,
            "ema": 0.0,
            "width": 8,
            "batch": 2,
            "nbs": 2,
            "lrf": 0.2,
        },
    )
    assert (
        main(["search", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "study"), "--local"]) == 0
    )
    assert main(["refit", str(tmp_path / "study"), "--out", str(tmp_path / "bundle")]) == 0
    assert (
        main(
            [
                "predict",
                str(tmp_path / "bundle"),
                str(tmp_path / "raw"),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    frames = predicted(tmp_path / "out")
    assert [Path(f["source"]).name for f in frames] == ["anterior.dcm", "posterior.dcm"] * 10
    assert {(f["height"], f["width"]) for f in frames} == {(256, 64)}
    # It finds lesions where they are, which it would not if a view were shifted or taken for the
    # other one.
    truth = json.loads((tmp_path / "raw/annotations.json").read_text())
    malignant = {c["id"] for c in truth["categories"] if c["name"] == "malignant"}
    boxes: dict[str, list[list[float]]] = {}
    for item in truth["annotations"]:
        if item["category_id"] in malignant:
            name = next(i["file_name"] for i in truth["images"] if i["id"] == item["image_id"])
            boxes.setdefault(name, []).append(item["bbox"])

    def hits(other: Mapping[str, str]) -> int:
        """Findings whose centre is in a lesion of the view of that name."""
        found = 0
        for frame in frames:
            source = Path(frame["source"])
            lesions = boxes.get(
                source.with_name(other[source.name]).relative_to(tmp_path / "raw").as_posix(), []
            )
            for x1, y1, x2, y2 in (finding["box"] for finding in frame["findings"]):
                x, y = (x1 + x2) / 2, (y1 + y2) / 2
                found += any(
                    bx - 1 <= x <= bx + w + 1 and by - 1 <= y <= by + h + 1
                    for bx, by, w, h in lesions
                )
        return found

    same = {name: name for name in ("anterior.dcm", "posterior.dcm")}
    assert hits(same) >= 8
    assert hits(same) > 2 * hits(dict(zip(same, reversed(same))))


def refitted(place: Path, dataset: Path, **changes: Any) -> Path:
    """A bundle of a study of one epoch and one configuration."""
    write(
        place / "s.yaml",
        dataset,
        epochs=1,
        search={"trials": 1, "sampler": "grid", "scheduler": "full"},
        space={"lr0": {"choice": [0.001]}},
        **changes,
    )
    content = yaml.safe_load((place / "s.yaml").read_text())
    for key in ("width", "depth"):
        del content["fixed"][key]
    (place / "s.yaml").write_text(
        yaml.safe_dump({**content, "fixed": {**content["fixed"], "imgsz": 64}})
    )
    assert main(["search", str(place / "s.yaml"), "--out", str(place / "study"), "--local"]) == 0
    assert main(["refit", str(place / "study"), "--out", str(place / "bundle")]) == 0
    return place / "bundle"


def test_a_yolo_bundle_also_opens_in_ultralytics(
    held_out: Path, place: Path, tmp_path: Path
) -> None:
    from ultralytics import YOLO

    bundle = refitted(tmp_path, held_out, model="yolo11n", metric="AP50")
    assert {p.name for p in bundle.iterdir()} == {
        "README.md",
        "bundle.json",
        *(f"fold{k}.{kind}" for k in range(3) for kind in ("pt", "safetensors")),
    }
    assert YOLO(bundle / "fold1.pt").names == {0: "malignant"}
    assert (
        main(
            [
                "predict",
                str(bundle),
                str(place / "new"),
                "--out",
                str(tmp_path / "out"),
                "--least",
                "0.001",
            ]
        )
        == 0
    )
    findings = [f for frame in predicted(tmp_path / "out") for f in frame["findings"]]
    assert findings
    assert all(
        0 <= f["box"][0] <= f["box"][2] <= 64 and 0 <= f["box"][1] <= f["box"][3] <= 256
        for f in findings
    )
    assert all(0.001 <= f["score"] <= 1 and f["category"] == "malignant" for f in findings)


def test_a_classifier_of_lesions_wants_them_annotated(
    held_out: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = refitted(tmp_path, held_out, model="lesion_resnet50", metric="AUC")
    assert main(["predict", str(bundle), str(place / "new"), "--out", str(tmp_path / "out")]) == 0
    truth = json.loads((place / "new/annotations.json").read_text())
    frames = predicted(tmp_path / "out")
    assert sum(len(f["findings"]) for f in frames) == len(truth["annotations"])
    assert all(0 <= f["score"] <= 1 for frame in frames for f in frame["findings"])
    capsys.readouterr()
    scan = next((place / "new").rglob("*.dcm"))
    assert main(["predict", str(bundle), str(scan), "--out", str(tmp_path / "bare")]) == 2
    assert "no scan has annotated ones" in capsys.readouterr().err
    assert not (tmp_path / "bare").exists()


def test_a_patient_is_deleted_and_what_was_trained_on_them_is_named(
    place: Path, held_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(held_out, tmp_path / "ds")
    unseal(tmp_path / "ds")
    dataset = open_dataset(tmp_path / "ds")
    gone, *others = (p for p, fold in dataset.fold_of.items() if fold == 0)
    folds = pd.read_csv(
        tmp_path / "ds" / "folds.csv"
    )  # they look alike, and the one who goes stood for them
    folds.loc[folds["fold"] == 0, "group"] = gone
    folds.to_csv(tmp_path / "ds" / "folds.csv", index=False)
    tested = next(p for p, fold in dataset.fold_of.items() if fold == TEST)
    pixels = {s.scan_id: dataset.counts(s).copy() for s in dataset.scans}
    removed = [s for s in dataset.scans if s.patient_id == gone]
    assert (
        main(
            [
                "forget",
                str(tmp_path / "ds"),
                gone,
                "--among",
                str(place),
                "--key",
                str(tmp_path / "none"),
                "--json",
            ]
        )
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert (told["patients"], told["scans"], told["left"]) == ([gone], 2, 8)
    assert str((place / "bundle").resolve()) in told["bundles"]
    assert told["studies"] == [str((place / "study").resolve())]
    after = open_dataset(tmp_path / "ds")
    assert after.hash == told["after"] != told["before"] == dataset.hash
    assert gone not in after.fold_of
    assert {p: f for p, f in dataset.fold_of.items() if p != gone} == after.fold_of
    assert {after.group_of[p] for p in others} == {min(others)}
    for scan in after.scans:
        np.testing.assert_array_equal(after.counts(scan), pixels[scan.scan_id])
    content = b"".join(p.read_bytes() for p in (tmp_path / "ds").rglob("*") if p.is_file())
    for scan in removed:
        assert scan.scan_id.encode() not in content
        assert pixels[scan.scan_id].tobytes() not in content
    assert gone.encode() not in content
    assert main(["inspect", str(tmp_path / "ds"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []
    # The patients of the test group have trained nothing; studies of the dataset as it was are
    # remembered.
    assert main(["forget", str(tmp_path / "ds"), tested, "--among", str(place), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["bundles"], again["studies"]) == ([], [])
    other = next(p for p, fold in after.fold_of.items() if fold == 1)
    assert main(["forget", str(tmp_path / "ds"), other, "--among", str(place), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["studies"] == told["studies"]


def test_a_patient_may_be_named_as_in_the_source_and_leaves_the_map_as_well(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    assert (
        main(["prepare", str(cohort), str(tmp_path / "ds"), "--folds", "3", "--key", str(key)]) == 0
    )
    assert (
        main(
            [
                "forget",
                str(tmp_path / "ds"),
                "PHANTOM-0004",
                "--key",
                str(key),
                "--among",
                str(tmp_path),
            ]
        )
        == 0
    )
    assert "1 patient(s) with 2 scan(s) deleted, 8 patients left" in capsys.readouterr().out
    (left,) = tmp_path.glob("key.*.sources.csv")
    assert "PHANTOM-0004" not in left.read_text()
    assert "PHANTOM-0003" in left.read_text()
    assert main(["forget", str(tmp_path / "ds"), "PHANTOM-0004", "--key", str(key)]) == 2
    assert "has no patient 'PHANTOM-0004'" in capsys.readouterr().err


def test_studies_and_bundles_built_on_a_patients_study_are_named_as_well(
    cohort: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights of a study that starts from another one have seen the other one's patients."""
    other, tiny = tmp_path / "other", {"trials": 1, "sampler": "grid", "scheduler": "full"}
    assert (
        main(
            [
                "prepare",
                str(place / "new"),
                str(other),
                "--folds",
                "2",
                "--key",
                str(tmp_path / "key"),
            ]
        )
        == 0
    )
    write(tmp_path / "first.yaml", other, epochs=1, search=tiny, name="first")
    assert (
        main(["search", str(tmp_path / "first.yaml"), "--out", str(tmp_path / "first"), "--local"])
        == 0
    )
    assert (
        main(
            [
                "prepare",
                str(cohort),
                str(tmp_path / "ds"),
                "--folds",
                "3",
                "--key",
                str(tmp_path / "key 2"),
            ]
        )
        == 0
    )
    write(
        tmp_path / "then.yaml",
        tmp_path / "ds",
        epochs=1,
        search=tiny,
        fixed={"init_from": str(tmp_path / "first")},
    )
    assert (
        main(["search", str(tmp_path / "then.yaml"), "--out", str(tmp_path / "then"), "--local"])
        == 0
    )
    assert main(["refit", str(tmp_path / "then"), "--out", str(tmp_path / "bundle")]) == 0
    patient = next(iter(open_dataset(other).fold_of))
    assert patient in meta(tmp_path / "bundle")["patients"]
    assert str(tmp_path) not in (tmp_path / "bundle/bundle.json").read_text()
    capsys.readouterr()
    assert main(["forget", str(other), patient, "--among", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["studies"] == [str(tmp_path / "first"), str(tmp_path / "then")]
    assert told["bundles"] == [str(tmp_path / "bundle")]
    assert main(["refit", str(tmp_path / "then"), "--out", str(tmp_path / "again")]) == 2
    assert "cannot be known, as its dataset" in capsys.readouterr().err


def test_a_dataset_that_a_search_is_at_work_on_keeps_its_patients(
    place: Path, held_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from raybone.hpo.lease import Lease
    from raybone.storage import Folder

    shutil.copytree(held_out, tmp_path / "ds")
    lease = Lease(Folder(place / "study"))
    lease.take()
    try:
        patient = next(iter(open_dataset(held_out).fold_of))
        assert main(["forget", str(tmp_path / "ds"), patient, "--among", str(place)]) == 2
    finally:
        lease.drop()
    assert "no search may be at work on it" in capsys.readouterr().err
    assert patient in open_dataset(tmp_path / "ds").fold_of


def test_an_emptied_fold_closes_up(cohort: Path, tmp_path: Path) -> None:
    assert (
        main(
            [
                "prepare",
                str(cohort),
                str(tmp_path / "ds"),
                "--folds",
                "4",
                "--key",
                str(tmp_path / "key"),
            ]
        )
        == 0
    )
    dataset = open_dataset(tmp_path / "ds")
    first = [p for p, fold in dataset.fold_of.items() if fold == 0]
    assert main(["forget", str(tmp_path / "ds"), *first, "--among", str(tmp_path)]) == 0
    after = open_dataset(tmp_path / "ds")
    assert after.folds == 3
    assert set(after.fold_of.values()) == {0, 1, 2}
    assert "folds = 3" in after.meta["warnings"][-1]
    assert "folds = 3" in after.meta["fold_warnings"][-1]
    assert main(["forget", str(tmp_path / "ds"), *after.fold_of, "--among", str(tmp_path)]) == 2


def test_a_gpu_that_others_fill_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("raybone.deploy.bundle.open_bundle", full)
    assert main(["predict", "bundle", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "the GPU has no room beside what others do on it; wait for them, or set" in said
