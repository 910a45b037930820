"""Pixels of a DICOM object as the values that they stand for, or the reason why they cannot be
had.
"""

from __future__ import annotations

import math
from io import BytesIO
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import generate_fragments, parse_basic_offsets
from pydicom.pixels import apply_modality_lut, get_decoder, pixel_array
from pydicom.uid import RLELossless

from raybone.data.annotations import MOST_PIXELS
from raybone.data.ingest.dicom.header import NotTaken, items, numbers, places_of, text
from raybone.data.ingest.dicom.planar import PIXELS
from raybone.types import Array

MOST_COMPRESSED = 10_000  # times; a scan of few counts may come to a two-thousandth
PLAIN = "Explicit VR Little Endian"


def settled(header: Dataset) -> tuple[int, list[str]]:
    """Number of frames, 1 where it is not said, and flags; what decoding needs and can be told is
    put into the header.

    Flags: no-photometric, when nothing says whether high values are bright; more-pixels, when there
    are frames beyond those of the header.

    Raises:
        NotTaken: the size is unknown or none of a scan, or there are fewer pixels than it says.
    """
    rows, columns, allocated = (_needed(header, k) for k in ("Rows", "Columns", "BitsAllocated"))
    frames = max([1, *(round(n) for n in numbers(header, "NumberOfFrames")[:1])])
    if not 0 < rows * columns * frames <= MOST_PIXELS:
        raise NotTaken(
            f"says it has {rows * columns * frames} pixels, which is not between 1 and "
            f"{MOST_PIXELS}"
        )
    keyword, syntax = next(k for k in PIXELS if k in header), header.file_meta.TransferSyntaxUID
    compressed = (
        keyword == "PixelData" and syntax.type == "Transfer Syntax" and syntax.is_compressed
    )
    # Each frame is at least one item of 8 bytes where it is compressed (PS3.5 A.4), and hardly of
    # less than that share.
    found, whole = (
        len(header[keyword].value or b""),
        math.ceil(rows * columns * frames * allocated / 8),
    )
    needed = max(frames * 8, whole // MOST_COMPRESSED) if compressed else whole
    if found < needed:
        raise NotTaken(
            f"has {found} bytes of pixel data, but {frames} frame(s) of {rows}x{columns} pixels of "
            f"{allocated} bits need {needed}: it was cut short or its header is wrong; export it "
            "again"
        )
    stored = [round(n) for n in numbers(header, "BitsStored") if 0 < n <= allocated] or [allocated]
    # Old objects may hold them further up (retired of PS3.5 8.1.1); then none is lost, and what is
    # below them multiplies all values alike.
    high = [round(n) + 1 for n in numbers(header, "HighBit") if stored[0] <= n < allocated]
    stored = stored if compressed else high or stored
    signed = 1 in numbers(header, "PixelRepresentation")
    shown = text(header, "PhotometricInterpretation").upper()
    sure = shown in ("MONOCHROME1", "MONOCHROME2")
    for keyword, vr, value in (
        ("Rows", "US", rows),
        ("Columns", "US", columns),
        ("NumberOfFrames", "IS", frames),
        ("SamplesPerPixel", "US", 1),
        ("PixelRepresentation", "US", int(signed)),
        ("BitsAllocated", "US", allocated),
        ("BitsStored", "US", stored[0]),
        ("HighBit", "US", stored[0] - 1),
        ("PhotometricInterpretation", "CS", shown if sure else "MONOCHROME2"),
    ):
        header.add_new(keyword, vr, value)
    more = _starts(header) > frames if compressed else found >= needed + needed // frames
    return frames, ["no-photometric"] * (not sure) + ["more-pixels"] * more


def pixels_of(header: Dataset, frames: int) -> tuple[Array, Array | None, bool]:
    """Values of all frames, shape (N, H, W), after each one's modality transformation (PS3.3
    C.11.1, C.7.6.16.2.9).

    Args:
        header: as ``settled`` left it.
    Returns:
        the values; where they are padding, or None for nowhere; and whether a slope or an intercept
        cannot be one, or stands at some frames alone.
    Raises:
        NotTaken: the transfer syntax, the decoder or the Modality LUT does not allow it.
    """
    stored_NHW = _decoded(header)
    padded_NHW = _padded(header, stored_NHW)
    if items(header, "ModalityLUTSequence"):
        try:
            return np.asarray(apply_modality_lut(stored_NHW, header), np.float64), padded_NHW, False
        except Exception:  # numpy and pydicom raise what a damaged table makes them raise
            raise NotTaken(
                "has a Modality LUT that cannot be applied; export it with Rescale Slope instead"
            ) from None
    scales = [_scale(header, n) for n in range(frames)]
    odd = any(not s.sound or s.said != scales[0].said for s in scales)
    if all((s.slope, s.intercept) == (1, 0) for s in scales):
        return stored_NHW, padded_NHW, odd
    slope_N11, intercept_N11 = (
        np.array(v)[:, None, None] for v in zip(*((s.slope, s.intercept) for s in scales))
    )
    return stored_NHW * slope_N11 + intercept_N11, padded_NHW, odd


class _Scale(NamedTuple):
    """A frame's rescale; what is empty is not known, and 1 or 0 then."""

    slope: float = 1.0
    intercept: float = 0.0
    said: bool = False
    sound: bool = True


def _scale(header: Dataset, frame: int) -> _Scale:
    for place in places_of(header, frame):
        said = [k for k in ("RescaleSlope", "RescaleIntercept") if text(place, k)]
        if said:
            known = {k: found[0] for k in said if len(set(found := numbers(place, k))) == 1}
            slope = known.get("RescaleSlope", 1.0)
            sound = len(known) == len(said) and slope != 0
            return _Scale(slope or 1.0, known.get("RescaleIntercept", 0.0), True, sound)
    return _Scale()


def _starts(header: Dataset) -> int:
    """How many frames begin in compressed pixel data: every fragment of run lengths, every start of
    a JPEG.
    """
    runs, buffer = header.file_meta.TransferSyntaxUID == RLELossless, BytesIO(header.PixelData)
    try:
        parse_basic_offsets(buffer)
        return sum(
            runs or part[:2] in (b"\xff\xd8", b"\xff\x4f") for part in generate_fragments(buffer)
        )
    except ValueError:  # damaged, which its decoder tells
        return 0


def _needed(header: Dataset, keyword: str) -> int:
    found = numbers(header, keyword)
    if not found or found[0] != round(found[0]):
        raise NotTaken(f"has no usable {keyword} in its header; export it again")
    return round(found[0])


def _decoded(header: Dataset) -> Array:
    """Stored values, shape (N, H, W)."""
    syntax = header.file_meta.TransferSyntaxUID
    name = syntax.name if syntax.type == "Transfer Syntax" else "unknown"
    try:
        known = get_decoder(syntax).is_available
    except NotImplementedError:
        known = False
    if not known:
        raise NotTaken(
            f"no decoder reads its pixels (transfer syntax {name}); export it as {PLAIN}"
        )
    try:
        values = pixel_array(header, allow_excess_frames=False)
    except Exception:  # decoders raise what they like
        raise NotTaken(
            f"has pixels that cannot be decoded (transfer syntax {name}): they are damaged, cut "
            f"short or other than the header says; export it as {PLAIN}"
        ) from None
    return values[None] if values.ndim == 2 else values


def _padded(header: Dataset, stored_NHW: Array) -> Array | None:
    """Where there is padding: stored values from Pixel Padding Value to its Range Limit (PS3.3
    C.7.5.1.1.2).
    """
    prefix = next(k for k in PIXELS if k in header).removesuffix("PixelData")
    signed, span = int(header.PixelRepresentation), 1 << int(header.BitsStored)
    padded_NHW = None
    for frame, stored_HW in enumerate(stored_NHW):
        for place in places_of(header, frame):
            found = [numbers(place, f"{prefix}PixelPadding{k}") for k in ("Value", "RangeLimit")]
            if found[0]:
                if (
                    not prefix
                ):  # written as the other of signed and unsigned, or with bits above those stored
                    found = [
                        [(n + signed * span // 2) % span - signed * span // 2 for n in many]
                        for many in found
                    ]
                low, high = min(found[0] + found[1]), max(found[0] + found[1])
                if padded_NHW is None:
                    padded_NHW = np.zeros(stored_NHW.shape, bool)
                padded_NHW[frame] = (stored_HW >= low) & (stored_HW <= high)
                break
    return padded_NHW
