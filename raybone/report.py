"""A study as one HTML file that needs nothing else: ranking, charts, the winner's scans, and how to repeat it."""

from __future__ import annotations

import base64
import math
import platform
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import orjson
from markupsafe import Markup

from raybone import charts
from raybone.charts import Chart
from raybone.compare import OTHER, Finding, beside, classified, figures, findings_of
from raybone.data.dataset import Dataset, open_dataset
from raybone.evaluate import resampled_score, scored
from raybone.folder import Folder
from raybone.hpo.journal import Journal, read_resolved
from raybone.hpo.lease import Lease
from raybone.hpo.state import Configuration, State
from raybone.inspect import inspect
from raybone.leaderboard import leaderboard
from raybone.metrics.lesions import THRESHOLD, operating_points
from raybone.models import load
from raybone.overlay import overlay
from raybone.records import Array, Scan, Task, WrongInput
from raybone.spec import Study

if TYPE_CHECKING:
    import pandas as pd

FEW = 50  # patients below which a ranking is hardly more than a guess
LIBRARIES = ("raybone", "torch", "torchvision", "ultralytics", "monai", "ray", "optuna", "numpy", "scipy", "pandas")
Progress = Callable[[str], Callable[[int, int], None]]




@dataclass(frozen=True)
class _Told:
    """What the journal tells: completions are fold epochs, hours and config_id at each, and clock its first and last
    time."""

    state: State
    completions: list[tuple[float, float, str]]
    clock: tuple[float, float]


@dataclass(frozen=True)
class _Winner:
    """The best complete configuration's findings out of fold, and the scans that they are of, by fold."""

    task: Task
    categories: list[str]
    findings: list[Finding]
    dataset: Dataset

    def of(self, fold: int | None) -> tuple[list[Finding], list[Scan]]:
        """Findings and scans of one fold, or of all."""
        kept = [s for s in self.dataset.scans if (f := self.dataset.fold_of[s.patient_id]) == fold or (
            fold is None and f >= 0)]
        ids = {s.scan_id for s in kept}
        return [f for f in self.findings if f["scan_id"] in ids], kept


def report(place: str, html: str | None = None, scans: bool = True,
           progress: Progress = lambda what: lambda done, total: None) -> tuple[str, int]:
    """Write the page of a study, whatever there is of it so far; what is missing is said on the page.

    Args:
        place: study folder or URL.
        html: the file to write; STUDY/report.html by default.
        scans: whether the page shows scans of the winner.
        progress: gives a bar for each thing that takes time, by its name.
    Returns:
        The file and its size in bytes.
    Raises:
        WrongInput: no study there, its journal is damaged, or the file cannot be one.
    """
    folder, step = Folder(place), progress("report")
    study = read_resolved(folder)
    target = Folder(html or f"{folder.url}/report.html")
    if html is not None and (html.endswith("/") or not html or target.fs.isdir(target.path)):
        raise WrongInput(f"report: --html must be a file name, got {html!r}; choose another")
    told = _replay(folder)
    step(1, 5)
    table = leaderboard(study, told.state)
    table["params"] = table["config_id"].map({c: v.params for c, v in told.state.configurations.items()})
    complete = table["config_id"][table["state"] == "complete"].tolist()
    best = told.state.configurations[complete[0]] if complete else None
    dataset, found, why = _data(study, progress)
    step(2, 5)
    winner, missing = _winner(folder, study, best, dataset)
    rows = charts.configurations(study, table)
    shown = _search_charts(study, told, table, rows) | _winner_charts(study, winner)
    step(3, 5)
    pictures = _pictures(study, winner, progress) if winner and scans else []
    step(4, 5)
    ours = {row["metric"]: row for row in beside(study, best)} if best else {}
    content = _page(shown, rows, {
        "study": study, "table": _table(study, table), "csv": _base64(_csv(table)), "facts": _facts(study, told, table),
        "warnings": _warnings(study, table, found), "paired": _paired(study, table), "pictures": pictures,
        "scans": scans, "winner": winner, "no_winner": missing, "no_data": why, "found": found, "dataset": dataset,
        "by_group": classified(winner.dataset, winner.findings) if winner and winner.task == "classification" else {},
        "ours": ours, "published": figures(study.name), "other": OTHER, "versions": _versions(), "best": best,
        "yaml": (folder.read("study.yaml") or b"").decode("utf-8", "replace"), "about": _about(folder, told)}).encode()
    parent, _, name = target.url.rpartition("/")
    Folder(parent or ("/" if target.url.startswith("/") else ".")).write(name, content)
    step(5, 5)
    return target.url, len(content)


