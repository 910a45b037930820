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
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import JPEG2000Lossless, RLELossless

from raybone.data.ingest.dicom.frames import (
    NotTaken,
    counts_of,
    read_frames,
    shows_text,
    write_scan,
)

COUNTS = np.arange(64 * 40, dtype=np.uint16).reshape(64, 40)


def put(place: pydicom.Dataset, keyword: str, value: Any) -> None:
    """Set an element; bytes stand in the file as a careless writer left them."""
    if isinstance(value, bytes) and not keyword.endswith("Data"):
        place[keyword] = RawDataElement(
            Tag(keyword), dictionary_VR(keyword).split(" ")[0], len(value), value, 0, False, True
        )
    else:
        setattr(place, keyword, value)


def item(**elements: Any) -> pydicom.Dataset:
    made = pydicom.Dataset()
    for keyword, value in elements.items():
        put(made, keyword, value)
    return made


@pytest.fixture
def scan(tmp_path: Path) -> pydicom.Dataset:
    write_scan(tmp_path / "a.dcm", COUNTS, patient="P", view="anterior", pixel_mm=2.0, uid="1")
    return pydicom.dcmread(tmp_path / "a.dcm")


def frames(
    scan: pydicom.Dataset, modality: str | None = "NM", **changes: Any
) -> list[tuple[np.ndarray, Any]]:
    for keyword, value in changes.items():
        put(scan, keyword, value)
    file = BytesIO()
    scan.save_as(file)
    return read_frames(file.getvalue(), "x", modality)


def test_rescale_signed_values_and_monochrome1(scan: pydicom.Dataset) -> None:
    np.testing.assert_array_equal(
        frames(scan, RescaleSlope=2, RescaleIntercept=-10)[0][0],
        np.maximum(COUNTS.astype(int) * 2 - 10, 0),
    )
    del scan.RescaleSlope, scan.RescaleIntercept
    signed = COUNTS.astype(np.int16) - 100
    np.testing.assert_array_equal(
        frames(scan, PixelRepresentation=1, PixelData=signed.tobytes())[0][0], np.maximum(signed, 0)
    )


def test_monochrome1_is_turned_over_where_air_is_bright_and_else_left(
    scan: pydicom.Dataset,
) -> None:
    body_HW = np.zeros((64, 40), np.uint16)
    body_HW[10:50, 10:30] = COUNTS[10:50, 10:30]
    for stored_HW, flags in ((body_HW.max() - body_HW, ("turned-over",)), (body_HW, ())):
        ((counts_HW, facts),) = frames(
            scan, PhotometricInterpretation="MONOCHROME1", PixelData=stored_HW.tobytes()
        )
        np.testing.assert_array_equal(counts_HW, body_HW)
        assert facts.flags == flags


@pytest.mark.parametrize(
    ("said", "slope", "intercept", "flags"),
    [
        ({"RescaleSlope": "", "RescaleIntercept": ""}, 1, 0, ()),
        ({"RescaleSlope": "1", "RescaleIntercept": None}, 1, 0, ()),
        ({"RescaleSlope": None, "RescaleIntercept": "7"}, 1, 7, ()),
        ({"RescaleSlope": "2"}, 2, 0, ()),
        ({"RescaleSlope": "0", "RescaleIntercept": "3"}, 1, 3, ("rescale",)),
        ({"RescaleSlope": b"NaN "}, 1, 0, ("rescale",)),
        ({"RescaleSlope": b"2,5 ", "RescaleIntercept": b"1,0 "}, 2.5, 1, ()),
        ({"RescaleSlope": b"2\\3 "}, 1, 0, ("rescale",)),
        ({"ModalityLUTSequence": []}, 1, 0, ()),
        (
            {
                "SharedFunctionalGroupsSequence": [
                    item(
                        PixelValueTransformationSequence=[
                            item(RescaleSlope="3", RescaleIntercept="2")
                        ]
                    )
                ],
                "RescaleSlope": "9",
            },
            3,
            2,
            (),
        ),
        (
            {
                "PerFrameFunctionalGroupsSequence": [
                    item(PixelValueTransformationSequence=[item(RescaleSlope="")])
                ],
                "RescaleSlope": "4",
            },
            4,
            0,
            (),
        ),
    ],
    ids=str,
)
def test_a_rescale_is_applied_and_what_is_empty_or_none_is_unknown(
    scan: pydicom.Dataset,
    said: dict[str, Any],
    slope: float,
    intercept: float,
    flags: tuple[str, ...],
) -> None:
    ((counts_HW, facts),) = frames(scan, **said)
    np.testing.assert_array_equal(counts_HW, np.rint(COUNTS * slope + intercept))
    assert facts.flags == flags


