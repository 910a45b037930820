"""What several models say together, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from raybone.tasks import task_named
from raybone.types import Prediction

agreed = task_named("detection").agreed


def boxes(*items: tuple[float, float, float, float, float, int]) -> Prediction:
    table = np.array(items, np.float32).reshape(-1, 6)
    return Prediction(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def test_one_box_of_all_members_is_their_mean_by_score() -> None:
    found, sd = agreed(
        [
            boxes((0, 0, 10, 10, 0.9, 0)),
            boxes((0, 0, 10, 12, 0.3, 0)),
            boxes((0, 0, 10, 10, 0.6, 0)),
        ]
    )
    assert len(found.boxes_N4) == 1
    np.testing.assert_allclose(found.boxes_N4[0], [0, 0, 10, 10 + 2 * 0.3 / 1.8], rtol=1e-6)
    assert found.scores_N[0] == pytest.approx(0.6)
    assert sd[0] == pytest.approx(np.std([0.9, 0.3, 0.6]))


def test_a_box_of_one_member_of_three_loses_two_thirds_of_its_score() -> None:
    found, sd = agreed([boxes((5, 5, 9, 9, 0.9, 0)), boxes(), boxes()])
    assert found.scores_N[0] == pytest.approx(0.3)
    assert sd[0] == pytest.approx(np.std([0.9, 0, 0]))


def test_neither_other_places_nor_other_categories_nor_one_members_own_boxes_are_merged() -> None:
    apart = [boxes((0, 0, 10, 10, 0.8, 0)), boxes((6, 0, 16, 10, 0.8, 0))]
    assert len(agreed(apart)[0].boxes_N4) == 2
    assert (
        len(agreed([boxes((0, 0, 10, 10, 0.8, 0)), boxes((0, 0, 10, 10, 0.8, 1))])[0].boxes_N4) == 2
    )
    alone = boxes((0, 0, 10, 10, 0.8, 0), (0, 0, 10, 11, 0.7, 0))
    found, sd = agreed([alone])
    np.testing.assert_array_equal(found.boxes_N4, alone.boxes_N4)
    np.testing.assert_allclose(found.scores_N, alone.scores_N)
    assert not sd.any()


def test_nobody_finds_anything() -> None:
    found, sd = agreed([boxes(), boxes()])
    assert found.boxes_N4.shape == (0, 4)
    assert len(found.scores_N) == len(sd) == 0


def test_masks_and_classes_are_means() -> None:
    masks = [Prediction(mask_CHW=np.full((1, 2, 2), v, np.float32)) for v in (0.2, 0.6)]
    found, sd = task_named("segmentation").agreed(masks)
    np.testing.assert_allclose(found.mask_CHW, 0.4)
    np.testing.assert_allclose(sd, 0.2)
    scores = [Prediction(scores_N=np.array([v], np.float32)) for v in (0.1, 0.5)]
    found, sd = task_named("classification").agreed(scores)
    assert (found.scores_N[0], sd[0]) == (pytest.approx(0.3), pytest.approx(0.2))
