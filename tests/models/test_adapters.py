"""Networks of other libraries: what they say is what their libraries say, whatever the image."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import yaml
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torchvision.ops import batched_nms, clip_boxes_to_image

from raybone.cli import main
from raybone.data.loader import Batch
from raybone.deploy.onnx import export_onnx
from raybone.errors import WrongInput
from raybone.models import MENU, load, task_of
from raybone.models._check import batch_of
from raybone.models._weights import start_from
from raybone.models.segmenters._segmenter import dice_loss
from raybone.run.reference import schema
from raybone.study.files import parse_study
from raybone.study.spec import packages_of
from raybone.train.timing import milliseconds

DECODERS = [name.removeprefix("smp/") for name in MENU if name.startswith("smp/")]
SMALL = {"encoder": "resnet18"}
NNUNET = {"width": 4, "depth": 3}


def built(name: str, **config: Any) -> nn.Module:
    """A network with fixed weights."""
    torch.manual_seed(0)
    return load(name).build(load(name).Config(**config))


def plain(module: nn.Module) -> dict[str, torch.Tensor]:
    """Its weights under the names of the library."""
    return {
        name.split("net.net.")[-1].removeprefix("net."): value
        for name, value in module.state_dict().items()
    }


def masks(count: int, height: int, width: int) -> torch.Tensor:
    """A lesion in each of some masks, at another place."""
    mask_NCHW = torch.zeros(count, 1, height, width, dtype=torch.uint8)
    for n in range(count):
        mask_NCHW[n, 0, 5 + 9 * n : 21 + 9 * n, 3 : 12 + n] = 1
    return mask_NCHW


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any look at another machine is an error."""

    def refuse(*words: Any, **_: Any) -> None:
        raise AssertionError(f"asked for {words[:2]}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(
    ("name", "config"), [("smp/Unet", SMALL), ("nnunet", NNUNET), ("timm/resnet10t", {})]
)
def test_a_network_that_tries_itself_when_it_is_built_can_be_timed(
    name: str, config: dict[str, Any]
) -> None:
    """smp's tries a backward pass, which is refused where gradients are turned off."""
    model = load(name)
    assert milliseconds(model, model.Config(imgsz=64, **config), (64, 64)) > 0


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_decoder_of_smp_gives_its_own_logits_on_any_image_and_trains_all_its_weights(
    decoder: str,
) -> None:
    own = {} if decoder == "DPT" else SMALL
    module = built(f"smp/{decoder}", categories=("a", "b"), **own)
    encoder = module.config.encoder
    options = {"dynamic_img_size": True} if decoder == "DPT" else {}
    theirs = getattr(smp, decoder)(
        encoder, encoder_weights=None, in_channels=1, classes=2, **options
    )
    theirs.load_state_dict(plain(module))
    image_NCHW = torch.rand(2, 1, 128, 128)
    with torch.no_grad():
        logits_NCHW = theirs.eval()(image_NCHW)
        assert torch.equal(module.eval().net(image_NCHW), logits_NCHW)
        for height, width in ((256, 64), (32, 32), (100, 52)):
            (found,) = module(torch.rand(1, 1, height, width))
            assert found.mask_CHW.shape == (2, height, width)
            assert found.mask_CHW.mean() < 0.3  # lesions are rare
    # One image alone, as the last batch of an epoch may be.
    batch = Batch(image_NCHW[:1], [], [], masks(1, 128, 128).expand(-1, 2, -1, -1), torch.arange(1))
    torch.stack(list(module.train()(batch).values())).sum().backward()
    idle = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


