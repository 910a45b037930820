"""Raw scans and annotations to a checked dataset folder."""

from __future__ import annotations

import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from raybone.data.annotations import LEFT_OUT, NO_SCAN, foci, nothing_to_learn, spelled
from raybone.data.augment import lost_at
from raybone.data.dataset import DatasetWriter
from raybone.data.folds import TEST, TRAINING, assign_folds, folds_by_site, stratum_label
from raybone.data.ingest.archive import unpacked
from raybone.data.ingest.intake import COPIES_DIFFER, Intake, Origin
from raybone.data.ingest.labels import read_labels, read_split
from raybone.data.ingest.layouts import LAYOUTS, Layout, sources_of
from raybone.data.ingest.parallel import Ended, cores, spread
from raybone.data.ingest.pseudonyms import key_path, pseudonym, read_key, write_map
from raybone.data.ingest.reading import Read, read_source
from raybone.data.ingest.sources import Account, Source, complaints
from raybone.data.ingest.steps import STEPS, unit
from raybone.data.near_duplicates import joined, lookalikes
from raybone.errors import WrongInput
from raybone.private import lock, put, sweep, workplace
from raybone.types import Scan

SIZES = (128, 256, 512, 1024)  # of images, at which lesions that get too small are counted
MOST_LINES = 20  # files that an error names
ALIKE = "scan that looks like one of another patient: may be one person"


@dataclass(frozen=True)
class Prepared:
    """What ``prepare`` made: the content of dataset.json, the inputs that were not taken, and where
    inputs lie.

    rejected: (input_id, bytes, reason). sources: (input_id, scan_id, path), for the person at the
    terminal alone. accounts: the annotation files, and what found no scan. origins: the frames of
    inputs that scans are made of.
    """

    path: Path
    meta: dict[str, Any]
    rejected: tuple[tuple[str, int, str], ...]
    sources: tuple[tuple[str, str, str], ...]
    accounts: tuple[Account, ...] = ()
    origins: tuple[Origin, ...] = ()


def prepare(
    source: Path | str,
    dataset: Path | str,
    layout: Layout = "auto",
    modality: str | None = "NM",
    folds: int | Literal["site"] = 5,
    key: Path | str | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    holdout: float = 0.0,
    split: Path | str | None = None,
    categories: Mapping[str, str] | None = None,
    steps: Sequence[str] = (),
    negatives: Literal["folds", "training"] = "folds",
    unannotated: Literal["apart", "negative"] = "apart",
    allow_unmatched: bool = False,
    show_paths: bool = False,
) -> Prepared:
    """Read every scan under ``source`` and write the dataset folder, whole or not at all.

    Args:
        source: a folder, with zip archives in it or not, a zip archive or a DICOMDIR. A labels.csv
            in it gives labels, sites and patients (see ``read_labels``).
        layout: ``dicom`` takes every DICOM file, ``labelme`` any scan, ``coco`` what COCO files
            name; see docs/data.md.
        dataset: the folder to make; it must not exist.
        modality: for DICOM, the only Modality taken; None takes all.
        folds: cross-validation folds, fewer when there are fewer patients; or ``site`` to leave one
            site out.
        key: file with the key of the pseudonyms; made (mode 0600) when absent. The map from inputs
            to paths is written beside it. Default: ``$XDG_CONFIG_HOME/raybone/key``.
        seed: another order of patients of equal burden. progress: called with (inputs done, inputs
            in all).
        holdout: share (below 1) or number of the patients for the test group, which no search sees.
        split: CSV of patient_id and fold (or ``test``) to take the folds from.
        categories: further names of annotations -> categories of the dataset.
        negatives: whether patients without a malignant lesion are dealt out to the folds as all
            are, or are in the training part of every fold.
        unannotated: whether a scan without annotation, where others have one, is kept apart,
            neither trained on nor scored, or counts as one without lesion.
        allow_unmatched: go on although annotations find no scan, or several; they are left out.
        show_paths: name files in errors.
        steps: preprocessing, names of ``raybone.data.ingest.steps.STEPS`` in order.
    Raises:
        WrongInput: no such folder, nothing to take, an impossible option, annotations that find no
            scan, a leaking split, or the dataset exists.
    """
    source, dataset, key_file = Path(source), Path(dataset), key_path(key)
    sweep(dataset)
    _check(source, dataset, key_file, layout, folds, holdout, split, steps, negatives, unannotated)
    given = read_split(Path(split)) if split else None
    intake = Intake(
        read_key(key_file), source, "unannotated" if unannotated == "apart" else "taken-as-negative"
    )
    dataset.parent.mkdir(parents=True, exist_ok=True)
    with workplace(dataset) as half:
        raw = DatasetWriter(half / "raw")
        with unpacked(source, half) as (roots, closed):
            found, inputs, accounts = _inputs(roots, closed, layout, intake)
            _hold(accounts, allow_unmatched, show_paths)
            aliases = {spelled(name): category for name, category in (categories or {}).items()}
            work = partial(read_source, folder=raw.path, modality=modality, aliases=aliases)
            _read(inputs, work, intake, progress, 1 if _lockless(half) else cores())
        accounts += intake.join()
        _hold(accounts, allow_unmatched, show_paths)
        writer = intake.settle(raw, half / "steps", steps)
        if not writer.scans:
            raise _nothing(intake, len(inputs), show_paths)
        dealt = _folds(intake, writer, folds, seed, holdout, given, negatives)
        content = _finish(intake, writer, found, accounts, steps, *dealt)
        write_map(key_file, content["hash"], intake.sources())
        put(writer.path, dataset)
    return Prepared(
        dataset,
        content,
        tuple(intake.rejected),
        tuple(intake.sources()),
        tuple(accounts),
        tuple(intake.origins),
    )


