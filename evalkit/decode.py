"""Clips in, the frames that their views need out: in order, ahead of the network, by processes that may die.

    this process   gives each worker one clip at a time, grants it memory, yields what comes back in order
    worker         plans the views, asks for memory, decodes into it

Memory is anonymous and shared by passing its descriptor: whoever is killed, none is left behind. It is used again as
soon as nobody looks at it: fresh pages would cost a tenth of the decoding. No torch in here, so that a worker starts in
a fifth of a second.

Shapes: R views of a video along time ("rows"), T frames a view, n frames that any of them needs, C channels.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import typing
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datakit import reader
from datakit.colours import Colours
from datakit.errors import CropError, DataError, ItemError, ToolMissing

from . import views
from .protocols import Protocol

DECODED_AHEAD_BYTES = 2 << 30
CLIPS_AHEAD_A_WORKER = 4
ROUNDED_TO_BYTES = 1 << 20
# What a worker runs. Not by multiprocessing, which would run the caller's script again.
WORKER = "import sys; sys.path[:] = {path!r}; from evalkit import decode; decode.serve({handle})"


class Spec(typing.Protocol):
    """What the engine needs to know of a network (``models.ModelSpec`` is one)."""

    @property
    def clip_len(self) -> int: ...
    @property
    def frame_interval(self) -> int: ...
    @property
    def frame_offsets(self) -> tuple[int, ...]: ...
    @property
    def num_segments(self) -> int | None: ...
    @property
    def input(self) -> str: ...


class Clip(typing.Protocol):
    """``datakit.manifest.Clip`` is one. A clip may also have ``fps``, for pictures that do not say it themselves."""

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


ClipT = typing.TypeVar("ClipT", bound=Clip)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A ``Spec`` in plain numbers, to be sent to a worker. ``planes``: give pictures as ``Colours`` makes RGB of.

    ``decoder``: "pyav", or "torchcodec" for video files.
    """

    clip_len: int
    frame_interval: int
    frame_offsets: tuple[int, ...]
    num_segments: int | None
    input: str
    planes: bool = False
    decoder: str = "pyav"


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
    def num_crops(self) -> int:
        return len(self.boxes) * (2 if self.mirrored else 1)

    @property
    def num_views(self) -> int:
        return len(self.frames) * self.num_crops


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoded:
    """``frames``: uint8 [n, H, W, C], those at ``indices`` (sorted) of the video; with ``colours`` planes [n, B]."""

    frames: NDArray[np.uint8]
    indices: NDArray[np.int64]
    plan: ViewPlan
    colours: Colours | None = None


