"""What scales the pictures, and what a first look at a source costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from datakit import catalog, encode, probe
from datakit.__main__ import main
from datakit.errors import ToolMissing


def planes(path: Path) -> list[np.ndarray]:
    """Y, U and V of all frames, float [n, H, W]."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(video=0)]
        width, height = container.streams.video[0].width, container.streams.video[0].height
    flat = np.stack(frames).reshape(len(frames), -1).astype(np.float64)
    luma, u, v = np.split(flat, [width * height, width * height * 5 // 4], axis=1)
    return [luma, u, v]


def encoded(source: Path, work: Path, library: str, side: int = 64) -> encode.Encoded:
    variant = replace(catalog.variant("256p"), short_side_px=side, scaler_library=library, crf=0.0)
    info = probe.media_info(source)
    size = variant.size(info.displayed_width, info.displayed_height)
    return encode.encode(source, [(variant, size, "t")], work)[0]


def test_zimg_gives_the_picture_of_swscale(tmp_path: Path, videos: Path) -> None:
    source = videos / "fixtures/vid1.mp4"
    ours, theirs = (encoded(source, tmp_path, library, 128) for library in ("zimg", "swscale"))
    assert ours.checked.content_sha256 != theirs.checked.content_sha256
    for a, b in zip(planes(ours.part), planes(theirs.part), strict=True):
        assert 10 * np.log10(255**2 / ((a - b) ** 2).mean()) > 50


@pytest.mark.parametrize("name", ["bear-vp9-odd-dimensions.webm", "pigs_in_a_polka.gif"])
def test_what_zimg_cannot_take_swscale_scales(tmp_path: Path, videos: Path, name: str) -> None:
    ours, theirs = (encoded(videos / "fixtures" / name, tmp_path, library) for library in ("zimg", "swscale"))
    assert ours.checked.content_sha256 == theirs.checked.content_sha256
    assert ours.complaints == ""


def test_an_ffmpeg_without_zimg_is_refused_before_the_first_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode.check_tools()
    real = encode.ffmpeg_program()
    older = tmp_path / "ffmpeg"
    older.write_text(f"#!/bin/sh\n'{real}' \"$@\" | grep -v zscale\n")
    older.chmod(0o755)
    monkeypatch.setattr(encode, "ffmpeg_program", lambda: str(older))
    (tmp_path / "raw/a").mkdir(parents=True)
    (tmp_path / "raw/a/1.mp4").write_bytes(b"")
    typed = ["prepare", "mine", "--raw", str(tmp_path / "raw"), "--variant", "256p", "--data-root", str(tmp_path)]
    with pytest.raises(ToolMissing, match=r"built without zimg \(its filter zscale\); type: pip install"):
        main(typed)


def test_a_first_look_needs_more_than_the_first_packet_where_that_shows_nothing(videos: Path) -> None:
    info = probe.media_info(videos / "fixtures/discard_first_keyframe.mp4")
    assert (info.width, info.height) == (64, 64)
    assert info.num_packets == 25
