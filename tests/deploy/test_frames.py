"""Predictions on overlapping scans, brought together on their frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np

from raybone.data.ingest.steps import Origin, tiles
from raybone.deploy.bundle import Bundle
from raybone.deploy.frames import Canvas, Frame
from raybone.models import load
from raybone.types import Prediction

META: dict[str, Any] = {"categories": ["malignant"], "calibration": {}, "members": [{}, {}]}


def canvas_of(height: int, width: int, parts: int) -> Canvas:
    frame = Frame(
        1, 1, 1, "scan.dcm", 0, "anterior", height, width, 2.0, (0, 0, width, height), [], []
    )
    model = load("unet")
    return Canvas(frame, Bundle(Path("b"), META, model, model.Config()), parts)


def origin(y: int, x: int, shape: tuple[int, int]) -> Origin:
    return Origin("scan.dcm", 0, *shape, y, x)


def test_a_lesion_on_two_tiles_is_one_finding_where_it_is() -> None:
    places = tiles((512, 256), 256, 128)
    canvas = canvas_of(512, 256, len(places))
    box = np.array([100, 200, 120, 225], np.float32)
    for y, x in places:
        if y <= box[1] < y + 256:
            found = Prediction(
                (box - [x, y, x, y])[None].astype(np.float32),
                np.array([0.5 + y / 1000], np.float32),
                np.zeros(1, np.int64),
            )
            canvas.add(origin(-y, -x, (512, 256)), found, np.array([0.1]))
    canvas.finish()
    (finding,) = canvas.frame.findings
    assert finding.box == (100, 200, 120, 225)
    assert finding.score == 0.628


def test_masks_of_tiles_are_their_mean_and_the_frame_is_done_with_the_last() -> None:
    places = tiles((64, 32), 32, 16)
    canvas = canvas_of(64, 32, len(places))
    truth_HW = np.zeros((64, 32), np.float32)
    truth_HW[20:30, 8:12] = 0.8
    for number, (y, x) in enumerate(places):
        assert canvas.frame.findings == []
        mask_CHW = truth_HW[None, y : y + 32, x : x + 32] + np.float32(0.1 * (number % 2))
        canvas.add(
            origin(-y, -x, (64, 32)),
            Prediction(mask_CHW=mask_CHW),
            np.full_like(mask_CHW, 0.2),
        )
    (finding,) = canvas.frame.findings
    assert finding.box == (8, 20, 12, 30)
    assert (finding.area_px, finding.area_mm2) == (40, 160.0)
    assert finding.sd == 0.2
    assert 0.8 < finding.score < 0.9


def test_both_views_of_one_image_get_what_is_said_of_the_whole() -> None:
    canvases = [canvas_of(64, 32, 1) for _ in range(2)]
    for canvas in canvases:
        said = Prediction(scores_N=np.array([0.7]))
        canvas.add(origin(0, 0, (64, 32)), said, np.array([0.05]))
        canvas.finish()
    assert [[(f.box, f.score) for f in c.frame.findings] for c in canvases] == [
        [((0, 0, 32, 64), 0.7)]
    ] * 2


def test_boxes_beside_the_frame_belong_to_another_one() -> None:
    canvas = canvas_of(64, 32, 1)
    boxes_N4 = np.array([[2, 2, 8, 8], [40, 2, 48, 8]], np.float32)
    canvas.add(
        origin(0, 32, (64, 32)),
        Prediction(boxes_N4, np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64)),
        np.zeros(2),
    )
    canvas.finish()
    assert [cast(Any, f).box for f in canvas.frame.findings] == [(8, 2, 16, 8)]