def test_our_dice_loss_is_that_of_smp_where_every_category_has_lesions() -> None:
    """smp's constant is half of ours, and a category without lesions costs nothing there."""
    torch.manual_seed(0)
    logits_NCHW, target_NCHW = torch.randn(3, 2, 32, 16), (torch.rand(3, 2, 32, 16) < 0.1).float()
    for smooth in (0.0, 1.0):
        ours = dice_loss(logits_NCHW.sigmoid(), target_NCHW, smooth)
        theirs = smp.losses.DiceLoss("multilabel", smooth=smooth / 2)(logits_NCHW, target_NCHW)
        assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    target_NCHW[:, 1] = 0
    theirs = smp.losses.DiceLoss("multilabel", smooth=0.5)(logits_NCHW, target_NCHW)
    first = dice_loss(logits_NCHW[:, :1].sigmoid(), target_NCHW[:, :1])
    assert float(theirs) == pytest.approx(float(first) / 2, rel=1e-5)
    assert dice_loss(logits_NCHW.sigmoid(), target_NCHW) > theirs


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("resnet18", {}),
        ("mobilenetv3_small_050", {}),
        ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
        ("swin_tiny_patch4_window7_224", {"strict_img_size": False}),
    ],
)
def test_a_network_of_timm_gives_its_own_logits_on_any_image(
    network: str, options: dict[str, Any]
) -> None:
    module = built(f"timm/{network}")
    theirs = timm.create_model(network, in_chans=2, num_classes=1, **options)
    theirs.load_state_dict(plain(module))
    image_NCHW = torch.rand(2, 2, 128, 96)
    with torch.no_grad():
        torch.testing.assert_close(module.eval().net(image_NCHW), theirs.eval()(image_NCHW))
        (found,) = module(torch.rand(1, 2, 32, 20))
    assert found.scores_N.shape == (1,)
    batch = batch_of(1, 64, 32, stacked=True)
    module.train()(batch)["cross_entropy_loss"].backward()
    idle = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


def nnunet_of_its_library(levels: int) -> ResidualEncoderUNet:
    """As nnU-Net builds it from a plan of so many levels, with 4 channels at the first."""
    return ResidualEncoderUNet(
        input_channels=1,
        n_stages=levels,
        features_per_stage=[4 * 2**level for level in range(levels)],
        conv_op=nn.Conv2d,
        kernel_sizes=[[3, 3]] * levels,
        strides=[[1, 1], *[[2, 2]] * (levels - 1)],
        n_blocks_per_stage=[1, 3, 4, 6, 6, 6][:levels],
        num_classes=1,
        n_conv_per_stage_decoder=[1] * (levels - 1),
        conv_bias=True,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )


def test_the_loss_of_nnunet_is_its_own_networks_under_nnunets_weights() -> None:
    """DeepSupervisionWrapper of nnU-Net 2, with weights as nnUNetTrainer makes them."""
    module = built("nnunet", **NNUNET).train()
    theirs = nnunet_of_its_library(4)
    said = theirs.load_state_dict(plain(module), strict=False)
    lowest = {"decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"}
    others = [n for n in said.missing_keys if n not in lowest]
    # These are the same tensors under another name.
    assert all(".conv." in n or ".norm." in n or "decoder.encoder" in n for n in others)
    assert said.unexpected_keys == []
    image_NCHW, mask_NCHW = torch.rand(2, 1, 64, 32), masks(2, 64, 32)
    outputs = theirs.train()(image_NCHW)
    assert [tuple(o.shape[2:]) for o in outputs] == [(64, 32), (32, 16), (16, 8)]
    weights = np.array([1 / (2**i) for i in range(len(outputs))])
    weights[-1] = 0
    weights = weights / weights.sum()
    expected = {"dice_loss": 0.0, "cross_entropy_loss": 0.0}
    for weight, logits_NCHW in zip(weights, outputs):
        near_NCHW = functional.interpolate(
            mask_NCHW.float(), logits_NCHW.shape[2:], mode="nearest-exact"
        )
        dice = dice_loss(logits_NCHW.sigmoid(), near_NCHW)
        entropy = functional.binary_cross_entropy_with_logits(logits_NCHW, near_NCHW)
        expected["dice_loss"] += float(weight * 0.5 * dice)
        expected["cross_entropy_loss"] += float(weight * 0.5 * entropy)
    batch = Batch(image_NCHW, [], [], mask_NCHW, torch.arange(2))
    losses = module(batch)
    assert {k: float(v) for k, v in losses.items()} == pytest.approx(expected, rel=1e-5)
    torch.stack(list(losses.values())).sum().backward()
    assert [n for n, p in module.named_parameters() if p.grad is None] == []
    theirs.decoder.deep_supervision = False
    with torch.no_grad():
        torch.testing.assert_close(module.eval().net(image_NCHW), theirs(image_NCHW))
        value = module.train()(batch)["dice_loss"]
        whole = dice_loss(theirs(image_NCHW).sigmoid(), mask_NCHW.float())
    assert float(value) == pytest.approx(0.5 * float(whole), rel=1e-5)  # val_loss


