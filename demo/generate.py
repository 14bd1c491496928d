"""Make a small video data set whose classes differ in motion and in nothing else.

    python -m demo.generate --out demo-data/raw [--seed 0] [--sources 25] [--jobs 2]

A thing's state is a point on a torus: across, down, logarithm of the size, angle. It starts anywhere, uniformly, and
moves evenly along the one axis of its class, forwards or backwards, with a small drift along the others:

    class        swipe-right swipe-left  swipe-down swipe-up  grow shrink  turn-right turn-left
    axis         across +    across -    down +     down -    size + -     angle +    angle -

On a torus an even motion keeps a uniform distribution uniform. So at every instant the pictures of all classes have
the same distribution, no single frame tells the class, and a clip played backwards is one of the opposite class.
The price: one that has grown out starts small again. Across and down the plane is filled with copies, a period apart,
so that wherever a crop is taken something moves in it.

The files are as mixed as a collection from the wild: sizes, frame rates, codecs, rotation tags, pixels that are not
square, and a few that are broken or absent. ``labels.csv`` (``path,label,split``) lists them all alike.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from datakit import console, files
from datakit.errors import ToolMissing, UsageError

Packed = npt.NDArray[np.uint32]  # RGBA, one little-endian word a pixel
Floats = npt.NDArray[np.float64]
Fault = Literal["", "cut", "cut-index", "corrupted", "empty", "text", "sound-only", "1-frame", "3-frames", "missing"]

DRAWING = 6  # raise it when the same seed would give other pictures: existing folders are then made anew
MARKER = "generated.json"

# ---- classes: axis of the state (across, down, log size, angle) and sign ----
MOTIONS: dict[str, tuple[int, int]] = {
    "grow": (2, +1),
    "shrink": (2, -1),
    "swipe-down": (1, +1),
    "swipe-left": (0, -1),
    "swipe-right": (0, +1),
    "swipe-up": (1, -1),
    "turn-left": (3, -1),  # angles grow clockwise, since rows count downwards
    "turn-right": (3, +1),
}

# ---- scene: lengths in short sides, sizes as log radius, angles in radians, per second ----
NUM_THINGS = 2
SPEED_PER_S = np.array([0.45, 0.45, 0.55, 2.0])
SPEED_SPREAD = (0.7, 1.4)  # a thing's own speed is SPEED_PER_S times a number from here
DRIFT = 0.1  # and along the axes that are not its class's at most this share of SPEED_PER_S
RADIUS = (0.12, 0.36)
PERIOD = np.array([0.9, 0.9, math.log(RADIUS[1] / RADIUS[0]), math.tau])  # size of the torus along each axis
SHAKE = 0.012  # standard deviation of the camera's shaking, each way
SHAKE_LIMIT = 0.04
TEXTURE_PX = 256
TEXTURE_REACH = 1.42  # from the middle, in radii of the shape: a turned box of that radius stays inside (sqrt 2)
DURATION_S = (1.5, 2.5)
FRAME_JITTER = 0.4  # variable frame rate: frames come this share of a frame early or late


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """How a clip is stored. ``width``, ``height`` are what a player shows, after rotation and pixel aspect ratio."""

    width: int
    height: int
    fps: Fraction
    codec: str
    suffix: str
    rotation_deg: Literal[0, 90, 180, 270] = 0  # a player turns the stored picture counter-clockwise by this
    sar: Fraction = Fraction(1)
    even: bool = True  # False: variable frame rate
    sound: bool = False


RECORDINGS = (
    Recording(width=320, height=240, fps=Fraction(25), codec="h264", suffix=".mp4"),
    Recording(width=426, height=240, fps=Fraction(30000, 1001), codec="h264", suffix=".mp4", sound=True),
    Recording(width=320, height=240, fps=Fraction(25, 2), codec="mjpeg", suffix=".avi"),
    Recording(width=480, height=640, fps=Fraction(15), codec="h264", suffix=".mp4", rotation_deg=90),
    Recording(width=427, height=240, fps=Fraction(15), codec="h264", suffix=".mp4", sar=Fraction(4, 3)),
    Recording(width=340, height=256, fps=Fraction(25, 2), codec="mpeg4", suffix=".avi"),
    Recording(width=320, height=180, fps=Fraction(15), codec="vp9", suffix=".webm"),
    Recording(width=320, height=240, fps=Fraction(24), codec="h264", suffix=".mp4", even=False),
    Recording(width=640, height=360, fps=Fraction(10), codec="h264", suffix=".mkv"),
    Recording(width=240, height=426, fps=Fraction(15), codec="hevc", suffix=".mp4", rotation_deg=270),
    Recording(width=176, height=144, fps=Fraction(15), codec="mpeg4", suffix=".avi"),
    Recording(width=384, height=288, fps=Fraction(25), codec="mpeg4", suffix=".avi", sar=Fraction(12, 11)),
    Recording(width=320, height=240, fps=Fraction(15), codec="h264", suffix=".mp4", rotation_deg=180, sound=True),
    Recording(width=426, height=240, fps=Fraction(15), codec="vp9", suffix=".webm", even=False),
    Recording(width=640, height=360, fps=Fraction(25, 2), codec="hevc", suffix=".mp4"),
    Recording(width=270, height=480, fps=Fraction(30), codec="h264", suffix=".mkv"),
    Recording(width=320, height=240, fps=Fraction(30000, 1001), codec="h264", suffix=".mkv", sar=Fraction(10, 11)),
)

ENCODERS = {
    "h264": ("-c:v", "libx264", "-preset", "veryfast", "-crf", "21", "-pix_fmt", "yuv420p"),
    "hevc": ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error:pools=none:frame-threads=1",
             "-crf", "22", "-pix_fmt", "yuv420p", "-tag:v", "hvc1"),
    "vp9": ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-crf", "30", "-b:v", "0",
            "-pix_fmt", "yuv420p"),
    "mpeg4": ("-c:v", "mpeg4", "-q:v", "4", "-pix_fmt", "yuv420p"),
    "mjpeg": ("-c:v", "mjpeg", "-q:v", "5", "-pix_fmt", "yuvj420p"),
}  # fmt: skip
MUXERS = {".mp4": "mp4", ".avi": "avi", ".webm": "webm", ".mkv": "matroska"}

# What a collection from the wild brings along, and the split it is listed in.
FAULTS: tuple[tuple[Fault, str], ...] = (
    ("cut", "train"),
    ("cut-index", "val"),
    ("corrupted", "train"),
    ("empty", "train"),
    ("text", "train"),
    ("sound-only", "val"),
    ("1-frame", "train"),
    ("3-frames", "train"),
    ("missing", "train"),
    ("missing", "val"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One row of ``labels.csv`` and all that its file is made from."""

    path: str
    label: str
    split: str
    recording: Recording
    num_frames: int
    seed: tuple[int, int, int]
    fault: Fault = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """``texture`` uint32 [n, n], RGBA; the shape lies in the unit circle, the square is wider."""

    texture: Packed
    start: Floats
    speed_per_s: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """``background`` uint32 RGBA, larger than the picture by the shaking. ``shake`` [2, n, 3]: weight, rad/s, phase."""

    height: int
    width: int
    background: Packed
    things: tuple[Thing, ...]
    shake: Floats


