"""From scans to a patient's burden: with bundles that find the truth the index is the truth's."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import bundle_of

from raybone.cli import main
from raybone.data.annotations import foci, mask_of
from raybone.data.cache import intensities_of
from raybone.data.dataset import open_dataset
from raybone.data.ingest.prepare import prepare
from raybone.data.loader import masks_of
from raybone.deploy.bundle import Bundle
from raybone.deploy.burden import Chain, burden
from raybone.deploy.job import Options
from raybone.deploy.predict import predict
from raybone.errors import WrongInput
from raybone.metrics.burden import bone_scan_index
from raybone.phantom.phantom import phantom
from raybone.types import Array, Prediction

PATIENTS, SIZE, SMALL = 3, 512, 64
REGIONS = ["skull", "thoracic", "lumbar", "ribs", "sternum", "scapula", "humerus", "pelvis"]


class Truth:
    """What is true of a cohort, by the counts of its scans."""

    judge, blind, unsure, drawn = True, False, False, REGIONS

    def __init__(self, place: Path) -> None:
        self.place = place
        for layout in ("coco", "skeleton"):
            phantom(place / layout, PATIENTS, 4, layout, SIZE)
            prepare(place / layout, place / f"{layout}-ds", folds=3, key=place / "key")
        found, drawn = (open_dataset(place / f"{name}-ds") for name in ("coco", "skeleton"))
        bones = {s.scan_id: s for s in drawn.scans}
        self.of = {
            intensities_of(found.counts(s), s.high, size).tobytes(): (s, bones[s.scan_id])
            for s in found.scans
            for size in (SIZE, SMALL)
        }

    def indices(self) -> list[float]:
        """Of each patient, in any order."""
        by_patient: dict[str, list[tuple[Array, dict[str, Array]]]] = {}
        each = {scan.scan_id: (scan, bones) for scan, bones in self.of.values()}
        for scan, bones in each.values():
            masks = zip(REGIONS, masks_of(bones, REGIONS) == 1)
            lesions_HW = masks_of(scan, ["malignant"])[0] == 1
            by_patient.setdefault(scan.patient_id, []).append((lesions_HW, dict(masks)))
        return sorted(bone_scan_index(views).index for views in by_patient.values())

    def told(
        self, task: Any, members: Any, samples: Any, *_: object
    ) -> Iterator[tuple[int, list[Prediction]]]:
        """What ``outputs`` gives of networks that find the truth, but for the second of several, if
        that is ``blind``, or a classifier, if that is ``unsure``, and one that is no ``judge``.
        """
        for index in range(len(samples)):
            row = samples.items[index][0] if task.name == "classification" else index
            scan, bones = self.of[samples.intensities(samples.scans[row]).tobytes()]
            if task.name == "classification":
                mask_HW = mask_of(samples.scans[row].lesions[samples.items[index][1]].rle)
                hit = (mask_HW & (masks_of(scan, ["malignant"])[0] == 1)).any()
                own = Prediction(scores_N=np.array([0.9 if hit and self.judge else 0.1]))
                if self.unsure and len(members) > 1:
                    yield index, [own, Prediction(scores_N=np.array([0.1])), own]
                    continue
            elif task.name == "detection":
                boxes_N4 = np.array([le.box_xyxy for le in foci(scan)], np.float32).reshape(-1, 4)
                own = Prediction(boxes_N4, np.ones(len(boxes_N4)), np.zeros(len(boxes_N4), int))
            else:
                of = bones if samples.look.categories == REGIONS else scan
                own = Prediction(
                    mask_CHW=(masks_of(of, samples.look.categories) == 1).astype(float)
                )
                if of is bones:
                    drawn = np.array([name in self.drawn for name in REGIONS], float)
                    own = Prediction(mask_CHW=own.mask_CHW * drawn[:, None, None])
            said = [own] * len(members)
            if self.blind and len(members) > 1:
                said[1] = Prediction(mask_CHW=np.zeros_like(own.mask_CHW))
            yield index, said


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return Truth(tmp_path_factory.mktemp("burden"))


@pytest.fixture
def truth(known: Truth, monkeypatch: pytest.MonkeyPatch) -> Truth:
    """The cohort, whose truth all bundles find."""
    monkeypatch.setattr("raybone.deploy.predict.outputs", known.told)
    return known


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Networks that have learned nothing."""
    place, small = tmp_path_factory.mktemp("bundles"), {"width": 4, "depth": 2}
    both = ["malignant", "benign"]
    return {
        "lesions": bundle_of(place / "lesions", "unet", both, 3, **small),
        "boxes": bundle_of(place / "boxes", "fcos_r18", ["malignant"], channels=32),
        "skeleton": bundle_of(place / "skeleton", "unet", REGIONS, 2, **small),
        "judge": bundle_of(place / "judge", "timm/resnet18", ["malignant"], imgsz=SMALL),
    }


