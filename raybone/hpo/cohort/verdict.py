"""What was decided at a rung, in words and in numbers."""

from __future__ import annotations

from dataclasses import dataclass

from raybone.hpo.fold_race import Evidence
from raybone.hpo.rungs import Rung


@dataclass(frozen=True)
class Verdict:
    """A rung that was decided: its configurations, best first, and how many of them go on."""

    order: tuple[str, ...]
    room: int
    by_model: bool
    places: dict[str, int]

    def why(self, config_id: str, level: Rung, sign: int) -> tuple[str, Evidence]:
        """A configuration's place among them, and the other side of the cut."""
        place = self.places[config_id]
        goes = place < self.room
        beside = self.order[self.room : self.room + 1] if goes else self.order[: self.room][-1:]
        words = f"one of the {self.room} that go on" if goes else f"the best {self.room} go on"
        evidence: Evidence = {"rank": place + 1, "of": len(self.order)}
        for other in beside:
            rival = sign * level.score(other)
            words += f"{'; next is' if goes else ', down to'} {other} with {rival:.4f}"
            evidence |= {"against": other, "rival": rival}
        return words, evidence
