"""cohort_race: rungs over (folds, epochs) that are decided once, when all that are bound for them
have arrived.

A pilot finds the first rung at which scores are alive; a model of the hyper-parameters keeps those
from starting that have no chance; a few finalists run in full. State is a function of scores, not
of the order in which they arrive, so that a restart decides the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from raybone.hpo.cohort.guide import FEWEST, Guide
from raybone.hpo.cohort.plan import CohortRule, alive, climb, stages
from raybone.hpo.cohort.risk import Told, beliefs, residual, risk
from raybone.hpo.cohort.verdict import Verdict
from raybone.hpo.fold_race import Evidence, Ladder, Next, name_of
from raybone.hpo.rungs import Rung
from raybone.types import Array, Decision

FEWEST_OF_MODEL = 3  # pilots of a model that can say whether its scores are alive
WIDE = 2  # folds that finalists lack, for each worker, at which they train them all at once


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
        self._phase: Literal["pilot", "gate", "cohorts", "risk", "over"] = "pilot"
        self._batch = max(10, trials // 8)
        self._begun, self._guide = dict.fromkeys(pool or (), False), Guide(rule)
        self._waiting = self._untried()[: self._batch]
        self._cohort, self._ahead, self._size = set[str](), set[str](), float(trials)
        self._rung = 0  # that is decided next
        self._queue: dict[str, int] = {}  # rungs to which they go
        self._rungs = [Rung(1) for _ in rungs]
        self._absent = dict[str, int]()  # whom it waits for, and at which rung
        self._failed = set[str]()
        self._hopes = dict[str, tuple[str, Evidence]]()  # why one goes on that had been cut
        self._full: dict[str, tuple[float, ...]] = {}
        self._model: dict[str, str] = {}
        self._verdicts: dict[int, Verdict] = {}

    def next_new(self) -> str | None:
        """The key of the configuration that should begin, empty for whichever is proposed; None:
        wait, or none is worth it.
        """
        return self._waiting[0] if self._waiting else None

    def exhaust(self) -> None:
        """There is nothing more to propose."""
        self._waiting, self.trials = [], len(self._guide.x)
        self._begun = {key: begun for key, begun in self._begun.items() if begun}
        self._settle()

    def begin(self, config_id: str, key: str, x: Array | None, model: str = "") -> None:
        """A configuration of these features begins."""
        self._guide.x[config_id], self._model[config_id] = x, model
        self._cohort.add(config_id)
        self._absent[config_id] = self.first
        self.skipped.pop(key, None)
        if key in self._begun:
            self._begun[key] = True
        if (name := key if key in self._waiting else "") in self._waiting:
            self._waiting.remove(name)  # else a search for a smaller risk had let it begin

    def go(self, config_id: str, rung: int) -> None:
        """A configuration is on its way to a rung."""
        self._hopes.pop(config_id, None)
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
        if config_id in self._rungs[self._absent.get(config_id, self._rung)].arrived:
            self._absent.pop(config_id, None)
        if epochs == self.ladder[-1][1]:
            self._full[config_id] = tuple(folds)
        if rung == len(self.ladder) - 1 and not math.isfinite(sum(folds)):
            self._failed.add(config_id)
        self._settle()

    def refuse(self, key: str, instead: str, x: Array | None) -> None:
        """The model refuses a configuration of the pool; another one takes its place, if there is
        any.
        """
        assert self.pool is not None
        self.pool = {k: v for k, v in self.pool.items() if k != key}
        self._begun.pop(key)
        self.skipped.pop(key, None)
        if instead and x is not None:
            self.pool[instead], self._begun[instead] = x, False
        self._waiting = [k for w in self._waiting if (k := instead if w == key else w)]
        self._settle()

    def end(self, config_id: str, how: Literal["complete", "stop", "drop", "failed"]) -> None:
        """A configuration is finished; nobody waits for one that failed, or that a person
        dropped. One that is stopped at the end of a search goes on where the search does, for a
        smaller risk.
        """
        if how == "stop":
            return
        if how in ("drop", "failed"):
            self._cohort.discard(config_id)
            self._ahead.discard(config_id)
            self._failed.add(config_id)
        self._absent.pop(config_id, None)
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
        decide = {
            **{"pilot": self._pilot, "gate": self._admit},
            **{"cohorts": self._cut, "risk": self._lower},
        }
        while not (self._queue or self._waiting or self._absent) and self._phase in decide:
            decide[self._phase]()

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
        self._absent = dict(self._queue)

    def _alive(self, before: tuple[int, int]) -> bool:
        """Whether the scores of each model are that has enough pilots, else those of all."""
        by_model = [
            [c for c in sorted(self._cohort) if self._model[c] == model]
            for model in sorted({self._model[c] for c in self._cohort})
        ]
        enough = [names for names in by_model if len(names) >= FEWEST_OF_MODEL]
        rung = self.ladder.index(before)
        return all(
            alive(self._scores(rung, names), self._scores(self.first, names), self.rule)
            for names in enough or [sorted(self._cohort)]
        )

    def _admit(self) -> None:
        """The next batch: of a known pool those that the model of the hyper-parameters gives a
        chance, the most promising first; each batch is twice as large.
        """
        left = self._untried()
        few = len(self._rungs[self.first].arrived) < FEWEST
        if self.pool is not None and left and not few:
            names = sorted(self._rungs[self.first].arrived)
            known = dict(zip(names, self._scores(self.first, names).tolist()))
            chance = self._guide.chances(known, {key: self.pool[key] for key in left})
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
            return [""] * (self.trials - len(self._guide.x))
        return [key for key, begun in self._begun.items() if not begun]

    def _cut(self) -> None:
        """Decide the rung where the cohort stands."""
        rung, stage = self._rung, self._next_stage()
        if stage is None:
            self._phase = "risk"
            return
        self._stage, to, room, self._size = stage
        scores = self._finite(rung)
        merit = self._guide.merits({c: v for c, v in scores.items() if c in self._cohort})
        order = sorted(merit, key=lambda c: (c not in self._ahead, -merit[c]))
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
        self._verdicts[rung] = Verdict(tuple(order), len(best), self._guide.knows(order), places)
        ahead, self._cohort, self._ahead, self._rung = self._ahead, set(best), set(), to
        self._queue = {c: to for c in best if c not in ahead and not self._is_at(c)}
        self._absent = {c: to for c in best if not self._is_at(c)}
        if not best:
            self._phase = "risk"

    def _lower(self) -> None:
        """While the risk is larger than was asked, those go on that have most of it for what they
        cost, also such as had been cut or had not begun.
        """
        full = self._finite(len(self.ladder) - 1)
        if self._push({self._model[c] for c in full}):
            return
        self._phase = "over"
        if self.rule.risk is None or not full:
            return
        known = beliefs(full, [self._told(rung) for rung in range(len(self.ladder) - 1)])
        best = max(full.values())
        lost = risk(known, best).per(abs(best) or 1)
        if lost.loss <= self.rule.risk:
            return
        on = {c: r for r, level in enumerate(self._rungs) for c in level.arrived}
        steps = lost.steps(on, self.ladder, self._plan, self.first)[: max(1, self.workers)]
        self._phase = "risk" if steps else "over"
        self._waiting = [c for c, _, _ in steps if c in self.skipped]
        self._queue = {c: to for c, to, _ in steps if c not in self.skipped}
        self._absent = dict(self._queue)
        self._hopes = {c: words for c, _, words in steps}

    def _push(self, ran: set[str]) -> bool:
        """Take the best that waits to the end, where no finalist at all, or of a model that is not
        among ``ran``, has a score there.
        """
        last = len(self.ladder) - 1
        left = {c for c, model in self._model.items() if model not in ran} - self._failed
        for rung in reversed(range(last)):
            if scores := {c: v for c, v in self._finite(rung).items() if c in left}:
                best = max(scores, key=lambda c: scores[c])
                words = "no finalist ended with a score: best of those that wait"
                self._hopes[best] = words, {"score": self.sign * scores[best]}
                self._queue, self._absent = {best: last}, {best: last}
                return True
        return False

    def _finite(self, rung: int) -> dict[str, float]:
        level = self._rungs[rung]
        return {c: v for c in sorted(level.arrived) if math.isfinite(v := level.score(c))}

    def _told(self, rung: int) -> Told:
        """What a rung tells of final scores. At full length what the other folds add has no slope,
        and a variance that is known.
        """
        x = {c: (v, 0.0) for c, v in self._finite(rung).items() if c not in self._failed}
        if rung == self.first:
            pool = self.pool or {}
            idle = {key: pool[key] for key in self.skipped}
            x |= self._guide.guesses(self._finite(rung), idle)
        noise, (folds, epochs), of = residual(self._full), self.ladder[rung], self.ladder[-1]
        if epochs == of[1]:
            return Told(x, noise * (1 / folds - 1 / of[0]), 1.0)
        return Told(x, noise / 2)

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
        spread = math.sqrt(2 * residual(self._full) * (1 / folds - 1 / last_folds))
        least = scores[order[0]] - self.rule.slack * spread
        return [c for n, c in enumerate(order) if n < 2 or scores[c] >= least]

    # -- words

    def _why(self, config_id: str) -> tuple[str, Evidence]:
        if config_id in self._hopes:
            return self._hopes[config_id]
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
