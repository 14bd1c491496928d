"""Bilinear resize of uint8 frames in torch, on any device, equal to OpenCV's ``INTER_LINEAR`` to the bit.

Every published number of this field was made with cv2.resize, whose 8-bit path is integer arithmetic (OpenCV
modules/imgproc/src/resize.cpp): coefficients of 11 bits, columns first, then rows with two truncating shifts.
A bilinear resize in floating point differs from it by a level here and there. On a CPU OpenCV itself does the work
where it is installed and found equal: it has vector code for this, a sixth of the time.

Shapes: n frames, H x W stored, h x w wanted, C channels.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

COEFFICIENT_SCALE = 2048  # INTER_RESIZE_COEF_SCALE
# Frames at a time: on a CPU one frame's intermediates stay in the cache, a GPU wants more work a call.
FRAMES_AT_ONCE = {"cpu": 1}
FRAMES_AT_ONCE_ELSEWHERE = 16


def linear(
    frames: Tensor, height: int, width: int, *, rows: tuple[int, int] | None = None, cols: tuple[int, int] | None = None
) -> Tensor:
    """uint8 [n, H, W, C] -> planar uint8 [n, C, h, w]: what ``cv2.resize(frame, (width, height))`` gives for each.

    ``rows``, ``cols``: (first, past the last) of the resized picture when only a part of it is needed; the result is
    that part, of the same values.
    """
    top, bottom = rows or (0, height)
    left, right = cols or (0, width)
    num_frames, stored_height, stored_width, channels = frames.shape
    out = new((num_frames, channels, bottom - top, right - left), frames.device)
    if frames.device.type == "cpu" and channels == 3 and (opencv := _opencv()):
        for planes, frame in zip(out.numpy(), frames.numpy(), strict=True):
            whole = frame if frame.shape[:2] == (height, width) else opencv.resize(frame, (width, height))
            opencv.split(whole[top:bottom, left:right], list(planes))
        return out
    if (stored_height, stored_width) == (height, width):
        return out.copy_(frames[:, top:bottom, left:right].permute(0, 3, 1, 2))
    return _linear(frames, height, width, (top, bottom), (left, right), out)


@functools.cache
def _opencv() -> Any | None:
    """OpenCV, where it is installed and resizes a noisy picture as we do; its pictures of two channels it halves
    in another way."""
    try:
        import cv2
    except ImportError:
        return None
    noise = np.random.default_rng(0).integers(0, 256, (1, 61, 83, 3), np.uint8)
    ours = _linear(torch.from_numpy(noise), 45, 67, (0, 45), (0, 67), torch.empty((1, 3, 45, 67), dtype=torch.uint8))
    return cv2 if np.array_equal(ours[0].permute(1, 2, 0).numpy(), cv2.resize(noise[0], (67, 45))) else None


def _linear(
    frames: Tensor, height: int, width: int, rows: tuple[int, int], cols: tuple[int, int], out: Tensor
) -> Tensor:
    """``linear`` in integers of torch, into ``out``."""
    (top, bottom), (left, right) = rows, cols
    num_frames, stored_height, stored_width, _ = frames.shape
    step = FRAMES_AT_ONCE.get(frames.device.type, FRAMES_AT_ONCE_ELSEWHERE)
    if (stored_height, stored_width) == (2 * height, 2 * width):
        for start in range(0, num_frames, step):
            part = frames[start : start + step, 2 * top : 2 * bottom, 2 * left : 2 * right]
            out[start : start + step] = _halved(part).permute(0, 3, 1, 2)
        return out
    x0, x1, a0, a1 = _taps(stored_width, width, clamp=True)
    y0, y1, b0, b1 = _taps(stored_height, height, clamp=False)
    first_row, past_row = int(y0[top]), int(y1[bottom - 1]) + 1
    across = [on(frames.device, tap[left:right]) for tap in (x0, x1, a0, a1)]
    down = [on(frames.device, tap[top:bottom]) for tap in (y0 - first_row, y1 - first_row, b0, b1)]
    for start in range(0, num_frames, step):
        columns = _columns(frames[start : start + step, first_row:past_row], *across)
        out[start : start + step] = _rows(columns, *down)
    return out


def on(device: torch.device, values: np.ndarray) -> Tensor:
    """As a tensor on the device; the host does not wait for a GPU, which may be busy with a network."""
    x = torch.from_numpy(values)
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x


def new(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """uint8, not filled. On a CPU from numpy, which asks for large pages: 200 MB cost 75 ms of page faults without."""
    if device.type == "cpu":
        return torch.from_numpy(np.empty(shape, np.uint8))
    return torch.empty(shape, dtype=torch.uint8, device=device)


def _columns(frames: Tensor, x0: Tensor, x1: Tensor, a0: Tensor, a1: Tensor) -> Tensor:
    """uint8 [n, H, W, C] -> int32 [n, C, H, w]: the horizontal pass, less the four bits that the vertical one drops."""
    x_nWCH = frames.permute(0, 2, 3, 1).contiguous()  # gathering columns then copies runs, not bytes
    mixed = x_nWCH.index_select(1, x0).int().mul_(a0[:, None, None])
    mixed += x_nWCH.index_select(1, x1).int().mul_(a1[:, None, None])
    return mixed.bitwise_right_shift_(4).permute(0, 2, 3, 1).contiguous()


def _rows(columns: Tensor, y0: Tensor, y1: Tensor, b0: Tensor, b1: Tensor) -> Tensor:
    """int32 [n, C, H, w] -> int32 [n, C, h, w] in 0..255."""
    mixed = columns.index_select(2, y0).mul_(b0[:, None]).bitwise_right_shift_(16)
    mixed += columns.index_select(2, y1).mul_(b1[:, None]).bitwise_right_shift_(16)
    return mixed.add_(2).bitwise_right_shift_(2)


def _halved(frames: Tensor) -> Tensor:
    """uint8 [n, 2h, 2w, C] -> uint8 [n, h, w, C]: cv2 takes the mean of 2 x 2 pixels when both sides halve exactly.

    Half levels go up, as cv2 has it for 1, 3 and 4 channels. It rounds them to even for 2, but nobody published a
    number that way: flow was resized as two pictures of one channel (mmaction2 v0.24.1).
    """
    x = frames.short()
    total = x[:, 0::2, 0::2] + x[:, 0::2, 1::2] + x[:, 1::2, 0::2] + x[:, 1::2, 1::2]
    return total.add_(2).bitwise_right_shift_(2).to(torch.uint8)


@functools.lru_cache(maxsize=256)
def _taps(stored: int, wanted: int, *, clamp: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two source positions (int64) and two coefficients (int32) for each of ``wanted`` positions.

    cv2 stops the weights at the border of a row of pixels (``clamp``); at the border of a column it repeats the outer
    row and keeps the weights, which rounds differently.
    """
    scale = 1.0 / (wanted / stored)  # in this order: cv2 inverts the factor it was given
    place = ((np.arange(wanted) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(place)
    weight = place - first
    if clamp:
        weight[(first < 0) | (first >= stored - 1)] = 0
    near = first.astype(np.int64).clip(0, stored - 1)
    far = (first.astype(np.int64) + 1).clip(0, stored - 1)
    coefficients = [np.rint(part * np.float32(COEFFICIENT_SCALE)).astype(np.int32) for part in (1 - weight, weight)]
    return near, far, coefficients[0], coefficients[1]
