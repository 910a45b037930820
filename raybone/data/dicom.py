"""DICOM bone scans to arrays of counts, and back for the phantom."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_modality_lut, pixel_array
from pydicom.uid import ExplicitVRLittleEndian, NuclearMedicineImageStorage, generate_uid

from raybone.records import Array


class NotTaken(ValueError):
    """An input that is not a scan; the message is its reason and holds nothing from the file's identity."""


@dataclass(frozen=True)
class Frame:
    """One view out of a DICOM object: counts uint16 of shape (H, W), and what is known about it."""

    counts_HW: Array
    patient: str
    view: str
    pixel_mm: float | None
    site: str
    study: str


def read_frames(path: Path, modality: str | None = "NM") -> list[Frame]:
    """Every frame of a DICOM file as counts.

    Modality rescale is applied (PS3.3 C.11.1), MONOCHROME1 is turned over, negatives are clipped to 0,
    values are rounded; nothing is cropped or resampled.

    Args:
        path: a file, with any name.
        modality: take only this Modality (0008,0060), or any when None.
    Raises:
        NotTaken: it is no DICOM, another modality, has no pixels, or no decoder reads them.
    """
    try:
        dataset = pydicom.dcmread(path)
    except InvalidDicomError:
        raise NotTaken("is not a DICOM file") from None
    except Exception as error:
        raise NotTaken(f"DICOM header cannot be read ({type(error).__name__})") from None
    found = str(dataset.get("Modality", "") or "none")
    if modality and found != modality:
        raise NotTaken(f"Modality is {found if re.fullmatch(r'[A-Z0-9]{1,16}', found) else 'odd'}, not {modality}")
    if "PixelData" not in dataset:
        raise NotTaken("has no pixel data")
    if dataset.get("SamplesPerPixel", 1) not in (1, None):
        raise NotTaken("is a colour image, not counts")
    frames_NHW = _counts(dataset)
    try:
        views, pixel_mm, site = _views(dataset, len(frames_NHW)), _pixel_mm(dataset), _site(dataset)
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise NotTaken(f"DICOM header holds a value that cannot be read ({type(error).__name__})") from None
    patient, study = (str(dataset.get(k, "") or "") for k in ("PatientID", "StudyInstanceUID"))
    return [Frame(frame, patient, view, pixel_mm, site, study) for frame, view in zip(frames_NHW, views)]


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
    scan.DetectorVector, scan.NumberOfDetectors = 1, 1
    code = Dataset()
    code.CodeValue = {"anterior": "R-10206", "posterior": "R-10214"}[view]
    code.CodingSchemeDesignator, code.CodeMeaning = "SRT", view.capitalize()
    detector = Dataset()
    detector.ViewCodeSequence = [code]
    scan.DetectorInformationSequence = [detector]
    scan.PixelData = counts_HW.astype("<u2").tobytes()
    scan.save_as(path, enforce_file_format=True)


def _counts(dataset: Dataset) -> Array:
    """All frames, uint16, shape (N, H, W)."""
    try:
        values = pixel_array(dataset)
    except Exception:
        syntax = dataset.file_meta.TransferSyntaxUID.name if "TransferSyntaxUID" in dataset.file_meta else "unknown"
        raise NotTaken(f"no decoder reads its pixels (transfer syntax {syntax})") from None
    values = np.asarray(apply_modality_lut(values, dataset), np.float64)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        values = values.max() + values.min() - values
    if not np.isfinite(values).all() or values.max() > np.iinfo(np.uint16).max:
        raise NotTaken("holds values that are no counts (not finite or above 65535)")
    if values.max() <= 0:
        raise NotTaken("is empty: no count above 0")
    counts = np.rint(np.clip(values, 0, None)).astype(np.uint16)
    return counts[None] if counts.ndim == 2 else counts


def _views(dataset: Dataset, frames: int) -> list[str]:
    """anterior, posterior or unknown for each frame: from the coded view, else from the series' own words."""
    detectors = dataset.get("DetectorInformationSequence") or []
    coded = [_view_of(" ".join(str(c.get("CodeMeaning", "")) for c in d.get("ViewCodeSequence") or []))
             for d in detectors]
    vector = _numbers(dataset.get("DetectorVector"))
    if frames > 1 and len(vector) == frames and 1 <= min(vector) <= max(vector) <= len(coded):
        return [coded[n - 1] for n in vector]
    if len(coded) == frames and "unknown" not in coded:
        return coded
    words = " ".join(str(dataset.get(k, "")) for k in ("ImageID", "SeriesDescription", "ViewPosition"))
    return [_view_of(words)] * frames if frames == 1 else ["unknown"] * frames


def _view_of(words: str) -> str:
    found = set()
    if re.search(r"\bANT(ERIOR)?\b", words.upper()):
        found.add("anterior")
    if re.search(r"\bPOST?(ERIOR)?\b", words.upper()):
        found.add("posterior")
    return found.pop() if len(found) == 1 else "unknown"


def _pixel_mm(dataset: Dataset) -> float | None:
    """Pixel side in mm (PS3.3 10.7.1.1); detector-plane spacing is the same for a parallel-hole collimator."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "DetectorElementSpacing"):
        value = _numbers(dataset.get(keyword), float)
        if value and value[0] > 0:
            return float(value[0])
    return None


def _site(dataset: Dataset) -> str:
    """The scanner's make, never the hospital's name."""
    words = f"{dataset.get('Manufacturer', '')} {dataset.get('ManufacturerModelName', '')}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "unknown"


def _numbers(value: Any, kind: type = int) -> list[Any]:
    if value is None or value == "":
        return []
    many = value if isinstance(value, list | tuple | pydicom.multival.MultiValue) else [value]
    return [kind(v) for v in many]
