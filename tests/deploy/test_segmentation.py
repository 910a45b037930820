"""DICOM Segmentation: the source's patient in its character set, its spacing or none, and what it
refers to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from bundles import bundle_of
from pydicom.dataset import Dataset

from raybone.data.ingest.dicom.frames import write_scan
from raybone.data.ingest.prepare import prepare
from raybone.deploy.dicom.seg import write_segmentation
from raybone.deploy.dicom.source import MadeBy
from raybone.deploy.predict import predict
from raybone.errors import WrongInput

MASK = np.zeros((64, 40), bool)
MASK[3:9, 4:10] = True


@pytest.fixture
def source(tmp_path: Path) -> Path:
    counts_HW = np.arange(64 * 40, dtype=np.uint16).reshape(64, 40)
    write_scan(
        tmp_path / "scan.dcm", counts_HW, patient="P", view="anterior", pixel_mm=2.0, uid="1"
    )
    return tmp_path / "scan.dcm"


def segmented(
    source: Path, without: tuple[str, ...] = (), pixel_mm: float | None = None, **changes: Any
) -> tuple[Dataset, Dataset, bool]:
    """The object made of a scan with these changes, the scan, and whether the size of pixels is
    said.
    """
    scan = pydicom.dcmread(source)
    for keyword in without:
        delattr(scan, keyword)
    for keyword, value in changes.items():
        setattr(scan, keyword, value)
    scan.save_as(source)
    said = write_segmentation(
        source, 0, {"malignant": MASK}, MadeBy("unet"), source.with_name("seg.dcm"), pixel_mm
    )
    return pydicom.dcmread(source.with_name("seg.dcm")), pydicom.dcmread(source), said


def spacing(made: Dataset) -> list[float] | None:
    (shared,) = made.SharedFunctionalGroupsSequence
    measures = shared.get("PixelMeasuresSequence")
    return [float(v) for v in measures[0].PixelSpacing] if measures else None


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (None, "Test^Scan"),
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 192", "Müller^Jörg"),
        ("GB18030", "王^小东"),
        ("GBK", "王^小东"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 159"], "Yamada^Tarou=丂"),
    ],
    ids=str,
)
def test_a_patients_name_stays_as_it_is_in_the_character_set_of_the_source(
    source: Path, charset: Any, name: str
) -> None:
    changes = (
        {"PatientName": name}
        if charset is None
        else {"SpecificCharacterSet": charset, "PatientName": name}
    )
    made, scan, _ = segmented(source, **changes)
    assert str(made.PatientName) == name
    assert made.get("SpecificCharacterSet") == scan.get("SpecificCharacterSet")
    np.testing.assert_array_equal(made.pixel_array.reshape(MASK.shape), MASK)


def test_a_name_that_its_character_set_cannot_hold_is_written_in_utf_8(source: Path) -> None:
    """As when a console writes UTF-8 bytes and says nothing, or something else, of its character
    set.
    """
    content = source.read_bytes()
    assert content.count(b"Phantom^P ") == 1
    source.write_bytes(content.replace(b"Phantom^P ", "王^小东".encode()))
    made, scan, _ = segmented(source)
    assert str(made.PatientName) == str(scan.PatientName)
    made, scan, _ = segmented(source, SpecificCharacterSet="NONSENSE", PatientName="王^小东")
    assert str(made.PatientName) == str(scan.PatientName)


@pytest.mark.parametrize(
    ("without", "changes", "expected"),
    [
        ((), {}, [2.0, 2.0]),
        ((), {"PixelSpacing": [2.0, 4.0]}, [2.0, 4.0]),
        (("PixelSpacing",), {"ImagerPixelSpacing": [2.4, 2.4]}, [2.4, 2.4]),
        ((), {"PixelSpacing": [0, 0], "DetectorElementSpacing": [3.0, 3.0]}, [3.0, 3.0]),
        (("PixelSpacing",), {"SharedFunctionalGroupsSequence": None}, None),
        ((), {"PixelSpacing": None}, None),
    ],
    ids=str,
)
def test_the_size_of_pixels_is_the_sources_height_first_or_is_not_said(
    source: Path, without: tuple[str, ...], changes: dict[str, Any], expected: list[float] | None
) -> None:
    made, _, said = segmented(source, without, **changes)
    assert spacing(made) == expected
    assert said == (expected is not None)
    assert "SliceThickness" not in str(made)


def test_a_size_that_a_table_says_counts_instead(source: Path) -> None:
    assert spacing(segmented(source, pixel_mm=2.0)[0]) == [2.0, 2.0]
    assert spacing(segmented(source, pixel_mm=3.0)[0]) == [3.0, 3.0]
    assert spacing(segmented(source, ("PixelSpacing",), pixel_mm=3.0)[0]) == [3.0, 3.0]


def test_headers_that_are_not_as_they_should_be_have_an_object_of_their_patient(
    source: Path,
) -> None:
    made, scan, _ = segmented(
        source,
        ("PatientBirthDate", "StudyDate"),
        PatientSex="?",
        LossyImageCompression="01",
        SOPClassUID="1.2.840.10008.5.1.4.1.1.128",
        PatientName="Smith",
        NumberOfFrames=None,
        IssuerOfPatientID="HOSP",
    )
    assert (made.PatientID, made.IssuerOfPatientID, made.PatientName) == ("P", "HOSP", "Smith")
    assert made.LossyImageCompression == "01"
    (series,) = made.ReferencedSeriesSequence
    (reference,) = series.ReferencedInstanceSequence
    assert (reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID) == (
        scan.SOPClassUID,
        scan.SOPInstanceUID,
    )


@pytest.mark.filterwarnings("error")
def test_no_warning_quotes_what_a_header_holds(source: Path) -> None:
    scan = pydicom.dcmread(source)
    scan.SpecificCharacterSet, scan.PatientName = "ISO_IR 192", "王^小东"
    scan.save_as(source)
    source.write_bytes(source.read_bytes().replace(b"ISO_IR 192", b"ISO_IX 192"))
    assert write_segmentation(
        source, 0, {"malignant": MASK}, MadeBy("unet"), source.with_name("seg.dcm")
    )


def test_a_source_without_ids_cannot_be_referred_to(source: Path) -> None:
    with pytest.raises(ValueError, match="must say SeriesInstanceUID, SOPInstanceUID"):
        segmented(source, ("SeriesInstanceUID",), SOPInstanceUID=None)


def test_two_segmentations_that_differ_cost_a_scan_nothing_where_it_is_only_predicted_on(
    source: Path, tmp_path: Path
) -> None:
    """As two versions of a model leave them in an archive."""
    (tmp_path / "in").mkdir()
    source = source.rename(tmp_path / "in" / "scan.dcm")
    for number, mask_HW in enumerate((MASK, ~MASK)):
        file = source.with_name(f"seg{number}.dcm")
        write_segmentation(source, 0, {"malignant": mask_HW}, MadeBy("unet"), file, None)
    bundle = bundle_of(tmp_path / "bundle", "unet", ["malignant"], imgsz=64, width=4, depth=2)
    done = predict(bundle, [str(tmp_path / "in")], tmp_path / "out")
    assert [Path(frame.source).name for frame in done.frames] == ["scan.dcm"]
    # Who learns from them has to say which is right.
    with pytest.raises(WrongInput):
        prepare(tmp_path / "in", tmp_path / "ds", folds=2, key=tmp_path / "key")
