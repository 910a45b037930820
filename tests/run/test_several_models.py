"""One study over several models: what it may say, what it searches, and that it is as good as a
study of each.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pretend import pretend

import raybone as rb
from raybone.cli import main
from raybone.deploy.bundle import open_bundle
from raybone.deploy.refit import Options, refit
from raybone.errors import WrongInput
from raybone.hpo.brain import Brain
from raybone.hpo.fold_race import scores
from raybone.hpo.sampler import propose
from raybone.hpo.state import Configuration, Run, State
from raybone.hpo.warm_start import warm_start
from raybone.results.leaderboard import merged_leaderboard
from raybone.results.report import report
from raybone.results.study_folder import StudyFolder, earlier_rows
from raybone.results.watch import clock, time_left
from raybone.run.defaults import complete
from raybone.run.local import search
from raybone.study.files import parse_study, read_study, write_study
from raybone.study.relocate import relocated
from raybone.study.space import grid, in_joint, joint
from raybone.study.spec import Resolved, ResolvedStudy

LR = {"log_uniform": [1e-3, 1e-2]}
THREE: dict[str, Any] = {
    "unet": {"fixed": {"width": 4, "depth": 2}},
    "res_unet": {"fixed": {"width": 4}, "space": {"cross_entropy": {"choice": [0.2, 0.8]}}},
    "attention_unet": {"fixed": {"width": 4, "lr0": 0.02}},
}


@pytest.fixture
def several(study: dict[str, Any]) -> dict[str, Any]:
    """A study of seconds over three models."""
    rest = {k: v for k, v in study.items() if k != "model"}
    return {
        **rest,
        "name": "several",
        "models": THREE,
        "epochs": 2,
        "fixed": {"batch": 4, "nbs": 4, "imgsz": 128},
        "space": {"lr0": {"choice": [0.01, 0.03]}},
        "search": {"trials": 7, "sampler": "grid", "scheduler": "full"},
    }


def made(content: dict[str, Any]) -> ResolvedStudy:
    """A study with everything that a sampler asks for."""
    resolved = Resolved(dataset_hash="0" * 16, code_version="0", folds=3, ladder=((3, 2),))
    return parse_study(complete(content)).resolved_as(resolved)


def drawn(study: ResolvedStudy, count: int) -> list[dict[str, Any]]:
    """The first proposals of a study in which the models differ in how good they are."""
    state, points = State(), list[dict[str, Any]]()
    for index in range(count):
        params = propose(study, state, index)
        if params is None:
            break
        points.append(params)
        name = f"c{index:03d}"
        score = {"unet": 0.2, "res_unet": 0.7, "attention_unet": 0.3}[params["model"]]
        state.apply({"event": "config", "time": 0.0, "config_id": name, "params": params})
        for fold in range(3):
            for epoch in (1, 2):
                told = {"config_id": name, "fold": fold, "epoch": epoch, "seconds": 1.0}
                state.apply({"event": "epoch", "metrics": {"dice": score}, **told})
        state.apply({"event": "rung", "config_id": name, "rung": 0, "score": score})
    return points


def test_each_model_is_a_study_of_its_own(several: dict[str, Any]) -> None:
    """Its block goes before what the study says of all, and it does without what it has not."""
    more = {**several["space"], "depth": {"choice": [2, 3]}}
    asked = parse_study(complete({**several, "space": more}))
    assert asked.names == ("unet", "res_unet", "attention_unet")
    unet, res, attention = map(asked.of, asked.names)
    assert unet.fixed == {
        "batch": 4,
        "nbs": 4,
        "imgsz": 128,
        "width": 4,
        "depth": 2,
    }
    assert list(unet.space) == ["lr0"]
    assert list(res.space) == ["lr0", "cross_entropy"]
    assert attention.fixed["lr0"] == 0.02
    assert attention.space == {}
    assert asked.models["res_unet"].without == ("depth",)
    alone = parse_study(complete({**several, "space": more}))
    assert alone.of("unet").model == "unet"
    assert not alone.of("unet").models


def test_a_study_over_models_is_read_back_as_it_was_written(
    several: dict[str, Any], tmp_path: Path
) -> None:
    asked = parse_study(complete(several))
    (tmp_path / "s.yaml").write_text(write_study(asked))
    assert read_study(tmp_path / "s.yaml") == asked
    assert "model:" not in (tmp_path / "s.yaml").read_text()
    alone = parse_study(complete({"dataset": "d", "model": "unet"}))
    assert "models" not in write_study(alone)


def test_names_alone_start_from_the_space_that_each_model_suggests() -> None:
    study = rb.Study(dataset="data/ours", models=["yolo11n", "retinanet_r50"])
    assert study.name == "yolo11n-retinanet_r50"
    assert study.metric == "AP"
    for name in study.names:
        alone = rb.Study(dataset="data/ours", model=name)
        assert study.of(name).space == alone.space
    assert rb.Study(dataset="d", models={"unet": {}, "res_unet": None}).names == (
        "unet",
        "res_unet",
    )


def test_the_spaces_of_models_are_one_space(several: dict[str, Any]) -> None:
    """What two models search alike is one parameter, what differs has the model's name."""
    own = {**THREE["unet"], "space": {"fliplr": {"choice": [0.5]}, "gamma": {"choice": [0.1]}}}
    other = {**THREE["res_unet"], "space": {"fliplr": {"choice": [0.0, 0.1]}}}
    asked = parse_study(complete({**several, "models": {**THREE, "unet": own, "res_unet": other}}))
    assert list(joint(asked)) == ["model", "lr0", "unet.fliplr", "gamma", "res_unet.fliplr"]
    point = {"model": "res_unet", "lr0": 0.01, "fliplr": 0.1}
    assert in_joint(asked, point) == {"model": "res_unet", "lr0": 0.01, "res_unet.fliplr": 0.1}


