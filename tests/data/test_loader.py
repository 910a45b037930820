"""Loading: shares of ranks, the same samples whatever the number of processes."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from faults import unseal

from raybone.data.augment import Augmentation
from raybone.data.cache import Intensities, as_float
from raybone.data.dataset import open_dataset
from raybone.data.loader import (
    Change,
    EpochSampler,
    Look,
    ScanSamples,
    training_loader,
    validation_loader,
)
from raybone.data.preprocess import resize, to_intensity
from raybone.tasks import task_named
from raybone.types import Array, Prediction, Scan


@pytest.fixture
def samples(dataset: Path) -> ScanSamples:
    opened = open_dataset(dataset)
    hyper = Augmentation(mosaic=0.5, gamma=0.3)
    look, images = Look(["malignant"], 128, True), Intensities(opened, 128)
    return ScanSamples(images, opened.training(0), look, Change(hyper, 1))


def test_the_scan_keeps_its_aspect(samples: ScanSamples) -> None:
    assert samples.canvas == (128, 32)


def test_loader_processes_change_nothing(samples: ScanSamples) -> None:
    def images(processes: int) -> torch.Tensor:
        loader, sampler = training_loader(samples, 4, 0, 1, processes)
        sampler.epoch = 3
        return torch.cat([batch.image_NCHW for batch in loader])

    assert torch.equal(images(0), images(2))


def test_ranks_share_an_epoch_and_see_another_order_in_the_next() -> None:
    shares = [EpochSampler(7, 0, rank, 2) for rank in range(2)]
    seen = [[i for _, i in share] for share in shares]
    assert len(seen[0]) == len(seen[1]) == 4
    assert set(seen[0]) | set(seen[1]) == set(range(7))
    shares[0].epoch = 2
    assert [i for _, i in shares[0]] != seen[0]


def test_validation_shares_are_disjoint_and_complete(samples: ScanSamples) -> None:
    seen = [
        int(i)
        for rank in range(3)
        for batch in validation_loader(samples, 4, rank, 3, 0)
        for i in batch.index_N
    ]
    assert sorted(seen) == list(range(len(samples)))


def test_validation_images_are_not_augmented(samples: ScanSamples) -> None:
    first, second = (samples[(-1, 0)][1], samples[(-1, 0)][1])
    np.testing.assert_array_equal(first.image_HW, second.image_HW)
    scale = 128 / samples.scans[0].height
    known = [le.box_xyxy for le in samples.scans[0].lesions if le.category == "malignant"]
    np.testing.assert_allclose(first.boxes_N4, np.array(known, np.float32).reshape(-1, 4) * scale)


def test_a_cache_changes_nothing_whatever_the_order_of_rows(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    opened = open_dataset(dataset)
    turned = tmp_path / "turned"
    shutil.copytree(dataset, turned)
    unseal(turned)
    pixels = turned / "pixels" / "256x64.npy"
    np.save(pixels, np.load(pixels)[::-1])
    rows = pd.read_csv(turned / "scans.csv")
    rows.assign(row=rows["row"].max() - rows["row"]).to_csv(turned / "scans.csv", index=False)
    for size in (128, 256):
        first, second = Intensities(opened, size), Intensities(open_dataset(turned), size)
        assert set(first.files) == {(256, 64)}
        assert first.files == second.files
        assert all(p.parent.stat().st_mode & 0o077 == 0 for p, _ in first.files.values())
        for scan in opened.scans:
            plain_HW, _ = resize(to_intensity(opened.counts(scan), scan.high), size)
            np.testing.assert_allclose(as_float(first(scan)), plain_HW, atol=1e-5)
            np.testing.assert_array_equal(first(scan), second(scan))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    full = Intensities(opened, 64)
    assert full.files == {}
    assert full(opened.scans[0]).shape == (64, 16)


def test_a_montage_puts_both_views_of_a_patient_side_by_side_and_takes_them_apart_again(
    dataset: Path,
) -> None:
    opened = open_dataset(dataset)
    scans = opened.training(0)[:-1]  # one view stays alone
    images = Intensities(opened, 128)
    single = ScanSamples(images, scans, Look(["malignant"], 128, True))
    pairs = ScanSamples(images, scans, Look(["malignant"], 128, True, montage=True))
    assert pairs.canvas == (128, 64)
    assert sorted(i for group in pairs.groups for i in group) == list(range(len(scans)))
    assert sorted(len(group) for group in pairs.groups) == [1, 2, 2, 2, 2, 2]
    for index, group in enumerate(pairs.groups):
        assert [scans[i].view for i in group] in (
            ["anterior", "posterior"],
            ["anterior"],
            ["posterior"],
        )
        assert len({scans[i].patient_id for i in group}) == 1
        sample = pairs[(-1, index)][1]
        as_found = Prediction(
            sample.boxes_N4, np.ones(len(sample.boxes_N4), np.float32), sample.labels_N
        )
        as_mask = Prediction(mask_CHW=sample.mask_CHW.astype(np.float32))
        for part, place in enumerate(group):
            boxes = task_named("detection").crop(as_found, part, 32, 2)
            mask = task_named("segmentation").crop(as_mask, part, 32, 2)
            alone = single[(-1, place)][1]
            np.testing.assert_allclose(boxes.boxes_N4, alone.boxes_N4, atol=1e-4)
            np.testing.assert_array_equal(mask.mask_CHW, alone.mask_CHW)


def test_a_box_across_the_middle_of_a_montage_goes_with_its_centre_and_stays_inside() -> None:
    across = Prediction(
        np.array([[28, 5, 38, 15], [26, 5, 36, 15]], np.float32),
        np.array([0.9, 0.8], np.float32),
        np.zeros(2, np.int64),
    )
    left, right = (task_named("detection").crop(across, part, 32, 2) for part in (0, 1))
    np.testing.assert_array_equal(left.boxes_N4, [[26, 5, 32, 15]])
    np.testing.assert_array_equal(right.boxes_N4, [[0, 5, 6, 15]])


def test_a_scan_is_scored_on_its_own_canvas_whatever_else_is_there(dataset: Path) -> None:
    opened = open_dataset(dataset)
    images, scans = Intensities(opened, 128), opened.training(0)
    wide = replace(scans[1], width=scans[1].height, scan_id="wide", lesions=())

    def of(scan: Scan) -> Array:
        return np.tile(images(scans[1]), 4) if scan.scan_id == "wide" else images(scan)

    look = Look(["malignant"], 128, masks=True)
    own = ScanSamples(of, scans, look)
    mixed = ScanSamples(of, [*scans[:3], wide, *scans[3:]], look)
    assert own.canvas == (128, 32)
    assert mixed.canvas == (128, 128)
    batches = [*validation_loader(mixed, 4, 0, 1, 0)]
    shapes = {tuple(batch.image_NCHW.shape[2:]) for batch in batches}
    assert shapes == {(128, 32), (128, 128)}
    assert sorted(i for b in batches for i in b.index_N.tolist()) == list(range(len(mixed)))
    alone = {
        i: x
        for b in validation_loader(own, 4, 0, 1, 0)
        for i, x in zip(b.index_N.tolist(), b.image_NCHW)
    }
    for batch in batches:
        for index, image in zip(batch.index_N.tolist(), batch.image_NCHW):
            if index != 3:
                assert torch.equal(image, alone[index - (index > 3)])
    shares = [
        [i for b in validation_loader(mixed, 4, r, 2, 0) for i in b.index_N.tolist()]
        for r in (0, 1)
    ]
    assert sorted(shares[0] + shares[1]) == list(range(len(mixed)))


def test_boxes_in_the_air_beside_a_scan_are_none() -> None:
    scan = Scan("a", "p", "anterior", 128, 30, None, 0, 1.0)
    boxes_N4 = np.array([[4, 5, 9, 10], [30, 5, 32, 15], [28, 120, 32, 140]], np.float32)
    found = Prediction(boxes_N4, np.array([0.9, 0.8, 0.7], np.float32), np.zeros(3, np.int64))
    inside = task_named("detection").in_scan(scan, found, 128)
    np.testing.assert_array_equal(inside.boxes_N4, [[4, 5, 9, 10], [28, 120, 30, 128]])
    assert inside.scores_N.tolist() == pytest.approx([0.9, 0.7])
    assert len(inside.labels_N) == 2


def test_a_montage_is_augmented_as_one_image_and_a_mosaic_is_of_four(dataset: Path) -> None:
    opened = open_dataset(dataset)
    pairs = ScanSamples(
        Intensities(opened, 128),
        opened.training(0),
        Look(["malignant"], 128, montage=True),
        Change(Augmentation(mosaic=1.0), 1),
    )
    sample = pairs[(1, 0)][1]
    assert sample.image_HW.shape == (128, 64)
    assert (sample.boxes_N4[:, [0, 2]] <= 64).all()
