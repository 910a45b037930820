"""From scans to a patient's tumour burden: lesions are found, judged, and laid on the skeleton."""

from __future__ import annotations

import csv
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from raybone.data.annotations import NOT_LESIONS
from raybone.data.overlay import Picture, numbered
from raybone.deploy.bundle import Bundle
from raybone.deploy.frames import Frame
from raybone.deploy.job import Options
from raybone.deploy.laid import MALIGNANT, Judged, Seen, Sight, by_place, lesions_of
from raybone.deploy.patient_page import patient_page
from raybone.deploy.predict import Predicted, predict, refuse, working_place
from raybone.errors import WrongInput
from raybone.metrics.burden import Burden, bone_scan_index, bones, regions
from raybone.private import put
from raybone.types import Array, safe_cell

OUTSIDE = 0.5  # share of the malignant pixels on no bone from which on a page warns

NOTE = "Research software: not a medical device."
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Chain:
    """The bundles of a chain.

    finder: a detector or segmenter of lesions. skeleton: a segmenter of the regions of the
    skeleton. classifier: of lesions, malignant or not; without it, what the finder calls malignant
    is.
    """

    finder: Bundle
    skeleton: Bundle
    classifier: Bundle | None = None

    def problems(self) -> list[str]:
        """A line for each bundle that cannot do its part."""
        judge, lines = self.classifier, list[str]()
        found = [n for n in self.finder.meta["categories"] if n not in NOT_LESIONS]
        if self.finder.model.task not in ("detection", "segmentation") or not found:
            rule = "must find lesions; give a detector or segmenter of lesions first"
            lines.append(_wrong(self.finder, rule))
        elif not judge and MALIGNANT not in found:
            rule = "must find malignant lesions; give another, or a --classifier of what it finds"
            lines.append(_wrong(self.finder, rule))
        if self.skeleton.model.task != "segmentation" or not (
            set(self.skeleton.meta["categories"]) & set(regions())
        ):
            some = ", ".join([*regions()][:4])
            rule = f"must segment regions of the skeleton ({some}, ...); give one of them second"
            lines.append(_wrong(self.skeleton, rule))
        if judge and not (
            judge.model.task == "classification"
            and not judge.meta["config"].get("target")
            and judge.meta["categories"] == [MALIGNANT]
        ):
            rule = "must tell malignant lesions; leave --classifier out, or give another"
            lines.append(_wrong(judge, rule))
        return lines


@dataclass(frozen=True)
class Patient:
    """What a chain says of one study of a patient.

    number: of the study, in the order of the frames; patient: of whom it is. views: each frame with
    its lesions. burden: with the index by all members together. low, high: 1.96 standard deviations
    of the index over the members around it, at most what is covered; None where no bundle has
    several. The members train on much the same patients: what all of them get wrong is not in it.
    warnings: what makes the index doubtful.
    """

    number: int
    patient: int
    views: tuple[tuple[Frame, tuple[Judged, ...]], ...]
    burden: Burden
    low: float | None
    high: float | None
    warnings: tuple[str, ...]

    @property
    def malignant(self) -> list[Judged]:
        """The lesions that count, of all views: one that is seen in two counts twice."""
        return [le for _, lesions in self.views for le in lesions if le.malignant]

    def told(self) -> dict[str, Any]:
        """As JSON."""
        index = asdict(self.burden) | {"low": self.low, "high": self.high}
        for name, bone in index["bones"].items():
            bone |= {"weight": bones()[name].weight, "share": self.burden.bones[name].share}
        areas = [le.area_mm2 for le in self.malignant]
        known = [area for area in areas if area is not None]
        return {
            "number": self.number,
            "patient": self.patient,
            "note": NOTE,
            "malignant": len(self.malignant),
            "uncertain": sum(bool(le.doubt) for _, lesions in self.views for le in lesions),
            "area_mm2": round(sum(known), 1) if len(known) == len(areas) else None,
            "bone_scan_index": index,
            "warnings": self.warnings,
            "views": [_view(frame, lesions) for frame, lesions in self.views],
        }


@dataclass(frozen=True)
class Burdens:
    """All that was found: studies of patients, in the order of their frames; inputs that were not
    taken (source, reason), and rules applied to those that were.
    """

    patients: tuple[Patient, ...]
    rejected: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]

    def __iter__(self) -> Iterator[Patient]:
        return iter(self.patients)

    def __len__(self) -> int:
        return len(self.patients)


