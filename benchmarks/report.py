"""What the page of a study of 500 configurations weighs, how long it takes to write, and to open in
a browser.

    python benchmarks/report.py

Scores are made up, the scans are a phantom's at 1024x256. ``loaded`` is the load event, with the
table there to sort; ``drawn`` is when the last chart stands. Needs Chromium on PATH.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine

from raybone.cli import main
from raybone.data.ingest.prepare import prepare
from raybone.phantom.phantom import phantom

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from browser import visit
from pretend import pretend

REPEATS = 7


def measured(place: Path, dataset: Path, **keys: Any) -> dict[str, Any]:
    """One study: megabytes, seconds to write, and milliseconds to open, the median of some
    visits.
    """
    pretend(place, dataset, replicates=1000, **keys)
    began = time.perf_counter()
    assert main(["report", str(place)]) == 0
    spent = time.perf_counter() - began
    page = place / "report.html"
    visits = [visit(page) for _ in range(REPEATS)]
    assert not any(v.complaints for v in visits)
    return {
        "megabytes": page.stat().st_size / 1e6,
        "write_seconds": spent,
        **{
            f"{name}_ms": machine.median([getattr(v, name) for v in visits])
            for name in ("loaded", "drawn")
        },
        "drawn_ms_of_each": [round(v.drawn) for v in visits],
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        cohort = phantom(Path(folder, "cohort"), patients=40, seed=1)
        dataset = prepare(cohort, Path(folder, "ds"), folds=5, key=cohort.with_suffix(".key")).path
        rows = {}
        for scheduler in ("full", "fold_race"):
            rows[scheduler] = measured(
                Path(folder, scheduler),
                dataset,
                epochs=50,
                search={"trials": 500, "scheduler": scheduler},
            )
            print(scheduler, rows[scheduler], flush=True)
    machine.keep(
        "report", {"configurations": 500, "folds": 5, "epochs": 50, "repeats": REPEATS, **rows}
    )
