"""U-Nets from MONAI.

U-Net++ (Zhou et al. 2018, arXiv:1807.10165) and Attention U-Net (Oktay et al. 2018,
arXiv:1804.03999), comparators of the multi-attention U-Net study (doi 10.21037/qims-24-1246), whose
third is ``resunet_a``; and MONAI's own U-Net of residual units, with strided convolutions and PReLU
(Kerfoot et al. 2019, doi 10.1007/978-3-030-12029-0_40).
"""

from __future__ import annotations

from monai.networks.nets import AttentionUnet, BasicUNetPlusPlus, UNet
from pydantic import Field
from torch import nn

from raybone.models._model import Model
from raybone.models.segmenters._segmenter import GRAPH, SPACE, SegmenterConfig, builder, rare

LEVELS = 5


class Config(SegmenterConfig):
    """The comparators' own hyper-parameter."""

    width: int = Field(
        32, ge=4, le=128, description="channels of the first level; each level below doubles them"
    )


class NestedConfig(Config):
    """U-Net++'s own hyper-parameters."""

    deep_supervision: bool = Field(
        False, description="the shallower networks inside are trained as well, with heads of theirs"
    )


def _plus_plus(config: NestedConfig) -> nn.Module:
    widths, deep = (*_widths(config), config.width), config.deep_supervision
    net = BasicUNetPlusPlus(2, 1, config.channels, widths, deep_supervision=deep, norm="batch")
    for depth in range(1, LEVELS):
        head = getattr(net, f"final_conv_0_{depth}")
        if deep or depth == LEVELS - 1:
            rare(head)
        else:  # of a shallower net, which is not trained
            setattr(net, f"final_conv_0_{depth}", nn.Identity())
    return net


def _attention(config: Config) -> nn.Module:
    return _rare(AttentionUnet(2, 1, config.channels, _widths(config), [2] * (LEVELS - 1)))


def _residual(config: Config) -> nn.Module:
    return _rare(
        UNet(
            2,
            1,
            config.channels,
            _widths(config),
            [2] * (LEVELS - 1),
            num_res_units=2,
            norm="batch",
        )
    )


def _widths(config: Config) -> list[int]:
    return [config.width * 2**level for level in range(LEVELS)]


def _rare(net: nn.Module) -> nn.Module:
    rare([m for m in net.modules() if isinstance(m, nn.Conv2d)][-1])
    return net


MODELS = [
    Model(
        "unet_plus_plus",
        "segmentation",
        NestedConfig,
        builder(_plus_plus),
        SPACE,
        "Zhou et al. 2018, arXiv:1807.10165; MONAI",
        graph=GRAPH,
    ),
    Model(
        "attention_unet",
        "segmentation",
        Config,
        builder(_attention),
        SPACE,
        "Oktay et al. 2018, arXiv:1804.03999; MONAI",
        graph=GRAPH,
    ),
    Model(
        "res_unet",
        "segmentation",
        Config,
        builder(_residual),
        SPACE,
        "Kerfoot et al. 2019, doi 10.1007/978-3-030-12029-0_40; MONAI",
        graph=GRAPH,
    ),
]
