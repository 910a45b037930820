"""AMSUNet (Yin et al., Comput Biol Med 2023;162:107120) on one channel: convolutional attention at
several scales.

Written from a description of the network; what it does not say is our reading: blocks of the
decoder are not dilated.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from raybone.models._model import Model
from raybone.models.segmenters._segmenter import GRAPH, SPACE, SegmenterConfig, builder, rare

DOWN, DILATIONS = (32, 64, 128, 256, 256), (1, 1, 3, 5)  # channels and dilations of the encoder
UP = (128, 64, 32, 32)  # channels of the decoder
STRIPS = (5, 7, 11)  # lengths of the strips by which an attention sees far


def _depthwise(width: int, kernel: tuple[int, int], dilation: int = 1) -> nn.Module:
    padding = [dilation * (side // 2) for side in kernel]
    return nn.Conv2d(width, width, kernel, padding=padding, dilation=dilation, groups=width)  # type: ignore[arg-type]


class _Scales(nn.Module):
    """Attention of several scales, multiplied with what it is paid to."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.near = _depthwise(width, (3, 3))
        self.wide = _depthwise(width, (3, 3), dilation)
        self.strips = nn.ModuleList(
            nn.Sequential(_depthwise(width, (1, k)), _depthwise(width, (k, 1))) for k in STRIPS
        )
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        near = self.near(x)
        wide = self.wide(near)
        found = near + wide
        for strip in self.strips:
            found = found + strip(wide)
        return cast(Tensor, x * self.mix(found))


class _Block(nn.Module):
    """Attention and a feed-forward net, within one shortcut."""

    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, 1),
            nn.GELU(),
            _Scales(width, dilation),
            nn.Conv2d(width, width, 1),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, 4 * width, 1),
            _depthwise(4 * width, (3, 3)),
            nn.GELU(),
            nn.Conv2d(4 * width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return functional.gelu(x + self.inner(x))


class _Skip(nn.Module):
    """A skip connection with what is worth attention in space and in channels added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.space = nn.Conv2d(width, 1, 1, bias=False)
        self.squeeze, self.excite = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        channels = self.excite(functional.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return cast(Tensor, x + x * self.space(x).sigmoid() * (x * channels.sigmoid()))


class Amsunet(nn.Module):
    """Encoder, decoder and attentive skip connections; logits, one channel a category."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        first = nn.Conv2d(1, DOWN[0], 3, padding=1, padding_mode="reflect")
        stem = nn.Sequential(first, nn.BatchNorm2d(DOWN[0]), nn.GELU(), _Block(DOWN[0]))
        steps = zip(DOWN, DOWN[1:], DILATIONS)
        self.down = nn.ModuleList(
            [
                stem,
                *(
                    nn.Sequential(nn.BatchNorm2d(i), nn.Conv2d(i, o, 2, stride=2), _Block(o, d))
                    for i, o, d in steps
                ),
            ]
        )
        below, skips = (DOWN[-1], *UP), DOWN[-2::-1]
        self.norm = nn.ModuleList(nn.BatchNorm2d(b) for b in below[:-1])
        self.skip = nn.ModuleList(_Skip(s) for s in skips)
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(b + s, o, 1), _Block(o)) for b, s, o in zip(below, skips, UP)
        )
        self.head = nn.Conv2d(UP[-1], config.channels, 1)
        rare(self.head)

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Logits of the image's height and width."""
        levels, x = list[Tensor](), image_NCHW
        for level in self.down:
            x = level(x)
            levels.append(x)
        for norm, skip, up, own in zip(self.norm, self.skip, self.up, levels[-2::-1]):
            below = functional.interpolate(
                norm(x), size=own.shape[2:], mode="bilinear", align_corners=True
            )
            x = up(torch.cat([skip(own), below], 1))
        return cast(Tensor, self.head(x))


MODEL = Model(
    "amsunet",
    "segmentation",
    SegmenterConfig,
    builder(Amsunet),
    SPACE,
    "Yin et al. 2023, Comput Biol Med 162:107120",
    graph=GRAPH,
)
