"""Training clips: which frames, which crop, from a file or from memory. Everything random follows from three numbers.

A draw depends on (seed, epoch, place of the clip in the list) alone, so it does not matter which thread makes it, in
which order, or whether the run was interrupted in between.

Shapes: N clips, C channels, T frames that the network's input is made of, H x W.
"""

from __future__ import annotations

import math
import typing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from datakit import reader
from datakit.errors import ItemError, Unreadable

from .multigrid import Grid
from .recipe import Recipe

Box = tuple[int, int, int, int]  # top, left, height, width
CROP_TRIES = 10
MID_GREY = 128.0
BATCHES_AHEAD = 3


class Clip(typing.Protocol):
    """``datakit.manifest.Clip`` is one."""

    @property
    def id(self) -> str: ...
    @property
    def label_index(self) -> int: ...
    @property
    def path(self) -> Path | None: ...
    @property
    def frames(self) -> int | None: ...
    @property
    def width(self) -> int | None: ...
    @property
    def height(self) -> int | None: ...


class Spec(typing.Protocol):
    """What the data must know of a network; ``models.ModelSpec`` is one."""

    @property
    def clip_len(self) -> int: ...
    @property
    def frame_interval(self) -> int: ...
    @property
    def frame_offsets(self) -> tuple[int, ...]: ...
    @property
    def train_crop_px(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """``x`` uint8 [N, C, T, H, W], ``labels`` int64 [N]; ``failed``: (id, reason) of what could not be read."""

    x: Tensor
    labels: Tensor
    failed: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """``x`` uint8 [C, T, H, W], or ``None`` and the ``reason``."""

    clip: Clip
    x: Tensor | None
    reason: str = ""


def order(num_clips: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order in which an epoch takes the clips."""
    return np.random.default_rng((seed, epoch)).permutation(num_clips)


def train_indices(num_frames: int, spec: Spec, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Frame indices of one clip, int64 [clip_len * len(frame_offsets)].

    The clip starts anywhere that it fits; in a shorter video it starts at 0 and the video is looped
    (mmaction2 mmaction/datasets/transforms/loading.py:230, SampleFrames). What a frame is compared with (rgb-diff)
    is not looped: the last frame stands for its successor.
    """
    span = spec.clip_len * spec.frame_interval
    start = int(random.integers(num_frames - span + 1)) if num_frames >= span else 0
    first = (start + np.arange(spec.clip_len) * spec.frame_interval) % num_frames
    indices: npt.NDArray[np.int64] = np.minimum(first[:, None] + np.asarray(spec.frame_offsets), num_frames - 1)
    return indices.reshape(-1)


def crop_box(height: int, width: int, recipe: Recipe, random: np.random.Generator) -> Box:
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


def short_side(height: int, width: int, px: int) -> tuple[int, int]:
    """(height, width) with the short side at ``px``, aspect kept."""
    scale = px / min(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """uint8 [n, C, H, W] -> uint8 [n, C, height, width], bilinear without low-pass filter: what testing does too."""
    if x.shape[2:] == (height, width):
        return x
    smooth = functional.interpolate(x.float(), (height, width), mode="bilinear", align_corners=False)
    return smooth.round_().to(torch.uint8)


def recoloured(x: Tensor, mix: float, random: np.random.Generator) -> Tensor:
    """uint8 [T, 3, H, W] with its colours turned about mid-grey: (1 - mix) as they are, mix as a random rotation or
    reflection of the colour space has them; the same for all frames."""
    rotation, _ = np.linalg.qr(random.normal(size=(3, 3)))
    matrix = torch.from_numpy((1 - mix) * np.eye(3) + mix * rotation).float()
    turned = torch.einsum("dc,tchw->tdhw", matrix, x.float() - MID_GREY) + MID_GREY
    return turned.round_().clamp_(0, 255).to(torch.uint8)


class TrainingClips:
    """Clips to train on, with a label each; the frames of small sets are kept in memory after their first reading."""

    def __init__(self, clips: Sequence[Clip], spec: Spec, recipe: Recipe, *, seed: int, cache_bytes: float) -> None:
        self._clips = clips
        self._spec = spec
        self._recipe = recipe
        self._seed = seed
        self._cache = memory_needed(clips, recipe.short_side_px) <= cache_bytes
        self._frames: dict[int, Tensor] = {}

    @property
    def num_steps(self) -> int:
        """Batches an epoch."""
        return math.ceil(len(self._clips) / self._recipe.batch)

    def __len__(self) -> int:
        """Clips an epoch."""
        return len(self._clips)

    def batches(
        self,
        epoch: int,
        *,
        num_workers: int,
        grids: Sequence[Grid] | None = None,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> Iterator[Batch]:
        """An epoch in batches whose sizes differ by one at most; ``num_workers`` threads read ``BATCHES_AHEAD`` ahead.

        ``grids``: the batches' shapes instead (``multigrid``), which say how many clips the epoch takes. Of each batch
        this is the part of process ``rank``: every ``num_ranks``-th clip.
        A clip that cannot be read is missing from its batch and named in ``failed``; nothing takes its place.
        """
        places = order(len(self._clips), seed=self._seed, epoch=epoch)
        if grids is None:
            shares = np.array_split(places, self.num_steps)
        else:
            shares = np.split(places, np.cumsum([grid.num_clips for grid in grids]))[: len(grids)]
        shares = [share[rank::num_ranks] for share in shares]
        shapes: Sequence[Grid | None] = grids if grids is not None else [None] * len(shares)
        if num_workers == 0:
            for share, grid in zip(shares, shapes, strict=True):
                yield self._batch([self._sample(int(place), epoch, grid) for place in share])
            return
        pool = ThreadPoolExecutor(num_workers, thread_name_prefix="read")
        waiting: deque[list[Future[Sample]]] = deque()
        try:
            for number, (share, grid) in enumerate(zip(shares, shapes, strict=True)):
                waiting.append([pool.submit(self._sample, int(place), epoch, grid) for place in share])
                if number >= BATCHES_AHEAD:
                    yield self._batch([future.result() for future in waiting.popleft()])
            while waiting:
                yield self._batch([future.result() for future in waiting.popleft()])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    @staticmethod
    def _batch(samples: Sequence[Sample]) -> Batch:
        read = [(sample.clip, sample.x) for sample in samples if sample.x is not None]
        return Batch(
            x=torch.stack([x for _, x in read]) if read else torch.empty(0, dtype=torch.uint8),
            labels=torch.tensor([clip.label_index for clip, _ in read], dtype=torch.int64),
            failed=tuple((sample.clip.id, sample.reason) for sample in samples if sample.x is None),
        )

    def _sample(self, place: int, epoch: int, grid: Grid | None = None) -> Sample:
        clip = self._clips[place]
        random = np.random.default_rng((self._seed, epoch, place))
        try:
            frames = self._cached_frames(place) if self._cache else self._drawn_frames(clip, random)
        except (ItemError, IndexError, OSError) as error:
            return Sample(clip=clip, x=None, reason=str(error))
        if self._cache:
            frames = frames[train_indices(len(frames), self._spec, random)]
        top, left, height, width = crop_box(frames.shape[2], frames.shape[3], self._recipe, random)
        side = self._spec.train_crop_px
        x = resized(frames[:, :, top : top + height, left : left + width], side, side)
        if self._recipe.colour_mix and frames.shape[1] == len("rgb"):  # flow has no colours
            x = recoloured(x, self._recipe.colour_mix, random)
        if self._recipe.flip and random.random() < 0.5:
            x = x.flip(-1)
        return Sample(clip=clip, x=x.transpose(0, 1))

    def _drawn_frames(self, clip: Clip, random: np.random.Generator) -> Tensor:
        """The frames of one draw, uint8 [T, C, h, w] at the recipe's short side."""
        with open_video(clip) as video:
            indices = train_indices(video.num_frames, self._spec, random)
            return self._at_short_side(video.frames(indices))

    def _cached_frames(self, place: int) -> Tensor:
        """All frames of a clip, uint8 [num_frames, C, h, w] at the recipe's short side; read when first asked for."""
        if place not in self._frames:
            with open_video(self._clips[place]) as video:
                self._frames[place] = self._at_short_side(video.frames(np.arange(video.num_frames)))
        return self._frames[place]

    def _at_short_side(self, frames: npt.NDArray[np.uint8]) -> Tensor:
        x = torch.from_numpy(frames).permute(0, 3, 1, 2)
        return resized(x, *short_side(x.shape[2], x.shape[3], self._recipe.short_side_px)).contiguous()


def open_video(clip: Clip) -> reader.Video:
    """Stored pixels, as testing has them. Raises ``Unreadable``."""
    if clip.path is None:
        raise Unreadable(f"{clip.id}: no file")
    return reader.open(clip.path, num_frames=clip.frames, pixels="stored")


def memory_needed(clips: Sequence[Clip], short_side_px: int) -> float:
    """Bytes of all frames of all clips at a short side; infinite when the manifest does not know a size or count."""
    total = 0
    for clip in clips:
        if not (clip.frames and clip.width and clip.height):
            return math.inf
        height, width = short_side(clip.height, clip.width, short_side_px)
        total += clip.frames * height * width * 3
    return total
