"""prepare: every input ends in scans.csv or rejected.csv, and no identity leaves the source."""

from __future__ import annotations

import csv
import json
import stat
import time
from collections import Counter
from pathlib import Path
from typing import Any, get_type_hints

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from raybone.cli import main
from raybone.data.dataset import open_dataset
from raybone.data.ingest import parallel
from raybone.data.ingest.dicom.frames import write_scan
from raybone.data.ingest.layouts import WHOLE_BODY, Layout
from raybone.data.ingest.options import PrepareKeywords, PrepareOptions
from raybone.data.ingest.prepare import prepare
from raybone.data.ingest.reading import Read, read_source
from raybone.data.ingest.sources import Source
from raybone.data.inspect import inspect
from raybone.errors import WrongInput
from raybone.phantom.phantom import phantom


def test_folds_and_hash_depend_on_pixels_and_not_on_the_key(
    cohort: Path, dataset: Path, tmp_path: Path
) -> None:
    other = prepare(cohort, tmp_path / "ds", folds=3, key=tmp_path / "another key")
    first, second = open_dataset(dataset), open_dataset(other.path)
    assert first.hash == second.hash
    assert {s.scan_id: first.fold_of[s.patient_id] for s in first.scans} == {
        s.scan_id: second.fold_of[s.patient_id] for s in second.scans
    }
    assert {s.patient_id for s in first.scans}.isdisjoint({s.patient_id for s in second.scans})
    assert stat.S_IMODE((tmp_path / "another key").stat().st_mode) == 0o600
    tables = list(tmp_path.glob("*.sources.csv"))
    assert len(tables) == 1
    for table in tables:
        assert stat.S_IMODE(table.stat().st_mode) == 0o600


def test_patients_are_in_one_fold_and_folds_share_the_burden(dataset: Path) -> None:
    opened = open_dataset(dataset)
    for fold in range(3):
        train, valid = opened.training(fold), opened.validation(fold)
        assert {s.patient_id for s in train}.isdisjoint({s.patient_id for s in valid})
        assert len(train) + len(valid) == len(opened.scans)
        assert sum(len(s.lesions) for s in valid) > 0


def test_counts_come_back_as_they_were_in_the_dicom(cohort: Path, dataset: Path) -> None:
    opened = open_dataset(dataset)
    source = sorted(pydicom.dcmread(f).pixel_array.tobytes() for f in cohort.rglob("*.dcm"))
    assert sorted(opened.counts(s).tobytes() for s in opened.scans) == source


def read_slowly(source: Source, **options: Any) -> Read:
    """Stands for a decoder that hangs on one file."""
    if source.name == "slow.dcm":
        time.sleep(3600)
    return read_source(source, **options)


def test_a_file_whose_reading_hangs_is_rejected_by_name_and_the_others_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = phantom(tmp_path / "src", 2, height=128)
    (source / "slow.dcm").write_bytes(next(source.rglob("*.dcm")).read_bytes())
    monkeypatch.setattr("raybone.data.ingest.read.read_source", read_slowly)
    monkeypatch.setattr(parallel, "SECONDS", 1.5)
    command = ["prepare", str(source), str(tmp_path / "ds"), "--key", str(tmp_path / "key")]
    assert main([*command, "--folds", "2", "--show-paths"]) == 0
    said = capsys.readouterr().out
    assert "4 scans of 2 patients" in said
    assert f"{source}/slow.dcm: not taken: took over 1.5 s to read\n" in said


