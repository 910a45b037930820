"""The menu: one file a model or family; ``load`` imports that file only."""

from __future__ import annotations

import csv
import difflib
import os
import pwd
import warnings
from dataclasses import replace
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybone.errors import WrongInput
from raybone.study.spec import EXTRAS, MODELS

if TYPE_CHECKING:
    from raybone.models._model import Model

TIMM, TIMM_FILE = "timm/", "classifiers.timm"  # what names any network of timm, and its file
# name -> file below this folder; the contract suite checks it against the files.
MENU = {
    **dict.fromkeys(("yolo11n", "yolo11s", "yolo11m", "yolo11l", "yolo11x"), "detectors.yolo"),
    **dict.fromkeys(("yolo26n", "yolo26s", "yolo26m", "yolo26l", "yolo26x"), "detectors.yolo26"),
    **dict.fromkeys(("rtdetr-l", "rtdetr-x"), "detectors.rtdetr"),
    **{f"yolo11{size}-seg": "detectors.yolo_seg" for size in "nsmlx"},
    **{f"yolo26{size}-seg": "detectors.yolo26_seg" for size in "nsmlx"},
    **{
        f"{family}_r{depth}": f"detectors.{family}"
        for family in ("faster_rcnn", "cascade_rcnn", "retinanet", "fcos")
        for depth in (18, 50, 101)
    },
    **{name: f"segmenters.{name}" for name in ("unet", "double_unet", "msma_unet")},
    **dict.fromkeys(("unet_plus_plus", "attention_unet", "res_unet"), "segmenters.unet_variants"),
    **dict.fromkeys(("cmunext-s", "cmunext", "cmunext-l"), "segmenters.cmunext"),
    "amsunet": "segmenters.amsunet",
    "resunet_a": "segmenters.resunet_a",
    "rar_unet": "segmenters.rar_unet",
    **dict.fromkeys(("multi_inception_unet", "icunet_plus_plus"), "segmenters.inception_unets"),
    "hybrid_att_unet_plus_plus": "segmenters.hybrid_att_unet",
    **dict.fromkeys(
        ("lesion_resnet50", "lesion_inception_v3", "lesion_vgg16", "lesion_densenet169"),
        "classifiers.lesion",
    ),
    # What other libraries bring: smp/DECODER, and any network of timm as timm/NAME.
    **{
        f"smp/{decoder}": "segmenters.smp"
        for decoder in (
            *("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet"),
            *("PAN", "DeepLabV3", "DeepLabV3Plus", "UPerNet", "Segformer", "DPT"),
        )
    },
    "nnunet": "segmenters.nnunet",
    "timm/resnet18": TIMM_FILE,
}


def _name_user() -> None:
    """Give a user whom the system does not know a name: libraries of models ask for it at their
    import, and fail.
    """
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("LOGNAME", f"uid{os.getuid()}")


_name_user()


def menu() -> list[tuple[str, str, int, str]]:
    """Name, task, trained parameters with the default configuration, and source of every model.

    They stand in menu.csv, as counting them would import torch and build every network.
    """
    with Path(__file__).with_name("menu.csv").open(newline="", encoding="utf-8") as file:
        return [
            (row["name"], row["task"], int(row["parameters"]), row["source"])
            for row in csv.DictReader(file)
        ]


def task_of(name: str) -> str:
    """What the model of that name does; nothing of it is imported.

    Raises:
        WrongInput: no such model; the message lists the menu.
    """
    for known, task, *_ in menu():
        if known == name:
            return task
    if name.startswith(TIMM):
        return "classification"
    return load(name).task  # of another package, so that it is imported


def load(name: str) -> Model:
    """The model of that name: of the menu, of another package's entry point ``raybone.models``, or
    MODULE:ATTRIBUTE, which is imported.

    Raises:
        WrongInput: no such model; the message lists the menu. Or its library is not installed.
    """
    if package := missing(name):
        raise WrongInput(
            f"model: {name} needs {package}, which is not installed; pip install 'raybone[models]'"
        )
    timm = name.startswith(TIMM)
    if name not in MENU and not timm:  # a job's code comes without menu.csv
        return _from_outside(name)
    with warnings.catch_warnings():  # libraries warn of what they do to each other
        warnings.simplefilter("ignore")
        module = import_module(f"raybone.models.{TIMM_FILE if timm else MENU[name]}")
    if timm:
        made: Model = module.model(name)
        return made
    return next(m for m in getattr(module, "MODELS", None) or [module.MODEL] if m.name == name)


def missing(name: str) -> str:
    """The package that this model needs and that is not installed; empty where there is none."""
    package = EXTRAS.get(name.partition("/")[0], "")
    return package if package and find_spec(package.replace("-", "_")) is None else ""


def check(model: Model, steps: int = 45, lr: float = 3e-3, **config: Any) -> list[str]:
    """What a model breaks of the contract of this folder, one line each; none where it keeps it.

    Args:
        steps: in which the model must learn two images by heart, with AdamW at ``lr``.
        config: hyper-parameters that make it small.
    """
    from raybone.models._check import problems

    return problems(model, steps, lr, config)


def _from_outside(name: str) -> Model:
    """A model of another package, by the name that it was asked for."""
    from raybone.models._model import Model

    module, colon, attribute = name.partition(":")
    offered = entry_points(group=MODELS, name=name)
    if not (colon or offered):
        raise _unknown(name)
    try:
        found = getattr(import_module(module), attribute) if colon else offered[name].load()
    except Exception as error:  # importing it runs whatever it holds
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise WrongInput(
            f"model: {name} must be a model of a package that Python finds here, but {why}; "
            "install or mend that package"
        ) from None
    if not isinstance(found, Model):
        raise WrongInput(
            f"model: {name} must be a raybone Model, got {type(found).__name__}; name another one"
        )
    return replace(found, name=name)


def _unknown(name: str) -> WrongInput:
    """The error of a name that is not in the menu: near ones, and which models find what."""
    names: dict[str, list[str]] = {}
    for known, task, *_ in menu():
        names.setdefault(task, []).append(known)
    near = difflib.get_close_matches(
        name.lower().replace("+", "_plus").replace("-", "_"), MENU, n=5, cutoff=0.5
    )
    hint = f"did you mean {', '.join(near)}? " if near else ""
    return WrongInput(
        f"model: must be a name of the menu, got {name!r}; {hint}Boxes, and nothing else, come "
        f"from {', '.join(names['detection'])}; masks from {', '.join(names['segmentation'])}; "
        f"classes from {', '.join(names['classification'])}"
    )
