"""Which model: a row for each, tests of each pair, what better scores cost, and time an image."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browser import CHROMIUM, visit
from pretend import pretend
from scipy import stats

import raybone as rb
from raybone.cli import main
from raybone.hpo.state import State
from raybone.results.by_model import by_model
from raybone.results.leaderboard import entries_of, leaderboard, merged_leaderboard
from raybone.results.pareto import pareto
from raybone.study.files import parse_study
from raybone.study.spec import Resolved, ResolvedStudy

Board = tuple[ResolvedStudy, State]
MODELS = ["unet", "res_unet", "attention_unet"]


def board(
    model: str, scores: dict[str, list[float]], metric: str = "dice", seconds: float = 36.0
) -> Board:
    """A study of these fold scores; a configuration with fewer than four is not complete."""
    asked = {"name": "s", "dataset": "d", "model": model, "epochs": 1, "metric": metric}
    resolved = Resolved(dataset_hash="0", code_version="0", folds=4, ladder=((4, 1),))
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 0.05, 300)
    events: list[dict[str, Any]] = []
    for c, folds in scores.items():
        events.append({"event": "config", "config_id": c, "params": {"c": c}, "parameters": 100})
        events += [
            {
                "event": "epoch",
                "config_id": c,
                "fold": k,
                "epoch": 1,
                "metrics": {metric: None if math.isnan(v) else v},
                "seconds": seconds,
            }
            for k, v in enumerate(folds)
        ]
        if len(folds) == 4:
            drawn = np.nanmean(folds) + shared + rng.normal(0, 0.02, 300)
            events.append(
                {
                    "event": "pooled",
                    "config_id": c,
                    "metrics": {},
                    "replicates": drawn.tolist(),
                    "freedom": 20.0,
                }
            )
            done = {"event": "decision", "config_id": c, "action": "complete", "reason": ""}
            events.append(done)
    return parse_study(asked).resolved_as(resolved), State(
        {"time": n, **e} for n, e in enumerate(events)
    )


def models_of(boards: dict[str, Board]) -> pd.DataFrame:
    """The table of models of several studies, by the name of the model."""
    return by_model(merged_leaderboard(boards), entries_of(boards)).set_index("model")


@pytest.fixture(scope="module")
def three() -> dict[str, Board]:
    """Three models, with 3, 1 and 2 configurations."""
    return {
        "a": board(
            "unet", {"x": [0.7, 0.72, 0.8, 0.75], "y": [0.6] * 4, "z": [0.9, 0.5, 0.7, 0.8]}
        ),
        "b": board("fcos_r50", {"x": [0.62, 0.7, 0.71, 0.7]}, seconds=3600.0),
        "c": board("res_unet", {"x": [0.3, 0.31, 0.4, 0.42], "y": [0.2] * 4}),
    }


def test_the_cells_of_a_model_are_those_of_its_best_row_in_the_leaderboard(
    three: dict[str, Board],
) -> None:
    models, rows = models_of(three), merged_leaderboard(three).set_index("config_id")
    assert models["config_id"].to_dict() == {"unet": "a/x", "fcos_r50": "b/x", "res_unet": "c/x"}
    cells = [f"dice_{c}" for c in ("mean", "ci_low", "ci_high", "nb_low", "nb_high")]
    cells += ["delta_to_best", "delta_ci_low", "delta_ci_high", "p_to_best", "p_to_best_bootstrap"]
    for _, model in models.iterrows():
        assert model[cells].tolist() == pytest.approx(
            rows.loc[model["config_id"], cells].tolist(), nan_ok=True
        )
    assert models["configurations"].tolist() == models["complete"].tolist() == [3, 1, 2]
    assert models["train_hours"].tolist() == pytest.approx([0.12, 4.0, 0.08])


def test_each_pair_has_the_test_of_a_leaderboard_of_the_two_alone(three: dict[str, Board]) -> None:
    models = models_of(three)
    alone = merged_leaderboard({k: three[k] for k in "bc"}).set_index("config_id").loc["c/x"]
    row = models.loc["res_unet"]
    assert row["p[fcos_r50]"] == alone["p_to_best"] == models.loc["fcos_r50", "p[res_unet]"]
    assert row["p_bootstrap[fcos_r50]"] == pytest.approx(alone["p_to_best_bootstrap"], nan_ok=True)
    assert row["delta[fcos_r50]"] == alone["delta_to_best"]
    assert row["delta[fcos_r50]"] == -models.loc["fcos_r50", "delta[res_unet]"]
    assert math.isnan(row["p[res_unet]"])


def test_p_is_nadeau_and_bengios_and_holm_corrects_it_for_all_pairs(
    three: dict[str, Board],
) -> None:
    folds = {
        "unet": [0.7, 0.72, 0.8, 0.75],
        "fcos_r50": [0.62, 0.7, 0.71, 0.7],
        "res_unet": [0.3, 0.31, 0.4, 0.42],
    }

    def p_of(one: str, other: str) -> float:
        gap = np.subtract(folds[one], folds[other])
        t = gap.mean() / np.sqrt((1 / 4 + 1 / 3) * gap.var(ddof=1))
        return float(2 * stats.t.sf(abs(t), 3))

    pairs = [("unet", "fcos_r50"), ("unet", "res_unet"), ("fcos_r50", "res_unet")]
    p = {pair: p_of(*pair) for pair in pairs}
    models, largest = models_of(three), 0.0
    for times, pair in zip((3, 2, 1), sorted(pairs, key=lambda pair: p[pair])):
        largest = max(largest, times * p[pair])
        assert models.loc[pair[0], f"p[{pair[1]}]"] == pytest.approx(p[pair])
        assert models.loc[pair[0], f"p_holm[{pair[1]}]"] == pytest.approx(min(largest, 1))
    best = models["p_holm"].tolist()
    assert best[1:] == [models.loc[m, "p_holm[unet]"] for m in ("fcos_r50", "res_unet")]
    assert models["verdict"].tolist() == ["best", "not told apart", "worse"]


def test_a_p_that_holds_alone_need_not_hold_among_three_models() -> None:
    boards = {
        "a": board("unet", {"x": [0.70, 0.72, 0.80, 0.75]}),
        "b": board("res_unet", {"x": [0.60, 0.68, 0.71, 0.68]}),
        "c": board("fcos_r50", {"x": [0.60, 0.68, 0.70, 0.68]}),
    }
    models = models_of(boards)
    assert models["p_to_best"].tolist()[1] < 0.05 < models["p_holm"].tolist()[1]
    assert models["verdict"].tolist()[1:] == ["not told apart"] * 2
    two = models_of({k: boards[k] for k in "ab"})
    assert two["p_holm"].tolist()[1] == two["p_to_best"].tolist()[1] < 0.05
    assert two["verdict"].tolist() == ["best", "worse"]


def test_corrected_is_what_a_models_own_leaderboard_has(three: dict[str, Board]) -> None:
    models = models_of(three)
    for model, key in zip(models.index, "abc"):
        own = leaderboard(*three[key])["dice_corrected"][0]
        assert models.loc[model, "dice_corrected"] == own
    assert models.loc["unet", "dice_corrected"] < models.loc["unet", "dice_mean"]


def test_one_model_alone_is_the_best_of_one(three: dict[str, Board]) -> None:
    (row,) = models_of({"a": three["a"]}).to_dict("records")
    assert (row["config_id"], row["verdict"], row["delta_to_best"]) == ("x", "best", 0)
    assert math.isnan(row["p_holm"])
    assert models_of({"a": board("unet", {})}).empty


def test_a_model_without_a_complete_configuration_comes_last_and_is_in_no_pair(
    three: dict[str, Board],
) -> None:
    models = models_of({"d": board("yolo11n", {"x": [0.99], "y": [0.99]}), **three})
    row = models.iloc[-1]
    assert (row.name, row["config_id"], row["verdict"]) == ("yolo11n", "", "")
    assert (row["configurations"], row["complete"]) == (2, 0)
    assert row["train_hours"] == pytest.approx(0.02)
    assert "p[yolo11n]" not in models.columns
    assert models["p_holm"].tolist()[:3] == pytest.approx(
        models_of(three)["p_holm"].tolist(), nan_ok=True
    )
    none = models_of({"d": board("yolo11n", {"x": [0.99]})})
    assert none["verdict"].to_dict() == {"yolo11n": ""}


def test_models_with_the_same_scores_are_not_told_apart() -> None:
    same = {"x": [0.7, 0.72, 0.8, 0.75]}
    models = models_of({"a": board("unet", same), "b": board("res_unet", same)})
    assert models["delta_to_best"].tolist() == [0, 0]
    assert models["p_holm"].tolist()[1] == 1
    assert models["verdict"].tolist() == ["best", "not told apart"]


def test_a_row_with_a_fold_of_nan_stands_for_its_model_only_where_all_are_so(
    three: dict[str, Board],
) -> None:
    undefined = [0.99, 0.99, 0.99, math.nan]
    models = models_of(
        {
            "a": three["a"],
            "b": board("fcos_r50", {"x": undefined, "y": [0.5, 0.6, 0.7, 0.6]}),
            "c": board("res_unet", {"x": undefined}),
        }
    )
    assert models["config_id"].tolist() == ["a/x", "b/y", "c/x"]
    assert math.isnan(models.loc["res_unet", "dice_mean"])
    assert math.isnan(models.loc["res_unet", "p_holm"])
    # A pair without a test is none that Holm counts.
    assert models.loc["fcos_r50", "p_holm"] == models.loc["fcos_r50", "p_to_best"]


def test_of_millimetres_less_is_better() -> None:
    far, near = {"x": [9.0, 8.0, 8.5, 9.5], "y": [30.0] * 4}, {"x": [3.0, 2.0, 3.5, 4.0]}
    models = models_of(
        {"a": board("unet", far, "hd95_mm"), "b": board("res_unet", near, "hd95_mm")}
    )
    assert models["config_id"].tolist() == ["b/x", "a/x"]
    assert models["delta_to_best"].tolist() == pytest.approx([0, 5.625])
    assert models["verdict"].tolist() == ["best", "worse"]
    assert models["hd95_mm_corrected"].tolist() == pytest.approx([3.125, 8.75])


def dominated(table: pd.DataFrame, sign: int, mean: str, cost: str) -> set[str]:
    """The complete rows that another beats, by the definition."""
    rows = table[table["state"] == "complete"].to_dict("records")
    beaten = set()
    for one in rows:
        for other in rows:
            gain = sign * (other[mean] - one[mean])
            saved = one[cost] - other[cost]
            if gain >= 0 and saved >= 0 and gain + saved > 0:
                beaten.add(one["config_id"])
    return beaten


@pytest.mark.parametrize("metric", ["dice", "hd95_mm"])
@pytest.mark.parametrize("cost", ["parameters", "train_seconds"])
def test_no_complete_row_beats_one_of_the_front(metric: str, cost: str) -> None:
    rng = np.random.default_rng(1)
    boards: dict[str, Board] = {}
    for n in range(12):
        scores = np.repeat(rng.integers(1, 6, 3) / 10, 4).reshape(3, 4).tolist()
        rows = {"x": scores[0], "y": scores[1], "z": [*scores[2][:3], math.nan], "w": [0.5]}
        boards[str(n)] = board("unet", rows, metric, float(rng.integers(1, 4)))
        for c in boards[str(n)][1].configurations.values():
            c.parameters = int(rng.integers(1, 4))
    table = merged_leaderboard(boards)
    sign = next(iter(boards.values()))[0].sign
    front = pareto(table, sign, cost)
    scored = table[(table["state"] == "complete") & table[f"{metric}_mean"].notna()]
    beaten = dominated(scored, sign, f"{metric}_mean", cost)
    assert set(front["config_id"]) == set(scored["config_id"]) - beaten
    assert 0 < len(front) < len(scored)
    assert front[cost].is_monotonic_increasing


@pytest.fixture(scope="module")
def over_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study over three models, whose dataset is gone."""
    folder = tmp_path_factory.mktemp("over") / "st"
    small = {"fixed": {"width": 4, "imgsz": 64}, "space": {"lr0": LR0}}
    pretend(folder, model="", models=MODELS, **small, search={"trials": 20})
    return folder


