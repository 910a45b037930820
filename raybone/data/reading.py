"""One input, read in a process of its own: its counts stored, its annotations fitted, nothing raised."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from raybone.data.annotations import NO_SCAN, Remarks, fitted
from raybone.data.dataset import Stored, store
from raybone.data.dicom import Facts, NotTaken, counts_of, is_dicom, read_frames, shows_text
from raybone.data.formats import READERS, Annotated, labelme_image, read_mask
from raybone.data.layouts import Source, split_suffix
from raybone.data.preprocess import STRIDE
from raybone.records import Array, Lesion

MOST_BYTES = 1 << 31


@dataclass(frozen=True)
class Taken:
    """One scan of an input; ``lesions`` is None when nothing annotates it."""

    facts: Facts
    stored: Stored
    lesions: tuple[Lesion, ...] | None


@dataclass(frozen=True)
class Read:
    """What an input gave: scans, or the reason for none. ``input_id`` is a hash of its content, empty if unreadable."""

    input_id: str
    bytes: int
    scans: tuple[Taken, ...] = ()
    reason: str = ""
    remarks: Remarks = field(default_factory=Remarks)


def read_source(source: Source, folder: Path, modality: str | None, aliases: Mapping[str, str]) -> Read:
    """Read one input and store the counts of its scans in the dataset folder."""
    try:
        if source.path.is_dir():
            return Read("", 0, reason=source.aside)
        if not source.path.is_file() or source.path.stat().st_size > MOST_BYTES:
            return Read("", 0, reason="is no regular file, or over 2 GiB")
        content = source.path.read_bytes()
    except OSError as error:
        return Read("", 0, reason=f"cannot be read ({type(error).__name__})")
    found = Read("i" + hashlib.sha256(content).hexdigest()[:16], len(content))
    try:
        if source.aside:
            raise NotTaken(source.aside)
        frames = _frames(source, labelme_image(content) if _lone(source) else content, modality)
        lesions, remarks = _annotations(source, [counts_HW.shape for counts_HW, _ in frames], aliases)
    except ValueError as reason:  # the readers' own, NotTaken among them, which quote nothing of the file
        unread = 0 if _lone(source) else len(source.beside)
        return replace(found, reason=str(reason), remarks=+Remarks({NO_SCAN: unread}))
    except MemoryError:
        return replace(found, reason="is too large for the memory")
    taken = (Taken(facts, store(folder, counts_HW), le) for (counts_HW, facts), le in zip(frames, lesions))
    return replace(found, scans=tuple(taken), remarks=remarks)


def _lone(source: Source) -> bool:
    """Whether the input is an annotation that no scan goes with."""
    return any(path == source.path for path, _ in source.beside)


def _frames(source: Source, content: bytes, modality: str | None) -> list[tuple[Array, Facts]]:
    dicom = is_dicom(content)
    if content[:4] == b"PK\x03\x04" and zipfile.is_zipfile(BytesIO(content)):
        raise NotTaken("is an archive inside an archive, or without the suffix .zip")
    if source.kind == "dicom" or (dicom and source.kind == "any"):
        frames = read_frames(content, source.path.name, modality)
    else:
        counts_HW = _image(content)
        frames = [(counts_HW, Facts(source.patient, source.view, source.pixel_mm))]
    for number, (counts_HW, facts) in enumerate(frames):
        if min(counts_HW.shape) < STRIDE:
            raise NotTaken(f"is {counts_HW.shape[0]}x{counts_HW.shape[1]} pixels, under {STRIDE} a side")
        flags = {*facts.flags, *(["burned-in-text"] if shows_text(counts_HW) else [])}
        frames[number] = (counts_HW, replace(facts, flags=tuple(sorted(flags))))
    return frames


def _annotations(source: Source, shapes: list[tuple[int, ...]],
                 aliases: Mapping[str, str]) -> tuple[list[tuple[Lesion, ...] | None], Remarks]:
    """Lesions that all annotations of a scan give each frame, None when there are none, and remarks on them."""
    parts: list[Annotated] = [] if source.lesions is None else [([list(source.lesions)], source.size, Remarks())]
    for path, category in source.beside:
        try:
            note = path.read_bytes()
        except OSError:
            raise NotTaken("has an annotation that cannot be opened") from None
        parts.append(read_mask(note, category) if category else READERS[split_suffix(path.name)[1]](note))
    if not parts:
        return [None] * len(shapes), Remarks()
    found, remarks = [list[Lesion]() for _ in shapes], Remarks()
    for frames, size, more in parts:
        if len(frames) != len(shapes):
            raise NotTaken(f"has {len(shapes)} frames, but its annotation is for {len(frames)}")
        remarks += more
        for lesions, (height, width), kept in zip(frames, shapes, found):
            if size and size != (height, width):
                raise NotTaken(f"is {height}x{width}, but its annotation was made for {size[0]}x{size[1]}")
            inside, changed = fitted(lesions, height, width, aliases)
            kept += inside
            remarks += changed
    return [tuple(kept) for kept in found], remarks


def _image(content: bytes) -> Array:
    """An image file as counts uint16, shape (H, W); colour that is grey is taken as grey, other colour as luminance."""
    try:
        with Image.open(BytesIO(content)) as image:
            pages = getattr(image, "n_frames", 1)
            if pages > 1:
                raise NotTaken(f"has {pages} pages, of which one only would be the scan")
            values = np.asarray(image if image.mode in ("L", "I", "F") or image.mode.startswith("I;16")
                                else image.convert("RGB"))
    except NotTaken:
        raise
    except Exception:  # Pillow raises what its plugins raise
        raise NotTaken("is not an image that can be read") from None
    if values.ndim == 3:
        grey = bool((values == values[..., :1]).all())
        values = values[..., 0] if grey else np.rint(values[..., :3] @ np.array([0.299, 0.587, 0.114]))
    return counts_of(values)
