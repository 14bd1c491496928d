"""What our keys and shapes say about a residual network, whichever program its weights come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..nets.resnet3d import STAGES, BasicBlock, Bottleneck


def family(state: Mapping[str, Tensor]) -> str:
    """Of a state with our keys: "slowfast", "i3d", "slowonly" or "c2d", told by where its kernels look along time."""
    if "fast.stem.conv.weight" in state:
        return "slowfast"
    stem = state.get("stem.conv.weight")
    if stem is not None and stem.shape[2] > 1:
        return "i3d"
    return "slowonly" if any(value.shape[2:3] == (3,) for value in state.values()) else "c2d"


def told(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of a network that a state with our keys tells: ``non_local``, and what SlowFast's pathways have."""
    found: dict[str, Any] = {}
    slow = "slow." if "lateral.0.conv.weight" in state else ""
    followed = {match[1] for key in state if (match := re.search(r"non_local\.(res\d_\d+)\.g\.", key))}
    if followed:
        found["non_local"] = [
            [int(f"res{s}_{i}" in followed) for i in range(num)] for s, num in num_blocks(state, slow)
        ]
    if slow:
        found["fusion_kernel"] = state["lateral.0.conv.weight"].shape[2]
        found["lateral_norm"] = "lateral.0.bn.weight" in state
        found |= {f"{pathway}_inflate": inflate(state, f"{pathway}.") for pathway in ("slow", "fast")}
    return found


def structure(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Depth and patterns of a state with our keys: what is put in place of a named network's where no name fits."""
    slow = "slow." if "fast.stem.conv.weight" in state else ""
    found = told(state)
    for argument, prefix in (("depth", slow), ("fast_depth", "fast.")):
        counts = tuple(num for _, num in num_blocks(state, prefix))
        kind = Bottleneck if f"{prefix}res2.0.conv3.conv.weight" in state else BasicBlock
        depths = [depth for depth, stages in STAGES.items() if stages == (kind, counts)]
        if depths:
            found[argument] = depths[0]
    return found | ({} if slow else {"inflate": inflate(state, "")})


def num_blocks(state: Mapping[str, Tensor], prefix: str) -> list[tuple[int, int]]:
    """(stage, how many blocks it has) of res2 to res5."""
    found = re.findall(rf"^{re.escape(prefix)}res(\d)\.(\d+)\.", "\n".join(state), re.MULTILINE)
    return [
        (stage, 1 + max((int(block) for each, block in found if int(each) == stage), default=-1))
        for stage in range(2, 6)
    ]


def inflate(state: Mapping[str, Tensor], prefix: str) -> list[list[int]]:
    """Which blocks look along time; a stage of which nothing is left counts as one without blocks."""
    names = [
        [f"{prefix}res{stage}.{block}.conv1.conv.weight" for block in range(num)]
        for stage, num in num_blocks(state, prefix)
    ]
    return [[int(name in state and state[name].shape[2] > 1) for name in stage] for stage in names]
