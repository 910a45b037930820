"""What kind of image a scan is, where it is no nuclear medicine: a flag, and which way round it is
drawn.
"""

from __future__ import annotations

from collections.abc import Iterable

# Defined terms of Modality (PS3.3 C.7.3.1.1.1) that meet in a nuclear medicine archive; others are
# not repeated.
MODALITIES = (
    "CR",
    "CT",
    "DX",
    "ECG",
    "KO",
    "MG",
    "MR",
    "NM",
    "OT",
    "PR",
    "PT",
    "REG",
    "RF",
    "RTDOSE",
    "RTPLAN",
    "RTSTRUCT",
    "SC",
    "SEG",
    "SR",
    "ST",
    "US",
    "XA",
    "XC",
    "DOC",
    "none",
)
FLAG = "modality-"
DARK_ON_WHITE = {"NM", "PT", "ST", "none"}  # tracers, and files that name no modality


def flag_of(modality: str) -> list[str]:
    """The flag of a scan of this Modality; none for NM, which scans are unless they say otherwise.

    >>> flag_of("CT")
    ['modality-CT']
    """
    return [] if modality == "NM" else [FLAG + (modality if modality in MODALITIES else "other")]


def modality_in(flags: Iterable[str]) -> str:
    """The Modality that a scan's flags name, else NM."""
    return next((f.removeprefix(FLAG) for f in flags if f.startswith(FLAG)), "NM")


def shades(flags: Iterable[str]) -> str:
    """matplotlib's colour map for a scan with these flags: dark on white for tracers, bright on
    black for the rest.
    """
    return "gray_r" if modality_in(flags) in DARK_ON_WHITE else "gray"


def words_of(scans: Iterable[Iterable[str]]) -> str:
    """The modalities of scans, given by their flags, in words."""
    names = sorted({modality_in(flags) for flags in scans})
    said = {
        "NM": "nuclear medicine (NM)",
        "none": "a modality that is not said",
        "other": "another modality",
    }
    return " and ".join(said.get(name, name) for name in names)
