"""Scans of any kind with annotations of any kind: COCO files wherever they lie, and files for one
scan each.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from raybone.data.annotations import Remarks
from raybone.data.ingest.annotations.claims import OTHERS, SUFFIXES, Claim, claim_of
from raybone.data.ingest.annotations.coco import CocoFile, CocoImage, read_coco_file
from raybone.data.ingest.annotations.names import Ambiguous, Names, split_suffix
from raybone.data.ingest.dicom.frames import is_dicom
from raybone.data.ingest.parallel import Ended, cores, spread
from raybone.data.ingest.sources import Account, Beside, Source, Sources, is_image, spacing_mm

TEXTS = (".txt", ".csv")
MUCH = 32 << 20  # bytes of annotation files from which on it pays to look into them with all cores
BY_NAME = "scan found by its name alone: the folder that its annotation says is not there"
NOT_NAMED = "is named by no COCO file, and lies in no folder of which one names scans"
PREVIEW = "is a picture of the DICOM file of its name"
VIEWS = {"anterior": "anterior", "ant": "anterior", "posterior": "posterior", "post": "posterior"}
UNSAID = ("", "unknown")
NO_VIEW = "view in COCO that is neither anterior nor posterior: not known"
NO_SPACING = "pixel_mm in COCO that is no number of mm: not known"
NOBODY = "is an annotation that no scan answers to"


def read_files(files: Mapping[str, Path], wanted: str) -> Sources:
    """Layouts ``dicom``, ``coco`` and ``labelme``, which differ in what they take as a scan;
    ``auto`` finds out, and ``any`` as well, but takes images where nothing is annotated.

    Args:
        files: every file by its name below the root.
    """
    claims = _claims(files)
    sure = {n for n, c in claims.items() if c.kind != "none"}
    candidates = [n for n in files if n not in sure]
    previews = _previews(candidates, files)
    names = Names([n for n in candidates if n not in previews], lambda n: _is_scan(n, files[n]))
    found = Sources(wanted)
    coco = _coco_of(names, {n: files[n] for n in sorted(sure) if claims[n].kind == "coco"}, found)
    beside = _beside_of(
        names, files, {n: claims[n] for n in sorted(sure) if claims[n].kind != "coco"}, found
    )
    if wanted in ("auto", "any"):
        found.layout = _layout(candidates, coco, beside, sure)
    if wanted == "any" and found.layout == "dicom" and not found.accounts:
        found.layout = "labelme"
    homes = {posixpath.dirname(n) for n in (*coco, *beside)}
    lone = {a.name: a for a in found.accounts if a.lost and not a.many}
    for name in candidates:
        source = replace(
            _known(files[name], name, coco.get(name, ()), found.remarks),
            beside=tuple(beside.get(name, ())),
        )
        aside = PREVIEW if name in previews else claims[name].why if name in claims else ""
        if found.layout == "coco" and not aside and posixpath.dirname(name) not in homes:
            aside = NOT_NAMED
        found.inputs.append(
            replace(source, kind="dicom" if found.layout == "dicom" else "any", aside=aside)
        )
    for name in sorted(set(lone)):
        if claims[name].picture:
            alone = (Beside(files[name], "labelme"),)
            found.inputs.append(Source(files[name], name, beside=alone, picture=True))
        else:
            found.inputs.append(Source(files[name], name, aside=lone[name].why))
    found.accounts = [a for a in found.accounts if a.name not in lone or not claims[a.name].picture]
    found.inputs += [
        Source(files[a.name], a.name, aside=a.why)
        for a in found.accounts
        if a.many and a.lost == a.annotations
    ]
    return found


def _claims(files: Mapping[str, Path]) -> dict[str, Claim]:
    """What each file says of itself that may be an annotation."""
    notes = {n: p for n, p in files.items() if split_suffix(n)[1] in (*SUFFIXES, *OTHERS, *TEXTS)}
    paths = list(notes.values())
    if sum(p.stat().st_size for p in paths if p.is_file()) < MUCH:
        return dict(zip(notes, map(claim_of, paths)))
    found = spread(claim_of, paths, min(cores(), len(paths)))
    return {
        n: Claim("other", why=c.reason) if isinstance(c, Ended) else c for n, c in zip(notes, found)
    }


def _previews(candidates: Sequence[str], files: Mapping[str, Path]) -> set[str]:
    """Images beside a DICOM file of the same stem: one scan, not two."""
    by_stem: dict[str, list[str]] = defaultdict(list)
    for name in candidates:
        by_stem[split_suffix(name)[0]].append(name)
    several = (names for names in by_stem.values() if len(names) > 1)
    return {
        image
        for names in several
        if any(not is_image(n) and _is_scan(n, files[n]) for n in names)
        for image in names
        if is_image(image)
    }


def _is_scan(name: str, path: Path) -> bool:
    """Whether a file is an image by its name, or DICOM by its first bytes."""
    if is_image(name):
        return True
    try:
        with path.open("rb") as file:
            return is_dicom(file.read(132))
    except OSError:
        return False


def _coco_of(names: Names, paths: Mapping[str, Path], found: Sources) -> dict[str, list[CocoImage]]:
    """The images of all COCO files by the scan that they mean."""
    images: dict[str, list[CocoImage]] = defaultdict(list)
    for note, path in paths.items():
        try:
            content = read_coco_file(path.read_bytes())
        except (ValueError, OSError) as error:
            why = (
                str(error)
                if isinstance(error, ValueError)
                else f"cannot be read ({error.strerror})"
            )
            found.accounts.append(Account(note, 1, 1, why, many=True, unread=True))
            continue
        for scan, image in _meant(names, note, content, found).items():
            images[scan].append(image)
    return images


def _meant(names: Names, note: str, content: CocoFile, found: Sources) -> dict[str, CocoImage]:
    """The scan of each image of a COCO file; two images that mean one scan are refused."""
    total = sum(i.weight for i in content.images) + content.orphans
    lost, first = content.orphans, ""
    wanted: dict[str, list[CocoImage]] = defaultdict(list)
    doubtful: list[tuple[str, ...]] = []
    for image in content.images:
        try:
            scan = names.said(image.file_name, note)
        except Ambiguous as several:
            scan = None
            doubtful.append(tuple(several.names))
        if scan:
            wanted[scan].append(image)
        else:
            lost, first = lost + image.weight, first or image.file_name
    # What others of the file mean by their full names is not meant.
    fits = next((some for some in doubtful if set(some) - set(wanted)), ())
    meant = {}
    for scan, images in wanted.items():
        sure = [i for i in images if _agrees(i.file_name, scan)]
        if len(sure or images) == 1:
            meant[scan] = (sure or images)[0]
            found.remarks[BY_NAME] += not sure
        lost += sum(i.weight for i in images if meant.get(scan) is not i)
        if scan not in meant:
            first = first or images[0].file_name
    why = (
        "is a COCO file whose file names lead nowhere here"
        if content.images
        else "is a COCO file without images"
    )
    found.accounts.append(Account(note, total, lost, why, True, False, fits, first))
    return meant


def _agrees(said: str, scan: str) -> bool:
    """Whether the folder that a name was said with is the scan's, as far as both have one."""
    folders = [PurePosixPath(n.replace("\\", "/")).parent.name.casefold() for n in (said, scan)]
    return not all(folders) or folders[0] == folders[1]


