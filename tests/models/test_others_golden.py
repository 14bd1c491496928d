"""The logits of PySlowFast's, pytorchvideo's and GluonCV's own networks, through files as a user has them."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models
from datakit.errors import CheckpointError
from models.checkpoints import caffe2, identify
from models.checkpoints.files import File
from models.nets.resnet3d import head_window

GATE = 1e-4  # max|difference| / max|logit|; the originals differ between two of their own backends by up to 1.3e-5
# golden network -> the file name that people have it under
FILES = {
    "psf_slow_4x16_r50": "SLOW_4x16_R50.pyth",
    "psf_slow_nln_8x8_r50": "SLOW_NLN_8x8_R50.pyth",
    "psf_slowfast_4x16_r50": "SLOWFAST_4x16_R50.pyth",
    "psf_i3d_8x8_r50": "I3D_8x8_R50.pyth",
    "psf_i3d_nln_8x8_r50": "I3D_NLN_8x8_R50.pyth",
    "psf_c2d_8x8_r50": "C2D_8x8_R50.pyth",
    "ptv_slow_r50": "SLOW_8x8_R50.pyth",
    "ptv_slowfast_r50": "SLOWFAST_8x8_R50.pyth",
    "ptv_i3d_r50": "I3D_8x8_R50.pyth",
    "ptv_csn_r101": "CSN_32x2_R101.pyth",
    "gcv_i3d_resnet50": "i3d_resnet50_v1_kinetics400.pth",
    "gcv_i3d_slow_resnet50_f8s8": "i3d_slow_resnet50_f8s8_kinetics400.pth",
    "gcv_slowfast_4x16_resnet50": "slowfast_4x16_resnet50_kinetics400.pth",
    "gcv_tpn_resnet50_f8s8": "tpn_resnet50_f8s8_kinetics400.pth",
    "gcv_r2plus1d_v1_resnet18": "r2plus1d_v1_resnet18_kinetics400.pth",
    "gcv_r2plus1d_v1_resnet50": "r2plus1d_v1_resnet50_kinetics400.pth",
    "gcv_ircsn_v2_resnet152": "ircsn_v2_resnet152_f32s2_kinetics400.pth",
    "gcv_resnet50_v1b_tsn": "resnet50_v1b_kinetics400.pth",
}

LONG = (
    "psf_i3d_8x8_r50",  # the same but for non-local blocks as another
    "ptv_i3d_r50",
    "ptv_slow_r50",
    "gcv_i3d_slow_resnet50_f8s8",
    "gcv_slowfast_4x16_resnet50",
    "gcv_r2plus1d_v1_resnet50",
    "gcv_ircsn_v2_resnet152",
)


def weights(listed: dict[str, Any], rule: Any) -> dict[str, torch.Tensor]:
    """The state dict of a golden network, by its rule."""
    scales = listed.get("scale_keys_after_rule", {})
    return {key: torch.from_numpy(rule.tensor_for(key, shape)) * scales.get(key, 1) for key, shape, _ in listed["keys"]}


def difference(ours: torch.Tensor, golden: Any) -> float:
    return float(np.abs(ours.numpy() - golden).max() / np.abs(golden).max())


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in FILES])
def test_logits_equal_the_originals(name: str, golden: Path, tmp_path: Path, other_rule: Any) -> None:
    listed = json.loads((golden / "others" / "models" / f"{name}.json").read_text())
    state = weights(listed, other_rule)
    torch.save({"model_state": state} if name.startswith("psf") else state, tmp_path / FILES[name])
    net = models.load(tmp_path / FILES[name])
    with torch.inference_mode():
        ours = net(torch.from_numpy(other_rule.input_for(listed["input_shape"])))
    found = difference(ours, np.array(listed["logits_f32"]).reshape(listed["logits_shape"]))
    print(f"{name}: {net.spec.name} {net.spec.origin} {found:.1e}")
    assert found < GATE


def blob(key: str) -> str:
    """PySlowFast's key -> the blob it comes from in a file of Caffe2."""
    key = re.sub(r"^s1\.pathway0_stem\.conv", "conv1", key)
    key = re.sub(r"^s1\.pathway1_stem\.conv", "t_conv1", key)
    key = re.sub(r"^s1\.pathway0_stem\.", "res_conv1_", key)
    key = re.sub(r"^s1\.pathway1_stem\.", "t_res_conv1_", key)
    key = re.sub(r"^s(\d)\.pathway0_nonlocal(\d)\.(conv_)?", r"nonlocal_conv\1_\2_", key)
    key = re.sub(r"^s(\d)\.pathway0_res(\d+)\.(branch\d)", r"res\1_\2_\3", key)
    key = re.sub(r"^s(\d)\.pathway1_res(\d+)\.(branch\d)", r"t_res\1_\2_\3", key)
    last = {1: "t_pool1", 2: "t_res2_2_branch2c_bn", 3: "t_res3_3_branch2c_bn", 4: "t_res4_5_branch2c_bn"}
    key = re.sub(r"^s(\d)_fuse\.conv_f2s", lambda found: last[int(found[1])] + "_subsample", key)
    key = re.sub(r"^s(\d)_fuse\.", lambda found: last[int(found[1])] + "_subsample_", key)
    key = key.replace("head.projection", "pred").replace("branch2.", "branch2")
    key = re.sub(r"bn\.(\w+)$", lambda found: "bn_" + SUFFIXES[found[1]], key)
    return re.sub(r"\.(weight|bias)$", lambda found: "_" + found[1][0], key)


