"""Parts that segmenters share."""

from __future__ import annotations

from torch import nn


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions with batch norm and ReLU; (N, C, H, W) to (N, D, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(*_conv(inputs, outputs), *_conv(outputs, outputs))


def _conv(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
