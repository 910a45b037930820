"""The multi-attention multi-scale U-Net for tiles of bone scans (Xie et al. 2024, doi
10.21037/qims-24-1246).

A U-Net with a multi-scale block at every level, a multi-pooling block after the first halving, and
a vision transformer and a non-local block at the bottom; each is a switch, as in its ablation
(Table 7). Readings chosen where the paper leaves a choice: the multi-scale block follows the two
convolutions of a level, in encoder and decoder, and its branches share the channels evenly (the
text speaks of five branches, equation 1 has those of 1x1, 3x3, 5x5 and pooling, which Table 8
varies); the multi-pooling windows are grids of 1, 2, 4 and 8 cells, by adaptive average pooling,
and a 1x1 convolution brings the result back to the level's channels; the transformer's class token
is added to the bottom map at every place; its positions are learned for 16x16 and interpolated for
maps of another size; its hidden layer has four times its width. Where the paper says one thing and
we train another, there is a switch: its equations 13 and 15 normalise after the residual sums
(``post_norm``), Table 1 has a linear head on the class token (``token_head``), and a multi-scale
block is in every layer, the bottom too (``multi_scale_bottom``).
"""

from __future__ import annotations

from typing import cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from raybone.models._model import Model
from raybone.models.segmenters._segmenter import GRAPH, SPACE, SegmenterConfig, builder, rare
from raybone.models.segmenters.unet import DoubleConv
from raybone.study.param import Param

LEVELS, GRID = 4, 16
DEPTH, HEADS, DROPOUT = 6, 8, 0.1  # of the transformer, Table 1


class Config(SegmenterConfig):
    """The switches of the ablation and the width."""

    width: int = Field(
        64,
        ge=8,
        le=128,
        multiple_of=8,
        description="channels of the first level; each level below "
        "doubles them, the bottom has as many as the last",
    )
    multi_scale: bool = Field(True, description="branches of several kernel sizes at every level")
    kernels: tuple[int, ...] = Field(
        (1, 3, 5),
        min_length=1,
        description="odd kernel sizes of those branches; a pooling branch comes on top",
    )
    multi_pooling: bool = Field(
        True, description="context of several grids after the first halving"
    )
    pools: tuple[int, ...] = Field(
        (1, 2, 4, 8), min_length=1, description="cells a side of those grids, as in Figure 14"
    )
    vit: bool = Field(True, description="a vision transformer at the bottom")
    non_local: bool = Field(True, description="non-local attention at the bottom")
    multi_scale_bottom: bool = Field(
        False, description="with multi_scale: its branches at the bottom too"
    )
    post_norm: bool = Field(
        False, description="the transformer normalises after its sums, as equations 13 and 15 do"
    )
    token_head: bool = Field(False, description="a linear layer on the transformer's class token")

    @model_validator(mode="after")
    def _kernels_fit(self) -> Config:
        if any(k < 1 or k % 2 == 0 for k in self.kernels) or len(self.kernels) >= self.width:
            raise ValueError(
                f"kernels must be odd and fewer than the width {self.width}, got "
                f"{list(self.kernels)}"
            )
        if any(pool < 1 for pool in self.pools) or len(self.pools) > self.width:
            raise ValueError(
                f"pools must be positive and at most as many as the width {self.width}, got "
                f"{list(self.pools)}"
            )
        return self


class MsmaUnet(nn.Module):
    """Encoder, bottom and decoder; logits, one channel a class."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = [config.width * 2**level for level in range(LEVELS)]
        self.down = nn.ModuleList(_level(i, o, config) for i, o in zip([1, *widths], widths))
        self.pooling = (
            _MultiPooling(widths[0], config.pools) if config.multi_pooling else nn.Identity()
        )
        self.bottom = nn.Sequential(
            _Transformer(widths[-1], config) if config.vit else nn.Identity(),
            _NonLocal(widths[-1]) if config.non_local else nn.Identity(),
            _level(widths[-1], widths[-1], config, config.multi_scale_bottom),
        )
        below = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in zip(below, widths)
        )
        self.merge = nn.ModuleList(_level(2 * o, o, config) for o in widths)
        self.head = nn.Conv2d(widths[0], config.channels, 1)
        rare(self.head)

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Logits of the image's height and width, which are multiples of 16."""
        skips: list[Tensor] = []
        x = image_NCHW
        for block in self.down:
            skips.append(block(x))
            x = functional.max_pool2d(skips[-1], 2)
            if len(skips) == 1:
                x = self.pooling(x)
        x = self.bottom(x)
        for level in reversed(range(LEVELS)):
            x = self.merge[level](torch.cat([skips[level], self.up[level](x)], 1))
        return cast(Tensor, self.head(x))