SUFFIXES = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}


@pytest.mark.parametrize(
    ("name", "file_name", "protocol"),
    [
        ("psf_slowfast_4x16_r50", "SLOWFAST_4x16_R50.pkl", 2),
        ("psf_i3d_nln_8x8_r50", "I3D_NLN_8x8_R50.pkl", 4),
        ("psf_slow_4x16_r50", "SLOWONLY_4x16_R50.pkl", 5),
        pytest.param("psf_slow_4x16_r50", "SLOWONLY_4x16_R50.pkl", 0, marks=pytest.mark.slow),
    ],
)
def test_caffe2_files(name: str, file_name: str, protocol: int, golden: Path, tmp_path: Path, other_rule: Any) -> None:
    listed = json.loads((golden / "others" / "models" / f"{name}.json").read_text())
    state = {key: value for key, value in weights(listed, other_rule).items() if not key.endswith("batches_tracked")}
    blobs = {blob(key): value.numpy() for key, value in state.items()}
    assert len(blobs) == len(state)
    blobs |= {"conv1_w_momentum": np.zeros(3, np.float32), "lr": np.float32(0.1), "model_iter": np.array([7])}
    (tmp_path / file_name).write_bytes(pickle.dumps({"blobs": blobs}, protocol))
    net = models.load(tmp_path / file_name)
    assert net.spec.origin == "pyslowfast-caffe2"
    with torch.inference_mode():
        ours = net(torch.from_numpy(other_rule.input_for(listed["input_shape"])))
    assert difference(ours, np.array(listed["logits_f32"]).reshape(listed["logits_shape"])) < GATE


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo run > /dev/null",)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    "hide", [lambda evil: evil, lambda evil: np.array([evil], dtype=object)], ids=["bare", "array"]
)
def test_a_plain_pickle_that_runs_a_program_is_refused_by_name(
    hide: Any, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"blobs": {"conv1_w": hide(Evil())}}, protocol))
    ran: list[str] = []
    monkeypatch.setattr(os, "system", ran.append)
    for trust in (False, True):
        with pytest.raises(CheckpointError, match=rf"evil\.pkl: not read: holds the object {os.name}\.system"):
            models.load(path, trust=trust)
    assert not ran


CONFIG = """
DATA:
  MEAN:
  - 0.45
  - 0.45
  - 0.4
  NUM_FRAMES: 32
  SAMPLING_RATE: 2
  STD:
  - 0.225
  - 0.225
  - 0.225
  TRAIN_CROP_SIZE: 64
MODEL:
  ARCH: slowfast
SLOWFAST:
  ALPHA: 8
  FUSION_KERNEL_SZ: 5
"""


