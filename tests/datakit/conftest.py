"""Small real videos, made by the encoder itself, so that these tests need no data."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from datakit import encode

MakeVideo = Callable[..., Path]


@pytest.fixture(scope="session")
def make_video() -> MakeVideo:
    """``make_video(path, width=64, height=48, frames=12, fps=12, seed=0, sound=(), after=())``: testsrc2 as H.264.

    ``sound`` is a second input of ffmpeg, ``after`` are options of the output.
    """

    def make(
        path: Path,
        *,
        width: int = 64,
        height: int = 48,
        frames: int = 12,
        fps: int = 12,
        seed: int = 0,
        sound: tuple[str, ...] = (),
        after: tuple[str, ...] = ("-c:v", "libx264"),
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = f"testsrc2=size={width}x{height}:rate={fps},hue=h={37 * seed}"
        command = [encode.ffmpeg_program(), "-v", "error", "-y", "-f", "lavfi", "-i", picture]
        subprocess.run([*command, *sound, "-frames:v", str(frames), *after, str(path)], check=True)
        return path

    return make


@pytest.fixture
def class_folders(tmp_path: Path, make_video: MakeVideo) -> Path:
    """Two classes, two splits, five sound videos and an empty one."""
    raw = tmp_path / "raw"
    for number, name in enumerate(["train/wave/a.mp4", "train/wave/b.mp4", "train/jump high/c.mp4", "val/wave/d.mp4"]):
        make_video(raw / name, seed=number)
    make_video(raw / "val/jump high/e.mkv", width=48, height=64, seed=7)
    (raw / "val/wave/empty.mp4").touch()
    return raw
