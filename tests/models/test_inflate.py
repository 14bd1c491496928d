"""torchvision's own 2D networks, with the weights they are drawn with, as the start of ours."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import torchvision

import models
from datakit.errors import CheckpointError
from models.checkpoints import imagenet


def file_of(path: Path, arch: str) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(0)
    net = getattr(torchvision.models, arch)(weights=None, num_classes=7).eval()
    for module in net.modules():  # a freshly drawn batch norm does nothing
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(net.state_dict(), path)
    return path, net


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    return file_of(tmp_path_factory.mktemp("imagenet") / "resnet50-0123abcd.pth", "resnet50")


def maps_of(net: torch.nn.Module, x_NCHW: torch.Tensor) -> torch.Tensor:
    """The last map of torchvision's ResNet."""
    x = net.maxpool(net.relu(net.bn1(net.conv1(x_NCHW))))
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = layer(x)
    return x


def test_a_still_clip_looks_as_its_picture_does(resnet50: tuple[Path, torch.nn.Module]) -> None:
    """In the middle frame, where no kernel sees beyond the clip's ends: three stages of 3 frames reach 9 frames."""
    path, flat = resnet50
    net = models.create("slowonly_r50_8x8", num_classes=5, imagenet=path).eval()
    picture = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        ours = net.body.features(picture.unsqueeze(2).expand(-1, -1, 21, -1, -1))[:, :, 10]
        theirs = maps_of(flat, picture)
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", ["tsn_r50_1x1x3", "tsm_r50_1x1x8", "c2d_r50_8x8"])
def test_frames_are_copied(name: str, resnet50: tuple[Path, torch.nn.Module]) -> None:
    path, flat = resnet50
    net = models.create(name, num_classes=5, imagenet=path)
    own = net.body.state_dict()
    assert torch.equal(own["stem.conv.weight"].squeeze(2), flat.conv1.weight)
    assert torch.equal(own["res5.2.conv3.bn.running_var"], flat.layer4[2].bn3.running_var)
    assert own["head.weight"].shape == (5, 2048)


def test_what_stays_new_is_told(resnet50: tuple[Path, torch.nn.Module], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    body = models.create("i3d_r50_nl_dot_product_32x2", num_classes=5).body
    before = body.state_dict()["non_local.res3_1.theta.weight"].clone()
    new = imagenet.inflate(body, resnet50[0])
    assert {key.split(".")[0] for key in new} == {"non_local", "head"}
    assert torch.equal(body.state_dict()["non_local.res3_1.theta.weight"], before)
    assert "new are non_local, head" in caplog.text
    stem = body.state_dict()["stem.conv.weight"]
    assert torch.allclose(stem.sum(dim=2), resnet50[1].conv1.weight, atol=1e-6)  # 5 frames, each a fifth
    models.create("tpn_slowonly_r50_8x8", num_classes=5, imagenet=resnet50[0])
    assert "temporal_modulation" in caplog.text


def test_flow_gets_the_mean_of_the_colours(resnet50: tuple[Path, torch.nn.Module]) -> None:
    path, flat = resnet50
    for name, channels in (("slowonly_r50_flow_4x16", 2), ("tsn_r50_flow_5x1x3", 10)):
        stem = models.create(name, num_classes=5, imagenet=path).body.state_dict()["stem.conv.weight"]
        assert stem.shape[1] == channels
        assert torch.allclose(stem[:, 1, 0], flat.conv1.weight.mean(dim=1))


def test_mobilenet(tmp_path: Path) -> None:
    path, flat = file_of(tmp_path / "mobilenet_v2-0123abcd.pth", "mobilenet_v2")
    net = models.create("tsm_mobilenetv2_1x1x8", num_classes=5, imagenet=path).eval()
    for module in net.modules():  # without its shift, TSM is the 2D network on every frame
        if hasattr(module, "shift_div"):
            module.shift_div = None
    picture = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        x = net.body.act(net.body.stem(picture.unsqueeze(2)))
        for number in range(2, 9):
            x = net.body.get_submodule(f"res{number}")(x)
        ours = net.body.act(net.body.conv2(x))[:, :, 0]
        theirs = flat.features(picture)
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_other_files_are_refused(resnet50: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"resnet50-0123abcd\.pth: .*SlowFast has no 2D network"):
        models.create("slowfast_r50_4x16", num_classes=5, imagenet=resnet50[0])
    with pytest.raises(CheckpointError, match=r"not the 2D network of this one: it has no res4\.6"):
        models.create("slowonly_r101_8x8", num_classes=5, imagenet=resnet50[0])
    with pytest.raises(CheckpointError, match="not the 2D network of this one"):
        models.create("tsn_r18_1x1x8", num_classes=5, imagenet=resnet50[0])
    with pytest.raises(CheckpointError, match="no such file"):
        models.create("tsn_r50_1x1x8", num_classes=5, imagenet=tmp_path / "nothing.pth")
