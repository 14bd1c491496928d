"""Folders of JPEG files: written from videos, and taken as they are where a data set consists of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from datakit import encode, manifest, reader
from datakit.__main__ import main
from datakit.errors import UsageError

Make = Callable[..., Path]


def prepare(root: Path, raw: Path, *more: str, name: str = "mine") -> int:
    return main(["prepare", name, "--raw", str(raw), "--data-root", str(root), "--jobs", "2", *more])


def pictures(
    folder: Path, count: int, names: str = "{:05}.jpg", size: tuple[int, int] = (176, 100), first: int = 1
) -> None:
    """A moving square on a ramp: every picture is another one."""
    folder.mkdir(parents=True)
    ramp = np.linspace(0, 200, size[0])[None, :, None] + np.zeros((size[1], 1, 3))
    for number in range(count):
        picture = ramp.astype(np.uint8)
        picture[20:60, 3 * number : 3 * number + 30] = (255, 60, 0)
        Image.fromarray(picture).save(folder / names.format(number + first), quality=92)


def test_frames_and_video_from_one_decode(tmp_path: Path, class_folders: Path) -> None:
    root = tmp_path / "data"
    assert prepare(root, class_folders, "--variant", "256p", "--variant", "256p-frames") == 5
    films = {clip.id: clip for clip in manifest.read(root / "mine/256p").clips}
    trees = {clip.id: clip for clip in manifest.read(root / "mine/256p-frames").clips}
    for clip in trees.values():
        if clip.path is None:
            assert clip.id == "empty"
            continue
        assert sorted(path.name for path in clip.path.iterdir()) == [f"img_{n:05}.jpg" for n in range(1, 13)]
        assert (clip.frames, clip.width, clip.height) == (12, films[clip.id].width, films[clip.id].height)
        assert clip.fps == pytest.approx(12, rel=1e-3)
        film = films[clip.id].path
        assert film is not None
        with reader.open(clip.path) as tree, reader.open(film) as video:
            assert tree.num_frames == 12
            # The same pictures in the same colours, as far as two lossy codecs go.
            assert np.abs(tree.frames([0, 7]).astype(int) - video.frames([0, 7])).mean() < 6
    lists = root / "mine/256p-frames/lists"
    assert (lists / "val_frames.txt").read_text() == "val/wave/d 12 1\nval/jump_high/e 12 0\n"
    assert not (lists / "val_videos.txt").exists()
    assert main(["verify", "mine", "--data-root", str(root)]) == 0
    victim = trees["a"].path
    assert victim is not None
    one = victim / "img_00005.jpg"
    one.write_bytes(one.read_bytes()[:-200])
    assert main(["verify", "mine", "--data-root", str(root)]) == 5


def test_a_second_run_leaves_finished_folders_and_mends_broken_ones(tmp_path: Path, class_folders: Path) -> None:
    root = tmp_path / "data"

    def state() -> dict[str, tuple[int, int]]:
        return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted((root / "mine").rglob("*.jpg"))}

    def contents() -> list[bytes]:
        return [path.read_bytes() for path in sorted((root / "mine").rglob("*.jpg"))]

    arguments = (root, class_folders, "--variant", "256p", "--container", "frames")
    prepare(*arguments)
    first, pixels = state(), contents()
    table = (root / "mine/256p-frames/manifest.parquet").read_bytes()
    prepare(*arguments)
    assert state() == first
    for file in (root / "mine").glob("journal.*"):  # a lost journal costs no encode
        file.unlink()
    prepare(*arguments)
    assert state() == first
    assert (root / "mine/256p-frames/manifest.parquet").read_bytes() == table
    broken = root / "mine/256p-frames/train/wave/a"
    (broken / "img_00003.jpg").unlink()
    (root / "mine/256p-frames/val/wave/half.part").mkdir()  # what a killed run left
    prepare(*arguments)
    assert contents() == pixels
    assert not list((root / "mine").rglob("*.part"))
    assert [name for name in first if first[name] != state()[name]] == [
        str(broken / f"img_{number:05}.jpg") for number in range(1, 13)
    ]


def test_colours_of_a_high_definition_matrix_survive(tmp_path: Path, make_video: Make) -> None:
    """JPEG knows BT.601 alone; pixels of a BT.709 video must be converted, not copied."""
    colours = ("-vf", "scale=out_color_matrix=bt709:out_range=tv,format=yuv420p", "-colorspace", "bt709")
    source = make_video(
        tmp_path / "raw/x/a.mp4", width=320, height=240, after=(*colours, "-c:v", "libx264", "-crf", "1")
    )
    assert prepare(tmp_path / "data", tmp_path / "raw", "--variant", "native", "--container", "frames") == 0
    with reader.open(source) as video, reader.open(tmp_path / "data/mine/native-frames/val/x/a") as tree:
        errors = np.abs(video.frames([3]).astype(int) - tree.frames([3]))
    assert errors.mean() < 5  # 8 when the matrix is not converted


@pytest.fixture
def gestures(tmp_path: Path) -> Path:
    raw = tmp_path / "20bn-jester-v1"
    for number, count in ((7, 12), (34870, 37), (100010, 20)):
        pictures(raw / str(number), count)
    (raw / "jester-v1-validation.csv").write_text(
        "7;Swiping Left\n34870;Drumming Fingers\n100010;No gesture\n9;Thumb Up\n"
    )
    return raw


def test_folders_of_pictures_are_the_native_variant(
    tmp_path: Path, gestures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    assert prepare(root, gestures, "--split", "val", "--variant", "native", name="jester") == 5
    assert "jester/native-frames: 3 ok, 1 missing" in capsys.readouterr().out
    folder = root / "jester/native-frames"
    assert (folder / "lists/val_frames.txt").read_text() == "val/100010 20 25\nval/34870 37 24\nval/7 12 0\n"
    clip = folder / "val/34870"
    assert sorted(path.name for path in clip.iterdir()) == [f"{number:05}.jpg" for number in range(1, 38)]
    assert (clip / "00005.jpg").stat().st_ino == (gestures / "34870/00005.jpg").stat().st_ino  # linked, not copied
    (row,) = [clip for clip in manifest.read(folder).clips if clip.id == "34870"]
    assert (row.frames, row.fps, row.width, row.height) == (37, 12.0, 176, 100)
    before = {path: path.stat().st_ino for path in folder.rglob("*.jpg")}
    assert prepare(root, gestures, "--split", "val", "--variant", "native", "--variant", "256p", name="jester") == 5
    assert {path: path.stat().st_ino for path in folder.rglob("*.jpg")} == before
    with av.open(str(root / "jester/256p/val/34870.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.average_rate) == (37, 12)
        assert (stream.width, stream.height) == (450, 256)
    with reader.open(root / "jester/256p/val/34870.mp4") as video, reader.open(clip) as tree:
        small = np.asarray(Image.fromarray(video.frames([30])[0]).resize((176, 100))).astype(int)
        assert np.abs(small - tree.frames([30])[0]).mean() < 6
    assert main(["verify", "jester", "--data-root", str(root)]) == 0


def test_a_folder_of_pictures_that_is_not_whole(
    tmp_path: Path, gestures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut_off = gestures / "34870/00009.jpg"
    cut_off.write_bytes(cut_off.read_bytes()[: cut_off.stat().st_size // 2])
    (gestures / "100010/00004.jpg").unlink()
    root = tmp_path / "data"
    assert prepare(root, gestures, "--split", "val", "--variant", "native", name="jester") == 5
    reasons = {clip.id: (clip.status, clip.reason or "") for clip in manifest.read(root / "jester/native-frames").clips}
    assert reasons["7"][0] == "ok"
    assert reasons["34870"][0] in ("unreadable", "damaged")
    assert "00009.jpg" in reasons["34870"][1]
    assert reasons["100010"][0] == "unreadable"
    assert "no file 4" in reasons["100010"][1]
    assert not (root / "jester/native-frames/val/34870").exists()
    capsys.readouterr()
    pictures(tmp_path / "whole", 37)  # mended: seen without being told
    shutil.copytree(tmp_path / "whole", gestures / "34870", dirs_exist_ok=True)
    prepare(root, gestures, "--split", "val", "--variant", "native", name="jester")
    assert "2 ok, 1 missing, 1 unreadable" in capsys.readouterr().out


def test_folders_that_a_program_would_take_for_shorter_ones(tmp_path: Path, gestures: Path) -> None:
    """ffmpeg ends a series at an empty file without a word; a folder whose first file is lost is a folder all the same;
    suffixes and widths of numbers are as people's tools wrote them."""
    (gestures / "34870/00009.jpg").write_bytes(b"")
    (gestures / "100010/00001.jpg").unlink()
    shutil.rmtree(gestures / "7")
    pictures(gestures / "7", 11, "{}.JPG")
    pictures(gestures / "flow/7", 10, "flow_x_{:05}.jpg")
    root = tmp_path / "data"
    prepare(root, gestures, "--split", "val", "--variant", "256p", name="jester")
    clips = {clip.id: clip for clip in manifest.read(root / "jester/256p").clips}
    assert (clips["7"].status, clips["7"].frames) == ("ok", 11)
    assert (clips["34870"].status, clips["34870"].path) == ("damaged", None)
    assert clips["34870"].reason == "8 of 37 frames can be decoded: the decoder stopped without a word"
    assert clips["100010"].status == "unreadable"
    assert clips["100010"].reason is not None
    assert "00002.jpg is the first file" in clips["100010"].reason
    prepare(root, gestures, "--split", "val", "--variant", "native", name="jester")
    clips = {clip.id: clip for clip in manifest.read(root / "jester/native-frames").clips}
    assert clips["34870"].reason == "00009.jpg: cannot identify image file '00009.jpg'"  # theirs, not our copy