@pytest.mark.parametrize("sampler", ["random", "sobol", "tpe", "gp"])
def test_every_sampler_draws_of_every_model_what_is_its_own(
    several: dict[str, Any], sampler: str
) -> None:
    content = {**several, "space": {"lr0": LR}, "search": {"trials": 24, "sampler": sampler}}
    study = made(content)
    points = drawn(study, 24)
    assert points == drawn(made(content), 24)
    assert {p["model"] for p in points} == set(study.names)
    for point in points:
        space = study.of(point["model"]).space
        assert set(point) == {"model", *space}
        assert all(space[k].admits(v) for k, v in point.items() if k != "model")
    if sampler == "tpe":  # it has seen that one of them is better
        later = [p["model"] for p in points[8:]]
        assert later.count("res_unet") > len(later) / 2


def test_a_grid_is_that_of_each_model_and_points_come_first(several: dict[str, Any]) -> None:
    search = {**several["search"], "points": [{"model": "res_unet", "lr0": 0.03}, {"lr0": 0.01}]}
    study = made({**several, "search": search})
    each = {name: len(list(grid(study.of(name)))) for name in study.names}
    assert each == {"unet": 2, "res_unet": 4, "attention_unet": 1}
    points = drawn(study, 9)
    assert points[0] == {"model": "res_unet", "lr0": 0.03, **points[0]}
    assert points[1]["lr0"] == 0.01  # of a model that searches it
    assert {p["model"] for p in points} == set(study.names)
    assert len(points) == 7 == len({str(sorted(p.items())) for p in points})


def test_rules_and_conditions_may_name_the_model(several: dict[str, Any]) -> None:
    space = {"lr0": LR, "gamma": {"uniform": [0.1, 0.5], "when": {"model": "unet"}}}
    rules = ["model == 'res_unet' and lr0 > 0.002", "model == 'attention_unet'"]
    search = {"trials": 40, "sampler": "random", "reject": rules}
    points = drawn(made({**several, "space": space, "search": search}), 40)
    assert {p["model"] for p in points} == {"unet", "res_unet"}
    assert all(("gamma" in p) == (p["model"] == "unet") for p in points)
    assert max(p["lr0"] for p in points if p["model"] == "res_unet") <= 0.002