def burden(
    chain: Chain,
    scans: Sequence[str],
    out: Path | str | None = None,
    modality: str | None = "NM",
    least: float | None = None,
    progress: Progress = lambda done, total: None,
) -> Burdens:
    """Find lesions, judge them, lay them on the skeleton; write NNNN.html and NNNN.json of each
    study of a patient and patients.csv; all of it, or nothing.

    The files name the sources and show the scans: they are to be kept as the scans are.

    Args:
        scans: files, folders, zip archives. Views are of one study where the scans or a labels.csv
            say so.
        out: folder to make; None writes nothing.
        modality: for DICOM, the only Modality taken; None takes all.
        least: lowest score of a detector's boxes, by default its operating point; of a box the
            ellipse inside it counts as lesion.
    Raises:
        WrongInput: a bundle that cannot do its part, no scans that could be read, or ``out``
            exists.
    """
    refuse("burden", scans, out, least)
    if problems := chain.problems():
        raise WrongInput(*problems)
    once = list({Path(scan).resolve(): scan for scan in scans}.values())
    with working_place(out) as half:
        stored = _Stored(half)
        options = Options(modality, least, each=True, verb="burden", shown=stored.put, place=half)
        found = predict(chain.finder, once, None, options, progress)
        usual = Options(modality, verb="burden", place=half)
        drawn = predict(chain.skeleton, once, None, replace(usual, each=True), progress)
        seen, lost = _seen(found, drawn, _judged(chain, once, found, usual, progress))
        pages = _Pages(half / "new", chain) if out else None
        patients = []
        for views in _studies(seen):
            patients.append(_patient(views))
            if pages:
                shown = [(stored.picture(own.frame), own.regions(0)) for own in views]
                pages.add(patients[-1], shown)
        if out and pages:
            pages.end()
            put(half / "new", Path(out))
    told = Counter((*found.remarks, *drawn.remarks))
    return Burdens(tuple(patients), (*found.rejected, *lost), tuple(told))


class _Stored:
    """The counts of frames, on disk: those of a cohort need not fit into memory."""

    def __init__(self, place: Path) -> None:
        self._place, self._high = place / "counts", dict[int, float]()
        self._place.mkdir()

    def put(self, frame: Frame, counts_HW: Array, high: float) -> None:
        np.save(self._place / f"{frame.number}.npy", counts_HW)
        self._high[frame.number] = high

    def picture(self, frame: Frame) -> Picture:
        counts_HW = np.load(self._place / f"{frame.number}.npy")
        return Picture(counts_HW, self._high[frame.number], frame.flags, native=True)


def _judged(
    chain: Chain,
    scans: Sequence[str],
    found: Predicted,
    usual: Options,
    progress: Progress,
) -> Predicted | None:
    """What the classifier says of all that was found."""
    if not chain.classifier:
        return None
    by_frame = by_place(found.frames).items()
    lesions = {key: [le for le, _ in lesions_of(frame)] for key, frame in by_frame}
    options = replace(usual, each=True, lesions=lesions)
    return predict(chain.classifier, scans, None, options, progress)


def _seen(
    found: Predicted, drawn: Predicted, judged: Predicted | None
) -> tuple[list[Seen], list[tuple[str, str]]]:
    """What all bundles say of each frame, and the frames that not all of them could look at."""
    skeletons = [by_place(frames) for frames in (drawn.frames, *drawn.members)]
    judges = [by_place(frames) for frames in (judged.frames, *judged.members)] if judged else []
    seen, lost = list[Seen](), list[tuple[str, str]]()
    for frame in found.frames:
        key = frame.source, frame.frame
        if key not in skeletons[0]:
            lost.append((frame.source, f"frame {frame.frame}: the skeleton's steps leave it out"))
        elif judges and key not in judges[0]:
            lost.append((frame.source, f"frame {frame.frame}: the classifier's steps leave it out"))
        else:
            finders = [member[frame.number - 1] for member in found.members]
            own = [known[key] for known in skeletons]
            seen.append(Seen(frame, finders, own, [known[key] for known in judges]))
    return seen, lost


def _studies(seen: Sequence[Seen]) -> Iterator[list[Seen]]:
    """The frames of each study of each patient."""
    by_study = defaultdict[int, list[Seen]](list)
    for own in seen:
        by_study[own.frame.study].append(own)
    yield from by_study.values()


def _patient(views: Sequence[Seen]) -> Patient:
    """Lay all views of a study together."""
    shown, sights = [], []
    for seen in views:
        lesions = tuple(seen.lesions())
        shown.append((replace(seen.frame, oddities=seen.oddities), lesions))
        sights.append(seen.sights(lesions))
    whole = bone_scan_index([by_all for by_all, _ in sights])
    kinds = zip(*(by_each for _, by_each in sights))  # finders, skeletons, classifiers
    low, high = _interval(whole, *(list(_indices(views)) for views in kinds))
    malignant = sum(int(lesions_HW.sum()) for (lesions_HW, _), _ in sights)
    first, doubts = views[0].frame, _doubts(whole, malignant)
    warnings = (*_warnings([frame for frame, _ in shown]), *doubts)
    return Patient(first.study, first.patient, tuple(shown), whole, low, high, warnings)


