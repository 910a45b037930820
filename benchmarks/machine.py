"""The machine a figure was measured on, timing by turns, and the file that keeps the last run."""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, cores and versions that matter."""
    import numpy
    import torch

    from raybone.data.ingest.parallel import cores

    lines = (
        Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if Path("/proc/cpuinfo").exists()
        else []
    )
    model = next(
        (li.split(":", 1)[1].strip() for li in lines if li.startswith("model name")),
        platform.machine(),
    )
    return {
        "processor": model,
        "cores": cores(),
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def by_turns(runs: Mapping[str, Callable[[Path], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, all of them once in every round, so that what else the machine does
    meets all alike.

    Each run gets an empty folder, which is removed, and the disk is left to finish writing, before
    the next.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                run(Path(folder))
                seconds[name].append(time.perf_counter() - began)
            os.sync()
    return seconds


def median(seconds: list[float]) -> float:
    """The median of the rounds."""
    return statistics.median(seconds)


def keep(name: str, result: dict[str, Any]) -> None:
    """Write results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(
        json.dumps({"machine": machine(), **result}, indent=1) + "\n", encoding="utf-8"
    )
