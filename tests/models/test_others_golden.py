"""The logits of PySlowFast's, pytorchvideo's and GluonCV's own networks, through files as a user has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models

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


def weights(listed: dict[str, Any], rule: Any) -> dict[str, torch.Tensor]:
    """The state dict of a golden network, by its rule."""
    scales = listed.get("scale_keys_after_rule", {})
    return {key: torch.from_numpy(rule.tensor_for(key, shape)) * scales.get(key, 1) for key, shape, _ in listed["keys"]}


def difference(ours: torch.Tensor, golden: Any) -> float:
    return float(np.abs(ours.numpy() - golden).max() / np.abs(golden).max())


@pytest.mark.parametrize("name", FILES)
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
