"""The Python API: what the command line does, with objects in, objects and pandas out.

What takes over two seconds shows its progress as the command line does; ``progress=False`` keeps
it quiet.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from pydantic import ValidationError

from raybone.data.dataset import open_dataset
from raybone.data.ingest import prepare as ingest
from raybone.data.ingest.dicom.archive import source_of
from raybone.data.ingest.options import PrepareKeywords
from raybone.data.ingest.prepare import Prepared
from raybone.deploy.bundle import Bundle, open_bundle
from raybone.errors import RunFailed, WrongInput
from raybone.results.leaderboard import Entry, entries_of
from raybone.results.study_folder import ConfigurationFolder, StudyFolder
from raybone.results.terminal import bar, epoch_line
from raybone.results.terminal import progress as lines
from raybone.run.defaults import complete
from raybone.run.ray.cluster import Cluster
from raybone.study import spec
from raybone.study.files import parse_study, problems_of, read_study
from raybone.study.param import Param, Value

if TYPE_CHECKING:
    import optuna
    import pandas as pd

    from raybone.hpo.brain import Brain
    from raybone.results.pareto import Cost
    from raybone.results.speed import Timer

__all__ = [
    "Bundle",
    "Cluster",
    "Results",
    "RunFailed",
    "Study",
    "WrongInput",
    "choice",
    "int_uniform",
    "log_uniform",
    "open_bundle",
    "open_dataset",
    "open_study",
    "prepare",
    "search",
    "uniform",
]
Where = str | os.PathLike[str]
When = Mapping[str, Value]


def choice(*values: Value, when: When | None = None) -> Param:
    """One of these values.

    Args:
        when: other searched hyper-parameters, and the values at which this one exists.
    Raises:
        WrongInput: no value is given.
    """
    return _param("choice", values, when)


def uniform(low: float, high: float, when: When | None = None) -> Param:
    """A number between these, as for ``choice``; WrongInput where ``low`` is not below ``high``."""
    return _param("uniform", (low, high), when)


def log_uniform(low: float, high: float, when: When | None = None) -> Param:
    """A number between these, whose logarithm is uniform, as for ``choice``; ``low`` is above 0."""
    return _param("log_uniform", (low, high), when)


def int_uniform(low: int, high: int, when: When | None = None) -> Param:
    """A whole number between these, both included, as for ``choice``."""
    return _param("int_uniform", (low, high), when)


class Study(spec.Study):
    """A model or several, a dataset, a space of hyper-parameters, and the means to search it.

    Args:
        dataset: folder that ``prepare`` made, or its fsspec URL.
        model: a name of the menu, or ``package.module:MODEL``.
        models: instead of ``model``, several of one task: names, or names with what is their own,
            such as ``{"unet": {}, "res_unet": {"fixed": {"width": 16}}}``.
        keys: the other keys of a study's YAML, see docs/study.md: name, metric, epochs, fixed,
            space, search, resources, limits, keep. What is left out has the same defaults.
    Raises:
        WrongInput: a rule is broken, one line each.
    """

    def __init__(
        self,
        *,
        dataset: Where,
        model: str = "",
        models: Sequence[str] | Mapping[str, Any] = (),
        **keys: Any,
    ) -> None:
        content = {"dataset": os.fspath(dataset), **keys}
        if models:
            content["models"] = models
        if model or not models:
            content["model"] = model
        checked = parse_study(complete(content, str(keys.get("name", ""))))
        super().__init__(**{name: getattr(checked, name) for name in type(checked).model_fields})

    @classmethod
    def from_yaml(cls, path: Where, *overrides: str) -> Study:
        """The study of a YAML file.

        Args:
            overrides: ``key=value`` on dotted keys, such as ``search.trials=8``.
        Raises:
            WrongInput: a rule is broken, one line each.
        """
        checked = read_study(Path(path), list(overrides), complete)
        given = {name: getattr(checked, name) for name in checked.model_fields_set}
        return cls(**given)


def prepare(
    source: Where, dataset: Where, *, progress: bool = True, **options: Unpack[PrepareKeywords]
) -> Prepared:
    """Read raw scans and annotations, and write a dataset folder, whole or not at all.

    Args:
        source: folder or archive of scans and annotations, or ``dicomweb:URL``; see docs/data.md.
        dataset: folder to make.
        options: see ``raybone.data.ingest.options.PrepareOptions``.
    Returns:
        What was made; ``Study`` takes it as a dataset.
    Raises:
        WrongInput: nothing to take, an impossible option, or the dataset exists.
    """
    tell, fetch = (bar(what) if progress else _silent for what in ("prepare", "fetch"))
    with source_of(source, options.get("modality", "NM"), Path(dataset), fetch) as place:
        return ingest.prepare(place, Path(dataset), tell, **options)


def search(
    study: spec.Study,
    out: Where,
    *,
    backend: str | Cluster = "ray",
    warm_start: Sequence[Where] = (),
    progress: bool = True,
) -> Results:
    """Run a study, or resume it: the same call.

    Args:
        out: study folder, or an fsspec URL.
        backend: ``local`` is this process. ``ray`` is the Ray cluster that RAY_ADDRESS names or
            this process is connected to, else one of its own on this machine; any other word is the
            address of one, and a ``Cluster`` can wait for nodes and takes callbacks of Ray Tune.
        warm_start: leaderboards or study folders whose rows steer what is proposed.
    Raises:
        WrongInput: before anything is trained.
        RunFailed: machines or storage failed for too long, or too many configurations did.
    """
    tell = lines() if progress else _unheard
    folder, warm = os.fspath(out), [os.fspath(source) for source in warm_start]
    if backend == "local":
        from raybone.run.local import search as here

        reason = here(study, folder, tell, warm)
    else:
        from raybone.run.ray.tuner import search as on_ray

        cluster = backend if isinstance(backend, Cluster) else Cluster(_address(backend))
        reason = on_ray(study, folder, cluster, tell, warm)
    return Results(StudyFolder(folder, study.dataset), str(reason))


def open_study(url: Where, dataset: Where = "") -> Results:
    """The results of a study that was begun, here or elsewhere, as they are now.

    Args:
        url: study folder, or an fsspec URL.
        dataset: where its dataset is now, if it was moved.
    Raises:
        WrongInput: no study is there.
    """
    folder = StudyFolder(url, os.fspath(dataset))
    folder.study  # noqa: B018  # that it is none is said at once
    return Results(folder)


class Results:
    """What a study gave, or gave so far.

    Attributes:
        folder: the study's. reason: why the search ended; empty for a study that was opened.
    """

    def __init__(self, folder: StudyFolder, reason: str = "") -> None:
        self.folder, self.reason = folder, reason

    @property
    def study(self) -> spec.ResolvedStudy:
        """The study as it ran."""
        return self.folder.study

    @property
    def winner(self) -> ConfigurationFolder | None:
        """The best complete configuration, None while there is none."""
        return self.folder.winner()

    def leaderboard(self) -> pd.DataFrame:
        """One row a configuration, best first; docs/reviewer.md says what the columns are."""
        return self.folder.table()

    def by_model(self, *, time: bool = False) -> pd.DataFrame:
        """One row a model, best first: its best configuration, the tests of that against the best
        of every other model, and what the model cost; see ``raybone.results.by_model``.

        Args:
            time: whether those best configurations' networks are timed on this machine, on one
                image, with fresh weights: the columns ms and ms_on.
        """
        from raybone.results.by_model import by_model

        return by_model(self.leaderboard(), self._entries(), self._timer() if time else None)

    def pareto(self, cost: Cost = "train_seconds") -> pd.DataFrame:
        """The rows of the leaderboard to which no other complete row is at least as good and as
        cheap, and better in one of the two; the cheapest first.

        Args:
            cost: a column, or ``ms``, milliseconds an image, for which the network of every
                complete row is timed as ``by_model`` does.
        Raises:
            WrongInput: it is none of these.
        """
        from raybone.results.pareto import COSTS, pareto

        if cost not in COSTS:
            raise WrongInput(
                f"pareto: the cost must be one of {', '.join(COSTS)}, got {cost!r}; change it"
            )
        table = self.leaderboard()
        if cost == "ms":
            table = table[table["state"] == "complete"]
            entries = self._entries()
            times = self._timer().columns([entries[c] for c in table["config_id"]])
            table = table.assign(ms=[t["ms"] for t in times], ms_on=[t["ms_on"] for t in times])
        return pareto(table, self.study.sign, cost)

    def _entries(self) -> dict[str, Entry]:
        return entries_of({self.folder.url: (self.study, self.folder.state)})

    def _timer(self) -> Timer:
        from raybone.results.speed import Timer

        return Timer(self.folder, bar("time"))

    def configuration(self, config_id: str) -> ConfigurationFolder:
        """One configuration by its ``config_id`` in the leaderboard."""
        return self.folder.configuration(config_id)

    def to_optuna(self) -> optuna.Study:
        """The study as one of optuna's, in memory, for its plots and importances."""
        return self.folder.to_optuna()

    def report(self, html: Where | None = None, *, scans: bool = True) -> str:
        """Write one self-contained HTML file; returns its path.

        A dataset at an address that only study.yaml names is not asked for its scans: give it to
        ``open_study``.

        Args:
            html: the file; STUDY/report.html by default.
            scans: whether it shows scans of patients.
        Raises:
            WrongInput: the file cannot be one.
        """
        from raybone.results.report import report

        name = None if html is None else os.fspath(html)
        return report(self.folder.url, name, scans, moved=self.folder.moved)[0]

    def refit(
        self,
        out: Where,
        *,
        rank: int = 1,
        all_patients: str = "",
        onnx: bool = False,
        operate: str = "max_f1",
        best: int = 1,
    ) -> Bundle:
        """Write the winner, or another rank, as a model bundle.

        Args:
            out: folder to make.
            all_patients: the backend, as for ``search``, on which one model of all patients but the
                test group is trained; empty takes the fold models together.
            onnx: write ONNX files as well.
            operate: how the score from which on something is found is chosen, out of fold:
                ``max_f1``, ``sensitivity=0.9``, ``specificity=0.9``, ``fp_per_scan=1`` or
                ``score=0.5``.
            best: up to so many configurations of the same model and image size, from the rank on,
                come in together: as many as score best on the patients that their folds have not
                seen.
        Raises:
            WrongInput: no such rank or score, its weights or the study's dataset are gone, or
                ``out`` exists.
        """
        from raybone.deploy.refit import Options, refit, train_here
        from raybone.metrics.operating_point import Rule

        train = None
        if all_patients == "local":
            train = partial(train_here, tell=epoch_line)
        elif all_patients:
            from raybone.run.ray.refit import train_on_ray

            train = partial(train_on_ray, address=_address(all_patients), tell=epoch_line)
        options = Options(rank, train, onnx, Rule.of(operate), best)
        return refit(self.folder, Path(out), options, bar("refit"))

    def __repr__(self) -> str:
        rows = len(self.folder.state.configurations)
        return f"<Results of {self.study.name}: {rows} configurations>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from raybone.results.leaderboard import brief_of

        table = self.leaderboard()
        return table[brief_of(table)].to_html(index=False, na_rep="", float_format="{:.3f}".format)


def _param(kind: str, values: tuple[Value, ...], when: When | None) -> Param:
    try:
        return Param.model_validate({kind: values, "when": dict(when) if when else None})
    except ValidationError as error:
        raise WrongInput(*problems_of(error, f"{kind}{values!r}", Param)) from None


def _address(backend: str) -> str | None:
    return None if backend == "ray" else backend


def _silent(done: int, total: int) -> None:
    """No bar."""


def _unheard(brain: Brain) -> None:
    """No lines."""
