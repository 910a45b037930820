"""How many of a study's best configurations are best together, by what they say of patients that
none of the networks has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raybone.deploy.calibrate import said_of
from raybone.errors import WrongInput
from raybone.metrics.operating_point import Cases
from raybone.models._model import TrainingConfig, portable
from raybone.results.study_folder import ConfigurationFolder
from raybone.tasks import configured
from raybone.tasks.groups import Scorer
from raybone.train.samples import FoldJob
from raybone.types import Finding

# What of a configuration says how scans are given to its network.
LOOK = ("categories", "imgsz", "montage", "target")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Candidate:
    """A configuration whose networks may join: its place in the leaderboard, and the weights of its
    fold models.
    """

    folder: ConfigurationFolder
    rank: int
    config: TrainingConfig
    states: Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Together:
    """Configurations, and what their networks say together of the patients that these have not
    seen.

    findings, cases: of each fold; none where predictions are gone. score: ``metric``, and its mean
    over the folds, each by the number of configurations that the others choose (cross-fitted), as
    ``METRIC_mean``. by_number: the mean over the folds of the first, the first two and so on.
    """

    members: list[Candidate]
    findings: list[list[Finding]]
    cases: list[Cases]
    score: Mapping[str, Any] = field(default_factory=dict)
    by_number: Sequence[float] = ()

    @property
    def kind(self) -> str:
        """In words."""
        several = len(self.members)
        return f"ensemble of {several} configurations" if several > 1 else "fold ensemble"

    def told(self) -> dict[str, Any] | None:
        """How many were tried and taken, for JSON; None where there was one alone."""
        if not self.by_number:
            return None
        taken = [
            {"config_id": m.folder.id, "rank": m.rank, "params": portable(m.folder.params)}
            for m in self.members
        ]
        return {"configurations": taken, "by_number": [*self.by_number], **self.score}


def candidates(
    folder: ConfigurationFolder, rows: Sequence[Mapping[str, Any]], most: int, folds: int
) -> list[Candidate]:
    """The best configurations of the model of ``folder``, the first, that are given scans as it is.

    Args:
        rows: of the leaderboard, from that of ``folder`` on.
    Raises:
        WrongInput: there are no two, or the weights of one are gone.
    """
    study, found = folder.folder.study, list[Candidate]()
    model, first = configured(study, folder.params)
    for row in rows:
        own = folder.folder.configuration(row["config_id"])
        other, config = configured(study, own.params)
        if other.name != model.name or _look(config) != _look(first):
            continue
        states = [own.weights(k) for k in range(folds)]
        known = [state for state in states if state]
        if len(known) < folds:
            fewer = f"ask for --best {len(found)}" if len(found) > 1 else "leave it out"
            raise WrongInput(
                f"--best {most}: the weights of {own.id}, rank {row['rank']}, must be there for "
                f"every fold, but are gone, as keep is {study.keep}; {fewer}, or give "
                "keep a larger number before a search"
            )
        found.append(Candidate(own, int(row["rank"]), config, known))
        if len(found) == most:
            break
    if len(found) < 2:
        raise WrongInput(
            f"--best {most}: needs another complete configuration of {model.name} with the same "
            f"{', '.join(LOOK[:3])} as {folder.id}, but there is none; leave it out"
        )
    return found


def best_together(
    job: FoldJob,
    several: Sequence[Candidate],
    metric: str,
    device: torch.device,
    progress: Progress = lambda done, total: None,
) -> Together:
    """Score the first, the first two and so on, and take the best number of them.

    Each scan is predicted by the networks of its own fold alone. The order of candidates is the
    leaderboard's, which has seen all folds: as much as that favours the first, it favours this.

    Args:
        job: the first configuration, whichever its fold.
        several: as ``candidates`` gives them.
        metric: of the study; the task's usual one where it is none of findings.
    Raises:
        WrongInput: the metric is undefined in a fold.
    """
    scorer, folds = Scorer.by(metric, job.task, job.dataset), range(job.dataset.folds)
    said_KN = [
        said_of(replace(job, fold=k), [(c.config, c.states[k]) for c in several], device, progress)
        for k in folds
    ]
    score_KN = np.array(
        [[job.task.score(said.outcome())[scorer.metric] for said in own] for own in said_KN]
    )
    if not np.isfinite(score_KN).all():  # such as PPV where nothing is called positive
        raise WrongInput(
            f"--best {len(several)}: {scorer.metric} must be defined in every fold for each number "
            "of configurations, but is not; leave it out, or ask for fewer"
        )
    better_KN = score_KN * scorer.sign
    best = int(better_KN.mean(0).argmax())
    of_others = [int(np.delete(better_KN, k, axis=0).mean(0).argmax()) for k in folds]
    crossed = float(score_KN[list(folds), of_others].mean())
    chosen = [own[best] for own in said_KN]
    return Together(
        list(several[: best + 1]),
        [said.findings for said in chosen],
        [said.cases() for said in chosen],
        {"metric": scorer.metric, f"{scorer.metric}_mean": round(crossed, 6)},
        score_KN.mean(0).round(6).tolist(),
    )


def _look(config: TrainingConfig) -> dict[str, Any]:
    return {name: getattr(config, name, None) for name in LOOK}
