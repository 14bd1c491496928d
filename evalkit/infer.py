"""The engine: clips in, one outcome a clip out. Each frame that is needed is decoded and moved to the device once.

    worker processes  file -> the frames that the views need, uint8 [n, H, W, C]            (decode.py)
    device            resize and crop (integers) -> views, as indices into those frames -> normalise -> network
    host              the views' scores -> one row                                          (aggregate.py)

Views fill batches whatever the video boundaries are. A clip that cannot be scored is an outcome with its reason.

Shapes: V views, R views of a video along time ("rows"), T frames a view, C channels or classes, h x w the crop.
"""

from __future__ import annotations

import itertools
import os
import typing
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datakit.colours import Colours
from datakit.errors import DataError

from . import decode, resize
from .aggregate import aggregate, may_stop_early, views_hold, views_until_decided
from .decode import Clip, Spec, ViewPlan
from .protocols import Protocol

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# "auto": frames a batch. A CPU gains nothing beyond a few; a GPU starts high and halves when its memory is full.
FRAMES_AT_ONCE = {"cpu": 32}
FRAMES_AT_ONCE_ELSEWHERE = 1024  # a stem of 64 channels at 128 x 128 then has 2^30 values: cuDNN's limit is 2^31
FRAMES_AT_ONCE_DETERMINISTIC = 256
# Where RGB is made of the decoder's planes. A CPU does that better while it decodes, with swscale's vector code.
CONVERTS = ("cuda",)
CONVERTED_AT_ONCE = 16  # pictures
CLIPS_AT_ONCE = 32  # that wait for a batch to be full; few views may be left of each


