"""A model bundle: a folder with weights as safetensors, and all that prediction needs; nothing in it is ever run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raybone.models import load
from raybone.models._model import Model, TrainingConfig
from raybone.private import put, workplace
from raybone.records import WrongInput

FORMAT = 1
# What prediction needs of bundle.json, beside its format.
NEEDED = ("model", "config", "members", "categories", "preprocessing", "calibration", "likeness", "patients", "kind",
          "name")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: what bundle.json says, the model and its configuration."""

    path: Path
    meta: dict[str, Any]
    model: Model
    config: TrainingConfig

    def members(self, device: torch.device) -> list[nn.Module]:
        """The networks, in eval mode.

        Raises:
            WrongInput: a file of weights is not the one that the bundle was made with.
        """
        return [self._member(entry).to(device).eval().requires_grad_(False) for entry in self.meta["members"]]

    def _member(self, entry: Mapping[str, str]) -> nn.Module:
        file = self.path / entry["file"]
        if not file.is_file() or _digest(file) != entry["sha256"]:
            raise WrongInput(f"bundle {self.path}: {entry['file']} must be the file it was made with, but is changed "
                             "or gone; copy the bundle again")
        module = self.model.build(self.config)
        module.load_state_dict(load_file(file))
        return module


def open_bundle(path: Path | str) -> Bundle:
    """Open a bundle that ``write_bundle`` made.

    Raises:
        WrongInput: there is none, or it is of another format.
    """
    path = Path(path)
    if not (path / "bundle.json").is_file():
        raise WrongInput(f"bundle {path}: must be a folder made by `raybone refit`, but it has no bundle.json; run "
                         f"`raybone refit STUDY --out {path}`")
    try:
        meta = json.loads((path / "bundle.json").read_text(encoding="utf-8"))
        if meta["format"] != FORMAT:
            raise WrongInput(f"bundle {path}: format must be {FORMAT}, got {meta['format']}; refit it again")
        missing = [name for name in NEEDED if name not in meta]
        if missing or not meta["members"] or not {"steps", "window"} <= set(meta["preprocessing"]):
            raise KeyError(", ".join(missing) or "members, or preprocessing's steps and window")
        model = load(meta["model"])
        return Bundle(path, meta, model, model.Config.model_validate(meta["config"]))
    except (OSError, KeyError, TypeError, ValidationError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WrongInput(f"bundle {path}: bundle.json must say what was trained and how, but {type(error).__name__}: "
                         f"{' '.join(str(error).split())[:100]}; copy the bundle again") from None


def write_bundle(path: Path, meta: Mapping[str, Any], states: Mapping[str, Mapping[str, Tensor]], card: str,
                 further: Callable[[Path, Bundle], dict[str, Any]] = lambda place, bundle: {}) -> Bundle:
    """Write a bundle, whole or not at all.

    Args:
        meta: what bundle.json says beside its format and its members.
        states: weights by the name of the member.
        card: README.md, the model card.
        further: writes more files for the finished networks into the folder, and gives more to say in bundle.json.
    """
    if not states:
        raise ValueError(f"{path}: a bundle needs the weights of a member")
    path.parent.mkdir(parents=True, exist_ok=True)
    with workplace(path) as place:
        half = place / "new"
        half.mkdir()
        members = []
        for name, state in states.items():
            file = half / f"{name}.safetensors"
            save_file({k: v.detach().cpu().clone().contiguous() for k, v in state.items()}, file)
            members.append({"file": file.name, "sha256": _digest(file)})
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
