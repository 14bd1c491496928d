from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datakit import reader
from datakit.errors import Unreadable


def test_every_real_file_has_its_true_number_of_frames_and_its_displayed_size(videos: Path) -> None:
    wrong = []
    with (videos / "fixtures.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        path = videos / "fixtures" / row["file"]
        if row["frames"] == "0":
            with pytest.raises(Unreadable, match=row["file"]):
                reader.open(path)
            continue
        num, den = map(int, (row["sar"] or "1:1").split(":"))
        size = (round(int(row["width"]) * num / den), int(row["height"]))
        if abs(int(row["rotation"])) == 90:
            size = size[::-1]
        with reader.open(path) as video:
            found = (video.num_frames, video.width, video.height)
        if found != (int(row["frames"]), *size):
            wrong.append((row["file"], found, row["frames"], size))
    assert not wrong
    assert len(rows) == 51


def test_seeking_gives_the_same_pictures_as_decoding_from_the_start(videos: Path) -> None:
    differing = []
    for name in ("flipping_a_pancake.mkv", "bbb_800x640_768kbps_30fps_avc_pyramid_3b.mp4", "vid1.mp4", "mov00006.3gp",
                 "roadtrip-vp92-10bit.webm", "sample_edit_list_only_preroll_sync_sample.mp4"):  # fmt: skip
        path = videos / "fixtures" / name
        with reader.open(path) as video:
            count = video.num_frames
            indices = [count - 1, 3, count // 2, 3, 0]
            whole = video.frames(indices)
        with reader.open(path, num_frames=count) as video:
            if not np.array_equal(video.frames(indices), whole):
                differing.append(name)
    assert not differing


def test_rotated_video_is_turned_upright(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    upright = make_video(tmp_path / "a.mp4", width=64, height=32, after=("-c:v", "libx264", "-qp", "0"))
    turned = tmp_path / "b.mp4"
    import subprocess

    from datakit import encode

    subprocess.run(
        [
            encode.ffmpeg_program(),
            "-v",
            "error",
            "-display_rotation",
            "90",
            "-i",
            str(upright),
            "-c",
            "copy",
            str(turned),
        ],
        check=True,
    )
    with reader.open(upright) as a, reader.open(turned) as b:
        assert (b.width, b.height) == (32, 64)
        assert np.array_equal(np.rot90(a.frames([2])[0]), b.frames([2])[0])


def test_indices_in_any_order_with_repeats(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    path = make_video(tmp_path / "a.mp4", frames=20)
    with reader.open(path) as video:
        all_frames = video.frames(range(20))
        assert np.array_equal(video.frames([7, 7, 3, 19, 0]), all_frames[[7, 7, 3, 19, 0]])
        assert video.frames([]).shape == (0, 48, 64, 3)
        for wrong in ([20], [-1]):
            with pytest.raises(IndexError, match=r"a\.mp4"):
                video.frames(wrong)


def test_plan_is_asked_again_when_packets_lie_about_frames(videos: Path) -> None:
    """A VP9 file with 80 packets of which 72 show a frame."""
    asked = []

    def last_frame(num_frames: int) -> np.ndarray:
        asked.append(num_frames)
        return np.array([0, num_frames - 1])

    with reader.open(videos / "fixtures" / "roadtrip-vp92-10bit.webm") as video:
        indices, frames = video.frames_for(last_frame)
    assert asked == [80, 72]
    assert indices.tolist() == [0, 71]
    assert len(frames) == 2


def test_stored_pixels_ignore_the_aspect_ratio(videos: Path) -> None:
    path = videos / "fixtures" / "demo.mp4"  # 340x256, SAR 64:51
    with reader.open(path) as displayed, reader.open(path, pixels="stored") as stored:
        assert (displayed.width, displayed.height) == (427, 256)
        assert (stored.width, stored.height) == (340, 256)
