"""Findings of a study as COCO's own evaluation reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pretend import pretend
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from raybone.cli import main
from raybone.data.annotations import mask_of
from raybone.data.dataset import open_dataset
from raybone.data.export.export import export
from raybone.results.study_folder import StudyFolder
from raybone.results.winner import winner_of


@pytest.fixture(scope="module")
def annotations(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> COCO:
    place = tmp_path_factory.mktemp("coco") / "out"
    export(dataset, place, "coco")
    return COCO(place / "annotations.json")


def test_pycocotools_scores_boxes_as_raybone_does(
    annotations: COCO, dataset: Path, tmp_path: Path
) -> None:
    pretend(tmp_path / "st", dataset, "AP50", search={"trials": 2})
    file = tmp_path / "found.json"
    assert main(["export", str(tmp_path / "st"), "--coco", str(file)]) == 0
    evaluation = COCOeval(annotations, annotations.loadRes(str(file)), "bbox")
    malignant = next(c["id"] for c in annotations.dataset["categories"] if c["name"] == "malignant")
    evaluation.params.catIds = [malignant]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    folder = StudyFolder(tmp_path / "st")
    best = folder.winner()
    assert best
    winner, why = winner_of(folder, best.record, open_dataset(dataset))
    assert winner, why
    from raybone.tasks.base import Outcome

    known = winner.task.score(Outcome(winner.findings, winner.scans, winner.categories))
    assert evaluation.stats[0] == pytest.approx(known["AP"], abs=1e-6)
    assert evaluation.stats[1] == pytest.approx(known["AP50"], abs=1e-6)


def test_masks_are_components_with_their_pixels(
    annotations: COCO, dataset: Path, tmp_path: Path
) -> None:
    pretend(tmp_path / "st", dataset, search={"trials": 2})
    file = tmp_path / "found.json"
    assert main(["export", str(tmp_path / "st"), "--coco", str(file)]) == 0
    results, best = json.loads(file.read_text()), StudyFolder(tmp_path / "st").winner()
    assert best
    pixels = sum(
        int(mask_of(rle).sum())
        for fold in best.predictions() or []
        for finding in fold
        for rle in finding["masks"]
    )
    assert sum(int(mask_of(r["segmentation"]).sum()) for r in results) == pixels > 0
    loaded = annotations.loadRes(str(file))
    assert len(loaded.getAnnIds()) == len(results)


def test_what_cannot_be_is_one_line(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(tmp_path / "classes", dataset, "AUC", search={"trials": 1})
    pretend(tmp_path / "early", dataset, search={"trials": 2}, stop_after=0)
    for study, why in (("classes", "this study classifies"), ("early", "there is none yet")):
        out = str(tmp_path / "x.json")
        assert main(["export", str(tmp_path / study), "--coco", out]) == 2
        assert why in capsys.readouterr().err
        assert not (tmp_path / "x.json").exists()
    assert main(["export", "x", "--coco", "a", "--optuna", "b"]) == 2