def test_each_frame_has_its_own_rescale_and_spacing(scan: pydicom.Dataset) -> None:
    def groups(slope: str, mm: float) -> pydicom.Dataset:
        return item(
            PixelValueTransformationSequence=[item(RescaleSlope=slope, RescaleIntercept="0")],
            PixelMeasuresSequence=[item(PixelSpacing=[mm, mm])],
        )

    two = {"NumberOfFrames": 2, "PixelData": np.stack([COUNTS, COUNTS]).tobytes(), "Modality": "PT"}
    taken = frames(
        scan, "PT", **two, PerFrameFunctionalGroupsSequence=[groups("2", 3.0), groups("5", 4.0)]
    )
    np.testing.assert_array_equal(taken[0][0], COUNTS * 2)
    np.testing.assert_array_equal(taken[1][0], COUNTS * 5)
    assert [(facts.pixel_mm, facts.flags) for _, facts in taken] == [
        (3.0, ("modality-PT",)),
        (4.0, ("modality-PT",)),
    ]
    one_alone = frames(scan, "PT", PerFrameFunctionalGroupsSequence=[groups("2", 3.0), item()])
    np.testing.assert_array_equal(one_alone[1][0], COUNTS)
    assert one_alone[1][1].flags == ("modality-PT", "rescale")


@pytest.mark.parametrize(
    ("value", "limit", "vr", "signed", "padded"),
    [
        (2000, None, "US", 0, COUNTS == 2000),
        (2000, 2009, "US", 0, (COUNTS >= 2000) & (COUNTS < 2010)),
        (2009, 2000, "US", 0, (COUNTS >= 2000) & (COUNTS < 2010)),
        (7, None, "SS", 1, COUNTS == 7),
        (-65529, None, "SL", 0, COUNTS == 7),
        (None, None, "US", 0, np.zeros(COUNTS.shape, bool)),
    ],
    ids=str,
)
def test_padding_is_air_before_and_after_the_rescale(
    scan: pydicom.Dataset,
    value: int | None,
    limit: int | None,
    vr: str,
    signed: int,
    padded: np.ndarray,
) -> None:
    for keyword, number in (("PixelPaddingValue", value), ("PixelPaddingRangeLimit", limit)):
        if number is not None or keyword == "PixelPaddingValue":
            scan.add_new(keyword, vr, number)
    ((counts_HW, _),) = frames(
        scan, PixelRepresentation=signed, RescaleSlope="2", RescaleIntercept="5"
    )
    np.testing.assert_array_equal(counts_HW, np.where(padded, 0, COUNTS.astype(int) * 2 + 5))


def test_padding_of_65535_or_of_minus_one_is_the_same_bits(scan: pydicom.Dataset) -> None:
    padded_HW = COUNTS.copy()
    padded_HW[:5] = 65535
    expected_HW = COUNTS.copy()
    expected_HW[:5] = 0
    for vr, value, signed in (
        ("US", 65535, 0),
        ("SS", -1, 0),
        ("SS", -1, 1),
        ("US", 65535, 1),
        ("OW", b"\xff\xff", 0),
    ):
        scan.add_new("PixelPaddingValue", vr, value)
        ((counts_HW, _),) = frames(scan, PixelRepresentation=signed, PixelData=padded_HW.tobytes())
        np.testing.assert_array_equal(counts_HW, expected_HW)


