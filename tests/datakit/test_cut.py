"""A clip that is a part of its source: exactly the frames that the list means, whatever the container."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from datakit import catalog, encode, manifest, probe, reader
from datakit.__main__ import main
from datakit.annotations import ClipSpec
from datakit.errors import Refused, Unreadable
from datakit.prepare import Job, Target, encode_source

Make = Callable[..., Path]

X264 = ("-c:v", "libx264", "-g", "20", "-bf", "3")
KINDS = {
    "plain.mp4": X264,
    "late.mp4": (*X264, "-output_ts_offset", "2.5"),
    "late.mkv": (*X264, "-output_ts_offset", "2.5"),
    "late.webm": ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-lag-in-frames", "16", "-g", "20",
                  "-output_ts_offset", "1.2"),
    "open-gop.mkv": ("-c:v", "libx264", "-g", "20", "-bf", "3", "-x264-params", "open-gop=1"),
    "hevc.mp4": ("-c:v", "libx265", "-x265-params", "log-level=error:open-gop=1:keyint=20"),
    "mpeg4.avi": ("-c:v", "mpeg4", "-bf", "2"),
    "flash.flv": X264,
    "stream.ts": X264,
}  # fmt: skip


def shown(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """Every frame that a whole decode gives: when it is shown, and its picture."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        # Where the clock has no zero, the file's start is it.
        zero = container.start_time / av.time_base if container.format.name == "mpegts" else 0.0
        assert stream.time_base is not None
        return [float(frame.pts * stream.time_base) - zero for frame in frames if frame.pts is not None], [
            frame.to_ndarray(format="gray") for frame in frames
        ]


@pytest.mark.parametrize("name", KINDS)
def test_a_cut_has_the_frames_from_start_to_before_end(tmp_path: Path, make_video: Make, name: str) -> None:
    """Frames are told apart by their pictures: testsrc2 counts."""
    source = make_video(tmp_path / name, width=64, height=64, frames=90, fps=30, after=KINDS[name])
    times, pictures = shown(source)
    assert len(times) == 90
    info = probe.media_info(source)
    rng = random.Random(name)
    native = catalog.variant("native")
    for _ in range(3):
        first, last = sorted(rng.sample(range(90), 2))
        # Between frames, on a frame, a hair after it: floats of a list are never quite the file's ticks.
        start = times[first] + rng.choice([-0.007, 0.0, 0.004])
        end = times[last] + rng.choice([-0.007, 0.0, 0.004])
        wanted = [number for number, time in enumerate(times) if start - 5e-7 <= time < end - 5e-7]
        part = probe.part(source, info, start, end)
        assert part.num_packets == part.expected_frames == len(wanted)
        (made,) = encode.encode(source, [(native, (64, 64), tag := encode.tag_for("0", "0", part))], tmp_path, part)
        assert made.checked.tag == tag
        assert made.complaints == ""
        with av.open(str(made.part)) as container:
            frames = list(container.decode(video=0))
        assert frames[0].pts == 0
        assert len(frames) == len(wanted)
        found = [frame.to_ndarray(format="gray").astype(int) for frame in frames]
        errors = {
            shift: np.mean(
                [
                    np.abs(one - pictures[(number + shift) % 90]).mean()
                    for one, number in zip(found, wanted, strict=True)
                ]
            )
            for shift in (-2, -1, 0, 1, 2)
        }
        assert min(errors, key=errors.__getitem__) == 0


@pytest.mark.parametrize("name", ["bikes.mp4", "flipping_a_pancake.mkv", "edit_list_positive_shift.mp4", "vid1.mp4",
                                  "av1_video.mkv", "sample.avi", "sample_h264.ts", "bbb_2500ms.ts"])  # fmt: skip
