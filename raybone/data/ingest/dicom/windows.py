"""Which energy window of a nuclear medicine object holds the photopeak: the others count scattered
photons.
"""

from __future__ import annotations

import re

from pydicom.dataset import Dataset

from raybone.data.ingest.dicom.header import items, numbers, one_of_frames, text

# Gamma lines in keV of what bones, and patients beside them, are scanned with, the main one first
# (ICRP 107).
PEAKS = {
    ("TC", "TECHNETIUM", "99"): (140.5,),
    ("I", "IODINE", "123"): (159.0,),
    ("IN", "INDIUM", "111"): (171.3, 245.4),
    ("GA", "GALLIUM", "67"): (93.3, 184.6, 300.2),
    ("TL", "THALLIUM", "201"): (70.8, 167.4),
    ("I", "IODINE", "131"): (364.5,),
    ("LU", "LUTETIUM", "177"): (208.4, 112.9),
    ("SM", "SAMARIUM", "153"): (103.2,),
    ("RE", "RHENIUM", "186"): (137.2,),
    ("RE", "RHENIUM", "188"): (155.0,),
    ("XE", "XENON", "133"): (81.0,),
    ("CO", "COBALT", "57"): (122.1,),
    ("F", "FLUORINE", "18"): (511.0,),
}
TECHNETIUM = PEAKS["TC", "TECHNETIUM", "99"]
LINES = [line for lines in PEAKS.values() for line in lines]
OFF_PEAK = 3  # from this rank on


def photopeak(header: Dataset, frames: int) -> tuple[list[int], list[str]]:
    """The frames of the window that holds the photopeak of the tracer, or of Tc-99m where none is
    named, and flags.

    A window's limits decide, else its name, else its number. Flags: other-windows, when frames are
    left out; windows-unknown, when there are several windows and nothing tells of which each frame
    is; off-peak, when the window taken cannot hold the peak.
    """
    numbered = numbers(header, "EnergyWindowVector")
    windows = one_of_frames(header, "EnergyWindowVector", "EnergyWindowInformationSequence", frames)
    several = max(
        len(items(header, "EnergyWindowInformationSequence")),
        *numbers(header, "NumberOfEnergyWindows"),
        1,
    )
    if len(numbered) != frames:
        return list(range(frames)), ["windows-unknown"] * (frames > 1 and several > 1)
    tracers = _tracers(header) or [TECHNETIUM]
    rank_of = {n: (*_rank(window, tracers), n) for n, window in zip(numbered, windows)}
    taken = min(rank_of, key=lambda n: rank_of[n])
    flags = ["other-windows"] * (len(rank_of) > 1) + ["off-peak"] * (rank_of[taken][0] >= OFF_PEAK)
    return [i for i, n in enumerate(numbered) if n == taken], flags


def _rank(window: Dataset | None, tracers: list[tuple[float, ...]]) -> tuple[int, int, float]:
    """The lower, the likelier it is the photopeak's: 0 by its limits, 1 by its name, 2 for all that
    is known; it is not by its limits at 3, nor by its name at 4.
    """
    if window is None:
        return 2, 0, 0.0
    name = text(window, "EnergyWindowName").upper()
    scatter = re.search(r"SCAT|COMPTON|(?<![A-Z])SC(?![A-Z])", name) and "CORR" not in name
    limits = [
        sorted((low[0], high[0]))
        for part in items(window, "EnergyWindowRangeSequence")
        if (low := numbers(part, "EnergyWindowLowerLimit"))
        and (high := numbers(part, "EnergyWindowUpperLimit"))
        and max(low[0], high[0]) > 0
    ]
    held = [
        (LINES.index(line), abs((low + high) / 2 - line))
        for tracer in _isotopes(name) or tracers
        for line in tracer
        for low, high in limits
        if low <= line <= high
    ]
    if scatter:
        return 4, 0, 0.0
    if held:
        return 0, *min(held)
    if limits:  # scatter lies below the peak
        return 3, 0, -max(high for _, high in limits)
    return (
        2 - bool(_isotopes(name) or re.search(r"PEAK|EMISSION|(?<![A-Z])EM(?![A-Z])", name)),
        0,
        0.0,
    )


def _tracers(header: Dataset) -> list[tuple[float, ...]]:
    """Gamma lines of the tracers that the object names, Tc-99m first."""
    words = [
        text(place, keyword)
        for tracer in items(header, "RadiopharmaceuticalInformationSequence")
        for place, keyword in [
            (tracer, "Radiopharmaceutical"),
            *(
                (code, "CodeMeaning")
                for sequence in ("RadionuclideCodeSequence", "RadiopharmaceuticalCodeSequence")
                for code in items(tracer, sequence)
            ),
        ]
    ]
    return _isotopes(" ; ".join(words).upper())


def _isotopes(words: str) -> list[tuple[float, ...]]:
    """Gamma lines of the isotopes that words name: Tc-99m, 99mTc, ^99m^Technetium, TC99M_EM."""
    return [
        lines
        for (symbol, element, mass), lines in PEAKS.items()
        if re.search(rf"(?<![A-Z])({symbol}|{element})[\W_]*{mass}(?!\d)", words)
        or re.search(rf"(?<!\d){mass}M?[\W_]*({symbol}|{element})(?![A-Z])", words)
    ]
