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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raybone.data.dataset import Dataset
from raybone.errors import RunFailed, WrongInput
from raybone.metrics.intervals import freedom, patient_draws
from raybone.models._model import Model
from raybone.results.leaderboard import refuse_loss, winner, write_leaderboard
from raybone.run.checks import checker, configure, resolve
from raybone.search.brain import Brain, Work
from raybone.search.journal import Journal, read_resolved
from raybone.search.lease import EXPIRES, Lease
from raybone.search.state import Configuration
from raybone.search.warm_start import warm_start
from raybone.storage import Folder
from raybone.study.spec import FALSE_POSITIVES, Prior, Study, write_study
from raybone.train.evaluate import false_positives, resampled_score, score
from raybone.train.findings import Finding, read_findings
from raybone.train.fit import evaluate_weights, fit
from raybone.train.samples import usable
from raybone.types import Epoch, Pooled, Segment

# Keys that a resumed study may change: they do not alter what is already trained.
CHANGEABLE = {"limits", "resources", "keep", "resolved"}

# Reasons at which a search has what it was after, and its winner meets the test group.
ENDS = ("complete", "limits.target", "limits.converged")

# What a study folder may hold before its study.yaml is written; the last two are the
# demonstration's.
OWN = ("lease.json", "stop", "logs", "journal", "runs", "phantom", "dataset")

# The reason that begins so is a failure of machines or storage.
HALTED = "halted"


@dataclass
class OpenStudy:
    """A study that this process drives: checked, leased, with its brain replayed from the
    journal.
    """

    study: Study
    folder: Folder
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
            board = write_leaderboard(self.folder, self.study, self.brain.state)
            complete = list(board["config_id"][board["state"] == "complete"])
            keep = max(self.study.keep, self.to_test() is not None)
            ended = {
                c.id
                for c in self.brain.state.configurations.values()
                if c.status in ("stopped", "failed")
            }
        for config_id in (ended | set(complete[keep:])) - self.pruned:
            for fold in range(self.dataset.folds):
                for name in ("last.pt", "best.pt"):
                    fold_folder(self.folder, config_id, fold).delete(name)
            self.pruned.add(config_id)
        self._rests_until = time.monotonic() + 20 * (time.monotonic() - began)

    def to_test(self) -> Configuration | None:
        """The best complete configuration, when there is a test group that it was not scored on."""
        best = winner(self.study, self.brain.state) if self.dataset.test else None
        return best if best and not best.test and not best.untested else None

    def stop_wanted(self) -> bool:
        """Whether `raybone stop` has asked this study to stop; remembered by the brain."""
        if self.lease.lost:
            self.brain.stopping = "another driver has taken this study over"
        if not self.brain.stopping and self.folder.read("stop") is not None:
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
    connect: Callable[[Study], int] = lambda study: 1,
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
    folder = Folder(out)
    _check_out(folder, out)
    checked, dataset, model = resolve(study, folder)
    if warm:
        checked = _with_prior(checked, warm_start(checked, warm))
    earlier = folder.read("stop")
    slots = connect(checked)
    with _writing(out):
        lease = Lease(folder)
        lease.take()
        ended = threading.Event()
        keeper = threading.Thread(target=_keep, args=(lease, ended), daemon=True)
        keeper.start()
        try:
            checked = _agree(folder, checked)
            refuse_loss(folder)
            folder.write("study.yaml", write_study(checked).encode())
            if (
                folder.read("stop") == earlier
            ):  # else it was given while the search waited for nodes
                folder.delete("stop")
            brain = Brain(checked, Journal(folder), checker(checked, model), slots)
            opened = OpenStudy(checked, folder, dataset, model, brain, lease)
            opened.publish()
            yield opened
        finally:
            ended.set()
            keeper.join()
            lease.drop()


