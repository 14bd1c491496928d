"""Starting from other weights, freezing, and the rates of groups."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import models
from datakit.errors import CheckpointError, UsageError
from models import checkpoints, zoo
from models.training import finetune, loop, recipe
from tests.models.train_worker import HOW, MemoryClips, small


def test_weights_come_over_and_the_head_is_new(tmp_path: Path) -> None:
    torch.manual_seed(0)
    checkpoints.save(tmp_path / "ckpt.pth", small(num_classes=5))
    torch.manual_seed(1)
    net = small(num_classes=3)
    head = net.body.head.weight.clone()
    finetune.start_from(net, tmp_path / "ckpt.pth")
    other = models.load(tmp_path / "ckpt.pth").body.state_dict()
    for key, value in net.body.state_dict().items():
        if not key.startswith("head") and not key.endswith("tracked"):
            assert torch.equal(value, other[key]), key
    assert torch.equal(net.body.head.weight, head)


def test_the_stem_for_flow_is_the_mean_over_the_colours(tmp_path: Path) -> None:
    rgb, flow = small(), small("slowonly_tiny_flow", train_crop_px=16)
    checkpoints.save(tmp_path / "rgb.pth", rgb)
    finetune.start_from(flow, tmp_path / "rgb.pth")
    mean = rgb.body.stem.conv.weight.mean(dim=1)
    assert flow.body.stem.conv.weight.shape[1] == 2
    assert all(torch.allclose(flow.body.stem.conv.weight[:, channel], mean) for channel in (0, 1))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "wide.pth", small(base_channels=8))
    with pytest.raises(CheckpointError, match=r"stem.conv.weight is \(8, .*not \(4, .*another network"):
        finetune.start_from(small(), tmp_path / "wide.pth")
    checkpoints.save(tmp_path / "tsm.pth", small("slowfast_tiny", base_channels=16))
    with pytest.raises(CheckpointError, match="another network"):
        finetune.start_from(small(), tmp_path / "tsm.pth")


def test_pictures_networks_are_inflated(tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(0)
    flat = torchvision.models.resnet18(weights=None)
    torch.save(flat.state_dict(), tmp_path / "resnet18.pth")
    net = zoo.create("tsn_r18_1x1x8", num_classes=2)
    finetune.start_from(net, tmp_path / "resnet18.pth")
    assert torch.equal(net.body.res3[0].conv1.conv.weight[:, :, 0], flat.layer2[0].conv1.weight)


@pytest.mark.parametrize(
    ("stages", "moving"),
    [(None, {"stem", "res2", "res3", "res4", "res5", "head"}), (0, {"res2", "res3", "res4", "res5", "head"}),
     (2, {"res4", "res5", "head"}), ("all", {"head"})],
)  # fmt: skip
def test_frozen_stages_do_not_move(tmp_path: Path, stages: Any, moving: set[str]) -> None:
    net = small()
    finetune.freeze(net, stages=stages)
    before = {key: value.clone() for key, value in net.body.state_dict().items()}
    train(net, tmp_path)
    changed = {key.split(".")[0] for key, value in net.body.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == moving


def test_frozen_batch_norms_keep_weights_and_statistics(tmp_path: Path) -> None:
    net = small()
    finetune.freeze(net, batch_norm=True)
    before = {key: value.clone() for key, value in net.body.state_dict().items()}
    train(net, tmp_path, precise_bn_batches=2)
    for key, value in net.body.state_dict().items():
        assert torch.equal(value, before[key]) == (".bn." in key), key


def test_all_batch_norms_and_stages_have_names_in_every_family() -> None:
    for name in ("slowfast_tiny", "csn_tiny", "r2plus1d_tiny", "tsm_mobilenetv2_tiny", "tpn_tiny", "c2d_tiny"):
        net = zoo.create(name, num_classes=2)
        finetune.freeze(net, stages=1, batch_norm=True)
        frozen = [key for key, parameter in net.body.named_parameters() if not parameter.requires_grad]
        assert any("stem" in key for key in frozen)
        assert any("res2" in key for key in frozen)
        assert not any(key.startswith("head") or ("res4" in key and ".bn" not in key) for key in frozen)
    with pytest.raises(UsageError, match="--freeze all"):
        finetune.freeze(zoo.create("s3d", num_classes=2), stages=1)


def test_tsms_groups() -> None:
    """mmaction2 tsm_optim_wrapper_constructor.py with fc_lr5: rate and weight decay of seven kinds of parameters."""
    net = zoo.create("slowonly_r50_nl_4x16", num_classes=2)
    groups = finetune.parameter_groups(net.body, recipe.get("tsm"))
    assert {group["name"]: (group["lr_factor"], group["weight_decay"]) for group in groups} == {
        "first_conv_weight": (1, 1e-4),
        "normal_weight": (1, 1e-4),
        "normal_bias": (2, 0),
        "bn": (1, 0),
        "fc_weight": (5, 1e-4),
        "fc_bias": (10, 0),
    }
    assert groups[0]["params"][0] is net.body.stem.conv.weight
    assert len(groups[0]["params"]) == 1
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))
    tsn = finetune.parameter_groups(net.body, recipe.get("tsn"))
    assert {group["name"]: (group["lr_factor"], group["weight_decay"]) for group in tsn}["fc_bias"] == (2, 0)
    plain = finetune.parameter_groups(net.body, recipe.get("slowonly"))
    assert {(group["lr_factor"], group["weight_decay"]) for group in plain} == {(1, 1e-4)}
    no_bn = finetune.parameter_groups(net.body, recipe.get("pyslowfast"))
    assert {group["name"] for group in no_bn if not group["weight_decay"]} == {"bn"}


def test_the_rates_of_groups_reach_the_optimiser(tmp_path: Path) -> None:
    """One step without momentum or decay: the bias of the head moves by 10 times the rate times its gradient."""
    how = dataclasses.replace(HOW, epochs=1, param_groups="tsm", momentum=0.0, nesterov=False, clip_grad_norm=None)
    net = small()
    before = net.body.head.bias.clone()
    gradients: list[torch.Tensor] = []
    net.body.head.bias.register_post_accumulate_grad_hook(lambda bias: gradients.append(bias.grad.clone()))
    (step,) = train(net, tmp_path, how=how, clips=4)
    assert torch.allclose(before - net.body.head.bias, 10 * step.lr * gradients[0], atol=1e-7)


def train(net: Any, out: Path, *, how: recipe.Recipe = HOW, clips: int = 8, **changes: Any) -> list[loop.Step]:
    how = dataclasses.replace(how, **changes)
    return list(loop.train(net, MemoryClips(clips), how, out=out, arguments={}, device=torch.device("cpu")))
