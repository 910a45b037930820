"""Where a search on Ray runs, and who else hears of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raybone.errors import WrongInput

if TYPE_CHECKING:
    from ray.tune import Callback


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, for ``search``.

    Args:
        address: of a running one; None is the one that RAY_ADDRESS names or this process is
            connected to, else one of its own on this machine.
        wait: minutes to wait for nodes that an autoscaler adds at the start; in mid-run for those
            that went, but 10 at the least.
        callbacks: of Ray Tune, such as ``ray.tune.logger.TBXLoggerCallback()``: a trial is a
            configuration, and each of its results the metrics of a rung, means over its folds.
    Raises:
        WrongInput: ``wait`` is no number of minutes.
    """

    address: str | None = None
    wait: float = 0
    callbacks: Sequence[Callback] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.wait < math.inf:
            raise WrongInput(f"--wait {self.wait:g}: must be a number of minutes, 0 or more")
