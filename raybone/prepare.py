"""Raw scans and annotations to a checked dataset folder."""

from __future__ import annotations

import csv
import hashlib
import hmac
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from raybone.data.annotations import lesions_of_mask, read_coco
from raybone.data.dataset import DatasetWriter
from raybone.data.dicom import Frame, NotTaken, read_frames
from raybone.data.folds import assign_folds
from raybone.data.preprocess import STRIDE
from raybone.records import Array, Lesion, Scan, WrongInput

Layout = Literal["auto", "dicom", "coco", "masks"]
IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class Source:
    """One input file with what its layout says about it."""

    path: Path
    patient: str | None = None
    view: str = "unknown"
    pixel_mm: float | None = None
    lesions: tuple[Lesion, ...] = ()
    mask: Path | None = None


@dataclass(frozen=True)
class Prepared:
    """What ``prepare`` made: the content of dataset.json, and the inputs that were not taken."""

    path: Path
    meta: dict[str, Any]
    rejected: tuple[tuple[str, int, str], ...]


def prepare(source: Path | str, dataset: Path | str, layout: Layout = "auto", modality: str | None = "NM",
            folds: int = 5, key: Path | str | None = None,
            seed: int = 0,
            progress: Callable[[int, int], None] = lambda done, total: None) -> Prepared:
    """Read every scan under ``source`` and write the dataset folder, whole or not at all.

    Args:
        source: a folder; ``dicom`` takes every DICOM file in it with an annotations.json (COCO) beside when there is
            one, ``coco`` the images which annotations.json names, ``masks`` the pairs images/NAME and masks/NAME.
        dataset: the folder to make; it must not exist.
        modality: for DICOM, the only Modality taken; None takes all.
        folds: cross-validation folds; fewer when there are fewer patients.
        key: file with the key of the pseudonyms; made (mode 0600) when absent. The map from inputs to paths is
            written beside it. Default: ``$XDG_CONFIG_HOME/raybone/key``.
        seed: deals patients of equal burden out to the folds in another order.
        progress: called with (inputs done, inputs in all).
    Raises:
        WrongInput: no such folder, nothing to take, or the dataset exists.
    """
    source, dataset = Path(source), Path(dataset)
    if not source.is_dir():
        raise WrongInput(f"prepare: {source} must be a folder of scans, but there is none; check the path")
    if dataset.exists():
        raise WrongInput(f"prepare: {dataset} must not exist yet; choose another name or remove it")
    if folds < 2:
        raise WrongInput(f"prepare: folds must be at least 2, got {folds}; 5 is usual")
    found = layout if layout != "auto" else _layout_of(source)
    secret = _secret(Path(key) if key else _default_key())
    warnings: list[str] = []
    inputs = {"dicom": _dicom_sources, "coco": _coco_sources, "masks": _mask_sources}[found](source, warnings)
    partial = dataset.parent / f".{dataset.name}.{os.getpid()}.partial"
    try:
        content = _write(inputs, partial, found, modality, (folds, seed), secret, warnings, progress)
        sources = content.pop("sources")
        rejected = content.pop("rejected")
        _write_map(Path(key) if key else _default_key(), content["hash"], sources)
        partial.rename(dataset)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Prepared(dataset, content, tuple(rejected))


