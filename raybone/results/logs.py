"""What happened in a study, in words, from its folder alone."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from raybone.environment import in_short
from raybone.errors import WrongInput
from raybone.hpo.events import Event
from raybone.hpo.fold_race import Ladder, name_of
from raybone.hpo.lease import Lease
from raybone.results.study_folder import StudyFolder

WORDS = {
    "start": "a driver starts, with {slots} run(s) at once",
    "environment": "the {of} runs on {known}{changed}",
    "config": "is new: {params}",
    "invalid": "the model refuses {params}: {reason}",
    "asked": "a person asks for {params}",
    "skipped": "not worth a start: {params}: {reason}",
    "rung": "has done {rung}: {score} as the mean of its last epochs",
    "decision": "{action}: {reason}",
    "parts": "out of memory: from fold {fold} epoch {epoch} on each batch goes in {parts} parts",
    "again": "a run starts again: {reason}",
    "slots": "the cluster has room for {slots} run(s)",
    "failed": "failed: {reason}",
    "end": "the search ends: {reason}",
    "test": "on the test group: {metrics}{reason}",
}
DETAIL = {
    "work": "goes to {rung}",
    "epoch": "fold {fold} epoch {epoch}: {metrics} in {seconds} s, {cost}",
    "pooled": "over all folds: {metrics}",
}


def logs(
    out: str, config_id: str | None = None, follow: bool = False, poll: float = 2.0
) -> Iterator[str]:
    """The journal as lines, oldest first.

    Args:
        config_id: only this configuration, with its epochs and the traceback of its failure.
        follow: wait for more until the search ends or has no driver.
    Raises:
        WrongInput: no study there, or no such configuration in it.
    """
    folder = StudyFolder(out)
    rungs, journal, lease = folder.study.resolved.ladder, folder.journal(), Lease(folder.files)
    last, seen = "", {None}
    words = {**WORDS, **DETAIL} if config_id else WORDS
    while True:
        alive = follow and lease.holder() is not None
        for event in journal.events():
            last, told = event["event"], event.get("config_id")
            seen.add(told)
            if config_id in (None, told) and last in words:
                when = datetime.fromtimestamp(event["time"]).astimezone()
                yield f"{when:%Y-%m-%d %H:%M:%S%z} {in_words(event, rungs, words)}"
                log = folder.configuration(str(told)).log
                if last == "failed" and (trace := folder.files.read(log)):
                    said = f"  traceback: raybone logs {out} {told}"
                    yield trace.decode("utf-8", "replace") if config_id else said
        if last == "end" or not alive:
            break
        time.sleep(poll)
    if config_id not in seen:
        raise WrongInput(
            f"study {out}: has no configuration {config_id!r}; `raybone leaderboard` lists them"
        )


def in_words(event: Event, rungs: Ladder, words: Mapping[str, str] = WORDS) -> str:
    """What happened, and to which configuration, such as ``c003 failed: out of memory``."""
    facts = {
        k: ", ".join(f"{n} {_short(v)}" for n, v in value.items())
        if isinstance(value, dict)
        else _short(value)
        for k, value in event.items()
    }
    if event["event"] == "environment":
        changed = f"; not as before: {event['changed']}" if event.get("changed") else ""
        facts |= {"known": in_short(event["known"]), "changed": changed}
    facts["rung"] = name_of(rungs, event["rung"]) if "rung" in event else ""
    told = words[event["event"]].format_map(defaultdict(str, facts))
    return f"{facts.get('config_id', '')} {told}".lstrip()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