def test_a_picture_that_is_turned_over_keeps_its_padding_as_air(scan: pydicom.Dataset) -> None:
    body_HW = np.zeros((64, 40), np.uint16)
    body_HW[10:50, 10:30] = COUNTS[10:50, 10:30]
    stored_HW = body_HW.max() - body_HW
    stored_HW[:, :4] = 0
    scan.add_new("PixelPaddingValue", "US", 0)
    stored_HW[stored_HW == 0] += 1  # the hottest pixel is not padding
    stored_HW[:, :4] = 0
    ((counts_HW, facts),) = frames(
        scan, PhotometricInterpretation="MONOCHROME1", PixelData=stored_HW.tobytes()
    )
    assert facts.flags == ("turned-over",)
    assert not counts_HW[:, :4].any()
    np.testing.assert_allclose(counts_HW.astype(int), body_HW, atol=1)
    assert counts_HW.max() in (body_HW.max(), body_HW.max() + 1)


def window(low: object, high: object, name: str = "") -> pydicom.Dataset:
    return item(
        EnergyWindowName=name,
        EnergyWindowRangeSequence=[item(EnergyWindowLowerLimit=low, EnergyWindowUpperLimit=high)],
    )


IODINE = [item(RadionuclideCodeSequence=[item(CodeMeaning="^123^Iodine")])]


@pytest.mark.parametrize(
    ("vector", "windows", "tracer", "taken", "flags"),
    [
        ([1, 2], [window(114, 126), window(126, 154)], [], 1, ("other-windows",)),
        ([1, 2], [window(126, 154), window(114, 126)], [], 0, ("other-windows",)),
        ([2, 1], [window(126, 154), window(114, 126)], [], 1, ("other-windows",)),
        ([1, 2], [window(100, 160), window(b"126,5 ", b"154,5 ")], [], 1, ("other-windows",)),
        ([1, 2], [window(126, 142), window(143, 175)], IODINE, 1, ("other-windows",)),
        (
            [1, 2],
            [window(None, None, "Tc99m_SC"), window(None, None, "Tc99m_EM")],
            [],
            1,
            ("other-windows",),
        ),
        ([1, 2], [window(b"x ", b"y "), item()], [], 0, ("other-windows",)),
        ([1, 7], [window(114, 126), window(126, 154)], [], 1, ("other-windows",)),
        ([0, 1], [window(114, 126), window(126, 154)], [], 1, ("other-windows",)),
        ([3, 5], [window(114, 126), window(126, 154)], [], 0, ("other-windows",)),
        ([1, 1], [window(114, 126), window(126, 154)], [], None, ("off-peak",)),
        ([1, 1], [window(126, 154)], [], None, ()),
        ([1], [window(114, 126), window(126, 154)], [], None, ("windows-unknown",)),
        ([], [], [], None, ()),
    ],
    ids=str,
)
def test_the_photopeaks_window_is_told_by_its_limits(
    scan: pydicom.Dataset,
    vector: list[int],
    windows: list[Any],
    tracer: list[Any],
    taken: int | None,
    flags: tuple[str, ...],
) -> None:
    found = frames(
        scan,
        NumberOfFrames=2,
        EnergyWindowVector=vector,
        DetectorVector=[1, 1],
        EnergyWindowInformationSequence=windows,
        RadiopharmaceuticalInformationSequence=tracer,
        PixelData=np.stack([COUNTS, COUNTS + 1]).tobytes(),
    )
    assert [facts.frame for _, facts in found] == ([0, 1] if taken is None else [taken])
    assert {facts.flags for _, facts in found} == {flags}
    for counts_HW, facts in found:
        np.testing.assert_array_equal(counts_HW, COUNTS + facts.frame)


def test_of_two_detectors_in_two_windows_both_views_of_the_photopeak_are_taken(
    scan: pydicom.Dataset,
) -> None:
    found = frames(
        scan,
        NumberOfFrames=4,
        EnergyWindowVector=[1, 1, 2, 2],
        DetectorVector=[1, 2, 1, 2],
        EnergyWindowInformationSequence=[window(114, 126), window(126, 154)],
        DetectorInformationSequence=[],
        SeriesDescription="WB ANT/POST",
        PixelData=np.stack([COUNTS + n for n in range(4)]).tobytes(),
    )
    assert [(facts.frame, facts.view) for _, facts in found] == [(2, "anterior"), (3, "posterior")]


