"""A study in one process without Ray: the debugging twin of cluster/, and what both have in
common.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from raybone.data.dataset import Dataset
from raybone.errors import RunFailed, WrongInput
from raybone.hpo.brain import Brain, Work
from raybone.hpo.lease import EXPIRES, Lease
from raybone.hpo.warm_start import warm_start
from raybone.metrics.intervals import freedom, patient_draws
from raybone.models._model import Model
from raybone.results.study_folder import (
    RUNS,
    STOP,
    ConfigurationFolder,
    StudyFolder,
    earlier_rows,
)
from raybone.run.checks import checker, configure, resolve
from raybone.study.metric import FALSE_POSITIVES
from raybone.study.spec import ResolvedStudy, Study
from raybone.tasks import task_named
from raybone.tasks.base import Outcome, Task
from raybone.train.fit import evaluate_weights, fit
from raybone.train.samples import FoldJob
from raybone.types import Epoch, Pooled, Segment

# Keys that a resumed study may change: they do not alter what is already trained.
CHANGEABLE = {"limits", "resources", "keep", "resolved"}

# Reasons at which a search has what it was after, and its winner meets the test group.
ENDS = ("complete", "limits.target", "limits.converged")

# What a study folder may hold before its study.yaml is written; the last two are the
# demonstration's.
OWN = ("lease.json", STOP, "logs", "journal", RUNS, "phantom", "dataset")

# Scores a configuration on the test group.
Examiner = Callable[[ConfigurationFolder], dict[str, float]]

# The reason that begins so is a failure of machines or storage.
HALTED = "halted"


@dataclass
class OpenStudy:
    """A study that this process drives: checked, leased, with its brain replayed from the
    journal.
    """

    study: ResolvedStudy
    folder: StudyFolder
    dataset: Dataset
    model: Model
    brain: Brain
    lease: Lease
    published: int = -1
    pruned: set[str] = field(default_factory=set)
    _rests_until: float = 0.0

    def publish(self, last: bool = False) -> None:
        """Rewrite leaderboard.csv when something has happened since, and delete weights that nobody
        will want.

        Args:
            last: do so now, even if it would take more than a twentieth of the driver's time.
        """
        with self.brain.lock:
            began = time.monotonic()
            if (
                self.lease.lost
                or self.brain.version == self.published
                or (began < self._rests_until and not last)
            ):
                return
            self.published = self.brain.version
            board = self.folder.write_table()
            complete = list(board["config_id"][board["state"] == "complete"])
            keep = max(self.study.keep, self.to_test() is not None)
            ended = {
                c.id
                for c in self.brain.state.configurations.values()
                if c.status in ("stopped", "failed")
            }
        for config_id in (ended | set(complete[keep:])) - self.pruned:
            self.folder.configuration(config_id).drop_weights()
            self.pruned.add(config_id)
        self._rests_until = time.monotonic() + 20 * (time.monotonic() - began)

    def to_test(self) -> ConfigurationFolder | None:
        """The best complete configuration, when there is a test group that it was not scored on."""
        best = self.folder.winner() if self.dataset.test else None
        return best if best and not best.record.test and not best.record.untested else None

    def stop_wanted(self) -> bool:
        """Whether `raybone stop` has asked this study to stop; remembered by the brain."""
        if self.lease.lost:
            self.brain.stopping = "another driver has taken this study over"
        if not self.brain.stopping and self.folder.stop is not None:
            self.brain.stopping = "stopped by `raybone stop`"
        return bool(self.brain.stopping)


def search(
    study: Study,
    out: str,
    tell: Callable[[Brain], None] = lambda brain: None,
    warm: Sequence[str] = (),
) -> str:
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
    with open_study(study, out, warm=warm) as opened:
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


@contextlib.contextmanager
def open_study(
    study: Study,
    out: str,
    connect: Callable[[ResolvedStudy], int] = lambda study: 1,
    warm: Sequence[str] = (),
) -> Iterator[OpenStudy]:
    """Check a study, take its lease, write or compare study.yaml and replay the journal; gives it
    all back at the end.

    Args:
        connect: given the checked study, gives the number of training runs that fit at once.
        warm: leaderboards to start from; a resumed study keeps those it was started with.
    Raises:
        WrongInput: the study is wrong, another driver is at work, or the folder holds another
            study.
    """
    folder = StudyFolder(out)
    _check_out(folder, out)
    checked, dataset, model = resolve(study, folder.files)
    if warm:
        tables = {source: earlier_rows(source) for source in warm}
        checked = checked.with_prior(warm_start(checked, tables))
    stop = folder.stop
    slots = connect(checked)
    with _writing(out):
        lease = Lease(folder.files)
        lease.take()
        ended = threading.Event()
        keeper = threading.Thread(target=_keep, args=(lease, ended), daemon=True)
        keeper.start()
        try:
            checked = _agree(folder, checked)
            folder.refuse_loss()
            folder.write_study(checked)
            # Another request came while the search waited for nodes, and counts
            if folder.stop == stop:
                folder.files.delete(STOP)
            brain = Brain(checked, folder.journal(), checker(checked, model), slots)
            folder.state = brain.state
            opened = OpenStudy(checked, folder, dataset, model, brain, lease)
            opened.publish()
            yield opened
        finally:
            ended.set()
            keeper.join()
            lease.drop()


def train(
    folder: StudyFolder, dataset: Dataset, model: Model, work: Work, segment: Segment
) -> Iterator[Epoch]:
    """The epochs of one segment of a work, through ``fit``."""
    study, fold = folder.study, segment.fold
    config = configure(study, model, work.params)
    return fit(
        FoldJob(dataset, model, config, fold, study.epochs, study.search.seed),
        folder.configuration(work.config_id).fold(fold),
        study.metric,
        segment.stop,
        segment.start,
        study.resources.gpus > 0,
    )


def pool(folder: StudyFolder, dataset: Dataset, model: Model, work: Work) -> Pooled | None:
    """What the findings of all folds together give, or None while a fold's final predictions are
    missing.
    """
    study, folds = folder.study, folder.configuration(work.config_id).predictions(dataset)
    if folds is None:
        return None
    findings = [finding for fold in folds for finding in fold]
    scans = [s for fold in range(dataset.folds) for s in dataset.validation(fold)]
    categories = list(configure(study, model, work.params).categories)
    outcome, task = Outcome(findings, scans, categories), task_named(model.task)
    metrics = {**task.score(outcome), FALSE_POSITIVES: task.false_positives(outcome)}
    return Pooled(metrics, *_bootstrap(study, dataset, task, outcome))


def examine(tested: ConfigurationFolder, dataset: Dataset, model: Model) -> dict[str, float]:
    """Mean score of a configuration's fold models on the test group; empty when the weights of one
    are gone.
    """
    study = tested.folder.study
    config, gpu = configure(study, model, tested.params), study.resources.gpus > 0
    scores = [
        evaluate_weights(dataset, model, config, tested.fold(fold), dataset.test, gpu)
        for fold in range(dataset.folds)
    ]
    known = [s for s in scores if s is not None]
    if len(known) < dataset.folds:
        return {}
    return {m: sum(s[m] for s in known) / len(known) for m in known[0]}


def conclude(opened: OpenStudy, examiner: Examiner | None = None) -> str:
    """End the search: look at the test group once for the winner of a complete one, and write the
    last leaderboard.

    Args:
        examiner: does what ``examine`` does on another machine; None does it here.
    Raises:
        RunFailed: it ended because too many configurations failed, or the winner could not be
            tested.
    """
    if opened.lease.lost:
        raise RunFailed(
            f"study {opened.folder.url}: another driver has taken it over while this one stood "
            "still; `raybone watch` shows it"
        )
    reason = opened.brain.finish()
    try:
        if reason.startswith(ENDS) and (best := opened.to_test()):
            here = partial(examine, dataset=opened.dataset, model=opened.model)
            _look(opened, best, examiner or here)
    finally:
        opened.publish(last=True)
    if reason.startswith(HALTED):
        raise RunFailed(f"study {opened.folder.url} {reason}; mend that and start the same command")
    if reason.startswith("limits.failed_trials"):
        raise RunFailed(
            f"{reason}; reasons are in {opened.folder.url}/leaderboard.csv and the journal; mend "
            "the cause and start the same command"
        )
    if reason.startswith(ENDS) and (why := _fruitless(opened)):
        raise RunFailed(f"study {opened.folder.url}: {why}; mend the cause and start another study")
    return reason


def _fruitless(opened: OpenStudy) -> str:
    """Why a search that came to its end has nothing to rank; empty when it has."""
    configurations = list(opened.brain.state.configurations.values())
    if any(c.status == "complete" for c in configurations):
        return ""
    reasons = Counter(c.reason for c in configurations if c.status == "failed") or Counter(
        opened.brain.state.refused
    )
    common = f", most often: {reasons.most_common(1)[0][0]}" if reasons else ""
    if configurations:
        return f"none of its {len(configurations)} configurations came to a result{common}"
    return f"not one configuration could be tried{common}"


def _look(opened: OpenStudy, best: ConfigurationFolder, examiner: Examiner) -> None:
    """Score the winner on the test group."""
    try:
        metrics = examiner(best)
    except Exception as error:
        cause = getattr(error, "cause", None) or error  # of a Ray task
        raise RunFailed(
            f"test group, {best.id}: must be evaluated, but {type(cause).__name__}: "
            f"{' '.join(str(cause).split())[:300]}; start the same command again"
        ) from error
    opened.brain.tested(
        best.id,
        metrics,
        ""
        if metrics
        else f"test group: {best.id} was not scored, as weights of its folds are gone",
    )


def _work(opened: OpenStudy, work: Work, tell: Callable[[Brain], None]) -> None:
    brain = opened.brain
    try:
        for segment in work.segments:
            for epoch in train(opened.folder, opened.dataset, opened.model, work, segment):
                brain.epoch(work.config_id, epoch)
                tell(brain)
                if opened.stop_wanted():
                    brain.interrupt(work.config_id)
                    return
        pooled = pool(opened.folder, opened.dataset, opened.model, work)
        if pooled:
            brain.pooled(work.config_id, pooled)
        brain.rung_done(work.config_id, work.rung)
    except (OSError, WrongInput):
        # A disk that is full, or a file that is damaged or replaced, is nobody's bad configuration
        raise
    except Exception as error:
        brain.fail(work.config_id, f"{type(error).__name__}: {error}")
    opened.publish()
    tell(brain)


def _bootstrap(
    study: ResolvedStudy, dataset: Dataset, task: Task, outcome: Outcome
) -> tuple[tuple[float, ...], float]:
    """Replicates of the mean over folds, and their degrees of freedom; patients are drawn alike in
    every configuration.

    Patients who may be one person, as slices that look alike, are drawn together. Empty for
    val_loss, which is not known by patient, and where a fold has one person.
    """
    person: dict[str, tuple[str, int]] = {
        p: (dataset.group_of[p], f) for p, f in dataset.fold_of.items()
    }
    scans_of = [task.usable(dataset.validation(fold)) for fold in range(dataset.folds)]
    patients = list(dict.fromkeys(person[s.patient_id] for scans in scans_of for s in scans))
    fold_P = np.array([fold for _, fold in patients])
    patients_K = np.bincount(fold_P)
    if study.metric == "val_loss" or patients_K.min() < 2:
        return (), math.nan
    every = [s for scans in scans_of for s in scans]
    positive = task.positive(replace(outcome, scans=every))
    sick = {person[s.patient_id] for s in every if s.scan_id in positive}
    draws_BP = patient_draws(
        fold_P, np.array([p in sick for p in patients]), [int(dataset.hash, 16), study.search.seed]
    )
    places = {patient: place for place, patient in enumerate(patients)}
    scores_KB = np.array(
        [
            task.resampled(
                replace(outcome, scans=scans),
                draws_BP[:, [places[person[s.patient_id]] for s in scans]],
            )[study.metric]
            for scans in scans_of
        ]
    )
    return tuple(scores_KB.mean(0).tolist()), freedom(scores_KB, patients_K)


def _check_out(folder: StudyFolder, out: str) -> None:
    """A study has a folder of its own."""
    local, path = folder.files.local, Path(folder.files.path)
    if local and path.exists() and not path.is_dir():
        raise WrongInput(f"--out {out}: must be a folder, but is a file; choose another name")
    above = path.absolute().parents if local else ()
    inside = any((p / "dataset.json").is_file() for p in above)
    foreign = [] if folder.text else [n for n in folder.files.names() if n not in OWN]
    if inside or "dataset.json" in foreign:
        raise WrongInput(
            f"--out {out}: must not lie in a dataset, which others are given; choose another place"
        )
    if foreign:
        raise WrongInput(
            f"--out {out}: must be new, empty or a study's, but holds {len(foreign)} other things; "
            "choose another name"
        )


def _agree(folder: StudyFolder, study: ResolvedStudy) -> ResolvedStudy:
    """A study folder holds one study; what it was started with must be what is asked now, and its
    warm start stays.
    """
    if folder.text is None:
        return study
    started = folder.study
    old, new = started.resolved, study.resolved
    same = old.dataset_hash == new.dataset_hash
    kept = [k for k in Study.model_fields if k not in CHANGEABLE and (k, same) != ("dataset", True)]
    changed = [k for k in kept if getattr(started, k) != getattr(study, k)]
    trials = {"trials": study.search.trials}
    if changed == ["search"] and started.search.model_copy(update=trials) == study.search:
        changed = []
    if not same:
        changed.append(f"dataset (hash {old.dataset_hash}, now {new.dataset_hash})")
    if old.ladder != new.ladder and not changed:
        changed.append("ladder")
    if new.prior not in (None, old.prior):
        raise WrongInput(
            f"study {folder.url}: a started study keeps its warm start, but --warm-start gives "
            "another one now; leave --warm-start out, or give another --out"
        )
    if changed:
        raise WrongInput(
            f"study {folder.url}: a started study keeps its settings, but {', '.join(changed)} "
            "differ; give another --out, or the settings of its study.yaml"
        )
    return study.with_prior(old.prior)


def _keep(lease: Lease, ended: threading.Event) -> None:
    while not ended.wait(EXPIRES / 4):
        # A disk that fails now may work at the next turn; the journal, which must not fail, says so
        # if it does not.
        with contextlib.suppress(OSError):
            lease.renew()


@contextlib.contextmanager
def _writing(out: str) -> Iterator[None]:
    """Errors of the disk as one line."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        own = not error.filename or str(error.filename).startswith(os.path.abspath(out))  # noqa: PTH100
        where = f"--out {out}: cannot be written" if own else f"{error.filename}: cannot be used"
        raise RunFailed(
            f"{where}: {os.strerror(error.errno)} ({error.errno}); mend that and start the same "
            "command again: it resumes"
        ) from error
