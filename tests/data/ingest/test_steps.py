"""Preprocessing steps on phantom views, and on arrays whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybone.data.annotations import mask_of, rle_of
from raybone.data.ingest.steps import (
    Origin,
    View,
    apply_steps,
    body_mask,
    body_range,
    brightness,
    max_min,
    part_of,
    tiles,
)
from raybone.data.ingest.steps import without_bladder as cleared
from raybone.phantom.phantom import _foci, _patient, render
from raybone.types import Lesion, Scan


@pytest.fixture(scope="module")
def views() -> list[View]:
    """Both views of a phantom patient at 1024x256 with bright lesions."""
    rng = np.random.default_rng(4)
    patient = _patient("P", rng)
    foci = _foci(patient, rng)
    made = []
    for side in ("anterior", "posterior"):
        counts_HW, lesions = render(patient, foci, side, rng)
        made.append(
            View(
                counts_HW.astype(np.float32),
                Scan("", "p", side, 1024, 256, 2.26, 0, 1.0, lesions=lesions),
                (Origin(side, 0, 1024, 256),),
            )
        )
    return made


def test_the_body_is_where_its_rows_are_bright() -> None:
    values_HW = np.zeros((100, 20), np.float32)
    values_HW[30:81] = 5
    top, bottom = body_range(values_HW)
    assert abs(top - 30) <= 2
    assert abs(bottom - 81) <= 2
    assert body_range(np.zeros((10, 10), np.float32)) == (0, 10)


@given(st.floats(1e-3, 1e4))
def test_brightness_brings_any_mean_into_the_octave(mean: float) -> None:
    assert 7 <= brightness(np.full((4, 4), mean, np.float32)).mean() < 14 * (1 + 1e-6)


def test_max_min_spans_the_unit_interval() -> None:
    values_HW = max_min(np.array([[3.0, 5.0], [4.0, 11.0]], np.float32))
    np.testing.assert_allclose(values_HW, [[0, 0.25], [0.125, 1]])
    assert not max_min(np.full((2, 2), 7, np.float32)).any()


def test_the_papers_chain_gives_640_by_512_with_every_lesion_where_it_was(
    views: list[View],
) -> None:
    (joined,) = apply_steps(views, ["body_range", "brightness", "knee_cut", "montage"])
    assert joined.values_HW.shape == (640, 512)
    assert [o.name for o in joined.origins] == ["anterior", "posterior"]
    assert joined.values_HW.mean() > 7 * 0.8
    cut = apply_steps(views, ["body_range", "knee_cut"])
    assert len(joined.scan.lesions) == sum(len(v.scan.lesions) for v in cut) > 4
    for lesion in joined.scan.lesions:
        x1, y1, x2, y2 = (int(v) for v in lesion.box_xyxy)
        rows, columns = np.nonzero(mask_of(lesion.rle))
        assert x1 <= columns.min() <= columns.max() < x2
        assert y1 <= rows.min() <= rows.max() < y2


@pytest.mark.parametrize(
    ("left", "right", "both"),
    [
        ("0", "1", "1"),
        ("1", "0", "1"),
        ("0", "0", "0"),
        ("1", "1", "1"),
        ("1", "", "1"),
        ("0", "", ""),
        ("", "0", ""),
        ("breast", "breast", "breast"),
        ("breast", "lung", "breast|lung"),
        ("", "lung", "lung"),
        ("0", "2", "0|2"),
    ],
)
def test_a_montage_is_abnormal_where_one_of_its_views_is(
    left: str, right: str, both: str, views: list[View]
) -> None:
    said = [
        replace(
            v,
            scan=replace(
                v.scan, labels=(("kind", value), ("tumour", "x")) if value else (("tumour", "x"),)
            ),
        )
        for v, value in zip(views, (left, right))
    ]
    for order in (said, said[::-1]):
        (joined,) = apply_steps(order, ["montage"])
        assert dict(joined.scan.labels) == {"tumour": "x", **({"kind": both} if both else {})}


def test_what_is_found_after_the_steps_goes_back_to_where_it_was_before_them(
    views: list[View],
) -> None:
    (joined,) = apply_steps(views, ["body_range", "knee_cut", "montage"])
    for part, before in zip(joined.origins, views):
        back_HW = part_of(joined.values_HW, part.y, part.x, *before.values_HW.shape)
        rows = slice(max(-part.y, 0), 640 - part.y)
        np.testing.assert_array_equal(back_HW[rows], before.values_HW[rows])
        assert not back_HW[rows.stop :].any()


def test_steps_move_mask_and_counts_together() -> None:
    values_HW = np.zeros((1024, 256), np.float32)
    values_HW[300:900] = 1
    mask_HW = np.zeros(values_HW.shape, bool)
    mask_HW[400:410, 100:120] = True
    values_HW[mask_HW] = 50
    view = View(
        values_HW,
        Scan(
            "",
            "p",
            "anterior",
            1024,
            256,
            None,
            0,
            1.0,
            lesions=(Lesion((100, 400, 120, 410), "malignant", rle_of(mask_HW)),),
        ),
        (Origin("a", 0, 1024, 256),),
    )
    for names in (["body_range"], ["body_range", "knee_cut"], ["tile"]):
        for made in apply_steps([view], names):
            for lesion in made.scan.lesions:
                np.testing.assert_array_equal(mask_of(lesion.rle), made.values_HW > 10)


def test_the_bladder_is_suppressed_and_lesions_elsewhere_stay(views: list[View]) -> None:
    front = views[0]
    window = (slice(420, 452), slice(112, 145))
    done_HW = cleared(front.values_HW)
    assert front.values_HW[window].max() > 3 * done_HW[window].max()
    changed = done_HW != front.values_HW
    assert 0 < changed.sum() < 3000
    np.testing.assert_array_equal(done_HW[:380], front.values_HW[:380])
    flat_HW = np.random.default_rng(0).poisson(6, (1024, 256)).astype(np.float32)
    np.testing.assert_array_equal(cleared(flat_HW), flat_HW)


def test_otsu_separates_the_body_from_air(views: list[View]) -> None:
    for view in views:
        inside_HW = body_mask(view.values_HW)
        assert 0.1 < inside_HW.mean() < 0.5
        assert inside_HW[250:300, 120:136].all()
        assert not inside_HW[:60].any()
        assert all(inside_HW[mask_of(le.rle)].mean() > 0.9 for le in view.scan.lesions)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40))
def test_tiles_cover_every_pixel_of_the_image(
    height: int, width: int, size: int, stride: int
) -> None:
    covered_HW = np.zeros((height, width), bool)
    for y, x in tiles((height, width), size, min(stride, size)):
        covered_HW[y : y + size, x : x + size] = True
    assert covered_HW.all()


def test_a_whole_body_view_gives_seven_tiles_of_256(views: list[View]) -> None:
    made = apply_steps(views[:1], ["tile"])
    assert [m.values_HW.shape for m in made] == [(256, 256)] * 7
    assert sum(m.scan.lesions != () for m in made) >= 2


def test_lesion_tiles_are_the_tiles_with_a_malignant_lesion(views: list[View]) -> None:
    whole = apply_steps(views, ["tile"])
    kept = apply_steps(views, ["lesion_tile"])
    places = [v.origins for v in kept]
    assert 0 < len(kept) < len(whole)
    for tile in whole:
        malignant = any(le.category == "malignant" for le in tile.scan.lesions)
        assert (tile.origins in places) == malignant


def test_added_views_are_the_front_and_the_mirrored_back(views: list[View]) -> None:
    """By hand; a lesion that both sides show is one, and what is drawn lies on the sum's pixels."""
    front = next(v for v in views if v.scan.view == "anterior")
    back = next(v for v in views if v.scan.view == "posterior")
    (both,) = apply_steps([front, back], ["add_views"])
    np.testing.assert_array_equal(both.values_HW, front.values_HW + back.values_HW[:, ::-1])
    assert both.scan.view == "anterior+posterior"
    assert both.origins == front.origins
    own, sides = both.scan.lesions, (*front.scan.lesions, *back.scan.lesions)
    assert 0 < len(own) <= len(sides)
    for category in {le.category for le in sides}:
        truth_HW = np.zeros(both.values_HW.shape, bool)
        for view, turn in ((front, 1), (back, -1)):
            for lesion in view.scan.lesions:
                if lesion.category == category:
                    truth_HW |= mask_of(lesion.rle or {})[:, ::turn]
        masks = [mask_of(le.rle or {}) for le in own if le.category == category]
        np.testing.assert_array_equal(np.any(masks, axis=0), truth_HW)
        assert np.sum(masks, axis=0).max() <= 1  # no two of them overlap
    for lesion in own:
        rows, columns = np.nonzero(mask_of(lesion.rle or {}))
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert lesion.box_xyxy == pytest.approx(box)
    assert apply_steps([front], ["add_views"]) == []
