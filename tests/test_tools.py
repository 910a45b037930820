"""Annotations as the tools of the field write them: each becomes the same three scans with one box,
or says why not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

from raybone.cli import main
from raybone.data.dataset import Dataset, open_dataset
from raybone.data.ingest.dicom.frames import write_scan
from raybone.data.ingest.prepare import prepare
from raybone.deploy.dicom.seg import write_segmentation
from raybone.deploy.dicom.source import MadeBy
from raybone.errors import WrongInput

BOX, SHAPE = (10, 20, 22, 28), (64, 48)
CORNERS = [[10, 20], [22, 20], [22, 28], [10, 28]]
FLAT = [v for corner in CORNERS for v in corner]
SPOT_HW = np.zeros(SHAPE, bool)
SPOT_HW[20:28, 10:22] = True
NAMES = ("0001", "0002", "0003")
LAYOUT_OF = {
    "nnU-Net": "nnunet",
    "3D Slicer NIfTI": "dicom",
    "3D Slicer SEG": "dicom",
    "VOCdevkit": "labelme",
    "labelImg": "labelme",
    "LabelMe": "labelme",
    "X-AnyLabeling": "labelme",
}


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    counts_HW = np.random.default_rng(seed).poisson(40, SHAPE).astype(np.uint8)
    counts_HW[[0, -1]] = counts_HW[:, [0, -1]] = 0
    Image.fromarray(counts_HW).save(path)


def coco(names: list[str], items: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "images": [
            {"id": n, "file_name": name, "height": SHAPE[0], "width": SHAPE[1]}
            for n, name in enumerate(names, 1)
        ],
        "annotations": [
            {
                "id": n,
                "image_id": n,
                "category_id": 1,
                "area": 96,
                "iscrowd": 0,
                "bbox": [10, 20, 12, 8],
                "segmentation": [],
                **item,
            }
            for n, item in enumerate(items, 1)
        ],
        "categories": [{"id": 1, "name": "metastasis", "supercategory": ""}],
        **more,
    }


def save(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


def roboflow(root: Path) -> None:
    """A folder a split, each with its file; the project's name is a category above the others."""
    for seed, (part, name) in enumerate(zip(("train", "valid", "test"), NAMES)):
        called = f"{name}_png.rf.5d41402abc4b2a76b9719d911017c59{seed}.jpg"
        picture(root / part / called, seed)
        save(
            root / part / "_annotations.coco.json",
            coco(
                [called],
                [{}],
                categories=[
                    {"id": 0, "name": "bones-x1f2", "supercategory": "none"},
                    {"id": 1, "name": "metastasis", "supercategory": "bones-x1f2"},
                ],
            ),
        )
    (root / "README.roboflow.txt").write_text("bones - v1")


def cvat(root: Path) -> None:
    """Names without the folder of their subset; a mask of the brush is called a crowd."""
    for seed, name in enumerate(NAMES):
        picture(root / "images" / "Train" / f"{name}.png", seed)
    start = 10 * 64 + 20
    runs = [start, *[8, 56] * 11, 8, 64 * 48 - start - 12 * 8 - 11 * 56]
    brush = {"segmentation": {"size": list(SHAPE), "counts": runs}, "iscrowd": 1}
    save(
        root / "annotations" / "instances_Train.json",
        coco(
            [f"{n}.png" for n in NAMES],
            [
                {"attributes": {"occluded": False}, **more}
                for more in ({}, {"segmentation": [FLAT]}, brush)
            ],
        ),
    )


def label_studio(root: Path) -> None:
    """Ids from 0, and the folder in the names; Windows writes it its own way."""
    called = [f"images\\3f2a81c{n}-{name}.png" for n, name in enumerate(NAMES)]
    for seed, name in enumerate(called):
        picture(root / name.replace("\\", "/"), seed)
    document = coco(called, [{"ignore": 0, "bbox": [10.0, 20.0, 12.0, 8.0]}] * 3)
    for n in range(3):
        document["images"][n]["id"] = document["annotations"][n]["image_id"] = document[
            "annotations"
        ][n]["id"] = n
        document["annotations"][n]["category_id"] = 0
    save(root / "result.json", {**document, "categories": [{"id": 0, "name": "metastasis"}]})


