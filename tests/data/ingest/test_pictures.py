"""Image files: the counts are those that were saved, however the file keeps them; what cannot be
counts is refused.
"""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from raybone.data.ingest.dicom.frames import NotTaken
from raybone.data.ingest.pictures import counts_of_image

COUNTS_HW = np.random.default_rng(0).poisson(40, (48, 32)).astype(np.uint8)
COUNTS_HW[[0, -1]] = COUNTS_HW[:, [0, -1]] = 3  # air around
COUNTS_HW[20:24, 10:14] = 250
TURNS: dict[int, Any] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).T,
    8: lambda a: np.rot90(a, -1),
}


def saved(values: np.ndarray, kind: str = "PNG", **more: Any) -> bytes:
    file = BytesIO()
    Image.fromarray(values).save(file, kind, **more)
    return file.getvalue()


def by_opencv(values: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, values)[1].tobytes()


def tiff(values_HW: np.ndarray, photometric: int) -> bytes:
    """One strip without compression."""
    bits = values_HW.dtype.itemsize * 8
    data = values_HW.astype(values_HW.dtype.newbyteorder("<")).tobytes()
    tags = [
        (256, values_HW.shape[1]),
        (257, values_HW.shape[0]),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 8),
        (277, 1),
        (278, values_HW.shape[0]),
        (279, len(data)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(data))
        + data
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_the_orientation_in_exif_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(np.ascontiguousarray(TURNS[orientation](COUNTS_HW)), kind, exif=exif)
    np.testing.assert_array_equal(counts_of_image(content)[0], COUNTS_HW)


DEEP_HW = COUNTS_HW.astype(np.uint16) * 257 - 2
GREY = {
    "8 bits": (saved(COUNTS_HW), COUNTS_HW),
    "16 bits": (saved(DEEP_HW), DEEP_HW),
    "RGB": (saved(np.stack([COUNTS_HW] * 3, -1)), COUNTS_HW),
    "bmp": (saved(COUNTS_HW, "BMP"), COUNTS_HW),
    "RGB of 16 bits": (by_opencv(np.stack([DEEP_HW] * 3, -1)), DEEP_HW),
    "RGB of 16 bits in TIFF": (by_opencv(np.stack([DEEP_HW] * 3, -1), ".tif"), DEEP_HW),
    "RGBA of 16 bits": (
        by_opencv(np.dstack([DEEP_HW] * 3 + [np.full_like(DEEP_HW, 65535)])),
        DEEP_HW,
    ),
    "grey and alpha": (saved(np.dstack([COUNTS_HW, np.full_like(COUNTS_HW, 255)])), COUNTS_HW),
    "32 bits": (saved(DEEP_HW.astype(np.int32), "TIFF"), DEEP_HW),
    "white is zero": (tiff(COUNTS_HW, 0), COUNTS_HW),
    "black is zero": (tiff(COUNTS_HW, 1), COUNTS_HW),
    "16 bits, white is zero": (tiff(DEEP_HW, 0), DEEP_HW),
    "16 bits, black is zero": (tiff(DEEP_HW, 1), DEEP_HW),
}


@pytest.mark.parametrize("kind", GREY)
def test_grey_is_taken_as_it_is(kind: str) -> None:
    content, expected_HW = GREY[kind]
    counts_HW, flags = counts_of_image(content)
    np.testing.assert_array_equal(counts_HW, expected_HW)
    assert flags == []


def test_dark_on_white_is_turned_over_and_a_bright_crop_is_only_flagged() -> None:
    for content in (saved(255 - COUNTS_HW), tiff(255 - COUNTS_HW, 0), tiff(255 - COUNTS_HW, 1)):
        counts_HW, flags = counts_of_image(content)
        np.testing.assert_array_equal(counts_HW, COUNTS_HW)
        assert flags == ["turned-over"]
    crop_HW = np.random.default_rng(1).integers(130, 180, (48, 32)).astype(np.uint8)
    crop_HW[10:20, 10:20], crop_HW[30, 3] = 3, 255
    counts_HW, flags = counts_of_image(saved(crop_HW))
    np.testing.assert_array_equal(counts_HW, crop_HW)
    assert flags == ["bright-border"]


def test_transparent_parts_are_air() -> None:
    alpha_HW = np.full_like(COUNTS_HW, 255)
    alpha_HW[30:] = 0
    counts_HW, flags = counts_of_image(
        saved(np.dstack([COUNTS_HW, COUNTS_HW, COUNTS_HW, alpha_HW]))
    )
    np.testing.assert_array_equal(counts_HW, np.where(alpha_HW > 0, COUNTS_HW, 0))
    assert flags == ["transparent"]


def test_a_tint_of_compression_is_grey_and_a_rainbow_is_none() -> None:
    noise_HW3 = np.random.default_rng(2).integers(-4, 5, (48, 32, 3))
    tinted_HW3 = np.clip(COUNTS_HW[..., None] + noise_HW3, 0, 255).astype(np.uint8)
    assert np.abs(counts_of_image(saved(tinted_HW3))[0].astype(int) - COUNTS_HW).max() <= 5
    for colours in (cv2.COLORMAP_JET, cv2.COLORMAP_HOT):
        with pytest.raises(NotTaken, match="in colour, whose brightness is not uptake"):
            counts_of_image(by_opencv(cv2.applyColorMap(COUNTS_HW, colours)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "not an image of the kinds PNG, JPEG, TIFF, BMP",
        ),
        (saved(COUNTS_HW, "GIF"), "not an image of the kinds"),
        (saved(COUNTS_HW)[:300], "damaged or cut short"),
        (by_opencv(np.stack([DEEP_HW] * 3, -1))[:200], "damaged or cut short"),
        (tiff(COUNTS_HW, 1)[:100], "damaged or cut short"),
        (
            saved(COUNTS_HW, "TIFF", save_all=True, append_images=[Image.fromarray(COUNTS_HW)]),
            "has 2 pages",
        ),
    ],
)
def test_what_is_no_picture_of_a_scan_has_a_true_reason(content: bytes, reason: str) -> None:
    with pytest.raises(NotTaken, match=reason):
        counts_of_image(content)
