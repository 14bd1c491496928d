"""What is done to a training clip after it was read: cut, turned, recoloured, mixed. The same for all frames of a clip.

Every draw comes from the generator that is handed in, never from torch's own: threads share that one, and so does the
network's dropout. The operations are torchvision's (``transforms.v2.functional``) or equal to them.

Shapes: N clips, T frames, C channels (2 = optical flow, 128 is no motion), H x W; pixels are uint8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as vision

import manifests
from datakit.errors import UsageError

from .recipe import Recipe

Box = tuple[int, int, int, int]  # top, left, height, width
CROP_TRIES = 10
MID_GREY = 128.0
RESIZED_AT_ONCE = 4
SNAP_PX = 3  # a crop that is so near to the wanted side is that side: no resizing
ERASED_AREA, ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)
RANDAUGMENT_BINS = 31
RANDAUGMENT_OPERATIONS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
# Offsets of fixed crops in quarters of the room that a crop has (y, x): the first five, or all thirteen.
FIXED_CROPS = (
    (0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4), (4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3),
)  # fmt: skip


def named(names: list[str]) -> dict[str, Any]:
    """The recipe's fields that rows of ``manifests/augments.toml`` set. Raises ``UsageError`` for an unknown name."""
    rows = manifests.read("augments")
    found: dict[str, Any] = {}
    for name in names:
        if name not in rows:
            raise UsageError(f"no augmentation {name!r}; type --augment with one of: {', '.join(rows)}")
        found |= {key: tuple(value) if isinstance(value, list) else value for key, value in rows[name].items()}
    found.pop("about", None)
    return found


# --- where a clip is cut ---------------------------------------------------------------------------------------------


def crop_box(height: int, width: int, recipe: Recipe, side: int, random: np.random.Generator) -> Box:
    """The part of the picture that becomes the network's ``side`` x ``side``, by the recipe's rule."""
    if recipe.crop == "multi-scale":
        return multi_scale_box(height, width, recipe, side, random)
    if recipe.crop == "short-side":
        return short_side_box(height, width, recipe, side, random)
    return random_resized_box(height, width, recipe, random)


