"""A model bundle: a folder with weights as safetensors, and all that prediction needs; nothing in
it is ever run.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raybone.data.annotations import decisive
from raybone.data.ingest.steps import BLIND
from raybone.deploy.out_of_distribution import SLACK
from raybone.errors import DamagedFile, WrongInput
from raybone.metrics.lesions import THRESHOLD
from raybone.models import load
from raybone.models._model import Model, TrainingConfig
from raybone.private import put, workplace
from raybone.tasks import task_named
from raybone.train.checkpoint import fill, finite

if TYPE_CHECKING:
    from raybone.data.dataset import Dataset
    from raybone.deploy.evaluate import Evaluation
    from raybone.deploy.predict import Predicted

FORMAT = 1


class Part(BaseModel):
    """Base of what prediction needs of bundle.json: finite numbers, and whatever else is there."""

    model_config = ConfigDict(allow_inf_nan=False)


class Member(Part):
    """A file of weights in the bundle's folder, and its own configuration if it is not the
    bundle's.
    """

    file: str = Field(pattern=r"^[^/\\]+$")
    sha256: str
    config: dict[str, Any] | None = None


class Preprocessing(Part):
    """How scans are prepared, and the window of all, in counts, if they share one."""

    steps: list[str]
    window: float | None = Field(gt=0)


class Calibration(Part):
    """Platt's numbers, or none."""

    slope: float | None = None
    intercept: float | None = None


class OperatingPoint(Part):
    """The score from which on something is found."""

    threshold: float = Field(THRESHOLD, ge=0, le=1)


class Likeness(Part):
    """The mean of the training scans, and the usual range of each property."""

    mean: list[list[float]] = Field(min_length=1)
    usual: dict[str, tuple[float, float]]


class Content(Part):
    """bundle.json, as far as prediction needs it."""

    model: str
    config: dict[str, Any]
    members: list[Member] = Field(min_length=1)
    categories: list[str]
    preprocessing: Preprocessing
    calibration: Calibration
    operating_point: OperatingPoint = OperatingPoint()
    likeness: Likeness
    patients: list[str]
    kind: str
    name: str


@dataclass(frozen=True)
class Network:
    """Weights, and the configuration that they were trained with; None for the bundle's."""

    state: Mapping[str, Tensor]
    config: dict[str, Any] | None = None


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: what bundle.json says, the model and its configuration."""

    path: Path
    meta: dict[str, Any]
    model: Model
    config: TrainingConfig

    @property
    def threshold(self) -> float:
        """The score from which on something is found: the operating point."""
        return float(self.meta.get("operating_point", {}).get("threshold", THRESHOLD))

    def least(self, category: str) -> float:
        """The score from which on something of a category is found: the operating point, or one
        half of bones beside lesions, of which the point is not.
        """
        of_point = category in decisive(self.meta["categories"])
        return self.threshold if of_point else THRESHOLD

    def members(self, device: torch.device) -> list[nn.Module]:
        """The networks, in eval mode.

        Raises:
            WrongInput: a file of weights is not the one that the bundle was made with.
        """
        return [
            self._member(entry).to(device).eval().requires_grad_(False)
            for entry in self.meta["members"]
        ]

    def predict(
        self,
        scans: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        out: str | os.PathLike[str] | None = None,
        *,
        modality: str | None = "NM",
        least: float | None = None,
    ) -> Predicted:
        """Findings on new scans, which are read as the training scans were.

        Args:
            scans: a file, folder or archive, or several.
            out: folder to write JSON, CSV, overlays and DICOM Segmentation to; None writes nothing.
            modality: for DICOM, the only Modality taken; None takes all.
            least: lowest score of a detector's boxes; None takes the operating point.
        Returns:
            What was found, to go through as ``for scan, findings in ...``, and what was not taken.
        Raises:
            WrongInput: no scans that could be read, weights that are changed, or ``out`` exists.
        """
        from raybone.deploy.job import Options
        from raybone.deploy.predict import predict

        several = [scans] if isinstance(scans, str | os.PathLike) else scans
        paths = [os.fspath(scan) for scan in several]
        options = Options(modality, least)
        return predict(self, paths, None if out is None else Path(out), options)

    def evaluate(self, dataset: str | os.PathLike[str], *, test: bool = False) -> Evaluation:
        """How good it is on patients that it was not trained on (external validation).

        Args:
            dataset: as ``raybone.prepare`` makes it.
            test: on the dataset's test group alone.
        Raises:
            WrongInput: a patient or scan was trained on, or there is nothing to score by.
        """
        from raybone.deploy.evaluate import evaluate

        return evaluate(self, os.fspath(dataset), test=test)

    def other_steps(self, dataset: Dataset) -> list[str]:
        """Why a dataset's scans are not as the training scans were, if they are not."""
        own, theirs = (
            [BLIND.get(step, step) for step in meta["preprocessing"]["steps"]]
            for meta in (self.meta, dataset.meta)
        )
        if own == theirs:
            return []
        return [f"must be of scans of the steps {theirs}, got {own}; prepare them alike"]

    def _member(self, entry: Mapping[str, Any]) -> nn.Module:
        file = self.path / entry["file"]
        if not file.is_file() or _digest(file) != entry["sha256"]:
            raise WrongInput(
                f"bundle {self.path}: {entry['file']} must be the file it was made with, but is "
                "changed or gone; copy the bundle again"
            )
        module = self.model.build(self.config_of(entry))
        try:
            tensors = load_file(file)
            fill(module, tensors, str(file))
        except (SafetensorError, DamagedFile) as error:
            raise WrongInput(
                f"bundle {self.path}: {entry['file']} must hold the weights of {self.model.name}, "
                f"but: {' '.join(str(error).split())[:150]}; copy the bundle again"
            ) from None
        if not finite(tensors):
            raise WrongInput(
                f"bundle {self.path}: {entry['file']} must hold finite weights, but has NaN or "
                "infinite ones, with which nothing is ever found; refit it again"
            )
        return module

    def config_of(self, entry: Mapping[str, Any]) -> TrainingConfig:
        """The configuration of a member, which may have its own."""
        own = entry.get("config")
        return self.config if own is None else self.model.Config.model_validate(own)


