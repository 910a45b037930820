"""DICOM Structured Report: regions, certainty, algorithm, and what it refers to, read by others."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from highdicom.sr import srread

from raybone.data.ingest.dicom.frames import write_scan
from raybone.deploy.dicom.source import MadeBy
from raybone.deploy.dicom.sr import write_report
from raybone.deploy.frames import Found
from raybone.version import version

BOXES = [
    Found("malignant", (4.0, 3.0, 10.0, 9.5), 0.9, 0.8, 0.1),
    Found("benign", (20.0, 30.0, 24.0, 36.0), 0.4, None, None),
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    counts_HW = np.arange(64 * 40, dtype=np.uint16).reshape(64, 40)
    write_scan(
        tmp_path / "scan.dcm", counts_HW, patient="P", view="anterior", pixel_mm=2.0, uid="1"
    )
    return tmp_path / "scan.dcm"


def reported(source: Path, *findings: Found, frame: int = 0, **masks: Any) -> Path:
    out = source.with_name("sr.dcm")
    write_report(source, frame, findings, masks, MadeBy("yolo11n", "ours"), out)
    return out


def measured(group: Any) -> dict[str, tuple[float, str]]:
    return {m.name.meaning: (float(m.value), m.unit.value) for m in group.get_measurements()}


def test_each_box_is_a_region_with_its_certainty(source: Path) -> None:
    made, scan = srread(reported(source, *BOXES)), pydicom.dcmread(source)
    assert (made.PatientID, made.StudyInstanceUID) == (scan.PatientID, scan.StudyInstanceUID)
    groups = made.content.get_planar_roi_measurement_groups()
    assert [g.finding_type.meaning for g in groups] == [
        "Neoplasm, Secondary",
        "Morphologically Abnormal Structure",
    ]
    assert [measured(g) for g in groups] == [
        {"Certainty of Finding": (80.0, "%")},
        {"Certainty of Finding": (40.0, "%")},
    ]
    for group, found in zip(groups, BOXES):
        x1, y1, x2, y2 = found.box
        corners = [[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]]
        assert group.roi.value.tolist() == corners
    texts = {element.value for element in made.iterall() if element.keyword == "TextValue"}
    assert {"yolo11n ours", version()} <= texts
    (referred,) = made.CurrentRequestedProcedureEvidenceSequence
    (series,) = referred.ReferencedSeriesSequence
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == scan.SOPInstanceUID


def test_a_mask_is_an_outline_with_its_area(source: Path) -> None:
    mask_HW = np.zeros((64, 40), bool)
    mask_HW[3:9, 4:10] = True
    mask_HW[50:52, 30:33] = True  # another finding's
    found = Found("malignant", (4.0, 3.0, 10.0, 9.0), 0.9, None, 0.1, 36, 144.0)
    (group,) = srread(
        reported(source, found, malignant=mask_HW)
    ).content.get_planar_roi_measurement_groups()
    outline_N2 = group.roi.value
    assert sorted(map(tuple, outline_N2[:-1].tolist())) == [(4, 3), (4, 9), (10, 3), (10, 9)]
    assert outline_N2[0].tolist() == outline_N2[-1].tolist()
    assert measured(group)["Area"] == (144.0, "mm2")


@pytest.mark.parametrize("seed", range(20))
def test_an_outline_encloses_as_many_pixels_as_its_finding_has(seed: int, source: Path) -> None:
    """Of ragged masks the largest component, its holes filled; from one pixel on."""
    rng = np.random.default_rng(seed)
    noise_HW = (rng.random((12, 12)) < rng.uniform(0.2, 0.8)).astype(np.uint8)
    noise_HW[5, 5] = 1
    _, label_HW, stats_N5, _ = cv2.connectedComponentsWithStats(noise_HW)
    number = 1 + int(stats_N5[1:, cv2.CC_STAT_AREA].argmax())
    x, y, w, h, area = stats_N5[number].tolist()
    mask_HW = np.zeros((64, 40), bool)
    mask_HW[20:32, 10:22] = noise_HW
    box = (10.0 + x, 20.0 + y, 10.0 + x + w, 20.0 + y + h)
    found = Found("malignant", box, 0.9, None, None, area, 4.0 * area)
    (group,) = srread(
        reported(source, found, malignant=mask_HW)
    ).content.get_planar_roi_measurement_groups()
    columns, rows = group.roi.value.T
    enclosed = abs(np.sum(columns[:-1] * rows[1:] - columns[1:] * rows[:-1])) / 2
    own_HW = (label_HW == number).astype(np.uint8)
    contours, _ = cv2.findContours(own_HW, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled_HW = cv2.drawContours(np.zeros_like(own_HW), contours, -1, 1, cv2.FILLED)
    assert enclosed == filled_HW.sum()


def test_what_is_no_probability_is_not_reported(source: Path) -> None:
    with pytest.raises(ValueError, match="a score must be a probability"):
        reported(source, replace(BOXES[0], score=3.2, probability=None))


def test_a_frame_of_several_is_named(source: Path) -> None:
    scan = pydicom.dcmread(source)
    scan.NumberOfFrames = 2
    scan.PixelData = scan.PixelData * 2
    scan.save_as(source)
    (group,) = srread(
        reported(source, BOXES[0], frame=1)
    ).content.get_planar_roi_measurement_groups()
    assert group.roi.ContentSequence[0].ReferencedSOPSequence[0].ReferencedFrameNumber == 2


@pytest.mark.parametrize(
    ("charset", "name"),
    [("ISO_IR 100", "Müller^Jörg"), ("GBK", "王^小东"), ("NONSENSE", "Plain^Name")],
)
def test_a_patients_name_stays_as_it_is(source: Path, charset: str, name: str) -> None:
    scan = pydicom.dcmread(source)
    scan.SpecificCharacterSet, scan.PatientName = charset, name
    scan.save_as(source)
    assert str(pydicom.dcmread(reported(source, BOXES[0])).PatientName) == name


def test_nothing_is_no_report(source: Path) -> None:
    with pytest.raises(ValueError, match="nothing was found"):
        reported(source)


def test_dcmtk_reads_it(source: Path) -> None:
    if not (dsrdump := shutil.which("dsrdump")):
        pytest.skip("no dsrdump here (Debian's dcmtk): it is not asked")
    run = subprocess.run(
        [dsrdump, str(reported(source, *BOXES))], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Certainty of Finding") == run.stdout.count("SCOORD:") == len(BOXES)
