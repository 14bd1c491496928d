"""The engine: clips in, one outcome a clip out. Each frame that is needed is decoded and moved to the device once.

    reader threads    file -> the frames that the views need, uint8 [n, H, W, C]
    device            resize and crop (integers) -> views, as indices into those frames -> normalise -> network
    host              softmax of each view, mean over the views

Views fill batches whatever the video boundaries are. A clip that cannot be scored is an outcome with its reason.

Shapes: V views, R clips of a video ("rows"), T frames a clip, C channels or classes, h x w the crop.
"""

from __future__ import annotations

import os
import threading
import typing
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datakit import reader
from datakit.errors import CropError, DataError, ItemError

from . import resize, views
from .protocols import Protocol

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# A CPU gains nothing beyond a few views; a GPU starts high and halves when its memory is full.
VIEWS_AT_ONCE = {"cpu": 8}
VIEWS_AT_ONCE_ELSEWHERE = 256
VIEWS_AT_ONCE_DETERMINISTIC = 32
DECODED_AHEAD_BYTES = 2 << 30


class Spec(typing.Protocol):
    """What the engine needs to know of a network (``models.ModelSpec`` is one)."""

    @property
    def clip_len(self) -> int: ...
    @property
    def frame_interval(self) -> int: ...
    @property
    def frame_offsets(self) -> tuple[int, ...]: ...


