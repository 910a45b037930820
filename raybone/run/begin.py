"""A study to begin with: read off the dataset and the machine, with the reasons beside the
numbers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raybone.data.annotations import foci
from raybone.data.dataset import Dataset, open_dataset
from raybone.data.folds import TEST
from raybone.data.ingest.parallel import cores
from raybone.errors import WrongInput
from raybone.models import load
from raybone.run.checks import first_taken, resolve
from raybone.run.defaults import complete
from raybone.run.preview import batches_of, preview
from raybone.study.files import parse_study
from raybone.study.spec import Study
from raybone.tasks import configured, task_named
from raybone.train.memory import gpu_bytes, memory_bytes, step_bytes
from raybone.types import Lesion, Scan

SIZES = (256, 512, 768, 1024, 1536, 2048)  # pixels of the long side
SIDE = (
    8  # pixels a side that nine lesions in ten are to have, as the finest level of a detector has
)
BATCHES = (16, 8, 4, 2, 1)
WIDTHS = (32, 16, 8)  # channels of the first level of a segmenter
STEPS = 3000  # optimiser steps of a full run of a network that starts from nothing
EPOCHS = (20, 200)
TRIALS = (100, 64, 48, 36, 24, 16, 12, 8, 5)
USUAL = 24  # trials where no hours are said
GPU_BYTES = 16e9  # of a GPU that is not in this machine
# Models to begin with: quick ones of different kinds; without a GPU the smallest.
MODELS = {
    "detection": (("yolo11n",), ("yolo11s", "yolo26s", "retinanet_r50")),
    "segmentation": (("unet",), ("unet", "attention_unet", "unet_plus_plus")),
}


@dataclass(frozen=True)
class Means:
    """What there is: hours that the search may take, and GPUs at work at once."""

    hours: float | None = None
    gpus: int = 0


@dataclass(frozen=True)
class Begun:
    """The YAML of the study, and what it is expected to take."""

    text: str
    study: Study
    wall_hours: float
    slots: int


def begin(
    dataset: Path | str,
    name: str = "",
    means: Means = Means(),
    tell: Callable[[str], None] = lambda line: None,
) -> Begun:
    """A study for a dataset.

    Args:
        name: of the study; the dataset folder's without one.
        tell: is told what takes time.
    Raises:
        WrongInput: the dataset has no lesions to find, means that cannot be, or even the smallest
            search takes longer than there is.
    """
    if means.gpus < 0 or not (means.hours is None or 0 < means.hours < math.inf):
        raise WrongInput(
            f"init: --gpus must be 0 or more and --hours over 0, got {means.gpus} and "
            f"{means.hours}; change that"
        )
    draft = _Draft(open_dataset(dataset), str(dataset), name_for(name or dataset))
    tell("a few training steps are timed, which takes minutes without a GPU")
    draft.choose(means)
    slots = max(1, means.gpus or cores() // draft.cpus)
    draft.spend(means.hours, slots)
    study = draft.study()
    return Begun(draft.text(), study, draft.wall_hours, slots)


def name_for(dataset: Path | str) -> str:
    """What a study of a dataset, or of a file, is called."""
    last = Path(str(dataset).rstrip("/")).resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("._-")[:60] or "study"


class _Draft:
    """The study as it comes to be, with a reason for each choice."""

    def __init__(self, dataset: Dataset, place: str, name: str) -> None:
        self.dataset, self.place, self.name = dataset, place, name
        self.because: dict[str, str] = {}
        self.fixed: dict[str, Any] = {}
        self.trials, self.epochs, self.cpus, self.gpus = USUAL, EPOCHS[0], 1, 0
        self.wall_hours, self.cuts = math.nan, 0

    def choose(self, means: Means) -> None:
        """Everything but the number of trials."""
        lesions = self._lesions()
        (category,) = self.fixed["categories"]
        every = [le for s in self.dataset.scans for le in s.lesions if le.category == category]
        boxes = sum(le.rle is None for le in every)
        self.task = "detection" if boxes else "segmentation"
        self.models = MODELS[self.task][bool(means.gpus)]
        self.because["models"] = (
            "every lesion has a mask, which a segmenter learns; for boxes name detectors: "
            f"{', '.join(MODELS['detection'][bool(means.gpus)])}"
            if self.task == "segmentation"
            else f"{boxes} of {len(every)} lesions have a box alone: detectors"
        )
        self.gpus, self.cpus = min(means.gpus, 1), self._cpus(means)
        self.fixed["imgsz"] = self._size(lesions)
        self._fit_batch(means)
        steps = min(
            math.ceil(len(self._usable(fold)) / self.fixed["batch"])
            for fold in range(self.dataset.folds)
        )
        self.epochs = int(np.clip(math.ceil(STEPS / steps), *EPOCHS))
        self.because["epochs"] = (
            f"{steps} steps an epoch: {self.epochs * steps} steps a run, of the {STEPS} that a "
            "network from nothing wants; more if curves still rise at the end"
        )

    def _cpus(self, means: Means) -> int:
        """Of a run: half of this machine's, or four beside a GPU, of which this machine may have
        fewer.
        """
        if not means.gpus:
            return max(1, cores() // 2)
        return max(1, min(4, cores() // means.gpus)) if gpu_bytes() else 4

    def spend(self, hours: float | None, slots: int) -> None:
        """The number of trials."""
        seen = preview(self.study(), slots=slots)
        seconds = seen.epoch_seconds
        costs = f"{seconds:.1f} s a fold epoch ({seen.timed})"
        if hours is None:
            self.wall_hours = seen.wall_hours
            self.because["search"] = f"usual; about {seen.wall_hours:.1f} hours at {costs}"
            return
        timed = True
        while not (fits := self._fits(hours, seconds, slots)) or not timed:
            if fits:
                seen = preview(self.study(), slots=slots)
                seconds, timed = seen.epoch_seconds, True
                costs = f"{seconds:.1f} s a fold epoch ({seen.timed})"
                continue
            if not (share := self._cut()):
                raise WrongInput(
                    f"init: {TRIALS[-1]} configurations take about {self.wall_hours:.1f} hours at "
                    f"{costs} even of small images and {EPOCHS[0]} epochs, but --hours says "
                    f"{hours:g}; give more hours or GPUs"
                )
            seconds, timed = seconds * share, False
        self.because["search"] = f"what fits {hours:g} hours with {slots} at once, at {costs}"

    def _fits(self, hours: float, seconds: float, slots: int) -> bool:
        """Take the largest number of trials that the hours have room for; whether there is one."""
        for self.trials in TRIALS:
            self.wall_hours = preview(self.study(), seconds, slots=slots).wall_hours
            if self.wall_hours <= hours:
                return True
        return False

    def _cut(self) -> float:
        """Take a narrower network, a smaller image, or fewer epochs; the share of the seconds of a
        fold epoch that is left, about, and 0 where nothing is left to cut.
        """
        self.cuts += 1
        wide = all("width" in load(name).Config.model_fields for name in self.models)
        width, size = self.fixed.get("width", WIDTHS[0]), self.fixed["imgsz"]
        narrower = [w for w in WIDTHS if w < width] if wide else []
        smaller = [s for s in SIZES if s < size]
        if narrower and (self.cuts % 2 or not smaller):
            self.fixed["width"] = narrower[0]
            self.because["width"] = f"for the hours: {WIDTHS[0]} is usual"
            return 0.5
        if smaller:
            self.fixed["imgsz"] = smaller[-1]
            was = self.because["imgsz"].partition("; but")[0]
            self.because["imgsz"] = f"{was}; but this is what the hours allow"
            return (smaller[-1] / size) ** 2
        if self.epochs > EPOCHS[0]:
            self.epochs = max(self.epochs // 2, EPOCHS[0])
            self.because["epochs"] = "for the hours: curves will still rise at the end"
            return 1.0
        return 0.0

    def study(self) -> Study:
        """The study as it stands."""
        return parse_study(complete(self._content()), "init")

    def text(self) -> str:
        """The study's YAML."""
        return "\n".join([*self._head(), *self._lines(), ""])

    def _content(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dataset": self.place,
            "models": list(self.models),
            "epochs": self.epochs,
            "fixed": self.fixed,
            "search": {"trials": self.trials},
            "resources": {"cpus": self.cpus, "gpus": self.gpus},
        }

    def _head(self) -> Iterator[str]:
        counts = self.dataset.meta["counts"]
        yield (
            f"# {counts['scans']} scans of {counts['patients']} patients with {counts['lesions']} "
            f"lesions, in {self.dataset.folds} folds by patient."
        )
        yield "# Begun by `raybone init`: each number has its reason above it; change what you know"
        yield "# better."

    def _lines(self) -> Iterator[str]:
        for key, value in self._content().items():
            if key in self.because:
                yield f"# {self.because[key]}"
            if key == "fixed":
                yield "fixed:"
                for name, own in value.items():
                    yield f"  # {self.because[name]}"
                    yield f"  {name}: {_text(own)}"
            else:
                yield f"{key}: {_flow(value)}"

    def _lesions(self) -> list[tuple[Scan, Lesion]]:
        """What is looked for: malignant lesions where there are any, in every fold."""
        scans = [s for s in self.dataset.scans if s.annotated and self._fold(s) != TEST]
        folds = range(self.dataset.folds)
        for category in self.dataset.categories:
            found = [(s, le) for s in scans for le in foci(s) if le.category == category]
            if {self._fold(s) for s, _ in found} >= {*folds}:
                others = [c for c in self.dataset.categories if c != category]
                self.fixed["categories"] = [category]
                rest = f"; {', '.join(others)} could be added" if others else ""
                self.because["categories"] = f"{len(found)} lesions, some in every fold{rest}"
                return found
        raise WrongInput(
            f"dataset {self.place}: needs a category with lesions in every fold to be searched on, "
            "but has none; prepare it with fewer --folds, or classify scans (docs/models.md)"
        )

    def _fold(self, scan: Scan) -> int:
        return self.dataset.fold_of[scan.patient_id]

    def _usable(self, fold: int) -> list[Scan]:
        return task_named(self.task).usable(self.dataset.training(fold))

    def _size(self, lesions: Sequence[tuple[Scan, Lesion]]) -> int:
        """The smallest size at which lesions are large enough, or the scans' own."""
        shares = [
            math.sqrt((x2 - x1) * (y2 - y1)) / max(s.height, s.width)
            for s, le in lesions
            for x1, y1, x2, y2 in (le.box_xyxy,)
        ]
        small, native = (
            float(np.percentile(shares, 10)),
            max(max(s.height, s.width) for s in self.dataset.scans),
        )
        enough = [size for size in SIZES if size * small >= SIDE or size >= native]
        size = enough[0] if enough else SIZES[-1]
        self.because["imgsz"] = (
            f"nine lesions in ten have {SIDE} or more pixels a side at {size}; scans have up to "
            f"{native}; try the size above once a study has ended"
            if small * size >= SIDE
            else f"one lesion in ten has under {small * size:.1f} pixels a side even then; scans "
            f"have up to {native}"
        )
        return size

    def _fit_batch(self, means: Means) -> None:
        """The largest batch whose steps take half of the memory of a run."""
        if means.gpus and (here := gpu_bytes()):
            total, whose = float(here), "this GPU"
        elif means.gpus:
            total, whose = GPU_BYTES, "a GPU of 16 GB, as none is here to ask"
        else:
            total = float(memory_bytes() or GPU_BYTES) / max(1, cores() // self.cpus)
            whose = "what a run has of this machine's memory"
        self.fixed["batch"] = 2
        need = 0.0
        for alone in map(resolve(self.study())[0].of, self.models):
            model, config = configured(alone, first_taken(alone))
            batch = next(iter(batches_of(alone, self.dataset, model, config)))
            need = max(need, step_bytes(model.build(config), batch) / len(batch.index_N))
        fitting = [b for b in BATCHES if b * need <= total / 2]
        most = len(self._usable(0)) // 8  # a step of an eighth of an epoch at most
        self.fixed["batch"] = next((b for b in fitting if b <= max(most, 1)), 1)
        self.because["batch"] = (
            f"an image of a step takes about {need / 1e9:.2f} GB, of {total / 1e9:.0f} GB: {whose}"
        )


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_text(v)}" for k, v in value.items()) + "}"
    return f"[{', '.join(value)}]" if isinstance(value, list) else _text(value)


def _text(value: Any) -> str:
    """JSON, which is YAML too."""
    return json.dumps(value, ensure_ascii=False)
