"""The same weights under other programs' names, and back; what another program would compute otherwise is refused."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import models
from datakit.errors import CheckpointError, UsageError
from models import checkpoints, convert, zoo

State = Callable[[str], dict[str, torch.Tensor]]
# Goldens of mmaction2 and, for those that nothing names, the name to type.
MMACTION2 = {
    "slowonly_r50_nl_eg_8x8": "slowonly_r50_nl_8x8",
    "slowfast_r50_8x8": None,
    "i3d_r50_nl_dot_32x2": "i3d_r50_nl_dot_product_32x2",
    "c2d_r50_8x8": None,
    "tsm_r50_1x1x8": None,
    "tsm_mobilenetv2_1x1x8": None,
    "r2plus1d_r34_8x8": None,
    "ircsn_r50_32x2": None,
    "tpn_slowonly_r50_8x8": None,
}
OTHERS = {
    "psf_slow_nln_8x8_r50": ("SLOW_NLN_8x8_R50.pyth", "pyslowfast"),
    "psf_slowfast_4x16_r50": ("SLOWFAST_4x16_R50.pyth", "pyslowfast"),
    "ptv_slowfast_r50": ("SLOWFAST_8x8_R50.pyth", "pytorchvideo"),
    "ptv_i3d_r50": ("I3D_8x8_R50.pyth", "pytorchvideo"),
    "ptv_csn_r101": ("CSN_32x2_R101.pyth", "pytorchvideo"),
    "tv_s3d": ("s3d.pth", "torchvision"),
}


def slow(name: str) -> Any:
    """Goldens that take seconds, but for a few that have most of the rules."""
    quick = ("tsm_r50_1x1x8", "ptv_slowfast_r50", "tv_s3d")
    return name if name in quick else pytest.param(name, marks=pytest.mark.slow)


def written(net: models.Recognizer, out: Path, target: str) -> dict[str, torch.Tensor]:
    convert.convert(net, out, target)
    top: dict[str, Any] = torch.load(out, weights_only=True)
    state: dict[str, torch.Tensor] = top.get("state_dict", top.get("model_state", top))
    return state


def assert_equal(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", [slow(name) for name in MMACTION2])
def test_there_and_back_mmaction2(name: str, golden_state: State, tmp_path: Path) -> None:
    state = golden_state(name)
    torch.save({"state_dict": state}, tmp_path / f"{name}x1.pth")
    net = models.load(tmp_path / f"{name}x1.pth", name=MMACTION2[name])
    assert_equal(written(net, tmp_path / "out.pth", "mmaction2"), state)
    back = models.load(tmp_path / "out.pth")
    assert (back.spec.name, back.spec.known["clip_len"]) == (net.spec.name, "config in the file")


@pytest.mark.parametrize("name", [slow(name) for name in OTHERS])
def test_there_and_back_others(name: str, golden: Path, other_rule: Any, tmp_path: Path) -> None:
    file_name, target = OTHERS[name]
    listed = json.loads((golden / "others" / "models" / f"{name}.json").read_text())
    scales = listed.get("scale_keys_after_rule", {})
    state = {
        key: torch.from_numpy(other_rule.tensor_for(key, shape)) * scales.get(key, 1)
        for key, shape, _ in listed["keys"]
    }
    torch.save(state, tmp_path / file_name)
    net = models.load(tmp_path / file_name)
    assert_equal(written(net, tmp_path / "out.pth", target), state)


@pytest.fixture
def narrow_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    """All networks with a quarter of their channels, whoever builds them."""
    table = copy.deepcopy(zoo.table())
    for row in table["networks"].values():
        if "base_channels" in zoo.arguments_of(row["family"]):
            row["network"].setdefault("base_channels", 16)
    monkeypatch.setattr(zoo, "table", lambda: table)


def narrow(name: str, **arguments: Any) -> models.Recognizer:
    """A network of which no weight is at rest."""
    torch.manual_seed(0)
    arguments = {"zero_init_residual": False} | arguments
    known = zoo.arguments_of(zoo.row_of(name)["family"])
    net = models.create(name, num_classes=5, **{key: value for key, value in arguments.items() if key in known})
    for key, value in net.body.named_buffers():
        if key.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    return net.eval()


PYSLOWFAST = {"lateral_norm": True, "slow_frames": "spread"}


@pytest.mark.usefixtures("narrow_zoo")
@pytest.mark.parametrize(
    ("name", "arguments", "chain"),
    [
        ("slowonly_r50_4x16", {}, ["mmaction2", "pyslowfast", "pytorchvideo", "mmaction2"]),
        ("slowonly_r101_8x8", {}, ["pytorchvideo", "pyslowfast", "mmaction2"]),
        ("slowfast_r50_8x8", PYSLOWFAST, ["pyslowfast", "pytorchvideo", "pyslowfast"]),
        ("i3d_r50_8x8", {}, ["pyslowfast", "mmaction2", "pytorchvideo"]),
        ("c2d_r50_8x8", {"pool1_padding": 1}, ["pytorchvideo", "pyslowfast"]),
        ("tsm_r101_1x1x8", {}, ["mmaction2"]),
        ("tsm_r50_nl_dot_product_1x1x8", {"zero_init_residual": True}, ["mmaction2"]),
        ("tsm_r50_1x1x8", {"shift_place": "block", "temporal_pool": True}, ["mmaction2"]),
        ("tpn_tsm_r50_1x1x8", {}, ["mmaction2"]),
        ("tsn_r50_flow_5x1x3", {}, ["mmaction2"]),
        ("ipcsn_r50_32x2", {}, ["mmaction2"]),
        ("ircsn_r50_32x2", {"eps": 1e-5}, ["mmaction2", "pytorchvideo", "mmaction2"]),
        ("r2plus1d_r50_16x4", {"head_pool": "softmax"}, ["pytorchvideo"]),
        ("slowonly_r50_flow_8x8", {}, ["mmaction2"]),
        ("r3d_18", {}, ["torchvision"]),
    ],
)
def test_a_chain_of_programs_computes_the_same(
    name: str, arguments: dict[str, Any], chain: list[str], tmp_path: Path
) -> None:
    net = narrow(name, **arguments)
    x = torch.randn(1, net.spec.network["in_channels"], net.spec.num_segments or net.spec.clip_len, 64, 64)
    with torch.inference_mode():
        expected = net(x)
    for step, target in enumerate([*chain, "actionkit"]):
        out = tmp_path / f"{step}.pth"
        convert.convert(net, out, target)
        net = models.load(out)
        with torch.inference_mode():
            found = net(x)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max())), target
    assert net.spec.clip_len == zoo.row_of(name)["clip_len"]


@pytest.mark.usefixtures("narrow_zoo")
@pytest.mark.parametrize(
    ("name", "arguments", "target", "why"),
    [
        ("slowfast_r50_4x16", {}, "pyslowfast", "slow_frames spread where .* has stride"),
        ("slowfast_r50_4x16", PYSLOWFAST, "mmaction2", "slow_frames stride where .* has spread"),
        ("i3d_r50_32x2", {}, "pytorchvideo", "conv1_stride_t is 2 here and 1 there"),
        ("c2d_r50_8x8", {}, "pyslowfast", "pool1_padding is 0 here"),
        ("ircsn_r50_32x2", {}, "pytorchvideo", "eps 1e-05 where .* has 0.001"),
        ("slowonly_tiny", {}, "mmaction2", "spatial_strides"),
        ("slowonly_tiny_diff", {}, "mmaction2", "no input rgb-diff"),
        ("slowonly_r50_flow_4x16", {}, "pyslowfast", "no input flow"),
        ("slowonly_r50_nl_8x8", {}, "pyslowfast", "out.bias"),
        ("r2plus1d_r50_16x2", {}, "mmaction2", "stem_channels is 45 here"),
        ("tsm_r50_1x1x8", {}, "pytorchvideo", "pytorchvideo has no tsm; it has slowonly"),
        ("tsn_r50_1x1x8", {}, "torchvision", "torchvision has no tsn"),
    ],
)
def test_what_the_other_program_cannot_hold(
    name: str, arguments: dict[str, Any], target: str, why: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=why):
        convert.convert(narrow(name, **arguments), tmp_path / "out.pth", target)
    assert not [*tmp_path.iterdir()]


def test_gluoncvs_r2plus1d_is_torchvisions(tmp_path: Path) -> None:
    net = narrow("r2plus1d_r18_16x2")
    convert.convert(net, tmp_path / "out.pth", "torchvision")
    back = models.load(tmp_path / "out.pth")
    x = torch.randn(1, 3, 8, 48, 48)
    with torch.inference_mode():
        assert torch.allclose(net(x), back(x), atol=1e-5)
    import torchvision

    torchvision.models.video.r2plus1d_18(num_classes=5).load_state_dict(torch.load(tmp_path / "out.pth"))


@pytest.mark.usefixtures("narrow_zoo")
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints.save(tmp_path / "ours.pth", narrow("slowonly_r50_4x16"))
    out = tmp_path / "theirs.pth"
    assert convert.main([str(tmp_path / "ours.pth"), str(out), "--to", "pyslowfast", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["network"] == "slowonly_r50_4x16"
    assert "s1.pathway0_stem.conv.weight" in torch.load(out, weights_only=True)["model_state"]
    assert convert.main([str(out), str(tmp_path / "back.pth"), "--to", "actionkit"]) == 0
    assert re.search("slowonly_r50_4x16: .*theirs.pth -> .*back.pth as actionkit", capsys.readouterr().out)
    with pytest.raises(UsageError, match=r"type .*x\.pth"):
        convert.main([str(out), str(tmp_path / "x.safetensors"), "--to", "mmaction2"])


def test_help_is_quick() -> None:
    code = "import sys, models.convert; models.convert.parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
