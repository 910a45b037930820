"""What the segmenters' papers say of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raybone.data.loader import Batch
from raybone.errors import WrongInput
from raybone.models import load
from raybone.models.segmenters.rar_unet import Cbam

THREE = {"nm": "otsu", "width": 4, "depth": 2}


def batch(mask: torch.Tensor) -> Batch:
    return Batch(torch.rand(len(mask), 1, *mask.shape[2:]), [], [], mask, torch.arange(len(mask)))


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("unet", 7.8),
        ("double_unet", 29.3),
        ("msma_unet", 42.6),
        ("unet_plus_plus", 9.1),
        ("attention_unet", 7.9),
        ("res_unet", 6.5),
        ("lesion_resnet50", 23.5),
        ("lesion_inception_v3", 21.8),
        ("lesion_vgg16", 134.3),
        ("lesion_densenet169", 12.5),
    ],
)
def test_the_menu_has_networks_of_these_sizes(name: str, millions: float) -> None:
    """The classifiers are torchvision's of 1,000 outputs less 999, with one input channel less."""
    model = load(name)
    with torch.device("meta"):
        net = model.build(model.Config())
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("cmunext-s", 417_361),
        ("cmunext", 3_148_897),
        ("cmunext-l", 8_286_145),
        ("amsunet", 2_619_289),
    ],
)
def test_small_networks_have_their_papers_parameters_to_the_last_one(
    name: str, parameters: int
) -> None:
    """Of the authors' networks with one channel in and one out, as counted from their code."""
    model = load(name)
    net = model.build(model.Config())
    assert sum(p.numel() for p in net.parameters()) == parameters
    with torch.no_grad():
        (found,) = net.eval()(torch.rand(1, 1, 64, 32))
    assert found.mask_CHW.shape == (1, 64, 32)


@pytest.mark.parametrize(
    "name",
    ["attention_unet", "res_unet", "lesion_inception_v3", "lesion_vgg16", "lesion_densenet169"],
)
def test_models_that_share_a_file_give_what_its_first_does(name: str) -> None:
    model = load(name)
    net = model.build(model.Config(**({"width": 4} if "unet" in name else {}))).eval()
    with torch.no_grad():
        (found,) = net(torch.rand(1, 1 if "unet" in name else 2, 64, 32))
    assert found.mask_CHW.shape == (1, 64, 32) if "unet" in name else found.scores_N.shape == (1,)


@pytest.mark.parametrize("name", ["unet", "double_unet"])
def test_the_background_of_three_classes_carries_no_cross_entropy_and_no_logit_of_its_own(
    name: str,
) -> None:
    """Pixels of air give no gradient to cross-entropy; there are outputs of metastasis and
    non-metastasis alone.
    """
    model = load(name)
    config = model.Config(nm="otsu", width=8, dice=0, cross_entropy=1)
    net = model.build(config).train()
    losses = net(batch(torch.zeros(2, 2, 32, 32, dtype=torch.uint8)))
    assert {k: float(v) for k, v in losses.items()} == {"cross_entropy_loss": 0.0}
    heads = [net.net.head] if name == "unet" else net.net.heads
    assert {h.out_channels for h in heads} == {2}
    with torch.no_grad():
        (found, _) = net.eval()(torch.rand(2, 1, 32, 32))
    assert found.mask_CHW.shape == (1, 32, 32)  # non-metastasis is not predicted


def test_three_classes_are_a_softmax_with_the_background_at_logit_0() -> None:
    model = load("unet")
    net = model.build(model.Config(**THREE, categories=("malignant", "benign"))).eval()
    image = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        logits, (found,) = net.net(image)[0].numpy(), net(image)
    every = np.exp(np.concatenate([np.zeros((1, 32, 32)), logits]))
    np.testing.assert_allclose(found.mask_CHW, (every / every.sum(0))[1:3], atol=1e-6)


