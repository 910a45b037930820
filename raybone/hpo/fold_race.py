"""fold_race: successive halving over (folds, epochs), then a paired race over the remaining folds.

Rungs up to the first full-length one let the better part go on, as asynchronous successive halving
does; from there on a configuration gets more folds until it is clearly worse than the incumbent on
the same folds. Folds come in the same order for every configuration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from raybone.hpo.rungs import Rung
from raybone.hpo.state import Configuration
from raybone.study.spec import ResolvedStudy
from raybone.types import Decision

SMOOTH = 3  # epochs averaged for a decision
MEMORY = 40  # full configurations that the residual variance is estimated from
FIRST_STEPS = 130  # optimiser steps before which detectors from scratch score exactly 0
Ladder = tuple[tuple[int, int], ...]
Evidence = dict[str, float | int | str]


@dataclass(frozen=True)
class Rule:
    """The constants of the race.

    promotion: a configuration waits at a rung until it is among the better part; else it is judged
    once, as it arrives. slack: standard errors behind the incumbent at which a configuration is
    dropped. prior_sd, prior_weight: prior of the configuration x fold residual, in units of the
    metric and of observations. relative: prior_sd is a share of the best score instead, as that of
    a metric which is no share itself must be. finalists: configurations that run in full at the
    least, as a winner needs a rival for its paired test; so many are not dropped from the race,
    however far behind, nor is the last of a model. races: whether full-length rungs are a race;
    else the last rung is the only one that all of the better part reach.
    """

    factor: float = 2.25
    promotion: bool = True
    slack: float = 1.5
    prior_sd: float = 0.015
    prior_weight: float = 10.0
    relative: bool = False
    finalists: int = 2
    races: bool = True


@dataclass(frozen=True)
class Next:
    """What a free worker should do: take a configuration to a rung, and why."""

    config_id: str
    rung: int
    reason: str
    evidence: Evidence = field(default_factory=dict)


def ladder(epochs: int, folds: int, steps_per_epoch: float) -> Ladder:
    """Rungs as (folds, epochs): (1, .07E) (1, .19E) (2, E/3) (2, 2E/3) (3, E), then folds 4, 6, 8
    ... K at E.

    No rung comes before FIRST_STEPS optimiser steps. Rungs that this makes equal are one.
    """
    least = min(epochs, math.ceil(FIRST_STEPS / steps_per_epoch))
    wanted = [
        (1, 0.07),
        (1, 0.19),
        (2, 1 / 3),
        (2, 2 / 3),
        (3, 1.0),
        *((k, 1.0) for k in range(4, folds, 2)),
        (folds, 1.0),
    ]
    rungs: list[tuple[int, int]] = []
    for k, share in wanted:
        rung = (min(k, folds), max(least, round(share * epochs), 1))
        # Below three folds a rung hardly longer than the one before it decides too early: with such
        # rungs, the recorded detector takes 1.5 times fewer epochs at 1.8 times the regret.
        if rungs and rung[1] < 1.25 * rungs[-1][1] and rung[0] < min(3, folds):
            continue
        if not rungs or rung > rungs[-1]:
            rungs.append(rung)
    return tuple(rungs)


def scores(
    study: ResolvedStudy, configuration: Configuration, rung: int
) -> tuple[list[float], float]:
    """Scores of the folds of a rung, and the tie-breaker: more is better, NaN where not there.

    A fold's score is the mean of the metric over the last epochs; validation loss breaks ties, as
    early AP is exactly 0 for all, but not between models, whose losses differ in kind: there who
    arrived first stands first.
    """
    folds, epochs = study.resolved.ladder[rung]
    values = [
        study.sign * configuration.fold_score(k, epochs, study.metric, SMOOTH) for k in range(folds)
    ]
    if len(study.names) > 1:
        return values, 0.0
    return values, -configuration.mean(folds, epochs, "val_loss", SMOOTH)


def score(study: ResolvedStudy, configuration: Configuration, rung: int) -> float:
    """Mean over a rung's folds of the smoothed metric, more is better; -inf for NaN or a crash."""
    values, _ = scores(study, configuration, rung)
    value = sum(values) / len(values)
    return value if math.isfinite(value) else -math.inf


def name_of(rungs: Ladder, rung: int) -> str:
    """A rung in words, such as ``2 folds x 30 epochs``."""
    folds, epochs = rungs[rung]
    return f"{folds} fold{'s' * (folds > 1)} x {epochs} epoch{'s' * (epochs > 1)}"