# ---- what there is to make ----


def plan(seed: int, num_sources: int) -> list[Clip]:
    """All clips, the faulty ones last. Source ``n`` is recorded the same way in every class, 2 of 7 are validation."""
    clips = []
    for class_index, label in enumerate(MOTIONS):
        for source in range(num_sources):
            recording = RECORDINGS[source % len(RECORDINGS)]
            key = (seed, class_index, source)
            duration_s = np.random.default_rng((*key, 1)).uniform(*DURATION_S)
            clips.append(
                Clip(
                    path=f"{label}/{label}_{source:03d}{recording.suffix}",
                    label=label,
                    split="val" if source * 2 % 7 < 2 else "train",
                    recording=recording,
                    num_frames=round(duration_s * recording.fps),
                    seed=key,
                )
            )
    for number, (fault, split) in enumerate(FAULTS):
        class_index = number % len(MOTIONS)
        label = list(MOTIONS)[class_index]
        clips.append(
            Clip(
                path=f"{label}/{label}_{900 + number}.mp4",
                label=label,
                split=split,
                recording=RECORDINGS[0],
                num_frames={"1-frame": 1, "3-frames": 3}.get(fault, 50),
                seed=(seed, class_index, 900 + number),
                fault=fault,
            )
        )
    return clips


# ---- pictures ----


