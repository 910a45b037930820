"""A bundle's findings on new scans: prepared as its training scans were, and told in pixels of the source frames."""

from __future__ import annotations

import csv
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raybone.bundle import Bundle, open_bundle
from raybone.data.annotations import lesions_of_mask, mask_of, rle_of
from raybone.data.cache import drop
from raybone.data.dataset import Dataset, open_dataset
from raybone.data.dicom import is_dicom
from raybone.data.intake import Origin
from raybone.data.layouts import sources_of
from raybone.data.likeness import oddities
from raybone.data.loader import validation_loader
from raybone.data.parts import TargetSamples
from raybone.data.segmentation import write_segmentation
from raybone.data.steps import part_of
from raybone.ensemble import agreed, outputs
from raybone.metrics.calibration import calibrated
from raybone.metrics.lesions import THRESHOLD
from raybone.models._classifier import ClassifierConfig
from raybone.overlay import overlay
from raybone.prepare import Prepared, prepare
from raybone.records import Array, Prediction, Scan, WrongInput
from raybone.samples import scored_samples

COLUMNS = ("number", "source", "frame", "category", "x1", "y1", "x2", "y2", "score", "probability", "sd", "area_px",
           "area_mm2", "oddities")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Found:
    """One lesion, or what a classifier says of one or of a whole scan.

    box: xyxy in pixels of the frame. score: the members' mean; probability: the same, calibrated, or None where the
    bundle has no calibration; sd: standard deviation over the members; area in pixels and mm2 of a mask.
    """

    category: str
    box: tuple[float, ...]
    score: float
    probability: float | None
    sd: float
    area_px: int | None = None
    area_mm2: float | None = None


@dataclass
class Frame:
    """What is known of one frame of a source: the numbers of its files, and its findings.

    source: path of the input; frame: 0-based; notes: what was not written, and why.
    """

    number: int
    source: str
    frame: int
    view: str
    height: int
    width: int
    pixel_mm: float | None
    flags: list[str]
    oddities: list[str]
    findings: list[Found] = field(default_factory=list)
    masks: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Predicted:
    """The frames with their findings, the inputs that were not taken (source, reason), and the seconds of each part."""

    frames: tuple[Frame, ...]
    rejected: tuple[tuple[str, str], ...]
    reading: float
    predicting: float
    drawing: float


def predict(bundle: Path | str, scans: Sequence[str], out: Path | str, modality: str | None = "NM",
            least: float = 0.1, progress: Progress = lambda done, total: None) -> Predicted:
    """Write predictions.json, predictions.csv, and of each frame an overlay NNNN.png and, where the source is DICOM and
    the model a segmenter, NNNN.seg.dcm.

    The files name the sources, and a Segmentation object its patient: they are to be kept as the scans are. The scans
    themselves are prepared in a folder that is removed, under a key that is thrown away.

    Args:
        scans: files, folders, zip archives: whatever ``prepare`` reads. A classifier of lesions needs their
            annotations beside them.
        modality: for DICOM, the only Modality taken; None takes all.
        least: lowest score of a detector's boxes.
    Raises:
        WrongInput: no bundle, no scans that could be read, or ``out`` exists.
    """
    opened, out = open_bundle(bundle), Path(out)
    if out.exists():
        raise WrongInput(f"--out {out}: must not exist yet; choose another name or remove it")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    members = opened.members(device)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="raybone-predict-") as place:
        root = _gathered(scans, Path(place))
        made = _prepared(root, Path(place), opened, modality, progress)
        dataset = _windowed(open_dataset(made.path), opened)
        read = time.monotonic()
        try:
            frames = _frames(dataset, made, root, scans)
            _fill(frames, dataset, opened, members, device, least, progress)
            predicted = time.monotonic()
            out.mkdir(parents=True)
            for number, (origins, frame) in enumerate(frames, 1):
                _draw(out, dataset, origins, frame, opened)
                progress(number, len(frames))
        finally:
            drop(dataset.hash)
    known = {input_id: _called(path, root, scans) for input_id, _, path in made.sources}
    result = Predicted(tuple(f for _, f in frames), tuple((known.get(i, i), why) for i, _, why in made.rejected),
                       read - began, predicted - read, time.monotonic() - predicted)
    _write(out, opened, result)
    return result


