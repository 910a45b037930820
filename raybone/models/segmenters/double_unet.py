"""Double U-Net (Jha et al. 2020, arXiv:2006.04558), also for three classes, as a study of
whole-body scans has it.

Network 1 is a VGG-19 encoder, ASPP and a decoder; the scan times its output goes into network 2,
whose decoder has the skip connections of both encoders. Readings chosen where the papers leave a
choice: both outputs are trained with the same losses, as in the authors' code, and the second is
the prediction; decoders upsample bilinearly; the scan is multiplied with the probability of each
class but the background's, so that network 2 has an input channel for each.
"""

from __future__ import annotations

from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import VGG19_BN_Weights, VGG19_Weights
from torchvision.models.vgg import make_layers

from raybone.models._model import Model
from raybone.models.segmenters._segmenter import (
    GRAPH,
    SPACE,
    SegmenterConfig,
    builder,
    probabilities,
    rare,
)
from raybone.models.segmenters.unet import DoubleConv

STAGES = (1, 2, 4, 8, 8)  # channels of VGG-19's stages, times the width
CONVOLUTIONS = (2, 2, 4, 4, 4)  # in each of them
RATES = (1, 6, 12, 18)
SQUEEZE = 8


class Config(SegmenterConfig):
    """Double U-Net's own hyper-parameters."""

    width: int = Field(
        64,
        ge=8,
        le=128,
        multiple_of=2,
        description="channels of the first level of VGG-19; encoder 2 "
        "and the decoders have half of them",
    )

    norm: bool = Field(True, description="batch norm in the VGG encoder; the papers' has none")
    pool_norm: bool = Field(
        False,
        description="batch norm in the pooling branch of ASPP, as its authors' code has",
    )


class DoubleUnet(nn.Module):
    """Two U-Nets, the second on the scan times the first one's output."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        stages = [config.width * times for times in STAGES]
        layers = [
            item for width, count in zip(stages, CONVOLUTIONS) for item in ([width] * count + ["M"])
        ]
        self.features = make_layers(layers[:-1], batch_norm=config.norm)  # without the last pooling
        self.features[0] = nn.Conv2d(1, stages[0], 3, padding=1)
        widths = [width // 2 for width in stages[:-1]]
        self.encoder = nn.ModuleList(
            _Block(i, o) for i, o in zip((config.channels, *widths), widths)
        )
        self.necks = nn.ModuleList(
            _Aspp(inputs, config.width, config.pool_norm) for inputs in (stages[-1], widths[-1])
        )
        both = [a + b for a, b in zip(stages, widths)]
        self.decoders = nn.ModuleList(
            nn.ModuleList(
                _Block(below + skip, o)
                for below, skip, o in zip((config.width, *widths[::-1]), skips, widths[::-1])
            )
            for skips in (stages[-2::-1], both[::-1])
        )
        self.heads = nn.ModuleList(nn.Conv2d(widths[0], config.channels, 1) for _ in range(2))
        for head in self.heads:
            rare(head)

    def forward(self, image_NCHW: Tensor) -> list[Tensor]:
        """Logits of both networks, of the image's height and width."""
        skips: list[Tensor] = []
        x = image_NCHW
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                skips.append(x)
            x = layer(x)
        first_NCHW = self._decoded(0, x, skips)
        own: list[Tensor] = []
        x = image_NCHW * probabilities(first_NCHW, self.config)
        for block in self.encoder:
            own.append(block(x))
            x = functional.max_pool2d(own[-1], 2)
        return [first_NCHW, self._decoded(1, x, [torch.cat(pair, 1) for pair in zip(skips, own)])]

    def _decoded(self, which: int, x: Tensor, skips: list[Tensor]) -> Tensor:
        x = self.necks[which](x)
        for block, skip in zip(cast(nn.ModuleList, self.decoders[which]), reversed(skips)):
            x = functional.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skip], 1))
        return cast(Tensor, self.heads[which](x))


class _Block(nn.Module):
    """Two convolutions, then squeeze and excitation (Hu et al. 2018, arXiv:1709.01507)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        few = max(1, outputs // SQUEEZE)
        self.convolutions = DoubleConv(inputs, outputs)
        self.excitation = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(outputs, few, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(few, outputs, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolutions(x)
        return cast(Tensor, x * self.excitation(x))


class _PoolNorm(nn.BatchNorm2d):
    """Batch norm of one value a scan; a single scan is normalised by those seen before."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) == 1:
            return functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(x)


class _Aspp(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al. 2017, arXiv:1706.05587)."""

    def __init__(self, inputs: int, outputs: int, norm: bool) -> None:
        super().__init__()
        self.whole = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(inputs, outputs, 1),
            _PoolNorm(outputs) if norm else nn.Identity(),
            nn.ReLU(),
        )
        self.parts = nn.ModuleList(
            _conv(inputs, outputs, 1 if rate == 1 else 3, rate) for rate in RATES
        )
        self.join = _conv(outputs * (1 + len(RATES)), outputs, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.whole(x).expand(-1, -1, *x.shape[2:])
        return cast(Tensor, self.join(torch.cat([whole, *(part(x) for part in self.parts)], 1)))


def _conv(inputs: int, outputs: int, size: int, rate: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=rate * (size // 2), dilation=rate, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


MODEL = Model(
    "double_unet",
    "segmentation",
    Config,
    builder(DoubleUnet),
    SPACE,
    "Jha et al. 2020, arXiv:2006.04558",
    weights={
        "imagenet": VGG19_BN_Weights.IMAGENET1K_V1.url,
        "imagenet_without_norm": VGG19_Weights.IMAGENET1K_V1.url,
    },
    graph=GRAPH,
)
