"""A study as a page: what it says, that it needs nothing else, and that it works in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import altair
import numpy as np
import pandas as pd
import pytest
import yaml
from browser import CHROMIUM, visit
from PIL import Image
from pretend import flagged, pretend

from raybone.cli import main
from raybone.data.dataset import open_dataset
from raybone.data.overlay import Picture, overlay
from raybone.storage import Folder

in_a_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on PATH: the page is not opened in a browser"
)


def page_of(place: Path | str, *options: str) -> str:
    """The page as text."""
    assert main(["report", str(place), *options]) == 0
    return (Folder(place).read("report.html") or b"").decode()


def payload(page: str) -> dict[str, Any]:
    """Charts and their data."""
    return json.loads(
        re.search(r'<script type="application/json" id="page">(.*?)</script>', page, re.DOTALL)[1]
    )


def words(page: str) -> str:
    """What a person reads, on one line."""

    class Words(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.said: list[str] = []

        def handle_data(self, data: str) -> None:
            if self.lasttag not in ("script", "style"):
                self.said.append(data)

    reader = Words()
    reader.feed(page)
    return " ".join(" ".join(reader.said).split())


@pytest.fixture(scope="module")
def real(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny U-Net that has been searched for."""
    place = tmp_path_factory.mktemp("real")
    (place / "tiny.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "wbbs-double-unet",
                "dataset": str(dataset),
                "model": "unet",
                "epochs": 2,
                "metric": "dice",
                "fixed": {"batch": 4, "nbs": 4, "width": 4, "depth": 2, "imgsz": 128},
                "space": {"lr0": {"log_uniform": [1e-3, 3e-2]}, "fliplr": {"choice": [0.0, 0.5]}},
                "search": {"trials": 2, "sampler": "random", "scheduler": "full", "seed": 0},
            }
        )
    )
    assert main(["search", str(place / "tiny.yaml"), "--out", str(place / "st"), "--local"]) == 0
    return place / "st"


def test_a_searched_study_is_one_file_with_its_ranking_warnings_scans_and_how_to_repeat_it(
    real: Path,
) -> None:
    page, board = page_of(real), pd.read_csv(real / "leaderboard.csv")
    said = words(page)
    first = board.iloc[0]
    assert f"{first['dice_mean']:.4g}" in said
    assert "9 patients: too few to tell" in said
    assert "pictures of patients' scans (pseudonymous" in said
    assert "Median: dice" in said
    assert first["dataset_hash"] in said
    assert "raybone search study.yaml --out" in said
    assert re.search(r"torch \d", said)
    # Of other data, and marked so.
    assert "Other data: published figures are of other patients" in said
    assert page.count('class="n other"') == 4  # precision, sensitivity, and F1 in both readings
    csv = base64.b64decode(re.search(r'href="data:text/csv;base64,([^"]+)"', page)[1])
    assert pd.read_csv(io.BytesIO(csv)).columns.tolist() == board.columns.tolist()
    assert {
        "learning-0",
        "folds-0",
        "folds-1",
        "parallel-0",
        "slices-0",
        "slices-1",
        "regret-0",
        "winner-0",
    } == set(payload(page)["charts"])
    assert "Importance needs 8 scored configurations" in said


def test_nothing_on_the_page_is_fetched_from_elsewhere(real: Path) -> None:
    page = page_of(real)
    addresses = re.findall(
        r'(?:src|href|action|data|poster)="([^"]*)"', page.partition('id="page"')[0]
    )
    assert all(a.startswith(("data:", "#")) for a in addresses)
    assert len([a for a in addresses if a.startswith("data:image/png")]) == 6
    assert "default-src 'none'" in page
    assert not re.search(r"@import|url\(", page.partition("</style>")[0])
    assert "$schema" not in json.dumps(payload(page))


