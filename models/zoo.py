"""A name carries its network and its input recipe; both are rows of ``manifests/models.toml``."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import manifests
from datakit.errors import UsageError

from .nets.csn import Csn
from .nets.mobilenet_v2 import MobileNetV2
from .nets.r2plus1d import R2plus1d
from .nets.resnet3d import ResNet3d
from .nets.slowfast import SlowFast
from .nets.torchvision_video import TorchvisionVideo
from .nets.tpn import Tpn

InputKind = Literal["rgb", "flow", "rgb-diff"]
# family -> network. A network takes its constructor arguments from the row's table [networks.NAME.network].
BUILDERS: dict[str, type[nn.Module]] = {
    "slowonly": ResNet3d,
    "slowfast": SlowFast,
    "i3d": ResNet3d,
    "c2d": ResNet3d,
    "tsn": ResNet3d,
    "tsm": ResNet3d,
    "tsm-mobilenetv2": MobileNetV2,
    "r2plus1d": R2plus1d,
    "csn": Csn,
    "tpn": Tpn,
    "torchvision": TorchvisionVideo,
}
FRAME_OFFSETS: dict[str, tuple[int, ...]] = {"rgb": (0,), "flow": (0,), "rgb-diff": (0, 1)}
CHANNELS: dict[str, int] = {"rgb": 3, "flow": 2, "rgb-diff": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What a network is fed and where it comes from; plain values only, so that it can stand in a file.

    ``mean`` and ``std`` are on the 0..255 scale. ``known`` says of a field how it was known ("name=", "config in the
    file", "file name", ...). ``weights``: first 8 digits of the sha256 of the file, "" for new weights. ``published``:
    the numbers that stand in print for exactly this file. ``network``: the constructor's arguments but ``num_classes``.
    """

    name: str
    family: str
    origin: str
    clip_len: int
    frame_interval: int
    num_segments: int | None = None
    input: InputKind
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    classes: tuple[str, ...] | None = None
    train_crop_px: int
    protocol: str
    network: dict[str, Any]
    weights: str = ""
    known: dict[str, str] = field(default_factory=dict)
    published: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.input not in FRAME_OFFSETS:
            raise ValueError(f"{self.name}: input {self.input!r}; there are {', '.join(FRAME_OFFSETS)}")
        if not len(self.mean) == len(self.std) == CHANNELS[self.input]:
            raise ValueError(
                f"{self.name}: {self.input} has {CHANNELS[self.input]} channels, not {self.mean}, {self.std}"
            )
        if self.classes is not None and len(self.classes) != self.num_classes:
            raise ValueError(f"{self.name}: {len(self.classes)} class names for {self.num_classes} classes")

    @property
    def layout(self) -> str:
        """Of the input: N clips, C channels, T frames (or segments of single frames), H x W pixels."""
        return "NCTHW"

    @property
    def in_print(self) -> list[dict[str, Any]]:
        """What was published of this network, each with its source: one row a checkpoint."""
        from .checkpoints import published

        return [row for row in published.rows() if row.get("network") == self.name]

    @property
    def frame_offsets(self) -> tuple[int, ...]:
        """For every sampled index i the frames i + offset are read, clamped to the last frame of the video."""
        return FRAME_OFFSETS[self.input]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> ModelSpec:
        """The inverse of ``to_dict``, also after a round trip through JSON, which turns tuples into lists."""
        names = {entry.name for entry in dataclasses.fields(cls)}
        manifests.check_keys(dict(table), names, "spec")
        values = dict(table)
        for key in ("mean", "std", "classes"):
            if values.get(key) is not None:
                values[key] = tuple(values[key])
        return cls(**values)


