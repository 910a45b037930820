"""Operating points of the winner, and how a metric is spread over scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np

from raybone.metrics.lesions import RATES
from raybone.results.charts.course import spread
from raybone.results.charts.vega import HUES, LINE, Chart, drawn, over, short
from raybone.types import Array

ALL = "all folds"
POINTS = 250  # of a line


def curve(
    title: str,
    says: str,
    axes: tuple[str, str],
    lines: Mapping[str, tuple[Array, Array]],
    rates: bool = False,
) -> Chart:
    """A line for all folds together, and a thin one for each.

    Args:
        axes: what x and y are.
        lines: x and y of a line by its name; that of all folds is called ``all folds``.
        rates: whether x is false positives a scan, which stand on a logarithmic axis from 1/16 to
            8, and else from 0 to 1.
    """
    rows = [
        {"f": name, "x": short(x_T[i]), "y": short(y_T[i])}
        for name, (x_T, y_T) in lines.items()
        for i in spread(len(x_T), POINTS)
    ]
    scale, axis = alt.Scale(domain=[0, 1]), alt.Axis()
    if rates:
        scale = alt.Scale(type="log", domain=[1 / 16, 8], clamp=True)
        axis = alt.Axis(format="~g", values=[1 / 16, 1 / 8, *RATES])
    base = over(
        "rows",
        alt.X("x:Q", title=axes[0], scale=scale, axis=axis),
        alt.Y("y:Q", title=axes[1], scale=alt.Scale(domain=[0, 1])),
    )
    chart = alt.layer(
        *(
            base.transform_filter(f"datum.f {sign} '{ALL}'")
            .mark_line(color=hue, strokeWidth=width, aria=False)
            .encode(detail="f:N")
            for sign, hue, width in (("!=", LINE, 1), ("==", HUES[0], 2.5))
        )
    )
    return drawn(title, says, chart, {"rows": rows})


def reliability_chart(says: str, bins: Sequence[tuple[float, float, int]]) -> Chart:
    """The share that is true by the probability, with the diagonal of what is sure to be right."""
    rows = [{"x": short(p), "y": short(share), "n": n} for p, share, n in bins]
    base = over(
        "rows",
        alt.X("x:Q", title="probability", scale=alt.Scale(domain=[0, 1])),
        alt.Y("y:Q", title="share that is true", scale=alt.Scale(domain=[0, 1])),
    )
    ideal = over("ideal", alt.X("x:Q"), alt.Y("x:Q")).mark_line(color=LINE, strokeDash=[4, 4])
    points = base.mark_circle(color=HUES[0], opacity=1).encode(
        size=alt.Size("n:Q", title="findings", legend=None)
    )
    line = base.mark_line(color=HUES[0], strokeWidth=2)
    chart = alt.layer(ideal, line, points)
    return drawn("Reliability", says, chart, {"rows": rows, "ideal": [{"x": 0}, {"x": 1}]})


def decision_chart(says: str, lines: Mapping[str, tuple[Array, Array]]) -> Chart:
    """Net benefit by the probability from which on one would act, a line a way to decide."""
    rows = [
        {"f": name, "x": short(x), "y": short(y)}
        for name, (x_T, y_T) in lines.items()
        for x, y in zip(x_T.tolist(), y_T.tolist())
    ]
    top = max(float(y_T.max()) for _, y_T in lines.values())
    chart = over(
        "rows",
        alt.X("x:Q", title="probability from which on one would act"),
        alt.Y("y:Q", title="net benefit", scale=alt.Scale(domain=[-0.1 * top, top], clamp=True)),
        alt.Color("f:N", title="", scale=alt.Scale(domain=[*lines], range=HUES[: len(lines)])),
    ).mark_line(strokeWidth=2)
    return drawn("Decision curve of patients", says, chart, {"rows": rows})


def histogram(title: str, says: str, x: str, values_N: Array) -> Chart:
    """How many scans have which value, from 0 to 1."""
    count_B, edge_B = np.histogram(values_N, bins=20, range=(0, 1))
    rows = [
        {"a": short(a), "b": short(b), "n": int(n)} for n, a, b in zip(count_B, edge_B, edge_B[1:])
    ]
    chart = over(
        "rows",
        alt.X("a:Q", title=x, bin="binned", scale=alt.Scale(domain=[0, 1])),
        alt.X2("b:Q"),
        alt.Y("n:Q", title="scans"),
    ).mark_bar(color=HUES[0])
    return drawn(title, says, chart, {"rows": rows})
