"""Scans to annotate next: where members disagree, one a patient, unlike each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import bundle_of

from raybone.cli import main
from raybone.data.dataset import open_dataset
from raybone.data.ingest.prepare import prepare
from raybone.deploy.annotate_next import annotate_next
from raybone.errors import WrongInput
from raybone.phantom.phantom import phantom
from raybone.types import Prediction

SMALL: dict[str, Any] = {"width": 4, "depth": 2, "imgsz": 128}


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten patients, of whom the last five are not annotated."""
    place = tmp_path_factory.mktemp("half")
    scans = phantom(place / "scans", 10, 6, "coco", 128)
    path = scans / "annotations.json"
    coco = json.loads(path.read_text())
    known = [i for i in coco["images"] if i["file_name"] < "images/PHANTOM-0006"]
    ids = {i["id"] for i in known}
    items = [a for a in coco["annotations"] if a["image_id"] in ids]
    path.write_text(json.dumps({**coco, "images": known, "annotations": items}))
    prepare(scans, place / "ds", folds=2, key=place / "key")
    return place / "ds"


def test_scans_on_which_members_disagree_come_first_one_a_patient(
    half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members disagree by a tenth more from scan to scan, in the order of their ids."""
    waiting = [s for s in open_dataset(half).scans if not s.annotated]
    order = {s.scan_id: n for n, s in enumerate(waiting)}

    def told(_: Any, members: Any, samples: Any, *__: object) -> Iterator[tuple[int, Any]]:
        for index, scan in enumerate(samples.scans):
            own = [np.zeros((1, scan.height, scan.width), np.float32) for _ in members]
            own[0][0, :20] = 0.05 * (order[scan.scan_id] + 1)
            yield index, [Prediction(mask_CHW=mask_CHW) for mask_CHW in own]

    monkeypatch.setattr("raybone.deploy.annotate_next.outputs", told)
    bundle = bundle_of(tmp_path / "bundle", "unet", ["malignant"], 2, **SMALL)
    found = annotate_next(bundle, half, 5)
    patients = [scan.patient_id for scan, _ in found]
    assert len(set(patients)) == len(patients) == 5
    assert not any(scan.annotated for scan, _ in found)
    assert found[0][0].scan_id == waiting[-1].scan_id
    for scan, spread in found:
        others = [order[s.scan_id] for s in waiting if s.patient_id == scan.patient_id]
        assert order[scan.scan_id] == max(others)
        assert spread == pytest.approx(0.025 * (max(others) + 1), abs=1e-4)
    assert annotate_next(bundle, half, 2)[0] == found[0]


def test_networks_that_have_learned_nothing_name_scans_through_the_command_line(
    half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle_of(tmp_path / "masks", "unet", ["malignant"], 2, **SMALL)
    words = ["inspect", str(half), "--annotate-next", str(tmp_path / "masks"), "--count", "3"]
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 3
    assert {r["scan_id"] for r in rows} <= {s.scan_id for s in open_dataset(half).scans}
    bundle_of(tmp_path / "scans", "timm/resnet18", ["malignant"], 2, imgsz=64, target="abnormal")
    words[3] = str(tmp_path / "scans")
    assert main(words) == 0
    assert capsys.readouterr().out.count("members differ by") == 3


@pytest.mark.parametrize(
    ("bundle", "rule"),
    [
        ({"members": 1}, "must have several members"),
        ({"model": "timm/resnet18", "imgsz": 64}, "classifies lesions, which nobody has drawn"),
        ({"steps": ("brightness",)}, r"must be of scans of the steps \[\], got \['brightness'\]"),
    ],
)
def test_a_bundle_that_cannot_say_is_refused(
    half: Path, tmp_path: Path, bundle: dict[str, Any], rule: str
) -> None:
    usual = {"model": "unet", "members": 2, **(SMALL if "model" not in bundle else {})}
    given = {**usual, **bundle}
    made = bundle_of(tmp_path / "b", given.pop("model"), ["malignant"], **given)
    with pytest.raises(WrongInput, match=rule):
        annotate_next(made, half, 3)


def test_a_dataset_that_is_annotated_throughout_is_refused(dataset: Path, tmp_path: Path) -> None:
    made = bundle_of(tmp_path / "b", "unet", ["malignant"], 2, **SMALL)
    with pytest.raises(WrongInput, match="needs scans without annotation, but has none"):
        annotate_next(made, dataset, 3)
