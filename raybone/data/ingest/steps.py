"""Preprocessing steps of the papers, by name, for the views of one study; ``prepare --steps``
applies them in order.

Body range, brightness, knee cut and montage are those of the double U-Net study of whole-body scans
(jobs/wbbs_*, section 3.3 there), for 1024x256 views; rows are scaled with the height of other
scans. max_min, bladder and tile are those of the multi-attention U-Net study (Quant Imaging Med
Surg, doi 10.21037/qims-24-1246). Values become real numbers; ``scale_of`` says how they are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np

from raybone.data.annotations import lesion_of_mask, mask_of, rle_of
from raybone.data.ingest.plugins import step_by_plugin
from raybone.types import Array, Lesion, Scan

BODY_ROWS, KNEE_ROW, FULL_ROWS = 950, 640, 1024
MEAN_RANGE = (7.0, 14.0)
TILE, STRIDE = 256, 128


class Origin(NamedTuple):
    """A frame that a scan is made of: number ``frame`` (0-based) of the input ``name``, of shape
    (height, width).

    name: the input, below SOURCE. y, x: row and column of the scan at which the frame's first pixel
    lies.
    """

    name: str
    frame: int
    height: int
    width: int
    y: int = 0
    x: int = 0


@dataclass(frozen=True, eq=False)
class View:
    """Values, float32 (H, W), of one image of a study, with its scan (lesions in pixels of these
    values) and the frames that it is made of.
    """

    values_HW: Array
    scan: Scan
    origins: tuple[Origin, ...]


def apply_steps(views: Sequence[View], names: Sequence[str]) -> list[View]:
    """The views after all steps, in order."""
    done = list(views)
    for name in names:
        if step := step_named(name):
            done = step.change(done)
    return done


def body_range(values_HW: Array) -> tuple[int, int]:
    """First row of the body and the row after its last, from the projection profile.

    Rows count as body where the smoothed row sums are above 5 % of their 90th percentile.
    """
    profile_H = cv2.blur(values_HW.sum(1, dtype=np.float64)[:, None], (1, 5))[:, 0]
    rows = np.nonzero(profile_H > 0.05 * np.percentile(profile_H, 90))[0]
    return (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, len(values_HW))


def brightness(values_HW: Array) -> Array:
    """Values times the power of two that brings their mean into [7, 14).

    The range is one octave, so that the gain is unique; this is the reading chosen of the papers'
    linear transformation "within the range of (7, 14)". An empty scan stays as it is.
    """
    mean = float(values_HW.mean())
    return (
        values_HW * np.float32(2.0 ** np.ceil(np.log2(MEAN_RANGE[0] / mean)))
        if mean > 0
        else values_HW
    )


def max_min(values_HW: Array) -> Array:
    """Values stretched linearly to [0, 1] by the scan's own minimum and maximum."""
    low, high = float(values_HW.min()), float(values_HW.max())
    return (values_HW - low) / max(high - low, 1e-9)


