"""DICOM objects: counts as the modality means them, and a reason for everything that is no scan."""

from __future__ import annotations

import random
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.uid import JPEG2000Lossless, RLELossless

from raybone.data.dicom import NotTaken, counts_of, read_frames, shows_text, write_scan

COUNTS = np.arange(64 * 40, dtype=np.uint16).reshape(64, 40)


@pytest.fixture
def scan(tmp_path: Path) -> pydicom.Dataset:
    write_scan(tmp_path / "a.dcm", COUNTS, patient="P", view="anterior", pixel_mm=2.0, uid="1")
    return pydicom.dcmread(tmp_path / "a.dcm")


def frames(scan: pydicom.Dataset, modality: str | None = "NM", **changes: Any) -> list[tuple[np.ndarray, Any]]:
    for keyword, value in changes.items():
        setattr(scan, keyword, value)
    file = BytesIO()
    scan.save_as(file)
    return read_frames(file.getvalue(), "x", modality)


def test_rescale_signed_values_and_monochrome1(scan: pydicom.Dataset) -> None:
    np.testing.assert_array_equal(frames(scan, RescaleSlope=2, RescaleIntercept=-10)[0][0],
                                  np.maximum(COUNTS.astype(int) * 2 - 10, 0))
    del scan.RescaleSlope, scan.RescaleIntercept
    signed = (COUNTS.astype(np.int16) - 100)
    np.testing.assert_array_equal(
        frames(scan, PixelRepresentation=1, PixelData=signed.tobytes())[0][0],
        np.maximum(signed, 0))


def test_monochrome1_is_turned_over_where_air_is_bright_and_else_left(scan: pydicom.Dataset) -> None:
    body_HW = np.zeros((64, 40), np.uint16)
    body_HW[10:50, 10:30] = COUNTS[10:50, 10:30]
    for stored_HW, flags in ((body_HW.max() - body_HW, ("turned-over",)), (body_HW, ())):
        (counts_HW, facts), = frames(scan, PhotometricInterpretation="MONOCHROME1", PixelData=stored_HW.tobytes())
        np.testing.assert_array_equal(counts_HW, body_HW)
        assert facts.flags == flags


def test_of_several_energy_windows_the_first_is_taken(scan: pydicom.Dataset) -> None:
    pixels = np.stack([COUNTS, COUNTS + 1]).tobytes()
    (counts_HW, facts), = frames(scan, NumberOfFrames=2, EnergyWindowVector=[2, 1], DetectorVector=[1, 1],
                                 PixelData=pixels)
    np.testing.assert_array_equal(counts_HW, COUNTS + 1)
    assert (facts.view, facts.flags) == ("anterior", ("other-windows",))


def test_bits_above_those_stored_are_no_counts(scan: pydicom.Dataset) -> None:
    marked = COUNTS | np.uint16(0x8000)
    np.testing.assert_array_equal(frames(scan, BitsStored=12, HighBit=11, PixelData=marked.tobytes())[0][0], COUNTS)


def test_every_frame_of_two_detectors_is_a_view(scan: pydicom.Dataset) -> None:
    back = pydicom.Dataset()
    back.StartAngle = 0
    scan.DetectorInformationSequence.append(back)
    taken = frames(scan, NumberOfFrames=2, DetectorVector=[1, 2], PixelData=np.stack([COUNTS, COUNTS + 1]).tobytes())
    assert [facts.view for _, facts in taken] == ["anterior", "posterior"]
    np.testing.assert_array_equal(taken[1][0], COUNTS + 1)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_scans_give_the_same_counts(scan: pydicom.Dataset, syntax: str) -> None:
    scan.compress(syntax)
    np.testing.assert_array_equal(frames(scan)[0][0], COUNTS)


@pytest.mark.parametrize("name", ["MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_RLE.dcm",
                                  "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "JPGExtended.dcm",
                                  "JPEGLSNearLossless_16.dcm"])
def test_pydicoms_files_of_each_transfer_syntax_are_read(name: str) -> None:
    path = Path(str(get_testdata_file(name)))
    (counts_HW, _), = read_frames(path.read_bytes(), name, None)
    np.testing.assert_array_equal(counts_HW, np.maximum(pydicom.dcmread(path).pixel_array, 0))


def test_an_object_without_preamble_is_read(scan: pydicom.Dataset) -> None:
    file = BytesIO()
    scan.save_as(file)
    np.testing.assert_array_equal(read_frames(file.getvalue()[132:], "x")[0][0], COUNTS)


@pytest.mark.parametrize(("changes", "reason"), [
    ({"Modality": "CT"}, "Modality is CT, not NM"),
    ({"Modality": "MRS SMITH"}, "Modality is another, not NM"),
    ({"ImageType": ["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"]}, "is TOMO, not a planar scan"),
    ({"SamplesPerPixel": 3}, "colour"),
    ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
    ({"RescaleSlope": 1e-3, "RescaleIntercept": 0}, "fractions"),
    ({"RescaleSlope": 1e-5, "RescaleIntercept": 0}, "is empty"),
    ({"Rows": 0}, "pixels"),
    ({"Rows": 65535, "Columns": 65535}, "pixels"),
    ({"NumberOfFrames": 9}, "no decoder"),
    ({"PixelData": bytes(2 * COUNTS.size)}, "is empty"),
    ({"RescaleSlope": 1e9, "RescaleIntercept": 0}, "no counts"),
])
def test_what_is_no_scan_has_a_reason(scan: pydicom.Dataset, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(NotTaken, match=reason):
        frames(scan, **changes)


def test_values_that_are_no_counts_are_refused() -> None:
    for values in (np.array([[np.nan, 1.0]]), np.array([[np.inf, 1.0]]), np.array([[70000]]), np.array([[-1, 0]])):
        with pytest.raises(NotTaken):
            counts_of(values)
    np.testing.assert_array_equal(counts_of(np.array([[-3.0, 1.5, 26.6]])), [[0, 2, 27]])


def test_burned_in_text_is_suspected_and_hot_spots_are_not() -> None:
    rng = np.random.default_rng(0)
    body_HW = rng.poisson(6, (512, 128)).astype(np.uint16)
    spots_HW = body_HW.copy()
    for x, y in ((30, 100), (90, 200), (60, 300), (64, 400)):
        cv2.circle(spots_HW, (x, y), 8, 400, -1)
    soft_HW = np.minimum(cv2.GaussianBlur(spots_HW, (0, 0), 4), 120)  # clipped plateaus, as in a JPEG
    assert not shows_text(body_HW)
    assert not shows_text(soft_HW)
    text_HW = soft_HW.copy()
    letters_HW = np.zeros(text_HW.shape, np.uint8)
    cv2.putText(letters_HW, "SMITH J", (5, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 1)
    text_HW[letters_HW > 127] = 500
    assert shows_text(text_HW)


@settings(max_examples=200)
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_a_scan_or_not_taken(content: bytes, dicom: bool) -> None:
    try:
        read_frames((bytes(128) + b"DICM" if dicom else b"\x08\0") + content, "x", None)
    except NotTaken as reason:
        assert str(reason)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_a_header_with_any_damage_is_a_scan_or_not_taken(scan: pydicom.Dataset, seed: int) -> None:
    file = BytesIO()
    scan.save_as(file)
    content, rng = bytearray(file.getvalue()), random.Random(seed)
    for _ in range(rng.randint(1, 12)):
        content[rng.randrange(132, len(content) - COUNTS.nbytes)] = rng.randrange(256)
    try:
        assert all(c.dtype == np.uint16 for c, _ in read_frames(bytes(content), "x", None))
    except NotTaken as reason:
        assert str(reason)
