"""Reading ahead: the order, the memory, and processes that die."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import subprocess
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from datakit import reader
from datakit.errors import DataError, ItemError, ToolMissing
from evalkit import decode
from evalkit.protocols import Protocol

CHECKOUT = Path(__file__).resolve().parents[2]
PROTOCOL = Protocol(name="test", mode="test", version=1, sampling="mmaction2-0.x", num_clips=3, num_crops=3,
                    short_side_px=32, crop_px=32, aggregation="prob-mean")  # fmt: skip
# A worker that kills itself over one clip, as a decoder with a bug or the kernel short of memory would.
DYING = """
import sys; sys.path[:] = {path!r}
import os, signal
from datakit import reader
from evalkit import decode
real = reader.open
def opened(path, **options):
    if "deadly" in str(path):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(path, **options)
reader.open = opened
decode.serve({handle})
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    id: str
    path: Path | None
    label_index: int = 0
    frames: int | None = None
    status: str = "ok"
    reason: str | None = None
    fps: float | None = None


SPEC = decode.Shape(clip_len=4, frame_interval=4, frame_offsets=(0,), num_segments=None, input="rgb")


def write_video(path: Path, num_frames: int, width: int, height: int) -> Path:
    pictures = np.random.default_rng(num_frames).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "8", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("clips")
    paths = [write_video(folder / f"clip{n}.mp4", 12 + 5 * n, 64 - 8 * (n % 2), 48) for n in range(6)]
    return [Clip(id=path.stem, path=path, frames=12 + 5 * n if n % 2 else None) for n, path in enumerate(paths)]


def gone(n: int) -> Clip:
    return Clip(id=f"gone{n}", path=None, status="missing", reason="no file of that name")


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_clips_come_in_order_with_the_frames_of_the_file(clips: list[Clip], workers: int) -> None:
    wanted = [*clips[:3], gone(0), gone(1), *clips[3:]]
    got = list(decode.ahead(wanted, SPEC, PROTOCOL, workers))
    assert [clip.id for clip, _ in got] == [clip.id for clip in wanted]
    for clip, item in got:
        if clip.path is None:
            assert item == "no file of that name"
            continue
        assert not isinstance(item, str)
        with reader.open(clip.path) as video:
            frames = video.frames(range(video.num_frames))
        assert np.array_equal(item.indices, np.unique(item.plan.frames))
        assert np.array_equal(item.frames, frames[item.indices])


def test_a_process_that_dies_takes_one_clip_with_it(clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "WORKER", DYING)
    deadly = [Clip(id=f"bad{n}", path=Path(f"deadly{n}.mp4")) for n in range(3)]
    wanted = [clips[0], deadly[0], *clips[1:3], *deadly[1:], *clips[3:]]
    for workers in (1, 3):
        got = {clip.id: item for clip, item in decode.ahead(wanted, SPEC, PROTOCOL, workers)}
        assert list(got) == [clip.id for clip in wanted]
        for clip in clips:
            assert isinstance(got[clip.id], decode.Decoded)
        for clip in deadly:
            assert got[clip.id] == "the process that decoded it died (SIGKILL)"


def test_processes_that_do_not_start_are_an_error_not_missing_clips(
    clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "WORKER", "import sys; sys.exit(7)")
    with pytest.raises(ToolMissing, match="exit code 7"):
        list(decode.ahead(clips, SPEC, PROTOCOL, 2))


def test_an_error_of_the_list_reaches_the_caller(clips: list[Clip]) -> None:
    def listed() -> list[Clip]:
        yield clips[0]
        raise DataError("line 2 has no path")

    with pytest.raises(DataError, match="line 2"):
        list(decode.ahead(listed(), SPEC, PROTOCOL, 1))


