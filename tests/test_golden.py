"""What users and files see does not change while the code does: outputs beside those in golden/.

``RAYBONE_GOLDEN=write`` writes golden/ anew, and every test that wrote fails: look at the
difference before it is committed.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import html
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pretend import pretend
from torch import Tensor, nn
from torch.nn import functional

from raybone.cli import main
from raybone.data.dataset import open_dataset
from raybone.models import load
from raybone.models.classifiers import lesion as lesion_models
from raybone.models.detectors import retinanet
from raybone.types import Prediction

GOLDEN = Path(__file__).with_name("golden")
SEPARATE = ("body_range", "brightness", "knee_cut", "montage")
TILES = ("bladder", "body_mask", "max_min", "tile")


def run(*arguments: object) -> None:
    """A verb that succeeds."""
    assert main([str(a) for a in arguments]) == 0


def agree(name: str, now: str) -> None:
    """Compare a text with the golden file of that name, or write it."""
    own = {tempfile.gettempdir(), str(Path.cwd()), str(Path.home())} - {"/"}
    assert not [folder for folder in own if folder in now], "names a folder of this machine"
    path = GOLDEN / name
    if os.environ.get("RAYBONE_GOLDEN") == "write":
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(now, encoding="utf-8")
        pytest.fail(f"golden/{name} is written: look at its difference, then test it")
    assert now == path.read_text(encoding="utf-8"), f"golden/{name} is not what comes out now"


def as_text(content: Any) -> str:
    """JSON whose differences can be read: short lists and mappings on one line."""
    lines = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    flat = re.compile(r"([\[{])\s*([^\[\]{}]{1,300}?)\s*([\]}])")
    return flat.sub(lambda m: m[1] + re.sub(r"\n\s*", " ", m[2]) + m[3], lines) + "\n"


def settled(now: Any, then: Any) -> Any:
    """``now`` with the numbers of ``then`` where they differ by rounding alone.

    Processors add up in different orders: with the instructions of 2008 and of today, what is
    trained here differs by up to 1e-4, and rounded digits would flip now and then.
    """
    if isinstance(now, dict):
        known = then if isinstance(then, dict) else {}
        return {key: settled(value, known.get(key)) for key, value in now.items()}
    if isinstance(now, list):
        return [settled(*pair) for pair in zip(now, [*(then or ()), *([None] * len(now))])]
    if isinstance(now, float):
        near = isinstance(then, float) and math.isclose(now, then, rel_tol=2e-3, abs_tol=5e-4)
        return then if near else float(f"{now:.5g}")
    return now


def agree_about(name: str, now: Any) -> None:
    """``agree`` for what has measured numbers in it."""
    path = GOLDEN / name
    then = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    text = as_text(settled(now, then))
    agree(name, re.sub(r"\{[^{}]{1,400}\}", lambda m: re.sub(r"\n\s*", " ", m[0]), text))


def dataset_files(dataset: Path) -> dict[str, Any]:
    """A dataset folder as text.

    Processes that read side by side store their scans in any order, so the row of a scan is
    replaced by a digest of the pixels there, and the seal of scans.csv is left out.
    """
    names = ("scans.csv", "folds.csv", "rejected.csv")
    tables = {name: (dataset / name).read_text(encoding="utf-8").splitlines() for name in names}
    documents = {
        name: json.loads((dataset / name).read_text(encoding="utf-8"))
        for name in ("annotations.json", "dataset.json")
    }
    del documents["dataset.json"]["sealed"]["scans.csv"]
    pixels = sorted(p.name for p in (dataset / "pixels").iterdir())
    header = tables["scans.csv"][0].split(",")
    assert header[3:7] == ["height", "width", "pixel_mm", "row"]
    for number, line in enumerate(tables["scans.csv"][1:], 1):
        cells = line.split(",")
        counts = np.load(dataset / "pixels" / f"{cells[3]}x{cells[4]}.npy")[int(cells[6])]
        cells[6] = hashlib.sha256(counts.tobytes()).hexdigest()[:12]
        tables["scans.csv"][number] = ",".join(cells)
    return {**tables, **documents, "pixels": pixels}


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A phantom of a layout, with a copy of a scan, half of one, and a file that is none."""

    @cache
    def cohort(layout: str) -> Path:
        root = tmp_path_factory.mktemp(layout) / "ph"
        run("phantom", root, "--patients", 4, "--height", 128, "--seed", 3, "--layout", layout)
        first = min(p for p in root.rglob("*") if p.suffix in (".dcm", ".png", ".jpg"))
        first.with_stem("copy").write_bytes(first.read_bytes())
        first.with_stem("half").write_bytes(first.read_bytes()[:300])
        (root / "notes.txt").write_text("no scan", encoding="utf-8")
        return root

    return cohort


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, so that paths in outputs are short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "layout", "options"),
    [
        ("dicom", "dicom", ()),
        ("coco", "coco", ()),
        ("labelme", "labelme", ()),
        ("masks", "masks", ()),
        ("bs80k", "bs80k", ()),
        ("montage", "dicom", ("--steps", *SEPARATE)),
        ("tiles", "labelme", ("--steps", *TILES, "--unannotated", "negative")),
        ("holdout", "coco", ("--holdout", 1, "--negatives", "training", "--seed", 1)),
    ],
)
def test_prepare_writes_the_same_dataset(
    name: str,
    layout: str,
    options: tuple[object, ...],
    cohorts: Callable[[str], Path],
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(cohorts(layout), "ph")
    shutil.copy(cohorts(layout).with_suffix(".key"), "ph.key")
    capsys.readouterr()
    run("prepare", "ph", "ds", "--folds", 2, "--key", "ph.key", *options)
    said = capsys.readouterr().out.splitlines()
    agree(f"prepare_{name}.json", as_text({"stdout": said, **dataset_files(here / "ds")}))


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse has other words elsewhere")
def test_help_has_the_same_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = help_of(capsys)
    verbs = re.findall(r"^ {4}(\w+)", text, re.MULTILINE)
    assert len(verbs) > 15
    agree("help.txt", "\n".join([text, *(help_of(capsys, verb) for verb in verbs)]))


def help_of(capsys: pytest.CaptureFixture[str], *verb: str) -> str:
    """What --help prints."""
    with contextlib.suppress(SystemExit):
        main([*verb, "--help"])
    return capsys.readouterr().out


class Peaks(nn.Module):
    """A detector of squares that are hotter than their neighbours, in place of 30 million weights.

    It obeys the contract of a model, and rounding changes neither its boxes nor their order.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.slope, self.config = nn.Parameter(torch.tensor(4.0)), config

    def forward(self, batch: Any) -> dict[str, Tensor] | list[Prediction]:
        """Losses of a Batch, or predictions on images."""
        image_NCHW = batch.image_NCHW if self.training else batch
        heat_NHW = functional.avg_pool2d(image_NCHW[:, 0], SIDE, 1).round(decimals=4)
        if self.training:
            lesions_N = torch.tensor([float(len(boxes)) for boxes in batch.boxes])
            return {"count_loss": (self.slope * heat_NHW.mean((1, 2)) - lesions_N).square().mean()}
        peak_NHW = heat_NHW * (heat_NHW == functional.max_pool2d(heat_NHW, 3, 1, 1))
        return [self._prediction(peak_HW) for peak_HW in peak_NHW]

    def _prediction(self, peak_HW: Tensor) -> Prediction:
        score_HW = (self.slope * peak_HW - 2).sigmoid()
        score_N, cell_N = score_HW.flatten().sort(descending=True, stable=True)
        row_N, column_N = np.divmod(cell_N.numpy()[: self.config.max_det], peak_HW.shape[1])
        corner_N2 = np.stack([column_N, row_N], 1).astype(np.float32)
        return Prediction(
            np.concatenate([corner_N2, corner_N2 + SIDE], 1),
            score_N.numpy()[: self.config.max_det],
            (row_N + column_N) % len(self.config.categories),
        )


class Brightness(nn.Module):
    """A classifier that goes by the mean of a lesion's pixels alone."""

    def __init__(self, _: Any) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)
        nn.init.constant_(self.line.weight, 6.0)
        nn.init.constant_(self.line.bias, -3.0)

    def forward(self, batch: Any) -> dict[str, Tensor] | list[Prediction]:
        """The loss of a Batch, or predictions on images."""
        scan_NHW, mask_NHW = (batch.image_NCHW if self.training else batch).unbind(1)
        mean_N = (scan_NHW * mask_NHW).sum((1, 2)) / mask_NHW.sum((1, 2))
        logit_N = self.line(mean_N[:, None])[:, 0]
        if self.training:
            truth_N = torch.cat(batch.labels).float()
            loss = functional.binary_cross_entropy_with_logits(logit_N, truth_N)
            return {"cross_entropy_loss": loss}
        return [Prediction(scores_N=score_1) for score_1 in logit_N.sigmoid()[:, None].numpy()]


