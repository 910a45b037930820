"""Cross-validation folds by patient, stratified by label and lesion burden, the same for the same
pixels.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from raybone.data.annotations import foci
from raybone.errors import WrongInput
from raybone.types import Scan

TEST = -1  # the fold of the test group, which no search sees
TRAINING = -2  # of patients who are trained on in every fold and validate none
SPECIAL = {TEST: "test", TRAINING: "training"}  # what they are called in a split and to people


def assign_folds(
    scans: Sequence[Scan],
    content: Mapping[str, str],
    folds: int,
    seed: int = 0,
    *,
    holdout: float = 0.0,
    together: Mapping[str, str] | None = None,
) -> dict[str, int]:
    """Fold of each patient.

    Patients are dealt out label by label (see ``stratum_label``) and from many lesions to few, each
    to the fold with the fewest patients of that label, then patients, then lesions. Ties are
    ordered by the patients' pixel content, never by name.

    Args:
        scans: all scans with their lesions.
        content: a content hash for each patient_id.
        folds: number of folds wanted; there are never more than patients.
        seed: another order of patients with equally many lesions.
        holdout: share of the patients, below 1, or their number: the test group, drawn evenly over
            that order.
        together: a group for each patient; patients of one group get one fold.
    Returns:
        patient_id -> fold, 0-based, and -1 for the test group.
    Raises:
        WrongInput: the test group would take every patient.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for patient in {s.patient_id for s in scans}:
        groups[(together or {}).get(patient, patient)].append(patient)
    burden, stratum = _burden(scans)

    def rank(members: list[str]) -> tuple[str, int, str]:
        first = min(content[p] for p in members)
        order = hashlib.sha256(f"{seed}:{first}".encode()).hexdigest()
        return max(stratum[p] for p in members), -sum(burden[p] for p in members), order

    ranked = sorted(groups.values(), key=rank)
    held = round(holdout if holdout >= 1 else holdout * len(ranked))
    if held and held >= len(ranked):
        raise WrongInput(
            f"--holdout: must leave patients to train on, got {holdout:g} of {len(ranked)}; take "
            "fewer"
        )
    test = {int((i + 0.5) * len(ranked) / held) for i in range(held)}
    fold_of = {p: TEST for i in test for p in ranked[i]}
    rest = [members for i, members in enumerate(ranked) if i not in test]
    # Of each fold: patients by label, patients, lesions.
    sums = [Counter[str]() for _ in range(min(folds, len(rest)))]
    for members in rest:
        label = f"label {max(stratum[p] for p in members)}"
        keys = (label, "patients", "lesions")
        fold = min(range(len(sums)), key=lambda k: [sums[k][key] for key in keys])
        lesions = sum(burden[p] for p in members)
        sums[fold].update({label: len(members), "patients": len(members), "lesions": lesions})
        fold_of |= dict.fromkeys(members, fold)
    return fold_of


def folds_by_site(scans: Sequence[Scan], content: Mapping[str, str]) -> dict[str, int]:
    """Leave-one-site-out: a fold a site, or a fold a scanner where sites are unknown; largest
    first.

    Raises:
        WrongInput: fewer than two sites, or patients that were scanned at several.
    """
    sites = {s.site for s in scans}
    by_site = len(sites) > 1
    if by_site and "unknown" in sites:
        unknown = sum(s.site == "unknown" for s in scans)
        raise WrongInput(
            f"--folds site: needs the site of every scan, but {unknown} of {len(scans)} have none; "
            "give it in labels.csv, or a number of folds"
        )
    places: dict[str, set[str]] = defaultdict(set)
    for scan in scans:
        places[scan.patient_id].add(scan.site if by_site else scan.scanner)
    several = sum(len(p) > 1 for p in places.values())
    of = {patient: min(found) for patient, found in places.items()}
    sizes = Counter(of.values())
    if len(sizes) < 2 or several:
        raise WrongInput(
            "--folds site: needs patients of at least 2 sites, each patient at one, got "
            f"{len(set().union(*places.values()))} sites and {several} patients at several; give "
            "sites in labels.csv, or a number of folds"
        )
    digest = {place: min(content[p] for p in of if of[p] == place) for place in sizes}
    order = sorted(sizes, key=lambda place: (-sizes[place], digest[place]))
    return {patient: order.index(place) for patient, place in of.items()}


def stratum_label(scans: Iterable[Scan]) -> str | None:
    """The label that folds are stratified by: the first with 2 to 6 values over the patients."""
    values: dict[str, set[str]] = defaultdict(set)
    for scan in scans:
        for name, value in scan.labels:
            values[name].add(value)
    return next((name for name, found in values.items() if 2 <= len(found) <= 6), None)


def _burden(scans: Sequence[Scan]) -> tuple[Counter[str], dict[str, str]]:
    """Lesions and stratum of each patient."""
    burden: Counter[str] = Counter()
    label, stratum = stratum_label(scans), dict[str, str]()
    for scan in scans:
        burden[scan.patient_id] += len(foci(scan))
        stratum[scan.patient_id] = max(
            stratum.get(scan.patient_id, ""), dict(scan.labels).get(label or "", "")
        )
    return burden, stratum
