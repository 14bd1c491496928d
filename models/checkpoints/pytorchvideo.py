"""pytorchvideo's state dicts -> ours. Pure: a state in, a new state out.

    blocks.0.conv.weight                                          stem.conv.weight
    blocks.0.multipathway_blocks.1.norm.bias                      fast.stem.bn.bias
    blocks.1.res_blocks.0.branch1_norm.weight                     res2.0.shortcut.bn.weight
    blocks.3.multipathway_blocks.0.res_blocks.2.branch2.conv_a.weight   slow.res4.2.conv1.conv.weight
    blocks.0.multipathway_fusion.conv_fast_to_slow.weight         lateral.0.conv.weight
    blocks.5.proj.weight (blocks.6 behind a block that pools)     head.weight

The networks are PySlowFast's; the head takes the mean of the logits over positions (pytorchvideo/models/head.py), but
R(2+1)D's has a softmax before that mean (r2plus1d.py: ``head_activation``). CSN has eps 1e-5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from . import keys, pyslowfast
from .files import File

RENAMES = (
    (r"multipathway_blocks\.0\.", "slow."),
    (r"multipathway_blocks\.1\.", "fast."),
    (r"^(stage\d)\.(slow|fast)\.", r"\2.\1."),
    (r"^((?:slow|fast)\.)?stage1\.conv\.", r"\1stem.conv."),
    (r"^((?:slow|fast)\.)?stage1\.norm\.", r"\1stem.bn."),
    (r"stage(\d)\.res_blocks\.", r"res\1."),
    (r"^stage(\d)\.multipathway_fusion\.conv_fast_to_slow\.", lambda found: f"lateral.{int(found[1]) - 1}.conv."),
    (r"^stage(\d)\.multipathway_fusion\.norm\.", lambda found: f"lateral.{int(found[1]) - 1}.bn."),
    (r"branch1_conv\.", "shortcut.conv."),
    (r"branch1_norm\.", "shortcut.bn."),
    (r"branch2\.conv_b\.conv_t\.", "conv2.conv_t."),  # R(2+1)D
    (r"branch2\.conv_b\.norm\.", "conv2.bn_s."),
    (r"branch2\.conv_b\.conv_xy\.", "conv2.conv_s."),
    (r"branch2\.conv_([abc])\.", lambda found: f"conv{'abc'.index(found[1]) + 1}.conv."),
    (r"branch2\.norm_([abc])\.", lambda found: f"conv{'abc'.index(found[1]) + 1}.bn."),
    (r"^stage\d\.proj\.", "head."),
)
R2PLUS1D = {
    "stem_channels": 0,
    "with_pool1": False,
    "middle_of": "out",
    "factored_shortcut": False,
    "temporal_first": True,
    "temporal_strides": (1, 1, 2, 2),
    "spatial_strides": (2, 2, 2, 2),
    "eps": 1e-5,
    "middle_eps": 1e-5,
}
WORDS = ((r"\bslow_", "slowonly_"), (r"\bcsn_", "ircsn_"))
# The only published clip of each; Slow and SlowFast R50 of its hub (models/hub) are 8x8.
PRIORS = {"i3d": "8x8", "c2d": "8x8", "slowonly": "8x8", "slowfast": "8x8", "ircsn": "32x2", "r2plus1d": "16x4"}
MUST_BE_NAMED: tuple[str, ...] = ()
ASSUMED: tuple[str, ...] = ()


def recognises(state: Mapping[str, Tensor]) -> bool:
    return any(re.match(r"(model\.)?blocks\.0\.(multipathway_blocks\.0\.)?conv\.", key) for key in state)


def families(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """None for X3D, which is not built here."""
    adapted = adapt(state)
    if any(key.endswith("blocks.0.conv.conv_xy.weight") for key in state):
        return ()
    if "res2.0.conv2.conv_t.weight" in adapted:
        return ("r2plus1d",)
    if "res2.0.conv2.0.conv.weight" in adapted:
        return ("csn",)
    return (keys.family(adapted),)


def arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    family = families(state)[0]
    if family == "r2plus1d":
        return {**pyslowfast.INPUT, **R2PLUS1D, "head_pool": "softmax"}
    if family == "csn":
        return {**pyslowfast.INPUT, "eps": 1e-5, "with_pool1": True, "with_pool2": False, "head_pool": "logits"}
    return pyslowfast.of_network(adapt(state)) | {"head_pool": "logits"}


def adapt(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {ours: state[theirs] for theirs, ours in names(state).items()}


def names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Their keys -> ours. Blocks without weights are numbered too: stages are counted by those that have some."""
    blocks = sorted({int(match[1]) for key in state if (match := re.match(r"(?:model\.)?blocks\.(\d+)\.", key))})
    # A kernel a channel: CSN, whose middle is a list of one here, of two in its other form.
    separated = any(key.endswith("conv_b.weight") and value.shape[1] == 1 for key, value in state.items())
    renamed = {}
    for key in state:
        match = re.match(r"(?:model\.)?blocks\.(\d+)\.(.*)", key)
        ours = f"stage{blocks.index(int(match[1])) + 1}.{match[2]}" if match else key
        for pattern, replacement in RENAMES:
            ours = re.sub(pattern, replacement, ours)
        renamed[key] = re.sub(r"(res\d\.\d+\.conv2)\.", r"\1.0.", ours) if separated else ours
    return renamed


def facts(file: File) -> dict[str, Any]:
    """PySlowFast trains these networks too and leaves its config in the file.

    It wraps them in a ``model``, gives their heads a window whatever the training, and takes the softmax before the
    mean over positions, as of its own networks (slowfast/models/ptv_model_builder.py).
    """
    found = pyslowfast.facts(file)
    if found:
        found["network"].pop("head_pool", None)
        if any(key.startswith("model.") for key in file.state):
            found["network"]["head_pool"] = "softmax"
    return found


def origin(top: Mapping[str, Any], file_name: str) -> tuple[str, str]:
    return "pytorchvideo", "keys"
