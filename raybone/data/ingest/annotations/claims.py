"""What a file beside scans is: an annotation of a format that is read, of one that is not, or none
at all.
"""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from raybone.data.ingest.annotations.names import split_suffix

MOST_BYTES = 1 << 30
MOST_TEXT = 1 << 20  # of a table or a text; longer ones are no labels of one scan
SUFFIXES = (".json", ".xml", ".nii", ".nii.gz")
OTHERS = {
    ".nrrd": "a segmentation in NRRD, as 3D Slicer keeps it; save it as NIfTI or as DICOM "
    "Segmentation",
    ".mha": "a MetaImage; save it as NIfTI",
    ".mhd": "a MetaImage; save it as NIfTI",
}
EXPORT = "which is not read: export it as COCO, LabelMe or VOC"
# Keys of boxes, polygons and masks, by which annotations of unknown tools are told from other
# tables and settings.
DRAWN = {
    "annotations",
    "bbox",
    "bndbox",
    "boxes",
    "masks",
    "objects",
    "points",
    "polygon",
    "polygons",
    "regions",
    "rle",
    "segmentation",
    "shapes",
}
DRAWN_COLUMNS = re.compile(
    r"\b(x_?min|xmax|x1|bbox|polygon|region_shape_attributes)\b", re.IGNORECASE
)
YOLO_LINE = re.compile(r"\d+(\s+-?\d*\.?\d+(e-?\d+)?){4,}\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Claim:
    """What one file says of itself.

    kind: its format; ``other`` for annotations that cannot be read, with the reason in ``why``;
    ``none`` for what is no annotation. said: the scan that it names. picture: whether it carries
    the scan itself.
    """

    kind: Literal["coco", "labelme", "voc", "nifti", "other", "none"]
    said: str = ""
    why: str = ""
    picture: bool = False


def claim_of(path: Path) -> Claim:
    """Look into a file that may be an annotation; raises nothing."""
    suffix = split_suffix(path.name)[1]
    if suffix in OTHERS:
        return Claim("other", why=f"is {OTHERS[suffix]}")
    if suffix in (".nii", ".nii.gz"):
        return Claim("nifti")
    try:
        if path.stat().st_size > MOST_BYTES:
            return Claim("other", why="is over 1 GiB; split it")
        if suffix == ".json":
            return _json_claim(load_json(path.read_bytes()))
        if suffix == ".xml":
            return _xml_claim(load_xml(path.read_bytes()))
        return _text_claim(path, suffix)
    except ValueError as error:
        return Claim("other", why=str(error))
    except OSError as error:
        return Claim("other", why=f"cannot be read ({error.strerror})")


def load_json(content: bytes) -> Any:
    """A JSON document in UTF-8, -16 or -32.

    Raises:
        ValueError: it is none, with the reason.
    """
    try:
        return json.loads(content)
    except UnicodeDecodeError:
        raise ValueError("is JSON that is not in UTF-8; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"is JSON with an error in line {error.lineno}, column {error.colno}: {error.msg}; "
            "export it again"
        ) from None
    except RecursionError:
        raise ValueError("is JSON that nests too deep; export it again") from None


def load_xml(content: bytes) -> ElementTree.Element:
    """The root of an XML document in any encoding that Python knows, GBK and Shift-JIS among them.

    Raises:
        ValueError: it is none, or declares entities, with the reason.
    """
    said = re.match(
        rb"""(?:\xef\xbb\xbf)?\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]{1,40})""",
        content[:200],
    )
    encoding = said[1].decode() if said else "utf-8"
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    try:
        text = content.decode("utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding)
    except LookupError:
        raise ValueError(
            f"is xml in {encoding}, which is not known here; save it as UTF-8"
        ) from None
    except UnicodeDecodeError:
        raise ValueError(
            f"is xml that says it is in {encoding} and is not; save it as UTF-8"
        ) from None
    if "<!ENTITY" in text:
        raise ValueError("is xml that declares entities, which are not read; export it again")
    try:
        root = ElementTree.fromstring(
            re.sub(r"^\s*<\?xml.*?\?>", "", text, count=1, flags=re.DOTALL)
        )
        for node in root.iter():
            node.tag = node.tag.rpartition("}")[2]  # without its namespace
        return root
    except ElementTree.ParseError as error:
        line, column = error.position
        raise ValueError(
            f"is xml with an error in line {line}, column {column}; export it again"
        ) from None


def _json_claim(document: Any) -> Claim:
    if isinstance(document, dict):
        if isinstance(document.get("images"), list) and isinstance(
            document.get("annotations"), list
        ):
            return Claim("coco")
        if isinstance(document.get("shapes"), list):
            said = document.get("imagePath")
            return Claim(
                "labelme",
                said if isinstance(said, str) else "",
                picture=bool(document.get("imageData")),
            )
        if "_via_img_metadata" in document or any(
            isinstance(v, dict) and "regions" in v for v in document.values()
        ):
            return Claim("other", why=f"is a project of VIA, {EXPORT}")
        if isinstance(document.get("objects"), list) and "size" in document:
            return Claim("other", why=f"is of Supervisely, {EXPORT}")
    first = (
        document[0]
        if isinstance(document, list) and document and isinstance(document[0], dict)
        else {}
    )
    if "data" in first and {"annotations", "completions"} & set(first):
        return Claim("other", why=f"is of Label Studio, {EXPORT}")
    return (
        Claim("other", why=f"is an annotation in JSON of a format {EXPORT}")
        if _draws(document)
        else Claim("none")
    )


def _xml_claim(root: ElementTree.Element) -> Claim:
    if root.tag == "annotation":
        return Claim("voc", (root.findtext("filename") or "").strip())
    if root.tag == "annotations":
        return Claim("other", why=f"is of CVAT, {EXPORT}")
    return (
        Claim("other", why=f"is an annotation in xml of a format {EXPORT}")
        if any(node.tag.lower() in DRAWN for node in root.iter())
        else Claim("none")
    )


def _text_claim(path: Path, suffix: str) -> Claim:
    """Labels of YOLO, a text a scan, and tables of boxes; other texts are no annotations."""
    if suffix not in (".txt", ".csv") or path.stat().st_size > MOST_TEXT:
        return Claim("none")
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    if suffix == ".txt" and lines and all(YOLO_LINE.fullmatch(line.strip()) for line in lines):
        return Claim("other", why=f"is a label file of YOLO, {EXPORT}")
    if suffix == ".csv" and lines and DRAWN_COLUMNS.search(lines[0]):
        return Claim("other", why=f"is a table of boxes, {EXPORT}")
    return Claim("none")


def _draws(document: Any, depth: int = 3) -> bool:
    """Whether a document holds anything that is drawn on a scan, in its first values and not
    deep.
    """
    if not depth or not isinstance(document, dict | list):
        return False
    values = list(document.values() if isinstance(document, dict) else document)[:50]
    own = isinstance(document, dict) and any(str(key).lower() in DRAWN for key in document)
    return own or any(_draws(value, depth - 1) for value in values)