def test_above_the_training_crop_pyslowfast_means_softmaxes(golden: Path, tmp_path: Path, other_rule: Any) -> None:
    """The config inside says 64 pixels: a picture of 96 has a map of 3 x 3, in which a window of 2 x 2 has 4 places."""
    listed = json.loads((golden / "others" / "models" / "psf_slowfast_4x16_r50.json").read_text())
    state = weights(listed, other_rule)
    state["head.projection.weight"] *= 1e-4  # so that the softmax is not one-hot
    torch.save({"model_state": state, "cfg": CONFIG}, tmp_path / "checkpoint_epoch_00196.pyth")
    net = models.load(tmp_path / "checkpoint_epoch_00196.pyth")
    assert (net.spec.name, net.spec.known["name"], net.spec.train_crop_px) == (
        "slowfast_r50_4x16",
        "config in the file",
        64,
    )
    assert net.spec.mean == (0.45 * 255, 0.45 * 255, 0.4 * 255)
    x = torch.from_numpy(other_rule.input_for((1, 3, 32, 96, 96)))
    maps = []
    net.body.head.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    with torch.inference_mode():
        probabilities = net(x).softmax(dim=1)
        assert maps[0].shape[1] == 4
        expected = net.body.head(maps[0]).softmax(dim=-1).mean(dim=1)
    assert torch.allclose(probabilities, expected, atol=1e-6)


@pytest.mark.parametrize("short_cycle", [True, False])
def test_multigrid_training_leaves_a_head_that_pools_whole_maps(
    short_cycle: bool, golden: Path, tmp_path: Path
) -> None:
    config = f"{CONFIG}MULTIGRID:\n  SHORT_CYCLE: {str(short_cycle).lower()}\n"
    state = empty(golden, "psf_slowfast_4x16_r50")
    torch.save({"model_state": state, "cfg": config}, tmp_path / "checkpoint_epoch_00196.pyth")
    net = models.load(tmp_path / "checkpoint_epoch_00196.pyth")
    assert net.spec.network["head_pool"] == ("global" if short_cycle else "softmax")


def test_published_multigrid_files_pool_whole_maps_too(golden: Path) -> None:
    state = {
        blob(key): value
        for key, value in empty(golden, "psf_slowfast_4x16_r50").items()
        if not key.endswith("batches_tracked")
    }
    file = File(state=state, top={}, how="blobs", config_text=None)
    pools = {}
    for name in ("SLOWFAST_8x8_R50_stepwise_multigrid.pkl", "SLOWFAST_8x8_R50_stepwise.pkl"):
        spec = identify.foreign_spec(
            Path(name), caffe2.adapt(state), file, name=None, adapter=caffe2, digests=("00000000", "11111111")
        )
        pools[spec.name, spec.published["top1"] if spec.published else None] = spec.network["head_pool"]
    assert pools == {("slowfast_r50_8x8", 76.6): "global", ("slowfast_r50_8x8", 76.8): "softmax"}


def test_pytorchvideos_networks_that_pyslowfast_trained(golden: Path, tmp_path: Path) -> None:
    """It wraps them, and means softmaxes over positions as of its own networks."""
    for prefix, head_pool in (("model.", "softmax"), ("", "logits")):
        state = {f"{prefix}{key}": value for key, value in empty(golden, "ptv_slowfast_r50").items()}
        torch.save({"model_state": state, "cfg": CONFIG}, tmp_path / "checkpoint_epoch_00196.pyth")
        net = models.load(tmp_path / "checkpoint_epoch_00196.pyth")
        assert (net.spec.origin, net.spec.network["head_pool"]) == ("pytorchvideo", head_pool)


def test_windows_are_those_that_pyslowfast_counts() -> None:
    x = torch.zeros(1, 3, 1, 112, 128)
    assert head_window(x, 112) == (3, 3)  # of a map of 4 x 4: TRAIN_CROP_SIZE // 32
    assert head_window(x, 224) == (4, 4)  # all of a smaller one
    assert head_window(torch.zeros(1, 3, 1, 256, 340), 224) == (7, 7)


def empty(golden: Path, name: str) -> dict[str, torch.Tensor]:
    """The keys and shapes of a golden network, one zero behind each."""
    listed = json.loads((golden / "others" / "models" / f"{name}.json").read_text())
    return {key: torch.zeros((), dtype=getattr(torch, kind)).expand(shape) for key, shape, kind in listed["keys"]}


