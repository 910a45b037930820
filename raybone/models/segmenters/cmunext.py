"""CMUNeXt (Tang et al., ISBI 2024, arXiv:2308.01239) on one channel, in three sizes.

Large depthwise kernels see far for few parameters; a skip connection is joined by a grouped
convolution, a group a side. Written from the authors' description; their code is under MIT.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from raybone.models._model import Model
from raybone.models.segmenters._segmenter import GRAPH, SPACE, SegmenterConfig, builder, rare

# Channels, blocks and kernels of the five levels
SIZES = {
    "cmunext-s": ((8, 16, 32, 64, 128), (1, 1, 1, 1, 1), (3, 3, 7, 7, 9)),
    "cmunext": ((16, 32, 128, 160, 256), (1, 1, 1, 3, 1), (3, 3, 7, 7, 7)),
    "cmunext-l": ((32, 64, 128, 256, 512), (1, 1, 1, 6, 3), (3, 3, 7, 7, 7)),
}


class _Residual(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """What it is given, and what its parts make of that."""
        return cast(Tensor, x + self.inner(x))


def _relu(inputs: int, outputs: int) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _gelu(inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)
    return conv, nn.GELU(), nn.BatchNorm2d(outputs)


def _level(inputs: int, outputs: int, blocks: int, kernel: int) -> nn.Module:
    parts = list[nn.Module]()
    for _ in range(blocks):
        parts.append(_Residual(*_gelu(inputs, inputs, kernel, inputs)))
        parts += [*_gelu(inputs, 4 * inputs), *_gelu(4 * inputs, inputs)]
    return nn.Sequential(*parts, _relu(inputs, outputs))


def _join(width: int) -> nn.Module:
    """A level's own map beside the one from below, 2 x width channels, to width channels."""
    both = _gelu(2 * width, 2 * width, 3, 2)
    return nn.Sequential(*both, *_gelu(2 * width, 4 * width), *_gelu(4 * width, width))


class Cmunext(nn.Module):
    """Encoder, decoder and joined skip connections; logits, one channel a category."""

    def __init__(self, size: str, config: SegmenterConfig) -> None:
        super().__init__()
        widths, blocks, kernels = SIZES[size]
        self.stem = _relu(1, widths[0])
        self.down = nn.ModuleList(
            _level(*level) for level in zip((widths[0], *widths), widths, blocks, kernels)
        )
        self.up = nn.ModuleList(_relu(below, own) for own, below in zip(widths, widths[1:]))
        self.join = nn.ModuleList(_join(own) for own in widths[:-1])
        self.head = nn.Conv2d(widths[0], config.channels, 1)
        rare(self.head)

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Logits of the image's height and width."""
        x, levels = self.stem(image_NCHW), list[Tensor]()
        for level in self.down:
            x = level(functional.max_pool2d(x, 2) if levels else x)
            levels.append(x)
        for number in reversed(range(len(self.up))):
            x = torch.cat(
                [
                    levels[number],
                    self.up[number](functional.interpolate(x, scale_factor=2, mode="bilinear")),
                ],
                1,
            )
            x = self.join[number](x)
        return cast(Tensor, self.head(x))


MODELS = [
    Model(
        name,
        "segmentation",
        SegmenterConfig,
        builder(partial(Cmunext, name)),
        SPACE,
        "Tang et al. 2024, arXiv:2308.01239",
        graph=GRAPH,
    )
    for name in SIZES
]
