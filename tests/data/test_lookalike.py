"""Look-alikes: a scan and its copies, and no two phantoms of one skeleton, unless nobody knows who
they are.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from raybone.data.ingest.dicom.frames import read_frames
from raybone.data.near_duplicates import lookalikes
from raybone.phantom.phantom import phantom
from raybone.types import Array, Scan


@pytest.fixture(scope="module")
def counts_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    """Front views of seven phantom patients, of whom the last two look nearest."""
    root = phantom(tmp_path_factory.mktemp("phantom") / "in", 7, seed=1)
    return {
        path.parent.name: read_frames(path.read_bytes(), path.name)[0][0]
        for path in sorted(root.glob("*/anterior.dcm"))
    }


def pairs(counts_of: dict[str, Array], strangers: bool = False) -> set[tuple[str, str]]:
    scans = [
        Scan(
            name,
            name.split("+")[0],
            "anterior",
            *counts_HW.shape,
            None,
            0,
            float(np.percentile(counts_HW, 99.9)),
        )
        for name, counts_HW in counts_of.items()
    ]
    known = {s.patient_id for s in scans}
    return {
        (a.scan_id, b.scan_id)
        for a, b, _ in lookalikes(scans, lambda s: counts_of[s.scan_id], known if strangers else ())
    }


def test_two_phantoms_of_one_skeleton_are_a_pair_only_where_nobody_is_known(
    counts_of: dict[str, Array],
) -> None:
    names = sorted(counts_of)
    assert pairs(counts_of) == set()
    assert pairs(counts_of, strangers=True) == {(names[5], names[6])}


@pytest.mark.parametrize("change", ["none", "noise", "shift", "jpeg", "window"])
def test_a_copy_under_another_id_is_found_whatever_was_done_to_it(
    change: str, counts_of: dict[str, Array]
) -> None:
    first = sorted(counts_of)[0]
    counts_HW, rng = counts_of[first], np.random.default_rng(0)
    grey_HW = np.clip(np.rint(counts_HW / np.percentile(counts_HW, 99.9) * 255), 0, 255).astype(
        np.uint8
    )
    jpeg = cv2.imencode(".jpg", grey_HW, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    copy_HW = {
        "none": counts_HW,
        "noise": counts_HW + rng.poisson(counts_HW / 4),
        "shift": np.roll(counts_HW, 1, 0),
        "jpeg": cv2.imdecode(jpeg, cv2.IMREAD_GRAYSCALE),
        "window": grey_HW,
    }[change].astype(np.uint16)
    assert pairs({**counts_of, "COPY": copy_HW}) == {(first, "COPY")}
    assert pairs({**counts_of, f"{first}+again": copy_HW}) == set()  # of the same patient


def test_a_patient_with_two_equal_scans_is_still_seen_beside_another(
    counts_of: dict[str, Array],
) -> None:
    first = sorted(counts_of)[0]
    more = dict.fromkeys((f"{first}+1", "COPY", "COPY+1"), counts_of[first])
    assert {frozenset(n.split("+")[0] for n in pair) for pair in pairs({**counts_of, **more})} == {
        frozenset({first, "COPY"})
    }


def test_one_known_scan_among_strangers_is_held_to_the_strict_rule(
    counts_of: dict[str, Array],
) -> None:
    names = sorted(counts_of)
    scans = [
        Scan(n, n, "anterior", *c.shape, None, 0, float(np.percentile(c, 99.9)))
        for n, c in counts_of.items()
    ]
    strangers = set(names) - {names[6]}
    assert list(lookalikes(scans, lambda s: counts_of[s.scan_id], strangers)) == []
    other_view = [replace(s, view="posterior") if s.scan_id == names[5] else s for s in scans]
    assert list(lookalikes(other_view, lambda s: counts_of[s.scan_id], set(names))) == []
