"""The Python API on the phantom; test_packaging.py has it from a wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import raybone as rb
from raybone.cli import main

TINY = {"imgsz": 64, "width": 4, "depth": 1, "batch": 4, "nbs": 4, "warmup_epochs": 0}


@pytest.fixture(scope="module")
def results(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> rb.Results:
    """A finished study of a tiny U-Net."""
    study = rb.Study(
        name="tiny",
        dataset=dataset,
        model="unet",
        epochs=2,
        fixed=TINY,
        space={"lr0": rb.log_uniform(1e-3, 1e-1)},
        search={"trials": 2, "scheduler": "full", "sampler": "random"},
    )
    out = tmp_path_factory.mktemp("api") / "study"
    return rb.search(study, out, backend="local", progress=False)


def test_importing_raybone_imports_nothing_heavy_and_lists_its_names() -> None:
    code = (
        "import sys, raybone; assert not {'torch', 'ray', 'pandas', 'pydantic'} & set(sys.modules);"
        "print(*dir(raybone))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == sorted(rb.__all__)
    assert len(rb.__all__) <= 20
    for name in rb.__all__:
        assert getattr(rb, name)
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        rb.serach  # type: ignore[attr-defined]  # noqa: B018


def test_results_are_a_table_a_winner_and_what_the_command_line_reads(results: rb.Results) -> None:
    table = results.leaderboard()
    assert (results.reason, list(table["rank"])) == ("complete", [1, 2])
    written = pd.read_csv(f"{results.folder.url}/leaderboard.csv")
    np.testing.assert_allclose(table["dice_mean"].astype(float), written["dice_mean"])
    best = results.winner
    assert best is not None
    assert best.id == table["config_id"][0]
    predictions = best.predictions()
    assert predictions is not None
    assert [len(fold) for fold in predictions] == [6, 6, 6]
    assert results.configuration(best.id).params["lr0"] == pytest.approx(table["cfg.lr0"][0])
    assert len(results.to_optuna().trials) == 2
    assert best.id in results._repr_html_()


def test_a_study_is_opened_again_and_resumed_by_the_same_call(results: rb.Results) -> None:
    again = rb.open_study(results.folder.url)
    pd.testing.assert_frame_equal(again.leaderboard(), results.leaderboard())
    same = rb.search(results.study, results.folder.url, backend="local", progress=False)
    pd.testing.assert_frame_equal(same.leaderboard(), results.leaderboard())


def test_the_winner_is_taken_home_and_finds_what_predict_writes(
    results: rb.Results, cohort: Path, tmp_path: Path
) -> None:
    bundle = results.refit(tmp_path / "bundle")
    found = rb.open_bundle(tmp_path / "bundle").predict(cohort)
    assert len(found) == 18
    assert not found.rejected
    command = ["predict", str(bundle.path), str(cohort), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    written = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert sum(len(findings) for _, findings in found) == written["score"].notna().sum()
    assert [scan.source for scan, _ in found] == list(dict.fromkeys(written["source"]))
    assert results.report(tmp_path / "r.html", scans=False) == str(tmp_path / "r.html")


def test_a_dataset_at_an_address_that_a_stranger_wrote_is_not_asked(
    results: rb.Results, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = tmp_path / "theirs"
    shutil.copytree(results.folder.url, theirs)
    text = (theirs / "study.yaml").read_text()
    address = "http://127.0.0.1:1/ds"
    (theirs / "study.yaml").write_text(text.replace(results.study.dataset, address))
    rb.open_study(theirs).report(tmp_path / "r.html")
    assert "an address that study.yaml names and that is not asked" in caplog.text
    caplog.clear()
    rb.open_study(theirs, results.study.dataset).report(tmp_path / "r2.html")
    assert not caplog.text


def test_what_is_wrong_is_said_before_anything_is_trained(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(rb.WrongInput, match=r"metric: must be one of .* got 'AP5'"):
        rb.Study(dataset=dataset, model="unet", metric="AP5")
    with pytest.raises(rb.WrongInput, match="unett"):
        rb.Study(dataset=dataset, model="unett")
    with pytest.raises(rb.WrongInput, match="log_uniform needs low > 0"):
        rb.Study(dataset=dataset, model="unet", space={"lr0": {"log_uniform": [0, 1]}})
    with pytest.raises(rb.WrongInput, match=r"^log_uniform\(0, 1\): log_uniform needs low > 0"):
        rb.log_uniform(0, 1)
    with pytest.raises(rb.WrongInput, match=r"^uniform\(2, 1\): uniform needs low < high"):
        rb.uniform(2, 1)
    with pytest.raises(rb.WrongInput, match=r"^choice\(\): choice: "):
        rb.choice()
    with pytest.raises(rb.WrongInput, match="must be a study folder"):
        rb.open_study(tmp_path)
    study = rb.Study(dataset=tmp_path / "none", model="unet")
    with pytest.raises(rb.WrongInput, match="none"):
        rb.search(study, tmp_path / "out", backend="local")


def test_a_yaml_and_keywords_are_the_same_study(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text(
        f"dataset: {dataset}\nmodel: unet\nspace: {{depth: {{choice: [1, 2]}}, "
        "width: {choice: [4, 8], when: {depth: 2}}}\nsearch: {trials: 3}\n"
    )
    read = rb.Study.from_yaml(tmp_path / "ours.yaml", "search.trials=4")
    space = {"depth": rb.choice(1, 2), "width": rb.choice(4, 8, when={"depth": 2})}
    made = rb.Study(name="ours", dataset=dataset, model="unet", space=space, search={"trials": 4})
    assert read == made
    assert rb.int_uniform(1, 3).admits(3)
    assert not rb.uniform(0, 1).admits(2)
