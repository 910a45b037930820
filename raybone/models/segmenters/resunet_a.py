"""ResUNet-a d6 (Diakogiannis et al. 2020, ISPRS J 162:94, arXiv:1904.00592) on one channel: a U-Net
of residual blocks with parallel dilated convolutions, and pyramid pooling at its bottom and end.

With one task, as the multi-attention U-Net study (doi 10.21037/qims-24-1246) compares with; the
paper's further outputs of distance, boundary and colour are left out. Pools of the pyramid are
grids of 1, 2, 4 and 8 cells, whatever the image's size, which is our reading.
"""

from __future__ import annotations

from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from raybone.models._model import Model
from raybone.models.segmenters._segmenter import GRAPH, SPACE, SegmenterConfig, builder, rare

# Dilations of each level's parallel branches, from the top
DILATIONS = ((1, 3, 15, 31), (1, 3, 15, 31), (1, 3, 15), (1, 3, 15), (1,), (1,))
GRIDS = (1, 2, 4, 8)


class Config(SegmenterConfig):
    """ResUNet-a's own hyper-parameter."""

    width: int = Field(
        32,
        ge=4,
        le=64,
        multiple_of=4,
        description="channels of the first level; each level below doubles them",
    )


class _Atrous(nn.Module):
    """Its input and what branches of two dilated convolutions make of it, added; same shape."""

    def __init__(self, width: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*_dilated(width, d), *_dilated(width, d)) for d in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x + torch.stack([branch(x) for branch in self.branches]).sum(0)


def _dilated(width: int, dilation: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
    return nn.BatchNorm2d(width), nn.ReLU(), conv


def _normed(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


class _Pyramid(nn.Module):
    """Maxima over grids of the image, a quarter of the channels each, beside the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # No batch norm: a grid of one cell and a batch of one leave nothing to normalise by.
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveMaxPool2d(grid), nn.Conv2d(width, width // 4, 1))
            for grid in GRIDS
        )
        self.mix = _normed(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        pooled = [functional.interpolate(pool(x), size=x.shape[2:]) for pool in self.pools]
        return cast(Tensor, self.mix(torch.cat([x, *pooled], 1)))


class ResUnetA(nn.Module):
    """Encoder, decoder and combined skip connections; logits, one channel a category."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = [config.width * 2**level for level in range(len(DILATIONS))]
        self.stem = nn.Conv2d(1, widths[0], 1)
        self.halve = nn.ModuleList(nn.Conv2d(i, o, 1, stride=2) for i, o in zip(widths, widths[1:]))
        self.down = nn.ModuleList(map(_Atrous, widths, DILATIONS))
        self.bottom = _Pyramid(widths[-1])
        self.combine = nn.ModuleList(_normed(3 * own, own) for own in widths[:-1])
        self.up = nn.ModuleList(map(_Atrous, widths[:-1], DILATIONS))
        self.last, self.end = _normed(2 * widths[0], widths[0]), _Pyramid(widths[0])
        self.head = nn.Conv2d(widths[0], config.channels, 1)
        rare(self.head)

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Logits of the image's height and width."""
        x = stem = self.stem(image_NCHW)
        levels = list[Tensor]()
        for number, block in enumerate(self.down):
            x = block(self.halve[number - 1](x) if number else x)
            levels.append(x)
        x = self.bottom(x)
        for number in reversed(range(len(self.up))):
            own = levels[number]
            below = functional.interpolate(x, size=own.shape[2:]).relu()
            x = self.up[number](self.combine[number](torch.cat([below, own], 1)))
        x = self.last(torch.cat([x.relu(), stem], 1))
        return cast(Tensor, self.head(self.end(x)))


MODEL = Model(
    "resunet_a",
    "segmentation",
    Config,
    builder(ResUnetA),
    SPACE,
    "Diakogiannis et al. 2020, arXiv:1904.00592",
    graph=GRAPH,
)
