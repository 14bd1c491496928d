"""Somebody else's copy becomes a variant: nothing in it changes, everything that works on a variant works on it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from datakit import encode, manifest, reader
from datakit.__main__ import main
from datakit.errors import BadManifest, UsageError

Make = Callable[..., Path]


def adopt(root: Path, copy: Path, *more: str, name: str = "k400", variant: str = "theirs-256") -> int:
    words = ["adopt", name, "--root", str(copy), "--variant", variant, "--data-root", str(root), "--jobs", "2"]
    return main([*words, *more])


def snapshot(folder: Path) -> dict[str, tuple[int, int, str]]:
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns, encode.sha256_file(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def copy(tmp_path: Path, make_video: Make) -> Path:
    """As the non-local copy is: ids without times, several suffixes, one file cut off, one of no video."""
    root = tmp_path / "their copy"
    make_video(root / "abseiling/-3B32lodo2M.mp4.mkv", width=456, height=256)
    make_video(root / "air_drumming/_dbcJuKJQNs.mp4", seed=2, width=340, height=256)
    whole = make_video(root / "archery/0000000000a.mkv", seed=3, width=256, height=340, frames=60)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (root / "archery/0000000000b.mp4").write_bytes(b"no video at all")
    return root


@pytest.fixture
def val_csv(tmp_path: Path) -> Path:
    table = tmp_path / "annotations/val.csv"
    table.parent.mkdir()
    table.write_text(
        "label,youtube_id,time_start,time_end,split,is_cc\n"
        'abseiling,-3B32lodo2M,59,69,val,0\n"air drumming",_dbcJuKJQNs,40,50,val,0\n'
        "archery,0000000000a,1,11,val,0\narchery,0000000000b,1,11,val,0\n"
        '"answering questions",_5PV4fkZisA,139,149,val,0\n'
    )
    return table


def test_a_copy_under_the_official_list(
    tmp_path: Path, copy: Path, val_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(copy)
    root = tmp_path / "data"
    assert adopt(root, copy, "--split", "val", "--annotations", str(val_csv)) == 5
    assert "k400/theirs-256: 2 ok, 1 damaged, 1 missing, 1 unreadable" in capsys.readouterr().out
    folder = root / "k400/theirs-256"
    table = manifest.read(folder)
    clips = {clip.id: clip for clip in table.clips}
    first = clips["-3B32lodo2M_000059_000069"]
    assert first.path == copy / "abseiling/-3B32lodo2M.mp4.mkv"
    assert (first.label, first.label_index, first.frames, first.width, first.height) == ("abseiling", 0, 12, 456, 256)
    assert first.sha256 == encode.sha256_file(first.path)
    damaged = clips["0000000000a_000001_000011"]
    assert (damaged.status, damaged.path) == ("damaged", None)
    assert damaged.reason is not None
    assert "of 60 frames can be decoded" in damaged.reason
    lock = json.loads((folder / "manifest.lock").read_text())
    assert lock["definition"]["short_side_px"] == 256
    assert lock["splits"]["val"]["listed"] == 2
    assert lock["splits"]["val"]["media_id"] == table.media_id(clip for clip in table.clips if clip.path)
    assert len((folder / "lists/classes.txt").read_text().splitlines()) == 400
    assert snapshot(copy) == before

    assert main(["verify", "k400", "--data-root", str(root)]) == 0
    assert main(["status", "k400", "--data-root", str(root)]) == 0
    assert "5 asked for: 2 ok, 1 damaged, 1 missing, 1 unreadable" in capsys.readouterr().out
    assert main(["failed", "k400", "--data-root", str(root)]) == 0
    assert "_5PV4fkZisA_000139_000149  missing: no file of that name  [theirs-256]" in capsys.readouterr().out
    written = (folder / "manifest.parquet").read_bytes()
    assert main(["lists", "k400", "--data-root", str(root)]) == 0
    assert (folder / "manifest.parquet").read_bytes() == written
    # Their folder's name holds a space: no list that would break silently, but links that work.
    assert not (folder / "lists/val_videos.txt").exists()
    assert main(["lists", "k400", "--tree", "--data-root", str(root)]) == 0
    for line in (folder / "lists/val_videos.txt").read_text().splitlines():
        with reader.open(folder / line.split()[0]) as video:
            assert video.num_frames == 12

    content = bytearray((copy / "air_drumming/_dbcJuKJQNs.mp4").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (copy / "air_drumming/_dbcJuKJQNs.mp4").write_bytes(content)
    assert main(["verify", "k400", "--data-root", str(root)]) == 5


def test_files_that_are_not_as_long_as_listed(
    tmp_path: Path, copy: Path, val_csv: Path, make_video: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """A short clip is whole and said to be short; a whole video is no copy of a clip of it; an empty file is empty."""
    make_video(copy / "archery/0000000000a.mkv", frames=44, fps=2)
    make_video(copy / "archery/0000000000b.mp4", frames=20, fps=2)
    (copy / "_5PV4fkZisA.mp4").touch()
    assert adopt(tmp_path / "data", copy, "--split", "val", "--annotations", str(val_csv)) == 5
    clips = {clip.id: clip for clip in manifest.read(tmp_path / "data/k400/theirs-256").clips}
    long = clips["0000000000a_000001_000011"]
    assert (long.status, long.path) == ("refused", None)
    assert long.reason == "22 s long, so the whole video and not the clip; prepare cuts clips out of it"
    just_right = clips["0000000000b_000001_000011"]
    assert (just_right.status, just_right.reason) == ("ok", None)
    short = clips["-3B32lodo2M_000059_000069"]
    assert (short.status, short.reason) == ("ok", "short: 1.0 s long, the list says 10 s")
    assert clips["_5PV4fkZisA_000139_000149"].reason == "the file is empty"


def test_it_goes_on_where_it_stopped_and_sees_what_changed(
    tmp_path: Path, copy: Path, val_csv: Path, make_video: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    arguments = ("--split", "val", "--annotations", str(val_csv))
    adopt(root, copy, *arguments)
    assert "4 to decode" in capsys.readouterr().err
    written = (root / "k400/theirs-256/manifest.parquet").read_bytes()
    adopt(root, copy, *arguments)
    assert "0 to decode" in capsys.readouterr().err
    assert (root / "k400/theirs-256/manifest.parquet").read_bytes() == written
    os.utime(copy / "abseiling/-3B32lodo2M.mp4.mkv")
    make_video(copy / "archery/0000000000b.mp4", width=256, height=256)
    adopt(root, copy, *arguments)
    captured = capsys.readouterr()
    assert "2 to decode" in captured.err
    assert "3 ok, 1 damaged, 1 missing" in captured.out


@pytest.mark.parametrize(
    "lines",
    [
        "/scratch/them/compress/val_256/abseiling/-3B32lodo2M.mp4 0\n/scratch/x/air_drumming/_dbcJuKJQNs.mp4 1\n",
        "abseiling/-3B32lodo2M.mp4.mkv,0\nair_drumming/_dbcJuKJQNs.mp4,1\n",
        "-3B32lodo2M 12 0\n_dbcJuKJQNs 12 1\n",
        "-3B32lodo2M.mp4 0\n_dbcJuKJQNs.mp4 1\n",
    ],
)
def test_lists_of_others(tmp_path: Path, copy: Path, val_csv: Path, lines: str) -> None:
    listed = tmp_path / "kinetics_val_list.txt"
    listed.write_text(lines)
    assert adopt(tmp_path / "data", copy, "--list", str(listed), "--annotations", str(val_csv)) == 0
    clips = manifest.read(tmp_path / "data/k400/theirs-256").clips
    assert [(clip.id, clip.split, clip.label, clip.status) for clip in clips] == [
        ("-3B32lodo2M_000059_000069", "val", "abseiling", "ok"),
        ("_dbcJuKJQNs_000040_000050", "val", "air drumming", "ok"),
    ]


def test_a_list_in_another_label_order_is_noticed(
    tmp_path: Path, copy: Path, val_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "val.txt"
    listed.write_text("abseiling/-3B32lodo2M.mp4.mkv 7\nair_drumming/_dbcJuKJQNs.mp4 8\narchery/gone.mp4 5\n")
    assert adopt(tmp_path / "data", copy, "--list", str(listed), "--annotations", str(val_csv)) == 5
    assert "gives 2 clips another class than the official list" in capsys.readouterr().err
    clips = {clip.id: clip for clip in manifest.read(tmp_path / "data/k400/theirs-256").clips}
    assert clips["-3B32lodo2M_000059_000069"].label == "abseiling"
    assert (clips["gone"].status, clips["gone"].label) == ("missing", "archery")


def test_own_data_and_folders_of_pictures(tmp_path: Path, make_video: Make, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    copy = tmp_path / "copy"
    make_video(copy / "a.mp4")
    (copy / "frames/b").mkdir(parents=True)
    for number in range(5):
        Image.new("RGB", (40, 30), (50 * number, 0, 0)).save(copy / f"frames/b/img_{number:05}.jpg")
    listed, names = tmp_path / "train.txt", tmp_path / "names.txt"
    listed.write_text("a.mp4 1\nframes/b 5 0\n")
    names.write_text("wave\njump\n")
    root = tmp_path / "data"
    assert adopt(root, copy, "--list", str(listed), "--classes", str(names), name="mine", variant="theirs") == 0
    table = manifest.read(root / "mine/theirs")
    assert table.classes == ("wave", "jump")
    assert [(clip.label, clip.split, clip.frames) for clip in table.clips] == [
        ("jump", "train", 12),
        ("wave", "train", 5),
    ]
    # Beside a variant that is made here.
    assert main(["prepare", "mine", "--raw", str(copy), "--variant", "256p", "--data-root", str(root)]) == 0
    capsys.readouterr()
    assert main(["status", "mine", "--data-root", str(root), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["variants"]) == {"256p", "theirs"}
    assert main(["verify", "mine", "--data-root", str(root)]) == 0
    assert main(["lists", "mine", "--data-root", str(root)]) == 0


def test_without_any_list_folders_are_classes(tmp_path: Path, class_folders: Path) -> None:
    assert adopt(tmp_path / "data", class_folders, name="mine", variant="as-is") == 5
    table = manifest.read(tmp_path / "data/mine/as-is")
    assert table.classes == ("jump high", "wave")
    assert {(clip.split, clip.status) for clip in table.clips} == {
        ("train", "ok"),
        ("val", "ok"),
        ("val", "unreadable"),
    }


def test_the_fixture_files_come_out_as_in_prepare(tmp_path: Path, videos: Path) -> None:
    """What somebody's copy holds is judged by the same rule as what we encode from."""
    names = ["corrupted.mp4", "derived_truncated.mkv", "derived_zero_byte.mp4", "sample_audio_only.mp4", "bikes.mp4",
             "pigs_in_a_polka.gif", "nasa_13013_rotated.mp4", "sar_2x1.mp4", "h265_10bits.mp4", "vid1.mp4"]  # fmt: skip
    copy = tmp_path / "copy/x"
    copy.mkdir(parents=True)
    for name in names:
        shutil.copy(videos / "fixtures" / name, copy)
    adopt(tmp_path / "data", copy.parent, name="mine", variant="theirs")
    main(["prepare", "mine", "--raw", str(copy.parent), "--variant", "256p", "--data-root", str(tmp_path / "data")])
    theirs = {clip.id: (clip.status, clip.frames) for clip in manifest.read(tmp_path / "data/mine/theirs").clips}
    ours = {clip.id: (clip.status, clip.frames) for clip in manifest.read(tmp_path / "data/mine/256p").clips}
    assert theirs == ours
    sizes = {clip.id: (clip.width, clip.height) for clip in manifest.read(tmp_path / "data/mine/theirs").clips}
    assert sizes["nasa_13013_rotated"] == (270, 480)  # as it is shown
    assert sizes["sar_2x1"] == (1280, 360)


def test_misuse(tmp_path: Path, copy: Path, val_csv: Path) -> None:
    for words, message in (
        (("--variant", "256p"), "256p is a variant that is made here; type --variant theirs-256p"),
        (("--variant", "a/b"), "becomes a folder"),
        (("--list", str(tmp_path / "none.txt")), "none.txt is not there"),
        (("--split", "vall"), "no split 'vall'"),
    ):
        with pytest.raises(UsageError, match=message):
            adopt(tmp_path / "data", copy, *words, name="mine")
    with pytest.raises(UsageError, match="is no folder"):
        adopt(tmp_path / "data", tmp_path / "nowhere", name="mine")
    listed = tmp_path / "val.txt"
    listed.write_text("abseiling/-3B32lodo2M.mp4.mkv 400\n")
    with pytest.raises(BadManifest, match="has label 400, k400 names only 400 classes"):
        adopt(tmp_path / "data", copy, "--list", str(listed), "--annotations", str(val_csv))
