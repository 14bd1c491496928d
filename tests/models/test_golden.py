"""The logits of mmaction2's own networks, from weights that go through a file and our adapter as a user's would."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import models
from models import zoo

GATE = 2e-5  # max|difference| / max|logit|; the originals differ from their own float64 by up to 1e-6
GATE_OTHERS = 1e-4  # these differ between two of their own backends by up to 1.3e-5
# golden network -> the name a user types where file and file name do not tell
NAMES = {
    "slowonly_r50_4x16": None,
    "slowonly_r50_flow_16x4": None,
    "slowonly_r101_8x8": None,
    "slowonly_r50_nl_eg_8x8": "slowonly_r50_nl_8x8",
    "slowfast_r50_4x16": None,
    "slowfast_r50_8x8": None,
    "i3d_r50_32x2": None,
    "i3d_r50_nl_dot_32x2": "i3d_r50_nl_dot_product_32x2",
    "c2d_r50_8x8": None,
    "tsn_r50_1x1x3": None,
    "tsm_r50_1x1x8": None,
    "tsm_mobilenetv2_1x1x8": None,
    "r2plus1d_r34_8x8": None,
    "ircsn_r50_32x2": None,
    "tpn_slowonly_r50_8x8": None,
}
State = Callable[[str], dict[str, torch.Tensor]]


def difference(ours: torch.Tensor, golden: Any) -> float:
    return float(np.abs(ours.numpy() - golden).max() / np.abs(golden).max())


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_the_originals(
    name: str, golden_models: Path, golden_state: State, rule: Any, tmp_path: Path
) -> None:
    torch.save({"meta": {}, "state_dict": golden_state(name)}, tmp_path / f"{name}x1.pth")
    net = models.load(tmp_path / f"{name}x1.pth", name=NAMES[name])
    shape = json.loads((golden_models / f"{name}.json").read_text())["input_shape"]
    x = torch.from_numpy(rule.input_tensor(shape))
    # [views, channels, frames, H, W] of 3D networks, [1, segments, channels, H, W] of 2D ones
    x_VCTHW = x.flatten(0, 1) if x.ndim == 6 else x.transpose(1, 2)
    with torch.inference_mode():
        ours = net(x_VCTHW)
    assert difference(ours, np.load(golden_models / f"{name}.npz")["logits"]) < GATE


@pytest.mark.parametrize(
    ("name", "view_set"),
    [
        ("slowonly_r50_4x16", "batch2_3views"),
        ("tsm_r50_1x1x8", "twice_x_3crops"),
        ("tpn_slowonly_r50_8x8", "3views_fcn"),
    ],
)
def test_views_equal_the_originals(
    name: str, view_set: str, golden_models: Path, golden_state: State, rule: Any, tmp_path: Path
) -> None:
    view_set = f"{name}__{view_set}"
    torch.save(golden_state(name), tmp_path / f"{name}.pth")
    net = models.load(tmp_path / f"{name}.pth")
    shape = json.loads((golden_models / "views.json").read_text())[view_set]["input_shape"]
    x = torch.from_numpy(rule.input_tensor(shape, view_set))
    if net.spec.num_segments is None:
        x_VCTHW = x.flatten(0, 1)
    else:  # [1, views of num_segments frames each, channels, H, W]
        x_VCTHW = x.unflatten(1, (-1, net.spec.num_segments))[0].transpose(1, 2)
    with torch.inference_mode():
        ours = net(x_VCTHW)
    with np.load(golden_models / "views.npz") as arrays:
        assert difference(ours, arrays[f"{view_set}/logits"]) < GATE


# Networks of bn_eps.json that bear another name here, and what their keys would tell.
OTHER_NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "slowonly_r50_nl_eg_4x16": ("slowonly_r50_nl_4x16", {}),
    "slowonly_r50_nl_eg_8x8": ("slowonly_r50_nl_8x8", {}),
    "slowfast_r50_8x8_steplr_lateralnorm": ("slowfast_r50_8x8", {"lateral_norm": True}),
    "slowfast_r101-r50_4x16": ("slowfast_r101_r50_4x16", {}),
    "tsm_r50_nl_eg_1x1x8": ("tsm_r50_nl_embedded_gaussian_1x1x8", {}),
    "tsm_r101_1x1x8_sthv2": ("tsm_r101_1x1x8", {}),
    "i3d_r50_nl_eg_32x2": ("i3d_r50_nl_embedded_gaussian_32x2", {}),
    "i3d_r50_nl_dot_32x2": ("i3d_r50_nl_dot_product_32x2", {}),
    "i3d_r50_nl_gauss_32x2": ("i3d_r50_nl_gaussian_32x2", {}),
    "tpn_tsm_r50_1x1x8_sthv1": ("tpn_tsm_r50_1x1x8", {}),
}


def test_batch_norms_have_the_eps_of_the_originals(golden_models: Path) -> None:
    """How many, and with which eps: 1e-5, but for CSN, and for R(2+1)D outside the middle of its pairs."""
    for name, facts in json.loads((golden_models / "bn_eps.json").read_text()).items():
        ours, told = OTHER_NAMES.get(name, (name, {}))
        if not models.list(ours):  # X3D and the like are not built here
            continue
        body = zoo.hollow(zoo.spec(ours, num_classes=400, **told))
        found = Counter(module.eps for module in body.modules() if isinstance(module, nn.BatchNorm3d))
        others = Counter(facts["exceptions"].values())
        assert found == others + Counter({facts["eps"]: facts["count"] - others.total()}), name


@pytest.mark.parametrize("arch", ["r3d_18", "r2plus1d_18", pytest.param("s3d", marks=pytest.mark.slow)])
def test_torchvision(arch: str, golden: Path, tmp_path: Path, other_rule: Any) -> None:
    listed = json.loads((golden / "others" / "models" / f"tv_{arch}.json").read_text())
    state = {key: torch.from_numpy(other_rule.tensor_for(key, shape)) for key, shape, _ in listed["keys"]}
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1)}, tmp_path / f"{arch}.pth")
    net = models.load(tmp_path / f"{arch}.pth")
    assert net.spec.name == arch
    with torch.inference_mode():
        ours = net(torch.from_numpy(other_rule.input_for(listed["input_shape"])))
    assert difference(ours, np.array(listed["logits_f32"]).reshape(listed["logits_shape"])) < GATE_OTHERS
