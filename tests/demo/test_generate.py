"""The demo's data set: what it claims about its classes and its files, checked on the real pictures and files."""

from __future__ import annotations

import csv
import hashlib
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datakit import reader
from datakit.errors import Unreadable, UsageError
from demo import generate

OPPOSITE = {
    "grow": "shrink",
    "shrink": "grow",
    "swipe-down": "swipe-up",
    "swipe-left": "swipe-right",
    "swipe-right": "swipe-left",
    "swipe-up": "swipe-down",
    "turn-left": "turn-right",
    "turn-right": "turn-left",
}
INSTANTS_S = (0.0, 1.0, 2.5)
SMALL = replace(generate.RECORDINGS[0], width=64, height=48)


def small(clip: generate.Clip) -> generate.Clip:
    return replace(clip, recording=SMALL, num_frames=12)


def rgb(packed: np.ndarray) -> np.ndarray:
    """uint32 [n, h, w] -> uint8 [n, h, w, 3]."""
    return packed.view(np.uint8).reshape(*packed.shape, 4)[..., :3]


@pytest.fixture(scope="module")
def scenes() -> list[tuple[str, generate.Scene]]:
    """24 scenes a class, small."""
    clips = [clip for clip in generate.plan(7, 24) if not clip.fault]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "TEXTURE_PX", 64)
        return [(clip.label, generate.scene(small(clip))) for clip in clips]


def test_the_same_seed_gives_the_same_pictures_and_another_seed_others() -> None:
    first, again, other = (small(generate.plan(seed, 1)[3]) for seed in (0, 0, 1))
    assert np.array_equal(generate.render(first), generate.render(again))
    assert not np.array_equal(generate.render(first), generate.render(other))


def test_things_move_as_their_class_says() -> None:
    """Seen on the picture: where a lone thing's pixels are, how many they are, which way up it stands."""
    for label, wanted in (
        ("swipe-right", (1, 0)),
        ("swipe-left", (-1, 0)),
        ("swipe-down", (0, 1)),
        ("swipe-up", (0, -1)),
    ):
        before, after = _lone_thing(label, moved=0.1)
        assert np.allclose(_middle(after) - _middle(before), np.multiply(wanted, 24), atol=1), label
    for label, larger in (("grow", 1.5), ("shrink", 1 / 1.5)):
        before, after = _lone_thing(label, moved=math.log(1.5))
        assert (after != 0).sum() / (before != 0).sum() == pytest.approx(larger**2, rel=0.02), label
    for label, quarter_turns in (("turn-left", 1), ("turn-right", -1)):
        before, after = _lone_thing(label, moved=math.pi / 2)
        assert (np.rot90(before, quarter_turns) != after).mean() < 0.02, label  # rot90 turns counter-clockwise
        assert (np.rot90(before, -quarter_turns) != after).mean() > 0.05, label


def _lone_thing(label: str, moved: float) -> tuple[np.ndarray, np.ndarray]:
    """A thing at (160, 120) and again after it moved that far along its class's axis; nothing else, no shaking."""
    clip = replace(next(c for c in generate.plan(2, 1) if c.label == label), recording=generate.RECORDINGS[0])
    picture = generate.scene(clip)
    axis, _ = generate.MOTIONS[label]
    speed = np.where(np.arange(4) == axis, np.sign(picture.things[0].speed_per_s) * moved, 0)
    thing = replace(picture.things[0], start=np.array([160 / 240, 0.5, 0.5, 1.0]), speed_per_s=speed)
    blank = np.zeros_like(picture.background)
    picture = replace(picture, things=(thing,), background=blank, shake=picture.shake * 0)
    before, after = (generate.draw(picture, time_s)[20:220, 60:260] for time_s in (0.0, 1.0))
    return before, after


