"""What better scores cost: the rows of a leaderboard that no other beats."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

from raybone.results.leaderboard import metric_of

if TYPE_CHECKING:
    import pandas as pd

Cost = Literal["parameters", "train_seconds", "ms"]
COSTS = get_args(Cost)


def pareto(table: pd.DataFrame, sign: int, cost: Cost) -> pd.DataFrame:
    """The complete rows to which no other is at least as good and as cheap, and better in one of
    the two; the cheapest first.

    Args:
        table: a leaderboard, with a column of what is paid.
        sign: 1 where more of the metric is better, -1 where less is.
    """
    mean = f"{metric_of(table)}_mean"
    scored = table[(table["state"] == "complete") & table[mean].notna() & table[cost].notna()]
    score = scored[mean] * sign
    order = scored.assign(score=score).sort_values([cost, "score"], ascending=[True, False])
    kept, last = [], (-math.inf, math.nan)
    for index, pair in zip(order.index, zip(order["score"], order[cost])):
        if pair[0] > last[0] or pair == last:
            kept.append(index)
            last = pair
    return table.loc[kept]
