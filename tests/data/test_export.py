"""Datasets for other tools: what their own readers take, with the same patients in the same folds."""

from __future__ import annotations

import base64
import io
import json
import os
import zlib
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import optuna
import pytest
import yaml
from pretend import pretend
from pycocotools.coco import COCO

from raybone.cli import main
from raybone.data.annotations import mask_of
from raybone.data.dataset import Dataset, open_dataset
from raybone.data.export import formats
from raybone.data.export.cvat import write_cvat
from raybone.data.export.export import export
from raybone.data.export.fiftyone import write_fiftyone
from raybone.data.folds import TEST
from raybone.data.ingest.prepare import prepare
from raybone.errors import WrongInput
from raybone.models import load
from raybone.results.study_folder import StudyFolder
from raybone.types import Scan


def lesions(dataset: Dataset) -> dict[str, list[tuple[Any, ...]]]:
    """What is known of each scan, by its pixels."""
    return {
        s.pixels: sorted(
            (le.category, *np.round(le.box_xyxy, 1), int(mask_of(le.rle).sum()) if le.rle else 0)
            for le in s.lesions
        )
        for s in dataset.scans
    }


def split_of(dataset: Dataset, fold: int) -> tuple[set[str], set[str]]:
    training, validation = dataset.training(fold), dataset.validation(fold)
    return {s.scan_id for s in training}, {s.scan_id for s in validation}


def stems(names: list[str]) -> set[str]:
    return {Path(name).stem for name in names}


def test_coco_has_the_folds_and_comes_back_as_it_was(held_out: Path, tmp_path: Path) -> None:
    written, opened = export(held_out, tmp_path / "coco", "coco"), open_dataset(held_out)
    assert (written.scans, written.folds) == (len(opened.scans), 3)
    for fold in range(3):
        parts = [COCO(tmp_path / f"coco/fold{fold}_{part}.json") for part in ("train", "val")]
        names = [stems([i["file_name"] for i in part.dataset["images"]]) for part in parts]
        assert tuple(names) == split_of(opened, fold)
        patients = [{i["patient_id"] for i in part.dataset["images"]} for part in parts]
        assert not patients[0] & patients[1]
    test = json.loads((tmp_path / "coco/test.json").read_text())
    assert stems([i["file_name"] for i in test["images"]]) == {s.scan_id for s in opened.test}
    for split in (tmp_path / "coco").glob("*_*.json"):
        split.unlink()
    (tmp_path / "coco/test.json").unlink()
    back = prepare(tmp_path / "coco", tmp_path / "back", folds=3, key=tmp_path / "key")
    assert lesions(open_dataset(back.path)) == lesions(opened)


def test_yolo_is_taken_by_ultralytics_own_check(held_out: Path, tmp_path: Path) -> None:
    load("yolo11n")  # keeps Ultralytics quiet and off the network
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    export(held_out, tmp_path / "yolo", "yolo")
    opened = open_dataset(held_out)
    scan_of = {s.scan_id: s for s in opened.scans}
    for fold in range(3):
        data = check_det_dataset(str(tmp_path / f"yolo/fold{fold}.yaml"), autodownload=False)
        assert [*data["names"].values()] == opened.categories
        for part, ids in zip(("train", "val"), split_of(opened, fold)):
            read = YOLODataset(data[part], data=data, task="detect", augment=False)
            assert stems(read.im_files) == ids
            for label in read.labels:
                check_boxes(label, scan_of[Path(label["im_file"]).stem])
    assert "test" in yaml.safe_load((tmp_path / "yolo/fold0.yaml").read_text())


