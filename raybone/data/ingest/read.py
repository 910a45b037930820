"""Scans of files, folders and archives, one by one with their counts: ``prepare`` writes a dataset
of them, ``predict`` feeds a model with them.
"""

from __future__ import annotations

import secrets
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from raybone.data.annotations import spelled
from raybone.data.ingest.archive import unpacked
from raybone.data.ingest.intake import LOST_LINE, Ledger, Patients, annotate, named, tell_apart
from raybone.data.ingest.labels import Labels, labels_in, plain_path
from raybone.data.ingest.layouts import sources_of
from raybone.data.ingest.options import ReadOptions
from raybone.data.ingest.parallel import Ended, cores, spread
from raybone.data.ingest.plugins import readers
from raybone.data.ingest.pseudonyms import pseudonym
from raybone.data.ingest.reading import Frame, Read, read_source
from raybone.data.ingest.sources import Account, Source, Sources, complaints, is_image
from raybone.data.ingest.steps import Origin, View, apply_steps, scale_of
from raybone.data.writer import DatasetWriter, store
from raybone.errors import WrongInput
from raybone.private import lock
from raybone.types import Array, Scan

MOST_LINES = 20  # files that an error names
Progress = Callable[[int, int], None]


class Told(NamedTuple):
    """Of a frame: the study that it is a view of, which view, and whether it is DICOM's."""

    study: str
    view: str
    dicom: bool


@dataclass(frozen=True)
class Reading:
    """Scans that were read, to be iterated as (scan, counts uint16 of shape (H, W)).

    Memory stays that of one scan: counts lie in the folder that they were read into, and are mapped
    from it.

    Attributes:
        content: the inputs, and the layout of their folders.
        store: where the scans and their counts are, in the order of their ids.
        origins: scan_id -> the frames that the scan is made of, in the order of the inputs.
        ledger: what became of every input.
        accounts: the annotation files, and what of them is without a scan.
        patients: who is who. told: of each frame of an input, by its name and number.
        path_of: gives the path of an input, by its name, as the caller gave it.
    """

    content: Sources
    store: DatasetWriter
    origins: Mapping[str, tuple[Origin, ...]]
    ledger: Ledger
    accounts: tuple[Account, ...]
    patients: Patients
    told: Mapping[tuple[str, int], Told]
    path_of: Callable[[str], str]

    def __iter__(self) -> Iterator[tuple[Scan, Array]]:
        return ((scan, self.store.counts(scan)) for scan in self.store.scans)

    def rejected(self) -> list[tuple[str, str]]:
        """Path and reason of every input that was not taken."""
        return [(self.path_of(r.name), r.reason) for r in self.ledger.rejected]

    def sources(self) -> list[tuple[str, str, str]]:
        """input_id, scan_id (empty when rejected) and path of every input."""
        return [(i, scan_id, self.path_of(name)) for i, scan_id, name in self.ledger.inputs()]

    def warnings(self, without: Sequence[str] = ()) -> list[str]:
        """What to know of the scans, a line each: how often a rule was applied, and the first scan.

        Args:
            without: rules to pass over.
        """
        rules = {rule: names for rule, names in self.ledger.remarks.items() if rule not in without}
        return [str(remark) for remark in self.ledger.remarked(rules)]

    def nothing(self, verb: str, options: str, show_paths: bool) -> WrongInput:
        """The error of sources without a scan: the commonest reasons, and whose they are if that is
        wanted.

        Args:
            verb: that the line begins with. options: to look at.
        """
        common = Counter(r.reason for r in self.ledger.rejected).most_common(3)
        why = "; ".join(f"{n} x {reason}" for reason, n in common) or "the folder holds none"
        lines = [f"{verb}: {path}: {reason}" for path, reason in self.rejected()]
        inputs = len(self.content.inputs)
        return WrongInput(
            f"{verb}: no scan was taken from {inputs} inputs ({why}); see {options}",
            *(lines[:MOST_LINES] if show_paths else []),
        )