SIDE = 3  # pixels of a detected square
STUDIES: dict[str, dict[str, Any]] = {
    "masks": {
        "model": "unet",
        "metric": "dice",
        "epochs": 3,
        "fixed": {"width": 4, "depth": 1, "weights": "hot.pt", "cross_entropy": 0.0},
        # Without dice there is no loss, which the model refuses.
        "space": {"lr0": {"choice": [0.003, 0.01]}, "dice": {"choice": [0.0, 1.0]}},
    },
    "boxes": {
        "model": "retinanet_r50",
        "metric": "AP50",
        "epochs": 3,
        "fixed": {"categories": ["malignant", "benign"], "max_det": 10},
        "space": {"lr0": {"choice": [0.01, 0.1]}},
    },
    "classes": {
        "model": "lesion_resnet50",
        "metric": "AUC",
        "epochs": 2,
        "fixed": {"scale": 0.0},
        # A lesion that is moved out of sight has no mean, and its configuration fails.
        "space": {"translate": {"choice": [0.0, 1.0]}},
    },
}


def hot_pixels() -> nn.Module:
    """A U-Net that outlines what is hot.

    From random weights it would learn less in seconds, and rounding would decide what it finds.
    """
    model = load("unet")
    module = model.build(model.Config(width=4, depth=1))
    for values in module.parameters():
        if values.ndim == 4:
            nn.init.zeros_(values)
        if values.shape[2:] == (3, 3):
            nn.init.ones_(values[:, 0, 1, 1])
    *_, weight, bias = module.parameters()
    nn.init.constant_(weight, 0.5)
    nn.init.constant_(bias, -8.0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the mean of all batches
    dataset = open_dataset("ds")
    image_NHW = np.stack([np.clip(dataset.counts(s) / s.high, 0, 1) for s in dataset.scans])
    module.net(torch.from_numpy(image_NHW[:, None].astype(np.float32)))
    return module


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a phantom, its dataset, and a study of each of STUDIES with its bundle."""
    folder = tmp_path_factory.mktemp("studies")
    with pytest.MonkeyPatch.context() as patch:
        for models, build in ((retinanet, Peaks), (lesion_models, Brightness)):
            small = [dataclasses.replace(model, build=build) for model in models.MODELS]
            patch.setattr(models, "MODELS", small)
        with contextlib.chdir(folder):
            run("phantom", "ph", "--patients", 5, "--height", 128, "--seed", 2)
            run("prepare", "ph", "ds", "--folds", 2, "--holdout", 1, "--key", "ph.key")
            torch.save(hot_pixels().state_dict(), "hot.pt")
            usual = {"batch": 1, "nbs": 1, "imgsz": 128, "warmup_epochs": 0, "ema": 0.0}
            usual |= {"optimizer": "SGD", "fliplr": 0.5}
            for name, study in STUDIES.items():
                content = {
                    "name": name,
                    "dataset": "ds",
                    **study,
                    "fixed": {**usual, **study["fixed"]},
                }
                content["search"] = {"trials": 6, "sampler": "grid", "scheduler": "full"}
                Path(f"{name}.yaml").write_text(yaml.safe_dump(content))
                run("search", f"{name}.yaml", "--out", name, "--local")
                run("refit", name, "--out", f"{name}-bundle")
        yield folder


def cell(text: str) -> Any:
    """A cell of a CSV as what it is."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def table(study: Path) -> list[dict[str, Any]]:
    """The rows of leaderboard.csv, without what differs from run to run."""
    with (study / "leaderboard.csv").open(newline="", encoding="utf-8") as file:
        rows = [{k: cell(v) for k, v in row.items()} for row in csv.DictReader(file)]
    for row in rows:
        assert row["train_seconds"] >= 0
        row |= dict.fromkeys(
            (
                "train_seconds",
                "gpu_hours",
                "code_version",
                "machines",
                "images_per_s",
                "memory_gb",
                "gpu_use",
            ),
            "differs",
        )
        row |= {k: v.replace(f"{study.parent}/", "") for k, v in row.items() if isinstance(v, str)}
    return rows


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_ends_in_the_same_leaderboard(name: str, studies: Path) -> None:
    agree_about(f"leaderboard_{name}.json", table(studies / name))


@pytest.mark.parametrize("name", STUDIES)
def test_a_bundle_predicts_the_same(name: str, studies: Path, tmp_path: Path) -> None:
    with contextlib.chdir(studies):
        scans = "ph/PHANTOM-0001", "ph/PHANTOM-0003/anterior.dcm", f"{name}.yaml"
        if name == "classes":  # its lesions are annotated in the phantom's own file
            scans = ("ph",)
        run("predict", f"{name}-bundle", *scans, "--out", tmp_path / "out")
    told = json.loads((tmp_path / "out/predictions.json").read_text())
    assert len(told.pop("asked")) == 64  # of the places, which are others here
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    agree_about(f"predict_{name}.json", {"files": files, "predictions.json": told})


# Studies of made-up scores, which no processor rounds otherwise, by what their pages are called.
PAGES: dict[str, dict[str, Any]] = {
    "boxes": {"metric": "AP50", "failing": 1, "search": {"scheduler": "fold_race"}},
    "masks": {"metric": "dice", "search": {"trials": 2}},
    "classes": {"metric": "AUC", "name": "lesion-resnet50", "search": {"trials": 2}},
}


@pytest.fixture(scope="module")
def pages(studies: Path) -> Path:
    """The folder of studies, with a study folder of each of PAGES."""
    with contextlib.chdir(studies):
        for name, keys in PAGES.items():
            pretend(f"page-{name}", Path("ds"), **keys)
    return studies


def few(rows: Any) -> Any:
    """Rows of a chart, or of a long one every n-th, with the sums of all."""
    for row in rows:
        if row.get("p") == "hours of the search":
            row["x"] = "differs"
    if len(rows) <= 12:
        return rows
    numbers = {k for k, v in rows[0].items() if isinstance(v, int | float)}
    sums = {k: sum(float(row[k] or 0) for row in rows) for k in sorted(numbers)}
    return {"count": len(rows), "sums": sums, "some": rows[:: len(rows) // 5]}


def words(page: str) -> list[str]:
    """What a page says, line by line, without dates, durations and versions."""
    text = re.sub(r"(?s)<(style|script).*?</\1>", "", page.partition("Installed where")[0])
    text = re.sub(r"</t[dh]>", " | ", text)
    lines = [html.unescape(re.sub("<[^>]+>", " ", line)) for line in text.splitlines()]
    times = r"\d{4}-\d\d-\d\d \d\d:\d\d|\d+\.\d\d hours|in \d+ minutes"
    return [" ".join(re.sub(times, "TIME", line).split()) for line in lines if line.strip()]


@pytest.mark.parametrize("name", PAGES)
def test_a_report_holds_the_same(name: str, pages: Path) -> None:
    with contextlib.chdir(pages):
        scans = () if name == "boxes" else ("--no-scans",)
        run("report", f"page-{name}", "--html", f"{name}.html", *scans)
    page = (pages / f"{name}.html").read_text(encoding="utf-8")
    payload = json.loads(re.search(r'(?s)id="page">(.*?)</script>', page)[1])
    charts = {}
    for chart, content in payload["charts"].items():
        assert content["spec"].pop("description")
        charts[chart] = {"data": {k: few(rows) for k, rows in content["data"].items()}}
        if name == "boxes" or chart.startswith("winner"):  # else the same again
            charts[chart]["spec"] = content["spec"]
    pictures = len(re.findall('src="data:image/png;base64,', page))
    rows = payload["data"]["configurations"]
    agree_about(
        f"report_{name}.json",
        {
            "words": words(page),
            "pictures": pictures,
            "config": payload["config"],
            "configurations": rows,
            "charts": charts,
        },
    )


def test_stopped_and_failed_configurations_have_the_same_rows(pages: Path) -> None:
    with contextlib.chdir(pages):
        run("leaderboard", "page-boxes")
    rows = {row["state"]: row for row in reversed(table(pages / "page-boxes"))}
    assert {"complete", "failed", "stopped@2x4", "stopped@1x1"} <= set(rows)
    agree_about("leaderboard_race.json", [rows[s] for s in ("complete", "stopped@2x4", "failed")])


def test_compare_says_the_same_of_two_studies(
    pages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.chdir(pages):
        capsys.readouterr()
        run("compare", "page-boxes", "page-classes")
        lines = capsys.readouterr().out.splitlines()
        run("compare", "page-boxes", "page-classes", "--json")
        compared = json.loads(capsys.readouterr().out)
    compared[1]["roc"] = few([{"x": x, "y": y} for x, y in compared[1]["roc"]])
    agree_about("compare.json", {"lines": lines, "json": compared})