def scene(clip: Clip) -> Scene:
    """Background, things and shaking, all from the clip's seed."""
    rng = np.random.default_rng(clip.seed)
    height, width = clip.recording.height, clip.recording.width
    short_px = min(height, width)
    pad = math.ceil(SHAKE_LIMIT * short_px)
    axis, sign = MOTIONS[clip.label]
    things = []
    for _ in range(NUM_THINGS):
        speed = rng.uniform(-DRIFT, DRIFT, 4) * SPEED_PER_S
        speed[axis] = sign * rng.uniform(*SPEED_SPREAD) * SPEED_PER_S[axis]
        things.append(Thing(texture=_texture(rng), start=rng.uniform(0, 1, 4) * PERIOD, speed_per_s=speed))
    shake = np.stack([rng.normal(0, 1, (2, 4)), rng.uniform(4, 30, (2, 4)), rng.uniform(0, math.tau, (2, 4))], axis=-1)
    return Scene(
        height=height,
        width=width,
        background=_background(rng, height + 2 * pad, width + 2 * pad, short_px),
        things=tuple(things),
        shake=shake,
    )


def render(clip: Clip) -> Packed:
    """The clip as a player shows it: RGBA packed, uint32 [num_frames, height, width]."""
    picture = scene(clip)
    numbers = np.arange(clip.num_frames)
    if not clip.recording.even:
        numbers = numbers + FRAME_JITTER * np.sin(1.7 * numbers)  # as in _timing
    times_s = numbers / float(clip.recording.fps)
    return np.stack([draw(picture, time_s) for time_s in times_s])


def draw(picture: Scene, time_s: float) -> Packed:
    """One frame, RGBA packed: uint32 [height, width]."""
    height, width = picture.height, picture.width
    short_px = min(height, width)
    weight, speed, phase = np.moveaxis(picture.shake, -1, 0)
    waves = (weight * np.sin(speed * time_s + phase)).sum(axis=1) / math.sqrt(weight.shape[1] / 2)
    down, across = np.round(np.clip(SHAKE * waves, -SHAKE_LIMIT, SHAKE_LIMIT) * short_px).astype(int)
    pad = (picture.background.shape[0] - height) // 2
    frame = picture.background[pad - down : pad - down + height, pad - across : pad - across + width].copy()
    for thing in picture.things:
        x, y, size, angle = (thing.start + thing.speed_per_s * time_s) % PERIOD
        radius_px = math.exp(size) * RADIUS[0] * short_px
        for left in np.arange(x - PERIOD[0], width / short_px + RADIUS[1], PERIOD[0]):
            for top in np.arange(y - PERIOD[1], height / short_px + RADIUS[1], PERIOD[1]):
                centre = (left * short_px + across, top * short_px + down)
                _paste(frame, thing.texture, centre, radius_px, angle)
    return frame


def _paste(
    frame: Packed,
    texture: Packed,
    centre: tuple[float, float],
    radius_px: float,
    angle: float,
) -> None:
    """Put a texture, turned clockwise by ``angle``, into ``frame``. ``centre``: (x, y) in pixels, may lie outside."""
    # The pixels whose middles are at most a radius away, across and down.
    left, top = (max(0, math.ceil(c - radius_px - 0.5)) for c in centre)
    right, bottom = (math.floor(c + radius_px - 0.5) + 1 for c in centre)
    right, bottom = min(right, frame.shape[1]), min(bottom, frame.shape[0])
    if left >= right or top >= bottom:
        return
    middle = len(texture) / 2
    scale = middle / TEXTURE_REACH
    across = (np.arange(left, right) + 0.5 - centre[0]) * (scale / radius_px)
    down = (np.arange(top, bottom) + 0.5 - centre[1]) * (scale / radius_px)
    cos, sin = math.cos(angle), math.sin(angle)
    column = ((cos * across)[None, :] + (sin * down)[:, None] + middle).astype(np.intp)
    row = ((-sin * across)[None, :] + (cos * down)[:, None] + middle).astype(np.intp)
    picked = texture[row, column]
    np.copyto(frame[top:bottom, left:right], picked, where=picked != 0)