def fiftyone(root: Path) -> None:
    for seed, name in enumerate(NAMES):
        picture(root / "data" / f"{name}.png", seed)
    save(
        root / "labels.json",
        coco([f"{n}.png" for n in NAMES], [{"segmentation": [FLAT]}] * 3, info={}, licenses=[]),
    )


def via(root: Path) -> None:
    """Image ids as text, and polygons without a list around them."""
    for seed, name in enumerate(NAMES):
        picture(root / f"{name}.png", seed)
    save(
        root / "via_project_28Nov2026_coco.json",
        coco(
            [f"{n}.png" for n in NAMES],
            [{"segmentation": FLAT, "image_id": str(n)} for n in (1, 2, 3)],
        ),
    )


def supervisely(root: Path) -> None:
    """A folder a dataset of the project; names repeat over the datasets."""
    for seed, part in enumerate(("ds1", "ds2", "ds3")):
        picture(root / "project" / part / "images" / "0001.png", seed)
        save(
            root / "project" / part / "annotations" / "instances.json",
            coco(["0001.png"], [{"segmentation": [FLAT]}]),
        )


def voc(path: Path, picture_name: str, more: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"""<annotation><folder>x</folder><filename>{picture_name}</filename>{more}
<size><width>48</width><height>64</height><depth>1</depth></size><segmented>0</segmented>
<object><name>metastasis</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>10</xmin><ymin>20</ymin><xmax>22</xmax><ymax>28</ymax></bndbox></object></annotation>""")


def vocdevkit(root: Path) -> None:
    """With masks of the same names in folders of their own, which are no scans."""
    for seed, name in enumerate(NAMES):
        picture(root / "VOC2012" / "JPEGImages" / f"{name}.jpg", seed)
        voc(root / "VOC2012" / "Annotations" / f"{name}.xml", f"{name}.jpg")
        for folder in ("SegmentationClass", "SegmentationObject"):
            (root / "VOC2012" / folder).mkdir(exist_ok=True)
            Image.fromarray(SPOT_HW.astype(np.uint8)).save(
                root / "VOC2012" / folder / f"{name}.png"
            )
    (root / "VOC2012" / "ImageSets" / "Main").mkdir(parents=True)
    (root / "VOC2012" / "ImageSets" / "Main" / "train.txt").write_text("\n".join(NAMES))


def labelimg(root: Path) -> None:
    for seed, name in enumerate(NAMES):
        picture(root / f"{name}.png", seed)
        voc(root / f"{name}.xml", f"{name}.png", f"<path>C:\\Users\\me\\{name}.png</path>")
    (root / "classes.txt").write_text("metastasis\n")


def labelme_file(path: Path, **more: Any) -> None:
    shape = {
        "label": "metastasis",
        "group_id": None,
        "shape_type": "rectangle",
        "flags": {},
        "points": CORNERS[::2],
    }
    save(
        path.with_suffix(".json"),
        {
            "version": "5.5.0",
            "flags": {},
            "imagePath": path.name,
            "imageData": None,
            "imageHeight": 64,
            "imageWidth": 48,
            "shapes": [{**shape, **more}],
        },
    )


def labelme(root: Path) -> None:
    """With what labelme_json_to_dataset unpacks beside each, and what macOS adds."""
    for seed, name in enumerate(NAMES):
        picture(root / f"{name}.png", seed)
        labelme_file(root / f"{name}.png")
        (root / f"._{name}.json").write_bytes(b"\0\5\x16\7" + bytes(60))
        picture(root / f"{name}_json" / "img.png", seed)
        Image.fromarray(SPOT_HW.astype(np.uint8)).save(root / f"{name}_json" / "label.png")


def xanylabeling(root: Path) -> None:
    for seed, name in enumerate(NAMES):
        picture(root / f"{name}.png", seed)
        labelme_file(
            root / f"{name}.png",
            points=CORNERS,
            difficult=False,
            attributes={},
            kie_linking=[],
            score=0.9,
            shape_type="rectangle" if seed else "rotation",
        )


def nnunet(root: Path) -> None:
    for seed, name in enumerate(NAMES):
        picture(root / "imagesTr" / f"bone_{name}_0000.png", seed)
        (root / "labelsTr").mkdir(exist_ok=True)
        Image.fromarray(SPOT_HW.astype(np.uint8)).save(root / "labelsTr" / f"bone_{name}.png")
    save(
        root / "dataset.json",
        {
            "channel_names": {"0": "NM"},
            "labels": {"background": 0, "metastasis": 1},
            "numTraining": 3,
            "file_ending": ".png",
        },
    )


