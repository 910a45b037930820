"""A bundle's findings on new scans: read as its training scans were, and told in pixels of the
source frames.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from raybone.data.annotations import NOT_LESIONS, mask_of
from raybone.data.cache import intensities_of
from raybone.data.ingest.intake import UNANNOTATED
from raybone.data.ingest.options import ReadOptions
from raybone.data.ingest.read import read
from raybone.data.ingest.steps import BLIND, Origin
from raybone.data.loader import ScanSamples, validation_loader
from raybone.data.overlay import Picture, overlay
from raybone.deploy.bundle import Bundle
from raybone.deploy.dicom.seg import write_segmentation
from raybone.deploy.dicom.source import MadeBy
from raybone.deploy.dicom.sr import write_report
from raybone.deploy.ensemble import outputs
from raybone.deploy.frames import Canvas, Found, Frame
from raybone.deploy.job import USUAL, Job, Options
from raybone.deploy.out_of_distribution import oddities
from raybone.errors import WrongInput
from raybone.private import put, workplace
from raybone.tasks import task_named
from raybone.types import Array, Scan, safe_cell

COLUMNS = (
    "number",
    "patient",
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
    "called",
)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Predicted:
    """What was found, and how long each part took, in seconds.

    frames: with their findings. members: the frames as each member alone sees them, if that was
    asked. rejected: inputs that were not taken (source, reason). remarks:
    rules applied to inputs that were. without: frames of DICOM sources whose findings could not be
    written as DICOM objects.
    """

    frames: tuple[Frame, ...]
    members: tuple[tuple[Frame, ...], ...]
    rejected: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]
    without: int
    reading: float
    predicting: float
    drawing: float

    def __iter__(self) -> Iterator[tuple[Frame, list[Found]]]:
        """Each frame with its findings, best first."""
        return ((frame, frame.findings) for frame in self.frames)

    def __len__(self) -> int:
        return len(self.frames)


def predict(
    bundle: Bundle,
    scans: Sequence[str],
    out: Path | str | None = None,
    options: Options = USUAL,
    progress: Progress = lambda done, total: None,
) -> Predicted:
    """Find what the bundle finds; write predictions.json, predictions.csv, and of each frame an
    overlay NNNN.png and, where the source is DICOM and something was found, NNNN.sr.dcm and of
    masks NNNN.seg.dcm; all of it, or nothing.

    The files name the sources, and DICOM objects their patient: they are to be kept as the
    scans are. Counts of the scans lie beside ``out`` while it is made, or with other temporary
    files, and are removed.

    Args:
        scans: files, folders, zip archives. A classifier of lesions needs their annotations beside
            them, in a folder.
        out: folder to make; None writes nothing.
    Raises:
        WrongInput: no scans that could be read, weights that are changed, or ``out`` exists.
    """
    refuse(options.verb, scans, out, options.least)
    _refuse_least(bundle, options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    members = bundle.members(device)
    times = [time.monotonic()]
    digest = asked(bundle, scans, options) if out else ""
    with working_place(out, options.place) as half:
        steps = [BLIND.get(step, step) for step in bundle.meta["preprocessing"]["steps"]]
        how = ReadOptions("any", options.modality, steps=steps, allow_unmatched=True)
        sources, judges = [Path(s) for s in scans], _judges(bundle, options)
        reading = read(sources, half, how, progress=progress, annotated=judges)
        if not reading.store.scans:
            raise reading.nothing(options.verb, "--modality", show_paths=False)
        job = Job(bundle, reading, members, options)
        times.append(time.monotonic())
        samples = _fill(job, device, progress)
        times.append(time.monotonic())
        (half / "new").mkdir()
        without = 0
        for number, frame in enumerate(job.frames if out or options.shown else (), 1):
            seen_HW, high = job.seen(frame)
            if options.shown:
                options.shown(frame, seen_HW, high)
            if out:
                seen = Picture(seen_HW, high, heat_HW=job.heat(frame, samples, device))
                without += not _draw(half / "new", job, frame, seen)
            progress(number, len(job.frames))
        times.append(time.monotonic())
        rejected, remarks = reading.rejected(), reading.warnings(without=(UNANNOTATED,))
        seconds = [after - before for before, after in pairwise(times)]
        members_own = tuple(map(tuple, job.voices[1:]))
        told = tuple(rejected), tuple(remarks), without
        found = Predicted(tuple(job.frames), members_own, *told, *seconds)
        if out:
            _write(half / "new", bundle, found, digest)
            put(half / "new", Path(out))
    return found


def asked(bundle: Bundle, scans: Sequence[str], options: Options) -> str:
    """A digest of what is asked: this bundle, these files as they are, these options."""
    files = list[tuple[str, int, int]]()
    for place in map(Path, scans):
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            known = path.lstat()
            files.append((str(path.absolute()), known.st_size, known.st_mtime_ns))
    content = json.dumps([bundle.meta, files, options.modality, options.least])
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def is_made(bundle: Bundle, scans: Sequence[str], out: Path | str, options: Options) -> bool:
    """Whether ``out`` is what ``predict`` made when the same was asked of it."""
    try:
        known = json.loads(Path(out, "predictions.json").read_text(encoding="utf-8"))
        return bool(known["asked"] == asked(bundle, scans, options))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _judges(bundle: Bundle, options: Options) -> bool:
    """Whether a bundle judges what is annotated; else two annotations that differ cost no scan."""
    of_scans = getattr(bundle.config, "target", "")
    return bundle.model.task == "classification" and not of_scans and options.lesions is None


def _refuse_least(bundle: Bundle, options: Options) -> None:
    """Refuse the lowest score of boxes where none are found."""
    if options.least is not None and bundle.model.task != "detection":
        raise WrongInput(
            f"{options.verb}: --least is of a detector's boxes, but this bundle is for "
            f"{bundle.model.task}; leave it out, or choose another operating point (`refit "
            "--operate`)"
        )


def refuse(verb: str, scans: Sequence[str], out: Path | str | None, least: float | None) -> None:
    """Refuse what cannot be.

    Raises:
        WrongInput: scans that are not there, an ``out`` that is, or a score that is none.
    """
    if "://" in str(out) or not 0 <= (least or 0) <= 1:
        raise WrongInput(
            f"{verb}: --out must be a folder of this machine and --least a score from 0 to 1, got "
            f"{out} and {least or 0:g}; change that"
        )
    if out is not None and Path(out).exists():
        raise WrongInput(f"--out {out}: must not exist yet; choose another name or remove it")
    inside = [Path(s).resolve() for s in scans if Path(s).is_dir()]
    if out is not None and any(s in Path(out).resolve().parents for s in inside):
        raise WrongInput(
            f"--out {out}: must not lie in a folder of scans, or it would be read itself; choose a "
            "place outside"
        )
    if missing := [s for s in scans if not Path(s).exists()]:
        rule = "must be a file or folder of scans, but is not there; check the path"
        raise WrongInput(*(f"{verb} {s}: {rule}" for s in missing))


@contextlib.contextmanager
def working_place(out: Path | str | None, place: Path | None = None) -> Iterator[Path]:
    """A private folder, beside the one that is made, which goes at the end."""
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with workplace(Path(out)) as half:
            yield half
    else:
        with tempfile.TemporaryDirectory(prefix="raybone-", dir=place) as folder:
            yield Path(folder)


def _fill(job: Job, device: torch.device, progress: Progress) -> ScanSamples:
    """Give each frame its findings; returns what was predicted on."""
    bundle, counts = job.bundle, job.reading.store.counts
    config, task = bundle.config, task_named(bundle.model.task)

    def images(scan: Scan) -> Array:
        return intensities_of(counts(scan), scan.high, config.imgsz)

    samples = task.predicted(images, list(job.scans.values()), config)
    if not len(samples) and job.options.lesions is None:
        raise WrongInput(
            f"{job.options.verb}: this bundle says of lesions what they are, but no scan has "
            "annotated ones; give a folder with annotations beside the scans, as `raybone prepare` "
            "reads them"
        )
    on: dict[str, list[tuple[Origin, list[Canvas]]]] = {scan_id: [] for scan_id in job.scans}
    canvases = []
    for frames in zip(*job.voices):
        parts = job.parts[frames[0].number]
        canvases.append([Canvas(frame, bundle, len(parts)) for frame in frames])
        for scan, origin in parts:
            on[scan.scan_id].append((origin, canvases[-1]))
    # What is usual is known of tiles with lesions alone, where the bundle has learned from these.
    blind = set(BLIND) & set(bundle.meta["preprocessing"]["steps"])
    for scan in () if blind else samples.scans:
        odd = oddities(counts(scan), scan.high, bundle.meta["likeness"])
        for _, (canvas, *_) in on[scan.scan_id]:
            canvas.frame.oddities = list(dict.fromkeys([*canvas.frame.oddities, *odd]))
    loader = validation_loader(samples, 4, 0, 1, 0)
    predicted = outputs(task, job.members, samples, loader, device)
    for number, (index, predictions) in enumerate(predicted, 1):
        said = [predictions, *([p] for p in predictions)]
        for voice, spoken in zip(range(len(job.voices)), said):
            prediction, sd = task.shown(*task.agreed(spoken), job.least)
            row, prediction = task.placed(samples, index, prediction)
            for origin, several in on[samples.scans[row].scan_id]:
                several[voice].add(origin, prediction, sd)
        progress(number, len(samples))
    for canvas in itertools.chain(*canvases):
        canvas.finish()
    return samples


def _draw(out: Path, job: Job, frame: Frame, seen: Picture) -> bool:
    """The pictures and DICOM objects of a frame, as the model saw it; False when there could be no
    DICOM object of its findings.
    """
    names = job.bundle.meta["categories"]
    finding: dict[str, Any] = {
        "boxes": [f.box for f in frame.findings],
        "scores": [f.score for f in frame.findings],
    }
    if frame.masks:
        finding["masks"] = [frame.masks[n] for n in names]
    picture = out / f"{frame.number:04d}.png"
    shown = replace(seen, flags=frame.flags, native=True)
    picture.write_bytes(overlay(shown, finding, (), names, job.least))
    frame.files.append(picture.name)
    return task_named(job.bundle.model.task).judged or _objects(out, frame, job)


def _objects(out: Path, frame: Frame, job: Job) -> bool:
    """Write a DICOM Segmentation of masks and a Structured Report of lesions, or note why there is
    none; False when one failed.
    """
    source = Path(frame.source)
    made_by = MadeBy(job.bundle.model.name, job.bundle.meta["name"])
    lesions = [f for f in frame.findings if f.called and f.category not in NOT_LESIONS]
    masks = {name: mask_of(rle) for name, rle in frame.masks.items()}
    what = "DICOM Segmentation" if masks else "DICOM Structured Report"
    if not job.is_dicom(frame):
        frame.notes.append(f"no {what}: the source is no DICOM object")
        return True
    if not frame.findings:
        frame.notes.append(f"no {what}: nothing was found")
        return True
    if not source.is_file():
        frame.notes.append(f"no {what}: the source lies in an archive; unpack it for that")
        return False

    def segment(target: Path) -> None:
        if not write_segmentation(source, frame.frame, masks, made_by, target, frame.pixel_mm):
            frame.notes.append(
                "DICOM Segmentation without a size of pixels, which the source does not say"
            )

    def report(target: Path) -> None:
        write_report(source, frame.frame, lesions, masks, made_by, target)

    kinds = {"DICOM Segmentation": (segment, "seg")} if masks else {}
    kinds |= {"DICOM Structured Report": (report, "sr")} if lesions else {}
    written = [_object(out, frame, kind, *how) for kind, how in kinds.items()]
    return all(written)


def _object(out: Path, frame: Frame, kind: str, write: Callable[[Path], None], end: str) -> bool:
    target = out / f"{frame.number:04d}.{end}.dcm"
    try:
        write(target)
    except Exception as error:  # libraries raise what they like at an unusual header
        why = " ".join(str(error).split())[:200]
        frame.notes.append(f"no {kind}: {type(error).__name__}: {why}")
        return False
    frame.files.append(target.name)
    return True


def _write(out: Path, bundle: Bundle, result: Predicted, digest: str) -> None:
    head = {
        "bundle": bundle.meta["name"],
        "asked": digest,
        "model": bundle.model.name,
        "kind": bundle.meta["kind"],
        "members": len(bundle.meta["members"]),
        "categories": bundle.meta["categories"],
        "operating_point": bundle.threshold,
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
                "patient": frame.patient,
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
