"""The two tables a person may give: labels of scans or patients, and the folds of patients."""

from __future__ import annotations

import csv
import io
import posixpath
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from raybone.data.dataset import COLUMNS
from raybone.data.folds import SPECIAL
from raybone.data.ingest.persons import Claim
from raybone.data.ingest.sources import is_labels, spacing_mm
from raybone.errors import WrongInput

MOST_VALUES = 50  # a label with more is free text or an identifier
FACTS = ("patient_id", "file", "view", "pixel_mm")
KNOWN = (*FACTS, "site", "scanner")  # however they are spelled


@dataclass(frozen=True)
class Labels:
    """Columns of labels.csv by the source's patient id or by the file's path below SOURCE."""

    by_patient: dict[str, dict[str, str]] = field(default_factory=dict)
    by_file: dict[str, dict[str, str]] = field(default_factory=dict)

    def key(self, claim: Claim) -> str:
        """The patient_id under which the patient of a claim may stand here."""
        issued = f"{claim.issuer}:{claim.id}"
        return issued if issued in self.by_patient else claim.id

    def of(self, patient: str, name: str) -> dict[str, str]:
        """What is known of a scan: its patient's labels, overridden by its own."""
        return {**self.by_patient.get(patient, {}), **self.of_file(name)}

    def of_file(self, name: str) -> dict[str, str]:
        """What is known of a scan by its path."""
        return self.by_file.get(plain_path(name), {})


def labels_in(folder: Path) -> Labels:
    """Those of labels.csv, however it is spelled; none where there is no such file.

    Raises:
        WrongInput: as of ``read_labels``, or there are several.
    """
    found = folder.iterdir() if folder.is_dir() else ()
    files = [f for f in found if is_labels(f.name) and f.is_file()]
    if len(files) > 1:
        raise WrongInput(f"labels.csv: must be one file, but there are {len(files)}; join them")
    return read_labels(files[0]) if files else Labels()


def read_labels(path: Path) -> Labels:
    """labels.csv: a column ``patient_id`` or ``file``, and any others.

    site, scanner, view and pixel_mm replace what the scans themselves say; with ``file``, so does
    patient_id.

    Raises:
        WrongInput: no key column, a reserved name, or a column that looks like free text or an
            identifier.
    """
    header, rows = _rows(path, "labels.csv")
    key = "file" if "file" in header else "patient_id"
    if key not in header:
        raise WrongInput(
            "labels.csv: needs a column patient_id or file; its first line names the columns"
        )
    taken = [c for c in header if c in COLUMNS and c not in KNOWN]
    if taken or len(set(header)) < len(header):
        raise WrongInput(
            f"labels.csv: a label must not be called {', '.join(taken) or 'like another'}, as a "
            "column of scans.csv is; rename it"
        )
    table: dict[str, dict[str, str]] = {}
    for line, row in enumerate(rows, 2):
        known = {k: v for k, v in _as_written(row).items() if k != key and v}
        if known.get("view", "unknown") not in ("anterior", "posterior", "unknown") or (
            "pixel_mm" in known and spacing_mm(known["pixel_mm"]) is None
        ):
            raise WrongInput(
                f"labels.csv: line {line}: view must be anterior, posterior or unknown, and "
                "pixel_mm a number of mm; correct it"
            )
        if not row[key]:
            if known:
                raise WrongInput(
                    f"labels.csv: line {line}: {key} must not be empty; fill it in, or leave the "
                    "line out"
                )
            continue
        if table.setdefault(row[key], known) != known:
            raise WrongInput(
                f"labels.csv: line {line} contradicts another line of the same {key}; keep one of "
                "them"
            )
    _refuse_names(header, rows)
    if key == "patient_id":
        return Labels(by_patient=table)
    by_file: dict[str, dict[str, str]] = {}
    for name, row in table.items():
        if by_file.setdefault(plain_path(name), row) != row:
            raise WrongInput(
                "labels.csv: two lines name one file in two ways and contradict each other; keep "
                "one of them"
            )
    return Labels(by_file=by_file)


def _as_written(row: dict[str, str]) -> dict[str, str]:
    """The row as it was before pandas wrote it, to which a column with gaps is one of floats."""
    meant = {"0.0": "0", "1.0": "1", "nan": "", "NaN": "", "<NA>": ""}
    return {k: v if k in FACTS else meant.get(v, v) for k, v in row.items()}


