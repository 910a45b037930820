"""Thirty kills at random moments of verbs that write: whole or absent, and the same command ends
what was begun.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from raybone.cli import main
from raybone.data.dataset import open_dataset
from raybone.deploy.bundle import open_bundle

KILLS = 30
VERBS = ("prepare", "forget", "refit", "predict", "report")


@pytest.fixture(scope="module")
def home(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with its key, a study on it, and the winner's bundle."""
    home = tmp_path_factory.mktemp("kills")
    shutil.copytree(cohort, home / "scans")
    study = {
        "name": "small",
        "dataset": str(home / "ds"),
        "model": "unet",
        "epochs": 1,
        "metric": "dice",
        "fixed": {"imgsz": 64, "batch": 4, "nbs": 4, "width": 4, "depth": 2},
        "space": {},
        "search": {"trials": 1, "sampler": "grid", "scheduler": "full"},
    }
    (home / "s.yaml").write_text(yaml.safe_dump(study))
    for words in (
        ["prepare", "scans", "ds", "--folds", "3", "--key", "key"],
        ["search", "s.yaml", "--out", "study", "--local"],
        ["refit", "study", "--out", "bundle"],
    ):
        assert (
            main(
                [
                    str(home / w)
                    if (home / w).exists() or w in ("ds", "study", "bundle", "key")
                    else w
                    for w in words
                ]
            )
            == 0
        )
    return home


def words_of(verb: str, home: Path) -> list[str]:
    """The command, which makes or changes something in ``home``."""
    return {
        "prepare": [
            "prepare",
            str(home / "scans"),
            str(home / "made"),
            "--key",
            str(home / "key2"),
        ],
        "forget": ["forget", str(home / "ds"), "PHANTOM-0004", "--key", str(home / "key")],
        "refit": [
            "refit",
            str(home / "study"),
            "--out",
            str(home / "made"),
            "--dataset",
            str(home / "ds"),
        ],
        "predict": [
            "predict",
            str(home / "bundle"),
            str(home / "scans"),
            "--out",
            str(home / "made"),
        ],
        "report": [
            "report",
            str(home / "study"),
            "--html",
            str(home / "made.html"),
            "--dataset",
            str(home / "ds"),
        ],
    }[verb]


def started(words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "raybone", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.endurance
@pytest.mark.timeout(3600)
def test_what_is_killed_is_whole_or_absent_and_the_same_command_ends_it(
    home: Path, tmp_path: Path
) -> None:
    rng, seconds, at_work = random.Random(0), dict[str, float](), 0
    for number in range(KILLS):
        verb = VERBS[number % len(VERBS)]
        place = tmp_path / f"{number}"
        shutil.copytree(home, place)
        words = words_of(verb, place)
        if verb not in seconds:
            began = time.monotonic()
            assert started(words).wait() == 0, verb
            seconds[verb] = time.monotonic() - began
            shutil.rmtree(place)
            shutil.copytree(home, place)
        before = len(open_dataset(place / "ds").fold_of)
        child = started(words)
        time.sleep(rng.uniform(0.3, 1.0) * seconds[verb])
        at_work += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
        made = place / "made"
        if verb == "prepare" and made.exists():
            assert len(open_dataset(made).scans) == 18
        if verb == "refit" and made.exists():
            open_bundle(made)
        if verb == "predict" and made.exists():
            assert (made / "predictions.json").exists()
        shutil.rmtree(made, ignore_errors=True)
        code = main(words)
        assert len(open_dataset(place / "ds").fold_of) == before - (verb == "forget")
        assert code == 0 or (verb == "forget" and code == 2), (
            f"{number} {verb}: {code}"
        )  # it was done and told before
        assert verb == "forget" or any(place.glob("made*"))
        left = [p.name for p in place.iterdir() if p.name.startswith(".")]
        assert not left, f"{number} {verb}: {left}"
        shutil.rmtree(place)
    print(
        f"\n{KILLS} kills, {at_work} of them at work; a verb takes "
        + ", ".join(f"{v} {s:.1f} s" for v, s in seconds.items())
    )
    assert at_work > KILLS // 2
