"""What a source is, as far as encoding it needs to know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from . import reader
from .errors import Refused, Unreadable

HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # ITU-T H.273, table 3
# A clock without a zero (MPEG-TS, MPEG-PS): libavformat's AVFMT_TS_DISCONT. Its times count from the file's start.
_FREE_CLOCK = 0x0200
FREE_CLOCK_MARGIN_S = 10.0  # such files have no index: a seek lands late, and not on a keyframe
# Sums of floats miss a frame's time by less: 0.1 + 0.2 is meant to be 0.3.
_HALF_MICROSECOND = Fraction(1, 2_000_000)
_REORDERED = 32  # packets; H.264 and HEVC reorder by 16 at most


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaInfo:
    """One source. ``displayed_*`` have rotation and pixel aspect ratio applied and need not be whole numbers.

    ``width`` and ``height`` are those of the stored picture. ``expected_frames`` is what the file promises:
    ``num_packets``, the packets that are shown, or more, when its header claims a longer time than they cover (a file
    cut off in the middle). ``end_s`` is when its last picture ends, on the clock that cuts are given in (``part``).
    """

    displayed_width: Fraction
    displayed_height: Fraction
    width: int
    height: int
    fps: float
    num_packets: int
    expected_frames: int
    duration_s: float
    end_s: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {name: str(value) if isinstance(value, Fraction) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> MediaInfo:
        shape = {name: Fraction(table[name]) for name in ("displayed_width", "displayed_height")}
        return cls(**{**table, **shape})


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The frames of a source with ``start_s <= pts < end_s``: from ``start_pts`` to before ``end_pts``, in its ticks.

    Times are those of the file's own clock, as a player shows them; where the clock has no zero (MPEG-TS) they count
    from the file's start. ``seek_s`` is where ffmpeg may begin to read, on the file's clock; ``None``: at the start,
    for decoders that give another picture after a seek. The sizes are those of the part's first picture.
    """

    start_s: float
    end_s: float
    start_pts: int
    end_pts: int
    seek_s: float | None
    displayed_width: Fraction
    displayed_height: Fraction
    width: int
    height: int
    num_packets: int
    expected_frames: int

    @property
    def name(self) -> str:
        """As it stands in the tag of a finished file."""
        return f"{self.start_s:.6f}-{self.end_s:.6f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What decoding a finished file found."""

    frames: int
    width: int
    height: int
    fps: float
    duration_s: float
    keyframes: tuple[int, ...]
    bytes: int
    sha256: str
    content_sha256: str
    tag: str


def media_info(path: Path, folder_fps: float = 0.0) -> MediaInfo:
    """Open ``path``, decode one frame, walk the packets. Raises ``Unreadable`` or ``Refused`` (HDR).

    ``folder_fps``: the rate of a folder of pictures, which cannot say it.
    """
    if path.is_dir():
        return _folder_info(path, folder_fps)
    if path.stat().st_size == 0:
        raise Unreadable(f"{path.name}: the file is empty")
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = reader.video_stream(container, path)
            stream.codec_context.thread_count = 1
            frame, pts = _frame_and_times(container, stream)
            frame = frame or _first_frame(path)
            if stream.codec_context.color_trc in HDR_TRANSFERS:
                raise Refused(f"HDR ({HDR_TRANSFERS[stream.codec_context.color_trc]}): tone mapping is not done")
            width, height = displayed_size(frame, stream)
            base = stream.time_base or Fraction(1)
            span_s = float((pts[-1] - pts[0]) * base) if pts else 0.0
            last_s = float(pts[-1] * base - _zero_s(container)) if pts else 0.0
            claimed_s = _claimed_duration_s(container, stream)
            claimed_fps = float(stream.average_rate or 0)
    except av.InvalidDataError as error:
        raise Unreadable(f"{path.name}: no video in it, or cut off before its index ({error.strerror})") from error
    except (OSError, av.FFmpegError) as error:
        raise Unreadable(f"{path.name}: {getattr(error, 'strerror', None) or error}") from error
    packets = len(pts)
    fps = (packets - 1) / span_s if packets > 1 and span_s > 0 else claimed_fps
    frame_s = 1 / fps if fps else 0.0
    covered_s = span_s + frame_s
    expected = packets
    if fps and claimed_s > covered_s * 1.1 and claimed_s > covered_s + 0.5:
        expected = max(packets, round(claimed_s * fps))
    return MediaInfo(
        displayed_width=width,
        displayed_height=height,
        width=frame.width,
        height=frame.height,
        fps=fps,
        num_packets=packets,
        expected_frames=expected,
        duration_s=max(covered_s, claimed_s),
        end_s=last_s + frame_s,
    )


def _frame_and_times(
    container: av.container.InputContainer, stream: av.VideoStream
) -> tuple[av.VideoFrame | None, list[int]]:
    """What the first packet alone shows, ``None`` where it takes more; and the times, sorted, of the packets that are
    shown, up to where the file breaks."""
    frame = None
    times: list[int] = []
    try:
        for number, packet in enumerate(container.demux(stream)):
            if number == 0:
                # Asked for all it has, the decoder does not wait for the pictures that may come before this one.
                frame = next(iter([*packet.decode(), *stream.codec_context.decode(None)]), None)
            if packet.size and not packet.is_discard:
                times.append(packet.pts if packet.pts is not None else len(times))
    except (OSError, av.FFmpegError):
        if not times:
            raise
    return frame, sorted(times)


def _first_frame(path: Path) -> av.VideoFrame:
    with av.open(str(path)) as container:
        stream = reader.video_stream(container, path)
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            return frame
    raise Unreadable(f"{path.name}: no frame can be decoded")