def _middle(frame: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(frame)
    return np.array([columns.mean(), rows.mean()])


def test_a_clip_played_backwards_is_one_of_the_opposite_class() -> None:
    for clip in generate.plan(0, 1)[: len(generate.MOTIONS)]:
        picture = generate.scene(small(clip))
        end_s = 1.0
        things = tuple(
            replace(thing, start=thing.start + thing.speed_per_s * end_s, speed_per_s=-thing.speed_per_s)
            for thing in picture.things
        )
        weight, speed, phase = np.moveaxis(picture.shake, -1, 0)
        shake = np.stack([weight, -speed, speed * end_s + phase], axis=-1)
        backwards = replace(picture, things=things, shake=shake)
        # 0.0 and 1.0 s: rounding may move a pixel of an edge, nothing more
        for time_s in (0.0, 0.25, 0.7, 1.0):
            differ = generate.draw(backwards, time_s) != generate.draw(picture, end_s - time_s)
            assert differ.mean() < 0.002
        axis, sign = generate.MOTIONS[OPPOSITE[clip.label]]
        for thing in things:
            assert np.sign(thing.speed_per_s[axis]) == sign
            assert abs(thing.speed_per_s / generate.SPEED_PER_S).argmax() == axis


def test_states_are_spread_evenly_over_the_torus_at_every_instant(scenes: list[tuple[str, generate.Scene]]) -> None:
    """Kolmogorov's distance to the uniform distribution, for each class, axis and instant."""
    worst = 0.0
    for label in generate.MOTIONS:
        things = [thing for name, picture in scenes if name == label for thing in picture.things]
        for time_s in INSTANTS_S:
            states = np.array([(thing.start + thing.speed_per_s * time_s) % generate.PERIOD for thing in things])
            ordered = np.sort(states / generate.PERIOD, axis=0)
            steps = np.arange(len(ordered) + 1)[:, None] / len(ordered)
            worst = max(worst, (steps[1:] - ordered).max(), (ordered - steps[:-1]).max())
    # 48 things a class: 1.95 / sqrt(48) is passed by chance in one of 1000, and there are 96 of them
    assert worst < 2.2 / math.sqrt(48)


@pytest.mark.parametrize("time_s", INSTANTS_S)
def test_no_single_frame_tells_the_class(scenes: list[tuple[str, generate.Scene]], time_s: float) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    frames = rgb(np.stack([generate.draw(picture, time_s) for _, picture in scenes]))
    cells = frames.reshape(-1, 12, 4, 16, 4, 3).mean(axis=(2, 4)).reshape(len(frames), -1)
    labels = [label for label, _ in scenes]
    accuracy = cross_val_score(make_pipeline(StandardScaler(), LogisticRegression(C=0.01)), cells, labels, cv=4).mean()
    assert accuracy < 1 / 8 + 3.5 * math.sqrt(1 / 8 * 7 / 8 / len(frames))


@pytest.mark.parametrize("number", range(len(generate.RECORDINGS)))
def test_a_player_shows_what_was_drawn(number: int, tmp_path: Path) -> None:
    """Size, count and pixels as drawn, upright and not squeezed, in every codec and container."""
    how = generate.RECORDINGS[number]
    clip = replace(generate.plan(0, number + 1)[number], num_frames=9)
    assert clip.recording == how
    generate.write(clip, tmp_path)
    drawn = rgb(generate.render(clip))
    with reader.open(tmp_path / clip.path) as video:
        assert (video.width, video.height) == (how.width, how.height)
        assert video.num_frames == 9
        shown = video.frames(range(9))
        stamps = np.diff(video.index.pts)
    assert shown.shape == drawn.shape
    as_it_is = _difference(shown, drawn)
    assert as_it_is < 6
    assert as_it_is < _difference(shown[:, ::-1, ::-1], drawn) / 3
    if not how.even:
        assert len(set(stamps)) > 3


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other).mean())


def test_rotation_tags_are_what_another_player_understands() -> None:
    assert {how.rotation_deg for how in generate.RECORDINGS} == {0, 90, 180, 270}


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_ffmpeg_turns_the_stored_picture_upright(degrees: int, tmp_path: Path) -> None:
    import imageio_ffmpeg

    number = next(n for n, how in enumerate(generate.RECORDINGS) if how.rotation_deg == degrees)
    clip = replace(generate.plan(0, number + 1)[number], num_frames=3)
    generate.write(clip, tmp_path)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(tmp_path / clip.path)]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
    shown = subprocess.run(command, capture_output=True, check=True).stdout
    frames = np.frombuffer(shown, np.uint8).reshape(3, clip.recording.height, clip.recording.width, 3)
    assert _difference(frames, rgb(generate.render(clip))) < 6