def test_the_page_draws_with_the_vega_lite_that_altair_writes_for(real: Path) -> None:
    page, licences = page_of(real), files("raybone.results").joinpath("vega.txt").read_text("utf-8")
    pins = re.search(r"/\* (vega@\S+ vega-lite@\S+ vega-embed@[^;]+);", page)[1]
    assert f"vega-lite@{altair.SCHEMA_VERSION.removeprefix('v')}" in pins.split()
    assert "sourceMappingURL" not in page
    names = {name for line in re.findall("^== (.+)$", licences, re.M) for name in line.split()}
    assert {"vega", "vega-lite", "vega-embed", "vega-interpreter", "d3-scale"} <= names
    assert "Redistribution and use in source and binary forms" in licences


def test_pictures_and_tables_say_what_they_are(real: Path) -> None:
    whole = page_of(real)
    page = whole.partition('id="page"')[0]
    assert all(re.search(r'alt="[^"]{40,}"', tag) for tag in re.findall("<img[^>]*>", page))
    assert page.count("<caption") == page.count("<table")
    assert 'class="skip" href="#ranking"' in page
    assert not re.search(r"<th(?! scope)[ >]", page)
    assert set(re.findall(r"<h([1-6])", page)) == {"1", "2", "3"}
    for chart in payload(whole)["charts"].values():
        assert len(chart["spec"]["description"]) > 20


def test_without_scans_there_is_no_picture_and_no_warning_of_one(
    real: Path, tmp_path: Path
) -> None:
    assert (
        main(["report", str(real), "--no-scans", "--html", str(tmp_path / "deep" / "page.html")])
        == 0
    )
    page = (tmp_path / "deep" / "page.html").read_text()
    assert "data:image" not in page
    assert "pictures of patients" not in page
    assert "left out by --no-scans" in words(page)


def test_scans_with_burned_in_text_are_never_shown(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "ds")
    flagged(open_dataset(tmp_path / "ds"), "burned-in-text")
    pretend(tmp_path / "st", tmp_path / "ds")
    page = page_of(tmp_path / "st")
    assert "data:image" not in page
    assert "No scan with lesions can be shown" in words(page)


def test_what_is_gone_is_said_and_the_rest_is_there(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "ds")
    pretend(tmp_path / "st", copy, failing=2)
    (tmp_path / "st" / "runs").rename(tmp_path / "elsewhere")
    page = page_of(tmp_path / "st")
    assert "No curves and pictures: study" in words(page)
    assert (
        "2 configurations failed, the first (c001) with: FitFailed: loss is not finite <b>/</b>"
        in words(page)
    )
    assert "primary_tumour" in words(page)
    shutil.rmtree(copy)
    page = page_of(tmp_path / "st")
    assert "No fingerprint: dataset" in words(page)
    assert "parallel-0" in payload(page)["charts"]
    shutil.copytree(dataset, copy)
    meta = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps({**meta, "hash": "ffff"}))
    assert "is another one now: its hash is ffff" in words(page_of(tmp_path / "st"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"epoch": 6, "findings": [{"scan_id": "s0"}]}',
        b'{"epoch": 6, "findings": 3}',
        b'{"epoch": 6, "findings": []}',
    ],
)
def test_predictions_that_are_broken_are_left_out_with_a_line(
    content: bytes, dataset: Path, tmp_path: Path
) -> None:
    pretend(tmp_path / "st", dataset, search={"trials": 1})
    (tmp_path / "st" / "runs" / "c000" / "fold1" / "predictions.json").write_bytes(content)
    assert "No curves and pictures: " in words(page_of(tmp_path / "st"))


@pytest.mark.parametrize(
    ("stop_after", "said"), [(0, "Nothing has run yet"), (1, "not ended: `raybone search`")]
)
def test_a_study_that_has_hardly_begun_has_a_page(
    stop_after: int, said: str, tmp_path: Path
) -> None:
    pretend(tmp_path / "st", stop_after=stop_after, search={"scheduler": "fold_race"})
    page = page_of(tmp_path / "st")
    assert said in words(page)
    assert "no complete configuration yet" in words(page)
    assert set(payload(page)["charts"]) <= {
        "learning-0",
        "parallel-0",
        "slices-0",
        "slices-1",
        "slices-2",
        "slices-3",
    }