def test_what_is_not_taken_is_named_by_hash_and_reason(tmp_path: Path) -> None:
    source = phantom(tmp_path / 'it\'s "src"', 2, height=128)
    (source / "notes.txt").write_text("Patient Secret")
    (source / "broken.dcm").write_bytes(next(source.rglob("*.dcm")).read_bytes()[:900])
    ct = pydicom.dcmread(next(source.rglob("*.dcm")))
    ct.Modality = "CT"
    ct.save_as(source / "ct-of-Secret")
    made = prepare(source, tmp_path / "ds", folds=2, key=tmp_path / "k")
    with (made.path / "rejected.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert {r["reason"] for r in rows} >= {"is not a DICOM file", "Modality is CT, not NM"}
    assert len({r["reason"] for r in rows}) == 3
    assert made.meta["counts"]["scans"] == 4


def test_a_dataset_is_whole_or_absent(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(WrongInput, match="no scan was taken"):
        prepare(empty, tmp_path / "ds", key=tmp_path / "k")
    assert {p.name for p in tmp_path.iterdir()} <= {"empty", "k"}
    with pytest.raises(WrongInput, match="must be a folder"):
        prepare(tmp_path / "nothing", tmp_path / "ds")
    with pytest.raises(WrongInput, match="must not exist"):
        prepare(empty, empty)


def test_fewer_patients_than_folds_gives_a_warning(tmp_path: Path) -> None:
    source = phantom(tmp_path / "src", 2, height=128)
    made = prepare(source, tmp_path / "ds", folds=5, key=tmp_path / "k")
    assert made.meta["counts"]["folds"] == 2
    assert any("too few for 5 folds" in w for w in made.meta["warnings"])


def test_masks_with_in_between_values_and_of_another_size(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    image_HW = np.full((40, 48), 99, np.uint8)
    mask_HW = np.zeros((40, 48), np.uint8)
    mask_HW[5:10, 6:12] = 250
    mask_HW[30:34, 30:40] = 250
    mask_HW[20:22] = np.arange(96).reshape(2, 48) // 4  # compression noise
    for name, mask in (("a", mask_HW), ("b", mask_HW[:20])):
        Image.fromarray(np.stack([image_HW] * 3, -1)).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
        image_HW += 1
    made = prepare(
        tmp_path, tmp_path.parent / "masks-ds", layout="masks", folds=2, key=tmp_path.parent / "k"
    )
    boxes = [le.box_xyxy for s in open_dataset(made.path).scans for le in s.lesions]
    assert boxes == [(6.0, 5.0, 12.0, 10.0), (30.0, 30.0, 40.0, 34.0)]
    assert made.rejected[0][2] == "is 40x48, but its annotation was made for 20x48"
    assert any("in-between" in w for w in made.meta["warnings"])
    assert not made.meta["patients_known"]


def test_pydicoms_own_bone_scan_is_taken_with_negatives_clipped(tmp_path: Path) -> None:
    path = Path(str(get_testdata_file("JPEG2000.dcm")))
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "no extension").write_bytes(path.read_bytes())
    made = prepare(tmp_path / "src", tmp_path / "ds", key=tmp_path / "k")
    opened = open_dataset(made.path)
    (scan,) = opened.scans
    assert (scan.height, scan.width, scan.pixel_mm, scan.view) == (1024, 256, 2.26, "unknown")
    expected = np.clip(pydicom.dcmread(path).pixel_array, 0, None)
    np.testing.assert_array_equal(opened.counts(scan), expected)


def test_the_real_scan_in_three_encodings(shared: Path, tmp_path: Path) -> None:
    made = prepare(shared / "data" / "dicom", tmp_path / "ds", key=tmp_path / "k")
    opened = open_dataset(made.path)
    assert len(opened.scans) == 2
    assert [r.split(":")[0] for _, _, r in made.rejected] == [
        "has pixels that cannot be decoded (transfer syntax JPEG Extended (Process 2 and 4))"
    ]
    assert {s.flags for s in opened.scans} == {("derived", "windowed", "unannotated")}
    assert len({s.patient_id for s in opened.scans}) == 1
    assert {opened.counts(s).max() for s in opened.scans} >= {278}


def test_annotations_without_a_scan_are_reported(cohort: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(cohort, tmp_path / "src")
    next((tmp_path / "src").rglob("*.dcm")).unlink()
    coco = json.loads((tmp_path / "src" / "annotations.json").read_text())
    gone = {i["id"] for i in coco["images"] if not (tmp_path / "src" / i["file_name"]).exists()}
    lost = sum(a["image_id"] in gone for a in coco["annotations"])
    with pytest.raises(
        WrongInput, match=f"{lost} of {len(coco['annotations'])} annotations find no scan, over 5 %"
    ):
        prepare(tmp_path / "src", tmp_path / "again", folds=2, key=tmp_path / "k")
    made = prepare(
        tmp_path / "src", tmp_path / "ds", folds=2, key=tmp_path / "k", allow_unmatched=True
    )
    assert any(f"{lost} x annotation without its scan" in w for w in made.meta["warnings"])
    assert made.meta["counts"]["annotations_lost"] == lost > 0
    content = json.loads((made.path / "dataset.json").read_text())
    assert content["counts"]["scans"] == 17


@pytest.mark.parametrize("layout", ["coco", "labelme"])
def test_the_same_cohort_in_another_layout_is_the_same_dataset(
    layout: str, dataset: Path, tmp_path: Path
) -> None:
    """Pixels, boxes, masks, views and folds: all are in the hash."""
    source = phantom(tmp_path / "src", patients=9, seed=3, height=256, layout=layout)
    made = prepare(source, tmp_path / "ds", folds=3, key=tmp_path / "k")
    assert made.meta["layout"] == layout
    assert made.meta["hash"] == open_dataset(dataset).hash
    assert made.rejected == ()


def test_regions_of_bs80k_are_scans_of_their_patient_and_a_classifier_trains_on_them(
    tmp_path: Path,
) -> None:
    source = phantom(tmp_path / "src", 6, 3, "bs80k", 256)
    for folder, (top, bottom) in {"chestLANT": (40, 90), "pelvisPOST": (100, 140)}.items():
        (source / folder).mkdir()
        whole = sorted(
            (source / f"wholeBody{'POST' if folder.endswith('POST') else 'ANT'}").glob("*.jpg")
        )
        for path in whole:
            Image.open(path).crop((0, top, 64, bottom)).save(source / folder / path.name)
        lines = [f"{path.name} {n % 2}" for n, path in enumerate(whole)]
        (source / folder / f"{folder}.txt").write_text(
            "\n".join([*lines, "9999.jpg 1", "no label"])
        )
    Image.open(whole[0]).crop((0, 0, 20, 20)).save(source / "pelvisPOST" / "8888.jpg")
    ds = tmp_path / "ds"
    assert (
        main(
            [
                "prepare",
                str(source),
                str(ds),
                "--layout",
                "bs80k_regions",
                "--folds",
                "2",
                "--key",
                str(tmp_path / "key"),
            ]
        )
        == 0
    )
    dataset = open_dataset(ds)
    assert Counter(
        (dict(s.labels)["region"], dict(s.labels)["abnormal"], s.view) for s in dataset.scans
    ) == {
        ("chestL", "0", "anterior"): 3,
        ("chestL", "1", "anterior"): 3,
        ("pelvis", "0", "posterior"): 3,
        ("pelvis", "1", "posterior"): 3,
    }
    assert set(Counter(s.patient_id for s in dataset.scans).values()) == {2}
    with (ds / "rejected.csv").open() as file:
        reasons = Counter(r["reason"] for r in csv.DictReader(file))
    assert reasons.pop(WHOLE_BODY) == sum(p.is_file() for p in source.glob("wholeBody*/**/*"))
    assert [(count, "20x20" in reason) for reason, count in reasons.items()] == [(1, True)]
    assert "label line without its crop: left out" in " ".join(dataset.meta["warnings"])
    (tmp_path / "s.yaml").write_text(
        f"{{name: r, dataset: {ds}, model: lesion_resnet50, epochs: 1, metric: AUC, "
        "space: {lr0: {choice: [0.001]}}, fixed: {target: abnormal, imgsz: 64, batch: 6, nbs: 6}, "
        "search: {trials: 1, scheduler: full}}"
    )
    assert main(["search", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "st"), "--local"]) == 0
    with (tmp_path / "st" / "leaderboard.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["state"] == "complete"
    assert 0 <= float(row["AUC_mean"]) <= 1


def test_bs80k_as_released_keeps_boxes_patients_views_and_labels(tmp_path: Path) -> None:
    source = phantom(tmp_path / "src", 3, 3, "bs80k", 256)
    (source / "chestLANT").mkdir()
    (source / "chestLANT" / "0001.jpg").write_bytes(next(source.rglob("*.jpg")).read_bytes())
    (source / "chestLANT" / "chestLANT.txt").write_text("0001.jpg 1\nnonsense\n")
    (source / "wholeBodyANT" / "ant" / "0099.xml").write_text("<annotation/>")
    (source / "wholeBodyPOST" / "post" / "0002.xml").unlink()
    (source / "wholeBodyANT" / "ant" / "0001.xml").unlink()
    (source / "readme").write_text("x")
    lines = (
        (source / "wholeBodyANT" / "wholeBodyANT.txt")
        .read_text()
        .replace("0001.jpg 1", "0001.jpg 0")
    )
    (source / "wholeBodyANT" / "wholeBodyANT.txt").write_text(lines)
    made = prepare(source, tmp_path / "ds", folds=2, key=tmp_path / "k", allow_unmatched=True)
    opened = open_dataset(made.path)
    expected = open_dataset(
        prepare(
            phantom(tmp_path / "d", 3, 3, height=256), tmp_path / "ds2", folds=2, key=tmp_path / "k"
        ).path
    )
    assert made.meta["layout"] == "bs80k"
    assert sorted(s.view for s in opened.scans) == ["anterior"] * 3 + ["posterior"] * 3
    assert len({s.patient_id for s in opened.scans}) == 3
    boxes = [
        {
            (le.box_xyxy, le.category)
            for s in d.scans
            if "unannotated" not in s.flags
            for le in s.lesions
        }
        for d in (opened, expected)
    ]
    assert set() < boxes[0] <= boxes[1]
    labels = [dict(s.labels) for s in opened.scans]
    assert {r.get("abnormal") for r in labels} == {"0", "1"}
    assert [r["abnormal_chestL"] for r in labels if "abnormal_chestL" in r] == ["1"]
    assert sorted(reason for _, _, reason in made.rejected) == [
        "is a region of a whole-body scan; its label goes with that scan",
        "is an annotation that no scan answers to",
        "is outside the folders of BS-80K",
    ]
    assert sum("unannotated" in s.flags for s in opened.scans) == 1
    assert any("label line that cannot be read" in w for w in made.meta["warnings"])
    # 0001 from the front is called normal, and so has no lesion; of 0002 from the back nobody says
    # that.
    assert any("1 x scan that its label calls normal" in w for w in made.meta["warnings"])
    assert [dict(s.labels)["abnormal"] for s in opened.scans if "unannotated" in s.flags] == ["1"]


def test_annotations_lie_beside_dicom_or_in_a_folder_of_their_own(tmp_path: Path) -> None:
    import nibabel

    rng = np.random.default_rng(0)
    mask_HW = np.zeros((80, 64), np.uint8)
    mask_HW[10:20, 30:40], mask_HW[40:50, 5:9] = 1, 2
    for name in ("a", "b", "c"):
        write_scan(
            tmp_path / f"{name}.dcm",
            rng.poisson(5, mask_HW.shape).astype(np.uint16),
            patient=name,
            view="anterior",
            pixel_mm=2,
            uid=name,
        )
    nibabel.save(
        nibabel.Nifti1Image(mask_HW.T[:, :, None], np.diag([-2, -2, 1, 1])), tmp_path / "a.nii.gz"
    )
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "b.xml").write_text(
        "<annotation><object><name>nidus</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>99</xmax><ymax>7</ymax>"
        "</bndbox></object></annotation>"
    )
    made = prepare(tmp_path, tmp_path.parent / "beside-ds", folds=2, key=tmp_path.parent / "k")
    found = {
        tuple(sorted((le.category, le.box_xyxy) for le in s.lesions))
        for s in open_dataset(made.path).scans
    }
    assert found == {
        (("benign", (5.0, 40.0, 9.0, 50.0)), ("malignant", (30.0, 10.0, 40.0, 20.0))),
        (("malignant", (1.0, 2.0, 64.0, 7.0)),),
        (),
    }
    assert {w.split(" (first")[0] for w in made.meta["warnings"]} == {
        "1 x box beyond the border of its scan: cut there",
        "1 x scan without annotation: neither trained on nor scored, but by its labels (see "
        "--unannotated)",
    }


def test_labels_sites_and_patients_come_from_labels_csv(tmp_path: Path) -> None:
    source = phantom(tmp_path / "src", 6, 3, "masks", 128)
    rows = list(csv.DictReader((source / "labels.csv").open()))
    for row in rows:
        row["site"] = "north" if row["patient_id"] < "PHANTOM-0003" else "south"
    with (source / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    opened = open_dataset(prepare(source, tmp_path / "ds", folds="site", key=tmp_path / "k").path)
    assert {s.site: opened.fold_of[s.patient_id] for s in opened.scans} == {"south": 0, "north": 1}
    assert opened.meta["patients_known"]
    assert {name for s in opened.scans for name, _ in s.labels} == {"primary_tumour"}
    assert {s.view for s in opened.scans} == {"anterior", "posterior"}


def test_a_test_group_is_in_no_fold_and_no_search_sees_it(cohort: Path, tmp_path: Path) -> None:
    opened = open_dataset(
        prepare(cohort, tmp_path / "ds", folds=3, holdout=0.34, key=tmp_path / "k").path
    )
    test = {p for p, fold in opened.fold_of.items() if fold == -1}
    assert len(test) == 3
    assert opened.folds == 3
    for fold in range(3):
        assert test.isdisjoint(
            s.patient_id for s in opened.training(fold) + opened.validation(fold)
        )


def test_a_given_split_is_honoured_and_refused_when_it_leaks(cohort: Path, tmp_path: Path) -> None:
    names = [f"PHANTOM-{n:04d}" for n in range(1, 10)]

    def split(rows: list[tuple[str, object]]) -> Path:
        path = tmp_path / "split.csv"
        path.write_text("patient_id,fold\n" + "".join(f"{n},{f}\n" for n, f in rows))
        return path

    good = [(n, "test" if i == 8 else i % 2) for i, n in enumerate(names)]
    opened = open_dataset(
        prepare(cohort, tmp_path / "ds", key=tmp_path / "k", split=split(good)).path
    )
    assert sorted(opened.fold_of.values()) == [-1, 0, 0, 0, 0, 1, 1, 1, 1]
    for rows, why in (
        ([*good, (names[0], 1)], "such a split leaks"),
        (good[1:], "1 of 9 have none"),
        ([(n, 0) for n in names], "at least 2"),
        ([*good[:-1], (names[8], "5")], "without a gap"),
        ([*good[:-1], (names[8], "x")], "line 10"),
    ):
        with pytest.raises(WrongInput, match=why):
            prepare(cohort, tmp_path / "no", key=tmp_path / "k", split=split(rows))
    import shutil

    twins = tmp_path / "twins"
    shutil.copytree(cohort, twins)
    copy = pydicom.dcmread(twins / names[0] / "anterior.dcm")
    copy.PatientID = "TWIN"
    copy.save_as(twins / "twin.dcm")
    with pytest.raises(WrongInput, match="same pixels are in two folds"):
        prepare(twins, tmp_path / "no", key=tmp_path / "k", split=split([*good, ("TWIN", 1)]))
    opened = open_dataset(prepare(twins, tmp_path / "together", folds=3, key=tmp_path / "k").path)
    pair = [
        s.patient_id
        for s in opened.scans
        if s.scan_id.split("-")[0]
        in {t.scan_id.split("-")[0] for t in opened.scans if t.scan_id.endswith("-2")}
    ]
    assert len(set(pair)) == 2
    assert len({opened.fold_of[p] for p in pair}) == 1


def test_steps_are_recorded_and_a_lone_view_is_rejected(tmp_path: Path) -> None:
    source = phantom(tmp_path / "src", 3, 3, height=256)
    next(iter(sorted(source.rglob("posterior.dcm")))).unlink()
    names = ["body_range", "brightness", "knee_cut", "montage"]
    made = prepare(
        source, tmp_path / "ds", folds=2, key=tmp_path / "k", steps=names, allow_unmatched=True
    )
    opened = open_dataset(made.path)
    assert made.meta["preprocessing"]["steps"] == names
    assert [(s.height, s.width, s.view) for s in opened.scans] == [
        (160, 128, "anterior|posterior")
    ] * 2
    assert len({s.high for s in opened.scans}) == 1
    assert all(
        6 < opened.counts(s).mean() / made.meta["preprocessing"]["unit"] < 22 for s in opened.scans
    )
    assert [r for _, _, r in made.rejected] == [
        "is left out by the steps: montage and add_views need both views of a study, tiles without "
        "counts are not kept, and of lesion_tile those without a malignant lesion"
    ]
    with pytest.raises(WrongInput, match="no step is called sharpen"):
        prepare(source, tmp_path / "no", steps=["sharpen"])


def test_zipped_folders_and_a_dicomdir_stand_for_their_files(
    cohort: Path, dataset: Path, tmp_path: Path
) -> None:
    import shutil

    from pydicom.fileset import FileSet

    (tmp_path / "in").mkdir()
    packed = shutil.make_archive(str(tmp_path / "in" / "export"), "zip", cohort.parent, cohort.name)
    for source in (Path(packed), tmp_path / "in"):
        made = prepare(source, tmp_path / f"ds-{source.name}", folds=3, key=tmp_path / "k")
        assert made.meta["hash"] == open_dataset(dataset).hash
        assert made.rejected == ()
        assert not list(tmp_path.glob(".*"))
    files = FileSet()
    for path in cohort.rglob("*.dcm"):
        files.add(path)
    files.write(tmp_path / "media")
    next(
        p for p in (tmp_path / "media").rglob("*") if p.is_file() and p.name != "DICOMDIR"
    ).unlink()
    made = prepare(
        tmp_path / "media" / "DICOMDIR", tmp_path / "ds-media", folds=3, key=tmp_path / "k"
    )
    assert made.meta["counts"]["scans"] == 17
    assert [r for _, _, r in made.rejected] == [
        "is a DICOMDIR, an index of files that are read themselves"
    ]


def test_unknown_patients_that_look_alike_share_a_fold(shared: Path, tmp_path: Path) -> None:
    made = prepare(shared / "data" / "bmseg-mini", tmp_path / "ds", folds=3, key=tmp_path / "k")
    found = inspect(made.path)
    opened = open_dataset(made.path)
    assert any("leakage between folds cannot be excluded" in w for w in found["warnings"])
    assert len(found["near_duplicates"]) > 10
    assert all(opened.fold_of[a] == opened.fold_of[b] for a, b, _ in found["near_duplicates"])


def test_three_hundred_mutated_files_give_reasons_and_no_traceback(tmp_path: Path) -> None:
    import subprocess
    import sys

    source, rng = tmp_path / "src", np.random.default_rng(0)
    source.mkdir()
    files = [
        get_testdata_file(n)
        for n in (
            "JPEG2000.dcm",
            "JPGExtended.dcm",
            "MR_small_RLE.dcm",
            "MR_small.dcm",
            "MR_small_jpeg_ls_lossless.dcm",
            "examples_jpeg2k.dcm",
        )
    ]
    for number in range(300):
        content = bytearray(Path(str(files[number % len(files)])).read_bytes()[:200_000])
        for _ in range(int(rng.integers(1, 30))):
            place = int(rng.integers(len(content) if number % 2 else min(len(content), 3000)))
            content[place] = int(rng.integers(256))
        length = int(rng.integers(100, len(content))) if number % 5 == 0 else len(content)
        (source / f"{number}").write_bytes(content[:length])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "raybone",
            "prepare",
            str(source),
            str(tmp_path / "ds"),
            "--modality",
            "any",
            "--key",
            str(tmp_path / "k"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    counts = json.loads((tmp_path / "ds" / "dataset.json").read_text())["counts"]
    with (tmp_path / "ds" / "rejected.csv").open() as file:
        assert len(list(csv.DictReader(file))) == counts["rejected"] > 20
    assert counts["scans"] + counts["rejected"] >= 300


def test_lines_of_labels_and_splits_that_fit_nobody_are_said(tmp_path: Path) -> None:
    source = phantom(tmp_path / "src", 3, 3, height=128)
    with (source / "labels.csv").open("a") as file:
        file.write("NOBODY,lung\n")
    (tmp_path / "split.csv").write_text(
        "patient_id,fold\nPHANTOM-0001,0\nPHANTOM-0002,1\nPHANTOM-0003,1\nGONE,0\n"
    )
    made = prepare(source, tmp_path / "ds", key=tmp_path / "k", split=tmp_path / "split.csv")
    assert made.meta["warnings"] == [
        "1 x line of labels.csv without its scan or patient: left out",
        "1 patients of --split have no scan here",
    ]
    with (source / "labels.csv").open("a") as file:
        file.write("NOBODY,breast\n")
    with pytest.raises(WrongInput, match="line 6 contradicts"):
        prepare(source, tmp_path / "no", key=tmp_path / "k")


def test_a_dataset_inside_its_source_is_refused(cohort: Path) -> None:
    with pytest.raises(WrongInput, match="must not lie in SOURCE"):
        prepare(cohort, cohort / "ds")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("patient_id,height\nPHANTOM-0001,170\n", "must not be called height"),
        ("patient_id,view\nPHANTOM-0001,front\n", "line 2: view must be"),
        ("patient_id,pixel_mm\nPHANTOM-0001,-1\n", "line 2: view must be"),
        (
            "patient_id,name\n" + "".join(f"P{n},N{n % 9}\n" for n in range(20)),
            "may name a patient",
        ),
        ("name\nx\n", "needs a column patient_id or file"),
        ("patient_id,\xff", "labels.csv"),
        (
            "patient_id,pixel_mm\nPHANTOM-0001,2,5\n",
            "line 2: must have 2 cells, as the first line, but has 3",
        ),
    ],
)
def test_labels_that_cannot_be_are_refused(content: str, why: str, tmp_path: Path) -> None:
    source = phantom(tmp_path / "src", 2, 3, height=128)
    (source / "labels.csv").write_text(content, encoding="latin-1")
    with pytest.raises(WrongInput, match=why):
        prepare(source, tmp_path / "ds", folds=2, key=tmp_path / "k")


@pytest.mark.parametrize(
    ("parts", "encoding"), [(";", "utf-8"), ("\t", "utf-16"), (";", "utf-8-sig"), (",", "utf-8")]
)
def test_labels_may_be_as_a_spreadsheet_of_any_country_writes_them(
    parts: str, encoding: str, tmp_path: Path
) -> None:
    source = phantom(tmp_path / "src", 2, 3, height=128)
    mm = "2,5" if parts != "," else '"2,5"'
    lines = [("patient_id", "pixel_mm", "grade", ""), ("PHANTOM-0001", mm, '"a, b; c"', "")]
    text = "".join(parts.join(line) + "\r\n" for line in lines)
    (source / "labels.csv").write_bytes((text + "\r\n").encode(encoding))
    made = open_dataset(prepare(source, tmp_path / "ds", folds=2, key=tmp_path / "k").path)
    told = {(s.pixel_mm, s.labels) for s in made.scans if s.labels}
    assert told == {(2.5, (("grade", "a, b; c"),))}


@pytest.mark.parametrize("end", ["", "_mask", "-seg", "_GT"])
def test_a_mask_may_say_in_its_name_that_it_is_one(end: str, tmp_path: Path) -> None:
    rng, mask_HW = np.random.default_rng(0), np.zeros((64, 48), np.uint8)
    mask_HW[20:28, 10:22] = 255
    for kind in ("images", "masks"):
        (tmp_path / "in" / kind).mkdir(parents=True)
    for number in range(4):
        image_HW = rng.poisson(40, (64, 48)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / f"in/images/p_{number}.png"), image_HW)
        cv2.imwrite(str(tmp_path / f"in/masks/p_{number}{end}.png"), mask_HW)
    made = open_dataset(prepare(tmp_path / "in", tmp_path / "ds", folds=2, key=tmp_path / "k").path)
    assert [[le.box_xyxy for le in s.lesions] for s in made.scans] == [[(10, 20, 22, 28)]] * 4
    if end:  # two of one image are one too many
        cv2.imwrite(str(tmp_path / "in/masks/p_0.png"), mask_HW)
        with pytest.raises(WrongInput, match="an annotation fits 2 scans alike"):
            prepare(tmp_path / "in", tmp_path / "no", folds=2, key=tmp_path / "k")


def test_pictures_that_labels_name_are_scans_although_nothing_is_annotated(
    tmp_path: Path,
) -> None:
    rng, lines = np.random.default_rng(0), ["file,patient_id,abnormal"]
    (tmp_path / "in/scans").mkdir(parents=True)
    for number in range(6):
        name = f"scans/{number}.png"
        cv2.imwrite(str(tmp_path / "in" / name), rng.poisson(40, (64, 48)).astype(np.uint8))
        lines.append(f"{name},p{number // 2},{number % 2}")
    with pytest.raises(WrongInput, match="is a picture that nothing annotates; name it in"):
        prepare(tmp_path / "in", tmp_path / "no", folds=2, key=tmp_path / "k")
    (tmp_path / "in/labels.csv").write_text("\n".join(lines))
    made = open_dataset(prepare(tmp_path / "in", tmp_path / "ds", folds=3, key=tmp_path / "k").path)
    assert len(made.scans) == 6
    assert {s.labels for s in made.scans} == {(("abnormal", "0"),), (("abnormal", "1"),)}
    assert sorted(made.fold_of.values()) == [0, 1, 2]


def test_masks_go_with_the_image_of_their_folder_and_patient_0_is_a_patient(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = []
    for place in ("A", "B"):
        for kind in ("images", "masks"):
            (tmp_path / "in" / kind / place).mkdir(parents=True)
        cv2.imwrite(
            str(tmp_path / "in" / "images" / place / "1.png"),
            rng.integers(1, 99, (64, 64)).astype(np.uint16),
        )
        mask_HW = np.zeros((64, 64), np.uint8)
        mask_HW[4:9, 5 if place == "A" else 40 : 50] = 255
        cv2.imwrite(str(tmp_path / "in" / "masks" / place / "1.png"), mask_HW)
        images.append(
            {
                "id": len(images),
                "file_name": f"images/{place}/1.png",
                "height": 64,
                "width": 64,
                "patient_id": 0,
            }
        )
    made = prepare(tmp_path / "in", tmp_path / "ds", folds=2, key=tmp_path / "k")
    assert sorted(le.box_xyxy for s in open_dataset(made.path).scans for le in s.lesions) == [
        (5, 4, 50, 9),
        (40, 4, 50, 9),
    ]
    assert not any("unannotated" in s.flags for s in open_dataset(made.path).scans)
    (tmp_path / "in" / "annotations.json").write_text(
        json.dumps({"images": images, "annotations": [], "categories": []})
    )
    with pytest.raises(WrongInput, match="layout masks does not read; choose the layout"):
        prepare(tmp_path / "in", tmp_path / "again", folds=2, key=tmp_path / "k")
    made = prepare(
        tmp_path / "in", tmp_path / "again", folds=2, key=tmp_path / "k", allow_unmatched=True
    )
    assert len(made.rejected) == 1
    made = prepare(tmp_path / "in", tmp_path / "coco", layout="coco", folds=2, key=tmp_path / "k")
    assert made.meta["counts"]["patients"] == 1
    assert made.meta["patients_known"]
    assert len(made.rejected) == 2


def test_keys_that_others_may_read_and_places_inside_the_dataset_are_refused(
    cohort: Path, tmp_path: Path
) -> None:
    (tmp_path / "k").write_text("x")
    (tmp_path / "k").chmod(0o644)
    with pytest.raises(WrongInput, match="chmod 600"):
        prepare(cohort, tmp_path / "ds", key=tmp_path / "k")
    with pytest.raises(WrongInput, match="cannot go with --folds site"):
        prepare(cohort, tmp_path / "ds", folds="site", holdout=0.2)
    with pytest.raises(WrongInput, match="must lie outside DATASET"):
        prepare(cohort, tmp_path / "ds", key=tmp_path / "ds" / "k")


def test_several_pages_and_damaged_directories_have_a_reason(tmp_path: Path) -> None:
    source = phantom(tmp_path / "src", 2, 3, "labelme", 128)
    pages = [Image.fromarray(np.full((64, 64), n + 1, np.uint16)) for n in range(3)]
    pages[0].save(source / "pages.tif", save_all=True, append_images=pages[1:])
    (source / "DICOMDIR").write_bytes(Path(str(get_testdata_file("DICOMDIR"))).read_bytes()[:5000])
    made = prepare(source, tmp_path / "ds", folds=2, key=tmp_path / "k")
    assert {r for _, _, r in made.rejected} >= {"has 3 pages, of which one only would be the scan"}
    assert len(made.rejected) == 2


def test_many_scans_pass_the_steps_with_few_open_files(tmp_path: Path) -> None:
    import resource

    source = phantom(tmp_path / "src", 40, 3, height=128)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(list(Path("/proc/self/fd").iterdir())) + 50
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits[0], few), limits[1]))
    try:
        made = prepare(
            source, tmp_path / "ds", folds=2, key=tmp_path / "k", steps=["montage", "max_min"]
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    opened = open_dataset(made.path)
    assert len(opened.scans) == 40
    assert {float(opened.counts(s).max()) for s in opened.scans} == {65535.0}


def test_the_keywords_of_prepare_are_the_fields_of_its_record() -> None:
    fields = get_type_hints(PrepareOptions)
    keywords = get_type_hints(PrepareKeywords)
    assert keywords.pop("layout") == Layout  # ``any`` is for reading alone
    assert keywords == {name: kind for name, kind in fields.items() if name != "layout"}


def test_all_rules_that_options_break_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(WrongInput) as refused:
        prepare(
            tmp_path,
            tmp_path,
            layout="folders",  # type: ignore[arg-type]
            folds="site",
            holdout=0.5,
            negatives="training",
            steps=["max_min", "brightness", "sharpen"],
        )
    said = [line.split(":")[0] for line in refused.value.problems]
    assert sorted(said) == [
        "--holdout",
        "--layout",
        "--negatives",
        "--steps",
        "--steps",
        "prepare",
    ]