def test_every_weight_of_nnunet_has_one_name_and_borders_are_background() -> None:
    """The average of the weights goes through all names, and would count a weight as often."""
    module = built("nnunet", **NNUNET)
    values = list(module.state_dict().values())
    assert len({v.data_ptr() for v in values}) == len(values)
    image_NCHW, mask_NCHW = torch.rand(1, 1, 44, 20), masks(1, 44, 20)
    border = (0, 4, 0, 4)
    batches = (
        Batch(image_NCHW, [], [], mask_NCHW, torch.arange(1)),
        Batch(
            functional.pad(image_NCHW, border),
            [],
            [],
            functional.pad(mask_NCHW, border),
            torch.arange(1),
        ),
    )
    with torch.no_grad():
        (found,) = module.eval()(image_NCHW)
    assert found.mask_CHW.shape == (1, 44, 20)
    first, second = ({k: float(v) for k, v in module.train()(b).items()} for b in batches)
    assert first == pytest.approx(second, rel=1e-6)


@pytest.mark.parametrize(
    ("config", "levels"),
    [({"imgsz": 32}, 3), ({"imgsz": 256}, 6), ({}, 8), ({"tile": 128}, 5), ({"depth": 1}, 2)],
)
def test_nnunet_is_as_deep_as_the_image_is_long(config: dict[str, int], levels: int) -> None:
    module = built("nnunet", width=4, **config)
    assert len(module.net.net.encoder.stages) == levels
    with torch.no_grad():
        (found,) = module.eval()(torch.rand(1, 1, 32, 32))
    assert found.mask_CHW.shape == (1, 32, 32)


def smp_unet() -> nn.Module:
    """smp's own, for three colours."""
    return smp.Unet("resnet18", encoder_weights=None)


def timm_resnet18() -> nn.Module:
    """timm's own, for three colours and 1,000 classes."""
    return timm.create_model("resnet18")


@pytest.mark.parametrize(
    ("name", "config", "theirs", "form"),
    [
        ("smp/Unet", SMALL, smp_unet, ".pth"),
        ("smp/Unet", SMALL, smp_unet, ".safetensors"),
        ("timm/resnet18", {}, timm_resnet18, ".pth"),
        ("timm/resnet18", {}, timm_resnet18, ".safetensors"),
        ("nnunet", NNUNET, lambda: nnunet_of_its_library(4), ".pth"),
    ],
)
def test_a_file_of_the_library_fits_by_its_names(
    name: str, config: dict[str, Any], theirs: Any, form: str, tmp_path: Path
) -> None:
    module, tensors, file = built(name, **config), theirs().state_dict(), tmp_path / f"a{form}"
    if form == ".safetensors":
        save_file(tensors, file)
    else:  # nnU-Net's checkpoints hold more than weights
        torch.save({"network_weights": tensors} if name == "nnunet" else tensors, file)
    taken, own = start_from(module, file)
    assert own - taken <= 2  # the head of other categories, or none
    changed = [
        n for n, v in plain(module).items() if not torch.equal(v, tensors.get(n, torch.empty(0)))
    ]
    assert len(changed) <= 3, changed  # and the first convolution, whose colours are summed
    assert not torch.equal(next(built(name, **config).parameters()), next(module.parameters()))


