"""A study told to a tracker, by its journal alone: while it runs, or long afterwards.

Training knows nothing of it, so that a tracker that is down stops nothing.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from importlib import import_module
from typing import Protocol, cast

from raybone.errors import MachineFault, WrongInput
from raybone.hpo.events import Event
from raybone.hpo.lease import Lease
from raybone.hpo.state import State
from raybone.results.study_folder import StudyFolder

DRIVER = "RAYBONE_DRIVER"  # the process beside which a tracker lives
EVERY = 5.0  # seconds between two looks at the journal
KINDS = {"mlflow": "URI", "tensorboard": "DIR", "wandb": "DIR"}


class Outlet(Protocol):
    """A tracker at work on one study."""

    def tell(self, event: Event, state: State) -> None:
        """Take in an event of the journal; the state has it already."""

    def flush(self, state: State, last: bool) -> None:
        """Send what there is, all of it where it is the last time.

        Raises:
            MachineFault: the tracker does not answer; the same call may be made again.
        """


def track(
    study: str,
    to: str,
    follow: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> int:
    """Tell a tracker of each epoch of each fold; returns the number of fold epochs.

    Args:
        to: ``mlflow:URI`` of a server or ``sqlite:///FILE``, or ``tensorboard:DIR`` or, offline,
            ``wandb:DIR``, to be made.
        follow: until the study ends; a tracker that does not answer is asked again.
        tell: is told what goes wrong meanwhile.
    Raises:
        WrongInput: no study, or no such tracker.
        MachineFault: the tracker does not answer, and is not followed.
    """
    kind, _, place = to.partition(":")
    if kind not in KINDS or not place:
        known = ", ".join(f"{name}:{what}" for name, what in KINDS.items())
        raise WrongInput(f"--to: must be one of {known}, got {shown(to)}; give one")
    if shown(place) != place:
        raise WrongInput(
            f"--to: must be an address without a name and password, as {shown(to)}; set them as "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    folder, state, driver = StudyFolder(study), State(), os.environ.get(DRIVER, "")
    outlet = _outlet(kind, place, folder)
    journal, lease = folder.journal(), Lease(folder.files)
    while True:
        # Asked first: what a driver writes before it goes is read then.
        alone = driver != str(os.getppid()) if driver else lease.holder() is None
        for event in journal.events():
            state.apply(event)
            outlet.tell(event, state)
        try:
            outlet.flush(state, last=bool(state.end) or not follow or alone)
        except MachineFault as error:
            if not follow:
                raise
            tell(f"warning: {error}")
        else:
            if state.end or not follow or alone:
                return state.fold_epochs
        time.sleep(EVERY)


def shown(text: str) -> str:
    """Text without the names and passwords of its addresses."""
    return re.sub(r"//[^/\s]*@", "//", text)


def _outlet(kind: str, place: str, folder: StudyFolder) -> Outlet:
    folder.study  # noqa: B018  # that it is none is said first
    try:
        module = import_module(f"raybone.results.trackers.{kind}")
    except ImportError as error:
        raise WrongInput(
            f"--to {kind}: needs a package that is not installed ({error.name}); "
            "pip install 'raybone[trackers]'"
        ) from None
    return cast(Outlet, module.outlet(place, folder))