def _replay(folder: Folder) -> _Told:
    state, completions = State(), []
    clock: list[float] = []
    for event in Journal(folder).events():
        state.apply(event)
        clock = [*clock[:1], event["time"]]
        if event["event"] == "decision" and event["action"] == "complete":
            completions.append((float(state.fold_epochs), state.seconds / 3600, event["config_id"]))
    return _Told(state, completions, (clock[0], clock[-1]) if clock else (math.nan, math.nan))


def _data(study: Study, progress: Progress) -> tuple[Dataset | None, dict[str, Any] | None, str]:
    """The dataset with what ``inspect`` says of it, or why there is none."""
    assert study.resolved is not None
    try:
        dataset = open_dataset(study.dataset)
        if dataset.hash != study.resolved.dataset_hash:
            return None, None, (f"the dataset at {study.dataset} is another one now: its hash is {dataset.hash}, the "
                                f"study's {study.resolved.dataset_hash}")
        return dataset, inspect(dataset.path, progress("inspect")), ""
    except WrongInput as error:
        return None, None, str(error)
    except OSError as error:
        return None, None, f"dataset {study.dataset}: cannot be read: {error.strerror or error}"


def _winner(folder: Folder, study: Study, best: Configuration | None,
            dataset: Dataset | None) -> tuple[_Winner | None, str]:
    if best is None:
        return None, "there is no complete configuration yet"
    if dataset is None:
        return None, "the dataset is gone or has changed"
    try:
        findings = findings_of(folder, study, best, dataset)
        known = {s.scan_id for k in range(dataset.folds) for s in dataset.validation(k)}
        task = load(study.model).task
        if not {f["scan_id"] for f in findings} <= known or (task != "classification" and len(findings) != len(known)):
            raise ValueError("predictions are not of the scans of the folds")
    except (WrongInput, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return None, str(error)
    categories = list({**study.fixed, **best.params}.get("categories") or ["malignant"])
    return _Winner(task, categories, findings, dataset), ""


def _search_charts(study: Study, told: _Told, table: pd.DataFrame, rows: list[charts.Row]) -> dict[str, list[Chart]]:
    """Charts that need the journal alone, by section."""
    order = table["config_id"].tolist()
    final = dict(zip(order, table[f"{study.metric}_mean"].tolist()))
    course = [(epochs, hours, c, final[c]) for epochs, hours, c in told.completions if math.isfinite(final[c])]
    weight = charts.importance(study, table)
    by_weight = [r["p"] for r in weight.data["rows"]] if weight else []
    scored = any(r["m"] is not None for r in rows)
    compared = (charts.folds(study, table), charts.differences(study, table)) if course else ()
    return {"learning": [charts.learning(study, told.state, order)] if scored else [],
            "folds": [c for c in compared if c],
            "parallel": [charts.parallel(study, rows)] if study.space and scored else [],
            "importance": [weight] if weight else [],
            "slices": charts.slices(study, rows, dict.fromkeys([*by_weight, *study.space])),
            "regret": [c for c in [charts.regret(study, course)] if c]}


def _winner_charts(study: Study, winner: _Winner | None) -> dict[str, list[Chart]]:
    """PR and FROC of a detector, ROC and PR of a classifier, Dice by scan of a segmenter."""
    assert study.resolved is not None
    if winner is None:
        return {"winner": []}
    if winner.task == "segmentation":
        findings, scans = winner.of(None)
        sick = [s for s in scans if any(le.category in winner.categories for le in s.lesions)]
        dice_N = _alone(findings, sick, winner, "dice")
        return {"winner": [charts.histogram(
            "Dice by scan", f"{len(sick)} scans with lesions, out of fold; the median is {np.median(dice_N):.3f}. "
            f"Masks are stored as cut at {THRESHOLD:g}, so that a segmenter has no PR, FROC or ROC curve here.",
            "Dice of one scan", dice_N)] if sick else []}
    curves = {"all folds": winner.of(None), **{f"fold {k}": winner.of(k) for k in range(study.resolved.folds)}}
    walked = {}
    for name, (findings, scans) in curves.items():
        score_D, hit_D, positives = scored(findings, scans, winner.categories, winner.task)
        _, true_T, false_T = operating_points(score_D, hit_D)
        if positives and len(true_T):
            rest = len(scans) if winner.task == "detection" else max(int(false_T[-1]), 1)
            walked[name] = (true_T / positives, true_T / (true_T + false_T), false_T / rest)
    if "all folds" not in walked:
        return {"winner": []}
    about = "Out of fold: each scan by the model that has not seen its patient. Thin lines are single folds."
    pr = charts.curve("Precision and recall", f"{about} Lesions found with an IoU of at least 0.5, all categories "
                      "together." if winner.task == "detection" else about, "recall", "precision",
                      {name: (recall_T, precision_T) for name, (recall_T, precision_T, _) in walked.items()})
    free = {name: (np.append(0, false_T), np.append(0, recall_T)) for name, (recall_T, _, false_T) in walked.items()}
    other = charts.curve("Free-response ROC", f"{about} Sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false positives a scan "
                         "makes FROC.", "false positives a scan", "sensitivity", free, logs=True) \
        if winner.task == "detection" else charts.curve("ROC", about, "1 - specificity", "sensitivity", free)
    return {"winner": [pr, other]}


def _alone(findings: Sequence[Finding], scans: Sequence[Scan], winner: _Winner, metric: str) -> Array:
    """The metric of each scan by itself."""
    found = resampled_score(findings, scans, winner.categories, winner.task, np.eye(len(scans), dtype=int))
    return found.get(metric, found["AP50" if winner.task == "detection" else "dice"])


def _pictures(study: Study, winner: _Winner, progress: Progress) -> list[dict[str, str]]:
    """The best, median and worst scans with lesions, as PNG in base64 with words."""
    places = {s.scan_id: s for s in winner.of(None)[1] if "burned-in-text" not in s.flags}
    if winner.task == "classification":
        ranked = sorted((abs(f["score"] - f["positive"]), n) for n, f in enumerate(winner.findings)
                        if f["scan_id"] in places)
        items = [(winner.findings[n], f"probability {winner.findings[n]['score']:.3f}, in truth "
                  f"{'positive' if winner.findings[n]['positive'] else 'negative'}") for _, n in ranked]
    else:
        sick = [s for s in places.values() if any(le.category in winner.categories for le in s.lesions)]
        values_N = _alone(winner.findings, sick, winner, study.metric) if sick else np.zeros(0)
        by_id = {f["scan_id"]: f for f in winner.findings}
        name = study.metric if winner.task == "segmentation" or study.metric.startswith("AP") else "AP50"
        order = np.argsort(-values_N, kind="stable")
        items = [(by_id[sick[n].scan_id], f"{name} {values_N[n]:.3f}") for n in order if math.isfinite(values_N[n])]
    middle = len(items) // 2
    chosen = {"best": [0, 1], "median": [middle - 1, middle], "worst": [len(items) - 2, len(items) - 1]}
    kinds = {n: kind for kind, ns in reversed(chosen.items()) for n in ns if 0 <= n < len(items)}
    bar, pictures = progress("scans"), []
    for number, (n, kind) in enumerate(sorted(kinds.items()), 1):
        finding, value = items[n]
        pictures.append(_picture(places[finding["scan_id"]], finding, kind, value, winner))
        bar(number, len(kinds))
    return pictures


def _picture(scan: Scan, finding: Finding, kind: str, value: str, winner: _Winner) -> dict[str, str]:
    png = overlay(winner.dataset.counts(scan), scan.high, finding, scan.lesions, winner.categories)
    truth = sum(le.category in winner.categories for le in scan.lesions)
    boxes = sum(s >= THRESHOLD for s in finding.get("scores", ()))
    less = len(finding.get("scores", ())) - boxes
    found = "" if "scores" not in finding else f"; {boxes} boxes with a score of at least {THRESHOLD:g}, " \
                                               f"{less} below are not drawn"
    words = f"{kind}: {value}. Scan {scan.scan_id}, {scan.view}, fold {winner.dataset.fold_of[scan.patient_id]}, " \
            f"{truth} lesion{'s' * (truth != 1)}{found}."
    return {"kind": kind, "words": words[0].upper() + words[1:], "png": _base64(png),
            "alt": f"Bone scan, dark on white, with outlines of truth (solid) and prediction (dashed). {words}"}


def _page(shown: dict[str, list[Chart]], rows: list[charts.Row], values: dict[str, Any]) -> str:
    """The template with its values; all that comes from the study is escaped, in HTML and in JSON."""
    drawn = {f"{section}-{n}": chart for section, many in shown.items() for n, chart in enumerate(many)}
    payload = {"config": charts.CONFIG, "data": {"configurations": rows},
               "charts": {name: {"spec": c.spec, "data": c.data} for name, c in drawn.items()}}
    text = orjson.dumps(payload, option=orjson.OPT_SERIALIZE_NUMPY).decode()  # writes NaN as null
    for sign, code in (("<", "\\u003c"), (">", "\\u003e"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029")):
        text = text.replace(sign, code)
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    page.filters["number"] = _number
    return page.from_string(files("raybone").joinpath("report.html").read_text("utf-8")).render(
        values | {"shown": shown, "payload": Markup(text), "vega": Markup(charts.javascript()),
                  "nonce": secrets.token_urlsafe(16)})


def _about(folder: Folder, told: _Told) -> str:
    """When the search ran, whether it has ended, and when this was written."""
    first, last, now = (time.strftime("%Y-%m-%d %H:%M", time.localtime(t)) for t in (
        *(told.clock if told.completions or told.state.configurations else (0, 0)), time.time()))
    if not told.state.configurations:
        return f"Nothing has run yet. Written {now}."
    ended = f"ended ({told.state.end})" if told.state.end else "still running" if Lease(folder).holder() is not None \
        else "not ended: `raybone search` with the same --out resumes it"
    return f"First event {first}, last {last}; {ended}. Written {now}."


def _facts(study: Study, told: _Told, table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Label, value and a remark on it."""
    m, counts = study.metric, told.state.counts
    facts = []
    for row in table[table["state"] == "complete"].head(1).to_dict("records"):
        facts = [("Best configuration", str(row["config_id"]), f"{study.model}, {row['parameters']:,} parameters"),
                 (f"{m}, mean of the folds", _number(row[f"{m}_mean"]),
                  f"95 % interval {_range(row, f'{m}_ci')}"),
                 (f"{m}, corrected", _number(row[f"{m}_corrected"]), "without the luck of having been chosen")]
        if math.isfinite(row[f"{m}_test"]):
            facts.append((f"{m}, test group", _number(row[f"{m}_test"]), "patients that no fold holds"))
    said = ", ".join(f"{counts[s]} {s}" for s in ("complete", "stopped", "failed", "running", "paused") if counts[s])
    return [*facts, ("Configurations", f"{len(table)} of {study.search.trials}", said or "none yet"),
            ("Fold epochs trained", f"{told.state.fold_epochs:,}", f"in {_duration(told.state.seconds)}")]


def _warnings(study: Study, table: pd.DataFrame, found: dict[str, Any] | None) -> list[str]:
    """What a reader must know before believing the ranking."""
    complete, m = table[table["state"] == "complete"], study.metric
    said = [w for text in table["warnings"].dropna().unique() for w in str(text).split("; ") if w]
    if complete.empty:
        said.append("no configuration is complete: nothing is ranked, and scores are of the folds and epochs so far")
    elif len(complete) > 1:
        p = complete[["p_to_best", "p_to_best_bootstrap"]].astype(float).max(axis=1)
        near = [f"{r}" for r, value in zip(complete["rank"], p) if value >= 0.05]
        if near:
            said.append(f"rank{'s' * (len(near) > 1)} {_several(near)} cannot be told from the winner (p of at least "
                        "0.05, by one of the two tests)")
    failed = table[table["state"] == "failed"]
    if len(failed):
        said.append(f"{len(failed)} configurations failed, the first ({failed['config_id'].iloc[0]}) with: "
                    f"{str(failed['reason'].iloc[0])[:200]}")
    if found is not None:
        said += [w for w in found["warnings"] if w not in said]
        if found["problems"]:
            said.append(f"{len(found['problems'])} problems in the dataset, the first: {found['problems'][0]}")
        patients = found["counts"]["patients"]
        if patients < FEW:
            said.append(f"{patients} patients: too few to tell configurations apart that differ by a few hundredths; "
                        f"read the intervals of {m}, not the ranks")
    return said


def _table(study: Study, table: pd.DataFrame) -> dict[str, Any]:
    """Columns (label, whether of numbers) and rows of cells (text, what to sort by)."""
    m = study.metric
    names = {"rank": "rank", "config_id": "configuration", "state": "state", f"{m}_mean": m,
             f"{m}_ci_low": "95 % interval", "delta_to_best": "to the best", "p_to_best": "p",
             "p_to_best_bootstrap": "p, bootstrap", **{p: p for p in study.space}, f"{m}_pooled": "pooled",
             "epochs_done": "fold epochs", "train_seconds": "seconds"}
    columns = {c: label for c, label in names.items()
               if c in ("rank", "state", *study.space) or table[c].notna().any()}
    rows = []
    for row in table.to_dict("records"):
        values: dict[Any, Any] = {**row, **{p: row["params"].get(p) for p in study.space}}
        texts = {c: _number(values[c]) for c in columns} | {
            f"{m}_ci_low": _range(row, f"{m}_ci"), "p_to_best": _chance(row["p_to_best"]),
            "p_to_best_bootstrap": _chance(row["p_to_best_bootstrap"]),
            "state": f"{row['state']}{': ' * bool(row['reason'])}{row['reason']}"[:160]}
        rows.append([(texts[c], _sortable(values[c])) for c in columns])
    numeric = [any(row[i][1] is not None for row in rows) for i in range(len(columns))]
    return {"columns": list(zip(columns.values(), numeric)), "rows": rows}


def _sortable(value: Any) -> float | None:
    """What a table is sorted by where texts would not do."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def _paired(study: Study, table: pd.DataFrame) -> list[dict[str, Any]]:
    """The best complete rows beside the winner, in words."""
    return [{"name": f"{r['rank']}. {r['config_id']}", "mean": _number(r[f"{study.metric}_mean"]),
             "gap": _number(r["delta_to_best"]), "interval": _range(r, "delta_ci"), "p": _chance(r["p_to_best"]),
             "p_bootstrap": _chance(r["p_to_best_bootstrap"])}
            for r in table[table["state"] == "complete"].head(charts.SHOWN).to_dict("records")]


def _versions() -> dict[str, str]:
    """Of what is installed here."""
    known = {d.metadata["Name"].lower(): d.version for d in metadata.distributions() if d.metadata["Name"]}
    return {"python": platform.python_version(), **{n: known[n] for n in LIBRARIES if n in known}}


def _csv(table: pd.DataFrame) -> bytes:
    return bytes(table.drop(columns="params").to_csv(index=False).encode())


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _number(value: Any) -> str:
    """Four digits of a float, nothing for what is not there."""
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else ""
    return "" if value is None or str(value) == "<NA>" else str(value)


def _chance(p: float) -> str:
    return "" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _range(row: Mapping[Any, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{low:.3f} to {high:.3f}" if math.isfinite(low) and math.isfinite(high) else ""


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _several(words: Sequence[str], most: int = 12) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
