"""Frame indices in, frames out: one file, one decode, each frame converted once.

    with reader.open(path) as video:
        video.num_frames, video.fps, video.height, video.width
        frames = video.frames([0, 16, 32])          # uint8 [3, H, W, 3]; flow: [3, H, W, 2], 128 = no motion

``path`` is told by what is there:

    clip.mp4                                    a video, RGB; or flow, when its comment tag says so
    clip/img_00001.jpg  clip/00001.jpg  ...     a folder of JPEG files, RGB, whatever stands before the number
    clip/flow_x_00001.jpg clip/flow_y_00001.jpg flow as denseflow names it (two grey pictures a flow)
    clip/x_00001.jpg clip/y_00001.jpg           flow as mmaction2's own tool names it

Index 0 is the first frame that a player would show: packets that an edit list discards do not count. Files may be
numbered from 0 or from 1; index 0 is the first of them, and a number that is missing is an error, never a shift.
PyAV decodes videos; it knows the rotation of a picture but does not apply it, so this module does. Pillow decodes JPEG:
it carries libjpeg-turbo and gives the same bytes as OpenCV's wheel and PyTurboJPEG, which mmaction2 reads with.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import av
import numpy as np
import numpy.typing as npt
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from PIL import Image, UnidentifiedImageError

from . import colours, h264
from .colours import Colours
from .errors import Unreadable

Pixels = Literal["displayed", "stored"]
Kind = Literal["rgb", "flow"]
Frames = npt.NDArray[np.uint8]

HIGHEST_BELIEVED_FPS = 480
# Decoders that give the same picture after a seek as from the start; H.263 and MPEG-4 part 2 do not always. What a
# container calls a keyframe of H.264 may be one from which pictures mend little by little: see ``h264.Headers``.
SEEK_EXACT_CODECS = frozenset({"h264", "hevc", "vp9", "av1"})
# In the comment tag of a video whose pictures hold flow: the upper half is x, the lower half y.
FLOW_PLANES_TAG = "flow=x-above-y"
FLOW_PREFIXES = (("flow_x_", "flow_y_"), ("x_", "y_"))
_NUMBERED = re.compile(r"(.*?)([0-9]+)\.jpe?g", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketIndex:
    """What the container says without decoding a picture.

    ``pts`` of the packets that are shown, sorted, in units of the stream's time base; ``position``: where in it a time
    is; ``keyframes``: positions from which decoding may begin. For most files ``len(pts)`` is the number of frames; VP9
    may carry packets that show nothing, and a damaged file has packets that cannot be decoded, so a count that must be
    right is a decoded one (``Video.num_frames``). ``idle``: positions of pictures that no other depends on, which can
    be left out. ``seekable``: times and headers tell each picture's place, and keyframes are what they claim to be.
    ``proven``: the pictures themselves say so.
    """

    pts: tuple[int, ...]
    position: Mapping[int, int]
    keyframes: tuple[int, ...]
    idle: frozenset[int]
    seekable: bool
    proven: bool


def open(
    path: str | Path, *, num_frames: int | None = None, pixels: Pixels = "displayed", kind: Kind | None = None
) -> Video:
    """Open a video file or a folder of JPEG files for reading by frame index.

    ``num_frames``: the decoded count, when a manifest vouches for it; it saves counting and allows seeking. Of a folder
    with more files only that many are read (a list of others may say so), with fewer it is ``Unreadable``.
    ``pixels``: "displayed" applies rotation and pixel aspect ratio; "stored" applies rotation only, which is what
    mmaction2, PySlowFast, decord and OpenCV show of a file whose pixels are not square.
    ``kind``: which one to read of a folder that holds both frames and flow; else what is there is what is read.
    Raises ``Unreadable`` (naming the file) when it holds no picture that can be decoded.
    """
    where = Path(path)
    if where.is_dir():
        return JpegFolder(where, num_frames=num_frames, kind=kind)
    video = VideoFile(where, num_frames=num_frames, pixels=pixels)
    if kind is not None and video.kind != kind:
        video.close()
        raise Unreadable(f"{path} holds {video.kind}, {kind} was asked for")
    return video


def _new(shape: tuple[int, ...]) -> Frames:
    return np.empty(shape, np.uint8)


class Video(ABC):
    """One open clip, whatever it is stored as. Not safe to share between threads.

    ``kind`` "rgb" gives frames of three channels, "flow" of two (x, y; 128 = no motion). ``fps`` is 0 where nothing
    says it (a folder of pictures). ``allocate`` makes the array that frames are decoded into.
    """

    path: Path
    kind: Kind
    fps: float
    height: int
    width: int
    colours: Colours | None = None
    allocate: Callable[[tuple[int, ...]], Frames] = staticmethod(_new)

    def give_planes(self) -> None:
        """From now on frames are the planes of YUV 4:2:0, uint8 [n, bytes], of which ``colours`` makes the same RGB.

        Where the pictures are of another kind, ``colours`` stays ``None`` and frames stay what they were.
        """
        self.colours = self._colours()

    def _colours(self) -> Colours | None:
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None: ...

    @property
    @abstractmethod
    def num_frames(self) -> int: ...

    @abstractmethod
    def frames_for(self, plan: Callable[[int], npt.NDArray[np.int64]]) -> tuple[npt.NDArray[np.int64], Frames]:
        """Unique indices and frames for a plan that needs the number of frames, in one decode where that can be.

        ``plan(num_frames)`` returns the indices wanted. Returns (sorted unique indices, uint8 [len, H, W, channels]).
        """

    def frames(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Frames:
        """The frames at ``indices`` (any order, repeats allowed) as uint8 [n, H, W, 3], RGB; flow [n, H, W, 2].

        Every distinct frame is decoded and converted once. Raises ``IndexError`` for an index outside the video and
        ``Unreadable`` when decoding breaks off before the last one wanted.
        """
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if wanted.size == 0:
            return self._empty(0)
        unique, inverse = np.unique(wanted, return_inverse=True)
        if unique[0] < 0:
            raise IndexError(f"{self.path}: frame {unique[0]} asked for; indices start at 0")
        picked = self._pick(unique)
        return picked if np.array_equal(unique[inverse], unique) else picked[inverse]

    @abstractmethod
    def _pick(self, unique: npt.NDArray[np.int64]) -> Frames:
        """The frames at sorted indices, none of them twice or negative."""

    def _empty(self, count: int) -> Frames:
        if self.colours is not None:
            return self.allocate((count, self.colours.num_bytes))
        return self.allocate((count, self.height, self.width, 2 if self.kind == "flow" else 3))


class JpegFolder(Video):
    """A folder of numbered JPEG files: frames, or flow as pairs of grey pictures."""

    def __init__(self, path: Path, *, num_frames: int | None, kind: Kind | None) -> None:
        self.path = path
        self.fps = 0.0
        self.kind, self._names = _numbered_files(path, kind)
        if num_frames is not None:
            if num_frames > len(self._names):
                raise Unreadable(f"{path}: {len(self._names)} {_UNITS[self.kind]}, the list says {num_frames}")
            self._names = self._names[:num_frames]
        self.height, self.width = self._picture(self._names[0][0]).shape[:2]

    def close(self) -> None:
        pass

    @property
    def files(self) -> list[tuple[str, ...]]:
        """Names of the file, of flow the two files, of each index."""
        return self._names

    @property
    def num_frames(self) -> int:
        return len(self._names)

    def frames_for(self, plan: Callable[[int], npt.NDArray[np.int64]]) -> tuple[npt.NDArray[np.int64], Frames]:
        unique = np.unique(plan(self.num_frames))
        return unique, self.frames(unique)

    def _pick(self, unique: npt.NDArray[np.int64]) -> Frames:
        if unique[-1] >= self.num_frames:
            raise IndexError(f"{self.path}: {self.kind} {unique[-1]} asked for, the folder has {self.num_frames}")
        out = self._empty(len(unique))
        for place, number in enumerate(unique):
            for plane, name in enumerate(self._names[number]):
                picture = self._picture(name)
                if picture.shape[:2] != out.shape[1:3]:
                    raise Unreadable(
                        f"{self.path / name}: {picture.shape[1]}x{picture.shape[0]}, "
                        f"the folder's first is {self.width}x{self.height}"
                    )
                if self.kind == "flow":
                    out[place, :, :, plane] = picture
                else:
                    out[place] = picture
        return out

    def _picture(self, name: str) -> npt.NDArray[np.uint8]:
        """uint8 [H, W, 3], of a plane of flow [H, W]."""
        mode = "L" if self.kind == "flow" else "RGB"
        try:
            with Image.open(self.path / name, formats=["JPEG"]) as image:
                return np.asarray(image if image.mode == mode else image.convert(mode))
        except _BAD_PICTURE as error:
            raise Unreadable(f"{self.path / name}: {error}") from error


# A broken header, a cut-off file, a header that claims more pixels than anybody has.
_BAD_PICTURE = (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError)
_UNITS: dict[Kind, str] = {"rgb": "frames", "flow": "flows"}


def _numbered_files(folder: Path, kind: Kind | None) -> tuple[Kind, list[tuple[str, ...]]]:
    """What a folder holds, and the file or the two files of each index, in order. Raises ``Unreadable``."""
    series: dict[str, dict[int, str]] = {}
    for entry in folder.iterdir():
        match = _NUMBERED.fullmatch(entry.name)
        if match is None or entry.name.startswith("."):
            continue
        files = series.setdefault(match[1], {})
        if int(match[2]) in files:
            raise Unreadable(f"{folder}: {files[int(match[2])]} and {entry.name} have the same number")
        files[int(match[2])] = entry.name
    planes = next((pair for pair in FLOW_PREFIXES if series.keys() & pair), ())
    if len(series.keys() & planes) == 1:
        raise Unreadable(f"{folder}: only {min(series.keys() & planes)} files, flow needs {' and '.join(planes)}")
    pictures = sorted(series.keys() - planes)
    if kind is None:
        if planes and pictures:
            raise Unreadable(f"{folder} holds frames and flow; say which: reader.open(path, kind='rgb') or 'flow'")
        kind = "flow" if planes else "rgb"
    chosen = list(planes) if kind == "flow" else pictures
    if not chosen:
        raise Unreadable(f"{folder}: no numbered JPEG files of {_UNITS[kind]}")
    if kind == "rgb" and len(chosen) > 1:
        raise Unreadable(f"{folder}: several series of pictures: {', '.join(map(repr, chosen))}")
    numbers = [sorted(series[prefix]) for prefix in chosen]
    for prefix, found in zip(chosen, numbers, strict=True):
        if found[0] > 1:
            raise Unreadable(f"{folder}: {series[prefix][found[0]]} is the first file; numbers start at 0 or 1")
        if found[-1] - found[0] + 1 != len(found):
            gap = next(number for number, there in enumerate(found, start=found[0]) if number != there)
            raise Unreadable(f"{folder}: no file {prefix}{gap}, but one {series[prefix][found[-1]]}")
    if any(other != numbers[0] for other in numbers[1:]):
        raise Unreadable(f"{folder}: {len(numbers[0])} files {chosen[0]}, {len(numbers[1])} files {chosen[1]}")
    return kind, [tuple(series[prefix][number] for prefix in chosen) for number in numbers[0]]


class VideoFile(Video):
    """One open video file."""

    def __init__(self, path: Path, *, num_frames: int | None, pixels: Pixels) -> None:
        self.path = path
        self._known_frames = num_frames
        self._vouched = num_frames is not None
        self._index: PacketIndex | None = None
        self._begun: Iterator[av.VideoFrame] | None = None
        first = self._first = (self._enter() if self._vouched else None) or self._start()
        self.kind = "flow" if FLOW_PLANES_TAG in self._container.metadata.get("comment", "").split() else "rgb"
        self.fps = self._frame_rate()
        self._quarter_turns = round(first.rotation / 90) % 4
        sar = Fraction(1)
        if pixels == "displayed":
            sar = self._stream.sample_aspect_ratio or Fraction(1)
        # Before turning: the width is what the aspect ratio stretches.
        self._stored = (max(1, round(first.width * sar)), first.height)
        turned = self._quarter_turns % 2 == 1
        self.width, self.height = self._stored[::-1] if turned else self._stored
        if self.kind == "flow":
            self.height //= 2
        self._reformatter = VideoReformatter()

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

    @property
    def plain(self) -> bool:
        """Whether another careful reader should show the same pixels: each picture's place is certain, and they are
        of a kind that every way through swscale converts alike (whole frames of 8-bit 4:2:0 with even sides).
        """
        return self.index.seekable and not self._first.interlaced_frame and colours.of(self._first) is not None

    def frames_for(self, plan: Callable[[int], npt.NDArray[np.int64]]) -> tuple[npt.NDArray[np.int64], Frames]:
        try:
            return self._frames_for(plan)
        except _OtherPictures:  # its pictures change on the way
            self.colours = None
            return self._frames_for(plan)

    def _frames_for(self, plan: Callable[[int], npt.NDArray[np.int64]]) -> tuple[npt.NDArray[np.int64], Frames]:
        # The number is guessed from the packets first and checked while decoding; only a file whose packets lie about
        # its frames is decoded twice.
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
        if self._known_frames is not None and unique.size and unique[-1] >= self._known_frames:
            raise IndexError(f"{self.path}: frame {unique[-1]} asked for, the video has {self._known_frames}")
        if self._vouched:
            try:
                frames = self._decode_by_seeking(unique)
            except (OSError, av.FFmpegError):
                frames = None  # damaged since the manifest was made: from the start, we see how far it decodes
            if frames is not None:
                return frames
            self._vouched = False
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

    def _colours(self) -> Colours | None:
        as_stored = self._stored == (self._first.width, self._first.height) and self._quarter_turns == 0
        return colours.of(self._first) if self.kind == "rgb" and as_stored else None

    def _open(self, *, strict: bool = False) -> None:
        """``strict``: a decoder that would conceal damage raises; what it conceals depends on what came before."""
        try:
            self._container = av.open(str(self.path), metadata_errors="replace")
            self._stream = video_stream(self._container, self.path)
        except (OSError, av.FFmpegError) as error:
            raise Unreadable(f"{self.path}: {_reason(error)}") from error
        # One thread: the caller runs many files side by side, and slices would not speed up one small file.
        self._stream.codec_context.thread_count = 1
        if strict:
            self._stream.codec_context.options = {"err_detect": "explode"}

    def _start(self) -> av.VideoFrame:
        """Open the file; returns its first frame, after which ``self._begun`` goes on."""
        self._open()
        self._begun = iter(self._container.decode(self._stream))
        try:
            for frame in self._begun:
                return frame
        except (OSError, av.FFmpegError) as error:
            self._container.close()
            raise Unreadable(f"{self.path}: {_reason(error)}") from error
        self._container.close()
        raise Unreadable(f"{self.path}: no frame can be decoded")

    def _enter(self) -> av.VideoFrame | None:
        """Open the file to decode here and there; returns a frame, ``None`` where that is not to be done."""
        self._open(strict=True)
        try:
            self._index = _packet_index(self._container, self._stream)
            for key in self._index.keyframes if self._index.proven else ():
                return next(self._frames_after(key, {key}), None)
        except (OSError, av.FFmpegError):
            self._vouched = False  # the way from the start says how far it is good
        self._container.close()
        return None

    def _decode_from_start(
        self, unique: Sequence[int] | npt.NDArray[np.int64], *, to_the_end: bool = True
    ) -> tuple[int, Frames]:
        """Count frames and convert those in ``unique`` (sorted). A broken end counts what came before it."""
        out = self._empty(len(unique))
        found = count = 0
        try:
            for frame in self._from_start():
                if found < len(unique) and count == unique[found]:
                    self._convert(frame, out[found])
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
        if not index.seekable or len(index.pts) != self._known_frames or len(unique) == 0:
            return None
        groups = np.searchsorted(index.keyframes, unique, side="right") - 1
        if groups[0] < 0:
            return None
        out = self._empty(len(unique))
        found = 0
        self._begun = None  # it will not go on from there
        for group in np.unique(groups).tolist():
            wanted = unique[groups == group].tolist()
            end = found + len(wanted)
            start = index.keyframes[group]
            last = start - 1
            for frame in self._frames_after(start, set(wanted)):
                at = -1 if frame.pts is None else index.position.get(frame.pts, -1)
                if 0 <= at < start:  # the file was entered earlier than asked for
                    continue
                if at <= last or not (index.proven or at == last + 1):
                    return None  # the file does not behave; the slow way is always right
                last = at
                if at == unique[found]:
                    self._convert(frame, out[found])
                    found += 1
                    if found == end:
                        break
            if found < end:
                return None
        return out

    def _frames_after(self, start: int, wanted: set[int]) -> Iterator[av.VideoFrame]:
        """What the packets from a keyframe on show; where that is proven, no more than what is wanted depends on."""
        index = self.index
        self._container.seek(index.pts[start], stream=self._stream, backward=True, any_frame=False)
        if not index.proven:
            yield from self._container.decode(self._stream)
            return
        begun = False
        for packet in self._container.demux(self._stream):
            at = -1 if packet.pts is None else index.position.get(packet.pts, -1)
            begun = begun or at == start
            if not begun or (at in index.idle and at not in wanted):
                continue
            yield from packet.decode()
            wanted.discard(at)
            if not wanted:  # what is still inside comes out without more packets
                yield from self._stream.codec_context.decode(None)
                return

    def _convert(self, frame: av.VideoFrame, out: npt.NDArray[np.uint8]) -> None:
        """Write a frame to its place."""
        if self.colours is not None:
            if not self.colours.planes(frame, out):
                raise _OtherPictures
            return
        width, height = self._stored
        if self.kind == "flow":  # grey as stored: a conversion could stretch the range. FFmpeg adds empty chroma planes
            if frame.format.name not in ("gray", "yuv420p", "yuvj420p"):
                raise Unreadable(f"{self.path}: flow in {frame.format.name}, gray expected")
            luma = frame.planes[0]
            rows = np.frombuffer(luma, np.uint8)[: luma.line_size * height].reshape(height, luma.line_size)  # type: ignore[call-overload]
            out[:] = rows[:, :width].reshape(2, self.height, self.width).transpose(1, 2, 0)
            return
        # Default swscale conversion, as every reader of this field uses: they may differ in frames, not in colours.
        plane = self._reformatter.reformat(frame, width=width, height=height, format="rgb24").planes[0]
        stored = np.frombuffer(plane, np.uint8)[: plane.line_size * height].reshape(height, plane.line_size)  # type: ignore[call-overload]
        rgb = stored[:, : 3 * width].reshape(height, width, 3)
        out[:] = np.rot90(rgb, self._quarter_turns) if self._quarter_turns else rgb

    def _from_start(self) -> Iterator[av.VideoFrame]:
        """All frames: those after the first one that was looked at, or of the file opened again."""
        if self._begun is None:
            self._container.close()
            self._first = self._start()
        begun, self._begun = self._begun, None
        return itertools.chain([self._first], begun or ())


class _OtherPictures(Exception):
    """A picture whose planes are not those of the first one."""


def mirrored(frames: Frames) -> Frames:
    """``frames`` [..., H, W, 3 or 2] as in a mirror. Of flow the x of every frame, and nothing else, turns its sign.

    255 - v as mmaction2 0.24.1 has it; its version 1.2 inverts x and y of every second frame, which is wrong.
    """
    flipped = frames[..., ::-1, :].copy()
    if frames.shape[-1] == 2:
        flipped[..., 0] = 255 - flipped[..., 0]
    return flipped


def video_stream(container: av.container.InputContainer, path: str | Path) -> av.VideoStream:
    """The first video stream that is no cover picture. Raises ``Unreadable`` when there is none."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise Unreadable(f"{path}: no video stream{', only a cover picture' if container.streams.video else ''}")


