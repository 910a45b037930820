"""Recorded curves of the same configurations under several seeds as one table.

    python benchmarks/join.py RUN RUN... OUT.npz

Each RUN is a study folder of `raybone search --record`; configurations are told by their
hyper-parameters, and those that one run lacks are left out.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np

from raybone.results.study_folder import StudyFolder
from raybone.simulation.curves import curves_of
from raybone.study.space import identity


def table_of(url: str) -> tuple[dict[str, int], dict[str, Any]]:
    """Rows by the identity of their hyper-parameters, and the arrays of a run's table."""
    folder = StudyFolder(url)
    content, _ = curves_of(url, folder.study, folder.state)
    arrays = dict(np.load(io.BytesIO(content)))
    full = [c for c in folder.state.configurations.values() if c.status == "complete"]
    if len(full) != len(arrays["T"]):
        raise SystemExit(f"{url}: {len(full)} configurations are complete, {len(arrays['T'])} told")
    return {identity(c.params): row for row, c in enumerate(full)}, arrays


def main(runs: list[str], out: str) -> None:
    """Write the table of what all runs have."""
    tables = [table_of(run) for run in runs]
    first, arrays = tables[0]
    kept = [key for key in first if all(key in rows for rows, _ in tables)]
    rows = [[own[key] for key in kept] for own, _ in tables]
    joined = {
        name: array[rows[0]] if array.ndim and len(array) == len(first) else array
        for name, array in arrays.items()
    }
    joined["T"] = np.concatenate([a["T"][r] for (_, a), r in zip(tables, rows)], axis=1)
    joined["cost"] = np.mean([a["cost"][r] for (_, a), r in zip(tables, rows)], axis=0)
    np.savez_compressed(out, **joined)
    print(f"{out}: {len(kept)} configurations of {len(first)}, {joined['T'].shape[1]} seeds")


if __name__ == "__main__":
    if len(sys.argv) < 4 or not all(Path(run).is_dir() for run in sys.argv[1:-1]):
        raise SystemExit(__doc__)
    main(sys.argv[1:-1], sys.argv[-1])