def check_boxes(label: dict[str, Any], scan: Scan) -> None:
    width, height = scan.width, scan.height
    found = label["bboxes"] * np.array([width, height, width, height])
    known = [le.box_xyxy for le in scan.lesions]
    expected = [((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1) for x1, y1, x2, y2 in known]
    # Ultralytics drops a second label that is the same.
    unique = np.unique(np.round(np.array(expected).reshape(-1, 4), 1), axis=0)
    np.testing.assert_allclose(np.unique(np.round(found, 1), axis=0), unique, atol=0.11)


def test_nnunet_has_the_splits_and_comes_back_as_it_was(dataset: Path, tmp_path: Path) -> None:
    export(dataset, tmp_path / "raw", "nnunet")
    opened = open_dataset(dataset)
    said = json.loads((tmp_path / "raw/dataset.json").read_text())
    cases = stems([p.name for p in (tmp_path / "raw/labelsTr").iterdir()])
    assert said["numTraining"] == len(cases) == len(opened.scans)
    assert said["labels"] == {"background": 0, "malignant": 1, "benign": 2}
    assert {p.name for p in (tmp_path / "raw/imagesTr").iterdir()} == {
        f"{case}_0000{said['file_ending']}" for case in cases
    }
    for fold, split in enumerate(json.loads((tmp_path / "raw/splits_final.json").read_text())):
        assert (set(split["train"]), set(split["val"])) == split_of(opened, fold)
    for scan in opened.scans:
        label_HW = cv2.imread(str(tmp_path / f"raw/labelsTr/{scan.scan_id}.png"), -1)
        image_HW = cv2.imread(str(tmp_path / f"raw/imagesTr/{scan.scan_id}_0000.png"), -1)
        assert np.array_equal(image_HW, opened.counts(scan))
        malignant = [mask_of(le.rle) for le in scan.lesions if le.category == "malignant"]
        whole_HW = np.any([*malignant, np.zeros_like(label_HW, bool)], axis=0)
        assert np.array_equal(label_HW == 1, whole_HW)
    back = prepare(tmp_path / "raw", tmp_path / "back", layout="nnunet", key=tmp_path / "key")
    assert {s.pixels for s in open_dataset(back.path).scans} == {s.pixels for s in opened.scans}


def test_nnunets_own_check_accepts_it(dataset: Path, tmp_path: Path) -> None:
    """nnunetv2 is no dependency, as it brings a gigabyte; where it is installed, it is asked."""
    theirs = pytest.importorskip("nnunetv2.experiment_planning.verify_dataset_integrity")
    export(dataset, tmp_path / "Dataset001_bone", "nnunet")
    theirs.verify_dataset_integrity(str(tmp_path / "Dataset001_bone"), 1)
    label = next((tmp_path / "Dataset001_bone" / "labelsTr").iterdir())
    label_HW = cv2.imread(str(label), -1)
    cv2.imwrite(str(label), np.where(label_HW == 0, 7, label_HW))
    with pytest.raises(RuntimeError):
        theirs.verify_dataset_integrity(str(tmp_path / "Dataset001_bone"), 1)


def masks_in_cvat(image: ElementTree.Element, height: int, width: int) -> list[tuple[Any, ...]]:
    """Category, crowd and pixels of each mask, as CVAT reads its runs: row by row, outside first."""
    found = []
    for mask in image.iter("mask"):
        runs = [int(run) for run in mask.get("rle", "").split(",")]
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        left, top, w, h = (int(mask.get(k, "")) for k in ("left", "top", "width", "height"))
        whole_HW = np.zeros((height, width), bool)
        whole_HW[top : top + h, left : left + w] = flat.reshape(h, w)
        found.append((mask.get("label"), mask.findtext("attribute"), whole_HW))
    return found


def test_cvat_has_the_folds_as_subsets_and_every_mask(held_out: Path, tmp_path: Path) -> None:
    export(held_out, tmp_path / "cvat", "cvat")
    opened = open_dataset(held_out)
    root = ElementTree.parse(tmp_path / "cvat/annotations.xml").getroot()
    images = {Path(image.get("name", "")).stem: image for image in root.iter("image")}
    assert images.keys() == {s.scan_id for s in opened.scans}
    assert [e.text for e in root.iter("subset")] == ["fold0", "fold1", "fold2", "test"]
    for scan in opened.scans:
        image, fold = images[scan.scan_id], opened.fold_of[scan.patient_id]
        assert image.get("subset") == ("test" if fold == TEST else f"fold{fold}")
        png = tmp_path / f"cvat/images/{image.get('subset')}/{image.get('name')}"
        assert cv2.imread(str(png), -1).shape == (scan.height, scan.width)
        masks = masks_in_cvat(image, scan.height, scan.width)
        assert [(c, crowd) for c, crowd, _ in masks] == [
            (le.category, "false") for le in scan.lesions
        ]
        for (_, _, found_HW), lesion in zip(masks, scan.lesions):
            np.testing.assert_array_equal(found_HW, mask_of(lesion.rle))


def test_cvats_boxes_and_crowds(dataset: Path, tmp_path: Path) -> None:
    opened = open_dataset(dataset)
    scan = next(s for s in opened.scans if len(s.lesions) > 1)
    first, second, *rest = scan.lesions
    changed = (replace(first, crowd=True), replace(second, rle=None), *rest)
    scans = tuple(replace(scan, lesions=changed) if s is scan else s for s in opened.scans)
    (tmp_path / "out").mkdir()
    write_cvat(replace(opened, scans=scans), tmp_path / "out", tmp_path, lambda done, total: None)
    root = ElementTree.parse(tmp_path / "out/annotations.xml").getroot()
    image = next(i for i in root.iter("image") if i.get("name") == f"{scan.scan_id}.png")
    assert image[0].findtext("attribute") == "true"
    corners = [float(image[1].get(k, "")) for k in ("xtl", "ytl", "xbr", "ybr")]
    np.testing.assert_allclose(corners, second.box_xyxy, atol=0.01)
    assert [shape.tag for shape in image] == ["mask", "box", *["mask"] * len(rest)]


def test_cvats_own_library_accepts_it(held_out: Path, tmp_path: Path) -> None:
    """datumaro is no dependency; where it is installed, it is asked."""
    theirs = pytest.importorskip("datumaro")
    if metadata.version("datumaro").startswith("0."):
        pytest.skip("this datumaro knows no subsets of CVAT's")
    export(held_out, tmp_path / "cvat", "cvat")
    opened = open_dataset(held_out)
    read = theirs.Dataset.import_from(str(tmp_path / "cvat"), "cvat")
    items = {item.id: item for item in read}
    assert items.keys() == {s.scan_id for s in opened.scans}
    assert {*read.subsets()} == {"fold0", "fold1", "fold2", "test"}
    for scan in opened.scans:
        found = items[scan.scan_id].annotations
        assert len(found) == len(scan.lesions)
        for annotation, lesion in zip(found, scan.lesions):
            np.testing.assert_array_equal(annotation.image > 0, mask_of(lesion.rle))


def test_fiftyone_has_the_folds_as_tags_and_every_mask(held_out: Path, tmp_path: Path) -> None:
    export(held_out, tmp_path / "fiftyone", "fiftyone")
    opened = open_dataset(held_out)
    samples = json.loads((tmp_path / "fiftyone/samples.json").read_text())["samples"]
    fields = json.loads((tmp_path / "fiftyone/metadata.json").read_text())["sample_fields"]
    known = {field["db_field"] for field in fields}
    assert {Path(s["filepath"]).stem for s in samples} == {s.scan_id for s in opened.scans}
    ids = [s["_id"]["$oid"] for s in samples]
    for sample, scan in zip(samples, opened.scans):
        assert sample.keys() <= known
        fold = opened.fold_of[scan.patient_id]
        assert sample["tags"] == ["test" if fold == TEST else f"fold{fold}"]
        png = cv2.imread(str(tmp_path / "fiftyone" / sample["filepath"]), -1)
        assert png.shape == (scan.height, scan.width)
        found = sample["ground_truth"]["detections"]
        ids += [d["_id"]["$oid"] for d in found]
        assert [d["label"] for d in found] == [le.category for le in scan.lesions]
        for detection, lesion in zip(found, scan.lesions):
            packed = base64.b64decode(detection["mask"]["$binary"]["base64"])
            inside_HW = np.load(io.BytesIO(zlib.decompress(packed)))
            sizes = (scan.width, scan.height, scan.width, scan.height)
            x, y, w, h = np.rint(np.multiply(detection["bounding_box"], sizes)).astype(int)
            whole_HW = np.zeros((scan.height, scan.width), bool)
            whole_HW[y : y + h, x : x + w] = inside_HW
            np.testing.assert_array_equal(whole_HW, mask_of(lesion.rle))
    assert len(ids) == len({*ids})


def test_fiftyones_boxes_and_crowds(dataset: Path, tmp_path: Path) -> None:
    opened = open_dataset(dataset)
    scan = next(s for s in opened.scans if s.lesions)
    (lesion, *_) = scan.lesions
    changed = replace(lesion, crowd=True, rle=None)
    scans = tuple(replace(scan, lesions=(changed,)) if s is scan else s for s in opened.scans)
    write_fiftyone(replace(opened, scans=scans), tmp_path, tmp_path, lambda done, total: None)
    samples = json.loads((tmp_path / "samples.json").read_text())["samples"]
    (found,) = next(s for s in samples if scan.scan_id in s["filepath"])["ground_truth"][
        "detections"
    ]
    assert found["iscrowd"]
    assert "mask" not in found
    x1, y1, x2, y2 = lesion.box_xyxy
    shares = [
        x1 / scan.width,
        y1 / scan.height,
        (x2 - x1) / scan.width,
        (y2 - y1) / scan.height,
    ]
    assert found["bounding_box"] == pytest.approx(shares)


@pytest.mark.skipif("FIFTYONE_DATABASE_URI" not in os.environ, reason="needs a MongoDB server")
def test_fiftyone_itself_accepts_it(held_out: Path, tmp_path: Path) -> None:
    """FiftyOne is no dependency; where it and a server are, it is asked."""
    theirs = pytest.importorskip("fiftyone")
    export(held_out, tmp_path / "fiftyone", "fiftyone")
    opened = open_dataset(held_out)
    read = theirs.Dataset.from_dir(
        dataset_dir=str(tmp_path / "fiftyone"), dataset_type=theirs.types.FiftyOneDataset
    )
    assert {Path(s.filepath).stem: s.patient_id for s in read} == {
        s.scan_id: s.patient_id for s in opened.scans
    }
    for fold in range(3):
        tagged = {Path(s.filepath).stem for s in read if f"fold{fold}" in s.tags}
        assert tagged == split_of(opened, fold)[1]
    scan = next(s for s in opened.scans if s.lesions)
    sample = next(s for s in read if Path(s.filepath).stem == scan.scan_id)
    for found, lesion in zip(sample.ground_truth.detections, scan.lesions):
        whole_HW = found.to_segmentation(frame_size=(scan.width, scan.height)).mask > 0
        np.testing.assert_array_equal(whole_HW, mask_of(lesion.rle))


@pytest.mark.parametrize("to", ["coco", "yolo", "nnunet", "cvat", "fiftyone"])
def test_no_file_names_a_patient_or_where_the_scans_were(
    to: str, cohort: Path, held_out: Path, tmp_path: Path
) -> None:
    export(held_out, tmp_path / "out", to)
    assert not list((tmp_path / "out").rglob("*PHANTOM*"))
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"PHANTOM" not in content
            assert str(cohort).encode() not in content


def test_crowds_are_ignored_by_nnunet_and_left_out_of_yolo(dataset: Path, tmp_path: Path) -> None:
    opened = open_dataset(dataset)
    scan = next(s for s in opened.scans if len(s.lesions) > 1)
    first, *rest = scan.lesions
    crowded = replace(scan, lesions=(replace(first, crowd=True), *rest))
    label_HW, twice = formats._label_map(crowded, opened.categories)
    inside_HW = mask_of(first.rle)
    others_HW = np.any([mask_of(le.rle) for le in rest], axis=0)
    assert not twice
    assert set(np.unique(label_HW[inside_HW & ~others_HW])) == {len(opened.categories) + 1}
    scans = tuple(crowded if s is scan else s for s in opened.scans)
    changed = replace(opened, scans=scans)
    written = formats.write_yolo(changed, tmp_path, tmp_path, lambda done, total: None)
    lines = (tmp_path / f"labels/{scan.scan_id}.txt").read_text().splitlines()
    assert len(lines) == len(rest)
    assert written.notes == (
        "1 crowds are left out, as YOLO's labels have none: they are background there",
    )


def test_what_cannot_be_is_refused(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(WrongInput) as error:
        export(dataset, tmp_path / "there", "tfrecord")
    assert [p.partition(":")[0] for p in error.value.problems] == [
        "--to",
        f"--out {tmp_path / 'there'}",
    ]
    for words in (["--to", "coco"], ["--out", "x"], [], ["--optuna", "x", "--to", "coco"]):
        assert main(["export", str(dataset), *words]) == 2


def test_a_failed_export_leaves_nothing(dataset: Path, tmp_path: Path) -> None:
    """Boxes alone are no masks."""
    raw = tmp_path / "raw"
    export(dataset, raw, "coco")
    for path in raw.glob("*.json"):
        coco = json.loads(path.read_text())
        for annotation in coco["annotations"]:
            annotation.pop("segmentation", None)
        if path.name == "annotations.json":
            path.write_text(json.dumps(coco))
        else:
            path.unlink()
    boxes = prepare(raw, tmp_path / "boxes", folds=3, key=tmp_path / "key").path
    with pytest.raises(WrongInput, match="needs a mask of every lesion"):
        export(boxes, tmp_path / "out", "nnunet")
    assert not (tmp_path / "out").exists()


def test_a_study_is_a_file_of_optunas(tmp_path: Path) -> None:
    choice = [["malignant"], ["malignant", "benign"]]
    pretend(
        tmp_path / "s",
        name="lists",
        space={"categories": {"choice": choice}, "lr0": {"choice": [0.01]}},
        search={"trials": 2, "sampler": "grid"},
    )
    file = tmp_path / "optuna.log"
    assert main(["export", str(tmp_path / "s"), "--optuna", str(file)]) == 0
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
    kept = optuna.load_study(study_name="lists", storage=storage)
    assert {t.params["categories"] for t in kept.trials} == {
        '["malignant"]',
        '["malignant", "benign"]',
    }
    assert [t.state.name for t in kept.trials] == ["COMPLETE"] * 2
    # Their times are those of the journal, not of the export.
    first, second = (StudyFolder(tmp_path / "s").state.configurations[f"c00{n}"] for n in (0, 1))
    assert [t.datetime_start.timestamp() for t in kept.trials] == pytest.approx(
        [first.began, second.began], abs=1e-5
    )
    assert kept.trials[0].datetime_complete.timestamp() == pytest.approx(first.ended, abs=1e-5)
    assert first.began < first.ended <= second.began < second.ended
    assert main(["export", str(tmp_path / "s"), "--optuna", str(file)]) == 2
