"""Learning rate as a function of time, and of nothing else: nothing to save, nothing to resume."""

from __future__ import annotations

import math

from .recipe import Recipe


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """The rate ``epoch`` epochs after the start (2.5 = in the middle of the third), for the recipe's real batch.

    warm-up         a line from warmup_start to 1 of the full rate
    cosine          1/2 (1 + cos(pi t)); t runs from 0 to 1 between the warm-up's end (mmaction2) or the start
                    (PySlowFast slowfast/utils/lr_policy.py:22, COSINE_AFTER_WARMUP False) and the last epoch
    step            gamma to the power of the milestones passed, counted in epochs from the start

    Where the rate changes every epoch, mmengine's linear warm-up reaches the full rate one epoch early: at the last of
    its epochs (mmengine/optim/scheduler/param_scheduler.py, LinearParamScheduler). So does this. PySlowFast's warm-up
    aims at the schedule's value at its end, which with cosine_from = "start" is a little below the full rate.
    """
    warmup = recipe.warmup_epochs
    if recipe.lr_changes == "epoch":
        epoch = math.floor(epoch)
    if epoch < warmup:
        last = max(warmup - 1, 1) if recipe.lr_changes == "epoch" else warmup
        top = after_warmup(recipe, warmup)
        factor = recipe.warmup_start + (top - recipe.warmup_start) * min(epoch / last, 1)
    else:
        factor = after_warmup(recipe, epoch)
    return recipe.scaled_lr * factor


def after_warmup(recipe: Recipe, epoch: float) -> float:
    """Share of the full rate that the schedule gives when there is no warm-up (any more)."""
    if recipe.schedule == "cosine":
        start = recipe.warmup_epochs if recipe.cosine_from == "warmup-end" else 0.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (epoch - start) / (recipe.epochs - start))))
    if recipe.schedule == "step":
        return float(recipe.gamma ** sum(epoch >= milestone for milestone in recipe.milestones))
    return 1.0
