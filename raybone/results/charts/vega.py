"""What all charts share: colours, their form on a page, and small words."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import altair as alt

Row = dict[str, Any]
HUES = [f"var(--c{n})" for n in range(1, 7)]
INK, LINE = "var(--ink)", "var(--line)"


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite spec without data, the data by name, a title and what the chart shows in
    words.
    """

    title: str
    says: str
    spec: dict[str, Any]
    data: dict[str, list[Row]]


def drawn(
    title: str, says: str, chart: alt.TopLevelMixin, data: dict[str, list[Row]], wide: bool = True
) -> Chart:
    """Altair's spec without what differs from page to page; a wide one fills the width it has."""
    spec = {k: v for k, v in chart.to_dict().items() if k not in ("config", "$schema")}
    spec["description"] = f"{title}. {says}"
    if wide:
        spec |= {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
    return Chart(title, says, spec, data)


def over(data: str, *channels: Any) -> alt.Chart:
    """A chart of the rows of that name, with these channels."""
    return alt.Chart(alt.NamedData(data)).encode(*channels)


def y_axis(title: str, field: str = "y:Q") -> alt.Y:
    """A vertical axis that need not begin at 0."""
    return alt.Y(field, title=title, scale=alt.Scale(zero=False))


def short(value: float | None) -> float | None:
    """Five digits of a number; None for one that is not finite."""
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None


def word(value: Any) -> str | None:
    """A hyper-parameter in a few letters."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return None if value is None else str(value)


def plain(name: str) -> str:
    """A name that can stand in an expression of Vega's."""
    return re.sub(r"[^\w .+-]", "?", name)
