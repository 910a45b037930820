"""U-Nets of Inception blocks: comparators of the multi-attention U-Net study (doi
10.21037/qims-24-1246) whose networks are not published in full.

Both are our readings. ``multi_inception_unet`` (Latif et al. 2021, Int J Imaging Syst Technol
31:1803) is all that the study says of it: a U-Net of such blocks. ``icunet_plus_plus`` (Li et al.
2023, doi 10.1007/s13042-023-01857-y) is a U-Net++ of them with attention gates on the skip
connections and CBAM after each block of the decoder; numbers of channels, and that a gate is led by
the map from below, are ours.
"""

from __future__ import annotations

from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from raybone.models._model import Model
from raybone.models.segmenters._nested import LEVELS, NestedDecoder
from raybone.models.segmenters._segmenter import GRAPH, SPACE, SegmenterConfig, builder
from raybone.models.segmenters.rar_unet import Cbam
from raybone.models.segmenters.unet import Config, Unet


class Inception(nn.Module):
    """Parallel convolutions of 1, 3 and 5 pixels and a pool, a quarter of the channels each, as in
    Szegedy et al. 2015 (arXiv:1512.00567), where two of 3 pixels make one of 5.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        part = outputs // 4
        narrow = [_conv(inputs, part, 1) for _ in range(4)]
        self.branches = nn.ModuleList(
            [
                narrow[0],
                nn.Sequential(narrow[1], _conv(part, part, 3)),
                nn.Sequential(narrow[2], _conv(part, part, 3), _conv(part, part, 3)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), narrow[3]),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, D, H, W)."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class NestedConfig(SegmenterConfig):
    """ICUnet++'s own hyper-parameter."""

    width: int = Field(
        32, ge=8, le=128, multiple_of=4, description="channels of the first level, a multiple of 4"
    )


class InceptionConfig(Config):
    """A U-Net's, of channels that can be quartered."""

    width: int = Field(
        32, ge=8, le=128, multiple_of=4, description="channels of the first level, a multiple of 4"
    )


class IcUnet(nn.Module):
    """A U-Net++ of Inception blocks. Logits, one channel a category."""

    def __init__(self, config: NestedConfig) -> None:
        super().__init__()
        widths = [config.width * 2**level for level in range(LEVELS)]
        self.down = nn.ModuleList(Inception(i, o) for i, o in zip([1, *widths], widths))
        self.decoder = NestedDecoder(widths, config.channels, _joined)

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Logits of the image's height and width."""
        encoded, x = list[Tensor](), image_NCHW
        for block in self.down:
            x = block(functional.max_pool2d(x, 2) if encoded else x)
            encoded.append(x)
        return cast(Tensor, self.decoder(encoded))


def _joined(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(Inception(inputs, outputs), Cbam(outputs))


def _multi(config: InceptionConfig) -> nn.Module:
    return Unet(config, Inception)


MODELS = [
    Model(
        "multi_inception_unet",
        "segmentation",
        InceptionConfig,
        builder(_multi),
        SPACE,
        "our reading of Latif et al. 2021, Int J Imaging Syst Technol 31:1803",
        graph=GRAPH,
    ),
    Model(
        "icunet_plus_plus",
        "segmentation",
        NestedConfig,
        builder(IcUnet),
        SPACE,
        "our reading of Li et al. 2023, doi 10.1007/s13042-023-01857-y",
        graph=GRAPH,
    ),
]
