"""cohort_race: each rung is decided once, the hopeless never start, and a restart decides the
same.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from raybone.hpo.brain import Brain, Work
from raybone.hpo.cohort.plan import CohortRule, climb, cohort_ladder, normal_scores
from raybone.hpo.cohort.race import CohortRace
from raybone.hpo.cohort.surrogate import modelled
from raybone.hpo.journal import Journal
from raybone.hpo.races import expected, features, rungs_of
from raybone.hpo.state import Configuration
from raybone.simulation.curves import Curves
from raybone.simulation.replay import SCHEDULERS, Draw, replay
from raybone.storage import Folder
from raybone.study.spec import Resolved, ResolvedStudy, Study
from raybone.types import Epoch

EPOCHS, FOLDS = 18, 5
COHORT = SCHEDULERS["cohort_race"]


def study_of(trials: int = 40, sampler: str = "random", **more: Any) -> ResolvedStudy:
    study = Study.model_validate(
        {
            "name": "s",
            "dataset": "d",
            "model": "m",
            "epochs": EPOCHS,
            "metric": "AP",
            "space": {"lr0": {"log_uniform": [1e-4, 1e-1]}, "mosaic": {"uniform": [0, 1]}},
            "search": {"trials": trials, "sampler": sampler, "scheduler": "cohort_race"},
            **more,
        }
    )
    rungs = rungs_of(study, FOLDS, 12)
    return study.resolved_as(
        Resolved(dataset_hash="h", code_version="v", folds=FOLDS, ladder=rungs)
    )


def score_of(params: dict[str, Any], fold: int, epoch: int) -> float:
    """Best at a rate of 0.003; a fold's difficulty, and a little noise of its own."""
    best = 0.8 - 0.1 * (np.log10(params["lr0"]) + 2.5) ** 2 + 0.01 * params.get("mosaic", 0)
    noise = np.random.default_rng([int(1e6 * params["lr0"]), fold, epoch]).normal(0, 0.005)
    return float(best * (1 - np.exp(-epoch / 5)) + 0.02 * fold + noise)


def run(brain: Brain, most: float = np.inf, score: Callable[..., float] = score_of) -> int:
    """Train what the brain wants, for so many epochs at most; returns how many."""
    spent = 0
    while work := brain.peek():
        brain.start(work)
        for segment in work.segments:
            for epoch in range(segment.start + 1, segment.stop + 1):
                if spent >= most:
                    return spent
                metrics = {"AP": score(work.params, segment.fold, epoch), "val_loss": 0.0}
                brain.epoch(work.config_id, Epoch(segment.fold, epoch, metrics, 1.0))
                spent += 1
        brain.rung_done(work.config_id, work.rung)
    brain.finish()
    return spent


def brain_of(study: ResolvedStudy, place: Path, slots: int = 1, refuses: str = "") -> Brain:
    def check(params: dict[str, Any]) -> int:
        if refuses and eval(refuses, {}, params):
            from raybone.errors import InvalidConfig

            raise InvalidConfig("too large")
        return 1

    return Brain(study, Journal(Folder(place)), check, slots)


def decisions(brain: Brain) -> list[tuple[str, str, int]]:
    return [(e["config_id"], e["action"], e["rung"]) for e in brain.state.news if "action" in e]


def best_of(brain: Brain) -> Configuration:
    complete = [c for c in brain.state.configurations.values() if c.status == "complete"]
    return max(complete, key=lambda c: c.mean(FOLDS, EPOCHS, "AP"))


def test_it_finds_the_best_for_a_fraction_and_says_why(tmp_path: Path) -> None:
    brain = brain_of(study_of(), tmp_path)
    spent = run(brain)
    assert abs(np.log10(best_of(brain).params["lr0"]) + 2.5) < 0.3
    assert spent < 40 * FOLDS * EPOCHS / 4
    assert all(e["reason"] for e in brain.state.news if "action" in e)
    # One model says that most rates are hopeless: they never began.
    assert len(brain.state.configurations) < 40
    assert len(brain.state.skipped) == 40 - len(brain.state.configurations)


