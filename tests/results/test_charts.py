"""Charts by themselves: what is asked for decides how an axis runs, not what the axis is called."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raybone.results.charts.curves import curve


def x_of(spec: dict[str, Any]) -> dict[str, Any]:
    """The horizontal scale of the first layer."""
    return spec["layer"][0]["encoding"]["x"]["scale"]


@pytest.mark.parametrize("title", ["false positives a scan", "1 - specificity"])
def test_a_curve_has_a_logarithmic_axis_where_that_is_asked_for(title: str) -> None:
    line = {"all folds": (np.array([0.0, 0.5, 4.0]), np.array([0.0, 0.4, 0.9]))}
    plain = curve("ROC", "words", (title, "sensitivity"), line)
    rates = curve("ROC", "words", (title, "sensitivity"), line, rates=True)
    assert x_of(plain.spec) == {"domain": [0, 1]}
    assert x_of(rates.spec) == {"type": "log", "domain": [1 / 16, 8], "clamp": True}
    assert plain.data == rates.data
