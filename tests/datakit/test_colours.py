"""RGB from planes, against swscale: real pictures of every kind there is, and noise of every colour space."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from datakit import colours, reader


def swscale(frame: av.VideoFrame) -> np.ndarray:
    return VideoReformatter().reformat(frame, format="rgb24").to_ndarray()


def ours(frame: av.VideoFrame, found: colours.Colours) -> np.ndarray:
    planes = np.empty((1, found.num_bytes), np.uint8)
    assert found.planes(frame, planes[0])
    return np.stack(found.rgb(planes.astype(np.int32)), axis=-1)[0]


@pytest.mark.parametrize("space", [0, 1, 2, 4, 5, 6, 7, 9])
@pytest.mark.parametrize("name", ["yuv420p", "yuvj420p"])
def test_every_colour_space_and_range(space: int, name: str) -> None:
    random = np.random.default_rng(space)
    for width, height, color_range in ((454, 256, 0), (340, 256, 1), (64, 18, 2), (322, 240, 1)):
        noise = random.integers(0, 256, (height * 3 // 2, width), dtype=np.uint8)
        frame = av.VideoFrame.from_ndarray(noise, format=name)
        frame.colorspace, frame.color_range = space, color_range
        found = colours.of(frame)
        assert found is not None
        assert np.array_equal(ours(frame, found), swscale(frame))


def test_real_pictures(videos: Path) -> None:
    """What is told apart is told right: equal to the bit where planes are taken, refused where they are not."""
    refused = []
    for path in sorted((videos / "fixtures").iterdir()):
        try:
            with reader.open(path, pixels="stored") as video:
                wanted = video.frames([0])
            with reader.open(path, pixels="stored") as video:
                video.give_planes()
                planes = video.frames([0])
                found = video.colours
        except reader.Unreadable:
            continue
        if found is None:
            refused.append(path.name)
            assert np.array_equal(planes, wanted)
        else:
            assert np.array_equal(np.stack(found.rgb(planes.astype(np.int32)), axis=-1), wanted), path.name
    assert {"h264_10bits.mp4", "video_90.mov", "pigs_in_a_polka.gif", "bear-vp9-odd-dimensions.webm"} <= set(refused)
    assert len(refused) < 15


def test_a_path_of_swscale_that_is_not_ours_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    colours._tried.cache_clear()
    monkeypatch.setattr(colours, "BT601", (104597, 132201, 25675, 53000))
    frame = av.VideoFrame.from_ndarray(np.zeros((24, 64), np.uint8), format="yuv420p")
    assert colours.of(frame) is None
    colours._tried.cache_clear()


def test_pictures_that_change_on_the_way_are_read_as_rgb(tmp_path: Path) -> None:
    """Two sizes in one stream: the planes of the first do not fit the second."""
    path = tmp_path / "two.ts"
    parts = []
    for number, (width, height) in enumerate(((64, 48), (96, 64))):
        part = tmp_path / f"{number}.ts"
        with av.open(str(part), "w", format="mpegts") as container:
            stream = container.add_stream("libx264", rate=25, options={"threads": "1"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            noise = np.random.default_rng(number).integers(0, 256, (5, height, width, 3), dtype=np.uint8)
            for picture in noise:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        parts.append(part.read_bytes())
    path.write_bytes(b"".join(parts))
    with reader.open(path) as video:
        total = video.num_frames
        indices, wanted = video.frames_for(lambda num: np.arange(num))
    assert total > 5
    with reader.open(path) as video:
        video.give_planes()
        assert video.colours is not None
        again, frames = video.frames_for(lambda num: np.arange(num))
        assert video.colours is None
    assert np.array_equal(indices, again)
    assert np.array_equal(frames, wanted)