def _check(
    source: Path,
    dataset: Path,
    key_file: Path,
    layout: str,
    folds: int | str,
    holdout: float,
    split: Path | str | None,
    steps: Sequence[str],
    negatives: str,
    unannotated: str,
) -> None:
    problems = []
    if layout not in LAYOUTS:
        problems.append(f"--layout: must be one of {', '.join(LAYOUTS)}; got {layout}")
    if os.path.lexists(dataset):
        problems.append(f"prepare: {dataset} must not exist yet; choose another name or remove it")
    if dataset.resolve() in key_file.resolve().parents:
        problems.append(
            "--key: must lie outside DATASET, which others may be given; choose another place"
        )
    if source.is_dir() and source.resolve() in dataset.resolve().parents:
        problems.append(
            "prepare: DATASET must not lie in SOURCE, or it would be read itself; choose a place "
            "outside"
        )
    if folds != "site" and (not isinstance(folds, int) or folds < 2):
        problems.append(f"prepare: folds must be at least 2, or site, got {folds}; 5 is usual")
    if not 0 <= holdout < float("inf") or (holdout > 1 and holdout != int(holdout)):
        problems.append(
            f"--holdout: must be a share below 1 or a number of patients, got {holdout:g}"
        )
    if folds == "site" and holdout:
        problems.append(
            "--holdout: cannot go with --folds site, which leaves each site out in turn; leave one "
            "out"
        )
    if split and (holdout or folds == "site"):
        problems.append(
            "--split: gives all folds and the test group; leave --holdout and --folds site out"
        )
    if negatives not in ("folds", "training"):
        problems.append(f"--negatives: must be folds or training, got {negatives}")
    if negatives == "training" and (split or folds == "site"):
        problems.append(
            "--negatives: training cannot go with --split, which names such patients itself, or "
            "--folds site; leave one out"
        )
    if unannotated not in ("apart", "negative"):
        problems.append(f"--unannotated: must be apart or negative, got {unannotated}")
    if {"max_min", "brightness"} <= set(steps):
        problems.append("--steps: max_min and brightness undo each other; take one of them")
    unknown = [s for s in steps if s not in STEPS]
    if unknown:
        problems.append(
            f"--steps: no step is called {', '.join(unknown)}; there are {', '.join(STEPS)}"
        )
    if problems:
        raise WrongInput(*problems)


