"""U-Net on one channel (Ronneberger et al. 2015, arXiv:1505.04597), with batch norm and same-size
convolutions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from raybone.models._model import Model
from raybone.models.segmenters._segmenter import GRAPH, SPACE, SegmenterConfig, builder, rare


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions with batch norm and ReLU; (N, C, H, W) to (N, D, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(*_conv(inputs, outputs), *_conv(outputs, outputs))


def _conv(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Config(SegmenterConfig):
    """U-Net's own hyper-parameters."""

    width: int = Field(
        32, ge=4, le=128, description="channels of the first level; each level below doubles them"
    )
    depth: int = Field(4, ge=1, le=5, description="times the image is halved")


class Unet(nn.Module):
    """Encoder, decoder and skip connections; logits, one channel a category.

    Args:
        block: makes what is at each level from its channels in and out.
    """

    def __init__(self, config: Config, block: Callable[[int, int], nn.Module] = DoubleConv) -> None:
        super().__init__()
        widths = [config.width * 2**i for i in range(config.depth + 1)]
        self.down = nn.ModuleList(block(i, o) for i, o in zip([1, *widths], widths))
        self.skip = nn.ModuleList(nn.Identity() for _ in widths[:-1])
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(o, i, 2, stride=2) for i, o in zip(widths, widths[1:])
        )
        self.merge = nn.ModuleList(block(2 * i, i) for i in widths[:-1])
        self.head = nn.Conv2d(config.width, config.channels, 1)
        rare(self.head)

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Logits of the image's height and width."""
        levels: list[Tensor] = []
        x = image_NCHW
        for block in self.down:
            x = block(functional.max_pool2d(x, 2) if levels else x)
            levels.append(x)
        for level in reversed(range(len(self.up))):
            x = self.merge[level](
                torch.cat([self.skip[level](levels[level]), self.up[level](x)], 1)
            )
        return cast(Tensor, self.head(x))


MODEL = Model(
    "unet",
    "segmentation",
    Config,
    builder(Unet),
    SPACE,
    "Ronneberger et al. 2015, arXiv:1505.04597",
    graph=GRAPH,
)
