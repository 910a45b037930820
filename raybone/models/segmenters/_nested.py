"""The decoder of a U-Net++ with attention gates on its skip connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from monai.networks.nets.attentionunet import AttentionBlock
from torch import Tensor, nn

from raybone.models.segmenters._segmenter import rare

LEVELS = 5


class NestedDecoder(nn.Module):
    """Levels from the top, nodes from the left: each joins those before it in its level, through
    gates, with the one below before it.

    Args:
        widths: channels of each level. outputs: channels of the logits. join: makes what joins maps
            of so many channels into one of so many.
    """

    def __init__(
        self, widths: list[int], outputs: int, join: Callable[[int, int], nn.Module]
    ) -> None:
        super().__init__()
        self.up, self.gate, self.join = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for column in range(1, LEVELS):
            for level, (own, below) in enumerate(zip(widths, widths[1 : LEVELS - column + 1])):
                name = f"{level}_{column}"
                self.up[name] = nn.ConvTranspose2d(below, own, 2, stride=2)
                self.gate[name] = AttentionBlock(2, own // 2, own, own)
                self.join[name] = join((column + 1) * own, own)
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
