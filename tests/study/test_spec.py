"""The study YAML: all problems at once, in one line each."""

from __future__ import annotations

from pathlib import Path

import pytest

from raybone.errors import WrongInput
from raybone.study.files import parse_study, read_study, write_study

GOOD = """
name: bs80k
dataset: data/bs80k
model: yolo11n
epochs: 100
metric: ap50
fixed: {batch: 16}
space:
  lr0: {log_uniform: [1e-4, 0.1]}
  optimizer: {choice: [SGD, AdamW]}
  momentum: {uniform: [0.6, 0.98], when: {optimizer: SGD}}
search: {trials: 64, sampler: tpe, scheduler: fold_race, folds: 5, seed: 0}
resources: {workers: 1, cpus: 4, gpus: 0.5}
limits: {hours: 12}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a 'study'.yaml"
    path.write_text(text)
    return path


def test_a_study_survives_writing_and_reading(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, GOOD), ["search.trials=8", "epochs=2", "fixed.imgsz=512"])
    assert (study.search.trials, study.epochs, study.fixed["imgsz"], study.metric) == (
        8,
        2,
        512,
        "AP50",
    )
    assert study.space["lr0"].log_uniform == (1e-4, 0.1)
    assert read_study(write(tmp_path, write_study(study))) == study


def test_all_problems_come_at_once_one_line_each(tmp_path: Path) -> None:
    text = (
        GOOD.replace("trials: 64", "trails: 64")
        .replace("[0.6, 0.98]", "[0.98, 0.6]")
        .replace("workers: 1", "workers: 0")
        .replace("metric: ap50", "metric: beauty")
    )
    with pytest.raises(WrongInput) as caught:
        read_study(write(tmp_path, text))
    problems = caught.value.problems
    assert len(problems) == 4
    assert any("search.trails: unknown key; did you mean 'trials'?" in p for p in problems)
    assert any("space.momentum" in p and "low < high" in p for p in problems)
    assert any("resources.workers" in p and "got 0" in p for p in problems)
    assert any("metric" in p and "AP50" in p and "'beauty'" in p for p in problems)
    assert all("\n" not in p for p in problems)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("log_uniform: [1e-4, 0.1]", "log_uniform: [0, 0.1]"), "low > 0"),
        (("log_uniform: [1e-4, 0.1]", "log_uniform: [.nan, 0.1]"), "finite"),
        (("log_uniform: [1e-4, 0.1]", "log_uniform: [1e-4, 0.1], uniform: [0, 1]"), "exactly one"),
        (("when: {optimizer: SGD}", "when: {nothing: 1}"), "another searched parameter"),
        (("when: {optimizer: SGD}", "when: {optimizer: Adam}"), "optimizer is never 'Adam'"),
        (("fixed: {batch: 16}", "fixed: {lr0: 1}"), "also in fixed"),
        (("sampler: tpe", "sampler: grid"), "grid sampler needs choice"),
        (("workers: 1", "workers: 2"), "fraction"),
        (("epochs: 100", "epochs: 100\nepochs: 3"), "given twice"),
        (("name: bs80k", "name: ''"), "name"),
        (("epochs: 100", "epochs: [1"), "must be YAML"),
        (("epochs: 100", "epochs: yes"), "must be a number, got true; write one"),
        (("workers: 1", "workers: true"), "must be a number, got true"),
    ],
)
def test_a_wrong_study_is_refused_with_the_rule(
    tmp_path: Path, change: tuple[str, str], word: str
) -> None:
    assert change[0] in GOOD
    with pytest.raises(WrongInput, match=word):
        read_study(write(tmp_path, GOOD.replace(*change)))


@pytest.mark.parametrize("item", ["trials", "=3", "name.x=1", "epochs=[1"])
def test_a_wrong_override_is_refused(tmp_path: Path, item: str) -> None:
    with pytest.raises(WrongInput, match="--set"):
        read_study(write(tmp_path, GOOD), [item])


def test_a_missing_or_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongInput, match="must be a study's YAML file, but: No such file"):
        read_study(tmp_path / "none.yaml")
    with pytest.raises(WrongInput, match="YAML mapping"):
        read_study(write(tmp_path, ""))
    with pytest.raises(WrongInput, match="is required"):
        parse_study({})


@pytest.mark.parametrize(
    ("search", "line"),
    [
        ("points: [{lr: 0.01}]", "search.points.0: 'lr' is not searched; did you mean 'lr0'?"),
        ("points: [{batch: 8}]", "search.points.0: 'batch' is fixed; leave it out"),
        (
            "points: [{}, {lr0: 0.5}]",
            "search.points.1: lr0 must be of log_uniform [0.0001, 0.1], got 0.5; change it",
        ),
        ("points: [{lr0: true}]", "got True; change it"),
        ("points: [{lr0: '0.01'}]", "got '0.01'; change it"),
        ("points: [{optimizer: Adam}]", "must be of choice ['SGD', 'AdamW'], got 'Adam'"),
        (
            "points: [{optimizer: AdamW, momentum: 0.7}]",
            "momentum exists when optimizer is 'SGD', got 'AdamW'",
        ),
        ("points: [{lr0: 0.01}, {lr0: 0.01}]", "search.points.1: is point 0 again; give it once"),
        ("trials: 1, points: [{lr0: 0.01}, {lr0: 0.02}]", "2 points do not fit into 1 trials"),
        (
            "points: [{lr0: 0.09}], reject: [lr0 > 0.05]",
            "search.points.0: is rejected by 'lr0 > 0.05'",
        ),
        (
            "reject: [lr > 0.05]",
            "search.reject.0: 'lr > 0.05' 'lr' is neither searched nor fixed; did you mean 'lr0'?",
        ),
        ("reject: [lr0 >]", "search.reject.0: 'lr0 >' must be an expression"),
        ("reject: ['']", "must be an expression"),
        ("reject: [lr0 + 1]", "must be true or false"),
        ("reject: [batch and lr0 > 1]", "must be true or false, but 'batch' is 16"),
        ("reject: [optimizer > 3]", "has no value for {'optimizer': 'AdamW'}"),
        ("reject: [batch / lr0 > 3]", "may divide by a constant alone"),
        ("reject: [lr0.real > 3]", "may compare parameters"),
        ('reject: [\'__import__("os").system("true")\']', "may compare parameters"),
        ("reject: ['batch ** 99999999 > 1']", "may compare parameters"),
        ("reject: [\"'%99999999d' % 7 == optimizer\"]", "has no value"),
        (f"reject: ['{'(' * 100}lr0{')' * 100}']", "at most 200 characters"),
    ],
)
def test_a_wrong_point_or_rule_is_one_line(tmp_path: Path, search: str, line: str) -> None:
    text = GOOD.replace(
        "search: {trials: 64, sampler: tpe, scheduler: fold_race, folds: 5, seed: 0}",
        f"search: {{{search}}}",
    )
    with pytest.raises(WrongInput) as caught:
        read_study(write(tmp_path, text))
    assert len(caught.value.problems) == 1
    assert line in caught.value.problems[0]


def test_numbers_are_those_that_people_read(tmp_path: Path) -> None:
    """YAML 1.1 reads 010 as eight and 1:30 as ninety."""
    study = read_study(
        write(tmp_path, GOOD.replace("epochs: 100", "epochs: 010")),
        ["fixed.batch=0200", "limits.hours=09"],
    )
    assert (study.epochs, study.fixed["batch"], study.limits.hours) == (10, 200, 9)
    for text in ("1:30", "12:00", "0x10"):
        with pytest.raises(WrongInput, match=f"limits.hours: .*got '{text}'"):
            read_study(write(tmp_path, GOOD), [f"limits.hours={text}"])
    named = read_study(write(tmp_path, GOOD), ["name='010'", "model='1:30'"])
    assert read_study(write(tmp_path, write_study(named))) == named


def test_points_and_rules_survive_writing_and_reading(tmp_path: Path) -> None:
    more = GOOD.replace(
        "seed: 0}",
        "seed: 0, points: [{lr0: 0.01}, {momentum: 0.7}], "
        "reject: ['lr0 > 0.05 and batch >= 16', optimizer == 'SGD' and momentum < 0.65]}",
    ).replace("limits: {hours: 12}", "limits: {hours: 12, target: 0.6, converged: true}")
    study = read_study(write(tmp_path, more))
    assert study.search.points == ({"lr0": 0.01}, {"momentum": 0.7})
    assert read_study(write(tmp_path, write_study(study))) == study
