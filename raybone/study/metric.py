"""The metrics there are: which end is good, how far they go, and what papers call them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Metric:
    """Which end of a metric is good, the ends of its range, and what papers call it beside its
    name.
    """

    direction: Direction = "maximize"
    low: float = 0.0
    high: float = 1.0
    papers: tuple[str, ...] = ()

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.direction == "maximize" else -1

    def within(self, value: float) -> float:
        """Returns a confidence limit clipped to the metric's range; NaN stays."""
        return min(max(float(value), self.low), self.high)


# In the order of a leaderboard's columns. Most are shares; millimetres and losses are not.
METRICS = dict.fromkeys(
    (
        "AP",
        "AP50",
        "AP75",
        "AP_small",
        "AP_medium",
        "AP_large",
        "AR",
        "FROC",
        "dice",
        "iou",
        "scan_dice",
        "scan_iou",
        "scan_precision",
        "scan_sensitivity",
        "lesion_precision",
        "lesion_sensitivity",
        "hd95_mm",
        "AUC",
        "accuracy",
        "specificity",
        "PPV",
        "NPV",
        "precision",
        "sensitivity",
        "patient_AUC",
        "patient_precision",
        "patient_sensitivity",
        "val_loss",
    ),
    Metric(),
) | {
    "dice": Metric(papers=("F1", "DSC")),
    "sensitivity": Metric(papers=("recall",)),
    "hd95_mm": Metric("minimize", high=math.inf),
    "val_loss": Metric("minimize", -math.inf, math.inf),
}
# Of a complete configuration; not one to rank by.
FALSE_POSITIVES = "false_positives_per_lesion_free_scan"


def named(name: str) -> str:
    """What a metric of a paper is called here; another name stays."""
    return next((here for here, metric in METRICS.items() if name in metric.papers), name)
