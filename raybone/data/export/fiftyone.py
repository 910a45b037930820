"""FiftyOneDataset: a dataset of FiftyOne as it stands on a disk."""

from __future__ import annotations

import base64
import io
import itertools
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from raybone.data.annotations import cut_out
from raybone.data.dataset import Dataset
from raybone.data.export.formats import Progress, Written, annotated, grey, write_picture
from raybone.data.folds import SPECIAL
from raybone.storage import fold_name
from raybone.types import Array, Lesion, Scan

VERSION = "1.1.0"  # of FiftyOne; later ones bring what they read up to their own
FIELDS = "fiftyone.core.fields."
LABELS = "fiftyone.core.labels."


def write_fiftyone(dataset: Dataset, out: Path, _: Path, progress: Progress) -> Written:
    """data/SCAN.png, 8-bit as a network sees them, metadata.json, and samples.json, where each scan
    is tagged with its fold, or as of the test group or in training alone.

    A lesion is a Detection of the field ``ground_truth``, with its mask where it has one.
    """
    (out / "data").mkdir()
    scans = annotated(dataset.scans)
    name_of = {fold: fold_name(fold) for fold in range(dataset.folds)} | SPECIAL
    rand_N = np.random.default_rng(0).random(len(scans))
    ids = (f"{number:024x}" for number in itertools.count(1))
    samples = list[dict[str, Any]]()
    for number, scan in enumerate(scans, 1):
        name = f"data/{scan.scan_id}.png"
        write_picture(out / name, grey(dataset.counts(scan), scan.high))
        sample = {
            "_id": {"$oid": next(ids)},
            "_media_type": "image",
            "_rand": float(rand_N[number - 1]),  # by which FiftyOne draws some of them
            "filepath": name,
            "tags": [name_of[dataset.fold_of[scan.patient_id]]],
            "metadata": {"_cls": "ImageMetadata", "width": scan.width, "height": scan.height},
            "patient_id": scan.patient_id,
            "view": scan.view,
            "pixel_mm": scan.pixel_mm,
            "ground_truth": {
                "_cls": "Detections",
                "detections": [
                    {"_id": {"$oid": next(ids)}, **_detection(scan, le)} for le in scan.lesions
                ],
            },
        }
        samples.append(sample)
        progress(number, len(scans))
    meta = {
        "version": VERSION,
        "media_type": "image",
        "sample_fields": _sample_fields(),
        "classes": {"ground_truth": list(dataset.categories)},
    }
    (out / "metadata.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    (out / "samples.json").write_text(json.dumps({"samples": samples}), encoding="utf-8")
    return Written(len(scans), dataset.folds, ())


def _detection(scan: Scan, lesion: Lesion) -> dict[str, Any]:
    """A lesion, its box (x, y, width, height) in shares of the scan's sides."""
    left, top, right, bottom = lesion.box_xyxy
    mask = {}
    if (found := cut_out(lesion)) is not None:
        left, top, inside_HW = found
        right, bottom = left + inside_HW.shape[1], top + inside_HW.shape[0]
        mask = {"mask": {"$binary": {"base64": _packed(inside_HW), "subType": "00"}}}
    width, height = right - left, bottom - top
    return {
        "_cls": "Detection",
        "attributes": {},
        "tags": [],
        "label": lesion.category,
        "bounding_box": [
            left / scan.width,
            top / scan.height,
            width / scan.width,
            height / scan.height,
        ],
        "iscrowd": lesion.crowd,
        **mask,
    }


def _packed(mask_HW: Array) -> str:
    """As FiftyOne keeps arrays: NumPy's own file, compressed."""
    file = io.BytesIO()
    np.save(file, mask_HW)
    return base64.b64encode(zlib.compress(file.getvalue())).decode("ascii")


def _sample_fields() -> list[dict[str, Any]]:
    detection = [
        _field("id", "ObjectIdField", db_field="_id"),
        _field("tags", "ListField", subfield=f"{FIELDS}StringField"),
        _field("label", "StringField"),
        _field("bounding_box", "ListField", subfield=f"{FIELDS}FloatField"),
        _field("mask", "ArrayField"),
        _field("mask_path", "StringField"),
        _field("confidence", "FloatField"),
        _field("index", "IntField"),
        _field("iscrowd", "BooleanField"),
    ]
    detections = _field(
        "detections",
        "ListField",
        subfield=f"{FIELDS}EmbeddedDocumentField",
        embedded_doc_type=f"{LABELS}Detection",
        fields=detection,
    )
    metadata = [
        _field("size_bytes", "IntField"),
        _field("mime_type", "StringField"),
        _field("width", "IntField"),
        _field("height", "IntField"),
        _field("num_channels", "IntField"),
    ]
    return [
        _field("id", "ObjectIdField", db_field="_id"),
        _field("filepath", "StringField"),
        _field("tags", "ListField", subfield=f"{FIELDS}StringField"),
        _field(
            "metadata",
            "EmbeddedDocumentField",
            embedded_doc_type="fiftyone.core.metadata.ImageMetadata",
            fields=metadata,
        ),
        _field("_media_type", "StringField"),
        _field("_rand", "FloatField"),
        _field("_dataset_id", "ObjectIdField"),
        _field("created_at", "DateTimeField", read_only=True),
        _field("last_modified_at", "DateTimeField", read_only=True),
        _field("patient_id", "StringField"),
        _field("view", "StringField"),
        _field("pixel_mm", "FloatField"),
        _field(
            "ground_truth",
            "EmbeddedDocumentField",
            embedded_doc_type=f"{LABELS}Detections",
            fields=[detections],
        ),
    ]


def _field(name: str, kind: str, **more: Any) -> dict[str, Any]:
    """What FiftyOne writes of a field of its documents."""
    return {
        "name": name,
        "ftype": f"{FIELDS}{kind}",
        "embedded_doc_type": None,
        "subfield": None,
        "fields": [],
        "db_field": name,
        "description": None,
        "info": None,
        "read_only": False,
        "created_at": None,
        **more,
    }
