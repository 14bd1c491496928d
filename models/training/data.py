"""Training clips: which frames, from a file or from memory. Everything random follows from three numbers.

A draw depends on (seed, epoch, place of the clip in the list) alone, so it does not matter which thread makes it, in
which order, or whether the run was interrupted in between.

    order of the epoch -> batches of places -> read the frames (each video once) -> crop, flip, augment -> mix the batch

Videos are read by their keyframes where the manifest counted the frames; folders of JPEG files and flow likewise.

Shapes: N clips, C channels, T frames that the network's input is made of, H x W.
"""

from __future__ import annotations

import itertools
import math
import typing
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from datakit import reader
from datakit.errors import ItemError, Unreadable, UsageError

from . import augment
from .augment import mirrored, recoloured, resized
from .multigrid import Grid
from .recipe import Recipe

BATCHES_AHEAD = 3
REPLACEMENTS = 10  # clips that are tried in the place of one that cannot be read


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
    def num_segments(self) -> int | None: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def input(self) -> str: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def train_crop_px(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """``x`` uint8 [N, C, T, H, W], ``labels`` int64 [N]; ``failed``: (id, reason) of what could not be read.

    Of a mixed batch ``labels`` are shares, float [N, classes]. ``outputs``: int64 [N, 2], first and end of the outputs
    that belong to each clip's data set, where several are trained together.
    """

    x: Tensor
    labels: Tensor
    failed: tuple[tuple[str, str], ...]
    outputs: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """``x`` uint8 [C, T, H, W], or ``None`` when no clip could be read; ``source``: the data set it is of."""

    x: Tensor | None
    label: int
    source: int = 0
    failed: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """Another data set to train on, with outputs of its own: ``ratio`` of its clips for each clip of the first one.

    ``flip_labels``: label -> label of the mirrored clip, where that is another.
    """

    clips: Sequence[Clip]
    num_classes: int
    ratio: float = 1.0
    flip_labels: Mapping[int, int] | None = None


def order(num_clips: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order in which an epoch takes the clips."""
    return np.random.default_rng((seed, epoch)).permutation(num_clips)


def train_indices(
    num_frames: int, spec: Spec, random: np.random.Generator, grid: Grid | None = None
) -> npt.NDArray[np.int64]:
    """Frame indices of one clip, int64 [segments * clip_len * len(frame_offsets)].

    One clip of a 3D network, one of each segment of a 2D network. A clip starts anywhere that it fits, of several each
    in its own part of the video; where there is no room they spread from 0, and a video too short is looped:

    10 frames, 3 segments of 1   000111222.     5 frames, 8 segments   0112234 (equally spread, rounded)

    mmaction2 mmaction/datasets/transforms/loading.py:230, SampleFrames. What a frame is compared with (rgb-diff) is not
    looped: the last frame stands for its successor. ``grid``: fewer frames, drawn further apart (multigrid).
    """
    clip_len, interval = spec.clip_len, spec.frame_interval
    if grid is not None and spec.num_segments is None:
        clip_len = grid.clip_len
        if grid.max_interval > interval:
            interval = int(random.integers(interval, grid.max_interval + 1))
    starts = clip_starts(num_frames, clip_len * interval, spec.num_segments or 1, random)
    first = (starts[:, None] + np.arange(clip_len) * interval).reshape(-1) % num_frames
    indices: npt.NDArray[np.int64] = np.minimum(first[:, None] + np.asarray(spec.frame_offsets), num_frames - 1)
    return indices.reshape(-1)


def clip_starts(num_frames: int, span: int, num_clips: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """int64 [num_clips], see ``train_indices``."""
    room = num_frames - span + 1
    part = room // num_clips
    if part > 0:
        parts = np.arange(num_clips, dtype=np.int64) * part
        # A clip alone may start anywhere; the same draw as before there were segments
        return parts + np.asarray([random.integers(part) for _ in range(num_clips)], dtype=np.int64)
    if num_frames > max(num_clips, span):
        return np.sort(np.asarray([random.integers(room) for _ in range(num_clips)], dtype=np.int64))
    if part == 0:
        return np.around(np.arange(num_clips) * (room / num_clips)).astype(np.int64)
    return np.zeros(num_clips, np.int64)


def short_side(height: int, width: int, px: int) -> tuple[int, int]:
    """(height, width) with the short side at ``px``, aspect kept; 0 keeps the size."""
    if not px:
        return height, width
    scale = px / min(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


class TrainingClips:
    """Clips to train on, with a label each; the frames of small sets are kept in memory after their first reading.

    ``flip_labels``: label -> label of the mirrored clip, where that is another. ``others``: more data sets, each with
    outputs of its own behind those of the first. Raises ``UsageError`` where classes or mixing do not fit.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        spec: Spec,
        recipe: Recipe,
        *,
        seed: int,
        cache_bytes: float,
        flip_labels: Mapping[int, int] | None = None,
        others: Sequence[Source] = (),
    ) -> None:
        own = spec.num_classes - sum(source.num_classes for source in others)
        self._sources = [Source(clips=clips, num_classes=own, flip_labels=flip_labels), *others]
        if own < 1:
            raise UsageError(f"the network has {spec.num_classes} outputs, the data sets need more")
        if others and (recipe.mixup_alpha or recipe.cutmix_alpha):
            raise UsageError("clips of different data sets have no labels in common: no mixup or cutmix with them")
        self._clips = [(clip, number) for number, source in enumerate(self._sources) for clip in source.clips]
        self._spec = spec
        self._recipe = recipe
        self._seed = seed
        self._cache = memory_needed([clip for clip, _ in self._clips], recipe.short_side_px) <= cache_bytes
        self._frames: dict[int, Tensor] = {}

    @property
    def num_steps(self) -> int:
        """Batches an epoch."""
        return math.ceil(len(self) / self._recipe.batch)

    def __len__(self) -> int:
        """Clips an epoch."""
        return sum(self._share(source) for source in self._sources) * self._recipe.repeats

    def _share(self, source: Source) -> int:
        """Videos of a source an epoch."""
        first = self._sources[0]
        return len(source.clips) if source is first else round(source.ratio * len(first.clips))

    def _places(self, epoch: int) -> npt.NDArray[np.int64]:
        """The videos of an epoch in order. Of another source each epoch takes the next ones of its own order."""
        seed = self._seed
        places, first = order(len(self._sources[0].clips), seed=seed, epoch=epoch), len(self._sources[0].clips)
        if len(self._sources) == 1:
            return places
        parts = [places]
        for number, source in enumerate(self._sources[1:], start=1):
            count, length = self._share(source), len(source.clips)
            wanted = np.arange(epoch * count, (epoch + 1) * count)
            passes = {one: np.random.default_rng((seed, one, number, 1)).permutation(length)
                      for one in np.unique(wanted // length).tolist()}  # fmt: skip
            taken = [passes[int(at) // length][int(at) % length] for at in wanted]
            parts.append(first + np.asarray(taken, dtype=np.int64))
            first += length
        together = np.concatenate(parts)
        return together[np.random.default_rng((seed, epoch, 2)).permutation(len(together))]

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
        In the place of a clip that cannot be read comes another one, drawn like everything else; the first is named in
        ``failed``. When ``REPLACEMENTS`` cannot be read either, the batch is smaller.
        """
        repeats = self._recipe.repeats
        entries = [(int(place), number) for place in self._places(epoch) for number in range(repeats)]
        if grids is None:
            sizes = [len(part) for part in np.array_split(np.empty(len(entries)), self.num_steps)]
        else:
            sizes = [grid.num_clips for grid in grids]
        ends = list(itertools.accumulate(sizes))
        shares = [entries[end - size : end][rank::num_ranks] for end, size in zip(ends, sizes, strict=True)]
        shapes: Sequence[Grid | None] = grids if grids is not None else [None] * len(shares)
        if num_workers == 0:
            for number, (share, grid) in enumerate(zip(shares, shapes, strict=True)):
                read = [self._samples(place, draws, epoch, grid) for place, draws in by_video(share)]
                yield self._batch(read, (epoch, number, rank))
            return
        pool = ThreadPoolExecutor(num_workers, thread_name_prefix="read")
        waiting: deque[tuple[int, list[Future[list[Sample]]]]] = deque()

        def next_batch() -> Batch:
            number, futures = waiting.popleft()
            return self._batch([future.result() for future in futures], (epoch, number, rank))

        try:
            for number, (share, grid) in enumerate(zip(shares, shapes, strict=True)):
                tasks = [pool.submit(self._samples, place, draws, epoch, grid) for place, draws in by_video(share)]
                waiting.append((number, tasks))
                if number >= BATCHES_AHEAD:
                    yield next_batch()
            while waiting:
                yield next_batch()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _batch(self, samples: Sequence[Sequence[Sample]], at: tuple[int, int, int]) -> Batch:
        """``at``: (epoch, number of the batch, rank), from which the draws of mixing follow."""
        flat = [sample for some in samples for sample in some]
        read = [(sample, sample.x) for sample in flat if sample.x is not None]
        x = torch.stack([x for _, x in read]) if read else torch.empty(0, dtype=torch.uint8)
        first = list(itertools.accumulate((source.num_classes for source in self._sources), initial=0))
        labels = torch.tensor([first[sample.source] + sample.label for sample, _ in read], dtype=torch.int64)
        if read and (self._recipe.mixup_alpha or self._recipe.cutmix_alpha):
            random = np.random.default_rng((self._seed, *at, 3))
            x, labels = augment.mixed(x, labels, self._spec.num_classes, self._recipe, random)
        outputs = None
        if len(self._sources) > 1:
            outputs = torch.tensor([first[sample.source : sample.source + 2] for sample, _ in read], dtype=torch.int64)
        failed = tuple(failure for sample in flat for failure in sample.failed)
        return Batch(x=x, labels=labels, failed=failed, outputs=outputs)

    def _samples(self, place: int, draws: Sequence[int], epoch: int, grid: Grid | None) -> list[Sample]:
        """One clip for each of ``draws`` (0, 1, ... with repeats) from one reading of a video."""
        randoms = [np.random.default_rng((self._seed, epoch, place, draw)[: 4 if draw else 3]) for draw in draws]
        failed: list[tuple[str, str]] = []
        for _ in range(1 + REPLACEMENTS):
            clip, source = self._clips[place]
            try:
                drawn = self._drawn_frames(place, randoms, grid)
            except (ItemError, IndexError, OSError) as error:
                failed.append((clip.id, str(error)))
                place = int(randoms[0].integers(len(self._clips)))
                continue
            samples = []
            for frames, random in zip(drawn, randoms, strict=True):
                x, flipped = self._augmented(frames, random, grid)
                flips = self._sources[source].flip_labels or {}
                label = flips.get(clip.label_index, clip.label_index) if flipped else clip.label_index
                samples.append(Sample(x=x, label=label, source=source, failed=tuple(failed)))
                failed = []
            return samples
        return [Sample(x=None, label=-1, failed=tuple(failed))]

    def _augmented(self, frames: Tensor, random: np.random.Generator, grid: Grid | None) -> tuple[Tensor, bool]:
        """uint8 [T, C, h, w] -> ([C, T, side, side], whether it is mirrored)."""
        recipe = self._recipe
        side = grid.crop_px if grid is not None else self._spec.train_crop_px
        top, left, height, width = augment.crop_box(frames.shape[2], frames.shape[3], recipe, side, random)
        x = resized(frames[:, :, top : top + height, left : left + width], side, side)
        if recipe.colour_mix and x.shape[1] == 3:  # flow has no colours
            x = recoloured(x, recipe.colour_mix, random)
        flipped = bool(recipe.flip and random.random() < 0.5)
        if flipped:
            x = mirrored(x)
        return augment.changed(x, recipe, self._spec.mean, random).transpose(0, 1), flipped

    def _drawn_frames(self, place: int, randoms: Sequence[np.random.Generator], grid: Grid | None) -> Sequence[Tensor]:
        """The frames of each draw, uint8 [T, C, h, w] at the recipe's short side; every frame is read once."""
        if self._cache:
            frames = self._cached_frames(place)
            return [frames[train_indices(len(frames), self._spec, random, grid)] for random in randoms]
        with self._opened(place) as video:
            wanted = [train_indices(video.num_frames, self._spec, random, grid) for random in randoms]
            frames = self._at_short_side(video.frames(np.concatenate(wanted)))
            return torch.split(frames, [len(part) for part in wanted])

    def _cached_frames(self, place: int) -> Tensor:
        """All frames of a clip, uint8 [num_frames, C, h, w] at the recipe's short side; read when first asked for."""
        if place not in self._frames:
            with self._opened(place) as video:
                self._frames[place] = self._at_short_side(video.frames(np.arange(video.num_frames)))
        return self._frames[place]

    def _opened(self, place: int) -> reader.Video:
        return open_video(self._clips[place][0], "flow" if self._spec.input == "flow" else "rgb")

    def _at_short_side(self, frames: npt.NDArray[np.uint8]) -> Tensor:
        x = torch.from_numpy(frames).permute(0, 3, 1, 2)
        return resized(x, *short_side(x.shape[2], x.shape[3], self._recipe.short_side_px)).contiguous()


def by_video(entries: Sequence[tuple[int, int]]) -> list[tuple[int, list[int]]]:
    """(place, draw) of a batch -> (place, draws): what one reading of a video gives."""
    return [
        (place, [draw for _, draw in group]) for place, group in itertools.groupby(entries, key=lambda entry: entry[0])
    ]


def open_video(clip: Clip, kind: reader.Kind | None = None) -> reader.Video:
    """Stored pixels, as testing has them. Raises ``Unreadable``."""
    if clip.path is None:
        raise Unreadable(f"{clip.id}: no file")
    return reader.open(clip.path, num_frames=clip.frames, pixels="stored", kind=kind)


def flip_labels(pairs: Sequence[Sequence[str]], classes: Sequence[str]) -> dict[int, int]:
    """Label -> label of the mirrored clip, from pairs of class names (``flip_labels`` of a data set's manifest).

    Names of class folders have underscores for spaces and are the same names.
    """
    index = {name.replace("_", " ").casefold(): number for number, name in enumerate(classes)}
    found: dict[int, int] = {}
    for pair in pairs:
        one, other = (index.get(name.replace("_", " ").casefold()) for name in pair)
        if one is not None and other is not None:
            found |= {one: other, other: one}
    return found


def cross_entropy(logits: Tensor, labels: Tensor, outputs: Tensor | None, label_smoothing: float) -> Tensor:
    """Sum of the clips' cross entropies; ``outputs`` int64 [N, 2]: each softmax is over those of its data set alone."""
    if outputs is None:
        return functional.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="sum")
    number = torch.arange(logits.shape[1], device=logits.device)
    own = (number >= outputs[:, :1]) & (number < outputs[:, 1:])
    log_p = logits.masked_fill(~own, -math.inf).log_softmax(dim=1).masked_fill(~own, 0.0)
    hit = log_p.gather(1, labels[:, None])[:, 0]
    spread = log_p.sum(dim=1) / own.sum(dim=1)
    return -((1 - label_smoothing) * hit + label_smoothing * spread).sum()


def memory_needed(clips: Sequence[Clip], short_side_px: int) -> float:
    """Bytes of all frames of all clips at a short side; infinite when the manifest does not know a size or count."""
    total = 0
    for clip in clips:
        if not (clip.frames and clip.width and clip.height):
            return math.inf
        height, width = short_side(clip.height, clip.width, short_side_px)
        total += clip.frames * height * width * 3
    return total