def _gathered(scans: Sequence[str], place: Path) -> Path:
    """One folder, or an archive, that holds all that was given."""
    missing = [s for s in scans if not Path(s).exists()]
    if missing:
        raise WrongInput(*(f"predict {s}: must be a file or folder of scans, but is not there; check the path"
                           for s in missing))
    if len(scans) == 1 and Path(scans[0]).is_dir():
        return Path(scans[0])
    root = place / "scans"
    for number, scan in enumerate(scans):
        (root / str(number)).mkdir(parents=True)
        (root / str(number) / Path(scan).resolve().name).symlink_to(Path(scan).resolve())
    return root


def _prepared(root: Path, place: Path, bundle: Bundle, modality: str | None, progress: Progress) -> Prepared:
    found = sources_of(root, "auto")[0]
    # Scans that nothing annotates may be DICOM or images; the layout of that name would take DICOM alone.
    layout: Any = "labelme" if found == "dicom" and not (root / "annotations.json").is_file() else found
    try:
        return prepare(root, place / "dataset", layout, modality, 2, place / "key", progress=progress,
                       steps=bundle.meta["preprocessing"]["steps"])
    except WrongInput as error:
        raise WrongInput(*(p.replace("prepare: ", "predict: ").replace("--layout and ", "") for p in error.problems)
                         ) from None


def _windowed(dataset: Dataset, bundle: Bundle) -> Dataset:
    """The display window of the training scans, where they shared one."""
    window = bundle.meta["preprocessing"]["window"]
    return replace(dataset, scans=tuple(replace(s, high=window) for s in dataset.scans)) if window else dataset


def _called(path: str, root: Path, scans: Sequence[str]) -> str:
    """A source by the name that it was given by."""
    if len(scans) == 1 and Path(scans[0]).is_dir():
        return path
    number, *below = Path(path).relative_to(root).parts
    return str(Path(scans[int(number)], *below[1:]))


def _frames(dataset: Dataset, made: Prepared, root: Path, scans: Sequence[str]) -> list[tuple[list[Origin], Frame]]:
    """Every frame of every source, in order, with the parts of scans that cover it."""
    by_id = {s.scan_id: s for s in dataset.scans}
    parts: dict[tuple[str, int], list[Origin]] = {}
    for origin in sorted(made.origins, key=lambda o: (o.name, o.frame)):
        parts.setdefault((origin.name, origin.frame), []).append(origin)
    frames = []
    for number, ((name, frame), origins) in enumerate(parts.items(), 1):
        scan, first = by_id[origins[0].scan_id], origins[0]
        frames.append((origins, Frame(number, _called(str(root / name), root, scans), frame, scan.view, first.height,
                                      first.width, scan.pixel_mm, [f for f in scan.flags if f != "unannotated"], [])))
    return frames