def test_the_truth_laid_on_the_true_skeleton_has_the_true_index(
    truth: Truth, bundles: dict[str, Bundle]
) -> None:
    """What is benign counts for nothing, as the finder says, or the classifier."""
    chain = Chain(bundles["lesions"], bundles["skeleton"])
    patients = burden(chain, [str(truth.place / "coco")])
    assert sorted(p.burden.index for p in patients) == pytest.approx(truth.indices())
    assert max(truth.indices()) > 1
    assert [(p.low, p.high) for p in patients] == [(p.burden.index,) * 2 for p in patients]
    chain = Chain(bundles["lesions"], bundles["skeleton"], bundles["judge"])
    judged = burden(chain, [str(truth.place / "coco")])
    assert sorted(p.burden.index for p in judged) == pytest.approx(truth.indices(), rel=0.02)
    lesions = [le for p in judged for _, own in p.views for le in own]
    assert {le.probability for le in lesions} == {0.1, 0.9}


def test_a_classifier_that_calls_all_benign_leaves_no_burden(
    truth: Truth, bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truth, "judge", False)
    chain = Chain(bundles["lesions"], bundles["skeleton"], bundles["judge"])
    patients = burden(chain, [str(truth.place / "coco")])
    assert {p.burden.index for p in patients} == {0.0}
    assert {(p.low, p.high) for p in patients} == {(0.0, 0.0)}


