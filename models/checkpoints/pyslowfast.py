"""PySlowFast's state dicts -> ours. Pure: a state in, a new state out.

    s1.pathway0_stem.conv.weight                 stem.conv.weight, slow.stem.conv.weight where there are two pathways
    s2.pathway1_res0.branch1_bn.bias             fast.res2.0.shortcut.bn.bias
    s4.pathway0_res5.branch2.c.weight            res4.5.conv3.conv.weight
    s3.pathway0_nonlocal1.conv_theta.weight      non_local.res3_1.theta.weight
    s1_fuse.conv_f2s.weight                      lateral.0.conv.weight
    head.projection.weight                       head.weight

What no key tells and all its networks have: slow frames spread to the last one (slowfast/datasets/utils.py:78), softmax
before the mean over positions (slowfast/models/head_helper.py:338), no stride along time in I3D
(slowfast/models/video_model_builder.py), non-local blocks that pool before they embed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from . import keys
from .files import File

RENAMES = (
    (r"^s(\d)\.pathway(\d)_stem\.", r"\2.stem."),
    (r"^s(\d)\.pathway(\d)_res(\d+)\.", r"\2.res\1.\3."),
    (r"branch1_bn\.", "shortcut.bn."),
    (r"branch1\.", "shortcut.conv."),
    (r"branch2\.([abc])_bn\.", lambda found: f"conv{'abc'.index(found[1]) + 1}.bn."),
    (r"branch2\.([abc])\.", lambda found: f"conv{'abc'.index(found[1]) + 1}.conv."),
    (r"^s(\d)\.pathway(\d)_nonlocal(\d+)\.(?:conv_)?", r"\2.non_local.res\1_\3."),
    (r"(non_local\.\w+)\.norm\.", r"\1.bn."),  # the name of later versions
    (r"^s(\d)_fuse\.conv_f2s\.", lambda found: f"lateral.{int(found[1]) - 1}.conv."),
    (r"^s(\d)_fuse\.bn\.", lambda found: f"lateral.{int(found[1]) - 1}.bn."),
    (r"^head\.projection\.", "head."),
)
INPUT: dict[str, Any] = {"mean": (114.75,) * 3, "std": (57.375,) * 3}
# What the configs of each family have: configs/Kinetics/*NLN*.yaml.
NON_LOCAL_MODES = {
    "i3d": "embedded_gaussian",
    "c2d": "embedded_gaussian",
    "slowonly": "dot_product",
    "slowfast": "dot_product",
}
OF_FAMILY: dict[str, dict[str, Any]] = {
    "slowfast": {"slow_frames": "spread"},
    "i3d": {"conv1_stride_t": 1, "pool1_stride_t": 1},
    "c2d": {"pool1_padding": 1},
    "slowonly": {"with_pool1": True},
}
WORDS = ((r"nln", "nl"), (r"\bslow_", "slowonly_"))
PRIORS = {"i3d": "8x8", "c2d": "8x8"}  # the only clips that its configs train these two with
MUST_BE_NAMED: tuple[str, ...] = ()
ASSUMED = ("non_local_mode",)


def recognises(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("s1.pathway0_stem.") for key in state)


def families(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """None for X3D, which is not built here."""
    return () if "s1.pathway0_stem.conv_xy.weight" in state else (keys.family(adapt(state)),)


def arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return of_network(adapt(state))


def of_network(adapted: Mapping[str, Tensor]) -> dict[str, Any]:
    """What every network of PySlowFast's has, for a state with our keys."""
    family = keys.family(adapted)
    found = INPUT | OF_FAMILY[family] | keys.told(adapted) | {"head_pool": "softmax"}
    if "non_local" in found:
        mode = NON_LOCAL_MODES[family]
        found |= {"non_local_mode": mode, "non_local_scale": mode == "embedded_gaussian"}
        found |= {"non_local_pool_first": True, "non_local_out_bias": True}
    return found


def adapt(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {ours: state[theirs] for theirs, ours in names(state).items()}


def names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Their keys -> ours. A key that no rule knows keeps its name, so that the caller reports it as unused."""
    pathways = ("slow.", "fast.") if any(".pathway1_" in key for key in state) else ("",)
    renamed = {}
    for key in state:
        ours = key
        for pattern, replacement in RENAMES:
            ours = re.sub(pattern, replacement, ours)
        if ours[0].isdigit() and int(ours[0]) < len(pathways):
            ours = pathways[int(ours[0])] + ours[2:]
        renamed[key] = ours
    return renamed


def facts(file: File) -> dict[str, Any]:
    """What the config that it keeps in a checkpoint says (``cfg``, YAML): the clip, the crop, and what no key tells."""
    text = file.top.get("cfg")
    values = settings(text) if isinstance(text, str) else {}
    if "DATA.NUM_FRAMES" not in values:
        return {}
    found = {"clip_len": values["DATA.NUM_FRAMES"], "frame_interval": values.get("DATA.SAMPLING_RATE", 1)}
    if "DATA.TRAIN_CROP_SIZE" in values:
        found["train_crop_px"] = values["DATA.TRAIN_CROP_SIZE"]
    for ours, theirs in (("mean", "DATA.MEAN"), ("std", "DATA.STD")):
        if isinstance(values.get(theirs), list):
            found[ours] = tuple(255.0 * value for value in values[theirs])
    network: dict[str, Any] = {}
    if "SLOWFAST.ALPHA" in values:
        network |= dict.fromkeys(("resample_rate", "speed_ratio"), values["SLOWFAST.ALPHA"])
    if str(values.get("MULTIGRID.SHORT_CYCLE")).lower() == "true":  # its crops change, so its head pools any map whole
        network["head_pool"] = "global"
    arch = values.get("MODEL.ARCH", "")
    if arch in ("c2d", "i3d", "c2d_nopool", "i3d_nopool"):
        network["with_pool2"] = not arch.endswith("nopool")
    if "NONLOCAL.INSTANTIATION" in values:
        softmax = values["NONLOCAL.INSTANTIATION"] == "softmax"
        network |= {"non_local_mode": "embedded_gaussian" if softmax else "dot_product", "non_local_scale": softmax}
    return found | {"network": network}


def settings(text: str) -> dict[str, Any]:
    """``SECTION.NAME`` -> number, word or list of numbers, of the block YAML that its configs are dumped as."""
    found: dict[str, Any] = {}
    section = name = ""
    for line in text.splitlines():
        if match := re.match(r"^([A-Z]\w*):\s*$", line):
            section = match[1]
        elif match := re.match(r"^ +([A-Z]\w*):\s*(\S.*)?$", line):
            name = f"{section}.{match[1]}"
            found[name] = scalar(match[2])
        elif (match := re.match(r"^ +- ([-+.\d]+(?:e[-+]?\d+)?)$", line)) and name:
            listed = found[name] if isinstance(found[name], list) else []
            found[name] = [*listed, scalar(match[1])]
    return found


def scalar(text: str | None) -> Any:
    """A number, a list of numbers in brackets, or the word itself."""
    if text is None:
        return None
    if text.startswith("[") and text.endswith("]"):
        return [scalar(part.strip()) for part in text[1:-1].split(",")]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip("'\"")


def origin(top: Mapping[str, Any], file_name: str) -> tuple[str, str]:
    return "pyslowfast", "keys"
