"""A study that this process drives: checked, leased, and replayed from its journal."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from raybone.data.dataset import Dataset
from raybone.environment import environment
from raybone.errors import EndReason, RunFailed, WrongInput
from raybone.hpo.brain import Brain
from raybone.hpo.journal import FOLDER
from raybone.hpo.lease import EXPIRES, NAME, Lease
from raybone.hpo.warm_start import warm_start
from raybone.results.study_folder import (
    ASKED,
    LOGS,
    RUNS,
    STOP,
    ConfigurationFolder,
    StudyFolder,
    earlier_rows,
)
from raybone.run.checks import parameters, resolve
from raybone.run.followers import tracked
from raybone.storage import Folder
from raybone.study.spec import ResolvedStudy, Study

# Keys that a resumed study may change: they do not alter what is already trained.
CHANGEABLE = {"limits", "resources", "keep", "track", "resolved"}

# What a study folder may hold before its study.yaml is written; the last two are the
# demonstration's.
OWN = (NAME, STOP, ASKED, LOGS, FOLDER, RUNS, "phantom", "dataset")


@dataclass
class OpenStudy:
    """A study at work, and what the process that drives it needs to know."""

    study: ResolvedStudy
    folder: StudyFolder
    dataset: Dataset
    brain: Brain
    lease: Lease
    published: int = -1
    pruned: set[str] = field(default_factory=set)
    _rests_until: float = 0.0

    def publish(self, last: bool = False) -> None:
        """Rewrite leaderboard.csv when something has happened since, and delete weights that are
        not kept.

        Args:
            last: do so now, even if it would take more than a twentieth of the driver's time.
        """
        with self.brain.lock:
            began = time.monotonic()
            rests = began < self._rests_until and not last
            if rests or self.lease.lost or self.brain.version == self.published:
                return
            self.published = self.brain.version
            board = self.folder.write_table()
            complete = list(board["config_id"][board["state"] == "complete"])
            keep = max(self.study.keep, self.to_test() is not None)
            unwanted = set(complete[keep:])
            if keep:  # the best of each model, which another study may start from
                first = board[board["state"] == "complete"].drop_duplicates("model")
                unwanted -= set(first["config_id"])
            # A smaller risk may go on with what the race stopped.
            goes_on = self.study.search.risk is not None
            for c in self.brain.state.configurations.values():
                waits = goes_on and c.id not in self.brain.dropped
                if c.status == "failed" or (c.status == "stopped" and not waits):
                    unwanted.add(c.id)
        for config_id in unwanted - self.pruned:
            self.folder.configuration(config_id).drop_weights()
            self.pruned.add(config_id)
        self._rests_until = time.monotonic() + 20 * (time.monotonic() - began)

    def to_test(self) -> ConfigurationFolder | None:
        """The best complete configuration, when there is a test group that it was not scored on."""
        best = self.folder.winner() if self.dataset.test else None
        return best if best and not best.record.test and not best.record.untested else None

    def stop_wanted(self) -> bool:
        """Whether `raybone stop` has asked this study to stop; the brain remembers it, and is told
        of single configurations that should stop, or that `raybone add` wants.
        """
        if self.lease.lost:
            self.brain.stop_for(EndReason("taken over"))
        if not self.brain.stopping:
            self.brain.add(self.folder.asked)
            asked = self.folder.stop
            self.brain.drop(asked.of)
            if asked.whole:
                self.brain.stop_for(EndReason("stopped"))
        return self.brain.stopping is not None


@contextlib.contextmanager
def open_study(
    study: Study,
    out: str,
    connect: Callable[[ResolvedStudy], int] = lambda study: 1,
    warm: Sequence[str] = (),
) -> Iterator[OpenStudy]:
    """Check a study, take its lease, write or compare study.yaml and replay the journal.

    Args:
        connect: from the checked study to the number of training runs that fit at once.
        warm: leaderboards to start from; a resumed study keeps those it was started with.
    Raises:
        WrongInput: the study is wrong, another driver is at work, or the folder holds another
            study.
    """
    folder = StudyFolder(out)
    _check_out(folder, out)
    checked, dataset = resolve(study, folder.files)
    if warm:
        tables = {source: earlier_rows(source) for source in warm}
        checked = checked.with_prior(warm_start(checked, tables))
    stop = folder.files.read(STOP)
    slots = connect(checked)
    with _writing(out), _leased(folder.files) as lease:
        checked = _agree(folder, checked)
        folder.state  # noqa: B018  # refuses a journal that was cut
        folder.write_study(checked)
        # Another request came while the search waited for nodes, and counts
        if folder.files.read(STOP) == stop:
            folder.resume()
        brain = Brain(checked, folder.journal(), partial(parameters, checked), slots)
        folder.state = brain.state
        brain.runs_on("driver", environment())
        opened = OpenStudy(checked, folder, dataset, brain, lease)
        opened.publish()
        opened.stop_wanted()  # what was asked for while nobody drove comes first
        with tracked(checked.track, folder.files.absolute):
            yield opened


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
    changed = [k for k in kept if _settled(started, k) != _settled(study, k)]
    # What a cohort race decides depends on how many there are.
    free = "risk" if started.search.scheduler == "cohort_race" else "trials"
    more = {free: getattr(study.search, free)}
    if changed == ["search"] and started.search.model_copy(update=more) == study.search:
        changed = []
    if "models" not in changed and started.names != study.names:
        changed.append("the order of models")
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


def _settled(study: ResolvedStudy, key: str) -> Any:
    """What of a study makes its scores what they are: the number of loader processes does not."""
    value = getattr(study, key)
    return {k: v for k, v in value.items() if k != "loader_workers"} if key == "fixed" else value


@contextlib.contextmanager
def _leased(files: Folder) -> Iterator[Lease]:
    """This driver's lease, renewed in the background for the time of the block."""
    lease, over = Lease(files), threading.Event()

    def renew() -> None:
        while not over.wait(EXPIRES / 4):
            # A disk that fails now may work at the next turn; the journal, which must not fail,
            # says so if it does not.
            with contextlib.suppress(OSError):
                lease.renew()

    lease.take()
    keeper = threading.Thread(target=renew, daemon=True)
    keeper.start()
    try:
        yield lease
    finally:
        over.set()
        keeper.join()
        lease.drop()


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
