"""A bundle's findings on new scans: prepared as its training scans were, and told in pixels of the
source frames.
"""

from __future__ import annotations

import csv
import json
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raybone.data.annotations import mask_of
from raybone.data.cache import drop
from raybone.data.dataset import Dataset, open_dataset
from raybone.data.ingest.dicom.frames import is_dicom
from raybone.data.ingest.intake import REMARK_OF_FLAG, Origin
from raybone.data.ingest.layouts import sources_of
from raybone.data.ingest.prepare import Prepared, prepare
from raybone.data.ingest.steps import part_of
from raybone.data.loader import validation_loader
from raybone.data.overlay import overlay
from raybone.data.remote import own_cache
from raybone.data.tiles_and_targets import TargetSamples
from raybone.deploy.bundle import Bundle, open_bundle
from raybone.deploy.dicom_seg import write_segmentation
from raybone.deploy.ensemble import agreed, outputs
from raybone.deploy.frames import Canvas, Frame
from raybone.deploy.out_of_distribution import oddities
from raybone.errors import WrongInput
from raybone.models._classifier import ClassifierConfig
from raybone.private import put, workplace
from raybone.train.samples import scored_samples
from raybone.types import Prediction, Scan, safe_cell

COLUMNS = (
    "number",
    "source",
    "frame",
    "category",
    "x1",
    "y1",
    "x2",
    "y2",
    "score",
    "probability",
    "sd",
    "area_px",
    "area_mm2",
    "oddities",
)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Predicted:
    """What was found, and how long each part took, in seconds.

    frames: with their findings. rejected: inputs that were not taken (source, reason). remarks:
    rules applied to inputs that were. without: frames of DICOM sources whose findings could not be
    written as DICOM Segmentation.
    """

    frames: tuple[Frame, ...]
    rejected: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]
    without: int
    reading: float
    predicting: float
    drawing: float


def predict(
    bundle: Path | str,
    scans: Sequence[str],
    out: Path | str,
    modality: str | None = "NM",
    least: float = 0.1,
    progress: Progress = lambda done, total: None,
) -> Predicted:
    """Write predictions.json, predictions.csv, and of each frame an overlay NNNN.png and, where the
    source is DICOM and the model a segmenter, NNNN.seg.dcm; all of it, or nothing.

    The files name the sources, and a Segmentation object its patient: they are to be kept as the
    scans are. The scans themselves are prepared in a folder that is removed, under a key that is
    thrown away.

    Args:
        scans: files, folders, zip archives. A classifier of lesions needs their annotations beside
            them, in a folder.
        modality: for DICOM, the only Modality taken; None takes all.
        least: lowest score of a detector's boxes.
    Raises:
        WrongInput: no bundle, no scans that could be read, or ``out`` exists.
    """
    if "://" in str(out) or not 0 <= least <= 1:
        raise WrongInput(
            "predict: --out must be a folder of this machine and --least a score from 0 to 1, got "
            f"{out} and {least:g}; change that"
        )
    opened, out = open_bundle(bundle), Path(out)
    if out.exists():
        raise WrongInput(f"--out {out}: must not exist yet; choose another name or remove it")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    members = opened.members(device)
    out.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with (
        workplace(out) as half,
        workplace(own_cache("predict") / f"predict-{secrets.token_hex(8)}") as place,
    ):
        root = _gathered(scans, place)
        made = _prepared(root, place, opened, modality, progress)
        dataset = _private(open_dataset(made.path), opened)
        read = time.monotonic()
        try:
            frames = _frames(dataset, made, root, scans)
            _fill(frames, dataset, opened, members, device, least, progress)
        finally:
            drop(dataset.hash)
        predicted, written = time.monotonic(), half / "new"
        written.mkdir()
        for number, (origins, frame) in enumerate(frames, 1):
            _draw(written, dataset, origins, frame, opened, least)
            progress(number, len(frames))
        rejected = _rejected(made, root, scans)
        remarks = [
            w
            for w in made.meta["warnings"]
            if w not in made.meta["fold_warnings"] and REMARK_OF_FLAG["unannotated"] not in w
        ]
        without = sum(
            "no DICOM Segmentation: " in note and "Error" in note
            for _, f in frames
            for note in f.notes
        )
        result = Predicted(
            tuple(f for _, f in frames),
            tuple(rejected),
            tuple(remarks),
            without,
            read - began,
            predicted - read,
            time.monotonic() - predicted,
        )
        _write(written, opened, result)
        put(written, out)
    return result