def test_a_detector_has_the_curves_that_its_metrics_are_read_from(
    dataset: Path, tmp_path: Path
) -> None:
    from raybone.tasks import task_named
    from raybone.tasks.base import Outcome

    pretend(tmp_path / "st", dataset, "AP50")
    page, opened = page_of(tmp_path / "st"), open_dataset(dataset)
    best = re.search(r"The winner: (c\d+)", page)[1]
    findings = [
        f
        for k in range(3)
        for f in json.loads(
            (tmp_path / "st" / f"runs/{best}/fold{k}/predictions.json").read_text()
        )["findings"]
    ]
    metrics = task_named("detection").score(Outcome(findings, opened.scans, ["malignant"]))
    pr, free = (payload(page)["charts"][f"winner-{n}"]["data"]["rows"] for n in (0, 1))
    whole = [r for r in pr if r["f"] == "all folds"]
    best_after = np.maximum.accumulate([r["y"] for r in whole[::-1]])[::-1]
    reached = [
        next((y for r, y in zip(whole, best_after) if r["x"] >= level - 1e-9), 0)
        for level in np.linspace(0, 1, 101)
    ]
    assert np.mean(reached) == pytest.approx(metrics["AP50"], abs=1e-3)
    rates = [
        max(r["y"] for r in free if r["f"] == "all folds" and r["x"] <= rate)
        for rate in (0.25, 0.5, 1, 2, 4, 8)
    ]
    assert np.mean(rates) == pytest.approx(metrics["FROC"], abs=1e-3)
    assert {r["f"] for r in pr} == {"all folds", "fold 0", "fold 1", "fold 2"}
    assert "that score at least 0.5 are drawn" in words(page)


def test_a_classifier_has_roc_confusion_and_subgroups(dataset: Path, tmp_path: Path) -> None:
    from raybone.results.compare import compare, figures

    pretend(tmp_path / "st", dataset, "AUC", name="lesion-resnet50")
    page, found = page_of(tmp_path / "st"), compare(str(tmp_path / "st"))
    rows = [r for r in payload(page)["charts"]["winner-1"]["data"]["rows"] if r["f"] == "all folds"]
    assert [(r["x"], r["y"]) for r in rows] == [pytest.approx(p, abs=1e-4) for p in found["roc"]]
    said = words(page)
    assert f"in truth positive {found['confusion']['tp']} {found['confusion']['fn']}" in said
    assert "By primary_tumour" in said
    assert "Worst: probability 0." in said
    assert page.count('class="n other"') == len(figures("lesion-resnet50"))
    lung = found["subgroups"]["primary_tumour"]["groups"]["lung"]["AUC"]
    assert (
        f"AUC {lung:.4g} (this subgroup) 0.87 ResNet50, scan + lesion mask stacked, lung West "
        "China WBS" in said
    )


def test_importance_knows_what_matters_also_where_a_parameter_is_conditional(
    tmp_path: Path,
) -> None:
    pretend(tmp_path / "st", search={"trials": 60, "scheduler": "fold_race"})
    page = page_of(tmp_path / "st")
    rows = payload(page)["charts"]["importance-0"]["data"]["rows"]
    assert rows[0]["p"] == "lr0"
    assert {r["p"] for r in rows} == {"lr0", "optimizer", "momentum", "batch"}
    assert sum(r["x"] for r in rows) == pytest.approx(1, abs=1e-3)
    configurations = payload(page)["data"]["configurations"]
    assert all((r["n2"] < 0) == (r["p1"] == "AdamW") for r in configurations)
    assert {r["s"] for r in configurations} == {"complete", "stopped"}
    assert "stopped@1x" in words(page)


