"""Multigrid training: many small clips while the rate is high, few whole ones in the end, the same work a step.

    long cycle    between two milestones the clips grow in four shapes; batch and learning rate shrink with it
    short cycle   within an epoch the batches take turns: crops of 1/2 and 1/sqrt(2) of the full size, then the cycle's

Source: Wu et al., "A Multigrid Method for Efficiently Training Video Models" (2020); PySlowFast
slowfast/utils/multigrid.py and slowfast/datasets/multigrid_helper.py for how it is rounded.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from datakit.errors import UsageError

from .recipe import Recipe

LONG_CYCLE = ((0.25, math.sqrt(0.5)), (0.5, math.sqrt(0.5)), (0.5, 1.0), (1.0, 1.0))  # of frames, of the crop's side
SHORT_CYCLE = (0.5, math.sqrt(0.5))  # of the full crop's side; the third batch has the long cycle's
EPOCH_FACTOR = 1.5
BN_CLIPS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Shape of one batch: ``num_clips`` of all processes together, each clip_len frames of crop_px x crop_px.

    The frames lie the network's frame_interval apart, or any number of frames up to ``max_interval``, drawn for each
    clip, where that is larger.
    """

    num_clips: int
    clip_len: int
    crop_px: int
    max_interval: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of the long cycle up to (not with) epoch ``end``. ``factor``: of batch and learning rate."""

    end: int
    step: int
    factor: int
    clip_len: int
    crop_px: int


def phases(recipe: Recipe, clip_len: int, crop_px: int) -> list[Phase]:
    """The long cycle of a recipe with steps, stretched to ``EPOCH_FACTOR`` times its epochs.

    Every stage between two milestones goes through all shapes; a shape gets epochs in proportion to its average batch,
    so that each has the same number of steps. What is left after the last milestone trains at the full shape.
    """
    if recipe.schedule != "step":
        raise UsageError(f"recipe {recipe.name}: the long cycle follows milestones; type --multigrid short")
    work = clip_len * crop_px**2
    shapes, average = [], []
    for of_frames, of_side in LONG_CYCLE:
        frames, side = round(clip_len * of_frames), round(crop_px * of_side)
        sides = [*(crop_px * factor for factor in SHORT_CYCLE), side]
        batches = [round(work / (frames * each**2)) for each in sides]
        shapes.append((batches[-1], frames, side))
        average.append(sum(batches) / len(batches))
    stages = list(itertools.pairwise((0.0, *recipe.milestones)))
    parts = [  # step, shape, epochs
        (step, shape, (end - begin) * share / sum(average))
        for step, (begin, end) in enumerate(stages)
        for shape, share in zip(shapes, average, strict=True)
    ]
    # e epochs of batch b are e / b steps. What follows the last milestone saves as large a share of them as the rest.
    saved = sum(average) / len(shapes)
    parts.append((len(stages), shapes[-1], (recipe.epochs - recipe.milestones[-1]) / saved * average[-1]))
    stretch = recipe.epochs * EPOCH_FACTOR / sum(epochs for *_, epochs in parts)
    made, so_far = [], 0.0
    for step, (factor, frames, side), epochs in parts:
        so_far += epochs * stretch
        made.append(Phase(end=round(so_far), step=step, factor=factor, clip_len=frames, crop_px=side))
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle:
    """A recipe as it is trained: stretched where it is multigrid, with the batches of every epoch.

    ``clip_len``, ``crop_px``, ``frame_interval``: of a whole clip; ``phases``: of the long cycle, or none.
    """

    recipe: Recipe
    clip_len: int
    crop_px: int
    frame_interval: int
    phases: tuple[Phase, ...] = ()

    def num_steps(self, epoch: int, num_clips: int) -> int:
        """Batches of an epoch."""
        return len(self.grids(epoch, num_clips))

    def grids(self, epoch: int, num_clips: int) -> list[Grid]:
        """The batches of an epoch of ``num_clips`` clips.

        Without multigrid their sizes differ by one at most. With it what is left for the last batch is dropped (as
        PySlowFast does), except when it is all there is.
        """
        batch, clip_len, crop_px = self.recipe.batch, self.clip_len, self.crop_px
        for phase in self.phases:
            if epoch < phase.end or phase is self.phases[-1]:
                batch, clip_len, crop_px = batch * phase.factor, phase.clip_len, phase.crop_px
                break
        interval = self.frame_interval * (self.clip_len // clip_len)
        if self.recipe.multigrid == "none":
            steps = math.ceil(num_clips / batch)
            sizes = [num_clips // steps + (number < num_clips % steps) for number in range(steps)]
            return [Grid(num_clips=size, clip_len=clip_len, crop_px=crop_px, max_interval=interval) for size in sizes]
        sides: list[tuple[int, int]] = [(1, crop_px)]
        if self.recipe.multigrid in ("short", "both"):
            small = [
                (round((crop_px / (factor * self.crop_px)) ** 2), round(factor * self.crop_px))
                for factor in SHORT_CYCLE
            ]
            sides = [*small, (1, crop_px)]
        grids: list[Grid] = []
        left = num_clips
        while True:
            more, side = sides[len(grids) % len(sides)]
            if left < batch * more:
                break
            grids.append(Grid(num_clips=batch * more, clip_len=clip_len, crop_px=side, max_interval=interval))
            left -= batch * more
        return grids or [Grid(num_clips=num_clips, clip_len=clip_len, crop_px=crop_px, max_interval=interval)]


class Spec(Protocol):
    """``models.ModelSpec`` is one."""

    @property
    def clip_len(self) -> int: ...
    @property
    def frame_interval(self) -> int: ...
    @property
    def num_segments(self) -> int | None: ...
    @property
    def train_crop_px(self) -> int: ...


def cycle(recipe: Recipe, spec: Spec) -> Cycle:
    """How ``recipe`` trains a network of ``spec``; ``UsageError`` where the long cycle cannot.

    The short cycle alone stretches the epochs and milestones by ``EPOCH_FACTOR``. The long cycle's learning rate
    follows its batch: each phase has the rate of its step times its factor, and the first half of what comes after the
    last milestone keeps the rate before it.
    """
    whole = Cycle(recipe=recipe, clip_len=spec.clip_len, crop_px=spec.train_crop_px, frame_interval=spec.frame_interval)
    if recipe.multigrid == "none":
        return whole
    if recipe.multigrid == "short":
        stretched = dataclasses.replace(
            recipe,
            epochs=int(recipe.epochs * EPOCH_FACTOR),
            milestones=tuple(float(int(milestone * EPOCH_FACTOR)) for milestone in recipe.milestones),
        )
        return dataclasses.replace(whole, recipe=stretched)
    if spec.num_segments is not None or spec.clip_len % 4:
        raise UsageError(f"the long cycle takes a quarter of {spec.clip_len} frames a clip; type --multigrid short")
    parts = phases(recipe, spec.clip_len, spec.train_crop_px)
    milestones = [part.end for part in parts[:-1]]
    milestones.append((milestones[-1] + parts[-1].end) // 2)
    factors = [recipe.gamma**part.step * part.factor for part in parts]
    factors.insert(-1, factors[-2])
    stretched = dataclasses.replace(
        recipe, epochs=parts[-1].end, milestones=tuple(map(float, milestones)), lr_factors=tuple(factors)
    )
    return dataclasses.replace(whole, recipe=stretched, phases=tuple(parts))


class SplitBatchNorm3d(nn.BatchNorm3d):
    """Batch norm over ``BN_CLIPS`` clips at a time, however large the batch: what the full shape's batches have."""

    def forward(self, x: Tensor) -> Tensor:
        num_parts = len(x) // BN_CLIPS if self.training else 1
        if num_parts <= 1:
            return super().forward(x)
        return torch.cat([super(SplitBatchNorm3d, self).forward(part) for part in x.chunk(num_parts)])


def split_batch_norms(net: nn.Module) -> None:
    """Put ``SplitBatchNorm3d`` in the place of every batch norm, with its weights; keys stay."""
    for module in net.modules():
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm3d:
                split = SplitBatchNorm3d(child.num_features, eps=child.eps, momentum=child.momentum)
                split.load_state_dict(child.state_dict())
                split.train(child.training)
                setattr(module, name, split)
