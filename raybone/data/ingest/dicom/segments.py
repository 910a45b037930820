"""DICOM Segmentation objects as annotations: 3D Slicer's, highdicom's and raybone's own (PS3.3
A.51).
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array

from raybone.data.annotations import MOST_PIXELS, Remarks, fitted, islands_of_mask, term_of
from raybone.data.ingest.dicom.header import NotTaken, refuse_bomb, text
from raybone.types import Array, Lesion

SEGMENTATION, LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
CONTOURS = "1.2.840.10008.5.1.4.1.1.481.3"
META = 1024  # bytes in which a file's own SOP class stands
SECONDARY_NEOPLASM = "14799000"  # SNOMED CT


@dataclass(frozen=True)
class Mark:
    """What a segmentation says of one frame of one object.

    instance: its SOP Instance UID. frame: 0-based, None for its only one. size: (H, W).
    """

    instance: str
    frame: int | None
    size: tuple[int, int]
    lesions: tuple[Lesion, ...]


def is_segmentation(content: bytes) -> bool:
    """Whether a DICOM file is an annotation of others: a Segmentation or RT contours."""
    return any(
        uid.encode() + end in content[:META]
        for uid in (SEGMENTATION, LABEL_MAP, CONTOURS)
        for end in (b"\0", b"\x02", b" ")
    )


def instance_of(content: bytes) -> str:
    """SOP Instance UID of a DICOM object that may be of any class or damaged, or empty."""
    try:
        refuse_bomb(content)
        header = pydicom.dcmread(BytesIO(content), specific_tags=["SOPInstanceUID"])
        return text(header, "SOPInstanceUID")
    except Exception:
        return ""


def read_marks(content: bytes, aliases: Mapping[str, str]) -> tuple[tuple[Mark, ...], Remarks]:
    """The lesions that a segmentation draws, by object and frame; each island of a segment is one.

    Raises:
        ValueError: it is none, is fractional, or does not say what it is of.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            refuse_bomb(content)
            header = pydicom.dcmread(BytesIO(content), force=True)
            if header.get("SOPClassUID") == CONTOURS:
                raise NotTaken(
                    "is RT contours, which are not read: export them as DICOM Segmentation or NIfTI"
                )
            return _marks(header, aliases)
        except (NotTaken, MemoryError):
            raise
        except Exception as error:  # what pydicom raises of a damaged file quotes it
            raise NotTaken(
                "is a DICOM Segmentation that is damaged, or without what it needs "
                f"({type(error).__name__}); export it again"
            ) from None


def _marks(header: Dataset, aliases: Mapping[str, str]) -> tuple[tuple[Mark, ...], Remarks]:
    if header.get("SegmentationType") == "FRACTIONAL":
        raise NotTaken(
            "is a fractional DICOM Segmentation, which is a probability map; export it as binary"
        )
    size = (int(header.Rows), int(header.Columns))
    frames = int(header.get("NumberOfFrames", 1) or 1)
    if not 0 < size[0] * size[1] * frames <= MOST_PIXELS:
        raise NotTaken(
            f"is a DICOM Segmentation of {frames} frames of {size[0]}x{size[1]}, which no scan has"
        )
    try:
        values_NHW = pixel_array(header).reshape(-1, *size)
    except Exception as error:  # what pydicom's decoders raise
        raise NotTaken(
            f"is a DICOM Segmentation whose pixels cannot be read ({type(error).__name__})"
        ) from None
    names = {int(s.SegmentNumber): _name(s, aliases) for s in header.SegmentSequence}
    found: dict[tuple[str, int | None], list[Lesion]] = defaultdict(list)
    for values_HW, groups in zip(values_NHW, header.PerFrameFunctionalGroupsSequence):
        of = _source(groups, header)
        for name, mask_HW in _masks(values_HW, groups, header, names):
            found[of] += islands_of_mask(mask_HW, name)
    marks, remarks = [], Remarks()
    for (instance, frame), lesions in found.items():
        inside, changed = fitted(lesions, *size, aliases)
        remarks += changed
        marks.append(Mark(instance, frame, size, inside))
    return tuple(marks), remarks


def _masks(
    values_HW: Array, groups: Dataset, header: Dataset, names: Mapping[int, str]
) -> list[tuple[str, Array]]:
    if header.SOPClassUID == LABEL_MAP:
        return [(names[int(v)], values_HW == v) for v in np.unique(values_HW) if int(v) in names]
    place = (
        groups
        if "SegmentIdentificationSequence" in groups
        else header.SharedFunctionalGroupsSequence[0]
    )
    number = int(place.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
    return [(names[number], values_HW > 0)]


def _source(groups: Dataset, header: Dataset) -> tuple[str, int | None]:
    """The object and frame that a frame of the segmentation was drawn on."""
    drawn_on = set[tuple[str, int | None]]()
    for derivation in groups.get("DerivationImageSequence") or []:
        for image in derivation.get("SourceImageSequence") or []:
            number: Any = image.get("ReferencedFrameNumber")
            several = isinstance(number, list | pydicom.multival.MultiValue)
            for one in number if several else [number]:
                drawn_on.add((str(image.ReferencedSOPInstanceUID), int(one) - 1 if one else None))
    if len(drawn_on) > 1:
        raise NotTaken(
            "is a DICOM Segmentation with a frame of several images or frames of a scan, and which "
            "one shows it is not said; export one frame for each"
        )
    if drawn_on:
        return drawn_on.pop()
    instances = [
        i
        for s in header.get("ReferencedSeriesSequence") or []
        for i in s.get("ReferencedInstanceSequence") or []
    ]
    if len(instances) != 1:
        raise NotTaken(
            "is a DICOM Segmentation that does not say which of its images each frame is of; "
            "export it again"
        )
    return str(instances[0].ReferencedSOPInstanceUID), None


def _name(segment: Dataset, aliases: Mapping[str, str]) -> str:
    label = str(segment.get("SegmentLabel", "") or "")
    codes = [
        str(c.get("CodeValue", "")) for c in segment.get("SegmentedPropertyTypeCodeSequence") or []
    ]
    return "malignant" if term_of(label, aliases) is None and SECONDARY_NEOPLASM in codes else label