def test_own_folders_of_pictures_beside_videos(
    tmp_path: Path, make_video: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "100% raw"  # a percent sign is a pattern to ffmpeg
    pictures(raw / "wave/a", 9, "frame{:03}.jpg", first=0)
    pictures(raw / "jump/b", 11, "img_{:05}.jpg")
    make_video(raw / "jump/c.mp4")
    root = tmp_path / "100% data"
    assert prepare(root, raw, "--variant", "native-frames", "--variant", "256p", "--fps", "10") == 0
    folder = root / "mine/native-frames"
    assert (folder / "lists/val_frames.txt").read_text() == "val/wave/a 9 1\nval/jump/b 11 0\nval/jump/c 12 0\n"
    assert sorted(path.name for path in (folder / "val/wave/a").iterdir()) == [f"img_{n:05}.jpg" for n in range(1, 10)]
    assert {clip.id: clip.fps for clip in manifest.read(root / "mine/256p").clips} == {"a": 10, "b": 10, "c": 12}
    first = encode.read_tag(root / "mine/256p/val/wave/a.mp4")
    prepare(root, raw, "--variant", "256p", "--fps", "20")  # another clock is another video
    assert encode.read_tag(root / "mine/256p/val/wave/a.mp4") != first
    assert {clip.id: clip.fps for clip in manifest.read(root / "mine/256p").clips} == {"a": 20, "b": 20, "c": 12}


def test_containers_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="256p-frames is folders of pictures; type --variant 256p"):
        prepare(tmp_path / "data", tmp_path, "--variant", "256p-frames", "--container", "mp4")
