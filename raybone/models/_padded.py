"""Other people's networks on images of any size: borders, and weights that nothing depends on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

PROBE = (2, 64, 96)  # images, height and width that show which weights an output depends on


class Padded(nn.Module):
    """A network on images of any size, with a border of zeros to the right and below.

    A batch of one image is seen twice in train mode: batch norm of pooled features needs two.

    Args:
        net: image_NCHW to logits (N, C, H, W), which are cut back to the image, or (N, C).
        multiple: of which both sides must be.
        smallest: pixels that both sides must have.
    """

    def __init__(self, net: nn.Module, multiple: int = 1, smallest: int = 1) -> None:
        super().__init__()
        self.net, self.multiple, self.smallest = net, multiple, smallest

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Logits as the network gives them, of the image's height and width if they have one."""
        images, _, height, width = image_NCHW.shape
        down, right = (
            max(self.smallest, -(-side // self.multiple) * self.multiple) - side
            for side in (height, width)
        )
        padded_NCHW = functional.pad(image_NCHW, (0, right, 0, down))
        if self.training and images == 1:
            logits: Tensor = self.net(padded_NCHW.expand(2, -1, -1, -1))[:1]
        else:
            logits = self.net(padded_NCHW)
        return logits[:, :, :height, :width] if logits.ndim == 4 else logits


def without_idle(net: nn.Module, channels: int) -> nn.Module:
    """The network with those weights frozen that no output depends on: data-parallel training
    would wait for their gradients.

    Raises:
        RuntimeError, AssertionError ...: whatever the network says of images of ``PROBE``.
    """
    trained = [p for p in net.parameters() if p.requires_grad]
    images, *sides = PROBE
    probe_NCHW = torch.zeros(images, channels, *sides, device=trained[0].device)
    output = net.eval()(probe_NCHW).sum()
    for weight, gradient in zip(trained, torch.autograd.grad(output, trained, allow_unused=True)):
        weight.requires_grad_(gradient is not None)
    return net.train()
