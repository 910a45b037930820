"""A search by a race beside exhaustive cross-validation, trained once each: seconds, fold epochs,
and which configuration is picked.

    python benchmarks/end_to_end.py STUDY.yaml PLACE [SCHEDULER]

Both run on a local Ray, one after the other, with the study's seed; what is there is resumed. A
pick is judged by the scores of exhaustive cross-validation.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import machine

from raybone.cli import main
from raybone.results.study_folder import StudyFolder
from raybone.study.space import identity


def searched(study: str, place: Path, scheduler: str) -> StudyFolder:
    """A study, run to its end."""
    words = ["search", study, "--out", str(place), "--set", f"search.scheduler={scheduler}"]
    if code := main(words):
        raise SystemExit(code)
    return StudyFolder(place)


def told(folder: StudyFolder, judge: dict[str, float]) -> dict[str, Any]:
    """What a search cost, and how good its pick is in the eyes of the judge."""
    best = folder.winner()
    assert best
    state, score = folder.state, judge.get(identity(best.params))
    if score is None:
        raise SystemExit(f"{folder.url}: its pick {best.params} is not complete in the full search")
    return {
        "wall_seconds": round(state.seconds),
        "fold_seconds": round(state.train_seconds),
        "fold_epochs": state.fold_epochs,
        "began": len(state.configurations),
        "pick": best.params,
        "own_score": round(judge_of(folder)[identity(best.params)], 4),
        "judged": round(score, 4),
        "rank": 1 + sum(other > score for other in judge.values()),
    }


def judge_of(folder: StudyFolder) -> dict[str, float]:
    """Mean over the folds of the last epoch, of each complete configuration."""
    study = folder.study
    return {
        identity(c.params): c.mean(study.resolved.folds, study.epochs, study.metric)
        for c in folder.state.configurations.values()
        if c.status == "complete"
    }


def compared(study: str, place: Path, scheduler: str) -> dict[str, Any]:
    """Both searches, and their ratios."""
    full, race = (searched(study, place / how, how) for how in ("full", scheduler))
    judge, spec = judge_of(full), full.study
    rows = {"full": told(full, judge), scheduler: told(race, judge)}
    ratios = {
        key: round(rows["full"][key] / rows[scheduler][key], 2)
        for key in ("wall_seconds", "fold_seconds", "fold_epochs")
    }
    shape = {"folds": spec.resolved.folds, "epochs": spec.epochs, "trials": spec.search.trials}
    return {"study": spec.name, "model": spec.names, **shape, **rows, "ratios": ratios}


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        raise SystemExit(__doc__)
    result = compared(sys.argv[1], Path(sys.argv[2]), (sys.argv[3:] or ["cohort_race"])[0])
    print(result)
    machine.keep("end_to_end", result)
