"""One decode of a source, every variant of it written, each checked by decoding it before it gets its name.

The bytes depend on the source and the variant, not on the machine: one x264 thread, choices that do not depend on the
processor, a bit-exact scaler, no date or version in the container (measured: README, "same bytes").
A finished file carries, in its comment tag, the hash of its source and of its encoder settings; so whatever happens to
the journal, a file under its final name says what it is.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import ffmpeg
import imageio_ffmpeg
import numpy as np

from .catalog import Variant
from .errors import Retryable, ToolMissing, Unreadable
from .probe import MediaInfo

LARGEST_SIDE_PX = 16384  # x264 takes no more
SECONDS_PER_SOURCE = 4 * 3600  # a decoder that hangs must not hold a worker for ever
_QUIETLY = ("-hide_banner", "-nostdin", "-loglevel", "level+error", "-filter_complex_threads", "1", "-y")
# Said at error level of many sound files: references that a cut or an old encoder left dangling, clocks that jump.
_HARMLESS = re.compile(r"mmco: unref short failure|co located POCs unavailable|non[- ]monoton|out of order")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One encode: where its file waits, what is in it, and what ffmpeg complained of while decoding the source."""

    part: Path
    checked: Checked
    complaints: str


@cache
def ffmpeg_program() -> str:
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise ToolMissing("ffmpeg is not there; type: pip install imageio-ffmpeg") from error