def test_memory_is_bounded_whatever_the_number_of_processes(clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for less than one clip, one clip at a time is decoded; with room for all, many are."""
    most: list[int] = []
    real = decode._Crew._grant

    def grant(self: decode._Crew) -> None:
        real(self)
        most.append(len(self._held))

    monkeypatch.setattr(decode._Crew, "_grant", grant)
    monkeypatch.setattr(decode, "DECODED_AHEAD_BYTES", 1000)
    assert len(list(decode.ahead(clips * 2, SPEC, PROTOCOL, 4))) == 12
    assert max(most) == 1
    most.clear()
    monkeypatch.setattr(decode, "DECODED_AHEAD_BYTES", 1 << 30)
    assert len(list(decode.ahead(clips * 2, SPEC, PROTOCOL, 4))) == 12
    assert max(most) > 1


def test_memory_is_used_again_when_nobody_looks_at_it(clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: list[int] = []
    real = decode.mmap.mmap

    def counted(handle: int, size: int) -> decode.mmap.mmap:
        blocks.append(size)
        return real(handle, size)

    monkeypatch.setattr(decode.mmap, "mmap", counted)
    kept = None
    for number, (_, item) in enumerate(decode.ahead(clips * 5, SPEC, PROTOCOL, 1)):
        assert isinstance(item, decode.Decoded)
        if number == 3:
            kept, wanted = item.frames[2:, :5], item.frames[2:, :5].copy()
        del item
    assert len(blocks) <= decode.CLIPS_AHEAD_A_WORKER + 3
    assert kept is not None
    assert np.array_equal(kept, wanted)  # a part of it is enough to keep it


def test_planes_make_the_same_rgb(clips: list[Clip]) -> None:
    for (_, whole), (_, planes) in zip(
        decode.ahead(clips, SPEC, PROTOCOL, 0), decode.ahead(clips, SPEC, PROTOCOL, 1, planes=True), strict=True
    ):
        assert isinstance(whole, decode.Decoded)
        assert isinstance(planes, decode.Decoded)
        assert planes.colours is not None
        assert planes.frames.shape == (len(whole.frames), planes.colours.num_bytes)
        channels = planes.colours.rgb(planes.frames.astype(np.int32))
        assert np.array_equal(np.stack(channels, axis=-1), whole.frames)


class OtherDecoder:
    """torchcodec's decoder as far as it is used, with a fault or without."""

    fault = ""

    def __init__(self, path: str, **options: Any) -> None:
        self.opened = reader.open(path, pixels="stored")

    def __len__(self) -> int:
        return self.opened.num_frames - (self.fault == "count")

    def get_frames_at(self, indices: list[int]) -> Any:
        if self.fault == "raises":
            raise RuntimeError("Could not seek")
        frames = self.opened.frames(indices) + np.uint8(self.fault == "pixels")
        self.opened.close()
        return types.SimpleNamespace(data=torch.from_numpy(frames))


def test_torchcodec_must_show_the_same_pixels(clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.SimpleNamespace(VideoDecoder=OtherDecoder)
    monkeypatch.setitem(sys.modules, "torchcodec", types.SimpleNamespace(decoders=module))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    wanted = list(decode.ahead(clips, SPEC, PROTOCOL, 0))
    for fault in ("", "count", "raises"):  # where it does not know the file as PyAV does, PyAV reads it
        monkeypatch.setattr(OtherDecoder, "fault", fault)
        decode.check_torchcodec([gone(0), *clips])
        for (_, one), (_, other) in zip(
            wanted, decode.ahead(clips, SPEC, PROTOCOL, 0, decoder="torchcodec"), strict=True
        ):
            assert isinstance(one, decode.Decoded)
            assert isinstance(other, decode.Decoded)
            assert np.array_equal(one.frames, other.frames)
    monkeypatch.setattr(OtherDecoder, "fault", "pixels")
    with pytest.raises(DataError, match="shows other pixels"):
        decode.check_torchcodec(clips)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(ToolMissing, match="pip install torchcodec"):
        decode.check_torchcodec(clips)


def test_giving_up_in_the_middle_ends_the_processes(clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    real = decode._Worker.__init__

    def init(self: decode._Worker, *args: object) -> None:
        real(self, *args)  # type: ignore[arg-type]
        started.append(self.process)

    monkeypatch.setattr(decode._Worker, "__init__", init)
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    items = decode.ahead(clips * 5, SPEC, PROTOCOL, 3)
    next(items)
    items.close()
    assert started
    assert all(process.returncode is not None for process in started)
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# Says which processes it has, and then does nothing with what they decode.
KEEPER = """
import sys, time
from pathlib import Path
from evalkit import decode
from evalkit.protocols import Protocol
clips = [type("Clip", (), {"id": path, "path": Path(path), "frames": None, "status": "ok", "reason": None})
         for path in sys.argv[1:]]
shape = decode.Shape(clip_len=4, frame_interval=4, frame_offsets=(0,), num_segments=None, input="rgb")
protocol = Protocol(name="test", mode="test", version=1, sampling="mmaction2-0.x", num_clips=3, num_crops=3,
                    short_side_px=32, crop_px=32, aggregation="prob-mean")
real = decode._Worker.__init__
def init(self, *args):
    real(self, *args)
    print(self.process.pid, flush=True)
decode._Worker.__init__ = init
items = decode.ahead(clips * 9, shape, protocol, 2)
next(items)
print("go on", flush=True)
time.sleep(60)
"""


def test_a_kill_of_the_caller_leaves_no_process_behind(clips: list[Clip]) -> None:
    command = [sys.executable, "-c", KEEPER, *(str(clip.path) for clip in clips)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as caller:
        assert caller.stdout is not None
        lines = list(iter(caller.stdout.readline, "go on\n"))
        caller.kill()
    workers = [Path("/proc", line.strip()) for line in lines]
    assert workers
    deadline = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(process: Path) -> bool:
    try:
        return "decode.serve" in (process / "cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_worker_loads_no_torch() -> None:
    code = "import sys; import evalkit.decode; print(sorted({'torch', 'pandas', 'sklearn'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT, check=True)
    assert said.stdout.strip() == "[]"


def test_pictures_in_a_folder_and_flow(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (20, 40, 48, 3), dtype=np.uint8)
    for name in ("frames", "flow"):
        (tmp_path / name).mkdir()
    for number, picture in enumerate(pictures, start=1):
        Image.fromarray(picture).save(tmp_path / "frames" / f"{number:05}.jpg", quality=95)
        for plane, letter in enumerate("xy"):
            Image.fromarray(picture[..., plane]).save(tmp_path / "flow" / f"flow_{letter}_{number:05}.jpg", quality=95)
    clips = [Clip(id=name, path=tmp_path / name, fps=12.0) for name in ("frames", "flow")]
    for kind, right, wrong, channels in (("rgb", 0, 1, 3), ("flow", 1, 0, 2)):
        spec = decode.Shape(clip_len=4, frame_interval=4, frame_offsets=(0,), num_segments=None, input=kind)
        items = [item for _, item in decode.ahead(clips, spec, PROTOCOL, 0)]
        found = items[right]
        assert isinstance(found, decode.Decoded)
        assert found.frames.shape[1:] == (40, 48, channels)
        with reader.open(tmp_path / ("frames", "flow")[right]) as video:
            assert np.array_equal(found.frames, video.frames(found.indices))
        assert isinstance(items[wrong], str)


def test_rules_by_time_take_the_rate_of_the_file_or_of_the_list(clips: list[Clip], tmp_path: Path) -> None:
    rule = Protocol(name="test", mode="test", version=1, sampling="torchvision", num_clips=2, num_crops=1,
                    resize_px=(43, 32), crop_px=28, aggregation="prob-mean")  # fmt: skip
    item = next(decode.ahead(clips[4:], SPEC, rule, 0))[1]
    assert isinstance(item, decode.Decoded)
    assert item.plan.frames[0].tolist() == [0, 1, 3, 5]  # 25 frames a second looked at 15 times
    (tmp_path / "frames").mkdir()
    for number in range(30):
        Image.new("RGB", (48, 40)).save(tmp_path / "frames" / f"img_{number:05}.jpg")
    timed, untimed = (Clip(id="frames", path=tmp_path / "frames", fps=fps) for fps in (30.0, None))
    item = next(decode.ahead([timed], SPEC, rule, 0))[1]
    assert isinstance(item, decode.Decoded)
    assert item.plan.frames[0].tolist() == [0, 2, 4, 6]
    assert "fps is needed" in str(next(decode.ahead([untimed], SPEC, rule, 0))[1])


def test_segments_are_looked_at_together() -> None:
    tsm = decode.Shape(clip_len=1, frame_interval=1, frame_offsets=(0,), num_segments=4, input="rgb")
    rule = Protocol(name="test", mode="test", version=1, sampling="mmaction2-0.x", num_clips=4, num_crops=3,
                    short_side_px=32, crop_px=32, aggregation="segment-logit-mean",
                    options={"twice_sample": True})  # fmt: skip
    plan = decode.plan(25, 25.0, 40, 48, tsm, rule)
    assert plan.frames.tolist() == [[3, 9, 15, 21], [0, 6, 12, 18]]
    assert plan.num_views == 6
    other = decode.Shape(clip_len=1, frame_interval=1, frame_offsets=(0,), num_segments=3, input="rgb")
    with pytest.raises(DataError, match="3 segments at a time, the protocol samples 8"):
        decode.plan(25, 25.0, 40, 48, other, rule)


def test_torchcodec_is_left_the_files_that_it_shows_as_pyav_does(videos: Path) -> None:
    """Which they are was measured with torchcodec 0.17: of the others it shows other pixels, or other frames."""
    plain = set()
    for path in sorted((videos / "fixtures").iterdir()):
        with contextlib.suppress(ItemError), reader.VideoFile(path, num_frames=None, pixels="stored") as video:
            if video.plain:
                plain.add(path.name)
    others = {"bear-vp9-odd-dimensions.webm", "h264_10bits.mp4", "h265_10bits.mp4", "mov00006.3gp", "sample_vvc.mp4",
              "roadtrip-vp92-10bit.webm", "derived_interlaced_tff.mpg", "testsrc2_mpeg4.avi", "sample.avi"}  # fmt: skip
    assert not plain & others
    assert {"bikes.mp4", "sample_av1.mp4", "h265_bframes.mp4", "flipping_a_pancake.mkv", "demo_skeleton.mp4"} <= plain
    if importlib.util.find_spec("torchcodec"):
        for name in sorted(plain):
            decode.check_torchcodec([Clip(id=name, path=videos / "fixtures" / name)])
