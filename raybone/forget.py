"""Delete patients from a dataset, and name the bundles and studies that were trained on them."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from raybone.data.cache import drop
from raybone.data.dataset import Dataset, DatasetWriter, open_dataset, store
from raybone.data.folds import TEST, TRAINING
from raybone.data.identity import key_path, move_map, pseudonym, read_key
from raybone.folder import Folder
from raybone.hpo.journal import read_resolved
from raybone.records import WrongInput


@dataclass(frozen=True)
class Forgotten:
    """What was deleted, the dataset's hash before and after, and what knows the patients still."""

    patients: tuple[str, ...]
    scans: int
    left: int
    before: str
    after: str
    bundles: tuple[str, ...]
    studies: tuple[str, ...]


def forget(dataset: str, patients: Sequence[str], key: Path | str | None = None,
           among: Sequence[str] = (".",)) -> Forgotten:
    """Write the dataset anew without these patients, in its place; their pixels, rows and cached copies are gone.

    Folds stay as they are, but for one that has nobody left. Scans that were copies of a deleted one are numbered anew.

    Args:
        patients: pseudonyms, or the source's patient ids, which the key tells.
        key: as ``prepare`` has it; its map from inputs to paths loses the patients too.
        among: folders below which bundles and studies are looked for.
    Raises:
        WrongInput: no such dataset or patient, or nobody would be left.
    """
    if "://" in dataset:
        raise WrongInput(f"forget {dataset}: must be a folder of this machine; run it where the dataset lies")
    opened, key_file = open_dataset(dataset), key_path(key)
    gone = {_known(opened, name, key_file) for name in patients}
    kept = [s for s in opened.scans if s.patient_id not in gone]
    if not kept:
        raise WrongInput(f"forget {dataset}: nobody would be left; remove the folder itself")
    after = _rewritten(opened, kept, gone)
    drop(opened.hash)
    move_map(key_file, opened.hash, after, {s.scan_id for s in opened.scans} - {s.scan_id for s in kept})
    hashes = {opened.hash, *opened.meta.get("before", ())}
    trained = {p for p in gone if opened.fold_of[p] != TEST}
    return Forgotten(tuple(sorted(gone)), len(opened.scans) - len(kept), len(opened.fold_of) - len(gone), opened.hash,
                     after, tuple(_bundles(among, gone)), tuple(_studies(among, hashes)) if trained else ())


def forgotten_lines(dataset: str, done: Forgotten) -> list[str]:
    """What ``forget`` did and found, for a person."""
    lines = [f"{dataset}: {len(done.patients)} patient(s) with {done.scans} scan(s) deleted, {done.left} patients "
             f"left; hash {done.before} is now {done.after}"]
    lines += [f"bundle {place}: was trained on them; delete it, or refit a study of the new dataset" for place in
              done.bundles]
    lines += [f"study {place}: was trained on them; its weights and predictions hold them" for place in done.studies]
    return lines if len(lines) > 1 else [*lines, "no bundle or study that was trained on them was found"]


def as_json(done: Forgotten) -> dict[str, Any]:
    """The same as a JSON value."""
    return asdict(done)


def _known(dataset: Dataset, name: str, key: Path) -> str:
    """The pseudonym of a patient who is given by pseudonym or by id."""
    told = {name} | ({"p" + pseudonym(read_key(key), "patient", name)} if key.is_file() else set())
    if not told & set(dataset.fold_of):
        raise WrongInput(f"forget: the dataset has no patient {name!r}; give a patient_id of folds.csv, or the "
                         f"source's id and the --key that it was prepared with, which {key} is not")
    return (told & set(dataset.fold_of)).pop()


def _rewritten(dataset: Dataset, kept: Sequence[Any], gone: set[str]) -> str:
    """Put a dataset without them into the place of the old one; returns its hash."""
    path = dataset.path.resolve()
    place = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        writer = DatasetWriter(place / "new")
        for scan in kept:
            writer.add(store(writer.path, dataset.counts(scan)), scan)
        # Where all scans shared one window, they keep it.
        writer.scans[:] = [replace(new, high=old.high) for new, old in zip(writer.scans, kept)]
        folds = sorted({f for p, f in dataset.fold_of.items() if f >= 0 and p not in gone})
        fold_of = {p: folds.index(f) if f >= 0 else f for p, f in dataset.fold_of.items() if p not in gone}
        with (path / "rejected.csv").open(newline="", encoding="utf-8") as file:
            rejected = [(r["input_id"], int(r["bytes"]), r["reason"]) for r in csv.DictReader(file)]
        meta = _meta(dataset, kept, fold_of, {s.scan_id for s in dataset.scans if s.patient_id in gone})
        content = writer.finish(fold_of, dataset.categories, meta, rejected)
        path.rename(place / "old")
        try:
            writer.path.rename(path)
        except BaseException:
            (place / "old").rename(path)
            raise
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return str(content["hash"])


def _meta(dataset: Dataset, kept: Sequence[Any], fold_of: dict[str, int], ids: set[str]) -> dict[str, Any]:
    meta = {k: v for k, v in dataset.meta.items() if k not in ("format", "hash")}
    meta["before"] = [*meta.get("before", ()), dataset.hash]  # studies of these were trained on all who were there
    folds = list(fold_of.values())
    meta["counts"] = {**meta["counts"], "scans": len(kept), "patients": len(fold_of),
                      "lesions": sum(len(s.lesions) for s in kept), "folds": len({f for f in folds if f >= 0}),
                      "test_patients": folds.count(TEST), "training_patients": folds.count(TRAINING)}
    remarks = {rule: [n for n in names if n not in ids] for rule, names in meta["remarks"].items()}
    meta["remarks"] = {rule: names for rule, names in remarks.items() if names}
    lost = dataset.folds - meta["counts"]["folds"]
    new = [f"deleted patients left {lost} fold(s) empty: folds = {meta['counts']['folds']}"] if lost else []
    for name in ("warnings", "fold_warnings"):
        meta[name] = [w for w in meta[name] if not any(i in w for i in ids)] + new
    return meta


def _bundles(among: Sequence[str], gone: set[str]) -> Iterator[str]:
    for file in _files(among, "bundle.json"):
        try:
            known = set(json.loads(file.read_text(encoding="utf-8"))["patients"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # of another program
        if known & gone:
            yield str(file.parent)


def _studies(among: Sequence[str], hashes: set[str]) -> Iterator[str]:
    for file in _files(among, "study.yaml"):
        try:
            study = read_resolved(Folder(file.parent))
        except WrongInput:
            continue  # no study, or one that has not begun
        if study.resolved and study.resolved.dataset_hash in hashes:
            yield str(file.parent)


def _files(among: Sequence[str], name: str) -> list[Path]:
    return sorted({file.resolve() for folder in among for file in Path(folder).rglob(name)})
