"""Files of COCO, Ultralytics and nnU-Net, as their own checks want them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from raybone.data.annotations import mask_of, to_coco
from raybone.data.dataset import Dataset
from raybone.data.folds import TEST
from raybone.data.preprocess import to_intensity
from raybone.errors import WrongInput
from raybone.storage import fold_name
from raybone.types import Array, Scan

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Written:
    """What was written: scans, the folds of their patients, and what the format could not hold, in
    words.
    """

    scans: int
    folds: int
    notes: tuple[str, ...]


def write_coco(dataset: Dataset, out: Path, _: Path, progress: Progress) -> Written:
    """images/SCAN.png, annotations.json of all, and foldK_train.json, foldK_val.json and test.json
    of some.
    """
    (out / "images").mkdir()
    scans = annotated(dataset.scans)
    for number, scan in enumerate(scans, 1):
        write_picture(out / "images" / f"{scan.scan_id}.png", dataset.counts(scan))
        progress(number, len(scans))
    parts = {"annotations": scans}
    for fold, training, validation in _folds(dataset):
        parts |= {f"{fold_name(fold)}_train": training, f"{fold_name(fold)}_val": validation}
    if dataset.test:
        parts["test"] = annotated(dataset.test)
    for name, own in parts.items():
        coco = to_coco(own, dataset.categories)
        for image, scan in zip(coco["images"], own):
            image.update(
                file_name=f"{scan.scan_id}.png",
                patient_id=scan.patient_id,
                view=scan.view,
                pixel_mm=scan.pixel_mm,
            )
        (out / f"{name}.json").write_text(json.dumps(coco), encoding="utf-8")
    return Written(len(scans), dataset.folds, ())


def write_yolo(dataset: Dataset, out: Path, final: Path, progress: Progress) -> Written:
    """images/SCAN.png with labels/SCAN.txt, and foldK.yaml for ``yolo train data=foldK.yaml``, with
    lists of its scans. Each YAML says where the folder is, in ``path``: that is to be changed when
    it is moved.

    Args:
        final: where ``out`` will be, as Ultralytics wants full paths.
    """
    for folder in ("images", "labels"):
        (out / folder).mkdir()
    scans, crowds = annotated(dataset.scans), 0
    for number, scan in enumerate(scans, 1):
        write_picture(out / "images" / f"{scan.scan_id}.png", grey(dataset.counts(scan), scan.high))
        lines = []
        for lesion in scan.lesions:
            if lesion.crowd:
                crowds += 1
                continue
            x1, y1, x2, y2 = lesion.box_xyxy
            shares = (
                (x1 + x2) / 2 / scan.width,
                (y1 + y2) / 2 / scan.height,
                (x2 - x1) / scan.width,
                (y2 - y1) / scan.height,
            )
            label = dataset.categories.index(lesion.category)
            lines.append(f"{label} {' '.join(f'{share:.6f}' for share in shares)}\n")
        (out / "labels" / f"{scan.scan_id}.txt").write_text("".join(lines), encoding="ascii")
        progress(number, len(scans))
    test = _listed(out, "test", annotated(dataset.test)) if dataset.test else {}
    for fold, training, validation in _folds(dataset):
        content = {
            "path": str(final),
            **_listed(out, "train", training, fold),
            **_listed(out, "val", validation, fold),
            **test,
            "names": dict(enumerate(dataset.categories)),
            "channels": 1,
        }
        (out / f"{fold_name(fold)}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    told = f"{crowds} crowds are left out, as YOLO's labels have none: they are background there"
    return Written(len(scans), dataset.folds, (told,) if crowds else ())


def write_nnunet(dataset: Dataset, out: Path, _: Path, progress: Progress) -> Written:
    """A raw dataset of nnU-Net v2 in 2D: imagesTr, labelsTr, dataset.json, splits_final.json (to be
    copied into its preprocessed folder), and imagesTs and labelsTs of the test group.

    Where categories overlap a pixel is of the first of them; crowds are ``ignore``.
    """
    scans = annotated(dataset.scans)
    if boxes := sum(le.rle is None for s in scans for le in s.lesions):
        raise WrongInput(
            f"--to nnunet: needs a mask of every lesion, but {boxes} have a box alone; choose coco "
            "or yolo"
        )
    names, overlaps = dataset.categories, 0
    crowd = any(le.crowd for s in scans for le in s.lesions)
    for number, scan in enumerate(scans, 1):
        test = dataset.fold_of[scan.patient_id] == TEST
        images, labels = (out / f"{kind}{'Ts' if test else 'Tr'}" for kind in ("images", "labels"))
        images.mkdir(exist_ok=True)
        labels.mkdir(exist_ok=True)
        label_HW, twice = _label_map(scan, names)
        overlaps += twice
        write_picture(images / f"{scan.scan_id}_0000.png", dataset.counts(scan))
        write_picture(labels / f"{scan.scan_id}.png", label_HW)
        progress(number, len(scans))
    trained = [s for s in scans if dataset.fold_of[s.patient_id] != TEST]
    numbers: dict[str, int] = {"background": 0, **{name: n for n, name in enumerate(names, 1)}}
    content = {
        "channel_names": {"0": "counts"},
        "labels": numbers | ({"ignore": len(names) + 1} if crowd else {}),
        "numTraining": len(trained),
        "file_ending": ".png",
    }
    (out / "dataset.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    splits = [
        {"train": [s.scan_id for s in training], "val": [s.scan_id for s in validation]}
        for _, training, validation in _folds(dataset)
    ]
    (out / "splits_final.json").write_text(json.dumps(splits, indent=1), encoding="utf-8")
    told = f"{overlaps} scans have pixels of several categories, of which the first is kept"
    return Written(len(scans), dataset.folds, (told,) if overlaps else ())


def write_picture(path: Path, image_HW: Array) -> None:
    """Write a PNG; OpenCV itself is silent where a disk is full."""
    path.write_bytes(cv2.imencode(".png", image_HW)[1].tobytes())


def grey(counts_HW: Array, high: float) -> Array:
    """Counts as a network sees them, uint8."""
    return np.rint(to_intensity(counts_HW, high) * 255).astype(np.uint8)


def annotated(scans: Sequence[Scan]) -> list[Scan]:
    """Those of which it is known what lesions they have."""
    return [s for s in scans if s.annotated]


def _folds(dataset: Dataset) -> Iterator[tuple[int, list[Scan], list[Scan]]]:
    """Each fold with its scans to train on and to validate on."""
    for fold in range(dataset.folds):
        out = (fold, TEST)
        training = [s for s in dataset.scans if dataset.fold_of[s.patient_id] not in out]
        yield fold, annotated(training), annotated(dataset.validation(fold))


def _listed(out: Path, part: str, scans: Sequence[Scan], fold: int | None = None) -> dict[str, str]:
    """Write the list of a part's images; returns it as foldK.yaml names it."""
    name = f"{part}.txt" if fold is None else f"{fold_name(fold)}_{part}.txt"
    lines = (f"./images/{s.scan_id}.png\n" for s in scans)
    (out / name).write_text("".join(lines), encoding="ascii")
    return {part: name}


def _label_map(scan: Scan, names: Sequence[str]) -> tuple[Array, bool]:
    """The number of each pixel's category, uint8, and whether some pixels have several."""
    label_HW, twice = np.zeros((scan.height, scan.width), np.uint8), False
    known: list[tuple[int, Any]] = [
        (len(names) + 1 if le.crowd else names.index(le.category) + 1, le.rle)
        for le in scan.lesions
    ]
    for number, rle in sorted(known, key=lambda item: item[0]):
        inside_HW = mask_of(rle)
        if number <= len(names):  # a lesion inside a crowd is a lesion
            twice |= bool((inside_HW & (label_HW > 0) & (label_HW != number)).any())
        label_HW[inside_HW & (label_HW == 0)] = number
    return label_HW, twice
