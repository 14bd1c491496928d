"""Where a training starts and what of it moves: weights of another one, a new head, frozen stages, rates of groups."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from datakit.errors import CheckpointError, UsageError

from .. import checkpoints
from ..checkpoints import imagenet
from ..zoo import Recognizer
from .recipe import Recipe

IMAGE_STEMS = ("conv1.weight", "features.0.0.weight")  # of torchvision's ResNet and MobileNetV2
HEADS = re.compile(r"^(head|aux_head)\.")
STAGE_NAMES = (("res", 1), ("layer", 0))  # the first stage is res2, torchvision's layer1


def start_from(net: Recognizer, path: Path, *, name: str | None = None, trust: bool = False) -> None:
    """Put the weights of a checkpoint into ``net``, all but the head's, which stay new.

    Any file that ``models.load`` reads (``name``, ``trust``: as there) and that is the same network up to its classes;
    a stem for other channels gets the mean over those that are there (Wang et al., "Temporal Segment Networks" (2016),
    section 3.2). Also the file of a 2D network trained on pictures ("imagenet" in recipes.toml): see
    ``checkpoints.imagenet``.
    Raises ``CheckpointError`` naming what does not fit.
    """
    flat = checkpoints.files.read(path, trust=trust).state
    if any(flat[key].dim() == 4 for key in IMAGE_STEMS if key in flat):
        imagenet.inflate(net.body, path, trust=trust)
        return
    own = net.body.state_dict()
    given = checkpoints.load(path, name, trust=trust).body.state_dict()
    wanted = [key for key in own if not HEADS.match(key) and not key.endswith("num_batches_tracked")]
    net.body.load_state_dict({key: fitted(path, key, given, own[key]) for key in wanted}, strict=False)


def fitted(path: Path, key: str, given: Mapping[str, Tensor], own: Tensor) -> Tensor:
    """The tensor of ``given`` in the shape of ``own``."""
    if key not in given:
        raise CheckpointError(f"{path}: has no {key}: it is another network. Train the one that the file holds")
    value = given[key].to(own.dtype)
    stem = value.dim() == own.dim() == 5 and key.split(".")[-3:-2] == ["stem"]
    if stem and value.shape[1] != own.shape[1] and value.shape[2:] == own.shape[2:]:
        value = value.mean(dim=1, keepdim=True).expand(-1, own.shape[1], -1, -1, -1)
    if value.shape != own.shape:
        raise CheckpointError(f"{path}: {key} is {tuple(value.shape)}, not {tuple(own.shape)}: it is another network")
    return value


def freeze(net: Recognizer, *, stages: int | Literal["all"] | None = None, batch_norm: bool = False) -> None:
    """Take ``stages`` out of training: 0 the stem, 1 also res2, 2 also res3, ...; "all": everything but the head.
    ``batch_norm``: every batch norm, its statistics and its weights. See ``train_mode``.

    Raises ``UsageError`` where the network has no stages of these names.
    """
    parts: list[nn.Module] = []
    if stages == "all":
        parts = [module for name, module in net.body.named_children() if not HEADS.match(f"{name}.")]
    elif stages is not None:
        frozen = {"stem", *(f"{word}{number + skip}" for number in range(1, stages + 1) for word, skip in STAGE_NAMES)}
        for key, module in net.body.named_modules():
            within = key.split(".")  # a non-local block stands beside its stage, under the stage's name and its own
            if within[-1] in frozen or (within[-1].partition("_")[0] in frozen and "non_local" in within):
                parts.append(module)
        if not parts:
            raise UsageError(f"{net.spec.name} has no stages by name; type --freeze all (but the head) or --freeze-bn")
    if batch_norm:
        parts += batch_norms(net)
    for part in parts:
        part.requires_grad_(False)


def train_mode(net: nn.Module) -> None:
    """Training mode, but for the batch norms that are frozen: these keep to their running statistics."""
    net.train()
    for norm in batch_norms(net):
        if not norm.weight.requires_grad:
            norm.eval()


def batch_norms(net: nn.Module) -> list[_BatchNorm]:
    return [module for module in net.modules() if isinstance(module, _BatchNorm)]


def parameter_groups(net: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters for the optimiser, each group with ``name``, ``weight_decay`` and ``lr_factor``, times the schedule's.

        all          everything alike
        bn-no-decay  batch norm without weight decay (PySlowFast slowfast/models/optimizer.py)
        tsn, tsm     weights as they are; biases at twice the rate and batch norm, both without weight decay; tsm: the
                     head's weight at 5 times the rate, its bias at 10 times and without weight decay (mmaction2
                     mmaction/engine/optimizers/tsm_optim_wrapper_constructor.py)

    What is frozen and the auxiliary head, which no forward uses, are in no group.
    """
    rule = recipe.param_groups
    fc = (5.0, 10.0) if rule == "tsm" else (1.0, 2.0)
    decay = recipe.weight_decay
    settings = {  # name -> rate, weight decay
        "first_conv_weight": (1.0, decay),
        "first_conv_bias": (2.0, 0.0),
        "normal_weight": (1.0, decay),
        "normal_bias": (2.0, 0.0),
        "bn": (1.0, decay if rule == "all" else 0.0),
        "fc_weight": (fc[0], decay),
        "fc_bias": (fc[1], 0.0),
    }
    if rule in ("all", "bn-no-decay"):
        settings |= {name: (1.0, decay) for name in settings if name != "bn"}
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in settings}
    convs = [module for module in net.modules() if isinstance(module, nn.modules.conv._ConvNd)]
    for key, module in net.named_modules():
        if "aux_head" in key.split("."):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if isinstance(module, _BatchNorm):
                groups["bn"].append(parameter)
            else:
                kind = "fc" if key.split(".")[-1] == "head" else "first_conv" if module is convs[0] else "normal"
                groups[f"{kind}_{name}"].append(parameter)
    return [
        {"params": groups[name], "name": name, "lr_factor": factor, "weight_decay": weight_decay}
        for name, (factor, weight_decay) in settings.items()
        if groups[name]
    ]
