"""A study's folder: what it holds, and the only code that knows where.

``study.yaml``, ``journal/``, ``leaderboard.csv``, ``curves.npz``, ``logs/`` and, of each fold of a
configuration, ``runs/ID/foldK`` with its weights and predictions. Torch, pandas and optuna are
imported by what needs them alone.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from raybone.errors import WrongInput
from raybone.hpo.journal import Journal
from raybone.hpo.state import Configuration, State
from raybone.storage import Folder, fold_name
from raybone.study.files import configuration_of, parse_study, parse_yaml, write_study
from raybone.study.space import identity, joint
from raybone.study.spec import ResolvedStudy
from raybone.types import plain_cell

if TYPE_CHECKING:
    import optuna
    import pandas as pd
    from torch import Tensor

    from raybone.data.dataset import Dataset
    from raybone.types import Finding

STUDY = "study.yaml"
LEADERBOARD = "leaderboard.csv"
STOP = "stop"
ASKED = "asked"
WHOLE = "*"  # in the file of that name, beside configurations
CURVES = "curves.npz"
RUNS = "runs"
LOGS = "logs"
REPORT = "report.html"
EVERYONE = "all"  # stands where a fold's name does, for one model of all patients


@dataclass(frozen=True)
class StopRequest:
    """What somebody wants to stop: all of the study, single configurations, both or nothing."""

    whole: bool
    of: tuple[str, ...]


class StudyFolder:
    """A study from its folder alone, on a disk or an object store; nothing is read before it is
    asked for.

    Args:
        url: path or fsspec URL.
        dataset: where the study's dataset is now, if it was moved.
    """

    def __init__(self, url: str | os.PathLike[str], dataset: str = "") -> None:
        self.files = Folder(url)
        self.url = self.files.url
        self.moved = dataset
        self._asked: dict[str, dict[str, Any]] = {}

    @property
    def text(self) -> bytes | None:
        """study.yaml as it is there; None where there is no study."""
        return self.files.read(STUDY)

    @cached_property
    def study(self) -> ResolvedStudy:
        """The study that `raybone search` wrote.

        Raises:
            WrongInput: there is none, or ``moved`` has another dataset than its own.
        """
        content = self.text
        if content is None:
            raise WrongInput(
                f"study {self.url}: must be a study folder, but has no {STUDY}; give the folder "
                "that `raybone search --out` made"
            )
        where = f"{self.url}/{STUDY}"
        study = parse_study(parse_yaml(content, where), where)
        if study.resolved is None:
            raise WrongInput(
                f"study {self.url}: its {STUDY} must be one that `raybone search` wrote, but has "
                "no `resolved`; give another folder"
            )
        resolved = study.resolved_as(study.resolved)
        if self.moved:
            from raybone.data.dataset import dataset_of

            resolved = resolved.model_copy(update={"dataset": self.moved})
            dataset_of(resolved)
        return resolved

    def write_study(self, study: ResolvedStudy) -> None:
        """Write study.yaml."""
        self.files.write(STUDY, write_study(study).encode())
        self.study = study

    def journal(self) -> Journal:
        """A reader of the journal, from its beginning."""
        return Journal(self.files)

    @cached_property
    def state(self) -> State:
        """What the journal says when it is first asked for; a driver puts its own state here.

        Raises:
            WrongInput: the journal is damaged, or its end or all of it is gone, which no seal
                would show: leaderboard.csv has more rows than it can make.
        """
        # Read before the journal, which a driver writes first.
        text = (self.files.read(LEADERBOARD) or b"").decode("utf-8", "replace")
        rows = len(list(csv.reader(io.StringIO(text)))) - 1
        state = State(self.journal().events())
        if rows > (known := len(state.configurations)):
            raise WrongInput(
                f"study {self.url}: its {LEADERBOARD} has {rows} rows, but its journal, which is "
                f"gone or cut, knows {known} configurations; put the journal back, or move "
                f"{LEADERBOARD} away"
            )
        return state

    @property
    def stop(self) -> StopRequest:
        """What was asked to stop, and has not been resumed since."""
        _, *of = (self.files.read(STOP) or b"").decode("utf-8", "replace").split() or [""]
        return StopRequest(WHOLE in of, tuple(c for c in of if c != WHOLE))

    def ask_to_stop(self, config_id: str | None = None) -> None:
        """Ask the driver to stop when the epochs at work have ended, or to go no further with one
        configuration than to the end of its epoch.

        Raises:
            WrongInput: no study here, or no such configuration that goes on.
        """
        self.study  # noqa: B018
        known = self.state.configurations.get(config_id or "")
        going = known is not None and known.status in ("running", "paused")
        if config_id is not None and not going:
            how = known.status if known else "not there"
            raise WrongInput(
                f"--config {config_id}: must be a configuration that goes on, but it is {how}; "
                f"`raybone watch {self.url} --once` shows those that do"
            )
        earlier = self.stop
        named = WHOLE if config_id is None else config_id
        self._write_stop({named, *earlier.of, *([WHOLE] if earlier.whole else [])})

    def resume(self) -> None:
        """Take back that all of it should stop; configurations that should, still do."""
        if of := self.stop.of:
            self._write_stop(of)
        else:
            self.files.delete(STOP)

    @property
    def asked(self) -> list[dict[str, Any]]:
        """Hyper-parameters that somebody wants tried; raises WrongInput where one is damaged."""
        for name in self.files.names(ASKED):
            if name not in self._asked:
                content = self.files.read(f"{ASKED}/{name}")
                if not content:
                    continue  # it is being written
                try:
                    self._asked[name] = {**json.loads(content)}
                except (ValueError, TypeError):
                    raise WrongInput(
                        f"{self.url}/{ASKED}/{name}: must be what `raybone add` wrote; delete it"
                    ) from None
        return [*self._asked.values()]

    def ask_for(self, words: Sequence[str]) -> dict[str, Any]:
        """Ask the driver to try a configuration, given as words such as ``lr0=0.003``, beyond
        ``search.trials``; returns it.

        Raises:
            WrongInput: no study here, no configuration of its space, one that it has already, or a
                cohort race.
        """
        if self.study.search.scheduler == "cohort_race":
            raise WrongInput(
                f"study {self.url}: cohort_race decides a rung once, among those it began with; "
                "start another study with --warm-start, which takes search.points"
            )
        params = configuration_of(self.study, words)
        for known in self.state.configurations.values():
            if identity(known.params) == identity(params):
                raise WrongInput(f"study {self.url}: {known.id} is that one; change a value")
        waiting = map(identity, self.asked)
        if identity(params) in {*self.state.taken, *waiting}:
            raise WrongInput(f"study {self.url}: that one waits, or was refused; change a value")
        number = len(self._asked)
        while True:
            try:
                self.files.create(f"{ASKED}/{number:04d}.json", json.dumps(params).encode())
                return params
            except FileExistsError:  # another has asked in the meantime
                number += 1

    def _write_stop(self, of: Iterable[str]) -> None:
        self.files.write(STOP, " ".join([repr(time.time()), *sorted(of)]).encode())

    def table(self) -> pd.DataFrame:
        """The leaderboard, one row a configuration, best first."""
        from raybone.results.leaderboard import leaderboard

        return leaderboard(self.study, self.state)

    def write_table(self) -> pd.DataFrame:
        """Write leaderboard.csv; returns its table."""
        from raybone.results.leaderboard import csv_of

        table = self.table()
        self.files.write(LEADERBOARD, csv_of(table))
        return table

    def complete(self) -> list[ConfigurationFolder]:
        """The configurations that are ranked, best first."""
        table = self.table()
        return [self.configuration(c) for c in table["config_id"][table["state"] == "complete"]]

    def winner(self) -> ConfigurationFolder | None:
        """The best complete configuration, None while there is none."""
        return next(iter(self.complete()), None)

    def configuration(self, config_id: str) -> ConfigurationFolder:
        """One configuration by its name in the leaderboard."""
        return ConfigurationFolder(self, config_id)

    def to_optuna(self) -> optuna.Study:
        """The study as one of optuna's, in memory: see ``trials_of``."""
        from raybone.hpo.optuna_study import as_optuna, trials_of

        study = self.study
        trials = trials_of(study, self.state)
        return as_optuna(joint(study), trials, study.direction, name=study.name)

    def write_optuna(self, file: str | os.PathLike[str]) -> int:
        """Write the study as a journal file of optuna's; returns the number of its trials.

        Raises:
            WrongInput: no study here, or the file exists.
        """
        from raybone.hpo.optuna_study import write_journal

        if os.path.lexists(file):
            raise WrongInput(f"--optuna {file}: must not exist yet; choose another name")
        return write_journal(self.to_optuna(), file)

    def write_curves(self) -> tuple[int, int]:
        """Write curves.npz, the table that `raybone simulate` replays: see ``curves_of``.

        Returns:
            Configurations in the table, and in the study.
        Raises:
            WrongInput: no study here, or fewer than two configurations ran in full.
        """
        from raybone.simulation.curves import curves_of

        content, taken = curves_of(self.url, self.study, self.state)
        self.files.write(CURVES, content)
        return taken, len(self.state.configurations)


