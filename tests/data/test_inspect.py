"""inspect: counts, look-alikes under two names, and damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from raybone.cli import main
from raybone.data.contact_sheet import contact_sheet
from raybone.data.ingest.prepare import prepare
from raybone.data.inspect import inspect, inspection_lines
from raybone.errors import WrongInput
from raybone.phantom.phantom import phantom


def test_a_sound_dataset_has_no_problems(dataset: Path) -> None:
    found = inspect(dataset)
    assert found["problems"] == []
    assert found["near_duplicates"] == []
    assert found["counts"]["views"] == {"anterior": 9, "posterior": 9}
    assert "problems: []" in inspection_lines(found)


def test_one_patient_under_two_names_is_found_even_with_other_noise(
    cohort: Path, tmp_path: Path
) -> None:
    source = tmp_path / "src"
    shutil.copytree(cohort, source)
    twin = pydicom.dcmread(source / "PHANTOM-0001" / "anterior.dcm")
    rng = np.random.default_rng(0)
    twin.PixelData = (
        (twin.pixel_array + rng.integers(0, 2, twin.pixel_array.shape)).astype("<u2").tobytes()
    )
    twin.PatientID = "ANOTHER"
    twin.save_as(source / "twin.dcm")
    made = prepare(source, tmp_path / "ds", folds=2, key=tmp_path / "k")
    ((first, second, distance),) = inspect(made.path)["near_duplicates"]
    assert first != second
    assert 0 <= distance < 0.1


def test_damage_is_named(dataset: Path, tmp_path: Path) -> None:
    broken = tmp_path / "ds"
    shutil.copytree(dataset, broken)
    pixels = next((broken / "pixels").glob("*.npy"))
    np.save(pixels, np.load(pixels)[:-1])
    assert "is not there" in inspect(broken)["problems"][0]
    (broken / "folds.csv").write_text("patient_id,fold\n")
    with pytest.raises(WrongInput, match=r"its hash stands for folds\.csv as first written"):
        inspect(broken)
    with pytest.raises(WrongInput, match=r"no dataset\.json"):
        inspect(tmp_path)


def test_a_dataset_without_a_lesion_is_a_problem_and_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = phantom(tmp_path / "src", 3, 0, height=128)
    for path in source.rglob("*.json"):
        path.unlink()
    words = [
        "prepare",
        str(source),
        str(tmp_path / "ds"),
        "--folds",
        "3",
        "--key",
        str(tmp_path / "k"),
    ]
    assert main(words) == 0
    assert "warning: no scan has a lesion" in capsys.readouterr().out
    assert inspect(tmp_path / "ds")["problems"][0].startswith(
        "no scan has a lesion: there is nothing to train on"
    )


def test_scans_that_were_not_prepared_are_told_from_other_folders(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "it's"
    shutil.copytree(cohort, place)
    cv2.imwrite(str(place / "scan.png"), np.zeros((9, 9), np.uint8))
    assert main(["inspect", str(place)]) == 2
    error = capsys.readouterr().err
    assert "holds 18 DICOM files and 1 images, but no dataset.json: run `raybone prepare '" in error
    assert error.endswith(" data/NAME` and give that folder\n")
    assert error.count("\n") == 1


def test_swapped_views_mirrored_scans_and_repeats_are_suspects(tmp_path: Path) -> None:
    source = phantom(tmp_path / "src", 8, 3, height=256)

    def rewrite(name: str, turn: bool = False, view: str = "", uid: str = "") -> None:
        path = source / name
        scan = pydicom.dcmread(path)
        if turn:
            scan.PixelData = np.ascontiguousarray(scan.pixel_array[:, ::-1]).tobytes()
        if view:
            code = scan.DetectorInformationSequence[0].ViewCodeSequence[0]
            code.CodeValue, code.CodeMeaning = (
                {"anterior": "399321004", "posterior": "399001007"}[view],
                view,
            )
        if uid:
            scan.SOPInstanceUID, scan.PixelData = uid, (scan.pixel_array + 1).tobytes()
            path = source / "again.dcm"
        scan.save_as(path)

    rewrite("PHANTOM-0001/anterior.dcm", view="posterior")
    rewrite("PHANTOM-0001/posterior.dcm", view="anterior")
    rewrite("PHANTOM-0003/posterior.dcm", turn=True)
    uid = str(pydicom.dcmread(source / "PHANTOM-0005" / "anterior.dcm").SOPInstanceUID)
    rewrite("PHANTOM-0005/anterior.dcm", uid=uid)
    made = prepare(source, tmp_path / "ds", folds=2, key=tmp_path / "k")
    name_of = {
        scan_id: Path(path).relative_to(source).as_posix() for _, scan_id, path in made.sources
    }
    found = inspect(made.path)
    assert {name_of[i]: why.split(" ")[0] for i, why in found["suspects"]} == {
        "PHANTOM-0001/anterior.dcm": "looks",
        "PHANTOM-0001/posterior.dcm": "looks",
        "PHANTOM-0003/posterior.dcm": "fits",
    }
    assert [{name_of[i] for i in group} for group in found["repeats"]] == [
        {"PHANTOM-0005/anterior.dcm", "again.dcm"}
    ]
    assert contact_sheet(made.path, tmp_path / "sheet.png", found) == 17
    assert cv2.imread(str(tmp_path / "sheet.png")).shape[0] > 400


def test_changed_pixels_are_a_problem(dataset: Path, tmp_path: Path) -> None:
    broken = tmp_path / "ds"
    shutil.copytree(dataset, broken)
    path = next((broken / "pixels").glob("*.npy"))
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    (problem,) = inspect(broken)["problems"]
    assert problem.endswith("its pixels are not those it was made with")
