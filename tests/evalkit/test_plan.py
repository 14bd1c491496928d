from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datakit.errors import CropError, UsageError
from evalkit import __main__ as command
from evalkit import plan, protocols, views


@dataclass
class Network:
    clip_len: int
    frame_interval: int
    num_segments: int | None = None
    input: str = "rgb"
    frame_offsets: tuple[int, ...] = (0,)


def save_frames(folder: Path, num_frames: int, height: int, width: int) -> Path:
    """Frames whose grey is their number times 10."""
    folder.mkdir()
    for number in range(num_frames):
        grey = np.full((height, width, 3), 10 * number, dtype=np.uint8)
        Image.fromarray(grey).save(folder / f"img_{number + 1:05}.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_frames(tmp_path_factory.mktemp("plan") / "clip", 20, 72, 128)


def test_numbers_are_those_of_views(clip: Path) -> None:
    protocol = protocols.get("slowonly-tiny", "accurate")
    found = plan.look(clip, Network(8, 2), protocol)
    want = views.frame_indices("mmaction2-0.x", 20, 8, 2, 10)
    assert found.views.frames.tolist() == want.tolist()
    assert list(found.views.boxes) == views.crop_boxes("mmaction2-0.x", 72, 128, 72, 3)
    assert (found.num_frames, found.height, found.width) == (20, 72, 128)
    assert found.indices.tolist() == sorted(set(want.reshape(-1).tolist()))
    document = found.to_dict()
    assert json.loads(json.dumps(document)) == document
    assert document["clips"] == want.tolist()
    assert document["num_views"] == 30
    assert document["share_of_picture"] == 1.0


def test_segments_are_one_clip(clip: Path) -> None:
    protocol = protocols.get("tsm-tiny", "accurate")
    found = plan.look(clip, Network(1, 1, num_segments=8), protocol)
    assert found.views.frames.shape == (2, 8)
    text = plan.describe(found)
    assert text[2] == "views     6: 2 clips x 3 crops"
    assert text[-1].split() == ["clip", "1", *map(str, found.views.frames[1])]


def test_share_of_the_picture_that_is_seen(clip: Path) -> None:
    centre = plan.look(clip, Network(8, 2), protocols.get("slowonly-tiny", "efficient"))
    assert centre.to_dict()["share_of_picture"] == round(64 * 64 / (72 * 128), 4)
    ten = replace(protocols.get("slowonly-tiny", "efficient"), num_crops=10)
    assert "views     10: 1 clips x 10 crops (5, each also mirrored)" in plan.describe(
        plan.look(clip, Network(8, 2), ten)
    )


def test_picture_shows_frames_boxes_and_what_is_left_out(clip: Path) -> None:
    found = plan.look(clip, Network(4, 4), protocols.get("slowonly-tiny", "efficient"))
    (row,) = found.views.frames.tolist()
    pixels = np.asarray(plan.draw(found)).astype(int)
    scale = plan.THUMB_PX / 128
    height = round(72 * scale)
    left = plan.GAP_PX + plan.MARGIN_PX
    top = pixels.shape[0] - (height + plan.LABEL_PX + plan.GAP_PX)
    thumbs = pixels[top : top + height, left:].swapaxes(0, 1)  # [x, y, RGB]
    box_top, box_left, _, box_width = found.views.boxes[0]
    for column, number in enumerate(row):
        thumb = thumbs[column * (plan.THUMB_PX + plan.GAP_PX) :][: plan.THUMB_PX]
        assert abs(thumb[plan.THUMB_PX // 2, height // 2] - 10 * number).max() <= 2  # inside, as it is
        assert abs(thumb[3, height // 2] - plan.DIMMED * 10 * number).max() <= 2  # outside, dimmed
        edge = thumb[round(box_left * scale), height // 2]
        assert edge.tolist() == [0xE6, 0x9F, 0x00]
        assert thumb[round((box_left + box_width) * scale) - 2, height // 2].tolist() == edge.tolist()
        assert thumb[plan.THUMB_PX // 2, round(box_top * scale)].tolist() == edge.tolist()


def test_many_clips_of_many_frames_stay_a_picture(clip: Path) -> None:
    many = replace(protocols.get("slowonly-tiny", "accurate"), num_clips=40)
    found = plan.look(clip, Network(16, 1), many)
    picture = plan.draw(found)
    assert picture.width < 2000
    assert len(plan._thumbnails(found)) == plan.MOST_CLIPS * plan.COLUMNS
    single = plan.look(clip, Network(1, 1), replace(protocols.get("tsn-tiny", "accurate"), num_clips=17))
    assert [(line, column) for line, column, *_ in plan._thumbnails(single)][-1] == (2, 0)


def test_a_crop_that_does_not_fit_is_said(clip: Path) -> None:
    with pytest.raises(CropError, match="crop of 200"):
        plan.look(clip, Network(8, 2), replace(protocols.get("slowonly-tiny", "efficient"), crop_px=200))


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert command.main(["plan", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_command(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import models
    from models import checkpoints

    checkpoint = tmp_path / "net.pth"
    checkpoints.save(checkpoint, models.create("slowonly_tiny", num_classes=3))
    out = tmp_path / "plan.png"
    text = run(capsys, checkpoint, clip, "--out", out, "--mode", "efficient")
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
    assert text.splitlines()[0] == "network   slowonly_tiny (ours): 8 frames, 4 apart"
    assert text.splitlines()[-1] == f"written   {out}"
    document: dict[str, Any] = json.loads(run(capsys, checkpoint, clip, "--json"))
    assert document["schema"] == "evalkit-plan/1"
    assert document["protocol"]["views"] == "10x3@72"
    assert document["clips"] == views.frame_indices("mmaction2-0.x", 20, 8, 4, 10).tolist()
    by_name = json.loads(run(capsys, clip, "--name", "slowonly_tiny", "--json"))
    assert by_name["clips"] == document["clips"]
    free = json.loads(run(capsys, clip, "--name", "slowonly_tiny", "--views", "2x1@64", "--json"))
    assert (len(free["clips"]), len(free["boxes"])) == (2, 1)
    other = json.loads(run(capsys, clip, "--name", "tsm_r50_1x1x16", "--protocol", "tsm-tiny", "--json"))
    assert np.shape(other["clips"]) == (2, 16)


def test_command_says_what_to_type(clip: Path, tmp_path: Path) -> None:
    for arguments, message in [
        ([clip], "or --name NETWORK"),
        ([tmp_path / "none.pth", clip], "none.pth is not there"),
        ([tmp_path / "none.mp4", "--name", "slowonly_tiny"], "none.mp4 is not there"),
        ([clip, "--name", "slowonly_tiny", "--out", tmp_path / "plan.jpg"], "plan.png"),
        ([clip, "--name", "slowonly_tiny", "--views", "3x2@64"], "--views 5x1@224"),
    ]:
        with pytest.raises(UsageError, match=message):
            command.main(["plan", *map(str, arguments)])
