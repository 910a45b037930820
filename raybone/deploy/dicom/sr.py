"""Findings as a DICOM Structured Report that refers to its source: measurements of planar regions
(PS3.16 TID 1500 and 1410), through highdicom.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import highdicom as hd
import numpy as np
from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from raybone.data.ingest.dicom.header import text
from raybone.deploy.dicom.source import (
    ABNORMAL,
    KINDS,
    LONG_STRING,
    NAMES,
    TYPE_2,
    MadeBy,
    frames_of,
    give_patient,
    header_of,
    write,
)
from raybone.deploy.frames import Found
from raybone.types import Array
from raybone.version import version

MOST = 8000  # points of an outline, whose value has 64 kB at the most (PS3.5 7.1.2)


def write_report(
    source: Path,
    frame: int,
    findings: Sequence[Found],
    masks: Mapping[str, Array],
    made_by: MadeBy,
    out: Path,
) -> None:
    """Write the findings on one frame of a DICOM object: each a region with its certainty in
    percent, its area where that is known, and the algorithm with its version.

    A box is a rectangle along the corners of its pixels, a finding of a mask the outline of its
    part inside its box. Certainty is the calibrated probability where the bundle has a calibration,
    else the members' mean score. It carries the patient of its source as a Segmentation does.

    Args:
        frame: 0-based.
        masks: category -> boolean (Rows, Columns) of the source; none where findings are boxes.
        made_by: the model and its study.
    Raises:
        ValueError: nothing was found, or the source lacks what to refer to.
    """
    if not findings:
        raise ValueError("nothing was found; a report of findings needs one")
    with header_of(source) as header:
        device = sr.DeviceObserverIdentifyingAttributes(hd.UID(), "raybone", "raybone", version())
        observer = sr.ObserverContext(codes.DCM.Device, device)
        report = sr.MeasurementReport(
            sr.ObservationContext(observer_device_context=observer),
            codes.SCT.ImagingProcedure,
            [*_groups(header, frame, findings, masks, made_by)],
            title=codes.DCM.ImagingMeasurementReport,
        )
        made = sr.ComprehensiveSR(
            [_evidence(header)], report, hd.UID(), 901, hd.UID(), 1, "raybone", is_complete=True
        )
        give_patient(made, header)
        made.SeriesDescription = "raybone, findings of a research model, not a medical device"
        write(made, header, out)


def _groups(
    header: Dataset,
    frame: int,
    findings: Sequence[Found],
    masks: Mapping[str, Array],
    made_by: MadeBy,
) -> Iterator[sr.PlanarROIMeasurementsAndQualitativeEvaluations]:
    """A measurement group a finding."""
    which = [frame + 1] if frames_of(header) > 1 else None
    image = sr.SourceImageForRegion(header.SOPClassUID, header.SOPInstanceUID, which)
    name = " ".join([made_by.model, made_by.study]).replace("\\", "/")[:LONG_STRING].strip()
    algorithm = sr.AlgorithmIdentification(name, version())
    for number, found in enumerate(findings, 1):
        certainty = found.score if found.probability is None else found.probability
        if not 0 <= certainty <= 1:
            raise ValueError(f"a score must be a probability to be reported, got {certainty:g}")
        values = [
            sr.Measurement(
                codes.DCM.CertaintyOfFinding, round(100 * certainty, 3), codes.UCUM.Percent
            )
        ]
        if found.area_mm2 is not None:
            values.append(
                sr.Measurement(codes.SCT.Area, found.area_mm2, codes.UCUM.SquareMillimeter)
            )
        outline_N2 = _outline(found, masks.get(found.category))
        yield sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            sr.TrackingIdentifier(hd.UID(), f"{found.category} {number}"),
            sr.ImageRegion(sr.GraphicTypeValues.POLYLINE, outline_N2, image),
            finding_type=KINDS.get(found.category, ABNORMAL),
            algorithm_id=algorithm,
            measurements=values,
        )


def _outline(found: Found, mask_HW: Array | None) -> Array:
    """The closed outline of a finding along the edges of its pixels, (N, 2) columns and rows, where
    0 is the edge of the first pixel (PS3.3 C.18.6.1); its box where it has no mask, or one with too
    many corners.
    """
    x1, y1, x2, y2 = found.box
    if mask_HW is not None:
        left, top = int(x1), int(y1)
        part_HW = mask_HW[top : int(np.ceil(y2)), left : int(np.ceil(x2))]
        twice_HW = np.kron(_own(part_HW, found.area_px), np.ones((2, 2), np.uint8))
        contours, _ = cv2.findContours(twice_HW, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        # Of the two halves of a pixel the first touches its edge n, the second n + 1.
        corners_N2 = (max(contours, key=len)[:, 0] + 1) // 2 + np.array([left, top])
        moved_N = np.any(corners_N2 != np.roll(corners_N2, 1, axis=0), axis=1)
        outline_N2 = corners_N2[moved_N]
        if len(outline_N2) < MOST:
            return np.concatenate([outline_N2, outline_N2[:1]]).astype(float)
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]], float)


def _own(part_HW: Array, area: int | None) -> Array:
    """Of a mask inside a finding's box the component that fills it, uint8: of this area, or else
    the largest.
    """
    _, label_HW, stats_N5, _ = cv2.connectedComponentsWithStats(part_HW.astype(np.uint8))
    areas = stats_N5[1:, cv2.CC_STAT_AREA]
    exact = np.flatnonzero(areas == area)
    number = 1 + int(exact[0] if len(exact) else areas.argmax())
    return (label_HW == number).astype(np.uint8)


def _evidence(header: Dataset) -> Dataset:
    """What highdicom needs of the source; what it would check and refuse of a patient, such as an
    empty character set, is put in afterwards.
    """
    image = Dataset()
    for keyword in TYPE_2:
        setattr(image, keyword, None)
    for keyword in (*NAMES, "SOPClassUID", "Modality"):
        if text(header, keyword):
            setattr(image, keyword, header[keyword].value)
    return image