def read(
    sources: Path | Sequence[Path],
    folder: Path,
    options: ReadOptions,
    secret: bytes | None = None,
    progress: Progress = lambda done, total: None,
    annotated: bool = True,
) -> Reading:
    """Read every scan of some sources, in several processes.

    Args:
        sources: a folder, with zip archives in it or not, a zip archive or a DICOMDIR; or a list of
            files, folders and archives. A labels.csv in a folder gives labels, sites and patients.
        folder: a private one on a disk with room, for counts and what is unpacked.
        secret: the key of the pseudonyms; without it they hold for this reading alone.
        progress: called with (inputs done, inputs in all).
        annotated: whether annotations are read; where none are needed, those that cannot be read,
            or differ, cost no scan.
    Raises:
        WrongInput: no such source, an impossible option, annotations that find no scan.
    """
    if problems := options.problems():
        raise WrongInput(*problems)
    secret = secret or secrets.token_bytes(32)
    raw, ledger, frames = DatasetWriter(folder / "raw"), Ledger(), list[Frame]()
    segments, left = list[tuple[str, Read]](), set[str]()
    places, path_of = _places(sources, folder)
    with ExitStack() as stack:
        roots, closed = list[tuple[str, Path]](), dict[str, str]()
        for prefix, place in places:
            opened, why = stack.enter_context(unpacked(place, folder))
            roots += [(prefix + below, root) for below, root in opened]
            closed |= {prefix + name: reason for name, reason in why.items()}
        content, labels = _content(roots, closed, options)
        if not annotated:
            content.inputs = [replace(s, coco=(), beside=()) for s in content.inputs]
            content.accounts = []
        _refuse(content.accounts, options)
        ledger.remarks.update({rule: [""] * times for rule, times in content.remarks.items()})
        for source, result in _results(content.inputs, raw.path, options, progress):
            kind, text = ("content", result.digest) if result.digest else ("path", source.name)
            input_id = "i" + pseudonym(secret, kind, text, 16)
            ledger.enter(source.name, input_id, result)
            left |= {result.instance} - {""}
            frames += [named(frame, input_id, secret, labels) for frame in result.frames]
            if result.marks is not None:
                segments.append((source.name, result))
    keys = {labels.key(frame.claim) for frame in frames}
    known = segments if annotated else ()
    frames, more = annotate(frames, known, left, ledger, options.unannotated_flag)
    accounts = (*content.accounts, *more)
    _refuse(accounts, options)
    frames, patients = tell_apart(frames, secret)
    told = _told(frames)
    made, origins = _made(frames, raw, folder / "steps", options.steps, ledger)
    ledger.close(made.copies_that_differ(), accounts, labels, keys)
    if not options.allow_unmatched:
        _refuse_lost(labels, keys, len(ledger.remarks.get(LOST_LINE, ())))
    return Reading(content, made, origins, ledger, accounts, patients, told, path_of)


def _told(frames: Sequence[Frame]) -> dict[tuple[str, int], Told]:
    """Of each frame, by the name of its input and its number."""
    return {
        (frame.name, frame.facts.frame): Told(
            frame.study, frame.scan.view, bool(frame.facts.instance or frame.facts.study)
        )
        for frame in frames
    }


def _content(
    roots: Sequence[tuple[str, Path]], closed: Mapping[str, str], options: ReadOptions
) -> tuple[Sources, Labels]:
    """Every input of all folders by its name below SOURCE, with what goes with it, and the labels.

    Args:
        roots: a prefix of names and a folder each. closed: why an archive is no folder.
    """
    layouts, content, labels = list[str](), Sources(""), Labels()
    opened = {prefix.rstrip("/") for prefix, _ in roots}
    for prefix, root in roots:
        table = labels_in(root)
        pictures = options.layout == "auto" and any(map(is_image, table.by_file))
        found = sources_of(root, "any" if pictures else options.layout).below(prefix)
        inputs = [s for s in found.inputs if s.name not in opened]
        if inputs:
            layouts.append(found.layout)
        content.inputs += [replace(s, aside=s.aside or closed.get(s.name, "")) for s in inputs]
        content.accounts += found.accounts
        content.remarks += found.remarks
        _refuse_other(labels.by_patient, table.by_patient)
        labels.by_patient.update(table.by_patient)
        labels.by_file.update(
            {plain_path(prefix + name): row for name, row in table.by_file.items()}
        )
    content.layout = "+".join(dict.fromkeys(layouts))
    return content, labels


def _refuse_other(known: Mapping[str, object], new: Mapping[str, object]) -> None:
    """Raise WrongInput where two tables say different things of a patient_id."""
    both = known.keys() & new.keys()
    if torn := sum(known[patient] != new[patient] for patient in both):
        raise WrongInput(
            f"labels.csv: those of several folders or archives differ in {torn} of the {len(both)} "
            "patient_ids that they share, which may be others' there; prepare each by itself, or "
            "key them by `file`"
        )


def _places(
    sources: Path | Sequence[Path], folder: Path
) -> tuple[list[tuple[str, Path]], Callable[[str], str]]:
    """What to read as (prefix of names, folder or archive), and what gives the path of an input as
    the caller gave it. Each folder of a list is read by itself, as its layout and its tables are of
    it alone, and the files and archives together.
    """
    listed = [sources] if isinstance(sources, Path) else list(sources)
    folders = [s.parent if s.name.upper() == "DICOMDIR" and s.is_file() else s for s in listed]
    if isinstance(sources, Path) or (len(folders) == 1 and folders[0].is_dir()):
        return [("", folders[0])], lambda name: str(folders[0] / name)
    places, files = list[tuple[str, Path]](), folder / "sources"
    for number, source in enumerate(folders):
        name = source.resolve().name
        if source.is_dir():
            places.append((f"{number}/{name}/", source))
        else:
            (files / str(number)).mkdir(parents=True)
            (files / str(number) / name).symlink_to(source.resolve())
    if files.exists():
        places.append(("", files))

    def path_of(name: str) -> str:
        number, _, *below = PurePath(name).parts
        return str(folders[int(number)].joinpath(*below))

    return places, path_of


