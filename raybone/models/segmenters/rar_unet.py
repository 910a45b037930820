"""RAR-U-Net (Wang et al., ICIP 2021, arXiv:2009.12873): residual encoder, residual skip
connections, and attention to channels and places after each scale of the decoder.

A reading of the paper's description, as its code is not published: numbers of channels and kernels,
and CBAM (Woo et al. 2018, arXiv:1807.06521) as the attention, are ours. Its learning from noisy
labels is not part of the network, and is left out.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from raybone.models._model import Model
from raybone.models.segmenters._segmenter import GRAPH, SPACE, builder
from raybone.models.segmenters.unet import Config, DoubleConv, Unet

SQUEEZE, PLACES = 4, 7  # by which channels are divided, and pixels that a place's attention sees


class Cbam(nn.Module):
    """Attention to channels by their means and maxima over the image, then to places by those over
    the channels; same shape.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = nn.Sequential(
            nn.Conv2d(width, width // SQUEEZE, 1), nn.ReLU(), nn.Conv2d(width // SQUEEZE, width, 1)
        )
        self.places = nn.Conv2d(2, 1, PLACES, padding=PLACES // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        means, maxima = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        x = x * (self.channels(means) + self.channels(maxima)).sigmoid()
        over = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return cast(Tensor, x * self.places(over).sigmoid())


class Residual(nn.Module):
    """Two 3x3 convolutions around which the input goes, by a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.around = nn.Conv2d(inputs, outputs, 1)
        self.inner = DoubleConv(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, D, H, W)."""
        return cast(Tensor, self.around(x) + self.inner(x))


class RarUnet(Unet):
    """Logits, one channel a category."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, Residual)
        widths = [config.width * 2**level for level in range(config.depth)]
        self.skip = nn.ModuleList(Residual(width, width) for width in widths)
        self.merge = nn.ModuleList(
            nn.Sequential(merge, Cbam(width)) for merge, width in zip(self.merge, widths)
        )


MODEL = Model(
    "rar_unet",
    "segmentation",
    Config,
    builder(RarUnet),
    SPACE,
    "our reading of Wang et al. 2021, arXiv:2009.12873",
    graph=GRAPH,
)