@pytest.mark.parametrize(
    ("name", "file_name", "typed", "expected", "how"),
    [
        ("psf_c2d_8x8_r50", "C2D_NOPOOL_8x8_R50.pyth", None, "c2d_r50_nopool_8x8", "file name"),
        ("psf_c2d_8x8_r50", "best.pyth", None, "c2d_r50_8x8", "assumed"),
        ("psf_i3d_8x8_r50", "best.pyth", None, "i3d_r50_8x8", "assumed"),
        ("psf_slow_4x16_r50", "best.pyth", "SLOW_8x8_R50", "slowonly_r50_8x8", "name="),
        ("psf_slow_4x16_r50", "SLOW_4x16_R50.pyth", "slowonly_r50_8x8", "slowonly_r50_8x8", "name="),
        ("psf_slow_nln_8x8_r50", "SLOW_NLN_8x8_R50.pyth", None, "slowonly_r50_nl_dot_product_8x8", "file name"),
        ("ptv_slow_r50", "best.pyth", None, "slowonly_r50_8x8", "assumed"),
        ("ptv_slow_r50", "SLOW_4x16_R50.pyth", None, "slowonly_r50_4x16", "file name"),
        ("gcv_i3d_slow_resnet50_f8s8", "i3d_slow_resnet50_f32s2_x.pth", None, "slowonly_r50_32x2", "file name"),
        ("gcv_tpn_resnet50_f8s8", "tpn_resnet50_f16s4_x.pth", None, "tpn_slowonly_r50_16x4", "file name"),
        ("gcv_resnet50_v1b_tsn", "resnet50_v1b_x.pth", None, "tsn_r50_1x1x7", "assumed"),
    ],
)
def test_which_network_it_is(
    name: str, file_name: str, typed: str | None, expected: str, how: str, golden: Path, tmp_path: Path
) -> None:
    torch.save(
        {"model_state": {f"module.{key}": value for key, value in empty(golden, name).items()}}, tmp_path / file_name
    )
    spec = models.load(tmp_path / file_name, name=typed).spec
    assert spec.name == expected
    assert spec.known["name"].startswith(how)


@pytest.mark.parametrize(
    ("name", "file_name", "choices"),
    [
        ("psf_slow_4x16_r50", "best.pyth", "slowonly_r50_4x16, slowonly_r50_8x8"),
        ("psf_slowfast_4x16_r50", "best.pyth", "slowfast_r50_4x16, slowfast_r50_8x8"),
        ("gcv_resnet50_v1b_tsn", "resnet50-0676ba61.pth", "tsn_r50_1x1x3"),  # so torchvision calls its image network
        ("gcv_tpn_resnet50_f8s8", "best.pth", "tpn_slowonly_r50_8x8, tpn_slowonly_r50_16x4"),
    ],
)
def test_what_no_key_tells_is_refused_with_the_choices(
    name: str, file_name: str, choices: str, golden: Path, tmp_path: Path
) -> None:
    torch.save(empty(golden, name), tmp_path / file_name)
    with pytest.raises(CheckpointError, match=rf"{choices}.*Type one: models\.load\(\.\.\., name="):
        models.load(tmp_path / file_name)


@pytest.mark.parametrize("name", FILES)
def test_every_key_is_accounted_for(name: str, golden: Path, tmp_path: Path) -> None:
    state = empty(golden, name)
    del state[[key for key, value in state.items() if value.ndim >= 4][-1]]
    state["surplus.weight"] = torch.zeros(2)
    torch.save(state, tmp_path / FILES[name])
    with pytest.raises(CheckpointError, match=r"1 missing: \S+; 1 unused: surplus\.weight$"):
        models.load(tmp_path / FILES[name])


@pytest.mark.parametrize("key", ["s1.pathway0_stem.conv_xy.weight", "blocks.0.conv.conv_xy.weight"])
def test_x3d_is_named_as_not_built_here(key: str, tmp_path: Path) -> None:
    torch.save({key: torch.zeros(2)}, tmp_path / "X3D_S.pyth")
    with pytest.raises(CheckpointError, match="not a network that is built here"):
        models.load(tmp_path / "X3D_S.pyth")
