"""Whether a DICOM object is a planar scan of counts, by all that says what it is: any one element
may be missing.
"""

from __future__ import annotations

import re

from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID, NuclearMedicineImageStorage

from raybone.data.ingest.dicom.header import NotTaken, numbers, text, values
from raybone.data.modality import MODALITIES

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
NM_CLASSES = (
    NuclearMedicineImageStorage,
    UID("1.2.840.10008.5.1.4.1.1.5"),
)  # the second is retired
CAPTURES = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture, with its multi-frame classes below it
# What frames run over that are no planar scans (PS3.3 C.8.4.8), by the vector that the Frame
# Increment Pointer names.
KIND_OF_VECTOR = {
    "RotationVector": "TOMO",
    "AngularViewVector": "TOMO",
    "SliceVector": "RECON TOMO",
    "PhaseVector": "DYNAMIC",
    "TimeSliceVector": "DYNAMIC",
    "RRIntervalVector": "GATED",
    "TimeSlotVector": "GATED",
}
# The same where Image Type is cut and vectors are gone: modules that planar scans lack, and numbers
# that are 1 in them.
KIND_OF_MODULE = {
    "RotationInformationSequence": "TOMO",
    "NumberOfRotations": "TOMO",
    "GatedInformationSequence": "GATED",
    "PhaseInformationSequence": "DYNAMIC",
}
KIND_OF_NUMBER = {
    "NumberOfSlices": "RECON TOMO",
    "NumberOfTimeSlots": "GATED",
    "NumberOfRRIntervals": "GATED",
    "NumberOfPhases": "DYNAMIC",
    "NumberOfTimeSlices": "DYNAMIC",
}


def check_object(header: Dataset, modality: str | None) -> None:
    """Whether the object may be a scan of the wanted modality, or any when None.

    Raises:
        NotTaken: it is of another modality or class, has no pixels, is in colour, or a picture for
            the screen.
    """
    sop_class, found = _class(header), modality_of(header)
    known = sop_class.name if sop_class.type == "SOP Class" else ""
    if modality and found != modality:
        raise NotTaken(f"Modality is {found if found in MODALITIES else 'another'}, not {modality}")
    if not any(k in header for k in PIXELS):
        raise NotTaken(
            f"has no pixel data{f', as it is {known}' if known and known not in NM_CLASSES else ''}"
        )
    colours = text(header, "PhotometricInterpretation").upper()
    if numbers(header, "SamplesPerPixel") not in ([], [1]) or re.match(
        "PALETTE|RGB|ARGB|YBR|HSV|CMYK", colours
    ):
        raise NotTaken("is a colour image, not counts")
    counts = _said(header) and max(numbers(header, "BitsStored"), default=16) > 8
    if captured(header) and not counts and modality not in (None, "OT", "SC"):
        raise NotTaken(
            "is a Secondary Capture, a picture windowed for the screen and not counts; export the "
            "scan itself, or take it with --modality any"
        )
    if (
        found == "NM"
        and known
        and sop_class not in NM_CLASSES
        and not sop_class.startswith(CAPTURES)
    ):
        raise NotTaken(f"is {known}, not a planar scan")


def check_planar(header: Dataset, frames: int) -> list[str]:
    """Flags of a nuclear medicine object that is a planar scan, or may be one: derived,
    kind-unknown.

    Raises:
        NotTaken: Image Type, the Frame Increment Pointer, a vector or a module says otherwise
            (PS3.3 C.8.4.8, C.8.4.9).
    """
    kind, said = _image_type(header), _said(header)
    words = {w for v in kind for w in v.split()}
    if "TRANSMISSION" in words:
        raise NotTaken("is TRANSMISSION, not an emission scan")
    named = " ".join(
        w
        for w in ("RECON", "GATED", "TOMO", "DYNAMIC", "LOCALIZER", "MIP")
        if w in words and not said
    )
    named = named or _kind_of_frames(header, frames, said)
    if named:
        raise NotTaken(f"is {named}, not a planar scan")
    if not said and frames > max(2, _told_apart(header, frames)):
        raise NotTaken(
            f"has {frames} frames, and neither Image Type nor Frame Increment Pointer says what "
            "they are"
        )
    return ["derived"] * ("DERIVED" in kind) + ["kind-unknown"] * (not said)


def captured(header: Dataset) -> bool:
    """Whether its class, or what only such objects have, makes it a Secondary Capture: most are
    pictures of a screen.

    One that calls itself a planar scan and has more than 8 bits holds counts, as NEMA's sample NM1
    does.
    """
    return (
        _class(header).startswith(CAPTURES)
        or bool(text(header, "ConversionType"))
        or any("SCREEN" in v for v in _image_type(header))
    )


def modality_of(header: Dataset) -> str:
    """Modality, or that of its class where it is missing; ``none`` where both are."""
    return text(header, "Modality").upper() or ("NM" if _class(header) in NM_CLASSES else "none")


def _class(header: Dataset) -> UID:
    return UID(text(header, "SOPClassUID") or text(header.file_meta, "MediaStorageSOPClassUID"))


def _image_type(header: Dataset) -> list[str]:
    return [re.sub(r"[\W_]+", " ", str(v)).strip().upper() for v in values(header, "ImageType")]


def _said(header: Dataset) -> bool:
    """Whether Image Type says that it is a planar scan."""
    return bool({"STATIC", "WHOLE BODY", "WHOLEBODY"} & set(_image_type(header)))


def _kind_of_frames(header: Dataset, frames: int, said: bool) -> str:
    """What else than views the frames are; nothing when they may be views."""
    pointer = {
        keyword_for_tag(Tag(v))
        for v in values(header, "FrameIncrementPointer")
        if isinstance(v, int)
    }
    for keyword, kind in KIND_OF_VECTOR.items():
        vector, pointed = numbers(header, keyword), keyword in pointer
        runs = len(set(vector)) > 1 if len(vector) == frames else pointed
        # One frame of a dynamic or gated study may be the sum of all; one of a rotation or volume
        # is a part of it.
        if (frames > 1 and runs and (pointed or not said)) or (pointed and kind.endswith("TOMO")):
            return kind
    if said or frames == 1:
        return ""
    signs = [(kind, any(values(header, k))) for k, kind in KIND_OF_MODULE.items()]
    signs += [(kind, any(n > 1 for n in numbers(header, k))) for k, kind in KIND_OF_NUMBER.items()]
    signs.append(("DYNAMIC", bool(pointer & {"FrameTime", "FrameTimeVector"})))
    return next((kind for kind, seen in signs if seen), "")


def _told_apart(header: Dataset, frames: int) -> int:
    """Frames that differ in energy window or detector."""
    vectors = [numbers(header, k) for k in ("EnergyWindowVector", "DetectorVector")]
    return len(set(zip(*(v if len(v) == frames else [0.0] * frames for v in vectors))))
