"""The scheduler of a running search; its state is derived from the journal, which it writes."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from raybone.environment import changes
from raybone.errors import EndReason
from raybone.hpo import stopping as goal
from raybone.hpo.events import Event, finite, jsonable
from raybone.hpo.fold_race import Next, score, scores
from raybone.hpo.journal import Journal
from raybone.hpo.proposals import Proposals
from raybone.hpo.races import RACES, skipped, tell
from raybone.hpo.state import Configuration, State
from raybone.study.space import identity
from raybone.study.spec import ResolvedStudy
from raybone.types import Decision, Epoch, Pooled, Segment

DROPPED = "a person has stopped it"


@dataclass(frozen=True)
class Work:
    """A configuration to take to a rung: what to train, and in how many parallel runs so far."""

    config_id: str
    params: dict[str, Any]
    rung: int
    segments: tuple[Segment, ...]
    new: bool = False
    runs: int = 1


class Brain:
    """Decides, and tells the journal. Safe to call from the driver's several threads.

    Args:
        check: gives the number of parameters of a model with these hyper-parameters, or raises
            InvalidConfig.
        slots: training runs that fit the machines at once.
    """

    def __init__(
        self,
        study: ResolvedStudy,
        journal: Journal,
        check: Callable[[dict[str, Any]], int],
        slots: int,
    ) -> None:
        self.study, self.journal, self.slots = study, journal, slots
        self.state = State()
        self._proposals = Proposals(study, self.state, check, self._record)
        self.race = self._proposals.race
        self.stopping: EndReason | None = None
        self.version = 0
        self.lock = threading.RLock()
        self._busy: dict[str, int] = {}
        self.dropped, self._over = set[str](), False  # the former by a person
        self._races = study.search.scheduler in RACES
        self._began = time.monotonic()
        last: Event = {"event": ""}
        for event in journal.events():
            self._apply(event)
            # A driver that died before it could judge has left nothing but its start.
            last = event if event["event"] != "start" else last
        self._spent_before = self.state.seconds
        # What a driver that died had under way comes first.
        self._interrupted = [c.id for c in self.state.configurations.values() if self._cut_off(c)]
        resources = study.resources
        self._record("start", slots=slots, gpus=resources.gpus * resources.workers)
        if last["event"] == "rung":
            # The driver died between the end of a rung and what follows from it.
            self._judge(self.state.configurations[last["config_id"]])
        self._reached = goal.reached(study, self.state)

    def peek(self) -> Work | None:
        """The work that a free slot should take now; None when it should wait, or when nothing is
        left.
        """
        with self.lock:
            full = sum(self._busy.values()) >= self.slots
            return None if full or self.over_limit() else self._due()

    def start(self, work: Work) -> Work:
        """Take this work up, in one run; ``widen`` may give it more."""
        with self.lock:
            if work.new:
                self._proposals.begin()
            elif work.config_id in self._interrupted:
                self._interrupted.remove(work.config_id)
            elif self._races:
                self._promote(work)
            self._busy[work.config_id] = 1
            self._record("work", config_id=work.config_id, rung=work.rung)
            return work

    def spare(self) -> int:
        """Slots that no work wants."""
        with self.lock:
            free = self.slots - sum(self._busy.values())
            idle = free > 0 and self._busy and not self.stopping and self.peek() is None
            return free if idle else 0

    def widen(self, waiting: dict[str, int]) -> dict[str, int]:
        """Give spare slots to configurations with folds that wait; returns the new number of runs
        of each.

        Args:
            waiting: folds that no run has taken up yet, by configuration.
        """
        with self.lock:
            wider: dict[str, int] = {}
            for config_id in sorted(self._busy, key=lambda c: -waiting.get(c, 0)):
                more = min(self.spare(), waiting.get(config_id, 0))
                if more:
                    wider[config_id] = self._busy[config_id] = self._busy[config_id] + more
            return wider

    def follow(self, config_id: str) -> Work:
        """The next rung of a configuration whose going on Ray's ASHA decided."""
        with self.lock:
            return self._work(config_id, self.state.configurations[config_id].rung + 1)

    def epoch(self, config_id: str, epoch: Epoch) -> None:
        """A fold epoch has ended; one that the journal has already is passed over."""
        with self.lock:
            if epoch.epoch == self.state.known(config_id, epoch.fold) + 1:
                self._record(
                    "epoch",
                    config_id=config_id,
                    fold=epoch.fold,
                    epoch=epoch.epoch,
                    metrics=jsonable(epoch.metrics),
                    seconds=epoch.seconds,
                    cost=epoch.cost,
                    machine=epoch.machine,
                )

    def runs_on(self, of: str, known: dict[str, Any]) -> None:
        """The ``environment`` of a "driver" or "worker", once for each that is another one."""
        with self.lock:
            earlier = self.state.environments.get(of, [])
            # Workers of a cluster may differ; a driver is another one than the last.
            if known not in (earlier[-1:] if of == "driver" else earlier):
                changed = "; ".join(changes(earlier[-1], known)) if earlier else ""
                self._record("environment", of=of, known=known, changed=changed)

    def pooled(self, config_id: str, pooled: Pooled) -> None:
        """What the out-of-fold findings of all folds together give."""
        with self.lock:
            if self.state.configurations[config_id].pooled:
                return
            bootstrap: dict[str, Any] = {}
            if pooled.replicates:
                short = [float(f"{v:.6g}") for v in pooled.replicates]
                bootstrap = {
                    "replicates": [v if math.isfinite(v) else None for v in short],
                    "freedom": float(f"{pooled.freedom:.6g}"),
                }
            self._record("pooled", config_id=config_id, metrics=finite(pooled.metrics), **bootstrap)

    def tested(self, config_id: str, metrics: dict[str, float], reason: str = "") -> None:
        """The winner's score on the test group, once for each configuration, or the reason why
        there is none.
        """
        with self.lock:
            self._record("test", config_id=config_id, metrics=finite(metrics), reason=reason)

    def rung_done(self, config_id: str, rung: int) -> Decision | None:
        """A configuration has finished a rung; returns what is final for it, None when it waits for
        its turn.
        """
        with self.lock:
            self._busy.pop(config_id, None)
            configuration = self.state.configurations[config_id]
            if self._segments(config_id, rung):
                self.fail(config_id, "its runs ended before all its folds did")
                return Decision(config_id, "stop", rung, configuration.reason)
            value = score(self.study, configuration, rung)
            self._record(
                "rung",
                config_id=config_id,
                rung=rung,
                score=value if math.isfinite(value) else None,
            )
            return self._judge(configuration)

    def stop(self, config_id: str, reason: str = DROPPED) -> None:
        """A configuration is at its end by a decision of Ray's ASHA, or of a person."""
        with self.lock:
            self._busy.pop(config_id, None)
            self._interrupted = [c for c in self._interrupted if c != config_id]
            rung = self.state.configurations[config_id].rung
            action: Literal["drop", "stop"] = "drop" if reason == DROPPED else "stop"
            self._decide(Decision(config_id, action, rung, reason))

    def drop(self, config_ids: Iterable[str]) -> None:
        """A person wants no more of these: who waits ends now, who is at work after its epoch."""
        with self.lock:
            self.dropped |= set(config_ids)
            for config_id in self.dropped & self.state.configurations.keys() - self._busy.keys():
                if self.state.configurations[config_id].status in ("running", "paused"):
                    self.stop(config_id)

    def add(self, wanted: Iterable[dict[str, Any]]) -> None:
        """A person wants these hyper-parameters tried, before all that the sampler has to propose
        and beyond ``search.trials``.
        """
        with self.lock:
            for params in () if self._over else wanted:
                if identity(params) not in self.state.taken | self.state.asked.keys():
                    self._record("asked", params=params)

    def fail(self, config_id: str, reason: str) -> None:
        """A configuration has failed for good."""
        with self.lock:
            self._busy.pop(config_id, None)
            self._record("failed", config_id=config_id, reason=" ".join(reason.split())[:500])
            failed, most = self.state.counts["failed"], self.study.limits.failed_trials
            if failed > most:
                why = f"{failed} configurations failed, more than {most}"
                self.stopping = EndReason("limits.failed_trials", why)

    def again(self, config_id: str, reason: str) -> None:
        """A run of a configuration died and is started again."""
        with self.lock:
            self._record("again", config_id=config_id, reason=" ".join(reason.split())[:500])

    def interrupt(self, config_id: str) -> None:
        """A configuration's run ended early, and what ended it is not its own."""
        with self.lock:
            self._busy.pop(config_id, None)

    def stop_for(self, reason: EndReason) -> None:
        """Hand out no more work; the first reason counts."""
        with self.lock:
            self.stopping = self.stopping or reason

    def resize(self, slots: int) -> None:
        """Machines have come or gone: so many training runs fit at once now."""
        with self.lock:
            if slots != self.slots:
                self.slots = slots
                self._record("slots", slots=slots)

    def wanted(self, waiting: dict[str, int]) -> int:
        """Training runs that could be at work at once, were there room for all.

        Args:
            waiting: as for ``widen``.
        """
        with self.lock:
            at_work = sum(self._busy.values()) + sum(waiting.values())
            new = self._proposals.left()
            step = self._next_step() if self._races else None
            if step is None and self._races and not new and not self._busy:
                step = self.race.last_push()
            more = step is not None
            return at_work + len(self._interrupted) + more + new

    @property
    def done(self) -> bool:
        """Nothing is at work and nothing is left to do; what is added from then on is for the next
        driver, as Tune ends once it has heard so.
        """
        with self.lock:
            idle = not self._busy
            self._over |= idle and (self.over_limit() is not None or self._due() is None)
            return self._over

    def over_limit(self) -> EndReason | None:
        """Why no new work is handed out, or None."""
        seconds = self._spent_before + time.monotonic() - self._began
        return self.stopping or goal.spent(self.study, self.state, seconds) or self._reached

    def finish(self, look: Callable[[EndReason], None] = lambda reason: None) -> EndReason:
        """Close the search: what waits is stopped. Returns why it ended.

        Args:
            look: does what there is to do before the end is told, as followers of the journal go
                with it.
        """
        with self.lock:
            reason = self.over_limit() or EndReason("complete")
            # Its last epochs may have gone over a limit; of asha, those that wait go on.
            waits = any(map(self._cut_off, self.state.configurations.values()))
            if not (self.stopping or self._reached or waits or self.wanted({})):
                reason = EndReason("complete")
            if reason.kind == "complete":
                for c in self.state.configurations.values():
                    if c.status == "paused":
                        why_out = self.race.why_out(c.id, c.rung)
                        self._decide(Decision(c.id, "stop", c.rung, *why_out))
                for skip in [] if self.state.skipped else skipped(self.race, self._proposals.pool):
                    self._record("skipped", **skip)
        try:
            look(reason)
        finally:
            with self.lock:
                self._record("end", reason=str(reason), kind=reason.kind)
                self.journal.close()
        return reason

    def _due(self) -> Work | None:
        """What comes next, whether or not there is a slot for it."""
        if self._interrupted:
            configuration = self.state.configurations[self._interrupted[0]]
            least = configuration.rung + 1 or self.race.first
            return self._work(configuration.id, max(configuration.target, least))
        step = self._next_step() if self._races else None
        if step is None and (new := self._new()) is not None:
            return new
        if step is None and self._races:  # the space may be found used up
            step = self._next_step() or (None if self._busy else self.race.last_push())
        return self._work(step.config_id, step.rung) if step else None

    def _cut_off(self, configuration: Configuration) -> bool:
        """Whether a driver died before this configuration got to the rung it was bound for."""
        if configuration.status not in ("running", "paused"):
            return False
        waits = configuration.rung >= 0 and configuration.target == configuration.rung
        return not waits or self.study.search.scheduler == "asha"

    def _judge(self, configuration: Configuration) -> Decision | None:
        """What follows from the rung that a configuration has just finished."""
        decision = self.race.judge(configuration.id, configuration.rung)
        if configuration.id in self.dropped and not decision:
            decision = Decision(configuration.id, "drop", configuration.rung, DROPPED)
        if decision:
            self._decide(decision)
            self._interrupted = [c for c in self._interrupted if c != configuration.id]
            if decision.action == "complete":
                self._reached = goal.reached(self.study, self.state)
        return decision

    def _work(self, config_id: str, rung: int) -> Work:
        configuration = self.state.configurations[config_id]
        return Work(config_id, configuration.params, rung, self._segments(config_id, rung))

    def _segments(self, config_id: str, rung: int) -> tuple[Segment, ...]:
        folds, epochs = self.study.resolved.ladder[rung]
        known = [
            self.state.known(config_id, k) if config_id in self.state.configurations else 0
            for k in range(folds)
        ]
        return tuple(Segment(k, done, epochs) for k, done in enumerate(known) if done < epochs)

    def _new(self) -> Work | None:
        """The next configuration that has not begun."""
        draft = self._proposals.next()
        if draft is None:
            return None
        rung = self.race.first
        segments = self._segments(draft.config_id, rung)
        return Work(draft.config_id, draft.params, rung, segments, new=True)

    def _promote(self, work: Work) -> None:
        step = self._next_step() or self.race.last_push()
        if step and step.config_id == work.config_id:
            rung = self.state.configurations[work.config_id].rung
            self._decide(Decision(work.config_id, "promote", rung, step.reason, step.evidence))

    def _next_step(self) -> Next | None:
        spare = self.slots - sum(self._busy.values())
        return self.race.next_step(0 if self._proposals.left() else spare)

    def _decide(self, decision: Decision) -> None:
        self._record(
            "decision",
            config_id=decision.config_id,
            action=decision.action,
            rung=decision.rung,
            reason=decision.reason,
            evidence=jsonable(decision.evidence),
        )

    def _record(self, event: str, **content: Any) -> None:
        self._apply(self.journal.append(event, **content))
        self.version += 1

    def _apply(self, event: Event) -> None:
        """The one way into state and race, for what is new and for what is replayed."""
        self.state.apply(event)
        tell(self.race, self.study, self._proposals.pool, event)
        kind, config_id = event["event"], event.get("config_id", "")
        if kind == "rung":
            configuration = self.state.configurations[config_id]
            folds, tie = scores(self.study, configuration, event["rung"])
            model = self.study.under(configuration.params).model
            self.race.arrive(config_id, event["rung"], folds, tie, model)
        elif kind == "work":
            self.race.go(config_id, event["rung"])
        elif kind == "failed" or (kind == "decision" and event["action"] != "promote"):
            self.race.end(config_id, "failed" if kind == "failed" else event["action"])
