"""Several data sets, one network: a head for each while it trains, the first one alone in the end (OmniSource).

The heads are one linear layer whose outputs stand one set behind the other; each clip's softmax is over those of its
own set (``data.cross_entropy``), which is what separate layers would learn. Duan et al., "Omni-sourced Webly-supervised
Learning for Video Recognition" (2020).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from datakit.files import replacing

from .. import zoo


class DataSet(Protocol):
    """``datakit.manifest.Manifest`` is one."""

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...


def class_names(first: DataSet, others: Sequence[DataSet]) -> tuple[str, ...]:
    """The first set's names as they are, those of the others with the number and name of their set in front."""
    more = [f"{number}:{other.name}:{name}" for number, other in enumerate(others, start=2) for name in other.classes]
    return (*first.classes, *more)


def keep_first(path: Path, num_classes: int) -> None:
    """Cut a checkpoint of ours to its first ``num_classes`` outputs; nothing happens when it has no more, or is not
    there. What is cut is every tensor that would be smaller in a network of so many classes."""
    if not path.is_file():
        return
    saved = torch.load(path, weights_only=True, map_location="cpu")
    spec = zoo.ModelSpec.from_dict(saved["spec"])
    if spec.num_classes == num_classes:
        return
    own = dataclasses.replace(spec, num_classes=num_classes, classes=spec.classes and spec.classes[:num_classes])
    shapes = zoo.shapes(zoo.hollow(own))
    state = {key: value[: shapes[key][0]] if value.dim() else value for key, value in saved["state_dict"].items()}
    with replacing(path) as part:
        torch.save(
            {**saved, "spec": own.to_dict(), "state_dict": {key: one.clone() for key, one in state.items()}}, part
        )