def without_bladder(values_HW: Array) -> Array:
    """The bladder's hot spot replaced by the median of its rim.

    It is sought where a whole-body view has it (rows 0.41 to 0.50 of the body, the middle third of
    the columns), as the island above half of the maximum there, when that maximum is over 3 times
    the 95th percentile of the body's rows outside. A bright lesion of the sacrum may be taken for
    it: look at a contact sheet.
    """
    top, bottom = body_range(values_HW)
    rows = slice(top + round(0.41 * (bottom - top)), top + round(0.50 * (bottom - top)))
    columns = slice(values_HW.shape[1] // 3, values_HW.shape[1] - values_HW.shape[1] // 3)
    window_HW = np.zeros(values_HW.shape, bool)
    window_HW[rows, columns] = True
    smooth_HW = cv2.GaussianBlur(values_HW, (0, 0), max(1.0, values_HW.shape[1] / 128))
    peak = float(smooth_HW[window_HW].max(initial=0))
    if peak <= 3 * float(np.percentile(smooth_HW[top:bottom][~window_HW[top:bottom]], 95)):
        return values_HW
    islands_HW = cv2.connectedComponents((window_HW & (smooth_HW > 0.5 * peak)).astype(np.uint8))[1]
    place = np.unravel_index(np.argmax(np.where(window_HW, smooth_HW, 0)), smooth_HW.shape)
    spot_HW = (islands_HW == islands_HW[place]).astype(np.uint8)
    reach = 2 * max(1, values_HW.shape[1] // 64) + 1
    spot_HW = cv2.dilate(spot_HW, np.ones((reach, reach), np.uint8))
    rim_HW = (cv2.dilate(spot_HW, np.ones((reach, reach), np.uint8)) > 0) & (spot_HW == 0)
    out_HW = values_HW.copy()
    out_HW[spot_HW > 0] = np.median(values_HW[rim_HW])
    return out_HW


def body_mask(values_HW: Array) -> Array:
    """Body against air, boolean (H, W): Otsu's threshold (1979) of the smoothed square root of the
    values.
    """
    root_HW = cv2.GaussianBlur(np.sqrt(np.maximum(values_HW, 0)).astype(np.float32), (0, 0), 2)
    top = float(np.percentile(root_HW, 99)) or 1.0
    grey_HW = np.clip(root_HW / top * 255, 0, 255).astype(np.uint8)
    return np.asarray(cv2.threshold(grey_HW, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1], bool)


def tiles(shape: tuple[int, int], size: int = TILE, stride: int = STRIDE) -> list[tuple[int, int]]:
    """(row, column) of the first pixel of each tile; the last ones are moved in so that all pixels
    are covered.
    """

    def starts(length: int) -> list[int]:
        last = max(0, length - size)
        return [*range(0, last, stride), last]

    return [(y, x) for y in starts(shape[0]) for x in starts(shape[1])]


@dataclass(frozen=True)
class Scale:
    """How the values that steps leave are stored and displayed.

    Attributes:
        unit: the stored value of 1.0, so that steps which leave whole counts keep enough digits.
        window: the upper edge of the display window, in the words of dataset.json.
        shared: gives the edge that all scans share from the edges of each, as a window of its own
            would undo the step for the eye; None where each scan keeps its own.
    """

    unit: int
    window: str
    shared: Callable[[Sequence[float]], float] | None = None


COUNTS = Scale(1, "99.9 percentile")
OCTAVE = Scale(16, "median of the scans' 99.9 percentiles", lambda highs: float(np.median(highs)))
FULL = Scale(65535, "65535", lambda highs: 65535.0)


def rescaling(names: Sequence[str]) -> list[str]:
    """The steps of these that leave values which are no counts; more than one undo each other."""
    steps = {name: step_named(name) for name in names}
    return [name for name, step in steps.items() if step and step.scale is not COUNTS]


def scale_of(names: Sequence[str]) -> Scale:
    """The scale of the values that steps leave."""
    scales = [step.scale for name in names if (step := step_named(name))]
    return next((scale for scale in scales if scale is not COUNTS), COUNTS)


def _body_range(views: list[View]) -> list[View]:
    """950 of 1024 rows with the body in their middle."""
    cut = []
    for view in views:
        top, bottom = body_range(view.values_HW)
        rows = round(len(view.values_HW) * BODY_ROWS / FULL_ROWS)
        cut.append(_window(view, (top + bottom - rows) // 2, 0, rows, view.values_HW.shape[1]))
    return cut


def _knee_cut(views: list[View]) -> list[View]:
    """Rows down to the knees: 640 of 950."""
    return [
        _window(v, 0, 0, round(len(v.values_HW) * KNEE_ROW / BODY_ROWS), v.values_HW.shape[1])
        for v in views
    ]


def _pairs(views: list[View]) -> Iterator[tuple[View, View]]:
    """Anterior and posterior views of one shape: of one input, else the only ones that are left, as
    others may be of another visit.
    """
    for shape in dict.fromkeys(v.values_HW.shape for v in views):
        alike, left = [v for v in views if v.values_HW.shape == shape], list[View]()
        backs = [v for v in alike if v.scan.view == "posterior"]
        for front in (v for v in alike if v.scan.view == "anterior"):
            own = [b for b in backs if b.origins[0].name == front.origins[0].name]
            if own:
                backs.remove(own[0])
                yield front, own[0]
            else:
                left.append(front)
        left, backs = _once(left), _once(backs)
        if len(left) == len(backs) == 1:
            yield left[0], backs[0]


def _once(views: list[View]) -> list[View]:
    """The first of each view that is there in several copies."""
    first = {view.values_HW.tobytes(): view for view in reversed(views)}
    return [view for view in views if first[view.values_HW.tobytes()] is view]


def _montage(views: list[View]) -> list[View]:
    """Anterior at the left and posterior at the right, for each pair of one shape; a lone view is
    left out.

    Labels of 0 and 1 say whether either view is abnormal: 1 where one is, and nothing where one is
    0 and the other unknown. Of other labels, values that differ are joined, as in ``left|right``.
    """
    merged = []
    for front, back in _pairs(views):
        rows, columns = front.values_HW.shape
        left, right = (
            _window(front, 0, 0, rows, 2 * columns),
            _window(back, 0, -columns, rows, 2 * columns),
        )
        merged.append(
            View(
                left.values_HW + right.values_HW,
                replace(
                    left.scan,
                    view="anterior|posterior",
                    lesions=left.scan.lesions + right.scan.lesions,
                    flags=tuple(sorted({*left.scan.flags, *right.scan.flags})),
                    labels=tuple(_either(dict(left.scan.labels), dict(right.scan.labels))),
                ),
                left.origins + right.origins,
            )
        )
    return merged


def _either(left: dict[str, str], right: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Labels of two views as those of both together."""
    for name in dict.fromkeys([*left, *right]):
        values = {left.get(name, ""), right.get(name, "")}
        if values != {"", "0"}:
            yield (
                name,
                "1"
                if values <= {"", "0", "1"} and "1" in values
                else "|".join(sorted(values - {""})),
            )


def _add_views(views: list[View]) -> list[View]:
    """Anterior plus the mirrored posterior, for each pair of one shape; a lone view is left out.

    Lesions of one category that overlap are one, as most are seen from both sides; those with boxes
    alone stay apart. What is found is told on the anterior frame. View aggregation by addition is
    of Cao et al. 2023, Biomed Signal Process Control 79:104068; that all of both views is added is
    our reading.
    """
    joined = []
    for front, back in _pairs(views):
        turned = tuple(_mirrored(le, back.scan.width) for le in back.scan.lesions)
        scan = replace(
            front.scan,
            view="anterior+posterior",
            lesions=tuple(_merged([*front.scan.lesions, *turned])),
            flags=tuple(sorted({*front.scan.flags, *back.scan.flags})),
            labels=tuple(_either(dict(front.scan.labels), dict(back.scan.labels))),
        )
        joined.append(View(front.values_HW + back.values_HW[:, ::-1], scan, front.origins))
    return joined


def _mirrored(lesion: Lesion, width: int) -> Lesion:
    x1, y1, x2, y2 = lesion.box_xyxy
    rle = rle_of(mask_of(lesion.rle)[:, ::-1]) if lesion.rle else None
    return replace(lesion, box_xyxy=(width - x2, y1, width - x1, y2), rle=rle)


def _merged(lesions: Sequence[Lesion]) -> list[Lesion]:
    """Lesions of masks that overlap one of their own kind are joined with it."""
    kept = list[Lesion]()
    for lesion in lesions:
        mask_HW = mask_of(lesion.rle) if lesion.rle else None
        for other in [*kept] if mask_HW is not None else []:
            alike = (other.category, other.crowd) == (lesion.category, lesion.crowd)
            if alike and other.rle and (mask_HW & mask_of(other.rle)).any():
                mask_HW = mask_HW | mask_of(other.rle)
                kept.remove(other)
                lesion = replace(lesion_of_mask(mask_HW, lesion.category), crowd=lesion.crowd)
        kept.append(lesion)
    return kept


def _tile(views: list[View]) -> list[View]:
    # Tiles of one object are no copies of each other.
    alone = [replace(v, scan=replace(v.scan, instance="")) for v in views]
    return [_window(v, y, x, TILE, TILE) for v in alone for y, x in tiles(v.values_HW.shape)]


def _each(change: Callable[[Array], Array]) -> Callable[[list[View]], list[View]]:
    return lambda views: [
        replace(v, values_HW=change(v.values_HW).astype(np.float32)) for v in views
    ]


def _lesion_tile(views: list[View]) -> list[View]:
    """Tiles with a malignant lesion, as the multi-attention study is trained and scored on."""

    def sick(view: View) -> bool:
        return any(le.category == "malignant" and not le.crowd for le in view.scan.lesions)

    return [view for view in _tile(views) if sick(view)]


class Step(NamedTuple):
    """A change of the views of one study, and how the values that it leaves are stored."""

    change: Callable[[list[View]], list[View]]
    scale: Scale = COUNTS


STEPS = {
    "body_range": Step(_body_range),
    "brightness": Step(_each(brightness), OCTAVE),
    "knee_cut": Step(_knee_cut),
    "montage": Step(_montage),
    "add_views": Step(_add_views),
    "max_min": Step(_each(max_min), FULL),
    "bladder": Step(_each(without_bladder)),
    "body_mask": Step(_each(lambda values_HW: values_HW * body_mask(values_HW))),
    "tile": Step(_tile),
    "lesion_tile": Step(_lesion_tile),
}
# Steps that look at the truth, and what new scans get in their place.
BLIND = {"lesion_tile": "tile"}


def step_named(name: str) -> Step | None:
    """The step of that name, here or of another package; None where there is none."""
    return STEPS.get(name) or step_by_plugin(name)


def _window(view: View, y: int, x: int, rows: int, columns: int) -> View:
    """The part of a view that starts at (y, x), zeros where it reaches beyond; lesions move along
    and are cut.
    """
    return View(
        part_of(view.values_HW, y, x, rows, columns),
        replace(view.scan, lesions=tuple(_moved(view.scan.lesions, y, x, rows, columns))),
        tuple(o._replace(y=o.y - y, x=o.x - x) for o in view.origins),
    )


def part_of(values_HW: Array, y: int, x: int, rows: int, columns: int) -> Array:
    """The rows and columns from (y, x) on, zeros where they reach beyond."""
    out_HW = np.zeros((rows, columns), values_HW.dtype)
    source_HW = values_HW[max(y, 0) : max(y + rows, 0), max(x, 0) : max(x + columns, 0)]
    top, left = max(-y, 0), max(-x, 0)
    out_HW[top : top + source_HW.shape[0], left : left + source_HW.shape[1]] = source_HW
    return out_HW


def _moved(lesions: Sequence[Lesion], y: int, x: int, rows: int, columns: int) -> Iterator[Lesion]:
    for lesion in lesions:
        x1, y1, x2, y2 = lesion.box_xyxy
        box = (
            max(x1 - x, 0.0),
            max(y1 - y, 0.0),
            min(x2 - x, float(columns)),
            min(y2 - y, float(rows)),
        )
        rle = None
        if lesion.rle:
            mask_HW = part_of(mask_of(lesion.rle), y, x, rows, columns)
            if not mask_HW.any():
                continue
            if (
                box[2] - box[0] < x2 - x1 or box[3] - box[1] < y2 - y1
            ):  # what is left may be smaller than the cut box
                box = lesion_of_mask(mask_HW, "").box_xyxy
            rle = rle_of(mask_HW)
        if box[0] < box[2] and box[1] < box[3]:
            yield Lesion(box, lesion.category, rle, lesion.crowd)