class Race:
    """The rungs of one search: scores in, decisions out. A decision costs O(log n) of n
    configurations.

    Args:
        rungs: (folds, epochs) of each rung, the last one is the full run.
        sign: -1 when scores are those of a metric to minimise, turned over; reasons and evidence
            then show the metric.
    """

    def __init__(self, rungs: Ladder, rule: Rule = Rule(), sign: int = 1) -> None:
        self.ladder, self.rule, self.sign, self.first = rungs, rule, sign, 0
        last_folds, last_epochs = rungs[-1]
        self.full = (
            next(
                i for i, (k, e) in enumerate(rungs) if e == last_epochs and k >= min(3, last_folds)
            )
            if rule.races
            else len(rungs) - 1
        )
        self.rungs = [Rung(rule.factor) for _ in rungs]
        self.folds: dict[str, tuple[float, ...]] = {}
        self.failed: set[str] = set()
        # Those that run in full, or have run: racing and complete ones.
        self.contenders: set[str] = set()
        self.model_of: dict[str, str] = {}
        self._complete: list[str] = []
        self._variance: float | None = None

    def next_new(self) -> str:
        """Which configuration should begin: whichever is proposed."""
        return ""

    def arrive(
        self, config_id: str, rung: int, folds: Sequence[float], tie: float = 0.0, model: str = ""
    ) -> None:
        """A configuration of a model has finished a rung with these scores of its folds, more is
        better; NaN is the worst.
        """
        self.folds[config_id], self.model_of[config_id] = tuple(folds), model
        self.rungs[rung].arrive(config_id, sum(folds) / len(folds), tie)
        if rung >= self.full and math.isfinite(sum(folds)):
            self.contenders.add(config_id)
        else:
            self.contenders.discard(config_id)
        if rung == len(self.ladder) - 1:
            self._complete.append(config_id)
            self._variance = None

    def go(self, config_id: str, rung: int) -> None:
        """A configuration is on its way to a rung."""
        for before in self.rungs[:rung]:
            before.leave(config_id)

    def end(self, config_id: str, how: Literal["complete", "stop", "drop", "failed"]) -> None:
        """Remove a finished configuration from all rungs; none is compared with one that failed, or
        that a person dropped.
        """
        for rung in self.rungs:
            rung.leave(config_id)
        if how in ("drop", "failed"):
            self.failed.add(config_id)
        if how != "complete":
            self.contenders.discard(config_id)

    def next_step(self, idle: int = 0) -> Next | None:
        """The waiting configuration that deserves a free worker most, or None: then a new one is
        due.

        Args:
            idle: workers that nothing else will want; a configuration in the race then takes as
                many more folds as they can train at once, instead of those of its next rung alone.
        """
        last = len(self.ladder) - 1
        for number in reversed(range(self.full, last)):
            if best := self.rungs[number].best:
                to, most = number + 1, self.ladder[number][0] + idle
                while to < last and self.ladder[to + 1][0] <= most:
                    to += 1
                return Next(best, to, *self._why_in(best, number))
        for number in reversed(range(self.full)):
            rung = self.rungs[number]
            if best := rung.promotable() if self.rule.promotion else rung.best:
                return Next(best, number + 1, *self._why_up(best, number))
        return None

    def last_push(self) -> Next | None:
        """When nothing else is to be done: of the highest rung the best one, while too few
        configurations ran in full, or of a model of which none did, as models are compared by
        their best.
        """
        count, ran = len(self.contenders), {self.model_of[c] for c in self.contenders}
        for number in reversed(range(len(self.ladder) - 1)):
            level = self.rungs[number]
            for *_, name in level.waiting:
                few, model = count < self.rule.finalists, self.model_of[name]
                if math.isfinite(level.score(name)) and (few or model not in ran):
                    words = (
                        f"{count if few else f'none of {model}'} ran in full at the end of the "
                        f"search: best of those waiting at {name_of(self.ladder, number)}"
                    )
                    score = self.sign * level.score(name)
                    return Next(name, number + 1, words, {"score": score})
        return None

    def judge(self, config_id: str, rung: int) -> Decision | None:
        """What follows for a configuration from the rung where it has just arrived: complete, stop,
        or None (wait).
        """
        if rung == len(self.ladder) - 1:
            folds, epochs = self.ladder[rung]
            return Decision(config_id, "complete", rung, f"all {folds} folds at {epochs} epochs")
        if rung < self.full:
            if (
                self.rule.promotion
                or len(self.rungs[rung].ranked) < 2
                or self.rungs[rung].passes(config_id)
            ):
                return None
            return Decision(config_id, "stop", rung, *self.why_out(config_id, rung))
        if config_id not in self.contenders:
            return Decision(
                config_id, "stop", rung, f"its score at {name_of(self.ladder, rung)} is not finite"
            )
        rival = self.incumbent(config_id, rung)
        model = self.model_of[config_id]
        alone = all(self.model_of[c] != model for c in self.contenders - {config_id})
        if rival is None or alone or len(self.contenders) <= self.rule.finalists:
            return None
        lead, evidence = self._pair(config_id, rival, rung)
        spread, folds = evidence["standard_error"], self.ladder[rung][0]
        if lead >= -self.rule.slack * spread:
            return None
        return Decision(
            config_id,
            "stop",
            rung,
            f"{-lead:.4f} behind {rival} on the same {folds} folds, over {self.rule.slack:g} "
            f"standard errors of {spread:.4f}",
            {**evidence, "against": rival},
        )

    def incumbent(self, config_id: str, rung: int) -> str | None:
        """The best complete configuration; while there is none, the best other one that has
        finished this rung.
        """
        for number in (len(self.ladder) - 1, rung):
            for key in self.rungs[number].ranked:
                if key[3] != config_id and key[3] not in self.failed and key[0] < math.inf:
                    return key[3]
        return None

    def why_out(self, config_id: str, rung: int) -> tuple[str, Evidence]:
        """Why a configuration is not among those that go on from a rung, in words and in
        numbers.
        """
        level = self.rungs[rung]
        words, evidence = self._standing(config_id, rung)
        if not level.quota:
            return words, evidence
        last = level.ranked[level.quota - 1][3]
        score, beside = self._beside(config_id, last, rung)
        if level.place(config_id) < level.quota:
            return f"{words}; the search ended before its turn", evidence | beside
        words += f"; the best {level.quota} go on, down to {last} with {score}"
        return words, evidence | beside

    def residual_variance(self) -> float:
        """Variance of configuration x fold residuals of the last complete configurations, shrunk to
        a prior.
        """
        if self._variance is None:
            table_NK = np.array([self.folds[c] for c in self._complete[-MEMORY:]]).reshape(
                -1, self.ladder[-1][0]
            )
            table_NK = table_NK[np.isfinite(table_NK).all(1)]
            squares, freedom = 0.0, 0
            if len(table_NK) > 1:
                rest_NK = (
                    table_NK - table_NK.mean(0) - table_NK.mean(1, keepdims=True) + table_NK.mean()
                )
                squares, freedom = (
                    float((rest_NK**2).sum()),
                    (len(table_NK) - 1) * (table_NK.shape[1] - 1),
                )
            weight, prior_sd = self.rule.prior_weight, self.rule.prior_sd
            if self.rule.relative:
                known = table_NK if len(table_NK) else [*self.folds.values()]
                means = [m for m in map(np.mean, known) if math.isfinite(m)]
                prior_sd *= abs(float(max(means, default=1.0)))
            variance = (weight * prior_sd**2 + squares) / (weight + freedom)
            if not len(table_NK):
                return variance  # how large scores are is not settled
            self._variance = variance
        return self._variance

    def _pair(self, config_id: str, rival: str, rung: int) -> tuple[float, dict[str, float]]:
        """How far a configuration leads another on the folds that it has, and the evidence."""
        done, total = self.ladder[rung][0], self.ladder[-1][0]
        mine, theirs = self.rungs[rung].score(config_id), sum(self.folds[rival][:done]) / done
        spread = math.sqrt(2 * self.residual_variance() * (1 / done - 1 / total))
        return mine - theirs, {
            "score": self.sign * mine,
            "rival": self.sign * theirs,
            "folds": done,
            "standard_error": spread,
        }

    def _why_in(self, config_id: str, rung: int) -> tuple[str, Evidence]:
        rival = self.incumbent(config_id, rung)
        if rival is None:
            score = self.sign * self.rungs[rung].score(config_id)
            return "first at full length: more folds", {"score": score}
        lead, pair = self._pair(config_id, rival, rung)
        slack = self.rule.slack * pair["standard_error"]
        return (
            f"{'kept as a rival' if lead < -slack else 'still in the race'}: {abs(lead):.4f} "
            f"{'ahead of' if lead >= 0 else 'behind'} {rival} on the same {self.ladder[rung][0]} "
            f"folds, {self.rule.slack:g} standard errors are {slack:.4f}",
            {**pair, "against": rival},
        )

    def _why_up(self, config_id: str, rung: int) -> tuple[str, Evidence]:
        level = self.rungs[rung]
        words, evidence = self._standing(config_id, rung)
        if not 0 < level.quota < len(level.ranked):
            return words, evidence
        below = level.ranked[level.quota][3]
        score, beside = self._beside(config_id, below, rung)
        words += f": one of the best {level.quota}; next below is {below} with {score}"
        return words, evidence | beside

    def _standing(self, config_id: str, rung: int) -> tuple[str, Evidence]:
        """The rank of a configuration among all that have arrived at a rung."""
        level = self.rungs[rung]
        rank, of = level.place(config_id) + 1, len(level.ranked)
        score = self.sign * level.score(config_id)
        words = f"rank {rank} of {of} at {name_of(self.ladder, rung)}"
        return words, {"score": score, "rank": rank, "of": of}

    def _beside(self, config_id: str, other: str, rung: int) -> tuple[str, Evidence]:
        """Another one's score, and what decides between the two when it is the same."""
        level = self.rungs[rung]
        score = self.sign * level.score(other)
        mine, theirs = level.arrived[config_id], level.arrived[other]
        words = f"{score:.4f}"
        if mine[0] == theirs[0]:
            by = "arrival" if mine[1] == theirs[1] else "validation loss"
            words += f", the same: {by} decides"
        return words, {"against": other, "rival": score}