def _hold(accounts: list[Account], allow_unmatched: bool, show_paths: bool) -> None:
    """Refuse a source whose annotations find no scan."""
    refused = [] if allow_unmatched else complaints(accounts, show_paths)
    if refused:
        raise WrongInput(*refused)


def _nothing(intake: Intake, inputs: int, show_paths: bool) -> WrongInput:
    """The error of a source without a scan: the commonest reasons, and whose they are if that is
    wanted.
    """
    why = "; ".join(
        f"{n} x {r}" for r, n in Counter(r for _, _, r in intake.rejected).most_common(3)
    )
    reason_of = {input_id: reason for input_id, _, reason in intake.rejected}
    lines = [
        f"prepare: {path}: {reason_of[i]}" for i, _, path in intake.sources() if i in reason_of
    ]
    return WrongInput(
        f"prepare: no scan was taken from {inputs} inputs ({why or 'the folder holds none'}); see "
        "--layout and --modality",
        *(lines[:MOST_LINES] if show_paths else []),
    )


def _inputs(
    roots: list[tuple[str, Path]], closed: Mapping[str, str], layout: Layout, intake: Intake
) -> tuple[str, list[Source], list[Account]]:
    """The layout, every input of all folders by its name below SOURCE, and accounts; labels go to
    the intake.
    """
    layouts, inputs, accounts = [], list[Source](), list[Account]()
    opened = {prefix.rstrip("/") for prefix, _ in roots}
    for prefix, root in roots:
        found = sources_of(root, layout).below(prefix)
        for rule, times in found.remarks.items():
            intake.remarks[rule] += [""] * times
        inputs += [
            replace(s, aside=s.aside or closed.get(s.name, ""))
            for s in found.inputs
            if s.name not in opened
        ]
        accounts += found.accounts
        if not {s.name for s in found.inputs} <= opened:
            layouts.append(found.layout)
        if (root / "labels.csv").is_file():
            labels = read_labels(root / "labels.csv")
            intake.labels.by_patient.update(labels.by_patient)
            intake.labels.by_file.update(
                {prefix + name: row for name, row in labels.by_file.items()}
            )
    return "+".join(dict.fromkeys(layouts)), inputs, accounts


def _read(
    inputs: Sequence[Source],
    work: Callable[[Source], Read],
    intake: Intake,
    progress: Callable[[int, int], None],
    most: int,
) -> None:
    with closing(spread(work, inputs, min(most, len(inputs)))) as results:
        for number, (item, read) in enumerate(zip(inputs, results), 1):
            if isinstance(read, Ended):
                read = Read("", 0, reason=read.reason)
            intake.take(item, read)
            progress(number, len(inputs))