class Network(typing.Protocol):
    """``models.Recognizer`` is one."""

    @property
    def spec(self) -> Spec: ...
    def normalise(self, x: Tensor, /) -> Tensor: ...
    def __call__(self, x: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What became of a clip: ``scores`` float32 [C] (the protocol's aggregation of its views) or a ``reason`` why not.

    ``views``: float32 [V, C], one row a view, crops outermost, then clips; only when asked for. They hold what
    ``aggregate.views_hold`` says. ``num_views`` of ``num_planned`` views went through the network.
    """

    id: str
    label_index: int
    scores: NDArray[np.float32] | None = None
    views: NDArray[np.float32] | None = None
    reason: str | None = None
    num_views: int = 0
    num_planned: int = 0


class Views:
    """The frames of one video, resized, on a device, and its views as indices into them.

    ``frames``: uint8 [n, H, W, C], the frames at ``indices`` (sorted) of the video, or the planes [n, B] that
    ``colours`` makes RGB of. Two channels are optical flow: its mirror image has x negated, 255 - x as stored
    (mmaction2 v0.24.1 datasets/pipelines/augmentations.py, Flip; see ``pipeline.npz`` of the golden data).
    """

    def __init__(
        self, frames: Tensor, indices: NDArray[np.int64], plan: ViewPlan, colours: Colours | None = None
    ) -> None:
        if colours is not None:
            frames = rgb(frames, colours)
        # Only what some crop looks at is resized.
        top = min(box[0] for box in plan.boxes)
        left = min(box[1] for box in plan.boxes)
        bottom = max(box[0] + box[2] for box in plan.boxes)
        right = max(box[1] + box[3] for box in plan.boxes)
        self.x_nCHW = resize.linear(frames, plan.height, plan.width, rows=(top, bottom), cols=(left, right))
        self.boxes = [(box[0] - top, box[1] - left, box[2], box[3]) for box in plan.boxes]
        self.mirrored = plan.mirrored
        self.rows = np.searchsorted(indices, plan.frames)
        self.num_views = plan.num_views

    @property
    def num_frames(self) -> int:
        """T, the frames of one view."""
        return int(self.rows.shape[1])

    def cut(self, numbers: Sequence[int]) -> Tensor:
        """These views as uint8 [len(numbers), C, T, h, w]."""
        num_rows, num_frames = self.rows.shape
        height, width = self.boxes[0][2:]
        out = resize.new((len(numbers), self.x_nCHW.shape[1], num_frames, height, width), self.x_nCHW.device)
        start = 0
        for crop, group in itertools.groupby(numbers, key=lambda number: number // num_rows):
            box, mirror = divmod(crop, 2) if self.mirrored else (crop, 0)
            top, left = self.boxes[box][:2]
            x_nChw = self.x_nCHW[:, :, top : top + height, left : left + width]
            places = self.rows[[number % num_rows for number in group]]
            part = out[start : start + len(places)]
            _gather(x_nChw, places, part)
            if mirror:
                part.copy_(_mirrored(part))
            start += len(places)
        return out


def rgb(planes: Tensor, colours: Colours) -> Tensor:
    """uint8 [n, B], the planes of YUV 4:2:0 pictures -> uint8 [n, H, W, 3], in memory [n, 3, H, W]."""
    out = torch.empty((len(planes), 3, colours.height, colours.width), dtype=torch.uint8, device=planes.device)
    for start in range(0, len(planes), CONVERTED_AT_ONCE):
        channels = colours.rgb(planes[start : start + CONVERTED_AT_ONCE].int())
        for channel, values in enumerate(channels):
            out[start : start + CONVERTED_AT_ONCE, channel] = values
    return out.permute(0, 2, 3, 1)


def _gather(x_nChw: Tensor, places: NDArray[np.int64], out_RCThw: Tensor) -> None:
    """Frames ``places`` [R, T] of the n; on a CPU one copy a frame, on a GPU two of everything."""
    if x_nChw.device.type == "cpu":
        for out_CThw, row in zip(out_RCThw, places.tolist(), strict=True):
            for time, place in enumerate(row):
                out_CThw[:, time] = x_nChw[place]
    else:
        chosen = x_nChw.index_select(0, resize.on(x_nChw.device, places.reshape(-1)))
        out_RCThw.copy_(chosen.view(*places.shape, *chosen.shape[1:]).transpose(1, 2))


def _mirrored(x_NCTHW: Tensor) -> Tensor:
    mirror = x_NCTHW.flip(-1)
    if mirror.shape[1] == 2:
        mirror[:, 0] = 255 - mirror[:, 0]
    return mirror


def middle_first(num_rows: int, num_crops: int) -> list[int]:
    """All views, those first that are likely to be sure: from the middle of the video outwards, all crops of a row.

    5 rows, 1 crop: 2 1 3 0 4.   Of 177 gestures and 30 views this order left out 11.8 % (20.6 % had the network been
    surer), the order of the plan 11.3 % (19.2 %), one that knew each view's confidence beforehand 14.3 % (25.3 %).
    """
    rows = sorted(range(num_rows), key=lambda row: abs(2 * row + 1 - num_rows))
    return [crop * num_rows + row for row in rows for crop in reversed(range(num_crops))]


def score(
    clips: Iterable[Clip],
    net: Network,
    protocol: Protocol,
    *,
    device: str | torch.device = "cpu",
    dtype: str = "fp32",
    batch_views: int | Literal["auto"] = "auto",
    workers: int | None = None,
    decoder: str = "pyav",
    deterministic: bool = False,
    keep_views: bool = False,
    compile: bool = False,
    stop_when_decided: bool = False,
    labels: Mapping[str, int] | None = None,
) -> Generator[Outcome, None, None]:
    """Score clips with a network (in eval mode, on ``device``) under a protocol; yields outcomes in the order of clips.

    ``dtype``: fp32, or bf16 or fp16 by autocast; scores of views and their means are float32 always.
    ``batch_views``: views a batch. "auto" is found by trying: it starts high and halves until the memory suffices.
    ``workers``: processes that decode ahead of the network; 0 decodes in between; ``None``: one on a CPU, else all
        cores. ``decoder``: see ``decode.ahead``.
    ``deterministic``: a batch holds views of one video only, so that a clip's scores are the same to the bit whatever
    the other clips, the workers and interruptions are; on a CPU with one thread, so torchrun is the way to use many
    cores. Otherwise they move by 1e-7 or so.
    ``compile``: run the network through ``torch.compile``.
    ``stop_when_decided``: leave out the views of a clip that can change neither its top-1 nor whether its label is in
    the top 5; its scores are those of the views that were looked at. For ``aggregate.may_stop_early`` protocols.
    ``labels``: id -> output of the network, where that is not the clips' ``label_index``.
    Raises ``DataError`` when the memory does not hold a batch.
    """
    if stop_when_decided and (keep_views or not may_stop_early(protocol)):
        raise ValueError(f"{protocol.aggregation}, keep_views={keep_views}: early stop needs a mean of probabilities")
    device = torch.device(device)
    batches = _Batches(
        net,
        torch.compile(net) if compile else net,
        device,
        DTYPES[dtype],
        batch_views,
        protocol,
        deterministic=deterministic,
        keep_views=keep_views,
        stop_when_decided=stop_when_decided,
    )
    if workers is None:
        workers = 1 if device.type == "cpu" else (os.cpu_count() or 1)
    arrived = _pinned if device.type == "cuda" and workers else None
    planes = device.type in CONVERTS
    items = decode.ahead(clips, net.spec, protocol, workers, planes=planes, decoder=decoder, arrived=arrived)
    with closing(items), one_thread() if deterministic and device.type == "cpu" else nullcontext():
        for clip, item in items:
            batches.add(clip, item, labels[clip.id] if labels else clip.label_index)
            del item
            yield from batches.run()
        yield from batches.run(everything=True)


def cudnn_flags(deterministic: bool, *, new_shapes: bool = False) -> AbstractContextManager[None]:
    """cuDNN, which rounds fp32 to TF32 unless told not to: "fp32" in a signature means fp32.

    It tries what is fastest for a shape, which takes longer than a batch: not where each batch is of another size.
    """
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=not (deterministic or new_shapes), deterministic=deterministic, allow_tf32=False
    )  # without ``enabled`` it would be off, and convolutions many times slower
    return flags


@contextmanager
def one_thread() -> Iterator[None]:
    """The sums of some convolutions depend on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pinned(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """In memory that a GPU copies from while the host goes on; where there is none left, as it is."""
    try:
        pinned: NDArray[np.uint8] = torch.from_numpy(frames).pin_memory().numpy()
    except RuntimeError:
        return frames
    return pinned


class _Arriving:
    """Scores of a batch on their way from the device, float32 [N, C]; who asks waits for them and for nothing else."""

    def __init__(self, scores: Tensor) -> None:
        self._here, self._copied = scores, None
        if scores.is_cuda:
            self._here = torch.empty(scores.shape, dtype=scores.dtype, pin_memory=True)
            self._here.copy_(scores, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def rows(self, first: int, past: int) -> NDArray[np.float32]:
        if self._copied is not None:
            self._copied.synchronize()
        found: NDArray[np.float32] = self._here[first:past].numpy()
        return found


# --- batches ------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True, eq=False)
class _Slot:
    """A clip on its way through the network: its views, and the scores of those that are through."""

    clip: Clip
    label: int
    views: Views | None
    reason: str | None
    order: Sequence[int]  # views, in the order in which they go through the network
    released: int  # how many of them may; all, unless fewer may do
    cut: int = 0  # views handed to the network so far
    batch: int = 0  # the last batch that it had a share in
    done: list[tuple[_Arriving, int, int]] = field(default_factory=list)  # its rows of batches
    judged: int = 0  # how many views of ``done`` are in ``total``
    total: NDArray[np.float64] | None = None

    @property
    def num_left(self) -> int:
        return self.released - self.cut

    def scores(self) -> NDArray[np.float32]:
        """float32 [views that are through, C]"""
        return np.concatenate([batch.rows(first, past) for batch, first, past in self.done])


class _Batches:
    """Collects views across videos, runs them through the network in batches, hands out finished clips in order."""

    def __init__(
        self,
        net: Network,
        forward: Callable[[Tensor], Tensor],
        device: torch.device,
        dtype: torch.dtype,
        batch_views: int | Literal["auto"],
        protocol: Protocol,
        *,
        deterministic: bool,
        keep_views: bool,
        stop_when_decided: bool,
    ) -> None:
        self._net, self._forward, self._device, self._dtype = net, forward, device, dtype
        self._aggregation = protocol.aggregation
        self._deterministic, self._keep_views, self._stop = deterministic, keep_views, stop_when_decided
        self._may_halve = batch_views == "auto" and not deterministic
        self._batch_views = None if batch_views == "auto" else batch_views
        self._slots: deque[_Slot] = deque()
        self._num_batches = 0

    def add(self, clip: Clip, item: decode.Decoded | str, label: int) -> None:
        if isinstance(item, str):
            self._slots.append(_Slot(clip=clip, label=label, views=None, reason=item, order=(), released=0))
            return
        frames = torch.from_numpy(item.frames).to(self._device, non_blocking=True)
        views = Views(frames, item.indices, item.plan, item.colours)
        order: Sequence[int] = range(views.num_views)
        released = views.num_views
        if self._stop:
            order = middle_first(len(item.plan.frames), item.plan.num_crops)
            released = released // 2 + 1  # no clip is decided before
        self._slots.append(_Slot(clip=clip, label=label, views=views, reason=None, order=order, released=released))
        if self._batch_views is None:
            self._batch_views = max(1, self._frames_at_once() // views.num_frames)

    def _frames_at_once(self) -> int:
        elsewhere = FRAMES_AT_ONCE_DETERMINISTIC if self._deterministic else FRAMES_AT_ONCE_ELSEWHERE
        return FRAMES_AT_ONCE.get(self._device.type, elsewhere)

    def run(self, *, everything: bool = False) -> Iterator[Outcome]:
        """Run the batches that are full, with ``everything`` the last one too; yields the clips that are through."""
        while True:
            # Batches that are not full.
            partly = everything or self._deterministic or (self._stop and len(self._slots) >= CLIPS_AT_ONCE)
            left = sum(slot.num_left for slot in self._slots)
            full = self._batch_views or 1
            if left < full and self._stop:
                self._judge()
                left = sum(slot.num_left for slot in self._slots)
            if left == 0 or (left < full and not partly):
                break
            self._run_batch(min(left, full))
            yield from self._finished()
        yield from self._finished(wait=everything)

    def _finished(self, *, wait: bool = False) -> Iterator[Outcome]:
        """Clips that are through, in order. A GPU still works on its latest batch: that is left unless ``wait``."""
        wait = wait or self._device.type == "cpu"
        while self._slots and self._slots[0].num_left == 0 and (wait or self._slots[0].batch < self._num_batches):
            if self._stop and self._slots[0].judged < self._slots[0].cut:
                break  # it may need more views
            yield self._outcome(self._slots.popleft())

    def _judge(self) -> None:
        """Let the clips whose views are through have as many more as they need at least to be decided."""
        for slot in self._slots:
            if slot.views is None or slot.num_left or slot.judged == slot.cut:
                continue
            news = slot.scores()[slot.judged :].astype(np.float64).sum(axis=0)
            slot.total = news if slot.total is None else slot.total + news
            slot.judged = slot.cut
            if np.isfinite(slot.total).all():
                slot.released += views_until_decided(slot.total, slot.label, slot.views.num_views - slot.cut)

    def _run_batch(self, num_views: int) -> None:
        """The next ``num_views`` views, the oldest first."""
        shares: list[tuple[_Slot, int]] = []
        for slot in self._slots:
            share = min(slot.num_left, num_views - sum(share for _, share in shares))
            if share:
                shares.append((slot, share))
        try:
            x_NCTHW = torch.cat(
                [
                    slot.views.cut(sorted(slot.order[slot.cut : slot.cut + share]))
                    for slot, share in shares
                    if slot.views
                ]
            )
            scores = _Arriving(self._scores(x_NCTHW))
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
            slot.done.append((scores, first, first + share))
            slot.cut += share
            slot.batch = self._num_batches
            first += share

    def _scores(self, x_NCTHW: Tensor) -> Tensor:
        """uint8 [N, C, T, h, w] -> probabilities or logits, float32 [N, classes]."""
        on_gpu = self._device.type == "cuda"
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32),
            cudnn_flags(self._deterministic, new_shapes=self._stop) if on_gpu else nullcontext(),
        ):
            logits: Tensor = self._forward(self._net.normalise(x_NCTHW.float())).float()
            return logits if views_hold(self._aggregation) == "logit" else logits.softmax(dim=1)

    def _outcome(self, slot: _Slot) -> Outcome:
        clip = slot.clip
        if slot.reason is not None or slot.views is None:
            return Outcome(id=clip.id, label_index=clip.label_index, reason=slot.reason)
        views = slot.scores()
        if not np.isfinite(views).all():
            reason = "the network gave NaN for it" + (
                "; fp16 may have overflowed, --dtype bf16 does not" if self._dtype == torch.float16 else ""
            )
            return Outcome(id=clip.id, label_index=clip.label_index, reason=reason)
        return Outcome(
            id=clip.id,
            label_index=clip.label_index,
            scores=aggregate(views, self._aggregation),
            views=views if self._keep_views else None,
            num_views=slot.cut,
            num_planned=slot.views.num_views,
        )
