"""What all classifiers share: two channels in, one logit out, cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from raybone.data.loader import Batch
from raybone.models._model import Graph, TrainingConfig
from raybone.study.param import Param
from raybone.types import Prediction

CHANNELS = 2  # the scan, and the mask of the lesion in question


class ClassifierConfig(TrainingConfig):
    """What is classified."""

    target: str = Field(
        "",
        description="empty: whether each lesion is of `categories`; else the label of scans.csv "
        "whose value 1 makes a scan positive, such as abnormal",
    )

    @model_validator(mode="after")
    def _alone(self) -> ClassifierConfig:
        if self.mosaic or self.montage:
            raise ValueError(
                "mosaic and montage mix scans, of which each has its own class; leave them at 0 "
                "and false"
            )
        return self


class Classifier(nn.Module):
    """A network of one logit under the raybone contract; its images have CHANNELS channels."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor] | list[Prediction]:
        """The loss of a Batch in train mode; a Prediction an image, with the probability as its
        score, in eval mode.
        """
        logit_N = self.net(batch.image_NCHW if isinstance(batch, Batch) else batch)[:, 0].float()
        if self.training:
            truth_N = torch.cat(cast(Batch, batch).labels).float()
            return {
                "cross_entropy_loss": functional.binary_cross_entropy_with_logits(logit_N, truth_N)
            }
        score_N = logit_N.sigmoid().detach().cpu().numpy()
        return [Prediction(scores_N=score_N[n : n + 1]) for n in range(len(score_N))]


def builder(make: Callable[[], nn.Module]) -> Callable[[TrainingConfig], nn.Module]:
    """The ``build`` of a classifier with this network."""
    return lambda _: Classifier(make())


def _graph(module: Classifier, image_NCHW: Tensor) -> Tensor:
    """The probability (N, 1)."""
    return torch.sigmoid(module.net(image_NCHW))


GRAPH = Graph(_graph, CHANNELS)
SPACE = {
    "lr0": Param(log_uniform=(1e-5, 1e-2)),
    "imgsz": Param(choice=(256, 512)),
    "fliplr": Param(choice=(0.0, 0.5)),
    "weight_decay": Param(log_uniform=(1e-5, 1e-2)),
}
