"""Raw scans and annotations to a checked dataset folder."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from raybone.data.annotations import LEFT_OUT, NO_SCAN, foci, nothing_to_learn
from raybone.data.augment import lost_at
from raybone.data.folds import TEST, TRAINING, assign_folds, folds_by_site, stratum_label
from raybone.data.ingest.labels import read_split
from raybone.data.ingest.options import PrepareKeywords, PrepareOptions
from raybone.data.ingest.pseudonyms import key_path, pseudonym, read_key, write_map
from raybone.data.ingest.read import Reading, read
from raybone.data.ingest.sources import Account
from raybone.data.ingest.steps import scale_of
from raybone.data.near_duplicates import joined, lookalikes
from raybone.errors import WrongInput
from raybone.private import put, sweep, workplace
from raybone.types import Scan

SIZES = (128, 256, 512, 1024)  # of images, at which lesions that get too small are counted
ALIKE = "scan that looks like one of another patient: may be one person"


@dataclass(frozen=True)
class Prepared:
    """What ``prepare`` made: the content of dataset.json, the inputs that were not taken, and where
    inputs lie.

    rejected: (input_id, bytes, reason). sources: (input_id, scan_id, path), for the person at the
    terminal alone. accounts: the annotation files, and what of them is without a scan.
    """

    path: Path
    meta: dict[str, Any]
    rejected: tuple[tuple[str, int, str], ...]
    sources: tuple[tuple[str, str, str], ...]
    accounts: tuple[Account, ...] = ()

    def __fspath__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class _Dealt:
    """How patients are dealt out to folds.

    fold_of: of each patient. groups: of each patient the one that stands for all who may be the
    same person. doubts: rule -> names of inputs or scan_ids, on who is who. warnings: on what folds
    cannot rule out. rule: ``burden`` where folds are to be alike, ``site``, or a given ``split``.
    """

    fold_of: dict[str, int]
    groups: dict[str, str]
    doubts: dict[str, list[str]]
    warnings: list[str]
    rule: str


def prepare(
    source: Path | str,
    dataset: Path | str,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **options: Unpack[PrepareKeywords],
) -> Prepared:
    """Read every scan under ``source`` and write the dataset folder, whole or not at all.

    Args:
        source: a folder, with zip archives in it or not, a zip archive or a DICOMDIR. A labels.csv
            in it gives labels, sites and patients (see ``read_labels``).
        dataset: the folder to make; it must not exist.
        progress: called with (inputs done, inputs in all).
        options: see ``PrepareOptions``.
    Raises:
        WrongInput: no such folder, nothing to take, an impossible option, annotations that find no
            scan, a leaking split, or the dataset exists.
    """
    source, dataset, chosen = Path(source), Path(dataset), PrepareOptions(**options)
    key_file = key_path(chosen.key)
    sweep(dataset)
    _check(source, dataset, key_file, chosen)
    split = read_split(Path(chosen.split)) if chosen.split else None
    secret = read_key(key_file)
    dataset.parent.mkdir(parents=True, exist_ok=True)
    with workplace(dataset) as half:
        reading = read(source, half, chosen, secret, progress)
        if not reading.store.scans:
            raise reading.nothing("prepare", "--layout and --modality", chosen.show_paths)
        dealt = _dealt(reading, chosen, split)
        meta = _meta(reading, chosen, secret, dealt)
        rejected = [(r.input_id, r.bytes, r.reason) for r in reading.ledger.rejected]
        meta = reading.store.finish(dealt.fold_of, meta, rejected, dealt.groups)
        write_map(key_file, meta["hash"], reading.sources())
        put(reading.store.path, dataset)
    return Prepared(dataset, meta, tuple(rejected), tuple(reading.sources()), reading.accounts)


def _check(source: Path, dataset: Path, key_file: Path, options: PrepareOptions) -> None:
    """Refuse what cannot be, all of it at once."""
    problems = options.problems()
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
    if problems:
        raise WrongInput(*problems)


def _dealt(reading: Reading, options: PrepareOptions, split: Mapping[str, int] | None) -> _Dealt:
    """Fold of each patient; patients who may be one person share it."""
    scans, holdout = reading.store.scans, options.holdout
    patients, by_rule = {s.patient_id for s in scans}, split is not None or options.folds == "site"
    doubts, warnings = dict(reading.patients.doubts), list[str]()
    pairs, doubts[ALIKE] = _pairs(reading, not by_rule, warnings)
    groups = joined(sorted(patients), pairs)
    if by_rule:
        fold_of = _by_rule(reading, split, pairs, warnings)
    else:
        fold_of = _by_burden(reading, options, groups, warnings)
    if holdout and TEST not in fold_of.values():
        warnings.append(
            f"a test group of {holdout:g} of {len(patients)} patients is empty: there is none"
        )
    most = Counter(s.patient_id for s in scans).most_common(1)[0][1]
    if len(patients) > 1 and most > 20 and most > len(scans) / 2:
        warnings.append(f"{most} of {len(scans)} scans have one patient id: is it a placeholder?")
    rule = ("site" if split is None else "split") if by_rule else "burden"
    return _Dealt(fold_of, groups, doubts, warnings, rule)


def _by_rule(
    reading: Reading,
    split: Mapping[str, int] | None,
    pairs: Sequence[tuple[str, str]],
    warnings: list[str],
) -> dict[str, int]:
    """Folds of the split, or without one by site.

    Args:
        pairs: patients who may be one person.
    Raises:
        WrongInput: copies of a scan are in two folds.
    """
    store = reading.store
    if split is None:
        option, fold_of = "--folds site", folds_by_site(store.scans, store.patient_content())
    else:
        option, fold_of = "--split", _by_split(reading, split, warnings)
    if any(fold_of[a] != fold_of[b] for a, b in store.copies()):
        raise WrongInput(
            f"{option}: scans with the same pixels are in two folds under two patient ids, which "
            "leaks; `raybone inspect` of a dataset made without it names them: put these patients "
            "into one fold, or leave one out"
        )
    torn = {frozenset(pair) for pair in pairs if fold_of[pair[0]] != fold_of[pair[1]]}
    if torn:
        warnings.append(
            f"{len(torn)} pairs of patients who may be one person are in two folds by {option}: "
            "leakage between folds cannot be excluded; put each pair into one fold, or leave one "
            "out"
        )
    return fold_of


def _by_split(reading: Reading, split: Mapping[str, int], warnings: list[str]) -> dict[str, int]:
    """The split's fold of each patient, who may be named by id or by pseudonym."""
    patients, name_of = {s.patient_id for s in reading.store.scans}, reading.patients.name_of
    named = {p: name for p in patients for name in (p, name_of[p]) if name in split}
    fold_of = {p: split[name] for p, name in named.items()}
    if unused := set(split) - set(named.values()):
        warnings.append(f"{len(unused)} patients of --split have no scan here")
    missing = len(patients) - len(fold_of)
    if missing:
        raise WrongInput(
            f"--split: every patient needs a fold, {missing} of {len(patients)} have none; add them"
        )
    if {f for f in fold_of.values() if f >= 0} != {f for f in split.values() if f >= 0}:
        raise WrongInput(
            "--split: a fold has none of the patients taken; look at rejected inputs, or split "
            "again"
        )
    return fold_of