def scans(root: Path) -> list[Path]:
    root.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(NAMES):
        counts_HW = np.random.default_rng(seed).poisson(40, SHAPE).astype(np.uint16)
        write_scan(
            root / f"{name}.dcm", counts_HW, patient=name, view="anterior", pixel_mm=2.4, uid=name
        )
    return sorted(root.glob("*.dcm"))


def slicer_nifti(root: Path) -> None:
    for path in scans(root):
        affine = np.diag([-2.4, -2.4, 1, 1])
        nibabel.save(
            nibabel.Nifti1Image(SPOT_HW.T[:, :, None].astype(np.uint8), affine),
            path.with_suffix(".nii.gz"),
        )


def slicer_seg(root: Path) -> None:
    """A DICOM Segmentation in a folder of its own: what it is of stands in it."""
    (root / "SEG").mkdir(parents=True)
    for path in scans(root / "NM"):
        write_segmentation(
            path, 0, {"malignant": SPOT_HW}, MadeBy("Slicer"), root / "SEG" / f"1.2.3.{path.stem}"
        )


TOOLS: dict[str, Callable[[Path], None]] = {
    "Roboflow": roboflow,
    "CVAT": cvat,
    "Label Studio": label_studio,
    "FiftyOne": fiftyone,
    "VIA": via,
    "Supervisely": supervisely,
    "VOCdevkit": vocdevkit,
    "labelImg": labelimg,
    "LabelMe": labelme,
    "X-AnyLabeling": xanylabeling,
    "nnU-Net": nnunet,
    "3D Slicer NIfTI": slicer_nifti,
    "3D Slicer SEG": slicer_seg,
}


@pytest.mark.parametrize("tool", TOOLS)
def test_what_a_tool_exports_becomes_scans_with_their_lesion(tool: str, tmp_path: Path) -> None:
    TOOLS[tool](tmp_path / "in")
    made = prepare(tmp_path / "in", tmp_path / "ds", folds=3, key=tmp_path / "k")
    dataset = open_dataset(made.path)
    assert made.meta["layout"] == LAYOUT_OF.get(tool, "coco")
    assert [[le.category for le in s.lesions] for s in dataset.scans] == [["malignant"]] * 3
    for scan in dataset.scans:  # outlines that follow pixels may reach one further
        np.testing.assert_allclose(scan.lesions[0].box_xyxy, BOX, atol=1)
        assert not scan.lesions[0].crowd
    assert made.meta["counts"]["unannotated"] == made.meta["counts"]["annotations_lost"] == 0


def other(root: Path, name: str, document: Any) -> None:
    for seed, stem in enumerate(NAMES):
        picture(root / f"{stem}.png", seed)
    save(root / name, document)


