"""Scans and lesions as files of each layout that ``prepare`` reads: DICOM, PNG with COCO, LabelMe
or masks, BS-80K.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import cv2
import numpy as np

from raybone.data.annotations import mask_of, to_coco
from raybone.data.ingest.dicom.frames import write_scan
from raybone.types import Array, Lesion, Scan

LAYOUTS = ("dicom", "coco", "labelme", "bs80k", "masks", "skeleton")
VOC_NAMES = {"malignant": "nidus", "benign": "physiological"}


def write_view(out: Path, layout: str, scan: Scan, counts_HW: Array) -> str:
    """Write one view with what its layout puts beside it; returns its name below ``out``.

    Args:
        scan: whose patient_id becomes the PatientID, or names the file; with its view and lesions.
        counts_HW: uint16, shape (H, W).
    """
    name = f"{scan.patient_id}_{scan.view}"
    if layout == "dicom":
        path = out / scan.patient_id / f"{scan.view}.dcm"
        path.parent.mkdir(exist_ok=True)
        write_scan(
            path,
            counts_HW,
            patient=scan.patient_id,
            view=scan.view,
            pixel_mm=scan.pixel_mm or 1.0,
            uid=f"{scan.patient_id}/{scan.view}",
        )
    elif layout == "bs80k":
        path = _bs80k(out, scan, counts_HW)
    else:
        path = out / ("" if layout == "labelme" else "images") / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), counts_HW)
        if layout == "labelme":
            shapes = [
                shape
                for group, le in enumerate(scan.lesions)
                for shape in _shapes(le, group, counts_HW.shape)
            ]
            path.with_suffix(".json").write_text(
                json.dumps(
                    {
                        "version": "5.5.0",
                        "flags": {},
                        "shapes": shapes,
                        "imagePath": path.name,
                        "imageData": None,
                        "imageHeight": scan.height,
                        "imageWidth": scan.width,
                    }
                ),
                encoding="utf-8",
            )
        elif layout == "masks":
            (out / "masks").mkdir(exist_ok=True)
            whole_HW = np.zeros(counts_HW.shape, np.uint8)
            for lesion in scan.lesions:
                if lesion.category == "malignant" and lesion.rle:
                    whole_HW[mask_of(lesion.rle)] = 255
            cv2.imwrite(str(out / "masks" / path.name), whole_HW)
        elif layout == "skeleton":
            for region in scan.lesions:
                folder = out / f"masks_{region.category}"
                folder.mkdir(exist_ok=True)
                mask_HW = mask_of(region.rle or {}).astype(np.uint8) * 255
                cv2.imwrite(str(folder / path.name), mask_HW)
    return path.relative_to(out).as_posix()


def write_coco(out: Path, names: Sequence[str], scans: Sequence[Scan]) -> None:
    """annotations.json of all scans, with patient, view and spacing at each image."""
    coco = to_coco(scans, ["malignant", "benign"])
    for image, name, scan in zip(coco["images"], names, scans):
        image.update(
            file_name=name, patient_id=scan.patient_id, view=scan.view, pixel_mm=scan.pixel_mm
        )
    (out / "annotations.json").write_text(json.dumps(coco), encoding="utf-8")


def write_labels(out: Path, layout: str, names: Sequence[str], scans: Sequence[Scan]) -> None:
    """labels.csv: by patient, or by file where the layout itself does not tell patients apart."""
    by_file = layout in ("labelme", "masks", "skeleton")
    own = [
        {"file": name, "patient_id": s.patient_id, "view": s.view, "pixel_mm": str(s.pixel_mm)}
        if by_file
        else {"patient_id": s.patient_id.rpartition("-")[2] if layout == "bs80k" else s.patient_id}
        for name, s in zip(names, scans)
    ]
    rows = {tuple({**known, **dict(s.labels)}.items()): None for known, s in zip(own, scans)}
    with (out / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(name for name, _ in next(iter(rows)))
        writer.writerows([value for _, value in row] for row in rows)


def _bs80k(out: Path, scan: Scan, counts_HW: Array) -> Path:
    """An 8-bit JPEG named by the patient's number, its line in the label file, and a VOC xml of its
    boxes.
    """
    side = {"anterior": "ANT", "posterior": "POST"}[scan.view]
    folder, number = out / f"wholeBody{side}", scan.patient_id.rpartition("-")[2]
    (folder / side.lower()).mkdir(parents=True, exist_ok=True)
    path = folder / f"{number}.jpg"
    grey_HW = np.clip(
        counts_HW / max(float(np.percentile(counts_HW, 99.9)), 1.0) * 255, 0, 255
    ).astype(np.uint8)
    cv2.imwrite(str(path), grey_HW)
    with (folder / f"{folder.name}.txt").open("a", encoding="utf-8") as file:
        file.write(f"{path.name} {int(any(le.category == 'malignant' for le in scan.lesions))}\n")
    size = _element("size", width=scan.width, height=scan.height, depth=1)
    objects = ""
    for lesion in scan.lesions:
        corners = zip(("xmin", "ymin", "xmax", "ymax"), lesion.box_xyxy)
        box = _element("bndbox", **{key: f"{corner:g}" for key, corner in corners})
        name = escape(VOC_NAMES.get(lesion.category, lesion.category))
        objects += f"<object><name>{name}</name>{box}</object>"
    (folder / side.lower() / f"{number}.xml").write_text(
        f"<annotation>{size}{objects}</annotation>"
    )
    return path


def _element(tag: str, **inside: object) -> str:
    """XML of an element of simple ones."""
    return f"<{tag}>{''.join(f'<{k}>{v}</{k}>' for k, v in inside.items())}</{tag}>"


def _shapes(lesion: Lesion, group: int, shape: tuple[int, ...]) -> Iterator[dict[str, object]]:
    """LabelMe polygons along the outermost pixels of the lesion's parts, or a rectangle for a box
    alone.
    """
    common = {"label": lesion.category, "group_id": group, "description": "", "flags": {}}
    if lesion.rle is None:
        x1, y1, x2, y2 = lesion.box_xyxy
        yield {**common, "shape_type": "rectangle", "points": [[x1, y1], [x2, y2]]}
        return
    mask_HW = mask_of(lesion.rle).astype(np.uint8).reshape(shape)
    for contour_N12 in cv2.findContours(mask_HW, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]:
        points = contour_N12[:, 0].astype(float).tolist()
        points += [points[-1]] * (
            3 - len(points)
        )  # a polygon has three points, a small lesion may have fewer pixels
        yield {**common, "shape_type": "polygon", "points": points}
