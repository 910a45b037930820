"""A study as one HTML file that needs nothing else: ranking, charts, the winner's scans, and how to
repeat it.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybone.data.dataset import Dataset, open_dataset
from raybone.data.inspect import inspect
from raybone.errors import WrongInput
from raybone.hpo.lease import EXPIRES, Lease
from raybone.hpo.state import Configuration, State
from raybone.private import write_private
from raybone.results.by_model import by_model
from raybone.results.charts.costs import costs
from raybone.results.charts.course import Completion, learning, regret
from raybone.results.charts.folds import SHOWN, differences, folds
from raybone.results.charts.importance import importance
from raybone.results.charts.parameters import configurations, parallel, slices
from raybone.results.charts.vega import Chart, Row
from raybone.results.compare import OTHER, beside, classified, figures, unfetched
from raybone.results.leaderboard import csv_of, entries_of, leaderboard
from raybone.results.page import page
from raybone.results.study_folder import REPORT, StudyFolder
from raybone.results.winner import Winner, pictures, winner_charts, winner_groups, winner_of
from raybone.storage import Folder, patiently
from raybone.study.space import in_joint, joint
from raybone.study.spec import ResolvedStudy

if TYPE_CHECKING:
    import pandas as pd

ROWS = 1000  # configurations in the page's table and charts
FEW = 50  # patients below which a ranking is hardly more than a guess
RANKS = 12  # ranks that a warning lists
Bar = Callable[[int, int], None]


@dataclass(frozen=True)
class History:
    """What the journal says: the state, when which configuration was complete, and the times of the
    first event and of the last, if there is one.
    """

    state: State
    completions: list[Completion]
    clock: list[float]


@dataclass(frozen=True)
class Ranking:
    """The leaderboard, its rows that are complete, and those of the page; rows hold their
    hyper-parameters as ``params``.
    """

    table: pd.DataFrame
    complete: list[Row]
    records: list[Row]
    best: Configuration | None


@dataclass(frozen=True)
class Data:
    """The dataset with what ``inspect`` says of it, or why there is none."""

    dataset: Dataset | None = None
    fingerprint: dict[str, Any] | None = None
    gone: str = ""


def report(
    url: str,
    html: str | None = None,
    scans: bool = True,
    progress: Callable[[str], Bar] = lambda what: lambda done, total: None,
    moved: str = "",
) -> tuple[str, int]:
    """Write the page of a study, whatever there is of it so far; what is missing is said on the
    page.

    A page on this machine is its owner's alone. An address that study.yaml names is not asked for
    the dataset.

    Args:
        url: study folder, a path or URL.
        html: the file to write; STUDY/report.html by default.
        scans: whether the page shows scans of the winner.
        progress: gives a bar for each thing that takes time, by its name.
        moved: where the study's dataset is now, if it was moved.
    Returns:
        The file and its size in bytes.
    Raises:
        WrongInput: no study there, its journal is damaged, or the file cannot be one.
    """
    folder, step = StudyFolder(url, moved), progress("report")
    study, target = folder.study, _target(folder, html)
    folder.state  # noqa: B018  # refuses a journal that was cut
    history = _history(folder)
    step(1, 4)
    ranking = _ranking(study, history.state)
    data = _data(study, progress("inspect"), moved)
    winner, missing = winner_of(folder, ranking.best, data.dataset)
    step(2, 4)
    rows = configurations(study, ranking.records)
    charts = _charts(study, history, ranking, rows)
    charts["winner"] = winner_charts(winner) if winner else []
    values = {
        **vars(history),
        **vars(ranking),
        **vars(data),
        **_published(study, ranking.best, winner),
        "study": study,
        "space": joint(study),
        "models": _models(study, history.state, ranking),
        "winner": winner,
        "groups": winner_groups(winner, study.metric) if winner else [],
        "missing": missing,
        "pictures": pictures(winner, study.metric) if winner and scans else [],
        "scans": scans,
        "warnings": _warnings(study, ranking.table, data.fingerprint),
        "driver": Lease(folder.files).holder(EXPIRES),
        "csv": base64.b64encode(csv_of(ranking.table)).decode(),
        "few": SHOWN,
        "yaml": (folder.text or b"").decode("utf-8", "replace"),
    }
    step(3, 4)
    content = page(charts, rows, values).encode()
    _write(target, content)
    step(4, 4)
    return target.url, len(content)


def _target(folder: StudyFolder, html: str | None) -> Folder:
    if html is None:
        return Folder(f"{folder.url}/{REPORT}")
    target = Folder(html)
    if not html or html.endswith("/") or target.fs.isdir(target.path):
        raise WrongInput(f"report: --html must be a file name, got {html!r}; choose another")
    return target


def _write(target: Folder, content: bytes) -> None:
    if target.local:
        path = Path(target.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        patiently(lambda: write_private(path, content))
    else:
        parent, _, name = target.url.rpartition("/")
        Folder(parent).write(name, content)


def _history(folder: StudyFolder) -> History:
    state, completions, clock = State(), list[Completion](), list[float]()
    for event in folder.journal().events():
        state.apply(event)
        clock = [*clock[:1], event["time"]]
        if event["event"] == "decision" and event["action"] == "complete":
            done = Completion(event["config_id"], state.fold_epochs, state.seconds / 3600)
            completions.append(done)
    return History(state, completions, clock)


def _ranking(study: ResolvedStudy, state: State) -> Ranking:
    table = leaderboard(study, state)
    rows = [
        {**row, "params": in_joint(study, state.configurations[row["config_id"]].params)}
        for row in _plain(table)
    ]
    complete = [r for r in rows if r["state"] == "complete"]
    best = state.configurations[complete[0]["config_id"]] if complete else None
    return Ranking(table, complete, rows[:ROWS], best)


def _models(study: ResolvedStudy, state: State, ranking: Ranking) -> list[Row]:
    """The table of models, where there are several."""
    if ranking.table["model"].nunique() < 2:
        return []
    return _plain(by_model(ranking.table, entries_of({study.name: (study, state)})))


def _plain(table: pd.DataFrame) -> list[Row]:
    """Rows with None for what is not there."""
    plain: list[Any] = table.astype(object).where(table.notna(), None).to_dict("records")
    return plain


def _data(study: ResolvedStudy, bar: Bar, moved: str) -> Data:
    if why := unfetched(study, moved):
        logging.getLogger(__name__).warning("report: no scans, curves and fingerprint, as %s", why)
        return Data(gone=why)
    try:
        dataset = open_dataset(study.dataset)
        if dataset.hash == study.resolved.dataset_hash:
            return Data(dataset, inspect(dataset.path, bar))
    except (WrongInput, OSError) as error:
        return Data(gone=str(error))
    another = f"the dataset at {study.dataset} is another one now: its hash is {dataset.hash}"
    return Data(gone=another)


def _charts(
    study: ResolvedStudy, history: History, ranking: Ranking, rows: Sequence[Row]
) -> dict[str, list[Chart]]:
    """Charts that need the journal alone, by section."""
    complete, records, space = ranking.complete, ranking.records, joint(study)
    scored = any(r["m"] is not None for r in rows)
    means = {r["config_id"]: r[f"{study.metric}_mean"] for r in complete}
    course = [c for c in history.completions if means.get(c.config_id) is not None]
    weight = importance(study, records)
    heaviest = [r["p"] for r in weight.data["rows"]] if weight else []
    charts: dict[str, list[Chart]] = {
        "models": costs(study, ranking.table) if ranking.table["model"].nunique() > 1 else [],
        "learning": [],
        "folds": [],
        "parallel": [],
        "importance": [weight] if weight else [],
        "slices": slices(study, rows, dict.fromkeys([*heaviest, *space])),
        "regret": [regret(study, course, means)] if course else [],
    }
    if scored:
        order = [r["config_id"] for r in records]
        charts["learning"].append(learning(study, history.state, order))
    if scored and space:
        charts["parallel"].append(parallel(study, rows))
    if complete:
        charts["folds"].append(folds(study, complete))
    if len(complete) > 1:
        charts["folds"].append(differences(study, complete))
    return charts


def _published(
    study: ResolvedStudy, best: Configuration | None, winner: Winner | None
) -> dict[str, Any]:
    """The winner beside published figures, and the subgroups of a classifier."""
    cases: dict[str, Any] = {}
    if winner and winner.task.judged:
        cases = classified(winner.dataset, winner.findings)
    rows = beside(study, best, cases.get("subgroups", {})) if best else []
    return {
        "other": OTHER,
        "published": figures(study.name),
        "ours": {(r["metric"], r["subgroup"]): r for r in rows},
        "cases": cases,
    }


def _warnings(
    study: ResolvedStudy, table: pd.DataFrame, fingerprint: dict[str, Any] | None
) -> list[str]:
    """What a reader must know before believing the ranking."""
    complete, failed = (table[table["state"] == state] for state in ("complete", "failed"))
    said = list(study.resolved.warnings)
    for text in table["warnings"].dropna().unique():
        own = str(text).removeprefix("; ".join(said)).split("; ")
        said += [w for w in own if w and w not in said]
    if complete.empty:
        said.append(
            "no configuration is complete: nothing is ranked, and scores are of the folds and "
            "epochs so far"
        )
    near = [str(rank) for rank in complete["rank"][complete["verdict"] == "not told apart"]]
    if near:
        more = f" and {len(near) - RANKS} more" if len(near) > RANKS else ""
        said.append(
            f"rank{'s' * (len(near) > 1)} {', '.join(near[:RANKS])}{more} cannot be told from the "
            "winner (p of at least 0.05)"
        )
    if len(failed):
        said.append(
            f"{len(failed)} configurations failed, the first ({failed['config_id'].iloc[0]}) with: "
            f"{str(failed['reason'].iloc[0])[:200]}"
        )
    if fingerprint is None:
        return said
    said += [w for w in fingerprint["warnings"] if w not in said]
    said += [f"dataset: {problem}" for problem in fingerprint["problems"][:3]]
    if (patients := fingerprint["counts"]["patients"]) < FEW:
        said.append(
            f"{patients} patients: too few to tell configurations apart that differ by a few "
            f"hundredths; read the intervals of {study.metric}, not the ranks"
        )
    return said