REGION = {
    "shape_attributes": {"name": "rect", "x": 10, "y": 20, "width": 12, "height": 8},
    "region_attributes": {},
}
OTHERS: dict[str, tuple[str, Any, str]] = {
    "VIA's project": (
        "via.json",
        {"0001.png9": {"filename": "0001.png", "regions": [REGION]}},
        "a project of VIA",
    ),
    "Label Studio's own": (
        "export.json",
        [{"data": {"image": "0001.png"}, "annotations": []}],
        "Label Studio",
    ),
    "Supervisely's own": (
        "ann.json",
        {"size": {"height": 64, "width": 48}, "objects": []},
        "of Supervisely",
    ),
    "CreateML": (
        "labels.json",
        [{"image": "0001.png", "annotations": [{"label": "m"}]}],
        "in JSON of a format",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_formats_that_are_not_read_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    name, document, why = OTHERS[kind]
    other(tmp_path / "in", name, document)
    with pytest.raises(WrongInput, match=f"{why}.* not read: export it as COCO, LabelMe or VOC"):
        prepare(tmp_path / "in", tmp_path / "ds", folds=2, key=tmp_path / "k")
    made = prepare(
        tmp_path / "in",
        tmp_path / "ds",
        layout="labelme",
        folds=2,
        key=tmp_path / "k",
        allow_unmatched=True,
    )
    assert made.meta["counts"]["unannotated"] == 3


def test_labels_of_yolo_are_read_from_the_folder_beside_that_of_the_images(tmp_path: Path) -> None:
    for seed, name in enumerate(NAMES):
        picture(tmp_path / "in" / "images" / f"{name}.png", seed)
        (tmp_path / "in" / "labels").mkdir(exist_ok=True)
        (tmp_path / "in" / "labels" / f"{name}.txt").write_text("0 0.333 0.375 0.25 0.125\n")
    names = {"class 0": "malignant"}
    made = prepare(tmp_path / "in", tmp_path / "ds", folds=2, key=tmp_path / "k", categories=names)
    assert [len(s.lesions) for s in open_dataset(made.path).scans] == [1, 1, 1]


def test_a_folder_that_ultralytics_trains_on_is_a_dataset(tmp_path: Path) -> None:
    for seed, name in enumerate(NAMES):
        picture(tmp_path / "in" / "images" / "train" / f"{name}.png", seed)
        (tmp_path / "in" / "labels" / "train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / "labels" / "train" / f"{name}.txt").write_text(
            "0 0.333 0.375 0.25 0.125\n"
        )
    (tmp_path / "in" / "data.yaml").write_text(
        "path: .\ntrain: images/train\nval: images/train\nnames: {0: metastasis}\n"
    )
    words = [str(tmp_path / "in"), str(tmp_path / "ds"), "--folds", "2"]
    assert main(["prepare", *words, "--key", str(tmp_path / "k")]) == 0
    assert open_dataset(tmp_path / "ds").categories == ["malignant"]


def test_two_annotations_of_a_scan_are_one_when_they_agree_and_none_when_not(
    tmp_path: Path,
) -> None:
    labelimg(tmp_path / "in")
    for name in NAMES[:2]:
        labelme_file(
            tmp_path / "in" / f"{name}.png",
            points=CORNERS[::2] if name == "0001" else [[1, 1], [9, 9]],
        )
    made = prepare(tmp_path / "in", tmp_path / "ds", folds=2, key=tmp_path / "k")
    assert [len(s.lesions) for s in open_dataset(made.path).scans] == [1, 1]
    assert [reason for _, _, reason in made.rejected if "differ" in reason] == [
        "has two annotations that differ; keep the one that is right"
    ]


def test_a_segmentation_is_of_all_copies_of_its_object(tmp_path: Path) -> None:
    slicer_seg(tmp_path / "in")
    shutil.copytree(tmp_path / "in" / "NM", tmp_path / "in" / "again")
    made = prepare(tmp_path / "in", tmp_path / "ds", folds=3, key=tmp_path / "k")
    assert [len(s.lesions) for s in open_dataset(made.path).scans] == [1] * 6
    assert made.meta["counts"]["annotations_lost"] == 0


def test_a_segmentation_of_an_object_that_is_not_taken_does_not_end_prepare(
    tmp_path: Path,
) -> None:
    slicer_seg(tmp_path / "in")
    tomogram = pydicom.dcmread(tmp_path / "in" / "NM" / "0003.dcm")
    tomogram.Modality = "CT"
    tomogram.save_as(tmp_path / "in" / "NM" / "0003.dcm")
    made = prepare(tmp_path / "in", tmp_path / "ds", folds=2, key=tmp_path / "k")
    assert [len(s.lesions) for s in open_dataset(made.path).scans] == [1, 1]
    assert sorted(reason for _, _, reason in made.rejected) == [
        "Modality is CT, not NM",
        "is a segmentation of objects that were not taken",
    ]
    counts = made.meta["counts"]
    assert (counts["annotations_lost"], counts["annotations_of_rejected"]) == (0, 1)


def test_a_segmentation_of_scans_that_are_not_here_is_refused(tmp_path: Path) -> None:
    slicer_seg(tmp_path / "in")
    (tmp_path / "in" / "NM" / "0003.dcm").unlink()
    with pytest.raises(WrongInput, match="segmentation of objects that are not here"):
        prepare(tmp_path / "in", tmp_path / "ds", folds=2, key=tmp_path / "k")
    assert (
        main(
            [
                "prepare",
                str(tmp_path / "in"),
                str(tmp_path / "ds"),
                "--folds",
                "2",
                "--key",
                str(tmp_path / "k"),
                "--allow-unmatched",
            ]
        )
        == 0
    )
    dataset: Dataset = open_dataset(tmp_path / "ds")
    assert [len(s.lesions) for s in dataset.scans] == [1, 1]
