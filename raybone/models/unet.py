"""U-Net on one channel (Ronneberger et al. 2015, arXiv:1505.04597), with batch norm and same-size convolutions."""

from __future__ import annotations

from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from raybone.data.loader import Batch
from raybone.losses.overlap import dice_loss, one_hot
from raybone.models._blocks import DoubleConv
from raybone.models._model import Model, TrainingConfig
from raybone.records import Prediction
from raybone.spec import Param


class Config(TrainingConfig):
    """U-Net's own hyper-parameters."""

    width: int = Field(32, ge=4, le=128, description="channels of the first level; each level below doubles them")
    depth: int = Field(4, ge=1, le=5, description="times the image is halved")
    bce: float = Field(0.5, ge=0, le=1, description="share of cross-entropy in the loss, the rest is Dice")


class Unet(nn.Module):
    """Encoder, decoder and skip connections; one sigmoid output a category."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * 2**i for i in range(config.depth + 1)]
        self.down = nn.ModuleList(DoubleConv(i, o) for i, o in zip([1, *widths], widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(o, i, 2, stride=2) for i, o in zip(widths, widths[1:]))
        self.merge = nn.ModuleList(DoubleConv(2 * i, i) for i in widths[:-1])
        self.head = nn.Conv2d(config.width, len(config.categories), 1)
        # A rare class: start near the rate at which lesions occur, else the first epochs only unlearn a half.
        nn.init.constant_(cast(Tensor, self.head.bias), -4.0)

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor] | list[Prediction]:
        """Losses of a Batch in train mode; a Prediction an image with mask_CHW probabilities in eval mode."""
        image_NCHW = batch.image_NCHW if isinstance(batch, Batch) else batch
        logits_NCHW = self._logits(image_NCHW).float()
        if self.training:
            target_NCHW = one_hot(cast(Batch, batch).mask_NHW, logits_NCHW.shape[1])
            entropy = functional.binary_cross_entropy_with_logits(logits_NCHW, target_NCHW)
            dice = dice_loss(logits_NCHW.sigmoid(), target_NCHW)
            return {"dice_loss": (1 - self.config.bce) * dice, "bce_loss": self.config.bce * entropy}
        return [Prediction(mask_CHW=m) for m in logits_NCHW.sigmoid().detach().cpu().numpy()]

    def _logits(self, image_NCHW: Tensor) -> Tensor:
        levels = []
        x = image_NCHW
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            levels.append(x)
        for level in reversed(range(self.config.depth)):
            x = self.merge[level](torch.cat([levels[level], self.up[level](x)], 1))
        return cast(Tensor, self.head(x))


def _build(config: TrainingConfig) -> nn.Module:
    return Unet(cast(Config, config))


SPACE = {
    "lr0": Param(log_uniform=(1e-4, 1e-2)),
    "imgsz": Param(choice=(256, 512)),
    "fliplr": Param(choice=(0.0, 0.5)),
    "gamma": Param(uniform=(0.0, 0.5)),
}
MODEL = Model("unet", "segmentation", Config, _build, SPACE, "Ronneberger et al. 2015, arXiv:1505.04597")
