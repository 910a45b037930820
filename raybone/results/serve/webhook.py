"""News of a study for another program: a POST of JSON for a new best, a failure and the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import requests

from raybone.errors import FAULTS, WrongInput
from raybone.hpo.events import Event
from raybone.hpo.lease import Lease
from raybone.hpo.state import State
from raybone.results.leaderboard import leaderboard
from raybone.results.study_folder import StudyFolder
from raybone.study.spec import ResolvedStudy

EVERY = 5.0  # seconds between two looks at the journal
PATIENCE = 10.0  # seconds for an answer


def tell(
    study: str, to: str, say: Callable[[str], None], poll: float = EVERY, follow: bool = True
) -> int:
    """Post what happens from now on until the study ends; returns how many posts were taken.

    ``text`` is a sentence, as Slack, Mattermost and Teams show it; beside it are event (best,
    failed, end, or away when the search has lost its driver), study, config_id, metric and score,
    and the reason of an end.

    Args:
        say: is told of posts that were not taken: they are not sent again, and stop nothing. The
            address, which may be a secret, is in no line.
    Raises:
        WrongInput: no study there, or no address of HTTP.
    """
    try:
        parts = urlsplit(to)
        host = parts.hostname if parts.scheme in ("http", "https") and parts.port != 0 else None
    except ValueError:
        host = None
    if not host:
        raise WrongInput("--webhook: must be an address of http or https; give one")
    folder = StudyFolder(study)
    spec, journal, state, taken = folder.study, folder.journal(), State(), 0
    for event in journal.events():
        state.apply(event)
    best, lease = _best(spec, state), Lease(folder.files)
    driven = lease.holder() is not None
    while True:
        was, driven = driven, lease.holder() is not None
        for event in journal.events():
            state.apply(event)
            for news in _news(spec, state, event, best):
                best = news if news["event"] == "best" else best
                taken += _post(to, {"study": spec.name, **news}, say, host)
        if was and not driven and not state.end:
            text = f"{spec.name}: no driver; `raybone search` with the same --out resumes it"
            taken += _post(to, {"study": spec.name, "event": "away", "text": text}, say, host)
        if state.end or not follow:
            return taken
        time.sleep(poll)


def _news(
    study: ResolvedStudy, state: State, event: Event, best: dict[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """What an event is worth to say."""
    kind, config_id = event["event"], event.get("config_id", "")
    if kind == "decision" and event["action"] == "complete":
        now = _best(study, state)
        if now and (best is None or now["config_id"] != best["config_id"]):
            yield now
    elif kind == "failed":
        # Its reason may hold paths and names of scans
        text = f"{study.name}: {config_id} failed; `raybone logs` says why"
        yield {"event": "failed", "config_id": config_id, "text": text}
    elif kind == "end":
        last, reason, how = _best(study, state) or {}, event["reason"], event.get("kind", "")
        if how in FAULTS:  # what a machine says may hold paths as well
            reason = f"{how}; `raybone logs` says why"
        told = f"; best: {last['text']}" if last else ""
        text = f"{study.name}: the search ends: {reason}{told}"
        yield {**last, "event": "end", "reason": reason, "text": text}


def _best(study: ResolvedStudy, state: State) -> dict[str, Any] | None:
    """The best complete configuration."""
    table = leaderboard(study, state)
    complete = table[table["state"] == "complete"]
    if not len(complete):
        return None
    row = complete.iloc[0]
    score = round(float(row[f"{study.metric}_mean"]), 6)
    if not math.isfinite(score):
        return None
    return {
        "event": "best",
        "config_id": str(row["config_id"]),
        "metric": study.metric,
        "score": score,
        "text": f"{study.name}: {row['config_id']} is the best with {study.metric} {score:.3f}",
    }


def _post(to: str, content: dict[str, Any], say: Callable[[str], None], host: str) -> bool:
    try:
        # A redirect would be followed without the content, by GET
        answer = requests.post(to, json=content, timeout=PATIENCE, allow_redirects=False)
    except requests.RequestException as error:
        say(f"warning: webhook at {host}: {type(error).__name__}; {content['event']} was not told")
        return False
    taken = answer.status_code in range(200, 300)
    if not taken:
        say(f"warning: webhook at {host}: {answer.status_code}; {content['event']} was not told")
    return taken
