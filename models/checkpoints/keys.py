"""What our keys and shapes say about a residual network, whichever program its weights come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def family(state: Mapping[str, Tensor]) -> str:
    """Of a state with our keys: "slowfast", "i3d", "slowonly" or "c2d", told by where its kernels look along time."""
    if "fast.stem.conv.weight" in state:
        return "slowfast"
    if state["stem.conv.weight"].shape[2] > 1:
        return "i3d"
    return "slowonly" if any(value.shape[2:3] == (3,) for value in state.values()) else "c2d"


def told(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of a network that a state with our keys tells: ``non_local``, and what SlowFast's pathways have."""
    found: dict[str, Any] = {}
    non_local = {match[1] for key in state if (match := re.search(r"non_local\.(res\d_\d+)\.g\.", key))}
    if non_local:
        found["non_local"] = [[int(name in non_local) for name in stage] for stage in block_names(state)]
    if "lateral.0.conv.weight" in state:
        found["fusion_kernel"] = state["lateral.0.conv.weight"].shape[2]
        found["lateral_norm"] = "lateral.0.bn.weight" in state
        found |= {f"{pathway}_inflate": inflate(state, pathway) for pathway in ("slow", "fast")}
    return found


def block_names(state: Mapping[str, Tensor]) -> list[list[str]]:
    """Names of the blocks of res2 to res5: "res2_0", "res2_1", ... of the slow pathway where there are two."""
    stages = []
    for stage in range(2, 6):
        pattern = re.compile(rf"^(?:slow\.)?res{stage}\.(\d+)\.conv1\.conv\.weight$")
        numbers = sorted(int(match[1]) for key in state if (match := pattern.match(key)))
        stages.append([f"res{stage}_{number}" for number in numbers])
    return stages


def inflate(state: Mapping[str, Tensor], pathway: str) -> list[list[int]]:
    """Which blocks of a pathway look along time."""
    return [
        [int(state[f"{pathway}.{name.replace('_', '.')}.conv1.conv.weight"].shape[2] > 1) for name in stage]
        for stage in block_names(state)
    ]
