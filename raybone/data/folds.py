"""Cross-validation folds by patient, stratified by lesion burden, the same for the same pixels."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

from raybone.records import Scan


def assign_folds(scans: Iterable[Scan], content: dict[str, str], folds: int,
                 seed: int = 0) -> dict[str, int]:
    """Fold of each patient.

    Patients are dealt out in order of lesion count, back and forth over the folds, so that every fold holds few,
    some and many lesions. Ties are ordered by the patients' pixel content, never by name.

    Args:
        scans: all scans with their lesions.
        content: a content hash for each patient_id.
        folds: number of folds wanted; there are never more than patients.
        seed: another order of patients with equally many lesions.
    Returns:
        patient_id -> fold, 0-based.
    """
    burden: dict[str, int] = defaultdict(int)
    for scan in scans:
        burden[scan.patient_id] += len(scan.lesions)
    folds = min(folds, len(burden))
    ranked = sorted(burden, key=lambda p: (-burden[p], hashlib.sha256(f"{seed}:{content[p]}".encode()).hexdigest()))
    return {patient: _snake(rank, folds) for rank, patient in enumerate(ranked)}


def _snake(rank: int, folds: int) -> int:
    lap, place = divmod(rank, folds)
    return place if lap % 2 == 0 else folds - 1 - place
