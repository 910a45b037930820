"""Frames of inputs on their way into a dataset: names of the source become pseudonyms, patients are
told apart, and an account is kept of every input.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import NamedTuple

from raybone.data.annotations import NO_SCAN
from raybone.data.ingest.dicom.frames import NotTaken
from raybone.data.ingest.labels import Labels, plain_path
from raybone.data.ingest.persons import Claim, anonymous, persons_of
from raybone.data.ingest.pseudonyms import pseudonym
from raybone.data.ingest.reading import Frame, Read, together
from raybone.data.ingest.sources import Account, spacing_mm
from raybone.data.ingest.steps import Origin
from raybone.data.modality import MODALITIES, flag_of
from raybone.errors import Remark
from raybone.types import Lesion, Scan

# Versions that Roboflow makes of one picture, turned or brighter, share what stands before .rf.
VERSION = re.compile(r"(.+)\.rf\.[0-9a-f]{32}\.\w+")
UNANNOTATED = (
    "scan without annotation: neither trained on nor scored, but by its labels (see --unannotated)"
)
OF_NOT_TAKEN = "is a segmentation of objects that were not taken"
LOST_LINE = "line of labels.csv without its scan or patient: left out"
REMARK_OF_FLAG = {
    "turned-over": "bright border, as of dark on white: turned over, so that uptake is high",
    "head-down": "first row at the feet, by its orientation: left as it is, as annotations lie on "
    "it",
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
    "is left out by the steps: montage and add_views need both views of a study, tiles without "
    "counts are not kept, and of lesion_tile those without a malignant lesion"
)


class Rejected(NamedTuple):
    """An input, or a frame of one, that was not taken: its pseudonym, length, the reason, and its
    name below SOURCE.
    """

    input_id: str
    bytes: int
    reason: str
    name: str


class Ledger:
    """What became of every input, by its name below SOURCE.

    Attributes:
        rejected: inputs that were not taken, in the order in which that was seen.
        remarks: rule -> names of the inputs that it was applied to, as often as it was.
    """

    def __init__(self) -> None:
        self.rejected: list[Rejected] = []
        self.remarks: dict[str, list[str]] = defaultdict(list)
        self._id_of: dict[str, str] = {}
        self._scans_of: dict[str, list[str]] = defaultdict(list)

    def enter(self, name: str, input_id: str, read: Read) -> None:
        """Note what reading an input came to."""
        self._id_of[name] = input_id
        for rule, times in read.remarks.items():
            self.remarks[rule] += [name] * times
        if read.reason:
            self.reject(name, read.reason, read.bytes)
        for frame in read.frames:
            for flag in frame.scan.flags:
                self.remarks[REMARK_OF_FLAG[flag]].append(name)

    def reject(self, name: str, reason: str, size: int = 0) -> None:
        """Note that an input, or a frame of it, is not taken."""
        self.rejected.append(Rejected(self._id_of[name], size, reason, name))

    def leave_out(self, name: str) -> None:
        """Note that the steps leave a frame out: a remark where others of its input are in."""
        if self._scans_of.get(name):
            self.remarks["frame that " + LEFT_OUT].append(name)
        else:
            self.reject(name, LEFT_OUT)

    def made(self, scan_id: str, origins: Sequence[Origin]) -> None:
        """Note which frames a scan of the dataset is made of."""
        for origin in origins:
            self._scans_of[origin.name].append(scan_id)

    def ids_of(self, names: Sequence[str]) -> list[str]:
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

    def remarked(self, remarks: Mapping[str, Sequence[str]]) -> list[Remark]:
        """Returns how often each rule was applied, and the first scan."""
        return [
            Remark(rule, len(names), "".join(self.ids_of(names)[:1]))
            for rule, names in remarks.items()
            if names
        ]

    def inputs(self) -> list[tuple[str, str, str]]:
        """input_id, scan_id (empty when rejected) and name, for the person who reads the scans."""
        return [
            (input_id, scan_id, name)
            for name, input_id in self._id_of.items()
            for scan_id in self._scans_of.get(name) or [""]
        ]

    def close(
        self, differing: list[str], accounts: Sequence[Account], labels: Labels, keys: set[str]
    ) -> None:
        """Note what only all inputs together show.

        Args:
            differing: scans of the same pixels whose annotations differ.
            accounts: of all annotation files.
            keys: of ``Labels.key`` of all frames, to find lines of the labels that none answers to.
        """
        files = {*map(plain_path, self._id_of)}
        unmatched = len({*labels.by_patient} - keys) + len({*labels.by_file} - files)
        if unmatched:
            self.remarks[LOST_LINE] += [""] * unmatched
        for account in accounts:
            self.remarks[NO_SCAN] += [account.name] * account.lost
        self.remarks = {COPIES_DIFFER: differing, **self.remarks}


def claim_of(frame: Frame, labels: Labels) -> Claim:
    """Whose a frame says it is; a patient in labels.csv of a file counts alone."""
    facts, named = frame.facts, labels.of_file(frame.name).get("patient_id", "").strip()
    if named:
        return Claim(named)
    header = bool(facts.study or facts.instance or facts.name)
    patient = facts.patient.strip()
    return Claim(patient, facts.issuer, facts.name, facts.birth, facts.study, header)


def named(frame: Frame, input_id: str, secret: bytes, labels: Labels) -> Frame:
    """A frame with its claim and study, and with what labels.csv and pseudonyms say of its scan."""

    def masked(kind: str, text: str) -> str:
        """A readable kind and six digits of a pseudonym, as of a hospital's name."""
        return f"{kind}-{pseudonym(secret, kind, text, 6)}" if text else "unknown"

    facts, scan, claim = frame.facts, frame.scan, claim_of(frame, labels)
    own = labels.of(labels.key(claim), frame.name)
    own.pop("patient_id", "")
    view, spacing = own.pop("view", ""), own.pop("pixel_mm", "")
    scan = replace(
        scan,
        view=view if view in ("anterior", "posterior") else scan.view or "unknown",
        pixel_mm=spacing_mm(spacing) or scan.pixel_mm,
        site=own.pop("site", "") or masked("site", " ".join(facts.site.split()).casefold()),
        scanner=own.pop("scanner", "") or masked(facts.make, facts.scanner),
        instance=pseudonym(secret, "instance", facts.instance) if facts.instance else "",
        labels=tuple({**dict(scan.labels), **own}.items()),
    )
    alone = f"input:{input_id}" if anonymous(claim.id) else f"patient:{claim.id}"
    return replace(frame, scan=scan, claim=claim, study=facts.study or alone)


