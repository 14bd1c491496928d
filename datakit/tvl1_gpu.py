"""The two inner loops of ``tvl1`` as kernels of a GPU: the same sums, with a fifth of the traffic to its memory.

torch runs an iteration as two dozen passes over the pictures, 420 bytes a pixel, and a GPU waits for its memory.
Here it is two passes of 88 bytes together, and the median filter is one, its 25 values in registers. Needs Triton,
which torch for CUDA brings along on Linux; without it ``tvl1`` takes torch.

Names and shapes are those of ``tvl1``. A program works on a block of pixels of one pair. Of what its kernel writes it
reads no neighbours, so all is done in place and in any order.
"""

# ruff: noqa: RUF005  # Triton knows no tuple with a star
from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tvl1

BLOCK = 1024  # pixels of a program: 8 of each thread
MEDIAN_BLOCK = 256  # 2 of each thread, with 25 values of each
HOW = {"enable_fp_fusion": True}  # a product and a sum rounded once: said, because Triton's default changes


@cache
def networks() -> tuple[Any, ...]:
    """Steps that sort five values and where they stand then; steps to the median of five sorted columns, and where."""
    (sort, ranks), (select, (middle,)) = tvl1.sorted_five(), tvl1.median_of_sorted_columns()
    steps = [tuple((int(larger), one, other) for larger, one, other in some) for some in (sort, select)]
    return steps[0], tuple(ranks), steps[1], middle


def room(u_B2HW: Tensor) -> list[Tensor]:
    """What ``iterate`` works in: parts of a sum, and who moves after it."""
    pairs, _, height, width = u_B2HW.shape
    return [u_B2HW.new_empty((pairs, triton.cdiv(height * width, BLOCK))), u_B2HW.new_empty(pairs)]


def iterate(
    how: tvl1.Parameters,
    number: int,
    goal: float,
    room: list[Tensor],
    moving_B: Tensor,
    last_change_B: Tensor,
    u_B2HW: Tensor,
    x_dual_B2HW: Tensor,
    y_dual_B2HW: Tensor,
    constant_BHW: Tensor,
    gradient_B2HW: Tensor,
    inverse_BHW: Tensor,
) -> Tensor:
    """Iteration ``number``, in place, for the pairs that are ``moving`` (1, else 0). Returns who still is after it.

    It takes the place of ``tvl1._iterate``, hence the same arguments.
    Nothing is asked for or computed by torch: it would take longer to start than both kernels. All is contiguous.
    """
    pairs, _, height, width = u_B2HW.shape
    parts_BN, after_B = room
    grid = (parts_BN.shape[1], pairs)
    _primal[grid](
        u_B2HW, x_dual_B2HW, y_dual_B2HW, constant_BHW, gradient_B2HW, inverse_BHW, moving_B, parts_BN,
        height, width, how.lambda_ * how.theta, block=BLOCK, **HOW,
    )  # fmt: skip
    _dual[grid](
        u_B2HW, x_dual_B2HW, y_dual_B2HW, moving_B, after_B, last_change_B, parts_BN, height, width, how.tau, goal,
        looks=how.stop == "each" or number % 2 == 1, estimates=how.stop == "estimate",
        block=BLOCK, parts=triton.next_power_of_2(parts_BN.shape[1]), **HOW,
    )  # fmt: skip
    room[1] = moving_B  # other programs may still read it, so the answer has a place of its own
    return after_B


