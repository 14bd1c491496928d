from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import pytest

from datakit import catalog, encode, manifest, reader
from datakit.__main__ import main
from datakit.errors import BadManifest, Retryable, UsageError

Make = Callable[..., Path]


def prepare(root: Path, raw: Path, *more: str, variants: Sequence[str] = ("256p",), name: str = "mine") -> int:
    words = ["prepare", name, "--raw", str(raw), "--data-root", str(root), "--jobs", "2", *more]
    for variant in variants:
        words += ["--variant", variant]
    return main(words)


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Every video below a folder with what changes when it is written again."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*.mp4")
    }


@pytest.mark.parametrize(
    ("variant", "displayed", "size"),
    [
        ("256p", (640, 360), (456, 256)),  # 455.1 to the nearest even number, as ffmpeg's -2
        ("256p", (360, 640), (256, 456)),
        ("256p", (Fraction(340 * 64, 51), 256), (426, 256)),  # pixel aspect ratio 64:51
        ("320p", (176, 144), (392, 320)),
        ("340x256", (360, 640), (340, 256)),
        ("native", (161, 121), (160, 120)),
    ],
)
def test_size_is_decided_on_the_displayed_picture(
    variant: str, displayed: tuple[Fraction, Fraction], size: object
) -> None:
    assert catalog.variant(variant).size(Fraction(displayed[0]), Fraction(displayed[1])) == size