def test_a_choice_may_depend_on_what_a_block_fixes(several: dict[str, Any]) -> None:
    space = {
        "optimizer": {"choice": ["SGD", "AdamW"]},
        "momentum": {"uniform": [0.5, 0.9], "when": {"optimizer": "SGD"}},
    }
    models = {
        "unet": {},
        "res_unet": {"fixed": {"optimizer": "SGD"}},
        "attention_unet": {"fixed": {"optimizer": "AdamW"}},
    }
    asked = parse_study(complete({**several, "models": models, "space": space, "search": {}}))
    assert asked.of("unet").space["momentum"].when == {"optimizer": "SGD"}
    assert asked.of("res_unet").space["momentum"].when is None
    assert asked.of("attention_unet").space == {}


WRONG = {
    "two tasks": (
        {"models": {"unet": {}, "yolo11n": {}}, "metric": "AP50"},
        "models: must be of one task, but unet is a segmentation model and yolo11n is a detection",
        "metric: unet is a segmentation model and is ranked by one of dice",
    ),
    "no such parameter": (
        {"space": {"lr0": LR, "dept": {"choice": [2]}}, "fixed": {"batch": 4, "octaves": 3}},
        "space.dept: no model of this study (unet, res_unet, attention_unet) has such a "
        "hyper-parameter; did you mean 'depth'?",
        "fixed.octaves: no model of this study",
    ),
    "own and not its own": (
        {"models": {"unet": {"space": {"octaves": {"choice": [1]}}}, "res_unet": {}}},
        "models.unet.space.octaves: unet has no such hyper-parameter",
    ),
    "a value that it does not take": (
        {"models": {"unet": {"fixed": {"depth": 9}}, "res_unet": {}}},
        "fixed (unet): depth: must be less than or equal to 5, got 9",
    ),
    "places of all": (
        {"fixed": {"init_from": "runs/a", "nm": "runs/b"}},
        "fixed.init_from: is of one model alone; move it to models.NAME.fixed.init_from",
        "fixed.nm: is of one model alone",
    ),
    "a name that is left out of nothing": (
        {"models": {"unet": {"without": ["dept"]}, "res_unet": {}}},
        "models.unet.without: 'dept' is no hyper-parameter of the study; did you mean 'depth'?",
    ),
    "categories that are searched": (
        {"space": {"lr0": LR, "categories": {"choice": [["malignant"], ["benign"]]}}},
        "space.categories: changes what is scored, so that scores of other values cannot be "
        "compared; put one under fixed",
    ),
    "losses that val_loss is made of": (
        {"models": ["unet"], "metric": "val_loss", "space": {"dice": {"choice": [0.5, 1.0]}}},
        "space.dice: changes what val_loss is made of, so that those of other values cannot be "
        "compared; put one under fixed, or rank by another metric",
    ),
    "categories": (
        {"models": {"unet": {"fixed": {"categories": ["bone"]}}, "res_unet": {}}},
        "models: must have the same categories to be compared",
        "categories: the dataset has malignant, benign, not bone",
    ),
    "an unknown model": (
        {"models": ["unet", "unett"]},
        "model: must be a name of the menu, got 'unett'; did you mean unet",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_go_together_is_told_at_once(
    case: str, several: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, *lines = WRONG[case]
    (tmp_path / "s.yaml").write_text(
        yaml.safe_dump({**several, "search": {}, **change}, sort_keys=False)
    )
    assert main(["search", str(tmp_path / "s.yaml"), "--local", "--out", str(tmp_path / "o")]) == 2
    told = capsys.readouterr().err
    assert all(line in told for line in lines), told
    assert len(told.splitlines()) == len(lines)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"model": "unet"}, "models: stands beside model, which is 'unet'; keep one of the two"),
        ({"models": []}, "models: must name a model at the least, got none"),
        ({"models": 3}, "models: must be a mapping, got 3"),
        (
            {
                "models": {"unet": {"space": {"nm": {"choice": ["", "otsu"]}}}},
                "space": {"ema": {"choice": [0.5], "when": {"nm": "otsu"}}},
            },
            "space.ema.when: nm is of one model alone; move space.ema to it",
        ),
        (
            {
                "models": {"unet": {"space": {"nm": {"choice": ["", "otsu"]}}}, "res_unet": {}},
                "search": {"points": [{"nm": "otsu"}]},
            },
            "search.points.0: nm is of one model alone; add model: NAME",
        ),
        (
            {"models": {"unet": {"space": {"lr0": LR | {"when": {"model": "res_unet"}}}}}},
            "models.unet.space.lr0.when: model is 'unet' here, got 'res_unet'; leave it out",
        ),
        (
            {
                "models": {"unet": {}, "res_unet": {}},
                "fixed": {"optimizer": "AdamW"},
                "space": {"momentum": {"choice": [0.9], "when": {"optimizer": "SDG"}}},
            },
            "space.momentum.when: {'optimizer': 'SDG'} is true of no model of this study",
        ),
        ({"models": {1: {}}}, "models.1.[key]: must be text, got 1"),
        ({"models": ["unet", 5]}, "models: must be a mapping, got ['unet', 5]"),
        ({"models": {"unet": 5}}, "models.unet: must be a mapping"),
        ({"models": {"unet": {"fixed": 5}}}, "models.unet.fixed: must be a mapping"),
        ({"models": {"unet": {"without": 5}}}, "models.unet.without: must be a list"),
        (
            {"search": {"points": [{"model": ["unet"]}]}},
            "search.points.0: model must be one of unet, res_unet, attention_unet, got ['unet']",
        ),
        (
            {"models": {"unet": {"spaces": {}}}},
            "models.unet.spaces: unknown key; did you mean 'space'",
        ),
        (
            {"models": {"unet": {"fixed": {"lr0": 1e-3}, "space": {"lr0": LR}}}},
            "models.unet.space.lr0: is also in fixed",
        ),
        ({"metric": "val_loss"}, "metric: val_loss of different models cannot be compared"),
        (
            {"search": {"points": [{"model": "fcos_r50"}]}},
            "search.points.0: model must be one of unet, ",
        ),
        (
            {"search": {"points": [{"model": "unet", "cross_entropy": 0.2}]}},
            "search.points.0: 'cross_entropy' is not searched",
        ),
        (
            {"search": {"reject": ["modell == 'unet'"]}},
            "'modell' is neither searched nor fixed; did you mean 'model'",
        ),
        (
            {"space": {"lr0": {"choice": [0.001], "when": {"model": "fcos_r50"}}}},
            "space.lr0.when: model must be one of unet, ",
        ),
        (
            {"space": {"model": {"choice": ["unet"]}}},
            "space.model: the models stand under models; leave it out",
        ),
    ],
)
def test_a_wrong_study_over_models_is_one_line(
    change: dict[str, Any], line: str, several: dict[str, Any]
) -> None:
    with pytest.raises(WrongInput) as caught:
        parse_study(complete({**several, "search": {}, **change}))
    assert len(caught.value.problems) == 1, caught.value.problems
    assert line in caught.value.problems[0]


