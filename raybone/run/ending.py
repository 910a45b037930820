"""The end of a search: its winner meets the test group, and a bad end is an error."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial

from raybone.errors import EndReason, RunFailed
from raybone.results.study_folder import ConfigurationFolder
from raybone.run.configuration import examine
from raybone.run.session import OpenStudy

# Scores a configuration on the test group.
Examiner = Callable[[ConfigurationFolder], dict[str, float]]


def conclude(opened: OpenStudy, examiner: Examiner | None = None) -> EndReason:
    """End the search: look at the test group once for the winner of a complete one, and write the
    last leaderboard.

    Args:
        examiner: does what ``examine`` does on another machine; None does it here.
    Raises:
        RunFailed: it ended because too many configurations failed, or the winner could not be
            tested.
    """
    if opened.lease.lost:
        raise RunFailed(
            f"study {opened.folder.url}: another driver has taken it over while this one stood "
            "still; `raybone watch` shows it"
        )

    def look(reason: EndReason) -> None:
        if reason.finished and (best := opened.to_test()):
            _look(opened, best, examiner or partial(examine, dataset=opened.dataset))

    try:
        reason = opened.brain.finish(look)
    finally:
        opened.publish(last=True)
    if reason.kind == "halted":
        raise RunFailed(f"study {opened.folder.url} {reason}; mend that and start the same command")
    if reason.kind == "limits.failed_trials":
        raise RunFailed(
            f"{reason}; reasons are in {opened.folder.url}/leaderboard.csv and the journal; mend "
            "the cause and start the same command"
        )
    if reason.finished and (why := _fruitless(opened)):
        raise RunFailed(f"study {opened.folder.url}: {why}; mend the cause and start another study")
    return reason


def _fruitless(opened: OpenStudy) -> str:
    """Why a search that came to its end has nothing to rank; empty when it has."""
    configurations = list(opened.brain.state.configurations.values())
    study, folds = opened.study, opened.study.resolved.folds
    complete = [c for c in configurations if c.status == "complete"]
    if any(math.isfinite(c.mean(folds, study.epochs, study.metric)) for c in complete):
        return ""
    reasons = Counter(c.reason for c in configurations if c.status == "failed") or Counter(
        opened.brain.state.refused
    )
    common = f", most often: {reasons.most_common(1)[0][0]}" if reasons else ""
    if complete:
        return f"{study.metric} of all {len(complete)} complete configurations is not a number"
    if configurations:
        return f"none of its {len(configurations)} configurations came to a result{common}"
    return f"not one configuration could be tried{common}"


def _look(opened: OpenStudy, best: ConfigurationFolder, examiner: Examiner) -> None:
    """Score the winner on the test group."""
    try:
        metrics = examiner(best)
    except Exception as error:
        cause = getattr(error, "cause", None) or error  # of a Ray task
        raise RunFailed(
            f"test group, {best.id}: must be evaluated, but {type(cause).__name__}: "
            f"{' '.join(str(cause).split())[:300]}; start the same command again"
        ) from error
    gone = f"test group: {best.id} was not scored, as weights of its folds are gone"
    opened.brain.tested(best.id, metrics, "" if metrics else gone)