def _warnings(frames: Sequence[Frame]) -> Iterator[str]:
    """What makes an index of these views doubtful."""
    sides = Counter(frame.view for frame in frames)
    if set(sides) != {"anterior", "posterior"} or max(sides.values()) > 1:
        told = ", ".join(f"{count} {view}" for view, count in sides.items())
        yield f"an index is of one anterior and one posterior view, but here are {told}"
    if len({frame.pixel_mm for frame in frames}) > 1:
        yield "the views have pixels of different sizes: each pixel counts alike"


def _doubts(whole: Burden, malignant: int) -> Iterator[str]:
    """What the skeleton leaves out of an index.

    Args:
        malignant: pixels of malignant lesions in all views.
    """
    if not whole.covered:
        yield "the skeleton model finds no bone here: the index says nothing"
    elif malignant and whole.outside_px >= OUTSIDE * malignant:
        yield (
            f"{whole.outside_px} of {malignant} malignant pixels lie on no bone that the skeleton "
            "model finds: the index is too low"
        )


def _indices(views: Sequence[Sequence[Sight]]) -> Iterator[float]:
    """The index by each member, of what it sees in all views."""
    return (bone_scan_index(own).index for own in zip(*views))


def _interval(whole: Burden, *members: Sequence[float]) -> tuple[float | None, float | None]:
    """1.96 standard deviations of all kinds of members together to either side."""
    spreads = [statistics.variance(own) for own in members if len(own) > 1]
    if not spreads or not whole.covered:
        return None, None
    away = 1.96 * sum(spreads) ** 0.5
    return max(0.0, whole.index - away), min(max(whole.covered, whole.index), whole.index + away)


def _wrong(bundle: Bundle, rule: str) -> str:
    categories, (must, _, do) = ", ".join(bundle.meta["categories"]), rule.partition("; ")
    return f"bundle {bundle.path}: {must}, but is of {bundle.model.task} of {categories}; {do}"


def _view(frame: Frame, lesions: Sequence[Judged]) -> dict[str, Any]:
    own = ("source", "frame", "view", "height", "width", "pixel_mm", "flags", "oddities")
    return {**{k: getattr(frame, k) for k in own}, "lesions": [le.told() for le in lesions]}


class _Pages:
    """The files of all patients, in a folder that they are written into one after the other."""

    def __init__(self, folder: Path, chain: Chain) -> None:
        self.folder, self.rows = folder, list[dict[str, Any]]()
        folder.mkdir()
        self.bundles = {
            part: {"name": bundle.meta["name"], "model": bundle.model.name}
            for part, bundle in vars(chain).items()
            if bundle
        }

    def add(self, patient: Patient, shown: Sequence[tuple[Picture, dict[str, Array]]]) -> None:
        """A page and its JSON, with a picture of each view and the regions in it."""
        content, number, pictures = {**patient.told(), "bundles": self.bundles}, 1, []
        for (_, lesions), (picture, regions_HW) in zip(patient.views, shown):
            marks = [(n, le.lesion, le.malignant) for n, le in enumerate(lesions, number)]
            pictures.append(numbered(picture, [*regions_HW.values()], marks))
            number += len(lesions)
        stem = self.folder / f"{patient.number:04d}"
        stem.with_suffix(".json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        page = patient_page(content, pictures).encode("utf-8", "backslashreplace")
        stem.with_suffix(".html").write_bytes(page)
        self.rows.append(_row(content))

    def end(self) -> None:
        """The table of all."""
        path = self.folder / "patients.csv"
        with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.DictWriter(file, [*self.rows[0]] if self.rows else ["number"])
            writer.writeheader()
            writer.writerows({k: safe_cell(v) for k, v in row.items()} for row in self.rows)


def _row(content: Mapping[str, Any]) -> dict[str, Any]:
    """A line of patients.csv."""
    index = content["bone_scan_index"]
    return {
        "number": content["number"],
        "patient": content["patient"],
        "views": len(content["views"]),
        **{name: content[name] for name in ("malignant", "uncertain", "area_mm2")},
        **{name: index[name] for name in ("index", "low", "high", "covered", "outside_px")},
        "warnings": "; ".join(content["warnings"]),
        "sources": "; ".join(dict.fromkeys(view["source"] for view in content["views"])),
    }
