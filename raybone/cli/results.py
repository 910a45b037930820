"""Verbs of what a study gave: tables, a report, the winner as a model bundle, its findings."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from raybone.cli.arguments import OutFile
from raybone.cli.data import modality_of
from raybone.errors import WrongInput
from raybone.results.terminal import bar, epoch_line, say, show_by_model, show_table
from raybone.types import safe_cell

if TYPE_CHECKING:
    import pandas as pd

    from raybone.deploy.predict import Predicted
    from raybone.results.study_folder import StudyFolder


def leaderboard(
    studies: Sequence[str],
    *,
    csv: OutFile | None = None,
    brief: bool = False,
    by_model: bool = False,
    time: bool = False,
    json: bool = False,
) -> None:
    """rebuild leaderboard.csv from the journal and show it; several studies make one table

    Args:
        studies STUDY:
        csv FILE: write the table here as well
        brief: only the ten columns that a reviewer reads first
        by_model: one row a model: its best configuration against that of the others, and what it
            cost
        time: for --by-model: milliseconds an image on this machine
        json: one JSON document on stdout, a row each with null for what is not there
    """
    import orjson

    from raybone.results.leaderboard import brief_of, entries_of, merged_leaderboard
    from raybone.results.study_folder import StudyFolder

    if brief and by_model:
        raise WrongInput("leaderboard: --brief and --by-model are two tables; leave one out")
    if time and not by_model:
        raise WrongInput(
            "leaderboard: --time is a column of --by-model, which is not asked for; add it, or "
            "leave --time out"
        )
    folders = {study: StudyFolder(study) for study in studies}
    first, *others = folders.values()
    boards = {name: (f.study, f.state) for name, f in folders.items()}
    table = merged_leaderboard(boards) if others else _written(first)
    if by_model:
        from raybone.results.by_model import by_model as table_of_models
        from raybone.results.speed import Timer

        timer = Timer(first, bar("time")) if time else None
        table = table_of_models(table, entries_of(boards), timer)
    if csv:
        written = table[brief_of(table)] if brief else table
        written.map(safe_cell).to_csv(csv, index=False)
    if json:
        shown = table[brief_of(table)] if brief else table
        rows = shown.astype(object).where(shown.notna(), None).to_dict("records")
        how = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY
        say(orjson.dumps(rows, option=how).decode())
    elif by_model:
        show_by_model(table)
    else:
        show_table(table, brief)


def _written(folder: StudyFolder) -> pd.DataFrame:
    """The leaderboard of a study, which is written there unless its driver does, or nobody may."""
    from raybone.hpo.lease import Lease

    if Lease(folder.files).holder():
        return folder.table()
    try:
        return folder.write_table()
    except OSError as error:
        why = error.strerror or error
        say(f"warning: {folder.url}/leaderboard.csv is left as it is: {why}", file=sys.stderr)
        return folder.table()


def track(study: str, *, to: str, follow: bool = False) -> None:
    """a study's epochs and table for MLflow, TensorBoard or W&B, as it runs or afterwards

    Args:
        to TRACKER: mlflow:URI (a server or sqlite:///FILE), tensorboard:DIR or wandb:DIR (offline)
        follow: until the study ends
    """
    from raybone.results.trackers.track import shown, track

    say(f"{shown(to)}: {track(study, to, follow, say)} fold epochs")


def compare(studies: Sequence[str], *, dataset: str = "", json: bool = False) -> None:
    """the winner beside what papers published of its system; a classifier's subgroups

    Args:
        studies STUDY:
        dataset DATASET: where the dataset is now, if it was moved
        json: one JSON document on stdout
    """
    import orjson  # writes NaN as null

    from raybone.results.compare import compare, comparison_lines

    compared = [compare(study, dataset) for study in studies]
    if json:
        say(orjson.dumps(compared, option=orjson.OPT_INDENT_2).decode())
    else:
        say("\n\n".join("\n".join(comparison_lines(one)) for one in compared))


def report(
    study: str, *, dataset: str = "", html: str | None = None, no_scans: bool = False
) -> None:
    """one self-contained HTML file on a study, finished or not

    Args:
        dataset DATASET: where the dataset is now, if it was moved
        html FILE: default: STUDY/report.html
        no_scans: leave out pictures of patients' scans
    """
    from raybone.results.report import report

    written, size = report(study, html, not no_scans, bar, dataset)
    say(f"{written}: {size / 1e6:.1f} MB")


def checklist(study: str, *, dataset: str = "", json: bool = False) -> None:
    """what CLAIM 2024 and TRIPOD+AI ask of a paper, filled from the study, as Markdown

    Args:
        dataset DATASET: where the dataset is now, if it was moved
        json: one JSON document on stdout
    """
    import orjson

    from raybone.results.reporting.claim import claim, claim_lines

    rows = claim(study, dataset)
    if json:
        say(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
    else:
        say("\n".join(claim_lines(study, rows)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Everyone:
    """Whether one model is trained on all patients, and where.

    Args:
        all_patients: train one model on all patients but the test group, instead of the fold models
            together
        address: for --all-patients: a Ray cluster (default: RAY_ADDRESS, else its own)
        local: for --all-patients: in this process, without Ray
    """

    all_patients: bool = False
    address: str | None = None
    local: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """What becomes of a study.

    Args:
        rank N: of the leaderboard (default %(default)s)
        operate RULE: score from which on something is found, chosen out of fold: max_f1,
            sensitivity=0.9, specificity=0.9, fp_per_scan=1 or score=0.5 (default %(default)s)
        onnx: write ONNX files as well, checked against torch
        best N: up to N configurations of one model and image size, from the rank on, come in
            together: as many as score best out of fold (default %(default)s)
    """

    rank: int = 1
    operate: str = "max_f1"
    onnx: bool = False
    best: int = 1


def refit(study: str, *, out: str, dataset: str = "", everyone: Everyone, made: Made) -> None:
    """the winner, or another rank, as a model bundle

    Args:
        out BUNDLE: folder to make
        dataset DATASET: where the dataset is now, if it was moved
    """
    from raybone.deploy.refit import Options, refit, train_here
    from raybone.metrics.operating_point import Rule
    from raybone.results.study_folder import StudyFolder

    train = None
    if everyone.all_patients and everyone.local:
        train = partial(train_here, tell=epoch_line)
    elif everyone.all_patients:
        from raybone.run.ray.refit import train_on_ray

        train = partial(train_on_ray, address=everyone.address, tell=epoch_line)
    elif everyone.address or everyone.local:
        raise WrongInput(
            "refit: --address and --local say where to train, but fold models are trained already; "
            "leave them out, or add --all-patients"
        )
    options = Options(made.rank, train, made.onnx, Rule.of(made.operate), made.best)
    bundle = refit(StudyFolder(study, dataset), out, options, bar("refit"))
    source, point = bundle.meta["study"], bundle.meta["operating_point"]
    say(
        f"{out}: {bundle.meta['kind']} of {bundle.model.name}, {source['config_id']} of study "
        f"{source['name']}, trained on {len(bundle.meta['patients'])} patients; found is what "
        f"scores at least {point['threshold']:.3g} ({point.get('reason', point['rule'])}); read "
        "its README.md"
    )
    if together := bundle.meta["together"]:
        metric, tried = together["metric"], together["by_number"]
        ids = ", ".join(one["config_id"] for one in together["configurations"])
        say(
            f"together are {ids}, of the best {len(tried)}: {metric} out of fold of the first, the "
            f"first two and so on {', '.join(map('{:.3f}'.format, tried))}; by the number that the "
            f"other folds choose {together[f'{metric}_mean']:.3f}"
        )


def predict(
    bundle: str,
    scans: Sequence[str],
    *,
    out: str,
    modality: str = "NM",
    least: float | None = None,
    store: str = "",
) -> None:
    """findings of a bundle on scans: JSON, CSV, overlays, DICOM Segmentation and Report

    Args:
        scans: files, folders or archives, as `prepare` reads them
        out DIR: folder to make; it names the scans' files
        modality: DICOM Modality to take, or 'any' (default %(default)s)
        least SCORE: lowest score of a detector's boxes (default: the bundle's operating point)
        store URL: a DICOMweb archive that takes the DICOM objects
    """
    from raybone.data.ingest.dicom.archive import web
    from raybone.deploy.bundle import open_bundle
    from raybone.deploy.job import Options
    from raybone.deploy.predict import is_made, predict

    stored = web("predict").store_of(store) if store else None
    options, opened = Options(modality_of(modality), least), open_bundle(bundle)
    if stored and is_made(opened, scans, out, options):
        say(f"{out}: was made by the same command; what is in it is stored")
    else:
        _say_found(out, predict(opened, scans, out, options, bar("predict")))
    if stored:
        files = sorted(Path(out).glob("*.dcm"))
        say(f"{stored(files, bar('store'))} DICOM objects are stored")


def _say_found(out: str, done: Predicted) -> None:
    findings = sum(len(frame.findings) for frame in done.frames)
    rate = len(done.frames) / max(done.predicting, 1e-9)
    say(
        f"{out}: {len(done.frames)} scans, {findings} findings; read in {done.reading:.1f} s, "
        f"predicted in {done.predicting:.1f} s, {rate:.1f} scans a second, drawn in "
        f"{done.drawing:.1f} s"
    )
    lines = [
        f"{frame.source}: unlike the training scans: {'; '.join(frame.oddities)}"
        for frame in done.frames
        if frame.oddities
    ]
    lines += [f"{source}: not taken: {reason}" for source, reason in done.rejected]
    lines += done.remarks
    if done.without:
        lines.append(
            f"{done.without} scans lack a DICOM object, for reasons that predictions.json tells"
        )
    for line in lines:
        say(" ".join(f"warning: {line}".splitlines()))


def evaluate(bundle: str, dataset: str, *, test: bool = False, json: bool = False) -> None:
    """a bundle's scores on patients it was not trained on, with intervals and subgroups

    Args:
        dataset: as `prepare` makes it
        test: on its test group alone
        json: one JSON document on stdout
    """
    import orjson  # writes NaN as null

    from raybone.deploy.bundle import open_bundle
    from raybone.deploy.evaluate import evaluate, evaluation_lines

    made = evaluate(open_bundle(bundle), dataset, test=test, progress=bar("evaluate"))
    if json:
        say(orjson.dumps(made, option=orjson.OPT_INDENT_2).decode())
    else:
        say("\n".join(evaluation_lines(made)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judging:
    """Which findings count.

    Args:
        classifier BUNDLE: of lesions, malignant or not; without it, what the finder says holds
        least SCORE: lowest score of a detector's boxes (default: the bundle's operating point)
    """

    classifier: str | None = None
    least: float | None = None


def burden(
    finder: str,
    skeleton: str,
    scans: Sequence[str],
    *,
    out: str,
    judging: Judging,
    modality: str = "NM",
) -> None:
    """a patient's tumour burden: lesions found, classified, laid on the skeleton; one page each

    Args:
        finder: bundle of a detector or segmenter of lesions
        skeleton: bundle of a segmenter of the regions of the skeleton
        scans: files, folders or archives, as `prepare` reads them
        out DIR: folder to make; it names the scans' files and shows them
        modality: DICOM Modality to take, or 'any' (default %(default)s)
    """
    from raybone.deploy.bundle import open_bundle
    from raybone.deploy.burden import Chain, burden

    judge = open_bundle(judging.classifier) if judging.classifier else None
    chain = Chain(open_bundle(finder), open_bundle(skeleton), judge)
    done = burden(chain, scans, out, modality_of(modality), judging.least, bar("burden"))
    for study in done:
        index = f"{study.burden.index:.2f} %"
        if study.low is not None and study.high is not None:
            index += f" ({study.low:.2f} to {study.high:.2f})"
        page = f"{out}/{study.number:04d}.html"
        views = f"{len(study.malignant)} malignant findings in {len(study.views)} views"
        say(f"{page}: bone scan index {index}, {views}")
        for warning in study.warnings:
            say(f"warning: {page}: {warning}")
    lines = [f"{source}: not taken: {reason}" for source, reason in done.rejected]
    for line in (*lines, *done.remarks):
        say(" ".join(f"warning: {line}".splitlines()))
