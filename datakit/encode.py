"""One decode of a source, every variant of it written, each checked by decoding it before it gets its name.

A source is a video file or a folder of JPEG files, and so is what is made of it.

The bytes depend on the source and the variant, not on the machine: one x264 thread, choices that do not depend on the
processor, bit-exact scalers, no date or version in the container (measured: README, "same bytes").
A finished file carries, in its comment tag, the hash of its source and of its encoder settings; so whatever happens to
the journal, a file under its final name says what it is. Of a folder the first file does.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import ffmpeg
import imageio_ffmpeg
import numpy as np
from av.video.frame import supported_np_pix_fmts

from . import folders
from .catalog import Variant
from .errors import Retryable, ToolMissing, Unreadable
from .probe import Checked as Checked
from .probe import Part, displayed_size, frame_rate
from .reader import video_stream

LARGEST_SIDE_PX = 16384  # x264 takes no more
SECONDS_PER_SOURCE = 4 * 3600  # a decoder that hangs must not hold a worker for ever
# Information, because ffmpeg says no louder that the picture changes its size; ``_plain`` keeps what is an error.
_QUIETLY = ("-hide_banner", "-nostdin", "-nostats", "-loglevel", "level+info", "-filter_complex_threads", "1", "-y")
# Said at error level of many sound files: references that a cut or an old encoder left dangling, clocks that jump.
_HARMLESS = re.compile(r"mmco: unref short failure|co located POCs unavailable|non[- ]monoton|out of order")
_IS_ERROR = re.compile(r"\[(error|fatal|panic)\] ?")
# What ffmpeg says when zimg is given a picture that it cannot take: an odd size, a palette, RGB.
_NOT_FOR_ZIMG = re.compile(r"zscale_\d+ @ |zscale_\d+' do not have a common format")
_NEW_SIZE = re.compile(r"Reconfiguring filter graph because video parameters changed to .*?\b(\d+)x(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One encode: where its file waits, what is in it, and what ffmpeg said while decoding the source.

    ``new_sizes``: what the stored picture changed to on the way, (width, height).
    """

    part: Path
    checked: Checked
    complaints: str
    new_sizes: tuple[tuple[int, int], ...] = ()


@cache
def ffmpeg_program() -> str:
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise ToolMissing("ffmpeg is not there; type: pip install imageio-ffmpeg") from error


def check_tools() -> None:
    """Raise ``ToolMissing`` when ffmpeg is not there or cannot scale as the variants ask: it would give other bytes."""
    program = ffmpeg_program()
    if "zscale" not in subprocess.run([program, "-hide_banner", "-filters"], capture_output=True, text=True).stdout:
        raise ToolMissing(
            f"{program} was built without zimg (its filter zscale); type: pip install -U imageio-ffmpeg; "
            "unset IMAGEIO_FFMPEG_EXE"
        )


