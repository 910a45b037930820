"""Sheets of pictures: a dataset's scans with their lesions, and a training batch as the network
sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from raybone.data.dataset import Dataset, open_dataset
from raybone.data.folds import SPECIAL
from raybone.data.modality import shades
from raybone.data.preprocess import to_intensity
from raybone.errors import WrongInput
from raybone.private import write_private
from raybone.types import Array, Scan

if TYPE_CHECKING:
    from raybone.data.loader import Batch

COLUMNS, BATCH_COLUMNS = 12, 8
CROWD = 2  # in masks of a batch
LONG_SIDE, WORDS, CAPTION, MARGIN = 3.8, 1.0, 0.4, 0.2  # inches, of a hundred pixels
DASHED = (0, (2, 1.5))
LINE, ENTRY = (
    0.22,
    3.0,
)  # inches: the height of a line of the legend, and the width of one of its entries
COLOURS = {"malignant": "tab:red", "benign": "tab:blue"}
OTHER = "tab:green"
FRAME, PLAIN = "darkorange", "lightgrey"  # of scans to look at first, and of the others


def contact_sheet(
    dataset: Path | str, out: Path | str, found: dict[str, Any], most: int = 60
) -> int:
    """Write a PNG of at most so many scans, boxes in red (malignant), blue (benign) and green, with
    a legend.

    Args:
        found: what ``inspect`` said; suspects, repeats, flagged scans and near-duplicates come
            first, framed in orange.
    Returns:
        The number of scans shown.
    """
    opened = open_dataset(dataset)
    scans = [s for s in opened.scans if s.scan_id not in found["broken"]]
    looked = _worth_looking(scans, found)
    first = [s for s in scans if s.scan_id in looked]
    rest = [s for s in scans if s.scan_id not in looked]
    step = max(1, -(-len(rest) // max(1, most - len(first))))
    shown = (first + rest[::step])[:most]
    if not shown:
        raise WrongInput(
            "inspect: --png needs a scan that can be read, and there is none; see the problems"
        )
    _refuse_folder("inspect", out)
    shapes = [(s.height, s.width) for s in shown]
    height, width = (
        LONG_SIDE * max(shape[axis] / max(shape) for shape in shapes) for axis in (0, 1)
    )
    rows, columns = -(-len(shown) // COLUMNS), min(COLUMNS, len(shown))
    legend = _legend(shown, looked)
    wide = max(columns * (max(width, WORDS) + MARGIN), ENTRY)
    lines = -(-len(legend) // int(wide / ENTRY))
    figure = Figure((wide, rows * (height + CAPTION) + lines * LINE), layout="constrained")
    for place, scan in enumerate(shown, 1):
        _tile(figure.add_subplot(rows, columns, place), opened, scan, scan.scan_id in looked)
    figure.legend(
        [Line2D([], [], color=colour, linestyle=style) for _, colour, style in legend],
        [words for words, *_ in legend],
        loc="outside lower left",
        fontsize=8,
        frameon=False,
        ncols=int(wide / ENTRY),
    )
    _write(figure, out)
    return len(shown)


def batch_sheet(
    batch: Batch,
    names: Sequence[str],
    flags: Sequence[Sequence[str]],
    out: Path | str,
    words: Sequence[str] = (),
) -> int:
    """Write a PNG of a training batch, after augmentation and at the network's size, with its
    targets.

    Args:
        names: of the labels of boxes and of the channels of masks; a crowd's mask is dashed.
        flags: of each image's scan, which say which way round it is drawn.
        words: what stands over each image: what a classifier is to say of it.
    Returns:
        The number of images.
    """
    _refuse_folder("preview", out)
    count, _, height, width = batch.image_NCHW.shape
    rows, columns = -(-count // BATCH_COLUMNS), min(BATCH_COLUMNS, count)
    scale = LONG_SIDE / max(height, width)
    wide = max(columns * (max(width * scale, WORDS) + MARGIN), ENTRY)
    lines = 0 if words else -(-len(names) // int(wide / ENTRY))
    figure = Figure((wide, rows * (height * scale + CAPTION) + lines * LINE), layout="constrained")
    for n in range(count):
        axes = figure.add_subplot(rows, columns, n + 1)
        axes.imshow(batch.image_NCHW[n, 0].numpy(), cmap=shades(flags[n]), vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.set_title(words[n] if words else f"{width} x {height}", fontsize=8)
        masks_CHW = batch.mask_NCHW[n].numpy() if len(batch.mask_NCHW) else ()
        for k, mask_HW in enumerate(masks_CHW):
            _contour(axes, mask_HW == 1, _colour(k), "-")
            _contour(axes, mask_HW == CROWD, _colour(k), DASHED)
        for box_4, label in zip(batch.boxes[n].tolist(), batch.labels[n].tolist()):
            if not len(masks_CHW):
                _box(axes, box_4, _colour(label))
    if not words:
        figure.legend(
            [Line2D([], [], color=_colour(k)) for k in range(len(names))],
            names,
            loc="outside lower left",
            fontsize=8,
            frameon=False,
            ncols=int(wide / ENTRY),
        )
    _write(figure, out)
    return count


def _write(figure: Figure, out: Path | str) -> None:
    content = BytesIO()
    figure.savefig(content, format="png")
    write_private(Path(out), content.getvalue())


def _colour(label: int) -> str:
    return f"C{(3, 0, 2, 1, 4, 5, 6, 8, 9, 7)[label % 10]}"  # red first, as malignant is


def _contour(axes: Axes, mask_HW: Array, colour: str, style: Any) -> None:
    if mask_HW.any():
        axes.contour(
            np.pad(mask_HW, 1),
            levels=[0.5],
            colors=colour,
            linestyles=[style],
            linewidths=0.9,
            extent=(-1.5, mask_HW.shape[1] + 0.5, -1.5, mask_HW.shape[0] + 0.5),
        )


def _box(axes: Axes, box_4: Sequence[float], colour: str, style: Any = "-") -> None:
    x1, y1, x2, y2 = box_4
    axes.add_patch(
        Rectangle(
            (x1 - 0.5, y1 - 0.5),
            x2 - x1,
            y2 - y1,
            fill=False,
            linewidth=0.7,
            linestyle=style,
            edgecolor=colour,
        )
    )


def _worth_looking(scans: list[Scan], found: dict[str, Any]) -> set[str]:
    ids = {i for i, _ in found["suspects"]} | {i for group in found["repeats"] for i in group}
    patients = {p for a, b, _ in found["near_duplicates"] for p in (a, b)}
    flagged = {"burned-in-text", "lossy", "not-square", "turned-over", "head-down"}
    return ids | {s.scan_id for s in scans if s.patient_id in patients or flagged & set(s.flags)}


def _legend(shown: Sequence[Scan], looked: set[str]) -> list[tuple[str, str, Any]]:
    """Words, colour and style of each kind of line and shade that the sheet has."""
    lesions = [le for s in shown for le in s.lesions]
    entries: list[tuple[str, str, Any]] = [
        (name, COLOURS.get(name, OTHER), "-")
        for name in sorted({le.category for le in lesions}, key=str)
    ]
    entries += [("crowd: dashed, of any colour", "black", DASHED)] * any(le.crowd for le in lesions)
    entries += [("orange frame: look at first", FRAME, "-")] * any(
        s.scan_id in looked for s in shown
    )
    entries += [("grey frame: nothing odd", PLAIN, "-")] * any(
        s.scan_id not in looked for s in shown
    )
    maps = {shades(s.flags) for s in shown}
    entries += [("grey of a scan: the darker, the more counts", "dimgrey", "")] * ("gray_r" in maps)
    entries += [("grey of a scan: the brighter, the higher", "dimgrey", "")] * ("gray" in maps)
    return entries


def _refuse_folder(verb: str, out: Path | str) -> None:
    if Path(out).is_dir():
        raise WrongInput(f"{verb}: {out} must be a file name for the PNG; choose another")


def _tile(axes: Axes, dataset: Dataset, scan: Scan, framed: bool) -> None:
    axes.imshow(
        to_intensity(dataset.counts(scan), scan.high), cmap=shades(scan.flags), vmin=0, vmax=1
    )
    axes.set(xticks=[], yticks=[])
    for lesion in scan.lesions:
        _box(
            axes,
            lesion.box_xyxy,
            COLOURS.get(lesion.category, OTHER),
            DASHED if lesion.crowd else "-",
        )
    axes.spines[:].set_color(FRAME if framed else PLAIN)
    fold = dataset.fold_of[scan.patient_id]
    axes.set_xlabel(
        f"{scan.scan_id}\n{scan.view[:4]} {SPECIAL.get(fold, f'fold {fold}')}",
        fontsize=8,
        loc="left",
    )
