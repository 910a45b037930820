"""predictions.json of a fold, which may come from elsewhere: what its weights find on the scans
held out from it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from raybone.data.annotations import is_rle
from raybone.errors import DamagedFile
from raybone.storage import Folder
from raybone.types import Finding, Scan

NAME = "predictions.json"


class Found(BaseModel):
    """A finding in predictions.json, as far as it can harm who reads it."""

    model_config = ConfigDict(allow_inf_nan=False)

    scan_id: str
    boxes: list[tuple[float, float, float, float]] = []
    scores: list[float] = []
    labels: list[NonNegativeInt] = []
    masks: list[dict[str, Any]] = []
    score: float = 0.0
    positive: bool = False


class Predictions(BaseModel):
    """predictions.json of a fold."""

    epoch: int
    findings: list[Found]


def write_findings(fold: Folder, number: int, epoch: int, findings: Sequence[Finding]) -> None:
    """Write what the weights of this epoch find on the validation scans of fold ``number``."""
    content = {"fold": number, "epoch": epoch, "findings": findings}
    fold.write(NAME, json.dumps(content).encode())


def read_findings(fold: Folder, epoch: int, scans: Sequence[Scan]) -> list[Finding] | None:
    """Findings that a fold's weights of this epoch have of its validation scans; None where there
    are none.

    Args:
        scans: of the dataset, at least those of the fold.
    Raises:
        DamagedFile: its predictions.json is none that a training on them writes.
    """
    content = fold.read(NAME)
    if content is None:
        return None
    shape_of = {s.scan_id: (s.height, s.width) for s in scans}
    try:
        found = Predictions.model_validate_json(content)
        if any(
            len(f.boxes) != len(f.scores) or len(f.boxes) != len(f.labels) for f in found.findings
        ):
            raise ValueError("boxes, scores and labels differ in number")
        if not all(is_rle(m, shape_of[f.scan_id]) for f in found.findings for m in f.masks):
            raise ValueError("a mask is no run-length code that fills its scan")
        return (
            cast(list[Finding], json.loads(content)["findings"]) if found.epoch == epoch else None
        )
    except (ValueError, KeyError) as error:
        raise DamagedFile(
            f"{fold.url}/{NAME}: must be what a training left there, but "
            f"{' '.join(str(error).split())[:150]}; put a good copy there, or remove it with "
            "last.pt and the fold starts again"
        ) from None
