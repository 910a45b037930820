"""What `refit --best` gains: networks of the best configurations together, out of fold, beside the
winner alone.

    python benchmarks/together.py STUDY ...

Each study must hold the weights of its best (`keep: 5`). The score by the number that the other
folds choose is free of that choice. The order of configurations is the leaderboard's, which has
seen all folds: it favours the winner alone as much.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from machine import keep

import raybone

BEST = 5


def row(study: str) -> dict[str, object]:
    """Scores of the first, the first two and so on, and by the number that other folds choose."""
    with tempfile.TemporaryDirectory() as place:
        meta = raybone.open_study(study).refit(Path(place) / "bundle", best=BEST).meta
    together = meta["together"]
    metric = together["metric"]
    return {
        "study": meta["name"],
        "metric": metric,
        "by_number": together["by_number"],
        "alone": together["by_number"][0],
        "crossed": together[f"{metric}_mean"],
    }


if __name__ == "__main__":
    rows = [row(study) for study in sys.argv[1:]]
    for found in rows:
        print(found)
    keep("together", {"rows": rows})
