from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datakit import probe, reader
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


def write_jpegs(folder: Path, template: str, pictures: Sequence[np.ndarray], *, first: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures, start=first):
        Image.fromarray(picture).save(folder / template.format(number), quality=95)
    return folder


def pictures(count: int, *shape: int) -> list[np.ndarray]:
    """Smooth pictures, so that JPEG keeps them; no two alike."""
    ramp = np.add.outer(np.arange(shape[0]), 2 * np.arange(shape[1]))
    grey = [(ramp + 9 * number).astype(np.uint8) for number in range(count)]
    return [np.stack([one, one // 2, 255 - one], axis=-1) if shape[2:] else one for one in grey]


@pytest.mark.parametrize("template", ["img_{:05}.jpg", "{:05}.jpg", "frame_{:06}.jpeg", "a clip-{}.JPG"])
@pytest.mark.parametrize("first", [0, 1])
def test_folder_of_frames_is_read_by_number_as_opencv_reads_it(tmp_path: Path, template: str, first: int) -> None:
    cv2 = pytest.importorskip("cv2")
    folder = write_jpegs(tmp_path / "clip", template, pictures(12, 40, 60, 3), first=first)
    (folder / "notes.txt").touch()
    (folder / "._img_00001.jpg").write_bytes(b"a Mac was here")
    with reader.open(folder) as video:
        assert (video.kind, video.num_frames, video.height, video.width, video.fps) == ("rgb", 12, 40, 60, 0)
        found = video.frames([11, 2, 2])
        indices, planned = video.frames_for(lambda count: np.array([count - 1, 0]))
    wanted = [cv2.imread(str(folder / template.format(number + first)))[:, :, ::-1] for number in (11, 2, 2)]
    assert np.array_equal(found, wanted)
    assert indices.tolist() == [0, 11]
    assert np.array_equal(planned[1], wanted[0])


def test_real_pictures_decode_as_opencv_decodes_them(tmp_path: Path, videos: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    with reader.open(videos / "fixtures" / "vid1.mp4") as video:
        frames = video.frames([0, 5])
    for number, (frame, sampling) in enumerate(zip(frames, ("4:2:0", "4:4:4"), strict=True), start=1):
        Image.fromarray(frame).save(tmp_path / f"img_{number:05}.jpg", quality=90, subsampling=sampling)
    Image.fromarray(frames[0]).convert("L").save(tmp_path / "img_00003.jpg", quality=90)
    with reader.open(tmp_path) as folder:
        found = folder.frames([0, 1, 2])
    wanted = [cv2.imread(str(tmp_path / f"img_{number:05}.jpg"))[:, :, ::-1] for number in (1, 2, 3)]
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("prefix", ["flow_", ""])
def test_folder_of_flow_has_two_channels_and_its_own_count(tmp_path: Path, prefix: str) -> None:
    x, y = pictures(7, 32, 48), [255 - picture for picture in pictures(7, 32, 48)]
    write_jpegs(tmp_path, prefix + "x_{:05}.jpg", x)
    write_jpegs(tmp_path, prefix + "y_{:05}.jpg", y)
    with reader.open(tmp_path) as video:
        assert (video.kind, video.num_frames) == ("flow", 7)
        found = video.frames([6, 0])
    assert found.shape == (2, 32, 48, 2)
    for place, number in enumerate((7, 1)):
        for plane, axis in enumerate("xy"):
            with Image.open(tmp_path / f"{prefix}{axis}_{number:05}.jpg") as image:
                assert np.array_equal(found[place, :, :, plane], image)


def test_folder_with_frames_and_flow_asks_which(tmp_path: Path) -> None:
    write_jpegs(tmp_path, "img_{:05}.jpg", pictures(3, 16, 16, 3))
    write_jpegs(tmp_path, "flow_x_{:05}.jpg", pictures(2, 16, 16))
    write_jpegs(tmp_path, "flow_y_{:05}.jpg", pictures(2, 16, 16))
    with pytest.raises(Unreadable, match="kind='rgb'"):
        reader.open(tmp_path)
    with reader.open(tmp_path, kind="flow") as flow, reader.open(tmp_path, kind="rgb") as rgb:
        assert (flow.num_frames, rgb.num_frames) == (2, 3)
        assert flow.frames([1]).shape == (1, 16, 16, 2)
        assert rgb.frames([2]).shape == (1, 16, 16, 3)


def test_folder_that_cannot_be_trusted_is_refused_by_name(tmp_path: Path) -> None:
    def refused(folder: Path, match: str, **options: Any) -> None:
        with pytest.raises(Unreadable, match=match) as caught:
            reader.open(folder, **options).frames([0, 1])
        assert str(folder) in str(caught.value)

    gap = write_jpegs(tmp_path / "gap", "img_{:05}.jpg", pictures(5, 16, 16, 3))
    (gap / "img_00003.jpg").unlink()
    refused(gap, "no file img_3, but one img_00005.jpg")
    refused(write_jpegs(tmp_path / "late", "{:05}.jpg", pictures(2, 16, 16, 3), first=7), "00007.jpg is the first")
    uneven = write_jpegs(tmp_path / "uneven", "x_{:05}.jpg", pictures(3, 16, 16))
    refused(uneven, "only x_")
    write_jpegs(uneven, "y_{:05}.jpg", pictures(2, 16, 16))
    refused(uneven, "3 files x_, 2 files y_")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no numbered JPEG")
    two = write_jpegs(tmp_path / "two", "a_{}.jpg", pictures(2, 16, 16, 3))
    write_jpegs(two, "b_{}.jpg", pictures(2, 16, 16, 3))
    refused(two, "several series")
    cut = write_jpegs(tmp_path / "cut", "img_{:05}.jpg", pictures(2, 16, 16, 3))
    (cut / "img_00002.jpg").write_bytes((cut / "img_00002.jpg").read_bytes()[:-40])
    refused(cut, "img_00002.jpg")
    huge = write_jpegs(tmp_path / "huge", "img_{:05}.jpg", pictures(2, 16, 16, 3))
    header = (huge / "img_00002.jpg").read_bytes()
    at = header.index(b"\xff\xc0") + 5
    (huge / "img_00002.jpg").write_bytes(header[:at] + b"\xff\x00\xff\x00" + header[at + 4 :])
    refused(huge, "img_00002.jpg: Image size")
    sizes = write_jpegs(tmp_path / "sizes", "img_{:05}.jpg", [*pictures(1, 16, 16, 3), *pictures(1, 16, 20, 3)])
    refused(sizes, "img_00002.jpg: 20x16")
    whole = write_jpegs(tmp_path / "whole", "img_{:05}.jpg", pictures(4, 16, 16, 3))
    refused(whole, "4 frames, the list says 5", num_frames=5)
    with reader.open(whole, num_frames=3) as video:
        assert video.num_frames == 3
        with pytest.raises(IndexError, match="whole"):
            video.frames([3])


def test_mirrored_flow_turns_the_sign_of_x_alone(golden: Path) -> None:
    with np.load(golden / "mmaction2" / "pipeline.npz", allow_pickle=False) as stored:
        flow, wanted = stored["flow_frames"][:4], stored["flow_flip/correct_v0.24.1_semantics"]
        frames, wrong = stored["rgb_frames"], stored["flow_flip/v1.2.0_as_is(BUG)"]
    assert np.array_equal(reader.mirrored(flow), wanted)
    assert not np.array_equal(wanted, wrong)
    assert np.array_equal(reader.mirrored(frames), frames[:, :, ::-1])


@pytest.mark.parametrize("num_frames", [None, 12])
def test_tags_that_are_no_utf8_do_not_matter(
    tmp_path: Path, make_video: Callable[..., Path], num_frames: int | None
) -> None:
    """As old cameras and tools write them, in the code page of their country."""
    tags = ("-metadata", "title=PLACE", "-metadata:s:v", "handler_name=PLACE")
    path = make_video(tmp_path / "a.mp4", after=("-c:v", "libx264", *tags))
    with reader.open(path) as video:
        wanted = video.frames([3, 7])
    path.write_bytes(path.read_bytes().replace(b"PLACE", b"caf\xe9s"))
    with reader.open(path, num_frames=num_frames) as video:
        assert np.array_equal(video.frames([3, 7]), wanted)
    assert probe.media_info(path).num_packets == 12