@cache
def encoder_name() -> str:
    """Program and version, as the manifest records it."""
    first = subprocess.run(
        [ffmpeg_program(), "-version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]
    return "libx264 of " + " ".join(first.split()[:3])


def tag_for(source_sha256: str, encode_key: str) -> str:
    return f"actionkit source={source_sha256} encode={encode_key}"


def sizes(info: MediaInfo, variants: Sequence[Variant]) -> dict[str, tuple[int, int]]:
    return {variant.name: variant.size(info.displayed_width, info.displayed_height) for variant in variants}


def encode(source: Path, jobs: Sequence[tuple[Variant, tuple[int, int], str]], work: Path) -> list[Encoded]:
    """Write one file into ``work`` for every (variant, (width, height), tag): one ffmpeg, one decode.

    Raises ``Unreadable`` when ffmpeg cannot make a picture of the source, ``Retryable`` when the machine is at fault
    (disk full, killed, too slow). The files are decoded and counted here, and have no final name yet.
    """
    parts = [work / f"{uuid.uuid4().hex}.part" for _ in jobs]
    command = _command(source, jobs, parts)
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS_PER_SOURCE)
        complaints = _plain(done.stderr)
        # Killed, or asked to stop (Ctrl-C, kill), which ends in 255 without a word at this level.
        stopped = done.returncode < 0 or done.returncode == 255
        if stopped or "No space left on device" in done.stderr:
            raise Retryable(complaints or f"ffmpeg was stopped, code {done.returncode}")
        if done.returncode != 0:
            raise Unreadable(complaints or f"ffmpeg ended with code {done.returncode}")
        encoded = []
        for part, (_, size, tag) in zip(parts, jobs, strict=True):
            checked = check(part)
            if (checked.width, checked.height) != size or checked.tag != tag:
                raise Retryable(f"asked for {size[0]}x{size[1]}, got {checked.width}x{checked.height}")
            encoded.append(Encoded(part=part, checked=checked, complaints=complaints))
        return encoded
    except subprocess.TimeoutExpired:
        discard(parts)
        raise Retryable(f"ffmpeg took more than {SECONDS_PER_SOURCE} s") from None
    except BaseException:
        discard(parts)
        raise


def complaints(source: Path) -> str:
    """What ffmpeg says when it decodes ``source`` and throws the pictures away: empty for a sound file."""
    graph = ffmpeg.output(_picture(source), "-", f="null", fps_mode="passthrough").global_args(*_QUIETLY)
    done = subprocess.run(
        graph.compile(cmd=ffmpeg_program()),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS_PER_SOURCE,
    )
    return _plain(done.stderr)


def discard(parts: Sequence[Path]) -> None:
    for part in parts:
        part.unlink(missing_ok=True)


def check(path: Path) -> Checked:
    """Decode ``path`` to the end and say what is in it. Raises ``Unreadable``: then it is no finished file."""
    content = hashlib.sha256()
    frames = 0
    keyframes = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if frame.key_frame:
                    keyframes.append(frames)
                for samples in samples_of(frame):
                    content.update(samples)
                frames += 1
            width, height = stream.width, stream.height
            fps = float(stream.average_rate or 0)
            duration_s = float((stream.duration or 0) * (stream.time_base or Fraction(0)))
            tag = container.metadata.get("comment", "")
    except (OSError, av.FFmpegError, IndexError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Unreadable(f"decoding broke off after {frames} frames: {reason}") from error
    if frames == 0:
        raise Unreadable("no frame in it")
    return Checked(
        frames=frames,
        width=width,
        height=height,
        fps=fps,
        duration_s=duration_s,
        keyframes=tuple(keyframes),
        bytes=path.stat().st_size,
        sha256=sha256_file(path),
        content_sha256=content.hexdigest(),
        tag=tag,
    )


def samples_of(frame: av.VideoFrame) -> Iterator[memoryview | bytes]:
    """The samples of a frame plane by plane, without the padding at the end of lines: what ``to_ndarray`` copies, in
    the same order, for a third of its time."""
    bytes_a_sample = (frame.format.components[0].bits + 7) // 8
    if len(frame.planes) != len(frame.format.components):
        yield frame.to_ndarray().tobytes()  # packed or half-packed: lines do not hold one sample a column
        return
    for plane in frame.planes:
        samples, step, width = memoryview(plane), plane.line_size, plane.width * bytes_a_sample
        if step == width:
            yield samples
        else:
            yield np.frombuffer(samples, np.uint8).reshape(-1, step)[: plane.height, :width].tobytes()


def read_tag(path: Path) -> str:
    """The comment tag of a file, without decoding it; empty when there is none."""
    try:
        with av.open(str(path)) as container:
            return str(container.metadata.get("comment", ""))
    except (OSError, av.FFmpegError):
        return ""


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _command(source: Path, jobs: Sequence[tuple[Variant, tuple[int, int], str]], parts: Sequence[Path]) -> list[str]:
    video = _picture(source)
    branches = video.split() if len(jobs) > 1 else [video]
    outputs = []
    for number, ((variant, (width, height), tag), part) in enumerate(zip(jobs, parts, strict=True)):
        branch = branches[number] if len(jobs) > 1 else video
        picture = branch.filter(
            "scale",
            w=width,
            h=height,
            flags="+".join([variant.scaler, *variant.scaler_flags]),
            out_range={"limited": "tv"}[variant.colour_range],
        )
        picture = picture.filter("setsar", "1").filter("format", variant.pixel_format)
        x264 = [
            f"threads={variant.threads}",
            *variant.x264,
            *(["cpu-independent=1"] if variant.cpu_independent else []),
        ]
        options = {
            "c:v": variant.codec,
            "preset": variant.preset,
            "crf": variant.crf,
            "g": variant.gop_frames,
            "flags:v": "+cgop+bitexact",
            "threads": variant.threads,
            "x264-params": ":".join(x264),
            "fps_mode": variant.frame_timing,
            "enc_time_base": "filter",  # the source's own clock: two frames never share a time stamp after rounding
            "map_metadata": -1,
            "metadata": f"comment={tag}",
            "fflags": "+bitexact",
            "movflags": "+faststart",
            "f": variant.container,
        }
        outputs.append(ffmpeg.output(picture, f"file:{part}", **options))
    graph = ffmpeg.merge_outputs(*outputs) if len(outputs) > 1 else outputs[0]
    return [str(word) for word in graph.global_args(*_QUIETLY).compile(cmd=ffmpeg_program())]


def _picture(source: Path) -> Any:
    """The first video stream that is no cover picture, as ``reader.video_stream`` picks it."""
    # The path goes in as file:..., so that a name such as "-a:b.mp4" is a name and not an option or a protocol.
    return ffmpeg.input(f"file:{source}", threads=1, flags="+bitexact")["V"]


def _plain(stderr: str) -> str:
    """ffmpeg's complaints without addresses, repeats and the run's own paths: the same text on every run."""
    lines = []
    for line in stderr.splitlines():
        text = re.sub(r" @ 0x[0-9a-f]+", "", line).replace("[error] ", "").replace("[fatal] ", "").strip()
        text = re.sub(r"file:\S*", "the file", text)
        if text and text not in lines and not _HARMLESS.search(text) and not _of_sound(text):
            lines.append(text)
    return "; ".join(lines[:4]) + (f"; and {len(lines) - 4} more" if len(lines) > 4 else "")


def _of_sound(complaint: str) -> bool:
    """Whether a decoder of sound or subtitles said it: ffmpeg tries them all when it opens a file, we drop them."""
    said_by = re.match(r"\[(\w+)\]", complaint)
    try:
        return said_by is not None and av.Codec(said_by[1]).type != "video"
    except ValueError:  # no decoder of that name: the container said it
        return False