def plan(num_frames: int, fps: float, height: int, width: int, spec: Spec, protocol: Protocol) -> ViewPlan:
    """The views of one video. Raises ``CropError`` where a crop does not fit, ``DataError`` where no clip does."""
    rows = views.frame_indices(
        protocol.sampling,
        num_frames,
        spec.clip_len,
        spec.frame_interval,
        protocol.num_clips,
        fps=fps or None,
        **protocol.options,
    )
    if len(rows) == 0:
        raise DataError(f"{protocol.sampling} finds no clip in {num_frames} frames")
    # rgb-diff wants i and i + 1 for every i; at the end of the video the last frame stands for what would follow.
    frames = np.minimum(rows[:, :, None] + np.asarray(spec.frame_offsets), num_frames - 1)
    rows_a_view = 1
    if protocol.aggregation == "segment-logit-mean":
        rows_a_view = spec.num_segments or 1
        if len(rows) % rows_a_view:
            raise DataError(
                f"the network looks at {rows_a_view} segments at a time, the protocol samples {len(rows)}; "
                f"type --views {rows_a_view}x{protocol.num_crops}@{protocol.crop_px} or a multiple"
            )
    resized_height, resized_width = views.resized(protocol.sampling, height, width, protocol.scale)
    mirrored = protocol.num_crops == 10
    boxes = views.crop_boxes(
        protocol.sampling, resized_height, resized_width, protocol.crop_px, 5 if mirrored else protocol.num_crops
    )
    return ViewPlan(
        frames=frames.reshape(len(rows) // rows_a_view, -1),
        height=resized_height,
        width=resized_width,
        boxes=tuple(boxes),
        mirrored=mirrored,
    )


# --- one clip --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A clip as a worker gets it."""

    path: str
    frames: int | None
    fps: float


Allocate = Callable[[tuple[int, ...]], NDArray[np.uint8]]


def _read(job: _Job, shape: Shape, protocol: Protocol, allocate: Allocate | None = None) -> Decoded | str:
    """The frames of one clip, or the reason why there are none. ``allocate`` may wait until there is room."""
    plans: list[ViewPlan] = []
    try:
        # Stored pixels: what mmaction2, decord and OpenCV show of a file whose pixels are not square.
        kind: Any = "flow" if shape.input == "flow" else "rgb"
        with reader.open(job.path, num_frames=job.frames, pixels="stored", kind=kind) as video:
            if allocate:
                video.allocate = allocate
            if shape.planes:
                video.give_planes()

            def wanted(num_frames: int) -> NDArray[np.int64]:
                plans.append(plan(num_frames, video.fps or job.fps, video.height, video.width, shape, protocol))
                return plans[-1].frames

            if shape.decoder == "torchcodec" and isinstance(video, reader.VideoFile) and kind == "rgb":
                indices, frames = _by_torchcodec(video, wanted)
            else:
                indices, frames = video.frames_for(wanted)
    except (ItemError, CropError, DataError, IndexError, OSError) as error:
        return str(error)
    return Decoded(frames=frames, indices=indices, plan=plans[-1], colours=video.colours)


def _by_torchcodec(
    video: reader.VideoFile, plan: Callable[[int], NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """As ``video.frames_for``, which is what is done where the two would count or show another video.

    torchcodec 0.17 converts odd sides, more than 8 bits and fields in another way, and finds other frames where times
    are not those of the pictures (H.263, MPEG-4 part 2, VVC).
    """
    from torchcodec.decoders import VideoDecoder

    if not video.plain:
        return video.frames_for(plan)
    try:
        other = VideoDecoder(str(video.path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        if len(other) != len(video.index.pts):
            return video.frames_for(plan)
        indices = np.unique(plan(len(other)))
        found = other.get_frames_at(indices=indices.tolist()).data.numpy()
    except (RuntimeError, ValueError):
        return video.frames_for(plan)
    if found.shape[1:3] != (video.height, video.width):
        return video.frames_for(plan)
    frames = video.allocate(found.shape)
    frames[:] = found
    return indices, frames


def check_torchcodec(clips: Iterable[Clip]) -> None:
    """Compare torchcodec with PyAV on the first clip that PyAV can read: eight frames, spread over it.

    Raises ``ToolMissing`` where it is not installed or does not load, ``DataError`` where a pixel differs.
    """
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise ToolMissing(
            f"--decoder torchcodec: {str(error).splitlines()[0]}; pip install torchcodec, or leave it out"
        ) from None

    def spread(num_frames: int) -> NDArray[np.int64]:
        return np.linspace(0, num_frames - 1, 8).astype(np.int64)

    for clip in clips:
        if clip.path is None or clip.path.is_dir():
            continue
        try:
            with reader.open(clip.path, pixels="stored") as video:
                indices, wanted = video.frames_for(spread)
            with reader.open(clip.path, pixels="stored") as video:
                assert isinstance(video, reader.VideoFile)
                again, found = _by_torchcodec(video, spread)
        except ItemError:
            continue
        if not (np.array_equal(indices, again) and np.array_equal(wanted, found)):
            raise DataError(f"{clip.path}: torchcodec shows other pixels than PyAV; leave out --decoder torchcodec")
        return


def _job(clip: Clip) -> _Job | str:
    """What is to be read of a clip, or the reason why nothing is."""
    if clip.path is None:
        return clip.reason or f"{clip.status}: there is no file"
    return _Job(path=str(clip.path), frames=clip.frames, fps=float(getattr(clip, "fps", None) or 0))


def ahead(
    clips: Iterable[ClipT],
    spec: Spec,
    protocol: Protocol,
    workers: int,
    *,
    planes: bool = False,
    decoder: str = "pyav",
    arrived: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
) -> Generator[tuple[ClipT, Decoded | str], None, None]:
    """Clips in order, each with its frames or with the reason why there are none.

    ``workers``: processes that decode ahead of the caller; 0 decodes in this one, when asked. What is decoded ahead is
    bounded by ``DECODED_AHEAD_BYTES`` besides the clip that comes next. A process that dies takes one clip with it.
    ``planes``: give pictures before their conversion to RGB where ``Decoded.colours`` can do it as well.
    ``decoder``: "pyav", or "torchcodec" where ``check_torchcodec`` found it exact; it gives no planes.
    ``arrived`` is called with the frames that a process sent, in a thread of its own; what it returns is yielded.
    """
    shape = Shape(
        clip_len=spec.clip_len,
        frame_interval=spec.frame_interval,
        frame_offsets=tuple(spec.frame_offsets),
        num_segments=spec.num_segments,
        input=spec.input,
        planes=planes and decoder == "pyav",
        decoder=decoder,
    )
    if workers == 0:
        for clip in clips:
            job = _job(clip)
            yield clip, job if isinstance(job, str) else _read(job, shape, protocol)
        return
    waiting: deque[ClipT] = deque()

    def jobs() -> Iterator[_Job | str]:
        for clip in clips:
            waiting.append(clip)
            yield _job(clip)

    crew = _Crew(jobs(), shape, protocol, workers, arrived or (lambda frames: frames))
    try:
        for result in crew.results():
            yield waiting.popleft(), result
    finally:
        crew.stop()


# --- the workers -----------------------------------------------------------------------------------------------------


def serve(handle: int) -> None:
    """The life of a worker: clips come through a socket, frames go back, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asked; it closes the socket
    link = Connection(handle)
    memory = _Memory(link)
    with contextlib.suppress(EOFError, ConnectionError):
        shape, protocol = link.recv()
        link.send("ready")
        while True:
            job, freed = link.recv()
            memory.free |= freed
            result = _read(job, shape, protocol, memory.allocate)
            if isinstance(result, str):
                memory.take_back()
                link.send(result)
            else:
                memory.hand_over(result)


class _Memory:
    """Blocks of shared memory of a worker, by number: decoded into here, looked at there, then free again."""

    def __init__(self, link: Connection) -> None:
        self._link = link
        self._blocks: dict[int, tuple[int, mmap.mmap]] = {}  # the descriptor, ours until it is sent, and the memory
        self._sent: set[int] = set()
        self._dropped: list[int] = []
        self._current: int | None = None
        self._count = 0
        self.free: set[int] = set()

    def allocate(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Asks for room, and waits until it is granted."""
        self.take_back()
        size = max(1, math.prod(shape))
        self._link.send(size)
        self._link.recv()
        fitting = [number for number in self.free if len(self._blocks[number][1]) >= size]
        if fitting:
            self._current = min(fitting, key=lambda number: len(self._blocks[number][1]))
            self.free.remove(self._current)
        else:
            self._drop_free()
            self._current, self._count = self._count, self._count + 1
            handle = os.memfd_create("frames")
            rounded = -(-size // ROUNDED_TO_BYTES) * ROUNDED_TO_BYTES
            os.ftruncate(handle, rounded)
            self._blocks[self._current] = (handle, mmap.mmap(handle, rounded))
        return np.frombuffer(self._blocks[self._current][1], np.uint8, count=math.prod(shape)).reshape(shape)

    def _drop_free(self) -> None:
        """Those that are too small for what comes now."""
        for number in self.free:
            if number not in self._sent:
                os.close(self._blocks[number][0])
            del self._blocks[number]
            self._dropped.append(number)
        self.free.clear()

    def take_back(self) -> None:
        """What was decoded last is not needed."""
        if self._current is not None:
            self.free.add(self._current)
            self._current = None

    def hand_over(self, result: Decoded) -> None:
        number = self._current
        assert number is not None
        handle, block = self._blocks[number]
        assert np.may_share_memory(result.frames, np.frombuffer(block, np.uint8))
        new = number not in self._sent
        where = (number, len(block), new, self._dropped)
        self._link.send((result.frames.shape, result.indices, result.plan, result.colours, where))
        if new:
            reduction.send_handle(self._link, handle, None)  # only Windows needs to know the process
            os.close(handle)
            self._sent.add(number)
        self._dropped = []
        self._current = None


class _Worker:
    """A process, and this end of the socket to it."""

    def __init__(self, shape: Shape, protocol: Protocol) -> None:
        ours, theirs = socket.socketpair()
        code = WORKER.format(path=[entry or str(Path.cwd()) for entry in sys.path], handle=theirs.fileno())
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        theirs.close()
        self.link = Connection(ours.detach())
        self.link.send((shape, protocol))
        self.ready = False
        self.ticket = -1  # the number of the clip that it works on
        self._blocks: dict[int, mmap.mmap] = {}
        self._freed: deque[int] = deque()

    def give(self, job: _Job, ticket: int) -> None:
        self.ticket = ticket
        freed = set()
        while self._freed:
            freed.add(self._freed.popleft())
        with contextlib.suppress(ConnectionError):  # it has died; its socket will say so
            self.link.send((job, freed))

    def decoded(
        self,
        message: tuple[tuple[int, ...], NDArray[np.int64], ViewPlan, Colours | None, tuple[Any, ...]],
        arrived: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    ) -> Decoded:
        shape, indices, plan, colours, (number, size, new, dropped) = message
        for old in dropped:
            self._blocks.pop(old, None)
        if new:
            handle = reduction.recv_handle(self.link)
            self._blocks[number] = mmap.mmap(handle, size)
            os.close(handle)
        flat = np.frombuffer(self._blocks[number], np.uint8, count=math.prod(shape))
        weakref.finalize(flat, self._freed.append, number).atexit = False  # when no array and no tensor looks at it
        return Decoded(frames=arrived(flat.reshape(shape)), indices=indices, plan=plan, colours=colours)

    def end(self) -> str:
        """Stop it; says how it ended."""
        self.link.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0.05)  # one that died has its own exit code
        self.process.kill()
        code = self.process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class _Crew:
    """Workers, and a thread that serves them. ``results`` are in the order of the jobs."""

    def __init__(
        self,
        jobs: Iterator[_Job | str],
        shape: Shape,
        protocol: Protocol,
        size: int,
        arrived: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    ) -> None:
        self._jobs, self._shape, self._protocol, self._size, self._arrived = jobs, shape, protocol, size, arrived
        self._crew: list[_Worker] = []
        self._asked: dict[int, tuple[_Worker, int]] = {}  # ticket -> who waits for how many bytes
        self._held: dict[int, int] = {}  # ticket -> bytes granted
        self._done: dict[int, Decoded | str] = {}
        self._given = self._taken = 0  # tickets
        self._last: int | None = None  # how many there are, once that is known
        self._failure: BaseException | None = None
        self._stopped = False
        self._changed = threading.Condition()
        self._bell, self._ear = socket.socketpair()  # wakes the thread
        self._thread = threading.Thread(target=self._serve, name="decode", daemon=True)
        self._thread.start()

    def results(self) -> Iterator[Decoded | str]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._taken in self._done or self._taken == self._last or self._failure)
                if self._failure:
                    raise self._failure
                if self._taken == self._last:
                    return
                result = self._done.pop(self._taken)
            yield result
            del result  # the caller is through with its memory
            with self._changed:
                self._held.pop(self._taken, None)
                self._taken += 1
            self._bell.send(b".")

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
        self._bell.send(b".")
        self._thread.join()
        self._bell.close()
        self._ear.close()

    def _serve(self) -> None:
        try:
            while not self._stopped and not (self._last == self._given and not self._busy()):
                self._give_out()
                self._grant()
                for end in wait([self._ear, *(worker.link for worker in self._crew)]):
                    if end is self._ear:
                        self._ear.recv(1 << 12)
                    else:
                        self._hear(next(worker for worker in self._crew if worker.link is end))
        except BaseException as error:  # the consumer raises it
            with self._changed:
                self._failure = error
                self._changed.notify_all()
        finally:
            for worker in self._crew:
                worker.end()

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._crew if worker.ticket >= 0]

    def _give_out(self) -> None:
        """A clip to every worker that has none, while not too many wait to be taken."""
        while self._last is None and self._given - self._taken < CLIPS_AHEAD_A_WORKER * self._size:
            idle = next((worker for worker in self._crew if worker.ticket < 0), None)
            if idle is None and len(self._crew) == self._size:
                return
            job = next(self._jobs, None)
            ticket = self._given
            if job is None:
                with self._changed:
                    self._last = ticket
                    self._changed.notify_all()
                return
            self._given += 1
            if isinstance(job, str):
                self._finish(ticket, job)
                continue
            if idle is None:
                idle = _Worker(self._shape, self._protocol)
                self._crew.append(idle)
            idle.give(job, ticket)

    def _grant(self) -> None:
        """Memory to those who ask, in the order of the clips; the clip that comes next gets it in any case."""
        for ticket in sorted(self._asked):
            worker, num_bytes = self._asked[ticket]
            with self._changed:
                others = sum(self._held.values()) - self._held.get(ticket, 0)
                if ticket > self._taken and others + num_bytes > DECODED_AHEAD_BYTES:
                    return
                self._held[ticket] = num_bytes
            del self._asked[ticket]
            with contextlib.suppress(ConnectionError):
                worker.link.send(None)

    def _hear(self, worker: _Worker) -> None:
        try:
            message = worker.link.recv()
            if isinstance(message, tuple):
                self._finish(worker.ticket, worker.decoded(message, self._arrived))
                worker.ticket = -1
            elif isinstance(message, int):
                self._asked[worker.ticket] = (worker, message)
            elif worker.ready:
                self._finish(worker.ticket, message)
                worker.ticket = -1
            else:
                worker.ready = True
        except (EOFError, ConnectionError, RuntimeError):  # RuntimeError: the descriptor did not come
            self._crew.remove(worker)
            ended = worker.end()
            if not worker.ready:
                raise ToolMissing(f"the processes that decode do not start ({ended}); type --workers 0") from None
            self._asked.pop(worker.ticket, None)
            if worker.ticket >= 0:
                self._finish(worker.ticket, f"the process that decoded it died ({ended})")

    def _finish(self, ticket: int, result: Decoded | str) -> None:
        with self._changed:
            self._done[ticket] = result
            if isinstance(result, str):
                self._held.pop(ticket, None)
            self._changed.notify_all()
