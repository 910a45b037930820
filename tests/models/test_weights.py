"""Starting from weights: whose files fit, what is said of those that do not, and that nothing in
them is run.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import densenet169, resnet50, vgg19, vgg19_bn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, retinanet_resnet50_fpn

from raybone.cli import main
from raybone.errors import WrongInput
from raybone.models import load
from raybone.models._weights import start_from
from raybone.models.detectors._ultralytics import export
from raybone.run.checks import resolve
from raybone.study.files import read_study


def test_an_imagenet_file_fills_the_backbone_and_its_colours_become_grey(tmp_path: Path) -> None:
    theirs = resnet50(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "resnet50.pth")
    module = load("faster_rcnn_r50").build(load("faster_rcnn_r50").Config(channels=16, head=16))
    head = module.net.roi_heads.box_predictor.cls_score.weight.clone()
    taken, _ = start_from(module, tmp_path / "resnet50.pth")
    body = module.net.backbone.body
    assert taken == len(theirs.state_dict()) - 2  # all but the classifier
    assert torch.equal(body.layer4[2].conv3.weight, theirs.layer4[2].conv3.weight)
    grey = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(
        body.conv1(grey), theirs.conv1(grey.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-4
    )
    assert torch.equal(module.net.roi_heads.box_predictor.cls_score.weight, head)


def test_a_classifier_gives_both_channels_half_of_what_colours_had(tmp_path: Path) -> None:
    """A scan and a mask that are alike then look as a grey picture does."""
    theirs = resnet50(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "resnet50.pth")
    module = load("lesion_resnet50").build(load("lesion_resnet50").Config())
    assert start_from(module, tmp_path / "resnet50.pth")[0] == len(theirs.state_dict()) - 2
    grey = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(
        module.net.conv1(grey.expand(-1, 2, -1, -1)),
        theirs.conv1(grey.expand(-1, 3, -1, -1)),
        atol=1e-5,
        rtol=1e-4,
    )


def test_a_densenet_is_read_under_the_names_of_its_published_file(tmp_path: Path) -> None:
    theirs = densenet169(weights=None)
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", k): v
        for k, v in theirs.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet169.pth")
    module = load("lesion_densenet169").build(load("lesion_densenet169").Config())
    assert start_from(module, tmp_path / "densenet169.pth")[0] == len(old) - 2


@pytest.mark.parametrize("norm", [True, False])
def test_a_double_unet_takes_its_first_encoder_from_vgg19(norm: bool, tmp_path: Path) -> None:
    theirs = (vgg19_bn if norm else vgg19)(weights=None, init_weights=False)
    theirs.classifier = nn.Sequential(nn.Linear(8, 8))  # 120 million numbers that are not taken
    torch.save(theirs.state_dict(), tmp_path / "vgg.pth")
    module = load("double_unet").build(load("double_unet").Config(norm=norm))
    assert start_from(module, tmp_path / "vgg.pth")[0] == len(theirs.features.state_dict())
    assert torch.equal(module.net.features[-2 - norm].weight, theirs.features[-3 - norm].weight)


def test_a_detector_of_torchvision_loads_whole_also_under_the_names_of_its_published_files(
    tmp_path: Path,
) -> None:
    """The files of 2019 name the pyramid and the proposals as torchvision did then."""
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    old = {
        re.sub(r"(fpn\.\w+_blocks\.\d|rpn\.head\.conv)(\.0)+\.", r"\1.", k): v
        for k, v in theirs.state_dict().items()
    }
    assert "rpn.head.conv.weight" in old
    torch.save(old, tmp_path / "coco.pth")
    module = load("faster_rcnn_r50").build(load("faster_rcnn_r50").Config())
    taken, there = start_from(module, tmp_path / "coco.pth")
    assert there - taken == 4  # the last layer, of other categories
    for part in ("backbone.fpn.inner_blocks.2.0", "rpn.head.conv.0.0", "roi_heads.box_head.fc7"):
        assert torch.equal(module.net.get_submodule(part).weight, theirs.get_submodule(part).weight)


@pytest.mark.parametrize("p2", [False, True])
def test_a_published_retinanet_fills_ours_but_for_its_last_layer_and_a_pyramid_that_begins_elsewhere(
    p2: bool, tmp_path: Path
) -> None:
    theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    names = {k: re.sub(r"(fpn\.\w+_blocks\.\d)\.0\.", r"\1.", k) for k in theirs.state_dict()}
    names = {
        k: re.sub(r"(_head\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", n)
        for k, n in names.items()
    }
    assert "head.regression_head.conv.6.weight" in names.values()
    torch.save({names[k]: v for k, v in theirs.state_dict().items()}, tmp_path / "coco.pth")
    module = load("retinanet_r50").build(load("retinanet_r50").Config(p2=p2))
    taken, there = start_from(module, tmp_path / "coco.pth")
    assert there - taken == (2 if not p2 else 9)
    for part in ("backbone.body.layer3.2.conv1", "head.regression_head.conv.3.0"):
        assert torch.equal(module.net.get_submodule(part).weight, theirs.get_submodule(part).weight)


@pytest.mark.parametrize("name", ["yolo11n", "yolo26n", "yolo26n-seg", "rtdetr-l"])
def test_a_file_of_ultralytics_and_one_of_raybone_give_the_same_network(
    name: str, tmp_path: Path
) -> None:
    model = load(name)
    torch.manual_seed(1)
    trained, first, second = (model.build(model.Config()) for _ in range(3))
    export(trained, tmp_path / "theirs.pt")
    torch.save({"average": trained.state_dict(), "epoch": 3}, tmp_path / "best.pt")
    assert start_from(first, tmp_path / "best.pt")[0] == len(trained.state_dict())
    assert start_from(second, tmp_path / "theirs.pt")[0] == len(trained.state_dict())
    for name, value in trained.state_dict().items():
        assert torch.equal(first.state_dict()[name], value)
        torch.testing.assert_close(second.state_dict()[name], value, atol=1e-3, rtol=1e-3)


def test_what_official_files_hold_beside_tensors_is_passed_over(tmp_path: Path) -> None:
    model = load("yolo11n")
    trained, ours = model.build(model.Config()), model.build(model.Config())
    export(trained, tmp_path / "theirs.pt")
    content = torch.load(tmp_path / "theirs.pt", weights_only=False)
    content |= {"best_fitness": np.float64(0.5), "date": datetime(2024, 9, 30), "path": Path("x")}
    content["model"].bound = content["model"].forward
    torch.save(content, tmp_path / "official.pt")
    assert start_from(ours, tmp_path / "official.pt")[0] == len(trained.state_dict())


def test_weights_of_other_categories_keep_all_but_the_last_layer(tmp_path: Path) -> None:
    model = load("yolo11n")
    torch.save(
        model.build(model.Config(categories=("a", "b", "c"))).state_dict(), tmp_path / "three.pth"
    )
    module = model.build(model.Config())
    taken, there = start_from(module, tmp_path / "three.pth")
    assert 0.9 * there < taken < there


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Conv2d(1, 7, 3).state_dict(), tmp_path / "conv.pth")
    with pytest.raises(
        WrongInput, match=r"conv.pth: must be of this architecture, but 0 of its 2 tensors fit"
    ):
        start_from(load("unet").build(load("unet").Config(width=4)), tmp_path / "conv.pth")


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


class Activation:
    """Ultralytics evaluates the activation of a network's description."""

    def __reduce__(self) -> Any:
        from ultralytics.nn.tasks import DetectionModel

        return (
            DetectionModel,
            ({"nc": 1, "backbone": [], "head": [], "activation": "open('ran', 'w')"}, 1),
        )