def test_of_several_energy_windows_without_limits_the_first_is_taken(scan: pydicom.Dataset) -> None:
    pixels = np.stack([COUNTS, COUNTS + 1]).tobytes()
    ((counts_HW, facts),) = frames(
        scan, NumberOfFrames=2, EnergyWindowVector=[2, 1], DetectorVector=[1, 1], PixelData=pixels
    )
    np.testing.assert_array_equal(counts_HW, COUNTS + 1)
    assert (facts.view, facts.flags) == ("anterior", ("other-windows",))


def test_bits_above_those_stored_are_no_counts(scan: pydicom.Dataset) -> None:
    marked = COUNTS | np.uint16(0x8000)
    np.testing.assert_array_equal(
        frames(scan, BitsStored=12, HighBit=11, PixelData=marked.tobytes())[0][0], COUNTS
    )


def test_bits_that_stand_further_up_are_not_lost(scan: pydicom.Dataset) -> None:
    """Old objects of 12 bits may end at bit 15; a wrong High Bit changes no counts."""
    upper = (COUNTS << 4).astype(np.uint16)
    ((upper_HW, _),) = frames(scan, BitsStored=12, HighBit=15, PixelData=upper.tobytes())
    np.testing.assert_array_equal(upper_HW, upper)
    ((same_HW, _),) = frames(scan, BitsStored=12, HighBit=15, PixelData=COUNTS.tobytes())
    np.testing.assert_array_equal(same_HW, COUNTS)


@pytest.mark.parametrize(
    ("said", "flagged"),
    [
        ({"PatientOrientation": ["L", "H"]}, True),
        ({"PatientOrientation": ["L", "F"]}, False),
        ({"PatientOrientation": ["H", "F"]}, False),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, 1]}, True),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1], "PatientOrientation": ["L", "H"]}, False),
    ],
)
def test_a_scan_whose_first_row_is_at_the_feet_is_flagged(
    scan: pydicom.Dataset, said: dict[str, Any], flagged: bool
) -> None:
    ((_, facts),) = frames(scan, **said)
    assert ("head-down" in facts.flags) == flagged


def test_every_frame_of_two_detectors_is_a_view(scan: pydicom.Dataset) -> None:
    back = pydicom.Dataset()
    back.StartAngle = 0
    scan.DetectorInformationSequence.append(back)
    taken = frames(
        scan,
        NumberOfFrames=2,
        DetectorVector=[1, 2],
        PixelData=np.stack([COUNTS, COUNTS + 1]).tobytes(),
    )
    assert [facts.view for _, facts in taken] == ["anterior", "posterior"]
    np.testing.assert_array_equal(taken[1][0], COUNTS + 1)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_scans_give_the_same_counts(scan: pydicom.Dataset, syntax: str) -> None:
    scan.compress(syntax)
    np.testing.assert_array_equal(frames(scan)[0][0], COUNTS)


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "JPGExtended.dcm",
        "JPEGLSNearLossless_16.dcm",
    ],
)
def test_pydicoms_files_of_each_transfer_syntax_are_read(name: str) -> None:
    path = Path(str(get_testdata_file(name)))
    ((counts_HW, _),) = read_frames(path.read_bytes(), name, None)
    np.testing.assert_array_equal(counts_HW, np.maximum(pydicom.dcmread(path).pixel_array, 0))