def _write(inputs: list[Source], partial: Path, layout: str, modality: str | None, split: tuple[int, int],
           secret: bytes, warnings: list[str], progress: Callable[[int, int], None]) -> dict[str, Any]:
    writer = DatasetWriter(partial)
    rejected: list[tuple[str, int, str]] = []
    sources: list[tuple[str, str, str]] = []
    unknown, (folds, seed) = 0, split
    for number, item in enumerate(inputs, 1):
        input_id = _input_id(item.path)
        try:
            for frame, lesions in _frames(item, modality, warnings):
                unknown += not frame.patient
                study = f"study:{frame.study}" if frame.study else f"file:{input_id}"
                patient = frame.patient or study
                scan = writer.add(frame.counts_HW, Scan(
                    "", _pseudonym(secret, patient), frame.view, 0, 0, frame.pixel_mm, 0, 0.0, frame.site, lesions))
                sources.append((input_id, scan.scan_id, str(item.path.resolve())))
        except NotTaken as reason:
            rejected.append((input_id, item.path.stat().st_size if item.path.exists() else 0, str(reason)))
            sources.append((input_id, "", str(item.path.resolve())))
        progress(number, len(inputs))
    if not writer.scans:
        why = "; ".join(f"{n} x {reason}" for reason, n in Counter(r for _, _, r in rejected).most_common(3))
        raise WrongInput(f"prepare: no scan was taken from {len(inputs)} inputs ({why or 'the folder holds none'}); "
                         "see --layout and --modality")
    patients = {s.patient_id for s in writer.scans}
    if len(patients) < folds:
        warnings.append(f"{len(patients)} patients are fewer than {folds} folds: folds = {len(patients)}")
    if unknown:
        warnings.append(f"{unknown} scans have no patient id: each study or file counts as a patient, so leakage "
                        "between folds cannot be excluded")
    content = writer.patient_content()
    fold_of = assign_folds(writer.scans, content, folds, seed)
    categories = sorted({le.category for s in writer.scans for le in s.lesions},
                        key=lambda c: (c != "malignant", c))
    meta = {
        "layout": layout, "patients_known": unknown == 0, "categories": categories,
        "preprocessing": {"values": "modality values, negatives clipped to 0", "crop": None, "high": "99.9 percentile"},
        "counts": {"scans": len(writer.scans), "patients": len(patients),
                   "lesions": sum(len(s.lesions) for s in writer.scans), "rejected": len(rejected),
                   "folds": len(set(fold_of.values()))},
        "warnings": warnings,
    }
    return {**writer.finish(fold_of, categories, meta, rejected), "sources": sources, "rejected": rejected}


def _frames(item: Source, modality: str | None, warnings: list[str]) -> Iterator[tuple[Frame, tuple[Lesion, ...]]]:
    """The frames of an input with the lesions that fit them."""
    if item.path.suffix.lower() in IMAGES:
        counts_HW = _image(item.path)
        lesions = item.lesions + (_mask_lesions(item.mask, counts_HW.shape, warnings) if item.mask else ())
        frames = [Frame(counts_HW, item.patient or "", item.view, item.pixel_mm, "unknown", "")]
    else:
        frames, lesions = read_frames(item.path, modality), item.lesions
    for frame in frames:
        if min(frame.counts_HW.shape) < STRIDE:
            raise NotTaken(f"is {frame.counts_HW.shape[0]}x{frame.counts_HW.shape[1]} pixels, under {STRIDE} a side")
    if lesions and len(frames) > 1:
        raise NotTaken("has several frames, and annotations do not say which they belong to")
    for frame in frames:
        height, width = frame.counts_HW.shape
        if any(le.rle and le.rle["size"] != [height, width] for le in lesions):
            raise NotTaken(f"is {height}x{width}, but its annotated masks have another size")
        inside = tuple(le for le in lesions if le.box_xyxy[2] <= width and le.box_xyxy[3] <= height)
        if len(inside) < len(lesions):
            warnings.append(f"{len(lesions) - len(inside)} boxes of a scan lie outside it and were left out")
        yield frame, inside


def _layout_of(source: Path) -> Literal["dicom", "coco", "masks"]:
    if (source / "images").is_dir() and (source / "masks").is_dir():
        return "masks"
    if (source / "annotations.json").is_file():
        lesions, _ = read_coco(source / "annotations.json")
        if any(Path(name).suffix.lower() in IMAGES for name in lesions):
            return "coco"
    return "dicom"


def _dicom_sources(source: Path, warnings: list[str]) -> list[Source]:
    path = source / "annotations.json"
    lesions, images = read_coco(path) if path.is_file() else ({}, {})
    files = sorted(p for p in source.rglob("*") if p.is_file() and p != path and p.name != "phantom.key")
    names = {str(p.relative_to(source).as_posix()) for p in files}
    lost = [n for n in images if n not in names]
    if lost:
        warnings.append(f"{len(lost)} annotated images are not there")
    return [Source(p, lesions=tuple(lesions.get(str(p.relative_to(source).as_posix()), ()))) for p in files]


