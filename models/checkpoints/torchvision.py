"""torchvision's video networks -> ours: the classifier has another name, everything else moves under ``trunk``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .files import File

WORDS: tuple[tuple[str, str], ...] = ()
PRIORS: dict[str, str] = {}
MUST_BE_NAMED: tuple[str, ...] = ()
ASSUMED: tuple[str, ...] = ()


def recognises(state: Mapping[str, Tensor]) -> bool:
    resnet = "stem.0.weight" in state and any(key.startswith("layer1.0.conv1.0.") for key in state)
    s3d = "features.0.0.0.weight" in state and "classifier.1.weight" in state
    return resnet or s3d


def families(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    return ("torchvision",)


def arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {}


def adapt(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our keys for torchvision's; S3D's 1x1x1 convolution becomes the linear layer it is."""
    return {rename(key): value.flatten(1) if key == "classifier.1.weight" else value for key, value in state.items()}


def rename(key: str) -> str:
    for classifier in ("fc.", "classifier.1."):
        if key.startswith(classifier):
            return "head." + key.removeprefix(classifier)
    return f"trunk.{key}"


def names(state: Mapping[str, Tensor]) -> dict[str, str]:
    return {key: rename(key) for key in state}


def facts(file: File) -> dict[str, Any]:
    return {}


def origin(top: Mapping[str, Any], file_name: str) -> tuple[str, str]:
    return "torchvision", "keys"
