"""The Caffe2 files of PySlowFast's model zoo -> ours. Pure: a state in, a new state out.

    conv1_w, t_conv1_w                          stem.conv.weight; with two pathways slow.stem..., fast.stem...
    res_conv1_bn_riv                            stem.bn.running_var
    res4_5_branch2c_bn_s                        res4.5.conv3.bn.weight
    t_res2_0_branch1_w                          fast.res2.0.shortcut.conv.weight
    t_pool1_subsample_w                         lateral.0.conv.weight
    t_res3_3_branch2c_bn_subsample_bn_rm        lateral.2.bn.running_mean
    nonlocal_conv3_1_theta_b                    non_local.res3_1.theta.bias
    pred_w                                      head.weight

The networks are PySlowFast's (slowfast/utils/c2_model_loading.py), but C2D has no pooling along time
(configs/Kinetics/c2/C2D_NOPOOL_8x8_R50.yaml).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from . import keys, pyslowfast
from .files import File

RENAMES = (
    (r"^t_pool1_subsample_", "lateral.0.conv_"),
    (r"^t_res(\d)_\d+_branch2c_bn_subsample_", lambda found: f"lateral.{int(found[1]) - 1}.conv_"),
    (r"^t_", "fast."),
    (r"^(fast\.)?res_conv1_bn_", r"\1stem.conv_bn_"),
    (r"^(fast\.)?conv1_", r"\1stem.conv_"),
    (r"res(\d)_(\d+)_branch1_", r"res\1.\2.shortcut.conv_"),
    (r"res(\d)_(\d+)_branch2([abc])_", lambda found: f"res{found[1]}.{found[2]}.conv{'abc'.index(found[3]) + 1}.conv_"),
    (r"^nonlocal_conv(\d)_(\d+)_", r"non_local.res\1_\2."),
    (r"^pred_", "head_"),
    (r"(?:conv_)?bn_s$", "bn.weight"),
    (r"(?:conv_)?bn_b$", "bn.bias"),
    (r"(?:conv_)?bn_rm$", "bn.running_mean"),
    (r"(?:conv_)?bn_riv$", "bn.running_var"),
    (r"_w$", ".weight"),
    (r"_b$", ".bias"),
)
# What the solver left beside the weights.
LEFT_OUT = re.compile(r"_momentum$|^lr$|^model_iter$")
WORDS = pyslowfast.WORDS
PRIORS = pyslowfast.PRIORS
MUST_BE_NAMED: tuple[str, ...] = ()
ASSUMED = pyslowfast.ASSUMED


def recognises(state: Mapping[str, Tensor]) -> bool:
    return "conv1_w" in state and "pred_w" in state


def families(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    return (keys.family(adapt(state)),)


def arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    found = pyslowfast.of_network(adapt(state))
    return found | ({"with_pool2": False} if families(state) == ("c2d",) else {})


def adapt(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    adapted = {ours: state[theirs] for theirs, ours in names(state).items()}
    if "head.weight" in adapted:
        adapted["head.weight"] = adapted["head.weight"].flatten(1)  # some have it as a convolution
    return adapted


def names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Blobs -> our keys. A blob that no rule knows keeps its name, so that the caller reports it as unused."""
    slow = "slow." if "t_conv1_w" in state else ""
    renamed = {}
    for key in state:
        if LEFT_OUT.search(key):
            continue
        ours = key
        for pattern, replacement in RENAMES:
            ours = re.sub(pattern, replacement, ours)
        renamed[key] = slow + ours if re.match(r"stem\.|res\d\.|non_local\.", ours) else ours
    return renamed


def facts(file: File) -> dict[str, Any]:
    return {}


def origin(top: Mapping[str, Any], file_name: str) -> tuple[str, str]:
    return "pyslowfast-caffe2", "blobs of Caffe2"
