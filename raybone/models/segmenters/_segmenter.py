"""What all segmenters share: losses, a third class, tiles, and what is predicted; a file of a model
has its network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from raybone.data.loader import CROWD, Batch
from raybone.models._model import Graph, TrainingConfig, names_study
from raybone.study.param import Param
from raybone.types import Prediction

# Lesions are rare: outputs start near the rate at which they occur, else the first epochs only
# unlearn a half.
RARE = -4.0
WINDOWS = 4  # tiles that go through the network at once when a whole scan is predicted


class SegmenterConfig(TrainingConfig):
    """Weights of the losses, which are added; the third class; tiles."""

    dice: float = Field(0.5, ge=0, le=10, description="weight of the Dice loss")
    cross_entropy: float = Field(0.5, ge=0, le=10, description="weight of the cross-entropy")
    focal_tversky: float = Field(0.0, ge=0, le=10, description="weight of the focal Tversky loss")
    nm: str = Field(
        "",
        description="what the third class, non-metastasis, is: otsu (the body without its "
        "lesions), or "
        "the folder of a study whose winner's findings outside lesions it is (negative "
        "mining); empty for two classes",
    )
    tile: int = Field(
        0,
        ge=0,
        le=2048,
        multiple_of=32,
        description="pixels of the side of square tiles that overlap by half; 0 for whole scans",
    )
    tiles: Literal["all", "lesions"] = Field(
        "all", description="tiles to train on: all, or those with lesions"
    )

    @model_validator(mode="after")
    def _sound(self) -> SegmenterConfig:
        if self.dice + self.cross_entropy + self.focal_tversky <= 0:
            raise ValueError(
                "dice, cross_entropy and focal_tversky are all 0; give one of them a weight"
            )
        if self.tile and self.montage:
            raise ValueError("tile and montage do not go together; leave one out")
        if self.unlabelled and (self.nm or (self.tile and self.tiles == "lesions")):
            raise ValueError(
                "unlabelled scans have neither non-metastasis nor tiles with lesions; set it to 0, "
                "or leave out nm and tiles"
            )
        return self

    @property
    def channels(self) -> int:
        """Outputs of the network: one a category, and one of non-metastasis."""
        return len(self.categories) + bool(self.nm)

    @property
    def mined_from(self) -> str:
        """Folder of the earlier configuration whose findings are non-metastasis."""
        return self.nm if names_study("nm", self.nm) else ""

    @property
    def otsu(self) -> bool:
        """Whether Otsu's threshold says what is non-metastasis."""
        return bool(self.nm) and not self.mined_from


class Segmenter(nn.Module):
    """A network of logits under the raybone contract.

    There is a sigmoid output a category, so that categories may overlap; with non-metastasis
    (``nm``) a softmax over background, categories and non-metastasis, in which the logit of the
    background is the constant 0: it carries no loss and no gradient (section 3.7 of the study of
    whole-body scans by double U-Nets; a softmax does not change when a number is added to all its
    logits, so that nothing is lost by the constant). Pixels of background do count as false
    positives of the other classes in overlap losses, and not at all in the cross-entropy. Pixels of
    crowds count in no loss.

    Args:
        net: image_NCHW to logits of its height and width, or a list of them, all of which are
            trained and the last of which is the prediction.
    """

    def __init__(self, net: nn.Module, config: SegmenterConfig) -> None:
        super().__init__()
        self.net, self.config = net, config

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor] | list[Prediction]:
        """Losses of a Batch in train mode; a Prediction an image with mask_CHW probabilities in
        eval mode.
        """
        outputs = self._outputs(batch.image_NCHW if isinstance(batch, Batch) else batch)
        if not self.training:
            probability_NCHW = probabilities(outputs[-1], self.config)[
                :, : len(self.config.categories)
            ]
            return [Prediction(mask_CHW=m) for m in probability_NCHW.detach().cpu().numpy()]
        return self._trained(outputs, cast(Batch, batch).mask_NCHW)

    def _trained(self, outputs: list[Tensor], mask_NCHW: Tensor) -> dict[str, Tensor]:
        """The losses of all outputs together."""
        return summed([self._losses(logits_NCHW, mask_NCHW) for logits_NCHW in outputs])

    def _outputs(self, image_NCHW: Tensor) -> list[Tensor]:
        tile = self.config.tile
        # What is trained on is a tile of any size: a step of a small one tells what it takes.
        trains = self.training and torch.is_grad_enabled()
        if tile and not trains and image_NCHW.shape[2:] != (tile, tile):  # a whole scan
            from monai.inferers import sliding_window_inference  # seconds to import

            height, width = image_NCHW.shape[2:]
            # As training pads: MONAI's own would move a narrow scan into the middle.
            padded_NCHW = functional.pad(
                image_NCHW, (0, max(0, tile - width), 0, max(0, tile - height))
            )
            found: Any = sliding_window_inference(
                padded_NCHW,
                (tile, tile),
                WINDOWS,
                lambda x: tuple(_listed(self.net(x))),
                overlap=0.5,
            )
            found = [o[:, :, :height, :width] for o in _listed(found)]
        else:
            found = self.net(image_NCHW)
        return [o.float() for o in _listed(found)]

    def _losses(self, logits_NCHW: Tensor, mask_NCHW: Tensor) -> dict[str, Tensor]:
        config, known_NCHW = self.config, (mask_NCHW != CROWD).float()
        target_NCHW = (mask_NCHW == 1).float()
        probability_NCHW = probabilities(logits_NCHW, config) * known_NCHW
        losses: dict[str, tuple[float, Callable[[], Tensor]]] = {
            "dice_loss": (config.dice, lambda: dice_loss(probability_NCHW, target_NCHW)),
            "cross_entropy_loss": (
                config.cross_entropy,
                lambda: self._entropy(logits_NCHW, target_NCHW, known_NCHW),
            ),
            "focal_tversky_loss": (
                config.focal_tversky,
                lambda: focal_tversky_loss(probability_NCHW, target_NCHW),
            ),
        }
        return {name: weight * loss() for name, (weight, loss) in losses.items() if weight}

    def _entropy(self, logits_NCHW: Tensor, target_NCHW: Tensor, known_NCHW: Tensor) -> Tensor:
        if not self.config.nm:
            return functional.binary_cross_entropy_with_logits(logits_NCHW, target_NCHW, known_NCHW)
        class_NHW = _with_background(target_NCHW).argmax(1)
        total = functional.cross_entropy(
            _with_background(logits_NCHW), class_NHW, ignore_index=0, reduction="sum"
        )
        return total / (class_NHW > 0).sum().clamp(min=1)