class ConfigurationFolder:
    """One configuration of a study, with the weights and predictions that its folds left."""

    def __init__(self, folder: StudyFolder, config_id: str) -> None:
        self.folder, self.id = folder, config_id
        self.url = f"{folder.url}/{RUNS}/{config_id}"

    @property
    def record(self) -> Configuration:
        """What the journal says of it.

        Raises:
            WrongInput: the study has no such configuration.
        """
        known = self.folder.state.configurations.get(self.id)
        if known is None:
            raise WrongInput(
                f"study {self.folder.url}: has no configuration {self.id!r}; `raybone leaderboard` "
                "lists them"
            )
        return known

    @property
    def params(self) -> dict[str, Any]:
        """Its searched hyper-parameters."""
        return self.record.params

    def fold(self, fold: int | None) -> Folder:
        """Where the weights and predictions of a fold are, or with None the weights of one model of
        all patients.
        """
        name = EVERYONE if fold is None else fold_name(fold)
        return self.folder.files.child(f"{RUNS}/{self.id}/{name}")

    def has_weights(self) -> bool:
        """Whether the weights of all folds are there."""
        from raybone.train.checkpoint import has_weights

        return all(has_weights(fold) for fold in self._folds())

    def weights(self, fold: int | None) -> dict[str, Tensor] | None:
        """The averaged weights after a fold's last epoch, by name; None where they are gone.

        Args:
            fold: as for ``fold``.
        Raises:
            DamagedFile: the file is cut short, or is another one.
        """
        from raybone.train.checkpoint import read_checkpoint

        state = read_checkpoint(self.fold(fold))
        return state["average"] if state else None

    def drop_weights(self) -> None:
        """Delete the weights of all folds; their predictions stay."""
        from raybone.train.checkpoint import drop_weights

        for fold in self._folds():
            drop_weights(fold)

    def predictions(self, dataset: Dataset | None = None) -> list[list[Finding]] | None:
        """What the weights of each fold's final epoch find on its validation scans, a list a fold;
        None where those of a fold are gone.

        Args:
            dataset: the study's; None opens it.
        Raises:
            WrongInput: the dataset is gone.
            DamagedFile: a file of predictions is none that a training on these scans writes.
        """
        from raybone.data.dataset import open_dataset
        from raybone.train.findings import read_findings

        study = self.folder.study
        scans = (dataset or open_dataset(study.dataset)).scans
        findings = []
        for fold in self._folds():
            of_fold = read_findings(fold, study.epochs, scans)
            if of_fold is None:
                return None
            findings.append(of_fold)
        return findings

    @property
    def log(self) -> str:
        """Where the traceback of its failure is, below the study folder."""
        return f"{LOGS}/{self.id}.txt"

    def _folds(self) -> list[Folder]:
        return [self.fold(k) for k in range(self.folder.study.resolved.folds)]


