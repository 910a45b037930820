"""DICOM bone scans to arrays of counts, and back for the phantom."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    NuclearMedicineImageStorage,
    generate_uid,
)

from raybone.data.ingest.dicom.header import NotTaken as NotTaken
from raybone.data.ingest.dicom.header import (
    axes_of,
    flags_of,
    head_down,
    patient_of,
    pixel_mm_of,
    refuse_bomb,
    scanner_of,
    text,
    views_of,
)
from raybone.data.ingest.dicom.pixels import pixels_of, settled
from raybone.data.ingest.dicom.planar import captured, check_object, check_planar, modality_of
from raybone.data.ingest.dicom.windows import photopeak
from raybone.data.modality import flag_of
from raybone.types import Array

LEAST_FRACTIONS = 10.0  # below it, rounded fractions are no image any more


# What all views of the phantom say alike, and what must be there but is not known (PS3.3 A.5).
SAME = {
    "Modality": "NM",
    "Manufacturer": "raybone",
    "ManufacturerModelName": "phantom",
    "ImageType": ["ORIGINAL", "PRIMARY", "WHOLE BODY", "EMISSION"],
    "SeriesDescription": "WHOLE BODY BONE",
    "NumberOfFrames": 1,
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16,
    "BitsStored": 16,
    "HighBit": 15,
    "PixelRepresentation": 0,
    "EnergyWindowVector": 1,
    "NumberOfEnergyWindows": 1,
    "DetectorVector": 1,
    "NumberOfDetectors": 1,
    "FrameIncrementPointer": [0x00540010, 0x00540020],
    "ActualFrameDuration": 1200000,
    "ScanVelocity": "1.6",
    "ScanLength": 1900,
    "StudyDate": "20200101",
    "StudyTime": "000000",
    "StudyID": "1",
    "SeriesNumber": 1,
    "InstanceNumber": 1,
}
UNKNOWN = (
    "PatientBirthDate",
    "PatientSex",
    "ReferringPhysicianName",
    "AccessionNumber",
    "Laterality",
    "PatientOrientationCodeSequence",
    "PatientGantryRelationshipCodeSequence",
    "EnergyWindowInformationSequence",
    "RadiopharmaceuticalInformationSequence",
)


@dataclass(frozen=True)
class Facts:
    """What an input says about one of its views.

    ``patient``, its ``issuer``, ``name``, ``birth``, ``study``, ``instance``, ``site`` and
    ``scanner`` are as the source has them, to be replaced by pseudonyms or not stored; ``make`` is
    a known maker's name. ``flags`` are those of ``raybone.data.ingest.intake.REMARK_OF_FLAG``.
    ``frame`` is its place in the object, from 0. ``axes`` are the direction cosines of its rows and
    columns (x, y, z each, to the patient's left, back and head), where the object has them.
    """

    patient: str = ""
    view: str = "unknown"
    pixel_mm: float | None = None
    study: str = ""
    instance: str = ""
    site: str = ""
    scanner: str = ""
    make: str = "scanner"
    flags: tuple[str, ...] = ()
    frame: int = 0
    axes: tuple[float, ...] | None = None
    issuer: str = ""
    name: str = ""
    birth: str = ""


def read_frames(
    content: bytes, file_name: str, modality: str | None = "NM"
) -> list[tuple[Array, Facts]]:
    """Every frame of a DICOM object as counts uint16 of shape (H, W), with what is known about it.

    Each frame's modality rescale is applied (PS3.3 C.11.1), padding and negatives are 0, values are
    rounded; MONOCHROME1 with a bright border is turned over; of several energy windows the
    photopeak's is taken. Nothing is cropped or resampled.

    Args:
        content: the file's bytes, with or without preamble.
        file_name: its name, which may tell the view.
        modality: take only this Modality (0008,0060), or any when None.
    Raises:
        NotTaken: it is no DICOM, another modality, no planar scan, has no pixels, or no decoder
            reads them.
    """
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its warnings quote values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = _header(content)
            check_object(header, modality)
            frames, flags = settled(header)
            flags += ["windowed"] * captured(header) + flag_of(modality_of(header))
            if modality_of(header) == "NM":
                flags += check_planar(header, frames)
            kept, more = photopeak(header, frames)
            return _views(header, frames, file_name, kept, [*flags_of(header), *flags, *more])
        except NotTaken:
            raise
        except Exception as error:  # a header may be damaged in any way
            raise NotTaken(
                f"has a DICOM header that is damaged ({type(error).__name__}); export it again"
            ) from None


def _views(
    header: Dataset, frames: int, file_name: str, kept: list[int], flags: list[str]
) -> list[tuple[Array, Facts]]:
    """The frames that are kept, with their facts."""
    (patient, issuer, name, birth), (site, scanner, make) = patient_of(header), scanner_of(header)
    study, instance = text(header, "StudyInstanceUID"), text(header, "SOPInstanceUID")
    values_NHW, padded_NHW, odd = pixels_of(header, frames)
    if padded_NHW is not None:
        values_NHW = np.where(padded_NHW, 0, values_NHW)
    found = []
    for frame, view, counts_HW in zip(
        kept, views_of(header, frames, file_name, kept), counts_of(values_NHW[kept])
    ):
        seen_HW = np.ones(counts_HW.shape, bool) if padded_NHW is None else ~padded_NHW[frame]
        turned = header.PhotometricInterpretation == "MONOCHROME1" and _turned(counts_HW, seen_HW)
        if turned:
            counts_HW = np.where(
                seen_HW, counts_HW[seen_HW].max() + counts_HW[seen_HW].min() - counts_HW, 0
            )
        pixel_mm, square = pixel_mm_of(header, frame)
        known = (
            *flags,
            *["rescale"] * odd,
            *["not-square"] * (not square),
            *["turned-over"] * turned,
            *["head-down"] * head_down(header, frame, frames),
        )
        found.append(
            (
                counts_HW,
                Facts(
                    patient,
                    view,
                    pixel_mm,
                    study,
                    instance,
                    site,
                    scanner,
                    make,
                    known,
                    frame,
                    axes_of(header, frame, frames),
                    issuer,
                    name,
                    birth,
                ),
            )
        )
    return found


def shows_text(counts_HW: Array) -> bool:
    """Whether letters are suspected in the pixels: many small islands of the one brightest value
    with crisp edges.

    Hot spots have one brightest pixel, or a plateau that falls off gently where they are clipped.
    """
    top_HW = counts_HW == counts_HW.max()
    if not 40 <= np.count_nonzero(top_HW) <= counts_HW.size // 20:
        return False
    top_HW = top_HW.astype(np.uint8)
    count, _, stats_N5, _ = cv2.connectedComponentsWithStats(top_HW, connectivity=8)
    letters = int(
        ((stats_N5[1:, 3] >= 5) & (stats_N5[1:, 3] <= 40) & (stats_N5[1:, 2] <= 40)).sum()
    )
    rim_HW = (cv2.dilate(top_HW, np.ones((3, 3), np.uint8)) > 0) & (top_HW == 0)
    return (
        count > 3
        and letters >= 3
        and float(np.median(counts_HW[rim_HW])) < 0.5 * float(counts_HW.max())
    )


def write_scan(
    path: Path, counts_HW: Array, *, patient: str, view: str, pixel_mm: float, uid: str
) -> None:
    """Write one whole-body view as an NM object (PS3.3 A.5), explicit little endian.

    Args:
        counts_HW: uint16, shape (H, W).
        view: anterior or posterior; goes into the View Code Sequence (PS3.3 C.8.4.11, CID 26).
        uid: any text; UIDs are derived from it, so the same text gives the same file.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = NuclearMedicineImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[uid])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    scan = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    rows, columns = counts_HW.shape
    said = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": generate_uid(entropy_srcs=[patient, "study"]),
        "SeriesInstanceUID": generate_uid(entropy_srcs=[patient, view]),
        "PatientID": patient,
        "PatientName": "Phantom^" + patient,
        "Rows": rows,
        "Columns": columns,
        "PixelSpacing": [pixel_mm, pixel_mm],
        "CountsAccumulated": int(counts_HW.sum()),
        "DetectorInformationSequence": [_detector(view)],
        "PixelData": counts_HW.astype("<u2").tobytes(),
    }
    for keyword, value in {**SAME, **dict.fromkeys(UNKNOWN), **said}.items():
        setattr(scan, keyword, [] if keyword in UNKNOWN and "Sequence" in keyword else value)
    scan.save_as(path, enforce_file_format=True)