def train(
    study: Study, folder: Folder, dataset: Dataset, model: Model, work: Work, segment: Segment
) -> Iterator[Epoch]:
    """The epochs of one segment of a work, through ``fit``."""
    return fit(
        dataset,
        model,
        configure(study, model, work.params),
        segment.fold,
        fold_folder(folder, work.config_id, segment.fold),
        metric=study.metric,
        epochs=study.epochs,
        stop=segment.stop,
        seed=study.search.seed,
        known=segment.start,
        gpu=study.resources.gpus > 0,
    )


def fold_folder(folder: Folder, config_id: str, fold: int) -> Folder:
    """Where a fold's weights and predictions live."""
    return folder.child(f"runs/{config_id}/fold{fold}")


def pool(study: Study, folder: Folder, dataset: Dataset, model: Model, work: Work) -> Pooled | None:
    """What the findings of all folds together give, or None while a fold's final predictions are
    missing.
    """
    findings = []
    for fold in range(dataset.folds):
        found = read_findings(
            fold_folder(folder, work.config_id, fold), study.epochs, dataset.scans
        )
        if found is None:
            return None
        findings += found
    scans = [s for fold in range(dataset.folds) for s in dataset.validation(fold)]
    categories = list(configure(study, model, work.params).categories)
    metrics = score(findings, scans, categories, model.task)
    metrics[FALSE_POSITIVES] = false_positives(findings, scans, categories, model.task)
    return Pooled(metrics, *_bootstrap(study, dataset, model, findings, categories))


def examine(
    study: Study,
    folder: Folder,
    dataset: Dataset,
    model: Model,
    config_id: str,
    params: dict[str, Any],
) -> dict[str, float]:
    """Mean score of a configuration's fold models on the test group; empty when the weights of one
    are gone.
    """
    config, gpu = configure(study, model, params), study.resources.gpus > 0
    scores = [
        evaluate_weights(
            dataset, model, config, fold_folder(folder, config_id, fold), dataset.test, gpu
        )
        for fold in range(dataset.folds)
    ]
    known = [s for s in scores if s is not None]
    return (
        {m: sum(s[m] for s in known) / len(known) for m in known[0]}
        if len(known) == dataset.folds
        else {}
    )


def conclude(opened: OpenStudy, examiner: Callable[..., dict[str, float]] = examine) -> str:
    """End the search: look at the test group once for the winner of a complete one, and write the
    last leaderboard.

    Args:
        examiner: does what ``examine`` does, perhaps on another machine.
    Raises:
        RunFailed: it ended because too many configurations failed, or the winner could not be
            tested.
    """
    if opened.lease.lost:
        raise RunFailed(
            f"study {opened.folder.url}: another driver has taken it over while this one stood "
            f"still; "
            "`raybone watch` shows it"
        )
    reason = opened.brain.finish()
    try:
        if reason.startswith(ENDS) and (best := opened.to_test()):
            _look(opened, best, examiner)
    finally:
        opened.publish(last=True)
    if reason.startswith(HALTED):
        raise RunFailed(f"study {opened.folder.url} {reason}; mend that and start the same command")
    if reason.startswith("limits.failed_trials"):
        raise RunFailed(
            f"{reason}; reasons are in {opened.folder.url}/leaderboard.csv and the journal; "
            "mend the cause and start the same command"
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


def _look(
    opened: OpenStudy, best: Configuration, examiner: Callable[..., dict[str, float]]
) -> None:
    """Score the winner on the test group."""
    try:
        metrics = examiner(
            opened.study, opened.folder, opened.dataset, opened.model, best.id, best.params
        )
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
            for epoch in train(
                opened.study, opened.folder, opened.dataset, opened.model, work, segment
            ):
                brain.epoch(work.config_id, epoch)
                tell(brain)
                if opened.stop_wanted():
                    brain.interrupt(work.config_id)
                    return
        pooled = pool(opened.study, opened.folder, opened.dataset, opened.model, work)
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
    study: Study, dataset: Dataset, model: Model, findings: list[Finding], categories: list[str]
) -> tuple[tuple[float, ...], float]:
    """Replicates of the mean over folds, and their degrees of freedom; patients are drawn alike in
    every configuration.

    Patients who may be one person, as slices that look alike, are drawn together. Empty for
    val_loss, which is not known by patient, and where a fold has one person.
    """
    person: dict[str, tuple[str, int]] = {
        p: (dataset.group_of[p], f) for p, f in dataset.fold_of.items()
    }
    scans_of = [usable(dataset.validation(fold), model.task) for fold in range(dataset.folds)]
    patients = list(dict.fromkeys(person[s.patient_id] for scans in scans_of for s in scans))
    fold_P = np.array([fold for _, fold in patients])
    patients_K = np.bincount(fold_P)
    if study.metric == "val_loss" or patients_K.min() < 2:
        return (), math.nan
    positive = {f["scan_id"] for f in findings if f.get("positive")}
    sick = {
        person[s.patient_id]
        for scans in scans_of
        for s in scans
        if s.scan_id in positive
        or (
            model.task != "classification"
            and any(le.category in categories and not le.crowd for le in s.lesions)
        )
    }
    draws_BP = patient_draws(
        fold_P, np.array([p in sick for p in patients]), [int(dataset.hash, 16), study.search.seed]
    )
    places = {patient: place for place, patient in enumerate(patients)}
    scores_KB = np.array(
        [
            resampled_score(
                findings,
                scans,
                categories,
                model.task,
                draws_BP[:, [places[person[s.patient_id]] for s in scans]],
            )[study.metric]
            for scans in scans_of
        ]
    )
    return tuple(scores_KB.mean(0).tolist()), freedom(scores_KB, patients_K)