def test_an_object_without_preamble_is_read(scan: pydicom.Dataset) -> None:
    file = BytesIO()
    scan.save_as(file)
    np.testing.assert_array_equal(read_frames(file.getvalue()[132:], "x")[0][0], COUNTS)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"Modality": "CT"}, "Modality is CT, not NM"),
        ({"Modality": "MRS SMITH"}, "Modality is another, not NM"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"]}, "is TOMO, not a planar scan"),
        ({"SamplesPerPixel": 3}, "colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        ({"RescaleSlope": 1e-3, "RescaleIntercept": 0}, "fractions"),
        ({"RescaleSlope": 1e-6, "RescaleIntercept": 0}, "fractions"),
        ({"Rows": 0}, "pixels"),
        ({"Rows": 65535, "Columns": 65535}, "pixels"),
        (
            {"NumberOfFrames": 9},
            "has 5120 bytes of pixel data, but 9 frame\\(s\\) of 64x40 pixels of 16 bits need "
            "46080",
        ),
        ({"BitsAllocated": None}, "no usable BitsAllocated"),
        ({"ModalityLUTSequence": [pydicom.Dataset()]}, "Modality LUT that cannot be applied"),
        ({"PixelData": bytes(2 * COUNTS.size)}, "is empty"),
        ({"RescaleSlope": 1e9, "RescaleIntercept": 0}, "no counts"),
    ],
)
def test_what_is_no_scan_has_a_reason(
    scan: pydicom.Dataset, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(NotTaken, match=reason):
        frames(scan, **changes)


CUT = ["ORIGINAL", "PRIMARY"]
PAIR = {
    "NumberOfFrames": 2,
    "PixelData": np.stack([COUNTS, COUNTS + 1]).tobytes(),
    "EnergyWindowVector": [1, 1],
    "DetectorVector": [1, 2],
}
VECTORS = {
    "RotationVector": 0x00540050,
    "AngularViewVector": 0x00540090,
    "SliceVector": 0x00540080,
    "PhaseVector": 0x00540030,
    "TimeSliceVector": 0x00540100,
    "RRIntervalVector": 0x00540060,
    "TimeSlotVector": 0x00540070,
}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        *(
            (
                {
                    **PAIR,
                    "ImageType": kind,
                    "FrameIncrementPointer": [0x00540010, tag],
                    keyword: [1, 2],
                },
                "not a planar scan",
            )
            for keyword, tag in VECTORS.items()
            for kind in (CUT, None, ["DERIVED", "PRIMARY", "STATIC", "EMISSION"])
        ),
        *(
            (
                {**PAIR, "ImageType": CUT, "FrameIncrementPointer": None, keyword: [1, 2]},
                "not a planar scan",
            )
            for keyword in VECTORS
        ),
        (
            {**PAIR, "ImageType": CUT, "FrameIncrementPointer": [0x00540080]},
            "is RECON TOMO, not a planar scan",
        ),
        (
            {"ImageType": CUT, "FrameIncrementPointer": [0x00540080], "SliceVector": 1},
            "is RECON TOMO, not a planar scan",
        ),
        (
            {**PAIR, "ImageType": CUT, "RotationInformationSequence": [item(AngularStep="3")]},
            "is TOMO",
        ),
        (
            {
                **PAIR,
                "ImageType": CUT,
                "GatedInformationSequence": [item(GatedInformationSequence=[])],
            },
            "is GATED",
        ),
        ({**PAIR, "ImageType": CUT, "NumberOfSlices": 2}, "is RECON TOMO"),
        (
            {**PAIR, "ImageType": CUT, "FrameIncrementPointer": 0x00181063, "FrameTime": "50"},
            "is DYNAMIC",
        ),
        (
            {
                "ImageType": CUT,
                "NumberOfFrames": 4,
                "PixelData": np.stack([COUNTS] * 4).tobytes(),
                "EnergyWindowVector": [1] * 4,
                "DetectorVector": [1, 1, 2, 2],
            },
            "has 4 frames, and neither Image Type nor",
        ),
        (
            {"ImageType": ["ORIGINAL", "PRIMARY", "STATIC", "TRANSMISSION"]},
            "is TRANSMISSION, not an emission scan",
        ),
        (
            {"ImageType": ["DERIVED", "SECONDARY", "RECON_GATED TOMO", "EMISSION"]},
            "is RECON GATED TOMO, not a planar",
        ),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "is LOCALIZER"),
        (
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2", "ImageType": ["DERIVED", "SECONDARY"]},
            "is a Secondary Capture",
        ),
        (
            {
                "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7",
                "BitsAllocated": 8,
                "BitsStored": 8,
                "HighBit": 7,
                "PixelData": COUNTS.astype(np.uint8).tobytes(),
            },
            "is a Secondary Capture",
        ),
        ({"ConversionType": "WSD", "ImageType": CUT}, "is a Secondary Capture"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "is a Secondary Capture"),
        (
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"},
            "is Segmentation Storage, not a planar scan",
        ),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, "is CT Image Storage, not a planar scan"),
        (
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.1", "PixelData": None},
            "as it is Grayscale Softcopy Presentation",
        ),
        (
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1", "PixelData": None},
            "as it is Encapsulated PDF Storage",
        ),
    ],
    ids=str,
)
def test_what_is_not_planar_is_told_by_any_of_what_says_so(
    scan: pydicom.Dataset, changes: dict[str, Any], reason: str
) -> None:
    for keyword in [k for k, v in changes.items() if v is None]:
        delattr(scan, keyword)
    with pytest.raises(NotTaken, match=reason):
        frames(scan, **{k: v for k, v in changes.items() if v is not None})


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({**PAIR, "FrameIncrementPointer": [0x00540010, 0x00540020]}, ()),
        (
            {
                **PAIR,
                "ImageType": ["ORIGINAL", "PRIMARY", "STATIC", "EMISSION"],
                "DetectorVector": [1, 1],
            },
            (),
        ),
        (
            {
                **PAIR,
                "PhaseVector": [1, 1],
                "FrameIncrementPointer": [0x00540010, 0x00540020, 0x00540030],
            },
            (),
        ),
        ({**PAIR, "ImageType": CUT}, ("kind-unknown",)),
        (
            {"ImageType": CUT, "PhaseVector": 1, "FrameIncrementPointer": [0x00540010, 0x00540030]},
            ("kind-unknown",),
        ),
        ({"ImageType": ["DERIVED", "PRIMARY", "WHOLE_BODY", "EMISSION"]}, ("derived",)),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.5"}, ()),
        ({"SOPClassUID": "1.3.12.2.1107.5.9.1"}, ()),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, ("windowed",)),  # as NEMA's sample NM1 is
        ({"Modality": ""}, ()),
        ({"PhotometricInterpretation": ""}, ("no-photometric",)),
        ({"PhotometricInterpretation": "monochrome2", "SamplesPerPixel": b""}, ()),
        ({"BitsStored": b"", "HighBit": b"", "PixelRepresentation": b""}, ()),
        ({"NumberOfFrames": b""}, ()),
        ({"PixelData": COUNTS.tobytes() + bytes(100)}, ()),
        ({"PixelData": COUNTS.tobytes() * 2}, ("more-pixels",)),
    ],
    ids=str,
)
def test_what_is_planar_is_taken(
    scan: pydicom.Dataset, changes: dict[str, Any], flags: tuple[str, ...]
) -> None:
    found = frames(scan, **changes)
    assert {facts.flags for _, facts in found} == {flags}
    for counts_HW, facts in found:
        np.testing.assert_array_equal(counts_HW, COUNTS + facts.frame)