def test_a_cut_of_a_real_file(tmp_path: Path, videos: Path, name: str) -> None:
    source = videos / "fixtures" / name
    info = probe.media_info(source)
    with reader.open(source) as video:
        index = video.index.pts
    with av.open(str(source)) as container:
        base = container.streams.video[0].time_base or Fraction(1)
        zero = Fraction(container.start_time, av.time_base) if "mpegts" in container.format.name else Fraction(0)
    first, last = len(index) // 3, 2 * len(index) // 3
    start, end = (float(index[number] * base - zero) for number in (first, last))
    part = probe.part(source, info, start, end)
    orders = [(catalog.variant("256p"), catalog.variant("256p").size(part.displayed_width, part.displayed_height), "t")]
    (made,) = encode.encode(source, orders, tmp_path, part)
    assert made.checked.frames == last - first
    assert made.complaints == ""
    small = reader.open(made.part).frames([0, made.checked.frames - 1]).astype(int)
    (whole,) = encode.encode(source, orders, tmp_path)
    uncut = reader.open(whole.part)
    for cut, frame in zip(small, (first, last - 1), strict=True):  # which frame of the whole is it most like?
        near = [number for number in range(frame - 2, frame + 3) if number < uncut.num_frames]
        errors = np.abs(uncut.frames(near).astype(int) - cut).mean((1, 2, 3))
        assert errors[near.index(frame)] <= errors.min() + 0.2


def test_times_that_floats_cannot_hold(tmp_path: Path, make_video: Make) -> None:
    """59.04 + 1.28 seconds is frame 1508 of 25 a second, though the sum is a hair less than it."""
    source = make_video(tmp_path / "a.mp4", frames=40, fps=10)
    part = probe.part(source, probe.media_info(source), 0.1 + 0.2, 0.7 + 0.1)
    assert part.num_packets == 5
    assert part.name == "0.300000-0.800000"
    thirds = make_video(tmp_path / "b.mp4", frames=40, fps=3)
    assert probe.part(thirds, probe.media_info(thirds), 2 / 3, 5 / 3).num_packets == 3


def test_a_part_that_the_source_does_not_have(tmp_path: Path, make_video: Make) -> None:
    source = make_video(tmp_path / "a.mp4", frames=40, fps=10)
    info = probe.media_info(source)
    with pytest.raises(Unreadable, match="no frame from 5 s to 6 s; the video ends at 4 s"):
        probe.part(source, info, 5, 6)
    with pytest.raises(Unreadable, match=r"no frame from 1.01 s to 1.05 s"):
        probe.part(source, info, 1.01, 1.05)
    ends_early = probe.part(source, info, 3, 5)
    assert (ends_early.num_packets, ends_early.expected_frames) == (10, 20)
    nearly = probe.part(source, info, 2, 4.1)  # a frame less: nobody cut that exactly
    assert (nearly.num_packets, nearly.expected_frames) == (20, 20)


def job(tmp_path: Path, source: Path, cut_s: tuple[float, float] | None, label: str = "x") -> Job:
    spec = ClipSpec(id="a", video="a", split="val", label=label, source=source, cut_s=cut_s)
    target = Target(variant=catalog.variant("native"), folder=tmp_path / "set", name="a.mp4")
    return Job(spec=spec, source=source, targets=(target,), work=tmp_path, allow_damaged=2)


def test_another_cut_of_the_same_source_is_encoded_again(tmp_path: Path, make_video: Make) -> None:
    source = make_video(tmp_path / "a.mp4", frames=40, fps=10)
    made = {}
    for cut in ((1.0, 2.0), (1.0, 2.1), (1.0, 2.1), None):
        outcome = encode_source(job(tmp_path, source, cut)).data["variants"]["native"]
        stat = (tmp_path / "set/a.mp4").stat()
        made.setdefault(cut, []).append((outcome["key"], outcome["data"]["frames"], stat.st_ino, stat.st_mtime_ns))
    assert [entry[0][1] for entry in made.values()] == [10, 11, 40]
    assert len({entry[0][0] for entry in made.values()}) == 3
    assert made[1.0, 2.1][0] == made[1.0, 2.1][1]


def test_damage_elsewhere_in_the_source_is_not_the_clips(tmp_path: Path, make_video: Make) -> None:
    """A long video with a hole at its start: a clip after it is whole, one over it is damaged."""
    source = make_video(tmp_path / "a.mkv", width=320, height=240, frames=120, fps=10, after=X264)
    content = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for packet in packets[4:8]:
        at = content.index(bytes(packet))
        content[at + 5 : at + packet.size] = bytes(255 - byte for byte in content[at + 5 : at + packet.size])
    source.write_bytes(content)
    before = encode_source(job(tmp_path, source, (0.0, 2.0))).data["variants"]["native"]
    after = encode_source(job(tmp_path, source, (5.0, 7.0))).data["variants"]["native"]
    assert before["status"] == "damaged"
    assert (after["status"], after["data"]["frames"]) == ("ok", 20)