def _fill(frames: Sequence[tuple[list[Origin], Frame]], dataset: Dataset, bundle: Bundle,
          members: Sequence[torch.nn.Module], device: torch.device, least: float, progress: Progress) -> None:
    """Give each frame its findings."""
    config, task = bundle.config, bundle.model.task
    scans = list(dataset.scans)
    if isinstance(config, ClassifierConfig) and config.target:  # which is not known yet
        scans = [replace(s, labels=((config.target, "0"),)) for s in scans]
    samples = scored_samples(dataset, scans, bundle.model, config)
    loader = validation_loader(samples, 4, 0, 1, 0)
    canvases: dict[int, _Canvas] = {f.number: _Canvas(f) for _, f in frames}
    parts_of: dict[str, list[tuple[Origin, Frame]]] = {}
    for origins, frame in frames:
        for origin in origins:
            parts_of.setdefault(origin.scan_id, []).append((origin, frame))
    for scan in scans:
        odd = oddities(dataset.counts(scan), scan.high, bundle.meta["likeness"])
        for _, frame in parts_of[scan.scan_id]:
            frame.oddities = list(dict.fromkeys([*frame.oddities, *odd]))
    if task == "classification" and not len(samples):
        raise WrongInput("predict: this bundle says of lesions what they are, but no scan has annotated ones; give "
                         "annotations beside the scans, as `raybone prepare` reads them")
    for number, (place, predictions) in enumerate(outputs(members, samples, loader, device), 1):
        prediction, sd = agreed(predictions)
        if task == "detection":
            keep_N = prediction.scores_N >= least
            prediction = Prediction(prediction.boxes_N4[keep_N], prediction.scores_N[keep_N],
                                    prediction.labels_N[keep_N])
            sd = sd[keep_N]
        scan = samples.scans[samples.items[place][0] if isinstance(samples, TargetSamples) else place]
        for origin, frame in parts_of[scan.scan_id]:
            if isinstance(samples, TargetSamples):
                lesion = samples.items[place][1]
                box = scan.lesions[lesion].box_xyxy if lesion >= 0 else (0, 0, scan.width, scan.height)
                prediction = replace(prediction, boxes_N4=np.array([box], np.float32), labels_N=np.zeros(1, np.int64))
            canvases[frame.number].add(origin, prediction, sd)
        progress(number, len(samples))
    for _, frame in frames:
        canvases[frame.number].finish(bundle)


class _Canvas:
    """A frame on which the predictions on all scans that cover it come together; where they overlap, their mean."""

    def __init__(self, frame: Frame) -> None:
        self.frame, self.shape = frame, (frame.height, frame.width)
        self.sums_2CHW: Array | None = None
        self.times_HW = np.zeros(self.shape, np.float32)
        self.boxes: list[tuple[tuple[float, ...], float, float, int]] = []

    def add(self, origin: Origin, prediction: Prediction, sd: Array) -> None:
        """Take in what was predicted on one scan, and its spread."""
        if prediction.mask_CHW is not None:
            parts_2CHW = np.stack([[part_of(v_HW, origin.y, origin.x, *self.shape) for v_HW in values_CHW]
                                   for values_CHW in (prediction.mask_CHW, sd)])
            self.sums_2CHW = parts_2CHW if self.sums_2CHW is None else self.sums_2CHW + parts_2CHW
            seen_HW = np.ones(prediction.mask_CHW.shape[1:], np.float32)
            self.times_HW += part_of(seen_HW, origin.y, origin.x, *self.shape)
            return
        shift_4 = np.array([origin.x, origin.y] * 2, np.float32)
        limit_4 = np.array([self.shape[1], self.shape[0]] * 2, np.float32)
        for box_4, score, spread, label in zip(prediction.boxes_N4 - shift_4, prediction.scores_N, sd,
                                               prediction.labels_N):
            x, y = (box_4[:2] + box_4[2:]) / 2
            if 0 <= x < self.shape[1] and 0 <= y < self.shape[0]:
                box = tuple(round(float(v), 2) for v in np.clip(box_4, 0, limit_4))
                self.boxes.append((box, float(score), float(spread), int(label)))

    def finish(self, bundle: Bundle) -> None:
        """The frame's findings, best first."""
        names, found = bundle.meta["categories"], list[Found]()
        if self.sums_2CHW is not None:
            mean_2CHW = self.sums_2CHW / np.maximum(self.times_HW, 1)
            for name, p_HW, sd_HW in zip(names, *mean_2CHW):
                self.frame.masks[name] = rle_of(p_HW >= THRESHOLD)
                found += list(self._lesions(name, p_HW, sd_HW, bundle))
        found += [Found(names[label], box, round(score, 5), _probability(bundle, np.array([score])), round(sd, 5))
                  for box, score, sd, label in self.boxes]
        self.frame.findings = sorted(found, key=lambda f: -f.score)

    def _lesions(self, name: str, p_HW: Array, sd_HW: Array, bundle: Bundle) -> Iterator[Found]:
        for lesion in lesions_of_mask(p_HW >= THRESHOLD, name):
            inside_HW = mask_of(lesion.rle or {})
            area, mm = int(inside_HW.sum()), self.frame.pixel_mm
            yield Found(name, lesion.box_xyxy, round(float(p_HW[inside_HW].mean()), 5),
                        _probability(bundle, p_HW[inside_HW]), round(float(sd_HW[inside_HW].mean()), 5), area,
                        round(area * mm * mm, 1) if mm else None)