def test_a_picture_of_a_screen_is_taken_with_a_flag_where_any_modality_is(
    scan: pydicom.Dataset,
) -> None:
    for modality in (None, "OT"):
        ((_, facts),) = frames(
            scan, modality, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="OT"
        )
        assert facts.flags == ("windowed", "modality-OT")


@pytest.mark.parametrize("syntax", ["1.2.3.4", "1.2.840.10008.1.2.4.100"])
def test_a_transfer_syntax_that_nothing_decodes_is_the_reason(
    scan: pydicom.Dataset, syntax: str
) -> None:
    file = BytesIO()
    scan.file_meta.TransferSyntaxUID = syntax
    scan["PixelData"].VR = "OB"
    scan.PixelData = pydicom.encaps.encapsulate([scan.PixelData])
    scan["PixelData"].is_undefined_length = True
    scan.save_as(file, implicit_vr=False, little_endian=True)
    with pytest.raises(
        NotTaken, match=r"no decoder reads its pixels \(transfer syntax (unknown|MPEG2 Main)"
    ):
        read_frames(file.getvalue(), "x")


def test_pixels_that_are_damaged_or_cut_are_not_blamed_on_a_missing_decoder(
    scan: pydicom.Dataset,
) -> None:
    scan.compress(JPEG2000Lossless)
    scan.PixelData = scan.PixelData[:60] + bytes(len(scan.PixelData) - 60)
    with pytest.raises(
        NotTaken,
        match=r"cannot be decoded \(transfer syntax JPEG 2000.*damaged, cut short or other",
    ):
        frames(scan)


JUNK = (b"", b"x ", b"\\", b"1\\x ", b"1e999 ", b"1\\2\\3\\4 ", b"\xff\xfe\x00\x01")


