"""What a DICOM header says about a scan: whose it is, its view, its spacing, its scanner, and what to be wary of."""

from __future__ import annotations

import re
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

# CID 26 (PS3.16) as SNOMED CT and, in older exports, SNOMED RT; antero-posterior and postero-anterior stand for the
# views, as nuclear medicine uses them.
VIEW_CODES = {"399321004": "anterior", "G-5215": "anterior", "399348003": "anterior", "R-10206": "anterior",
              "399001007": "posterior", "G-5216": "posterior", "272460009": "posterior", "R-10214": "posterior"}
MAKERS = ("ge", "siemens", "philips", "mediso", "spectrum", "digirad", "toshiba", "canon", "adac", "picker", "elscint",
          "sopha", "marconi", "raybone")
# A planar scan is STATIC or WHOLE BODY; these are not (ImageType value 3, PS3.3 C.8.4.9.1.1).
NOT_PLANAR = ("DYNAMIC", "GATED", "TOMO", "GATED TOMO", "RECON TOMO", "RECON GATED TOMO")


def patient_of(header: Dataset) -> str:
    """What tells this patient from others: the id with its issuer, else name and birth date, else nothing."""
    patient, issuer, name, birth = (str(header.get(k, "") or "").strip() for k in (
        "PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate"))
    if patient:
        return f"{issuer}:{patient}" if issuer else patient
    return f"{name}:{birth}" if name and birth else ""


def views_of(header: Dataset, frames: int, file_name: str) -> list[str]:
    """anterior, posterior or unknown for each frame.

    The first that speaks decides: the detector's coded view (PS3.3 C.8.4.11, CID 26), its orientation to the patient,
    its start angle; the scan's own coded view, orientation and view position; the words of its descriptions; the name
    of its file. Two frames without a detector's word are told by the order in which the words name both views.
    """
    detectors = header.get("DetectorInformationSequence") or []
    sure = [_coded(d) or _geometry(d) for d in detectors]
    told = [view or _angle(d) for view, d in zip(sure, detectors)]
    vector = numbers(header.get("DetectorVector"), int)
    if len(vector) == frames and vector and 1 <= min(vector) <= max(vector) <= len(told):
        views = [told[n - 1] for n in vector]
    else:
        views = told if len(told) == frames else [""] * frames
    if frames == 1 and not views[0]:
        views = [_coded(header) or _geometry(header) or _position(header)]
    described = " ".join(str(header.get(k, "") or "") for k in ("ImageID", "SeriesDescription", "ProtocolName"))
    for words in (described, file_name):
        named = _named(words)
        if len(named) == frames and told != sure and views != named:
            return ["unknown"] * frames  # vendors do not agree on where angles start
        if not any(views) and len(named) == frames:
            views = named
    return [v or "unknown" for v in views]


def pixel_mm_of(header: Dataset) -> tuple[float | None, bool]:
    """Height of a pixel in mm, and whether it is square (PS3.3 10.7.1.1).

    Detector-plane spacing is the patient's for a parallel-hole collimator; one value stands for both directions.
    """
    places = [header, *(m for g in header.get("SharedFunctionalGroupsSequence") or []
                        for m in g.get("PixelMeasuresSequence") or [])]
    for place in places:
        for keyword in ("PixelSpacing", "ImagerPixelSpacing", "DetectorElementSpacing", "NominalScannedPixelSpacing"):
            spacing = numbers(place.get(keyword), float)
            if spacing and all(0 < s < 1000 for s in spacing):
                return spacing[0], abs(spacing[0] - spacing[-1]) <= 0.01 * spacing[0]
    return None, True


def scanner_of(header: Dataset) -> tuple[str, str, str]:
    """(site, scanner, make): the first two as the header has them, for a pseudonym; the make off a list of makers."""
    site, maker, model = (str(header.get(k, "") or "").strip() for k in (
        "InstitutionName", "Manufacturer", "ManufacturerModelName"))
    words = re.findall(r"[a-z]+", maker.lower())
    return site, f"{maker}|{model}".strip("|"), next((m for m in MAKERS if m in words), "scanner")


def flags_of(header: Dataset) -> list[str]:
    """What the header itself warns of: burned-in-text, lossy."""
    flags = []
    if str(header.get("BurnedInAnnotation", "")).upper() == "YES":
        flags.append("burned-in-text")
    if str(header.get("LossyImageCompression", "")) == "01":
        flags.append("lossy")
    return flags


def numbers(value: Any, kind: type) -> list[Any]:
    """The numbers of an element of any multiplicity; none when it is empty."""
    if value is None or value == "":
        return []
    return [kind(v) for v in (value if isinstance(value, list | tuple | MultiValue) else [value])]


def _coded(place: Dataset) -> str:
    for code in place.get("ViewCodeSequence") or []:
        known = VIEW_CODES.get(str(code.get("CodeValue", "")))
        named = _named(str(code.get("CodeMeaning", "")))
        if known or len(named) == 1:
            return known or named[0]
    return ""


def _geometry(place: Dataset) -> str:
    """From the direction into the image; patient coordinates grow to left, back and head (PS3.3 C.7.6.2)."""
    letters = [str(v)[:1] for v in numbers(place.get("PatientOrientation"), str)]
    if letters in (["L", "F"], ["R", "F"]):
        return "anterior" if letters[0] == "L" else "posterior"
    cosines = numbers(place.get("ImageOrientationPatient"), float)
    if len(cosines) != 6:
        return ""
    into_the_back = cosines[2] * cosines[3] - cosines[0] * cosines[5]
    return "anterior" if into_the_back > 0.7 else "posterior" if into_the_back < -0.7 else ""


def _angle(detector: Dataset) -> str:
    """Zero degrees is at the patient's back (PS3.3 C.8.4.11, Start Angle)."""
    angle = numbers(detector.get("StartAngle"), float)
    return {0: "posterior", 180: "anterior"}.get(round(angle[0]) % 360, "") if angle else ""


def _position(header: Dataset) -> str:
    words = str(header.get("ViewPosition", "") or "").upper()
    named = _named(words)
    return {"AP": "anterior", "PA": "posterior"}.get(words, named[0] if len(named) == 1 else "")


def _named(words: str) -> list[str]:
    """The views that a text names, in its order; nothing when one is named twice."""
    words = words.upper()
    if re.search(r"OBL|(?<![A-Z])(LAT|[LR]AO|[LR]PO|[LR]L)(?![A-Z])|LATERAL", words):
        return []
    # "3h post", "post injection", "post therapy" are times, not views.
    words = re.sub(r"\d\s*(H|HRS?|HOURS?|MIN)[\s_-]*POST", "", words)
    words = re.sub(r"POST[\s_-]*(INJ|THER|OP|TREAT|RT|CHEMO|SURG|VOID|MI[CK]T)", "", words)
    found = re.findall(r"(?<![A-Z])(ANT|POST)(?:ERIOR)?(?![A-Z])", words)
    views = ["anterior" if f == "ANT" else "posterior" for f in found]
    return views if len(set(views)) == len(views) else []
