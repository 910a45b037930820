"""Schedulers replayed on recorded curves: costs that can be counted, regret, and the brain's own
decisions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raybone.cli import main
from raybone.errors import WrongInput
from raybone.hpo.brain import Brain
from raybone.hpo.curves import Curves, read_curves
from raybone.hpo.fold_race import ladder
from raybone.hpo.journal import Journal
from raybone.hpo.replay import FULL, LOCKSTEPS, RACES, Draw, Scheduler, replay
from raybone.hpo.simulate import Plan, simulate, summary
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
    assert out.pick == int(np.argmax(curves.T_CSKE[:, 0, :, -1].mean(1)))


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


@pytest.mark.parametrize("kind", ["promotion", "stopping"])
def test_simulate_decides_what_the_brain_decides(kind: str, tmp_path: Path) -> None:
    curves = made_up(30, epochs=18, seed=4)
    study = Study.model_validate(
        {
            "name": "s",
            "dataset": "d",
            "model": "m",
            "epochs": 18,
            "metric": "AP",
            "space": {"place": {"choice": list(range(30))}},
            "search": {"trials": 30, "sampler": "grid", "scheduler": "fold_race", "type": kind},
        }
    )
    study = study.resolved_as(
        Resolved(dataset_hash="h", code_version="v", folds=5, ladder=ladder(18, 5, 1000))
    )
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
    out = replay(curves, RACES[kind == "stopping"], Draw(range(30), range(5)), workers=1)
    complete = {
        c.params["place"] for c in brain.state.configurations.values() if c.status == "complete"
    }
    assert complete == set(out.scores)
    assert spent == out.fold_epochs
    assert all(
        d["reason"] and (d["evidence"] or d["action"] == "complete") for d in brain.state.news
    )


def test_noise_free_summaries_are_what_arithmetic_says() -> None:
    def rows(cost: float, regret: float) -> np.ndarray:
        return np.tile([cost, regret, 1.0, 60.0], (10, 1))

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
        simulate([path], Plan(folds=9, repeats=0), ["hyperband"])
    assert len(error.value.problems) == 3
    with pytest.raises(WrongInput, match="--startup nan"):
        simulate([path], Plan(startup=float("nan")))
    assert main(["simulate", "--curves", str(path), "--plot", str(tmp_path / "p.xyz")]) == 2


def test_another_scheduler_can_be_replayed() -> None:
    halving = Scheduler("two rungs", lambda epochs, folds, steps: ((1, 3), (folds, epochs)))
    assert 0 < replay(made_up(), halving, Draw(range(40), range(5))).fold_epochs < 40 * 5 * 27
