"""A scan with its lesions and what was found: dark on white, or bright on black where its modality
is drawn so.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from raybone.data.annotations import mask_of
from raybone.data.modality import shades
from raybone.data.preprocess import to_intensity
from raybone.metrics.lesions import THRESHOLD
from raybone.types import Array, Lesion

DOTS = 100  # pixels an inch
TALL, NARROW, LEGEND = 5.6, 1.7, 0.4  # inches: the long side, the least width, the words below
# Okabe & Ito's blue and vermilion, which no colour blindness confuses; the lines differ as well.
TRUTH: dict[str, Any] = {"color": "#0072B2", "linestyle": "-", "linewidth": 1.6}
FOUND: dict[str, Any] = {"color": "#D55E00", "linestyle": (0, (3, 2)), "linewidth": 1.2}
APART: dict[str, Any] = {"color": "#0072B2", "linestyle": (0, (1, 1)), "linewidth": 1.2}
REGION = "#009E73"
HEAT = "autumn_r"  # from yellow to red, on grey


@dataclass(frozen=True)
class Picture:
    """A scan as it is drawn.

    counts_HW: counts, shape (H, W). high: upper edge of its window, in counts. flags: of the scan;
    its modality says which way round it is drawn. native: each pixel of the scan is one of the
    picture, or a square of them where the scan is small; else the picture has at most about 600
    pixels a side. heat_HW: what is laid over it, from 0 to 1, as where a classifier sees its class.
    """

    counts_HW: Array
    high: float
    flags: Sequence[str] = ()
    native: bool = False
    heat_HW: Array | None = None

    def figure(self) -> Figure:
        """The scan above room for a legend."""
        height, width = self.counts_HW.shape
        scale = TALL / max(height, width)
        if self.native:
            scale = max(1, int(scale * DOTS)) / DOTS
        figure = Figure((max(width * scale, NARROW), height * scale + LEGEND), dpi=DOTS)
        axes = figure.add_axes(
            (0, LEGEND / (height * scale + LEGEND), 1, height * scale / (height * scale + LEGEND))
        )
        axes.imshow(
            to_intensity(self.counts_HW, self.high),
            cmap=shades(self.flags),
            vmin=0,
            vmax=1,
            interpolation="nearest" if self.native else "bilinear",
        )
        if self.heat_HW is not None:
            seen_HW = np.clip(self.heat_HW, 0, 1)
            axes.imshow(seen_HW, cmap=HEAT, alpha=0.6 * seen_HW, vmin=0, vmax=1)
        axes.set_axis_off()
        return figure


def overlay(
    picture: Picture,
    finding: Mapping[str, Any],
    lesions: Sequence[Lesion] = (),
    categories: Sequence[str] = ("malignant",),
    least: float = THRESHOLD,
) -> bytes:
    """A PNG; lesions in solid blue, findings in dashed orange with their scores beside them, with a
    legend.

    Args:
        finding: one scan's part of predictions.json: boxes with scores and labels, masks as run
            lengths (whose boxes only place their scores), or the score of one lesion (or of the
            scan, where ``lesion`` is -1).
        lesions: the truth; those of other categories than ``categories`` are left out.
        least: boxes with a lower score are left out.
    """
    figure, width = picture.figure(), picture.counts_HW.shape[1]
    axes, judged = figure.axes[0], finding.get("lesion", -1)
    for number, lesion in enumerate(lesions):
        if number == judged or ("score" not in finding and lesion.category in categories):
            _outline(axes, None if "boxes" in finding else lesion.rle, lesion.box_xyxy, TRUTH)
    for rle in finding.get("masks", ()):
        _outline(axes, rle, None, FOUND)
    for box_4, score in zip(finding.get("boxes", ()), finding.get("scores", ())):
        if "masks" in finding:
            _beside(axes, box_4, f"{score:.2f}", width)
        elif score >= least:
            _outline(axes, None, box_4, FOUND)
            _beside(axes, box_4, f"{score:.2f}", width)
    words = {"judged" if "score" in finding else "truth": TRUTH} if lesions else {}
    if "score" not in finding:
        words["found"] = FOUND
    figure.legend(
        [Line2D([], [], **style) for style in words.values()],
        [*words],
        loc="lower center",
        ncols=2,
        fontsize=8,
        frameon=False,
        handlelength=2.2,
        columnspacing=1.0,
    )
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def numbered(
    picture: Picture, regions: Sequence[Array], lesions: Sequence[tuple[int, Lesion, bool]]
) -> bytes:
    """A PNG of a scan with the regions of its skeleton, boolean (H, W), in thin green, and lesions
    with their numbers.

    Args:
        lesions: number, lesion, and whether it counts: those that do are in dashed orange, the
            others in dotted blue.
    """
    figure, width = picture.figure(), picture.counts_HW.shape[1]
    axes = figure.axes[0]
    for mask_HW in regions:
        if mask_HW.any():
            axes.contour(mask_HW, levels=[0.5], colors=REGION, linewidths=0.6)
    for number, lesion, counts in lesions:
        _outline(axes, lesion.rle, lesion.box_xyxy, FOUND if counts else APART)
        _beside(axes, lesion.box_xyxy, str(number), width)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _beside(axes: Axes, box_4: Sequence[float], words: str, width: int) -> None:
    """Words beside a box: to the right, to the left where the scan ends there, or inside where it
    fills it.
    """
    if box_4[2] < width * 0.75:
        x, side, away = box_4[2], "left", 2
    elif box_4[0] > width * 0.25:
        x, side, away = box_4[0], "right", -2
    else:
        x, side, away = box_4[0], "left", 2
    text = axes.annotate(
        words,
        (x, box_4[1]),
        (away, 0),
        textcoords="offset points",
        fontsize=7,
        ha=side,
        va="top",
        color=FOUND["color"],
        annotation_clip=True,
    )
    text.set_path_effects([withStroke(linewidth=1.5, foreground="white")])


def _outline(
    axes: Axes, rle: dict[str, Any] | None, box_4: Sequence[float] | None, style: dict[str, Any]
) -> None:
    """The border of a mask, or of a box where there is none."""
    if rle is not None and (mask_HW := mask_of(rle)).any():
        axes.contour(
            mask_HW,
            levels=[0.5],
            colors=style["color"],
            linestyles=[style["linestyle"]],
            linewidths=style["linewidth"],
        )
    elif box_4 is not None:
        x1, y1, x2, y2 = box_4
        axes.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, **style))
