"""A study as one HTML file that needs nothing else: ranking, charts, the winner's scans, and how to
repeat it.
"""

from __future__ import annotations

import base64
import logging
import math
import platform
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import orjson
from markupsafe import Markup

from raybone.data.annotations import foci
from raybone.data.dataset import Dataset, open_dataset
from raybone.data.inspect import inspect
from raybone.data.overlay import overlay
from raybone.errors import WrongInput
from raybone.hpo.lease import EXPIRES, Lease
from raybone.hpo.state import Configuration, State
from raybone.metrics.lesions import THRESHOLD, operating_points
from raybone.models import load
from raybone.private import write_private
from raybone.results import charts
from raybone.results.charts import Chart
from raybone.results.compare import OTHER, beside, classified, figures, findings_of, unfetched
from raybone.results.leaderboard import leaderboard
from raybone.results.study_folder import StudyFolder
from raybone.storage import Folder, patiently
from raybone.study.spec import ResolvedStudy, Study
from raybone.tasks import task_named
from raybone.tasks.base import Outcome
from raybone.types import Array, Finding, Scan, safe_cell

if TYPE_CHECKING:
    import pandas as pd

ROWS = 1000  # configurations in the page's table and charts
FEW = 50  # patients below which a ranking is hardly more than a guess
LIBRARIES = (
    "raybone",
    "torch",
    "torchvision",
    "ultralytics",
    "monai",
    "ray",
    "optuna",
    "numpy",
    "scipy",
    "pandas",
)
BROKEN = (
    WrongInput,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OSError,
)  # of files that somebody has changed
Bar = Callable[[int, int], None]
Completion = tuple[float, float, str]  # fold epochs and hours so far, config_id
Shown = dict[str, list[Chart]]


@dataclass(frozen=True)
class _Winner:
    """The best complete configuration's findings, out of fold."""

    task: str
    categories: list[str]
    findings: list[Finding]
    dataset: Dataset

    def of(self, *folds: int) -> tuple[list[Finding], list[Scan]]:
        """Findings and scans of some folds; only those scans that are scored."""
        kept = {
            s.scan_id: s
            for k in folds
            for s in task_named(self.task).usable(self.dataset.validation(k))
        }
        return [f for f in self.findings if f["scan_id"] in kept], list(kept.values())

    def sick(self) -> list[Scan]:
        """Scans with something to find: lesions, or bones where they are looked for."""
        return [
            s
            for s in self.of(*range(self.dataset.folds))[1]
            if any(le.category in self.categories and not le.crowd for le in s.lesions)
        ]

    def lesions(self, scan: Scan) -> int:
        """How many there are to find."""
        return sum(le.category in self.categories for le in foci(scan))

    def alone(self, scans: Sequence[Scan], metric: str) -> tuple[str, Array]:
        """The metric of each scan by itself, or another that one scan has, and its name."""
        outcome = Outcome(self.findings, scans, self.categories)
        found = task_named(self.task).resampled(outcome, np.eye(len(scans), dtype=int))
        name = metric if metric in found else "AP50" if self.task == "detection" else "dice"
        return name, found[name]