def _folder_info(folder: Path, fps: float) -> MediaInfo:
    with reader.open(folder, kind="rgb") as video:
        return MediaInfo(
            displayed_width=Fraction(video.width),
            displayed_height=Fraction(video.height),
            width=video.width,
            height=video.height,
            fps=fps,
            num_packets=video.num_frames,
            expected_frames=video.num_frames,
            duration_s=video.num_frames / fps,
            end_s=video.num_frames / fps,
        )


def part(path: Path, info: MediaInfo, start_s: float, end_s: float) -> Part:
    """Where in ``path`` the frames with ``start_s <= pts < end_s`` are; only the packets around them are read.

    Of a part that lacks more than a tenth at the source's end, and more than a frame and a half, more are expected.
    Raises ``Refused`` when the file's packets carry no times, ``Unreadable`` when none lies in between.
    """
    start, end = Fraction(start_s) - _HALF_MICROSECOND, Fraction(end_s) - _HALF_MICROSECOND
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = reader.video_stream(container, path)
            stream.codec_context.thread_count = 1
            base = stream.time_base or Fraction(1)
            zero = _zero_s(container)
            start_pts, end_pts = math.ceil((start + zero) / base), math.ceil((end + zero) / base)
            margin = FREE_CLOCK_MARGIN_S if container.format.flags & _FREE_CLOCK else 0.0
            seek_s = start_s + float(zero) - margin
            first_s = float(container.start_time or 0) / av.time_base
            exact = stream.codec_context.codec.canonical_name in reader.SEEK_EXACT_CODECS
            seek_to: float | None = seek_s if exact and seek_s > first_s else None
            _seek(container, stream, math.floor(Fraction(seek_s) / base))
            found, last = _packets_between(container, stream, start_pts, end_pts)
            if not found:
                raise Unreadable(f"no frame from {start_s:g} s to {end_s:g} s; the video ends at {info.end_s:g} s")
            _seek(container, stream, found[0])
            frame = next(container.decode(stream), None)  # the keyframe: none between it and the part has another size
            if frame is None:
                raise Unreadable(f"no frame can be decoded from {start_s:g} s to {end_s:g} s")
            width, height = displayed_size(frame, stream)
    except (OSError, av.FFmpegError) as error:
        raise Unreadable(f"{path.name}: {getattr(error, 'strerror', None) or error}") from error
    expected = len(found)
    missing_s = float((end_pts - last) * base) - (1 / info.fps if info.fps else 0.0)
    if missing_s > 0.1 * float(end - start) and missing_s * info.fps > 0.5:
        expected += math.ceil(missing_s * info.fps - 0.1)
    return Part(
        start_s=start_s,
        end_s=end_s,
        start_pts=start_pts,
        end_pts=end_pts,
        seek_s=seek_to,
        displayed_width=width,
        displayed_height=height,
        width=frame.width,
        height=frame.height,
        num_packets=len(found),
        expected_frames=expected,
    )


def _packets_between(
    container: av.container.InputContainer, stream: av.VideoStream, start_pts: int, end_pts: int
) -> tuple[list[int], int]:
    """Times of the packets that are shown in between, sorted, and ``end_pts`` or the last time where the file ends."""
    found: list[int] = []
    last = start_pts
    beyond = 0
    for packet in container.demux(stream):
        if packet.size == 0 or packet.is_discard:
            continue
        if packet.pts is None:
            raise Refused("its packets carry no times, so nothing can be cut from it; remux it to MP4 first")
        if packet.pts >= end_pts:
            beyond += 1
            last = end_pts
        elif packet.pts >= start_pts:
            found.append(packet.pts)
        if beyond > _REORDERED:
            break
    found.sort()
    return found, max([last, *found[-1:]])


def _seek(container: av.container.InputContainer, stream: av.VideoStream, pts: int) -> None:
    """Go to the keyframe before ``pts``; to the start where the file cannot seek or has none."""
    try:
        container.seek(max(pts, stream.start_time or 0), stream=stream, backward=True, any_frame=False)
    except (OSError, av.FFmpegError):
        container.seek(0)


def displayed_size(frame: av.VideoFrame, stream: av.VideoStream) -> tuple[Fraction, Fraction]:
    sar = stream.sample_aspect_ratio or Fraction(1)
    width, height = Fraction(frame.width) * sar, Fraction(frame.height)
    return (height, width) if round(frame.rotation / 90) % 2 else (width, height)


def frame_rate(stream: av.VideoStream, ends: tuple[av.VideoFrame, av.VideoFrame], frames: int) -> float:
    """Frames a second; Matroska and FLV may claim their clock (1000), then the spacing of the frames counts.

    ``ends``: the first and the last of ``frames`` frames.
    """
    claimed = float(stream.average_rate or 0)
    first, last = (frame.pts for frame in ends)
    if 0 < claimed <= reader.HIGHEST_BELIEVED_FPS or first is None or last is None or last == first:
        return claimed
    return (frames - 1) / float((last - first) * (stream.time_base or Fraction(1)))


def _zero_s(container: av.container.InputContainer) -> Fraction:
    """What a cut's times count from, on the file's clock."""
    return Fraction(container.start_time or 0, av.time_base) if container.format.flags & _FREE_CLOCK else Fraction(0)


def _claimed_duration_s(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """The video stream's own length if the container has it; the container's may be that of a longer sound track."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    tag = stream.metadata.get("DURATION")  # Matroska: "00:00:10.381000000"
    if tag:
        hours, minutes, seconds = tag.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return float(container.duration or 0) / av.time_base
