"""A 2D network trained on pictures as the start of ours: every kernel repeated along time and divided by how often.

    net = models.create("slowonly_r50_8x8", num_classes=400, imagenet="resnet50-11ad3fa6.pth")

A clip that stands still then looks to the network as the picture did. Files are torchvision's: ResNet of any depth, and
MobileNetV2. Sources: Carreira and Zisserman, "Quo Vadis, Action Recognition?" (2017), section 2.4; mmaction2
mmaction/models/backbones/resnet3d.py, _inflate_conv_params; stems for other channels get the mean over the colours:
Wang et al., "Temporal Segment Networks" (2016), section 3.2.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from torch import Tensor, nn

from datakit.errors import CheckpointError

from ..nets.mobilenet_v2 import MobileNetV2
from ..nets.resnet3d import Trunk
from . import files

log = logging.getLogger(__name__)

RESNET = (
    (r"^conv1\.", "stem.conv."),
    (r"^bn1\.", "stem.bn."),
    (r"^layer(\d)\.", lambda found: f"res{int(found[1]) + 1}."),
    (r"\.conv(\d)\.", r".conv\1.conv."),
    (r"\.bn(\d)\.", r".conv\1.bn."),
    (r"\.downsample\.0\.", ".shortcut.conv."),
    (r"\.downsample\.1\.", ".shortcut.bn."),
)
CLASSIFIER = re.compile(r"^(fc|classifier\.\d+)\.")


def inflate(body: nn.Module, path: Path, *, trust: bool = False) -> list[str]:
    """Put the weights of a 2D network's file into ``body``; returns the keys that stay new.

    Raises ``CheckpointError`` when the file is no such network, or one of another depth.
    """
    state = {key: value for key, value in files.read(path, trust=trust).state.items() if not CLASSIFIER.match(key)}
    if isinstance(body, MobileNetV2):
        given = {mobilenet_key(key, body): value for key, value in state.items()}
    elif isinstance(body, Trunk):
        given = {resnet_key(key): value for key, value in state.items()}
    else:
        raise CheckpointError(f"{path}: {type(body).__name__} has no 2D network that it could start from")
    own = body.state_dict()
    if unknown := [key for key in given if key not in own]:
        raise CheckpointError(f"{path}: not the 2D network of this one: nowhere to put {', '.join(unknown[:4])}")
    fitted = {key: in_shape(path, key, value, own[key]) for key, value in given.items()}
    body.load_state_dict(fitted, strict=False)
    new = [key for key in own if key not in fitted and not key.endswith("num_batches_tracked")]
    trunk = [key for key in new if re.match(r"stem\.|res\d\.|conv2\.", key)]
    if trunk:
        raise CheckpointError(f"{path}: not the 2D network of this one: it has no {', '.join(trunk[:4])}")
    parts = dict.fromkeys(key.partition(".")[0] for key in new)
    log.info("%s: %d tensors, repeated along time; new are %s", path, len(fitted), ", ".join(parts))
    return new


def resnet_key(key: str) -> str:
    for pattern, replacement in RESNET:
        key = re.sub(pattern, replacement, key)
    return key


def mobilenet_key(key: str, body: MobileNetV2) -> str:
    """features.0 is the stem, then one number a block, the last one the convolution behind them."""
    found = (re.fullmatch(r"res\d\.\d+", name) for name, _ in body.named_modules())
    blocks = [match[0] for match in found if match]
    match = re.match(r"features\.(\d+)\.(?:conv\.)?(\d+)\.(?:(\d+)\.)?(\w+)$", key)
    if match is None:
        return key
    number, first, second, name = int(match[1]), int(match[2]), match[3], match[4]
    if number in (0, len(blocks) + 1):
        return f"{'conv2' if number else 'stem'}.{('conv', 'bn')[first]}.{name}"
    if number > len(blocks):
        return key
    if second is not None:  # a convolution with its batch norm; the last one's two stand by themselves
        return f"{blocks[number - 1]}.conv.{first}.{('conv', 'bn')[int(second)]}.{name}"
    last = sum(1 for _ in body.get_submodule(f"{blocks[number - 1]}.conv").children()) - 1
    return f"{blocks[number - 1]}.conv.{last}.{('conv', 'bn')[first - last]}.{name}"


def in_shape(path: Path, key: str, value: Tensor, own: Tensor) -> Tensor:
    """The tensor of a 2D network in the shape of ours."""
    if value.dim() == 4 and own.dim() == 5:
        value = value.unsqueeze(2).expand(-1, -1, own.shape[2], -1, -1) / own.shape[2]
        if key == "stem.conv.weight" and value.shape[1] != own.shape[1]:
            value = value.mean(dim=1, keepdim=True).expand(-1, own.shape[1], -1, -1, -1)
    if value.shape != own.shape:
        raise CheckpointError(
            f"{path}: not the 2D network of this one: {key} is {list(value.shape)} and not {list(own.shape)}"
        )
    return value
