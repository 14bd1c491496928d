"""Networks trained several times: how far their numbers would move with other seeds and other clips, both at once.

A recipe's accuracy is a mean over seeds and clips, and both are draws: another seed gives another network, another test
set other clips. Whoever resamples clips alone takes three lucky networks for a better recipe.

Arrays: ``right`` bool or float [S, N], S networks (seeds) by N clips, the same clips in the same order everywhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from datakit.errors import NotComparable

from .compare import POWER, holm
from .resample import LEVEL, NUM_RESAMPLES

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over seeds and units as a fraction of 1, its standard error, and the freedom that the error has."""

    value: float
    se: float
    df: float
    low: float
    high: float
    num_seeds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedComparison:
    """b against a; ``smallest``: what 80 % of such benchmarks find, at Holm's strictest level.

    ``p`` two-sided; ``p_holm`` corrected over ``num_comparisons``.
    """

    names: tuple[str, str]
    difference: Estimate
    p: float
    p_holm: float
    num_comparisons: int
    smallest: float

    @property
    def differs(self) -> bool:
        return self.p_holm < LEVEL


def mean(right: ArrayLike, units: NDArray[np.int64] | None = None, seed: int = 0) -> Estimate:
    """A recipe's accuracy. ``units``: int64 [N], the source video of each clip where clips are not independent."""
    found = _estimate([_by_unit(right, units)], [1.0], seed)
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def difference(a: ArrayLike, b: ArrayLike, units: NDArray[np.int64] | None = None, seed: int = 0) -> Estimate:
    """b - a: paired over clips; over seeds not, for two networks of one seed share no more than their first weights.

    Raises ``NotComparable`` when the clips are not as many.
    """
    sides = [_by_unit(side, units) for side in (a, b)]
    if sides[0].shape[1] != sides[1].shape[1]:
        raise NotComparable(f"{sides[0].shape[1]} clips against {sides[1].shape[1]}; score both on the same list")
    found = _estimate(sides, [-1.0, 1.0], seed)
    return replace(found, low=max(-1.0, found.low), high=min(1.0, found.high))


def compare_all(
    right: Mapping[str, ArrayLike],
    pairs: Sequence[tuple[str, str]] | None = None,
    *,
    units: NDArray[np.int64] | None = None,
) -> list[SeedComparison]:
    """The pairs of names (default: all), with Holm's correction over them."""
    chosen = list(itertools.combinations(right, 2)) if pairs is None else list(pairs)
    found = []
    for names in chosen:
        estimate = difference(right[names[0]], right[names[1]], units)
        found.append(
            SeedComparison(
                names=names, difference=estimate, p=_p(estimate), p_holm=1.0, num_comparisons=len(chosen),
                smallest=_smallest(estimate, LEVEL / len(chosen)),
            )
        )  # fmt: skip
    return [replace(one, p_holm=p) for one, p in zip(found, holm([one.p for one in found]), strict=True)]


