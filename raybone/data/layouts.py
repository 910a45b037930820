"""How folders of scans are laid out: for each layout, every file below SOURCE as an input, with what goes with it."""

from __future__ import annotations

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from raybone.data.annotations import Remarks, read_coco
from raybone.data.formats import READERS
from raybone.records import Lesion, WrongInput

Layout = Literal["auto", "dicom", "coco", "labelme", "bs80k", "bs80k_regions", "masks"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
NOT_INPUTS = ("annotations.json", "labels.csv")
REGION_CROP = "is a region of a whole-body scan; its label goes with that scan"
WHOLE_BODY = "is of a whole body; layout bs80k_regions takes its regions alone"
FOLDER_OF_BS80K = re.compile(r"(wholeBody|[a-z]{3,12}[LR]?)(ANT|POST)")


@dataclass(frozen=True)
class Source:
    """One input file with what its layout says about it.

    name: its path below SOURCE. kind: ``dicom`` or ``image`` alone, or ``any``. lesions, size: of a COCO file, for a
    scan of that (H, W). beside: annotation files, each with a category when it is a mask. aside: why it is no scan.
    """

    path: Path
    name: str
    kind: Literal["dicom", "image", "any"] = "any"
    patient: str = ""
    view: str = ""
    pixel_mm: float | None = None
    lesions: tuple[Lesion, ...] | None = None
    size: tuple[int, int] | None = None
    beside: tuple[tuple[Path, str], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    aside: str = ""


def sources_of(root: Path, layout: Layout) -> tuple[str, list[Source], Remarks]:
    """The layout (found out when ``auto``), every input in order of name, and remarks on annotations.

    Raises:
        WrongInput: the folder is not of that layout.
    """
    files, closed = _walk(root)
    found = layout if layout != "auto" else _layout_of(root, files)
    read = {"dicom": _dicom, "coco": _coco, "labelme": _beside, "bs80k": _bs80k, "bs80k_regions": _regions,
            "masks": _masks}[found]
    sources, remarks = read(root, files)
    sources += [Source(root / name, name, aside="is a folder that cannot be opened") for name in closed]
    if found in ("labelme", "bs80k", "bs80k_regions", "masks") and (root / "annotations.json").is_file():
        sources.append(Source(root / "annotations.json", "annotations.json",
                              aside=f"is a COCO file by its name, which layout {found} does not read"))
    return found, sorted(sources, key=lambda s: s.name), remarks


def split_suffix(name: str) -> tuple[str, str]:
    """A name without its suffix, and the suffix in small letters; .nii.gz is one."""
    suffix = ".nii.gz" if name.lower().endswith(".nii.gz") else PurePosixPath(name).suffix
    return name[: len(name) - len(suffix)], suffix.lower()


def _walk(root: Path) -> tuple[dict[str, Path], list[str]]:
    """Every file by its name below the root, links followed once, and the folders that cannot be opened."""
    files: dict[str, Path] = {}
    closed: list[str] = []
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        closed.append(Path(error.filename).relative_to(root).as_posix())

    for folder, below, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below.sort()
        for name in sorted(names):
            path = Path(folder) / name
            files[path.relative_to(root).as_posix()] = path
    return {n: p for n, p in files.items() if n not in NOT_INPUTS and not n.startswith("phantom.key")}, closed


def _layout_of(root: Path, files: Mapping[str, Path]) -> Literal["dicom", "coco", "labelme", "bs80k", "masks"]:
    if (root / "wholeBodyANT").is_dir() or (root / "wholeBodyPOST").is_dir():
        return "bs80k"
    if (root / "images").is_dir() and (root / "masks").is_dir():
        return "masks"
    suffixes = {split_suffix(n)[1] for n in files}
    named = set()
    for path in _coco_files(root):
        with contextlib.suppress(WrongInput):  # of another format, then; the layout chosen says what is wrong with it
            named |= {split_suffix(n)[1] for n in read_coco(path)[0]}
    if named & set(IMAGES):
        return "coco"
    dicom = any(p.suffix.lower() in ("", ".dcm", ".ima") or p.name.upper() == "DICOMDIR" for p in files.values())
    return "labelme" if suffixes & set(READERS) and (suffixes & set(IMAGES) or not dicom) and not named else "dicom"


def _dicom(root: Path, files: Mapping[str, Path]) -> tuple[list[Source], Remarks]:
    """DICOM files alone, with an annotations.json for all or an annotation file beside each."""
    lesions, entries, remarks = dict[str, list[Lesion]](), dict[str, dict[str, Any]](), Remarks()
    if (root / "annotations.json").is_file():
        lesions, entries, remarks = read_coco(root / "annotations.json")
        remarks["annotated scan that is not there"] += len(set(entries) - set(files))
    sources, more = _beside(root, files)
    return [replace(s, kind="dicom", lesions=tuple(lesions[s.name]), size=_size(entries[s.name]))
            if s.name in lesions else replace(s, kind="dicom") for s in sources], remarks + more


def _beside(root: Path, files: Mapping[str, Path]) -> tuple[list[Source], Remarks]:  # noqa: ARG001
    """Scans with annotation files of the same name beside them, or alone of that name elsewhere."""
    notes = {n: split_suffix(n) for n in files if split_suffix(n)[1] in READERS}
    scans = [n for n in files if n not in notes]
    place = {stem: n for n in reversed(scans) for stem in (n, split_suffix(n)[0])}
    homes = {PurePosixPath(n).parent for n in scans}
    by_name: dict[str, set[str]] = defaultdict(set)
    for stem, name in place.items():
        by_name[PurePosixPath(stem).name].add(name)
    beside: dict[str, list[tuple[Path, str]]] = defaultdict(list)
    lone = []
    for note, (stem, _) in notes.items():
        # A folder of annotations alone goes with the only scan of that name, wherever it lies.
        elsewhere = by_name[PurePosixPath(stem).name] if PurePosixPath(note).parent not in homes else set()
        scan = place.get(stem) or (next(iter(elsewhere)) if len(elsewhere) == 1 else None)
        if scan:
            beside[scan].append((files[note], ""))
        else:
            lone.append(Source(files[note], note, beside=((files[note], ""),)))
    return [Source(files[n], n, beside=tuple(beside[n])) for n in scans] + lone, Remarks()


def _coco(root: Path, files: Mapping[str, Path]) -> tuple[list[Source], Remarks]:
    sources, named, remarks = [], set(), Remarks()
    paths = _coco_files(root)
    if not paths:
        raise WrongInput("--layout coco: needs SOURCE/annotations.json or SOURCE/annotations/*.json, but has none; "
                         "export it, or choose another layout")
    for path in paths:
        lesions, entries, more = read_coco(path)
        remarks += more
        named.add(path.relative_to(root).as_posix())
        for file_name, entry in entries.items():
            name = next((n for n in (file_name, f"images/{file_name}") if n in files), None)
            if name is None:
                remarks["annotated scan that is not there"] += 1
                continue
            if name in named:
                remarks["scan that two COCO files annotate: the first counts"] += 1
                continue
            known = {k: str(entry[k]) for k in ("patient_id", "view", "pixel_mm") if entry.get(k) is not None}
            named.add(name)
            sources.append(Source(
                files[name], name, "any", known.get("patient_id", ""),
                known.get("view", "") if known.get("view") in ("anterior", "posterior") else "",
                positive(known.get("pixel_mm")), tuple(lesions[file_name]), _size(entry)))
    sources += [Source(p, n, aside="is not named by the COCO file") for n, p in files.items() if n not in named]
    return sources, remarks


def _bs80k(root: Path, files: Mapping[str, Path]) -> tuple[list[Source], Remarks]:
    """BS-80K as released: wholeBodyANT|POST with NNNN.jpg, xml in a folder below, "NNNN.jpg 0|1" lines in a txt."""
    remarks, sources = Remarks(), []
    labels: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    notes: dict[tuple[str, str], list[Path]] = defaultdict(list)
    scans: list[tuple[str, Path, str]] = []
    for name, path in files.items():
        top = FOLDER_OF_BS80K.fullmatch(PurePosixPath(name).parts[0])
        if not top:
            sources.append(Source(path, name, aside="is outside the folders of BS-80K"))
            continue
        region, view = top[1], "anterior" if top[2] == "ANT" else "posterior"
        if path.suffix == ".txt":
            column = "abnormal" if region == "wholeBody" else f"abnormal_{region}"
            for stem, value in _said(path, remarks):
                labels[stem, view][column] = value
        elif path.suffix == ".xml" and region == "wholeBody":
            notes[path.stem, view].append(path)
        elif region == "wholeBody":
            scans.append((name, path, view))
        else:
            sources.append(Source(path, name, aside=REGION_CROP))
    for name, path, view in scans:
        beside = tuple((note, "") for note in notes.pop((path.stem, view), ()))
        said_of = tuple(sorted(labels.pop((path.stem, view), {}).items()))
        sources.append(Source(path, name, "image", path.stem, view, beside=beside, labels=said_of))
    sources += [Source(p, p.relative_to(root).as_posix(), beside=((p, ""),)) for many in notes.values() for p in many]
    remarks["label line without its whole-body scan: left out"] += len(labels)
    return sources, +remarks


def _regions(root: Path, files: Mapping[str, Path]) -> tuple[list[Source], Remarks]:  # noqa: ARG001
    """The region folders of BS-80K: crops NNNN.jpg of patient NNNN, labelled 0 or 1 by the txt beside them."""
    remarks, sources = Remarks(), []
    labels: dict[tuple[str, str], str] = {}
    crops: list[tuple[str, Path, str]] = []
    for name, path in files.items():
        folder = PurePosixPath(name).parts[0]
        top = FOLDER_OF_BS80K.fullmatch(folder)
        if not top or top[1] == "wholeBody":
            sources.append(Source(path, name, aside=WHOLE_BODY if top else "is outside the folders of BS-80K"))
        elif path.suffix == ".txt":
            labels.update({(folder, stem): value for stem, value in _said(path, remarks)})
        else:
            crops.append((name, path, folder))
    for name, path, folder in crops:
        region, view = FOLDER_OF_BS80K.fullmatch(folder).groups()  # type: ignore[union-attr]
        value = labels.pop((folder, path.stem), "")
        said_of = (*([("abnormal", value)] if value else []), ("region", region))  # folds are alike in the first
        sources.append(Source(path, name, "image", path.stem, "anterior" if view == "ANT" else "posterior",
                              labels=said_of))
    remarks["label line without its crop: left out"] += len(labels)
    return sources, +remarks


def _said(path: Path, remarks: Remarks) -> Iterator[tuple[str, str]]:
    """Stem and label of the lines "NNNN.jpg 0|1" of a label file of BS-80K."""
    for line in _lines(path):
        said = re.fullmatch(r"\s*(\S+?)(?:\.jpe?g)?[\s,]+([01])\s*", line)
        if said:
            yield PurePosixPath(said[1]).name, said[2]
        elif line.strip():
            remarks["label line that cannot be read: left out"] += 1


def _masks(root: Path, files: Mapping[str, Path]) -> tuple[list[Source], Remarks]:
    """images/NAME with masks/NAME of lesions, and masks_CATEGORY/NAME of further categories."""
    masks: dict[str, list[tuple[Path, str]]] = defaultdict(list)
    images, sources = {}, []
    for name, path in files.items():
        top, _, below = name.partition("/")
        if re.fullmatch(r"masks(_\w+)?", top) and path.suffix.lower() in IMAGES:
            masks[split_suffix(below)[0]].append((path, top[6:] or "malignant"))
        elif top == "images":
            images[name] = path
        else:
            sources.append(Source(path, name, aside="is neither in images nor in masks"))
    for name, path in images.items():
        beside = tuple(masks.pop(split_suffix(name)[0].partition("/")[2], ()))
        sources.append(Source(path, name, "image", beside=beside))
    sources += [Source(p, p.relative_to(root).as_posix(), aside="is a mask, and no image has its name")
                for many in masks.values() for p, _ in many]
    return sources, Remarks()


def _coco_files(root: Path) -> list[Path]:
    if (root / "annotations.json").is_file():
        return [root / "annotations.json"]
    return sorted((root / "annotations").glob("*.json"))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        raise WrongInput("prepare: a label file of BS-80K cannot be opened; check its permissions") from None


def positive(value: str | None) -> float | None:
    """A spacing in mm, or None for what cannot be one."""
    try:
        return float(value) if value and 0 < float(value) < 1000 else None
    except ValueError:
        return None


def _size(entry: Mapping[str, object]) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None
