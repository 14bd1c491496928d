"""mmaction2's state dicts (0.x and 1.x have the same keys) -> ours. Pure: a state in, a new state out.

For instance:

    backbone.conv1.conv.weight              stem.conv.weight
    backbone.layer1.0.conv1.bn.bias         res2.0.conv1.bn.bias
    backbone.layer1.0.downsample.conv.weight  res2.0.shortcut.conv.weight
    cls_head.fc_cls.weight                  head.weight
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

RENAMES = (
    (r"^backbone\.conv1\.", "stem."),
    (r"^backbone\.layer(\d+)\.(\d+)\.downsample\.", lambda found: f"res{int(found[1]) + 1}.{found[2]}.shortcut."),
    (r"^backbone\.layer(\d+)\.(\d+)\.", lambda found: f"res{int(found[1]) + 1}.{found[2]}."),
    (r"^cls_head\.fc_cls\.", "head."),
)
# mmcv's EMAHook keeps the weights it replaced as buffers of the model, dots turned to underscores.
REPLACED_BY_EMA = re.compile(r"^ema_\w+$")


def recognises(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith(("backbone.", "cls_head.")) for key in state)


def adapt(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our keys for mmaction2's; a key that no rule knows keeps its name, so that the caller reports it as unused."""
    return {rename(key): value for key, value in state.items() if not REPLACED_BY_EMA.match(key)}


def rename(key: str) -> str:
    for pattern, replacement in RENAMES:
        new, count = re.subn(pattern, replacement, key)
        if count:
            return new
    return key


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
