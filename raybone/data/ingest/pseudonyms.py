"""Pseudonyms under a key that stays outside the dataset, with the map from inputs to their paths
beside the key.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from platformdirs import user_config_path

from raybone.errors import WrongInput
from raybone.types import plain_cell, safe_cell


def key_path(given: Path | str | None) -> Path:
    """The key file asked for, or the one of the user's config folder."""
    if given:
        return Path(given)
    try:
        folder = user_config_path("raybone")
    except RuntimeError:  # there is no home folder
        folder = Path("~")
    if folder.parts[0].startswith("~"):  # as earlier versions of platformdirs leave it
        raise WrongInput(
            "--key: is needed, as this user has no home folder to keep a key in; give a file"
        )
    return folder / "key"


def read_key(path: Path) -> bytes:
    """The key's bytes; a new random key, readable by its owner alone, when there is none.

    Raises:
        WrongInput: the file is empty, cannot be made, or others may read it.
    """
    if path.is_dir():
        raise WrongInput(f"--key {path}: must be a file, but is a folder; name a file in it")
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
        except OSError as error:
            raise WrongInput(
                f"--key {path}: cannot be made there ({error.strerror}); give --key FILE in a "
                "folder that you may write to"
            ) from None
    if path.stat().st_mode & 0o077:
        raise WrongInput(f"--key {path}: must be readable by its owner alone; run chmod 600 on it")
    content = path.read_bytes().strip()
    if not content:
        raise WrongInput(f"--key {path}: must not be empty; remove the file to have a key made")
    return content


def pseudonym(key: bytes, kind: str, identity: str, digits: int = 12) -> str:
    """HMAC-SHA256 of an identity as hex digits; the same identity of another kind gets another
    pseudonym.
    """
    return hmac.new(
        key, f"{kind}\0{identity}".encode("utf-8", "surrogatepass"), hashlib.sha256
    ).hexdigest()[:digits]


def write_map(key: Path, dataset_hash: str, sources: Iterable[tuple[str, str, str]]) -> Path:
    """input_id, scan_id and path of every input, beside the key and for its owner alone."""
    path = _map_path(key, dataset_hash)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(("input_id", "scan_id", "path"))
        writer.writerows([safe_cell(cell) for cell in row] for row in sources)
    return path


def copy_map(key: Path, before: str, after: str, id_of: Mapping[str, str]) -> None:
    """Give the map of a dataset, if there is one, to the dataset that it becomes.

    Args:
        id_of: new scan_id of each scan that is left. Inputs that gave no scan are not kept, as they
            may be of anybody.
    """
    old = _map_path(key, before)
    if not old.is_file():
        return
    with old.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = [
            (r["input_id"], id_of[r["scan_id"]], plain_cell(r["path"]))
            for r in csv.DictReader(file)
            if r["scan_id"] in id_of
        ]
    write_map(key, after, rows)


def has_map(key: Path, dataset_hash: str) -> bool:
    """Whether there is a map beside the key."""
    return _map_path(key, dataset_hash).is_file()


def remove_map(key: Path, dataset_hash: str) -> None:
    """Remove a map; fine when it is not there."""
    _map_path(key, dataset_hash).unlink(missing_ok=True)


def _map_path(key: Path, dataset_hash: str) -> Path:
    return key.parent / f"{key.name}.{dataset_hash}.sources.csv"
