"""A U-Net++ of one encoder and two decoders with attention gates: one for lesions, one for what
else is drawn, such as bone.

Our reading of Hybrid-AttUNet++, which Afnouch et al. 2023 (BM-Seg, Expert Syst Appl 228:120376)
train on masks of lesions and of bone together. All that we have of it is the name and that: the
numbers of channels are those of U-Net++, and that a gate is led by the map from below is ours.
"""

from __future__ import annotations

import torch
from monai.networks.blocks import Convolution
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from raybone.data.annotations import NOT_LESIONS
from raybone.models._model import Model
from raybone.models.segmenters._nested import LEVELS, NestedDecoder
from raybone.models.segmenters._segmenter import GRAPH, SPACE, SegmenterConfig, builder


class Config(SegmenterConfig):
    """The model's own hyper-parameter."""

    width: int = Field(
        32, ge=4, le=128, description="channels of the first level; each level below doubles them"
    )


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
        self.decoders = nn.ModuleList(NestedDecoder(widths, len(part), _two) for part in self.parts)

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