def _gathered(scans: Sequence[str], place: Path) -> Path:
    """One folder, or an archive, that holds all that was given."""
    missing = [s for s in scans if not Path(s).exists()]
    if missing:
        raise WrongInput(
            *(
                f"predict {s}: must be a file or folder of scans, but is not there; check the path"
                for s in missing
            )
        )
    if len(scans) == 1 and Path(scans[0]).is_dir():
        return Path(scans[0])
    root = place / "scans"
    for number, scan in enumerate(scans):
        (root / str(number)).mkdir(parents=True)
        there, here = Path(scan).resolve(), root / str(number) / Path(scan).resolve().name
        if there.is_dir():
            here.symlink_to(there)
        else:
            shutil.copyfile(there, here)  # archives are not looked for behind links
    return root


def _prepared(
    root: Path, place: Path, bundle: Bundle, modality: str | None, progress: Progress
) -> Prepared:
    found = sources_of(root, "auto")
    # Scans that nothing annotates may be DICOM or images; the layout of that name would take DICOM
    # alone.
    layout: Any = "labelme" if found.layout == "dicom" and not found.accounts else found.layout
    try:
        return prepare(
            root,
            place / "dataset",
            layout,
            modality,
            2,
            place / "key",
            progress=progress,
            steps=bundle.meta["preprocessing"]["steps"],
            allow_unmatched=True,
        )
    except WrongInput as error:
        raise WrongInput(
            *(
                p.replace("prepare: ", "predict: ").replace("--layout and ", "")
                for p in error.problems
            )
        ) from None


def _private(dataset: Dataset, bundle: Bundle) -> Dataset:
    """The dataset with the window of the training scans, where they shared one, and caches of
    nobody else.
    """
    window = bundle.meta["preprocessing"]["window"]
    scans = tuple(replace(s, high=window) for s in dataset.scans) if window else dataset.scans
    return replace(dataset, scans=scans, meta={**dataset.meta, "hash": secrets.token_hex(8)})


def _called(path: str, root: Path, scans: Sequence[str]) -> str:
    """A source by the name that it was given by."""
    if len(scans) == 1 and Path(scans[0]).is_dir():
        return path
    number, *below = Path(path).relative_to(root).parts
    return str(Path(scans[int(number)], *below[1:]))


def _rejected(made: Prepared, root: Path, scans: Sequence[str]) -> list[tuple[str, str]]:
    """Each input that was not taken, by its own name: files of one content share their input_id."""
    names: dict[str, list[str]] = {}
    for input_id, scan_id, path in made.sources:
        if not scan_id:
            names.setdefault(input_id, []).append(_called(path, root, scans))
    return [(names[i].pop(0) if names.get(i) else i, why) for i, _, why in made.rejected]


def _frames(
    dataset: Dataset, made: Prepared, root: Path, scans: Sequence[str]
) -> list[tuple[list[Origin], Frame]]:
    """Every frame of every source, in order, with the parts of scans that cover it."""
    by_id = {s.scan_id: s for s in dataset.scans}
    parts: dict[tuple[str, int], list[Origin]] = {}
    for origin in sorted(made.origins, key=lambda o: (o.name, o.frame)):
        parts.setdefault((origin.name, origin.frame), []).append(origin)
    frames = []
    for number, ((name, frame), origins) in enumerate(parts.items(), 1):
        scan, first = by_id[origins[0].scan_id], origins[0]
        frames.append(
            (
                origins,
                Frame(
                    number,
                    _called(str(root / name), root, scans),
                    frame,
                    scan.view,
                    first.height,
                    first.width,
                    scan.pixel_mm,
                    [f for f in scan.flags if f != "unannotated"],
                    [],
                ),
            )
        )
    return frames