@pytest.mark.parametrize(
    "content", [Evil(), {"model": Evil()}, {"model": Activation()}, b"no torch file", {"epoch": 3}]
)
def test_a_file_with_code_or_without_tensors_is_one_line_and_nothing_runs(
    content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "x.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    module = load("yolo11n").build(load("yolo11n").Config())
    with pytest.raises(WrongInput, match=r"weights .*x.pt: must (be|hold)") as caught:
        start_from(module, file)
    assert len(caught.value.problems) == 1
    assert not (tmp_path / "ran").exists()


def test_a_known_name_is_never_downloaded_but_its_file_and_place_are_named(
    tmp_path: Path,
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RAYBONE_WEIGHTS", str(tmp_path / "weights"))
    job = Path(__file__).resolve().parents[2] / "jobs" / "bs80k_yolo11.yaml"
    given = [
        "search",
        str(job),
        "--out",
        str(tmp_path / "st"),
        "--local",
        "--set",
        f"dataset={dataset}",
        "search.folds=3",
        "resources={}",
        "fixed.weights=coco",
    ]
    assert main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "yolo11n.pt, which raybone does not download; get it from https://" in line
    assert line.endswith(f"place it in {tmp_path / 'weights'}")
    assert not (tmp_path / "st").exists()
    assert main([*given[:-1], "fixed.weights=nowhere.pt"]) == 2
    assert "must be a file, or one of coco, got 'nowhere.pt'" in capsys.readouterr().err
    (tmp_path / "weights").mkdir()
    export(load("yolo11n").build(load("yolo11n").Config()), tmp_path / "weights" / "yolo11n.pt")
    resolved, _ = resolve(
        read_study(job, [f"dataset={dataset}", "search.folds=3", "fixed.weights=coco"])
    )
    assert resolved.fixed["weights"] == str(
        tmp_path / "weights" / "yolo11n.pt"
    )  # workers may stand elsewhere
    assert resolved.resolved.warnings[-1].startswith(
        "started from 499 of 499 tensors of yolo11n.pt; whether it has"
    )
    assert resolve(resolved)[0].fixed == resolved.fixed