@dataclass(frozen=True)
class Patients:
    """Who is who among the frames of all inputs.

    Attributes:
        unknown: patient_ids that stand for a study or a file, as the source names no patient.
        name_of: what the source calls the patient of a patient_id, for tables that are keyed by it.
        doubts: rule -> names of the inputs that it was applied to.
        together: pairs of patient_ids that may be one person.
    """

    unknown: set[str]
    name_of: dict[str, str]
    doubts: dict[str, list[str]]
    together: list[tuple[str, str]]


def tell_apart(frames: Sequence[Frame], secret: bytes) -> tuple[list[Frame], Patients]:
    """The frames with their patient_ids, which only all scans together tell."""
    persons = persons_of([frame.claim for frame in frames])
    unknown, name_of, settled = set[str](), dict[str, str](), list[Frame]()
    for frame, identity in zip(frames, persons.identities):
        kind, name = ("patient", identity) if identity else ("study", frame.study)
        patient_id = "p" + pseudonym(secret, kind, name)
        name_of[patient_id] = frame.claim.id or identity
        if not identity:
            unknown.add(patient_id)
        settled.append(replace(frame, scan=replace(frame.scan, patient_id=patient_id)))
    doubts = {rule: [frames[n].name for n in many] for rule, many in persons.doubts.items()}
    ids = [frame.scan.patient_id for frame in settled]
    together = [(ids[a], ids[b]) for a, b in persons.together]
    versions: dict[str, list[str]] = defaultdict(list)
    for frame, patient_id in zip(frames, ids):
        if version := VERSION.fullmatch(PurePosixPath(frame.name).name):
            versions[version[1]].append(patient_id)
    together += [pair for many in versions.values() for pair in zip(many, many[1:])]
    return settled, Patients(unknown, name_of, doubts, together)


def annotate(
    frames: Sequence[Frame],
    segments: Sequence[tuple[str, Read]],
    left: Set[str],
    ledger: Ledger,
    flag: str,
) -> tuple[list[Frame], list[Account]]:
    """Give the frames what segmentation objects say of them.

    Args:
        segments: name and content of each object.
        left: objects that were not taken, by their SOP Instance UID.
        flag: of a scan that nothing annotates.
    Returns:
        the frames, without those that have another annotation which differs; these are rejected.
        And an account of each object.
    """
    marked, torn, accounts = list(frames), set[str](), []
    numbers: dict[str, list[int]] = defaultdict(list)
    for n, frame in enumerate(frames):
        numbers[frame.facts.instance].append(n)
    for name, read in segments:
        lost = without = 0
        for mark in read.marks or ():
            if mark.instance in left and mark.instance not in numbers:
                ledger.remarks[NO_SCAN].append(name)
                without += 1
                continue
            of_object = numbers.get(mark.instance, ()) if mark.instance else ()
            meant = [n for n in of_object if mark.frame in (None, frames[n].facts.frame)]
            # An object may be there several times, as in an archive and unpacked
            same = len({frames[n].digest for n in meant}) == 1
            sizes = {(frames[n].scan.height, frames[n].scan.width) for n in meant}
            if not same or sizes != {mark.size}:
                lost += 1
                continue
            for n in meant:
                frame = marked[n]
                try:
                    scan = _annotated(frame.scan, mark.lesions, flag)
                except NotTaken as reason:
                    if frame.name not in torn:
                        ledger.reject(frame.name, str(reason))
                    torn.add(frame.name)
                    continue
                if flag in frame.scan.flags:
                    ledger.remarks[REMARK_OF_FLAG[flag]].remove(frame.name)
                marked[n] = replace(frame, scan=scan)
        marks = len(read.marks or ())
        why = read.reason or "is a segmentation of objects that are not here, or of another size"
        unread = bool(read.reason)
        accounts.append(Account(name, max(1, marks), lost or int(not marks), why, True, unread))
        if without == marks > 0:
            ledger.reject(name, OF_NOT_TAKEN, read.bytes)
        elif not unread and lost + without == marks:
            ledger.reject(name, why, read.bytes)
    return [frame for frame in marked if frame.name not in torn], accounts


def _annotated(scan: Scan, lesions: tuple[Lesion, ...], flag: str) -> Scan:
    """A scan with further lesions.

    Raises:
        NotTaken: it has others, which differ.
    """
    if flag not in scan.flags:
        return replace(scan, lesions=together(scan.lesions, lesions))
    flags = tuple(f for f in scan.flags if f != flag)
    return replace(scan, flags=flags, lesions=lesions)