def test_regret_falls_to_nothing_at_the_best(tmp_path: Path) -> None:
    pretend(tmp_path / "st")
    rows = payload(page_of(tmp_path / "st"))["charts"]["regret-0"]["data"]["rows"]
    epochs = [r for r in rows if r["p"] == "fold epochs trained"]
    assert [r["x"] for r in epochs] == [18 * n for n in range(1, 13)]
    assert epochs[-1]["y"] == 0
    assert all(a["y"] >= b["y"] for a, b in zip(epochs, epochs[1:]))


def test_of_a_loss_less_is_better_and_scans_are_ranked_by_what_one_scan_has(
    dataset: Path, tmp_path: Path
) -> None:
    pretend(tmp_path / "st", dataset, "val_loss")
    page = page_of(tmp_path / "st")
    rows, charts = payload(page)["data"]["configurations"], payload(page)["charts"]
    assert [r["m"] for r in rows] == sorted((r["m"] for r in rows), reverse=True)
    assert rows[-1]["w"] == 1
    assert charts["regret-0"]["data"]["rows"][-1]["y"] == 0
    scores = [
        float(v) for v in re.findall(r"<figcaption>(?:Best|Median|Worst): dice (\d\.\d+)", page)
    ]
    assert len(scores) == 6
    assert scores == sorted(scores, reverse=True)


def test_of_very_many_configurations_the_first_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raybone.results.report.ROWS", 5)
    pretend(tmp_path / "st")
    page = page_of(tmp_path / "st")
    assert (
        len(payload(page)["data"]["configurations"])
        == page.partition('id="page"')[0].count("<tr><td")
        == 5
    )
    assert "12 of 12" in words(page)
    assert "first 5 configurations; the CSV file has all" in words(page)


HOSTILE = '</script><img src=x onerror="document.title=`had`">\u2028${1}{{ 7 * 7 }}'


def test_what_a_study_says_of_itself_is_never_markup(tmp_path: Path) -> None:
    pretend(
        tmp_path / "st",
        model=HOSTILE,
        space={"lr0": {"choice": [HOSTILE, "b"]}, HOSTILE: {"choice": [1, 2, 3]}},
    )
    page = page_of(tmp_path / "st")
    assert HOSTILE not in page
    assert "<img src=x" not in page
    assert HOSTILE in json.dumps(payload(page), ensure_ascii=False).replace('\\"', '"')
    if CHROMIUM:
        seen = visit(
            tmp_path / "st" / "report.html",
            ["document.title", "document.querySelectorAll('img').length"],
        )
        assert seen.answers == ["pretended: report", 0]
        assert seen.complaints == []