def report(
    place: str,
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
        place: study folder or URL.
        html: the file to write; STUDY/report.html by default.
        scans: whether the page shows scans of the winner.
        progress: gives a bar for each thing that takes time, by its name.
        moved: where the study's dataset is now, if not at its place.
    Returns:
        The file and its size in bytes.
    Raises:
        WrongInput: no study there, its journal is damaged, or the file cannot be one.
    """
    folder, step = StudyFolder(place, moved), progress("report")
    study = folder.study
    target = Folder(f"{folder.url}/report.html" if html is None else html)
    if html is not None and (not html or html.endswith("/") or target.fs.isdir(target.path)):
        raise WrongInput(f"report: --html must be a file name, got {html!r}; choose another")
    state, completions, clock = _replay(folder)
    step(1, 4)
    table = leaderboard(study, state)
    plain: list[Any] = table.astype(object).where(table.notna(), None).to_dict("records")
    records = [{**row, "params": state.configurations[row["config_id"]].params} for row in plain]
    complete, records = [r for r in records if r["state"] == "complete"], records[:ROWS]
    best = state.configurations[complete[0]["config_id"]] if complete else None
    dataset, found, gone = _data(study, progress("inspect"), moved)
    winner, missing = _winner(folder, study, best, dataset)
    step(2, 4)
    rows = charts.configurations(study, records)
    shown = _search_charts(study, state, completions, records, rows) | {
        "winner": _winner_charts(winner)
    }
    pictures = _pictures(study, winner) if winner and scans else []
    step(3, 4)
    cases = (
        classified(winner.dataset, winner.findings)
        if winner and winner.task == "classification"
        else {}
    )
    ours = (
        {(r["metric"], r["subgroup"]): r for r in beside(study, best, cases.get("subgroups", {}))}
        if best
        else {}
    )
    content = _page(
        shown,
        rows,
        {
            "study": study,
            "state": state,
            "records": records,
            "complete": complete,
            "best": best,
            "winner": winner,
            "missing": missing,
            "gone": gone,
            "dataset": dataset,
            "found": found,
            "pictures": pictures,
            "scans": scans,
            "warnings": _warnings(study, table, found),
            "clock": clock,
            "driver": Lease(folder.files).holder(EXPIRES),
            "csv": _base64(table.map(safe_cell).to_csv(index=False).encode()),
            "other": OTHER,
            "published": figures(study.name),
            "ours": ours,
            "few": charts.SHOWN,
            "cases": cases,
            "yaml": (folder.text or b"").decode("utf-8", "replace"),
        },
    ).encode()
    _write(target, content)
    step(4, 4)
    return target.url, len(content)


def _write(target: Folder, content: bytes) -> None:
    if target.local:
        path = Path(target.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        patiently(lambda: write_private(path, content))
    else:
        parent, _, name = target.url.rpartition("/")
        Folder(parent).write(name, content)


def _replay(folder: StudyFolder) -> tuple[State, list[Completion], list[float]]:
    """The state, when which configuration was complete, and the times of the first event and of the
    last.
    """
    state, completions = State(), []
    clock: list[float] = []
    for event in folder.journal().events():
        state.apply(event)
        clock = [*clock[:1], event["time"]]
        if event["event"] == "decision" and event["action"] == "complete":
            completions.append((float(state.fold_epochs), state.seconds / 3600, event["config_id"]))
    return state, completions, clock


def _data(
    study: ResolvedStudy, bar: Bar, moved: str
) -> tuple[Dataset | None, dict[str, Any] | None, str]:
    """The dataset with what ``inspect`` says of it, or why there is none."""
    if why := unfetched(study, moved):
        logging.getLogger(__name__).warning("report: no scans, curves and fingerprint, as %s", why)
        return None, None, why
    try:
        dataset = open_dataset(study.dataset)
        if dataset.hash == study.resolved.dataset_hash:
            return dataset, inspect(dataset.path, bar), ""
        return (
            None,
            None,
            f"the dataset at {study.dataset} is another one now: its hash is {dataset.hash}",
        )
    except (WrongInput, OSError) as error:
        return None, None, str(error)


def _winner(
    folder: StudyFolder, study: Study, best: Configuration | None, dataset: Dataset | None
) -> tuple[_Winner | None, str]:
    """The winner's findings, or why there are none."""
    if best is None or dataset is None:
        return (
            None,
            "the dataset is gone or has changed"
            if best
            else "there is no complete configuration yet",
        )
    try:
        categories = list({**study.fixed, **best.params}.get("categories") or ["malignant"])
        winner = _Winner(
            load(study.model).task,
            categories,
            findings_of(folder.configuration(best.id), dataset),
            dataset,
        )
        own, scans = winner.of(*range(dataset.folds))
        if len(own) != len(winner.findings) or (
            winner.task != "classification" and len(own) != len(scans)
        ):
            raise ValueError("its predictions are not of the scans of the folds")
        return winner, ""
    except BROKEN as error:
        return None, str(error)


def _search_charts(
    study: Study,
    state: State,
    completions: Sequence[Completion],
    records: Sequence[charts.Row],
    rows: Sequence[charts.Row],
) -> Shown:
    """Charts that need the journal alone, by section."""
    complete, scored = (
        [r for r in records if r["state"] == "complete"],
        any(r["m"] is not None for r in rows),
    )
    means = {r["config_id"]: r[f"{study.metric}_mean"] for r in complete}
    course = [(*c, means[c[2]]) for c in completions if means.get(c[2]) is not None]
    weight = charts.importance(study, records)
    order = dict.fromkeys(
        [*(r["p"] for r in weight.data["rows"]), *study.space] if weight else study.space
    )
    return {
        "learning": [charts.learning(study, state, [r["config_id"] for r in records])]
        if scored
        else [],
        "folds": [chart(study, complete) for chart in (charts.folds, charts.differences)][
            : len(complete)
        ],
        "parallel": [charts.parallel(study, rows)] if study.space and scored else [],
        "importance": [weight] if weight else [],
        "slices": charts.slices(study, rows, order),
        "regret": [charts.regret(study, course)] if course else [],
    }


def _winner_charts(winner: _Winner | None) -> list[Chart]:
    """PR and FROC of a detector, PR and ROC of a classifier, Dice by scan of a segmenter."""
    if winner is None:
        return []
    if winner.task == "segmentation":
        sick = winner.sick()
        dice_N = winner.alone(sick, "dice")[1] if sick else np.zeros(0)
        return (
            [
                charts.histogram(
                    "Dice by scan",
                    f"{len(sick)} scans with lesions, out of fold; the median is "
                    f"{np.median(dice_N):.3f}. Masks are stored as cut at {THRESHOLD:g}: a "
                    "segmenter has no PR, FROC or ROC curve here.",
                    "Dice of one scan",
                    dice_N,
                )
            ]
            if sick
            else []
        )
    every, detector = range(winner.dataset.folds), winner.task == "detection"
    pr, free = {}, {}
    for name, folds in {"all folds": [*every], **{f"fold {k}": [k] for k in every}}.items():
        findings, scans = winner.of(*folds)
        score_D, hit_D, positives = task_named(winner.task).scored(
            Outcome(findings, scans, winner.categories)
        )
        _, true_T, false_T = operating_points(score_D, hit_D)
        if positives and len(true_T) and (detector or false_T[-1]):
            pr[name] = (true_T / positives, true_T / (true_T + false_T))
            free[name] = (
                np.append(0, false_T / (len(scans) if detector else false_T[-1])),
                np.append(0, true_T / positives),
            )
    says = (
        "Out of fold: each scan by the model that has not seen its patient. Thin lines are single "
        "folds."
    )
    if detector:
        says += " A lesion is found with an IoU of at least 0.5; all categories together."
    titles = (
        ("Free-response ROC", "false positives a scan") if detector else ("ROC", "1 - specificity")
    )
    return (
        [
            charts.curve("Precision and recall", says, "recall", "precision", pr),
            charts.curve(titles[0], says, titles[1], "sensitivity", free),
        ]
        if "all folds" in pr
        else []
    )


def _pictures(study: Study, winner: _Winner) -> list[dict[str, str]]:
    """The best, median and worst scans with lesions, as PNG in base64 with words."""
    places = {
        s.scan_id: s
        for s in winner.of(*range(winner.dataset.folds))[1]
        if "burned-in-text" not in s.flags
    }
    if winner.task == "classification":
        items = sorted(
            (
                (
                    abs(f["score"] - f["positive"]),
                    f,
                    f"probability {f['score']:.3f}, in truth "
                    f"{'positive' if f['positive'] else 'negative'}",
                )
                for f in winner.findings
                if f["scan_id"] in places
            ),
            key=lambda item: item[0],
        )
    else:
        sick = [s for s in winner.sick() if s.scan_id in places]
        by_id = {f["scan_id"]: f for f in winner.findings}
        name, values_N = winner.alone(sick, study.metric) if sick else ("", np.zeros(0))
        items = sorted(
            (
                (-value, by_id[s.scan_id], f"{name} {value:.3f}")
                for s, value in zip(sick, values_N.tolist())
                if math.isfinite(value)
            ),
            key=lambda item: item[0],
        )
    last, middle = len(items) - 1, len(items) // 2
    kinds = {
        last: "Worst",
        last - 1: "Worst",
        middle: "Median",
        middle - 1: "Median",
        1: "Best",
        0: "Best",
    }
    return [
        _picture(places[items[n][1]["scan_id"]], *items[n][1:], kinds[n], winner)
        for n in sorted(kinds)
        if 0 <= n <= last
    ]


def _picture(
    scan: Scan, finding: Finding, value: str, kind: str, winner: _Winner
) -> dict[str, str]:
    lesions, scores = winner.lesions(scan), finding.get("scores", ())
    words = (
        f"{kind}: {value}. Scan {scan.scan_id}, {scan.view}, fold "
        f"{winner.dataset.fold_of[scan.patient_id]}, {lesions} lesion{'s' * (lesions != 1)}."
    )
    if scores:
        words += (
            f" Of {len(scores)} boxes, the {sum(s >= THRESHOLD for s in scores)} that score at "
            f"least {THRESHOLD:g} are drawn."
        )
    return {
        "words": words,
        "png": _base64(
            overlay(
                winner.dataset.counts(scan),
                scan.high,
                finding,
                scan.lesions,
                winner.categories,
                flags=scan.flags,
            )
        ),
        "alt": f"Scan with outlines of truth (solid) and prediction (dashed). {words}",
    }


def _page(shown: Shown, rows: Sequence[charts.Row], values: dict[str, Any]) -> str:
    """The template with its values; all that comes from the study is escaped, in HTML and in
    JSON.
    """
    drawn = {
        f"{section}-{n}": {"spec": chart.spec, "data": chart.data}
        for section, many in shown.items()
        for n, chart in enumerate(many)
    }
    text = orjson.dumps(
        {"config": charts.CONFIG, "data": {"configurations": rows}, "charts": drawn}
    ).decode()
    page = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page.filters |= {"number": _number, "chance": _chance, "day": _day}
    known = {
        d.metadata["Name"].lower(): d.version
        for d in metadata.distributions()
        if d.metadata["Name"]
    }
    return page.from_string(
        files("raybone.results").joinpath("report.html").read_text("utf-8")
    ).render(
        values
        | {
            "shown": shown,
            "payload": Markup(text.replace("<", "\\u003c")),
            "vega": Markup(charts.javascript()),
            "nonce": secrets.token_urlsafe(16),
            "now": time.time(),
            "python": platform.python_version(),
            "versions": {n: known[n] for n in LIBRARIES if n in known},
        }
    )


def _warnings(study: Study, table: pd.DataFrame, found: dict[str, Any] | None) -> list[str]:
    """What a reader must know before believing the ranking."""
    complete, failed = (table[table["state"] == state] for state in ("complete", "failed"))
    said = [w for text in table["warnings"].dropna().unique() for w in str(text).split("; ") if w]
    if complete.empty:
        said.append(
            "no configuration is complete: nothing is ranked, and scores are of the folds and "
            "epochs so far"
        )
    near = [str(rank) for rank in complete["rank"][complete["verdict"] == "not told apart"]]
    if near:
        more = f" and {len(near) - 12} more" if len(near) > 12 else ""
        said.append(
            f"rank{'s' * (len(near) > 1)} {', '.join(near[:12])}{more} cannot be told from the "
            "winner (p of at least 0.05)"
        )
    if len(failed):
        said.append(
            f"{len(failed)} configurations failed, the first ({failed['config_id'].iloc[0]}) with: "
            f"{str(failed['reason'].iloc[0])[:200]}"
        )
    if found is not None:
        said += [w for w in found["warnings"] if w not in said]
        said += [f"dataset: {problem}" for problem in found["problems"][:3]]
        if (patients := found["counts"]["patients"]) < FEW:
            said.append(
                f"{patients} patients: too few to tell configurations apart that differ by a few "
                f"hundredths; read the intervals of {study.metric}, not the ranks"
            )
    return said


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _number(value: Any) -> str:
    """Four digits of a float, nothing for what is not there."""
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else ""
    return "" if value is None else str(value)


def _chance(p: float | None) -> str:
    """A p in three digits."""
    return "" if p is None or math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _day(seconds: float) -> str:
    """Minutes are exact enough."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
