"""A contact sheet of a dataset: its scans side by side with their lesions, those to look at first in front."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from raybone.data.dataset import Dataset, open_dataset
from raybone.data.preprocess import resize, to_intensity
from raybone.records import Array, Scan, WrongInput

LONG_SIDE, CAPTION, COLUMNS, MARGIN = 384, 34, 12, 8
COLOURS = {"malignant": (40, 40, 220), "benign": (200, 120, 0)}  # blue, green, red


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
    tiles = [_tile(opened, scan, scan.scan_id in looked) for scan in shown]
    width, height = (max(t.shape[axis] for t in tiles) for axis in (1, 0))
    rows = -(-len(tiles) // COLUMNS)
    sheet = np.full((rows * (height + MARGIN) + MARGIN, min(COLUMNS, len(tiles)) * (width + MARGIN) + MARGIN, 3), 255,
                    np.uint8)
    for place, tile in enumerate(tiles):
        y, x = (MARGIN + n * (side + MARGIN) for n, side in zip(divmod(place, COLUMNS), (height, width)))
        sheet[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    done, png = cv2.imencode(".png", sheet)
    if not done or Path(out).is_dir():
        raise WrongInput(f"inspect: {out} must be a file name for the PNG; choose another")
    Path(out).write_bytes(png.tobytes())
    return len(shown)


def _worth_looking(scans: list[Scan], found: dict[str, Any]) -> set[str]:
    ids = {i for i, _ in found["suspects"]} | {i for group in found["repeats"] for i in group}
    patients = {p for a, b, _ in found["near_duplicates"] for p in (a, b)}
    flagged = {"burned-in-text", "lossy", "not-square", "turned-over"}
    return ids | {s.scan_id for s in scans if s.patient_id in patients or flagged & set(s.flags)}


def _tile(dataset: Dataset, scan: Scan, framed: bool) -> Array:
    image_HW, scale = resize(to_intensity(dataset.counts(scan), scan.high), LONG_SIDE)
    grey_HW = np.rint(255 * (1 - image_HW)).astype(np.uint8)
    tile = cv2.cvtColor(grey_HW, cv2.COLOR_GRAY2BGR)
    for lesion in scan.lesions:
        x1, y1, x2, y2 = (round(v * scale) for v in lesion.box_xyxy)
        cv2.rectangle(tile, (x1 - 1, y1 - 1), (x2, y2), COLOURS.get(lesion.category, (60, 160, 60)), 1)
    border = (0, 140, 255) if framed else (210, 210, 210)
    wide = np.full((tile.shape[0] + CAPTION + 2, max(tile.shape[1] + 2, 116), 3), 255, np.uint8)
    wide[1 : tile.shape[0] + 1, 1 : tile.shape[1] + 1] = tile
    cv2.rectangle(wide, (0, 0), (tile.shape[1] + 1, tile.shape[0] + 1), border, 1)
    fold = dataset.fold_of[scan.patient_id]
    for line, text in enumerate((scan.scan_id, f"{scan.view[:4]} {'test' if fold < 0 else f'fold {fold}'}")):
        cv2.putText(wide, text, (1, tile.shape[0] + 14 + 14 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1,
                    cv2.LINE_AA)
    return wide
