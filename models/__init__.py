"""Networks by name, and the checkpoints that people have.

    net = models.load("ckpt.pth")                              eval mode; CheckpointError says what a file lacks
    net = models.create("slowonly_r50_4x16", num_classes=400)  new weights from torch's generator
    logits = net(net.normalise(clips))                         [N, C, T, H, W] -> [N, classes]
    models.list("slow*")

Importing this package imports no torch: the names below come when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datakit.errors import CheckpointError

if TYPE_CHECKING:
    from .checkpoints import load, save
    from .zoo import ModelSpec, Recognizer, create
    from .zoo import names as list

__all__ = ["CheckpointError", "ModelSpec", "Recognizer", "create", "list", "load", "save"]


def __getattr__(name: str) -> Any:
    if name in ("load", "save"):
        from . import checkpoints

        return getattr(checkpoints, name)
    if name in __all__:
        from . import zoo

        return getattr(zoo, "names" if name == "list" else name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
