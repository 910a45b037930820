"""A search of 10,000 configurations and a million fold epochs: what the journal, a resume, the
leaderboard and a decision cost, and how that grows.

    python benchmarks/scale.py [CONFIGURATIONS ...]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import machine
import numpy as np

from raybone.hpo.brain import Brain
from raybone.hpo.fold_race import ladder
from raybone.hpo.journal import Journal
from raybone.storage import Folder
from raybone.study.files import write_study
from raybone.study.spec import Resolved, Study
from raybone.types import Epoch

EPOCHS, FOLDS, METRICS = 300, 5, ("AP", "AP50", "precision", "sensitivity", "val_loss")


def study(trials: int) -> Study:
    """A study of that many configurations."""
    made = Study.model_validate(
        {
            "name": "scale",
            "dataset": "d",
            "model": "yolo11n",
            "epochs": EPOCHS,
            "metric": "AP",
            "space": {"lr0": {"log_uniform": [1e-5, 1e-1]}, "fliplr": {"uniform": [0, 1]}},
            "search": {"trials": trials, "sampler": "random"},
        }
    )
    return made.resolved_as(
        Resolved(
            dataset_hash="h", code_version="v", folds=FOLDS, ladder=ladder(EPOCHS, FOLDS, 1000)
        )
    )


def live(folder: Path, trials: int) -> dict[str, Any]:
    """Play a whole search into a journal; times of decisions are those of the race alone and with
    their record.
    """
    made, noise = study(trials), np.random.default_rng(0)
    Folder(folder).write("study.yaml", write_study(made).encode())
    decide, finish = [], []
    # The disk's own time is not the brain's: what a flush takes is measured apart.
    with mock.patch("os.fsync", return_value=None):
        brain = Brain(made, Journal(Folder(folder)), lambda params: 2_600_000, slots=8)
        for name in ("next_step", "judge"):
            setattr(brain.race, name, timed(getattr(brain.race, name), decide))
        while work := brain.peek():
            brain.start(work)
            quality = work.params["fliplr"]
            for segment in work.segments:
                values_EM = quality * np.linspace(0, 1, EPOCHS)[:, None] + noise.normal(
                    0, 0.02, (EPOCHS, len(METRICS))
                )
                for epoch in range(segment.start + 1, segment.stop + 1):
                    brain.epoch(
                        work.config_id,
                        Epoch(
                            segment.fold,
                            epoch,
                            dict(zip(METRICS, values_EM[epoch - 1].tolist())),
                            12.345,
                        ),
                    )
            began = time.perf_counter()
            brain.rung_done(work.config_id, work.rung)
            finish.append(time.perf_counter() - began)
        brain.finish()
    size = sum(p.stat().st_size for p in (folder / "journal").iterdir())
    return {
        "configurations": trials,
        "fold_epochs": brain.state.fold_epochs,
        "journal_mb": size / 1e6,
        "complete": brain.state.counts["complete"],
        "decision_us": 1e6 * float(np.median(decide)),
        "decision_us_p99": 1e6 * float(np.quantile(decide, 0.99)),
        "decision_us_max": 1e6 * max(decide),
        "rung_done_us": 1e6 * float(np.median(finish)),
    }


def timed(function: Any, seconds: list[float]) -> Any:
    """The function, with the time of each call kept."""

    def call(*arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            seconds.append(time.perf_counter() - began)

    return call


# Each in a process of its own, so that its peak of memory is its own.
JOBS = {
    "nothing": "",
    "leaderboard": "folder.write_table()",
    "resume": "from raybone.hpo.brain import Brain\n"
    "brain = Brain(folder.study, folder.journal(), lambda params: 1, 8)\nbrain.peek()",
    "status": "from raybone.results.watch import status_lines, status_of\n"
    "status_lines(status_of(folder.study, folder.state))",
}


def apart(folder: Path, job: str) -> tuple[float, float]:
    """Seconds and peak MB of a job on a study, without the start of Python."""
    code = (
        "import re, time\nimport raybone.results.leaderboard, raybone.hpo.brain, "
        "raybone.results.watch\n"
        "from raybone.results.study_folder import StudyFolder\n"
        f"folder = StudyFolder({str(folder)!r})\nbegan = time.perf_counter()\n{JOBS[job]}\n"
        "spent = time.perf_counter() - began\n"
        "print(spent, int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / "
        "1e3)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    return float(out[0]), float(out[1])


def flush(folder: Path, count: int = 300) -> float:
    """Milliseconds that one event takes to be safe on this disk."""
    journal = Journal(Folder(folder))
    began = time.perf_counter()
    for _ in range(count):
        journal.append("note", text="x" * 150)
    return 1e3 * (time.perf_counter() - began) / count


if __name__ == "__main__":
    rows = []
    for trials in [int(a) for a in sys.argv[1:]] or [1000, 3000, 10000]:
        with tempfile.TemporaryDirectory() as place:
            began = time.perf_counter()
            row = live(Path(place), trials)
            row["live_seconds"] = time.perf_counter() - began
            for job in JOBS:
                row[f"{job}_seconds"], row[f"{job}_peak_mb"] = apart(Path(place), job)
            os.sync()
            row["flush_ms"] = flush(Path(place) / "flush")
        rows.append(row)
        print(json.dumps({k: round(v, 3) for k, v in row.items()}), flush=True)
    machine.keep("scale", {"rows": rows})