def _lockless(folder: Path) -> bool:
    """Whether the file system has no locks, so that only one process may write into an array."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return not lock(file.fileno())


def _folds(
    intake: Intake,
    writer: DatasetWriter,
    folds: int | Literal["site"],
    seed: int,
    holdout: float,
    given: Mapping[str, int] | None,
    negatives: str,
) -> tuple[dict[str, int], dict[str, str], list[str]]:
    """Fold and group of each patient, and warnings on what folds cannot rule out; a group may be
    one person.
    """
    scans, warnings = writer.scans, list[str]()
    dealt = given is None and folds != "site"
    content, pairs = writer.patient_content(), _pairs(intake, writer, dealt, warnings)
    patients = {s.patient_id for s in scans}
    groups = joined(sorted(patients), pairs)
    if not dealt:
        fold_of = (
            folds_by_site(scans, content)
            if given is None
            else _given(intake, patients, given, warnings)
        )
        option = "--folds site" if given is None else "--split"
        if any(fold_of[a] != fold_of[b] for a, b in writer.copies()):
            raise WrongInput(
                f"{option}: scans with the same pixels are in two folds under two patient ids, "
                "which leaks; `raybone inspect` of a dataset made without it names them: put these "
                "patients into one fold, or leave one out"
            )
        torn = {frozenset(pair) for pair in pairs if fold_of[pair[0]] != fold_of[pair[1]]}
        if torn:
            warnings.append(
                f"{len(torn)} pairs of patients who may be one person are in two folds by "
                f"{option}: leakage between folds cannot be excluded; put each pair into one fold, "
                "or leave one out"
            )
    elif isinstance(folds, int):
        spare = _without_metastasis(scans, groups) if negatives == "training" else set()
        if spare == patients:
            raise WrongInput(
                "--negatives: training needs patients with malignant lesions to score by, and "
                "there is none; leave it out"
            )
        warnings += _kept(groups, intake.unknown)
        fold_of = assign_folds(
            [s for s in scans if s.patient_id not in spare],
            content,
            folds,
            seed,
            holdout=holdout,
            together=groups,
        ) | dict.fromkeys(sorted(spare), TRAINING)
        made = len({f for f in fold_of.values() if f >= 0})
        if made < folds:
            warnings.append(
                f"patients are too few for {folds} folds{' and a test group' if holdout else ''}: "
                f"folds = {made}"
            )
    if holdout and TEST not in fold_of.values():
        warnings.append(
            f"a test group of {holdout:g} of {len(patients)} patients is empty: there is none"
        )
    most = Counter(s.patient_id for s in scans).most_common(1)[0][1]
    if len(patients) > 1 and most > 20 and most > len(scans) / 2:
        warnings.append(f"{most} of {len(scans)} scans have one patient id: is it a placeholder?")
    return fold_of, groups, warnings


def _without_metastasis(scans: Sequence[Scan], groups: Mapping[str, str]) -> set[str]:
    """Patients who are known to have no metastasis, and share a group with nobody who has or may
    have one.
    """
    sick = {
        groups[s.patient_id]
        for s in scans
        if "unannotated" in s.flags or any(le.category == "malignant" for le in s.lesions)
    }
    return {s.patient_id for s in scans if groups[s.patient_id] not in sick}


def _pairs(
    intake: Intake, writer: DatasetWriter, dealt: bool, warnings: list[str]
) -> list[tuple[str, str]]:
    """Patients who may be one person: with a scan of the same pixels, look-alikes, and those in
    doubt by their ids.
    """
    alike = list(lookalikes(writer.scans, writer.counts, intake.unknown))
    pairs = [(a.patient_id, b.patient_id) for a, b, _ in alike]
    if intake.unknown:
        strangers = sum(s.patient_id in intake.unknown for s in writer.scans)
        together = joined(intake.unknown, [pair for pair in pairs if set(pair) <= intake.unknown])
        sizes = [n for n in Counter(together.values()).values() if n > 1]
        kept = (
            f", and {sum(sizes)} of them that look alike are kept together in {len(sizes)} groups"
            * dealt
        )
        warnings.append(
            f"{strangers} scans have no patient id: leakage between folds cannot be excluded; each "
            f"study or file counts as a patient{kept}"
        )
    intake.doubts[ALIKE] = sorted(
        {
            s.scan_id
            for a, b, _ in alike
            for s in (a, b)
            if not {a.patient_id, b.patient_id} <= intake.unknown
        }
    )
    here = {s.patient_id for s in writer.scans}  # the steps may have left some out
    return [*writer.copies(), *pairs, *(pair for pair in intake.together if set(pair) <= here)]


def _kept(groups: Mapping[str, str], unknown: set[str]) -> list[str]:
    """What is done about patients who may be one person, where ids or scans of known ones say
    so.
    """
    members: dict[str, set[str]] = defaultdict(set)
    for patient, group in groups.items():
        members[group].add(patient)
    sizes = [len(many) for many in members.values() if len(many) > 1 and not many <= unknown]
    return (
        [
            f"{sum(sizes)} patients who may be one person with another are kept together in "
            f"{len(sizes)} groups"
        ]
        if sizes
        else []
    )


def _given(
    intake: Intake, patients: set[str], given: Mapping[str, int], warnings: list[str]
) -> dict[str, int]:
    """The split's fold of each patient, who may be named by id or by pseudonym."""
    named = {p: name for p in patients for name in (p, intake.name_of_patient[p]) if name in given}
    fold_of = {p: given[name] for p, name in named.items()}
    if unused := set(given) - set(named.values()):
        warnings.append(f"{len(unused)} patients of --split have no scan here")
    missing = len(patients) - len(fold_of)
    if missing:
        raise WrongInput(
            f"--split: every patient needs a fold, {missing} of {len(patients)} have none; add them"
        )
    if {f for f in fold_of.values() if f >= 0} != {f for f in given.values() if f >= 0}:
        raise WrongInput(
            "--split: a fold has none of the patients taken; look at rejected inputs, or split "
            "again"
        )
    return fold_of