def _refuse_lost(labels: Labels, keys: set[str], lost: int) -> None:
    """Raise WrongInput for labels that are of nobody by an evident mistake.

    Args:
        keys: of all frames. lost: lines that are of nothing here.
    """
    if not keys:
        return  # why no scan was read is to be said
    cut = {key.lstrip("0") for key in keys if key.startswith("0")} - {""}
    if short := len(cut & (labels.by_patient.keys() - keys)):
        raise WrongInput(
            f"labels.csv: {short} of its patient_ids are of scans here but for zeros before them, "
            "which spreadsheets drop; make the column one of text, and write them in full"
        )
    lines = len(labels.by_patient) + len(labels.by_file)
    if 0 < lines == lost:
        raise WrongInput(
            f"labels.csv: none of its {lines} lines is of a scan here; a file must be given by its "
            "path below SOURCE, and a patient by the id that the scans have: correct it, or leave "
            "it out"
        )


def _refuse(accounts: Sequence[Account], options: ReadOptions) -> None:
    """Refuse sources whose annotations find no scan."""
    refused = [] if options.allow_unmatched else complaints(accounts, options.show_paths)
    if refused:
        raise WrongInput(*dict.fromkeys(refused))


def _results(
    inputs: Sequence[Source], folder: Path, options: ReadOptions, progress: Progress
) -> Iterator[tuple[Source, Read]]:
    """What each input gives, in order; read in other processes."""
    readers()  # one that cannot be imported is said once, and not of every input
    work = partial(
        read_source,
        folder=folder,
        modality=options.modality,
        aliases={spelled(name): category for name, category in options.categories.items()},
        unannotated=options.unannotated_flag,
    )
    processes = min(1 if _lockless(folder) else cores(), len(inputs))
    with closing(spread(work, inputs, processes)) as results:
        for number, (source, result) in enumerate(zip(inputs, results), 1):
            if isinstance(result, Ended):
                result = Read("", 0, reason=result.reason)
            yield source, result
            progress(number, len(inputs))


def _lockless(folder: Path) -> bool:
    """Whether the file system has no locks, so that only one process may write into an array."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return not lock(file.fileno())


def _made(
    frames: Sequence[Frame], raw: DatasetWriter, folder: Path, steps: Sequence[str], ledger: Ledger
) -> tuple[DatasetWriter, dict[str, tuple[Origin, ...]]]:
    """The scans after the steps, in the order of their ids, and the frames that each is made of.

    Without steps they stay where they were read into; else they are put into another folder.
    """
    origins: dict[str, tuple[Origin, ...]] = {}

    def add(writer: DatasetWriter, scan: Scan, digest: str, of: tuple[Origin, ...]) -> None:
        scan = writer.add(scan, digest)
        origins[scan.scan_id] = of
        ledger.made(scan.scan_id, of)

    made = DatasetWriter(folder) if steps else raw
    if not steps:
        for frame in frames:
            add(made, frame.scan, frame.digest, (_origin(frame),))
    studies: dict[str, list[Frame]] = {}
    for frame in frames if steps else ():
        studies.setdefault(frame.study, []).append(frame)
    scale = scale_of(steps)
    for study in studies.values():
        used = set[Origin]()
        for view in apply_steps([_view(frame, raw) for frame in study], steps):
            values_HW = np.clip(view.values_HW * scale.unit, 0, 65535)
            counts_HW = np.rint(values_HW).astype(np.uint16)
            if counts_HW.any():
                add(made, *store(made.path, counts_HW, view.scan), view.origins)
                used |= {origin._replace(y=0, x=0) for origin in view.origins}
        for frame in study:
            if _origin(frame) not in used:
                ledger.leave_out(frame.name)
    if scale.shared:
        high = scale.shared([s.high for s in made.scans] or [0])
        made.scans[:] = [replace(s, high=high) for s in made.scans]
    # The order of the source's names says something of them.
    made.scans.sort(key=lambda s: s.scan_id)
    return made, origins


def _origin(frame: Frame) -> Origin:
    return Origin(frame.name, frame.facts.frame, frame.scan.height, frame.scan.width)


def _view(frame: Frame, raw: DatasetWriter) -> View:
    counts_HW = raw.counts(frame.scan).astype(np.float32)
    return View(counts_HW, frame.scan, (_origin(frame),))
