"""Inputs on their way into a dataset: identities become pseudonyms, remarks and rejections are kept
by input.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from raybone.data.dataset import DatasetWriter, Stored, store
from raybone.data.ingest.dicom.frames import NotTaken
from raybone.data.ingest.labels import Labels
from raybone.data.ingest.persons import Claim, nobody, persons_of
from raybone.data.ingest.pseudonyms import pseudonym
from raybone.data.ingest.reading import Read, Taken, together
from raybone.data.ingest.sources import Account, Source, positive
from raybone.data.ingest.steps import Part, View, apply_steps, unit
from raybone.data.modality import MODALITIES, flag_of
from raybone.types import Lesion, Scan

UNANNOTATED = (
    "scan without annotation: neither trained on nor scored, but by its labels (see --unannotated)"
)
REMARK_OF_FLAG = {
    "turned-over": "bright border, as of dark on white: turned over, so that uptake is high",
    "bright-border": "border brighter than the middle of the range: is it dark on white? It is "
    "left as it is",
    "transparent": "transparent parts of a picture: they count as air",
    "other-windows": "frames of further energy windows: left out",
    "windows-unknown": "several energy windows, and nothing says which frame is of which: all "
    "frames are taken",
    "off-peak": "energy window that does not hold the photopeak: may be scatter, or of a tracer "
    "that is not named",
    "windowed": "Secondary Capture: values may be those of a screen, and not counts",
    "derived": "derived image: was computed from others, values may not be counts",
    "kind-unknown": "nothing says that it is a planar scan: look at it",
    "rescale": "Rescale Slope or Intercept is no usable number, or not said of every frame: 1 and "
    "0 there",
    "no-photometric": "nothing says whether high values are bright: taken as counts",
    "more-pixels": "more pixels than its header says: the rest is left out",
    "burned-in-text": "text suspected in the pixels: look at the scan before you train on it or "
    "share it",
    "lossy": "lossy compression: counts are not exact",
    "not-square": "pixels are not square: pixel_mm is their height",
    "unannotated": UNANNOTATED,
    "taken-as-negative": "scan without annotation: counts as a scan without lesion, as "
    "--unannotated negative says",
    **{
        flag: f"modality {name}, not NM: values are read as counts of a bone scan"
        for name in (*MODALITIES, "other")
        for flag in flag_of(name)
    },
}
COPIES_DIFFER = "scans of the same pixels whose annotations differ: one of them is wrong"
LEFT_OUT = (
    "is left out by the steps: montage needs both views of a study, and tiles without counts are "
    "not kept"
)


@dataclass(frozen=True)
class Origin:
    """Where a part of a scan of the dataset comes from: a frame (0-based) of an input, of shape
    (height, width).

    name: the input, below SOURCE. y, x: row and column of the scan at which the frame's first pixel
    lies.
    """

    scan_id: str
    name: str
    frame: int
    height: int
    width: int
    y: int
    x: int


class _Known(NamedTuple):
    name: str
    frame: int
    study: str
    stored: Stored
    scan: Scan
    claim: Claim


@dataclass
class Intake:
    """What was read so far.

    secret: the key. root: SOURCE. unannotated: flag of a scan that nothing annotates. rejected:
    (input_id, bytes, reason). remarks: rule -> names of inputs, which ``scan_ids`` turns into ids.
    From ``settle`` on: unknown, the patient_ids that stand for a study or a file, as the source
    names no patient; name_of_patient, what the source calls the patient of a pseudonym, for tables
    that are keyed by it; doubts, as remarks, on who is who; together, pairs of patient_ids that may
    be one person.
    """

    secret: bytes
    root: Path
    unannotated: str = "unannotated"
    labels: Labels = field(default_factory=Labels)
    rejected: list[tuple[str, int, str]] = field(default_factory=list)
    remarks: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    unknown: set[str] = field(default_factory=set)
    name_of_patient: dict[str, str] = field(default_factory=dict)
    doubts: dict[str, list[str]] = field(default_factory=dict)
    together: list[tuple[str, str]] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    _taken: list[_Known] = field(default_factory=list)
    _marks: list[tuple[str, Read]] = field(default_factory=list)
    _torn: set[str] = field(default_factory=set)
    _labelled: set[str] = field(default_factory=set)
    _id_of: dict[str, str] = field(default_factory=dict)
    _scans_of: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def take(self, item: Source, read: Read) -> None:
        """Put an input among the scans or among the rejected."""
        kind, text = ("content", read.digest) if read.digest else ("path", item.name)
        self._id_of[item.name] = "i" + pseudonym(self.secret, kind, text, 16)
        for rule, times in read.remarks.items():
            self.remarks[rule] += [item.name] * times
        if read.marks is not None:
            self._marks.append((item.name, read))
        if read.reason:
            self.rejected.append((self._id_of[item.name], read.bytes, read.reason))
        for found in read.scans:
            self._taken.append(self._scan(item, found))

    def join(self) -> list[Account]:
        """Give the scans what segmentation objects say of them; returns an account of each object.

        A scan that has another annotation, which differs, is rejected.
        """
        places: dict[str, list[int]] = defaultdict(list)
        for place, known in enumerate(self._taken):
            places[known.scan.instance].append(place)
        accounts = []
        for name, read in self._marks:
            lost = 0
            for mark in read.marks or ():
                own = [
                    p
                    for p in places.get(pseudonym(self.secret, "instance", mark.instance), ())
                    if mark.frame in (None, self._taken[p].frame)
                ]
                stored = self._taken[own[0]].stored if len(own) == 1 else None
                if stored and mark.size == (stored.height, stored.width):
                    self._mark(own[0], mark.lesions)
                else:
                    lost += 1
            why = (
                read.reason or "is a segmentation of objects that are not here, or of another size"
            )
            accounts.append(
                Account(
                    name,
                    max(1, len(read.marks or ())),
                    lost or int(not read.marks),
                    why,
                    True,
                    bool(read.reason),
                )
            )
            if not read.reason and lost == len(read.marks or ()):
                self.rejected.append((self._id_of[name], read.bytes, why))
        self._taken = [k for k in self._taken if k.name not in self._torn]
        return accounts

    def _mark(self, place: int, lesions: tuple[Lesion, ...]) -> None:
        known = self._taken[place]
        scan = known.scan
        if self.unannotated in scan.flags:
            self.remarks[REMARK_OF_FLAG[self.unannotated]].remove(known.name)
            scan = replace(
                scan, flags=tuple(f for f in scan.flags if f != self.unannotated), lesions=lesions
            )
        else:
            try:
                scan = replace(scan, lesions=together(scan.lesions, lesions))
            except NotTaken as reason:
                if known.name not in self._torn:
                    self.rejected.append((self._id_of[known.name], 0, str(reason)))
                self._torn.add(known.name)
        self._taken[place] = known._replace(scan=scan)

    def settle(self, raw: DatasetWriter, folder: Path, steps: Sequence[str]) -> DatasetWriter:
        """The scans in order of input, after the steps; in the folder they were read into, or in
        another.
        """
        self._name_patients()
        if not steps:
            for known in self._taken:
                self._note(raw.add(known.stored, known.scan), known, Part(""))
            raw.scans.sort(
                key=lambda s: s.scan_id
            )  # the order of the source's names says something of them
            return raw
        writer, studies, known_of = (
            DatasetWriter(folder),
            defaultdict[str, list[Scan]](list),
            dict[str, _Known](),
        )
        for known in self._taken:
            scan = raw.add(known.stored, known.scan)
            studies[known.study].append(scan)
            known_of[scan.scan_id] = known
        for scans in studies.values():
            views = apply_steps(
                [View(raw.counts(s).astype(np.float32), s, (Part(s.scan_id),)) for s in scans],
                steps,
            )
            used = self._stored(writer, views, unit(steps), known_of)
            for name in (known_of[s.scan_id].name for s in scans if s.scan_id not in used):
                if self._scans_of.get(name):  # of several frames, some are in
                    self.remarks["frame that " + LEFT_OUT].append(name)
                else:
                    self.rejected.append((self._id_of[name], 0, LEFT_OUT))
        if (
            "max_min" in steps or "brightness" in steps
        ):  # one window for all, or each scan's would undo the step
            high = (
                65535.0
                if "max_min" in steps
                else float(np.median([s.high for s in writer.scans] or [0]))
            )
            writer.scans[:] = [replace(s, high=high) for s in writer.scans]
        writer.scans.sort(key=lambda s: s.scan_id)
        return writer

    def scan_ids(self, names: Sequence[str]) -> list[str]:
        """The scans that came of these inputs; the input_id of one that gave none; scan_ids as they
        are.

        Other names, as of files that annotate many scans, are left out: they are the source's.
        """
        scans = {scan_id for many in self._scans_of.values() for scan_id in many}
        ids: list[str] = []
        for name in names:
            own = [self._id_of[name]] if name in self._id_of else [name] if name in scans else []
            ids += self._scans_of.get(name) or own
        return ids

    def unmatched_labels(self) -> int:
        """Lines of labels.csv that no input or patient answers to."""
        return len(set(self.labels.by_patient) - self._labelled) + len(
            set(self.labels.by_file) - set(self._id_of)
        )

    def sources(self) -> list[tuple[str, str, str]]:
        """input_id, scan_id (empty when rejected) and path, for the map beside the key."""
        return [
            (input_id, scan_id, str(self.root / name))
            for name, input_id in self._id_of.items()
            for scan_id in self._scans_of.get(name) or [""]
        ]

    def _name_patients(self) -> None:
        """Pseudonyms of patients, which only all scans together tell apart."""
        found = persons_of([known.claim for known in self._taken])
        for place, (known, identity) in enumerate(zip(self._taken, found.identities)):
            kind, name = ("patient", identity) if identity else ("study", known.study)
            patient_id = "p" + pseudonym(self.secret, kind, name)
            self.name_of_patient[patient_id] = known.claim.id or identity
            if not identity:
                self.unknown.add(patient_id)
            self._taken[place] = known._replace(scan=replace(known.scan, patient_id=patient_id))
        self.doubts = {
            rule: [self._taken[n].name for n in places] for rule, places in found.doubts.items()
        }
        self.together = [
            (self._taken[a].scan.patient_id, self._taken[b].scan.patient_id)
            for a, b in found.together
        ]

    def _scan(self, item: Source, found: Taken) -> _Known:
        facts, secret = found.facts, self.secret
        given = (
            self.labels.by_file.get(item.name, {}).get("patient_id", "").strip()
        )  # which counts alone
        claim = (
            Claim(given)
            if given
            else Claim(
                facts.patient.strip(),
                facts.issuer,
                facts.name,
                facts.birth,
                facts.study,
                bool(facts.study or facts.instance or facts.name),
            )
        )
        issued = f"{claim.issuer}:{claim.id}"
        key = issued if issued in self.labels.by_patient else claim.id
        self._labelled.add(key)
        labels = self.labels.of(key, item.name)
        labels.pop("patient_id", "")
        alone = f"input:{self._id_of[item.name]}" if nobody(claim.id) else f"patient:{claim.id}"
        flags = (*facts.flags, *(() if found.lesions is not None else (self.unannotated,)))
        for flag in flags:
            self.remarks[REMARK_OF_FLAG[flag]].append(item.name)
        site = labels.pop("site", "") or _masked(secret, "site", facts.site)
        scanner = labels.pop("scanner", "") or _masked(secret, facts.make, facts.scanner)
        instance = pseudonym(secret, "instance", facts.instance) if facts.instance else ""
        view, pixel_mm = labels.pop("view", ""), labels.pop("pixel_mm", "")
        view = (
            (view if view in ("anterior", "posterior") else "")
            or item.view
            or facts.view
            or "unknown"
        )
        spacing = positive(pixel_mm) or facts.pixel_mm
        return _Known(
            item.name,
            facts.frame,
            facts.study or alone,
            found.stored,
            Scan(
                "",
                "",
                view,
                0,
                0,
                spacing,
                0,
                0.0,
                site,
                scanner,
                instance,
                flags,
                tuple({**dict(item.labels), **labels}.items()),
                found.lesions or (),
            ),
            claim,
        )

    def _note(self, scan: Scan, known: _Known, part: Part) -> None:
        """Remember what a scan of the dataset comes from."""
        self._scans_of[known.name].append(scan.scan_id)
        self.origins.append(
            Origin(
                scan.scan_id,
                known.name,
                known.frame,
                known.stored.height,
                known.stored.width,
                part.y,
                part.x,
            )
        )

    def _stored(
        self,
        writer: DatasetWriter,
        views: Sequence[View],
        scale: int,
        known_of: Mapping[str, _Known],
    ) -> set[str]:
        """Store what the steps made; returns the scans that are in it."""
        used = set[str]()
        for view in views:
            counts_HW = np.rint(np.clip(view.values_HW * scale, 0, 65535)).astype(np.uint16)
            if counts_HW.any():
                scan = writer.add(store(writer.path, counts_HW), view.scan)
                for part in view.made_of:
                    used.add(part.scan_id)
                    self._note(scan, known_of[part.scan_id], part)
        return used


def _masked(secret: bytes, kind: str, text: str) -> str:
    """A readable kind and six digits of a pseudonym, as of a hospital's name."""
    return f"{kind}-{pseudonym(secret, kind, text, 6)}" if text else "unknown"
