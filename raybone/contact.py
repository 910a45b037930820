"""A contact sheet of a dataset: its scans side by side with their lesions, those to look at first in front."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from raybone.data.dataset import Dataset, open_dataset
from raybone.data.folds import SPECIAL
from raybone.data.preprocess import to_intensity
from raybone.private import write_private
from raybone.records import Scan, WrongInput

COLUMNS = 12
LONG_SIDE, WORDS, CAPTION, MARGIN = 3.8, 1.0, 0.4, 0.2  # inches, of a hundred pixels
COLOURS = {"malignant": "tab:red", "benign": "tab:blue"}


def contact_sheet(dataset: Path | str, out: Path | str, found: dict[str, Any], most: int = 60) -> int:
    """Write a PNG of at most so many scans, dark on white, boxes in red (malignant), blue (benign) and green.

    Args:
        found: what ``inspect`` said; suspects, repeats, flagged scans and near-duplicates come first, framed in orange.
    Returns:
        The number of scans shown.
    """
    opened = open_dataset(dataset)
    broken = {problem.partition(":")[0] for problem in found["problems"]}
    scans = [s for s in opened.scans if s.scan_id not in broken]
    looked = _worth_looking(scans, found)
    first = [s for s in scans if s.scan_id in looked]
    rest = [s for s in scans if s.scan_id not in looked]
    step = max(1, -(-len(rest) // max(1, most - len(first))))
    shown = (first + rest[::step])[:most]
    if not shown:
        raise WrongInput("inspect: --png needs a scan that can be read, and there is none; see the problems")
    if Path(out).is_dir():
        raise WrongInput(f"inspect: {out} must be a file name for the PNG; choose another")
    shapes = [(s.height, s.width) for s in shown]
    height, width = (LONG_SIDE * max(shape[axis] / max(shape) for shape in shapes) for axis in (0, 1))
    rows, columns = -(-len(shown) // COLUMNS), min(COLUMNS, len(shown))
    figure = Figure((columns * (max(width, WORDS) + MARGIN), rows * (height + CAPTION)), layout="constrained")
    for place, scan in enumerate(shown, 1):
        _tile(figure.add_subplot(rows, columns, place), opened, scan, scan.scan_id in looked)
    content = BytesIO()
    figure.savefig(content, format="png")
    write_private(Path(out), content.getvalue())
    return len(shown)


def _worth_looking(scans: list[Scan], found: dict[str, Any]) -> set[str]:
    ids = {i for i, _ in found["suspects"]} | {i for group in found["repeats"] for i in group}
    patients = {p for a, b, _ in found["near_duplicates"] for p in (a, b)}
    flagged = {"burned-in-text", "lossy", "not-square", "turned-over"}
    return ids | {s.scan_id for s in scans if s.patient_id in patients or flagged & set(s.flags)}


def _tile(axes: Axes, dataset: Dataset, scan: Scan, framed: bool) -> None:
    axes.imshow(to_intensity(dataset.counts(scan), scan.high), cmap="gray_r", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    for lesion in scan.lesions:
        x1, y1, x2, y2 = lesion.box_xyxy
        axes.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, linewidth=0.7,
                                 edgecolor=COLOURS.get(lesion.category, "tab:green")))
    axes.spines[:].set_color("darkorange" if framed else "lightgrey")
    fold = dataset.fold_of[scan.patient_id]
    axes.set_xlabel(f"{scan.scan_id}\n{scan.view[:4]} {SPECIAL.get(fold, f'fold {fold}')}", fontsize=8, loc="left")
