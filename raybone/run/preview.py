"""What a study will cost, before it is spent."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import median

import numpy as np
import torch

from raybone.data.contact_sheet import batch_sheet
from raybone.data.dataset import Dataset
from raybone.data.loader import Batch, Loader, training_loader
from raybone.data.tiles_and_targets import Mined
from raybone.errors import FitFailed, WrongInput
from raybone.hpo.fold_race import name_of
from raybone.hpo.races import expected
from raybone.hpo.state import gpu_hours
from raybone.models._model import Model, TrainingConfig
from raybone.results.study_folder import StudyFolder
from raybone.run.checks import first_taken, resolve
from raybone.study.space import PROBE, dimensions, from_unit, grid, rejected, trials
from raybone.study.spec import ResolvedStudy, Study
from raybone.tasks import configured, task_named
from raybone.train.memory import refuse_too_large
from raybone.train.samples import FoldJob, training_samples

STEPS = 3  # timed training steps, after one that warms up
START_UP = 25.0  # seconds that a slot takes to start, in benchmarks/startup.py


@dataclass(frozen=True)
class Preview:
    """What a search will take.

    rungs: (name, configurations, fold epochs). exhaustive: fold epochs of cross-validating every
    configuration in full. epoch_seconds: of one fold epoch, as ``timed`` says; of several models
    the mean, as each has its share of the configurations. hours: of all runs one after the other,
    with what they take to start; wall_hours: with ``slots`` runs at once, or as many as there are
    configurations. gpu_hours: of the epochs, as ``limits.gpu_hours`` counts. Neither regards
    ``limits``. warnings: what the leaderboard will warn of. by_model: seconds of a fold epoch of
    each model.
    """

    rungs: tuple[tuple[str, float, float], ...]
    fold_epochs: float
    exhaustive: float
    epoch_seconds: float
    timed: str
    hours: float
    gpu_hours: float
    slots: int
    wall_hours: float
    warnings: tuple[str, ...] = ()
    by_model: dict[str, float] = field(default_factory=dict)


def preview(
    study: Study,
    epoch_seconds: float | None = None,
    epochs_from: Sequence[str] = (),
    slots: int = 1,
    png: str | None = None,
) -> Preview:
    """Count trials by rungs and say what they will take.

    Args:
        epoch_seconds: of a fold epoch, where it is known.
        epochs_from: earlier studies of the same model whose median fold epoch is taken. With
            neither, a few training steps of the first configuration are timed here.
        slots: training runs at once.
        png: draw a training batch of the first configuration here, as the network sees it.
    Raises:
        WrongInput: the study, the seconds, the slots or an earlier study is wrong, or a step that
            is timed here needs more memory than there is.
    """
    if epoch_seconds is not None and not (0 < epoch_seconds < math.inf):
        raise WrongInput(f"--epoch-seconds: must be over 0 and finite, got {epoch_seconds:g}")
    if epoch_seconds is not None and epochs_from:
        raise WrongInput(
            "--epoch-seconds and --epochs-from both say what an epoch takes; leave one out"
        )
    if slots < 1:
        raise WrongInput(f"--slots: must be at least 1, got {slots}")
    checked, dataset = resolve(study)
    tried = trials(checked)
    search = checked.search.model_copy(update={"trials": tried})
    rows = expected(checked.model_copy(update={"search": search}))
    if png:
        _draw(checked.of(checked.names[0]), dataset, png)
    if epoch_seconds is not None:
        seconds, timed = dict.fromkeys(checked.names, epoch_seconds), "as given"
    elif epochs_from:
        seconds, timed = _earlier(checked, epochs_from)
    else:
        device = _device(checked)
        seconds = {name: _time_here(checked.of(name), dataset, device) for name in checked.names}
        timed = f"timed here on {device.type}, without evaluation"
    share = _shares(checked)
    epoch_seconds = sum(share[name] * seconds[name] for name in checked.names)
    fold_epochs = sum(row[2] for row in rows)
    slots = min(slots, tried)
    hours = (fold_epochs * epoch_seconds + slots * START_UP) / 3600
    return Preview(
        tuple((name_of(checked.resolved.ladder, r), n, e) for r, n, e in rows),
        fold_epochs,
        float(tried * dataset.folds * checked.epochs),
        epoch_seconds,
        timed,
        hours,
        gpu_hours(checked, fold_epochs * epoch_seconds),
        slots,
        hours / slots,
        checked.resolved.warnings,
        seconds,
    )


def _shares(study: ResolvedStudy) -> dict[str, float]:
    """The part of the configurations that each model has to begin with."""
    search = study.search
    if len(study.names) == 1 or not (search.reject or search.sampler == "grid"):
        return dict.fromkeys(study.names, 1 / len(study.names))
    units_PD = np.random.default_rng(0).random((PROBE, dimensions(study)))
    drawn = grid(study) if search.sampler == "grid" else (from_unit(study, u) for u in units_PD)
    kept = (point for point in drawn if not rejected(study, point))
    most = search.trials if search.sampler == "grid" else PROBE
    sizes = Counter(str(point["model"]) for point in islice(kept, most))
    # Rules that leave next to nothing may leave none of these points.
    counts = {name: sizes[name] if sizes else 1 for name in study.names}
    return {name: count / sum(counts.values()) for name, count in counts.items()}


def _earlier(study: ResolvedStudy, sources: Sequence[str]) -> tuple[dict[str, float], str]:
    """Median seconds of a fold epoch of each model in the journals of earlier studies, and where
    that is from.
    """
    seconds: dict[str, list[float]] = {name: [] for name in study.names}
    for source in sources:
        earlier = StudyFolder(source)
        if not set(earlier.study.names) & set(study.names):
            raise WrongInput(
                f"--epochs-from {source}: must be a study of {', '.join(study.names)}, but is of "
                f"{', '.join(earlier.study.names)}; give another one, or --epoch-seconds"
            )
        for c in earlier.state.configurations.values():
            seconds.get(earlier.study.under(c.params).model, []).extend(c.epoch_seconds)
    if missing := [name for name, values in seconds.items() if not values]:
        of = f" of {', '.join(missing)}" if study.models else ""
        raise WrongInput(
            f"--epochs-from {' '.join(sources)}: must have finished epochs"
            f"{of}, but has none; give another "
            "one, or --epoch-seconds"
        )
    count = sum(map(len, seconds.values()))
    medians = {name: median(values) for name, values in seconds.items()}
    return medians, f"the median of {count} fold epochs of {' '.join(sources)}"


def batches_of(
    study: ResolvedStudy, dataset: Dataset, model: Model, config: TrainingConfig
) -> Loader:
    """Training batches of the first fold, in this process."""
    nothing = Mined(
        {s.scan_id: [] for s in dataset.scans}
    )  # stands for what an earlier study found
    job = FoldJob(dataset, model, config, 0, study.epochs)
    samples = training_samples(job, study.search.seed, nothing)
    return training_loader(samples, config.batch, 0, 1, 0)[0]


def _draw(study: ResolvedStudy, dataset: Dataset, png: str) -> None:
    """The picture of a training batch."""
    model, config = configured(study, first_taken(study))
    loader = batches_of(study, dataset, model, config)
    batch, samples = next(iter(loader)), loader.dataset
    names = [*config.categories, "non-metastasis"]
    batch_sheet(
        batch,
        names[: batch.mask_NCHW.shape[1] if len(batch.mask_NCHW) else len(config.categories)],
        [scan.flags for scan in map(samples.scan_of, batch.index_N.tolist())],
        png,
        task_named(model.task).words(batch, config),
    )


def _device(study: ResolvedStudy) -> torch.device:
    return torch.device("cuda" if study.resources.gpus and torch.cuda.is_available() else "cpu")


def _time_here(study: ResolvedStudy, dataset: Dataset, device: torch.device) -> float:
    """Seconds of a fold epoch from a few training steps of the first configuration."""
    model, config = configured(study, first_taken(study))
    loader = batches_of(study, dataset, model, config)
    torch.set_num_threads(study.resources.cpus)
    net = model.build(config).to(device).train()
    seconds = []
    for step, batch in enumerate(loader):
        assert isinstance(batch, Batch)
        if step == 0 and device.type == "cpu":
            try:
                refuse_too_large(net, batch)
            except FitFailed as error:
                raise WrongInput(
                    f"preview: {error}, or say what an epoch takes where it is to run "
                    "(--epoch-seconds)"
                ) from None
        started = time.monotonic()
        torch.stack(list(net(batch.to(device)).values())).sum().backward()  # type: ignore[no-untyped-call]
        if config.unlabelled:  # as many scans that the average judges first
            with torch.no_grad():
                net.eval()(batch.image_NCHW.to(device))
            torch.stack(list(net.train()(batch.to(device)).values())).sum().backward()  # type: ignore[no-untyped-call]
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - started)
        if step == STEPS:
            break
    timed = sorted(seconds[1:] or seconds)
    return timed[len(timed) // 2] * len(loader)
