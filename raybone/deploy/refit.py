"""The winner of a study, or another rank, as a model bundle: its fold models together, or one model
of everyone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jinja2 import StrictUndefined, Template
from torch import Tensor

from raybone.data.dataset import Dataset, dataset_of
from raybone.data.folds import TEST, TRAINING
from raybone.data.ingest.steps import scale_of
from raybone.data.modality import words_of
from raybone.data.preprocess import canvas_of
from raybone.deploy.best_together import Candidate, Together, best_together, candidates
from raybone.deploy.bundle import Bundle, Network, write_bundle
from raybone.deploy.calibrate import calibrate, operate, out_of_fold
from raybone.deploy.onnx import export_onnx, refuse_onnx
from raybone.deploy.out_of_distribution import likeness_of
from raybone.errors import FitFailed, RunFailed, WrongInput
from raybone.metrics.operating_point import Rule
from raybone.models._model import TrainingConfig, portable
from raybone.results.lineage import built_on, trained_before
from raybone.results.study_folder import EVERYONE, ConfigurationFolder, StudyFolder
from raybone.run.everyone import epochs_of_everyone
from raybone.run.local import refuse_here
from raybone.storage import Folder, fold_name
from raybone.study.spec import ResolvedStudy, Study
from raybone.tasks import configured, task_named
from raybone.tasks.base import Outcome
from raybone.tasks.groups import Scorer
from raybone.train.samples import FoldJob
from raybone.types import Epoch, Finding
from raybone.version import version

MOST = 500  # scans that say what the training scans look like
USUAL = Rule()  # of what counts as found
Progress = Callable[[int, int], None]
# Trains the configuration of these parameters on everyone, and leaves its weights in the folder.
Train = Callable[[ResolvedStudy, Folder, dict[str, Any]], None]


@dataclass(frozen=True)
class Options:
    """What becomes of a study: the rank that is taken, how its models come to be, and what is
    written.

    train: trains one model on all patients but the test group; None takes the fold models as an
    ensemble. onnx: write the networks as ONNX files as well. operate: chooses the score from which
    on something is found (see ``Rule``). best: up to so many configurations, from the rank on, come
    in together: as many as are best out of fold.
    """

    rank: int = 1
    train: Train | None = None
    onnx: bool = False
    operate: Rule = USUAL
    best: int = 1


def refit(
    folder: StudyFolder,
    out: Path | str,
    options: Options = Options(),
    progress: Progress = lambda done, total: None,
) -> Bundle:
    """Write a bundle of a configuration.

    Args:
        out: folder to make.
    Raises:
        WrongInput: no such rank, its weights or the study's dataset are gone, or ``out`` exists.
    """
    if "://" in str(out):
        raise WrongInput(
            f"--out {out}: must be a folder of this machine; copy the bundle from there"
        )
    study, out = folder.study, Path(out)
    if os.path.lexists(out):
        raise WrongInput(f"--out {out}: must not exist yet; choose another name or remove it")
    rows = _rows(folder, options)
    chosen = folder.configuration(rows[0]["config_id"])
    model, config = configured(study, chosen.params)
    if options.onnx:
        refuse_onnx(model)
    dataset = dataset_of(study)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    job = FoldJob(dataset, model, config, 0, study.epochs)
    if options.best > 1:
        several = candidates(chosen, rows, options.best, dataset.folds)
        found = best_together(job, several, study.metric, device, progress)
    else:
        found = _alone(chosen, rows[0], job, device, progress)
    point = operate(job, options.operate, found.cases, found.findings)
    if "reason" in point and options.operate != USUAL:
        raise WrongInput(
            f"--operate {options.operate}: {point['reason']}; ask for less, or for another rule"
        )
    members = _members(found, options)
    meta = {
        "kind": "one model of all patients" if options.train else found.kind,
        "calibration": calibrate(job.task.counted, found.cases),
        "operating_point": point,
        "subgroups": _groups(job, found.findings, study.metric, point["threshold"]),
        **_meta(found, dataset, rows[0]),
    }
    further = partial(_further, dataset=dataset, onnx=options.onnx)
    return write_bundle(out, meta, members, _card(meta), further)


def _alone(
    chosen: ConfigurationFolder,
    row: Mapping[str, Any],
    job: FoldJob,
    device: torch.device,
    progress: Progress,
) -> Together:
    """One configuration, with what is left of its fold models."""
    states = [chosen.weights(k) or {} for k in range(job.dataset.folds)]
    findings = chosen.predictions(job.dataset) or []
    cases = out_of_fold(job, findings, states if all(states) else [], device, progress)
    member = Candidate(chosen, int(row["rank"]), job.config, states)
    return Together([member], findings, cases)


def _members(found: Together, options: Options) -> dict[str, Network]:
    """The networks of the bundle, by name."""
    first = found.members[0]
    if options.train:
        return {EVERYONE: Network(_of_everyone(first.folder, options.train))}
    if gone := sum(not state for state in first.states):
        folder = first.folder.folder
        raise WrongInput(
            f"refit {folder.url}: the weights of {first.folder.id}, rank {first.rank}, must be "
            f"there for every fold, but {gone} of {len(first.states)} are gone, as keep is "
            f"{folder.study.keep}; take a better rank, or train it again with --all-patients"
        )
    if len(found.members) == 1:
        return {fold_name(k): Network(state) for k, state in enumerate(first.states)}
    return {
        f"{member.folder.id}-{fold_name(k)}": Network(state, _written(member.config))
        for member in found.members
        for k, state in enumerate(member.states)
    }


def _written(config: TrainingConfig) -> dict[str, Any]:
    """A configuration as bundle.json has it."""
    return portable(config.model_dump(mode="json"))


def _of_everyone(chosen: ConfigurationFolder, train: Train) -> dict[str, Tensor]:
    """The weights of a model that is trained on all patients."""
    folder = chosen.fold(None)
    train(chosen.folder.study, Folder(folder.absolute), chosen.params)
    if (made := chosen.weights(None)) is None:
        raise RunFailed(
            f"refit {chosen.folder.url}: {folder.url} must hold last.pt after the training, but "
            "does not; does every node reach that folder?"
        )
    return made


def train_here(
    study: ResolvedStudy, folder: Folder, params: dict[str, Any], tell: Callable[[Epoch], None]
) -> None:
    """``Train`` in this process."""
    refuse_here(study)
    torch.set_num_threads(study.resources.cpus)
    try:
        for epoch in epochs_of_everyone(study, folder, params):
            tell(epoch)
    except FitFailed as error:
        raise RunFailed(f"refit: {error}") from None


def _rows(folder: StudyFolder, options: Options) -> list[dict[str, Any]]:
    """The complete configurations from the rank on."""
    if options.best < 1 or (options.best > 1 and options.train):
        raise WrongInput(
            f"--best {options.best}: must be at least 1, and 1 with --all-patients, which trains a "
            "single configuration; change one of them"
        )
    table = folder.table()
    complete: list[dict[str, Any]] = table[table["state"] == "complete"].to_dict("records")  # type: ignore[assignment]
    if not 1 <= options.rank <= len(complete):
        raise WrongInput(
            f"--rank {options.rank}: study {folder.url} has {len(complete)} complete "
            "configurations; " + ("choose one of them" if complete else "let the search end")
        )
    return complete[options.rank - 1 :]


def _meta(found: Together, dataset: Dataset, row: Mapping[str, Any]) -> dict[str, Any]:
    """What bundle.json says of the models, their data and their score."""
    chosen, config = found.members[0].folder, found.members[0].config
    study, configs = chosen.folder.study, [member.config for member in found.members]
    model, scans = configured(study, chosen.params)[0], _seen(dataset, configs)
    earlier = [trained_before(built_on(config).values()) for config in configs]
    patients, pixels = (set().union(*sets) for sets in zip(*earlier))
    machines = [line for member in found.members for line in member.folder.record.machines]
    return {
        "name": study.name,
        "model": model.name,
        "task": model.task,
        "parameters": chosen.record.parameters,
        "config": _written(config),
        "categories": task_named(model.task).names(config),
        "preprocessing": _preprocessing(dataset),
        "score": found.score if len(configs) > 1 else _score(study, row),
        "together": found.told(),
        "study": {
            "name": study.name,
            "config_id": chosen.id,
            "rank": int(row["rank"]),
            "params": portable(chosen.params),
            "dataset_hash": dataset.hash,
            "seed": study.search.seed,
            "epochs": study.epochs,
            "code_version": study.resolved.code_version,
            "warnings": list(study.resolved.warnings),
        },
        "modality": words_of(s.flags for s in scans),
        "counts": dataset.meta["counts"],
        "patients_known": dataset.meta["patients_known"],
        "pseudonyms": dataset.meta.get("pseudonyms"),
        "patients": sorted({s.patient_id for s in scans} | patients),
        "pixels": sorted({s.pixels for s in scans} | pixels),
        "likeness": likeness_of(scans[:: -(-len(scans) // MOST)], dataset.counts),
        "raybone": version(),
        "torch": str(torch.__version__),
        "trained_on": list(dict.fromkeys(machines)),
    }


def _seen(dataset: Dataset, configs: Sequence[TrainingConfig]) -> list[Any]:
    """Scans that some model of the bundle was trained on."""
    further = any(config.negatives or config.unlabelled for config in configs)
    out = {TEST, *(() if further else (TRAINING,))}
    return [s for s in dataset.scans if dataset.fold_of[s.patient_id] not in out]


def _preprocessing(dataset: Dataset) -> dict[str, Any]:
    """What prepare did, with the window where all scans share one."""
    content = dict(dataset.meta["preprocessing"])
    shared = {s.high for s in dataset.scans} if scale_of(content["steps"]).shared else set()
    return {
        **content,
        "window": shared.pop() if len(shared) == 1 else None,
        "layout": dataset.meta["layout"],
    }


def _score(study: Study, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row of the leaderboard that was refitted, for JSON: no NaN."""
    m = study.metric
    names = [
        f"{m}_{k}"
        for k in (
            "mean",
            "sd",
            "ci_low",
            "ci_high",
            "nb_low",
            "nb_high",
            "pooled",
            "corrected",
            "test",
            "test_folds",
        )
    ]
    names += [k for k in row if k.endswith("_mean") and k not in names]
    values = {k: row[k] for k in names if isinstance(row.get(k), float) and math.isfinite(row[k])}
    return {"metric": m, **{k: round(v, 6) for k, v in values.items()}}


