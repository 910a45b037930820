"""Pictures: which way round, how large, with what beside them; their legend, and a batch as the
network sees it.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
import yaml
from PIL import Image

from raybone.cli import main
from raybone.data.annotations import rle_of
from raybone.data.contact_sheet import contact_sheet
from raybone.data.dataset import Dataset, open_dataset
from raybone.data.ingest.prepare import prepare
from raybone.data.inspect import inspect
from raybone.data.overlay import Picture, overlay
from raybone.phantom.phantom import phantom


def drawn(dataset: Dataset) -> np.ndarray:
    """The first scan's picture without a finding, RGB."""
    scan = dataset.scans[0]
    png = overlay(Picture(dataset.counts(scan), scan.high, scan.flags), {"masks": []})
    return np.array(Image.open(io.BytesIO(png)).convert("RGB"))


def sheet(dataset: Path, out: Path) -> np.ndarray:
    contact_sheet(dataset, out, inspect(dataset))
    return np.asarray(cv2.imread(str(out)))


def test_ct_is_bright_on_black_and_nuclear_medicine_dark_on_white(tmp_path: Path) -> None:
    source = phantom(tmp_path / "scans", 2, height=128)
    nm = prepare(source, tmp_path / "nm", folds=2, key=tmp_path / "k").path
    for path in source.rglob("*.dcm"):
        scan = pydicom.dcmread(path)
        scan.Modality, scan.SOPClassUID = "CT", "1.2.840.10008.5.1.4.1.1.2"
        scan.save_as(path)
    ct = prepare(source, tmp_path / "ct", modality="CT", folds=2, key=tmp_path / "k").path
    assert {s.flags for s in open_dataset(nm).scans} == {()}
    assert {s.flags for s in open_dataset(ct).scans} == {("modality-CT",)}
    assert open_dataset(nm).hash == open_dataset(ct).hash
    air = [int(drawn(open_dataset(path))[:20, 60:110].mean()) for path in (nm, ct)]
    assert air[0] > 230
    assert air[1] < 25
    bright, dark = (sheet(path, tmp_path / f"{path.name}.png").mean() for path in (nm, ct))
    assert bright > dark + 20


def test_a_picture_without_a_header_is_of_the_modality_that_is_asked_for(tmp_path: Path) -> None:
    source = phantom(tmp_path / "scans", 2, layout="labelme", height=128)
    made = prepare(source, tmp_path / "ds", modality="CT", folds=2, key=tmp_path / "k")
    assert all("modality-CT" in s.flags for s in open_dataset(made.path).scans)


@pytest.mark.parametrize(("size", "times"), [((256, 64), 2), ((1024, 256), 1), ((40, 300), 1)])
def test_a_native_picture_has_whole_pixels_of_the_scan(size: tuple[int, int], times: int) -> None:
    counts_HW = np.random.default_rng(0).integers(0, 100, size, dtype=np.uint16)
    png = overlay(Picture(counts_HW, 100.0, native=True), {"boxes": [], "scores": []})
    grey_HW = np.array(Image.open(io.BytesIO(png)).convert("L")).astype(int)
    want_HW = 255 * (1 - np.sqrt(counts_HW / 100.0)).repeat(times, 0).repeat(times, 1)
    height, width = want_HW.shape
    left = (grey_HW.shape[1] - width) // 2
    assert np.abs(grey_HW[:height, left : left + width] - want_HW).max() <= 2


@pytest.mark.parametrize("box", [(10, 60, 20, 70), (50, 60, 62, 70), (0, 0, 64, 256)])
def test_every_finding_has_its_score_beside_it(box: tuple[int, ...]) -> None:
    counts_HW, mask_HW = np.zeros((256, 64), np.uint16), np.zeros((256, 64), bool)
    mask_HW[box[1] : box[3], box[0] : box[2]] = True
    pictures = [
        overlay(
            Picture(counts_HW, 1.0, native=True),
            {"masks": [rle_of(mask_HW)], "boxes": [box], "scores": scores},
        )
        for scores in ([], [0.87])
    ]
    plain, scored = (
        np.array(Image.open(io.BytesIO(p)).convert("RGB")).astype(int) for p in pictures
    )
    rows, columns = np.nonzero(np.abs(plain - scored).sum(2) > 100)
    assert len(rows) > 30
    assert rows.min() >= box[1] * 2 - 2  # from the top of the finding down
    assert rows.max() < box[1] * 2 + 20
    assert columns.min() > 0
    assert columns.max() < scored.shape[1] - 1


def test_the_contact_sheet_has_a_legend(dataset: Path, tmp_path: Path) -> None:
    low_HW3 = sheet(dataset, tmp_path / "sheet.png")[-50:].astype(int)
    assert (low_HW3[..., 2] - low_HW3[..., 0] > 80).sum() > 10  # red
    assert (low_HW3[..., 0] - low_HW3[..., 2] > 80).sum() > 10  # blue


@pytest.mark.parametrize(
    ("model", "fixed"),
    [
        ("unet", {"categories": ["malignant", "benign"]}),
        ("unet", {"tile": 64}),
        ("fcos_r50", {}),
        ("lesion_resnet50", {}),
    ],
)
def test_preview_draws_a_batch_as_the_network_sees_it(
    model: str,
    fixed: dict[str, Any],
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = {
        "dataset": str(dataset),
        "model": model,
        "fixed": {"imgsz": 128, "batch": 4, "nbs": 4, **fixed},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(study))
    words = ["preview", str(tmp_path / "s.yaml"), "--epoch-seconds", "1", "--png"]
    assert main([*words, str(tmp_path / "batch.png")]) == 0, capsys.readouterr().err
    picture = cv2.imread(str(tmp_path / "batch.png")).astype(int)
    assert min(picture.shape[:2]) > 100
    assert (picture[..., 2] - picture[..., 0] > 80).sum() > 20  # targets in red
    assert main([*words, str(tmp_path)]) == 2
    assert "--png: must be a file in a folder that is there" in capsys.readouterr().err