def halves(right: ArrayLike, units: NDArray[np.int64] | None = None) -> list[float]:
    """p of every way to divide the networks of one recipe into two halves: what chance makes of no difference."""
    networks = np.asarray(right, dtype=np.float64)
    count = len(networks)
    found = []
    for first in itertools.combinations(range(count), count // 2):
        if count % 2 == 0 and first[0] != 0:
            break  # the same halves the other way round
        second = [number for number in range(count) if number not in first]
        found.append(_p(difference(networks[list(first)], networks[second], units)))
    return found


def _by_unit(right: ArrayLike, units: NDArray[np.int64] | None) -> Array:
    """float [S, U] whose mean is that over clips: with source videos, a video's sum times U / N."""
    table = np.asarray(right, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"right {table.shape}: seeds by clips, at least one of each")
    if units is None:
        return table
    num_units = int(units.max()) + 1
    sums = np.stack([np.bincount(units, row, minlength=num_units) for row in table])
    scaled: Array = sums * (num_units / table.shape[1])
    return scaled


def _estimate(sides: Sequence[Array], signs: Sequence[float], seed: int) -> Estimate:
    """Value, error and interval of the signed sum of the sides' means.

    Mean squares of seeds, units and what is left over, as in an analysis of variance with two random factors; the error
    of the mean is (seeds + units - rest), each in shares of the mean; Satterthwaite's degrees of freedom (H. H. Clark,
    "The language-as-fixed-effect fallacy", 1973, quasi F). A factor that varies less than the rest counts as the rest.
    """
    num_units = sides[0].shape[1]
    value = float(sum(sign * side.mean() for sign, side in zip(signs, sides, strict=True)))
    of_unit = sum(sign * side.mean(axis=0) for sign, side in zip(signs, sides, strict=True))
    by_units = float(np.var(of_unit, ddof=1)) / num_units if num_units > 1 else 0.0
    by_seeds = rest = 0.0
    seeds_parts: list[tuple[float, int]] = []
    for side in sides:
        if len(side) < 2 or num_units < 2:
            continue
        of_seed = side.mean(axis=1)
        left = side - of_seed[:, None] - side.mean(axis=0) + side.mean()
        freedom = (len(side) - 1) * (num_units - 1)
        rest += float((left**2).sum()) / freedom / side.size
        part = float(np.var(of_seed, ddof=1)) / len(side)
        by_seeds += part
        seeds_parts.append((part, len(side) - 1))
    variance = max(by_units, rest) + max(by_seeds, rest) - rest
    df = _freedom(by_units, by_seeds, rest, num_units, seeds_parts, variance)
    draws = _draws(sides, signs, value, math.sqrt(variance), seed)
    half = -float(special.stdtrit(df, LEVEL / 2)) * math.sqrt(variance)
    if half == 0:  # nothing varied: the share that would still go unseen 1 time in 20
        half = 1 - LEVEL ** (1 / num_units)
    low, high = np.quantile(draws, [LEVEL / 2, 1 - LEVEL / 2])
    return Estimate(
        value=value, se=math.sqrt(variance), df=df, num_seeds=min(map(len, sides)),
        low=min(value - half, float(low)), high=max(value + half, float(high)),
    )  # fmt: skip


def _freedom(
    by_units: float, by_seeds: float, rest: float, num_units: int, seeds: Sequence[tuple[float, int]], variance: float
) -> float:
    if variance == 0 or not seeds:
        return float(max(1, num_units - 1))
    below = by_units**2 / (num_units - 1)
    below += sum(part**2 / freedom for part, freedom in seeds)
    below += rest**2 / (sum(freedom for _, freedom in seeds) * (num_units - 1))
    return min(float(num_units - 1), max(1.0, variance**2 / below))


def _draws(sides: Sequence[Array], signs: Sequence[float], value: float, se: float, seed: int) -> Array:
    """The number over draws of seeds and of units with replacement, their spread made that of the error.

    Of three seeds a draw has too few, and it counts the rest twice: only the shape is the draws' own.
    """
    random = np.random.default_rng(seed)
    num_units = sides[0].shape[1]
    times = random.multinomial(num_units, np.full(num_units, 1 / num_units), size=NUM_RESAMPLES) / num_units
    draws = np.zeros(NUM_RESAMPLES)
    for sign, side in zip(signs, sides, strict=True):
        seeds = random.multinomial(len(side), np.full(len(side), 1 / len(side)), size=NUM_RESAMPLES) / len(side)
        draws += sign * np.einsum("rs,rs->r", seeds, times @ side.T)
    spread = float(draws.std())
    scaled: Array = value + (draws - draws.mean()) * (se / spread if spread else 0.0)
    return scaled


def _p(found: Estimate) -> float:
    if found.se == 0:
        return 1.0 if found.value == 0 else 0.0
    return 2 * float(special.stdtr(found.df, -abs(found.value) / found.se))


def _smallest(found: Estimate, level: float) -> float:
    """(t at the level + t at the power) x the error; where nothing varied, what the interval leaves open."""
    if found.se == 0:
        return found.high - found.value
    t = -float(special.stdtrit(found.df, level / 2)) + float(special.stdtrit(found.df, POWER))
    return t * found.se
