"""Augmentation: boxes and masks go where the image goes, and zero means off."""

from __future__ import annotations

import numpy as np
import pytest

from raybone.data.augment import Augmentation, Sample, augment

OFF = Augmentation(fliplr=0, translate=0, scale=0)
CANVAS = (128, 64)


def sample() -> Sample:
    """A bright square, its mask, and five masks of what is around it."""
    image_HW, mask_CHW = np.zeros(CANVAS, np.float32), np.zeros((6, *CANVAS), np.uint8)
    image_HW[40:60, 20:34] = 1
    mask_CHW[:, 40:60, 20:34] = 1
    mask_CHW[1:, 30:40, 10:50] = 2
    return Sample(
        image_HW, np.array([[20, 40, 34, 60]], np.float32), np.zeros(1, np.int64), mask_CHW
    )


def run(hyper: Augmentation, seed: int, closed: bool = False) -> Sample:
    def mates(rng: np.random.Generator) -> list[Sample]:
        return [sample() for _ in rng.integers(0, 5, 3)]

    rng = np.random.default_rng(seed)
    return augment(sample(), hyper, rng, CANVAS, None if closed else mates)


def test_everything_off_changes_nothing() -> None:
    done, plain = run(OFF, 0), sample()
    np.testing.assert_array_equal(done.image_HW, plain.image_HW)
    np.testing.assert_array_equal(done.boxes_N4, plain.boxes_N4)


@pytest.mark.parametrize(
    "change",
    [
        {"fliplr": 1.0},
        {"translate": 0.1},
        {"scale": 0.3},
        {"degrees": 10.0},
        {"mosaic": 1.0},
        {"fliplr": 0.5, "translate": 0.1, "scale": 0.2, "mosaic": 0.5},
    ],
)
def test_every_box_frames_its_bright_square(change: dict[str, float]) -> None:
    seen = 0
    for seed in range(20):
        done = run(OFF.model_copy(update=change), seed)
        assert done.image_HW.shape == CANVAS
        assert done.image_HW.dtype == np.float32
        assert abs((done.image_HW > 0.5).sum() - (done.mask_CHW[0] > 0).sum()) < 80
        for x1, y1, x2, y2 in done.boxes_N4.round().astype(int):
            seen += 1
            assert 0 <= x1 < x2 <= 64
            assert 0 <= y1 < y2 <= 128
            inner = done.image_HW[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2]
            # A rotated square fills less of its frame.
            assert inner.size == 0 or inner.mean() > (0.6 if change.get("degrees") else 0.85)
    assert seen > 10


@pytest.mark.parametrize(
    "change", [{"fliplr": 1.0}, {"degrees": 30.0, "translate": 0.1, "scale": 0.2}, {"mosaic": 1.0}]
)
def test_all_masks_move_alike_and_keep_their_values(change: dict[str, float]) -> None:
    for seed in range(5):
        mask_CHW = run(OFF.model_copy(update=change), seed).mask_CHW
        assert mask_CHW.dtype == np.uint8
        assert mask_CHW.shape == (6, *CANVAS)
        for one_HW in mask_CHW[1:]:
            np.testing.assert_array_equal(one_HW, mask_CHW[1])
            np.testing.assert_array_equal(one_HW == 1, mask_CHW[0] == 1)
        assert set(np.unique(mask_CHW)) == {0, 1, 2}


def test_the_same_generator_gives_the_same_sample_and_closed_ends_the_mosaic() -> None:
    hyper = OFF.model_copy(update={"mosaic": 1.0, "gamma": 0.5, "poisson": 0.3})
    np.testing.assert_array_equal(run(hyper, 4).image_HW, run(hyper, 4).image_HW)
    assert len(run(OFF.model_copy(update={"mosaic": 1.0}), 1, closed=True).boxes_N4) == 1


def test_intensity_changes_stay_in_range_and_poisson_keeps_the_mean() -> None:
    bright = Sample(
        np.full(CANVAS, 0.7, np.float32), np.zeros((0, 4), np.float32), np.zeros(0, np.int64), None
    )
    for seed in range(5):
        done = augment(
            bright,
            OFF.model_copy(update={"poisson": 0.5}),
            np.random.default_rng(seed),
            CANVAS,
            lambda rng: [bright] * 3,
        )
        assert 0 <= done.image_HW.min() <= done.image_HW.max() <= 1
        assert abs(float(np.mean(done.image_HW**2)) - 0.49) < 0.02


def test_count_scaling_multiplies_the_counts_within_its_factor_and_gamma_keeps_black_and_white() -> (
    None
):
    dim = Sample(
        np.full(CANVAS, 0.4, np.float32), np.zeros((0, 4), np.float32), np.zeros(0, np.int64), None
    )
    factors = [
        float(
            np.mean(
                augment(
                    dim,
                    OFF.model_copy(update={"count_scale": 1.0}),
                    np.random.default_rng(seed),
                    CANVAS,
                    lambda rng: [dim] * 3,
                ).image_HW
                ** 2
            )
        )
        / 0.16
        for seed in range(200)
    ]
    assert 0.5 <= min(factors) < 0.6 < 1.8 < max(factors) <= 2
    done = run(OFF.model_copy(update={"gamma": 2.0}), 1)
    np.testing.assert_array_equal(done.image_HW, sample().image_HW)
