"""`raybone init`: three commands from scans to a search, and a reason for each number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from raybone.cli import main
from raybone.data.dataset import Dataset, open_dataset
from raybone.errors import WrongInput
from raybone.run import begin as beginning
from raybone.run.begin import Begun, Means, begin
from raybone.run.checks import resolve
from raybone.run.defaults import complete
from raybone.study.files import read_study


def changed(monkeypatch: pytest.MonkeyPatch, dataset: Dataset) -> None:
    """Let `init` open this dataset."""
    monkeypatch.setattr(beginning, "open_dataset", lambda _: dataset)


def test_what_it_writes_can_be_searched_at_once(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", str(dataset), "--out", "ours.yaml", "--hours", "9"]) == 0
    told = capsys.readouterr().out
    text = (tmp_path / "ours.yaml").read_text()
    assert text in told
    assert "`raybone search ours.yaml --out runs/ours` begins" in told
    study, _ = resolve(read_study("ours.yaml", [], complete))
    assert study.name == "ours"
    assert study.names == ("unet",)
    assert study.fixed["categories"] == ["malignant"]
    assert "imgsz" not in study.of("unet").space
    lines = text.splitlines()
    for key in ("models", "epochs", "categories", "imgsz", "batch", "search"):
        (at,) = [n for n, line in enumerate(lines) if line.strip().startswith(f"{key}:")]
        if key not in ("categories", "imgsz", "batch") or lines[at].startswith("  "):
            assert lines[at - 1].strip().startswith("# ")
    assert main(["init", str(dataset), "--out", "ours.yaml"]) == 2
    said = capsys.readouterr().err
    assert "must be a new file in a folder that is there, but it exists" in said
    assert "timed" not in said
    assert main(["init", str(dataset), "--out", "none/ours.yaml"]) == 2


def test_boxes_alone_are_for_detectors_and_a_gpu_takes_several(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_dataset(dataset)
    boxes = tuple(
        replace(s, lesions=tuple(replace(le, rle=None) for le in s.lesions)) for s in opened.scans
    )
    changed(monkeypatch, replace(opened, scans=boxes))
    made = begin(dataset, "boxes", Means(hours=20))
    assert made.study.names == ("yolo11n",)
    assert made.study.metric == "AP"
    assert "lesions have a box alone: detectors" in made.text
    assert made.wall_hours <= 20


def test_more_hours_are_more_configurations_and_too_few_are_refused(dataset: Path) -> None:
    def trials(hours: float) -> int:
        made: Begun = begin(dataset, "x", Means(hours=hours))
        content = yaml.safe_load(made.text)
        assert content["search"]["trials"] == made.study.search.trials
        return made.study.search.trials

    assert trials(3) < trials(30)
    with pytest.raises(WrongInput, match=r"5 configurations take about .* but --hours says"):
        begin(dataset, "x", Means(hours=1e-4))
    with pytest.raises(WrongInput, match="--gpus must be 0 or more"):
        begin(dataset, "x", Means(hours=-1.0))


def test_small_lesions_want_large_images(dataset: Path) -> None:
    opened = open_dataset(dataset)

    def size(side: float) -> int:
        scans = tuple(
            replace(
                s,
                height=1024,
                lesions=tuple(
                    replace(le, box_xyxy=(0.0, 0.0, side, side), rle=None) for le in s.lesions
                ),
            )
            for s in opened.scans
        )
        draft = beginning._Draft(replace(opened, scans=scans), "ds", "x")
        return draft._size(draft._lesions())

    assert [size(side) for side in (4.0, 10.0, 20.0, 40.0)] == [1024, 1024, 512, 256]


def test_nothing_to_find_is_said(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_dataset(dataset)
    changed(monkeypatch, replace(opened, scans=tuple(replace(s, lesions=()) for s in opened.scans)))
    with pytest.raises(WrongInput, match="needs a category with lesions in every fold"):
        begin(dataset)


def test_few_hours_make_the_network_narrow_and_say_so(dataset: Path) -> None:
    wide = begin(dataset, "x", Means(hours=1000))
    assert "width" not in wide.study.fixed
    short = begin(dataset, "x", Means(hours=wide.wall_hours / 30))
    assert short.study.fixed["width"] < 32
    assert "# for the hours: 32 is usual" in short.text
    assert short.wall_hours <= wide.wall_hours / 30
