from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datakit import flowset, show
from datakit.__main__ import main
from datakit.errors import UsageError

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory, make_video: Make) -> Path:
    """Two sets with the clip "a", one of them with its flow; "only" is in one set."""
    root = tmp_path_factory.mktemp("show")
    scroll = ("-vf", "scroll=horizontal=0.03125", "-c:v", "libx264")
    for name in ("one", "two"):
        make_video(root / name / "raw/val/wave/a.mp4", frames=9, after=scroll)
    make_video(root / "one/raw/val/wave/only.mp4", frames=9, after=scroll)
    for name in ("one", "two"):
        words = ["prepare", name, "--raw", str(root / name / "raw"), "--data-root", str(root / "data"), "--jobs", "2"]
        assert main([*words, "--variant", "native", "--variant", "340x256"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flowset.runner, "run", lambda work, jobs, **_: map(work, jobs))
        words = ["flow", "one", "--data-root", str(root / "data"), "--variant", "native"]
        assert main([*words, "--params", "fast"]) == 0
    return root / "data"


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_sheet_has_a_row_for_each_variant_and_the_flow(
    data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def height(clip: str, *more: str) -> int:
        assert main(["show", clip, "--data-root", str(data_root), "--out", str(tmp_path / "a.png"), *more]) == 0
        return len(picture(tmp_path / "a.png"))

    with_flow, without = height("one/a"), height("two/a")
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "a.png")] * 2
    row = show.ROW_PX + 2 * (show.TEXT_PX + 5) + show.GAP_PX
    assert (with_flow, without) == (3 * row + show.GAP_PX, 2 * row + show.GAP_PX)
    height("only", "--json", "--instants", "2")
    assert json.loads(capsys.readouterr().out)["schema"] == "datakit-show/1"


def test_pictures_are_those_of_the_clip_at_the_same_instants(data_root: Path) -> None:
    rows = []
    for title, path, num_frames in show._forms("one/a", data_root):
        rows.append(show._row(title, path, num_frames, 3, rows[0] if rows else None))
    assert [row.title.split()[0] for row in rows] == ["340x256", "native", "native-flow"]
    assert [row.indices for row in rows] == [(1, 4, 7)] * 3
    assert [row.kind for row in rows] == ["rgb", "rgb", "flow"]
    assert rows[2].frames[..., 0].mean() < 120  # it moves to the left


def test_colours_say_direction_and_speed() -> None:
    right, down, left, still = (np.array([[[one]]], np.float32) for one in ([4, 0], [0, 4], [-4, 0], [0, 0]))
    red, other, opposite, white = (show.coloured(one, 4.0)[0, 0, 0].astype(int) for one in (right, down, left, still))
    assert white.tolist() == [255, 255, 255]
    assert red.argmax() == 0
    assert red[1] == red[2] < 20
    assert opposite[0] < 20  # the opposite colour
    assert np.abs(other - red).max() > 100
    assert np.array_equal(show.coloured(right * 10, 4.0)[0, 0, 0], red)  # beyond the scale's end nothing changes
    half = show.coloured(right / 2, 4.0)[0, 0, 0].astype(int)
    assert abs(half[1] - (255 + red[1]) / 2) <= 2


def test_scale_ends_at_a_round_number() -> None:
    assert show.scale(np.full((1, 10, 10, 2), [1.5, 0.0])) == 2
    assert show.scale(np.zeros((1, 10, 10, 2))) == 0.5
    assert show.scale(np.full((1, 10, 10, 2), [20.0, 20.0])) == 20


@pytest.mark.parametrize(
    ("num_frames", "count", "found"), [(10, 3, [1, 5, 8]), (2, 6, [0, 1]), (1, 1, [0]), (100, 1, [50])]
)
def test_instants_are_the_middles_of_equal_parts(num_frames: int, count: int, found: list[int]) -> None:
    assert show.instants(num_frames, count) == found


def test_what_is_not_there_or_not_clear_is_said(data_root: Path, tmp_path: Path) -> None:
    for clip, match in (("nobody", "id"), ("a", "one/a, two/a"), ("three/a", "NAME/ID")):
        with pytest.raises(UsageError, match=match):
            main(["show", clip, "--data-root", str(data_root), "--out", str(tmp_path / "x.png")])
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UsageError, match=r"text\.mp4"):
        main(["show", str(tmp_path / "text.mp4"), "--out", str(tmp_path / "x.png")])
    assert not (tmp_path / "x.png").exists()


def test_a_file_by_its_path(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["show", str(data_root / "two/native/val/wave/a.mp4")]) == 0
    assert picture(tmp_path / "a.png").std() > 20
