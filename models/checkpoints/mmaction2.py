"""mmaction2's state dicts (0.x and 1.x have the same keys) -> ours. Pure: a state in, a new state out.

For instance:

    backbone.conv1.conv.weight                           stem.conv.weight
    backbone.layer1.0.downsample.bn.bias                 res2.0.shortcut.bn.bias
    backbone.layer2.1.non_local_block.phi.0.conv.weight  non_local.res3_1.phi.weight
    backbone.slow_path.layer1_lateral.conv.weight        lateral.1.conv.weight
    cls_head.fc_cls.weight                               head.weight

Networks that look at each frame alone have 2D kernels there and kernels of one frame here. SlowFast's classifier takes
[fast, slow] there (slowfast_head.py:73) and [slow, fast] here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from . import config
from .files import File

# Applied one after the other to every key.
RENAMES = (
    (r"^backbone\.slow_path\.conv1_lateral\.", "lateral.0."),
    (r"^backbone\.slow_path\.layer(\d)_lateral\.", r"lateral.\1."),
    (r"^backbone\.(slow|fast)_path\.", r"\1."),
    (r"^backbone\.", ""),
    (r"^((?:slow|fast)\.)?conv1\.", r"\1stem."),
    (r"\.block\.", "."),  # TSM wraps the blocks that a non-local block follows
    (r"\.net\.", "."),  # and what it shifts or pools for
    (r"layer(\d)\.(\d+)\.non_local_block\.", lambda found: f"non_local.res{int(found[1]) + 1}_{found[2]}."),
    (r"^(non_local\.\w+\.\w+)(?:\.0)?\.conv\.", r"\1."),
    (r"\.conv_out\.bn\.", ".bn."),
    (r"\.conv_out\.", ".out."),
    (r"layer(\d)\.", lambda found: f"res{int(found[1]) + 1}."),
    (r"\.downsample\.", ".shortcut."),
    (r"\.conv\.(conv_s|bn_s|conv_t)\.", r".\1."),  # R(2+1)D wraps each pair of convolutions
    (r"^neck\.spatial_modulation\.spatial_modulation\.0\.0\.", "spatial_modulation."),
    (r"^neck\.temporal_modulation_ops\.(\d)\.conv\.conv\.", r"temporal_modulation.\1."),
    (r"^neck\.downsample_ops\.0\.conv\.conv\.", "bottom_up."),
    (r"^neck\.(level_fusion_\d\.downsamples\.\d)\.conv\.", r"\1."),
    (r"^neck\.", ""),
    (r"^cls_head\.fc_cls\.", "head."),
)
# Left out: mmcv's EMAHook keeps the weights it replaced as buffers of the model, dots turned to underscores; TPN's head
# keeps the copy of its classifier that the first validation was made with (tpn_head.py: new_cls).
LEFT_OUT = re.compile(r"^ema_\w+$|^cls_head\.new_cls\.(weight|bias)$")

WORDS: tuple[tuple[str, str], ...] = ()
# The only clip at that depth; and VMZ's mean and std are those of the few files that are named after them.
PRIORS = {"slowonly_r101": "8x8", "ircsn_r152": "32x2", "ipcsn_r152": "32x2"}
MUST_BE_NAMED: tuple[str, ...] = ()
ASSUMED: tuple[str, ...] = ()


def recognises(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith(("backbone.", "cls_head.")) for key in state)


def families(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The families of networks that have such keys and shapes; none for the backbones that are not built here."""
    if any(key.startswith("backbone.slow_path.") for key in state):
        return ("slowfast",)
    if any(key.startswith("neck.") for key in state):
        return ("tpn",)
    if "backbone.conv1.conv.conv_s.weight" in state:
        return ("r2plus1d",)
    if "backbone.layer1.0.conv2.0.conv.weight" in state:
        return ("csn",)
    stem = state.get("backbone.conv1.conv.weight")
    if stem is None:  # ResNeXt, DenseNet, Swin, X3D, C3D, ...
        return ()
    shifts = any(".net." in key for key in state)
    if "backbone.conv2.conv.weight" in state:
        return ("tsm-mobilenetv2",) if shifts else ()
    if stem.ndim == 4:
        return ("tsm",) if shifts else ("tsn", "c2d")
    return ("i3d",) if stem.shape[2] > 1 else ("slowonly",)


def arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of our networks that mmaction2's keys and shapes tell, and a renamed key tells no more."""
    found: dict[str, Any] = {}
    lateral = state.get("backbone.slow_path.conv1_lateral.conv.weight")
    if lateral is not None:
        found |= {"fusion_kernel": lateral.shape[2], "slow_frames": "stride"}
        found["lateral_norm"] = "backbone.slow_path.conv1_lateral.bn.weight" in state
    if any(key.startswith("backbone.layer2.net.") for key in state):
        found["temporal_pool"] = True
    if "backbone.layer1.0.net.conv1.conv.weight" in state:
        found["shift_place"] = "block"
    if any(key.endswith(".non_local_block.g.conv.weight") for key in state):
        found["non_local_pool"] = False
    if any(key.startswith("neck.") for key in state):
        found["aux_head"] = "neck.aux_head.fc.weight" in state
    return found


def adapt(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our keys for mmaction2's; a key that no rule knows keeps its name, so that the caller reports it as unused."""
    adapted = {}
    for key, value in state.items():
        if LEFT_OUT.match(key):
            continue
        adapted[rename(key)] = value.unsqueeze(2) if value.ndim == 4 else value
    fast = [value.shape[0] for key, value in adapted.items() if re.match(r"fast\.res5\.0\.shortcut\.conv", key)]
    if fast and "head.weight" in adapted:
        fast_first = adapted["head.weight"]
        adapted["head.weight"] = torch.cat((fast_first[:, fast[0] :], fast_first[:, : fast[0]]), dim=1)
    return adapted


def rename(key: str) -> str:
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def names(state: Mapping[str, Tensor]) -> dict[str, str]:
    return {key: rename(key) for key in state}


def facts(file: File) -> dict[str, Any]:
    return config.facts(file.config_text)


def origin(top: Mapping[str, Any], file_name: str) -> tuple[str, str]:
    """("mmaction2-0.x" or "mmaction2-1.x", how it was known): the two sample test clips differently."""
    meta = top.get("meta")
    if isinstance(meta, Mapping):
        if "mmengine_version" in meta or "message_hub" in top:
            return "mmaction2-1.x", "mmengine in the file"
        if "mmcv_version" in meta or "mmaction_version" in meta:
            return "mmaction2-0.x", "mmcv in the file"
    if re.search(r"\d+xb\d+[-_]", file_name):
        return "mmaction2-1.x", "file name"
    return "mmaction2-0.x", "assumed: the file does not say which version of mmaction2 trained it"
