"""mmaction2's networks and files: what keys tell, what only a config tells, what is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import models
from datakit.errors import CheckpointError
from models import convert, zoo
from models.checkpoints import config, mmaction2
from models.nets.csn import Csn
from models.nets.mobilenet_v2 import InvertedResidual, MobileNetV2
from models.nets.nonlocal_block import NonLocal
from models.nets.resnet3d import Bottleneck, ResNet3d, shifted
from models.nets.tpn import Tpn

State = Callable[[str], dict[str, torch.Tensor]]


def test_shift_is_one_frame_and_zero_filled() -> None:
    x = torch.arange(1.0, 25.0).view(1, 8, 3, 1, 1)  # channel c, frame t: 3 c + t + 1
    out = shifted(x, 4)[0, :, :, 0, 0].tolist()
    assert out[:2] == [[2, 3, 0], [5, 6, 0]]
    assert out[2:4] == [[0, 7, 8], [0, 10, 11]]
    assert out[4:] == x[0, 4:, :, 0, 0].tolist()


def blocks_of(net: nn.Module) -> list[Bottleneck]:
    return [module for module in net.modules() if isinstance(module, Bottleneck)]


def test_which_blocks_shift() -> None:
    narrow = {"num_classes": 2, "base_channels": 8, "inflate": (0, 0, 0, 0), "shift_div": 8}
    with torch.device("meta"):
        r50 = blocks_of(ResNet3d(depth=50, **narrow))
        r101 = blocks_of(ResNet3d(depth=101, **narrow))
        whole = blocks_of(ResNet3d(depth=101, shift_place="block", **narrow))
    assert [block.shift_div for block in r50] == [8] * 16
    # every second block of each stage: 3, 4, 23, 3 of them
    assert [block.shift_div for block in r101] == [8, None, 8, *[8, None] * 2, *[8, None] * 11, 8, 8, None, 8]
    assert all(block.shift_div == 8 and block.shift_shortcut for block in whole)


def test_mobilenet_shifts_in_blocks_with_a_shortcut_only() -> None:
    torch.manual_seed(0)
    net = MobileNetV2(num_classes=2, widen_factor=0.25)
    x = torch.randn(1, 16, 4, 4, 4)
    later = x.clone()
    later[:, :, 2:] += 1
    for stride, sees_next in ((1, True), (2, False)):
        block = InvertedResidual(16, 16, expansion=2, stride=stride, shift_div=8).eval()
        assert torch.equal(block(x)[:, :, 1], block(later)[:, :, 1]) is not sees_next
    assert sum(block.shift_div == 8 for block in net.modules() if isinstance(block, InvertedResidual)) == 10


def test_temporal_pool_halves_the_frames_after_res2() -> None:
    net = ResNet3d(num_classes=2, depth=10, base_channels=8, temporal_pool=True, inflate=(0, 0, 0, 0)).eval()
    assert net.features(torch.randn(1, 3, 7, 32, 32)).shape[2] == 4


def test_non_local_scale_is_for_embedded_gaussian() -> None:
    x = torch.randn(1, 8, 2, 4, 4)
    for mode, differs in (("embedded_gaussian", True), ("gaussian", False), ("dot_product", False)):
        plain, scaled = (NonLocal(8, mode=mode, scale=scale, pool=True).eval() for scale in (False, True))
        scaled.load_state_dict(plain.state_dict())
        assert torch.equal(plain(x), scaled(x)) is not differs


def test_csn_middle_and_frozen_batch_norms() -> None:
    ip = Csn(num_classes=2, depth=10, base_channels=8, bottleneck_mode="ip", bn_frozen=True).train()
    assert [conv.conv.groups for conv in ip.get_submodule("res3.0.conv2")] == [1, 16]
    assert ip.stem.bn.eps == 1e-3
    norms = [module for module in ip.modules() if isinstance(module, nn.BatchNorm3d)]
    assert norms
    assert not any(norm.training or norm.weight.requires_grad for norm in norms)
    assert ip.dropout.training
    with pytest.raises(ValueError, match="ip, ir"):
        Csn(num_classes=2, bottleneck_mode="both")  # type: ignore[arg-type]


def test_tpn_flows_differ_and_its_auxiliary_head_changes_nothing() -> None:
    torch.manual_seed(0)
    cascade = Tpn(num_classes=2, depth=10, base_channels=16).eval()
    x = torch.randn(1, 3, 8, 32, 32)
    parallel = Tpn(num_classes=2, depth=10, base_channels=16, flow_type="parallel").eval()
    parallel.load_state_dict(cascade.state_dict())
    assert not torch.allclose(cascade(x), parallel(x))
    without = Tpn(num_classes=2, depth=10, base_channels=16, aux_head=False).eval()
    without.load_state_dict({key: value for key, value in cascade.state_dict().items() if "aux_head" not in key})
    assert torch.equal(cascade(x), without(x))


def test_stacks_of_flow_become_channels() -> None:
    net = models.create("tsn_r50_flow_5x1x3", num_classes=2, base_channels=8, mean=(0.0, 0.0), std=(1.0, 1.0))
    x = torch.arange(30.0).view(1, 2, 15, 1, 1)  # flow component c, picture t: 15 c + t
    out = net.normalise(x)[0, :, :, 0, 0]
    assert out.shape == (10, 3)
    assert out[:, 1].tolist() == [5, 20, 6, 21, 7, 22, 8, 23, 9, 24]  # x and y of the second segment's five pictures


def test_keys_tell_families(golden_state: State) -> None:
    told = {name: mmaction2.families(golden_state(name)) for name in ("tpn_slowonly_r50_8x8", "ircsn_r50_32x2")}
    assert told == {"tpn_slowonly_r50_8x8": ("tpn",), "ircsn_r50_32x2": ("csn",)}
    assert mmaction2.families(golden_state("tsm_mobilenetv2_1x1x8")) == ("tsm-mobilenetv2",)
    unshifted = {key.replace(".net.", "."): value for key, value in golden_state("tsm_mobilenetv2_1x1x8").items()}
    assert mmaction2.families(unshifted) == ()


def test_keys_tell_arguments(golden_state: State) -> None:
    slowfast = {
        "backbone.slow_path.conv1_lateral.conv.weight": torch.zeros(16, 8, 7, 1, 1),
        "backbone.slow_path.conv1_lateral.bn.weight": torch.zeros(16),
    }
    told = mmaction2.arguments(slowfast)
    assert (told["fusion_kernel"], told["lateral_norm"], told["slow_frames"]) == (7, True, "stride")
    tsm = golden_state("tsm_r50_1x1x8")
    assert mmaction2.arguments(tsm) == {}
    pooled = {key.replace("layer2.", "layer2.net."): value for key, value in tsm.items()}
    assert mmaction2.arguments(pooled) == {"temporal_pool": True}
    assert mmaction2.adapt(pooled).keys() == mmaction2.adapt(tsm).keys()
    block = {
        key.replace(".conv.net.", ".conv.").replace("layer1.0.", "layer1.0.net."): value for key, value in tsm.items()
    }
    assert mmaction2.arguments(block) == {"shift_place": "block"}
    assert mmaction2.adapt(block).keys() == mmaction2.adapt(tsm).keys()


def test_fusion_kernel_and_lateral_norm_come_from_the_weights(tmp_path: Path, golden_state: State) -> None:
    """What mmaction2 calls 8x8 has had kernels of 5 and of 7, and its "steplr" form batch norms behind them."""
    state = dict(golden_state("slowfast_r50_4x16"))
    for key in [*state]:
        if key.endswith("_lateral.conv.weight"):
            state[key] = torch.cat((state[key], state[key][:, :, :2]), dim=2)
            for name, value in nn.BatchNorm3d(state[key].shape[0]).state_dict().items():
                state[key.replace("conv.weight", f"bn.{name}")] = value
    torch.save(state, tmp_path / "slowfast_r50_8x8x1_steplr.pth")
    net = models.load(tmp_path / "slowfast_r50_8x8x1_steplr.pth")
    assert net.spec.name == "slowfast_r50_8x8"
    assert (net.spec.network["fusion_kernel"], net.spec.network["lateral_norm"]) == (7, True)
    del state["cls_head.fc_cls.bias"]
    torch.save(state, tmp_path / "slowfast_r50_8x8x1_cut.pth")
    with pytest.raises(CheckpointError, match=r"1 missing: head\.bias"):
        models.load(tmp_path / "slowfast_r50_8x8x1_cut.pth")


def test_tpn_copies_of_its_classifier_are_known(golden_state: State) -> None:
    state = golden_state("tpn_slowonly_r50_8x8")
    copied = {"cls_head.new_cls.weight": torch.zeros(400, 2048, 1, 1, 1), "cls_head.new_cls.bias": torch.zeros(400)}
    assert mmaction2.adapt(state | copied).keys() == mmaction2.adapt(state).keys()
    assert "cls_head.new_cls.scale" in mmaction2.adapt(state | {"cls_head.new_cls.scale": torch.zeros(1)})


@pytest.mark.parametrize("key", ["backbone.features.conv0.weight", "backbone.patch_embed.proj.weight"])
def test_other_backbones_are_refused(tmp_path: Path, key: str) -> None:
    torch.save({key: torch.zeros(1), "cls_head.fc_cls.weight": torch.zeros(4, 8)}, tmp_path / "tsn_dense161.pth")
    with pytest.raises(CheckpointError, match=r"tsn_dense161\.pth.*not.*built here"):
        models.load(tmp_path / "tsn_dense161.pth")


def facts_of(backbone: str, sampler: str, rest: str = "") -> dict[str, object]:
    network = config.facts(
        f"model = dict(backbone=dict({backbone}), {rest})\ntrain_pipeline = test_pipeline = [dict({sampler})]\n"
        f"test_pipeline = [dict({sampler})]"
    )
    return network


def test_a_config_tells_shift_rules_and_pyramids() -> None:
    segments = "type='SampleFrames', clip_len=1, frame_interval=1, num_clips=25"
    facts = facts_of("type='ResNetTSM', num_segments=16, shift_place='block', temporal_pool=True", segments)
    assert facts["num_segments"] == 16
    network = facts["network"]
    assert isinstance(network, dict)
    assert {
        "shift_div": 8,
        "shift_place": "block",
        "temporal_pool": True,
        "with_pool2": False,
    }.items() <= network.items()
    neck = "neck=dict(type='TPN', flow_type='parallel', temporal_modulation_cfg=dict(downsample_scales=(8, 8)))"
    network = facts_of("type='ResNet3dSlowOnly'", "type='SampleFrames', clip_len=8, frame_interval=8", neck)["network"]
    assert isinstance(network, dict)
    assert (network["flow_type"], network["temporal_scales"]) == ("parallel", [8, 8])


def test_a_config_tells_c2d_from_tsn() -> None:
    clip = "type='SampleFrames', clip_len=8, frame_interval=8, num_clips=1"
    for backbone, name in (("C2D", "c2d_r50_8x8"), ("ResNet", "c2d_r50_nopool_8x8")):
        network = facts_of(f"type='{backbone}', depth=50", clip)["network"]
        assert isinstance(network, dict)
        row = zoo.spec(name, num_classes=2).network
        wanted = {"pool1_padding": row.get("pool1_padding", 1), "with_pool2": row.get("with_pool2", False)}
        assert wanted.items() <= network.items()


def test_a_config_tells_stacks_of_flow() -> None:
    sampler = "type='SampleFrames', clip_len=5, frame_interval=1, num_clips=3"
    text = f"train_pipeline = [dict({sampler})]\ntest_pipeline = [dict({sampler}), dict(input_format='NCHW_Flow')]"
    pipeline = f"[dict({sampler}), dict(input_format='NCHW')]"
    newer = f"model = dict(type='Recognizer2D')\ntrain_pipeline = {pipeline}\ntest_pipeline = {pipeline}"
    for each in (text, newer):
        facts = config.facts(each)
        assert (facts["clip_len"], facts["num_segments"]) == (5, 3)


@pytest.mark.parametrize("setting", ["style='caffe'", "dilations=(1, 1, 1, 2)", "conv1_stride_s=1"])
def test_a_config_of_a_network_that_is_not_built_here(setting: str) -> None:
    with pytest.raises(CheckpointError, match=setting.split("=")[0]):
        facts_of(f"type='ResNet3dSlowOnly', {setting}", "type='SampleFrames', clip_len=8")


@pytest.mark.parametrize("name", ["slowfast_tiny", "tsm_tiny", "tsm_mobilenetv2_tiny", "ipcsn_tiny", "tpn_tiny"])
def test_export(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    net = models.create(name, num_classes=3).eval()
    x = torch.randn(1, 3, net.spec.num_segments or net.spec.clip_len, 32, 32)
    exported = torch.export.export(net, (x,), strict=False).module()
    with torch.no_grad():
        assert torch.equal(exported(x), net(x))


def narrow_nonlocal(depth: int) -> dict[str, torch.Tensor]:
    """mmaction2's keys and shapes of a SlowOnly with non-local blocks, of a depth that no name here has them at."""
    blocks = [0, [1, 0], 0, 0]
    spec = zoo.spec("slowonly_r50_nl_8x8", num_classes=5, depth=depth, non_local=blocks)
    body = zoo.hollow(spec)
    return {
        key: torch.zeros(value.shape)
        for key, value in convert.theirs(body.state_dict(), body, spec, "mmaction2").items()
    }


def test_a_depth_that_no_name_has_is_told_by_the_keys(tmp_path: Path) -> None:
    state = narrow_nonlocal(18)
    torch.save(state, tmp_path / "slowonly_r18_nl_8x8.pth")
    for typed in (None, "slowonly_r18_nl_8x8"):
        net = models.load(tmp_path / "slowonly_r18_nl_8x8.pth", name=typed)
        assert (net.spec.name, net.spec.network["depth"]) == ("slowonly_r18_nl_8x8", 18)
        assert net.spec.network["non_local"] == [[0, 0], [1, 0], [0, 0], [0, 0]]
    torch.save(state, tmp_path / "latest.pth")
    with pytest.raises(CheckpointError, match=r"fit slowonly_r18_nl_4x16, .*name='slowonly_r18_nl_4x16'"):
        models.load(tmp_path / "latest.pth")
    with pytest.raises(CheckpointError, match=r"does not fit slowonly_r50_nl_8x8: \d+ missing"):
        models.load(tmp_path / "latest.pth", name="slowonly_r50_nl_8x8")