def _fill(
    frames: Sequence[tuple[list[Origin], Frame]],
    dataset: Dataset,
    bundle: Bundle,
    members: Sequence[torch.nn.Module],
    device: torch.device,
    least: float,
    progress: Progress,
) -> None:
    """Give each frame its findings."""
    config = bundle.config
    scans = list(dataset.scans)
    if isinstance(config, ClassifierConfig) and config.target:  # which is not known yet
        scans = [replace(s, labels=((config.target, "0"),)) for s in scans]
    samples = scored_samples(dataset, scans, bundle.model, config, unannotated=True)
    if not len(samples):
        raise WrongInput(
            "predict: this bundle says of lesions what they are, but no scan has annotated ones; "
            "give a folder with annotations beside the scans, as `raybone prepare` reads them"
        )
    parts_of: dict[str, list[tuple[Origin, Canvas]]] = {}
    for origins, frame in frames:
        canvas = Canvas(frame, bundle, len(origins))
        for origin in origins:
            parts_of.setdefault(origin.scan_id, []).append((origin, canvas))
    for scan in scans:
        odd = oddities(dataset.counts(scan), scan.high, bundle.meta["likeness"])
        for _, canvas in parts_of[scan.scan_id]:
            canvas.frame.oddities = list(dict.fromkeys([*canvas.frame.oddities, *odd]))
    loader = validation_loader(samples, 4, 0, 1, 0)
    for number, (place, predictions) in enumerate(outputs(members, samples, loader, device), 1):
        prediction, sd = agreed(predictions)
        place, lesion = (
            samples.items[place][:2] if isinstance(samples, TargetSamples) else (place, None)
        )
        scan = samples.scans[place]
        for origin, canvas in parts_of[scan.scan_id]:
            if prediction.mask_CHW is not None:
                canvas.add_masks(origin, prediction.mask_CHW, sd)
            elif lesion == -1:
                canvas.add_whole(float(prediction.scores_N[0]), float(sd[0]))
            elif lesion is not None:
                box = np.array([scan.lesions[lesion].box_xyxy], np.float32)
                canvas.add_boxes(
                    origin, replace(prediction, boxes_N4=box, labels_N=np.zeros(1, np.int64)), sd
                )
            else:
                keep_N = prediction.scores_N >= least
                canvas.add_boxes(
                    origin,
                    Prediction(
                        *(
                            v[keep_N]
                            for v in (prediction.boxes_N4, prediction.scores_N, prediction.labels_N)
                        )
                    ),
                    sd[keep_N],
                )
        progress(number, len(samples))
    if bundle.model.task != "segmentation":
        for canvas in {id(c): c for known in parts_of.values() for _, c in known}.values():
            canvas.finish()


def _draw(
    out: Path,
    dataset: Dataset,
    origins: Sequence[Origin],
    frame: Frame,
    bundle: Bundle,
    least: float,
) -> None:
    """The pictures and DICOM objects of a frame, as the model saw it."""
    by_id: Mapping[str, Scan] = {s.scan_id: s for s in dataset.scans}
    seen_HW = np.zeros((frame.height, frame.width), np.uint16)
    for origin in origins:
        part_HW = part_of(
            dataset.counts(by_id[origin.scan_id]), origin.y, origin.x, frame.height, frame.width
        )
        seen_HW = np.maximum(seen_HW, part_HW)
    names = bundle.meta["categories"]
    finding: dict[str, Any] = {
        "boxes": [f.box for f in frame.findings],
        "scores": [f.score for f in frame.findings],
    }
    if frame.masks:
        finding["masks"] = [frame.masks[n] for n in names]
    picture = out / f"{frame.number:04d}.png"
    picture.write_bytes(
        overlay(
            seen_HW, by_id[origins[0].scan_id].high, finding, (), names, least, frame.flags, True
        )
    )
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
            if not write_segmentation(
                source,
                frame.frame,
                masks,
                bundle.model.name,
                target,
                frame.pixel_mm,
                bundle.meta["name"],
            ):
                frame.notes.append(
                    "DICOM Segmentation without a size of pixels, which the source does not say"
                )
            frame.files.append(target.name)
        except (
            AttributeError,
            KeyError,
            TypeError,
            ValueError,
        ) as error:  # what highdicom says of an unusual header
            frame.notes.append(
                f"no DICOM Segmentation: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}"
            )


def _write(out: Path, bundle: Bundle, result: Predicted) -> None:
    head = {
        "bundle": bundle.meta["name"],
        "model": bundle.model.name,
        "kind": bundle.meta["kind"],
        "members": len(bundle.meta["members"]),
        "categories": bundle.meta["categories"],
        "note": "Research software: not a medical device.",
        "remarks": result.remarks,
    }
    content = {
        **head,
        "scans": [asdict(f) for f in result.frames],
        "rejected": [{"source": s, "reason": r} for s, r in result.rejected],
    }
    (out / "predictions.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    with (out / "predictions.csv").open(
        "w", newline="", encoding="utf-8", errors="backslashreplace"
    ) as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for frame in result.frames:
            common = {
                "number": frame.number,
                "source": frame.source,
                "frame": frame.frame,
                "oddities": "; ".join(frame.oddities),
            }
            rows = [
                {**common, **asdict(f), **dict(zip(("x1", "y1", "x2", "y2"), f.box))}
                for f in frame.findings
            ]
            for row in rows or [common]:  # a scan without findings was seen, too
                writer.writerow({name: safe_cell(value) for name, value in row.items()})