def _beside_of(
    names: Names, files: Mapping[str, Path], claims: Mapping[str, Claim], found: Sources
) -> dict[str, list[Beside]]:
    """The annotation files of each scan: by what they say, else by their own name."""
    beside: dict[str, list[Beside]] = defaultdict(list)
    for note, claim in claims.items():
        scan, fits = _asked([partial(names.said, claim.said, note), partial(names.like, note)])
        many = claim.kind == "other" and scan is None
        why = claim.why if many else NOBODY
        found.accounts.append(Account(note, 1, int(scan is None), why, many, many, fits))
        if scan and claim.kind in ("labelme", "voc", "nifti"):
            beside[scan].append(Beside(files[note], claim.kind))
        elif scan:
            beside[scan].append(Beside(files[note], "other", why=claim.why))
    return beside


def _asked(ways: Sequence[Callable[[], str | None]]) -> tuple[str | None, tuple[str, ...]]:
    """The first scan that a way gives, and the scans that all fit where none does alone."""
    fits: tuple[str, ...] = ()
    for way in ways:
        try:
            scan = way()
        except Ambiguous as several:
            fits = fits or tuple(several.names)
            continue
        if scan:
            return scan, ()
    return None, fits


def _layout(
    candidates: Sequence[str],
    coco: Mapping[str, object],
    beside: Mapping[str, object],
    notes: set[str],
) -> str:
    if any(is_image(n) for n in coco):
        return "coco"
    dicom = any(PurePosixPath(n).suffix.lower() in ("", ".dcm", ".ima") for n in candidates)
    images = any(is_image(n) for n in candidates)
    return (
        "labelme"
        if notes and not coco and (any(is_image(n) for n in beside) or images or not dicom)
        else "dicom"
    )


def _known(path: Path, name: str, images: Sequence[CocoImage], remarks: Remarks) -> Source:
    """A scan with what COCO files say of it; of patient, view and spacing DICOM speaks itself."""
    known = {k: v for image in images for k, v in image.known.items()} if is_image(name) else {}
    view, pixel_mm = known.get("view", "").strip().lower(), known.get("pixel_mm", "")
    spacing = spacing_mm(pixel_mm)
    if view not in (*VIEWS, *UNSAID):
        remarks[NO_VIEW] += 1
    if pixel_mm and spacing is None:
        remarks[NO_SPACING] += 1
    patient = known.get("patient_id", "")
    return Source(path, name, "any", patient, VIEWS.get(view, ""), spacing, tuple(images))