def test_a_picture_that_changes_its_shape_is_refused(tmp_path: Path, make_video: Make) -> None:
    def joined(name: str, second: tuple[int, int]) -> Path:
        parts = []
        for number, (width, height) in enumerate([(320, 240), second]):
            after = ("-c:v", "libx264", "-output_ts_offset", str(number))
            part = make_video(
                tmp_path / f"{name}{number}.ts", width=width, height=height, fps=10, frames=10, after=after
            )
            parts.append(part.read_bytes())
        path = tmp_path / f"{name}.ts"
        path.write_bytes(b"".join(parts))
        return path

    stretched = encode_source(job(tmp_path, joined("wide", (320, 180)), None)).data["variants"]["native"]
    assert (stretched["status"], stretched["error"]) == ("failed", Refused.__name__)
    assert stretched["message"].startswith("the picture changes from 320x240 to 320x180 on the way")
    larger = encode_source(job(tmp_path, joined("large", (640, 480)), None)).data["variants"]["native"]
    assert (larger["status"], larger["data"]["frames"]) == ("ok", 20)


def test_ffmpeg_is_told_to_seek(tmp_path: Path, make_video: Make) -> None:
    """A clip at the end of a long video must not cost decoding the video."""
    source = make_video(tmp_path / "a.mp4", frames=100, fps=10, after=X264)
    part = probe.part(source, probe.media_info(source), 8, 9)
    (path,) = [tmp_path / "x"]
    words = encode._command(source, [(catalog.variant("native"), (64, 48), "t")], [path], part)
    assert words[words.index("-ss") + 1] == "8.000000"
    assert words.index("-ss") < words.index("-i")
    assert subprocess.run(words, capture_output=True, check=True).returncode == 0


@pytest.fixture
def gym(tmp_path: Path, make_video: Make) -> Path:
    """One whole video, one event of another, and nothing of two more videos."""
    raw = tmp_path / "gym"
    make_video(raw / "videos/0LtLS9wROrk.mp4", width=64, height=64, frames=400, fps=25, after=X264)
    make_video(raw / "events/-_aEvent_00_E_000100_000104.mkv", width=64, height=64, frames=100, fps=25, after=X264)
    elements = {
        "0LtLS9wROrk": {"E_000002_000009": (2.04, 9.0, {"A_0000_0001": [[0.4, 1.2]], "A_0003_0005": [[3.0, 3.04]]}),
                        "E_000010_000014": (10.0, 14.2, {"A_0003_0004": [[3.0, 3.4], [3.4, 4.0], [4.0, 4.68]]})},
        "-_aEvent_00": {"E_000100_000104": (100.0, 104.0, {"A_0001_0002": [[1.0, 2.0]], "A_0003_0004": [[3.0, 4.5]]}),
                        "E_000200_000210": (200.0, 210.0, {"A_0000_0001": [[0.0, 1.0]]})},
        "gonegonegon": {"E_000001_000005": (1.0, 5.0, {"A_0000_0001": [[0.0, 1.0]], "A_0001_0002": [[1.0, 2.0]]}),
                        "E_000010_000015": (10.0, 15.0, {"A_0000_0001": [[0.0, 1.0]]})},
    }  # fmt: skip
    times = {
        video: {
            event: {
                "event": 1,
                "timestamps": [[start, end]],
                "segments": {name: {"stages": len(stages), "timestamps": stages} for name, stages in segments.items()},
            }
            for event, (start, end, segments) in events.items()
        }
        for video, events in elements.items()
    }
    folder = raw / "annotations"
    folder.mkdir()
    (folder / "finegym_annotation_info_v1.1.json").write_text(json.dumps(times))
    names = [f"{v}_{e}_{a}" for v, events in elements.items() for e, (_, _, some) in events.items() for a in some]
    (folder / "gym99_val_element.txt").write_text("".join(f"{name} {n}\n" for n, name in enumerate(names)))
    return raw


