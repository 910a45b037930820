"""A search with four workers at once on four Ray nodes: how much of their time is training, and how
much is not.

    python benchmarks/cluster.py [--short]

Nodes are processes of this machine with one CPU each, so an epoch lasts longer where they are more
than its cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import machine
import pandas as pd

import raybone.run.ray  # noqa: F401  sets what Ray reads when it is imported

# cluster_utils writes an address there, which in Ray's own folder others would join.
os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="rb-")

from ray.cluster_utils import Cluster
from ray.util import placement_group_table

from raybone.data.ingest.prepare import prepare
from raybone.hpo.brain import Brain
from raybone.hpo.journal import Journal
from raybone.phantom.phantom import phantom
from raybone.results.terminal import progress
from raybone.run.ray.cluster import Cluster as Address
from raybone.run.ray.tuner import search
from raybone.storage import Folder
from raybone.study.files import parse_study

NODES = 4
# Epochs take about 15 s of a core that they have for themselves, or 1 s with --short.
SIZES = {
    "long": {"patients": 27, "epochs": 5, "trials": 4, "imgsz": 512, "width": 16},
    "short": {"patients": 12, "epochs": 12, "trials": 4, "imgsz": 256, "width": 16},
}


def study(dataset: Path, scheduler: str, size: dict[str, int]) -> dict[str, Any]:
    """A real study of a U-Net whose first rung is within reach of few epochs."""
    return {
        "name": f"cluster-{scheduler}",
        "dataset": str(dataset),
        "model": "unet",
        "epochs": size["epochs"],
        "metric": "dice",
        "fixed": {"batch": 1, "nbs": 1, "width": size["width"], "depth": 3, "imgsz": size["imgsz"]},
        "space": {"lr0": {"log_uniform": [1e-4, 3e-2]}, "fliplr": {"uniform": [0, 0.5]}},
        "search": {"trials": size["trials"], "sampler": "sobol", "scheduler": scheduler, "seed": 0},
        "resources": {"workers": 1, "cpus": 1, "concurrent": NODES},
    }


class Placed:
    """Adds up how long slots hold their places; the search calls it a few times a second.

    A slot's place is a placement group that asks for a CPU; a trial's own asks for none.
    """

    def __init__(self) -> None:
        self.slot_seconds, self.runs = 0.0, set[str]()
        self._last, self._tell = time.monotonic(), progress()

    def __call__(self, brain: Brain) -> None:
        self._tell(brain)
        held = {
            g["placement_group_id"]
            for g in placement_group_table().values()
            if g["state"] == "CREATED" and any("CPU" in bundle for bundle in g["bundles"].values())
        }
        now = time.monotonic()
        self.slot_seconds += len(held) * (now - self._last)
        self.runs |= held
        self._last = now


def shares(out: Path, placed: Placed) -> dict[str, Any]:
    """Where the time of the slots went, from the journal of a study and what was placed."""
    events = pd.DataFrame(Journal(Folder(out)).events())
    work, epochs = events[events["event"] == "work"], events[events["event"] == "epoch"]
    first, end, trained = work["time"].min(), events["time"].max(), epochs["seconds"].sum()
    return {
        "configurations": int((events["event"] == "config").sum()),
        "rungs_run": len(work),
        "training_runs": len(placed.runs),
        "fold_epochs": len(epochs),
        "epoch_seconds": float(epochs["seconds"].median()),
        "training_seconds": float(trained),
        "placed_seconds": placed.slot_seconds,
        "wall_seconds": float(end - first),
        "lost_seconds_a_run": (placed.slot_seconds - float(trained)) / len(placed.runs),
        "orchestration_share": 1 - float(trained) / placed.slot_seconds,
        "busy_share": float(trained / (NODES * (end - first))),
    }


def run(place: Path, scheduler: str, size: dict[str, int]) -> dict[str, Any]:
    """One search on a cluster of its own."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        for _ in range(NODES - 1):
            cluster.add_node(num_cpus=1)
        placed = Placed()
        reason = search(
            parse_study(study(place / "dataset", scheduler, size)),
            str(place / scheduler),
            Address(cluster.address),
            placed,
        )
    finally:
        cluster.shutdown()
        shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)
    return {"ended": str(reason), **shares(place / scheduler, placed)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="epochs of seconds, in minutes")
    short = parser.parse_args().short
    chosen, rows = SIZES["short" if short else "long"], {}
    with tempfile.TemporaryDirectory() as folder:
        cohort = phantom(Path(folder) / "cohort", patients=chosen["patients"], seed=0)
        prepare(cohort, Path(folder) / "dataset", folds=3, key=cohort.with_suffix(".key"))
        for name in ("full", "fold_race"):
            # A process of its own for each, as a process that has had one Ray cluster remembers it.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                rows[name] = pool.submit(run, Path(folder), name, chosen).result()
            print(name, json.dumps(rows[name]), flush=True)
            kept = {"nodes": NODES, "size": chosen, "searches": rows}
            machine.keep("cluster_short" if short else "cluster", kept)
    shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)
