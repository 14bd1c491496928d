"""What a source file is, as far as encoding it needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from . import reader
from .errors import Refused, Unreadable

HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # ITU-T H.273, table 3


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaInfo:
    """One source. ``displayed_*`` have rotation and pixel aspect ratio applied and need not be whole numbers.

    ``expected_frames`` is what the file promises: ``num_packets``, the packets that are shown, or more, when its header
    claims a longer time than they cover (a file cut off in the middle).
    """

    displayed_width: Fraction
    displayed_height: Fraction
    fps: float
    num_packets: int
    expected_frames: int
    duration_s: float


def media_info(path: Path) -> MediaInfo:
    """Open ``path``, decode one frame, walk the packets. Raises ``Unreadable`` or ``Refused`` (HDR)."""
    if path.stat().st_size == 0:
        raise Unreadable(f"{path.name}: the file is empty")
    index = reader.packet_index(path)
    try:
        with av.open(str(path)) as container:
            stream = reader.video_stream(container, path)
            stream.codec_context.thread_count = 1
            frame = next(container.decode(stream), None)
            if frame is None:
                raise Unreadable(f"{path.name}: no frame can be decoded")
            if stream.codec_context.color_trc in HDR_TRANSFERS:
                raise Refused(f"HDR ({HDR_TRANSFERS[stream.codec_context.color_trc]}): tone mapping is not done")
            sar = stream.sample_aspect_ratio or Fraction(1)
            width, height = Fraction(frame.width) * sar, Fraction(frame.height)
            if round(frame.rotation / 90) % 2:
                width, height = height, width
            base = stream.time_base or Fraction(1)
            span_s = float((index.pts[-1] - index.pts[0]) * base) if index.pts else 0.0
            claimed_s = _claimed_duration_s(container, stream)
    except (OSError, av.FFmpegError) as error:
        raise Unreadable(f"{path.name}: {getattr(error, 'strerror', None) or error}") from error
    packets = len(index.pts)
    fps = (packets - 1) / span_s if packets > 1 and span_s > 0 else float(stream.average_rate or 0)
    covered_s = span_s + (1 / fps if fps else 0)
    expected = packets
    if fps and claimed_s > covered_s * 1.1 and claimed_s > covered_s + 0.5:
        expected = max(packets, round(claimed_s * fps))
    return MediaInfo(
        displayed_width=width,
        displayed_height=height,
        fps=fps,
        num_packets=packets,
        expected_frames=expected,
        duration_s=max(covered_s, claimed_s),
    )


def _claimed_duration_s(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """The video stream's own length if the container has it; the container's may be that of a longer sound track."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    tag = stream.metadata.get("DURATION")  # Matroska: "00:00:10.381000000"
    if tag:
        hours, minutes, seconds = tag.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return float(container.duration or 0) / av.time_base
