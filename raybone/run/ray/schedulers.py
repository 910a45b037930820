"""What Tune asks, answered by the brain: what starts next, and what follows from a result."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from raybone.errors import EndReason
from raybone.hpo.fold_race import score
from raybone.run.ray.driver import Driver

TRIAL_RETRIES = 3  # of a trial whose process died


class FromBrain(Searcher):
    """New configurations, and those of an earlier driver, when the brain wants them."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(metric="rung", mode="max")
        self.driver = driver

    def suggest(self, trial_id: str) -> Any:  # noqa: ARG002
        """A configuration to start, with its hyper-parameters, None to wait, or FINISHED."""
        if self.driver.brain.done:
            return Searcher.FINISHED
        work = self.driver.brain.peek()
        if work is None or work.config_id in self.driver.paused or not self.driver.begin(work):
            return None
        return {"config_id": work.config_id, **work.params}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing: the scheduler has told the brain."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the truth."""


class RaceScheduler(TrialScheduler):
    """fold_race and full: a configuration that has finished a rung waits until the brain promotes
    it.
    """

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self.driver = driver

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Nothing to prepare."""

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:  # noqa: ARG002
        """The trial's process died; Tune starts it again unless it did so too often."""
        if trial.should_recover():
            return
        config_id = trial.config["config_id"]
        died = f"the Tune trial of {config_id} died {TRIAL_RETRIES + 1} times"
        self.driver.brain.stop_for(EndReason("halted", died))
        self.driver.brain.interrupt(config_id)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Any) -> None:
        """Nothing: its last result said all."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Nothing: the brain closes what waits when the search ends."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:  # noqa: ARG002
        """STOP what is final, CONTINUE what is promoted at once, PAUSE the rest."""
        config_id = trial.config["config_id"]
        self.driver.paused.pop(config_id, None)
        if self.driver.finished_rung(config_id, result):
            return TrialScheduler.STOP
        work = self.driver.brain.peek()
        if work and work.config_id == config_id:
            return TrialScheduler.CONTINUE if self.driver.begin(work) else TrialScheduler.STOP
        self.driver.paused[config_id] = trial
        return TrialScheduler.PAUSE

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The paused trial whose turn it is; at the end of the search, all of them are ended."""
        waiting = {c: t for c, t in self.driver.paused.items() if t.status == "PAUSED"}
        if self.driver.brain.done:
            for config_id, trial in waiting.items():
                del self.driver.paused[config_id]
                tune_controller.stop_trial(trial)
            return None
        work = self.driver.brain.peek()
        if work is None or work.config_id not in waiting or not self.driver.begin(work):
            return None
        return self.driver.paused.pop(work.config_id)

    def debug_string(self) -> str:
        """What Tune prints about this scheduler."""
        return "raybone"


class AshaScheduler(RaceScheduler):
    """Ray's own ASHAScheduler on lockstep folds; its rungs are filled again from the journal."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver)
        study = driver.opened.study
        self.epochs = [e for _, e in study.resolved.ladder]
        # Ray counts milestones as grace x factor^n; rungs are told as such powers, so that rounded
        # epochs hit them.
        self.asha = ASHAScheduler(
            time_attr="clock",
            metric="score",
            mode="max",
            grace_period=1,
            reduction_factor=3,
            max_t=max(3 ** (len(self.epochs) - 1), 2),
        )
        self.trials: dict[str, SimpleNamespace] = {}
        state = driver.brain.state
        for config_id in state.configurations:
            self._add(config_id)
        for rung, arrived in sorted(state.arrivals.items()):
            for config_id in arrived:
                goes_on = self._goes_on(config_id, rung)
                if not goes_on and state.configurations[config_id].status == "paused":
                    self._stop(config_id, rung)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:  # noqa: ARG002
        """Every milestone goes to Ray's scheduler once and in order."""
        config_id = trial.config["config_id"]
        if self.driver.finished_rung(config_id, result):
            return TrialScheduler.STOP
        if config_id not in self.trials:
            self._add(config_id)
        brain, rung = self.driver.brain, result["rung"]
        if not self._goes_on(config_id, rung):
            self._stop(config_id, rung)
            return TrialScheduler.STOP
        # What a limit ends here goes on when the search is resumed.
        on = not brain.over_limit() and self.driver.begin(brain.follow(config_id))
        return TrialScheduler.CONTINUE if on else TrialScheduler.STOP

    def _add(self, config_id: str) -> None:
        self.trials[config_id] = SimpleNamespace(trial_id=config_id)
        self.asha.on_trial_add(None, self.trials[config_id])

    def _goes_on(self, config_id: str, rung: int) -> bool:
        """Whether Ray's ASHA lets a configuration go on from a rung that it has just finished."""
        result = {
            "clock": 3**rung,
            "score": self._score(config_id, rung),
            "training_iteration": rung + 1,
        }
        answer = self.asha.on_trial_result(None, self.trials[config_id], result)
        return bool(answer == TrialScheduler.CONTINUE)

    def _stop(self, config_id: str, rung: int) -> None:
        value, epochs = self._score(config_id, rung), self.epochs[rung]
        reason = f"Ray's ASHA: {value:.4f} is below the cutoff at {epochs} epochs"
        self.driver.brain.stop(config_id, reason)

    def _score(self, config_id: str, rung: int) -> float:
        """A score as Ray's ASHA takes it; NaN would pass every rung, so it is a very low number."""
        configuration = self.driver.brain.state.configurations[config_id]
        return max(score(self.driver.opened.study, configuration, rung), -1e12)
