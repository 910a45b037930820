"""Delete patients from a dataset, and name the bundles and studies that were trained on them."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raybone.data.annotations import foci
from raybone.data.cache import drop
from raybone.data.dataset import Dataset, open_dataset
from raybone.data.folds import TEST, TRAINING
from raybone.data.ingest.persons import meanings
from raybone.data.ingest.pseudonyms import (
    copy_map,
    has_map,
    key_path,
    pseudonym,
    read_key,
    remove_map,
)
from raybone.data.writer import DatasetWriter, store
from raybone.errors import Remark, WrongInput
from raybone.hpo.lease import EXPIRES, Lease
from raybone.private import exchange, put, workplace
from raybone.results.lineage import places_of
from raybone.results.study_folder import STUDY, StudyFolder
from raybone.storage import Folder
from raybone.types import Scan

Entry = dict[str, Any]


@dataclass(frozen=True)
class Forgotten:
    """What was deleted, the dataset's hash before and after, and what knows the patients still.

    copies: other patients with a scan of the same pixels. map: whether the map from inputs to paths
    was found beside the key, and lost them too. unread: files below the folders looked through that
    may be of a bundle or study.
    """

    patients: tuple[str, ...]
    scans: int
    left: int
    before: str
    after: str
    bundles: tuple[str, ...]
    studies: tuple[str, ...]
    copies: tuple[str, ...]
    map: bool
    unread: tuple[str, ...]


def forget(
    dataset: str,
    patients: Sequence[str],
    key: Path | str | None = None,
    among: Sequence[str] = (".",),
    tell: Callable[[Forgotten], None] = lambda done: None,
) -> Forgotten:
    """Write the dataset anew without these patients, in its place; their pixels, rows and cached
    copies are gone.

    Folds stay as they are, but for one that has nobody left. Scans that were copies of a deleted
    one are numbered anew. Whenever it is cut short, the same call ends what is left to do: until it
    has told, a file ``.NAME.forgotten`` beside the dataset, which names nobody, says what is done.

    Args:
        patients: pseudonyms, or the source's patient ids, which the key tells.
        key: as ``prepare`` has it; its map from inputs to paths loses the patients too.
        among: folders below which bundles and studies are looked for.
        tell: is given what is returned, once all is deleted.
    Raises:
        WrongInput: no such dataset, patient or folder, nobody would be left, or a search or another
            ``forget`` is at work on the dataset.
    """
    _refuse(dataset, among)
    path, key_file, unread = Path(dataset).expanduser().resolve(), key_path(key), list[str]()
    with workplace(path) as half:
        opened = open_dataset(path)
        # Without the entry of an exchange that did not come about.
        entries = [e for e in _entries(path) if e["before"] != opened.hash]
        gone, ended, work = _meant(opened, entries, patients, key_file)
        bundles = _bundles(among, gone | ended, unread)
        studies = _studies(among, {opened.hash, *opened.meta.get("before", ())}, unread)
        _refuse_busy(dataset, studies)
        after = opened.hash
        if gone:
            after, entry = _delete(opened, gone, half, key_file, entries)
            work.append(entry)
        for entry in work:
            remove_map(key_file, entry["before"])
            drop(entry["before"])
        if gone:
            shutil.rmtree(half / "old")
        done = Forgotten(
            patients=tuple(sorted(gone | ended)),
            scans=sum(e["scans"] for e in work),
            left=len(opened.fold_of) - len(gone),
            before=work[0]["before"],
            after=after,
            bundles=tuple(map(str, bundles)),
            studies=tuple(map(str, studies)) if any(e["trained"] for e in work) else (),
            copies=tuple(sorted({c for e in work for c in e["copies"]})),
            map=has_map(key_file, after),
            unread=tuple(unread),
        )
        tell(done)
        _write_entries(half, path, [e for e in entries if e not in work])
    return done


def _refuse(dataset: str, among: Sequence[str]) -> None:
    """Raise where a folder to look through is not there, or the dataset is not of this machine."""
    problems = [
        f"--among {folder}: must be a folder to look through, but is not there; check the path"
        for folder in among
        if not Path(folder).is_dir()
    ]
    if "://" in dataset:
        problems.append(f"forget {dataset}: must be a folder of this machine; run it where it lies")
    if problems:
        raise WrongInput(*problems)


def _refuse_busy(dataset: str, studies: Sequence[Path]) -> None:
    for study in studies:
        if Lease(Folder(study)).holder(EXPIRES):
            raise WrongInput(
                f"forget {dataset}: no search may be at work on it, but {study} is; `raybone "
                "stop` it first"
            )


def forgotten_lines(dataset: str, done: Forgotten) -> list[str]:
    """What ``forget`` did and found, for a person."""
    lines = [
        f"{dataset}: {len(done.patients)} patient(s) with {done.scans} scan(s) deleted, "
        f"{done.left} patients left; hash {done.before} is now {done.after}"
    ]
    lines += [
        f"bundle {place}: was trained on them; delete it, or refit a study of the new dataset"
        for place in done.bundles
    ]
    lines += [
        f"study {place}: was trained on them; its weights and predictions hold them"
        for place in done.studies
    ]
    if not done.bundles and not done.studies:
        lines.append("no bundle or study that was trained on them was found")
    lines += [
        f"warning: {place}: could not be read, and may be of a study or bundle"
        for place in done.unread
    ]
    if done.copies:
        lines.append(f"warning: scans of the same pixels are left under {', '.join(done.copies)}")
    if not done.map:
        lines.append(
            "warning: the map from inputs to paths was not found beside the key; remove its lines "
            "where it is"
        )
    return lines


def _meant(
    dataset: Dataset, entries: Sequence[Entry], names: Sequence[str], key: Path
) -> tuple[set[str], set[str], list[Entry]]:
    """Patients, named by pseudonym or by id: who is to be deleted, who is but nobody was told, and
    their entries.
    """
    secret = read_key(key) if key.is_file() else None
    gone, ended, work = set[str](), set[str](), list[Entry]()
    for name in names:
        told = {
            name,
            *("p" + pseudonym(secret, "patient", known) for known in meanings(name) if secret),
        }
        here = told & set(dataset.fold_of)
        earlier = [
            (p, e) for e in entries for p in told if _digest(p) in e["patients"] and not here
        ]
        if not here and not earlier:
            own = secret and pseudonym(secret, "dataset", "") == dataset.meta.get("pseudonyms")
            cure = (
                "give a patient_id of folds.csv or the source's id; who was deleted is not known "
                "any more"
                if own
                else "give a patient_id of folds.csv, or the source's id and the --key that it was "
                f"prepared with, which {key} is not"
            )
            raise WrongInput(f"forget: the dataset has no patient {name!r}; {cure}")
        gone |= set(list(here)[:1])
        ended |= {p for p, _ in earlier}
        work += [e for _, e in earlier if e not in work]
    return gone, ended, work


def _delete(
    dataset: Dataset, gone: set[str], half: Path, key: Path, entries: Sequence[Entry]
) -> tuple[str, Entry]:
    """Exchange the dataset for one without them; returns its hash, and what is to be known of them
    until that is told.

    The old map and the old dataset, in the workplace, are left to be removed.
    """
    kept = [s for s in dataset.scans if s.patient_id not in gone]
    if not kept:
        raise WrongInput(f"forget {dataset.path}: nobody would be left; remove the folder itself")
    pixels = {s.pixels for s in dataset.scans if s.patient_id in gone}
    after, id_of = _rewritten(dataset, kept, gone, half / "new")
    entry = {
        "patients": sorted(map(_digest, gone)),
        "before": dataset.hash,
        "scans": len(dataset.scans) - len(kept),
        "trained": any(dataset.fold_of[p] != TEST for p in gone),
        "copies": sorted({s.patient_id for s in kept if s.pixels in pixels}),
    }
    copy_map(key, dataset.hash, after, id_of)
    _write_entries(half, dataset.path, [*entries, entry])
    exchange(half, dataset.path)
    return after, entry


def _digest(patient: str) -> str:
    return hashlib.sha256(patient.encode("utf-8", "surrogatepass")).hexdigest()


def _entries(dataset: Path) -> list[Entry]:
    """What is deleted of a dataset, but not told."""
    file = _file(dataset)
    try:
        return list(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else []
    except (ValueError, TypeError):
        raise WrongInput(
            f"{file}: must be what an earlier `forget` left, but is damaged; remove it"
        ) from None


def _write_entries(half: Path, dataset: Path, entries: Sequence[Entry]) -> None:
    if entries:
        (half / "forgotten").write_text(json.dumps(entries), encoding="utf-8")
        put(half / "forgotten", _file(dataset))
    else:
        _file(dataset).unlink(missing_ok=True)


def _file(dataset: Path) -> Path:
    return dataset.parent / f".{dataset.name}.forgotten"


def _rewritten(
    dataset: Dataset, kept: Sequence[Scan], gone: set[str], place: Path
) -> tuple[str, dict[str, str]]:
    """Make a dataset without them; returns its hash, and the new id of each scan."""
    writer = DatasetWriter(place)
    id_of = {
        scan.scan_id: writer.add(*store(writer.path, dataset.counts(scan), scan)).scan_id
        for scan in kept
    }
    # Where all scans shared one window, they keep it.
    writer.scans[:] = [replace(new, high=old.high) for new, old in zip(writer.scans, kept)]
    folds = sorted({f for p, f in dataset.fold_of.items() if f >= 0 and p not in gone})
    fold_of = {
        p: folds.index(f) if f >= 0 else f for p, f in dataset.fold_of.items() if p not in gone
    }
    with (dataset.path / "rejected.csv").open(newline="", encoding="utf-8") as file:
        rejected = [(r["input_id"], int(r["bytes"]), r["reason"]) for r in csv.DictReader(file)]
    lost = {s.scan_id for s in dataset.scans if s.patient_id in gone}
    first: dict[str, str] = {}  # who stands for a group must be there
    groups = {p: first.setdefault(dataset.group_of[p], p) for p in sorted(fold_of)}
    meta = _meta(dataset, kept, fold_of, lost, id_of)
    content = writer.finish(fold_of, meta, rejected, groups)
    return str(content["hash"]), id_of


def _meta(
    dataset: Dataset,
    kept: Sequence[Scan],
    fold_of: dict[str, int],
    lost: set[str],
    id_of: dict[str, str],
) -> dict[str, Any]:
    meta = {k: v for k, v in dataset.meta.items() if k not in ("format", "hash")}
    meta["before"] = [
        *meta.get("before", ()),
        dataset.hash,
    ]  # studies of these were trained on all who were there
    folds = list(fold_of.values())
    meta["counts"] = {
        **meta["counts"],
        "scans": len(kept),
        "patients": len(fold_of),
        "lesions": sum(len(foci(s)) for s in kept),
        "folds": len({f for f in folds if f >= 0}),
        "test_patients": folds.count(TEST),
        "training_patients": folds.count(TRAINING),
    }
    remarks = {
        rule: [id_of.get(n, n) for n in names if n not in lost]
        for rule, names in meta["remarks"].items()
    }
    times = dataset.meta.get("remark_times", {})
    said = {str(_remark(rule, names, times)): rule for rule, names in meta["remarks"].items()}
    meta["remarks"] = {rule: names for rule, names in remarks.items() if names}
    meta["remark_times"] = {rule: len(names) for rule, names in meta["remarks"].items()}
    empty = dataset.folds - meta["counts"]["folds"]
    new = (
        [f"deleted patients left {empty} fold(s) empty: folds = {meta['counts']['folds']}"]
        if empty
        else []
    )
    for key in ("fold_warnings", "warnings"):
        lasting = [w for w in meta[key] if w not in said or said[w] in meta["remarks"]]
        meta[key] = [_left(w, said, meta) for w in lasting] + new
    return meta


def _remark(rule: str, ids: Sequence[str], times: Mapping[str, int]) -> Remark:
    return Remark(rule, times.get(rule, len(ids)), "".join(ids[:1]))


def _left(warning: str, said: Mapping[str, str], meta: Mapping[str, Any]) -> str:
    """A warning that counts scans of a remark, with those that are left; another one stays."""
    if warning not in said:
        return warning
    rule = said[warning]
    return str(_remark(rule, meta["remarks"][rule], meta["remark_times"]))


def _bundles(among: Sequence[str], gone: set[str], unread: list[str]) -> list[Path]:
    """Bundles whose members were trained on one of these patients."""
    found = []
    for file in _files(among, "bundle.json"):
        try:
            known = set(json.loads(file.read_text(encoding="utf-8"))["patients"])
        except (OSError, ValueError, KeyError, TypeError):
            unread.append(str(file))
            continue
        if known & gone:
            found.append(file.parent)
    return found


def _studies(among: Sequence[str], hashes: set[str], unread: list[str]) -> list[Path]:
    """Studies of a dataset that had one of these hashes, and those that were built on them."""
    known = {}
    for file in _files(among, STUDY):
        try:
            known[file.parent] = StudyFolder(file.parent).study
        except WrongInput:
            unread.append(str(file))
    found = [place for place, study in known.items() if study.resolved.dataset_hash in hashes]
    while built := [
        place
        for place, study in known.items()
        if place not in found
        and any(f"{value}/".startswith(f"{f}/") for value in places_of(study) for f in found)
    ]:
        found += built
    return sorted(found)


def _files(among: Sequence[str], name: str) -> list[Path]:
    return sorted({file.resolve() for folder in among for file in Path(folder).rglob(name)})