def _by_burden(
    reading: Reading, options: PrepareOptions, groups: Mapping[str, str], warnings: list[str]
) -> dict[str, int]:
    """Folds of equal burden, each group of patients in one."""
    scans, folds = reading.store.scans, int(options.folds)
    spare = _without_metastasis(scans, groups) if options.negatives == "training" else set()
    spare |= _unknown(scans, groups)
    kept = [s for s in scans if s.patient_id not in spare]
    if not kept:
        raise WrongInput(
            "--negatives: training needs patients with malignant lesions to score by, and there is "
            "none; leave it out"
        )
    warnings += _kept(groups, reading.patients.unknown)
    fold_of = assign_folds(
        kept,
        reading.store.patient_content(),
        folds,
        options.seed,
        holdout=options.holdout,
        together=groups,
    )
    fold_of |= dict.fromkeys(sorted(spare), TRAINING)
    made = len({f for f in fold_of.values() if f >= 0})
    if made < folds:
        warnings.append(
            f"patients are too few for {folds} "
            f"folds{' and a test group' if options.holdout else ''}: folds = {made}"
        )
    return fold_of


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


def _unknown(scans: Sequence[Scan], groups: Mapping[str, str]) -> set[str]:
    """Patients of whom neither lesions nor a label of 0 or 1 are known, nor of anybody in their
    group: they may be trained on, but nothing can be scored by them. None where that is so of all.
    """
    scored = (s for s in scans if s.annotated or {"0", "1"} & set(dict(s.labels).values()))
    known = {groups[s.patient_id] for s in scored}
    return {s.patient_id for s in scans if known and groups[s.patient_id] not in known}


