"""The charts of a report, as Vega-Lite by Altair, a subject a file.

Colours are CSS variables, so that a page's theme holds in them.
"""

import os
import tempfile

# altair asks for a home folder as it is imported, and a container's user may have none.
_homeless = "HOME" not in os.environ
os.environ.setdefault("HOME", tempfile.gettempdir())
import altair  # noqa: E402, F401

if _homeless:
    del os.environ["HOME"]