def study_at(url: str) -> tuple[StudyFolder, str]:
    """The study folder of a path or URL, and the configuration where STUDY/runs/ID names one; else
    an empty name.
    """
    folder = StudyFolder(url if "://" in url else Path(url).resolve())
    parent, runs, config_id = folder.url.rpartition(f"/{RUNS}/")
    if runs and folder.text is None and StudyFolder(parent).text is not None:
        return StudyFolder(parent), config_id
    return folder, ""


def earlier_rows(source: str) -> list[dict[str, Any]]:
    """The rows of what ``--warm-start`` names: a study folder, or the leaderboard.csv of one, whose
    cells stay text.

    Raises:
        WrongInput: there is neither, or the study is damaged.
    """
    folder = StudyFolder(source)
    if folder.text is not None:
        return cast(list[dict[str, Any]], folder.table().to_dict("records"))
    parent, _, name = folder.files.absolute.rpartition("/")
    inside = folder.files.fs.isdir(folder.files.path)
    content = folder.files.read(LEADERBOARD) if inside else Folder(parent or "/").read(name)
    if content is None:
        raise WrongInput(
            f"--warm-start {source}: must be a {LEADERBOARD} or a study folder, but there is none; "
            "check the path"
        )
    text = io.StringIO(content.decode("utf-8", "replace"), newline="")
    rows = csv.DictReader(text, restval="")
    return [{k: plain_cell(v) for k, v in row.items() if k} for row in rows]