def _check_out(folder: Folder, out: str) -> None:
    """A study has a folder of its own."""
    if folder.local and os.path.exists(folder.path) and not os.path.isdir(folder.path):  # noqa: PTH110, PTH112
        raise WrongInput(f"--out {out}: must be a folder, but is a file; choose another name")
    inside = (
        [p for p in Path(folder.path).absolute().parents if (p / "dataset.json").is_file()]
        if folder.local
        else []
    )
    foreign = [] if folder.read("study.yaml") else [n for n in folder.names() if n not in OWN]
    if inside or "dataset.json" in foreign:
        raise WrongInput(
            f"--out {out}: must not lie in a dataset, which others are given; choose another place"
        )
    if foreign:
        raise WrongInput(
            f"--out {out}: must be new, empty or a study's, but holds {len(foreign)} other things; "
            f"choose "
            "another name"
        )


def _with_prior(study: Study, prior: Prior | None) -> Study:
    assert study.resolved is not None
    return study.model_copy(update={"resolved": study.resolved.model_copy(update={"prior": prior})})


def _agree(folder: Folder, study: Study) -> Study:
    """A study folder holds one study; what it was started with must be what is asked now, and its
    warm start stays.
    """
    if folder.read("study.yaml") is None:
        return study
    started = read_resolved(folder)
    old, new = (s.model_dump(mode="json") for s in (started, study))
    same = old["resolved"]["dataset_hash"] == new["resolved"]["dataset_hash"]
    changed = [
        k for k in new if k not in CHANGEABLE and old[k] != new[k] and not (k == "dataset" and same)
    ]
    if changed == ["search"] and all(
        old["search"][k] == new["search"][k] for k in old["search"] if k != "trials"
    ):
        changed = []
    if not same:
        changed.append(
            f"dataset (hash {old['resolved']['dataset_hash']}, now "
            f"{new['resolved']['dataset_hash']})"
        )
    if old["resolved"]["ladder"] != new["resolved"]["ladder"] and not changed:
        changed.append("ladder")
    if new["resolved"]["prior"] not in (None, old["resolved"]["prior"]):
        raise WrongInput(
            f"study {folder.url}: a started study keeps its warm start, but --warm-start gives "
            f"another "
            "one now; leave --warm-start out, or give another --out"
        )
    if changed:
        raise WrongInput(
            f"study {folder.url}: a started study keeps its settings, but {', '.join(changed)} "
            f"differ; "
            "give another --out, or the settings of its study.yaml"
        )
    assert started.resolved is not None
    return _with_prior(study, started.resolved.prior)


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
            f"command "
            "again: it resumes"
        ) from error