@pytest.mark.parametrize("when", [15, 120, 300])
def test_whom_a_person_drops_is_not_trained_again_and_nobody_waits_for_it(
    when: int, tmp_path: Path
) -> None:
    brain = brain_of(study_of(24), tmp_path)
    run(brain, when)
    known = brain.state.configurations.values()
    best = sorted(known, key=lambda c: abs(np.log10(c.params["lr0"]) + 2.5))[:3]
    before = {c.id: sum(map(len, c.epochs.values())) for c in best}
    again = brain_of(study_of(24), tmp_path)  # who was at work when its driver died waits as well
    again.drop(before)
    run(again)
    for config_id, epochs in before.items():
        dropped = again.state.configurations[config_id]
        assert (dropped.status, dropped.reason) == ("stopped", "a person has stopped it")
        assert sum(map(len, dropped.epochs.values())) == epochs
    assert best_of(again).id not in before


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_search_that_is_cut_anywhere_ends_with_the_same_decisions(
    sampler: str, tmp_path: Path
) -> None:
    whole = brain_of(study_of(24, sampler), tmp_path / "whole")
    spent = run(whole)
    for cut in range(7, spent, spent // 9):
        place = tmp_path / f"cut{cut}"
        run(brain_of(study_of(24, sampler), place), cut)
        resumed = brain_of(study_of(24, sampler), place)
        assert run(resumed) == spent - cut
        assert sorted(decisions(resumed)) == sorted(decisions(whole))


def test_who_goes_on_does_not_depend_on_who_arrives_first() -> None:
    noise = np.random.default_rng(3)
    quality_C = noise.uniform(0.3, 0.9, 60)
    rise_E = 1 - np.exp(-np.arange(1, 28) / 6)
    T_CSKE = quality_C[:, None, None, None] * rise_E + noise.normal(0, 0.01, (60, 1, 5, 27))
    curves = Curves("c", T_CSKE, noise.uniform(1, 100, 60), X_CD=quality_C[:, None])
    found = [replay(curves, COHORT, Draw(range(60), range(5)), workers) for workers in (1, 2, 3)]
    other = replay(
        replace(curves, seconds_C=curves.seconds_C[::-1]), COHORT, Draw(range(60), range(5)), 3
    )
    assert {o.pick for o in (*found, other)} == {int(np.argmax(quality_C))}
    assert len({tuple(sorted(o.scores)) for o in (*found, other)}) == 1


def test_nobody_is_judged_before_scores_are_alive(tmp_path: Path) -> None:
    """A detector from scratch scores exactly 0 for half of its training."""

    def late(params: dict[str, Any], fold: int, epoch: int) -> float:
        return max(0.0, score_of(params, fold, epoch - 9)) if epoch > 9 else 0.0

    brain = brain_of(study_of(), tmp_path)
    run(brain, score=late)
    folds, epochs = brain.race.ladder[brain.race.first]
    assert folds == 1
    assert epochs > 9
    assert abs(np.log10(best_of(brain).params["lr0"]) + 2.5) < 0.3


def test_failures_refusals_and_small_spaces_end(tmp_path: Path) -> None:
    brain = brain_of(study_of(12), tmp_path / "nan")
    run(brain, score=lambda *_: float("nan"))
    assert brain.done
    brain = brain_of(study_of(1), tmp_path / "one")
    assert run(brain) == FOLDS * EPOCHS
    small = study_of(40, "grid", space={"lr0": {"choice": [0.001, 0.003, 0.01]}})
    brain = brain_of(small, tmp_path / "grid")
    run(brain)
    assert len(brain.state.configurations) == 3
    brain = brain_of(study_of(30), tmp_path / "refused", refuses="lr0 > 0.003")
    run(brain)
    assert brain.state.refused
    assert all(c.params["lr0"] <= 0.003 for c in brain.state.configurations.values())
    assert any(c.status == "complete" for c in brain.state.configurations.values())
    brain = brain_of(study_of(30), tmp_path / "failed", 2)
    while (work := brain.peek()) and len(brain.state.configurations) < 6:
        brain.start(work)
        brain.fail(work.config_id, "out of memory")
    run(brain)
    assert any(c.status == "complete" for c in brain.state.configurations.values())


def test_pilots_of_a_grid_are_from_all_over_it_after_the_points_that_were_named(
    tmp_path: Path,
) -> None:
    rates = [0.0001, 0.0003, 0.001, 0.003, 0.01]
    point = {"lr0": 0.01, "mosaic": 0.5}
    search = {"trials": 40, "sampler": "grid", "scheduler": "cohort_race", "points": [point]}
    space = {"lr0": {"choice": rates}, "mosaic": {"choice": [n / 8 for n in range(8)]}}
    brain = brain_of(study_of(search=search, space=space), tmp_path)
    run(brain)
    pilots = [c.params for c in brain.state.configurations.values()][:10]
    assert pilots[0] == point
    assert len({p["lr0"] for p in pilots}) > 3
    assert len({p["mosaic"] for p in pilots}) > 3
    assert best_of(brain).params["lr0"] == 0.003


def test_a_model_that_starts_late_is_waited_for(tmp_path: Path) -> None:
    def score(params: dict[str, Any], fold: int, epoch: int) -> float:
        late = params["model"] == "late"
        return (score_of(params, fold, epoch) + 0.1 * late) * (epoch > 9 or not late)

    brain = brain_of(study_of(40, model="", models={"early": {}, "late": {}}), tmp_path)
    spent = run(brain, score=score)
    assert best_of(brain).params["model"] == "late"
    late = [c for c in brain.state.configurations.values() if c.params["model"] == "late"]
    assert len(late) > 40 / 4  # not the pilots alone
    assert spent < 40 * FOLDS * EPOCHS / 2


def test_every_model_of_a_study_gets_to_the_end(tmp_path: Path) -> None:
    def two(params: dict[str, Any], fold: int, epoch: int) -> float:
        return score_of(params, fold, epoch) - 0.3 * (params["model"] == "n")

    study = study_of(40, model="", models={"m": {}, "n": {}})
    brain = brain_of(study, tmp_path)
    run(brain, score=two)
    complete = [c for c in brain.state.configurations.values() if c.status == "complete"]
    assert {c.params["model"] for c in complete} == {"m", "n"}
    # Who goes on and who does not is told so, also where a model's best is not among the first.
    for event in (e for e in brain.state.news if "action" in e and "that go on" in e["reason"]):
        assert event["action"] == "promote", event
    for event in (e for e in brain.state.news if "action" in e and ", down to" in e["reason"]):
        assert event["action"] == "stop", event


def test_the_ladder_climbs_on_one_fold_and_ends_with_all() -> None:
    assert climb(27) == (1, 2, 3, 4, 6, 9, 14, 21, 27)
    rungs = cohort_ladder(27, 5)
    assert rungs == tuple(sorted(set(rungs)))
    assert rungs[0] == (1, 1)
    assert rungs[-1] == (5, 27)
    assert cohort_ladder(1, 2) == ((1, 1), (2, 1))


def test_what_is_expected_is_about_what_is_spent(tmp_path: Path) -> None:
    study = study_of(60)
    spent = run(brain_of(study, tmp_path))
    assert 0.5 < sum(row[2] for row in expected(study)) / spent < 2


def test_hyper_parameters_as_numbers() -> None:
    space = {
        "lr0": {"log_uniform": [1e-4, 1e-2]},
        "kind": {"choice": ["a", "b"]},
        "width": {"int_uniform": [1, 5], "when": {"kind": "b"}},
    }
    study = study_of(space=space)
    assert features(study, {"lr0": 1e-3, "kind": "a"}) == pytest.approx([0.5, 1, 0, 0.5])
    assert features(study, {"lr0": 1e-2, "kind": "b", "width": 2}) == pytest.approx([1, 0, 1, 0.25])


def test_the_process_is_that_of_scikit_learn() -> None:
    gaussian = pytest.importorskip("sklearn.gaussian_process")
    kernels = gaussian.kernels
    noise = np.random.default_rng(0)
    X_ND = noise.normal(size=(40, 3))
    y_N = normal_scores(np.sin(X_ND[:, 0]) + noise.normal(0, 0.3, 40))
    X_MD = noise.normal(size=(10, 3))
    X_ND = (X_ND - X_ND.mean(0)) / X_ND.std(0)
    mean_M, sd_M = modelled(X_ND, y_N, X_MD)
    found = []
    for length, slope, nugget in itertools.product((0.5, 1, 2), (0, 1), (0.03, 0.1, 0.3, 1, 3)):
        kernel = kernels.RBF(length * 3**0.5)
        if slope:  # x.x / D
            kernel = kernel + kernels.ConstantKernel(1 / 3) * kernels.DotProduct(0)
        fitted = gaussian.GaussianProcessRegressor(kernel, alpha=nugget, optimizer=None)
        fitted.fit(X_ND, y_N - y_N.mean())
        # The scale is free: the likelihood at its best one.
        scale = float((y_N - y_N.mean()) @ fitted.alpha_) / 40
        log_determinant = 2 * np.log(np.diag(fitted.L_)).sum()
        likelihood = -0.5 * (40 * np.log(scale) + log_determinant)
        mean, sd = fitted.predict(X_MD, return_std=True)
        found.append((likelihood, y_N.mean() + mean, (scale * (sd**2 + nugget)) ** 0.5))
    _, mean, sd = max(found, key=lambda row: row[0])
    assert np.allclose(mean_M, mean, atol=1e-6)
    assert np.allclose(sd_M, sd, atol=1e-6)


def test_ten_thousand_configurations_are_decided_in_seconds() -> None:
    race = CohortRace(cohort_ladder(27, 5), 10_000, CohortRule())
    noise = np.random.default_rng(0)
    number = finished = 0
    while (key := race.next_new()) is not None or race.next_step():
        step = race.next_step() if key is None else None
        if key is not None:
            name = f"c{number:05d}"
            race.begin(name, key, noise.uniform(size=4))
            race.go(name, race.first)
            race.arrive(name, race.first, [float(noise.uniform())])
            number += 1
        elif step:
            race.go(step.config_id, step.rung)
            folds, epochs = race.ladder[step.rung]
            level = 0.5 + 0.01 * epochs + 1e-4 * int(step.config_id[1:])
            race.arrive(step.config_id, step.rung, [level] * folds)
            finished += step.rung == len(race.ladder) - 1
    assert number == 10_000
    assert finished >= 2


def run_side_by_side(
    brain: Brain, seed: int, fails: Callable[[str], bool] = lambda config_id: False, most: int = 0
) -> None:
    """Work in as many slots as the brain has, which end in any order; for so many works at most."""
    dice, at_work, ended = random.Random(seed), list[Work](), 0
    while not most or ended < most:
        while work := brain.peek():
            at_work.append(brain.start(work))
        if not at_work:
            brain.finish()
            return
        work = at_work.pop(dice.randrange(len(at_work)))
        ended += 1
        if fails(work.config_id):
            brain.fail(work.config_id, "out of memory")
            continue
        for segment in work.segments:
            for epoch in range(segment.start + 1, segment.stop + 1):
                metrics = {"AP": score_of(work.params, segment.fold, epoch), "val_loss": 0.0}
                brain.epoch(work.config_id, Epoch(segment.fold, epoch, metrics, 1.0))
        brain.rung_done(work.config_id, work.rung)


def complete(brain: Brain) -> int:
    return sum(c.status == "complete" for c in brain.state.configurations.values())


@pytest.mark.parametrize("seed", range(6))
def test_failures_at_any_time_end_no_search(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    brain = brain_of(study_of(limits={"failed_trials": 99}), tmp_path, 4)
    run_side_by_side(brain, seed, lambda config_id: dice.random() < 0.1)
    assert complete(brain) >= 2
    begun = [e["config_id"] for e in Journal(Folder(tmp_path)).events() if e["event"] == "work"]
    failed = [c.id for c in brain.state.configurations.values() if c.status == "failed"]
    assert failed
    assert all(begun.count(c) < len(brain.race.ladder) for c in failed)


def test_what_has_failed_is_not_tried_again(tmp_path: Path) -> None:
    brain = brain_of(study_of(20, limits={"failed_trials": 99}), tmp_path, 2)
    run_side_by_side(brain, 0, lambda config_id: True)
    begun = [e["config_id"] for e in Journal(Folder(tmp_path)).events() if e["event"] == "work"]
    assert len(begun) == len(set(begun)) == 20


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_space_that_is_used_up_on_the_way_ends_in_a_leaderboard(
    sampler: str, tmp_path: Path
) -> None:
    few = {"lr0": {"choice": [0.0003, 0.001, 0.003]}, "mosaic": {"choice": [0.0, 1.0]}}
    study = study_of(40, sampler, space=few)
    whole = brain_of(study, tmp_path / "whole")
    run_side_by_side(whole, 0)
    assert complete(whole) >= 2
    for cut in (2, 5, 7, 9):
        run_side_by_side(brain_of(study, tmp_path / f"{cut}"), 0, most=cut)
        resumed = brain_of(study, tmp_path / f"{cut}")
        run_side_by_side(resumed, 0)
        assert sorted(decisions(resumed)) == sorted(decisions(whole))


def test_a_driver_that_dies_before_a_configuration_has_work_is_resumed(tmp_path: Path) -> None:
    whole = brain_of(study_of(), tmp_path / "whole")
    run(whole)
    (file,) = (tmp_path / "whole" / "journal").iterdir()
    lines = file.read_text().splitlines(keepends=True)
    configs = [n for n, line in enumerate(lines) if '"event":"config"' in line]
    for number in configs[::5]:
        place = tmp_path / f"{number}" / "journal"
        place.mkdir(parents=True)
        (place / file.name).write_text("".join(lines[: number + 1]))
        resumed = brain_of(study_of(), place.parent)
        run(resumed)
        assert sorted(decisions(resumed)) == sorted(decisions(whole))


@pytest.mark.parametrize(("before", "after"), [(1, 16), (16, 1), (2, 5)])
def test_a_restart_with_other_slots_ends_as_well(before: int, after: int, tmp_path: Path) -> None:
    for cut in range(20, 60, 4):
        place = tmp_path / f"{cut}"
        run_side_by_side(brain_of(study_of(), place, before), 0, most=cut)
        resumed = brain_of(study_of(), place, after)
        run_side_by_side(resumed, 1)
        assert complete(resumed) >= 2, cut
        assert not resumed.race._absent


def test_a_smaller_risk_goes_on_with_those_it_rests_on_and_says_why(tmp_path: Path) -> None:
    plain, spent = brain_of(study_of(), tmp_path / "plain"), list[int]()
    spent.append(run(plain))
    for risk in (0.001, 0.0001):
        careful = brain_of(at_risk(risk), tmp_path / f"risk{risk}")
        spent.append(run(careful))
    assert spent == sorted(set(spent)), spent
    hopes = [e for e in careful.state.news if "share" in e.get("evidence", {})]
    assert hopes
    assert all("of the risk is its own" in e["reason"] for e in hopes)
    assert all(0 < e["evidence"]["share"] <= 1 for e in hopes)


@pytest.mark.parametrize("slots", [1, 3])
def test_a_finished_search_goes_on_at_a_smaller_risk_as_if_that_had_been_asked_at_first(
    slots: int, tmp_path: Path
) -> None:
    asked = brain_of(at_risk(0.0005), tmp_path / "asked", slots)
    spent = run(asked)
    first = run(brain_of(study_of(), tmp_path / "later", slots))
    later = brain_of(at_risk(0.0005), tmp_path / "later", slots)
    assert first < spent
    assert run(later) == spent - first
    assert ends(later) == ends(asked)
    assert run(brain_of(at_risk(0.0005), tmp_path / "later", slots)) == 0


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_a_search_that_lowers_its_risk_may_be_cut_anywhere(share: float, tmp_path: Path) -> None:
    whole = brain_of(at_risk(0.0005), tmp_path / "whole")
    spent = run(whole)
    run(brain_of(at_risk(0.0005), tmp_path / "cut"), int(share * spent))
    resumed = brain_of(at_risk(0.0005), tmp_path / "cut")
    assert run(resumed) == spent - int(share * spent)
    assert ends(resumed) == ends(whole)


def test_who_fails_is_not_hoped_for_again(tmp_path: Path) -> None:
    hoped = 0
    for seed in range(6):
        dice, place = random.Random(seed), tmp_path / str(seed)
        brain = brain_of(at_risk(0.00001, limits={"failed_trials": 99}), place, 2)
        run_side_by_side(brain, seed, lambda config_id, dice=dice: dice.random() < 0.15)
        failed = set[str]()
        for event in Journal(Folder(place)).events():
            hoped += bool(failed) and "share" in event.get("evidence", {})
            if event["event"] == "failed":
                failed.add(event["config_id"])
            assert event["event"] != "work" or event["config_id"] not in failed
    assert hoped > 10


def test_what_had_no_chance_may_begin_after_all_and_be_refused_by_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = partial(CohortRule, gate=0.9)  # that it should be wrong at times
    monkeypatch.setattr("raybone.hpo.races.CohortRule", strict)
    run(plain := brain_of(study_of(), tmp_path / "plain"))
    skipped = {params["lr0"] for params in plain.state.skipped}
    careful = brain_of(at_risk(0.00001), tmp_path / "careful")
    run(careful)
    assert {c.params["lr0"] for c in careful.state.configurations.values()} & skipped
    refusing = brain_of(at_risk(0.00001), tmp_path / "refusing", refuses=f"lr0 in {skipped}")
    run(refusing)
    assert not {c.params["lr0"] for c in refusing.state.configurations.values()} & skipped
    assert refusing.state.refused


def test_a_risk_is_a_cohort_races() -> None:
    study = {"scheduler": "fold_race", "sampler": "random", "risk": 0.01}
    with pytest.raises(ValidationError, match=r"search\.risk: only cohort_race knows"):
        study_of(search=study)


def at_risk(risk: float, **more: Any) -> ResolvedStudy:
    search = {"trials": 40, "sampler": "random", "scheduler": "cohort_race", "risk": risk}
    return study_of(search=search, **more)


def ends(brain: Brain) -> dict[str, tuple[str, int, int]]:
    return {
        c.id: (c.status, c.rung, sum(map(len, c.epochs.values())))
        for c in brain.state.configurations.values()
    }


def risky(study: ResolvedStudy, risk: float | None) -> ResolvedStudy:
    return study.model_copy(update={"search": study.search.model_copy(update={"risk": risk})})


@pytest.mark.parametrize("how", ["fails", "is not a number"])
def test_when_all_finalists_are_lost_the_best_of_the_others_runs_in_full(
    how: str, tmp_path: Path
) -> None:
    brain = brain_of(study_of(limits={"failed_trials": 99}), tmp_path)
    lost = set[str]()
    while work := brain.peek():
        brain.start(work)
        last = work.rung == len(brain.race.ladder) - 1
        if last and len(lost) < 4:
            lost.add(work.config_id)
        if last and work.config_id in lost and how == "fails":
            brain.fail(work.config_id, "out of memory")
            continue
        for segment in work.segments:
            for epoch in range(segment.start + 1, segment.stop + 1):
                nan = work.config_id in lost and segment.fold == FOLDS - 1
                ap = np.nan if nan else score_of(work.params, segment.fold, epoch)
                metrics = {"AP": ap, "val_loss": 0.0}
                brain.epoch(work.config_id, Epoch(segment.fold, epoch, metrics, 1.0))
        brain.rung_done(work.config_id, work.rung)
    assert brain.finish().kind == "complete"
    assert len(lost) == 4
    sound = [
        c
        for c in brain.state.configurations.values()
        if c.status == "complete" and np.isfinite(c.mean(FOLDS, EPOCHS, "AP"))
    ]
    assert len(sound) == 1
    assert "no finalist ended with a score" in sound[0].reason or any(
        "no finalist ended with a score" in e.get("reason", "") for e in brain.state.news
    )


def test_a_search_for_a_risk_ends_where_only_broken_scores_have_it(tmp_path: Path) -> None:
    """One without a score in one fold was thought to be worth more epochs for ever."""

    def score(params: dict[str, Any], fold: int, epoch: int) -> float:
        broken = fold == FOLDS - 1 and int(1e6 * params["lr0"]) % 2
        return float("nan") if broken else score_of(params, fold, epoch)

    for seed in range(4):
        study = risky(study_of(16), 1e-6)
        study = study.model_copy(update={"search": study.search.model_copy(update={"seed": seed})})
        brain = brain_of(study, tmp_path / str(seed))
        run(brain, score=score)
        assert not brain.peek()
        known = [c for c in brain.state.configurations.values() if c.status == "complete"]
        scores = [c.mean(FOLDS, EPOCHS, "AP") for c in known]
        assert np.isfinite(scores).any()


def test_a_search_whose_machines_are_gone_waits_for_them(tmp_path: Path) -> None:
    brain = brain_of(risky(study_of(16), 1e-6), tmp_path, 2)
    while work := brain.peek():
        brain.start(work)
        brain.resize(0)
        for segment in work.segments:
            for epoch in range(segment.start + 1, segment.stop + 1):
                metrics = {"AP": score_of(work.params, segment.fold, epoch), "val_loss": 0.0}
                brain.epoch(work.config_id, Epoch(segment.fold, epoch, metrics, 1.0))
        brain.rung_done(work.config_id, work.rung)
        brain.resize(2)
    assert not brain.peek()
    assert complete(brain) >= 2


def test_a_study_that_went_on_for_a_smaller_risk_opens_for_a_larger_one(tmp_path: Path) -> None:
    study = study_of(24)
    brain = brain_of(risky(study, 1e-9), tmp_path)
    run(brain)
    known = len(brain.state.configurations)
    assert len(brain_of(risky(study, 0.02), tmp_path).state.configurations) == known
    assert len(brain_of(risky(study, None), tmp_path).state.configurations) == known


def test_a_search_with_nothing_left_is_complete_whatever_its_last_epochs_took(
    tmp_path: Path,
) -> None:
    study = study_of(8, limits={"hours": 1.0})
    brain = brain_of(study, tmp_path)
    while work := brain.peek():
        brain.start(work)
        for segment in work.segments:
            for epoch in range(segment.start + 1, segment.stop + 1):
                metrics = {"AP": score_of(work.params, segment.fold, epoch), "val_loss": 0.0}
                brain.epoch(work.config_id, Epoch(segment.fold, epoch, metrics, 1.0))
        brain.rung_done(work.config_id, work.rung)
    brain._spent_before = 4000.0
    over = brain.over_limit()
    assert over
    assert over.kind == "limits.hours"
    assert brain.finish().kind == "complete"
