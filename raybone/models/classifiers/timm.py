"""Any network of timm as a classifier of lesions or scans: ``timm/NAME``.

It sees the scan and the mask as two channels and starts from random weights: nothing is downloaded.
"""

from __future__ import annotations

import difflib

import timm
from torch import nn

from raybone.errors import InvalidConfig, WrongInput
from raybone.models._model import Model
from raybone.models._padded import Padded, without_idle
from raybone.models.classifiers._classifier import CHANNELS, GRAPH, SPACE, ClassifierConfig, builder

PREFIX = "timm/"
MULTIPLE, SMALLEST = 32, 64  # pixels a side that leave some features at a stride of 32
# How a network with a size of its own is asked for any, in the order in which they are tried
SIZES: tuple[dict[str, bool], ...] = (
    {},
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"dynamic_img_size": True},
    {"strict_img_size": False},
)


def model(name: str) -> Model:
    """The classifier of this name, such as ``timm/resnet18``.

    Raises:
        WrongInput: timm has no such network; the message has near names.
    """
    network = name.removeprefix(PREFIX)
    known = timm.list_models()
    if network not in known:
        near = difflib.get_close_matches(network, known, n=5) or ["resnet18"]
        raise WrongInput(
            f"model: must be {PREFIX} and a name of timm.list_models(), got {name!r}; did you mean "
            f"{', '.join(PREFIX + n for n in near)}?"
        )
    return Model(
        name,
        "classification",
        ClassifierConfig,
        builder(lambda: _net(network)),
        SPACE,
        "timm (Wightman 2019, doi 10.5281/zenodo.4414861), as any other name of timm.list_models()",
        graph=GRAPH,
    )


def _net(network: str) -> nn.Module:
    problems = []
    for options in SIZES:
        try:
            net = timm.create_model(
                network, pretrained=False, in_chans=CHANNELS, num_classes=1, **options
            )
            return without_idle(Padded(net, MULTIPLE, SMALLEST), CHANNELS)
        except Exception as error:  # whatever a network of one size alone leads to
            problems.append(" ".join(str(error).split())[:200] or type(error).__name__)
    raise InvalidConfig(
        f"{PREFIX}{network} does not take {CHANNELS} channels of any size: {problems[0]}; "
        "choose another model"
    )


MODELS = [model("timm/resnet18")]