def test_class_folders_from_raw_to_lists(
    tmp_path: Path, class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(tmp_path / "data", class_folders, variants=("256p", "340x256")) == 5
    assert "mine/256p: 5 ok, 1 unreadable" in capsys.readouterr().out
    folder = tmp_path / "data/mine/256p"
    table = manifest.read(folder)
    assert table.classes == ("jump high", "wave")
    by_id = {clip.id: clip for clip in table.clips}
    assert by_id["c"].path == folder / "train/jump_high/c.mp4"
    assert (by_id["c"].width, by_id["c"].height, by_id["c"].frames) == (342, 256, 12)
    assert (by_id["e"].width, by_id["e"].height) == (256, 342)
    assert by_id["empty"].status == "unreadable"
    assert by_id["empty"].path is None
    assert (folder / "lists/train_videos.txt").read_text() == (
        "train/wave/a.mp4 1\ntrain/wave/b.mp4 1\ntrain/jump_high/c.mp4 0\n"
    )
    assert (folder / "lists/val_frames.txt").read_text() == "val/wave/d 12 1\nval/jump_high/e 12 0\n"
    assert (folder / "lists/val_pyslowfast.csv").read_text() == "val/wave/d.mp4 1\nval/jump_high/e.mp4 0\n"
    lock = json.loads((folder / "manifest.lock").read_text())
    assert lock["splits"]["val"]["listed"] == 2
    assert lock["splits"]["val"]["asked"] == 3
    for clip in table.clips:
        if clip.path is not None:
            assert encode.sha256_file(clip.path) == clip.sha256
            with reader.open(clip.path) as video:
                assert video.num_frames == clip.frames
    assert main(["failed", "mine", "--data-root", str(tmp_path / "data")]) == 0
    assert "empty  unreadable: the file is empty  [256p, 340x256]" in capsys.readouterr().out
    assert main(["verify", "mine", "--data-root", str(tmp_path / "data")]) == 0
    damaged = by_id["a"].path
    assert damaged is not None
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(content)
    assert main(["verify", "mine", "--data-root", str(tmp_path / "data")]) == 5
    assert "a  " in capsys.readouterr().out


def test_pandas_opens_the_manifest_and_ids_stay_text(tmp_path: Path, make_video: Make) -> None:
    import pandas

    (tmp_path / "raw/wave").mkdir(parents=True)
    for name in ("00123", "NA", "None"):
        make_video(tmp_path / f"raw/wave/{name}.mp4")
    assert prepare(tmp_path / "data", tmp_path / "raw", variants=("256p",)) == 0
    table = pandas.read_parquet(tmp_path / "data/mine/256p/manifest.parquet")
    assert table["id"].tolist() == ["00123", "NA", "None"]
    assert table.query("frames >= 12")["status"].value_counts().to_dict() == {"ok": 3}


def test_a_second_run_encodes_nothing_and_a_change_only_what_it_touches(
    tmp_path: Path, class_folders: Path, make_video: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    prepare(root, class_folders, variants=("256p", "340x256"))
    first = files_of(root)
    table = (root / "mine/256p/manifest.parquet").read_bytes()
    assert prepare(root, class_folders, variants=("256p", "340x256")) == 5
    assert files_of(root) == first
    assert (root / "mine/256p/manifest.parquet").read_bytes() == table

    os.utime(class_folders / "train/wave/b.mp4")  # touched, not changed
    prepare(root, class_folders, variants=("256p", "340x256"))
    assert files_of(root) == first

    make_video(class_folders / "train/wave/b.mp4", seed=99)  # another video under the old name
    prepare(root, class_folders, variants=("256p", "340x256"))
    second = files_of(root)
    assert {name for name in first if first[name] != second[name]} == {
        "mine/256p/train/wave/b.mp4",
        "mine/340x256/train/wave/b.mp4",
    }

    # A variant whose definition changes is made again, and no other. It is data, so the change is made there.
    import manifests

    changed = manifests.read("variants")
    changed["256p"]["crf"] = 30
    real = manifests.read
    monkeypatch.setattr(
        manifests, "read", lambda name: json.loads(json.dumps(changed)) if name == "variants" else real(name)
    )
    prepare(root, class_folders, variants=("256p", "340x256"))
    third = files_of(root)
    assert {name.split("/")[1] for name in second if second[name] != third[name]} == {"256p"}
    assert sum(second[name] != third[name] for name in second) == 5


def test_a_lost_journal_costs_no_encode(tmp_path: Path, class_folders: Path) -> None:
    root = tmp_path / "data"
    prepare(root, class_folders)
    first, table = files_of(root), (root / "mine/256p/manifest.parquet").read_bytes()
    for file in (root / "mine").glob("journal.*"):
        file.unlink()
    prepare(root, class_folders)
    assert files_of(root) == first
    assert (root / "mine/256p/manifest.parquet").read_bytes() == table


def test_a_broken_output_is_made_again(tmp_path: Path, class_folders: Path) -> None:
    root = tmp_path / "data"
    prepare(root, class_folders)
    before = (root / "mine/256p/manifest.parquet").read_bytes()
    victim = root / "mine/256p/train/wave/a.mp4"
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    (root / "mine/256p/train/wave/b.mp4").unlink()
    prepare(root, class_folders)
    assert victim.read_bytes() == whole
    assert (root / "mine/256p/manifest.parquet").read_bytes() == before


def test_equal_encodes_are_made_once(tmp_path: Path, make_video: Make) -> None:
    """A 340x256 source comes out the same in 256p and 340x256."""
    make_video(tmp_path / "raw/x/a.mp4", width=340, height=256, frames=5)
    make_video(tmp_path / "raw/x/b.mp4", width=320, height=240, frames=5)
    assert prepare(tmp_path / "data", tmp_path / "raw", variants=("256p", "340x256")) == 0
    folder = tmp_path / "data/mine"
    assert (folder / "256p/val/x/a.mp4").stat().st_ino == (folder / "340x256/val/x/a.mp4").stat().st_ino
    assert (folder / "256p/val/x/b.mp4").read_bytes() != (folder / "340x256/val/x/b.mp4").read_bytes()


def test_bytes_depend_neither_on_the_jobs_nor_on_the_variants_made_beside(tmp_path: Path, class_folders: Path) -> None:
    prepare(tmp_path / "one", class_folders, "--jobs", "1", variants=("256p",))
    prepare(tmp_path / "two", class_folders, "--jobs", "2", variants=("320p", "256p"))
    ours, theirs = tmp_path / "one/mine/256p", tmp_path / "two/mine/256p"
    for path in sorted(ours.rglob("*.mp4")):
        assert path.read_bytes() == (theirs / path.relative_to(ours)).read_bytes()
    assert (ours / "manifest.lock").read_bytes() == (theirs / "manifest.lock").read_bytes()


def test_damaged_sources_stay_out_unless_let_in(
    tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw/x"
    raw.mkdir(parents=True)
    for name in ("derived_truncated.mkv", "again.mkv"):
        shutil.copy(videos / "fixtures" / name, raw)
    root = tmp_path / "data"
    assert prepare(root, raw.parent) == 5
    assert "1 ok, 1 damaged" in capsys.readouterr().out
    assert "derived" not in (root / "mine/256p/lists/val_videos.txt").read_text()
    assert prepare(root, raw.parent, "--allow-damaged", "0.9") == 5
    assert "derived" not in (root / "mine/256p/lists/val_videos.txt").read_text()
    assert prepare(root, raw.parent, "--allow-damaged", "0.4") == 5  # 25 of 52 frames
    assert "val/x/derived_truncated 25 0\n" in (root / "mine/256p/lists/val_frames.txt").read_text()
    assert {clip.status for clip in manifest.read(root / "mine/256p").clips} == {"ok", "damaged"}
    # Listed or not is decided anew by every run; the file stays.
    assert prepare(root, raw.parent) == 5
    assert "derived" not in (root / "mine/256p/lists/val_videos.txt").read_text()


def test_variable_frame_rate_keeps_its_frames(tmp_path: Path, videos: Path) -> None:
    raw = tmp_path / "raw/x"
    raw.mkdir(parents=True)
    for name, _ in (
        frames := (("sample.avi", 96), ("mov00006.3gp", 222), ("pigs_in_a_polka.gif", 30), ("vid1.mp4", 56))
    ):
        shutil.copy(videos / "fixtures" / name, raw)
    assert prepare(tmp_path / "data", raw.parent) == 0
    found = {clip.id: clip.frames for clip in manifest.read(tmp_path / "data/mine/256p").clips}
    assert found == {Path(name).stem: count for name, count in frames}


def test_official_list_from_a_partial_copy(
    tmp_path: Path, make_video: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "videos"
    make_video(raw / "abseiling/-3B32lodo2M.mp4.mkv")
    make_video(raw / "_dbcJuKJQNs_000040_000050.mp4", seed=2)
    (raw / "val.csv").write_text(
        "label,youtube_id,time_start,time_end,split,is_cc\n"
        'abseiling,-3B32lodo2M,59,69,val,0\n"air drumming",_dbcJuKJQNs,40,50,val,0\n'
        '"answering questions",_5PV4fkZisA,139,149,val,0\n'
    )
    root = tmp_path / "data"
    assert prepare(root, raw, "--split", "val", name="k400", variants=("320p",)) == 5
    captured = capsys.readouterr()
    assert "k400/320p: 2 ok, 1 missing" in captured.out
    assert "has 3 clips, the official list 19906" in captured.err
    lists = root / "k400/320p/lists"
    assert (lists / "val_videos.txt").read_text() == (
        "val/abseiling/-3B32lodo2M_000059_000069.mp4 0\nval/air_drumming/_dbcJuKJQNs_000040_000050.mp4 1\n"
    )
    assert len((lists / "classes.txt").read_text().splitlines()) == 400
    missing = [clip for clip in manifest.read(root / "k400/320p").clips if clip.status == "missing"]
    assert [(clip.id, clip.label_index) for clip in missing] == [("_5PV4fkZisA_000139_000149", 2)]
    # The other split joins without touching this one.
    (raw / "train.csv").write_text("label,youtube_id,time_start,time_end,split\nyoga,aaaaaaaaaaa,1,11,train\n")
    make_video(raw / "aaaaaaaaaaa.webm", after=("-c:v", "libvpx-vp9", "-deadline", "realtime"))
    assert prepare(root, raw, "--split", "train", name="k400", variants=("320p",)) == 5
    assert "k400/320p: 3 ok, 1 missing" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"has no split 'vall'; type --split with one of: train, val"):
        prepare(root, raw, "--split", "vall", name="k400")


def test_limit_leaves_the_rest_pending(tmp_path: Path, class_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path / "data", class_folders, "--limit", "2")
    assert "2 ok, 4 pending" in capsys.readouterr().out
    prepare(tmp_path / "data", class_folders)
    assert "5 ok, 1 unreadable" in capsys.readouterr().out


def test_awkward_names_and_a_full_path_that_looks_like_an_option(tmp_path: Path, make_video: Make) -> None:
    odd = make_video(tmp_path / "plain.mp4")
    raw = tmp_path / "raw folder;$(touch x)"
    names = ["-a:b.mp4", "sp ace's.mp4", 'quo"te.mp4', "ünï.mp4", "%03d.mp4", "a,b[c]=d;e.mp4"]
    for name in names:
        (raw / "wel come").mkdir(parents=True, exist_ok=True)
        shutil.copy(odd, raw / "wel come" / name)
    assert prepare(tmp_path / "data", raw) == 0
    listed = (tmp_path / "data/mine/256p/lists/val_videos.txt").read_text().splitlines()
    assert len(listed) == len(names)
    assert all(len(line.split()) == 2 for line in listed)  # white space separates: none may be in a path
    assert all((tmp_path / "data/mine/256p" / line.split()[0]).is_file() for line in listed)


def test_two_runs_at_once_are_refused(tmp_path: Path, class_folders: Path) -> None:
    from datakit.journal import Journal

    with (
        Journal.open(tmp_path / "data/mine/journal.sqlite"),
        pytest.raises(UsageError, match="another command is working on"),
    ):
        prepare(tmp_path / "data", class_folders)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prepare", "mine", "--raw", "nowhere", "--variant", "256p"], "nowhere is no folder"),
        (["prepare", "mine", "--variant", "256p"], "which folder holds the videos"),
        (["prepare", "ucf101", "--variant", "320p"], "RAW="),
        (["prepare", "mine", "--raw", ".", "--variant", "257p"], "no variant '257p'; type --variant with one of: 256p"),
        (["prepare", "mine", "--raw", "."], "which variant"),
        (["prepare", "../up", "--raw", ".", "--variant", "256p"], "cannot name a set"),
        (["prepare", "mine", "--raw", ".", "--variant", "256p", "--allow-damaged", "90"], "type a share of the frames"),
        (["status", "mine"], "nothing was prepared"),
    ],
)
def test_misuse_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        main(words)


def test_colour_range_and_high_bit_depth_come_out_as_plain_video(tmp_path: Path, videos: Path) -> None:
    raw = tmp_path / "raw/x"
    raw.mkdir(parents=True)
    for name in ("thanks.mkv", "h265_10bits.mp4", "sar_2x1.mp4", "nasa_13013_rotated.mp4"):
        shutil.copy(videos / "fixtures" / name, raw)
    assert prepare(tmp_path / "data", raw.parent) == 0
    sizes = {}
    for path in (tmp_path / "data/mine/256p/val/x").iterdir():
        import av

        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frame = next(container.decode(stream))
            assert frame.format.name == "yuv420p"
            assert frame.color_range in (0, 1)  # unspecified or limited, never full
            assert frame.rotation == 0
            assert stream.sample_aspect_ratio in (None, 1)
            assert not container.streams.audio
            sizes[path.stem] = (frame.width, frame.height)
    assert sizes["sar_2x1"] == (910, 256)
    assert sizes["nasa_13013_rotated"] == (256, 456)


def test_hdr_is_refused_by_rule(tmp_path: Path, make_video: Make, capsys: pytest.CaptureFixture[str]) -> None:
    # The encoder's own tag: a bitstream filter would warn.
    tags = ("-c:v", "libx264", "-x264-params", "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc")
    make_video(tmp_path / "raw/x/hdr.mp4", after=tags)
    assert prepare(tmp_path / "data", tmp_path / "raw") == 5
    main(["failed", "mine", "--data-root", str(tmp_path / "data")])
    assert "hdr  refused: HDR (PQ): tone mapping is not done" in capsys.readouterr().out


def test_help_is_quick_and_light() -> None:
    code = (
        "import sys, datakit.__main__ as m\n"
        "try: m.main(['prepare', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'av', 'numpy', 'pyarrow', 'joblib', 'ffmpeg'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    import sys

    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_whole_video_under_the_name_of_a_clip_is_cut(
    tmp_path: Path, make_video: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "videos"
    make_video(raw / "aaaaaaaaaaa.mp4", width=32, height=32, fps=2, frames=50)  # 25 s
    make_video(raw / "bbbbbbbbbbb.mp4", width=32, height=32, fps=2, frames=24)  # 12 s
    make_video(raw / "ccccccccccc.mp4", width=32, height=32, fps=2, frames=50)
    make_video(raw / "ddddddddddd.mp4", width=32, height=32, fps=2, frames=50)
    rows = "".join(
        f"yoga,{video * 11},{start},{start + 10},val\n" for video, start in (("a", 1), ("b", 1), ("c", 90), ("d", 18))
    )
    (raw / "val.csv").write_text(f"label,youtube_id,time_start,time_end,split\n{rows}")
    assert prepare(tmp_path / "data", raw, name="k400") == 5
    assert "note: 2 files are whole videos, not clips; their clips were cut out of them" in capsys.readouterr().err
    clips = {clip.id[:1]: clip for clip in manifest.read(tmp_path / "data/k400/256p").clips}
    assert (clips["a"].status, clips["a"].frames) == ("ok", 20)
    assert clips["a"].reason == "cut out of the whole video of 25 s, from 1 s to 11 s"
    assert (clips["b"].status, clips["b"].frames, clips["b"].reason) == ("ok", 24, None)
    assert clips["c"].status == "refused"
    assert clips["c"].reason == "25 s long where the list says 10 s from 90 s on: neither the clip nor the whole video"
    assert clips["d"].status == "damaged"
    assert clips["d"].reason is not None
    assert clips["d"].reason.endswith("14 of 20 frames can be decoded: the file ends before the list says")


def test_two_clips_of_one_whole_video(tmp_path: Path, make_video: Make) -> None:
    """Six videos of K600 and 54 of K700 have two labels at two times; a copy may hold the whole video once."""
    raw = tmp_path / "videos"
    for name, num_s in (("aaaaaaaaaaa", 25), ("bbbbbbbbbbb", 10)):
        make_video(raw / f"{name}.mp4", width=32, height=32, fps=2, frames=2 * num_s)
    rows = "".join(
        f"{label},{video * 11},{start},{start + 10},val\n"
        for video in "ab"
        for label, start in (("cracking knuckles", 1), ("cracking neck", 12))
    )
    (raw / "val.csv").write_text(f"label,youtube_id,time_start,time_end,split\n{rows}")
    assert prepare(tmp_path / "data", raw, name="k600") == 5
    clips = {clip.id: clip for clip in manifest.read(tmp_path / "data/k600/256p").clips}
    first, second = clips["aaaaaaaaaaa_000001_000011"], clips["aaaaaaaaaaa_000012_000022"]
    assert (first.status, first.frames, first.label) == ("ok", 20, "cracking knuckles")
    assert (second.status, second.frames, second.label) == ("ok", 20, "cracking neck")
    assert first.content_sha256 != second.content_sha256
    for name in ("bbbbbbbbbbb_000001_000011", "bbbbbbbbbbb_000012_000022"):  # even where 1 s to 11 s could be cut
        assert clips[name].status == "refused"
        assert str(clips[name].reason).endswith(f"nothing says which; if it is this one name it {name}")
    (raw / "bbbbbbbbbbb.mp4").rename(raw / "bbbbbbbbbbb_000012_000022.mp4")
    assert prepare(tmp_path / "data", raw, name="k600") == 5
    clips = {clip.id: clip for clip in manifest.read(tmp_path / "data/k600/256p").clips}
    assert clips["bbbbbbbbbbb_000012_000022"].status == "ok"
    assert clips["bbbbbbbbbbb_000001_000011"].status == "missing"


def test_the_list_and_the_folder_are_remembered(tmp_path: Path, make_video: Make) -> None:
    make_video(tmp_path / "raw/somewhere/a.mp4")
    make_video(tmp_path / "raw/somewhere/b.mp4", seed=1)
    table = tmp_path / "labels.csv"
    table.write_text("path,label,split\nsomewhere/a.mp4,wave,train\nsomewhere/b.mp4,jump,val\n")
    assert prepare(tmp_path / "data", tmp_path / "raw", "--labels", str(table)) == 0
    assert main(["prepare", "mine", "--variant", "320p", "--data-root", str(tmp_path / "data")]) == 0
    clips = manifest.read(tmp_path / "data/mine/320p").clips
    assert [(clip.label, clip.split) for clip in clips] == [("wave", "train"), ("jump", "val")]
    # Only one split of the list: the other stays as it is.
    table.write_text("path,label,split\nsomewhere/a.mp4,jump,train\nsomewhere/b.mp4,wave,val\n")
    assert main(["prepare", "mine", "--split", "val", "--variant", "320p", "--data-root", str(tmp_path / "data")]) == 0
    clips = manifest.read(tmp_path / "data/mine/320p").clips
    assert [(clip.label, clip.split) for clip in clips] == [("wave", "train"), ("wave", "val")]


def test_status_while_a_first_run_goes_on(
    tmp_path: Path, class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed after two clips: the state is in the journal, no manifest is needed to see it."""
    prepare(tmp_path / "data", class_folders, "--limit", "2")
    (tmp_path / "data/mine/256p/manifest.parquet").unlink()
    capsys.readouterr()
    assert main(["status", "mine", "--data-root", str(tmp_path / "data")]) == 0
    assert "2 ok, 1 pending" in capsys.readouterr().out


def test_what_we_wrote_is_no_source(tmp_path: Path, make_video: Make) -> None:
    """The data root below the folder of the videos, as ``--raw .`` with the default root has it."""
    raw = tmp_path / "videos"
    make_video(raw / "wave/a.mp4")
    make_video(raw / ".trash/wave/b.mp4")
    for _ in range(2):
        assert prepare(raw / "data", raw) == 0
        assert [clip.id for clip in manifest.read(raw / "data/mine/256p").clips] == ["a"]
    with pytest.raises(UsageError, match="is where the prepared set would go"):
        prepare(tmp_path, raw, name="videos")
    assert not list(raw.glob("journal*"))


def test_a_cover_picture_is_no_video(tmp_path: Path, make_video: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """An MP4 whose first "video" stream is its cover, and a song with a cover."""
    cover, film = tmp_path / "cover.jpg", make_video(tmp_path / "film.mp4")
    ffmpeg = [encode.ffmpeg_program(), "-v", "error", "-y"]
    subprocess.run([*ffmpeg, "-f", "lavfi", "-i", "testsrc2=size=32x32", "-frames:v", "1", cover], check=True)
    (tmp_path / "raw/x").mkdir(parents=True)
    sound = ("-f", "lavfi", "-i", "sine=d=0.2", "-map", "0", "-map", "1", "-c:v", "copy", "-c:a", "aac")
    as_cover = ("-disposition:v:0", "attached_pic")
    subprocess.run([*ffmpeg, "-i", cover, *sound, *as_cover, tmp_path / "raw/x/song.mp4"], check=True)
    covered = tmp_path / "covered.mp4"
    subprocess.run(
        [*ffmpeg, "-i", cover, "-i", film, "-map", "0", "-map", "1", "-c", "copy", *as_cover, covered], check=True
    )
    # Streams count in the order of the file; ffmpeg writes the cover's box (udta) last, some programs first.
    content = covered.read_bytes()
    track, cover_box = content.index(b"trak") - 4, content.index(b"udta") - 4
    end = cover_box + int.from_bytes(content[cover_box : cover_box + 4], "big")
    (tmp_path / "raw/x/film.mp4").write_bytes(
        content[:track] + content[cover_box:end] + content[track:cover_box] + content[end:]
    )
    assert prepare(tmp_path / "data", tmp_path / "raw") == 5
    clips = {clip.id: clip for clip in manifest.read(tmp_path / "data/mine/256p").clips}
    assert (clips["film"].frames, clips["film"].width) == (12, 342)
    assert clips["song"].reason == "no video stream, only a cover picture"


def test_broken_sound_does_not_make_a_damaged_video(tmp_path: Path, make_video: Make) -> None:
    import av

    whole = make_video(
        tmp_path / "raw/x/a.avi", after=("-c:v", "mpeg4", "-c:a", "mp3"), sound=("-f", "lavfi", "-i", "sine=d=1")
    )
    content = bytearray(whole.read_bytes())
    with av.open(str(whole)) as container:
        for packet in container.demux(audio=0):
            if packet.size:
                at = content.index(bytes(packet))
                content[at : at + packet.size] = bytes(255 - byte for byte in bytes(packet))
    whole.write_bytes(content)
    said = subprocess.run([encode.ffmpeg_program(), "-v", "error", "-i", whole, "-map", "0:v", "-f", "null", "-"],
                          capture_output=True, text=True, check=True).stderr  # fmt: skip
    assert "[mp3float" in said
    assert prepare(tmp_path / "data", tmp_path / "raw") == 0


def test_a_stopped_ffmpeg_is_tried_again(
    tmp_path: Path, class_folders: Path, make_video: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C reaches ffmpeg too: it ends with 255 and says nothing. That is no property of the clip."""
    fake = tmp_path / "ffmpeg"
    fake.write_text("#!/bin/sh\nexit 255\n")
    fake.chmod(0o755)
    make_video(tmp_path / "a.mp4")
    monkeypatch.setattr(encode, "ffmpeg_program", lambda: str(fake))
    with pytest.raises(Retryable):
        encode.encode(tmp_path / "a.mp4", [(catalog.variant("256p"), (342, 256), "tag")], tmp_path)


def test_a_new_label_moves_the_file_and_encodes_nothing(tmp_path: Path, class_folders: Path) -> None:
    root = tmp_path / "data"
    prepare(root, class_folders)
    before = files_of(root)
    (class_folders / "train/wave/a.mp4").rename(class_folders / "train/jump high/a.mp4")
    prepare(root, class_folders)
    after = files_of(root)
    assert after.pop("mine/256p/train/jump_high/a.mp4") == before.pop("mine/256p/train/wave/a.mp4")
    assert after == before


def test_a_size_that_cannot_be_encoded_is_refused_for_that_variant_alone(tmp_path: Path, make_video: Make) -> None:
    make_video(tmp_path / "raw/x/strip.mp4", width=1100, height=16, frames=2)
    assert prepare(tmp_path / "data", tmp_path / "raw", variants=("256p", "native")) == 5
    (refused,) = manifest.read(tmp_path / "data/mine/256p").clips
    assert (refused.status, refused.reason) == ("refused", "the picture would be 17600x256, H.264 takes 16384 at most")
    (clip,) = manifest.read(tmp_path / "data/mine/native").clips
    assert (clip.status, clip.width, clip.height) == ("ok", 1100, 16)


def test_splits_are_those_of_the_list(tmp_path: Path, class_folders: Path) -> None:
    with pytest.raises(UsageError, match="no split 'vall'; type --split with one of: test, train, val"):
        prepare(tmp_path / "data", class_folders, "--split", "vall")
    with pytest.raises(UsageError, match="no clip is in split 'test'; type --split with one of: train, val"):
        prepare(tmp_path / "data", class_folders, "--split", "test")
    assert prepare(tmp_path / "data", class_folders, "--split", "training") == 0
    assert {clip.split for clip in manifest.read(tmp_path / "data/mine/256p").clips} == {"train"}


def test_a_root_that_cannot_be_written_to(tmp_path: Path, class_folders: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot be written to \(Not a directory\); type --data-root"):
        prepare(tmp_path / "file", class_folders)


def test_a_variant_folder_on_another_disk(tmp_path: Path, make_video: Make) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second disk")
    make_video(tmp_path / "raw/x/a.mp4")
    (tmp_path / "data/mine").mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=shm) as elsewhere:
        (tmp_path / "data/mine/256p").symlink_to(elsewhere)
        assert prepare(tmp_path / "data", tmp_path / "raw") == 0
        assert [path.name for path in Path(elsewhere, "val/x").iterdir()] == ["a.mp4"]


def test_two_files_of_one_name_in_two_runs_do_not_push_each_other_out(tmp_path: Path, make_video: Make) -> None:
    make_video(tmp_path / "one/x/a.mp4")
    make_video(tmp_path / "two/x/a.mp4", seed=1)
    prepare(tmp_path / "data", tmp_path / "one")  # "nothing says which split; all are val"
    assert prepare(tmp_path / "data", tmp_path / "one", "--split", "train") == 0
    with pytest.raises(BadManifest, match=r"two/x/a.mp4 has the name of a clip in split 'train' \(.*one/x/a.mp4\)"):
        prepare(tmp_path / "data", tmp_path / "two", "--split", "val")
    (clip,) = manifest.read(tmp_path / "data/mine/256p").clips
    assert clip.split == "train"


def test_make_passes_names_on_as_they_are() -> None:
    checkout = Path(__file__).resolve().parents[2]
    words = [
        "make",
        "-n",
        "k400-256p",
        "VENV=/my ve'nv",
        "RAW=/o'brien's videos",
        "DATA=/a b",
        "ANNOTATIONS=/c d",
        "LIMIT=",
    ]
    # `make test` runs this inside another make, whose own settings must not reach ours.
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(words, cwd=checkout, env=alone, capture_output=True, text=True, check=True)
    shown = done.stdout.splitlines()
    assert shlex.split(shown[0]) == ["sh", "scripts/setup.sh", "--existing", "/my ve'nv"]
    typed = shlex.split(shown[1].partition("||")[0])
    assert typed[:6] == ["/my ve'nv/bin/python", "-m", "datakit", "prepare", "k400", "--variant"]
    for option, value in (("--raw", "/o'brien's videos"), ("--data-root", "/a b"), ("--annotations", "/c d")):
        assert typed[typed.index(option) + 1] == value
    assert "--limit" not in typed
    words[2] = "gym99-256p-frames"
    shown = subprocess.run(
        words, cwd=checkout, env=alone, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert shlex.split(shown[1].partition("||")[0])[3:7] == ["prepare", "gym99", "--variant", "256p-frames"]
