"""Cross-validated hyper-parameter search for bone-metastasis models on Ray.

Importing it imports neither torch nor ray: every name is looked up when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "Bundle",
    "Cluster",
    "Results",
    "RunFailed",
    "Study",
    "WrongInput",
    "__version__",
    "choice",
    "int_uniform",
    "log_uniform",
    "models",
    "open_bundle",
    "open_dataset",
    "open_study",
    "prepare",
    "search",
    "uniform",
]

if TYPE_CHECKING:
    from raybone import models
    from raybone.api import (
        Bundle,
        Cluster,
        Results,
        RunFailed,
        Study,
        WrongInput,
        choice,
        int_uniform,
        log_uniform,
        open_bundle,
        open_dataset,
        open_study,
        prepare,
        search,
        uniform,
    )

    __version__: str
else:

    def __getattr__(name: str) -> Any:
        """A name of the API; for ``__version__`` a checkout asks git."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name == "models":
            return import_module("raybone.models")
        if name == "__version__":
            return import_module("raybone.version").version()
        return getattr(import_module("raybone.api"), name)


def __dir__() -> list[str]:
    return __all__