def _texture(rng: np.random.Generator) -> Packed:
    """A lopsided shape filled with stripes, spots or patches of two colours that differ. 0 where it is transparent."""
    side = np.linspace(-TEXTURE_REACH, TEXTURE_REACH, TEXTURE_PX)
    x, y = side[None, :], side[:, None]
    wave = np.arange(1, 5)
    turn = np.linspace(-math.pi, math.pi, 721)
    outline = 1 + np.cos(np.outer(turn, wave) + rng.uniform(0, math.tau, 4)) @ (rng.uniform(0.1, 0.3, 4) / wave**0.5)
    inside = np.hypot(x, y) < np.interp(np.arctan2(y, x), turn, outline / outline.max())
    tilt, frequency, phase = rng.uniform(0, math.tau), rng.uniform(5, 9), rng.uniform(0, math.tau, 2)
    along, aside = x * math.cos(tilt) + y * math.sin(tilt), y * math.cos(tilt) - x * math.sin(tilt)
    pattern = (
        np.sin(frequency * along + phase[0]),
        np.sin(frequency * along + phase[0]) * np.sin(frequency * aside + phase[1]),
        _noise(rng, TEXTURE_PX, TEXTURE_PX, 6)[..., 0],
    )[rng.integers(3)]
    colours = rng.uniform(0, 256, 3) + np.array([[0.0], [128.0]]) + rng.uniform(-40, 40, (2, 3))
    rgb = np.where(pattern[..., None] > 0, *(colours % 256)) + 15 * _noise(rng, TEXTURE_PX, TEXTURE_PX, 12)
    packed = _pack(rgb)
    packed[~inside] = 0
    return packed


def _background(rng: np.random.Generator, height: int, width: int, short_px: int) -> Packed:
    """Smooth noise, coarse and fine, of the same look at every size."""
    base = rng.uniform(90, 165, 3)
    coarse = _noise(rng, height, width, 3 * height / short_px)
    fine = _noise(rng, height, width, 12 * height / short_px)
    return _pack(base + 15 * coarse + 8 * fine)


def _noise(rng: np.random.Generator, height: int, width: int, cells_down: float) -> Floats:
    """Random values on a grid, smoothly joined: [height, width, 3], about -1.7 to 1.7."""
    down = max(2, round(cells_down) + 1)
    across = max(2, round(cells_down * width / height) + 1)
    grid = rng.uniform(-math.sqrt(3), math.sqrt(3), (down, across, 3))
    rows = np.tensordot(_blend(height, down), grid, axes=1)
    return np.moveaxis(np.tensordot(_blend(width, across), rows, axes=(1, 1)), 0, 1)


def _blend(num_pixels: int, num_cells: int) -> Floats:
    """Weights [num_pixels, num_cells] of a smooth step from each grid value to the next."""
    position = np.linspace(0, num_cells - 1, num_pixels)
    distance = np.clip(np.abs(position[:, None] - np.arange(num_cells)), 0, 1)
    weights: Floats = 1 - distance * distance * (3 - 2 * distance)
    return weights


def _pack(rgb: Floats) -> Packed:
    """Float [h, w, 3] -> opaque RGBA in one little-endian word a pixel."""
    rgba = np.full((*rgb.shape[:2], 4), 255, np.uint8)
    rgba[..., :3] = np.clip(rgb, 0, 255)
    return rgba.view("<u4")[..., 0]


# ---- files ----


def write(clip: Clip, folder: Path) -> str:
    """Make one file of the collection, unless it is there, and return its path in the list."""
    target = folder / clip.path
    if clip.fault == "missing" or target.exists():
        return clip.path
    with files.replacing(target) as part:
        if clip.fault == "empty":
            part.touch()
        elif clip.fault == "text":
            part.write_text("<html><body>404: this video has moved</body></html>\n")
        elif clip.fault == "sound-only":
            _ffmpeg(["-f", "lavfi", "-i", "sine=duration=2", "-c:a", "aac", "-f", "mp4", str(part)], b"")
        else:
            _encode(clip, part)
            part.write_bytes(_damaged(part.read_bytes(), clip.fault))
    return clip.path


