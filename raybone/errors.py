"""The errors that a person may meet, and those that end a configuration or a fold."""

from __future__ import annotations


class WrongInput(ValueError):
    """What the user gave breaks a rule: one line a problem, exit code 2, nothing was trained."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class RunFailed(RuntimeError):
    """A run that started well came to a bad end: one line, exit code 1."""


class MachineFault(OSError):
    """The machine fails a run in a way that a person mends: nobody's bad hyper-parameters."""


class DamagedFile(MachineFault):
    """A file of a study or dataset is not what was written."""


class InvalidConfig(ValueError):
    """A model refuses this combination of hyper-parameters; the sampler draws another."""


class FitFailed(RuntimeError):
    """A fold cannot go on for a reason of its own (loss not finite): not worth a retry."""
