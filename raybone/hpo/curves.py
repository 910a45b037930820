"""A study as a table of learning curves, on which schedulers can be replayed."""

from __future__ import annotations

import io
import math

import numpy as np

from raybone.errors import WrongInput
from raybone.hpo.state import Configuration, State
from raybone.study.spec import ResolvedStudy
from raybone.types import Array


def curves_of(url: str, study: ResolvedStudy, state: State) -> tuple[bytes, int]:
    """The content of curves.npz: every configuration that ran all folds in full, for `raybone
    simulate`.

    T (configurations, 1, folds, epochs) scores as in the journal, cost seconds of a fold epoch
    (median), direction of the metric, and steps, the optimiser steps of an epoch.

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
    )
    return content.getvalue(), len(curves)


def _curves(study: ResolvedStudy, configuration: Configuration) -> Array | None:
    """Scores (K, E) of a configuration, None unless all are there; what is not finite is the worst
    score seen.
    """
    folds = study.resolved.folds
    runs = [configuration.epochs.get(k) for k in range(folds)]
    columns = [r.metrics.get(study.metric, ()) if r else () for r in runs]
    if any(len(c) != study.epochs for c in columns):
        return None
    T_KE = np.array(columns, float)
    worst = np.nanmin(T_KE) if study.direction == "maximize" else np.nanmax(T_KE)
    return np.where(np.isfinite(T_KE), T_KE, worst)
