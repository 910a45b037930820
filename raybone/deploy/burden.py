"""From scans to a patient's tumour burden: lesions are found, judged, and laid on the skeleton."""

from __future__ import annotations

import csv
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raybone.data.annotations import NOT_LESIONS
from raybone.data.overlay import Picture, numbered
from raybone.deploy.bundle import Bundle
from raybone.deploy.frames import Frame
from raybone.deploy.laid import Judged, Seen, Sight, lesions_of
from raybone.deploy.patient_page import patient_page
from raybone.deploy.predict import Options, Predicted, predict
from raybone.errors import WrongInput
from raybone.metrics.burden import Burden, bone_scan_index, bones, regions
from raybone.metrics.lesions import THRESHOLD
from raybone.private import put, workplace
from raybone.types import Array, safe_cell

MALIGNANT = "malignant"
NOTE = "Research software: not a medical device."
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Chain:
    """The bundles of a chain.

    finder: a detector or segmenter of lesions. skeleton: a segmenter of the regions of the
    skeleton. classifier: of lesions, malignant or not; without it, what the finder says holds.
    """

    finder: Bundle
    skeleton: Bundle
    classifier: Bundle | None = None

    def problems(self) -> list[str]:
        """A line for each bundle that cannot do its part."""
        judge, lines = self.classifier, list[str]()
        if self.finder.model.task not in ("detection", "segmentation") or not self._lesions:
            rule = "must find lesions; give a detector or segmenter of lesions first"
            lines.append(_wrong(self.finder, rule))
        if self.skeleton.model.task != "segmentation" or not (
            set(self.skeleton.meta["categories"]) & set(regions())
        ):
            some = ", ".join([*regions()][:4])
            rule = f"must segment regions of the skeleton ({some}, ...); give one of them second"
            lines.append(_wrong(self.skeleton, rule))
        if judge and (judge.model.task != "classification" or judge.meta["config"].get("target")):
            rule = "must classify lesions; leave --classifier out, or give another"
            lines.append(_wrong(judge, rule))
        return lines

    @property
    def sought(self) -> list[str]:
        """The finder's categories that count without a classifier: malignant, or all lesions."""
        return [MALIGNANT] if MALIGNANT in self._lesions else self._lesions

    @property
    def _lesions(self) -> list[str]:
        return [n for n in self.finder.meta["categories"] if n not in NOT_LESIONS]


@dataclass(frozen=True)
class Patient:
    """What a chain says of one patient.

    views: each frame with its lesions and a PNG of them. burden: with the index by all members
    together. low, high: 95 % interval of the index, from the spread of the members alone; None
    where no bundle has several. They train on much the same patients: what all of them get wrong is
    not in it.
    """

    number: int
    views: tuple[tuple[Frame, tuple[Judged, ...], bytes], ...]
    burden: Burden
    low: float | None
    high: float | None

    @property
    def malignant(self) -> list[Judged]:
        """The lesions that count, of all views: one that is seen in two counts twice."""
        return [le for _, lesions, _ in self.views for le in lesions if le.malignant]

    def told(self) -> dict[str, Any]:
        """As JSON, without the pictures."""
        index = asdict(self.burden) | {"low": self.low, "high": self.high}
        for name, bone in index["bones"].items():
            bone |= {"weight": bones()[name].weight, "share": self.burden.bones[name].share}
        areas = [le.area_mm2 for le in self.malignant]
        known = [area for area in areas if area is not None]
        return {
            "patient": self.number,
            "note": NOTE,
            "malignant": len(self.malignant),
            "uncertain": sum(bool(le.doubt) for _, lesions, _ in self.views for le in lesions),
            "area_mm2": round(sum(known), 1) if len(known) == len(areas) else None,
            "bone_scan_index": index,
            "views": [_view(frame, lesions) for frame, lesions, _ in self.views],
        }


def burden(
    chain: Chain,
    scans: Sequence[str],
    out: Path | str | None = None,
    modality: str | None = "NM",
    least: float = THRESHOLD,
    progress: Progress = lambda done, total: None,
) -> list[Patient]:
    """Find lesions, judge them, lay them on the skeleton; write NNNN.html and NNNN.json of each
    patient and patients.csv; all of it, or nothing.

    The files name the sources and show the scans: they are to be kept as the scans are.

    Args:
        scans: files, folders, zip archives. Views are of one patient where the scans or a
            labels.csv say so.
        out: folder to make; None writes nothing.
        modality: for DICOM, the only Modality taken; None takes all.
        least: lowest score of a detector's boxes; of a box the ellipse inside it counts as lesion.
    Raises:
        WrongInput: a bundle that cannot do its part, no scans that could be read, or ``out``
            exists.
    """
    if problems := chain.problems():
        raise WrongInput(*problems)
    if out is not None and Path(out).exists():
        raise WrongInput(f"--out {out}: must not exist yet; choose another name or remove it")
    with tempfile.TemporaryDirectory(prefix="raybone-") as place:
        stored = _Stored(Path(place))
        options = Options(modality, least, each=True, shown=stored.put)
        found = predict(chain.finder, scans, None, options, progress)
        by_patient = defaultdict[int, list[Frame]](list)
        for frame in found.frames:
            by_patient[frame.patient].append(frame)
        seen = _seen(chain, scans, found, modality, progress)
        patients = [
            _patient([(seen[f.number], stored.picture(f)) for f in frames])
            for frames in by_patient.values()
        ]
    if out is not None:
        _write(Path(out), chain, patients)
    return patients


