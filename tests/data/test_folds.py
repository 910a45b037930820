"""Folds: by patient, alike in burden and label, with a test group apart."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybone.data.folds import TEST, assign_folds, folds_by_site
from raybone.errors import WrongInput
from raybone.types import Lesion, Scan

BOX = Lesion((0, 0, 1, 1), "malignant")


def cohort(
    burdens: list[int], tumours: list[str] | None = None, sites: list[str] | None = None
) -> list[Scan]:
    return [
        Scan(
            f"s{i}",
            f"p{i}",
            "anterior",
            64,
            64,
            None,
            i,
            1.0,
            sites[i] if sites else "unknown",
            labels=(("tumour", tumours[i]),) if tumours else (),
            lesions=(BOX,) * n,
        )
        for i, n in enumerate(burdens)
    ]


def content(scans: list[Scan]) -> dict[str, str]:
    return {s.patient_id: f"{i:04d}" for i, s in enumerate(scans)}


@given(
    st.lists(st.integers(0, 30), min_size=2, max_size=40),
    st.integers(2, 6),
    st.sampled_from([0, 0.2, 0.34, 3]),
)
def test_folds_differ_by_one_patient_at_most_and_the_test_group_has_its_share(
    burdens: list[int], folds: int, holdout: float
) -> None:
    scans = cohort(burdens)
    wanted = round(holdout if holdout >= 1 else holdout * len(burdens))
    if wanted >= len(burdens):
        with pytest.raises(WrongInput, match="must leave patients"):
            assign_folds(scans, content(scans), folds, holdout=holdout)
        return
    fold_of = assign_folds(scans, content(scans), folds, holdout=holdout)
    sizes = Counter(fold_of.values())
    held = sizes.pop(TEST, 0)
    assert held == wanted
    assert len(sizes) == min(folds, len(burdens) - held)
    assert max(sizes.values()) - min(sizes.values()) <= 1


def test_burden_and_label_are_spread_over_folds_and_test_group() -> None:
    scans = cohort(list(range(60)), ["breast", "prostate", "lung"] * 20)
    fold_of = assign_folds(scans, content(scans), 4, holdout=0.2)
    for fold in (*range(4), TEST):
        members = [s for s in scans if fold_of[s.patient_id] == fold]
        assert set(Counter(dict(s.labels)["tumour"] for s in members).values()) == {4}
        assert abs(sum(len(s.lesions) for s in members) / 12 - 29.5) < 3


def test_patients_that_belong_together_share_a_fold_and_seeds_differ() -> None:
    scans = cohort([1] * 12)
    together = {f"p{i}": "one" for i in range(4)}
    fold_of = assign_folds(scans, content(scans), 3, together=together)
    assert len({fold_of[f"p{i}"] for i in range(4)}) == 1
    assert set(Counter(fold_of.values()).values()) == {4}
    assert assign_folds(scans, content(scans), 3, seed=1) != assign_folds(scans, content(scans), 3)


def test_one_site_is_left_out_at_a_time() -> None:
    scans = cohort([1] * 7, sites=["a", "b", "b", "b", "a", "c", "b"])
    fold_of = folds_by_site(scans, content(scans))
    assert [fold_of[f"p{i}"] for i in range(7)] == [1, 0, 0, 0, 1, 2, 0]
    with pytest.raises(WrongInput, match="at least 2 sites"):
        folds_by_site(cohort([1, 1]), content(scans))
