"""Resampling of what is independent: clips, or the videos that they were cut from; and intervals from it.

``gain`` is what a clip adds to a number: 1 or 0 for a number itself, 1, 0 or -1 for the difference of two.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import special

LEVEL = 0.05
NUM_RESAMPLES = 5_000


def resample_clips(
    change: NDArray[np.int64], strata: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Bootstrap draws of the difference, clips resampled within strata (the classes; for top-1 there is one).

    Drawing n clips with replacement and counting gains and losses is one multinomial draw of three numbers, so no clip
    is ever touched. Draws of n clips spread too little by sqrt((n-1)/n), which is made good; strata of one clip, which
    would not spread at all, are drawn as one stratum, as ``metrics`` does for the standard error.
    """
    names, stratum, count = np.unique(strata, return_inverse=True, return_counts=True)
    gains = np.bincount(stratum[change > 0], minlength=len(names))
    losses = np.bincount(stratum[change < 0], minlength=len(names))
    centre = float(((gains - losses) / count).mean())
    several = count > 1
    rows = [
        (int(n), int(gained), int(lost), 1 / n)
        for n, gained, lost in zip(count[several], gains[several], losses[several], strict=True)
    ]
    num_single = int((~several).sum())
    if num_single > 1:
        rows.append((num_single, int(gains[~several].sum()), int(losses[~several].sum()), 1.0))
    spread = np.zeros(NUM_RESAMPLES)
    for n, gained, lost, share in rows:
        drawn = rng.multinomial(n, [gained / n, lost / n, 1 - (gained + lost) / n], size=NUM_RESAMPLES)
        deviation = drawn[:, 0] - drawn[:, 1] - (gained - lost)
        spread += deviation * share * math.sqrt(n / (n - 1)) / len(names)
    if num_single == 1:  # one clip's chance of changing is that of all clips
        total = len(change)
        shares = [float((change > 0).sum()) / total, float((change < 0).sum()) / total]
        drawn = rng.multinomial(1, [*shares, 1 - sum(shares)], size=NUM_RESAMPLES)
        spread += (drawn[:, 0] - drawn[:, 1] - (shares[0] - shares[1])) / len(names)
    return centre + spread


def resample_groups(
    change: NDArray[np.int64], strata: NDArray[np.int64], group: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Bootstrap draws of the difference, whole groups resampled; a class that no drawn group has is left out."""
    names, stratum = np.unique(strata, return_inverse=True)
    num_groups = int(group.max()) + 1
    cell = group * len(names) + stratum
    shape = (num_groups, len(names))
    changed = np.bincount(cell, change, minlength=num_groups * len(names)).reshape(shape)
    clips = np.bincount(cell, minlength=num_groups * len(names)).reshape(shape).astype(np.float64)
    draws = []
    for rows in chunks(max(num_groups, len(names))):
        picked = rng.integers(0, num_groups, size=(rows, num_groups)) + num_groups * np.arange(rows)[:, None]
        times = np.bincount(picked.ravel(), minlength=rows * num_groups).reshape(rows, num_groups).astype(np.float64)
        drawn_clips = times @ clips
        drawn = np.divide(times @ changed, drawn_clips, out=np.zeros_like(drawn_clips), where=drawn_clips > 0)
        draws.append(drawn.sum(axis=1) / (drawn_clips > 0).sum(axis=1))
    return np.concatenate(draws)


def chunks(width: int, cells: int = 4_000_000) -> list[int]:
    """Row counts that add up to ``NUM_RESAMPLES``, each block of at most ``cells`` numbers."""
    rows = max(1, min(NUM_RESAMPLES, cells // width))
    return [min(rows, NUM_RESAMPLES - start) for start in range(0, NUM_RESAMPLES, rows)]


def interval(difference: float, draws: NDArray[np.float64], num_units: int) -> tuple[float, float]:
    """95 % interval: Student's t times the spread of the bootstrap draws around the difference, or their percentiles,
    whichever goes further.

    The percentiles alone cover too little where few units weigh much (65 source videos, many classes of one clip), t
    alone where a single clip is a class. Where no unit changed nothing spreads: then the bound is the share of changing
    units that would still go unseen 1 time in 20.
    """
    if num_units < 2:
        return -1.0, 1.0  # one unit shows no spread: nothing is excluded
    half = -float(special.stdtrit(num_units - 1, LEVEL / 2)) * float(draws.std())
    if half == 0:
        half = 1 - LEVEL ** (1 / num_units)
    low, high = np.quantile(draws, [LEVEL / 2, 1 - LEVEL / 2])
    return min(difference - half, float(low)), max(difference + half, float(high))