def _refuse_names(header: list[str], rows: list[dict[str, str]]) -> None:
    """Raise WrongInput for a column that looks like free text or an identifier, or that writes one
    value in two ways.
    """
    for column in header:
        values = {row[column] for row in rows}
        alike = len({" ".join(value.split()).casefold() for value in values})
        if column not in FACTS and alike < len(values):
            raise WrongInput(
                f"labels.csv: column {header.index(column) + 1} has values that differ in capitals "
                "or blanks alone, which would be groups of their own; write them alike"
            )
        if column not in FACTS and (
            len(values) > min(MOST_VALUES, max(6, len(rows) // 5))
            or max(map(len, values), default=0) > 40
        ):
            raise WrongInput(
                f"labels.csv: column {header.index(column) + 1} has {len(values)} values in "
                f"{len(rows)} rows; a label has few and short ones, others may name a patient: "
                "leave the column out"
            )


def plain_path(name: str) -> str:
    """A path below SOURCE as Windows, macOS and spreadsheets may also write it."""
    return unicodedata.normalize("NFC", posixpath.normpath(name.replace("\\", "/")))


def read_split(path: Path) -> dict[str, int]:
    """Fold of each patient of a given split: columns ``patient_id`` and ``fold``.

    Folds are 0, 1 ..., ``test`` (given as -1) and ``training`` (-2).

    Raises:
        WrongInput: a patient is in two folds, a fold is no number, or folds are not 0 .. K-1 with K
            at least 2.
    """
    header, rows = _rows(path, "--split")
    if "patient_id" not in header or "fold" not in header:
        raise WrongInput(
            "--split: needs the columns patient_id and fold; its first line names the columns"
        )
    special = {name: fold for fold, name in SPECIAL.items()}
    folds: dict[str, set[int]] = defaultdict(set)
    for line, row in enumerate(rows, 2):
        value = row["fold"]
        if value not in special and not value.isdecimal():
            raise WrongInput(
                f"--split: line {line}: fold must be 0, 1, 2 ... or test or training; correct it"
            )
        folds[row["patient_id"]].add(special[value] if value in special else int(value))
    leaks = sum(len(f) > 1 for f in folds.values())
    if leaks:
        raise WrongInput(
            f"--split: a patient must be in one fold, {leaks} are in several; such a split leaks: "
            "keep one line a patient"
        )
    used = sorted({f for many in folds.values() for f in many if f >= 0})
    if used != list(range(len(used))) or len(used) < 2:
        raise WrongInput(
            f"--split: folds must be 0, 1 ... without a gap and at least 2, got {used}; renumber "
            "them"
        )
    return {patient: min(many) for patient, many in folds.items()}


def _rows(path: Path, what: str) -> tuple[list[str], list[dict[str, str]]]:
    """The names of columns, and the rows by them, of a table whose cells may also be parted by
    semicolons or tabs, as spreadsheets write them where the decimal point is a comma.
    """
    try:
        content = path.read_bytes()
        marked = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        text = content.decode("utf-16" if marked else "utf-8-sig")
        parts = max(",;\t", key=text.partition("\n")[0].count)
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=parts))
    except OSError as error:
        raise WrongInput(
            f"{what}: must be a file that can be read, but: {error.strerror}; check the path"
        ) from None
    except (UnicodeError, csv.Error):
        raise WrongInput(
            f"{what}: must be a CSV file in UTF-8, but is not; save it as that"
        ) from None
    header = [name.strip() for name in lines[0]] if lines else []
    header = [name.lower() if name.lower() in KNOWN else name for name in header]
    rows = list[dict[str, str]]()
    for number, line in enumerate(lines[1:], 2):
        cells = [cell.strip() for cell in line]
        if any(cells[len(header) :]):
            raise WrongInput(
                f"{what}: line {number}: must have {len(header)} cells, as the first line, but has "
                f"{len(cells)}; put a cell with a {parts!r} in it in quotes"
            )
        if cells:
            rows.append({k: v for k, v in zip_longest(header, cells, fillvalue="") if k})
    return [name for name in header if name], rows
