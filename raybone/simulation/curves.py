"""A study as a table of learning curves, on which schedulers can be replayed.

Axes: C configurations, S seeds, K folds, E epochs.
"""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raybone.errors import WrongInput
from raybone.hpo.races import features
from raybone.hpo.state import Configuration, State
from raybone.study.spec import ResolvedStudy
from raybone.types import Array


@dataclass(frozen=True)
class Curves:
    """Recorded scores of every configuration, more is better.

    T_CSKE: scores; seconds_C: of one fold epoch; steps: optimiser steps an epoch, inf when not
    known; model_C: whose configuration it is, empty names when not known; X_CD: its
    hyper-parameters as numbers, None when not known.
    """

    name: str
    T_CSKE: Array
    seconds_C: Array
    steps: float = math.inf
    model_C: tuple[str, ...] = ()
    X_CD: Array | None = None

    def model(self, c: int) -> str:
        """The model of a configuration, empty when not known."""
        return self.model_C[c] if self.model_C else ""

    def x(self, c: int) -> Array | None:
        """The hyper-parameters of a configuration as numbers, None when not known."""
        return None if self.X_CD is None else self.X_CD[c]


def read_curves(path: Path | str) -> Curves:
    """Read recorded curves: an npz with T (configurations, seeds, folds, epochs) and cost.

    Raises:
        WrongInput: not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {k: np.asarray(content[k]) for k in content.files}
    except (OSError, ValueError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or "is none"
        raise WrongInput(
            f"--curves {path}: must be an npz of recorded curves, but: {reason}; `raybone search "
            "--record` writes one"
        ) from None
    T_CSKE, seconds_C = arrays.get("T", np.zeros(())), arrays.get("cost", np.zeros(()))
    if T_CSKE.ndim != 4 or T_CSKE.size == 0 or seconds_C.shape != T_CSKE.shape[:1]:
        raise WrongInput(
            f"--curves {path}: must hold T (configurations, seeds, folds, epochs) and cost, got "
            f"{ ({k: v.shape for k, v in arrays.items()}) }; `raybone search --record` writes such "
            "a file"
        )
    for name, array in (("T", T_CSKE), ("cost", seconds_C)):
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise WrongInput(
                f"--curves {path}: {name} must be finite numbers, but is not; put the worst score "
                "in the place of a missing one"
            )
    sign = -1 if str(arrays.get("direction")) == "minimize" else 1
    steps = float(arrays.get("steps", math.inf))
    model_C = tuple(map(str, np.atleast_1d(arrays.get("model", ()))))
    if len(model_C) not in (0, len(T_CSKE)):
        raise WrongInput(
            f"--curves {path}: model must name that of each of {len(T_CSKE)} configurations, but "
            f"has {len(model_C)} names; record the table again"
        )
    X_CD = arrays.get("F")
    if X_CD is not None and (
        X_CD.ndim != 2 or len(X_CD) != len(T_CSKE) or X_CD.dtype.kind not in "fiub"
    ):
        raise WrongInput(
            f"--curves {path}: F must be numbers (configurations, hyper-parameters), got "
            f"{X_CD.shape}; record the table again"
        )
    return Curves(
        Path(path).stem,
        sign * T_CSKE.astype(float),
        seconds_C.astype(float),
        steps,
        model_C,
        None if X_CD is None else X_CD.astype(float),
    )


def curves_of(url: str, study: ResolvedStudy, state: State) -> tuple[bytes, int]:
    """The content of curves.npz: every configuration that ran all folds in full, for `raybone
    simulate`.

    T (configurations, 1, folds, epochs) scores as in the journal, cost seconds of a fold epoch
    (median), direction of the metric, steps, the optimiser steps of an epoch, model, and F, the
    hyper-parameters as numbers (configurations, features).

    Args:
        url: what to call the study.
    Returns:
        The content, and the number of configurations in it.
    Raises:
        WrongInput: fewer than two configurations ran in full.
    """
    curves = [
        (c, T_KE) for c in state.configurations.values() if (T_KE := _curves(study, c)) is not None
    ]
    if len(curves) < 2:
        raise WrongInput(
            f"study {url}: a table needs two configurations with every fold in full, got "
            f"{len(curves)}; run it with --record"
        )
    content = io.BytesIO()
    np.savez_compressed(
        content,
        T=np.stack([T_KE for _, T_KE in curves])[:, None].astype(np.float32),
        cost=np.array([float(np.median(c.epoch_seconds)) for c, _ in curves]),
        direction=np.array(study.direction),
        steps=np.array(study.resolved.steps or math.inf),
        model=np.array([study.under(c.params).model for c, _ in curves]),
        F=np.stack([features(study, c.params) for c, _ in curves]),
    )
    return content.getvalue(), len(curves)


def _curves(study: ResolvedStudy, configuration: Configuration) -> Array | None:
    """Scores (K, E) of a configuration, None unless all are there and one is a number; what is not
    finite is the worst score seen.
    """
    folds = study.resolved.folds
    runs = [configuration.epochs.get(k) for k in range(folds)]
    columns = [r.metrics.get(study.metric, ()) if r else () for r in runs]
    if any(len(c) != study.epochs for c in columns):
        return None
    T_KE = np.array(columns, float)
    if not np.isfinite(T_KE).any():
        return None
    worst = study.sign * np.nanmin(study.sign * T_KE)
    return np.where(np.isfinite(T_KE), T_KE, worst)
