"""Schedulers replayed on recorded curves: costs that can be counted, regret, and the brain's own
decisions.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from raybone.cli import main
from raybone.errors import WrongInput
from raybone.hpo.brain import Brain
from raybone.hpo.journal import Journal
from raybone.hpo.races import rungs_of
from raybone.simulation.baselines import (
    Baseline,
    Found,
    early_stopped,
    hyperband,
    one_fold_first,
    pasha,
    wilcoxon_pruned,
)
from raybone.simulation.curves import Curves, read_curves
from raybone.simulation.limit import limit
from raybone.simulation.replay import (
    FULL,
    LOCKSTEPS,
    RACES,
    SCHEDULERS,
    Draw,
    Scheduler,
    replay,
    smoothed,
)
from raybone.simulation.simulate import Plan, draws_of, measure, simulate, summary
from raybone.storage import Folder
from raybone.study.spec import Resolved, Study
from raybone.types import Epoch


def made_up(
    configurations: int = 40, seeds: int = 1, folds: int = 5, epochs: int = 27, seed: int = 0
) -> Curves:
    """Learning curves that rise to a quality, with effects of fold and noise."""
    noise = np.random.default_rng(seed)
    quality_C = noise.uniform(0.3, 0.9, configurations)
    rise_E = 1 - np.exp(-np.arange(1, epochs + 1) / 6)
    T_CSKE = (
        quality_C[:, None, None, None] * rise_E
        + noise.normal(0, 0.02, folds)[:, None]
        + noise.normal(0, 0.01, (configurations, seeds, folds, epochs))
    )
    return Curves("made-up", T_CSKE, noise.uniform(1, 3, configurations))


def save(path: Path, curves: Curves, **more: Any) -> Path:
    np.savez(path, T=curves.T_CSKE, cost=curves.seconds_C, **more)
    return path


def test_exhaustive_search_costs_every_fold_epoch_and_finds_the_best() -> None:
    curves = made_up()
    out = replay(curves, FULL, Draw(range(40), range(5)))
    assert out.fold_epochs == 40 * 5 * 27
    assert len(out.scores) == 40
    assert out.pick == int(np.argmax(curves.T_CSKE[:, 0, :, -3:].mean((1, 2))))


def test_wall_clock_is_work_over_workers_and_each_start_costs() -> None:
    curves = made_up(8)
    alone = replay(curves, FULL, Draw(range(8), range(5)), workers=1)
    assert alone.seconds == pytest.approx(float(curves.seconds_C.sum()) * 5 * 27)
    slow = replay(curves, FULL, Draw(range(8), range(5)), workers=1, startup=100.0)
    assert slow.seconds == pytest.approx(alone.seconds + 8 * 100)
    many = replay(curves, FULL, Draw(range(8), range(5)), workers=1000)
    assert many.seconds == pytest.approx(float(curves.seconds_C.max()) * 27)
    assert {o.fold_epochs for o in (alone, slow, many)} == {8 * 5 * 27}


def test_the_race_finds_the_best_for_a_fraction_and_beats_lockstep() -> None:
    curves = made_up()
    best = replay(curves, FULL, Draw(range(40), range(5))).pick
    for scheduler in RACES:
        out = replay(curves, scheduler, Draw(range(40), range(5)))
        assert out.pick == best
        assert out.fold_epochs < 40 * 5 * 27 / 4
    lockstep = replay(curves, LOCKSTEPS[4], Draw(range(40), range(5)))
    assert replay(curves, RACES[0], Draw(range(40), range(5))).fold_epochs < lockstep.fold_epochs


@pytest.mark.parametrize("kind", ["promotion", "stopping", "cohorts"])
def test_simulate_decides_what_the_brain_decides(kind: str, tmp_path: Path) -> None:
    curves = replace(made_up(30, epochs=18, seed=4), X_CD=np.eye(30))
    scheduler = "cohort_race" if kind == "cohorts" else "fold_race"
    way = "stopping" if kind == "stopping" else "promotion"
    study = Study.model_validate(
        {
            "name": "s",
            "dataset": "d",
            "model": "m",
            "epochs": 18,
            "metric": "AP",
            "space": {"place": {"choice": list(range(30))}},
            "search": {"trials": 30, "sampler": "grid", "scheduler": scheduler, "type": way},
        }
    )
    rungs = rungs_of(study, 5, 1000)
    study = study.resolved_as(Resolved(dataset_hash="h", code_version="v", folds=5, ladder=rungs))
    brain = Brain(study, Journal(Folder(tmp_path)), lambda params: 1, slots=1)
    spent = 0
    while work := brain.peek():
        brain.start(work)
        for segment in work.segments:
            for epoch in range(segment.start + 1, segment.stop + 1):
                score = float(curves.T_CSKE[work.params["place"], 0, segment.fold, epoch - 1])
                brain.epoch(
                    work.config_id, Epoch(segment.fold, epoch, {"AP": score, "val_loss": 0.0}, 1.0)
                )
                spent += 1
        brain.rung_done(work.config_id, work.rung)
    brain.finish()
    name = {"stopping": "fold_race_stopping", "cohorts": "cohort_race"}.get(kind, "fold_race")
    out = replay(curves, SCHEDULERS[name], Draw(range(30), range(5)), workers=1)
    complete = {
        c.params["place"] for c in brain.state.configurations.values() if c.status == "complete"
    }
    assert complete == set(out.scores)
    assert spent == out.fold_epochs
    assert all(
        d["reason"] and (d["evidence"] or d["action"] == "complete") for d in brain.state.news
    )


def test_noise_free_summaries_are_what_arithmetic_says() -> None:
    def rows(cost: float, regret: float) -> dict[str, np.ndarray]:
        row = {
            "fold_epochs": cost,
            "excess_regret_pct": regret,
            "in_sample_regret_pct": 2 * regret,
            "top5_rate": 1.0,
            "seconds": 60.0,
        }
        return {key: np.full(10, value) for key, value in row.items()}

    table = {
        "full": rows(1000, 0),
        "mine": rows(100, 0.5),
        LOCKSTEPS[0].name: rows(150, 1.0),
        LOCKSTEPS[1].name: rows(600, 0.0),
        LOCKSTEPS[2].name: rows(700, 2.0),
    }
    mine = summary([table, table])["mine"]
    assert mine["speedup_vs_full"] == pytest.approx(10)
    # Halfway in regret between 150 and 600 is their geometric mean; the setting off the edge plays
    # no part.
    assert mine["speedup_vs_lockstep"] == pytest.approx(3.0)
    assert mine["speedup_vs_lockstep_low"] == mine["speedup_vs_lockstep_high"] == pytest.approx(3.0)
    worse = summary([{**table, "mine": rows(10, 5.0)}])["mine"]
    assert np.isnan(worse["speedup_vs_lockstep"])
    assert (mine["excess_regret_pct"], mine["excess_regret_se"], mine["top5_rate"]) == (
        0.5,
        0.0,
        1.0,
    )
    assert mine["in_sample_regret_pct"] == 1.0


def test_the_command_line_pools_files_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(save(tmp_path / f"{i}.npz", made_up(24, 2, seed=i))) for i in range(2)]
    picture = tmp_path / "regret.png"
    assert (
        main(["simulate", "--curves", *files, "--repeats", "3", "--json", "--plot", str(picture)])
        == 0
    )
    rows = json.loads(capsys.readouterr().out)
    assert {"full", "fold_race", "fold_race_stopping", "asha_1_x4"} <= rows.keys()
    assert {
        "fold_epochs",
        "excess_regret_pct",
        "top5_rate",
        "speedup_vs_lockstep",
        "speedup_vs_full",
    } <= rows["fold_race"].keys()
    assert rows["full"]["fold_epochs"] == pytest.approx(24 * 5 * 27)
    assert rows["fold_race"]["speedup_vs_full"] > 3
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (
        main(["simulate", "--curves", files[0], "--repeats", "2", "--schedulers", "fold_race"]) == 0
    )
    assert "fold_race_stopping" not in capsys.readouterr().out


def test_a_metric_to_minimise_is_turned_over(tmp_path: Path) -> None:
    curves = made_up(10)
    path = save(
        tmp_path / "loss.npz", Curves("x", -curves.T_CSKE, curves.seconds_C), direction="minimize"
    )
    assert np.allclose(read_curves(path).T_CSKE, curves.T_CSKE)


def test_what_else_a_table_holds_is_passed_over(tmp_path: Path) -> None:
    curves = made_up(10)
    path = save(
        tmp_path / "more.npz",
        curves,
        F=np.ones((10, 1)),
        feats=np.array(["lr0"]),
        steps=np.array(12.0),
    )
    assert np.array_equal(read_curves(path).T_CSKE, curves.T_CSKE)
    assert read_curves(path).steps == 12


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "must be an npz"),
        (b"", "must be an npz"),
        (b"PK\x03\x04broken", "must be an npz"),
        ({"T": np.zeros((3, 5, 4))}, "must hold T"),
        ({"T": np.full((3, 1, 5, 4), np.nan), "cost": np.ones(3)}, "T must be finite numbers"),
        ({"T": np.full((3, 1, 5, 4), "a"), "cost": np.ones(3)}, "T must be finite numbers"),
        ({"T": np.ones((3, 1, 5, 4)), "cost": np.ones((3, 1))}, "must hold T"),
        ({"T": np.ones((3, 1, 5, 4)), "cost": np.ones(2)}, "must hold T"),
        (np.ones(3), "must be an npz"),
    ],
    ids=["missing", "empty", "broken", "shape", "nan", "text", "cost", "count", "npy"],
)
def test_what_is_no_table_is_one_clear_line(content: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a b'.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(path.with_suffix(".npy"), content)
        path.with_suffix(".npy").rename(path)
    elif content is not None:
        np.savez(path, **content)
    with pytest.raises(WrongInput, match=says):
        simulate([path], Plan(repeats=1))


def test_numbers_and_names_out_of_range_are_told_together(tmp_path: Path) -> None:
    path = save(tmp_path / "c.npz", made_up(5))
    with pytest.raises(WrongInput) as error:
        simulate([path], Plan(folds=9, repeats=0), ["bohb"])
    assert len(error.value.problems) == 3
    with pytest.raises(WrongInput, match="--startup nan"):
        simulate([path], Plan(startup=float("nan")))
    assert main(["simulate", "--curves", str(path), "--plot", str(tmp_path / "p.xyz")]) == 2


def test_another_scheduler_can_be_replayed() -> None:
    halving = Scheduler("two rungs", lambda epochs, folds, steps: ((1, 3), (folds, epochs)))
    assert 0 < replay(made_up(), halving, Draw(range(40), range(5))).fold_epochs < 40 * 5 * 27


def test_regret_is_counted_in_percent_and_in_standard_errors() -> None:
    """Two configurations of which a race can only take the worse one, as the folds say it."""
    noise = np.array([0.01, -0.01, 0.02, -0.02])
    T_CSKE = np.stack([0.8 + noise, 0.6 - noise])[:, None, :, None].repeat(3, 3)
    curves = Curves("two", T_CSKE, np.ones(2))
    worst = Baseline(
        "worst", lambda S_NKE: Found(np.ones(2, int), int(S_NKE.mean((1, 2)).argmin()))
    )
    (row,) = measure(curves, [worst], Plan(4, 1)).values()
    assert row["excess_regret_pct"] == pytest.approx(100 * 0.2 / 0.8)
    assert row["in_sample_regret_pct"] == pytest.approx(100 * 0.2 / 0.8)
    # Residuals are the noise itself and its mirror; 3 degrees of freedom, 4 folds.
    error = (2 * (noise**2).sum() / 3 / 4) ** 0.5
    assert row["in_sample_regret_ses"] == pytest.approx(0.2 / error)


def test_a_score_is_the_mean_of_the_last_three_epochs() -> None:
    assert smoothed(np.array([1.0, 2.0, 6.0, 4.0])).tolist() == [1.0, 1.5, 3.0, 4.0]


def curves_of(*levels: float, folds: int = 5, epochs: int = 9) -> np.ndarray:
    """Scores (N, K, E) that stand at a level from the first epoch on."""
    return np.array(levels)[:, None, None] * np.ones((1, folds, epochs))


def test_early_stopped_cv_ends_below_the_worst_fold_of_the_best() -> None:
    S_NKE = curves_of(0.5, 0.45, 0.1, 0.7)
    S_NKE[0, 4] = 0.4
    found = early_stopped(S_NKE)
    assert found.epochs_N.tolist() == [45, 45, 9, 45]  # 0.45 is above the worst fold, 0.4
    assert found.pick == 3


def test_one_fold_first_gives_the_other_folds_to_ten() -> None:
    S_NKE = curves_of(*np.linspace(0.1, 0.9, 20))
    found = one_fold_first(S_NKE)
    assert sorted(found.epochs_N.tolist()) == [9] * 10 + [45] * 10
    assert found.pick == 19


def test_halvings_on_all_folds_cost_what_their_papers_say() -> None:
    S_NKE = curves_of(*np.linspace(0.1, 0.9, 27), folds=2, epochs=27)
    found = hyperband(S_NKE)  # one bracket: 27 at 1 epoch, 9 at 3, 3 at 9, 1 at 27
    assert sorted(found.epochs_N.tolist()) == [2] * 18 + [6] * 6 + [18] * 2 + [54]
    assert found.pick == 26
    found = pasha(S_NKE)  # curves that never cross: the order is settled at the second rung
    assert sorted(found.epochs_N.tolist()) == [2] * 18 + [6] * 9
    assert found.pick == 26


def test_pasha_goes_on_while_the_order_of_the_best_changes() -> None:
    S_NKE = curves_of(*np.linspace(0.1, 0.9, 27), folds=2, epochs=27)
    S_NKE[20, :, 2:] = 2.0  # in the upper third, and the best from the third epoch on
    assert pasha(S_NKE).epochs_N.max() > 2 * 3
    assert pasha(S_NKE).pick == 20


def test_the_wilcoxon_pruner_is_that_of_optuna() -> None:
    noise = np.random.default_rng(0)
    final_NK = noise.uniform(0.3, 0.7, (40, 1)) + noise.normal(0, 0.1, (40, 8))
    found = wilcoxon_pruned(final_NK[:, :, None])
    study = optuna.create_study(
        direction="maximize", pruner=optuna.pruners.WilcoxonPruner(p_threshold=0.1)
    )
    folds_N = []
    for folds_K in final_NK:
        trial = study.ask()
        for fold, value in enumerate(folds_K):
            trial.report(float(value), fold)
            if trial.should_prune():
                break
        pruned = fold < 7 or trial.should_prune()
        state = optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE
        study.tell(trial, None if pruned else float(folds_K.mean()), state=state)
        folds_N.append(fold + 1)
    assert found.epochs_N.tolist() == folds_N
    assert found.pick == study.best_trial.number
    assert min(folds_N) < 8


def test_the_limit_is_the_ladder_that_is_cheapest_when_the_answers_are_known() -> None:
    """Scores stand from the first epoch on: one fold epoch each, and the best in full."""
    T_CSKE = curves_of(*np.linspace(0.1, 0.9, 20))[:, None]
    found = limit(Curves("flat", T_CSKE, np.ones(20)), [Draw(range(20), range(5))], 0.0)
    assert found.fold_epochs == 20 + 5 * 9 - 1
    assert found.regret_pct == 0
    jitter = np.random.default_rng(0).normal(0, 0.3, T_CSKE.shape)
    hard = Curves("hard", T_CSKE + jitter, np.ones(20))
    draws = draws_of(hard, Plan(5, 10))
    strict, loose = (limit(hard, draws, regret) for regret in (0.0, 20.0))
    assert strict.regret_pct == 0
    assert loose.regret_pct <= 20
    assert found.fold_epochs <= loose.fold_epochs < strict.fold_epochs <= 20 * 5 * 9


def test_the_command_line_tells_the_limit_and_what_is_in_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(save(tmp_path / "c.npz", made_up(12)))
    words = ["simulate", "--curves", path, "--repeats", "2", "--schedulers", "cohort_race"]
    assert main([*words, "--limit", "1"]) == 0
    told = capsys.readouterr().out
    assert "its excess is in sample" in told
    assert "c: with the answers known, x " in told
    assert main([*words, "--limit", "-1"]) == 2
    assert main([*words, "--limit", "1", "--json"]) == 2
    two = str(save(tmp_path / "two.npz", made_up(12, seeds=2)))
    assert main(["simulate", "--curves", two, *words[3:]]) == 0
    assert "its excess is in sample" not in capsys.readouterr().out
