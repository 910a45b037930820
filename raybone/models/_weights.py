"""Start from published weights or from a file. Nothing is ever downloaded, and nothing in a file is run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from raybone.models._model import Model
from raybone.records import WrongInput


def weights_file(given: str, model: Model) -> Path:
    """The file that ``weights:`` means: a path, or a known name's file in the folder of weights.

    That folder is $RAYBONE_WEIGHTS, else raybone/weights in the user's cache.
    Raises:
        WrongInput: it is not there; the message names the file, its address and where it belongs.
    """
    url = model.weights.get(given)
    if url is None:
        if Path(given).is_file():
            return Path(given).resolve()
        known = f"or one of {', '.join(model.weights)}, " if model.weights else ""
        raise WrongInput(f"weights: must be a file, {known}got {given!r}; check the path")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    file = Path(os.environ.get("RAYBONE_WEIGHTS") or cache / "raybone" / "weights") / url.rsplit("/", 1)[-1]
    if not file.is_file():
        raise WrongInput(f"weights: {given!r} of {model.name} is {file.name}, which raybone does not download; get it "
                         f"from {url} and place it in {file.parent}")
    return file


def start_from(module: nn.Module, file: Path) -> tuple[int, int]:
    """Copy what fits of a file of weights into the module; returns how many tensors did, and how many it has.

    The file may be raybone's own, torchvision's or Ultralytics'. Names are compared from their ends, as a backbone's
    file knows nothing of the detector around it. Three input channels become one by their sum, which is what a grey
    picture gives; a head for other categories keeps its own first weights.
    Raises:
        WrongInput: it holds no weights, or those of another architecture: no more than half of the tensors fit.
    """
    theirs, own = _read(file), dict(module.state_dict())
    prefixes = {name[:place + 1] for name in own for place, letter in enumerate(name) if letter == "."} | {""}
    prefix = max(sorted(prefixes), key=lambda p: sum(p + name in own for name in theirs))
    named = {prefix + n: _grey(value, own[prefix + n]) if prefix + n in own else value for n, value in theirs.items()}
    # Names that the module lacks may be older ones of torchvision, which its own loading knows.
    fits = {n: value for n, value in named.items() if n not in own or value.shape == own[n].shape}
    try:
        taken = len(fits) - len(module.load_state_dict(fits, strict=False).unexpected_keys)
    except RuntimeError:  # an older name, of another size
        taken = 0
    if 2 * taken <= len(theirs):
        raise WrongInput(f"weights {file}: must be of this architecture, but {taken} of its {len(theirs)} tensors "
                         "fit; give the file of the same model or backbone")
    return taken, len(own)


def _grey(value: Tensor, like: Tensor) -> Tensor:
    one = value.ndim == 4 and like.ndim == 4 and value.shape[1] == 3 and like.shape[1] == 1
    return value.sum(1, keepdim=True) if one else value


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; of a whole Ultralytics model only its layers are admitted."""
    classes = [c for name, module in list(sys.modules.items()) for c in vars(module).values()
               if name.startswith(("ultralytics.nn.", "torch.nn.modules.")) and isinstance(c, type)
               and issubclass(c, nn.Module)] if "ultralytics" in sys.modules else []
    try:
        with torch.serialization.safe_globals(cast(Any, list(dict.fromkeys(classes)))):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the bytes lead it to
        raise WrongInput(f"weights {file}: must be a file of tensors, but {type(error).__name__}: "
                         f"{' '.join(str(error).split())[:200]}; save its state_dict") from None
    for key in ("average", "ema", "model"):
        content = (content.get(key) if isinstance(content, dict) else None) or content
    tensors = content.state_dict() if isinstance(content, nn.Module) else content
    if not isinstance(tensors, dict) or not any(isinstance(v, Tensor) for v in tensors.values()):
        raise WrongInput(f"weights {file}: must hold tensors by name, got {type(content).__name__}")
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()
            if isinstance(value, Tensor)}
