"""What would make a search silently wrong ends it in one line, blames no configuration, and can be
mended.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from pretend import pretend

from raybone.cli import main
from raybone.data.cache import Intensities
from raybone.data.dataset import dataset_of, open_dataset
from raybone.data.ingest.prepare import prepare
from raybone.data.loader import Look, ScanSamples, validation_loader
from raybone.errors import DamagedFile, FitFailed, MachineFault, WrongInput
from raybone.hpo.brain import Brain
from raybone.hpo.journal import Journal
from raybone.run.checks import resolve
from raybone.run.ending import conclude
from raybone.run.kubernetes import manifests
from raybone.run.local import search
from raybone.run.ray.jobs import pack
from raybone.storage import Folder
from raybone.study.files import parse_study, read_study
from raybone.study.relocate import relocated
from raybone.train.checkpoint import earlier_fold
from raybone.types import Epoch, plain_cell, safe_cell

Mapping = dict[str, Any]


def small(study: Mapping, **more: Any) -> Mapping:
    return {**study, "epochs": 2, "search": {**study["search"], "trials": 1}, **more}


def board(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "leaderboard.csv")


@pytest.fixture
def place(study: Mapping, dataset: Path, tmp_path: Path) -> Path:
    """A folder with a dataset of its own and a study of it."""
    shutil.copytree(dataset, tmp_path / "ds")
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(small(study, dataset=str(tmp_path / "ds"))))
    return tmp_path


def leave(_: Brain) -> None:
    """As Ctrl-C after the first epoch."""
    raise KeyboardInterrupt


def searched(place: Path, *sets: str, out: str = "st") -> int:
    return main(
        [
            "search",
            str(place / "s.yaml"),
            "--out",
            str(place / out),
            "--local",
            "--set",
            "name=tiny",
            *sets,
        ]
    )


def test_a_dataset_that_is_replaced_under_a_search_ends_it(
    place: Path, held_out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(place))  # no cache of an earlier run
    study = read_study(
        place / "s.yaml",
        [
            "space={imgsz: {choice: [160, 224]}}",
            "search.sampler=grid",
            "search.trials=2",
            "fixed={batch: 4, nbs: 4, width: 4, depth: 2}",
        ],
    )

    def replace(brain: Brain) -> None:
        if (
            "c000" in brain.state.configurations
            and brain.state.configurations["c000"].status == "complete"
            and not (place / "old").exists()
        ):
            (place / "ds").rename(place / "old")
            shutil.copytree(held_out, place / "ds")

    with pytest.raises(DamagedFile, match="was replaced while it was in use; put the old one back"):
        search(study, str(place / "st"), replace)
    assert "failed" not in (place / "st" / "leaderboard.csv").read_text()
    resolved = read_study(place / "st" / "study.yaml")
    with pytest.raises(WrongInput, match="was begun on the dataset of hash"):
        dataset_of(resolved)
    assert main(["refit", str(place / "st"), "--out", str(place / "bundle")]) == 2
    assert "put the old one back, say where it is now (--dataset)" in capsys.readouterr().err
    shutil.rmtree(place / "ds")
    (place / "old").rename(place / "ds")
    assert search(study, str(place / "st")).kind == "complete"
    assert list(board(place / "st")["state"]) == ["complete", "complete"]


def test_a_study_goes_on_with_its_dataset_at_another_place(place: Path) -> None:
    assert searched(place) == 0
    (place / "ds").rename(place / "moved")
    assert searched(place, f"dataset={place / 'moved'}", "search.trials=2") == 0
    assert list(board(place / "st")["state"]) == ["complete", "complete"]


def test_results_are_read_with_the_dataset_at_another_place(place: Path) -> None:
    assert searched(place) == 0
    (place / "ds").rename(place / "moved")
    moved = ["--dataset", str(place / "moved")]
    assert main(["refit", str(place / "st"), "--out", str(place / "bundle")]) == 2
    assert main(["refit", str(place / "st"), "--out", str(place / "bundle"), *moved]) == 0
    assert main(["compare", str(place / "st"), *moved]) == 0
    assert main(["report", str(place / "st"), *moved]) == 0
    assert "the dataset at" not in (place / "st" / "report.html").read_text()


def test_a_batch_that_the_workers_cannot_share_out_is_refused(study: Mapping) -> None:
    from raybone.run.checks import resolve

    two = {"resources": {"workers": 2}}
    for wrong, line in (
        (
            small(study, **two, fixed={**study["fixed"], "batch": 3}),
            "fixed.batch: must be a multiple",
        ),
        (
            small(study, **two, fixed={"width": 4}, space={"batch": {"choice": [1, 2, 3]}}),
            "space.batch: must be a multiple of the 2 resources.workers, got 1, 3; change",
        ),
    ):
        with pytest.raises(WrongInput, match=line):
            resolve(parse_study(wrong))
    drawn = small(
        study, **two, fixed={"width": 4, "imgsz": 64}, space={"batch": {"int_uniform": [2, 9]}}
    )
    resolve(parse_study(drawn))


def test_a_search_without_a_result_is_no_success(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A map of one pixel cannot be normalised in a batch of one."""
    for _ in range(2):
        assert (
            searched(
                place,
                "fixed={imgsz: 32, width: 4, depth: 5, batch: 1, nbs: 1, warmup_epochs: 0}",
                "search.trials=2",
            )
            == 1
        )
        told = capsys.readouterr().err.splitlines()[-1]
        assert (
            "none of its 2 configurations came to a result, most often: ValueError: Expected more "
            "than 1" in told
        )
        assert "start another study" in told


