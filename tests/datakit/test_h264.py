"""Leaving out pictures that nobody refers to: the same pixels as decoding everything, or not done at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from datakit import h264, reader

FRAMES = 44


def write(path: Path, params: str = "", *, keep: Sequence[int] | None = None, in_file_order: bool = False) -> Path:
    """Moving noise as H.264; ``keep``: only these packets; ``in_file_order``: every time is that of decoding."""
    ramp = np.add.outer(np.arange(48), np.arange(64))
    texture = np.random.default_rng(3).integers(0, 60, (48, 64))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"threads": "1", "x264-params": params})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        packets = []
        for number in range(FRAMES):
            grey = ((ramp * (1 + number // 15) + np.roll(texture, 3 * number, axis=1)) % 256).astype(np.uint8)
            picture = np.concatenate([grey, 255 - grey[::2]])  # Y, then U and V
            packets += stream.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p"))
        packets += stream.encode(None)
        for number, packet in enumerate(packets):
            if in_file_order:
                packet.pts = packet.dts
            if keep is None or number in keep:
                container.mux(packet)
    return path


def decoded(path: Path) -> np.ndarray:
    """Every frame, by nothing but PyAV."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return np.stack(
            [VideoReformatter().reformat(frame, format="rgb24").to_ndarray() for frame in container.decode(video=0)]
        )


def complains(path: Path) -> bool:
    """Whether the decoder notices what it conceals."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.options = {"err_detect": "explode"}
        try:
            list(container.decode(video=0))
        except av.FFmpegError:
            return True
    return False


def picked(path: Path, whole: np.ndarray, indices: Sequence[int]) -> bool:
    """Whether some were left out; what comes is compared in any case."""
    with reader.VideoFile(path, num_frames=len(whole), pixels="stored") as video:
        assert np.array_equal(video.frames(indices), whole[list(indices)])
        return video._vouched and video.index.proven and bool(video.index.idle)


@pytest.mark.parametrize("kind", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize(
    "params",
    [
        "keyint=250",
        "keyint=8:bframes=5:b-pyramid=strict:slices=4:ref=8",
        "keyint=12:open-gop=1:bframes=3:b-adapt=0",
        "keyint=20:bframes=16:b-pyramid=none:weightp=2:direct=temporal",
        "keyint=15:intra-refresh=1:bframes=2",
        "keyint=16:interlaced=1:bframes=3",
        "keyint=10:no-cabac=1:aud=1:repeat-headers=1",
    ],
)
def test_frames_are_those_of_a_whole_decode(tmp_path: Path, kind: str, params: str) -> None:
    path = write(tmp_path / f"a.{kind}", params)
    whole = decoded(path)
    assert len(whole) == FRAMES
    random = np.random.default_rng(0)
    for count in (1, 1, 2, 5, 12, FRAMES):
        assert picked(path, whole, random.integers(0, FRAMES, count).tolist())


def test_only_what_is_wanted_and_what_it_depends_on_is_decoded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", "keyint=16:scenecut=0:b-adapt=0:bframes=3")
    with reader.VideoFile(path, num_frames=FRAMES, pixels="stored") as video:
        assert video.index.keyframes == (0, 16, 32)
        wanted = next(number for number in range(20, 32) if number in video.index.idle)
        shown = [video.index.position[frame.pts] for frame in video._frames_after(16, {wanted})]
    assert wanted in shown
    assert min(shown) == 16
    assert len(shown) < 12
    assert [number for number in shown if number in video.index.idle] == [wanted]


def test_a_stream_that_breaks_a_rule_is_decoded_from_the_start(tmp_path: Path) -> None:
    whole = decoded(write(tmp_path / "whole.mp4", "keyint=20:b-pyramid=none"))
    with av.open(str(tmp_path / "whole.mp4")) as container:
        stream = container.streams.video[0]
        headers = h264.Headers(stream.codec_context.extradata or b"")
        pictures = [headers.picture(bytes(packet)) for packet in container.demux(stream) if packet.size]
    referred = next(number for number, picture in enumerate(pictures) if number > 5 and not picture.idle)
    gap = write(tmp_path / "gap.mp4", "keyint=20:b-pyramid=none", keep=sorted({*range(FRAMES)} - {referred}))
    assert not reader.packet_index(gap).proven
    times = write(tmp_path / "times.mp4", "keyint=20:b-pyramid=none", in_file_order=True)
    assert not reader.packet_index(times).proven
    stream = write(tmp_path / "stream.ts", "keyint=20")
    assert not reader.packet_index(stream).seekable
    for path in (gap, times, stream):
        whole = decoded(path)
        for indices in ([3], [21, 5], [len(whole) - 1]):
            assert not picked(path, whole, indices)


def test_a_damaged_picture_that_a_decoder_conceals_is_concealed_as_in_a_whole_decode(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mp4", "keyint=250:b-adapt=0").read_bytes()
    random = np.random.default_rng(5)
    concealed = 0
    for number in range(20):
        damaged = bytearray(whole)
        for place in random.integers(len(whole) // 4, 3 * len(whole) // 4, 2):
            damaged[place] ^= 1 << int(random.integers(8))
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(damaged)
        try:
            frames = decoded(path)
        except av.FFmpegError:
            continue
        if len(frames) == FRAMES and complains(path):
            assert not picked(path, frames, [5, FRAMES // 2, *range(FRAMES)])
            concealed += 1
    assert concealed > 2


def test_a_file_that_cannot_be_entered_at_its_keyframe_is_decoded_from_the_start(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flv", "keyint=2:open-gop=1:bframes=16:b-adapt=0")
    whole = decoded(path)
    for indices in ([13], [3, 5, 5, 9], list(range(len(whole)))):
        picked(path, whole, indices)


@pytest.mark.parametrize("extradata", [b"", b"\0\0\0\1\x67", b"\1d\0\x0d\xff\xe1\0\x19\x67d", b"\1" * 30])
def test_parameters_that_are_none(extradata: bytes) -> None:
    with pytest.raises(h264.Unproven):
        h264.Headers(extradata)
