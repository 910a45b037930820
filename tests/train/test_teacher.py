"""Scans without annotation in training: what is sure becomes their truth, and nothing else does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist

from raybone.data.dataset import Dataset, open_dataset
from raybone.data.folds import TRAINING
from raybone.data.ingest.prepare import prepare
from raybone.data.loader import CROWD, Batch, EpochSampler
from raybone.errors import WrongInput
from raybone.models import load
from raybone.phantom.phantom import phantom
from raybone.run.checks import resolve
from raybone.storage import Folder
from raybone.study.files import parse_study
from raybone.train import fit as training
from raybone.train import teacher
from raybone.train.fit import fit
from raybone.train.samples import FoldJob
from raybone.train.teacher import taught
from raybone.types import Epoch, Prediction

SMALL: dict[str, dict[str, Any]] = {
    "unet": {"width": 4, "depth": 2},
    "yolo11n": {},
    "lesion_resnet50": {"target": "abnormal"},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def half_known(path: Path) -> Dataset:
    """The dataset with every other patient's scans as if nobody had looked at them."""
    opened = open_dataset(path)
    hidden = sorted(opened.fold_of)[::2]
    return replace(
        opened,
        scans=tuple(
            replace(s, flags=("unannotated",), lesions=())
            if s.patient_id in hidden
            else replace(s, labels=(("abnormal", str(int(bool(s.lesions)))),))
            for s in opened.scans
        ),
    )


def job(dataset: Dataset, name: str = "unet", **hyper: Any) -> FoldJob:
    model, values = load(name), {"batch": 4, "nbs": 4, "imgsz": 128, "unlabelled": 1}
    config = model.Config.model_validate({**values, **SMALL[name], **hyper})
    return FoldJob(dataset, model, config, 0, 4)


def run(of: FoldJob, folder: Path, stop: int = 4, known: int = 0) -> list[Epoch]:
    return list(fit(of, Folder(folder), "val_loss", stop, known))


def weights(folder: Path, which: str = "net") -> dict[str, torch.Tensor]:
    return torch.load(folder / "last.pt", weights_only=True)[which]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


def batch_of(images: int, masks: bool = False) -> Batch:
    return Batch(
        torch.full((images, 1, 4, 4), 0.5),
        [torch.zeros(0, 4)] * images,
        [torch.zeros(0, dtype=torch.int64)] * images,
        torch.zeros(images, 1, 4, 4, dtype=torch.uint8) if masks else torch.zeros(0),
        torch.arange(images),
    )


def test_sure_boxes_are_the_truth_and_images_without_one_are_left_out() -> None:
    box_24 = np.array([[0, 0, 2, 2], [1, 1, 3, 3]], np.float32)
    label_2 = np.array([1, 0])
    found = [
        Prediction(box_24, np.array([0.9, 0.4], np.float32), label_2),
        Prediction(box_24, np.array([0.6, 0.4], np.float32), label_2),
        Prediction(),
    ]
    known = taught(batch_of(3), found, judged=False)
    assert known is not None
    assert known.index_N.tolist() == [0]
    assert known.boxes[0].tolist() == [[0, 0, 2, 2]]
    assert known.labels[0].tolist() == [1]
    assert taught(batch_of(2), found[1:], judged=False) is None
    flat = Prediction(np.array([[0, 0, 3, 0.5]], np.float32), np.ones(1, np.float32), label_2[:1])
    assert taught(batch_of(1), [flat], judged=False) is None


def test_pixels_in_between_are_neither_lesion_nor_background() -> None:
    probability_1HW = np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 4, 4)
    found = [Prediction(mask_CHW=probability_1HW), Prediction(mask_CHW=probability_1HW * 0.6)]
    known = taught(batch_of(2, masks=True), found, judged=False)
    assert known is not None
    assert known.index_N.tolist() == [0]
    expected = [1 if p >= 0.7 else CROWD if p > 0.3 else 0 for p in probability_1HW.ravel()]
    assert known.mask_NCHW.ravel().tolist() == expected


def test_a_class_is_taken_where_its_probability_is_far_from_a_half() -> None:
    found = [Prediction(scores_N=np.array([p], np.float32)) for p in (0.95, 0.5, 0.05)]
    known = taught(batch_of(3), found, judged=True)
    assert known is not None
    assert known.index_N.tolist() == [0, 2]
    assert [y.tolist() for y in known.labels] == [[1], [0]]


def test_the_student_sees_another_image_and_air_stays_air() -> None:
    batch = batch_of(1)
    batch.image_NCHW[0, 0, 0] = 0
    box_14 = np.array([[0, 0, 3, 3]], np.float32)
    found = [Prediction(box_14, np.ones(1, np.float32), np.zeros(1, np.int64))]
    known = taught(batch, found, judged=False)
    assert known is not None
    assert (known.image_NCHW[0, 0, 0] == 0).all()
    assert (known.image_NCHW[0, 0, 1:] != 0.5).all()
    assert 0 <= float(known.image_NCHW.min()) <= float(known.image_NCHW.max()) <= 1


def test_an_epoch_of_more_samples_has_each_as_often_as_others_or_once_more() -> None:
    shares = [EpochSampler(5, 0, rank, 2, drawn=12) for rank in range(2)]
    seen = [i for share in shares for _, i in share]
    assert [len(share) for share in shares] == [6, 6]
    assert sorted(np.bincount(seen, minlength=5).tolist()) == [2, 2, 2, 3, 3]
    assert len([*EpochSampler(5, 0, 0, 1, drawn=3)]) == 3