class _Stored:
    """The counts of frames, on disk: those of a cohort need not fit into memory."""

    def __init__(self, place: Path) -> None:
        self._place, self._high = place, dict[int, float]()

    def put(self, frame: Frame, counts_HW: Array, high: float) -> None:
        np.save(self._place / f"{frame.number}.npy", counts_HW)
        self._high[frame.number] = high

    def picture(self, frame: Frame) -> Picture:
        counts_HW = np.load(self._place / f"{frame.number}.npy")
        return Picture(counts_HW, self._high[frame.number], frame.flags, native=True)


def _seen(
    chain: Chain,
    scans: Sequence[str],
    found: Predicted,
    modality: str | None,
    progress: Progress,
) -> dict[int, Seen]:
    """By the number of its frame, what all bundles say of it."""
    drawn = predict(chain.skeleton, scans, None, Options(modality, each=True), progress)
    skeletons = [_by_place(frames) for frames in (drawn.frames, *drawn.members)]
    lesions = {key: [le for le, _ in lesions_of(f)] for key, f in _by_place(found.frames).items()}
    judged: dict[tuple[str, int], Frame] | None = None
    if chain.classifier and any(lesions.values()):
        options = Options(modality, lesions=lesions)
        judged = _by_place(predict(chain.classifier, scans, None, options, progress).frames)
    return {
        frame.number: Seen(
            frame,
            [member[number] for member in found.members],
            [known[key].masks for known in skeletons],
            judged[key].findings if judged else None,
            chain.sought,
        )
        for number, (key, frame) in enumerate(_by_place(found.frames).items())
    }


def _by_place(frames: Sequence[Frame]) -> dict[tuple[str, int], Frame]:
    """Frames by their source and number there, which is the same for all bundles."""
    return {(frame.source, frame.frame): frame for frame in frames}


def _patient(views: Sequence[tuple[Seen, Picture]]) -> Patient:
    """Lay all views of a patient together."""
    shown, number, sights = [], 1, []
    for seen, picture in views:
        lesions = tuple(seen.lesions())
        marks = [(n, le.lesion, le.malignant) for n, le in enumerate(lesions, number)]
        number += len(lesions)
        shown.append((seen.frame, lesions, numbered(picture, [*seen.regions(0).values()], marks)))
        sights.append(seen.sights(lesions))
    whole = bone_scan_index([by_all for by_all, _, _ in sights])
    by_finder = list(_indices([own for _, own, _ in sights]))
    by_skeleton = list(_indices([own for _, _, own in sights]))
    low, high = _interval(whole.index, by_finder, by_skeleton)
    return Patient(shown[0][0].patient, tuple(shown), whole, low, high)


def _indices(views: Sequence[Sequence[Sight]]) -> Iterator[float]:
    """The index by each member, of what it sees in all views."""
    return (bone_scan_index(own).index for own in zip(*views))


def _interval(index: float, *members: Sequence[float]) -> tuple[float | None, float | None]:
    """1.96 standard deviations of all kinds of members together to either side."""
    spreads = [statistics.variance(own) for own in members if len(own) > 1]
    if not spreads:
        return None, None
    away = 1.96 * sum(spreads) ** 0.5
    return max(0.0, index - away), min(100.0, index + away)


def _wrong(bundle: Bundle, rule: str) -> str:
    categories, (must, _, do) = ", ".join(bundle.meta["categories"]), rule.partition("; ")
    return f"bundle {bundle.path}: {must}, but is of {bundle.model.task} of {categories}; {do}"


def _view(frame: Frame, lesions: Sequence[Judged]) -> dict[str, Any]:
    own = ("source", "frame", "view", "height", "width", "pixel_mm", "flags", "oddities")
    return {**{k: getattr(frame, k) for k in own}, "lesions": [le.told() for le in lesions]}


def _write(out: Path, chain: Chain, patients: Sequence[Patient]) -> None:
    bundles = {
        part: {"name": bundle.meta["name"], "model": bundle.model.name}
        for part, bundle in vars(chain).items()
        if bundle
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with workplace(out) as half:
        folder = half / "new"
        folder.mkdir()
        rows = list[dict[str, Any]]()
        for patient in patients:
            content = {**patient.told(), "bundles": bundles}
            stem = folder / f"{patient.number:04d}"
            stem.with_suffix(".json").write_text(json.dumps(content, indent=1), encoding="utf-8")
            page = patient_page(content, [png for *_, png in patient.views])
            stem.with_suffix(".html").write_text(page, encoding="utf-8")
            rows.append(_row(content))
        path = folder / "patients.csv"
        with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.DictWriter(file, [*rows[0]])
            writer.writeheader()
            writer.writerows({k: safe_cell(v) for k, v in row.items()} for row in rows)
        put(folder, out)


def _row(content: Mapping[str, Any]) -> dict[str, Any]:
    """A patient's line of patients.csv."""
    index = content["bone_scan_index"]
    return {
        "patient": content["patient"],
        "views": len(content["views"]),
        **{name: content[name] for name in ("malignant", "uncertain", "area_mm2")},
        **{name: index[name] for name in ("index", "low", "high", "covered", "outside_px")},
        "sources": "; ".join(dict.fromkeys(view["source"] for view in content["views"])),
    }