def random_resized_box(height: int, width: int, recipe: Recipe, random: np.random.Generator) -> Box:
    """A box of random area and aspect ratio; the largest centred square when none of ten fits.

    Szegedy et al., "Going Deeper with Convolutions" (2014), section 6; mmaction2 processing.py, RandomResizedCrop.
    """
    narrow, wide = (math.log(limit) for limit in recipe.crop_aspect)
    for _ in range(CROP_TRIES):
        area = height * width * random.uniform(*recipe.crop_area)
        aspect = math.exp(random.uniform(narrow, wide))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            return int(random.integers(height - h + 1)), int(random.integers(width - w + 1)), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def multi_scale_box(height: int, width: int, recipe: Recipe, side: int, random: np.random.Generator) -> Box:
    """Height and width are shares of the short side that lie ``crop_scale_gap`` steps apart at most.

    At one of ``crop_positions`` fixed places, or anywhere when that is 0. Wang et al., "Temporal Segment Networks"
    (2016), section 3.2; mmaction2 v0.24.1 augmentations.py, MultiScaleCrop.
    """
    sizes = [int(min(height, width) * scale) for scale in recipe.crop_scales]
    pairs = [
        (h, w)
        for i, h in enumerate(sizes)
        for j, w in enumerate(sizes)
        if abs(i - j) <= recipe.crop_scale_gap
    ]  # fmt: skip
    h, w = (side if abs(one - side) < SNAP_PX else one for one in pairs[random.integers(len(pairs))])
    h, w = min(h, height), min(w, width)
    if recipe.crop_positions == 0:
        return int(random.integers(height - h + 1)), int(random.integers(width - w + 1)), h, w
    quarters_y, quarters_x = FIXED_CROPS[random.integers(recipe.crop_positions)]
    return quarters_y * ((height - h) // 4), quarters_x * ((width - w) // 4), h, w


def short_side_box(height: int, width: int, recipe: Recipe, side: int, random: np.random.Generator) -> Box:
    """What a crop of ``side`` would see had the short side been resized to a number between ``crop_short_side_px``.

    PySlowFast slowfast/datasets/transform.py, random_short_side_scale_jitter and random_crop.
    """
    px = min(round(side * min(height, width) / random.uniform(*recipe.crop_short_side_px)), height, width)
    return int(random.integers(height - px + 1)), int(random.integers(width - px + 1)), px, px


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """uint8 [n, C, H, W] -> uint8 [n, C, height, width], bilinear without low-pass filter: what testing does too."""
    if x.shape[2:] == (height, width):
        return x

    def smooth(part: Tensor) -> Tensor:
        return functional.interpolate(part.float(), (height, width), mode="bilinear", align_corners=False)

    # a few frames at a time stay in the processor's cache
    return torch.cat([smooth(part).round_().to(torch.uint8) for part in torch.split(x, RESIZED_AT_ONCE)])


def mirrored(x: Tensor) -> Tensor:
    """uint8 [..., C, H, W] as in a mirror; of flow, x turns its sign (``datakit.reader.mirrored``)."""
    flipped = x.flip(-1)
    if x.shape[-3] == 2:
        flipped[..., 0, :, :] = 255 - flipped[..., 0, :, :]
    return flipped


# --- what a clip looks like ------------------------------------------------------------------------------------------


def changed(x: Tensor, recipe: Recipe, mean: tuple[float, ...], random: np.random.Generator) -> Tensor:
    """uint8 [T, C, H, W] with everything that a recipe asks for but crop, flip and mixing. Flow is only erased."""
    if x.shape[1] == 3:
        if recipe.colour_jitter:
            x = colour_jittered(x, recipe.colour_jitter, random)
        if recipe.randaugment:
            num_operations, magnitude = recipe.randaugment
            x = rand_augmented(x, num_operations, magnitude, random)
    if recipe.erasing and random.random() < recipe.erasing:
        x = erased(x, mean, random)
    return x


def recoloured(x: Tensor, mix: float, random: np.random.Generator) -> Tensor:
    """uint8 [T, 3, H, W] with its colours turned about mid-grey: (1 - mix) as they are, mix as a random rotation or
    reflection of the colour space has them; the same for all frames."""
    rotation, _ = np.linalg.qr(random.normal(size=(3, 3)))
    matrix = torch.from_numpy((1 - mix) * np.eye(3) + mix * rotation).float()
    turned = torch.einsum("dc,tchw->tdhw", matrix, x.float() - MID_GREY) + MID_GREY
    return turned.round_().clamp_(0, 255).to(torch.uint8)


def colour_jittered(x: Tensor, strength: tuple[float, ...], random: np.random.Generator) -> Tensor:
    """Brightness, contrast, saturation times 1 +- strength, hue +- strength, in any order (ColorJitter)."""
    brightness, contrast, saturation, hue = strength
    steps = [
        (vision.adjust_brightness, random.uniform(max(0.0, 1 - brightness), 1 + brightness)),
        (vision.adjust_contrast, random.uniform(max(0.0, 1 - contrast), 1 + contrast)),
        (vision.adjust_saturation, random.uniform(max(0.0, 1 - saturation), 1 + saturation)),
        (vision.adjust_hue, random.uniform(-hue, hue)),
    ]
    for number in random.permutation(len(steps)):
        apply, amount = steps[number]
        if strength[number]:
            x = apply(x, amount)
    return x


def rand_augmented(x: Tensor, num_operations: int, magnitude: int, random: np.random.Generator) -> Tensor:
    """``num_operations`` of ``RANDAUGMENT_OPERATIONS``, each at ``magnitude`` of 30, signs drawn.

    Cubuk et al., "RandAugment" (2019), as torchvision's transforms.v2.RandAugment has it.
    """
    for _ in range(num_operations):
        operation = RANDAUGMENT_OPERATIONS[random.integers(len(RANDAUGMENT_OPERATIONS))]
        sign = -1 if operation in SIGNED and random.random() < 0.5 else 1
        x = rand_augment_operation(x, operation, magnitude, sign)
    return x


def rand_augment_operation(x: Tensor, operation: str, magnitude: int, sign: int) -> Tensor:
    """One operation of RandAugment on uint8 [T, 3, H, W]; ``magnitude`` 0 .. 30."""
    share = sign * magnitude / (RANDAUGMENT_BINS - 1)
    height, width = x.shape[-2:]
    shear = math.degrees(math.atan(0.3 * share))
    far = 150 / 331 * share

    def moved(translate: list[int], shear: list[float], center: list[float] | None = None) -> Tensor:
        done: Tensor = vision.affine(x, angle=0.0, translate=translate, scale=1.0, shear=shear, center=center)
        return done

    operations: dict[str, Callable[[], Tensor]] = {
        "Identity": lambda: x,
        "ShearX": lambda: moved([0, 0], [shear, 0.0], [0.0, 0.0]),
        "ShearY": lambda: moved([0, 0], [0.0, shear], [0.0, 0.0]),
        "TranslateX": lambda: moved([int(far * width), 0], [0.0, 0.0]),
        "TranslateY": lambda: moved([0, int(far * height)], [0.0, 0.0]),
        "Rotate": lambda: vision.rotate(x, 30 * share),
        "Brightness": lambda: vision.adjust_brightness(x, 1 + 0.9 * share),
        "Color": lambda: vision.adjust_saturation(x, 1 + 0.9 * share),
        "Contrast": lambda: vision.adjust_contrast(x, 1 + 0.9 * share),
        "Sharpness": lambda: vision.adjust_sharpness(x, 1 + 0.9 * share),
        "Posterize": lambda: vision.posterize(x, 8 - round(magnitude / ((RANDAUGMENT_BINS - 1) / 4))),
        "Solarize": lambda: vision.solarize(x, 255 * (1 - magnitude / (RANDAUGMENT_BINS - 1))),
        "AutoContrast": lambda: vision.autocontrast(x),
        "Equalize": lambda: vision.equalize(x),
    }
    return operations[operation]()


def erased(x: Tensor, mean: tuple[float, ...], random: np.random.Generator) -> Tensor:
    """A box of every frame is the mean colour, which the network sees as nothing (Zhong et al., 2017)."""
    height, width = x.shape[-2:]
    for _ in range(CROP_TRIES):
        area = height * width * random.uniform(*ERASED_AREA)
        aspect = math.exp(random.uniform(math.log(ERASED_ASPECT[0]), math.log(ERASED_ASPECT[1])))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            top, left = int(random.integers(height - h + 1)), int(random.integers(width - w + 1))
            x = x.clone()
            x[..., top : top + h, left : left + w] = torch.tensor(mean).round().to(torch.uint8)[:, None, None]
            return x
    return x


# --- what a batch is made of -----------------------------------------------------------------------------------------


def mixed(
    x: Tensor, labels: Tensor, num_classes: int, recipe: Recipe, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """uint8 [N, C, T, H, W] and int64 [N] -> the same mixed with their neighbours in the batch, float [N, classes].

    mixup: lambda x + (1 - lambda) of the neighbour, lambda from Beta(alpha, alpha) (Zhang et al., 2017). cutmix: a box
    of 1 - lambda of every frame is the neighbour's (Yun et al., 2019). With both, each has half of the batches.
    """
    cut = bool(recipe.cutmix_alpha) and (not recipe.mixup_alpha or random.random() < 0.5)
    alpha = recipe.cutmix_alpha if cut else recipe.mixup_alpha
    share = float(random.beta(alpha, alpha))
    other = x.roll(1, 0)
    if cut:
        height, width = x.shape[-2:]
        y, z = int(random.integers(height)), int(random.integers(width))
        half = 0.5 * math.sqrt(1 - share)
        top, bottom = max(int(y - half * height), 0), min(int(y + half * height), height)
        left, right = max(int(z - half * width), 0), min(int(z + half * width), width)
        x = x.clone()
        x[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        x = (x.float() * share).add_(other, alpha=1 - share).round_().to(torch.uint8)
    targets = functional.one_hot(labels, num_classes).float()
    return x, targets * share + targets.roll(1, 0) * (1 - share)
