"""The errors that a person may meet, and those that end a configuration or a fold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EndKind = Literal[
    "complete",  # nothing is left to do
    "limits.target",  # these bear the name of a study's key
    "limits.converged",
    "limits.hours",
    "limits.gpu_hours",
    "limits.failed_trials",
    "stopped",  # by a person
    "interrupted",  # by a signal
    "taken over",  # by another driver
    "halted",  # machines or storage failed
    "driver",  # this process cannot record what happens
]
FAULTS = ("halted", "driver")  # kinds whose details are a machine's own words
_WORDS: dict[EndKind, str] = {
    "stopped": "stopped by `raybone stop`",
    "taken over": "another driver has taken this study over",
}


@dataclass(frozen=True)
class EndReason:
    """Why a search ended: code asks for the kind, people read the text.

    >>> str(EndReason("limits.hours", "2.01 h are over 2"))
    'limits.hours: 2.01 h are over 2'
    """

    kind: EndKind
    detail: str = ""

    @property
    def finished(self) -> bool:
        """Whether the search has what it was after, so that its winner meets the test group."""
        return self.kind in ("complete", "limits.target", "limits.converged")

    def __str__(self) -> str:
        words = _WORDS.get(self.kind, self.kind)
        return f"{words}: {self.detail}" if self.detail else words


@dataclass(frozen=True)
class Problem:
    """A rule that something breaks: where, the rule, what came, and what to do.

    >>> str(Problem("--folds", "must be at least 2", "1", "5 is usual"))
    '--folds: must be at least 2, got 1; 5 is usual'
    """

    where: str
    rule: str
    got: str = ""
    fix: str = ""

    def __str__(self) -> str:
        came = f", got {self.got}" if self.got else ""
        return f"{self.where}: {self.rule}{came}" + (f"; {self.fix}" if self.fix else "")


@dataclass(frozen=True)
class Remark:
    """A rule that was applied to scans: how often, and the id of the first, if it is known.

    >>> str(Remark("view is unknown", 2, "s0a1b"))
    '2 x view is unknown (first s0a1b)'
    """

    rule: str
    times: int
    first: str = ""

    def __str__(self) -> str:
        return f"{self.times} x {self.rule}" + (f" (first {self.first})" if self.first else "")


class WrongInput(ValueError):
    """What the user gave breaks a rule: one line a problem, exit code 2, nothing was trained."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class RunFailed(RuntimeError):
    """A run that started well came to a bad end: one line, exit code 1."""


class MachineFault(OSError):
    """The machine or its storage failed: no configuration is to blame, a person mends it."""


class DamagedFile(MachineFault):
    """A file of a study or dataset is not what was written."""


class InvalidConfig(ValueError):
    """A model refuses this combination of hyper-parameters; the sampler draws another."""


class FitFailed(RuntimeError):
    """A fold cannot go on for a reason of its own (loss not finite): not worth a retry.

    alone: whether it may be true of one of several workers, for which the others would wait.
    """

    def __init__(self, message: str, alone: bool = False) -> None:
        super().__init__(message)
        self.alone = alone


class TooLarge(FitFailed):
    """A training step needs ``times`` the memory that there is."""

    def __init__(self, message: str, times: float) -> None:
        super().__init__(message)
        self.times = times
