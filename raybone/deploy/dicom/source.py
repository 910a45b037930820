"""What objects of findings have of the DICOM object that they are of: its patient, study and
character set.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from raybone.data.ingest.dicom.header import numbers, text, values

NAMES = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "ReferringPhysicianName",
    "AccessionNumber",
)
LONG_STRING = 64  # characters (PS3.5 6.2)
OWN = ("SeriesDescription", "SegmentLabel", "AlgorithmName", "TextValue")
ABNORMAL = codes.SCT.MorphologicallyAbnormalStructure
ANATOMY, BONE = codes.SCT.AnatomicalStructure, codes.SCT.Bone
# What a finding is, by category; others are abnormal structures.
KINDS = {"malignant": Code("14799000", "SCT", "Neoplasm, Secondary")}


class MadeBy(NamedTuple):
    """The model whose findings are written, and the name of the study that made it."""

    model: str
    study: str = ""


@contextlib.contextmanager
def header_of(source: Path) -> Iterator[Dataset]:
    """The header of a DICOM object that others may refer to; what libraries warn of, which quotes
    values, is not heard.

    Raises:
        ValueError: it lacks what to refer to.
    """
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = pydicom.dcmread(source, stop_before_pixels=True, force=True)
        lacking = [k for k in NAMES if not text(header, k)]
        if lacking:
            raise ValueError(
                f"the source must say {', '.join(lacking)}, which the object refers to"
            )
        yield header


def frames_of(header: Dataset) -> int:
    """The number of frames of an object."""
    return int(max(numbers(header, "NumberOfFrames"), default=1))


def give_patient(made: Dataset, header: Dataset) -> None:
    """Give an object the patient and study of its source."""
    for keyword in TYPE_2:  # anonymised headers lack them, which have to be there, if only empty
        if keyword not in header:
            setattr(header, keyword, None)
    made.copy_patient_and_study_information(header)


def _own_words(made: Dataset) -> list[str]:
    """What of an object's text is not its source's."""
    return [str(e.value) for e in made.iterall() if e.keyword in OWN]


def write(made: Dataset, header: Dataset, out: Path) -> None:
    """Write an object in the first character set that keeps the patient's name."""
    content = BytesIO()
    for charset in (values(header, "SpecificCharacterSet"), ["ISO_IR 192"]):
        if charset:
            made.SpecificCharacterSet = charset
        content = BytesIO()
        made.save_as(content)
        kept = pydicom.dcmread(BytesIO(content.getvalue()), stop_before_pixels=True)
        same = text(kept, "PatientName") == text(header, "PatientName")
        if same and _own_words(kept) == _own_words(made):
            break
    out.write_bytes(content.getvalue())