class _MultiScale(nn.Module):
    """Branches of several kernel sizes and one of max pooling, concatenated (equation 1); keeps the
    channels.
    """

    def __init__(self, channels: int, kernels: tuple[int, ...]) -> None:
        super().__init__()
        count = len(kernels) + 1
        share = channels // count
        widths = [share] * len(kernels) + [channels - share * len(kernels)]
        self.branches = nn.ModuleList(
            nn.Sequential(
                *([nn.Conv2d(channels, width, 1), nn.ReLU()] if size > 1 else []),
                nn.Conv2d(width if size > 1 else channels, width, size, padding=size // 2),
                nn.ReLU(),
            )
            for size, width in zip(kernels, widths)
        )
        self.branches.append(
            nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(channels, widths[-1], 1), nn.ReLU())
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class _MultiPooling(nn.Module):
    """Means over grids of several sizes, each reduced to its share of the channels, beside the map
    itself.
    """

    def __init__(self, channels: int, pools: tuple[int, ...]) -> None:
        super().__init__()
        share, self.pools = channels // len(pools), pools
        self.reduce = nn.ModuleList(nn.Conv2d(channels, share, 1) for _ in pools)
        self.join = nn.Conv2d(channels + share * len(pools), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = [
            functional.interpolate(
                reduce(functional.adaptive_avg_pool2d(x, size)), x.shape[2:], mode="bilinear"
            )
            for size, reduce in zip(self.pools, self.reduce)
        ]
        return cast(Tensor, self.join(torch.cat([x, *wide], 1)))


class _Transformer(nn.Module):
    """A vision transformer over the pixels of the map (Dosovitskiy et al. 2021,
    arXiv:2010.11929).
    """

    def __init__(self, channels: int, config: Config) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, channels)
        self.token = nn.Parameter(torch.randn(1, 1, channels) * 0.02)
        self.places = nn.Parameter(torch.randn(1, channels, GRID, GRID) * 0.02)
        layer = nn.TransformerEncoderLayer(
            *(channels, HEADS, 4 * channels, DROPOUT, "gelu"),
            batch_first=True,
            norm_first=not config.post_norm,
        )
        self.head = nn.Linear(channels, channels) if config.token_head else nn.Identity()
        self.layers = nn.TransformerEncoder(
            layer, DEPTH, nn.LayerNorm(channels), enable_nested_tensor=False
        )

    def forward(self, x: Tensor) -> Tensor:
        places = (
            self.places
            if x.shape[2:] == self.places.shape[2:]
            else functional.interpolate(self.places, x.shape[2:], mode="bilinear")
        )
        tokens_NLC = self.embed(x.flatten(2).transpose(1, 2)) + places.flatten(2).transpose(1, 2)
        whole_NC = self.layers(torch.cat([self.token.expand(len(x), -1, -1), tokens_NLC], 1))[:, 0]
        return cast(Tensor, x + self.head(whole_NC)[:, :, None, None])


class _NonLocal(nn.Module):
    """Non-local attention (Wang et al. 2018, arXiv:1711.07971), equations 17 to 23; half of the
    channels inside.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(channels, channels // 2, 1) for _ in range(3))
        self.out = nn.Conv2d(channels // 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        theta_NCL, phi_NCL, g_NCL = (part(x).flatten(2) for part in (self.theta, self.phi, self.g))
        weights_NLL = (theta_NCL.transpose(1, 2) @ phi_NCL).softmax(-1)
        seen_NCL = (weights_NLL @ g_NCL.transpose(1, 2)).transpose(1, 2)
        return cast(Tensor, x + self.out(seen_NCL.unflatten(2, x.shape[2:])))


def _level(inputs: int, outputs: int, config: Config, scales: bool = True) -> nn.Module:
    block = DoubleConv(inputs, outputs)
    if not (config.multi_scale and scales):
        return block
    return nn.Sequential(block, _MultiScale(outputs, config.kernels))


MODEL = Model(
    "msma_unet",
    "segmentation",
    Config,
    builder(MsmaUnet),
    {**SPACE, "multi_scale": Param(choice=(False, True))},
    "Xie et al. 2024, doi 10.21037/qims-24-1246",
    graph=GRAPH,
)
