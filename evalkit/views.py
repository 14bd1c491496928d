"""Which frames and which crops a protocol looks at: numbers only, exactly as the original programs choose them.

Rules are named after the program whose numbers they reproduce. Sources:

    mmaction2-0.x   mmaction2 v0.24.1   datasets/pipelines/{loading,augmentations}.py
    mmaction2-1.x   mmaction2 v1.2.0    datasets/transforms/{loading,processing}.py
    pyslowfast      SlowFast 287ec00    slowfast/datasets/{decoder,transform}.py, full decode
    torchvision     torchvision 0.29    datasets/video_utils.py, datasets/samplers/clip_sampler.py
    gluoncv         GluonCV 5677756     torch/data/video_cls/dataset_classification.py, test mode
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datakit.errors import CropError, DataError

Indices = NDArray[np.int64]
Starts = NDArray[Any]  # whole numbers or fractions of frames, until the last step cuts them
Box = tuple[int, int, int, int]  # top, left, height, width
Scale = int | float | tuple[int, int] | tuple[int, int, str]

RULES = ("mmaction2-0.x", "mmaction2-1.x", "pyslowfast", "torchvision", "gluoncv")


def frame_indices(
    rule: str,
    total_frames: int,
    clip_len: int,
    frame_interval: int,
    num_clips: int,
    fps: float | None = None,
    **options: Any,
) -> Indices:
    """The frames of every clip: int64 [rows, clip_len], zero-based, each in 0..total_frames-1.

    rows = num_clips, but for mmaction2's ``twice_sample`` (twice as many; 0.x only where the video is long enough) and
    its dense sampler (num_sample_positions x num_clips), and 0 where torchvision's rule has no clip. For 2D networks
    ``clip_len`` is 1 and ``num_clips`` the number of segments.

    options  mmaction2    twice_sample=False, out_of_bound_opt="loop"|"repeat_last", sampler="segments"|"dense",
                          sample_range=64 and num_sample_positions=10 of the dense one
             1.x alone    target_fps=None (the dense one does not look at it), sampler="uniform"
             pyslowfast   target_fps=30, use_offset=False, or sampler="uniform", which looks at no time (Ssv2)
             torchvision  frame_rate=15 (None: the video's own), step_between_clips=1; ``frame_interval`` says nothing
    Raises ``DataError`` where the rule cannot answer (no frames, or a rule by time without ``fps``), ``TypeError`` for
    an option that the rule does not have.
    """
    if total_frames < 1:
        raise DataError(f"a video of {total_frames} frames has no clip")
    if min(clip_len, frame_interval, num_clips) < 1:
        raise ValueError(
            f"clip_len={clip_len}, frame_interval={frame_interval}, num_clips={num_clips}: at least 1 each"
        )
    fps = None if fps is None else float(fps)  # files say it as a fraction
    if rule == "mmaction2-0.x":
        return _mmaction2_0x(total_frames, clip_len, frame_interval, num_clips, **options)
    if rule == "mmaction2-1.x":
        return _mmaction2_1x(total_frames, clip_len, frame_interval, num_clips, fps, **options)
    if rule == "pyslowfast":
        return _pyslowfast(total_frames, clip_len, frame_interval, num_clips, fps, **options)
    if rule == "torchvision":
        return _torchvision(total_frames, clip_len, num_clips, fps, **options)
    if rule == "gluoncv":
        return _gluoncv(total_frames, clip_len, frame_interval, num_clips, **options)
    raise ValueError(_unknown(rule))


def crop_boxes(rule: str, height: int, width: int, size: int, num_crops: int) -> list[Box]:
    """The crops of a frame, (top, left, height, width) each, in the rule's order.

    mmaction2    1 centre;  3 first, last, middle of the longer side, whose other side must be ``size``;
                 5 the corners (upper left, upper right, lower left, lower right), then the centre.
                 TenCrop is these five and the same five mirrored
    pyslowfast   1 centre;  3 first, middle, last of the longer side; the other side is cropped at its centre
    torchvision  1 centre
    gluoncv      2 or more along the longer side; ``size`` must be the short side, as the original crops nothing else

    Where the original would return a picture smaller than asked for, or pads it: ``CropError``. It is also raised where
    the rule has no such number of crops.
    """
    if size > min(height, width):
        raise CropError(
            f"a crop of {size} does not fit into a frame of {height} x {width} (height x width); "
            "resize to a larger short side or crop less"
        )
    if rule in ("mmaction2-0.x", "mmaction2-1.x"):
        corners = _mmaction2_corners(height, width, size, num_crops)
    elif rule == "pyslowfast":
        corners = _pyslowfast_corners(height, width, size, num_crops)
    elif rule == "torchvision":
        corners = _torchvision_corners(height, width, size, num_crops)
    elif rule == "gluoncv":
        corners = _gluoncv_corners(height, width, size, num_crops)
    else:
        raise ValueError(_unknown(rule))
    return [(top, left, size, size) for top, left in corners]


def resized(rule: str, height: int, width: int, scale: Scale) -> tuple[int, int]:
    """(height, width) of a frame after the rule's resize.

    scale  256                  short side, aspect kept
           (340, 256)           fits inside, whichever way round the frame is, aspect kept (mmaction2)
           (-1, 256)            the same without a limit for the longer side: short side 256 (mmaction2)
           (171, 128, "stretch")  width and height, aspect lost
           0.5                  factor for both sides (mmaction2)
    mmaction2 rounds the longer side, the others cut it off.
    """
    if rule not in RULES:
        raise ValueError(_unknown(rule))
    if isinstance(scale, tuple) and len(scale) == 3:
        new_width, new_height, word = scale
        if word != "stretch":
            raise ValueError(f"scale {scale}: the third part is 'stretch'")
        return new_height, new_width
    if rule in ("mmaction2-0.x", "mmaction2-1.x"):
        factor = _mmaction2_factor(height, width, scale)
        return int(height * factor + 0.5), int(width * factor + 0.5)
    if not isinstance(scale, int):
        raise ValueError(f"scale {scale!r}: rule {rule} takes a short side or (width, height, 'stretch')")
    if min(height, width) == scale:
        return height, width  # without this, 115 / 112 * 112 would be cut to 114
    if rule == "pyslowfast":  # divides first; the other two multiply first: they can differ by a pixel
        longer = math.floor(max(height, width) / min(height, width) * scale)
    else:
        longer = int(scale * max(height, width) / min(height, width))
    return (longer, scale) if height > width else (scale, longer)


# --- frames ----------------------------------------------------------------------------------------------------------


def _mmaction2_0x(
    total_frames: int,
    clip_len: int,
    frame_interval: int,
    num_clips: int,
    *,
    twice_sample: bool = False,
    out_of_bound_opt: str = "loop",
    sampler: Literal["segments", "dense"] = "segments",
    sample_range: int = 64,
    num_sample_positions: int = 10,
    target_fps: None = None,
) -> Indices:
    """Starts at the centres of equal segments of the possible starts; a video shorter than a clip starts at 0.

    10 frames, clip of 4, 2 clips    possible starts 0..6   0123|456  ->  1, 5
    """
    if target_fps is not None:
        raise TypeError(f"target_fps={target_fps}: mmaction2-0.x has none, mmaction2-1.x has")
    span = clip_len * frame_interval
    if sampler == "dense":
        starts: Starts = _dense_starts(total_frames, num_clips, sample_range, num_sample_positions)
    elif sampler != "segments":
        raise ValueError(f"sampler={sampler!r}: mmaction2-0.x has segments and dense")
    elif total_frames < span:
        starts = np.zeros(num_clips)
    else:
        interval = (total_frames - span + 1) / num_clips
        firsts = np.arange(num_clips) * interval
        starts = np.trunc(firsts + interval / 2)
        if twice_sample:  # the second half keeps its fractions until the end, as the original's arrays do
            starts = np.concatenate([starts, firsts])
    offsets = np.arange(clip_len) * frame_interval
    return _inside(starts[:, None] + offsets, total_frames, out_of_bound_opt)


def _mmaction2_1x(
    total_frames: int,
    clip_len: int,
    frame_interval: int,
    num_clips: int,
    fps: float | None,
    *,
    twice_sample: bool = False,
    out_of_bound_opt: str = "loop",
    target_fps: float | None = None,
    sampler: Literal["segments", "dense", "uniform"] = "segments",
    sample_range: int = 64,
    num_sample_positions: int = 10,
) -> Indices:
    """Single frames as 0.x; clips spread evenly, the first at frame 0 and the last at the end, one clip in the middle.

    10 frames, clip of 4, 3 clips    0123   6789  ->  0, 3, 6
    """
    if sampler == "uniform":
        return _uniform(total_frames, clip_len, num_clips)
    if sampler not in ("segments", "dense"):
        raise ValueError(f"sampler={sampler!r}: mmaction2-1.x has segments, dense and uniform")
    offsets = np.arange(clip_len) * frame_interval
    if sampler == "dense":
        dense = _dense_starts(total_frames, num_clips, sample_range, num_sample_positions)
        return _inside(dense[:, None] + offsets, total_frames, out_of_bound_opt)
    span: float = (clip_len - 1) * frame_interval + 1
    if target_fps is not None:  # imitates pyslowfast; a video that does not say its fps counts as target_fps
        span = max(1, clip_len * frame_interval * (fps / target_fps if fps else 1.0))
        offsets = np.linspace(0, span - 1, clip_len).astype(np.int64)
    starts: Starts
    if clip_len == 1:
        interval = total_frames / num_clips
        firsts = np.arange(num_clips) * interval
        starts = firsts + interval / 2
        if twice_sample:
            starts = np.concatenate([starts, firsts])
    else:
        starts = _spread_starts(max(total_frames - span, 0), num_clips, twice_sample, target_fps is not None)
    return _inside(starts[:, None] + offsets, total_frames, out_of_bound_opt)


def _spread_starts(last_start: float, num_clips: int, twice_sample: bool, whole_steps: bool) -> Starts:
    """Twice the clips keep the step of half of them and so run past the end, as in the original."""
    num_starts = 2 * num_clips if twice_sample else num_clips
    if num_starts == 1:
        return np.array([float(last_start // 2)])
    if num_clips == 1:
        raise DataError("mmaction2-1.x divides by num_clips - 1: twice_sample needs two clips or more")
    step = last_start / (num_clips - 1)
    if whole_steps:
        step = math.floor(step)
    return np.round(np.arange(num_starts) * step)


def _dense_starts(total_frames: int, num_clips: int, sample_range: int, num_sample_positions: int) -> Starts:
    """Segments of a window of ``sample_range`` frames, the window at positions spread over the video."""
    last_position = max(0, total_frames - sample_range)
    positions = np.floor(np.linspace(0, last_position, num_sample_positions))
    within = np.arange(num_clips) * (sample_range // num_clips)
    starts: Starts = (positions[:, None] + within) % total_frames
    return starts.reshape(-1)


def _uniform(total_frames: int, clip_len: int, num_clips: int) -> Indices:
    """One frame from each of ``clip_len`` segments of the video, a little later in each further clip."""
    segment = (total_frames - 1) / clip_len
    firsts = np.round(np.arange(clip_len) * segment)
    later = np.trunc(segment / (num_clips + 1) * np.arange(1, num_clips + 1))
    indices: Starts = later[:, None] + firsts
    return indices.astype(np.int64)


def _inside(indices: Starts, total_frames: int, out_of_bound_opt: str) -> Indices:
    """Past the end: start again ("loop"), or stay at the clip's last frame inside ("repeat_last")."""
    if out_of_bound_opt == "loop":
        return np.mod(indices, total_frames).astype(np.int64)
    if out_of_bound_opt == "repeat_last":
        inside = indices < total_frames
        last = np.where(inside, indices, 0).max(axis=1, keepdims=True)
        return np.where(inside, indices, last).astype(np.int64)
    raise ValueError(f"out_of_bound_opt={out_of_bound_opt!r}: it is 'loop' or 'repeat_last'")


def _pyslowfast(
    total_frames: int,
    clip_len: int,
    frame_interval: int,
    num_clips: int,
    fps: float | None,
    *,
    target_fps: float = 30,
    use_offset: bool = False,
    sampler: Literal["time", "uniform"] = "time",
) -> Indices:
    """Clips of a fixed duration; starts divide the free length by ``num_clips`` (with ``use_offset`` by one less).

    So without ``use_offset`` the last clip never reaches the end, and 32x2 at 30 fps is 0, 2, ..., 60, 63.
    "uniform", its rule for Something-Something: the middle of each of ``clip_len`` segments, the same in every clip.
    """
    if sampler == "uniform":  # slowfast/datasets/ssv2.py, get_seq_frames
        edges = np.round(np.arange(clip_len + 1) * ((total_frames - 1) / clip_len)).astype(np.int64)
        return np.tile((edges[:-1] + edges[1:]) // 2, (num_clips, 1))
    if sampler != "time":
        raise ValueError(f"sampler={sampler!r}: pyslowfast has time and uniform")
    span = max(1.0, frame_interval * clip_len / target_fps * _known("pyslowfast", fps))
    starts = _pyslowfast_starts(total_frames, span, num_clips, use_offset)
    rows = [_linspace(start, start + span - 1, clip_len) for start in starts]
    return np.clip(rows, 0, total_frames - 1).astype(np.int64)


def _known(rule: str, fps: float | None) -> float:
    if fps is None or not 0 < fps < math.inf:
        raise DataError(f"rule {rule} samples by time: fps is needed, not {fps}")
    return fps


def _pyslowfast_starts(total_frames: int, span: float, num_clips: int, use_offset: bool) -> list[float]:
    free = max(total_frames - span, 0)
    if not use_offset:
        return [free * clip / num_clips for clip in range(num_clips)]
    if num_clips == 1:
        return [math.floor(free / 2)]
    return [clip * math.floor(free / (num_clips - 1)) for clip in range(num_clips)]


def _linspace(start: float, end: float, num: int) -> NDArray[np.float32]:
    """``torch.linspace`` in single precision, to the bit: from both ends inward, each value rounded once.

    Adding after rounding the product would move 1 frame in 10 000 (torch's kernel uses fused multiply-add).
    """
    first, last = np.float32(start), np.float32(end)
    if num == 1:
        return np.array([first])
    step = np.float64((last - first) / np.float32(num - 1))
    index = np.arange(num)
    values = np.where(index < num // 2, first + step * index, last - step * (num - 1 - index))
    return values.astype(np.float32)


def _torchvision(
    total_frames: int,
    clip_len: int,
    num_clips: int,
    fps: float | None,
    *,
    frame_rate: float | None = 15,
    step_between_clips: int = 1,
) -> Indices:
    """The video at ``frame_rate``, every run of ``clip_len`` frames a clip, ``num_clips`` of them evenly."""
    rate, fps = (1.0, 1.0) if frame_rate is None else (frame_rate, _known("torchvision", fps))
    step = fps / rate
    if step.is_integer():
        frames: Indices = np.arange(0, total_frames, int(step))
    else:
        num_frames = math.floor(total_frames * rate / fps)
        frames = np.floor(np.arange(num_frames, dtype=np.float32) * np.float32(step)).astype(np.int64)
    num_runs = (len(frames) - clip_len) // step_between_clips + 1
    if num_runs < 1:
        return np.empty((0, clip_len), dtype=np.int64)
    runs = np.floor(_linspace(0, num_runs - 1, num_clips)).astype(np.int64)
    clips: Indices = frames[runs[:, None] * step_between_clips + np.arange(clip_len)]
    return clips


def _gluoncv(total_frames: int, clip_len: int, frame_interval: int, num_clips: int) -> Indices:
    """Every ``frame_interval``-th frame, the last one repeated up to a clip; the last clip ends at the end."""
    if num_clips == 1:
        raise DataError("rule gluoncv divides by num_clips - 1: it needs two clips or more")
    frames = np.arange(0, total_frames, frame_interval)
    frames = np.pad(frames, (0, max(0, clip_len - len(frames))), mode="edge")
    starts = np.trunc(np.arange(num_clips) * ((len(frames) - clip_len) / (num_clips - 1))).astype(np.int64)
    clips: Indices = frames[starts[:, None] + np.arange(clip_len)]
    return clips


# --- crops -----------------------------------------------------------------------------------------------------------


def _mmaction2_corners(height: int, width: int, size: int, num_crops: int) -> list[tuple[int, int]]:
    centre = ((height - size) // 2, (width - size) // 2)
    if num_crops == 1:
        return [centre]
    if num_crops == 3:
        if size == height:
            middle = (width - size) // 2
            return [(0, 0), (0, 2 * middle), (0, middle)]  # an odd rest: the last column is never seen
        if size == width:
            middle = (height - size) // 2
            return [(0, 0), (2 * middle, 0), (middle, 0)]
        raise CropError(
            f"three crops of {size} run along a side of a frame whose other side is {size}; "
            f"this one is {height} x {width} (height x width): resize its short side to {size}"
        )
    if num_crops == 5:
        down, right = (height - size) // 4, (width - size) // 4
        return [(0, 0), (0, 4 * right), (4 * down, 0), (4 * down, 4 * right), (2 * down, 2 * right)]
    raise CropError(f"mmaction2 has 1, 3 or 5 crops (10 = 5 and mirrored), not {num_crops}")


def _pyslowfast_corners(height: int, width: int, size: int, num_crops: int) -> list[tuple[int, int]]:
    top, left = math.ceil((height - size) / 2), math.ceil((width - size) / 2)
    if num_crops == 1:
        return [(top, left)]
    if num_crops != 3:
        raise CropError(f"pyslowfast has 1 or 3 crops, not {num_crops}")
    if height > width:
        return [(0, left), (top, left), (height - size, left)]
    return [(top, 0), (top, left), (top, width - size)]


def _torchvision_corners(height: int, width: int, size: int, num_crops: int) -> list[tuple[int, int]]:
    if num_crops != 1:
        raise CropError(f"torchvision's video reference has 1 crop, not {num_crops}")
    return [(round((height - size) / 2), round((width - size) / 2))]  # halves to even, as the original's round


def _gluoncv_corners(height: int, width: int, size: int, num_crops: int) -> list[tuple[int, int]]:
    if num_crops == 1:
        raise CropError("gluoncv divides by num_crops - 1: it needs two crops or more")
    if size != min(height, width):
        raise CropError(
            f"gluoncv crops squares of the short side, here {min(height, width)}, not {size}; resize to {size} first"
        )
    step = (max(height, width) - size) / (num_crops - 1)
    starts = [int(index * step) for index in range(num_crops)]
    return [(start, 0) if height >= width else (0, start) for start in starts]


def _mmaction2_factor(height: int, width: int, scale: float | tuple[int, ...]) -> float:
    if isinstance(scale, float):
        return scale
    if isinstance(scale, int):
        return scale / min(height, width)
    longest, shortest = (math.inf, max(scale)) if -1 in scale else (max(scale), min(scale))
    return min(longest / max(height, width), shortest / min(height, width))


def _unknown(rule: str) -> str:
    return f"no rule {rule!r}; there are {', '.join(RULES)}"