def _pairs(
    reading: Reading, dealt: bool, warnings: list[str]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Patients who may be one person: with a scan of the same pixels, look-alikes, and those in
    doubt by their ids. And the scans that look like one of another patient who is known.
    """
    store, unknown = reading.store, reading.patients.unknown
    alike = list(lookalikes(store.scans, store.counts, unknown))
    pairs = [(a.patient_id, b.patient_id) for a, b, _ in alike]
    if unknown:
        strangers = sum(s.patient_id in unknown for s in store.scans)
        together = joined(unknown, [pair for pair in pairs if set(pair) <= unknown])
        sizes = [n for n in Counter(together.values()).values() if n > 1]
        kept = (
            f", and {sum(sizes)} of them that look alike are kept together in {len(sizes)} groups"
        )
        warnings.append(
            f"{strangers} scans have no patient id: leakage between folds cannot be excluded; each "
            f"study or file counts as a patient{kept * dealt}"
        )
    known = [pair for pair in alike if not {s.patient_id for s in pair[:2]} <= unknown]
    here = {s.patient_id for s in store.scans}  # the steps may have left some out
    doubtful = [pair for pair in reading.patients.together if set(pair) <= here]
    scan_ids = sorted({s.scan_id for pair in known for s in pair[:2]})
    return [*store.copies(), *pairs, *doubtful], scan_ids


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


def _meta(
    reading: Reading, options: PrepareOptions, secret: bytes, dealt: _Dealt
) -> dict[str, Any]:
    """What dataset.json says besides the hash."""
    scans, ledger = reading.store.scans, reading.ledger
    categories = {le.category for s in scans for le in s.lesions}
    shared_out = [s for s in scans if dealt.fold_of[s.patient_id] != TRAINING]
    doubts = [str(remark) for remark in ledger.remarked(dealt.doubts)]
    remarks = {**ledger.remarks, **dealt.doubts}
    return {
        "layout": reading.content.layout,
        "patients_known": not reading.patients.unknown,
        "pseudonyms": pseudonym(secret, "dataset", ""),
        "categories": sorted(categories, key=lambda c: (c != "malignant", c)),
        "folds_by": dealt.rule,
        "stratified_by": stratum_label(shared_out) if dealt.rule == "burden" else None,
        "preprocessing": {
            "values": "modality values, negatives clipped to 0",
            "steps": list(options.steps),
            "unit": scale_of(options.steps).unit,
            "high": scale_of(options.steps).window,
        },
        "counts": _counts(reading, options, list(dealt.fold_of.values())),
        "warnings": nothing_to_learn(scans) + reading.warnings() + doubts + dealt.warnings,
        "fold_warnings": doubts + dealt.warnings,
        "remarks": {
            rule: list(dict.fromkeys(ledger.ids_of(names)))
            for rule, names in remarks.items()
            if names
        },
        "remark_times": {remark.rule: remark.times for remark in ledger.remarked(remarks)},
    }


def _counts(reading: Reading, options: PrepareOptions, folds: Sequence[int]) -> dict[str, Any]:
    """The numbers of dataset.json.

    Args:
        folds: of every patient.
    """
    scans, remarks = reading.store.scans, reading.ledger.remarks
    lost = sum(account.lost for account in reading.accounts)
    looked_for = [replace(s, lesions=tuple(foci(s))) for s in scans]
    return {
        "inputs": len(reading.content.inputs),
        "scans": len(scans),
        "patients": len(folds),
        "lesions": sum(len(s.lesions) for s in looked_for),
        "unannotated": sum(options.unannotated_flag in s.flags for s in scans),
        "annotations": sum(account.annotations for account in reading.accounts),
        "annotations_lost": lost,
        "annotations_of_rejected": len(remarks.get(NO_SCAN, ())) - lost,
        "annotations_left_out": sum(len(remarks.get(rule, ())) for rule in LEFT_OUT),
        "too_small": {str(size): lost_at(looked_for, size) for size in SIZES},
        "rejected": len(reading.ledger.rejected),
        "folds": len({f for f in folds if f >= 0}),
        "test_patients": folds.count(TEST),
        "training_patients": folds.count(TRAINING),
    }
