"""GluonCV's PyTorch state dicts -> ours. Pure: a state in, a new state out.

    conv1.weight, bn1.bias                       stem.conv.weight, stem.bn.bias
    first_stage.0.weight, first_stage.1.bias     the same in I3D
    layer1.0.downsample.0.weight                 res2.0.shortcut.conv.weight
    res_layers.1.3.nonlocal_block.W.weight       non_local.res3_3.out.weight
    fast_res2.0.conv1.weight                     fast.res2.0.conv1.conv.weight
    lateral_p1.0.weight, lateral_res2.1.bias     lateral.0.conv.weight, lateral.1.bn.bias
    layer1.0.conv2.conv1.weight                  res2.0.conv2.conv_s.weight (R(2+1)D v1; conv2_middle in v2)
    TPN_neck.level_fusion_op2.ops.0.norm.weight  level_fusion_1.downsamples.0.bn.weight
    fc.weight, out_fc.weight                     head.weight

Some files name a tensor twice (``fc`` and ``head.1``, ``W`` and ``W_bn.0``): as when torch loads them, the last wins.
All of them pool the whole map. 2D networks have the keys of torchvision's image ResNets: whether a file is one of those
only its name can say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from . import keys
from .files import File


def stage(found: re.Match[str], offset: int) -> str:
    return f"res{int(found[1]) + offset}.{found[2]}."


RENAMES = (
    (r"^first_stage\.0\.", "stem.conv."),
    (r"^first_stage\.1\.", "stem.bn."),
    (r"^(slow|fast)_(conv|bn)1\.", r"\1.stem.\2."),
    (r"^(slow|fast)_res", r"\1.res"),
    (r"^lateral_(p1|res[234])\.0\.", lambda found: f"lateral.{int(found[1][-1]) - 1}.conv."),
    (r"^lateral_(p1|res[234])\.1\.", lambda found: f"lateral.{int(found[1][-1]) - 1}.bn."),
    (r"^layer(\d)\.(\d+)\.", lambda found: stage(found, 1)),
    (r"^res_layers\.(\d)\.(\d+)\.", lambda found: stage(found, 2)),
    (r"^res(\d)\.(\d+)\.nonlocal_block\.(?:W_bn\.0|W)\.", r"non_local.res\1_\2.out."),
    (r"^res(\d)\.(\d+)\.nonlocal_block\.(?:W_bn\.1|bn)\.", r"non_local.res\1_\2.bn."),
    (r"^res(\d)\.(\d+)\.nonlocal_block\.", r"non_local.res\1_\2."),
    (r"down_?sample\.0\.", "shortcut.conv."),
    (r"down_?sample\.1\.", "shortcut.bn."),
    (r"^(?:fc|head\.1|out_fc)\.", "head."),
    (r"^TPN_neck\.temporal_modulation_ops\.(\d)\.conv\.", r"temporal_modulation.\1."),
    (r"^TPN_neck\.downsampling_ops\.0\.conv\.", "bottom_up."),
    (r"^TPN_neck\.spatial_modulation\.spatial_modulation\.0\.0\.", "spatial_modulation."),
    (r"^TPN_neck\.level_fusion_op2\.", "level_fusion_1."),
    (r"^TPN_neck\.level_fusion_op\.", "level_fusion_2."),
    (r"^(level_fusion_\d)\.ops\.(\d)\.norm\.", r"\1.downsamples.\2.bn."),
    (r"^(level_fusion_\d)\.ops\.", r"\1.downsamples."),
    (r"fusion_conv\.0\.", "fusion_conv.conv."),
    (r"fusion_conv\.1\.", "fusion_conv.bn."),
    (r"^TPN_neck\.pyramid_fusion_op\.0\.", "pyramid_fusion.conv."),
    (r"^TPN_neck\.pyramid_fusion_op\.1\.", "pyramid_fusion.bn."),
    (r"^TPN_neck\.aux_head\.convs\.", "aux_head.conv."),
    (r"^TPN_neck\.", ""),
)
BLOCKS = r"^((?:(?:slow|fast)\.)?res\d\.\d+\.)"
# After these, by family: the names inside a block, and those of the stem.
PLAIN = ((BLOCKS + r"conv(\d)\.(?=weight)", r"\1conv\2.conv."), (BLOCKS + r"bn(\d)\.", r"\1conv\2.bn."))
STEM = ((r"^conv1\.", "stem.conv."), (r"^bn1\.", "stem.bn."))
CSN = (  # its convolutions are called 1, 3 and 4
    (BLOCKS + r"conv3\.", r"\1conv2.0.conv."),
    (BLOCKS + r"bn3\.", r"\1conv2.0.bn."),
    (BLOCKS + r"conv4\.", r"\1conv3.conv."),
    (BLOCKS + r"bn4\.", r"\1conv3.bn."),
    (BLOCKS + r"conv1\.(?=weight)", r"\1conv1.conv."),
    (BLOCKS + r"bn1\.", r"\1conv1.bn."),
)
R2PLUS1D_V1 = (
    (r"^conv1\.", "stem.conv_s."),
    (r"^bn1\.", "stem.bn_s."),
    (r"^conv2\.", "stem.conv_t."),
    (r"^bn2\.", "stem.bn."),
    (BLOCKS + r"conv(\d)\.conv1\.", r"\1conv\2.conv_s."),
    (BLOCKS + r"conv(\d)\.bn1\.", r"\1conv\2.bn_s."),
    (BLOCKS + r"conv(\d)\.conv2\.", r"\1conv\2.conv_t."),
)
R2PLUS1D_V2 = (
    (r"^conv1_middle\.", "stem.conv_s."),
    (r"^bn1_middle\.", "stem.bn_s."),
    (r"^conv1\.", "stem.conv_t."),
    (r"^bn1\.", "stem.bn."),
    (BLOCKS + r"conv2_middle\.", r"\1conv2.conv_s."),
    (BLOCKS + r"bn2_middle\.", r"\1conv2.bn_s."),
    (BLOCKS + r"conv2\.(?=weight)", r"\1conv2.conv_t."),
)
FACTORED = {"with_pool1": False, "stem_channels": 45, "factored_shortcut": False}
WORDS = (
    (r"resnet(\d+)_v1b_sthsthv2", r"tsn_resnet\1_1x1x8"),
    (r"i3d_(resnet\d+)_v1_sthsthv2", r"i3d_\1_16x2"),
    (r"resnet(\d+)_v1b", r"tsn_resnet\1"),
    (r"i3d_slow", "slowonly"),
    (r"nl\d+", "nl_embedded_gaussian"),
    (r"f(\d+)s(\d+)", r"\1x\2"),
    (r"tpn", "tpn_slowonly"),
)
# The only published clip of each family; of 2D networks, if a file name says that it is one.
PRIORS = {"i3d": "32x2", "r2plus1d": "16x2", "ircsn": "32x2", "tsn": "1x1x7"}
MUST_BE_NAMED = ("tsn",)
ASSUMED: tuple[str, ...] = ()


def recognises(state: Mapping[str, Tensor]) -> bool:
    stems = ("first_stage.0.weight", "fast_conv1.weight", "conv1_middle.weight", "conv1.weight")
    return any(key in state for key in stems) and any(key in state for key in ("fc.weight", "out_fc.weight"))


def families(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    if any(key.startswith("TPN_neck.") for key in state):
        return ("tpn",)
    if "layer1.0.conv4.weight" in state:
        return ("csn",)
    if "conv2.weight" in state or "conv1_middle.weight" in state:
        return ("r2plus1d",)
    if "conv1.weight" in state and state["conv1.weight"].ndim == 4:
        return ("tsn",)
    return (keys.family(adapt(state)),)


def arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    if "conv1_middle.weight" in state:
        return {**FACTORED, "middle_of": "conv", "eps": 1e-3, "middle_eps": 1e-3}
    match families(state):
        case ("r2plus1d",):
            return {**FACTORED, "middle_of": "block", "eps": 1e-5, "middle_eps": 1e-5}
        case ("tsn",):
            return {}
        case ("csn",):
            return {"eps": 1e-3, "with_pool1": True, "with_pool2": False}
        case ("tpn",):
            return {"aux_head": "TPN_neck.aux_head.fc.weight" in state}
    found = {"with_pool1": True} | keys.told(adapt(state))
    if "non_local" in found:
        found |= {"non_local_mode": "embedded_gaussian", "non_local_scale": True}
        found |= {"non_local_pool": False, "non_local_out_bias": True}
    return found


def adapt(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """2D kernels become kernels of one frame."""
    renamed = names(state)
    return {renamed[key]: value.unsqueeze(2) if value.ndim == 4 else value for key, value in state.items()}


def names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Their keys -> ours. A key that no rule knows keeps its name, so that the caller reports it as unused."""
    rules: tuple[Any, ...] = (*RENAMES, *STEM, *PLAIN)
    if "layer1.0.conv4.weight" in state:
        rules = (*RENAMES, *STEM, *CSN)
    elif "conv1_middle.weight" in state:
        rules = (*RENAMES, *R2PLUS1D_V2, *PLAIN)
    elif "conv2.weight" in state:
        rules = (*RENAMES, *R2PLUS1D_V1, *PLAIN)
    renamed = {}
    for key in state:
        ours = key
        for pattern, replacement in rules:
            ours = re.sub(pattern, replacement, ours)
        renamed[key] = ours
    return renamed


def facts(file: File) -> dict[str, Any]:
    return {}


def origin(top: Mapping[str, Any], file_name: str) -> tuple[str, str]:
    return "gluoncv", "keys"
