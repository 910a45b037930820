"""Cross-validated hyper-parameter search for bone-metastasis models on Ray.

Importing it imports neither torch nor ray.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """``__version__``, for which a checkout asks git."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from raybone.version import version

    return version()
