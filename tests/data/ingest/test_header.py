"""Headers: the view from what says it, unknown rather than a guess; spacing in one value or two."""

from __future__ import annotations

import re
from io import BytesIO
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from raybone.data.ingest.dicom.header import patient_of, pixel_mm_of, views_of


def header(**elements: Any) -> Dataset:
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def code(value: str = "", meaning: str = "") -> list[Dataset]:
    return [header(CodeValue=value, CodingSchemeDesignator="SCT", CodeMeaning=meaning)]


FRONT, BACK = [1, 0, 0, 0, 0, -1], [-1, 0, 0, 0, 0, -1]


@pytest.mark.parametrize(
    ("elements", "frames", "file_name", "views"),
    [
        (
            {
                "DetectorInformationSequence": [
                    header(ViewCodeSequence=code("399321004")),
                    header(ViewCodeSequence=code("R-10214")),
                ]
            },
            2,
            "x",
            "anterior posterior",
        ),
        (
            {
                "DetectorInformationSequence": [
                    header(ViewCodeSequence=code(meaning="Posterior")),
                    header(ViewCodeSequence=code(meaning="anterior projection")),
                ],
                "DetectorVector": [2, 1],
            },
            2,
            "x",
            "anterior posterior",
        ),
        (
            {
                "DetectorInformationSequence": [
                    header(ViewCodeSequence=code("399118008", "Left lateral projection"))
                ]
            },
            1,
            "x",
            "unknown",
        ),
        (
            {
                "DetectorInformationSequence": [
                    header(ImageOrientationPatient=FRONT),
                    header(ImageOrientationPatient=BACK),
                ]
            },
            2,
            "x",
            "anterior posterior",
        ),
        (
            {"DetectorInformationSequence": [header(StartAngle=180), header(StartAngle=0)]},
            2,
            "x",
            "anterior posterior",
        ),
        ({"DetectorInformationSequence": [header(StartAngle=90)]}, 1, "x", "unknown"),
        (
            {
                "DetectorInformationSequence": [
                    header(StartAngle=0, ViewCodeSequence=code("R-10206"))
                ]
            },
            1,
            "x",
            "anterior",
        ),
        (
            {"DetectorInformationSequence": [header(StartAngle=0)], "ImageID": "ANT"},
            1,
            "x",
            "unknown",
        ),
        (
            {
                "DetectorInformationSequence": [header(ViewCodeSequence=code("G-5216"))],
                "ImageID": "ANT",
            },
            1,
            "x",
            "posterior",
        ),
        (
            {
                "DetectorInformationSequence": [
                    header(ViewCodeSequence=code("x", "Left anterior oblique"))
                ]
            },
            1,
            "x",
            "unknown",
        ),
        ({"SeriesDescription": "WB BONE 3H POST INJ"}, 1, "scan_post_therapy", "unknown"),
        ({"SeriesDescription": "BONE POST 3HRS"}, 1, "x", "unknown"),
        ({"SeriesDescription": "WB POST CONTRAST"}, 1, "x", "unknown"),
        ({"SeriesDescription": "WB POST MDP"}, 1, "x", "posterior"),
        ({"SeriesDescription": "LEFT ANT OBLIQUE"}, 1, "x", "unknown"),
        ({"PatientOrientation": ["L", "F"]}, 1, "post.dcm", "anterior"),
        ({"PatientOrientation": ["R", "F"]}, 1, "x", "posterior"),
        ({"ViewPosition": "PA"}, 1, "x", "posterior"),
        ({"SeriesDescription": "WB ANT_POST"}, 2, "x", "anterior posterior"),
        ({"SeriesDescription": "POST/ANT"}, 2, "x", "posterior anterior"),
        ({"SeriesDescription": "ANT/POST"}, 1, "x", "unknown"),
        ({"ImageID": "Anterior 3h"}, 1, "x", "anterior"),
        ({"SeriesDescription": "whole body"}, 1, "bone_POST_01.dcm", "posterior"),
        ({"SeriesDescription": "significant posture change"}, 1, "antonia.dcm", "unknown"),
        ({}, 2, "x", "unknown unknown"),
        ({"DetectorVector": [7, 9]}, 2, "x", "unknown unknown"),
    ],
)
def test_the_view_is_told_by_the_first_that_says_it(
    elements: dict[str, Any], frames: int, file_name: str, views: str
) -> None:
    assert views_of(header(**elements), frames, file_name) == views.split()


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"PixelSpacing": [2.26, 2.26]}, (2.26, True)),
        ({"ImagerPixelSpacing": [2.4, 4.8]}, (2.4, False)),
        ({"DetectorElementSpacing": [3.0, 3.0], "PixelSpacing": [0, 0]}, (3.0, True)),
        ({"PixelSpacing": 2.0}, (2.0, True)),
        ({"PixelSpacing": [2.0, 3.0, 4.0], "ImagerPixelSpacing": [5.0, 5.0]}, (5.0, True)),
        (
            {
                "SharedFunctionalGroupsSequence": [
                    header(PixelMeasuresSequence=[header(PixelSpacing=[1.5, 1.5])])
                ]
            },
            (1.5, True),
        ),
        ({}, (None, True)),
    ],
)
def test_spacing_is_found_wherever_it_stands(
    elements: dict[str, Any], expected: tuple[float | None, bool]
) -> None:
    assert pixel_mm_of(header(**elements)) == expected