def test_metastasis_in_air_costs_overlap_although_air_has_no_loss_of_its_own() -> None:
    model = load("unet")
    net = model.build(model.Config(**THREE, dice=1, cross_entropy=0)).train()
    net(batch(torch.zeros(1, 2, 32, 32, dtype=torch.uint8)))["dice_loss"].backward()
    assert float(net.net.head.weight.grad.abs().sum()) > 0


def test_who_reads_a_network_into_a_paper_says_so() -> None:
    own = ("rar_unet", "multi_inception_unet", "icunet_plus_plus", "hybrid_att_unet_plus_plus")
    for name in own:
        assert load(name).SOURCE.startswith("our reading of")


def test_cbam_weighs_channels_and_places_and_keeps_the_shape() -> None:
    """By hand: without weights all attention is a half, twice."""
    cbam, image = Cbam(8), torch.rand(2, 8, 12, 4)
    for parameter in cbam.parameters():
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(cbam(image), image / 4)
    torch.nn.init.constant_(cbam.channels[2].bias, 50.0)
    torch.testing.assert_close(cbam(image), image / 2)


def test_what_a_paper_says_and_we_do_otherwise_is_a_switch() -> None:
    """Off, the networks are those of before; on, each part is there and trained."""
    model, image = load("msma_unet"), torch.rand(1, 1, 32, 32)
    counts = {}
    for switch in ("", "multi_scale_bottom", "post_norm", "token_head"):
        net = model.build(model.Config(width=8, **({switch: True} if switch else {}))).train()
        counts[switch] = sum(p.numel() for p in net.parameters())
        torch.stack(
            list(net(batch(torch.ones(1, 1, 32, 32, dtype=torch.uint8))).values())
        ).sum().backward()
        assert [n for n, p in net.named_parameters() if p.grad is None] == []
        layers = net.net.bottom[0].layers.layers
        assert {layer.norm_first for layer in layers} == {switch != "post_norm"}
    assert counts["token_head"] == counts[""] + 64 * 64 + 64
    assert counts["multi_scale_bottom"] > counts[""] == counts["post_norm"]
    for pools in ((1,), (1, 2), (1, 2, 4)):  # Figure 14
        net = model.build(model.Config(width=8, pools=pools)).eval()
        with torch.no_grad():
            assert net(image)[0].mask_CHW.shape == (1, 32, 32)
    with pytest.raises(ValueError, match="pools must be positive"):
        model.Config(pools=(0,))


def test_the_pool_of_aspp_is_normalised_as_its_authors_do_and_takes_a_single_scan() -> None:
    model = load("double_unet")
    net = model.build(model.Config(width=8, pool_norm=True)).train()
    plain = model.build(model.Config(width=8))
    assert len(net.state_dict()) == len(plain.state_dict()) + 2 * 5  # both pyramids
    for count in (2, 1):
        losses = net(batch(torch.ones(count, 1, 64, 64, dtype=torch.uint8)))
        assert all(torch.isfinite(v) for v in losses.values())


@pytest.mark.parametrize("switch", ["multi_scale", "multi_pooling", "vit", "non_local"])
def test_each_part_of_the_multi_attention_unet_can_be_left_out(switch: str) -> None:
    model = load("msma_unet")
    with torch.device("meta"):
        whole, less = (
            sum(p.numel() for p in model.build(model.Config(**given)).parameters())
            for given in ({}, {switch: False})
        )
    assert less < whole


def test_the_multi_attention_unet_without_any_of_its_parts_is_a_unet() -> None:
    model = load("msma_unet")
    parts = dict.fromkeys(("multi_scale", "multi_pooling", "vit", "non_local"), False)
    net = model.build(model.Config(width=8, **parts)).eval()
    with torch.no_grad():
        (found,) = net(torch.rand(1, 1, 64, 32))
    assert found.mask_CHW.shape == (1, 64, 32)
    for kernels in ((2,), (1, 3, 5, 7, 9, 11, 13, 15)):
        with pytest.raises(ValueError, match="kernels must be odd and fewer than the width 8"):
            model.Config(width=8, kernels=kernels)