def open_bundle(path: Path | str) -> Bundle:
    """Open a bundle that ``write_bundle`` made.

    Raises:
        WrongInput: there is none, or it is of another format.
    """
    path = Path(path)
    if not (path / "bundle.json").is_file():
        what = "has no bundle.json" if path.exists() else "is not there"
        raise WrongInput(
            f"bundle {path}: must be a folder made by `raybone refit`, but it {what}; check the "
            "path, or run `raybone refit STUDY --out BUNDLE`"
        )
    try:
        meta = json.loads((path / "bundle.json").read_text(encoding="utf-8"))
        if meta["format"] != FORMAT:
            raise WrongInput(
                f"bundle {path}: format must be {FORMAT}, got {meta['format']}; refit it again"
            )
        content = Content.model_validate(meta)
        if (
            set(content.likeness.usual) - set(SLACK)
            or len({len(row) for row in content.likeness.mean}) > 1
        ):
            raise KeyError("likeness")
        module, colon, _ = content.model.partition(":")
        if colon and module not in sys.modules:  # nothing in a bundle is run
            raise WrongInput(
                f"bundle {path}: {content.model} is code outside raybone, which no bundle brings "
                f"in; import {module} first, or install a package that offers the model"
            )
        model = load(meta["model"])
        if meta["task"] not in (model.task, *model.also):
            raise KeyError("task")
        model = replace(model, task=meta["task"])
        config = model.Config.model_validate(meta["config"])
        if content.categories != task_named(model.task).names(config):
            raise KeyError("categories")
        bundle = Bundle(path, meta, model, config)
        for entry in meta["members"]:
            bundle.config_of(entry)
        return bundle
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, WrongInput):
            raise
        raise WrongInput(
            f"bundle {path}: bundle.json must say what was trained and how, but "
            f"{type(error).__name__}: {' '.join(str(error).split())[:100]}; copy the bundle again"
        ) from None


def write_bundle(
    path: Path,
    meta: Mapping[str, Any],
    networks: Mapping[str, Network],
    card: str,
    further: Callable[[Path, Bundle], dict[str, Any]] = lambda place, bundle: {},
) -> Bundle:
    """Write a bundle, whole or not at all.

    Args:
        meta: what bundle.json says beside its format and its members.
        networks: by the name of the member.
        card: README.md, the model card.
        further: writes more files for the finished networks into the folder, and gives more to say
            in bundle.json.
    """
    if not networks:
        raise ValueError(f"{path}: a bundle needs the weights of a member")
    path.parent.mkdir(parents=True, exist_ok=True)
    with workplace(path) as place:
        half = place / "new"
        half.mkdir()
        members = []
        for name, network in networks.items():
            file, state = half / f"{name}.safetensors", network.state
            save_file({k: v.detach().cpu().clone().contiguous() for k, v in state.items()}, file)
            own = {} if network.config is None else {"config": network.config}
            members.append({"file": file.name, "sha256": _digest(file), **own})
        content = {"format": FORMAT, **meta, "members": members}
        _write(half, content)
        content |= further(half, open_bundle(half))
        _write(half, content)
        (half / "README.md").write_text(card, encoding="utf-8")
        put(half, path)
    return open_bundle(path)


def _write(folder: Path, content: Mapping[str, Any]) -> None:
    (folder / "bundle.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