def test_unknown_encoders_decoders_and_networks_are_one_line_with_near_names(
    study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(**changes: Any) -> str:
        (tmp_path / "s.yaml").write_text(yaml.safe_dump({**study, **changes}))
        assert main(["preview", str(tmp_path / "s.yaml")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    fixed = {"imgsz": 64}
    line = said(model="smp/Unet", fixed={**fixed, "encoder": "resnet43"})
    assert "got 'resnet43'; did you mean resnet34" in line
    line = said(
        model="smp/Unet",
        fixed=fixed,
        space={"encoder": {"choice": ["resnet18", "efficientnet_b0"]}},
    )
    assert "space.encoder: must be an encoder of segmentation_models_pytorch" in line
    assert "efficientnet-b0" in line
    line = said(model="smp/Linknet", fixed={**fixed, "encoder": "mit_b0"}, space={})
    assert "encoder mit_b0 does not go with smp/Linknet: " in line
    assert "did you mean smp/Unet" in said(model="smp/UNet")
    line = said(model="timm/resnet_18", metric="AUC", fixed=fixed)
    assert "a name of timm.list_models(), got 'timm/resnet_18'; did you mean timm/resnet18" in line
    with pytest.raises(WrongInput, match=r"must be timm/ and a name of timm.list_models"):
        load("timm/hf-hub:someone/model")
    assert main(["models", "timm/mixer_s32_224"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "model: timm/mixer_s32_224 does not take 2 channels of any size: Input height" in line
    line = said(model="timm/mixer_s32_224", metric="AUC", fixed=fixed, space={})
    assert "does not take 2 channels of any size" in line


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("smp/Unet", "segmentation-models-pytorch"),
        ("timm/convnext_tiny", "timm"),
        ("nnunet", "dynamic-network-architectures"),
    ],
)
def test_a_library_that_is_not_installed_is_one_line_and_nodes_are_told_of_it(
    name: str,
    package: str,
    study: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    metric = "AUC" if name.startswith("timm") else "dice"
    whole = {**study, "model": name, "metric": metric, "fixed": {}, "space": {}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(whole))
    assert packages_of(parse_study(whole)) == [package]
    words = ["--address", "http://head:8265", "--out", "/runs/s", "--dry-run"]
    assert main(["submit", str(tmp_path / "s.yaml"), *words]) == 0
    assert json.loads(capsys.readouterr().out)["packages"] == [package]
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    assert main(["models", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{name} needs {package}, which is not installed; pip install 'raybone[models]'" in line
    assert main(["schema"]) == 0
    assert name.split("/")[0] in capsys.readouterr().out


def test_names_are_known_without_an_import_of_their_libraries() -> None:
    """Nor do shells wait for them, which ask for the parser alone."""
    code = (
        "import sys; from raybone.cli import parser; from raybone.models import MENU, menu, task_of;"
        "parser(), menu(), [task_of(n) for n in (*MENU, 'timm/convnext_tiny')];"
        "print({'timm', 'torch', 'segmentation_models_pytorch'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
    assert task_of("timm/convnext_tiny") == "classification"


def test_any_network_of_timm_is_described_and_in_the_schema(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models", "timm/regnetx_002", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["task"]) == ("timm/regnetx_002", "classification")
    theirs = timm.create_model("regnetx_002", in_chans=2, num_classes=1)
    assert found["parameters"] == sum(p.numel() for p in theirs.parameters())
    assert main(["models", "smp/Unet"]) == 0
    printed = capsys.readouterr().out
    assert "\nencoder " in printed
    assert '  encoder: {"choice": ["resnet34", "efficientnet-b0"]}' in printed
    import jsonschema

    check = jsonschema.Draft202012Validator(json.loads(json.dumps(schema())))
    named = {"dataset": "d", "model": "timm/convnext_tiny"}
    assert check.is_valid(named)
    assert check.is_valid({**named, "fixed": {"target": "abnormal"}})
    assert not check.is_valid({**named, "fixed": {"encoder": "resnet18"}})
    assert check.is_valid({"dataset": "d", "models": ["timm/convnext_tiny", "timm/resnet18"]})
    block = {"timm/convnext_tiny": {"fixed": {"target": "abnormal"}}}
    assert check.is_valid({"dataset": "d", "models": block})
    assert not check.is_valid({"dataset": "d", "models": {"convnext_tiny": None}})


def test_a_study_of_an_smp_network_goes_from_search_to_prediction(
    dataset: Path, cohort: Path, tmp_path: Path
) -> None:
    content = {
        "dataset": str(dataset),
        "model": "smp/Unet",
        "epochs": 1,
        "fixed": {"imgsz": 32, "batch": 4, "nbs": 4, "fliplr": 0.5},
        "space": {"encoder": {"choice": ["resnet18"]}},
        "search": {"trials": 1, "sampler": "grid", "scheduler": "full"},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    assert main(["search", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "st"), "--local"]) == 0
    assert "resnet18" in (tmp_path / "st/leaderboard.csv").read_text()
    words = [str(tmp_path / "st"), "--out", str(tmp_path / "bundle")]
    assert main(["refit", *words]) == 0
    words = [str(tmp_path / "bundle"), str(cohort), "--out", str(tmp_path / "found")]
    assert main(["predict", *words]) == 0
    assert any((tmp_path / "found").iterdir())


@pytest.mark.parametrize(
    ("name", "config", "channels"),
    [("smp/Unet", SMALL, 1), ("nnunet", {"width": 4, "depth": 2}, 1), ("timm/resnet18", {}, 2)],
)
def test_an_exported_network_says_what_torch_says(
    name: str, config: dict[str, Any], channels: int, tmp_path: Path
) -> None:
    module, file = built(name, **config), tmp_path / "net.onnx"
    assert export_onnx(module, load(name), (64, 32), file) < 1e-5
    image_NCHW = torch.rand(3, channels, 64, 32)
    (found,) = onnxruntime.InferenceSession(file).run(None, {"image_NCHW": image_NCHW.numpy()})
    assert len(found) == 3


@pytest.mark.parametrize(("name", "config"), [("fcos_r18", {}), ("retinanet_r18", {"anchor": 0.1})])
def test_the_boxes_of_an_exported_detector_are_merged_to_what_torch_finds(
    name: str, config: dict[str, Any], tmp_path: Path
) -> None:
    """As docs/models.md says it: cut at the sides, merged by category, the best kept."""
    names = ["malignant", "benign"]
    net = built(name, channels=32, imgsz=72, conf=0, iou=0.5, categories=names, **config).eval()
    nn.init.normal_(net.net.head.classification_head.cls_logits.weight, std=3)  # else scores tie
    assert export_onnx(net, load(name), (72, 40), tmp_path / "net.onnx") < 1e-3
    image_NCHW = torch.rand(1, 1, 72, 40)  # no multiple of 32
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (output,) = session.run(None, {"image_NCHW": image_NCHW.numpy()})
    boxes_A4, scores_AC = torch.from_numpy(output[0].T.copy()).split([4, len(names)], dim=1)
    boxes_D4 = clip_boxes_to_image(boxes_A4, (72, 40)).repeat_interleave(len(names), 0)
    label_D = torch.arange(len(names)).repeat(len(boxes_A4))
    kept = batched_nms(boxes_D4, scores_AC.flatten(), label_D, 0.5)[:100]
    (expected,) = net(image_NCHW)
    assert len(expected.scores_N) == len(kept) > 10
    np.testing.assert_allclose(scores_AC.flatten()[kept], expected.scores_N, atol=1e-4)
    apart_NN = np.abs(boxes_D4[kept].numpy() - expected.boxes_N4[:, None]).max(2)
    other_NN = label_D[kept].numpy() != expected.labels_N[:, None]
    nearest_N = np.where(other_NN, np.inf, apart_NN).min(1)
    assert (nearest_N < 0.01).mean() >= 0.97  # of boxes whose scores tie, either may be kept