def median_5x5(picture: Tensor) -> Tensor:
    """Median of the 5 x 5 pixels around each pixel, the border repeated; [..., H, W]."""
    picture = picture.contiguous()
    height, width = picture.shape[-2:]
    found = torch.empty_like(picture)
    grid = (triton.cdiv(height * width, MEDIAN_BLOCK), picture.numel() // (height * width))
    _median[grid](picture, found, height, width, *networks(), block=MEDIAN_BLOCK, **HOW)
    return found


@triton.jit
def _primal(u, x_dual, y_dual, constant, gradient, inverse, moving, parts, height, width, most, block: tl.constexpr):
    """u goes along the gradient until rho is 0, at most ``most`` gradients, and by the divergence of the duals."""
    pair = tl.program_id(1).to(tl.int64)
    if tl.load(moving + pair) != 0:
        at = tl.program_id(0) * block + tl.arange(0, block)
        size = height * width
        inside = at < size
        first = pair * 2 * size + at
        second = first + size
        x_gradient = tl.load(gradient + first, mask=inside, other=0.0)
        y_gradient = tl.load(gradient + second, mask=inside, other=0.0)
        x_u = tl.load(u + first, mask=inside, other=0.0)
        y_u = tl.load(u + second, mask=inside, other=0.0)
        rho = tl.load(constant + pair * size + at, mask=inside, other=0.0) + x_gradient * x_u + y_gradient * y_u
        share = rho * tl.load(inverse + pair * size + at, mask=inside, other=0.0)
        share = tl.minimum(tl.maximum(share, -most), most)
        x_step = _divergence(x_dual + first, y_dual + first, at, width, inside) - share * x_gradient
        y_step = _divergence(x_dual + second, y_dual + second, at, width, inside) - share * y_gradient
        tl.store(u + first, x_u + x_step, mask=inside)
        tl.store(u + second, y_u + y_step, mask=inside)
        change = tl.sum(tl.where(inside, x_step * x_step + y_step * y_step, 0.0), axis=0)
        tl.store(parts + pair * tl.num_programs(0) + tl.program_id(0), change)


@triton.jit
def _divergence(x_dual, y_dual, at, width, inside):
    """Backward differences, with zero outside."""
    left = tl.load(x_dual - 1, mask=inside & (at % width > 0), other=0.0)
    above = tl.load(y_dual - width, mask=inside & (at >= width), other=0.0)
    here = tl.load(x_dual, mask=inside, other=0.0) + tl.load(y_dual, mask=inside, other=0.0)
    return here - left - above


@triton.jit
def _dual(
    u,
    x_dual,
    y_dual,
    moving,
    after,
    last_change,
    parts_in,
    height,
    width,
    tau,
    goal,
    looks: tl.constexpr,
    estimates: tl.constexpr,
    block: tl.constexpr,
    parts: tl.constexpr,
):
    """The dual variables follow the slopes of u. One program of a pair also says whether it still moves."""
    pair = tl.program_id(1).to(tl.int64)
    moves = tl.load(moving + pair)
    if moves != 0:
        at = tl.program_id(0) * block + tl.arange(0, block)
        size = height * width
        _follow(u, x_dual, y_dual, pair * 2 * size, at, height, width, tau)
        _follow(u, x_dual, y_dual, pair * 2 * size + size, at, height, width, tau)
    if tl.program_id(0) == 0:
        count = tl.num_programs(0)
        number = tl.arange(0, parts)
        change = tl.sum(tl.load(parts_in + pair * count + number, mask=number < count, other=0.0), axis=0)
        looked = looks
        if estimates:
            last = tl.load(last_change + pair)
            looked = looks & (last < goal)
            tl.store(last_change + pair, tl.where(looked, change, last - goal))
        tl.store(after + pair, tl.where(looked & (change <= goal), 0.0, moves))


@triton.jit
def _follow(u, x_dual, y_dual, start, at, height, width, tau):
    """One component; forward differences, zero in the last column and row."""
    inside = at < height * width
    here = tl.load(u + start + at, mask=inside, other=0.0)
    not_last = inside & (at % width < width - 1)
    not_lowest = inside & (at < (height - 1) * width)
    x_slope = tl.where(not_last, tl.load(u + start + at + 1, mask=not_last, other=0.0) - here, 0.0)
    y_slope = tl.where(not_lowest, tl.load(u + start + at + width, mask=not_lowest, other=0.0) - here, 0.0)
    shrink = 1 + tl.sqrt_rn(x_slope * x_slope + y_slope * y_slope)
    x_here = tl.load(x_dual + start + at, mask=inside, other=0.0)
    y_here = tl.load(y_dual + start + at, mask=inside, other=0.0)
    tl.store(x_dual + start + at, tl.div_rn(x_here + tau * x_slope, shrink), mask=inside)
    tl.store(y_dual + start + at, tl.div_rn(y_here + tau * y_slope, shrink), mask=inside)


@triton.jit
def _median(
    picture,
    found,
    height,
    width,
    sort: tl.constexpr,
    ranks: tl.constexpr,
    select: tl.constexpr,
    middle: tl.constexpr,
    block: tl.constexpr,
):
    """Loads 25 shifted blocks; sorts each column of five, then selects."""
    at = tl.program_id(0) * block + tl.arange(0, block)
    start = tl.program_id(1).to(tl.int64) * height * width
    inside = at < height * width
    y = at // width
    x = at % width
    columns = ()
    for column in tl.static_range(5):
        x_there = tl.minimum(tl.maximum(x + (column - 2), 0), width - 1)
        values = ()
        for row in tl.static_range(5):
            y_there = tl.minimum(tl.maximum(y + (row - 2), 0), height - 1)
            values = values + (tl.load(picture + start + y_there * width + x_there, mask=inside, other=0.0),)
        columns = columns + (_compared(values, sort),)
    by_rank = ()
    for rank in tl.static_range(5):
        for column in tl.static_range(5):
            by_rank = by_rank + (columns[column][ranks[rank]],)
    tl.store(found + start + at, _compared(by_rank, select)[middle], mask=inside)


@triton.jit
def _compared(values, steps: tl.constexpr):
    for number in tl.static_range(len(steps)):
        if steps[number][0] == 1:
            values = values + (tl.maximum(values[steps[number][1]], values[steps[number][2]]),)
        else:
            values = values + (tl.minimum(values[steps[number][1]], values[steps[number][2]]),)
    return values
