"""inspect: counts, look-alikes under two names, and damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest

from raybone.inspect import inspect, inspection_lines
from raybone.prepare import prepare
from raybone.records import WrongInput


def test_a_sound_dataset_has_no_problems(dataset: Path) -> None:
    found = inspect(dataset)
    assert found["problems"] == []
    assert found["near_duplicates"] == []
    assert found["counts"]["views"] == {"anterior": 9, "posterior": 9}
    assert inspection_lines(found)[-1] == "no problems found"


def test_one_patient_under_two_names_is_found_even_with_other_noise(cohort: Path, tmp_path: Path) -> None:
    source = tmp_path / "src"
    shutil.copytree(cohort, source)
    twin = pydicom.dcmread(source / "PHANTOM-0001" / "anterior.dcm")
    rng = np.random.default_rng(0)
    twin.PixelData = (twin.pixel_array + rng.integers(0, 2, twin.pixel_array.shape)).astype("<u2").tobytes()
    twin.PatientID = "ANOTHER"
    twin.save_as(source / "twin.dcm")
    made = prepare(source, tmp_path / "ds", folds=2, key=tmp_path / "k")
    (first, second, distance), = inspect(made.path)["near_duplicates"]
    assert first != second
    assert 0 <= distance < 0.02


def test_damage_is_named(dataset: Path, tmp_path: Path) -> None:
    broken = tmp_path / "ds"
    shutil.copytree(dataset, broken)
    pixels = next((broken / "pixels").glob("*.npy"))
    np.save(pixels, np.load(pixels)[:-1])
    assert "is not there" in inspect(broken)["problems"][0]
    (broken / "folds.csv").write_text("patient_id,fold\n")
    with pytest.raises(WrongInput, match="every patient needs a fold"):
        inspect(broken)
    with pytest.raises(WrongInput, match=r"no dataset\.json"):
        inspect(tmp_path)