def _damaged(content: bytes, fault: Fault) -> bytes:
    """An mp4 cut short, or with a tenth of its middle overwritten."""
    if fault in ("cut", "cut-index"):
        return content[: len(content) // 2]
    if fault == "corrupted":
        middle = len(content) // 2
        return content[:middle] + bytes(len(content) // 10) + content[middle + len(content) // 10 :]
    return content


def _encode(clip: Clip, target: Path) -> None:
    """Draw the clip, turn it against its rotation tag, and have ffmpeg squeeze and store it."""
    how = clip.recording
    stored = np.rot90(render(clip), -how.rotation_deg // 90, axes=(1, 2))
    height, width = stored.shape[1:3]
    squeezed = round(width / how.sar)
    command = ["-f", "rawvideo", "-pix_fmt", "rgb0", "-video_size", f"{width}x{height}", "-framerate", str(how.fps)]
    command += ["-display_rotation", str(how.rotation_deg), "-noautorotate", "-i", "pipe:0"]
    if how.sound:
        command += ["-f", "lavfi", "-i", f"sine=frequency=440:duration={float(clip.num_frames / how.fps):.3f}"]
    filters = [f"scale={squeezed}:{height}", f"setsar={how.sar.numerator}/{how.sar.denominator}"]
    if not how.even:
        filters += ["settb=1/1000", f"setpts=(N+{FRAME_JITTER}*sin(1.7*N))/({how.fps}*TB)"]
        command += ["-fps_mode", "passthrough", "-enc_time_base", "1:1000"]
    command += ["-vf", ",".join(filters), *ENCODERS[how.codec]]
    if clip.fault != "cut-index" and how.suffix == ".mp4":
        command += ["-movflags", "+faststart"]  # without it the index is at the end, and a cut file has none
    _ffmpeg([*command, "-f", MUXERS[how.suffix], str(target)], stored.tobytes())


def _ffmpeg(arguments: list[str], pictures: bytes) -> None:
    import imageio_ffmpeg

    # One thread and no version strings: the same seed gives the same bytes.
    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y"]
    exact = ["-threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-flags:a", "+bitexact"]
    command = program + arguments[:-1] + exact + arguments[-1:]
    done = subprocess.run(command, input=pictures, capture_output=True, check=False)
    if done.returncode:
        raise ToolMissing(f"{arguments[-1]}: ffmpeg could not write it: {done.stderr.decode(errors='replace').strip()}")


def generate(folder: Path, *, seed: int, num_sources: int, num_jobs: int) -> list[Clip]:
    """Fill ``folder`` and return what it was to hold. What an earlier run with the same numbers finished is kept."""
    import joblib

    clips = plan(seed, num_sources)
    marker = folder / MARKER
    made_from = json.dumps({"drawing": DRAWING, "seed": seed, "sources": num_sources}) + "\n"
    if not marker.exists() and folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} holds files that were not generated here; choose another folder: --out DIR")
    if not marker.exists() or marker.read_text() != made_from:
        _remove(folder)
        files.write_text(marker, made_from)
    files.write_text(folder / "labels.csv", _labels(clips))
    todo = [clip for clip in clips if clip.fault != "missing" and not (folder / clip.path).exists()]
    written = joblib.Parallel(n_jobs=num_jobs, return_as="generator_unordered")(
        joblib.delayed(write)(clip, folder) for clip in todo
    )
    for _ in console.progress(written, total=len(todo), what="generate"):
        pass
    return clips


def _remove(folder: Path) -> None:
    """Take away what the list of an earlier run with other numbers names."""
    labels = folder / "labels.csv"
    if labels.exists():
        with labels.open(newline="") as file:
            for row in csv.DictReader(file):
                (folder / row["path"]).unlink(missing_ok=True)


def _labels(clips: list[Clip]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("path", "label", "split"))
    table.writerows(sorted((clip.path, clip.label, clip.split) for clip in clips))
    return text.getvalue()


# ---- command line ----


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m demo.generate", description="Make a small video data set told apart by motion."
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for videos and labels.csv")
    parser.add_argument("--seed", type=int, default=0, help="other numbers give other videos (default: 0)")
    parser.add_argument("--sources", type=int, default=25, metavar="N", help="videos a class (default: 25)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes side by side (default: 2)")
    asked = parser.parse_args(arguments)
    clips = generate(asked.out, seed=asked.seed, num_sources=asked.sources, num_jobs=asked.jobs)
    faulty = sum(bool(clip.fault) for clip in clips)
    print(f"{asked.out}: {len(clips)} videos listed, {len(MOTIONS)} classes, {faulty} of them broken, short or missing")
    return 0


if __name__ == "__main__":
    console.run(main)