def test_fixed_values_that_the_model_never_takes_are_refused_before_a_search(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [
        "model=faster_rcnn_r50",
        "metric=AP",
        "fixed={imgsz: 64, batch: 2}",
        "space={lr0: {log_uniform: [0.001, 0.01]}}",
    ]
    assert searched(place, *more) == 2
    assert "must take one of its configurations, but: anchor" in capsys.readouterr().err
    assert main(["preview", str(place / "s.yaml"), "--epoch-seconds", "1", "--set", *more]) == 2
    assert not (place / "st").exists()


def test_a_checkpoint_cut_short_ends_the_search_and_can_be_put_back(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(read_study(place / "s.yaml", ["name=tiny"]), str(place / "st"), leave)
    last = place / "st" / "runs" / "c000" / "fold0" / "last.pt"
    good = last.read_bytes()
    for bad in (good[:1000], b"nothing"):
        last.write_bytes(bad)
        assert searched(place) == 1
        told = capsys.readouterr().err.splitlines()[-1]
        assert (
            f"{last}: must hold weights and nothing that runs, but is damaged, cut short or "
            "another file (" in told
        )
        assert f"({len(bad)} bytes" in told
        assert "failed" not in (place / "st" / "leaderboard.csv").read_text()
    last.write_bytes(good)
    assert searched(place) == 0
    assert searched(place, out="undisturbed") == 0
    pd.testing.assert_series_equal(
        board(place / "st")["dice_mean"], board(place / "undisturbed")["dice_mean"]
    )


def test_weights_of_other_hyper_parameters_are_not_taken_for_a_configurations_own(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, lr in (("st", "0.01"), ("other", "0.02")):
        with pytest.raises(KeyboardInterrupt):
            search(
                read_study(place / "s.yaml", [f"space.lr0={{choice: [{lr}]}}"]),
                str(place / name),
                leave,
            )
    shutil.copy(place / "other/runs/c000/fold0/last.pt", place / "st/runs/c000/fold0/last.pt")
    assert (
        main(
            [
                "search",
                str(place / "s.yaml"),
                "--out",
                str(place / "st"),
                "--local",
                "--set",
                "space.lr0={choice: [0.01]}",
            ]
        )
        == 1
    )
    assert (
        "must be of this configuration and fold, but was trained with another config; put"
        in capsys.readouterr().err
    )


def test_lesions_that_a_small_image_loses_are_counted(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In 128 pixels of 256 a lesion of under 4 pixels a side is under 2, and its mask may vanish."""
    dataset = open_dataset(place / "ds")
    sides = [
        min(x2 - x1, y2 - y1)
        for s in dataset.scans
        for le in s.lesions
        if le.category == "malignant"
        for x1, y1, x2, y2 in [le.box_xyxy]
    ]
    lost = sum(side < 4 for side in sides)
    assert 0 < lost < len(sides)
    sets = [
        "model=yolo11n",
        "metric=AP50",
        "fixed={batch: 4}",
        "space={imgsz: {choice: [128, 256]}}",
    ]
    assert main(["preview", str(place / "s.yaml"), "--epoch-seconds", "1", "--set", *sets]) == 0
    assert (
        f"warning: imgsz 128: {lost} of {len(sides)} lesions are under 2 pixels a side; they are "
        "not trained on" in capsys.readouterr().out
    )
    sets = ["space={imgsz: {choice: [128, 256]}}", "fixed={batch: 4, nbs: 4, width: 4, depth: 2}"]
    assert main(["preview", str(place / "s.yaml"), "--epoch-seconds", "1", "--set", *sets]) == 0
    said = capsys.readouterr().out
    assert f"warning: imgsz 128: {lost} of {len(sides)} lesions are under 2 pixels a side" in said
    assert "their masks may vanish and be trained on as background, but are scored" in said
    assert "imgsz 256" not in said


def test_prepare_counts_lesions_that_get_too_small(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "prepare",
                str(cohort),
                str(tmp_path / "ds"),
                "--folds",
                "3",
                "--key",
                str(tmp_path / "k"),
            ]
        )
        == 0
    )
    counts = open_dataset(tmp_path / "ds").meta["counts"]["too_small"]
    assert counts["128"] > counts["256"] == 0
    assert f"not trained on: {counts['128']} at imgsz 128\n" in capsys.readouterr().out


def test_a_damaged_cache_is_made_anew(place: Path) -> None:
    dataset = open_dataset(place / "ds")
    plain = [Intensities(dataset, 64)(s).copy() for s in dataset.scans]
    ((file, _),) = set(Intensities(dataset, 64).files.values())
    for damage in (file.read_bytes()[:-50], file.read_bytes()[:-50] + bytes(50)):
        file.write_bytes(damage)
        for before_HW, scan in zip(plain, dataset.scans):
            np.testing.assert_array_equal(Intensities(dataset, 64)(scan), before_HW)


def test_a_folder_of_something_else_is_no_study_folder(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "mine").mkdir()
    (place / "mine" / "thesis.tex").write_text("x")
    for out, why in (
        ("mine", "holds 1 other things"),
        ("ds", "must not lie in a dataset"),
        ("ds/runs/first", "must not lie in a dataset"),
    ):
        assert searched(place, out=out) == 2
        assert why in capsys.readouterr().err
    assert (place / "mine" / "thesis.tex").read_text() == "x"


def test_a_home_folder_is_meant_by_a_tilde(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place))
    assert searched(place, "dataset=~/ds") == 0


@pytest.mark.parametrize("name", ["ds #2", "2024", "a: b", "'quoted"])
def test_the_name_of_a_dataset_is_no_yaml(place: Path, name: str) -> None:
    shutil.move(place / "ds", place / name)
    study = ["search", str(place / "s.yaml"), "--out", str(place / "st"), "--local"]
    assert main([*study, "--dataset", str(place / name)]) == 0


def test_a_model_that_cannot_be_imported_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "broken_model.py").write_text("def = 1\n")
    monkeypatch.syspath_prepend(place)
    assert main(["models", "broken_model:M"]) == 2
    told = capsys.readouterr().err
    assert "must be a model of a package that Python finds here, but SyntaxError" in told
    assert len(told.splitlines()) == 1


def test_a_leaderboard_may_be_shown_where_it_may_not_be_written(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    assert searched(place) == 0
    monkeypatch.setattr("raybone.storage.Folder.write", refused)
    assert main(["leaderboard", str(place / "st")]) == 0
    told = capsys.readouterr()
    assert "c000" in told.out
    assert "leaderboard.csv is left as it is: Permission denied" in told.err


def test_a_user_without_a_home_folder_is_told_to_give_a_key(cohort: Path, tmp_path: Path) -> None:
    """As containers run with any user id: no entry in the list of users, and no HOME, or one that
    is not theirs.
    """
    for home in ({}, {"HOME": "/proc"}):
        words = ["prepare", str(cohort), str(tmp_path / "ds"), "--folds", "2"]
        done = nameless(f"import sys; from raybone.cli import main; sys.exit(main({words}))", home)
        assert done.returncode == 2, done.stderr
        assert "--key" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_user_without_a_home_folder_is_told_where_weights_may_lie() -> None:
    done = nameless(
        "from raybone.models import load\nfrom raybone.models._weights import weights_file\n"
        "try:\n    weights_file('coco', load('yolo11n'))\n"
        "except ValueError as error:\n    print(error)",
        {"YOLO_CONFIG_DIR": os.environ["YOLO_CONFIG_DIR"]},
    )
    assert "RAYBONE_WEIGHTS" in done.stdout, done.stderr


def test_models_that_ask_for_the_user_load_without_one() -> None:
    done = nameless(
        "from raybone.models import load; print(load('attention_unet').name)", {"HOME": "/"}
    )
    assert done.stdout.strip() == "attention_unet", done.stderr


def test_charts_are_drawn_without_a_home_folder() -> None:
    done = nameless("import os, raybone.results.charts; print('HOME' in os.environ)", {})
    assert done.stdout.strip() == "False", done.stderr


def nameless(code: str, more: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run code as a user whom the system does not know."""
    gone = (
        "import pwd\ndef getpwuid(uid): raise KeyError(f'uid not found: {uid}')\npwd.getpwuid "
        "= "
        "getpwuid\n"
    )
    without = {
        k: v
        for k, v in os.environ.items()
        if k not in ("HOME", "XDG_CONFIG_HOME", "USER", "LOGNAME")
    }
    return subprocess.run(
        [sys.executable, "-c", gone + code], env={**without, **more}, capture_output=True, text=True
    )


def test_loader_processes_need_shared_memory_and_may_not_be_silent(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    room = shutil.disk_usage

    def small(path: Any) -> Any:
        return room(path)._replace(free=1000) if str(path) == "/dev/shm" else room(path)

    monkeypatch.setattr("raybone.data.loader.shutil.disk_usage", small)
    assert searched(place, "fixed.loader_workers=1") == 1
    assert "/dev/shm: 1 loader_workers need" in capsys.readouterr().err.splitlines()[-1]
    assert "failed" not in (place / "st" / "leaderboard.csv").read_text()
    assert searched(place, "fixed.loader_workers=0") == 0  # as it was told to do
    assert searched(place, "fixed.loader_workers=0", "fixed.depth=3") == 2
    assert "keeps its settings, but fixed differ" in capsys.readouterr().err


def test_weights_of_a_fold_of_the_same_dataset_are_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert searched(place) == 0
    kept = place / "st" / "runs" / "c000" / "fold0" / "last.pt"
    assert searched(place, f"fixed.weights={kept}", out="again") == 2
    assert "must not be of a fold of this dataset, whose training" in capsys.readouterr().err
    assert not (place / "again").exists()


@pytest.mark.parametrize(("width", "times"), [(128, "4.0"), (40, "")])
def test_a_scan_of_another_shape_that_makes_all_images_larger_is_told(
    width: int, times: str, study: Mapping, tmp_path: Path
) -> None:
    for number in range(8):
        wide = width if number == 3 else 32
        values_HW = np.random.default_rng(number).integers(0, 200, (128, wide)).astype(np.uint8)
        mask_HW = np.zeros_like(values_HW)
        mask_HW[20:40, 5:20] = 255
        for part, picture_HW in (("images", values_HW), ("masks", mask_HW)):
            (tmp_path / "in" / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture_HW).save(tmp_path / "in" / part / f"{number}.png")
    made = prepare(tmp_path / "in", tmp_path / "ds", folds=2, key=tmp_path / "key")
    content = small(study, dataset=str(made.path))
    warnings = resolve(parse_study({**content, "search": {"trials": 1, "folds": 2}}))[
        0
    ].resolved.warnings
    told = [w for w in warnings if "scans of other shapes" in w]
    assert len(told) == bool(times)
    assert all(f"{times} times as large as most are; prepare them apart" in w for w in told)


@pytest.mark.parametrize(
    ("metric", "target", "told"),
    [
        ("dice", 90, "limits.target: 90 is no dice, which is between 0 and 1: it ends no search"),
        ("dice", 0.9, ""),
        (
            "dice",
            -0.5,
            "limits.target: -0.5 is no dice, which is between 0 and 1: the first complete "
            "configuration ends the search",
        ),
        ("val_loss", -3, ""),
    ],
)
def test_a_target_that_no_score_can_have_is_told(
    metric: str, target: float, told: str, study: Mapping
) -> None:
    content = small(study, metric=metric, limits={"target": target})
    warnings = resolve(parse_study(content))[0].resolved.warnings
    assert [w for w in warnings if "limits.target" in w] == ([told] if told else [])


@pytest.mark.parametrize(
    ("space", "line"),
    [
        ("{amp: {uniform: [0, 1]}}", "draws fractions, but it is true or false; use choice"),
        ("{lr0: {uniform: [0, true]}}", "must be numbers, got one that is true or false"),
    ],
)
def test_what_is_true_or_false_is_no_number(
    space: str, line: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["preview", str(place / "s.yaml"), "--epoch-seconds", "1", "--set", f"space={space}"]
    assert main(words) == 2
    assert line in capsys.readouterr().err


def test_one_epoch_without_a_score_is_no_search_without_a_result(
    dataset: Path, tmp_path: Path
) -> None:
    """PPV is not a number where nothing is called positive, as in one epoch before the last."""

    def scores(fold: int, epoch: int) -> float:
        return float("nan") if (fold, epoch) == (0, 5) else 0.6

    study = pretend(tmp_path / "ppv", dataset, "AUC", search={"trials": 2}, replicates=0)
    study = study.model_copy(update={"metric": "PPV"})
    brain = Brain(study, Journal(Folder(tmp_path / "other")), lambda params: 1, 1)
    while work := brain.peek():
        brain.start(work)
        for segment in work.segments:
            for epoch in range(segment.start + 1, segment.stop + 1):
                metrics = {"PPV": scores(segment.fold, epoch)}
                brain.epoch(work.config_id, Epoch(segment.fold, epoch, metrics, 1.0))
        brain.rung_done(work.config_id, work.rung)
    lease = SimpleNamespace(lost=False)
    folder = SimpleNamespace(url="ppv")
    opened: Any = SimpleNamespace(
        brain=brain, study=study, folder=folder, lease=lease, to_test=dict, publish=dict
    )
    assert conclude(opened).kind == "complete"


def test_an_earlier_study_that_was_moved_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(FitFailed, match="nothing is there; was it moved"):
        earlier_fold(str(tmp_path / "st/runs/c000"), 0)


def test_categories_are_named_once_and_batches_may_be_automatic_in_a_space(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert searched(place, "fixed.categories=[malignant,malignant]", out="twice") == 2
    assert " is there twice; leave one out" in capsys.readouterr().err
    sets = ["space={batch: {choice: [4, auto]}}", "fixed={nbs: 4, width: 4, depth: 2, imgsz: 64}"]
    for more in ((), ("resources={workers: 2}",)):
        words = ["preview", str(place / "s.yaml"), "--epoch-seconds", "1", "--set", *sets, *more]
        assert main(words) == 0


class Silent(ScanSamples):
    """Samples that never come."""

    def __getitem__(self, key: tuple[int, int]) -> Any:
        time.sleep(60)


def test_a_loader_process_that_is_silent_is_a_fault_of_the_machine(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raybone.data.loader.SILENT", 1.0)
    dataset = open_dataset(place / "ds")
    samples = Silent(Intensities(dataset, 64), list(dataset.scans), Look(["malignant"], 64))
    loader = validation_loader(samples, 2, 0, 1, 1)
    with pytest.raises(MachineFault, match="1 loader_workers failed: DataLoader timed out"):
        next(iter(loader))


def test_a_cell_is_no_formula_and_reads_back_as_it_was(tmp_path: Path) -> None:
    for text in ("=1+1", "+49", "-x", "@SUM(A1)", "\tx", "plain", "'quoted", ""):
        cell = safe_cell(text)
        assert cell[:1] not in ("=", "+", "-", "@", "\t")
        assert plain_cell(cell) == text
    assert safe_cell(-0.5) == -0.5
    (tmp_path / "in" / "images").mkdir(parents=True)
    (tmp_path / "in" / "masks").mkdir()
    lines = ["file,grade"]
    for n, grade in enumerate(("=1", "-", "b")):
        for kind, values in (
            ("images", np.full((40, 40), 9 + n, np.uint8)),
            ("masks", np.zeros((40, 40), np.uint8)),
        ):
            Image.fromarray(values).save(tmp_path / "in" / kind / f"{n}.png")
        lines.append(f"images/{n}.png,{grade}")
    (tmp_path / "in" / "labels.csv").write_text("\n".join(lines))
    words = [
        "prepare",
        str(tmp_path / "in"),
        str(tmp_path / "ds"),
        "--folds",
        "2",
        "--key",
        str(tmp_path / "k"),
    ]
    assert main(words) == 0
    table = (tmp_path / "ds" / "scans.csv").read_text()
    assert ",'=1\n" in table
    assert {dict(s.labels)["grade"] for s in open_dataset(tmp_path / "ds").scans} == {
        "=1",
        "-",
        "b",
    }


def test_places_that_a_study_starts_from_travel_with_it(study: Mapping) -> None:
    parsed = parse_study(
        {
            **study,
            "fixed": {**study["fixed"], "init_from": "runs/first", "weights": "yolo11n"},
            "space": {
                "nm": {"choice": ["otsu", "runs/second"]},
                "lr0": {"choice": [0.1], "when": {"nm": "runs/second"}},
            },
            "search": {"trials": 2, "points": [{"nm": "runs/second"}]},
        }
    )
    moved = relocated(parsed, lambda place: f"/there/{place}")
    assert moved.fixed["init_from"] == "/there/runs/first"
    assert moved.fixed["weights"] == "yolo11n"
    assert moved.space["nm"].choice == ("otsu", "/there/runs/second")
    assert moved.space["lr0"].when == {"nm": "/there/runs/second"}
    assert moved.search.points == ({"nm": "/there/runs/second"},)
    assert "init_from: /raybone/runs/first" in manifests(parsed, None, None)
    with zipfile.ZipFile(io.BytesIO(pack(parsed, None).content)) as archive:
        there = os.path.abspath("runs/first")  # noqa: PTH100
        assert f"init_from: {there}" in archive.read("study.yaml").decode()


def test_trackers_of_a_study_that_travels_are_told_in_the_same_place(study: Mapping) -> None:
    named = ["tensorboard:tb", "wandb:/abs", "mlflow:sqlite:///m.db", "mlflow:http://host:5000"]
    parsed = parse_study({**study, "track": named})
    assert relocated(parsed, lambda place: str(Path("/there", place))).track == (
        "tensorboard:/there/tb",
        "wandb:/abs",
        "mlflow:sqlite:////there/m.db",
        "mlflow:http://host:5000",
    )
    assert "- tensorboard:/raybone/tb" in manifests(parsed, None, None)


def test_the_dashboards_address_is_told_apart_from_a_clusters(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    monkeypatch.setattr(
        "ray.is_initialized", lambda: False
    )  # another test's may run in this process
    assert main(["search", str(place / "s.yaml"), "--out", str(place / "st")]) == 2
    assert "RAY_ADDRESS http://127.0.0.1:8265: is a dashboard" in capsys.readouterr().err
