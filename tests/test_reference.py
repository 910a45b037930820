"""The reference and the schema are the code's own, and a study needs to say little."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from raybone.cli import main
from raybone.models import MENU, load
from raybone.run.defaults import complete
from raybone.run.ray.jobs import pack
from raybone.run.reference import reference, schema
from raybone.study.files import parse_study, read_study

ROOT = Path(__file__).resolve().parents[1]
STUDIES = [*sorted((ROOT / "jobs").glob("*.yaml")), ROOT / "k8s/overlays/gpu/study.yaml"]


@pytest.fixture(scope="module")
def check() -> jsonschema.Draft202012Validator:
    """A validator of the schema as JSON holds it, which is a sound schema itself."""
    found = json.loads(json.dumps(schema(), allow_nan=False))
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_a_model_tells_its_hyper_parameters_with_meaning_and_bounds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models", "unet", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in told["hyperparameters"]}
    assert set(rows) == set(load("unet").Config.model_fields)
    assert rows["width"] == {
        "name": "width",
        "type": "integer",
        "default": "32",
        "values": ">= 4, <= 128",
        "meaning": "channels of the first level; each level below doubles them",
    }
    assert told["space"]["lr0"] == {"log_uniform": [1e-4, 1e-2]}
    assert told["source"].startswith("Ronneberger")
    assert main(["models", "unet"]) == 0
    lines = capsys.readouterr().out
    assert all(f"\n{name} " in lines for name in rows)
    assert '  imgsz: {"choice": [256, 512]}' in lines
    assert main(["models", "yolo11n-seg"]) == 0
    (line,) = (li for li in capsys.readouterr().out.splitlines() if li.startswith("mask_ratio "))
    assert line.split()[:6] == ["mask_ratio", "integer", "4", "1,", "2,", "4"]


@pytest.mark.parametrize("name", MENU)
def test_every_hyper_parameter_of_every_model_has_a_meaning(name: str) -> None:
    assert [
        key for key, field in load(name).Config.model_fields.items() if not field.description
    ] == []


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("yolo11", "yolo11n"),
        ("unet++", "unet_plus_plus"),
        ("yolo11-seg", "yolo11n-seg"),
        ("yolov8n", "yolo11n"),
        ("yolo11n-cls", "yolo11n"),
        ("maskrcnn", "faster_rcnn_r50"),
        ("nnunetv2", "nnunet"),
        ("U-Net", "unet"),
    ],
)
def test_an_unknown_model_is_one_line_with_near_names_and_what_finds_what(
    name: str, near: str, study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**study, "model": name}))
    for words in (["models", name], ["preview", str(tmp_path / "s.yaml")]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert near in error.partition("did you mean ")[2].partition("?")[0].split(", ")
        assert "Boxes, and nothing else, come from yolo11n, " in error
        assert "masks from yolo11n-seg, " in error


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_every_study_of_the_project_keeps_to_the_schema(
    path: Path, check: jsonschema.Draft202012Validator
) -> None:
    assert [error.message for error in check.iter_errors(yaml.safe_load(path.read_text()))] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("serach",), {}),
        (("search", "trails"), 3),
        (("fixed", "imgsize"), 512),
        (("fixed", "imgsz"), "large"),
        (("fixed", "lr0"), 100),
        (("space", "lr"), {"choice": [1]}),
        (("space", "lr0"), {"normal": [0, 1]}),
        (("space", "lr0"), [0, 1]),
        (("space", "lr0"), {"choice": [1], "uniform": [0, 1]}),
        (("model",), "yolo12n"),
        (("metric",), "beauty"),
        (("metric",), "dice"),
        (("resolved",), {}),
    ],
)
def test_the_schema_refuses_what_a_study_may_not_say(
    path: tuple[str, ...], value: Any, check: jsonschema.Draft202012Validator
) -> None:
    study = yaml.safe_load((ROOT / "jobs/bs80k_yolo11.yaml").read_text())
    assert check.is_valid(study)
    wrong = deepcopy(study)
    *above, last = path
    (wrong[above[0]] if above else wrong)[last] = value
    assert not check.is_valid(wrong)


def test_the_schema_wants_two_keys_and_knows_anchors_of_the_dataset(
    check: jsonschema.Draft202012Validator,
) -> None:
    least = {"dataset": "data/ours", "model": "retinanet_r50"}
    assert check.is_valid(least)
    assert check.is_valid({**least, "fixed": {"anchor": "dataset"}})
    assert check.is_valid({**least, "fixed": {"batch": "auto"}})
    assert check.is_valid({**least, "model": "ours.models:MODEL"})
    assert not check.is_valid({"dataset": "data/ours"})


def test_the_schema_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert (
        json.loads(capsys.readouterr().out)["$schema"]
        == "https://json-schema.org/draft/2020-12/schema"
    )


def test_the_reference_is_what_the_code_says() -> None:
    """After a change of keys: make reference."""
    assert (ROOT / "docs/study.md").read_text() == reference()


@pytest.mark.parametrize(
    ("model", "metric"), [("yolo11n", "AP"), ("msma_unet", "dice"), ("lesion_vgg16", "AUC")]
)
def test_two_keys_make_a_study_that_holds_all_values(
    model: str, metric: str, tmp_path: Path
) -> None:
    (tmp_path / "our first, 2024.yaml").write_text(f"dataset: data/ours\nmodel: {model}\n")
    study = read_study(tmp_path / "our first, 2024.yaml", ["fixed.fliplr=0"], complete)
    assert (study.name, study.epochs, study.metric) == ("our-first-2024", 100, metric)
    assert study.space == {
        key: param for key, param in load(model).SPACE.items() if key != "fliplr"
    }
    assert parse_study(complete({"dataset": "data/ours", "model": model})).name == model
    said = {
        "dataset": "d",
        "model": model,
        "name": "n",
        "epochs": 3,
        "metric": "val_loss",
        "space": {},
    }
    assert complete(said, "file") == said


def test_a_study_without_a_model_misses_that_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text("dataset: data/ours\n")
    assert main(["preview", str(tmp_path / "s.yaml")]) == 2
    assert (
        capsys.readouterr().err
        == f"raybone: {tmp_path / 's.yaml'}: model: is required but missing; add it\n"
    )


def test_a_study_of_three_lines_previews_and_searches(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ours.yaml").write_text(f"dataset: {dataset}\nmodel: unet\nepochs: 1\n")
    words = [str(tmp_path / "ours.yaml"), "--set"]
    assert main(["preview", *words, "search.trials=9", "--epoch-seconds", "1"]) == 0
    assert "fold epochs expected" in capsys.readouterr().out
    small = ["search.trials=1", "fixed={imgsz: 64, width: 4, depth: 1, loader_workers: 0}"]
    assert main(["search", *words, *small, "--out", str(tmp_path / "st"), "--local"]) == 0
    held = yaml.safe_load((tmp_path / "st/study.yaml").read_text())
    assert (held["name"], held["metric"], held["epochs"]) == ("ours", "dice", 1)
    assert set(held["space"]) == {"lr0", "fliplr", "gamma", "focal_tversky"}
    assert (
        main(["search", *words, *small, "--out", str(tmp_path / "st"), "--local"]) == 0
    )  # the same study


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            "[0, 0.5]",
            "space.fliplr: must be one of uniform, log_uniform, int_uniform, choice, such as "
            "{choice: [0, 0.5]} "
            "or {uniform: [0, 0.5]}, got a list; write it so",
        ),
        ("[true, false]", "such as {choice: [True, False]}, got a list"),
        ("[a, b, c, d]", "such as {choice: ['a', 'b', 'c', ...]}, got a list"),
        ("0.5", "space.fliplr: must name a distribution, got 0.5; put a single value under fixed"),
    ],
)
def test_a_space_without_distribution_says_how_to_write_it(
    given: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text(
        f"dataset: data/ours\nmodel: unet\nspace: {{fliplr: {given}}}\n"
    )
    assert main(["preview", str(tmp_path / "s.yaml")]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def test_a_submitted_study_carries_what_was_filled_in_and_its_code_needs_no_menu(
    tmp_path: Path,
) -> None:
    parcel = pack(parse_study(complete({"dataset": "data/ours", "model": "unet"}, "ours")), None)
    zipfile.ZipFile(BytesIO(parcel.content)).extractall(tmp_path)
    held = yaml.safe_load((tmp_path / "study.yaml").read_text())
    assert (held["name"], held["metric"], held["epochs"], len(held["space"])) == (
        "ours",
        "dice",
        100,
        5,
    )
    code = (
        "import raybone\nfrom raybone.models import load\nprint(raybone.__file__, "
        "load('unet').task)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == f"{tmp_path / 'raybone/__init__.py'} segmentation\n"
