"""Which hyper-parameters set the best configurations apart."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from raybone.hpo.optuna_study import importances
from raybone.hpo.sampler import STARTUP
from raybone.results.charts.vega import HUES, Chart, Row, drawn, over, short
from raybone.study.space import joint
from raybone.study.spec import Study

SURE = 50  # configurations from which shares are more than a hint


def importance(study: Study, records: Sequence[Row]) -> Chart | None:
    """PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255) of what sets the best tenth apart; None
    below 8 scored rows.

    A configuration is judged by its row in the table: complete rows by score, the others by how far
    they got, then by score.
    """
    scored = [
        r["params"]
        for r in records
        if r["state"] != "failed" and r[f"{study.metric}_mean"] is not None
    ]
    if len(scored) < STARTUP or not (space := joint(study)):
        return None
    shares = importances(space, scored)
    rows = [{"p": name, "x": short(share)} for name, share in shares.items()]
    chart = (
        over(
            "rows",
            alt.Y("p:N", sort=None, title=None),
            alt.X("x:Q", title="share of importance", scale=alt.Scale(domain=[0, 1])),
        )
        .mark_bar(color=HUES[0])
        .encode(tooltip=["p:N", "x:Q"])
        .properties(height=26 * len(rows))
    )
    says = (
        f"What sets the best tenth of {len(scored)} scored configurations apart from the rest "
        "(PED-ANOVA). Complete ones stand by their score, stopped ones below them by how far they "
        "got."
    )
    if len(scored) < SURE:
        says += f" From {len(scored)} configurations this is a hint, no more."
    return drawn("Importance", says, chart, {"rows": rows})