def test_set_reaches_a_block_and_no_model_that_is_not_listed(
    several: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({**several, "models": ["unet", "res_unet"]}, sort_keys=False))
    read = read_study(path, ["models.unet.fixed.depth=2", "models.attention_unet={}"], complete)
    assert read.of("unet").fixed["depth"] == 2
    assert read.names == ("unet", "res_unet", "attention_unet")
    assert read_study(path, ["models=[unet]"], complete).names == ("unet",)
    with pytest.raises(WrongInput) as caught:
        read_study(path, ["models.fcos_r50.fixed.channels=8"], complete)
    assert caught.value.problems == (
        "--set models.fcos_r50.fixed.channels=8: must be of a model that the study lists, which "
        "are res_unet, unet; list it under models first",
    )


def test_a_full_study_over_models_has_the_rows_of_a_study_of_each(
    several: dict[str, Any], tmp_path: Path
) -> None:
    """And its winner goes on to a report and a bundle; it resumes, and it warms
    another.
    """
    two = {"unet": THREE["unet"], "res_unet": {"fixed": {"width": 4}}}
    several = {**several, "models": two}
    study = parse_study(complete(several))
    out = tmp_path / "one"
    search(study, str(out))
    table = StudyFolder(out).table()
    boards = {}
    for name in study.names:
        alone = {**several, **study.of(name).model_dump(include={"model", "fixed", "space"})}
        alone.pop("models")
        search(parse_study(alone), str(tmp_path / name))
        each = StudyFolder(tmp_path / name)
        boards[name] = (each.study, each.state)
    merged = merged_leaderboard(boards)
    assert len(table) == 4
    assert table["val_loss_mean"].nunique() == 4
    assert set(table.columns) == set(merged.columns)
    # Scores that are equal stand in the order of their names, which differ.
    of_ranks = ("rank", "config_id", "delta", "p_to", "verdict", "dice_corr")
    of_ranks += ("train_s", "gpu_h", "images_per", "memory")
    rows = [t.sort_values(["model", "cfg.lr0"]).astype(object).fillna("-") for t in (table, merged)]
    for column in table.columns:
        if not column.startswith(of_ranks):
            assert list(rows[0][column]) == list(rows[1][column]), column

    search(study, str(out))  # nothing is left to do
    assert StudyFolder(out).table().equals(table)
    bundle = refit(StudyFolder(out), tmp_path / "bundle")
    assert bundle.model.name == table["model"][0]
    assert bundle.config.lr0 == table["cfg.lr0"][0]
    text = Path(report(str(out), scans=False)[0]).read_text()
    assert "res_unet" in text
    for source in (str(out), str(out / "leaderboard.csv")):
        warm = parse_study(complete({**several, "models": {"res_unet": two["res_unet"]}}))
        prior = warm_start(warm, {source: earlier_rows(source)})
        assert {p["model"] for p in prior.points} == {"res_unet"}
        assert (len(prior.observations), prior.left_out) == (2, 2)


