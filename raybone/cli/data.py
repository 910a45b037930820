"""Verbs of what comes before a study: scans, datasets, the menu of models."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybone.cli.arguments import OutFile
from raybone.errors import WrongInput
from raybone.results.terminal import bar, say

if TYPE_CHECKING:
    from raybone.data.ingest.prepare import Prepared


def phantom(
    out: str, *, patients: int = 24, seed: int = 0, layout: str = "dicom", height: int = 1024
) -> None:
    """a synthetic cohort: DICOM and annotations with known truth

    Args:
        layout: dicom, coco, labelme, bs80k, masks or skeleton (default %(default)s)
        height: rows of a scan, columns are a quarter (default 1024)
    """
    from raybone.phantom.phantom import phantom

    folder = phantom(out, patients, seed, layout, height, bar("phantom"))
    say(f"{folder}: {patients} patients, two views each")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """How raw scans become a dataset.

    Args:
        layout: auto, dicom, coco, labelme, bs80k, bs80k_regions, masks, nnunet or yolo
        modality: DICOM Modality to take, or 'any' (default %(default)s)
        folds K: number of folds, or site: leave one site out
        seed: another order of patients of equal burden
        key FILE: key of the pseudonyms (default: in your config folder)
        holdout SHARE: share or number of patients for a test group that no search sees
        split FILE: CSV of patient_id and fold (or test, training) to take
        negatives: training: patients without metastases join every training part and no validation
            (default %(default)s)
        unannotated apart|negative: scans without annotation where others have one: kept apart,
            neither trained on nor scored, or taken as scans without lesion (default %(default)s)
        allow_unmatched: go on although annotations find no scan, or several; they are left out
        categories NAME=CATEGORY: further names of annotations, such as mets=malignant
            fracture=fracture
        steps STEP: preprocessing of the papers, in order: body_range, brightness, knee_cut,
            montage, ...
        show_paths: name source files on the terminal
    """

    layout: str = "auto"
    modality: str = "NM"
    folds: str = "5"
    seed: int = 0
    key: str | None = None
    holdout: float = 0
    split: str | None = None
    negatives: str = "folds"
    unannotated: str = "apart"
    allow_unmatched: bool = False
    categories: Sequence[str] = ()
    steps: Sequence[str] = ()
    show_paths: bool = False

    def checked(self) -> dict[str, Any]:
        """Returns the arguments of ``raybone.data.ingest.prepare.prepare``.

        Raises:
            WrongInput: a category is not NAME=CATEGORY.
        """
        pairs = [text.partition("=") for text in self.categories]
        if not all(name.strip() and category.strip() for name, _, category in pairs):
            raise WrongInput(
                f"--categories: must be NAME=CATEGORY, got {' '.join(self.categories)}; write it "
                "as mets=malignant"
            )
        twice = {(name.strip(), category.strip()) for name, _, category in pairs}
        if len({name for name, _ in twice}) < len(twice):
            raise WrongInput(
                "--categories: each name must be of one category, got "
                f"{' '.join(self.categories)}; leave one of them out"
            )
        return vars(self) | {
            "modality": modality_of(self.modality),
            "folds": int(self.folds) if self.folds.lstrip("-").isdecimal() else self.folds,
            "categories": {name: category.strip() for name, _, category in pairs},
        }


def prepare(source: str, dataset: str, *, options: PrepareOptions) -> None:
    """raw scans and annotations -> dataset folder

    Args:
        source: folder, archive or DICOMDIR, or dicomweb:URL of an archive, with attributes of
            studies after a ?
    """
    from raybone.data.ingest.dicom.archive import source_of
    from raybone.data.ingest.prepare import prepare
    from raybone.data.ingest.sources import told

    how = options.checked()
    with source_of(source, how["modality"], Path(dataset), bar("fetch")) as folder:
        made = prepare(folder, dataset, bar("prepare"), **how)
    meta, counts = made.meta, made.meta["counts"]
    for line in told(made.accounts, counts, options.unannotated == "negative"):
        say(line)
    alone = counts["training_patients"]
    say(
        f"{made.path}: {counts['scans']} scans of {counts['patients']} patients with "
        f"{counts['lesions']} lesions in {counts['folds']} "
        f"folds{f', {alone} patients in training alone' if alone else ''}; {counts['rejected']} "
        f"inputs not taken; hash {meta['hash']}"
    )
    if small := [f"{n} at imgsz {size}" for size, n in counts["too_small"].items() if n]:
        say(
            "lesions that get under 2 pixels a side, which detectors are not trained on: "
            f"{', '.join(small)}"
        )
    for warning in meta["warnings"]:
        say(f"warning: {warning}")
    if options.show_paths:
        for line in _reasons(made):
            say(" ".join(line.encode("utf-8", "backslashreplace").decode().splitlines()))
    elif made.rejected or meta["remarks"]:
        table = "rejected.csv" if made.rejected else "dataset.json"
        say(f"reasons and scans are in {made.path / table}; --show-paths names the files")


def _reasons(made: Prepared) -> Iterator[str]:
    """Lines on source files: remarks, then what was not taken and why."""
    path_of = {i: path for input_id, scan_id, path in made.sources for i in (input_id, scan_id)}
    reason_of = {i: reason for i, _, reason in made.rejected}
    for rule, ids in made.meta["remarks"].items():
        for i in ids:
            yield f"{path_of.get(i, i)}: {rule}"
    for i, scan_id, path in made.sources:
        if i in reason_of and not scan_id:
            yield f"{path}: not taken: {reason_of[i]}"


def modality_of(text: str) -> str | None:
    """The DICOM Modality to take; None for any."""
    return None if text.lower() == "any" else text


def inspect(
    dataset: str,
    *,
    json: bool = False,
    png: OutFile | None = None,
    annotate_next: str | None = None,
    count: int | None = None,
) -> None:
    """integrity, leakage, near-duplicates and fingerprint of a dataset

    Args:
        json: one JSON document on stdout
        png FILE: write a contact sheet: scans to look at first, then a selection
        annotate_next BUNDLE: instead, the scans without annotation on which its members disagree
            most, one a patient
        count N: how many of them (default 10)
    """
    if annotate_next and png:
        raise WrongInput(
            "inspect: --png is a sheet of the whole inspection, which --annotate-next is instead "
            "of; leave one out"
        )
    if count is not None and not annotate_next:
        raise WrongInput("inspect: --count is of --annotate-next, which is not asked for; add it")
    if annotate_next:
        _show_next(dataset, annotate_next, 10 if count is None else count, json)
        return
    from raybone.data.inspect import inspect, inspection_lines

    seen = inspect(dataset, bar("inspect"))
    say(dumps(seen, indent=1) if json else "\n".join(inspection_lines(seen)))
    if png:
        from raybone.data.contact_sheet import contact_sheet

        say(f"{png}: {contact_sheet(dataset, png, seen)} scans", file=sys.stderr)


def init(
    dataset: str, *, out: str | None = None, hours: float | None = None, gpus: int = 0
) -> None:
    """a study to begin with, with the reasons beside the numbers

    Args:
        out FILE: YAML to write (default: NAME.yaml here, after the dataset)
        hours H: what the search may take; without it, 24 configurations
        gpus N: at work at once (default: none)
    """
    from raybone.run.begin import Means, begin, name_for

    file = Path(out or f"{name_for(dataset)}.yaml")
    if file.exists() or not file.parent.is_dir():
        raise WrongInput(
            f"--out {file}: must be a new file in a folder that is there, but it "
            f"{'exists' if file.exists() else 'has no such folder'}; choose another name"
        )
    means, tell = Means(hours, gpus), partial(say, file=sys.stderr)
    made = begin(dataset, file.stem, means, tell)
    with file.open("x", encoding="utf-8") as kept:
        kept.write(made.text)
    say(made.text, end="")
    say(
        f"{file}: about {made.wall_hours:.1f} hours with {made.slots} run(s) at once; "
        f"`raybone search {shlex.quote(str(file))} --out runs/{made.study.name}` begins"
    )


def export(
    source: str,
    *,
    to: str | None = None,
    out: str | None = None,
    optuna: OutFile | None = None,
    coco: OutFile | None = None,
    dataset: str = "",
) -> None:
    """a dataset for other tools, with its patient folds; or a study's trials or findings

    Args:
        source: DATASET, or with --optuna or --coco STUDY
        to FORMAT: coco, yolo, nnunet, cvat or fiftyone
        out DIR: folder to make
        optuna FILE: of Optuna's journal storage, which `optuna-dashboard FILE` opens
        coco FILE: what the best configuration finds out of fold, as COCO's results
        dataset DATASET: for --coco: where the dataset is now, if it was moved
    """
    if bool(to) != bool(out) or bool(to and out) + bool(optuna) + bool(coco) != 1:
        raise WrongInput(
            "export: needs --to FORMAT --out DIR for a dataset, or --optuna FILE or --coco FILE "
            "for a study; give one of the three"
        )
    if coco:
        from raybone.results.reporting.coco import coco_results

        if Path(coco).exists():
            raise WrongInput(f"--coco {coco}: must not exist yet; choose another name")
        found = coco_results(source, dataset)
        with Path(coco).open("x", encoding="utf-8") as file:
            file.write(dumps(found))
        say(
            f"{coco}: {len(found)} findings; COCO(annotations.json).loadRes reads them (evaluate "
            "with params.imgIds of the folds where a test group was held out)"
        )
        return
    if optuna:
        from raybone.results.study_folder import StudyFolder

        trials = StudyFolder(source).write_optuna(optuna)
        say(f"{optuna}: {trials} trials; `optuna-dashboard {shlex.quote(optuna)}` shows them")
        return
    from raybone.data.export.export import export

    made = export(source, str(out), str(to), bar("export"))
    say(f"{out}: {made.scans} scans in {made.folds} folds")
    for note in made.notes:
        say(f"warning: {note}")


def _show_next(dataset: str, bundle: str, count: int, json: bool) -> None:
    from raybone.deploy.annotate_next import annotate_next
    from raybone.deploy.bundle import open_bundle

    found = annotate_next(open_bundle(bundle), dataset, count, bar("inspect"))
    names = ("scan_id", "patient_id", "view", "sd")
    rows = [(scan.scan_id, scan.patient_id, scan.view, spread) for scan, spread in found]
    if json:
        say(dumps([dict(zip(names, row)) for row in rows], indent=1))
        return
    for scan_id, patient_id, view, spread in rows:
        say(f"{scan_id}  {patient_id}  {view:<10} members differ by {spread:.3f}")
    say("which file a scan is of is in the table beside the key of the pseudonyms (docs/data.md)")


def models(model: str | None = None, *, json: bool = False) -> None:
    """the menu, or the hyper-parameters of one model

    Args:
        model: whose hyper-parameters to list
        json: one JSON document on stdout
    """
    from raybone.models import menu

    if model:
        from raybone.run.reference import hyper_parameter_lines, hyper_parameters

        keys = hyper_parameters(model)
        say(dumps(keys, indent=1) if json else "\n".join(hyper_parameter_lines(keys)))
    elif json:
        columns = ("name", "task", "parameters", "source")
        say(dumps([dict(zip(columns, row)) for row in menu()], indent=1))
    else:
        for name, task, parameters, source in menu():
            say(f"{name:<19} {task:<14} {parameters / 1e6:6.1f} M  {source}")


def schema() -> None:
    """the JSON schema of a study's YAML, for editors"""
    from raybone.run.reference import schema

    say(dumps(schema(), indent=1))


def forget(
    dataset: str,
    patients: Sequence[str],
    *,
    key: str | None = None,
    among: Sequence[str] = (),
    json: bool = False,
) -> None:
    """delete patients from a dataset, and name what was trained on them

    Args:
        patients PATIENT: a patient_id of folds.csv, or the source's own id
        key FILE: key of the pseudonyms (default: in your config folder)
        among FOLDER: folders below which bundles and studies are looked for (default: the current
            one)
        json: one JSON document on stdout
    """
    from raybone.results.forget import Forgotten, forget, forgotten_lines

    def show(done: Forgotten) -> None:
        lines = "\n".join(forgotten_lines(dataset, done))
        say(dumps(dataclasses.asdict(done), indent=1) if json else lines)

    forget(dataset, patients, key, among or ["."], show)