def _finish(
    intake: Intake,
    writer: DatasetWriter,
    layout: str,
    accounts: Sequence[Account],
    steps: Sequence[str],
    fold_of: dict[str, int],
    groups: Mapping[str, str],
    warnings: list[str],
) -> dict[str, Any]:
    """Write the tables; returns the content of dataset.json."""
    scans = writer.scans
    if intake.unmatched_labels():
        intake.remarks["line of labels.csv without its scan or patient: left out"] += [
            ""
        ] * intake.unmatched_labels()
    lost = [name for a in accounts for name in [a.name] * a.lost]
    of_rejected = len(intake.remarks[NO_SCAN])
    intake.remarks |= {NO_SCAN: intake.remarks[NO_SCAN] + lost} if lost else {}
    intake.remarks = {COPIES_DIFFER: writer.copies_that_differ(), **intake.remarks}
    doubts, remarked = _told(intake, intake.doubts), _told(intake, intake.remarks)
    remarks = {
        rule: list(dict.fromkeys(intake.scan_ids(names)))
        for rule, names in {**intake.remarks, **intake.doubts}.items()
        if names
    }
    categories = sorted(
        {le.category for s in scans for le in s.lesions}, key=lambda c: (c != "malignant", c)
    )
    meta = {
        "layout": layout,
        "patients_known": not intake.unknown,
        "pseudonyms": pseudonym(intake.secret, "dataset", ""),
        "categories": categories,
        "stratified_by": stratum_label(scans),
        "preprocessing": {
            "values": "modality values, negatives clipped to 0",
            "steps": list(steps),
            "unit": unit(steps),
            "high": "65535"
            if "max_min" in steps
            else "median of the scans' 99.9 percentiles"
            if "brightness" in steps
            else "99.9 percentile",
        },
        "counts": {
            "scans": len(scans),
            "patients": len(fold_of),
            "lesions": sum(len(foci(s)) for s in scans),
            "unannotated": sum(intake.unannotated in s.flags for s in scans),
            "annotations": sum(a.annotations for a in accounts),
            "annotations_lost": len(lost),
            "annotations_of_rejected": of_rejected,
            "annotations_left_out": sum(len(intake.remarks.get(rule, ())) for rule in LEFT_OUT),
            "too_small": {
                str(size): lost_at([replace(s, lesions=tuple(foci(s))) for s in scans], size)
                for size in SIZES
            },
            "rejected": len(intake.rejected),
            "folds": len({f for f in fold_of.values() if f >= 0}),
            "test_patients": sum(f == TEST for f in fold_of.values()),
            "training_patients": sum(f == TRAINING for f in fold_of.values()),
        },
        "warnings": nothing_to_learn(scans) + remarked + doubts + warnings,
        "fold_warnings": doubts + warnings,
        "remarks": remarks,
    }
    return writer.finish(fold_of, categories, meta, intake.rejected, groups)


def _told(intake: Intake, remarks: Mapping[str, Sequence[str]]) -> list[str]:
    """A warning for each rule: how often it was applied, and the first scan."""
    first = {rule: intake.scan_ids(names)[:1] for rule, names in remarks.items()}
    return [
        f"{len(names)} x {rule}" + (f" (first {first[rule][0]})" if first[rule] else "")
        for rule, names in remarks.items()
        if names
    ]
