"""Frame indices in, frames out: one file, one decode, each frame converted once.

    with reader.open(path) as video:
        video.num_frames, video.fps, video.height, video.width
        frames = video.frames([0, 16, 32])          # uint8 [3, H, W, 3]

Index 0 is the first frame that a player would show: packets that an edit list discards do not count.
PyAV decodes; it knows the rotation of a picture but does not apply it, so this module does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from .errors import Unreadable

Pixels = Literal["displayed", "stored"]
Frames = npt.NDArray[np.uint8]

HIGHEST_BELIEVED_FPS = 480
# Decoders that give the same picture after a seek as from the start; H.263 and MPEG-4 part 2 do not always.
SEEK_EXACT_CODECS = frozenset({"h264", "hevc", "vp9", "av1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketIndex:
    """What the container says without decoding a picture.

    ``pts`` of the packets that are shown, sorted, in units of the stream's time base; ``keyframes``: positions in it.
    For most files ``len(pts)`` is the number of frames; VP9 may carry packets that show nothing, and a damaged file
    has packets that cannot be decoded, so a count that must be right is a decoded one (``Video.num_frames``).
    """

    pts: tuple[int, ...]
    keyframes: tuple[int, ...]
    seekable: bool


def open(path: str | Path, *, num_frames: int | None = None, pixels: Pixels = "displayed") -> Video:
    """Open a video file for reading by frame index.

    ``num_frames``: the decoded count, when a manifest vouches for it; it saves counting and allows seeking.
    ``pixels``: "displayed" applies rotation and pixel aspect ratio; "stored" applies rotation only, which is what
    mmaction2, PySlowFast, decord and OpenCV show of a file whose pixels are not square.
    Raises ``Unreadable`` (naming the file) when it holds no picture that can be decoded.
    """
    return Video(Path(path), num_frames=num_frames, pixels=pixels)


class Video:
    """One open video. Not safe to share between threads."""

    def __init__(self, path: Path, *, num_frames: int | None, pixels: Pixels) -> None:
        self.path = path
        self._known_frames = num_frames
        self._vouched = num_frames is not None
        self._index: PacketIndex | None = None
        try:
            self._container = av.open(str(path))
        except (OSError, av.FFmpegError) as error:
            raise Unreadable(f"{path}: {_reason(error)}") from error
        try:
            self._stream = video_stream(self._container, path)
            # One thread: the caller runs many files side by side, and slices would not speed up one small file.
            self._stream.codec_context.thread_count = 1
            first = self._first_frame()
        except BaseException:
            self._container.close()
            raise
        self.fps: float = self._frame_rate()
        self._quarter_turns = round(first.rotation / 90) % 4
        sar = Fraction(1)
        if pixels == "displayed":
            sar = self._stream.sample_aspect_ratio or Fraction(1)
        # Before turning: the width is what the aspect ratio stretches.
        self._stored = (max(1, round(first.width * sar)), first.height)
        turned = self._quarter_turns % 2 == 1
        self.width, self.height = self._stored[::-1] if turned else self._stored
        self._reformatter = VideoReformatter()

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    @property
    def num_frames(self) -> int:
        """Frames that decode, counted by decoding them all unless a manifest vouched for the number."""
        if self._known_frames is None:
            self._known_frames, _ = self._decode_from_start(())
        return self._known_frames

    @property
    def index(self) -> PacketIndex:
        if self._index is None:
            self._index = packet_index(self.path)
        return self._index

    def frames(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Frames:
        """The frames at ``indices`` (any order, repeats allowed) as uint8 [n, H, W, 3], RGB.

        Every distinct frame is decoded and converted once. Raises ``IndexError`` for an index outside the video and
        ``Unreadable`` when decoding breaks off before the last one wanted.
        """
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if wanted.size == 0:
            return np.empty((0, self.height, self.width, 3), np.uint8)
        unique, inverse = np.unique(wanted, return_inverse=True)
        if unique[0] < 0:
            raise IndexError(f"{self.path}: frame {unique[0]} asked for; indices start at 0")
        if self._known_frames is not None and unique[-1] >= self._known_frames:
            raise IndexError(f"{self.path}: frame {unique[-1]} asked for, the video has {self._known_frames}")
        picked = self._pick(unique)
        return picked if np.array_equal(unique[inverse], unique) else picked[inverse]

    def frames_for(self, plan: Callable[[int], npt.NDArray[np.int64]]) -> tuple[npt.NDArray[np.int64], Frames]:
        """Unique indices and frames for a plan that needs the number of frames, in one decode where that can be.

        ``plan(num_frames)`` returns the indices wanted. The number is guessed from the packets first and checked while
        decoding; only a file whose packets lie about its frames is decoded twice.
        Returns (sorted unique indices, uint8 [len, H, W, 3]).
        """
        if self._known_frames is not None:
            unique = np.unique(plan(self._known_frames))
            return unique, self._pick(unique)
        guess = len(self.index.pts)
        if guess:
            unique = np.unique(plan(guess))
            counted, frames = self._decode_from_start(unique)
            self._known_frames = counted
            if counted == guess:
                return unique, frames
        unique = np.unique(plan(self.num_frames))
        return unique, self._pick(unique)

    def _pick(self, unique: npt.NDArray[np.int64]) -> Frames:
        if self._vouched:
            try:
                frames = self._decode_by_seeking(unique)
            except (OSError, av.FFmpegError):
                frames = None  # damaged since the manifest was made: from the start, we see how far it decodes
            if frames is not None:
                return frames
        counted, frames = self._decode_from_start(unique, to_the_end=False)
        if len(frames) < len(unique):
            raise IndexError(f"{self.path}: frame {unique[-1]} asked for, the video has {counted}")
        return frames

    def _frame_rate(self) -> float:
        """Frames per second; Matroska and FLV may claim their clock (1000), then the packets' own spacing counts."""
        claimed = float(self._stream.average_rate or self._stream.guessed_rate or 0)
        if 0 < claimed <= HIGHEST_BELIEVED_FPS:
            return claimed
        pts = self.index.pts
        if len(pts) < 2 or pts[-1] == pts[0] or self._stream.time_base is None:
            return claimed
        return (len(pts) - 1) / float((pts[-1] - pts[0]) * self._stream.time_base)

    def _first_frame(self) -> av.VideoFrame:
        try:
            for frame in self._container.decode(self._stream):
                return frame
        except (OSError, av.FFmpegError) as error:
            raise Unreadable(f"{self.path}: {_reason(error)}") from error
        raise Unreadable(f"{self.path}: no frame can be decoded")

    def _decode_from_start(
        self, unique: Sequence[int] | npt.NDArray[np.int64], *, to_the_end: bool = True
    ) -> tuple[int, Frames]:
        """Count frames and convert those in ``unique`` (sorted). A broken end counts what came before it."""
        self._reopen()
        out = np.empty((len(unique), self.height, self.width, 3), np.uint8)
        found = count = 0
        try:
            for frame in self._container.decode(self._stream):
                if found < len(unique) and count == unique[found]:
                    out[found] = self._convert(frame)
                    found += 1
                count += 1
                if found == len(unique) and not to_the_end:
                    break
        except (OSError, av.FFmpegError) as error:
            if count == 0:
                raise Unreadable(f"{self.path}: {_reason(error)}") from error
        return count, out[:found]

    def _decode_by_seeking(self, unique: npt.NDArray[np.int64]) -> Frames | None:
        """Decode from the keyframe before each wanted frame; ``None`` where the packets do not match the manifest."""
        index = self.index
        if self._stream.codec_context.codec.canonical_name not in SEEK_EXACT_CODECS:
            return None
        if not index.seekable or len(index.pts) != self._known_frames or len(unique) == 0:
            return None
        keys = np.asarray(index.keyframes)
        position = {pts: number for number, pts in enumerate(index.pts)}
        group = np.searchsorted(keys, unique, side="right") - 1
        if group[0] < 0:
            return None
        out = np.empty((len(unique), self.height, self.width, 3), np.uint8)
        found = 0
        at = -1  # the frame last decoded
        while found < len(unique):
            start = int(keys[group[found]])
            if at < 0 or start > at + 1:  # going on is never dearer than seeking back to where we are
                self._container.seek(index.pts[start], stream=self._stream, backward=True, any_frame=False)
            for frame in self._container.decode(self._stream):
                at = -1 if frame.pts is None else position.get(frame.pts, -1)
                if at < 0 or at > unique[found]:
                    return None  # the file does not behave; the slow way is always right
                if at == unique[found]:
                    out[found] = self._convert(frame)
                    found += 1
                    if found == len(unique) or keys[group[found]] > at + 1:
                        break
            else:
                return out if found == len(unique) else None
        return out

    def _convert(self, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
        width, height = self._stored
        # Default swscale conversion, as every reader of this field uses: they may differ in frames, not in colours.
        rgb: Frames = self._reformatter.reformat(frame, width=width, height=height, format="rgb24").to_ndarray()  # type: ignore[assignment]
        return np.rot90(rgb, self._quarter_turns) if self._quarter_turns else rgb

    def _reopen(self) -> None:
        self._container.close()
        self._container = av.open(str(self.path))
        self._stream = video_stream(self._container, self.path)
        self._stream.codec_context.thread_count = 1


def video_stream(container: av.container.InputContainer, path: str | Path) -> av.VideoStream:
    """The first video stream that is no cover picture. Raises ``Unreadable`` when there is none."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise Unreadable(f"{path}: no video stream{', only a cover picture' if container.streams.video else ''}")


def packet_index(path: str | Path) -> PacketIndex:
    """Read the packets of the first video stream without decoding them. Raises ``Unreadable``."""
    shown: list[tuple[int, bool]] = []
    timed = True
    try:
        with av.open(str(path)) as container:
            for packet in container.demux(video_stream(container, path)):
                if packet.size == 0 or packet.is_discard:
                    continue
                timed = timed and packet.pts is not None
                shown.append((packet.pts if packet.pts is not None else len(shown), packet.is_keyframe))
    except (OSError, av.FFmpegError) as error:
        if not shown:
            raise Unreadable(f"{path}: {_reason(error)}") from error
    shown.sort()
    pts = tuple(stamp for stamp, _ in shown)
    return PacketIndex(
        pts=pts,
        keyframes=tuple(number for number, (_, key) in enumerate(shown) if key),
        seekable=timed and len(set(pts)) == len(pts),
    )


def _reason(error: Exception) -> str:
    """An error's text without the file name, which the caller puts in front."""
    text: str = (getattr(error, "strerror", None) or str(error)).strip()
    if isinstance(error, av.InvalidDataError):
        return f"no video in it, or cut off before its index ({text})"
    return text
