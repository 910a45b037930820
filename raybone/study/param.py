"""One searched hyper-parameter: a distribution, and when it exists."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Annotated, Any, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

KINDS = ("uniform", "log_uniform", "int_uniform", "choice")
Value = float | int | str | bool | list[str] | list[float] | None
# A password would lie in study.yaml; trackers take theirs from the environment.
Tracker = Annotated[str, Field(pattern=r"^(mlflow|tensorboard|wandb):[^@]+$")]
# Aliases let a few lines of YAML stand for more than any memory holds.
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2


class Strict(BaseModel):
    """Base of every configuration: no unknown key, no change after construction, finite numbers."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's ``yes`` and ``true`` are no 1."""
        kind = cls.model_fields[info.field_name or ""].annotation
        kinds = {kind, *get_args(kind)}
        of_each = {part for other in kinds for part in get_args(other)}
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise ValueError(f"must be a number, got {str(value).lower()}; write one")
        if of_each & {int, float} and any(isinstance(v, bool) for v in _listed(value)):
            raise ValueError("must be numbers, got one that is true or false; write numbers")
        return value


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


class Param(Strict):
    """One searched hyper-parameter: exactly one distribution, and optionally when it exists at
    all.
    """

    uniform: tuple[float, float] | None = Field(None, description="[low, high]")
    log_uniform: tuple[float, float] | None = Field(None, description="[low, high], 0 < low")
    int_uniform: tuple[int, int] | None = Field(None, description="[low, high], both included")
    choice: tuple[Value, ...] | None = Field(
        None, min_length=1, description="the values to choose from"
    )
    when: dict[str, Value] | None = Field(
        None, description="other searched parameters and the value they must have"
    )

    @model_validator(mode="before")
    @classmethod
    def _names_a_distribution(cls, value: Any) -> Any:
        if isinstance(value, dict | Param):
            return value
        if not isinstance(value, list):
            raise ValueError(
                f"must name a distribution, got {_SHORT.repr(value)}; put a single value under "
                "fixed"
            )
        pair = len(value) == 2 and all(type(v) in (int, float) for v in value)
        values = ", ".join(map(_SHORT.repr, value[:3])) + ", ..." * (len(value) > 3)
        raise ValueError(
            f"must be one of uniform, log_uniform, int_uniform, choice, such as {{choice: "
            f"[{values}]}}"
            f"{f' or {{uniform: [{values}]}}' * pair}, got a list; write it so"
        )

    @model_validator(mode="after")
    def _one_distribution(self) -> Param:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                "needs exactly one of uniform, log_uniform, int_uniform, choice; got "
                f"{given or 'none'}"
            )
        bounds = self.bounds
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError(
                f"{given[0]} needs low < high, got {list(bounds)}; for one value use `fixed:`"
            )
        if self.log_uniform and self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform needs low > 0, got {self.log_uniform[0]}; use uniform")
        return self

    @property
    def bounds(self) -> tuple[float, float] | None:
        """(low, high) of a numeric distribution, None for a choice."""
        return self.uniform or self.log_uniform or self.int_uniform

    def admits(self, value: Any) -> bool:
        """Whether the distribution can draw this value."""
        if self.choice is not None:  # 0 is 0.0 but not False
            return any(
                v == value and isinstance(v, bool) == isinstance(value, bool) for v in self.choice
            )
        low, high = self.bounds or (0.0, 0.0)
        kinds = int if self.int_uniform else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high

    @property
    def kind(self) -> str:
        """The name of its distribution."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)
