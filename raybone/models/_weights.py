"""Start from published weights or from a file. Nothing is ever downloaded, and nothing in a file is
run.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from safetensors.torch import load_file
from torch import Tensor, nn

from raybone.errors import WrongInput
from raybone.models._model import Model


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
    try:
        folder = os.environ.get("RAYBONE_WEIGHTS") or user_cache_path("raybone") / "weights"
    except RuntimeError:
        raise WrongInput(
            f"weights: {given!r} needs a folder of downloaded weights, but this user has no home "
            "folder; name one in RAYBONE_WEIGHTS"
        ) from None
    file = Path(folder) / url.rsplit("/", 1)[-1]
    if not file.is_file():
        raise WrongInput(
            f"weights: {given!r} of {model.name} is {file.name}, which raybone does not download; "
            f"get it from {url} and place it in {file.parent}"
        )
    return file


def start_from(module: nn.Module, file: Path) -> tuple[int, int]:
    """``copy_into`` for a file of weights: raybone's own, torchvision's or Ultralytics'.

    Raises:
        WrongInput: it holds no tensors, or those of another architecture.
    """
    return copy_into(module, _read(file), f"weights {file}", colours=True)


def copy_into(
    module: nn.Module, theirs: dict[str, Tensor], where: str, colours: bool = False
) -> tuple[int, int]:
    """Copy what fits of some tensors into the module; returns how many tensors did, and how many it
    has.

    Names are compared from their ends, as a backbone's file knows nothing of the detector around
    it; a head for other categories keeps its own first weights.

    Args:
        where: what they are of, for messages.
        colours: three input channels become one by their sum, as for a grey picture, though without
            ImageNet's mean and spread, or two of half of it.
    Raises:
        WrongInput: they are of another architecture: no more than half of the tensors fit; or not
            finite.
    """
    own = dict(module.state_dict())
    prefixes = {
        name[: place + 1] for name in own for place, letter in enumerate(name) if letter == "."
    } | {""}
    prefix = max(sorted(prefixes), key=lambda p: sum(p + name in own for name in theirs))
    named = {
        prefix + n: _grey(value, own[prefix + n]) if colours else value
        for n, value in theirs.items()
        if prefix + n in own
    }
    fits = {n: value for n, value in named.items() if value.shape == own[n].shape}
    several = len({value.data_ptr() for value in theirs.values()})  # one may have two names
    if 2 * len(fits) <= several:
        raise WrongInput(
            f"{where}: must be of this architecture, but {len(fits)} of its {several} tensors "
            "fit; give the file of the same model or backbone"
        )
    if not all(bool(value.isfinite().all()) for value in fits.values()):
        raise WrongInput(
            f"{where}: must hold finite numbers, but has NaN or infinite ones; give an undamaged "
            "file"
        )
    module.load_state_dict({**own, **fits})
    return len(fits), len(own)


def _grey(value: Tensor, like: Tensor) -> Tensor:
    grey = value.ndim == 4 and like.ndim == 4 and value.shape[1] == 3 and like.shape[1] in (1, 2)
    return (
        (value.sum(1, keepdim=True) / like.shape[1]).expand(-1, like.shape[1], -1, -1)
        if grey
        else value
    )


def dataset_of_fold(file: Path) -> str:
    """Hash of the dataset whose fold left this checkpoint; empty of other files."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return str(content["dataset"]) if "fold" in content else ""
    except Exception:
        return ""


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, and nothing else: whatever classes it names, _Inert stands for
    them.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        named = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        with torch.serialization.safe_globals([(_Inert, name) for name in named]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the bytes lead it to
        raise WrongInput(
            f"weights {file}: must be a file of tensors, but {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}; save its state_dict"
        ) from None
    for key in ("average", "ema", "model", "state_dict", "network_weights"):
        content = (content.get(key) if isinstance(content, dict) else None) or content
    tensors = content.state_dict() if isinstance(content, nn.Module) else content
    if not isinstance(tensors, dict) or not any(isinstance(v, Tensor) for v in tensors.values()):
        raise WrongInput(f"weights {file}: must hold tensors by name, got {type(content).__name__}")
    if any(
        v.untyped_storage().nbytes() < v.numel() * v.element_size()
        for v in tensors.values()
        if isinstance(v, Tensor) and v.layout == torch.strided
    ):
        raise WrongInput(
            f"weights {file}: must hold every value that its tensors have, but some repeat a few "
            "bytes to any size; save its state_dict anew"
        )
    return {
        _renamed(name): value.float() if value.is_floating_point() else value
        for name, value in tensors.items()
        if isinstance(value, Tensor)
    }


class _Inert(nn.Module):
    """Stands for any class that a file names: it takes every argument and does nothing, but keeps
    its tensors.
    """

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        super().__init__()
        if isinstance(state, dict):
            self.__dict__.update(
                {k: v for k, v in state.items() if k in ("_parameters", "_buffers", "_modules")}
            )


def _renamed(name: str) -> str:
    """torchvision's names of today for those in its files of 2019 and 2020: convolutions are blocks
    now.
    """
    name = re.sub(r"(fpn\.\w+_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", name)
    name = re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)", r"\1\2", name)
    name = re.sub(r"(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2", name)
    return re.sub(
        r"(head\.\w+_head\.conv)\.(\d)\.(weight|bias)$",
        lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}",
        name,
    )
