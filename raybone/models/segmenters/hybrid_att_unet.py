"""A U-Net++ of one encoder and two decoders with attention gates: one for lesions, one for what
else is drawn, such as bone.

Our reading of Hybrid-AttUNet++, which Afnouch et al. 2023 (BM-Seg, Expert Syst Appl 228:120376)
train on masks of lesions and of bone together. All that we have of it is the name and that: the
numbers of channels are those of U-Net++, and that a gate is led by the map from below is ours.
"""

from __future__ import annotations

from typing import cast

import torch
from monai.networks.blocks import Convolution
from monai.networks.nets.attentionunet import AttentionBlock
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from raybone.data.annotations import NOT_LESIONS
from raybone.models._model import Model
from raybone.models.segmenters._segmenter import GRAPH, SPACE, SegmenterConfig, builder, rare

LEVELS = 5


class Config(SegmenterConfig):
    """The model's own hyper-parameter."""

    width: int = Field(
        32, ge=4, le=128, description="channels of the first level; each level below doubles them"
    )


class _Decoder(nn.Module):
    """Levels from the top, nodes from the left: each joins those before it in its level, through
    gates, with the one below before it.
    """

    def __init__(self, widths: list[int], outputs: int) -> None:
        super().__init__()
        self.up, self.gate, self.join = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for column in range(1, LEVELS):
            for level, (own, below) in enumerate(zip(widths, widths[1 : LEVELS - column + 1])):
                name = f"{level}_{column}"
                self.up[name] = nn.ConvTranspose2d(below, own, 2, stride=2)
                self.gate[name] = AttentionBlock(2, own // 2, own, own)
                self.join[name] = _two((column + 1) * own, own)
        self.head = nn.Conv2d(widths[0], outputs, 1)
        rare(self.head)

    def forward(self, encoded: list[Tensor]) -> Tensor:
        """Logits from the maps of all levels of the encoder."""
        rows = [[x] for x in encoded]
        for column in range(1, LEVELS):
            for level in range(LEVELS - column):
                name, before = f"{level}_{column}", rows[level]
                below = self.up[name](rows[level + 1][column - 1])
                gated = [self.gate[name](below, x) for x in before]
                before.append(self.join[name](torch.cat([*gated, below], 1)))
        return cast(Tensor, self.head(rows[0][-1]))


class HybridAttUnet(nn.Module):
    """Logits, one channel a category; where all categories are lesions, or none is, there is one
    decoder.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = [config.width * 2**level for level in range(LEVELS)]
        names = [*config.categories, *["bone"] * (config.channels - len(config.categories))]
        lesions = [n for n, name in enumerate(names) if name not in NOT_LESIONS]
        others = [n for n, name in enumerate(names) if name in NOT_LESIONS]
        self.parts = [part for part in (lesions, others) if part]
        self.down = nn.ModuleList(_two(i, o) for i, o in zip([1, *widths], widths))
        self.decoders = nn.ModuleList(_Decoder(widths, len(part)) for part in self.parts)

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Logits of the image's height and width."""
        encoded, x = list[Tensor](), image_NCHW
        for block in self.down:
            x = block(functional.max_pool2d(x, 2) if encoded else x)
            encoded.append(x)
        logits_NCHW = torch.cat([decoder(encoded) for decoder in self.decoders], 1)
        places = [n for part in self.parts for n in part]
        order = [places.index(n) for n in range(len(places))]
        return logits_NCHW[:, order]


def _two(inputs: int, outputs: int) -> nn.Module:
    """Two convolutions of 3 pixels with batch norm and ReLU."""
    return nn.Sequential(
        *(
            Convolution(2, i, outputs, adn_ordering="NA", act="RELU", norm="BATCH", bias=False)
            for i in (inputs, outputs)
        )
    )


MODELS = [
    Model(
        "hybrid_att_unet_plus_plus",
        "segmentation",
        Config,
        builder(HybridAttUnet),
        SPACE,
        "our reading of Afnouch et al. 2023, Expert Syst Appl 228:120376",
        graph=GRAPH,
    )
]
