"""What better scores cost: the metric over training time and over size, with the Pareto front."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt

from raybone.results.charts.parameters import SHAPES
from raybone.results.charts.vega import HUES, INK, Chart, Row, drawn, over, short, y_axis
from raybone.results.pareto import Cost, pareto
from raybone.study.spec import Study

if TYPE_CHECKING:
    import pandas as pd

# Of each cost, its title and what its unit has of the column's.
COSTS: dict[Cost, tuple[str, float]] = {
    "train_seconds": ("hours of training, all folds", 3600),
    "parameters": ("trained parameters", 1),
}
NAMED = 8  # configurations of a front that are named


def costs(study: Study, table: pd.DataFrame) -> list[Chart]:
    """The complete rows of a leaderboard over each cost in which they differ."""
    charts = [_chart(study, table[table[cost] > 0], cost) for cost in COSTS]
    return [chart for chart in charts if chart]


def _chart(study: Study, table: pd.DataFrame, cost: Cost) -> Chart | None:
    m, (title, unit) = study.metric, COSTS[cost]
    front = pareto(table, study.sign, cost)["config_id"].tolist()
    complete = table[(table["state"] == "complete") & table[f"{m}_mean"].notna()]
    if complete[cost].nunique() < 2:
        return None
    rows: list[Row] = [
        {
            "c": r["config_id"],
            "k": r["model"],
            "x": short(r[cost] / unit),
            "y": short(r[f"{m}_mean"]),
            "a": short(r[f"{m}_nb_low"]),
            "b": short(r[f"{m}_nb_high"]),
            "f": int(r["config_id"] in front),
        }
        for r in complete.to_dict("records")
    ]
    models = [*dict.fromkeys(complete["model"])]
    scale = alt.Scale(type="log", nice=False, padding=12)
    axis = alt.Axis(format="~s" if unit == 1 else "~g", tickCount=6, labelOverlap=True, grid=False)
    legend = alt.Legend(symbolOpacity=1)
    base = over(
        "rows",
        alt.X("x:Q", title=title, scale=scale, axis=axis),
        y_axis(m),
        alt.Color("k:N", title="model", scale=alt.Scale(domain=models, range=HUES), legend=legend),
    )
    rest, best = (base.transform_filter(f"datum.f == {f}") for f in (0, 1))
    shapes = alt.Scale(domain=models, range=SHAPES)
    shape = alt.Shape("k:N", title="model", scale=shapes, legend=legend)
    ends = {"y": alt.Y("a:Q"), "y2": alt.Y2("b:Q")}
    words = {"tooltip": ["c:N", "k:N", "x:Q", "y:Q", "a:Q", "b:Q"]}
    chart = alt.layer(
        rest.mark_rule(opacity=0.12, aria=False).encode(**ends),
        best.mark_line(interpolate="step-after", strokeWidth=1.5).encode(color=alt.value(INK)),
        rest.mark_point(filled=True, size=35, opacity=0.6, aria=False).encode(shape, **words),
        best.mark_rule(strokeWidth=2).encode(**ends),
        best.mark_point(filled=True, size=130, opacity=1, stroke=INK).encode(shape, **words),
    )
    named = ", ".join(front[:NAMED]) + (f" and {len(front) - NAMED} more" * (len(front) > NAMED))
    says = (
        f"A point is a complete configuration, its bar the 95 % interval of {m} (Nadeau and "
        "Bengio). The line is the Pareto front: no other configuration is at least as good and "
        f"as cheap, and better in one of the two, as {named}, the cheapest first."
    )
    return drawn(f"{m} over {title}", says, chart, {"rows": rows})