@pytest.mark.parametrize(
    ("elements", "told"),
    [
        ({"PatientID": "1"}, ("1", "", "", "")),
        (
            {
                "PatientID": " 1 ",
                "IssuerOfPatientID": "B",
                "PatientName": "A^B",
                "PatientBirthDate": "19500101",
            },
            ("1", "B", "A^B", "19500101"),
        ),
        ({"PatientID": "1^^^B&1.2&ISO"}, ("1", "B", "", "")),
        ({"PatientID": None, "PatientBirthDate": ""}, ("", "", "", "")),
    ],
)
def test_a_patient_is_told_by_id_issuer_name_and_birth_date(
    elements: dict[str, Any], told: tuple[str, ...]
) -> None:
    assert patient_of(header(**elements)) == told


CHINESE, KOREAN, JAPANESE = (
    "王^小东",
    "Hong^Gildong=洪^吉洞=홍^길동",
    "Yamada^Tarou=山田^太郎=やまだ^たろう",
)


@pytest.mark.parametrize(
    ("charset", "raw", "name"),
    [
        ("GB18030", CHINESE.encode("gb18030"), CHINESE),
        ("GBK", CHINESE.encode("gbk"), CHINESE),
        ("ISO_IR 192", CHINESE.encode(), CHINESE),
        ("", CHINESE.encode(), CHINESE),
        ("", CHINESE.encode("gb18030"), CHINESE),
        ("NONSENSE", CHINESE.encode("gb18030"), CHINESE),
        ("ISO_IR 192", CHINESE.encode("gb18030"), CHINESE),
        ("", "Müller^Jörg".encode("latin-1"), "Müller^Jörg"),
        ("ISO_IR 100", "Müller^Jörg".encode("latin-1"), "Müller^Jörg"),
        (
            ["", "ISO 2022 IR 149"],
            re.sub(rb"([\xa1-\xfe]+)", b"\x1b$)C\\1", KOREAN.encode("euc_kr")),
            KOREAN,
        ),
        (
            ["", "ISO 2022 IR 58"],
            b"Wang^Xiaodong=\x1b$)A\xcd\xf5^\x1b$)A\xd0\xa1\xb6\xab",
            f"Wang^Xiaodong={CHINESE}",
        ),
        (["", "ISO 2022 IR 87"], JAPANESE.encode("iso2022_jp"), JAPANESE),
        (["ISO 2022 IR 13", "ISO 2022 IR 87"], JAPANESE.encode("iso2022_jp"), JAPANESE),
        ("", JAPANESE.encode("iso2022_jp"), JAPANESE),
        ("", b"\xff^\xfe", "ÿ^þ"),
    ],
    ids=str,
)
def test_a_name_is_the_same_in_whatever_character_set_it_was_written(
    charset: Any, raw: bytes, name: str
) -> None:
    """PS3.5 H and I; where the character set is missing or wrong, by what the bytes can be."""
    place = header(SpecificCharacterSet=charset) if charset else header()
    content = BytesIO()
    place.PatientName = "PLACE"
    place.save_as(content, implicit_vr=True, little_endian=True)
    written = content.getvalue().replace(b"\x06\0\0\0PLACE ", len(raw).to_bytes(4, "little") + raw)
    assert patient_of(dcmread(BytesIO(written), force=True))[2] == name
