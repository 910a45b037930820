"""Classifiers of lesions or scans (Liu et al. 2021, doi 10.1186/s12880-021-00662-9): torchvision's
networks.

The scan and the mask of one lesion are stacked as channels, so that the network sees where the
lesion lies and what else there is. Readings chosen where the paper leaves a choice: one output with
a sigmoid; InceptionV3 without its auxiliary output. Both channels start from half of the sum of
published weights of three.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision import models

from raybone.models._model import Model
from raybone.models._padded import Padded
from raybone.models.classifiers._classifier import CHANNELS, GRAPH, SPACE, ClassifierConfig, builder

SOURCE = "Liu et al. 2021, doi 10.1186/s12880-021-00662-9; "
SMALLEST = (
    128  # pixels a side below which InceptionV3 ends in one pixel, which batch norm cannot do alone
)


def _resnet50() -> nn.Module:
    return _entered(models.resnet50(num_classes=1), "conv1")


def _inception_v3() -> nn.Module:
    net = models.inception_v3(num_classes=1, aux_logits=False, init_weights=True)
    return Padded(_entered(net, "Conv2d_1a_3x3.conv"), smallest=SMALLEST)


def _vgg16() -> nn.Module:
    return _entered(models.vgg16(num_classes=1), "features.0")


def _densenet169() -> nn.Module:
    return _entered(models.densenet169(num_classes=1), "features.conv0")


def _entered(net: nn.Module, name: str) -> nn.Module:
    """The network with a first convolution of CHANNELS channels."""
    parent, _, last = name.rpartition(".")
    old: Any = net.get_submodule(name)
    new = nn.Conv2d(
        CHANNELS,
        old.out_channels,
        old.kernel_size,
        old.stride,
        old.padding,
        bias=old.bias is not None,
    )
    setattr(net.get_submodule(parent), last, new)
    return net


def _model(name: str, make: Callable[[], nn.Module], weights: Any, origin: str) -> Model:
    return Model(
        f"lesion_{name}",
        "classification",
        ClassifierConfig,
        builder(make),
        SPACE,
        SOURCE + origin,
        weights={"imagenet": weights.IMAGENET1K_V1.url},
        graph=GRAPH,
    )


MODELS = [
    _model("resnet50", _resnet50, models.ResNet50_Weights, "He et al. 2015, arXiv:1512.03385"),
    _model(
        "inception_v3",
        _inception_v3,
        models.Inception_V3_Weights,
        "Szegedy et al. 2015, arXiv:1512.00567",
    ),
    _model("vgg16", _vgg16, models.VGG16_Weights, "Simonyan & Zisserman 2014, arXiv:1409.1556"),
    _model(
        "densenet169",
        _densenet169,
        models.DenseNet169_Weights,
        "Huang et al. 2016, arXiv:1608.06993",
    ),
]
