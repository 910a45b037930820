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
from pydicom.pixels import apply_modality_lut, pixel_array
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    NuclearMedicineImageStorage,
    generate_uid,
)

from raybone.data.annotations import MOST_PIXELS
from raybone.data.header import NOT_PLANAR, flags_of, numbers, patient_of, pixel_mm_of, scanner_of, views_of
from raybone.records import Array

# Defined terms of Modality (PS3.3 C.7.3.1.1.1) that meet in a nuclear medicine archive; others are not repeated.
MODALITIES = ("CR", "CT", "DX", "ECG", "KO", "MG", "MR", "NM", "OT", "PR", "PT", "REG", "RF", "RTDOSE", "RTPLAN",
              "RTSTRUCT", "SC", "SEG", "SR", "US", "XA", "XC", "DOC", "none")
LEAST_FRACTIONS = 10.0  # below it, rounded fractions are no image any more
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


class NotTaken(ValueError):
    """An input that is not a scan; the message is its reason and holds nothing from the file's identity."""


@dataclass(frozen=True)
class Facts:
    """What an input says about one of its views.

    ``patient``, ``study``, ``instance``, ``site`` and ``scanner`` are as the source has them, to be replaced by
    pseudonyms; ``make`` is a known maker's name. ``flags`` are of burned-in-text, lossy, not-square,
    turned-over and other-windows. ``frame`` is its place in the object, from 0.
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


def read_frames(content: bytes, file_name: str, modality: str | None = "NM") -> list[tuple[Array, Facts]]:
    """Every frame of a DICOM object as counts uint16 of shape (H, W), with what is known about it.

    Modality rescale is applied (PS3.3 C.11.1), negatives are clipped to 0, values are rounded; MONOCHROME1 with a
    bright border is turned over; of several energy windows the first is taken. Nothing is cropped or resampled.

    Args:
        content: the file's bytes, with or without preamble.
        file_name: its name, which may tell the view.
        modality: take only this Modality (0008,0060), or any when None.
    Raises:
        NotTaken: it is no DICOM, another modality, no planar scan, has no pixels, or no decoder reads them.
    """
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its warnings quote values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = _header(content)
            _refuse(header, modality)
            frames_NHW = _counts(header)
            views, (pixel_mm, square) = views_of(header, len(frames_NHW), file_name), pixel_mm_of(header)
            site, scanner, make = scanner_of(header)
            study, instance = (str(header.get(k, "") or "") for k in ("StudyInstanceUID", "SOPInstanceUID"))
            windows = numbers(header.get("EnergyWindowVector"), int)
            others = len(windows) == len(frames_NHW) and len(set(windows)) > 1
            known = flags_of(header) + ([] if square else ["not-square"]) + (["other-windows"] if others else [])
            found = []
            for number, (counts_HW, view) in enumerate(zip(frames_NHW, views)):
                if others and windows[number] != min(windows):
                    continue
                turned = _turned(header, counts_HW)
                facts = Facts(patient_of(header), view, pixel_mm, study, instance, site, scanner, make,
                              tuple(known + ["turned-over"] * turned), number)
                found.append((counts_HW.max() + counts_HW.min() - counts_HW if turned else counts_HW, facts))
            return found
        except NotTaken:
            raise
        except Exception as error:  # elements are converted when first read, and may hold what their type cannot
            raise NotTaken(f"DICOM header holds a value that cannot be read ({type(error).__name__})") from None


def shows_text(counts_HW: Array) -> bool:
    """Whether letters are suspected in the pixels: many small islands of the one brightest value with crisp edges.

    Hot spots have one brightest pixel, or a plateau that falls off gently where they are clipped.
    """
    top_HW = counts_HW == counts_HW.max()
    if not 40 <= np.count_nonzero(top_HW) <= counts_HW.size // 20:
        return False
    top_HW = top_HW.astype(np.uint8)
    count, _, stats_N5, _ = cv2.connectedComponentsWithStats(top_HW, connectivity=8)
    letters = int(((stats_N5[1:, 3] >= 5) & (stats_N5[1:, 3] <= 40) & (stats_N5[1:, 2] <= 40)).sum())
    rim_HW = (cv2.dilate(top_HW, np.ones((3, 3), np.uint8)) > 0) & (top_HW == 0)
    return count > 3 and letters >= 3 and float(np.median(counts_HW[rim_HW])) < 0.5 * float(counts_HW.max())


def write_scan(path: Path, counts_HW: Array, *, patient: str, view: str, pixel_mm: float, uid: str) -> None:
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
    scan.SOPClassUID, scan.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    scan.StudyInstanceUID = generate_uid(entropy_srcs=[patient, "study"])
    scan.SeriesInstanceUID = generate_uid(entropy_srcs=[patient, view])
    scan.Modality, scan.Manufacturer, scan.ManufacturerModelName = "NM", "raybone", "phantom"
    scan.PatientID, scan.PatientName = patient, "Phantom^" + patient
    scan.ImageType = ["ORIGINAL", "PRIMARY", "WHOLE BODY", "EMISSION"]
    scan.SeriesDescription = "WHOLE BODY BONE"
    scan.Rows, scan.Columns, scan.NumberOfFrames = *counts_HW.shape, 1
    scan.SamplesPerPixel, scan.PhotometricInterpretation = 1, "MONOCHROME2"
    scan.BitsAllocated, scan.BitsStored, scan.HighBit, scan.PixelRepresentation = 16, 16, 15, 0
    scan.PixelSpacing = [pixel_mm, pixel_mm]
    scan.EnergyWindowVector, scan.NumberOfEnergyWindows, scan.DetectorVector, scan.NumberOfDetectors = 1, 1, 1, 1
    scan.FrameIncrementPointer = [0x00540010, 0x00540020]
    scan.CountsAccumulated = int(counts_HW.sum())
    scan.ActualFrameDuration, scan.ScanVelocity, scan.ScanLength = 1200000, "1.6", 1900
    detector = Dataset()
    detector.CollimatorType, detector.ImageOrientationPatient, detector.ImagePositionPatient = "PARA", None, None
    code, meaning = {"anterior": ("399321004", "Anterior projection"),
                     "posterior": ("399001007", "Posterior projection")}[view]
    detector.ViewCodeSequence = [Dataset()]
    detector.ViewCodeSequence[0].CodeValue, detector.ViewCodeSequence[0].CodingSchemeDesignator = code, "SCT"
    detector.ViewCodeSequence[0].CodeMeaning = meaning
    scan.DetectorInformationSequence = [detector]
    scan.StudyDate, scan.StudyTime, scan.StudyID = "20200101", "000000", "1"
    scan.SeriesNumber, scan.InstanceNumber = 1, 1
    for empty in ("PatientBirthDate", "PatientSex", "ReferringPhysicianName",
                  "AccessionNumber", "Laterality", "PatientOrientationCodeSequence",
                  "PatientGantryRelationshipCodeSequence", "EnergyWindowInformationSequence",
                  "RadiopharmaceuticalInformationSequence"):
        setattr(scan, empty, [] if empty.endswith("Sequence") else None)
    scan.PixelData = counts_HW.astype("<u2").tobytes()
    scan.save_as(path, enforce_file_format=True)


def is_dicom(content: bytes) -> bool:
    """Whether the first 132 bytes of a file, or more, are of a DICOM file, with or without preamble."""
    return content[128:132] == b"DICM" or content[:2] in (b"\x02\0", b"\x08\0")


def _header(content: bytes) -> Dataset:
    if not is_dicom(content):
        raise NotTaken("is not a DICOM file")
    header = pydicom.dcmread(BytesIO(content), force=True)
    if header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise NotTaken("is a DICOMDIR, an index of files that are read themselves")
    if "TransferSyntaxUID" not in header.file_meta:
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return header


def _refuse(header: Dataset, modality: str | None) -> None:
    """Raise NotTaken for an object that is no scan of the wanted modality."""
    found = str(header.get("Modality", "") or "none")
    if modality and found != modality:
        raise NotTaken(f"Modality is {found if found in MODALITIES else 'another'}, not {modality}")
    if not any(k in header for k in PIXELS):
        raise NotTaken("has no pixel data")
    if header.get("SamplesPerPixel", 1) not in (1, None) or header.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise NotTaken("is a colour image, not counts")
    kind = header.get("ImageType") or []
    if found == "NM" and len(kind) > 2 and not isinstance(kind, str) and kind[2] in NOT_PLANAR:
        raise NotTaken(f"is {kind[2]}, not a planar scan")
    size = int(header.Rows) * int(header.Columns) * int(header.get("NumberOfFrames", 1) or 1)
    if not 0 < size <= MOST_PIXELS:
        raise NotTaken(f"says it has {size} pixels, which is not between 1 and {MOST_PIXELS}")


def _counts(header: Dataset) -> Array:
    """All frames, uint16, shape (N, H, W)."""
    try:
        values = pixel_array(header)
        if any(k in header for k in ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence")):
            values = np.asarray(apply_modality_lut(values, header), np.float64)
    except Exception:
        uid = header.file_meta.TransferSyntaxUID
        syntax = uid.name if uid.name != str(uid) else "unknown"
        raise NotTaken(f"no decoder reads its pixels (transfer syntax {syntax})") from None
    counts = counts_of(values)
    return counts[None] if counts.ndim == 2 else counts


def _turned(header: Dataset, counts_HW: Array) -> bool:
    """Whether uptake is low where it should be high.

    MONOCHROME1 says how to show values (PS3.3 C.7.6.3.1.2): it stands at counts that are to be dark on white, and at
    pictures that were turned over. The border of the picture, which is air, tells them apart.
    """
    border_N = np.concatenate([counts_HW[0], counts_HW[-1], counts_HW[:, 0], counts_HW[:, -1]])
    middle = (float(counts_HW.min()) + float(counts_HW.max())) / 2
    return header.get("PhotometricInterpretation") == "MONOCHROME1" and float(np.median(border_N)) > middle


def counts_of(values: Array) -> Array:
    """Any real values as uint16 counts: negatives clipped to 0, rounded.

    Raises:
        NotTaken: a value is not finite or above 65535, none is above 0, or all are small fractions.
    """
    top = values.max()
    if not np.isfinite(top) or top > np.iinfo(np.uint16).max or (values.dtype.kind == "f" and np.isnan(values).any()):
        raise NotTaken("holds values that are no counts (not finite or above 65535)")
    if round(float(top)) <= 0:
        raise NotTaken("is empty: no count above 0")
    if values.dtype.kind == "u":
        return np.asarray(values, np.uint16)
    counts = np.rint(np.maximum(values, 0))
    if top < LEAST_FRACTIONS and (np.abs(values - counts)[values > 0] > 1e-6).any():
        raise NotTaken(f"holds fractions up to {top:.3g} that rounding would destroy; scale them to counts")
    return counts.astype(np.uint16)