def test_elements_are_cut_once_from_whatever_holds_them(
    tmp_path: Path, gym: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    words = ["prepare", "gym99", "--raw", str(gym), "--split", "val", "--data-root", str(root), "--jobs", "2"]
    assert main([*words, "--variant", "256p", "--variant", "256p-frames"]) == 5
    capsys.readouterr()
    clips = {clip.id: clip for clip in manifest.read(root / "gym99/256p").clips}
    counts = {
        "0LtLS9wROrk_E_000002_000009_A_0000_0001": (61, 81),
        "0LtLS9wROrk_E_000002_000009_A_0003_0005": (126, 127),  # 0.04 s: one frame
        "0LtLS9wROrk_E_000010_000014_A_0003_0004": (325, 367),  # a vault: three stages, and it ends after its event
        "-_aEvent_00_E_000100_000104_A_0001_0002": (25, 50),
    }
    for name, (first, last) in counts.items():
        clip = clips[name]
        assert (clip.status, clip.frames) == ("ok", last - first), name
        assert clip.path == root / f"gym99/256p/val/{name}.mp4"
        whole = reader.open(
            gym / ("videos/0LtLS9wROrk.mp4" if name.startswith("0") else "events/-_aEvent_00_E_000100_000104.mkv")
        )
        wanted = whole.frames([first, last - 1])[:, ::4, ::4].astype(int)
        found = reader.open(clip.path).frames([0, last - first - 1])[:, ::16, ::16].astype(int)
        assert np.abs(wanted - found).mean() < 25
    late = clips["-_aEvent_00_E_000100_000104_A_0003_0004"]  # the event's file ends before the element does
    assert late.status == "damaged"
    assert late.reason == "25 of 38 frames can be decoded: the file ends before the list says"
    lists = root / "gym99/256p/lists"
    assert {line.split()[0] for line in (lists / "val_videos.txt").read_text().splitlines()} == {
        f"val/{name}.mp4" for name in counts
    }
    frames = dict(
        line.split()[:2] for line in (root / "gym99/256p-frames/lists/val_frames.txt").read_text().splitlines()
    )
    assert frames == {f"val/{name}": str(last - first) for name, (first, last) in counts.items()}
    assert main(["status", "gym99", "--data-root", str(root)]) == 0
    said = capsys.readouterr().out
    assert "videos: 1 whole, 1 in part, 1 missing" in said
    assert "events: 3 whole, 3 missing" in said
    assert "  video gonegonegon is missing: 2 events, 3 elements" in said
    assert "  event -_aEvent_00_E_000200_000210 is missing: 1 element\n" in said
    assert main(["failed", "gym99", "--data-root", str(root)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("video gonegonegon is missing: 2 events, 3 elements (missing: no file of that name")
    assert "gonegonegon_E" not in said
    assert "-_aEvent_00_E_000100_000104_A_0003_0004  damaged: " in said
    # The second run decodes nothing; the longer file, once it is there, gives the whole element.
    before = {path: path.stat().st_mtime_ns for path in (root / "gym99/256p").rglob("*.mp4")}
    main([*words, "--variant", "256p"])
    assert {path: path.stat().st_mtime_ns for path in (root / "gym99/256p").rglob("*.mp4")} == before


def test_a_long_video_is_hashed_once(tmp_path: Path, gym: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datakit import prepare
    from datakit.journal import Journal
    from datakit.layout import FILE_STAGE, SOURCE_STAGE

    root = tmp_path / "data"
    main(["prepare", "gym99", "--raw", str(gym), "--split", "val", "--data-root", str(root), "--variant", "native"])
    with Journal.read(root / "gym99/journal.sqlite") as journal:
        files, clips = journal.outcomes(FILE_STAGE), journal.outcomes(SOURCE_STAGE)
    assert {Path(path).name for path in files} == {"0LtLS9wROrk.mp4", "-_aEvent_00_E_000100_000104.mkv"}
    assert len({outcome.key for outcome in clips.values()}) == 2
    (one,) = [outcome for path, outcome in files.items() if path.endswith(".mp4")]
    facts = prepare.Facts(
        stat=one.data["stat"], sha256=one.data["sha256"], info=probe.MediaInfo.from_dict(one.data["info"])
    )
    monkeypatch.setattr(encode, "sha256_file", lambda path: pytest.fail(f"{path} was hashed again"))
    source = gym / "videos/0LtLS9wROrk.mp4"
    todo = replace(job(tmp_path, source, (1.0, 1.1)), facts=facts)
    monkeypatch.setattr(prepare, "_make", lambda job, sha256, info: {"native": {"sha256": sha256, "info": info}})
    made = encode_source(todo).data["variants"]["native"]
    assert (made["sha256"], made["info"]) == (facts.sha256, probe.media_info(source))