def _detector(view: str) -> Dataset:
    """A detector that looks from one side, by SNOMED CT."""
    detector, code = Dataset(), Dataset()
    detector.CollimatorType, detector.ViewCodeSequence = "PARA", [code]
    detector.ImageOrientationPatient = detector.ImagePositionPatient = None
    code.CodeValue = {"anterior": "399321004", "posterior": "399001007"}[view]
    code.CodingSchemeDesignator, code.CodeMeaning = "SCT", f"{view.capitalize()} projection"
    return detector


def is_dicom(content: bytes) -> bool:
    """Whether the first 132 bytes of a file, or more, are of a DICOM file, with or without
    preamble.
    """
    return content[128:132] == b"DICM" or content[:2] in (b"\x02\0", b"\x08\0")


def _header(content: bytes) -> Dataset:
    if not is_dicom(content):
        raise NotTaken("is not a DICOM file")
    refuse_bomb(content)
    header = pydicom.dcmread(BytesIO(content), force=True)
    if header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise NotTaken("is a DICOMDIR, an index of files that are read themselves")
    if "TransferSyntaxUID" not in header.file_meta:
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return header


def _turned(counts_HW: Array, seen_HW: Array) -> bool:
    """Whether uptake is low where it should be high, in a scan of MONOCHROME1 whose other pixels
    are padding.

    It says how to show values (PS3.3 C.7.6.3.1.2): it stands at counts that are to be dark on
    white, and at pictures that were turned over. What lies at the border, of the picture or of its
    padding, is air and tells them apart.
    """
    inside_HW = cv2.erode(np.pad(seen_HW.astype(np.uint8), 1), np.ones((3, 3), np.uint8))[
        1:-1, 1:-1
    ]
    seen_P, border_P = counts_HW[seen_HW], counts_HW[seen_HW & (inside_HW == 0)]
    return (
        bool(seen_P.size)
        and float(np.median(border_P)) > (float(seen_P.min()) + float(seen_P.max())) / 2
    )


def counts_of(values: Array) -> Array:
    """Any real values as uint16 counts: negatives clipped to 0, rounded.

    Raises:
        NotTaken: a value is not finite or above 65535, none is above 0, or all are small fractions.
    """
    top = values.max()
    if (
        not np.isfinite(top)
        or top > np.iinfo(np.uint16).max
        or (values.dtype.kind == "f" and np.isnan(values).any())
    ):
        raise NotTaken("holds values that are no counts (not finite or above 65535)")
    if top <= 0:
        raise NotTaken("is empty: no count above 0")
    if values.dtype.kind == "u":
        return np.asarray(values, np.uint16)
    counts = np.rint(np.maximum(values, 0))
    if top < LEAST_FRACTIONS and (np.abs(values - counts)[values > 0] > 1e-6 * top).any():
        raise NotTaken(
            f"holds fractions up to {top:.3g} that rounding would destroy; scale them to counts"
        )
    return counts.astype(np.uint16)
