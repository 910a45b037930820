"""The HTML of one patient's report, which needs nothing else."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2

from raybone.version import version


def patient_page(content: Mapping[str, Any], pictures: Sequence[bytes]) -> str:
    """The page of what ``burden`` says of a patient; all that comes from outside is escaped.

    Args:
        content: of the patient's JSON. pictures: a PNG a view.
    """
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    text = files("raybone.deploy").joinpath("patient.html").read_text("utf-8")
    return environment.from_string(text).render(
        content,
        shown=[base64.b64encode(png).decode() for png in pictures],
        day=time.strftime("%Y-%m-%d %H:%M"),
        version=version(),
    )
