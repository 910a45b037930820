"""The contract of a model: what a file of this folder must offer.

``build(config)`` gives an ``nn.Module`` whose forward does everything, so that DDP sees every call:
in train mode ``module(batch)`` returns a dict of scalar losses; in eval mode ``module(image_NCHW)``
returns a Prediction an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from raybone.data.augment import Augmentation
from raybone.study.param import Param

# Hyper-parameters that may name an earlier study, and the values of each that name none.
EARLIER: dict[str, tuple[str, ...]] = {"init_from": ("",), "nm": ("", "otsu")}


def names_study(key: str, value: object) -> bool:
    """Whether this value of a hyper-parameter is the folder of an earlier study."""
    return key in EARLIER and isinstance(value, str) and value not in EARLIER[key]


def portable(params: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters without places of the machine that they were trained on."""
    there = {"weights": "", "init_from": "", "nm": "mined"}
    return {k: there[k] if k == "weights" or names_study(k, v) else v for k, v in params.items()}


class TrainingConfig(Augmentation):
    """Hyper-parameters that every model has; Ultralytics' names and meanings where it has them."""

    categories: tuple[str, ...] = Field(
        ("malignant",), min_length=1, description="lesion categories to find"
    )
    imgsz: int = Field(
        1024, ge=32, le=4096, description="pixels of the long side; the scan keeps its aspect ratio"
    )
    batch: int = Field(
        16,
        ge=1,
        le=1024,
        description="images a step, over all workers; auto for nbs, in as many parts as memory "
        "asks for",
    )
    nbs: int = Field(
        16, ge=1, description="nominal batch: gradients are summed up to this many images a step"
    )
    optimizer: Literal["SGD", "AdamW"] = Field(
        "AdamW", description="AdamW without weight_decay is Adam; SGD has Nesterov's momentum"
    )
    lr0: float = Field(1e-3, gt=0, le=10, description="peak learning rate")
    lrf: float = Field(0.01, gt=0, le=1, description="last learning rate as a share of lr0")
    schedule: Literal["linear", "cosine", "multistep"] = Field(
        "linear",
        description="how the learning rate falls from lr0 to lrf * lr0; multistep drops it at the "
        "milestones",
    )
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.66, 0.91),
        description="shares of the epochs after which multistep multiplies the learning rate by "
        "lr_drop",
    )
    lr_drop: float = Field(0.1, gt=0, le=1, description="factor at each milestone of multistep")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum or Adam beta1")
    weight_decay: float = Field(
        5e-4, ge=0, le=1, description="of weights; biases and norms have none"
    )
    warmup_epochs: float = Field(
        1.0, ge=0, description="epochs in which the learning rate rises to its peak"
    )
    warmup_momentum: float = Field(
        0.8, ge=0, lt=1, description="SGD momentum when the warm-up begins"
    )
    warmup_bias_lr: float = Field(
        0.0, ge=0, le=10, description="learning rate of biases when the warm-up begins"
    )
    clip: float = Field(10.0, ge=0, description="largest norm of the gradient; 0 for any")
    ema: float = Field(
        0.9999,
        ge=0,
        lt=1,
        description="decay a step of the average of the weights, which is "
        "what is scored; 0 for the weights themselves",
    )
    ema_tau: float = Field(2000, gt=0, description="steps over which that decay is reached")
    amp: bool = Field(True, description="bfloat16 autocast on a GPU")
    channels_last: bool = Field(False, description="keep channels innermost in memory")
    weights: str = Field(
        "", description="where to start from: a file of weights, or a name that the model knows"
    )
    init_from: str = Field(
        "",
        description="another study: each fold starts from the winner's fold model; refused "
        "where a validation patient may have trained it",
    )
    negatives: bool = Field(
        True,
        description="train as well on the patients that are in no fold's validation part "
        "(`prepare --negatives training`)",
    )
    unlabelled: float = Field(
        0.0,
        ge=0,
        le=1,
        description="weight of the loss on training patients' scans without annotation: what the "
        "average of the weights is sure of is their truth (mean teacher); 0 leaves them out",
    )
    loader_workers: int = Field(0, ge=0, le=64, description="loader processes of each worker")

    @field_validator("categories")
    @classmethod
    def _distinct(cls, categories: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(categories)) < len(categories):
            twice = next(c for c in categories if categories.count(c) > 1)
            raise ValueError(f"{twice} is there twice; leave one out")
        return categories

    @model_validator(mode="before")
    @classmethod
    def _automatic(cls, content: Any) -> Any:
        """``batch: auto`` is the nominal batch; ``fit`` halves it where it does not fit."""
        if not isinstance(content, dict) or content.get("batch") != "auto":
            return content
        return {**content, "batch": content.get("nbs", cls.model_fields["nbs"].default)}

    @property
    def mined_from(self) -> str:
        """Folder of the earlier configuration whose findings masks are made of; empty for none."""
        return ""

    @property
    def masked(self) -> bool:
        """Whether a detector learns from the lesions' masks too."""
        return False

    @property
    def otsu(self) -> bool:
        """Whether Otsu's threshold says what is non-metastasis."""
        return False


def in_full_precision(*modules: nn.Module) -> None:
    """Let these modules give float32 under autocast: in bfloat16 pixels beyond 512 are 4 apart, and
    boxes collapse.
    """
    for module in modules:
        module.register_forward_hook(_full)


def _full(_: nn.Module, __: Any, output: Any) -> Any:
    return tree_map(
        lambda v: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v, output
    )


@dataclass(frozen=True)
class Graph:
    """What an ONNX file computes of image_NCHW; any_batch: for every N, not for 1 alone."""

    forward: Callable[[Any, Tensor], Tensor]
    channels: int = 1
    any_batch: bool = True


@dataclass(frozen=True)
class Model:
    """One entry of the menu.

    also: tasks beside ``task`` that it can be trained for, as ``raybone.tasks.ranked_by`` chooses.
    reduction: whether the losses are means over the batch (torchvision) or sums over it
    (Ultralytics). SPACE: a sensible search space; SOURCE: where the architecture comes from.
    weights: published weights by the name that `weights:` may give, with the address of their file.
    graph: None where ONNX does not hold what the network gives. native: a suffix, and what
    writes a trained network as a file of its own library.
    """

    name: str
    task: str
    Config: type[TrainingConfig]
    build: Callable[[TrainingConfig], nn.Module]
    SPACE: dict[str, Param]
    SOURCE: str
    reduction: Literal["mean", "sum"] = "mean"
    weights: Mapping[str, str] = field(default_factory=dict)
    graph: Graph | None = None
    native: tuple[str, Callable[[Any, Path], None]] | None = None
    also: tuple[str, ...] = ()

    def row(self) -> tuple[str, str, int, str]:
        """Name, task, trained parameters with the default configuration, and source, as the menu
        has them; the network is built for that.

        Raises:
            InvalidConfig: the model does not take its default configuration.
        """
        weights = self.build(self.Config()).parameters()
        trained = sum(weight.numel() for weight in weights if weight.requires_grad)
        return self.name, self.task, trained, self.SOURCE