LR0 = {"log_uniform": [1e-4, 1e-1]}


def shown(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    """What the verb prints."""
    capsys.readouterr()
    assert main(["leaderboard", *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_study_over_models_and_single_studies_have_the_same_table(
    over_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(capsys, over_models, "--by-model", "--csv", tmp_path / "a.csv")
    written = pd.read_csv(tmp_path / "a.csv")
    results = rb.open_study(over_models)
    pd.testing.assert_frame_equal(
        written, results.by_model().replace({"warnings": {"": math.nan}}), check_dtype=False
    )
    counts = results.leaderboard()["model"].value_counts()
    assert written.set_index("model")["configurations"].to_dict() == counts.to_dict()
    assert [line.split()[0] for line in lines[1:4]] == written["model"].tolist()
    assert lines[1].split()[2] == f"{counts[written['model'][0]]}/{counts[written['model'][0]]}"
    assert any(line.startswith("p is Nadeau & Bengio's") and "3 pairs" in line for line in lines)
    assert any("the best of more configurations looks better" in line for line in lines)
    assert (over_models / "leaderboard.csv").exists()


def test_the_table_of_models_fits_120_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = [tmp_path / ("a long name of a folder" * 3) / name for name in "ab"]
    for study, model in zip(studies, ("a_package.of_models:THE_BEST_ONE", "unet")):
        pretend(study, model=model, search={"trials": 2}, space={"lr0": LR0})
    lines = shown(capsys, *studies, "--by-model")
    assert max(map(len, lines[:6])) <= 120
    assert lines[1].split()[1].endswith("c001") or lines[1].split()[1].endswith("c000")
    assert any(line.split()[0] == "a_package.of..." for line in lines)


def test_a_study_that_has_not_begun_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(tmp_path, stop_after=0)
    assert shown(capsys, tmp_path, "--by-model") == ["no configuration has begun"]
    assert rb.open_study(tmp_path).by_model().empty


@pytest.mark.parametrize("options", [["--brief", "--by-model"], ["--time"]])
def test_options_that_do_not_go_together_are_one_line(
    options: Sequence[str], over_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["leaderboard", str(over_models), *options]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_networks_are_timed_on_a_square_where_the_dataset_is_gone_and_said_so(
    over_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(capsys, over_models, "--by-model", "--time")
    said = "1x1x64x64 (imgsz, as the dataset is not at hand), "
    assert any(line.startswith("ms an image") and said in line for line in lines)
    results = rb.open_study(over_models)
    models = results.by_model(time=True)
    assert (models["ms"] > 0).all()
    assert models["ms_on"][0].startswith(said)
    assert "ms" not in results.by_model()


def test_networks_are_timed_on_the_most_common_shape_of_scan(dataset: Path, tmp_path: Path) -> None:
    fixed = {"width": 4, "depth": 1, "imgsz": 128}
    for height, name in ((128, "a"), (64, "b")):
        pretend(tmp_path / name, dataset, fixed=fixed | {"imgsz": height}, space={"lr0": LR0})
    (row,) = rb.open_study(tmp_path / "a").by_model(time=True).to_dict("records")
    assert row["ms_on"].startswith("1x1x128x32 (most common shape), ")
    front = rb.open_study(tmp_path / "a").pareto("ms")
    # All have one network, which was timed once, so that the best of them beats the others.
    assert front["config_id"].tolist() == [row["config_id"]]
    assert front["ms"].tolist()[0] > 0


@pytest.mark.parametrize(
    ("metric", "fixed", "size"),
    [
        ("AUC", {"imgsz": 64}, "1x2x64x64"),
        ("AP50", {"imgsz": 64, "anchor": 0.1, "montage": True}, "1x1x64x128"),
    ],
)
def test_networks_of_other_tasks_are_timed_on_the_images_that_they_see(
    metric: str, fixed: dict[str, Any], size: str, tmp_path: Path
) -> None:
    pretend(tmp_path, metric=metric, fixed=fixed, space={"lr0": LR0}, search={"trials": 1})
    (row,) = rb.open_study(tmp_path).by_model(time=True).to_dict("records")
    assert row["ms"] > 0
    assert row["ms_on"].startswith(f"{size} (imgsz, ")


def test_studies_of_one_model_share_its_row(three: dict[str, Board]) -> None:
    models = models_of({**three, "d": board("unet", {"x": [0.9, 0.92, 0.95, 0.97]})})
    assert models["config_id"].tolist()[0] == "d/x"
    assert models["configurations"].to_dict() == {"unet": 4, "fcos_r50": 1, "res_unet": 2}


def test_the_front_of_a_study_is_of_what_it_can_cost(over_models: Path) -> None:
    results = rb.open_study(over_models)
    table = results.leaderboard()
    best = table["config_id"][0]
    # All configurations of a model are as large, and the larger models are the better ones.
    smallest_first = results.by_model().sort_values("parameters")["config_id"].tolist()
    assert results.pareto("parameters")["config_id"].tolist() == smallest_first
    assert results.pareto()["config_id"].tolist()[-1] == best
    with pytest.raises(rb.WrongInput, match=r"pareto: the cost must be one of .* got 'money'"):
        results.pareto("money")  # type: ignore[arg-type]


def test_a_configuration_that_its_model_no_longer_takes_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(tmp_path / "st", fixed={"gone": 1}, space={"lr0": LR0}, search={"trials": 1})
    capsys.readouterr()
    assert main(["leaderboard", str(tmp_path / "st"), "--by-model", "--time"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "time: c000 of study pretended must be one that its model takes, but: " in line


def page_of(study: Path) -> tuple[str, dict[str, Any]]:
    """The page of a study, and its charts."""
    assert main(["report", str(study)]) == 0
    page = (study / "report.html").read_text(encoding="utf-8")
    charts = json.loads(re.search(r'(?s)id="page">(.*?)</script>', page)[1])["charts"]
    return page.partition('id="page"')[0], charts


def cells(page: str, caption: str) -> dict[str, list[str]]:
    """A table's cells by the head of the row."""
    table = re.search(rf"(?s)<caption>{caption}.*?</table>", page)[0]
    rows = re.findall(r'(?s)<tr><th scope="row">(.*?)</tr>', table)
    found = [re.sub("<[^>]+>", " ", row.replace("</t", "|</t")).split("|") for row in rows]
    return {row[0].strip(): [" ".join(cell.split()) for cell in row[1:]] for row in found}


def test_the_report_has_the_table_of_models_and_of_their_pairs(over_models: Path) -> None:
    page, _ = page_of(over_models)
    models = rb.open_study(over_models).by_model().set_index("model")
    shown, pairs = cells(page, "Models, best first"), cells(page, "Mean of the model")
    assert [*shown] == models.index.tolist() == [*pairs]
    for name, row in models.iterrows():
        assert shown[name][0] == row["config_id"]
        assert shown[name][1] == f"{row['complete']} of {row['configurations']}"
        assert shown[name][2] == f"{row['dice_mean']:.3f}"
        assert shown[name][4] == f"{row['dice_corrected']:.3f}"
        assert row["verdict"] in shown[name]
        for cell, other in zip(pairs[name], models.index):
            p, holm = row[f"p[{other}]"], row[f"p_holm[{other}]"]
            says = f"{row[f'delta[{other}]']:.3f} p {holm:.3f} ({p:.3f}, "
            assert cell.startswith(says) if other != name else cell == ""
    assert "unet, res_unet, attention_unet ranked by dice" in page
    assert '<button type="button">model</button>' in page


def test_the_report_draws_the_front_of_each_cost(over_models: Path) -> None:
    charts, results = page_of(over_models)[1], rb.open_study(over_models)
    table = results.leaderboard().set_index("config_id")
    for number, cost in enumerate(("train_seconds", "parameters")):
        rows = charts[f"models-{number}"]["data"]["rows"]
        assert {r["c"] for r in rows} == set(table.index[table["state"] == "complete"])
        assert {r["c"] for r in rows if r["f"]} == set(results.pareto(cost)["config_id"])
        best = next(r for r in rows if r["c"] == table.index[0])
        ends = table.loc[table.index[0], ["dice_mean", "dice_nb_low", "dice_nb_high"]].tolist()
        assert [best["y"], best["a"], best["b"]] == pytest.approx(ends, rel=1e-3)
        assert best["x"] * (3600 if number == 0 else 1) == pytest.approx(
            table[cost].iloc[0], rel=1e-3
        )


def test_a_study_of_one_model_or_of_which_one_has_begun_has_no_such_section(
    tmp_path: Path,
) -> None:
    pretend(tmp_path / "one", search={"trials": 3})
    pretend(tmp_path / "begun", model="", models=MODELS, space={"lr0": LR0}, search={"trials": 1})
    for name in ("one", "begun"):
        page, charts = page_of(tmp_path / name)
        assert "By model" not in page
        assert not [chart for chart in charts if chart.startswith("models")]


def test_a_model_without_a_complete_configuration_is_in_the_report(tmp_path: Path) -> None:
    points = [{"model": name} for name in MODELS]
    search = {"trials": 3, "points": points}
    pretend(tmp_path, model="", models=MODELS, space={"lr0": LR0}, search=search, failing=2)
    page, charts = page_of(tmp_path)
    shown = cells(page, "Models, best first")
    assert [row[1] for row in shown.values()] == ["1 of 1", "0 of 1", "0 of 1"]
    assert [row[8] for row in shown.values()] == ["best", "none complete", "none complete"]
    assert "Mean of the model on the left" not in page
    assert not [chart for chart in charts if chart.startswith("models")]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: the page is not opened")
def test_in_a_browser_the_charts_of_costs_are_drawn(over_models: Path) -> None:
    page_of(over_models)
    path = "[...document.querySelectorAll('#models-%d svg .mark-symbol path')].length"
    seen = visit(over_models / "report.html", [path % 0, path % 1])
    # The configurations, and the legend's three.
    assert seen.answers == [23, 23]
    assert seen.complaints == []
