"""Learning rate as a function of time, and of nothing else: nothing to save, nothing to resume."""

from __future__ import annotations

import math

from .recipe import Recipe


def learning_rate(recipe: Recipe, epoch: float, num_steps: int | None = None) -> float:
    """The rate ``epoch`` epochs after the start (2.5 = in the middle of the third), for the recipe's real batch.

    ``num_steps``: of the optimiser an epoch; needed after the start where the recipe counts its warm-up in steps.

    cosine    min_lr + (1 - min_lr) / 2 (1 + cos(pi t)); t runs from 0 to 1 between the warm-up's end or the start
              (PySlowFast slowfast/utils/lr_policy.py:22, COSINE_AFTER_WARMUP False) and the last epoch
    step      gamma to the power of the milestones passed, or the lr_factors between them; milestones count from the
              start, or from the warm-up's end (mmengine counts from a scheduler's ``begin``)
    warm-up   "line": from warmup_start of the full rate to what the schedule has at the warm-up's end (PySlowFast)
              "times-schedule": the schedule times a ramp from warmup_start to 1 (mmcv mmcv/runner/hooks/lr_updater.py;
              mmengine where both schedulers begin at 0)

    Where the warm-up is by epoch, mmengine's is at the full rate one epoch early, at the last of its epochs, and one
    step early where it was converted to steps (mmengine/optim/scheduler/param_scheduler.py, LinearParamScheduler):
    ``warmup_full = "last"``, which is what a warm-up by epoch has that says nothing.
    """
    if recipe.warmup_steps and not num_steps and epoch:
        raise ValueError(f"recipe {recipe.name} warms up for {recipe.warmup_steps} steps: say how many an epoch has")
    warmup = recipe.warmup_epochs + recipe.warmup_steps / (num_steps or 1)
    changes = recipe.warmup_changes or recipe.lr_changes
    now = math.floor(epoch) if recipe.lr_changes == "epoch" else epoch
    ramp_now = math.floor(epoch) if changes == "epoch" else epoch
    if ramp_now >= warmup:
        return recipe.scaled_lr * after_warmup(recipe, now, warmup)
    full_at = warmup
    if (recipe.warmup_full or ("last" if changes == "epoch" else "end")) == "last":
        full_at = max(warmup - 1, 1) if changes == "epoch" else warmup - (1 / num_steps if num_steps else 0)
    ramp = min(ramp_now / full_at, 1) if full_at > 0 else 1
    if recipe.warmup_rule == "line":
        top = after_warmup(recipe, warmup, warmup)
        return recipe.scaled_lr * (recipe.warmup_start + (top - recipe.warmup_start) * ramp)
    factor = recipe.warmup_start + (1 - recipe.warmup_start) * ramp
    return recipe.scaled_lr * after_warmup(recipe, now, warmup) * factor


def after_warmup(recipe: Recipe, epoch: float, warmup: float) -> float:
    """Share of the full rate that the schedule gives when there is no warm-up (any more)."""
    if recipe.schedule == "cosine":
        start = warmup if recipe.cosine_from == "warmup-end" else 0.0
        least = recipe.min_lr / recipe.lr
        return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * min(1.0, (epoch - start) / (recipe.epochs - start))))
    if recipe.schedule == "step":
        begin = warmup if recipe.milestones_from == "warmup-end" else 0.0
        passed = sum(epoch >= begin + milestone for milestone in recipe.milestones)
        return recipe.lr_factors[passed] if recipe.lr_factors else float(recipe.gamma**passed)
    return 1.0