@pytest.mark.parametrize("name", SMALL)
def test_they_train_and_never_validate(
    name: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "SURE", 0.5 if name == "lesion_resnet50" else 0.01)
    half = half_known(dataset)
    run(job(half, name), tmp_path / "with", stop=1)
    run(job(half, name, unlabelled=0), tmp_path / "without", stop=1)
    assert not same(weights(tmp_path / "with"), weights(tmp_path / "without"))
    known = {s.scan_id for s in half.validation(0) if s.annotated}
    found = (tmp_path / "with" / "predictions.json").read_text()
    assert known
    assert all((s.scan_id in found) == (s.scan_id in known) for s in half.scans)


def test_where_nothing_is_sure_the_training_is_as_without_them(
    dataset: Path, tmp_path: Path
) -> None:
    half = half_known(dataset)
    run(job(half), tmp_path / "with", stop=1)  # a U-Net's first outputs are near .02
    run(job(half, unlabelled=0), tmp_path / "without", stop=1)
    assert same(weights(tmp_path / "with"), weights(tmp_path / "without"))


def test_the_teacher_is_the_average_of_the_weights(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half, seen = half_known(dataset), list[tuple[Batch, list[Prediction]]]()

    def watched(batch: Batch, predictions: list[Prediction], judged: bool) -> Batch | None:
        seen.append((batch, predictions))
        return taught(batch, predictions, judged)

    run(job(half), tmp_path, stop=1)
    average = weights(tmp_path, "average")
    monkeypatch.setattr(training, "taught", watched)
    run(job(half), tmp_path, stop=2)
    batch, predictions = seen[0]  # of the second epoch's first step
    net = load("unet").build(job(half).config)
    net.load_state_dict(average)
    with torch.no_grad():
        expected = net.eval()(batch.image_NCHW)
    for ours, theirs in zip(predictions, expected, strict=True):
        np.testing.assert_allclose(ours.mask_CHW, theirs.mask_CHW, atol=1e-6)


def test_stopped_and_resumed_it_equals_an_undisturbed_run(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "SURE", 0.01)
    of = job(half_known(dataset), loader_workers=1)
    straight = run(of, tmp_path / "a")
    parts = run(of, tmp_path / "b", stop=2) + run(of, tmp_path / "b", known=2)
    assert str([e.metrics for e in parts]) == str([e.metrics for e in straight])
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def ranks(rank: int, world: int, place: str) -> None:
    """Train two epochs, in a row, in two parts and without such scans; the first rank's teacher is
    sure of all, the second one's of nothing.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{place}/meet", rank=rank, world_size=world)
    teacher.SURE = 0.01 if rank == 0 else 0.999
    half, folder = half_known(Path(place, "ds")), Path(place)
    of = job(half)
    training_run = training._Run(
        of, training._Place(Folder(folder / "row"), "val_loss", torch.device("cpu"))
    )
    training_run.epoch(last=False)
    training_run.epoch(last=True)
    torch.save(training_run.net.state_dict(), folder / f"rank{rank}.pt")
    run(of, folder / "parts", stop=1)
    run(of, folder / "parts", stop=2)
    run(job(half, unlabelled=0), folder / "without", stop=2)
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_that_are_sure_of_different_things_stay_one_model_also_when_resumed(
    dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "ds").symlink_to(dataset)
    torch.multiprocessing.spawn(ranks, (2, str(tmp_path)), 2)
    ours, theirs = (torch.load(tmp_path / f"rank{k}.pt", weights_only=True) for k in range(2))
    assert same(ours, theirs)
    assert same(weights(tmp_path / "row"), weights(tmp_path / "parts"))
    assert same(weights(tmp_path / "row", "average"), weights(tmp_path / "parts", "average"))
    assert not same(weights(tmp_path / "row"), weights(tmp_path / "without"))


def test_a_dataset_without_such_scans_refuses_a_study_that_wants_them(dataset: Path) -> None:
    study = {
        "name": "wants",
        "dataset": str(dataset),
        "model": "unet",
        "metric": "dice",
        "epochs": 2,
        "fixed": {"unlabelled": 0.5},
        "space": {"lr0": {"log_uniform": [1e-4, 1e-2]}},
    }
    with pytest.raises(WrongInput, match="unlabelled: unet needs scans without annotation"):
        resolve(parse_study(study))


def test_detectors_with_masks_refuse_them() -> None:
    with pytest.raises(ValueError, match="unlabelled scans have no sure mask of each box"):
        load("yolo11n-seg").Config.model_validate({"unlabelled": 0.5})


@pytest.mark.parametrize("more", [{"nm": "otsu"}, {"tile": 64, "tiles": "lesions"}])
def test_what_needs_outlines_is_refused_beside_them(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="unlabelled scans have neither non-metastasis nor tiles"):
        load("unet").Config.model_validate({"unlabelled": 0.5, **more})


@pytest.mark.parametrize("holdout", [0, 2])
def test_prepare_puts_patients_of_whom_nothing_is_known_into_training_alone(
    holdout: int, tmp_path: Path
) -> None:
    source = phantom(tmp_path / "in", 7, 3, height=256, layout="labelme")
    for outlines in sorted(source.rglob("*.json"))[:6]:
        outlines.unlink()
    made = prepare(source, tmp_path / "ds", folds=2, key=tmp_path / "key", holdout=holdout)
    opened = open_dataset(made.path)
    group_of, fold_of = opened.group_of, opened.fold_of
    scored = {group_of[s.patient_id] for s in opened.scans if s.annotated}
    alone = {p for p, fold in fold_of.items() if fold == TRAINING}
    assert alone == {p for p in fold_of if group_of[p] not in scored} != set()
    assert made.meta["counts"]["training_patients"] == len(alone)
    for fold in range(2):
        assert {s.patient_id for s in opened.training(fold, negatives=False)} & alone == set()
        assert {s.patient_id for s in opened.training(fold)} > alone
    assert len({group_of[s.patient_id] for s in opened.test}) == holdout
