"""One rung of asynchronous successive halving: who has arrived, in what order, and who of them may
go on.

Source: Li et al. 2020, arXiv:1810.05934. With n >= 2 arrivals, those may go on that are not below
the quantile 1 - 1 / factor of all scores, which are the best floor((n - 1) / factor) + 1; equal
scores are told apart by a second one, then by arrival.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from dataclasses import dataclass, field

Key = tuple[float, float, int, str]


@dataclass
class Rung:
    """Arrivals of one rung, best first; every question is answered in O(log n), an arrival costs
    O(n) of a memmove.

    Args:
        factor: one in ``factor`` goes on.
    """

    factor: float
    ranked: list[Key] = field(default_factory=list)
    waiting: list[Key] = field(default_factory=list)
    _key: dict[str, Key] = field(default_factory=dict)

    def arrive(self, config_id: str, score: float, tie: float = 0.0) -> None:
        """A configuration has finished this rung; more is better, and what is not finite is the
        worst.
        """
        parts = (-v if math.isfinite(v) else math.inf for v in (score, tie))
        key: Key = (*parts, len(self.ranked), config_id)  # type: ignore[assignment]
        self._key[config_id] = key
        insort(self.ranked, key)
        insort(self.waiting, key)

    def leave(self, config_id: str) -> None:
        """A configuration goes on, or ends: it waits no more, but its score stays."""
        if config_id in self._key:
            key = self._key[config_id]
            place = bisect_left(self.waiting, key)
            if place < len(self.waiting) and self.waiting[place] == key:
                del self.waiting[place]

    @property
    def arrived(self) -> dict[str, Key]:
        """The arrivals by configuration."""
        return self._key

    def place(self, config_id: str) -> int:
        """Place among all arrivals, 0 is the best."""
        return bisect_left(self.ranked, self._key[config_id])

    @property
    def quota(self) -> int:
        """How many of the arrivals may go on."""
        return math.floor((len(self.ranked) - 1) / self.factor) + 1 if len(self.ranked) > 1 else 0

    def passes(self, config_id: str) -> bool:
        """Whether a configuration is among those that may go on; one without a finite score never
        is.
        """
        return self._key[config_id][0] < math.inf and self.place(config_id) < self.quota

    @property
    def best(self) -> str | None:
        """The best of those waiting."""
        return self.waiting[0][3] if self.waiting else None

    def promotable(self) -> str | None:
        """The best of those waiting, if it may go on."""
        return self.best if self.best and self.passes(self.best) else None

    def score(self, config_id: str) -> float:
        """The score that a configuration arrived with, -inf for the worst."""
        return -self._key[config_id][0]