def test_every_weight_of_a_segmenter_is_trained() -> None:
    """One without a gradient would stop data-parallel training."""
    for name in (
        "unet",
        "double_unet",
        "msma_unet",
        "unet_plus_plus",
        "attention_unet",
        "res_unet",
        "cmunext-s",
        "amsunet",
        "resunet_a",
        "rar_unet",
        "multi_inception_unet",
        "icunet_plus_plus",
        "hybrid_att_unet_plus_plus",
    ):
        model = load(name)
        small = {"width": 8} if "width" in model.Config.model_fields else {}
        net = model.build(model.Config(**small)).train()
        mask = torch.zeros(2, 1, 64, 32, dtype=torch.uint8)
        mask[..., 4:9, 4:9] = 1
        torch.stack(list(net(batch(mask)).values())).sum().backward()
        assert [n for n, p in net.named_parameters() if p.grad is None] == []


def test_the_kernels_of_the_ablation_are_a_parameter() -> None:
    model = load("msma_unet")
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in model.build(model.Config(kernels=k)).parameters())
            for k in ((1, 3), (1, 3, 5), (1, 3, 5, 7))
        ]
    assert len(set(sizes)) == 3


def test_a_whole_scan_is_predicted_from_its_tiles() -> None:
    """A network whose output at a pixel depends on that pixel alone predicts the same by tiles as
    at once.
    """
    model = load("unet")
    net = model.build(model.Config(width=4, depth=2, tile=32)).eval()
    net.net = torch.nn.Conv2d(1, 1, 1)
    image = torch.rand(2, 1, 96, 40)
    with torch.no_grad():
        found, at_once = net(image), net.net(image).sigmoid().numpy()
    np.testing.assert_allclose(np.stack([f.mask_CHW for f in found]), at_once, atol=1e-6)


def test_no_loss_at_all_and_tiles_of_montages_are_refused() -> None:
    for wrong, rule in (
        ({"dice": 0, "cross_entropy": 0}, "are all 0"),
        ({"tile": 64, "montage": True}, "do not go"),
    ):
        with pytest.raises(ValueError, match=rule):
            load("unet").Config(**wrong)
    with pytest.raises(ValueError, match="each has its own class"):
        load("lesion_vgg16").Config(mosaic=0.5)
    with pytest.raises(WrongInput, match="must be a name of the menu"):
        load("lesion_vgg19")


def test_a_decoder_of_its_own_draws_what_is_no_lesion() -> None:
    """Channels are in the order of the categories, whatever decoder they come from."""
    model, image = load("hybrid_att_unet_plus_plus"), torch.rand(1, 1, 32, 32)
    net = model.build(model.Config(width=4, categories=("bone", "malignant", "benign"))).net.eval()
    lesions, others = net.decoders
    assert (lesions.head.out_channels, others.head.out_channels) == (2, 1)
    with torch.no_grad():
        before = net(image)
        others.head.bias += 1
        after = net(image)
    assert before.shape == (1, 3, 32, 32)
    torch.testing.assert_close(after[:, 0], before[:, 0] + 1)
    torch.testing.assert_close(after[:, 1:], before[:, 1:])
    assert len(model.build(model.Config(width=4)).net.decoders) == 1


def test_deep_supervision_trains_the_networks_inside_and_predicts_by_the_last() -> None:
    model, image = load("unet_plus_plus"), torch.rand(1, 1, 32, 32)
    deep = model.build(model.Config(width=4, deep_supervision=True)).train()
    plain = model.build(model.Config(width=4)).train()
    assert (len(deep.net(image)), len(plain.net(image))) == (4, 1)
    truth = batch(torch.ones(1, 1, 32, 32, dtype=torch.uint8))
    torch.stack(list(deep(truth).values())).sum().backward()
    assert [n for n, p in deep.named_parameters() if p.grad is None] == []
    deep.eval()
    with torch.no_grad():
        last = deep.net(image)[-1].sigmoid().numpy()
        np.testing.assert_allclose(deep(image)[0].mask_CHW, last[0], atol=1e-6)