@pytest.mark.parametrize(
    ("drawn", "warning"),
    [([], "finds no bone here: the index says nothing"), (["skull"], "the index is too low")],
)
def test_a_skeleton_that_is_not_found_is_a_warning_and_no_interval(
    drawn: list[str],
    warning: str,
    truth: Truth,
    bundles: dict[str, Bundle],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(truth, "drawn", drawn)
    chain = Chain(bundles["lesions"], bundles["skeleton"])
    patients = burden(chain, [str(truth.place / "coco")], tmp_path / "pages")
    ill = [p for p in patients if any(le.malignant for _, own in p.views for le in own)]
    assert ill
    assert all(warning in " ".join(p.warnings) for p in ill)
    page = (tmp_path / "pages/0001.html").read_text()
    if not drawn:
        assert {(p.low, p.high) for p in patients} == {(None, None)}
        assert "no interval: no bone was found" in page


def test_members_that_differ_make_an_interval_around_the_index(
    truth: Truth, bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truth, "blind", True)
    patients = burden(Chain(bundles["lesions"], bundles["skeleton"]), [str(truth.place / "coco")])
    for patient in patients:
        assert patient.low is not None
        assert patient.high is not None
        if patient.burden.index:
            assert 0 <= patient.low < patient.burden.index < patient.high
            assert {le.doubt for _, own in patient.views for le in own} == {"score 0.67"}


def test_classifiers_that_differ_make_an_interval_too(
    truth: Truth,
    bundles: dict[str, Bundle],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Two of three call a lesion malignant: the index is theirs, and a third of them has none."""
    judges = bundle_of(tmp_path / "judges", "timm/resnet18", ["malignant"], 3, imgsz=SMALL)
    chain = Chain(bundles["lesions"], bundles["skeleton"], judges)
    agreed = burden(chain, [str(truth.place / "coco")])
    assert {p.low == p.burden.index == p.high for p in agreed} == {True}
    monkeypatch.setattr(truth, "unsure", True)
    patients = burden(chain, [str(truth.place / "coco")])
    assert any(p.burden.index for p in patients)
    for patient, sure in zip(patients, agreed):
        index = patient.burden.index
        assert index == pytest.approx(sure.burden.index)
        away = 1.96 * statistics.stdev([index, 0, index])
        assert patient.low is not None
        assert patient.high is not None
        assert patient.low == pytest.approx(max(0, index - away))
        assert patient.high == pytest.approx(min(max(patient.burden.covered, index), index + away))


def test_boxes_of_a_detector_count_as_the_ellipses_inside_them(
    truth: Truth, bundles: dict[str, Bundle]
) -> None:
    """All lesions are malignant to it; the classifier takes the benign ones out."""
    chain = Chain(bundles["boxes"], bundles["skeleton"], bundles["judge"])
    patients = burden(chain, [str(truth.place / "coco")])
    assert sorted(p.burden.index for p in patients) == pytest.approx(truth.indices(), rel=0.2)


def test_a_patient_has_a_page_with_both_views_and_a_line_of_the_table(
    truth: Truth, bundles: dict[str, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, skeleton, judge = (str(bundles[n].path) for n in ("lesions", "skeleton", "judge"))
    scans, out = str(truth.place / "coco"), tmp_path / "out"
    words = ["burden", bundle, skeleton, scans, "--classifier", judge, "--out", str(out)]
    assert main(words) == 0
    assert capsys.readouterr().out.count("bone scan index") == PATIENTS
    rows = list(csv.DictReader((out / "patients.csv").open()))
    assert sorted(float(r["index"]) for r in rows) == pytest.approx(truth.indices(), rel=0.02)
    for number, row in enumerate(rows, 1):
        told = json.loads((out / f"{number:04d}.json").read_text())
        assert told["note"] == "Research software: not a medical device."
        assert [v["view"] for v in told["views"]] == ["anterior", "posterior"]
        malignant = [le for v in told["views"] for le in v["lesions"] if le["malignant"]]
        assert len(malignant) == told["malignant"] == int(row["malignant"])
        assert {le["region"] for le in malignant} <= {"", *REGIONS}
        parts = [b["share"] * b["weight"] for b in told["bone_scan_index"]["bones"].values()]
        assert sum(parts) == pytest.approx(told["bone_scan_index"]["index"])
        page = (out / f"{number:04d}.html").read_text()
        assert page.count("data:image/png;base64,") == 2
        assert page.count("not a medical device") >= 2
    assert main(words) == 2  # it is there


def test_networks_that_have_learned_nothing_go_through_the_whole_chain(
    known: Truth, bundles: dict[str, Bundle]
) -> None:
    chain = Chain(bundles["lesions"], bundles["skeleton"], bundles["judge"])
    patients = burden(chain, [str(known.place / "coco")])
    assert len(patients) == PATIENTS
    assert all(0 <= p.burden.index <= p.burden.covered <= 100 for p in patients)


@pytest.mark.parametrize(
    ("order", "rule"),
    [
        (("skeleton", "lesions"), "must find lesions, but is of segmentation of skull, thoracic"),
        (("judge", "skeleton"), "must find lesions, but is of classification of malignant"),
        (("lesions", "boxes"), "must segment regions of the skeleton"),
        (("lesions", "skeleton", "boxes"), "must tell malignant lesions, but is of detection"),
    ],
)
def test_a_bundle_that_cannot_do_its_part_is_named(
    bundles: dict[str, Bundle], known: Truth, order: tuple[str, ...], rule: str
) -> None:
    with pytest.raises(WrongInput, match=rule):
        burden(Chain(*(bundles[name] for name in order)), [str(known.place / "coco")])


def test_a_bundle_of_lesion_tiles_looks_at_all_tiles_of_new_scans(
    known: Truth, tmp_path: Path
) -> None:
    """Also of those whose lesions are annotated beside them, and of those that have none."""
    small, seen = {"width": 4, "depth": 2, "imgsz": 256}, dict[str, list[int]]()
    for step in ("tile", "lesion_tile"):
        place, counts = tmp_path / step, list[int]()
        bundle = bundle_of(place, "unet", ["malignant"], steps=(step,), **small)
        options = Options(shown=lambda _, counts_HW, __, to=counts: to.append(int(counts_HW.sum())))
        predict(bundle, [str(known.place / "coco")], None, options)
        seen[step] = counts
    assert len(seen["tile"]) == 2 * PATIENTS
    assert seen["lesion_tile"] == seen["tile"]