def _coco_sources(source: Path, warnings: list[str]) -> list[Source]:  # noqa: ARG001
    lesions, images = read_coco(source / "annotations.json")
    return [Source(source / name, str(i["patient_id"]) if i.get("patient_id") else None,
                   i["view"] if i.get("view") in ("anterior", "posterior") else "unknown",
                   float(i["pixel_mm"]) if i.get("pixel_mm") else None, tuple(lesions[name]))
            for name, i in images.items()]


def _mask_sources(source: Path, warnings: list[str]) -> list[Source]:
    images, masks = (sorted(p for p in (source / d).glob("*") if p.suffix.lower() in IMAGES)
                     if (source / d).is_dir() else [] for d in ("images", "masks"))
    mask_of = {p.stem: p for p in masks}
    without = [p for p in images if p.stem not in mask_of]
    if without:
        warnings.append(f"{len(without)} images have no mask: they count as scans without lesion")
    return [Source(p, mask=mask_of.get(p.stem)) for p in images]


def _image(path: Path) -> Array:
    """An image file as counts uint16, shape (H, W); colour that is grey is taken as grey, other colour as luminance."""
    try:
        with Image.open(path) as image:
            values = np.asarray(image if image.mode in ("L", "I", "F") or image.mode.startswith("I;16")
                                else image.convert("RGB"))
    except FileNotFoundError:
        raise NotTaken("is annotated, but the file is not there") from None
    except Exception:
        raise NotTaken("is not an image that can be read") from None
    if values.ndim == 3:
        grey = bool((values == values[..., :1]).all())
        values = values[..., 0] if grey else np.rint(values[..., :3] @ np.array([0.299, 0.587, 0.114]))
    if not np.isfinite(values).all() or values.max() <= 0 or values.max() > 65535:
        raise NotTaken("is empty, or holds values that are not finite or above 65535")
    return np.rint(np.clip(values, 0, None)).astype(np.uint16)


def _mask_lesions(path: Path, shape: tuple[int, ...], warnings: list[str]) -> tuple[Lesion, ...]:
    """Lesions of a mask image: the brighter half of its range is lesion, so that compression noise is not."""
    mask_HW = _mask_values(path)
    if mask_HW.shape != shape:
        raise NotTaken(f"is {shape[0]}x{shape[1]} but its mask is {mask_HW.shape[0]}x{mask_HW.shape[1]}")
    top = int(mask_HW.max())
    if set(np.unique(mask_HW).tolist()) - {0, top}:
        note = "masks with in-between values: pixels above half of the brightest value count as lesion"
        if note not in warnings:
            warnings.append(note)
    return lesions_of_mask(mask_HW > top / 2, "malignant") if top else ()


def _mask_values(path: Path) -> Array:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L"))
    except Exception:
        raise NotTaken("has a mask that cannot be read") from None


def _input_id(path: Path) -> str:
    """Hash of the content of an input; of its path when it has none."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        digest.update(str(path).encode())
    return "i" + digest.hexdigest()[:16]


def _pseudonym(secret: bytes, patient: str) -> str:
    return "p" + hmac.new(secret, patient.encode(), hashlib.sha256).hexdigest()[:12]


def _default_key() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "raybone" / "key"


def _secret(path: Path) -> bytes:
    """The key's bytes; a new random key, readable by its owner alone, when there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    content = path.read_bytes().strip()
    if not content:
        raise WrongInput(f"prepare: the key file {path} must not be empty; remove it to have one made")
    return content


def _write_map(key: Path, dataset_hash: str, sources: list[tuple[str, str, str]]) -> None:
    """input_id, scan_id and path of every input, beside the key and for its owner alone."""
    path = key.parent / f"{key.name}.{dataset_hash}.sources.csv"
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("input_id", "scan_id", "path"))
        writer.writerows(sources)