def packet_index(path: str | Path) -> PacketIndex:
    """Read the packets of the first video stream without decoding them. Raises ``Unreadable``."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            return _packet_index(container, video_stream(container, path))
    except (OSError, av.FFmpegError) as error:
        raise Unreadable(f"{path}: {_reason(error)}") from error


def _packet_index(container: av.container.InputContainer, stream: av.VideoStream) -> PacketIndex:
    """Reads to the end of the file, or to where it breaks."""
    stamps: list[int | None] = []
    keyframes: list[bool] = []
    shown: list[int] = []
    pictures: list[h264.Picture] = []
    codec = stream.codec_context.codec.canonical_name
    headers: h264.Headers | None = None
    with contextlib.suppress(h264.Unproven):
        headers = h264.Headers(stream.codec_context.extradata or b"") if codec == "h264" else None
    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if not packet.is_discard:
                shown.append(len(stamps))
            stamps.append(packet.pts)
            keyframes.append(packet.is_keyframe)
            if headers and packet.has_sidedata("new_extradata"):  # other parameters from here on
                headers = None
            if headers:
                try:
                    pictures.append(headers.picture(bytes(packet)))
                except h264.Unproven:
                    headers = None
    except (OSError, av.FFmpegError):
        if not shown:
            raise
    times = [count if stamp is None else stamp for count, stamp in enumerate(stamps)]
    timed = None not in stamps and len(set(stamps)) == len(stamps)
    places = sorted(range(len(pictures)), key=lambda place: pictures[place].order)
    proven = bool(headers) and timed and all(times[a] < times[b] for a, b in itertools.pairwise(places))
    shown.sort(key=lambda place: times[place])
    return PacketIndex(
        pts=tuple(times[place] for place in shown),
        position={times[place]: number for number, place in enumerate(shown)},
        keyframes=tuple(
            number for number, place in enumerate(shown) if (pictures[place].fresh if proven else keyframes[place])
        ),
        idle=frozenset(number for number, place in enumerate(shown) if proven and pictures[place].idle),
        seekable=timed and (proven or codec in SEEK_EXACT_CODECS - {"h264"}),
        proven=proven,
    )


def _reason(error: Exception) -> str:
    """An error's text without the file name, which the caller puts in front."""
    text: str = (getattr(error, "strerror", None) or str(error)).strip()
    if isinstance(error, av.InvalidDataError):
        return f"no video in it, or cut off before its index ({text})"
    return text
