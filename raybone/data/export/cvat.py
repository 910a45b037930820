"""CVAT for images 1.1: a project with a task of each fold."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree as ET

from raybone.data.annotations import cut_out
from raybone.data.dataset import Dataset
from raybone.data.export.formats import Progress, Written, annotated, grey, write_picture
from raybone.data.folds import SPECIAL
from raybone.storage import fold_name
from raybone.types import Array, Lesion

CROWD = "crowd"  # the attribute that marks one, as CVAT has no such lesions


def write_cvat(dataset: Dataset, out: Path, _: Path, progress: Progress) -> Written:
    """images/FOLD/SCAN.png, 8-bit as a network sees them, and annotations.xml, whose subsets are
    the folds, the test group and the patients that are in training alone.

    A lesion with a mask is a mask, else a box.
    """
    scans = annotated(dataset.scans)
    name_of = {fold: fold_name(fold) for fold in range(dataset.folds)} | SPECIAL
    subset_of = {s.scan_id: name_of[dataset.fold_of[s.patient_id]] for s in scans}
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    project = ET.SubElement(ET.SubElement(root, "meta"), "project")
    tasks, labels = (ET.SubElement(project, name) for name in ("tasks", "labels"))
    for subset in sorted({*subset_of.values()}):
        ET.SubElement(ET.SubElement(tasks, "task"), "subset").text = subset
        (out / "images" / subset).mkdir(parents=True)
    for category in dataset.categories:
        label = ET.SubElement(labels, "label")
        ET.SubElement(label, "name").text = category
        crowd = ET.SubElement(ET.SubElement(label, "attributes"), "attribute")
        for key, value in (
            ("name", CROWD),
            ("mutable", "False"),
            ("input_type", "checkbox"),
            ("default_value", "false"),
            ("values", ""),
        ):
            ET.SubElement(crowd, key).text = value
    for number, scan in enumerate(scans):
        subset, name = subset_of[scan.scan_id], f"{scan.scan_id}.png"
        size = {"width": str(scan.width), "height": str(scan.height)}
        write_picture(out / "images" / subset / name, grey(dataset.counts(scan), scan.high))
        image = ET.SubElement(
            root, "image", {"id": str(number), "name": name, "subset": subset, **size}
        )
        for lesion in scan.lesions:
            _shape(image, lesion)
        progress(number + 1, len(scans))
    ET.indent(root, " ")
    ET.ElementTree(root).write(out / "annotations.xml", "utf-8", xml_declaration=True)
    return Written(len(scans), dataset.folds, ())


def _shape(image: ET.Element, lesion: Lesion) -> None:
    """A lesion as CVAT's mask or box."""
    said = {"label": lesion.category, "source": "file", "occluded": "0", "z_order": "0"}
    if (found := cut_out(lesion)) is not None:
        left, top, inside_HW = found
        height, width = inside_HW.shape
        place = {"left": left, "top": top, "width": width, "height": height}
        runs = ", ".join(map(str, _runs(inside_HW)))
        shape = ET.SubElement(
            image, "mask", {**said, "rle": runs, **{k: str(v) for k, v in place.items()}}
        )
    else:
        corners = zip(("xtl", "ytl", "xbr", "ybr"), lesion.box_xyxy)
        shape = ET.SubElement(image, "box", {**said, **{k: f"{v:.2f}" for k, v in corners}})
    ET.SubElement(shape, "attribute", {"name": CROWD}).text = str(lesion.crowd).lower()


def _runs(mask_HW: Array) -> list[int]:
    """Lengths of runs, row by row, of pixels outside and inside by turns, outside first."""
    runs = [(value, len([*run])) for value, run in groupby(mask_HW.ravel().tolist())]
    return [0] * runs[0][0] + [length for _, length in runs]