@pytest.mark.parametrize("codec", sorted(generate.ENCODERS))
def test_the_same_seed_gives_the_same_bytes(codec: str, tmp_path: Path) -> None:
    number = next(n for n, how in enumerate(generate.RECORDINGS) if how.codec == codec)
    clip = replace(generate.plan(0, number + 1)[number], num_frames=6)
    hashes = set()
    for folder in (tmp_path / "one", tmp_path / "two"):
        generate.write(clip, folder)
        hashes.add(hashlib.sha256((folder / clip.path).read_bytes()).hexdigest())
    assert len(hashes) == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small collection: one short clip a class and all the faults."""
    out = tmp_path_factory.mktemp("demo") / "raw"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "DURATION_S", (0.2, 0.3))
        generate.generate(out, seed=0, num_sources=1, num_jobs=1)
    return out


def test_the_list_names_what_is_there_and_two_that_are_not(folder: Path) -> None:
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    listed = {row["path"] for row in rows}
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert there - listed == {"labels.csv", generate.MARKER}
    assert len(listed - there) == 2
    assert {row["label"] for row in rows} == set(generate.MOTIONS)
    assert all(row["path"].startswith(row["label"] + "/") for row in rows)
    assert {row["split"] for row in rows} == {"train", "val"}


@pytest.mark.parametrize(
    ("fault", "decodes"),
    [("cut", "in part"), ("cut-index", "no"), ("corrupted", "in part"), ("empty", "no"), ("text", "no"),
     ("sound-only", "no"), ("1-frame", "1"), ("3-frames", "3"), ("missing", "no")],
)  # fmt: skip
def test_faulty_files_are_faulty_in_the_way_they_are_named(folder: Path, fault: str, decodes: str) -> None:
    clips = [clip for clip in generate.plan(0, 1) if clip.fault == fault]
    assert clips
    for clip in clips:
        if decodes == "no":
            with pytest.raises(Unreadable):
                reader.open(folder / clip.path)
            continue
        with reader.open(folder / clip.path) as video:
            if decodes == "in part":
                assert 0 < video.num_frames < clip.num_frames
            else:
                assert video.num_frames == int(decodes)


def test_a_second_run_makes_only_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "DURATION_S", (0.2, 0.3))
    monkeypatch.setattr(generate, "FAULTS", (("empty", "train"),))
    out = tmp_path / "raw"
    generate.generate(out, seed=0, num_sources=1, num_jobs=1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    assert len(before) == 9
    gone = out / "grow/grow_000.mp4"
    content = gone.read_bytes()
    gone.unlink()
    generate.generate(out, seed=0, num_sources=1, num_jobs=1)
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    assert {path for path in before if before[path] != after[path]} == {gone}
    assert gone.read_bytes() == content
    generate.generate(out, seed=1, num_sources=1, num_jobs=1)
    assert gone.read_bytes() != content
    assert not list(out.rglob("*.part"))


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.mp4").write_bytes(b"mine")
    with pytest.raises(UsageError, match="--out"):
        generate.generate(tmp_path, seed=0, num_sources=1, num_jobs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.mp4"]


def test_every_recording_is_as_frequent_in_each_class_and_validation_has_seven_of_25() -> None:
    clips = [clip for clip in generate.plan(0, 25) if not clip.fault]
    by_class = {label: [clip for clip in clips if clip.label == label] for label in generate.MOTIONS}
    first = next(iter(by_class.values()))
    for group in by_class.values():
        assert [(clip.recording, clip.split) for clip in group] == [(clip.recording, clip.split) for clip in first]
        assert sum(clip.split == "val" for clip in group) == 7


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, contextlib\nfrom demo import generate\nwith contextlib.suppress(SystemExit): generate.main(['-h'])"
    )
    code += "\nprint(sorted({'torch', 'pandas', 'sklearn', 'av', 'matplotlib', 'joblib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