def test_wrong_input_is_one_line(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = shutil.copytree(real, tmp_path / "damaged")
    segment = next((damaged / "journal").iterdir())
    segment.write_text(segment.read_text().replace("0.", "1.", 1))
    capsys.readouterr()
    for given in (
        [str(tmp_path)],
        [str(tmp_path / "none")],
        [str(real), "--html", str(tmp_path)],
        [str(damaged)],
        [str(real), "--html", f"{tmp_path}/x/"],
        [str(real), "--html", ""],
    ):
        assert main(["report", *given]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_study_at_a_url_keeps_its_page_there() -> None:
    pretend("memory://there/st")
    assert main(["report", "memory://there/st"]) == 0
    assert b"<title>pretended: report" in (Folder("memory://there/st").read("report.html") or b"")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 configurations that ran in full, but for a few that failed."""
    place = tmp_path_factory.mktemp("large")
    pretend(place, search={"trials": 500}, epochs=20, failing=5)
    page_of(place)
    return place / "report.html"


def test_500_configurations_make_less_than_8_mb(large: Path) -> None:
    assert large.stat().st_size < 8e6
    assert len(payload(large.read_text())["data"]["configurations"]) == 500


@in_a_browser
def test_in_a_browser_the_table_sorts_and_filters_and_charts_are_drawn(large: Path) -> None:
    column = (
        "[...document.querySelectorAll('#rows tbody tr:not([hidden])')].map(r => "
        "r.cells[%d].textContent)"
    )
    click = (
        "document.querySelectorAll('#rows button')[%d].click(); document.querySelectorAll('#rows "
        "th')[%d].ariaSort"
    )
    fill = (
        "const field = document.getElementById('filter'); field.value = %r; "
        "field.dispatchEvent(new Event('input')); document.getElementById('count').textContent"
    )
    dark = (
        "document.getElementById('theme').click(); [document.getElementById('theme').ariaPressed, "
        "getComputedStyle(document.body).backgroundColor, "
        "getComputedStyle(document.querySelector('#importance-0 path[fill]')).fill]"
    )
    seen = visit(
        large,
        [
            click % (3, 3),
            column % 3,
            click % (3, 3),
            column % 3,
            click % (6, 6),
            column % 6,
            "{" + fill % "failed" + "}",
            column % 2,
            "{" + fill % "SGD c4" + "}",
            "{" + fill % "" + "}",
            "document.querySelectorAll('.chart[role=graphics-document] svg').length + '/' + "
            "document.querySelectorAll('.chart').length",
            dark,
            dark,
        ],
    )
    rising, falling = ([float(v) for v in seen.answers[n] if v] for n in (1, 3))
    assert (seen.answers[0], seen.answers[2]) == ("ascending", "descending")
    assert rising == sorted(rising)
    assert falling == rising[::-1]
    assert seen.answers[3][-5:] == [""] * 5  # what has no score comes last either way
    assert seen.answers[5][0].startswith("-0.")
    assert seen.answers[6] == "5 of 500 configurations"
    assert all(state.startswith("failed") for state in seen.answers[7])
    assert 0 < int(seen.answers[8].split()[0]) < 250
    assert seen.answers[9] == "500 configurations"
    drawn, charts = seen.answers[10].split("/")
    assert drawn == charts == "10"
    assert [a[0] for a in seen.answers[11:]] == ["true", "false"]
    assert seen.answers[11][1] != seen.answers[12][1]
    assert seen.complaints == []
    assert seen.requests == [large.resolve().as_uri()]


@in_a_browser
def test_in_a_browser_a_page_with_scans_asks_for_nothing_and_has_no_complaint(real: Path) -> None:
    page_of(real)
    seen = visit(
        real / "report.html",
        [
            "[...document.images].every(i => i.naturalWidth > 100)",
            "getComputedStyle(document.body).backgroundColor",
            "document.documentElement.scrollWidth <= innerWidth",
        ],
        width=500,
        dark=True,
    )
    assert seen.answers == [True, "rgb(20, 23, 27)", True]
    assert seen.complaints == []
    assert all(r.startswith(("file://", "data:")) for r in seen.requests)


def test_an_overlay_marks_truth_and_findings_in_two_colours(dataset: Path) -> None:
    opened = open_dataset(dataset)
    scan = next(s for s in opened.scans if s.lesions and s.lesions[0].category == "malignant")
    shown = {}
    for name, finding, lesions in [
        (
            "both",
            {"boxes": [[5, 5, 30, 30], [9, 60, 20, 70]], "scores": [0.9, 0.2], "labels": [0, 0]},
            scan.lesions,
        ),
        ("found", {"masks": [scan.lesions[0].rle]}, ()),
        ("judged", {"lesion": 0, "score": 0.3}, scan.lesions),
        ("neither", {"lesion": -1, "score": 0.3}, ()),
    ]:
        png = overlay(Picture(opened.counts(scan), scan.high), finding, lesions)
        pixels = np.array(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
        assert max(pixels.shape) <= 620
        warmth = pixels[..., 0] - pixels[..., 2]
        shown[name] = (int((warmth < -80).sum()) > 20, int((warmth > 80).sum()) > 20)
    assert shown == {
        "both": (True, True),
        "found": (False, True),
        "judged": (True, False),
        "neither": (False, False),
    }
