"""Folders as tools and hospitals leave them: no scan becomes a negative, no label goes to another
patient, and no copy to another fold, because of how something is called or packed.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from raybone.data.dataset import Dataset, open_dataset
from raybone.data.ingest.prepare import prepare
from raybone.errors import WrongInput
from raybone.phantom.phantom import phantom
from raybone.types import Scan


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 200, (48, 40)).astype(np.uint8)
    Image.fromarray(values).save(path)


def mask(path: Path, value: int = 255, row: int = 10, void: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((48, 40), np.uint8)
    values[row : row + 6, 8:16] = value
    values[30:40, 8:16] = void
    Image.fromarray(values).save(path)


def prepared(source: Path, **options: object) -> Dataset:
    """A dataset of two folds beside the source."""
    place = source.parent / f"ds-{source.name}"
    made = prepare(source, place, folds=2, key=source.parent / "key", **options)  # type: ignore[arg-type]
    return open_dataset(made.path)


def by_labels(dataset: Dataset, name: str) -> dict[str, Scan]:
    return {dict(s.labels)[name]: s for s in dataset.scans}


def test_an_image_with_bones_alone_where_others_have_lesions_is_no_negative(tmp_path: Path) -> None:
    source = tmp_path / "s"
    for n in range(6):
        picture(source / f"images/{n}.png", n)
        mask(source / f"masks_skull/{n}.png", row=2)
        if n < 4:
            mask(source / f"masks/{n}.png")
    dataset = prepared(source)
    assert sorted(s.annotated for s in dataset.scans) == [False] * 2 + [True] * 4
    told = json.dumps(dataset.meta["remarks"])
    assert "it counts as unannotated" in told
    # Where nobody has lesions, bones are what is looked for.
    shutil.rmtree(source / "masks")
    source = source.rename(tmp_path / "bones")
    assert all(s.annotated for s in prepared(source).scans)


@pytest.mark.parametrize("names", [["metastasis"], ["metastasis", "benign"]])
def test_what_nnunet_ignores_is_a_crowd_of_every_class(names: list[str], tmp_path: Path) -> None:
    source, last = tmp_path / "s", len(names) + 1
    for n in range(4):
        picture(source / f"imagesTr/c{n}_0000.png", n)
        mask(source / f"labelsTr/c{n}.png", 1, void=last)
    classes = {"background": 0, **{name: n for n, name in enumerate(names, 1)}, "ignore": last}
    text = {"labels": classes, "channel_names": {"0": "NM"}, "file_ending": ".png"}
    (source / "dataset.json").write_text(json.dumps(text))
    for scan in prepared(source).scans:
        assert [le.category for le in scan.lesions if not le.crowd] == ["malignant"]
        crowds = sorted(le.category for le in scan.lesions if le.crowd)
        assert crowds == ["benign", "malignant"][2 - len(names) :]


def test_versions_of_one_picture_stay_in_one_fold(tmp_path: Path) -> None:
    source, kinds = tmp_path / "s", "0123456789abcdef"
    for n in range(6):
        for version in range(3):
            name = f"{n:04d}_jpg.rf.{kinds[version] * 32}"
            picture(source / f"images/{name}.png", 10 * n + version)
            mask(source / f"masks/{name}.png")
    lines = [f"images/{p.name},{p.name[:4]}" for p in (source / "images").iterdir()]
    (source / "labels.csv").write_text("\n".join(["file,case", *lines]))
    dataset = prepared(source)
    folds = {(dict(s.labels)["case"], dataset.fold_of[s.patient_id]) for s in dataset.scans}
    assert len(folds) == 6


@pytest.mark.parametrize("name", ["images\\{}.png", "./images/{}.png", "images//{}.png"])
def test_a_path_in_the_table_may_be_written_otherwise(name: str, tmp_path: Path) -> None:
    source = tmp_path / "s"
    for n in range(4):
        picture(source / f"images/é{n}.png", n)
        mask(source / f"masks/é{n}.png")
    lines = [f"{name.format(f'é{n}')},{n}" for n in range(4)]
    (source / "labels.csv").write_text("\n".join(["file,case", *lines]), encoding="utf-8")
    assert set(by_labels(prepared(source), "case")) == set("0123")


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("file,case\nelsewhere/0.png,0\nelsewhere/1.png,1\n", "none of its 2 lines is of a scan"),
        ("file,case\nimages/0.png,0\n,1\n", "line 3: file must not be empty"),
        ("file,case\nimages/0.png,0\nimages\\0.png,1\n", "name one file in two ways"),
    ],
)
def test_a_table_that_is_of_nothing_here_is_refused(table: str, why: str, tmp_path: Path) -> None:
    source = tmp_path / "s"
    for n in range(4):
        picture(source / f"images/{n}.png", n)
        mask(source / f"masks/{n}.png")
    (source / "labels.csv").write_text(table)
    with pytest.raises(WrongInput, match=why):
        prepared(source)
    assert not (tmp_path / "ds-s").exists()


def test_ids_of_which_a_spreadsheet_dropped_the_zeros_are_refused(tmp_path: Path) -> None:
    source = phantom(tmp_path / "s", 4, 3, height=128)
    for file in source.rglob("*.dcm"):
        opened = pydicom.dcmread(file)
        opened.PatientID = opened.PatientID.replace("PHANTOM-", "")
        opened.save_as(file)
    lines = ["patient_id,primary", "1,breast", "0002,breast", "9,prostate"]
    (source / "labels.csv").write_text("\n".join(lines))
    with pytest.raises(WrongInput, match="1 of its patient_ids are of scans here but for zeros"):
        prepared(source)


def test_tables_of_two_archives_must_not_mean_other_patients_by_one_id(tmp_path: Path) -> None:
    source = tmp_path / "s"
    for name, primary in (("A", "breast"), ("B", "prostate")):
        for n in range(2):
            picture(tmp_path / f"{name}/images/{name}{n}.png", ord(name) + n)
            mask(tmp_path / f"{name}/masks/{name}{n}.png")
        (tmp_path / name / "labels.csv").write_text(f"patient_id,primary\n001,{primary}\n")
        source.mkdir(exist_ok=True)
        shutil.make_archive(str(source / name), "zip", tmp_path / name)
    with pytest.raises(
        WrongInput, match="those of several folders or archives differ in 1 of the 1"
    ):
        prepared(source)


def test_a_zip_of_a_mac_is_what_the_folder_is(tmp_path: Path) -> None:
    for n in range(4):
        picture(tmp_path / f"BM/images/{n}.png", n)
        mask(tmp_path / f"BM/masks/{n}.png")
    (tmp_path / "BM/labels.csv").write_text(
        "\n".join(["file,case", *(f"images/{n}.png,{n}" for n in range(4))])
    )
    folder, packed = prepared(tmp_path / "BM"), tmp_path / "BM.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted((tmp_path / "BM").rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path))
        archive.writestr("__MACOSX/BM/images/._0.png", b"left over")
        archive.writestr("__MACOSX/._BM", b"left over")
    assert prepared(packed).hash == folder.hash


def test_classes_of_yolo_are_named_wherever_the_yaml_lies(tmp_path: Path) -> None:
    source = tmp_path / "s"
    for n in range(4):
        picture(source / f"bone-1/train/images/{n}.png", n)
        label = source / f"bone-1/train/labels/{n}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text("1 0.5 0.5 0.2 0.2\n")
    (source / "bone-1/data.yaml").write_text("names: [benign, malignant]\nnc: 2\n")
    assert {le.category for s in prepared(source).scans for le in s.lesions} == {"malignant"}


@pytest.mark.parametrize("visits", [("2021",), ("2019", "2021")])
def test_views_of_two_visits_are_not_joined(visits: tuple[str, ...], tmp_path: Path) -> None:
    source, lines = tmp_path / "s", []
    for patient in range(4):
        for visit in visits:
            for view in ("anterior", "posterior"):
                if (visit, view) != ("2019", "posterior"):
                    name = f"{patient}_{visit}_{view}"
                    picture(source / f"images/{name}.png", len(lines))
                    mask(source / f"masks/{name}.png")
                    lines.append(f"images/{name}.png,P{patient},{view}")
    (source / "labels.csv").write_text("\n".join(["file,patient_id,view", *lines]))
    if len(visits) > 1:  # which of two fronts the back belongs to is not known
        with pytest.raises(WrongInput):
            prepared(source, steps=("montage",))
    else:
        assert [s.view for s in prepared(source, steps=("montage",)).scans] == [
            "anterior|posterior"
        ] * 4
