"""cohort_race: rungs over (folds, epochs) that are decided once, when all that are bound for them
have arrived.

A pilot finds the first rung at which scores are alive; a model of the hyper-parameters keeps those
from starting that have no chance; a few finalists run in full. State is a function of scores, not
of the order in which they arrive, so that a restart decides the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtr, ndtri

from raybone.hpo.cohort_plan import CohortRule, climb, normal_scores, stages
from raybone.hpo.fold_race import Evidence, Ladder, Next, name_of
from raybone.hpo.rungs import Rung
from raybone.hpo.surrogate import modelled
from raybone.types import Array, Decision

FEWEST_TO_MODEL = 8  # arrivals below which the model of the hyper-parameters is not asked
WIDE = 2  # folds that finalists lack, for each worker, at which they train them all at once
PRIOR, WEIGHT = 0.03, 4  # of the residuals: a share of the best score, and observations


@dataclass(frozen=True)
class _Verdict:
    """A rung that was decided: its configurations, best first, and how many of them go on."""

    order: tuple[str, ...]
    room: int
    by_model: bool
    places: dict[str, int]

    def why(self, config_id: str, level: Rung, sign: int) -> tuple[str, Evidence]:
        """A configuration's place among them, and the other side of the cut."""
        place = self.places[config_id]
        goes = place < self.room
        beside = self.order[self.room : self.room + 1] if goes else self.order[: self.room][-1:]
        words = f"one of the {self.room} that go on" if goes else f"the best {self.room} go on"
        evidence: Evidence = {"rank": place + 1, "of": len(self.order)}
        for other in beside:
            rival = sign * level.score(other)
            words += f"{'; next is' if goes else ', down to'} {other} with {rival:.4f}"
            evidence |= {"against": other, "rival": rival}
        return words, evidence


