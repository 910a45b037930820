"""What a DICOM header says about a scan: whose it is, its view, its spacing, its scanner, and what
to be wary of.

Elements are read by ``values``, ``numbers``, ``text`` and ``items``, which give nothing for one
that is absent, empty or not what its type allows: it is unknown then, and costs no scan.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, MutableSequence, Sequence
from functools import cache
from typing import Any

from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

# CID 26 (PS3.16) as SNOMED CT and, in older exports, SNOMED RT; antero-posterior and
# postero-anterior stand for the views, as nuclear medicine uses them.
VIEW_CODES = {
    "399321004": "anterior",
    "G-5215": "anterior",
    "399348003": "anterior",
    "R-10206": "anterior",
    "399001007": "posterior",
    "G-5216": "posterior",
    "272460009": "posterior",
    "R-10214": "posterior",
}
MAKERS = (
    "ge",
    "siemens",
    "philips",
    "mediso",
    "spectrum",
    "digirad",
    "toshiba",
    "canon",
    "adac",
    "picker",
    "elscint",
    "sopha",
    "marconi",
    "raybone",
)
SPACINGS = (
    "PixelSpacing",
    "ImagerPixelSpacing",
    "DetectorElementSpacing",
    "NominalScannedPixelSpacing",
)
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
# The one transfer syntax whose header is compressed as well (PS3.5 A.5)
DEFLATED = b"1.2.840.10008.1.2.1.99"
MOST_DEFLATED = 1 << 28  # bytes
BLANK = " \0\t\r\n"


LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)  # by themselves


class NotTaken(ValueError):
    """An input that is not a scan; the message is its reason and holds nothing from the file's
    identity.
    """


def refuse_bomb(content: bytes) -> None:
    """Raise NotTaken for a deflated DICOM file that unpacks to more than a scan has, before all of
    it is unpacked.
    """
    meta = content[132 if content[128:132] == b"DICM" else 0 :]
    if meta[:4] != b"\x02\0\0\0" or DEFLATED not in meta[:1024]:
        return
    rest = meta[
        12 + int.from_bytes(meta[8:12], "little") :
    ]  # the first element says where the others end (PS3.10 7.1)
    unpacker, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        while rest and size <= MOST_DEFLATED:
            size += len(unpacker.decompress(rest, 1 << 24))
            rest = unpacker.unconsumed_tail
    except zlib.error:
        raise NotTaken("is a deflated DICOM file that is damaged; export it again") from None
    if size > MOST_DEFLATED:
        raise NotTaken(
            f"is a deflated DICOM file that unpacks to over {MOST_DEFLATED} bytes, which is no scan"
        )


def values(place: Dataset, keyword: str | BaseTag) -> list[Any]:
    """The values of an element as they stand."""
    tag = _tag(keyword) if isinstance(keyword, str) else keyword
    raw = place.get_item(tag)
    if raw is None:
        return []
    try:
        value = place[tag].value
    except Exception:  # what its type cannot hold; converters raise what they like
        value = getattr(raw, "value", None)
    if isinstance(value, bytes):  # of an unknown or wrong type
        short = (
            len(value) == 2
            and dictionary_has_tag(tag)
            and dictionary_VR(tag) in ("US", "SS", "US or SS")
        )
        value = int.from_bytes(value, "little") if short else value.decode("latin-1").split("\\")
    return list(value) if isinstance(value, MutableSequence) else [] if value is None else [value]


def numbers(place: Dataset, keyword: str) -> list[float]:
    """The numbers of an element; none where one of its values is no finite number.

    A comma is no character of a decimal string (PS3.5 6.2) and can only be its point.
    """
    found = [str(v).strip(BLANK).replace(",", ".") for v in values(place, keyword)]
    known = [float(v) if NUMBER.fullmatch(v) else math.nan for v in found if v]
    return known if all(map(math.isfinite, known)) else []


def text(place: Dataset, keyword: str) -> str:
    """An element as text, without blanks around it; several values are parted by a backslash, as in
    the file.
    """
    return "\\".join(str(v).strip(BLANK) for v in values(place, keyword)).strip("\\")


def items(place: Dataset, keyword: str | BaseTag) -> list[Dataset]:
    """The items of a sequence."""
    return [v for v in values(place, keyword) if isinstance(v, Dataset)]


def places_of(header: Dataset, frame: int) -> Iterator[Dataset]:
    """Where an element of a frame may stand: in its own functional groups, in those of all frames
    (PS3.3 C.7.6.16), in the object itself; the first that has it counts.
    """
    own = items(header, "PerFrameFunctionalGroupsSequence")[frame : frame + 1]
    for group in (*own, *items(header, "SharedFunctionalGroupsSequence")):
        for tag in list(group.keys()):
            yield from items(group, tag)
        yield group
    yield header


def one_of_frames(header: Dataset, vector: str, sequence: str, frames: int) -> list[Dataset | None]:
    """The item of a sequence that a vector of an NM object names for each frame (PS3.3 C.8.4.8), or
    None.

    Vectors count from 1; one with a 0 in it counts from 0.
    """
    found, known = [round(n) for n in numbers(header, vector)], items(header, sequence)
    places = [n - (0 not in found) for n in found]
    return (
        [known[n] if 0 <= n < len(known) else None for n in places]
        if len(found) == frames
        else [None] * frames
    )


def patient_of(header: Dataset) -> tuple[str, str, str, str]:
    """Id, its issuer, name and birth date, as the header has them; an id that HL7 wrote
    (id^^^issuer) is parted.
    """
    patient, _, more = text(header, "PatientID").partition("^^^")
    issuer = text(header, "IssuerOfPatientID") or re.split("[&^]", more)[0]
    return patient.strip(BLANK), issuer, _name(header), text(header, "PatientBirthDate")


def views_of(
    header: Dataset, frames: int, file_name: str, kept: Sequence[int] | None = None
) -> list[str]:
    """anterior, posterior or unknown for each frame, or for those that are kept.

    The first that speaks decides: the detector's coded view (PS3.3 C.8.4.11, CID 26), its
    orientation to the patient, its start angle; the scan's own coded view, orientation and view
    position; the words of its descriptions; the name of its file. Two frames without a detector's
    word are told by the order in which the words name both views.
    """
    all_detectors = detectors_of(header, frames)
    detectors = [all_detectors[n] for n in (range(frames) if kept is None else kept)]
    sure = [(_coded(d) or _geometry(d)) if d else "" for d in detectors]
    views = [view or (_angle(d) if d else "") for view, d in zip(sure, detectors)]
    angled = views != sure
    if len(views) == 1 and not views[0]:
        views = [_coded(header) or _geometry(header) or _position(header)]
    described = " ".join(text(header, k) for k in ("ImageID", "SeriesDescription", "ProtocolName"))
    for words in (described, file_name):
        named = _named(words)
        if len(named) == len(views) and angled and views != named:
            return ["unknown"] * len(views)  # vendors do not agree on where angles start
        if not any(views) and len(named) == len(views):
            views = named
    return [v or "unknown" for v in views]


def detectors_of(header: Dataset, frames: int) -> list[Dataset | None]:
    """The detector of each frame; without a vector that tells, as many detectors as frames are
    taken in their order.
    """
    named, known = (
        one_of_frames(header, "DetectorVector", "DetectorInformationSequence", frames),
        items(header, "DetectorInformationSequence"),
    )
    return [*known] if None in named and len(known) == frames else named


def axes_of(header: Dataset, frame: int, frames: int) -> tuple[float, ...] | None:
    """Direction cosines of a frame's rows and columns (PS3.3 C.7.6.2), of its detector or
    functional group first.
    """
    detector = detectors_of(header, frames)[frame]
    places = [*([detector] if detector else []), *places_of(header, frame)]
    for place in places[
        : len(places) - (frames > 1)
    ]:  # one orientation of the whole object is not that of each frame
        cosines = numbers(place, "ImageOrientationPatient")
        if len(cosines) == 6 and any(cosines[:3]) and any(cosines[3:]):
            return tuple(cosines)
    return None


def head_down(header: Dataset, frame: int, frames: int) -> bool:
    """Whether the first row is at the feet, by the orientation (PS3.3 C.7.6.2, C.7.6.1.1.1)."""
    if axes := axes_of(header, frame, frames):
        return axes[5] > 0.7  # patient coordinates grow to the head
    letters = text(header, "PatientOrientation").split("\\")
    return letters[-1][:1] == "H" and len(letters) == 2


def spacing_of(header: Dataset, frame: int = 0) -> tuple[float, float] | None:
    """Height and width of a frame's pixels in mm (PS3.3 10.7.1.1), or None where nothing says them.

    Detector-plane spacing is the patient's for a parallel-hole collimator; one value stands for
    both directions.
    """
    for place in places_of(header, frame):
        for keyword in SPACINGS:
            spacing = numbers(place, keyword)
            if len(spacing) in (1, 2) and all(0 < s < 1000 for s in spacing):
                return spacing[0], spacing[-1]
    return None


def pixel_mm_of(header: Dataset, frame: int = 0) -> tuple[float | None, bool]:
    """Height of a pixel in mm, and whether it is square."""
    height, width = spacing_of(header, frame) or (None, 0.0)
    return height, height is None or abs(height - width) <= 0.01 * height


def scanner_of(header: Dataset) -> tuple[str, str, str]:
    """(site, scanner, make): the first two as the header has them, for a pseudonym; the make off a
    list of makers.
    """
    site, maker, model = (
        text(header, k) for k in ("InstitutionName", "Manufacturer", "ManufacturerModelName")
    )
    words = re.findall(r"[a-z]+", maker.lower())
    return site, f"{maker}|{model}".strip("|"), next((m for m in MAKERS if m in words), "scanner")


def flags_of(header: Dataset) -> list[str]:
    """What the header itself warns of: burned-in-text, lossy."""
    return [
        flag
        for keyword, value, flag in (
            ("BurnedInAnnotation", "YES", "burned-in-text"),
            ("LossyImageCompression", "01", "lossy"),
        )
        if text(header, keyword).upper() == value
        or (flag == "lossy" and header.file_meta.TransferSyntaxUID in LOSSY)
    ]


@cache
def _tag(keyword: str) -> BaseTag:
    return Tag(keyword)


def _name(header: Dataset) -> str:
    """The patient's name; where its character set is absent or wrong, as the first that its bytes
    fit.
    """
    element = header.get_item(_tag("PatientName"))  # before its bytes are converted
    raw, found = (
        getattr(element, "value", b""),
        re.sub(r"\x1b[$()-]*[0-9A-Z]", "", text(header, "PatientName")),
    )
    if not isinstance(raw, bytes) or (b"\x1b" not in raw and raw.isascii()):
        return found
    declared = convert_encodings([str(v) for v in values(header, "SpecificCharacterSet")] or [""])
    if set(declared) != {default_encoding} and "\ufffd" not in found:
        return found
    for encoding in ("iso2022_jp_2" if b"\x1b" in raw else "utf-8", "gb2312"):
        try:
            return raw.decode(encoding).strip(BLANK)
        except UnicodeDecodeError:
            continue
    return raw.decode("latin-1").strip(BLANK)


def _coded(place: Dataset) -> str:
    for code in items(place, "ViewCodeSequence"):
        known = VIEW_CODES.get(text(code, "CodeValue"))
        named = _named(text(code, "CodeMeaning"))
        if known or len(named) == 1:
            return known or named[0]
    return ""


def _geometry(place: Dataset) -> str:
    """From the direction into the image; patient coordinates grow to left, back and head (PS3.3
    C.7.6.2).
    """
    letters = [v[:1] for v in text(place, "PatientOrientation").split("\\")]
    if letters in (["L", "F"], ["R", "F"]):
        return "anterior" if letters[0] == "L" else "posterior"
    cosines = numbers(place, "ImageOrientationPatient")
    if len(cosines) != 6:
        return ""
    into_the_back = cosines[2] * cosines[3] - cosines[0] * cosines[5]
    return "anterior" if into_the_back > 0.7 else "posterior" if into_the_back < -0.7 else ""


def _angle(detector: Dataset) -> str:
    """Zero degrees is at the patient's back (PS3.3 C.8.4.11, Start Angle)."""
    angle = numbers(detector, "StartAngle")
    return {0: "posterior", 180: "anterior"}.get(round(angle[0]) % 360, "") if angle else ""


def _position(header: Dataset) -> str:
    words = text(header, "ViewPosition").upper()
    named = _named(words)
    return {"AP": "anterior", "PA": "posterior"}.get(words, named[0] if len(named) == 1 else "")


def _named(words: str) -> list[str]:
    """The views that a text names, in its order; nothing when one is named twice."""
    words = words.upper()
    if re.search(r"OBL|(?<![A-Z])(LAT|[LR]AO|[LR]PO|[LR]L)(?![A-Z])|LATERAL", words):
        return []
    # "3h post", "post injection", "post therapy" are times, not views.
    words = re.sub(r"\d\s*(H|HRS?|HOURS?|MIN)[\s_-]*POST", "", words)
    words = re.sub(
        r"POST[\s_-]*(INJ|THER|OP|TREAT|RT|RAD|CHEMO|CONTR|SURG|VOID|MI[CK]T|\d+\s*(H|MIN))",
        "",
        words,
    )
    found = re.findall(r"(?<![A-Z])(ANT|POST)(?:ERIOR)?(?![A-Z])", words)
    views = ["anterior" if f == "ANT" else "posterior" for f in found]
    return views if len(set(views)) == len(views) else []