class Network(typing.Protocol):
    """``models.Recognizer`` is one."""

    @property
    def spec(self) -> Spec: ...
    def normalise(self, x: Tensor, /) -> Tensor: ...
    def __call__(self, x: Tensor, /) -> Tensor: ...


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
    def status(self) -> str: ...
    @property
    def reason(self) -> str | None: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What became of a clip: ``scores`` float32 [C] (mean of the views' probabilities) or a ``reason`` why not.

    ``views``: float32 [V, C], one row a view, crops outermost, then clips; only when asked for.
    """

    id: str
    label_index: int
    scores: NDArray[np.float32] | None = None
    views: NDArray[np.float32] | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ViewPlan:
    """Numbers only: which frames of one video, resized to what, cut where.

    frames   int64 [R, T], indices into the video; T counts every frame that the network's input is made of
    boxes    (top, left, height, width) in the resized picture; ``mirrored``: each box is followed by its mirror image
    View v = crop * R + row, crops outermost (mmaction2 mmaction/datasets/transforms/formatting.py:260).
    """

    frames: NDArray[np.int64]
    height: int
    width: int
    boxes: tuple[tuple[int, int, int, int], ...]
    mirrored: bool

    @property
    def num_views(self) -> int:
        return len(self.frames) * len(self.boxes) * (2 if self.mirrored else 1)


def plan(num_frames: int, fps: float, height: int, width: int, spec: Spec, protocol: Protocol) -> ViewPlan:
    """The views of one video. Raises ``CropError`` where a crop does not fit, ``DataError`` where no clip does."""
    rows = views.frame_indices(
        protocol.sampling,
        num_frames,
        spec.clip_len,
        spec.frame_interval,
        protocol.num_clips,
        fps=fps,
        **protocol.options,
    )
    if len(rows) == 0:
        raise DataError(f"{protocol.sampling} finds no clip in {num_frames} frames")
    # rgb-diff wants i and i + 1 for every i; at the end of the video the last frame stands for what would follow.
    frames = np.minimum(rows[:, :, None] + np.asarray(spec.frame_offsets), num_frames - 1).reshape(len(rows), -1)
    resized_height, resized_width = views.resized(protocol.sampling, height, width, protocol.scale)
    mirrored = protocol.num_crops == 10
    boxes = views.crop_boxes(
        protocol.sampling, resized_height, resized_width, protocol.crop_px, 5 if mirrored else protocol.num_crops
    )
    return ViewPlan(frames=frames, height=resized_height, width=resized_width, boxes=tuple(boxes), mirrored=mirrored)


class Views:
    """The frames of one video, resized, on a device, and its views as indices into them.

    ``frames``: uint8 [n, H, W, C], the frames at ``indices`` (sorted) of the video.
    """

    def __init__(self, frames: Tensor, indices: NDArray[np.int64], plan: ViewPlan) -> None:
        # Only what some crop looks at is resized.
        top = min(box[0] for box in plan.boxes)
        left = min(box[1] for box in plan.boxes)
        bottom = max(box[0] + box[2] for box in plan.boxes)
        right = max(box[1] + box[3] for box in plan.boxes)
        self.x_nCHW = resize.linear(frames, plan.height, plan.width, rows=(top, bottom), cols=(left, right))
        self.boxes = [(box[0] - top, box[1] - left, box[2], box[3]) for box in plan.boxes]
        self.mirrored = plan.mirrored
        self.rows = torch.from_numpy(np.searchsorted(indices, plan.frames)).to(frames.device)
        self.num_views = plan.num_views

    def cut(self, first: int, past: int) -> Tensor:
        """Views ``first`` to ``past`` (not included) as uint8 [past - first, C, T, h, w]."""
        num_rows = len(self.rows)
        parts = []
        while first < past:
            crop, row = divmod(first, num_rows)
            box, mirror = divmod(crop, 2) if self.mirrored else (crop, 0)
            last_row = min(num_rows, row + past - first)
            top, left, height, width = self.boxes[box]
            places = self.rows[row:last_row]
            part = self.x_nCHW[:, :, top : top + height, left : left + width].index_select(0, places.reshape(-1))
            part = part.view(*places.shape, *part.shape[1:]).transpose(1, 2)
            parts.append(part.flip(-1) if mirror else part)
            first += last_row - row
        return torch.cat(parts)


def score(
    clips: Iterable[Clip],
    net: Network,
    protocol: Protocol,
    *,
    device: str | torch.device = "cpu",
    dtype: str = "fp32",
    batch_views: int | Literal["auto"] = "auto",
    workers: int | None = None,
    deterministic: bool = False,
    keep_views: bool = False,
) -> Generator[Outcome, None, None]:
    """Score clips with a network (in eval mode, on ``device``) under a protocol; yields outcomes in the order of clips.

    ``dtype``: fp32, or bf16 or fp16 by autocast; probabilities and means are float32 always.
    ``batch_views``: views a batch. "auto" is a fixed number on a CPU, elsewhere it halves until the memory suffices.
    ``workers``: threads that decode ahead of the network; 0 decodes in between; ``None``: one on a CPU, else all cores.
    ``deterministic``: a batch holds views of one video only, so that a clip's scores are the same to the bit whatever
    the other clips, the workers and interruptions are. Otherwise they move by 1e-7 or so.
    Raises ``DataError`` when the memory does not hold a batch.
    """
    device = torch.device(device)
    batches = _Batches(net, device, DTYPES[dtype], batch_views, deterministic=deterministic, keep_views=keep_views)
    if workers is None:
        workers = 1 if device.type == "cpu" else (os.cpu_count() or 1)

    def read(clip: Clip, room: _Room, ticket: int) -> _Read:
        return _read(clip, net.spec, protocol, room, ticket, pin=device.type == "cuda")

    for item in _read_ahead(clips, read, workers):
        batches.add(item)
        yield from batches.run()
    yield from batches.run(everything=True)


# --- decoding ahead -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Read:
    """A clip with its decoded frames, or with the reason why there are none."""

    clip: Clip
    frames: Tensor | None = None
    indices: NDArray[np.int64] | None = None
    plan: ViewPlan | None = None
    reason: str | None = None


class _Room:
    """Bounds the bytes that are decoded ahead. The clip that is waited for always gets in, so nobody waits for ever."""

    def __init__(self, limit_bytes: float) -> None:
        self._limit = limit_bytes
        self._changed = threading.Condition()
        self._held: dict[int, int] = {}
        self._next = 0

    def take(self, ticket: int, num_bytes: int) -> None:
        def fits() -> bool:
            others = sum(self._held.values()) - self._held.get(ticket, 0)
            return ticket <= self._next or others + num_bytes <= self._limit

        with self._changed:
            self._changed.wait_for(fits)
            self._held[ticket] = num_bytes

    def give_back(self, ticket: int) -> None:
        with self._changed:
            self._held.pop(ticket, None)
            self._next = ticket + 1
            self._changed.notify_all()

    def open_wide(self) -> None:
        with self._changed:
            self._limit = float("inf")
            self._changed.notify_all()


def _read(clip: Clip, spec: Spec, protocol: Protocol, room: _Room, ticket: int, *, pin: bool) -> _Read:
    if clip.path is None:
        return _Read(clip=clip, reason=clip.reason or f"{clip.status}: there is no file")
    try:
        # Stored pixels: what mmaction2, decord and OpenCV show of a file whose pixels are not square.
        with reader.open(clip.path, num_frames=clip.frames, pixels="stored") as video:
            plans: list[ViewPlan] = []

            def wanted(num_frames: int) -> NDArray[np.int64]:
                plans.append(plan(num_frames, video.fps, video.height, video.width, spec, protocol))
                room.take(ticket, len(np.unique(plans[-1].frames)) * video.height * video.width * 3)
                return plans[-1].frames

            indices, frames = video.frames_for(wanted)
    except (ItemError, CropError, DataError, IndexError, OSError) as error:
        return _Read(clip=clip, reason=str(error))
    x_nHWC = torch.from_numpy(frames)
    return _Read(clip=clip, frames=x_nHWC.pin_memory() if pin else x_nHWC, indices=indices, plan=plans[-1])


def _read_ahead(clips: Iterable[Clip], read: Callable[[Clip, _Room, int], _Read], workers: int) -> Iterator[_Read]:
    """Read clips in ``workers`` threads (PyAV decodes without the interpreter's lock) and yield them in order."""
    room = _Room(DECODED_AHEAD_BYTES)
    numbered = enumerate(clips)
    if workers == 0:
        for ticket, clip in numbered:
            yield read(clip, room, ticket)
            room.give_back(ticket)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[tuple[int, Future[_Read]]] = deque()
    try:
        for ticket, clip in numbered:
            waiting.append((ticket, pool.submit(read, clip, room, ticket)))
            if len(waiting) > workers + 1:
                oldest, future = waiting.popleft()
                yield future.result()
                room.give_back(oldest)
        while waiting:
            oldest, future = waiting.popleft()
            yield future.result()
            room.give_back(oldest)
    finally:
        room.open_wide()
        pool.shutdown(wait=True, cancel_futures=True)


# --- batches ------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True, eq=False)
class _Slot:
    """A clip on its way through the network: its views, and the probabilities of those that are through."""

    clip: Clip
    views: Views | None
    reason: str | None
    cut: int = 0  # views handed to the network so far
    batch: int = 0  # the last batch that it had a share in
    done: list[Tensor]

    @property
    def num_left(self) -> int:
        return self.views.num_views - self.cut if self.views else 0


class _Batches:
    """Collects views across videos, runs them through the network in batches, hands out finished clips in order."""

    def __init__(
        self,
        net: Network,
        device: torch.device,
        dtype: torch.dtype,
        batch_views: int | Literal["auto"],
        *,
        deterministic: bool,
        keep_views: bool,
    ) -> None:
        self._net, self._device, self._dtype = net, device, dtype
        self._deterministic, self._keep_views = deterministic, keep_views
        self._may_halve = batch_views == "auto" and not deterministic
        if batch_views == "auto":
            elsewhere = VIEWS_AT_ONCE_DETERMINISTIC if deterministic else VIEWS_AT_ONCE_ELSEWHERE
            batch_views = VIEWS_AT_ONCE.get(device.type, elsewhere)
        self._batch_views = batch_views
        self._slots: deque[_Slot] = deque()
        self._num_batches = 0

    def add(self, item: _Read) -> None:
        views = None
        if item.frames is not None and item.indices is not None and item.plan is not None:
            views = Views(item.frames.to(self._device, non_blocking=True), item.indices, item.plan)
        self._slots.append(_Slot(clip=item.clip, views=views, reason=item.reason, done=[]))

    def run(self, *, everything: bool = False) -> Iterator[Outcome]:
        """Run the batches that are full, with ``everything`` the last one too; yields the clips that are through."""
        partly = everything or self._deterministic  # batches that are not full
        while (left := sum(slot.num_left for slot in self._slots)) >= self._batch_views or (partly and left):
            self._run_batch(min(left, self._batch_views))
            yield from self._finished()
        yield from self._finished(wait=everything)

    def _finished(self, *, wait: bool = False) -> Iterator[Outcome]:
        """Clips that are through, in order. A GPU still works on its latest batch: that is left unless ``wait``."""
        wait = wait or self._device.type == "cpu"
        while self._slots and self._slots[0].num_left == 0 and (wait or self._slots[0].batch < self._num_batches):
            yield self._outcome(self._slots.popleft())

    def _run_batch(self, num_views: int) -> None:
        """The next ``num_views`` views, the oldest first."""
        shares: list[tuple[_Slot, int]] = []
        for slot in self._slots:
            share = min(slot.num_left, num_views - sum(share for _, share in shares))
            if share:
                shares.append((slot, share))
        try:
            x_NCTHW = torch.cat([slot.views.cut(slot.cut, slot.cut + share) for slot, share in shares if slot.views])
            probabilities = self._probabilities(x_NCTHW)
        except torch.OutOfMemoryError:
            if not self._may_halve or num_views == 1:
                raise DataError(
                    f"{num_views} views do not fit into the memory of {self._device}"
                    + (f"; type --batch-views {num_views // 2}" if num_views > 1 else "")
                ) from None
            self._batch_views = num_views // 2
            torch.cuda.empty_cache()
            return
        self._num_batches += 1
        first = 0
        for slot, share in shares:
            slot.done.append(probabilities[first : first + share])
            slot.cut += share
            slot.batch = self._num_batches
            first += share

    def _probabilities(self, x_NCTHW: Tensor) -> Tensor:
        """uint8 [N, C, T, h, w] -> softmax of the logits, float32 [N, classes]."""
        on_gpu = self._device.type == "cuda"
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32),
            # cuDNN rounds fp32 to TF32 unless told not to; "fp32" in a signature means fp32.
            torch.backends.cudnn.flags(
                benchmark=not self._deterministic, deterministic=self._deterministic, allow_tf32=False
            )
            if on_gpu
            else nullcontext(),
        ):
            logits: Tensor = self._net(self._net.normalise(x_NCTHW.float()))
            return logits.float().softmax(dim=1)

    def _outcome(self, slot: _Slot) -> Outcome:
        clip = slot.clip
        if slot.reason is not None:
            return Outcome(id=clip.id, label_index=clip.label_index, reason=slot.reason)
        probabilities = torch.cat(slot.done).cpu().numpy()
        if not np.isfinite(probabilities).all():
            reason = "the network gave NaN for it" + (
                "; fp16 may have overflowed, --dtype bf16 does not" if self._dtype == torch.float16 else ""
            )
            return Outcome(id=clip.id, label_index=clip.label_index, reason=reason)
        return Outcome(
            id=clip.id,
            label_index=clip.label_index,
            scores=probabilities.mean(axis=0, dtype=np.float64).astype(np.float32),
            views=probabilities if self._keep_views else None,
        )
