"""Which configuration begins next: one that a person asked for, else the sampler's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raybone.errors import InvalidConfig
from raybone.hpo.races import Pool, race_of
from raybone.hpo.sampler import ATTEMPTS, propose
from raybone.hpo.state import State
from raybone.study.spec import ResolvedStudy


@dataclass(frozen=True)
class Draft:
    """A configuration that may begin, with the number of its model's parameters."""

    config_id: str
    params: dict[str, Any]
    parameters: int


class Proposals:
    """The configurations of a search that are yet to begin.

    Args:
        check: gives the number of parameters of a model with these hyper-parameters, or raises
            InvalidConfig.
        record: takes down an event and what it holds.
    """

    def __init__(
        self,
        study: ResolvedStudy,
        state: State,
        check: Callable[[dict[str, Any]], int],
        record: Callable[..., None],
    ) -> None:
        self.study, self.state, self.check, self.record = study, state, check, record
        self.pool = Pool(study)
        self.race = race_of(study, self.pool)
        self._draft: Draft | None = None

    def next(self) -> Draft | None:
        """The next one, the same until it begins; a model may refuse some, which do not count."""
        for _ in range(ATTEMPTS if self._draft is None else 0):
            if not self.left():
                return None
            params = self._first()
            if params is None:
                break
            try:
                config_id = f"c{len(self.state.configurations):03d}"
                self._draft = Draft(config_id, params, self.check(params))
                break
            except InvalidConfig as error:
                self.record("invalid", params=params, reason=str(error))
        if self._draft is None:
            self.record("exhausted")
        return self._draft

    def begin(self) -> None:
        """It begins."""
        assert self._draft
        draft, self._draft = self._draft, None
        self.record(
            "config",
            config_id=draft.config_id,
            params=draft.params,
            parameters=draft.parameters,
        )

    def left(self) -> int:
        """How many there are, as far as is known."""
        state, asked = self.state, len(self.state.asked)
        none = state.exhausted or self.race.next_new() is None
        return asked + (0 if none else max(0, self.study.search.trials - self._proposed))

    @property
    def _proposed(self) -> int:
        """How many of the sampler's have begun."""
        return len(self.state.configurations) - self.state.added

    def _first(self) -> dict[str, Any] | None:
        if self.state.asked:
            return next(iter(self.state.asked.values()))
        key = self.race.next_new()
        return self.pool.params[key] if key else propose(self.study, self.state, self._proposed)