def test_a_study_over_models_previews_what_each_takes(
    several: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(several, sort_keys=False))
    assert main(["preview", str(tmp_path / "s.yaml"), "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert set(seen["by_model"]) == set(THREE)
    share = {"unet": 2 / 7, "res_unet": 4 / 7, "attention_unet": 1 / 7}
    mean = sum(share[name] * seconds for name, seconds in seen["by_model"].items())
    assert np.isclose(seen["epoch_seconds"], mean)
    assert main(["preview", str(tmp_path / "s.yaml"), "--epoch-seconds", "2"]) == 0
    assert "a fold epoch of each model: unet 2.0 s, res_unet 2.0 s, " in capsys.readouterr().out


class Killed(BaseException):
    """A driver that goes without a word."""


def test_a_race_of_models_that_is_killed_and_resumed_decides_as_one_that_was_not(
    several: dict[str, Any], tmp_path: Path
) -> None:
    search_keys = {"trials": 6, "sampler": "tpe", "scheduler": "fold_race"}
    study = parse_study(complete({**several, "space": {"lr0": LR}, "search": search_keys}))
    search(study, str(tmp_path / "whole"))

    def kill(brain: Brain, at: int) -> None:
        if brain.state.fold_epochs == at and not brain.state.end:
            raise Killed

    for at in (3, 11):
        with pytest.raises(Killed):
            search(study, str(tmp_path / "killed"), partial(kill, at=at))
    search(study, str(tmp_path / "killed"))
    told = []
    for name in ("whole", "killed"):
        events = StudyFolder(tmp_path / name).journal().events()
        wanted = [e for e in events if e["event"] in ("config", "rung", "decision")]
        told.append([{k: v for k, v in e.items() if k not in ("time", "up")} for e in wanted])
    assert told[0] == told[1]
    models = [e["params"]["model"] for e in told[0] if e["event"] == "config"]
    assert set(models) == set(THREE)
    assert any(e["event"] == "decision" and e["action"] == "stop" for e in told[0])


def test_losses_break_no_ties_between_models(several: dict[str, Any]) -> None:
    """Who arrived first stands first where scores are the same; within one model its loss
    decides.
    """
    configuration = Configuration("c000", {"model": "unet", "lr0": 0.01}, rung=0)
    for fold in range(3):
        run = configuration.epochs[fold] = Run()
        for _ in range(2):
            run.append({"dice": 0.0, "val_loss": 2.5}, 1.0)
    assert scores(made(several), configuration, 0) == ([0.0] * 3, 0.0)
    one = {**several, "models": {"unet": THREE["unet"]}}
    assert scores(made(one), configuration, 0) == ([0.0] * 3, -2.5)


def test_the_time_that_is_left_counts_the_seconds_of_each_model(several: dict[str, Any]) -> None:
    """Two of the cheap one are done; what is left is two of the dear one."""
    models = {"unet": {"fixed": {"width": 4}}, "res_unet": {}}
    content = {**several, "models": models, "search": {**several["search"], "trials": 4}}
    study = made({**content, "space": {"lr0": LR}, "search": {"trials": 4, "scheduler": "full"}})
    state = State([{"event": "start", "slots": 1, "up": 0.0}])
    for number, (name, seconds) in enumerate((("unet", 1.0), ("unet", 1.0), ("res_unet", 100.0))):
        config_id = f"c{number:03d}"
        params = {"model": name, "lr0": 0.001 * (number + 1)}
        state.apply({"event": "config", "config_id": config_id, "params": params, "up": 0.0})
        state.apply({"event": "work", "config_id": config_id, "rung": 0, "up": 0.0})
        for fold in range(3 if name == "unet" else 1):
            for epoch in (1, 2):
                done = {"config_id": config_id, "fold": fold, "epoch": epoch, "seconds": seconds}
                state.apply({"event": "epoch", "metrics": {"dice": 0.1}, "up": 0.0, **done})
        if name == "unet":
            state.apply(
                {"event": "decision", "config_id": config_id, "action": "complete", "reason": ""}
            )
    # 10 fold epochs: a res_unet at work and half a configuration of each to come
    mean = (100.0 * 1.5 + 1.0 * 0.5) / 2
    assert time_left(study, state) == f"about {clock(10 * mean)} left"


def test_a_race_takes_the_best_of_each_model_to_the_end(tmp_path: Path) -> None:
    """So that all models can be compared, however far one is behind."""
    models = {name: {"fixed": {"width": 4}} for name in ("unet", "res_unet", "attention_unet")}
    searched = {"trials": 30, "scheduler": "fold_race"}
    pretend(tmp_path, model="", models=models, space={"lr0": LR}, fixed={}, search=searched)
    table = StudyFolder(tmp_path).table()
    complete = table[table["state"] == "complete"]
    assert set(complete["model"]) == set(models)
    assert len(complete) < len(table) / 2
    reasons = [
        e["reason"]
        for e in StudyFolder(tmp_path).journal().events()
        if e["event"] == "decision" and e["action"] == "promote"
    ]
    pushed = [r for r in reasons if r.startswith("none of ")]
    assert pushed
    assert all(" ran in full at the end of the search: best of those waiting" in r for r in pushed)


@pytest.mark.parametrize(
    ("metric", "other", "own"),
    [("dice", "unet", {"width": 4, "depth": 2}), ("AP50", "fcos_r18", {"channels": 32})],
)
def test_a_network_of_boxes_and_masks_stands_beside_either(
    metric: str, other: str, own: dict[str, Any], several: dict[str, Any], tmp_path: Path
) -> None:
    """The metric says what it is trained and scored for, and its bundle knows."""
    models = {"yolo11n-seg": {}, other: {"fixed": own}}
    content = {**several, "metric": metric, "models": models, "epochs": 1, "space": {}}
    content["search"] = {"trials": 2, "sampler": "grid", "scheduler": "full"}
    search(parse_study(complete(content)), str(tmp_path / "st"))
    table = StudyFolder(tmp_path / "st").table()
    assert set(table["model"]) == {"yolo11n-seg", other}
    assert list(table["state"]) == ["complete"] * 2
    rank = int(table["rank"][table["model"] == "yolo11n-seg"].iloc[0])
    refit(StudyFolder(tmp_path / "st"), tmp_path / "bundle", Options(rank))
    task = "segmentation" if metric == "dice" else "detection"
    assert open_bundle(tmp_path / "bundle").model.task == task


def test_a_grid_that_is_cut_short_has_tried_every_model(several: dict[str, Any]) -> None:
    names = [point["model"] for point in drawn(made(several), 4)]
    assert sorted(set(names)) == sorted(several["models"])
    assert names[3] == names[0]


def test_what_depends_on_what_a_model_has_not_is_left_out_with_it(several: dict[str, Any]) -> None:
    space = {"depth": {"choice": [2, 3]}, "ema": {"choice": [0.5], "when": {"depth": 2}}}
    asked = parse_study(complete({**several, "models": ["unet", "res_unet"], "space": space}))
    assert list(asked.of("unet").space) == ["depth", "ema"]
    assert asked.of("res_unet").space == {}
    fixed = {
        "unet": {
            "fixed": {"optimizer": "AdamW"},
            "space": {"nm": {"choice": ["", "otsu"], "when": {"optimizer": "SGD"}}},
        }
    }
    settled = parse_study(complete({**several, "models": fixed}))
    assert relocated(settled, lambda path: f"/moved/{path}").of("unet").space.keys() == {"lr0"}


def test_equal_numbers_of_two_kinds_are_two_parameters(several: dict[str, Any]) -> None:
    models = {
        "unet": {"space": {"dice": {"choice": [0.5, 1]}}},
        "res_unet": {"space": {"dice": {"choice": [0.5, 1.0]}}},
    }
    names = joint(parse_study(complete({**several, "models": models, "space": {}})))
    assert list(names) == ["model", "unet.dice", "res_unet.dice"]


def test_models_that_can_do_one_thing_are_ranked_by_it_in_any_order() -> None:
    for names in (["yolo11n-seg", "fcos_r18"], ["fcos_r18", "yolo11n-seg"]):
        assert complete({"dataset": "d", "models": names})["metric"] == "AP"
    assert complete({"dataset": "d", "models": ["yolo11n-seg", "unet"]})["metric"] == "dice"


def test_a_wrong_block_is_one_line_where_set_reaches_into_it(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("dataset: d\nmodels: {unet: 5, 1: {}, res_unet: {}}\n")
    for item, told in {
        "models.unet.fixed.depth=2": "'unet' holds a value, not a mapping; set unet itself",
        "models.res_unet.fixed.width=4": "models.unet: must be a mapping",
    }.items():
        with pytest.raises(WrongInput, match=told):
            read_study(path, [item], complete)


def test_a_started_study_keeps_the_order_of_its_models(
    several: dict[str, Any], tmp_path: Path
) -> None:
    """The order decides what is drawn."""
    content = {**several, "search": {"trials": 1, "sampler": "random", "scheduler": "full"}}
    search(parse_study(complete(content)), str(tmp_path / "st"))
    turned = {**content, "models": dict(reversed(THREE.items()))}
    with pytest.raises(WrongInput, match="but the order of models differ"):
        search(parse_study(complete(turned)), str(tmp_path / "st"))


def test_a_study_of_one_model_is_warmed_by_its_rows_of_a_study_over_models(tmp_path: Path) -> None:
    models = {"unet": {"fixed": {"width": 4}}, "res_unet": {"fixed": {"width": 4}}}
    pretend(tmp_path, model="", models=models, space={"lr0": LR}, fixed={}, search={"trials": 8})
    rows = earlier_rows(str(tmp_path))
    own = [row for row in rows if row["model"] == "res_unet"]
    alone = {"dataset": "d", "model": "res_unet", "metric": "dice", "space": {"lr0": LR}}
    prior = warm_start(parse_study(complete(alone)), {"earlier": rows})
    assert [o.params["lr0"] for o in prior.observations] == [r["cfg.lr0"] for r in reversed(own)]
    assert prior.left_out == len(rows) - len(own) > 0