class CohortRace:
    """The rungs of one search: scores in, decisions out.

    Args:
        trials: configurations of the search.
        sign: -1 when scores are those of a metric to minimise, turned over.
        pool: features of all of them by a key, where they are known before the search; else they
            are proposed on the way, and none is kept from starting.
    """

    def __init__(
        self,
        rungs: Ladder,
        trials: int,
        rule: CohortRule,
        sign: int = 1,
        pool: Mapping[str, Array] | None = None,
    ) -> None:
        self.ladder, self.trials, self.rule = rungs, trials, rule
        self.sign, self.pool = sign, pool
        self.workers = 1  # that finalists' last folds may occupy at once
        self.first = 0  # rung to which a new configuration goes
        # Of those that do not start, their chance to get on
        self.skipped: dict[str, float] = {}
        folds, epochs = rungs[-1]
        self._plan, self._stage = stages(epochs, folds, rule.keep), 0
        self._phase: Literal["pilot", "gate", "cohorts", "over"] = "pilot"
        self._batch = max(10, trials // 8)
        self._begun, self._x = dict.fromkeys(pool or (), False), dict[str, Array | None]()
        self._waiting = self._untried()[: self._batch]
        self._cohort, self._ahead, self._size = set[str](), set[str](), float(trials)
        self._rung = 0  # that is decided next
        self._queue: dict[str, int] = {}  # rungs to which they go
        self._rungs = [Rung(1) for _ in rungs]
        self._absent = set[str]()  # that the rung waits for
        self._full: dict[str, tuple[float, ...]] = {}
        self._model: dict[str, str] = {}
        self._verdicts: dict[int, _Verdict] = {}

    def next_new(self) -> str | None:
        """The key of the configuration that should begin, empty for whichever is proposed; None:
        wait, or none is worth it.
        """
        return self._waiting[0] if self._waiting else None

    def exhaust(self) -> None:
        """There is nothing more to propose."""
        self._waiting, self.trials = [], len(self._x)
        self._begun = {key: begun for key, begun in self._begun.items() if begun}
        self._settle()

    def begin(self, config_id: str, key: str, x: Array | None, model: str = "") -> None:
        """A configuration of these features begins."""
        self._x[config_id], self._model[config_id] = x, model
        self._cohort.add(config_id)
        self._absent.add(config_id)
        if key in self._begun:
            self._begun[key] = True
        self._waiting.remove(key if key in self._waiting else "")

    def go(self, config_id: str, rung: int) -> None:
        """A configuration is on its way to a rung."""
        if config_id in self._queue:
            del self._queue[config_id]
        elif rung > self._rung:
            self._ahead.add(config_id)
        for before in self._rungs[:rung]:
            before.leave(config_id)

    def arrive(
        self, config_id: str, rung: int, folds: Sequence[float], tie: float = 0.0, model: str = ""
    ) -> None:
        """A configuration has finished a rung with these scores of its folds, more is better; NaN
        is the worst.
        """
        del tie, model  # scores are alive before they count, and the model is known since it began
        epochs = self.ladder[rung][1]
        for number, (count, end) in enumerate(self.ladder):
            # At full length, more folds say what fewer would have.
            same = number == rung or (end == epochs == self.ladder[-1][1] and count <= len(folds))
            if same and config_id not in self._rungs[number].arrived:
                self._rungs[number].arrive(config_id, sum(folds[:count]) / count)
        for before in self._rungs[:rung]:
            before.leave(config_id)
        if self._is_at(config_id):
            self._absent.discard(config_id)
        if epochs == self.ladder[-1][1]:
            self._full[config_id] = tuple(folds)
        self._settle()

    def refuse(self, key: str, instead: str, x: Array | None) -> None:
        """The model refuses a configuration of the pool; another one takes its place, if there is
        any.
        """
        assert self.pool is not None
        self.pool = {k: v for k, v in self.pool.items() if k != key}
        self._begun.pop(key)
        if instead and x is not None:
            self.pool[instead], self._begun[instead] = x, False
        self._waiting = [k for w in self._waiting if (k := instead if w == key else w)]
        self._settle()

    def end(self, config_id: str, how: Literal["complete", "stop", "failed"]) -> None:
        """A configuration is finished; nobody waits for one that failed."""
        if how != "complete":
            self._cohort.discard(config_id)
            self._ahead.discard(config_id)
        self._absent.discard(config_id)
        for rung in self._rungs:
            rung.leave(config_id)
        self._queue.pop(config_id, None)
        self._settle()

    def next_step(self, idle: int = 0) -> Next | None:  # noqa: ARG002
        """The configuration that goes on next, or None: wait, or a new one is due."""
        if self._queue:
            config_id, rung = next(iter(self._queue.items()))
            return Next(config_id, rung, *self._why(config_id))
        return self._early() if self._phase == "cohorts" else None

    def last_push(self) -> Next | None:
        """Nothing: finalists run to the end by themselves."""
        return None

    def judge(self, config_id: str, rung: int) -> Decision | None:
        """Complete, or None: it waits for the others."""
        if rung < len(self.ladder) - 1:
            return None
        folds, epochs = self.ladder[rung]
        return Decision(config_id, "complete", rung, f"all {folds} folds at {epochs} epochs")

    def why_out(self, config_id: str, rung: int) -> tuple[str, Evidence]:  # noqa: ARG002
        """Why a configuration did not go on, in words and in numbers."""
        return self._why(config_id)

    # -- decisions

    def _is_at(self, config_id: str) -> bool:
        return config_id in self._rungs[self._rung].arrived

    def _scores(self, rung: int, names: Iterable[str]) -> Array:
        """Scores of configurations at a rung, -inf for those that are not there."""
        level = self._rungs[rung]
        return np.array([level.score(c) if c in level.arrived else -math.inf for c in names])

    def _settle(self) -> None:
        """Decide a rung that is full."""
        while not self._queue and not self._waiting and not self._absent:
            if self._phase == "pilot":
                self._pilot()
            elif self._phase == "gate":
                self._admit()
            elif self._phase == "cohorts":
                self._cut()
            else:
                return

    def _pilot(self) -> None:
        """The pilots climb to the first rung at which scores are alive."""
        steps = [(1, e) for e in climb(self.ladder[-1][1])]
        here = steps.index(self.ladder[self.first])
        if (
            not self._cohort
            or here == len(steps) - 1
            or (here > 0 and self._alive(steps[here - 1]))
        ):
            self._phase = "gate"
            return
        self.first = self._rung = self.ladder.index(steps[here + 1])
        self._queue = {c: self.first for c in sorted(self._cohort) if not self._is_at(c)}
        self._absent = set(self._queue)

    def _alive(self, before: tuple[int, int]) -> bool:
        """Whether scores are distinct, the better quarter is stable, and it has ceased to leap."""
        names = sorted(self._cohort)
        then, now = self._scores(self.ladder.index(before), names), self._scores(self.first, names)
        if len(np.unique(now)) < len(now) / 2:
            return False
        quarter = np.argsort(-now, kind="stable")[: max(2, math.ceil(len(now) / 4))]
        medians = abs(float(np.median(then[quarter]))), abs(float(np.median(now[quarter])))
        if not min(medians) >= self.rule.grow * max(medians):
            return False
        place = np.array([(then > v).sum() + ((then == v).sum() - 1) / 2 for v in then[quarter]])
        return bool((place < math.ceil(len(now) / 2)).mean() >= self.rule.alive)

    def _admit(self) -> None:
        """The next batch: of a known pool those that the model of the hyper-parameters gives a
        chance, the most promising first; each batch is twice as large.
        """
        left = self._untried()
        few = len(self._rungs[self.first].arrived) < FEWEST_TO_MODEL
        if self.pool is not None and left and not few:
            chance = self._chances({key: self.pool[key] for key in left})
            order = sorted(left, key=lambda key: -chance[key])
            left = [key for key in order if chance[key] >= self.rule.gate]
            self.skipped = {} if left else chance
        if left:
            self._waiting = left[: self._batch]
            self._batch *= 2
        else:
            self._phase = "cohorts"

    def _untried(self) -> list[str]:
        if self.pool is None:
            return [""] * (self.trials - len(self._x))
        return [key for key, begun in self._begun.items() if not begun]

    def _chances(self, pool: Mapping[str, Array]) -> dict[str, float]:
        """Chance of each to be among the share that is kept, by the scores of those that have
        arrived.
        """
        names = sorted(self._rungs[self.first].arrived)
        y_N = normal_scores(self._scores(self.first, names))
        mean_M, sd_M = modelled(self._features(names), y_N, np.array([*pool.values()], float))
        chance_M = 1 - ndtr((ndtri(1 - self.rule.keep) - mean_M) / sd_M)
        return dict(zip(pool, chance_M.tolist()))

    def _features(self, names: Sequence[str]) -> Array:
        return np.array([self._x[c] for c in names], float)

    def _cut(self) -> None:
        """Decide the rung where the cohort stands."""
        rung, stage = self._rung, self._next_stage()
        if stage is None:
            self._phase = "over"
            return
        self._stage, to, room, self._size = stage
        names = sorted(self._cohort)
        names = [c for c, v in zip(names, self._scores(rung, names)) if math.isfinite(v)]
        merit = self._merit(names, rung)
        order = sorted(names, key=lambda c: (c not in self._ahead, -merit[c]))
        best = self._close(order[:room], rung)
        for model in {self._model[c] for c in order} - {self._model[c] for c in best}:
            best.append(next(c for c in order if self._model[c] == model))
        folds, epochs = self.ladder[rung]
        last_folds, last_epochs = self.ladder[-1]
        if epochs == last_epochs and len(best) * (last_folds - folds) <= WIDE * self.workers:
            to = len(self.ladder) - 1
        # Of models, and of those that are close, also others than the first go on.
        order = [*best, *(c for c in order if c not in set(best))]
        places = {c: n for n, c in enumerate(order)}
        self._verdicts[rung] = _Verdict(tuple(order), len(best), self._by_model(order), places)
        ahead, self._cohort, self._ahead, self._rung = self._ahead, set(best), set(), to
        self._queue = {c: to for c in best if c not in ahead and not self._is_at(c)}
        self._absent = {c for c in best if not self._is_at(c)}
        if not best:
            self._phase = "over"

    def _next_stage(self) -> tuple[int, int, int, float] | None:
        """The number of the stage after the next, the rung to which those of this one go, how many,
        and the number that their share is of.
        """
        rung, here, epochs = self._rung, self.ladder[self._rung], self.ladder[-1][1]
        for number, stage in enumerate(self._plan[self._stage :], self._stage + 1):
            if stage.folds == 1 and stage.epochs < 1.25 * here[1]:
                continue
            if here == (1, epochs) and stage.epochs < epochs:
                continue  # at full length nobody is cut on fewer folds than a race needs
            end = max(stage.epochs, here[1])
            if (stage.folds, end) <= here:
                continue
            of_all = stage.of_all or rung == self.first
            share = self.rule.keep if rung == self.first and not stage.of_all else stage.share
            size = max(share * (self.trials if of_all else self._size), self.rule.finalists)
            to = next(i for i, (k, e) in enumerate(self.ladder) if k >= stage.folds and e >= end)
            return number, to, math.ceil(size - 1e-9), size
        return None

    def _early(self) -> Next | None:
        """Who goes on while a rung fills, as it does however the others end."""
        level, missing = self._rungs[self._rung], len(self._absent)
        best, stage = level.best, self._next_stage() if missing else None
        if stage is None or best is None:
            return None
        _, to, room, _ = stage
        folds, epochs = self.ladder[self._rung]
        rank, score = level.place(best) + 1, level.score(best)
        races = folds > 1 and epochs == self.ladder[-1][1]
        if races or rank + missing > room or not math.isfinite(score):
            return None
        words = (
            f"rank {rank} at {name_of(self.ladder, self._rung)}: among the best {room} however the "
            f"{missing} end that it waits for"
        )
        return Next(best, to, words, {"score": self.sign * score, "rank": rank})

    def _merit(self, names: Sequence[str], rung: int) -> dict[str, float]:
        """Mean of the normal score and of what the model of the hyper-parameters makes of it."""
        if not names:
            return {}
        z_N = normal_scores(self._scores(rung, names))
        if self._by_model(names):
            X_ND = self._features(names)
            z_N = (1 - self.rule.mix) * z_N + self.rule.mix * modelled(X_ND, z_N, X_ND)[0]
        return dict(zip(names, z_N.tolist()))

    def _by_model(self, names: Sequence[str]) -> bool:
        """Whether there is enough for a model of the hyper-parameters."""
        known = all(self._x[c] is not None for c in names)
        return known and len(names) >= FEWEST_TO_MODEL and self.rule.mix > 0

    def _close(self, best: list[str], rung: int) -> list[str]:
        """Of finalists, those that are not clearly behind the leader on the same folds, two at the
        least.
        """
        folds, epochs = self.ladder[rung]
        last_folds, last_epochs = self.ladder[-1]
        if epochs < last_epochs or folds == 1 or len(best) < 2:
            return best
        scores = dict(zip(best, self._scores(rung, best).tolist()))
        order = sorted(best, key=lambda c: -scores[c])
        spread = math.sqrt(2 * self._residual() * (1 / folds - 1 / last_folds))
        least = scores[order[0]] - self.rule.slack * spread
        return [c for n, c in enumerate(order) if n < 2 or scores[c] >= least]

    def _residual(self) -> float:
        """Variance of configuration x fold residuals at full length, by Helmert contrasts: each
        fold against the mean of those before it.
        """
        rows = [folds for folds in self._full.values() if all(map(math.isfinite, folds))]
        squares, freedom = 0.0, 0
        for fold in range(1, self.ladder[-1][0]):
            rest = np.array([r[fold] - sum(r[:fold]) / fold for r in rows if len(r) > fold])
            if len(rest) < 2:
                break
            squares += float(((rest - rest.mean()) ** 2).sum()) * fold / (fold + 1)
            freedom += len(rest) - 1
        best = max((abs(sum(r) / len(r)) for r in rows), default=0.0)
        return (WEIGHT * (PRIOR * best) ** 2 + squares) / (WEIGHT + freedom)

    # -- words

    def _why(self, config_id: str) -> tuple[str, Evidence]:
        on = (n for n, level in enumerate(self._rungs) if config_id in level.arrived)
        rung = max(on, default=-1)
        if rung < 0:
            return "it has not arrived anywhere", {}
        score = self.sign * self._rungs[rung].score(config_id)
        words, verdict = f"{score:.4f} at {name_of(self.ladder, rung)}", self._verdicts.get(rung)
        if verdict is None or config_id not in verdict.places:
            return f"{words}: the pilots climb until scores are alive", {"score": score}
        place, evidence = verdict.why(config_id, self._rungs[rung], self.sign)
        by = " by score and hyper-parameters" if verdict.by_model else ""
        rank = f"rank {evidence['rank']} of {evidence['of']}{by}"
        return f"{words}, {rank}: {place}", {"score": score, **evidence}