def _further(half: Path, bundle: Bundle, dataset: Dataset, onnx: bool) -> dict[str, Any]:
    """Files for other programs."""
    written: dict[str, Any] = {}
    size = bundle.config.imgsz
    sizes = [canvas_of(s.height, s.width, size) for s in dataset.scans]
    high, wide = (max(sides) for sides in zip(*sizes))
    for entry, module in zip(bundle.meta["members"], bundle.members(torch.device("cpu"))):
        name = Path(entry["file"]).stem
        tile = int(getattr(bundle.config_of(entry), "tile", 0))
        canvas = (tile, tile) if tile else (high, wide * (1 + bundle.config.montage))
        if bundle.model.native:
            suffix, write = bundle.model.native
            write(module, half / f"{name}{suffix}")
        if onnx:
            gap = export_onnx(module, bundle.model, canvas, half / f"{name}.onnx")
            written.setdefault("onnx", []).append(
                {
                    "file": f"{name}.onnx",
                    "input": ["N", "C", *canvas],
                    "largest_difference": float(f"{gap:.2g}"),
                }
            )
    return written


def _groups(
    job: FoldJob, findings: Sequence[Sequence[Finding]], metric: str, threshold: float
) -> list[dict[str, Any]]:
    """The score of each subgroup out of fold, all folds together, for JSON: no NaN. Masks are as
    they were cut when they were scored.
    """
    dataset, task, every = job.dataset, job.task, [f for own in findings for f in own]
    folds = range(dataset.folds) if every else range(0)
    scans = [s for fold in folds for s in task.seen(every, dataset.validation(fold))]
    told = []
    for group in Scorer.by(metric, task, dataset).groups(
        Outcome(every, scans, [*job.config.categories], threshold)
    ):
        score = {k: round(v, 6) for k, v in vars(group.score).items() if math.isfinite(v)}
        told.append({**vars(group), "score": score})
    return told


def _card(meta: Mapping[str, Any]) -> str:
    """The model card, README.md of the bundle."""
    text = files("raybone.deploy").joinpath("model_card.md").read_text(encoding="utf-8")
    return Template(text, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined).render(
        meta
    )
