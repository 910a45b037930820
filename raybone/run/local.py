"""A search in this process, without Ray: the debugging twin of run/ray/."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from raybone.errors import EndReason, WrongInput
from raybone.hpo.brain import Brain, Work
from raybone.run.configuration import pool, train
from raybone.run.ending import conclude
from raybone.run.interrupts import heeding
from raybone.run.session import OpenStudy, open_study
from raybone.study.spec import Study


def search(
    study: Study,
    out: str,
    tell: Callable[[Brain], None] = lambda brain: None,
    warm: Sequence[str] = (),
) -> EndReason:
    """Run or resume a study in this process; returns why it ended.

    Args:
        tell: called after every event with the brain, for progress.
        warm: leaderboards or study folders to propose from, see ``warm_start``.
    Raises:
        WrongInput: before anything is trained.
        RunFailed: too many configurations failed, or the disk is full.
    """
    asha = ["search.scheduler: asha is Ray's own, but --local has no Ray; use fold_race or full"]
    refuse_here(study, asha if study.search.scheduler == "asha" else [])
    torch.set_num_threads(study.resources.cpus)
    with open_study(study, out, warm=warm) as opened, heeding(opened.brain.stop_for):
        brain = opened.brain
        while not opened.stop_wanted() and (work := brain.peek()):
            _work(opened, brain.start(work), tell)
        reason = conclude(opened)
        tell(brain)
        return reason


def refuse_here(study: Study, problems: Sequence[str] = ()) -> None:
    """Raise WrongInput for those problems, and where a run does not fit into this one process."""
    problems, resources = list(problems), study.resources
    if resources.workers > 1:
        problems.append(
            f"resources.workers: --local is one process, got {resources.workers}; leave --local out"
        )
    if resources.gpus and not torch.cuda.is_available():
        problems.append(
            f"resources.gpus: --local found no CUDA device for gpus {resources.gpus:g}; set it to 0"
        )
    if problems:
        raise WrongInput(*problems)


def _work(opened: OpenStudy, work: Work, tell: Callable[[Brain], None]) -> None:
    brain = opened.brain
    try:
        for segment in work.segments:
            for epoch in train(opened.folder, opened.dataset, work, segment):
                brain.epoch(work.config_id, epoch)
                tell(brain)
                if opened.stop_wanted():
                    brain.interrupt(work.config_id)
                    return
                if work.config_id in brain.dropped:
                    brain.stop(work.config_id)
                    return
        pooled = pool(opened.folder, opened.dataset, work)
        if pooled:
            brain.pooled(work.config_id, pooled)
        brain.rung_done(work.config_id, work.rung)
    except (OSError, WrongInput):
        # A full disk and a damaged or replaced file do not count against the configuration
        raise
    except Exception as error:
        brain.fail(work.config_id, f"{type(error).__name__}: {error}")
    opened.publish()
    tell(brain)