@cache
def encoder_name() -> str:
    """Program and version, as the manifest records it."""
    first = subprocess.run(
        [ffmpeg_program(), "-version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]
    return "libx264 of " + " ".join(first.split()[:3])


def tag_for(source_sha256: str, encode_key: str, part: Part | None = None) -> str:
    return f"actionkit source={source_sha256} encode={encode_key}{f' cut={part.name}' if part else ''}"


def encode(
    source: Path,
    jobs: Sequence[tuple[Variant, tuple[int, int], str]],
    work: Path,
    part: Part | None = None,
    *,
    fps: float = 0.0,
) -> list[Encoded]:
    """Write one file, or one folder of JPEGs, into ``work`` for every (variant, (width, height), tag): one ffmpeg, one
    decode.

    ``part``: only these frames of the source; ``fps`` of a source that is a folder. Raises ``Unreadable`` when ffmpeg
    cannot make a picture of the source, ``Retryable`` when the machine is at fault (disk full, killed, too slow). The
    files are decoded and counted here, and have no final name yet.
    """
    if source.is_dir():
        linked = folders.numbered_links(source, work)
        try:
            return _encode(linked, jobs, work, None, fps)
        finally:
            discard([linked])
    encoded = _encode(source, jobs, work, part)
    if part is not None and part.seek_s is not None and encoded[0].checked.frames != part.num_packets:
        # The seek landed elsewhere, or the part is damaged: what is right is what a decode from the start gives.
        discard([one.part for one in encoded])
        encoded = _encode(source, jobs, work, replace(part, seek_s=None))
    return encoded


def _encode(
    source: Path, jobs: Sequence[tuple[Variant, tuple[int, int], str]], work: Path, part: Part | None, fps: float = 0.0
) -> list[Encoded]:
    parts = [work / f"{uuid.uuid4().hex}.part" for _ in jobs]
    for path, (variant, _, _) in zip(parts, jobs, strict=True):
        if variant.container == "frames":
            path.mkdir()
    try:
        done = _run(_command(source, jobs, parts, part, fps), work)
        if _NOT_FOR_ZIMG.search(done.stderr) and done.returncode not in (0, 255):
            done = _run(_command(source, jobs, parts, part, fps, zimg=False), work)
        complaints = _plain(done.stderr)
        # Killed, or asked to stop (Ctrl-C, kill), which ends in 255 without a word at this level.
        stopped = done.returncode < 0 or done.returncode == 255
        if stopped or "No space left on device" in done.stderr or "No such filter" in done.stderr:
            raise Retryable(complaints or f"ffmpeg was stopped, code {done.returncode}")
        if done.returncode != 0:
            raise Unreadable(complaints or f"ffmpeg ended with code {done.returncode}")
        new_sizes = tuple((int(width), int(height)) for width, height in _NEW_SIZE.findall(done.stderr))
        encoded = []
        for path, (variant, size, tag) in zip(parts, jobs, strict=True):
            if variant.container == "frames":
                folders.write_tag(path, tag)
            checked = check(path)
            if (checked.width, checked.height) != size or checked.tag != tag:
                raise Retryable(f"asked for {size[0]}x{size[1]}, got {checked.width}x{checked.height}")
            encoded.append(Encoded(part=path, checked=checked, complaints=complaints, new_sizes=new_sizes))
        if complaints and part is not None:
            real = complaints_of_part(source, part)
            encoded = [replace(one, complaints=real) for one in encoded]
        return encoded
    except BaseException:
        discard(parts)
        raise


def complaints(source: Path, part: Part | None = None) -> str:
    """What ffmpeg says when it decodes ``source`` and throws the pictures away: empty for a sound file."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        readable = folders.numbered_links(source, work) if source.is_dir() else source
        picture = _cut(_picture(readable, part, fps=25), part)
        graph = ffmpeg.output(picture, "-", f="null", fps_mode="passthrough").global_args(*_QUIETLY)
        said = _plain(_run([str(word) for word in graph.compile(cmd=ffmpeg_program())], work).stderr)
    return complaints_of_part(source, part) if said and part is not None else said


def complaints_of_part(source: Path, part: Part) -> str:
    """What the decoder says of the frames of ``part``: not of pictures before the keyframe that a seek lands on, which
    refer to pictures that were never read, nor of damage elsewhere in the source."""
    said: list[str] = []
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.open(str(source), metadata_errors="replace") as container:
            stream = video_stream(container, source)
            stream.codec_context.thread_count = 1
            if part.seek_s is not None:
                container.seek(round(part.seek_s * av.time_base), backward=True)
            key_pts = None
            for packet in container.demux(stream):
                if packet.size and key_pts is None and packet.is_keyframe:
                    key_pts = packet.pts
                stamp = packet.pts if packet.pts is not None else part.end_pts
                with av.logging.Capture() as logs:
                    try:
                        frames = packet.decode()
                    except av.FFmpegError as error:
                        logs.append((av.logging.ERROR, stream.codec_context.name, str(error.strerror)))
                        frames = []
                if key_pts is not None and stamp >= key_pts:
                    said += [f"[{name}] {text.strip()}" for _, name, text in logs]
                if any(frame.pts is not None and frame.pts >= part.end_pts for frame in frames):
                    break
    except (OSError, av.FFmpegError) as error:
        said.append(str(getattr(error, "strerror", None) or error))
    finally:
        av.logging.set_level(level)
    return _plain("\n".join(f"[error] {text}" for text in said))


def _run(command: Sequence[str], work: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SECONDS_PER_SOURCE, cwd=work
        )
    except subprocess.TimeoutExpired:
        raise Retryable(f"ffmpeg took more than {SECONDS_PER_SOURCE} s") from None


def discard(parts: Sequence[Path]) -> None:
    for part in parts:
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def check(path: Path) -> Checked:
    """Decode ``path`` to the end and say what is in it. Raises ``Unreadable``: then it is no finished file."""
    checked, broken, _ = examine(path)
    if broken:
        raise Unreadable(broken)
    return checked


def examine(path: Path) -> tuple[Checked, str, str]:
    """What decoding ``path`` once finds, where decoding broke off ("": at the end), what the decoder complained of.

    Frames are counted as ``reader`` gives them: up to the first that cannot be decoded. Sizes are those that a player
    shows. Raises ``Unreadable`` when there is no frame at all.
    """
    if path.is_dir():
        return folders.check(path), "", ""
    content = hashlib.sha256()
    frames, keyframes, broken = 0, [], ""
    first = last = None
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as logs, av.open(str(path), metadata_errors="replace") as container:
            stream = video_stream(container, path)
            stream.codec_context.thread_count = 1
            try:
                for frame in container.decode(stream):
                    first = first or frame
                    last = frame
                    if frame.key_frame:
                        keyframes.append(frames)
                    for samples in samples_of(frame):
                        content.update(samples)
                    frames += 1
            except (OSError, av.FFmpegError) as error:
                broken = f"decoding broke off after {frames} frames: {getattr(error, 'strerror', None) or error}"
            if first is None or last is None:
                raise Unreadable(broken or "no frame in it")
            width, height = displayed_size(first, stream)
            fps = frame_rate(stream, (first, last), frames)
            duration_s = float((stream.duration or 0) * (stream.time_base or Fraction(0))) or (
                frames / fps if fps else 0
            )
            tag = container.metadata.get("comment", "")
    except (OSError, av.FFmpegError) as error:
        raise Unreadable(str(getattr(error, "strerror", None) or error)) from error
    finally:
        av.logging.set_level(level)
    checked = Checked(
        frames=frames,
        width=round(width),
        height=round(height),
        fps=fps,
        duration_s=duration_s,
        keyframes=tuple(keyframes),
        bytes=path.stat().st_size,
        sha256=sha256_file(path),
        content_sha256=content.hexdigest(),
        tag=tag,
    )
    return checked, broken, _plain("\n".join(f"[error] [{name}] {text.strip()}" for _, name, text in logs))


def samples_of(frame: av.VideoFrame) -> Iterator[memoryview | bytes]:
    """The samples of a frame plane by plane, without the padding at the end of lines: what ``to_ndarray`` copies, in
    the same order, for a third of its time."""
    bytes_a_sample = (frame.format.components[0].bits + 7) // 8
    if len(frame.planes) != len(frame.format.components):
        # Packed, half-packed, palettes: lines do not hold one sample a column.
        plain = frame if frame.format.name in supported_np_pix_fmts - {"pal8"} else frame.reformat(format="rgba")
        yield plain.to_ndarray().tobytes()
        return
    for plane in frame.planes:
        samples, step, width = memoryview(plane), plane.line_size, plane.width * bytes_a_sample
        if step == width:
            yield samples
        else:
            yield np.frombuffer(samples, np.uint8).reshape(-1, step)[: plane.height, :width].tobytes()


def read_tag(path: Path) -> str:
    """The comment tag of a file or folder, without decoding it; empty when there is none."""
    if path.is_dir():
        return folders.read_tag(path)
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            return str(container.metadata.get("comment", ""))
    except (OSError, av.FFmpegError):
        return ""


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _command(
    source: Path,
    jobs: Sequence[tuple[Variant, tuple[int, int], str]],
    parts: Sequence[Path],
    part: Part | None = None,
    fps: float = 0.0,
    *,
    zimg: bool = True,
) -> list[str]:
    """``zimg``: false scales with swscale even where the variant asks for zimg."""
    video = _cut(_picture(source, part, fps), part)
    branches = video.split() if len(jobs) > 1 else [video]
    outputs = []
    for number, ((variant, (width, height), tag), path) in enumerate(zip(jobs, parts, strict=True)):
        branch = branches[number] if len(jobs) > 1 else video
        scale = _zimg if zimg and variant.scaler_library == "zimg" else _swscale
        picture = scale(branch, variant, width, height).filter("setsar", "1").filter("format", variant.pixel_format)
        if variant.container == "frames":
            # Below ``work``, where ffmpeg runs: a % in the path of the data root is no pattern.
            outputs.append(ffmpeg.output(picture, f"{path.name}/{folders.PATTERN}", **_jpeg_options(variant)))
        else:
            outputs.append(ffmpeg.output(picture, f"file:{path}", **_mp4_options(variant, tag)))
    graph = ffmpeg.merge_outputs(*outputs) if len(outputs) > 1 else outputs[0]
    # Nothing is converted behind our back: what zimg cannot take is for swscale, bit-exact.
    strictly = ["-noauto_conversion_filters"] if zimg else []
    return [str(word) for word in graph.global_args(*_QUIETLY, *strictly).compile(cmd=ffmpeg_program())]


def _zimg(picture: Any, variant: Variant, width: int, height: int) -> Any:
    """swscale's own kernel and place of the chroma samples, for a third of its time."""
    kernel = {"filter": variant.scaler, **({"param_a": 0, "param_b": 0.6} if variant.scaler == "bicubic" else {})}
    place = {"chromalin": "center", "chromal": "center"}
    scaled = picture.filter("zscale", w=width, h=height, range=variant.colour_range, **kernel, **place)
    return scaled.filter("setparams", chroma_location="unspecified")


def _swscale(picture: Any, variant: Variant, width: int, height: int) -> Any:
    matrix = {} if variant.colour_matrix == "keep" else {"out_color_matrix": variant.colour_matrix}
    flags = "+".join([variant.scaler, *variant.scaler_flags])
    colours = {"out_range": {"limited": "tv", "full": "pc"}[variant.colour_range], **matrix}
    return picture.filter("scale", w=width, h=height, flags=flags, **colours)


def _mp4_options(variant: Variant, tag: str) -> dict[str, Any]:
    x264 = [f"threads={variant.threads}", *variant.x264, *(["cpu-independent=1"] if variant.cpu_independent else [])]
    return {
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


def _jpeg_options(variant: Variant) -> dict[str, Any]:
    return {
        "c:v": variant.codec,
        "q:v": variant.jpeg_qscale,
        "dct": "int",  # in C on every processor
        "huffman": "optimal",
        "flags:v": "+bitexact",
        "threads": 1,
        "fps_mode": variant.frame_timing,
        "enc_time_base": "filter",
        "f": "image2",
        "start_number": 1,
    }


def _picture(source: Path, part: Part | None, fps: float) -> Any:
    """The first video stream that is no cover picture, as ``reader.video_stream`` picks it. A folder is one of ours."""
    if source.is_dir():
        numbered = {"f": "image2", "framerate": fps, "start_number": 1}
        return ffmpeg.input(f"{source.name}/{folders.PATTERN}", threads=1, flags="+bitexact", **numbered)["V"]
    # Times stay the file's own, so that the cut can name its first tick; the seek only saves decoding what is before.
    own_times = {"copyts": None} if part else {}
    seek = {"ss": f"{part.seek_s:.6f}", "seek_timestamp": 1, "noaccurate_seek": None} if part and part.seek_s else {}
    # The path goes in as file:..., so that a name such as "-a:b.mp4" is a name and not an option or a protocol.
    return ffmpeg.input(f"file:{source.absolute()}", threads=1, flags="+bitexact", **own_times, **seek)["V"]


def _cut(picture: Any, part: Part | None) -> Any:
    if part is None:
        return picture
    ticks = picture.filter("trim", start_pts=part.start_pts, end_pts=part.end_pts)
    return ticks.filter("setpts", "PTS-STARTPTS")


def _plain(stderr: str) -> str:
    """ffmpeg's complaints without addresses, repeats and the run's own paths: the same text on every run."""
    lines: list[str] = []
    for line in stderr.splitlines():
        if not _IS_ERROR.search(line):
            continue
        text = _IS_ERROR.sub("", re.sub(r" @ 0x[0-9a-f]+", "", line)).strip()
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
