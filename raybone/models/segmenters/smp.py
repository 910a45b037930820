"""segmentation_models_pytorch: each of its decoders, on any of its encoders.

The network sees one channel and starts from random weights: nothing is downloaded. Sides are padded
to the multiple that a decoder needs.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import segmentation_models_pytorch as library
import timm
from pydantic import Field, field_validator
from torch import nn

from raybone.errors import InvalidConfig
from raybone.models._model import Model
from raybone.models._padded import Padded, without_idle
from raybone.models.segmenters._segmenter import GRAPH, SPACE, SegmenterConfig, builder, rare
from raybone.study.param import Param

SOURCES = {
    "Unet": "Ronneberger et al. 2015, arXiv:1505.04597",
    "UnetPlusPlus": "Zhou et al. 2018, arXiv:1807.10165",
    "MAnet": "Fan et al. 2020, doi 10.1109/ACCESS.2020.3025372",
    "Linknet": "Chaurasia & Culurciello 2017, arXiv:1707.03718",
    "FPN": "Lin et al. 2016, arXiv:1612.03144",
    "PSPNet": "Zhao et al. 2016, arXiv:1612.01105",
    "PAN": "Li et al. 2018, arXiv:1805.10180",
    "DeepLabV3": "Chen et al. 2017, arXiv:1706.05587",
    "DeepLabV3Plus": "Chen et al. 2018, arXiv:1802.02611",
    "UPerNet": "Xiao et al. 2018, arXiv:1807.10221",
    "Segformer": "Xie et al. 2021, arXiv:2105.15203",
    "DPT": "Ranftl et al. 2021, arXiv:2103.13413",
}
SMALLEST = {"PAN": 128}  # pixels a side: it halves features of stride 16 thrice more
UNIVERSAL = "tu-"  # what the encoders that are timm's begin with


class Config(SegmenterConfig):
    """The hyper-parameter of these models."""

    encoder: str = Field(
        "resnet34",
        description="the encoder, by its name in segmentation_models_pytorch; tu-NAME is NAME of "
        "timm",
    )

    @field_validator("encoder")
    @classmethod
    def _known(cls, encoder: str) -> str:
        known = [
            *library.encoders.get_encoder_names(),
            *(UNIVERSAL + name for name in timm.list_models()),
        ]
        if encoder not in known:
            near = difflib.get_close_matches(encoder, known, n=5) or ["resnet34"]
            raise ValueError(
                f"must be an encoder of segmentation_models_pytorch, got {encoder!r}; did you mean "
                f"{', '.join(near)}?"
            )
        return encoder


class DptConfig(Config):
    """The same for DPT, whose encoders are vision transformers."""

    encoder: str = Field(
        "tu-vit_tiny_patch16_224",
        description="the encoder: tu-NAME, where NAME is a vision transformer of timm",
    )


def _maker(decoder: str) -> Callable[[Config], nn.Module]:
    # timm's transformers have a size of their own, unless they are asked for any.
    options: dict[str, Any] = {"dynamic_img_size": True} if decoder == "DPT" else {}

    def make(config: Config) -> nn.Module:
        try:
            net = getattr(library, decoder)(
                config.encoder,
                encoder_weights=None,
                in_channels=1,
                classes=config.channels,
                **options,
            )
            stride = net.encoder.output_stride * (1 + (decoder == "DPT"))  # DPT halves once more
            multiple = stride if net.requires_divisible_input_shape else 1
            rare([m for m in net.segmentation_head.modules() if isinstance(m, nn.Conv2d)][-1])
            return without_idle(Padded(net, multiple, SMALLEST.get(decoder, 1)), 1)
        except Exception as error:  # whatever an encoder that was made for other things leads to
            raise InvalidConfig(
                f"encoder {config.encoder} does not go with smp/{decoder}: "
                f"{' '.join(str(error).split())[:200] or type(error).__name__}; choose another"
            ) from None

    return make


def _model(decoder: str, source: str) -> Model:
    config, encoders = Config, ("resnet34", "efficientnet-b0")
    if decoder == "DPT":
        config, encoders = DptConfig, ("tu-vit_tiny_patch16_224", "tu-vit_small_patch16_224")
    return Model(
        f"smp/{decoder}",
        "segmentation",
        config,
        builder(_maker(decoder)),
        {**SPACE, "encoder": Param(choice=encoders)},
        f"{source}; segmentation_models_pytorch",
        graph=GRAPH,
    )


MODELS = [_model(decoder, source) for decoder, source in SOURCES.items()]
