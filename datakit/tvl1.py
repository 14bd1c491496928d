"""Dual TV-L1 optical flow, many frame pairs at once, in torch.

The method is that of C. Zach, T. Pock, H. Bischof, "A Duality Based Approach for Realtime TV-L1 Optical Flow" (DAGM
2007), solved as in J. Sanchez, E. Meinhardt-Llopis, G. Facciolo, "TV-L1 Optical Flow Estimation" (IPOL 2013). What the
papers leave open (resampling, borders, when to stop, the median filter) follows what OpenCV does, because published
flow networks were trained on its output: ``Parameters`` names each choice, ``manifests/flow.toml`` has the sets.

For a pair (I0, I1) we look for u with I1(x + u) = I0(x), small in  |rho(u)| * lambda + |grad u|,  from coarse to fine:

    pyramid level:  for each warp:  linearise rho around the present u
                        repeat:     v = u thresholded towards rho(v) = 0        (data term, a closed form)
                                    u = v + theta * div p                       (smoothness, p is the dual variable)
                                    p = (p + tau/theta * grad u) / (1 + tau/theta * |grad u|)

Shapes: B pairs, H x W pixels; ``u_B2HW`` holds x then y, in pixels; ``p_B22HW`` the dual of (component, direction).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import BadManifest

SMALLEST_SIDE_PX = 16  # levels with a shorter side are left out
PATIENCE = {"cpu": 1, "cuda": 10}  # iterations between two looks at who is done: to be asked makes a GPU wait
_FLAT = 1.19e-7  # a squared gradient of no more counts as none (the float epsilon, as in OpenCV)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """One set of ``manifests/flow.toml``; the letters are those of the papers.

    ``outer`` rounds of ``inner`` iterations follow each of ``warps`` warps, fewer when the mean squared change of u
    falls to ``epsilon`` squared. ``median`` is the side of the median filter before each round: 5, or 0 for none.
    ``pyramid``: "centres" maps pixel centres on pixel centres, "corners" pixel 0 on pixel 0 (OpenCV's CUDA resize).
    ``warp``: "cubic" is the cubic of a = -0.75 with black outside, "catmull-rom" a = -0.5 with the border repeated.
    ``stop``: "each" looks at the change after each iteration; "estimate" after those at which it may have become small
    enough, judged from the last one looked at (OpenCV's CUDA version, to save sums).
    """

    tau: float
    lambda_: float
    theta: float
    scales: int
    scale_step: float
    warps: int
    outer: int
    inner: int
    epsilon: float
    median: int
    pyramid: str
    warp: str
    stop: str

    def __post_init__(self) -> None:
        known: dict[str, set[Any]] = {
            "median": {0, 5}, "pyramid": {"centres", "corners"}, "warp": {"cubic", "catmull-rom"},
            "stop": {"each", "estimate"},
        }  # fmt: skip
        for field, values in known.items():
            if getattr(self, field) not in values:
                raise BadManifest(f"flow.toml: {field} = {getattr(self, field)!r}, known are {sorted(values)}")


def flow(first_BHW: Tensor, second_BHW: Tensor, how: Parameters) -> Tensor:
    """Flow from each first picture to its second, float32 [B, 2, H, W] in pixels, on the pictures' device.

    Pictures are grey, on the scale 0..255 (any dtype). A pair's result does not depend on the others in the batch.
    """
    with torch.cuda.device_of(first_BHW):  # type: ignore[no-untyped-call]  # where kernels are started
        return _flow(first_BHW.float(), second_BHW.float(), how)


def _flow(first_BHW: Tensor, second_BHW: Tensor, how: Parameters) -> Tensor:
    levels = [(first_BHW, second_BHW)]
    while len(levels) < how.scales:
        height, width = (round(side * how.scale_step) for side in levels[-1][0].shape[1:])
        if min(height, width) < SMALLEST_SIDE_PX:
            break
        step = 1 / how.scale_step
        smaller = [_resized(level, height, width, step, step, how.pyramid) for level in levels[-1]]
        levels.append((smaller[0], smaller[1]))
    u_B2HW = levels[-1][0].new_zeros((len(first_BHW), 2, *levels[-1][0].shape[1:]))
    for number, (one, other) in reversed(list(enumerate(levels))):
        u_B2HW = _refined(u_B2HW, one, other, how)
        if number:
            height, width = levels[number - 1][0].shape[1:]
            y_step, x_step = one.shape[1] / height, one.shape[2] / width
            u_B2HW = _resized(u_B2HW, height, width, y_step, x_step, how.pyramid) / how.scale_step
    return u_B2HW


def _refined(u_B2HW: Tensor, first_BHW: Tensor, second_BHW: Tensor, how: Parameters) -> Tensor:
    """One pyramid level: warp, linearise and solve, ``warps`` times."""
    source_B3HW = torch.stack([second_BHW, *_central_gradient(second_BHW)], dim=1)
    x_dual_B2HW, y_dual_B2HW = torch.zeros_like(u_B2HW), torch.zeros_like(u_B2HW)
    for _ in range(how.warps):
        now_B3HW = _warped(source_B3HW, u_B2HW, how.warp)
        gradient_B2HW = now_B3HW[:, 1:].contiguous()
        constant_BHW = now_B3HW[:, 0] - first_BHW - (gradient_B2HW * u_B2HW).sum(1)
        u_B2HW, x_dual_B2HW, y_dual_B2HW = _solved(u_B2HW, x_dual_B2HW, y_dual_B2HW, constant_BHW, gradient_B2HW, how)
    return u_B2HW


def _solved(
    u_B2HW: Tensor,
    x_dual_B2HW: Tensor,
    y_dual_B2HW: Tensor,
    constant_BHW: Tensor,
    gradient_B2HW: Tensor,
    how: Parameters,
) -> tuple[Tensor, Tensor, Tensor]:
    """Iterate until each pair's u stands still; a pair that does leaves the batch. Returns u and the dual variables.

    In here u counts in theta / tau pixels and the dual variables in 1 / tau, which leaves nothing to multiply with.
    """
    device = u_B2HW.device
    unit = how.tau / how.theta
    steepness_B2HW = gradient_B2HW * unit
    inverse_BHW = steepness_B2HW.square().sum(1).clamp_min_(_FLAT * unit**2).reciprocal_()
    parts = (u_B2HW * unit, x_dual_B2HW, y_dual_B2HW, constant_BHW * unit**2, steepness_B2HW, inverse_BHW)
    work = [part.contiguous() for part in parts]
    goal = (how.epsilon * unit) ** 2 * constant_BHW[0].numel()
    answers = [torch.empty_like(u_B2HW) for _ in range(3)]
    kernels = _kernels(device.type)
    iterate, room = (kernels.iterate, kernels.room(u_B2HW)) if kernels else (_iterate, _room(u_B2HW))
    places = torch.arange(len(u_B2HW), device=device)
    moving_B = torch.ones(len(u_B2HW), device=device)
    last_change_B = torch.zeros_like(moving_B)
    most = how.outer * how.inner
    for number in range(most):
        if how.median and number % how.inner == 0:
            work[0] = _median_5x5(work[0])
        moving_B = iterate(how, number, goal, room, moving_B, last_change_B, *work)
        if number == most - 1:
            moving_B = torch.zeros_like(moving_B)
        elif (number + 1) % how.inner % PATIENCE[device.type]:  # nobody who is done may see another median
            continue
        stay = moving_B.nonzero().flatten()
        if len(stay) < len(places):
            for answer, values in zip(answers, work, strict=False):
                answer[places] = values
            places, moving_B, last_change_B = places[stay], moving_B[stay], last_change_B[stay]
            work, room = [values[stay] for values in work], [one[: len(stay)] for one in room]
        if not len(stay):
            break
    return answers[0] / unit, answers[1], answers[2]


@cache
def _kernels(device_type: str) -> ModuleType | None:
    """The two inner loops as kernels of a GPU where there are any; else torch does the same sums, pass by pass."""
    if device_type != "cuda":
        return None
    try:
        from . import tvl1_gpu

        tvl1_gpu.median_5x5(torch.zeros((1, 1, SMALLEST_SIDE_PX, SMALLEST_SIDE_PX), device=device_type))
    except Exception as error:  # no Triton, no C compiler for it, a GPU it does not know: it has no errors of its own
        reason = str(error).partition("\n")[0] or type(error).__name__
        warnings.warn(f"TV-L1 goes without its kernels, several times slower on this GPU: {reason}", stacklevel=2)
        return None
    return tvl1_gpu


def _room(u_B2HW: Tensor) -> list[Tensor]:
    """What ``_iterate`` works in, because to ask for memory takes longer than the sums."""
    return [torch.zeros_like(u_B2HW) for _ in range(4)]  # slopes stay 0 in the last column and row


def _iterate(
    how: Parameters,
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
    """Iteration ``number``, in place, for the pairs that are ``moving`` (1, else 0). Returns who still is after it: not
    the pairs whose squared change of u was at most ``goal``.
    """
    most = how.lambda_ * how.theta
    step_B2HW, shrink_B2HW, x_slope_B2HW, y_slope_B2HW = room
    moving_B111 = moving_B[:, None, None, None]
    rate_B111 = how.tau * moving_B111
    # Data term: go along the gradient until rho is 0, but at most lambda * theta gradients.
    share_BHW = torch.addcmul(constant_BHW, gradient_B2HW[:, 0], u_B2HW[:, 0], out=shrink_B2HW[:, 0])
    share_BHW.addcmul_(gradient_B2HW[:, 1], u_B2HW[:, 1]).mul_(inverse_BHW).clamp_(-most, most)
    # Smoothness: the divergence of the dual variable, backward differences with zero outside.
    torch.add(x_dual_B2HW, y_dual_B2HW, out=step_B2HW)
    step_B2HW[..., 1:].sub_(x_dual_B2HW[..., :-1])
    step_B2HW[..., 1:, :].sub_(y_dual_B2HW[..., :-1, :])
    step_B2HW.addcmul_(share_BHW[:, None], gradient_B2HW, value=-1)
    u_B2HW.addcmul_(step_B2HW, moving_B111)
    change_B: Tensor = torch.linalg.vector_norm(step_B2HW.flatten(1), dim=1).square()
    # Dual variable: forward differences, zero in the last column and row.
    torch.sub(u_B2HW[..., 1:], u_B2HW[..., :-1], out=x_slope_B2HW[..., :-1])
    torch.sub(u_B2HW[..., 1:, :], u_B2HW[..., :-1, :], out=y_slope_B2HW[..., :-1, :])
    torch.mul(x_slope_B2HW, x_slope_B2HW, out=shrink_B2HW).addcmul_(y_slope_B2HW, y_slope_B2HW)
    shrink_B2HW.sqrt_().mul_(moving_B111).add_(1)
    x_dual_B2HW.addcmul_(x_slope_B2HW, rate_B111).div_(shrink_B2HW)
    y_dual_B2HW.addcmul_(y_slope_B2HW, rate_B111).div_(shrink_B2HW)
    if how.stop == "each":
        return moving_B * (change_B > goal)
    looked_B = (last_change_B < goal) & (number % 2 == 1)
    last_change_B.copy_(torch.where(looked_B, change_B, last_change_B - goal))
    return moving_B * ~(looked_B & (change_B <= goal))


def _resized(picture: Tensor, height: int, width: int, y_step: float, x_step: float, rule: str) -> Tensor:
    """Bilinear, [..., H, W] -> [..., height, width]; a step is in source pixels and need not be H / height."""
    for axis, size, step in ((-1, width, x_step), (-2, height, y_step)):
        last = picture.shape[axis] - 1
        at = torch.arange(size, dtype=torch.float64, device=picture.device)
        at = at * step if rule == "corners" else (at + 0.5) * step - 0.5
        at = at.clamp_(0, last)
        low = at.long()
        weight = (at - low).to(picture.dtype)
        if axis == -2:
            weight = weight[:, None]
        one, other = picture.index_select(axis, low), picture.index_select(axis, (low + 1).clamp_(max=last))
        picture = one.lerp_(other, weight)
    return picture


def _central_gradient(picture_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """Half of (next - previous) along x and along y, the border repeated."""
    padded = F.pad(picture_BHW[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    x_BHW = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    y_BHW = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    return x_BHW, y_BHW


def _warped(picture_BCHW: Tensor, u_B2HW: Tensor, rule: str) -> Tensor:
    """``picture`` at x + u by cubic interpolation of the 4 x 4 pixels around, see ``Parameters.warp``."""
    channels, height, width = picture_BCHW.shape[1:]
    x_BHW = u_B2HW[:, 0] + torch.arange(width, device=u_B2HW.device)
    y_BHW = u_B2HW[:, 1] + torch.arange(height, device=u_B2HW.device)[:, None]
    if rule == "cubic":  # torch's own has this a; in float64, because it wants positions as parts of the width
        at_BHW2 = torch.stack([(2 * x_BHW.double() + 1) / width - 1, (2 * y_BHW.double() + 1) / height - 1], dim=-1)
        return F.grid_sample(picture_BCHW.double(), at_BHW2, mode="bicubic", align_corners=False).float()
    # Positions of which no pixel around is in the picture all give the border: as far out as the padding goes.
    padded_BCHW = F.pad(picture_BCHW, (4, 4, 4, 4), mode="replicate")
    left, top = x_BHW.floor(), y_BHW.floor()
    stride = padded_BCHW.shape[-1]
    first = (top.clamp(-3, height + 1).long() + 3) * stride + left.clamp(-3, width + 1).long() + 3
    first_BCP = first.flatten(1)[:, None].expand(-1, channels, -1)
    flat_BCP = padded_BCHW.flatten(2)
    warped_BCHW = torch.zeros_like(picture_BCHW)
    x_weights = _catmull_rom(x_BHW - left)
    for row, y_weight in enumerate(_catmull_rom(y_BHW - top)):
        for column, x_weight in enumerate(x_weights):
            values = flat_BCP[:, :, row * stride + column :].gather(2, first_BCP).view_as(picture_BCHW)
            warped_BCHW.addcmul_(values, (x_weight * y_weight)[:, None])
    return warped_BCHW


def _catmull_rom(t: Tensor) -> list[Tensor]:
    """Weights of the pixels at -1, 0, 1, 2 for a point at ``t`` in 0..1: Keys's kernel with a = -0.5."""
    before = ((2 - t) * t - 1) * t / 2
    here = (1.5 * t - 2.5) * t * t + 1
    after = ((2 - 1.5 * t) * t + 0.5) * t
    return [before, here, after, 1 - before - here - after]


def _median_5x5(picture: Tensor) -> Tensor:
    """Median of the 5 x 5 pixels around each pixel, the border repeated; [..., H, W] of two leading dimensions."""
    if kernels := _kernels(picture.device.type):
        return kernels.median_5x5(picture)  # type: ignore[no-any-return]
    height, width = picture.shape[-2:]
    padded = F.pad(picture, (2, 2, 2, 2), mode="replicate")
    columns = _compared([padded[..., row : row + height, :] for row in range(5)], *sorted_five())
    values = [column[..., shift : shift + width] for column in columns for shift in range(5)]
    return _compared(values, *median_of_sorted_columns())[0]


Step = tuple[bool, int, int]  # a new value: the larger (else smaller) of two earlier ones, inputs counted first


def _compared(values: list[Tensor], steps: list[Step], wanted: list[int]) -> list[Tensor]:
    """Run a sorting network and return the ``wanted`` ones of its values; memory is used again, see ``_iterate``."""
    known = dict(enumerate(values))
    room: list[Tensor] = []
    last_use = {value: number for number, (_, *pair) in enumerate(steps) for value in pair}
    for number, (larger, one, other) in enumerate(steps):
        out = room.pop() if room else torch.empty_like(values[0])
        (torch.maximum if larger else torch.minimum)(known[one], known[other], out=out)
        known[len(values) + number] = out
        for value in {one, other}:
            if last_use[value] == number and value not in wanted:
                done = known.pop(value)
                if value >= len(values):
                    room.append(done)
    return [known[value] for value in wanted]


@cache
def sorted_five() -> tuple[list[Step], list[int]]:
    steps: list[Step] = []
    return steps, _sort(steps, 5, list(range(5)))


@cache
def median_of_sorted_columns() -> tuple[list[Step], list[int]]:
    """Median of 25 values, given as five ranks of five columns that are each sorted.

    With every rank sorted across the columns too, entry (i, j) has at least (i+1)(j+1) - 1 values that are not larger
    and (5-i)(5-j) - 1 that are not smaller: 6 entries lie below the median for sure and 6 above, so it is the rest's.
    """
    steps: list[Step] = []
    ranks = [_sort(steps, 25, list(range(5 * rank, 5 * rank + 5))) for rank in range(5)]
    rest = [ranks[i][j] for i in range(5) for j in range(5) if (i + 1) * (j + 1) <= 13 and (5 - i) * (5 - j) <= 13]
    return _needed(steps, 25, _sort(steps, 25, rest)[len(rest) // 2])


def _sort(steps: list[Step], num_inputs: int, values: list[int]) -> list[int]:
    """Append the steps of Batcher's odd-even merge sort of ``values``; returns them in order."""
    values = list(values)
    size = 1 << (len(values) - 1).bit_length()
    run = 1
    while run < size:
        gap = run
        while gap >= 1:
            for start in range(gap % run, size - gap, 2 * gap):
                for low in range(start, min(start + gap, size - gap)):
                    high = low + gap
                    if low // (2 * run) == high // (2 * run) and high < len(values):  # beyond the end stands infinity
                        for larger in (False, True):
                            steps.append((larger, values[low], values[high]))
                        values[low], values[high] = num_inputs + len(steps) - 2, num_inputs + len(steps) - 1
            gap //= 2
        run *= 2
    return values


def _needed(steps: list[Step], num_inputs: int, wanted: int) -> tuple[list[Step], list[int]]:
    """Only the steps that ``wanted`` depends on, renumbered."""
    used = {wanted}
    for number in range(len(steps) - 1, -1, -1):
        if num_inputs + number in used:
            used |= set(steps[number][1:])
    names = {value: value for value in range(num_inputs)}
    kept: list[Step] = []
    for number, (larger, one, other) in enumerate(steps):
        if num_inputs + number in used:
            names[num_inputs + number] = num_inputs + len(kept)
            kept.append((larger, names[one], names[other]))
    return kept, [names[wanted]]