class Recognizer(nn.Module):
    """A network with its spec: normalised clips float [N, C, T, H, W] -> logits [N, num_classes]."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.body = body
        self.spec = spec
        for name in ("mean", "std"):  # buffers, to follow .to(device); not persistent: the spec holds the numbers
            self.register_buffer(name, torch.tensor(getattr(spec, name)).view(1, -1, 1, 1, 1), persistent=False)

    def normalise(self, x: Tensor) -> Tensor:
        """Float [N, C, T * len(frame_offsets), H, W] on the 0..255 scale -> the network's input [N, C, T, H, W].

        Frames come in the order i0 + offset0, i0 + offset1, i1 + offset0, ...
            rgb, flow   (x - mean) / std
            rgb-diff    (frame after i - frame i - mean) / std

        Networks that see stacks of flow pictures (TSN) get each segment's clip_len pictures as channels of one frame:
        [N, C, num_segments * clip_len, H, W] -> [N, clip_len * C, num_segments, H, W].
        """
        if self.spec.input == "rgb-diff":
            x = x[:, :, 1::2] - x[:, :, 0::2]
        x = (x - self.mean) / self.std
        stacked = self.spec.network.get("in_channels", x.shape[1]) // x.shape[1]
        if stacked > 1:
            n, c, _, height, width = x.shape
            x = x.view(n, c, -1, stacked, height, width).permute(0, 3, 1, 2, 4, 5).flatten(1, 2)
        return x

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        return logits


@functools.cache
def table() -> dict[str, Any]:
    """``manifests/models.toml``: [inputs] and [networks]."""
    return manifests.read("models")


def names(pattern: str = "*") -> list[str]:
    """Names that match a shell pattern, in the order of the manifest: ``names("slow*")``."""
    return [name for name in table()["networks"] if fnmatch.fnmatchcase(name, pattern)]


def arguments_of(family: str) -> dict[str, Any]:
    """Name -> default of a network's constructor arguments, those that it hands on to its base class included."""
    found: dict[str, Any] = {}
    for kind in BUILDERS[family].__mro__:
        parameters = inspect.signature(kind).parameters.values()
        found |= {each.name: each.default for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}
        if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
            break
    return found


def recipe_name(name: str) -> str:
    """The recipe that a network is trained with unless another is asked for: its row's, else that of its family."""
    row = row_of(name)
    return str(row.get("recipe", row["family"]))


def row_of(name: str) -> dict[str, Any]:
    """The row of a network. Raises ``UsageError`` with the nearest names for an unknown one."""
    rows: dict[str, Any] = table()["networks"]
    if name not in rows:
        near = difflib.get_close_matches(name, rows, n=3) or [*rows]
        raise UsageError(f"no network {name!r}; type one of: {', '.join(near)}")
    return dict(rows[name])


def spec(name: str, *, num_classes: int, **overrides: Any) -> ModelSpec:
    """The spec of a named network. ``overrides`` are fields of ``ModelSpec`` or arguments of the network.

    Raises ``UsageError`` for an unknown name or override, with the nearest known one.
    """
    row = {key: value for key, value in row_of(name).items() if key != "recipe"}
    network = dict(row.pop("network", {}))
    values = {**table()["inputs"][row["input"]], **row}
    values.setdefault("protocol", row["family"])
    fields = {entry.name for entry in dataclasses.fields(ModelSpec)}
    arguments = arguments_of(row["family"])
    for key, value in overrides.items():
        if key in fields:
            values[key] = value
        elif key in arguments:
            network[key] = value
        else:
            near = difflib.get_close_matches(key, [*fields, *arguments], n=1)
            raise UsageError(f"{name} has no {key!r}" + (f"; type {near[0]!r}" if near else ""))
    network.setdefault("in_channels", CHANNELS[values["input"]])
    if "train_crop_px" in arguments:
        network.setdefault("train_crop_px", values["train_crop_px"])
    values |= {"name": name, "num_classes": num_classes, "network": network}
    return ModelSpec.from_dict({"origin": "ours", **values})


def create(name: str, num_classes: int, *, imagenet: str | Path | None = None, **overrides: Any) -> Recognizer:
    """A network with new weights (``torch.manual_seed`` decides which), in training mode.

    ``imagenet``: a file of torchvision's 2D network to start from, see ``checkpoints.imagenet``; what that has not, the
    classifier for one, stays new and is said.
    """
    net = build(spec(name, num_classes=num_classes, **overrides))
    if imagenet is not None:
        from .checkpoints.imagenet import inflate

        inflate(net.body, Path(imagenet))
    return net


def build(spec: ModelSpec) -> Recognizer:
    return Recognizer(BUILDERS[spec.family](num_classes=spec.num_classes, **spec.network), spec)


def hollow(spec: ModelSpec) -> nn.Module:
    """The network without its wrapper and without weights: keys and shapes only, for weights to be put in."""
    with torch.device("meta"):
        return BUILDERS[spec.family](num_classes=spec.num_classes, **spec.network)


def shapes(body: nn.Module) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a network's weights."""
    return {key: tuple(value.shape) for key, value in body.state_dict().items()}