def summed(losses: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Losses of several outputs, added by name."""
    return {name: torch.stack([part[name] for part in losses]).sum() for name in losses[0]}


def probabilities(logits_NCHW: Tensor, config: SegmenterConfig) -> Tensor:
    """Probabilities of the categories and, with ``nm``, of non-metastasis: same shape, without the
    background.
    """
    return _with_background(logits_NCHW).softmax(1)[:, 1:] if config.nm else logits_NCHW.sigmoid()


def _graph(module: Segmenter, image_NCHW: Tensor) -> Tensor:
    """Probabilities of each pixel (N, C, H, W); of one tile where the network works on tiles."""
    return probabilities(_listed(module.net(image_NCHW))[-1], module.config)


GRAPH = Graph(_graph)


def rare(head: nn.Module) -> None:
    """Let the outputs of a last layer start near the rate at which lesions occur."""
    nn.init.constant_(cast(Tensor, head.bias), RARE)


def builder(make: Callable[[Any], nn.Module]) -> Callable[[TrainingConfig], nn.Module]:
    """The ``build`` of a segmenter with this network."""
    return lambda config: Segmenter(make(config), cast(SegmenterConfig, config))


def _with_background(logits_NCHW: Tensor) -> Tensor:
    return functional.pad(logits_NCHW, (0, 0, 0, 0, 1, 0))


def _listed(outputs: Any) -> list[Tensor]:
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


SPACE = {
    "lr0": Param(log_uniform=(1e-4, 1e-2)),
    "imgsz": Param(choice=(256, 512)),
    "fliplr": Param(choice=(0.0, 0.5)),
    "gamma": Param(uniform=(0.0, 0.5)),
    "focal_tversky": Param(choice=(0.0, 1.0)),
}


def dice_loss(probability_NCHW: Tensor, target_NCHW: Tensor, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss, 1 - (2 |PT| + s) / (|P| + |T| + s), pooled over the batch, mean over
    categories.

    Args:
        probability_NCHW: in [0, 1].
        target_NCHW: 0 or 1, same shape.
        smooth: keeps an empty target finite and learnable.
    Source: Milletari et al. 2016 (arXiv:1606.04797), with unsquared sums.
    """
    axes = (0, 2, 3)
    both_C = (probability_NCHW * target_NCHW).sum(axes)
    all_C = probability_NCHW.sum(axes) + target_NCHW.sum(axes)
    return (1 - (2 * both_C + smooth) / (all_C + smooth)).mean()


def focal_tversky_loss(
    probability_NCHW: Tensor,
    target_NCHW: Tensor,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 0.75,
    smooth: float = 1.0,
) -> Tensor:
    """Focal Tversky loss, (1 - (|PT| + s) / (|PT| + alpha FP + beta FN + s)) ** gamma, mean over
    categories.

    Sums are pooled over the batch; alpha weighs false positives and beta false negatives, as in the
    study of whole-body scans that these values are of (Abraham & Khan 2019 have them the other way
    round).

    Args:
        probability_NCHW: in [0, 1].
        target_NCHW: 0 or 1, same shape.
    Source: Abraham & Khan 2019 (arXiv:1810.07842).
    """
    axes = (0, 2, 3)
    both_C = (probability_NCHW * target_NCHW).sum(axes)
    false_C = (probability_NCHW * (1 - target_NCHW)).sum(axes)
    missed_C = ((1 - probability_NCHW) * target_NCHW).sum(axes)
    tversky_C = (both_C + smooth) / (both_C + alpha * false_C + beta * missed_C + smooth)
    # A perfect category has an infinite slope.
    return ((1 - tversky_C).clamp(min=1e-7) ** gamma).mean()
