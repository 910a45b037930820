"""How folders of scans are laid out: for each layout, every file below SOURCE as an input, with
what goes with it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from raybone.data.annotations import NOT_LESIONS, Remarks
from raybone.data.ingest.annotations.claims import claim_of, load_json
from raybone.data.ingest.annotations.coco import CocoImage
from raybone.data.ingest.annotations.matching import NOBODY, read_files
from raybone.data.ingest.annotations.names import split_suffix
from raybone.data.ingest.annotations.yolo import CLASSES, classes_of, is_yolo, label_of
from raybone.data.ingest.sources import (
    Account,
    Beside,
    Source,
    Sources,
    is_image,
    mask_folder,
    walk,
)
from raybone.errors import WrongInput

Layout = Literal[
    "auto", "dicom", "coco", "labelme", "bs80k", "bs80k_regions", "masks", "nnunet", "yolo"
]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
REGION_CROP = "is a region of a whole-body scan; its label goes with that scan"
WHOLE_BODY = "is of a whole body; layout bs80k_regions takes its regions alone"
FOLDER_OF_BS80K = re.compile(r"(wholeBody|[a-z]{3,12}[LR]?)(ANT|POST)")
NORMAL = "scan that its label calls normal, without boxes: a scan without lesion"
NO_LABELLED = "holds labels, and no image has its name"
NO_CASE = "is a label map without its case"
NO_IMAGE = "is a mask, and no image has its name"
NO_LESION_MASK = (
    "scan with masks of bones and none of lesions, which others have: it counts as unannotated; "
    "give it an empty mask if it has no lesion"
)
CALLED_MASK = re.compile(r"(.+)[_-](?:mask|seg|label|gt)", re.IGNORECASE)
CHANNEL = re.compile(r"(.+)_(\d{4})")


def sources_of(root: Path, layout: Layout | Literal["any"]) -> Sources:
    """Every input of a folder in order of name.

    Args:
        layout: found out when ``auto``, or ``any``, by which images are scans even where nothing
            but DICOM files would be expected.
    Raises:
        WrongInput: the folder is not of that layout.
    """
    files, aside = walk(root)
    kind = _layout_of(root, files, layout) if layout in ("auto", "any") else layout
    readers: dict[str, Callable[[Path, Mapping[str, Path]], Sources]] = {
        "bs80k": _bs80k,
        "bs80k_regions": _regions,
        "masks": _masks,
        "nnunet": _nnunet,
        "yolo": _yolo,
    }
    found = readers[kind](root, files) if kind in readers else read_files(files, kind)
    if layout == "coco" and not any(s.coco for s in found.inputs) and not found.accounts:
        raise WrongInput(
            "--layout coco: needs a JSON file with images, annotations and categories in SOURCE, "
            "but there is none; export it, or choose another layout"
        )
    found.inputs += [Source(root / name, name, aside=why) for name, why in aside.items()]
    found.inputs.sort(key=lambda s: s.name)
    return found


def _layout_of(root: Path, files: Mapping[str, Path], other: str) -> str:
    """The layouts that are told by their folders; ``other`` for all others."""
    folders = {p.name for p in root.iterdir() if p.is_dir()}
    if {"wholeBodyANT", "wholeBodyPOST"} & folders:
        return "bs80k"
    if {"imagesTr", "labelsTr"} <= folders:
        return "nnunet"
    masks = [root / name for name in folders if mask_folder(name)]
    drawn = any(is_image(p.name) for folder in masks for p in folder.rglob("*"))
    if "images" in folders and drawn:
        return "masks"
    return "yolo" if is_yolo(files) else other


def _bs80k(root: Path, files: Mapping[str, Path]) -> Sources:  # noqa: ARG001
    """BS-80K as released: wholeBodyANT|POST with NNNN.jpg, xml in a folder below, "NNNN.jpg 0|1"
    lines in a txt.
    """
    found = Sources("bs80k")
    labels: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    notes: dict[tuple[str, str], list[str]] = defaultdict(list)
    scans: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, path in files.items():
        top = FOLDER_OF_BS80K.fullmatch(PurePosixPath(name).parts[0])
        if not top:
            _stray(found, path, name, "is outside the folders of BS-80K")
            continue
        region, view = top[1], "anterior" if top[2] == "ANT" else "posterior"
        if path.suffix == ".txt":
            column = "abnormal" if region == "wholeBody" else f"abnormal_{region}"
            for stem, value in _said(path, found.remarks):
                _agree(labels[stem, view], column, value)
        elif path.suffix == ".xml" and region == "wholeBody":
            notes[path.stem, view].append(name)
        elif region == "wholeBody":
            scans[path.stem, view].append(name)
        else:
            found.inputs.append(Source(path, name, aside=REGION_CROP))
    for key, names in scans.items():
        own = notes.pop(key, [])
        beside = tuple(Beside(files[n], "voc") for n in own) if len(names) == 1 else ()
        said_of = tuple(sorted(labels.pop(key, {}).items()))
        normal = ("abnormal", "0") in said_of and not own
        found.remarks[NORMAL] += normal * len(names)
        nothing = (CocoImage(""),) if normal else ()
        found.inputs += [
            Source(
                files[n], n, "image", key[0], key[1], coco=nothing, beside=beside, labels=said_of
            )
            for n in names
        ]
        found.accounts += [
            Account(
                n,
                1,
                int(len(names) > 1),
                "fits several scans",
                fits=tuple(names) if len(names) > 1 else (),
            )
            for n in own
        ]
    for many in notes.values():
        found.inputs += [Source(files[n], n, aside=NOBODY) for n in many]
        found.accounts += [Account(n, 1, 1, NOBODY) for n in many]
    found.remarks["label line without its whole-body scan: left out"] += len(labels)
    found.remarks = +found.remarks
    return found


def _regions(root: Path, files: Mapping[str, Path]) -> Sources:  # noqa: ARG001
    """The region folders of BS-80K: crops NNNN.jpg of patient NNNN, labelled 0 or 1 by the txt
    beside them.
    """
    found = Sources("bs80k_regions")
    labels: dict[tuple[str, str], str] = {}
    crops: list[tuple[str, Path, str]] = []
    for name, path in files.items():
        folder = PurePosixPath(name).parts[0]
        top = FOLDER_OF_BS80K.fullmatch(folder)
        if not top:
            _stray(found, path, name, "is outside the folders of BS-80K")
        elif top[1] == "wholeBody":
            found.inputs.append(Source(path, name, aside=WHOLE_BODY))
        elif path.suffix == ".txt":
            for stem, value in _said(path, found.remarks):
                _agree(labels, (folder, stem), value)
        else:
            crops.append((name, path, folder))
    for name, path, folder in crops:
        region, view = FOLDER_OF_BS80K.fullmatch(folder).groups()  # type: ignore[union-attr]
        value = labels.pop((folder, path.stem), "")
        said_of = (
            *([("abnormal", value)] if value else []),
            ("region", region),
        )  # folds are alike in the first
        found.inputs.append(
            Source(
                path,
                name,
                "image",
                path.stem,
                "anterior" if view == "ANT" else "posterior",
                labels=said_of,
            )
        )
    found.remarks["label line without its crop: left out"] += len(labels)
    found.remarks = +found.remarks
    return found


def _said(path: Path, remarks: Remarks) -> Iterator[tuple[str, str]]:
    """Stem and label of the lines "NNNN.jpg 0|1" of a label file of BS-80K."""
    for line in _lines(path):
        said = re.fullmatch(r"\s*(\S+?)(?:\.jpe?g)?[\s,]+([01])\s*", line)
        if said:
            yield PurePosixPath(said[1]).name, said[2]
        elif line.strip():
            remarks["label line that cannot be read: left out"] += 1


def _agree(labels: dict[Any, str], key: object, value: str) -> None:
    """Keep a label; raise WrongInput where another line says otherwise."""
    if labels.setdefault(key, value) != value:
        raise WrongInput(
            "SOURCE: label files of BS-80K must say one thing of an image, but one says both 0 and "
            "1; keep the line that is right"
        )


def _masks(root: Path, files: Mapping[str, Path]) -> Sources:  # noqa: ARG001
    """images/NAME with masks/NAME or NAME_mask of lesions, and masks_CATEGORY/NAME of further
    categories.
    """
    found = Sources("masks")
    masks: dict[str, list[tuple[str, Beside]]] = defaultdict(list)
    images: dict[str, list[str]] = defaultdict(list)
    for name, path in files.items():
        top, _, below = name.partition("/")
        folder = mask_folder(top)
        if folder and is_image(name):
            masks[split_suffix(below)[0]].append(
                (name, Beside(path, "mask", folder[1] or "malignant"))
            )
        elif top == "images" and (is_image(name) or claim_of(path).kind == "none"):
            images[split_suffix(below)[0]].append(name)
        else:
            _stray(found, path, name, "is neither in images nor in masks")
    for stem in [s for s in masks if s not in images]:
        if (of := CALLED_MASK.fullmatch(stem)) and of[1] in images:
            masks[of[1]] += masks.pop(stem)
    everything = {b.category for beside in masks.values() for _, b in beside}
    for stem, names in images.items():
        beside = masks.get(stem, [])
        drawn = {b.category for _, b in beside}
        if drawn and drawn <= {*NOT_LESIONS} and everything - {*NOT_LESIONS}:
            found.remarks[NO_LESION_MASK] += 1
            beside = []
        scans = [n for n in names if is_image(n)]
        for name in names:
            own = tuple(b for _, b in beside) if len(scans) == 1 and is_image(name) else ()
            found.inputs.append(Source(files[name], name, "image", beside=own))
        several = len(scans) > 1 or len({b.category for _, b in beside}) < len(beside)
        found.accounts += [
            Account(
                n,
                1,
                int(several),
                "fits several images or masks",
                fits=tuple(scans if len(scans) > 1 else [m for m, _ in beside]) if several else (),
            )
            for n, _ in beside
        ]
    for stem, beside in masks.items():
        if stem not in images:
            found.inputs += [Source(b.path, n, aside=NO_IMAGE) for n, b in beside]
            found.accounts += [Account(n, 1, 1, NO_IMAGE) for n, _ in beside]
    return found


def _nnunet(root: Path, files: Mapping[str, Path]) -> Sources:
    """A raw dataset of nnU-Net: imagesTr/CASE_0000.png with labelsTr/CASE.png, whose classes
    dataset.json names.
    """
    found, names = Sources("nnunet"), _classes_of(root / "dataset.json")
    labels, scans = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for name in files:
        top, _, below = split_suffix(name)[0].partition("/")
        if top == "labelsTr":
            labels[below].append(name)
        elif top == "imagesTr" and below.endswith("_0000"):
            scans[below.removesuffix("_0000")].append(name)
    used = set[str]()
    for name, path in files.items():
        top, _, below = name.partition("/")
        case = CHANNEL.fullmatch(split_suffix(below)[0])
        if top not in ("imagesTr", "imagesTs") or not case:
            if top != "labelsTr":
                _stray(found, path, name, "is neither in imagesTr nor in labelsTr")
        elif int(case[2]):
            found.inputs.append(
                Source(path, name, aside="is a further channel of its case; the first is the scan")
            )
        elif top == "imagesTr" and len(scans[case[1]]) == len(labels[case[1]]) == 1:
            (note,) = labels[case[1]]
            used.add(note)
            kind: Literal["nifti", "mask"] = "mask" if is_image(note) else "nifti"
            found.inputs.append(
                Source(path, name, "image", beside=(Beside(files[note], kind, names=names),))
            )
        else:
            found.inputs.append(Source(path, name, "image"))
    for case_id, notes in labels.items():
        several = max((notes, scans[case_id]), key=len)
        fits = tuple(several) if len(several) > 1 else ()
        for note in notes:
            lost = note not in used
            found.accounts.append(Account(note, 1, int(lost), NO_CASE, fits=fits))
            if lost and not fits:
                found.inputs.append(Source(files[note], note, aside=NO_CASE))
    return found


def _yolo(root: Path, files: Mapping[str, Path]) -> Sources:  # noqa: ARG001
    """images/NAME.png with labels/NAME.txt, in whichever folders; classes by their names in the
    dataset's YAML.
    """
    found, names, used = Sources("yolo"), classes_of(files), defaultdict[str, list[str]](list)
    images = {n for n in files if is_image(n) and "images" in n.split("/")[:-1]}
    for name in sorted(images):
        used[label_of(name)].append(name)
    for name, path in files.items():
        if name in images:
            note = label_of(name)
            sure = note in files and len(used[note]) == 1
            own = (Beside(files[note], "yolo", names=names),) if sure else ()
            found.inputs.append(Source(path, name, "image", beside=own))
        elif not (name.endswith((".txt", ".yaml", ".yml", ".cache"))):
            _stray(found, path, name, "is not in a folder images")
    for name, path in files.items():
        if not name.endswith(".txt") or "labels" not in name.split("/")[:-1]:
            continue
        if not name.endswith(f"/{CLASSES}"):
            fits = used.get(name, [])
            lost = int(len(fits) != 1)
            several = tuple(fits) if len(fits) > 1 else ()
            found.accounts.append(Account(name, 1, lost, NO_LABELLED, fits=several))
            found.inputs += [Source(path, name, aside=NO_LABELLED)] * (not fits)
    return found


def _stray(found: Sources, path: Path, name: str, why: str) -> None:
    """An input outside the folders of its layout; an annotation there is not used."""
    claim = claim_of(path)
    if claim.kind != "none":
        why = (
            f"is an annotation that layout {found.layout} does not read; choose the layout "
            "(--layout), or remove it"
        )
        found.accounts.append(Account(name, 1, 1, why, many=True, unread=True))
    found.inputs.append(Source(path, name, aside=why))


def _classes_of(path: Path) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Values of each category in nnU-Net's dataset.json; of older versions, which name each value,
    as well.
    """
    try:
        labels = load_json(path.read_bytes()).get("labels")
        pairs: list[tuple[str, Any]] = [
            (str(v), k) if isinstance(v, str) else (str(k), v) for k, v in labels.items()
        ]
        values = [
            (name, tuple(int(v) for v in (value if isinstance(value, list) else [value])))
            for name, value in pairs
        ]
    except (OSError, ValueError, TypeError, AttributeError):
        raise WrongInput(
            "--layout nnunet: needs SOURCE/dataset.json with labels, as nnU-Net's raw datasets "
            "have; put it there, or choose another layout"
        ) from None
    return tuple((name, numbers) for name, numbers in values if numbers != (0,))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        raise WrongInput(
            "SOURCE: a label file of BS-80K cannot be opened; check its permissions"
        ) from None