@pytest.mark.parametrize(
    "keyword",
    [
        "PixelSpacing",
        "ImagerPixelSpacing",
        "PatientOrientation",
        "ImageOrientationPatient",
        "EnergyWindowVector",
        "DetectorVector",
        "NumberOfEnergyWindows",
        "EnergyWindowInformationSequence",
        "DetectorInformationSequence",
        "RadiopharmaceuticalInformationSequence",
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
        "RescaleSlope",
        "RescaleIntercept",
        "PixelPaddingValue",
        "PixelPaddingRangeLimit",
        "NumberOfFrames",
        "FrameIncrementPointer",
        "PhaseVector",
        "BurnedInAnnotation",
        "LossyImageCompression",
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "IssuerOfPatientID",
        "StudyInstanceUID",
        "InstitutionName",
        "Manufacturer",
        "SeriesDescription",
        "ViewPosition",
        "SpecificCharacterSet",
        "ImageType",
        "BitsStored",
    ],
)
def test_no_optional_element_costs_the_scan(scan: pydicom.Dataset, keyword: str) -> None:
    for junk in JUNK[: -1 if keyword == "SpecificCharacterSet" else None]:
        ((counts_HW, _),) = frames(scan, **{keyword: junk})
        if not keyword.startswith(("Rescale", "PixelPadding", "BitsStored")):
            np.testing.assert_array_equal(counts_HW, COUNTS)


FRONT, BACK = [1.0, 0, 0, 0, 0, -1], [-1.0, 0, 0, 0, 0, -1]


@pytest.mark.parametrize(
    ("elements", "axes"),
    [
        ({"ImageOrientationPatient": FRONT}, [tuple(FRONT)]),
        (
            {
                "DetectorInformationSequence": [item(ImageOrientationPatient=BACK)],
                "ImageOrientationPatient": FRONT,
            },
            [tuple(BACK)],
        ),
        ({"ImageOrientationPatient": b"1\\0\\0\\0\\0\\-1,0 "}, [tuple(FRONT)]),
        ({"ImageOrientationPatient": b"1\\0\\0\\0\\0\\nan "}, [None]),
        ({"ImageOrientationPatient": FRONT[:5]}, [None]),
        ({"ImageOrientationPatient": [0] * 6}, [None]),
        ({}, [None]),
        (
            {
                **PAIR,
                "DetectorInformationSequence": [
                    item(ImageOrientationPatient=FRONT),
                    item(ImageOrientationPatient=BACK),
                ],
                "DetectorVector": [2, 1],
            },
            [tuple(BACK), tuple(FRONT)],
        ),
        ({**PAIR, "ImageOrientationPatient": FRONT}, [None, None]),
        (
            {
                **PAIR,
                "SharedFunctionalGroupsSequence": [
                    item(PlaneOrientationSequence=[item(ImageOrientationPatient=FRONT)])
                ],
            },
            [tuple(FRONT)] * 2,
        ),
    ],
    ids=str,
)
def test_axes_are_those_of_the_frames_detector(
    scan: pydicom.Dataset, elements: dict[str, Any], axes: list[Any]
) -> None:
    assert [facts.axes for _, facts in frames(scan, **elements)] == axes


def test_values_that_are_no_counts_are_refused() -> None:
    for values in (
        np.array([[np.nan, 1.0]]),
        np.array([[np.inf, 1.0]]),
        np.array([[70000]]),
        np.array([[-1, 0]]),
    ):
        with pytest.raises(NotTaken):
            counts_of(values)
    np.testing.assert_array_equal(counts_of(np.array([[-3.0, 1.5, 26.6]])), [[0, 2, 27]])


def test_burned_in_text_is_suspected_and_hot_spots_are_not() -> None:
    rng = np.random.default_rng(0)
    body_HW = rng.poisson(6, (512, 128)).astype(np.uint16)
    spots_HW = body_HW.copy()
    for x, y in ((30, 100), (90, 200), (60, 300), (64, 400)):
        cv2.circle(spots_HW, (x, y), 8, 400, -1)
    soft_HW = np.minimum(
        cv2.GaussianBlur(spots_HW, (0, 0), 4), 120
    )  # clipped plateaus, as in a JPEG
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
