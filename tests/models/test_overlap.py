"""Losses against MONAI's."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceLoss, TverskyLoss

from raybone.models.segmenters._segmenter import dice_loss, focal_tversky_loss


@pytest.fixture
def masks() -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and a target of two categories, the second of which is nowhere."""
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(3, 2, 16, 12, generator=generator, dtype=torch.float64)
    target = (torch.rand(3, 2, 16, 12, generator=generator) < 0.1).double()
    target[:, 1] = 0
    return probability, target


def test_dice_is_monais_over_the_batch(masks: tuple[torch.Tensor, torch.Tensor]) -> None:
    theirs = DiceLoss(batch=True, smooth_nr=1, smooth_dr=1)(*masks)
    assert float(dice_loss(*masks)) == pytest.approx(float(theirs), abs=1e-12)


def test_focal_tversky_is_monais_tversky_to_the_power_of_gamma(
    masks: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """The mean is over categories of the powers, so that each category is compared alone."""
    for c in range(2):
        one = masks[0][:, c : c + 1], masks[1][:, c : c + 1]
        theirs = TverskyLoss(alpha=0.3, beta=0.7, batch=True, smooth_nr=1, smooth_dr=1)(*one)
        assert float(focal_tversky_loss(*one)) == pytest.approx(float(theirs) ** 0.75, abs=1e-12)


def test_misses_cost_more_than_false_positives() -> None:
    target = torch.zeros(1, 1, 10, 10)
    target[..., :4, :] = 1
    few, many = target.clone(), target.clone()
    few[..., 0, :] = 0
    many[..., 4, :] = 1
    assert (
        focal_tversky_loss(few, target)
        > focal_tversky_loss(many, target)
        > focal_tversky_loss(target, target)
    )


def test_a_perfect_prediction_has_a_finite_gradient() -> None:
    target = torch.ones(1, 1, 4, 4)
    probability = target.clone().requires_grad_()
    focal_tversky_loss(probability, target).backward()
    assert torch.isfinite(probability.grad).all()


def test_sums_of_losses_are_what_a_segmenter_trains_with() -> None:
    from raybone.data.loader import Batch
    from raybone.models import load

    model = load("unet")
    torch.manual_seed(0)
    net = model.build(
        model.Config(width=4, depth=2, dice=2.0, cross_entropy=0.5, focal_tversky=3.0)
    ).train()
    mask = (torch.rand(2, 1, 32, 32) < 0.1).to(torch.uint8)
    batch = Batch(torch.rand(2, 1, 32, 32), [], [], mask, torch.arange(2))
    losses = {name: float(v) for name, v in net(batch).items()}
    probability, target = net.net(batch.image_NCHW).sigmoid(), mask.float()
    assert losses == pytest.approx(
        {
            "dice_loss": 2
            * float(DiceLoss(batch=True, smooth_nr=1, smooth_dr=1)(probability, target)),
            "cross_entropy_loss": 0.5 * float(torch.nn.BCELoss()(probability, target)),
            "focal_tversky_loss": 3
            * float(
                TverskyLoss(alpha=0.3, beta=0.7, batch=True, smooth_nr=1, smooth_dr=1)(
                    probability, target
                )
            )
            ** 0.75,
        },
        rel=1e-5,
    )
