"""One input, read in a process of its own: its counts stored, its annotations fitted, nothing
raised.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from pathlib import Path

from raybone.data.annotations import NO_SCAN, Annotated, Remarks, fitted
from raybone.data.ingest.annotations.coco import read_coco_image
from raybone.data.ingest.annotations.formats import labelme_image, read_labelme, read_voc
from raybone.data.ingest.annotations.masks import read_mask
from raybone.data.ingest.annotations.nifti import read_nifti
from raybone.data.ingest.annotations.yolo import read_yolo
from raybone.data.ingest.dicom.frames import Facts, NotTaken, is_dicom, read_frames, shows_text
from raybone.data.ingest.dicom.segments import Mark, instance_of, is_segmentation, read_marks
from raybone.data.ingest.persons import Claim
from raybone.data.ingest.pictures import counts_of_image
from raybone.data.ingest.plugins import read_by_plugin
from raybone.data.ingest.sources import Beside, Source, is_image
from raybone.data.modality import flag_of
from raybone.data.preprocess import STRIDE
from raybone.data.writer import store
from raybone.types import Array, Lesion, Scan

MOST_BYTES = 1 << 31
TOLD_APART = "has two annotations that differ; keep the one that is right"
EQUAL_PX = 1.0  # two tools round the corners of one box differently
Views = Sequence[tuple[Array, Facts]]


@dataclass(frozen=True)
class Frame:
    """A frame of an input that is a scan, its counts stored.

    name: of the input, below SOURCE. facts: what the input says of it. digest: of its pixels. scan:
    what the dataset will have of it. claim: whose it says it is, and study: of which it is a view;
    empty as long as only the input was looked at.
    """

    name: str
    facts: Facts
    digest: str
    scan: Scan
    claim: Claim = Claim()  # noqa: RUF009  a frozen tuple
    study: str = ""


@dataclass(frozen=True)
class Read:
    """What an input gave: frames, or the reason for none.

    digest: of its content, empty if unreadable; only its pseudonym is written. marks: what it says
    of other inputs; None if it is no annotation. instance: SOP Instance UID of a DICOM object
    without frames.
    """

    digest: str
    bytes: int
    frames: tuple[Frame, ...] = ()
    reason: str = ""
    remarks: Remarks = field(default_factory=Remarks)
    marks: tuple[Mark, ...] | None = None
    instance: str = ""


def read_source(
    source: Source,
    folder: Path,
    modality: str | None,
    aliases: Mapping[str, str],
    unannotated: str,
) -> Read:
    """Read one input and store the counts of its frames in the dataset folder.

    Args:
        modality: for DICOM, the only Modality taken; None takes all.
        aliases: further names of annotations -> categories of the dataset.
        unannotated: the flag of a frame that nothing annotates.
    """
    try:
        if source.path.is_dir():
            return Read("", 0, reason=source.aside)
        if not source.path.is_file() or source.path.stat().st_size > MOST_BYTES:
            return Read("", 0, reason=source.aside or "is no regular file, or over 2 GiB")
        content = source.path.read_bytes()
    except OSError as error:
        return Read("", 0, reason=f"cannot be read ({type(error).__name__})")
    read = Read(hashlib.sha256(content).hexdigest(), len(content))
    try:
        if source.aside:
            raise NotTaken(source.aside)
        if source.kind != "image" and is_segmentation(content):
            marks, remarks = read_marks(content, aliases)
            return replace(read, marks=marks, remarks=remarks)
        views = _views(source, labelme_image(content) if source.picture else content, modality)
        annotated, remarks = _annotations(source, views, aliases)
    except (
        ValueError
    ) as reason:  # the readers' own, NotTaken among them, which quote nothing of the file
        unread = 0 if source.picture else len(source.beside) + sum(i.weight for i in source.coco)
        lost = () if is_segmentation(content) else None
        read = replace(read, reason=str(reason), instance=instance_of(content))
        return replace(read, remarks=+Remarks({NO_SCAN: unread}), marks=lost)
    except MemoryError:
        return replace(read, reason="is too large for the memory")
    frames = []
    for (counts_HW, facts), lesions in zip(views, annotated):
        # One whose annotation could not be kept is no negative
        apart = "unannotated" if source.beside or source.coco else unannotated
        flags = facts.flags if lesions is not None else (*facts.flags, apart)
        view, spacing = source.view or facts.view, facts.pixel_mm
        scan = Scan("", "", view, 0, 0, spacing, 0, 0.0, flags=flags, labels=source.labels)
        scan, digest = store(folder, counts_HW, replace(scan, lesions=lesions or ()))
        frames.append(Frame(source.name, facts, digest, scan))
    return replace(read, frames=tuple(frames), remarks=remarks)


def _views(source: Source, content: bytes, modality: str | None) -> list[tuple[Array, Facts]]:
    dicom = is_dicom(content)
    if content[:4] == b"PK\x03\x04" and zipfile.is_zipfile(BytesIO(content)):
        raise NotTaken("is an archive inside an archive, or without the suffix .zip")
    if offered := read_by_plugin(content, source.path.name):
        views = list(offered)
    elif source.kind == "dicom" and is_image(source.name) and not dicom:
        raise NotTaken(
            "is a picture that nothing annotates; name it in the column file of a labels.csv, or "
            "choose --layout labelme, if it is a scan"
        )
    elif source.kind == "dicom" or (dicom and source.kind == "any"):
        views = read_frames(content, source.path.name, modality)
    else:
        counts_HW, flags = counts_of_image(content)
        views = [
            (
                counts_HW,
                Facts(
                    source.patient,
                    source.view,
                    source.pixel_mm,
                    flags=(*flags, *flag_of(modality or "NM")),
                ),
            )
        ]
    for number, (counts_HW, facts) in enumerate(views):
        if min(counts_HW.shape) < STRIDE:
            raise NotTaken(
                f"is {counts_HW.shape[0]}x{counts_HW.shape[1]} pixels, under {STRIDE} a side"
            )
        flags_of = {*facts.flags, *(["burned-in-text"] if shows_text(counts_HW) else [])}
        views[number] = (counts_HW, replace(facts, flags=tuple(sorted(flags_of))))
    return views


def _annotations(
    source: Source, views: Views, aliases: Mapping[str, str]
) -> tuple[list[tuple[Lesion, ...] | None], Remarks]:
    """Lesions that all annotations of a scan give each frame, None when there are none, and remarks
    on them.
    """
    shapes = [counts_HW.shape for counts_HW, _ in views]
    first = (shapes[0][0], shapes[0][1])
    parts = [partial(read_coco_image, image, first) for image in source.coco]
    parts += [partial(_beside, beside, views, aliases) for beside in source.beside]
    join = _added if all(b.category for b in source.beside) and not source.coco else together
    kept: list[tuple[Lesion, ...]] = []
    remarks, lost = Remarks(), 0
    for number, read in enumerate(parts):
        fits, more, left_out = _fitted(read(), shapes, aliases)
        kept = list(map(join, kept, fits)) if number else fits
        remarks += more
        lost += left_out
    if not parts or (lost and not any(kept)):
        return [None] * len(views), remarks
    return list(kept), remarks


def _fitted(
    part: Annotated, shapes: Sequence[tuple[int, ...]], aliases: Mapping[str, str]
) -> tuple[list[tuple[Lesion, ...]], Remarks, int]:
    """The lesions of each frame inside its scan, remarks, and how many annotations were left
    out.
    """
    if len(part.frames) != len(shapes):
        raise NotTaken(f"has {len(shapes)} frames, but its annotation is for {len(part.frames)}")
    kept, remarks, lost = [], Remarks(part.remarks), part.lost
    for lesions, (height, width) in zip(part.frames, shapes):
        if part.size and part.size != (height, width):
            raise NotTaken(
                f"is {height}x{width}, but its annotation was made for "
                f"{part.size[0]}x{part.size[1]}"
            )
        inside, changed = fitted(lesions, height, width, aliases)
        kept.append(inside)
        remarks += changed
        lost += len(lesions) - len(inside)
    return kept, remarks, lost


def _beside(beside: Beside, views: Views, aliases: Mapping[str, str]) -> Annotated:
    if beside.kind == "other":
        raise NotTaken(f"has an annotation that {beside.why}")
    try:
        content = beside.path.read_bytes()
    except OSError as error:
        raise NotTaken(
            f"has an annotation that cannot be opened ({error.strerror}); check its permissions"
        ) from None
    shape = (views[0][0].shape[0], views[0][0].shape[1])
    # Numbers that the user has named stand for classes in masks and labels.
    names = dict(beside.names) or {word: (int(word),) for word in aliases if word.isdecimal()}
    if beside.kind == "mask":
        # Those of a further category are of it, whatever their values
        return read_mask(
            content, beside.category, shape, names if beside.category in ("", "malignant") else {}
        )
    if beside.kind == "nifti":
        return read_nifti(content, shape, getattr(views[0][1], "axes", None), names)
    if beside.kind == "yolo":
        return read_yolo(content, shape, names)
    reader: Callable[[bytes, tuple[int, int]], Annotated] = {
        "labelme": read_labelme,
        "voc": read_voc,
    }[beside.kind]
    return reader(content, shape)


def _added(first: tuple[Lesion, ...], second: tuple[Lesion, ...]) -> tuple[Lesion, ...]:
    """Masks of several categories, each of which may be empty."""
    return first + second


def together(first: tuple[Lesion, ...], second: tuple[Lesion, ...]) -> tuple[Lesion, ...]:
    """Two annotations of one scan: of categories of their own, or the same said twice.

    Raises:
        NotTaken: they speak of the same categories and differ, or one of them says that there is
            nothing.
    """
    categories = [{le.category for le in lesions} for lesions in (first, second)]
    if all(categories) and categories[0].isdisjoint(categories[1]):
        return first + second
    if len(first) == len(second) and all(
        map(_alike, sorted(first, key=_place), sorted(second, key=_place))
    ):
        return first if any(le.rle for le in first) else second
    raise NotTaken(TOLD_APART)


def _place(lesion: Lesion) -> tuple[str, float, float]:
    return lesion.category, round(lesion.box_xyxy[1]), round(lesion.box_xyxy[0])


def _alike(a: Lesion, b: Lesion) -> bool:
    near = all(abs(x - y) <= EQUAL_PX for x, y in zip(a.box_xyxy, b.box_xyxy))
    return near and a.category == b.category and a.crowd == b.crowd
