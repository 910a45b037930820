"""Delete patients from a dataset, and name the bundles and studies that were trained on them."""

from __future__ import annotations

import csv
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raybone.data.annotations import foci
from raybone.data.cache import drop
from raybone.data.dataset import Dataset, DatasetWriter, open_dataset, store
from raybone.data.folds import TEST, TRAINING
from raybone.data.identity import key_path, move_map, pseudonym, read_key
from raybone.data.persons import meanings
from raybone.earlier import places_of
from raybone.folder import Folder
from raybone.hpo.journal import read_resolved
from raybone.hpo.lease import EXPIRES, Lease
from raybone.records import Scan, WrongInput


@dataclass(frozen=True)
class Forgotten:
    """What was deleted, the dataset's hash before and after, and what knows the patients still.

    copies: other patients with a scan of the same pixels. map: whether the map from inputs to paths was found beside
    the key, and lost them too. unread: files below the folders looked through that may be of a bundle or study.
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


def forget(dataset: str, patients: Sequence[str], key: Path | str | None = None,
           among: Sequence[str] = (".",)) -> Forgotten:
    """Write the dataset anew without these patients, in its place; their pixels, rows and cached copies are gone.

    Folds stay as they are, but for one that has nobody left. Scans that were copies of a deleted one are numbered anew.

    Args:
        patients: pseudonyms, or the source's patient ids, which the key tells.
        key: as ``prepare`` has it; its map from inputs to paths loses the patients too.
        among: folders below which bundles and studies are looked for.
    Raises:
        WrongInput: no such dataset, patient or folder, nobody would be left, or a search is at work on the dataset.
    """
    absent = [folder for folder in among if not Path(folder).is_dir()]
    if "://" in dataset or absent:
        raise WrongInput(*(f"--among {folder}: must be a folder to look through, but is not there; check the path"
                           for folder in absent),
                         *([f"forget {dataset}: must be a folder of this machine; run it where it lies"]
                           if "://" in dataset else []))
    opened, key_file = open_dataset(dataset), key_path(key)
    gone = {_known(opened, name, key_file) for name in patients}
    kept = [s for s in opened.scans if s.patient_id not in gone]
    if not kept:
        raise WrongInput(f"forget {dataset}: nobody would be left; remove the folder itself")
    unread: list[str] = []
    bundles = _bundles(among, gone, unread)
    studies = _studies(among, {opened.hash, *opened.meta.get("before", ())}, unread)
    if busy := [str(place) for place in studies if Lease(Folder(place)).holder(EXPIRES)]:
        raise WrongInput(f"forget {dataset}: no search may be at work on it, but {busy[0]} is; `raybone stop` it first")
    after, id_of = _rewritten(opened, kept, gone)
    drop(opened.hash)
    moved = move_map(key_file, opened.hash, after, id_of)
    pixels = {s.scan_id.partition("-")[0] for s in opened.scans if s.patient_id in gone}
    copies = {s.patient_id for s in kept if s.scan_id.partition("-")[0] in pixels}
    trained = any(opened.fold_of[p] != TEST for p in gone)
    return Forgotten(tuple(sorted(gone)), len(opened.scans) - len(kept), len(opened.fold_of) - len(gone), opened.hash,
                     after, tuple(map(str, bundles)), tuple(map(str, studies)) if trained else (),
                     tuple(sorted(copies)), moved, tuple(unread))


def forgotten_lines(dataset: str, done: Forgotten) -> list[str]:
    """What ``forget`` did and found, for a person."""
    lines = [f"{dataset}: {len(done.patients)} patient(s) with {done.scans} scan(s) deleted, {done.left} patients "
             f"left; hash {done.before} is now {done.after}"]
    lines += [f"bundle {place}: was trained on them; delete it, or refit a study of the new dataset" for place in
              done.bundles]
    lines += [f"study {place}: was trained on them; its weights and predictions hold them" for place in done.studies]
    if not done.bundles and not done.studies:
        lines.append("no bundle or study that was trained on them was found")
    lines += [f"warning: {place}: could not be read, and may be of a study or bundle" for place in done.unread]
    if done.copies:
        lines.append(f"warning: scans of the same pixels are left under {', '.join(done.copies)}")
    if not done.map:
        lines.append("warning: the map from inputs to paths was not found beside the key; remove its lines where it is")
    return lines


def _known(dataset: Dataset, name: str, key: Path) -> str:
    """The pseudonym of a patient who is given by pseudonym or by id."""
    secret = read_key(key) if key.is_file() else None
    told = {name, *("p" + pseudonym(secret, "patient", known) for known in meanings(name) if secret)}
    if not told & set(dataset.fold_of):
        raise WrongInput(f"forget: the dataset has no patient {name!r}; give a patient_id of folds.csv, or the "
                         f"source's id and the --key that it was prepared with, which {key} is not")
    return (told & set(dataset.fold_of)).pop()


def _rewritten(dataset: Dataset, kept: Sequence[Scan], gone: set[str]) -> tuple[str, dict[str, str]]:
    """Put a dataset without them into the place of the old one; returns its hash, and the new id of each scan."""
    path = dataset.path.resolve()
    place = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        writer = DatasetWriter(place / "new")
        id_of = {scan.scan_id: writer.add(store(writer.path, dataset.counts(scan)), scan).scan_id for scan in kept}
        # Where all scans shared one window, they keep it.
        writer.scans[:] = [replace(new, high=old.high) for new, old in zip(writer.scans, kept)]
        folds = sorted({f for p, f in dataset.fold_of.items() if f >= 0 and p not in gone})
        fold_of = {p: folds.index(f) if f >= 0 else f for p, f in dataset.fold_of.items() if p not in gone}
        with (path / "rejected.csv").open(newline="", encoding="utf-8") as file:
            rejected = [(r["input_id"], int(r["bytes"]), r["reason"]) for r in csv.DictReader(file)]
        lost = {s.scan_id for s in dataset.scans if s.patient_id in gone}
        first: dict[str, str] = {}  # who stands for a group must be there
        groups = {p: first.setdefault(dataset.group_of[p], p) for p in sorted(fold_of)}
        meta = _meta(dataset, kept, fold_of, lost, id_of)
        content = writer.finish(fold_of, dataset.categories, meta, rejected, groups)
        shutil.copymode(path, writer.path)
        path.rename(place / "old")
        try:
            writer.path.rename(path)
        except BaseException:
            (place / "old").rename(path)
            raise
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return str(content["hash"]), id_of


def _meta(dataset: Dataset, kept: Sequence[Scan], fold_of: dict[str, int], lost: set[str],
          id_of: dict[str, str]) -> dict[str, Any]:
    meta = {k: v for k, v in dataset.meta.items() if k not in ("format", "hash")}
    meta["before"] = [*meta.get("before", ()), dataset.hash]  # studies of these were trained on all who were there
    folds = list(fold_of.values())
    meta["counts"] = {**meta["counts"], "scans": len(kept), "patients": len(fold_of),
                      "lesions": sum(len(foci(s)) for s in kept), "folds": len({f for f in folds if f >= 0}),
                      "test_patients": folds.count(TEST), "training_patients": folds.count(TRAINING)}
    remarks = {rule: [id_of.get(n, n) for n in names if n not in lost] for rule, names in meta["remarks"].items()}
    meta["remarks"] = {rule: names for rule, names in remarks.items() if names}
    empty = dataset.folds - meta["counts"]["folds"]
    new = [f"deleted patients left {empty} fold(s) empty: folds = {meta['counts']['folds']}"] if empty else []
    for key in ("fold_warnings", "warnings"):
        meta[key] = [told for w in meta[key] if (told := _warned(w, remarks))] + new
    return meta


def _warned(warning: str, remarks: dict[str, list[str]]) -> str:
    """A warning that counts scans of a remark, with those that are left; empty without any."""
    said = re.fullmatch(r"\d+ x (.*?)(?: \(first \w[\w-]*\))?", warning)
    if said is None or said[1] not in remarks:
        return warning
    names = remarks[said[1]]
    return f"{len(names)} x {said[1]} (first {names[0]})" if names else ""


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
    for file in _files(among, "study.yaml"):
        try:
            known[file.parent] = read_resolved(Folder(file.parent))
        except WrongInput:
            unread.append(str(file))
    found = [place for place, study in known.items() if study.resolved and study.resolved.dataset_hash in hashes]
    while built := [place for place, study in known.items() if place not in found and any(
            isinstance(value, str) and f"{value}/".startswith(f"{first}/") for value in places_of(study)
            for first in found)]:
        found += built
    return sorted(found)


def _files(among: Sequence[str], name: str) -> list[Path]:
    return sorted({file.resolve() for folder in among for file in Path(folder).rglob(name)})