def _probability(bundle: Bundle, score_N: Array) -> float | None:
    """Mean of the calibrated scores, None without a calibration."""
    known = bundle.meta["calibration"]
    if "slope" not in known:
        return None
    return round(float(calibrated(score_N, known["slope"], known["intercept"]).mean()), 5)


def _draw(out: Path, dataset: Dataset, origins: Sequence[Origin], frame: Frame, bundle: Bundle) -> None:
    """The pictures and DICOM objects of a frame, as the model saw it."""
    by_id: Mapping[str, Scan] = {s.scan_id: s for s in dataset.scans}
    seen_HW = np.zeros((frame.height, frame.width), np.uint16)
    for origin in origins:
        part_HW = part_of(dataset.counts(by_id[origin.scan_id]), origin.y, origin.x, frame.height, frame.width)
        seen_HW = np.maximum(seen_HW, part_HW)
    names = bundle.meta["categories"]
    finding = {"masks": [frame.masks[n] for n in names]} if frame.masks else {
        "boxes": [f.box for f in frame.findings], "scores": [f.score for f in frame.findings],
        "labels": [names.index(f.category) for f in frame.findings]}
    picture = out / f"{frame.number:04d}.png"
    picture.write_bytes(overlay(seen_HW, by_id[origins[0].scan_id].high, finding, (), names))
    frame.files.append(picture.name)
    if bundle.model.task == "segmentation":
        _segment(out, frame, bundle)


def _segment(out: Path, frame: Frame, bundle: Bundle) -> None:
    source, target = Path(frame.source), out / f"{frame.number:04d}.seg.dcm"
    masks = {name: mask_of(rle) for name, rle in frame.masks.items()}
    if not source.is_file() or not is_dicom(source.read_bytes()[:132]):
        frame.notes.append("no DICOM Segmentation: the source is no DICOM file that lies open")
    elif not any(m.any() for m in masks.values()):
        frame.notes.append("no DICOM Segmentation: nothing was found")
    else:
        try:
            write_segmentation(source, frame.frame, masks, bundle.model.name, target)
            frame.files.append(target.name)
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # what highdicom says of an unusual header
            frame.notes.append(f"no DICOM Segmentation: {type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _write(out: Path, bundle: Bundle, result: Predicted) -> None:
    head = {"bundle": bundle.meta["name"], "model": bundle.model.name, "kind": bundle.meta["kind"],
            "members": len(bundle.meta["members"]), "categories": bundle.meta["categories"],
            "note": "Research software: not a medical device."}
    content = {**head, "scans": [asdict(f) for f in result.frames],
               "rejected": [{"source": s, "reason": r} for s, r in result.rejected]}
    (out / "predictions.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    with (out / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for frame in result.frames:
            common = {"number": frame.number, "source": frame.source, "frame": frame.frame,
                      "oddities": "; ".join(frame.oddities)}
            rows = [{**common, **asdict(f), **dict(zip(("x1", "y1", "x2", "y2"), f.box))} for f in frame.findings]
            writer.writerows(rows or [common])  # a scan without findings was seen, too
