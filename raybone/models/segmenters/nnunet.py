"""nnU-Net's residual-encoder U-Net with deep supervision (Isensee et al. 2021, doi
10.1038/s41592-020-01008-z; 2024, arXiv:2404.09556), from dynamic-network-architectures.

Its network, first weights and supervision are nnU-Net's; its planner, patches, augmentation and
optimiser are not. nnU-Net halves a scan until its sides are 4 to 8 pixels, the longer sides more
often. Here all sides are halved alike, as often as its planner halves the long side of a scan that
is four times as long as wide: while 8 pixels are left.
"""

from __future__ import annotations

from typing import cast

import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from raybone.models._model import Model, TrainingConfig
from raybone.models.segmenters._segmenter import (
    GRAPH,
    SPACE,
    Segmenter,
    SegmenterConfig,
    rare,
    summed,
)

WIDEST = 512  # channels of any level, as nnU-Net has it in two dimensions
BLOCKS = (1, 3, 4, 6, 6, 6, 6, 6, 6, 6)  # residual blocks of each level of the encoder


class Config(SegmenterConfig):
    """What nnU-Net's planner decides."""

    width: int = Field(
        32, ge=4, le=128, description="channels of the first level; each below doubles them, to 512"
    )
    depth: int = Field(
        0,
        ge=0,
        le=9,
        description="times the image is halved; 0: while 8 pixels of imgsz, or of tile, are left",
    )

    @property
    def halvings(self) -> int:
        """Times the image is halved: 7 for 1024 pixels, 5 for 256."""
        return self.depth or (self.tile or self.imgsz).bit_length() - 4


class NnUnet(nn.Module):
    """The network; logits of the image's height and width.

    With gradients it gives a list: what is trained, the lowest resolution first, each twice the one
    before; the last has the image's resolution. All are of the image with its border of zeros.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        levels = config.halvings + 1
        self.net = ResidualEncoderUNet(
            1,
            levels,
            [min(WIDEST, config.width * 2**level) for level in range(levels)],
            nn.Conv2d,
            3,
            [1] + [2] * config.halvings,
            BLOCKS[:levels],
            config.channels,
            1,
            conv_bias=True,
            norm_op=nn.InstanceNorm2d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
        )
        self.net.apply(self.net.initialize)
        heads = self.net.decoder.seg_layers
        if len(heads) > 1:  # the lowest resolution is not trained
            heads[0] = nn.Identity()
        for head in [*heads][1:] or heads:
            rare(head)
        self.multiple = 2**config.halvings
        _name_once(self.net)

    def forward(self, image_NCHW: Tensor) -> Tensor | list[Tensor]:
        """Logits, or a list of them, as above."""
        height, width = image_NCHW.shape[2:]
        # Two pixels at the lowest level: instance norm has nothing to say of one.
        down = max(2, -(-height // self.multiple)) * self.multiple - height
        right = -(-width // self.multiple) * self.multiple - width
        decoder = self.net.decoder
        decoder.deep_supervision = self.training and torch.is_grad_enabled()
        outputs = self.net(functional.pad(image_NCHW, (0, right, 0, down)))
        if decoder.deep_supervision:
            return (outputs[:-1] or cast(list[Tensor], outputs))[::-1]
        return cast(Tensor, outputs)[:, :, :height, :width]


class DeeplySupervised(Segmenter):
    """A segmenter whose outputs have several resolutions, each with half the weight of the next.

    As in nnU-Net the weights sum to 1, a lower resolution has the nearest pixels of the mask, and
    borders are background. ``val_loss`` is of the highest resolution alone, and comparable between
    networks.
    """

    def _trained(self, outputs: list[Tensor], mask_NCHW: Tensor) -> dict[str, Tensor]:
        height, width = outputs[-1].shape[2:]
        border = (0, width - mask_NCHW.shape[3], 0, height - mask_NCHW.shape[2])
        padded_NCHW, total = functional.pad(mask_NCHW, border), 2 ** len(outputs) - 1
        losses: list[dict[str, Tensor]] = []
        for level, logits_NCHW in enumerate(outputs):
            step = height // logits_NCHW.shape[2]
            near_NCHW = padded_NCHW[:, :, step // 2 :: step, step // 2 :: step]
            parts = self._losses(logits_NCHW, near_NCHW)
            losses.append({name: part * 2**level / total for name, part in parts.items()})
        return summed(losses)


def _name_once(net: ResidualEncoderUNet) -> None:
    """Leave one name to each weight: the library registers most of them twice or four times, and an
    average of the weights would take a step for each name.
    """
    del net.decoder.encoder
    for block in net.modules():
        if isinstance(block, ConvDropoutNormReLU):
            del block.conv, block.norm


def _build(config: TrainingConfig) -> nn.Module:
    own = cast(Config, config)
    return DeeplySupervised(NnUnet(own), own)


MODEL = Model(
    "nnunet",
    "segmentation",
    Config,
    _build,
    SPACE,
    "Isensee et al. 2021, doi 10.1038/s41592-020-01008-z; dynamic-network-architectures",
    graph=GRAPH,
)
