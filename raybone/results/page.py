"""The HTML of a report: a template with values and charts, which needs nothing else."""

from __future__ import annotations

import math
import platform
import secrets
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
import orjson
from markupsafe import Markup

from raybone.environment import packages
from raybone.results.charts.vega import Chart, Row
from raybone.version import version


def page(charts: Mapping[str, Sequence[Chart]], rows: Sequence[Row], values: dict[str, Any]) -> str:
    """The template with its values; all that comes from the study is escaped, in HTML and in
    JSON.

    Args:
        charts: by section.
        rows: of ``configurations``, which several charts draw.
        values: of the template, by name.
    """
    drawn = {
        f"{section}-{n}": {"spec": chart.spec, "data": chart.data}
        for section, many in charts.items()
        for n, chart in enumerate(many)
    }
    # Text is as wide as in the fonts that a page without outside resources has.
    config = orjson.loads(_file("vega.json"))
    text = orjson.dumps({"config": config, "data": {"configurations": rows}, "charts": drawn})
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": _number, "chance": _chance, "day": _day}
    return environment.from_string(_file("report.html")).render(
        values,
        shown=charts,
        payload=Markup(text.decode().replace("<", "\\u003c")),
        vega=Markup(_file("vega.js")),  # Vega, Vega-Lite and vega-embed, which `make vega` writes
        nonce=secrets.token_urlsafe(16),
        now=time.time(),
        python=platform.python_version(),
        versions={"raybone": version(), **packages()},
    )


def _file(name: str) -> str:
    return files("raybone.results").joinpath(name).read_text("utf-8")


def _number(value: Any) -> str:
    """Four digits of a float, nothing for what is not there."""
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else ""
    return "" if value is None else str(value)


def _chance(p: float | None) -> str:
    """A p in three digits."""
    if p is None or math.isnan(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _day(seconds: float) -> str:
    """Minutes are exact enough."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
