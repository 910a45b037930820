"""What a line of the journal may hold: the door for journals that come from elsewhere."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Event = dict[str, Any]
NEEDS = {
    "start": ("slots",),
    "slots": ("slots",),
    "environment": ("of", "known"),
    "config": ("config_id", "params"),
    "invalid": ("params", "reason"),
    "skipped": ("params", "reason"),
    "asked": ("params",),
    "exhausted": (),
    "work": ("config_id", "rung"),
    "epoch": ("config_id", "fold", "epoch", "metrics", "seconds"),
    "rung": ("config_id", "rung"),
    "pooled": ("config_id", "metrics"),
    "test": ("config_id", "metrics"),
    "decision": ("config_id", "action", "reason"),
    "failed": ("config_id", "reason"),
    "again": ("config_id", "reason"),
    "end": ("reason",),
}
MOST = 1_000_000  # slots, folds, epochs and rungs: more were never run


class Environment(BaseModel):
    """What is told of a place where a study ran."""

    model_config = ConfigDict(extra="allow", strict=True)

    raybone: str
    python: str
    processor: str
    cores: int
    gpus: list[str]
    packages: dict[str, str]


class Line(BaseModel):
    """The fields of all kinds of events; which of them a kind has, ``NEEDS`` says."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, strict=True)

    event: str
    time: float = Field(ge=0, le=1e11)
    up: float = Field(0, ge=0, le=1e11)
    slots: int = Field(1, ge=0, le=MOST)
    config_id: str = Field("", max_length=1000)
    params: dict[str, Any] = {}
    parameters: int = Field(0, ge=0)
    rung: int = Field(0, ge=-1, le=MOST)  # -1: before the first
    fold: int = Field(0, ge=0, le=MOST)
    epoch: int = Field(1, ge=1, le=MOST)
    metrics: dict[str, float | None] = {}
    seconds: float = Field(0, ge=0, le=1e11)
    cost: dict[str, float] = {}
    machine: str = Field("", max_length=1000)
    of: str = Field("", max_length=100)
    known: Environment | None = None
    changed: str = ""
    replicates: list[float | None] = []
    freedom: float | None = None
    score: float | None = None
    action: str = ""
    reason: str = ""


def jsonable(values: dict[str, Any]) -> dict[str, Any]:
    """None instead of what JSON has no number for."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
    }


def finite(metrics: dict[str, float]) -> dict[str, float]:
    """Without what is NaN or infinite."""
    return {k: v for k, v in metrics.items() if math.isfinite(v)}


def check_event(event: Any) -> None:
    """Raise ValueError with the reason for what is no event that a search writes."""
    line = Line.model_validate(event)
    if missing := set(NEEDS.get(line.event, ())) - line.model_fields_set:
        raise ValueError(f"{line.event} without {', '.join(sorted(missing))}")
