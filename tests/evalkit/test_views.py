from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.errors import CropError, DataError
from evalkit import protocols, views

SAMPLERS = {"SampleFrames": "segments", "DenseSampleFrames": "dense", "UniformSample": "uniform"}
# The originals return less than the crop here; we refuse.
TOO_SMALL = {
    ("CenterCrop", 224, 100, 176),
    ("CenterCrop", 256, 100, 176),
    ("CenterCrop", 112, 100, 176),
    ("TenCrop", 224, 100, 176),
    ("CenterCrop", 256, 224, 224),
    ("CenterCrop", 256, 225, 400),
    ("CenterCrop", 256, 240, 320),
    ("ThreeCrop", 320, 240, 320),
}


@pytest.fixture(scope="module")
def sampling(golden: Path) -> list[dict[str, Any]]:
    return list(json.loads((golden / "mmaction2" / "sampling.json").read_text()))


@pytest.fixture(scope="module")
def crops(golden: Path) -> dict[str, Any]:
    return dict(json.loads((golden / "mmaction2" / "crops.json").read_text()))


@pytest.fixture(scope="module")
def others(golden: Path) -> dict[str, Any]:
    return dict(json.loads((golden / "others" / "sampling.json").read_text()))


@pytest.mark.parametrize("rule", ["mmaction2-0.x", "mmaction2-1.x"])
@pytest.mark.parametrize("op", SAMPLERS)
def test_frames_of_mmaction2(rule: str, op: str, sampling: list[dict[str, Any]]) -> None:
    version = {"mmaction2-0.x": "0.24.1", "mmaction2-1.x": "1.2.0"}[rule]
    cases = [case for case in sampling if case["op"] == op and case["peer_version"] == version]
    if not cases:
        assert (rule, op) == ("mmaction2-0.x", "UniformSample")
        with pytest.raises(ValueError, match="uniform"):
            views.frame_indices(rule, 30, 8, 1, 1, sampler="uniform")
    for case in cases:
        options = {name: value for name, value in case["args"].items() if name != "test_mode"}
        clip_len, num_clips = options.pop("clip_len"), options.pop("num_clips")
        found = views.frame_indices(
            rule,
            case["total_frames"],
            clip_len,
            options.pop("frame_interval", 1),
            num_clips,
            case.get("avg_fps"),
            sampler=SAMPLERS[op],
            **options,
        )
        assert found.dtype == np.int64
        assert found.shape[1] == clip_len
        assert (found.reshape(-1) + case["start_index"]).tolist() == case["indices"], case


def test_dense_clips_of_mmaction2_know_nothing_of_target_fps() -> None:
    # mmaction2 v1.2.0, loading.py:700: DenseSampleFrames has a transform of its own, without target_fps.
    plain, timed = (
        views.frame_indices("mmaction2-1.x", 43, 5, 8, 5, 30.0, sampler="dense", target_fps=rate) for rate in (None, 15)
    )
    assert plain.tolist() == timed.tolist()


def test_frames_of_pyslowfast(others: dict[str, Any]) -> None:
    for case in others["pyslowfast_full_decode_views"]:
        found = views.frame_indices(
            "pyslowfast",
            case["total_frames"],
            case["NUM_FRAMES"],
            case["SAMPLING_RATE"],
            case["NUM_ENSEMBLE_VIEWS"],
            case["fps"],
            target_fps=case["TARGET_FPS"],
            use_offset=case["USE_OFFSET_SAMPLING"],
        )
        assert found.tolist() == [view["frames"] for view in case["views"]], case


def test_starts_of_pyslowfast(others: dict[str, Any]) -> None:
    for case in others["pyslowfast_get_start_end_idx"]:
        found = views._pyslowfast_starts(
            case["video_size"], case["clip_size"], case["num_clips_uniform"], case["use_offset"]
        )
        assert [[start, start + case["clip_size"] - 1] for start in found] == case["start_end"], case


def test_frames_of_pyslowfast_on_something_something() -> None:
    found = views.frame_indices("pyslowfast", 50, 8, 2, 2, sampler="uniform")
    assert found.tolist() == [[3, 9, 15, 21, 27, 34, 40, 46]] * 2  # (round(6.125 i) + round(6.125 (i + 1))) // 2
    assert views.frame_indices("pyslowfast", 1, 4, 2, 1, sampler="uniform").tolist() == [[0, 0, 0, 0]]
    with pytest.raises(ValueError, match="time and uniform"):
        views.frame_indices("pyslowfast", 50, 8, 2, 2, 30.0, sampler="dense")


def test_fps_may_be_a_fraction() -> None:
    for rule in ("pyslowfast", "torchvision"):
        exact = views.frame_indices(rule, 300, 8, 8, 5, Fraction(30, 1))
        assert exact.tolist() == views.frame_indices(rule, 300, 8, 8, 5, 30.0).tolist()


def test_frames_of_torchvision(others: dict[str, Any]) -> None:
    for case in others["torchvision_videoclips_uniform5"]["cases"]:
        found = views.frame_indices(
            "torchvision",
            case["total_frames"],
            case["clip_len"],
            1,
            5,
            case["fps"],
            frame_rate=case["frame_rate"],
            step_between_clips=case["step_between_clips"],
        )
        assert found.shape == (5 if case["num_clips"] else 0, case["clip_len"])
        assert found.tolist() == case.get("frames", []), case


def test_torchvision_without_a_rate_takes_the_frames_as_they_are() -> None:
    found = views.frame_indices("torchvision", 20, 4, 1, 3, frame_rate=None, step_between_clips=5)
    assert found.tolist() == [[start + frame for frame in range(4)] for start in (0, 5, 15)]


@given(
    total_frames=st.integers(1, 700),
    fps=st.sampled_from([10.0, 12.5, 15.0, 23.976, 24.0, 25.0, 30000 / 1001, 30.0, 50.0, 60.0]) | st.floats(5, 120),
    frame_rate=st.sampled_from([15, 30, 7.5]),
    step=st.integers(1, 20),
    num_clips=st.integers(1, 12),
)
@settings(deadline=None)
def test_frames_of_the_installed_torchvision(
    total_frames: int, fps: float, frame_rate: float, step: int, num_clips: int
) -> None:
    from torchvision.datasets.video_utils import VideoClips

    frames = torch.arange(total_frames)
    num_frames = int(np.floor(total_frames * frame_rate / fps))
    picked = VideoClips._resample_video_idx(num_frames, fps, frame_rate)
    runs = frames[picked].unfold(0, 8, step) if len(frames[picked]) >= 8 else torch.empty(0, 8)
    want = runs[torch.linspace(0, len(runs) - 1, num_clips).floor().long()] if len(runs) else runs
    options = {"frame_rate": frame_rate, "step_between_clips": step}
    found = views.frame_indices("torchvision", total_frames, 8, 1, num_clips, fps, **options)
    assert found.tolist() == want.tolist()


@given(
    free=st.integers(0, 100_000),
    fps=st.sampled_from([24.0, 25.0, 30000 / 1001, 30.0, 60.0]) | st.floats(1, 240),
    clip=st.integers(0, 9),
    num=st.integers(1, 128),
    rate=st.integers(1, 16),
)
@settings(deadline=None, max_examples=300)
def test_linspace_is_torchs(free: int, fps: float, clip: int, num: int, rate: int) -> None:
    start = free * clip / 10
    end = start + num * rate / 30 * fps - 1
    assert views._linspace(start, end, num).tolist() == torch.linspace(start, end, num).tolist()


def test_subsampling_of_pytorchvideo_is_the_same_line(others: dict[str, Any]) -> None:
    for case in others["pytorchvideo_uniform_temporal_subsample"]:
        found = np.clip(views._linspace(0, case["t"] - 1, case["num_samples"]), 0, case["t"] - 1).astype(int)
        assert found.tolist() == case["index"]


def test_frames_of_gluoncv(others: dict[str, Any]) -> None:
    for case in others["gluoncv_test_frames"]["cases"]:
        found = views.frame_indices(
            "gluoncv", case["total_frames"], case["clip_len"], case["frame_sample_rate"], case["test_num_segment"]
        )
        assert found.tolist() == case["frames_per_segment"], case


# Options, and whether the rule needs fps. Every one of them must stay inside the video whatever its length.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *[
        (rule, options)
        for rule in ("mmaction2-0.x", "mmaction2-1.x")
        for options in (
            {},
            {"out_of_bound_opt": "repeat_last"},
            {"sampler": "dense"},
            {"sampler": "dense", "sample_range": 5, "num_sample_positions": 1},
            {"twice_sample": True},
        )
    ],
    ("mmaction2-1.x", {"target_fps": 30}),
    ("mmaction2-1.x", {"sampler": "uniform"}),
    ("pyslowfast", {}),
    ("pyslowfast", {"use_offset": True, "target_fps": 15}),
    ("torchvision", {}),
    ("gluoncv", {}),
]


@given(
    variant=st.sampled_from(VARIANTS),
    total_frames=st.integers(1, 2000),
    clip_len=st.integers(1, 64),
    frame_interval=st.integers(1, 16),
    num_clips=st.integers(2, 25),
    fps=st.floats(1, 240),
)
@settings(deadline=None, max_examples=500)
def test_indices_stay_inside_the_video(
    variant: tuple[str, dict[str, Any]],
    total_frames: int,
    clip_len: int,
    frame_interval: int,
    num_clips: int,
    fps: float,
) -> None:
    rule, options = variant
    found = views.frame_indices(rule, total_frames, clip_len, frame_interval, num_clips, fps, **options)
    assert found.dtype == np.int64
    assert found.ndim == 2
    assert found.shape[1] == clip_len
    if found.size:
        assert 0 <= found.min() <= found.max() < total_frames
    rows = {num_clips}
    if options.get("sampler") == "dense":
        rows = {num_clips * options.get("num_sample_positions", 10)}
    elif options.get("twice_sample"):
        rows = {2 * num_clips, num_clips} if rule == "mmaction2-0.x" else {2 * num_clips}
    elif rule == "torchvision":
        rows = {num_clips, 0}
    assert len(found) in rows


@given(total_frames=st.integers(1, 500), num_clips=st.integers(1, 12))
def test_the_two_mmaction2_rules_agree_on_single_frames(total_frames: int, num_clips: int) -> None:
    old, new = (views.frame_indices(f"mmaction2-{version}.x", total_frames, 1, 1, num_clips) for version in (0, 1))
    assert old.tolist() == new.tolist()


def test_the_drawings_in_the_docstrings() -> None:
    assert views.frame_indices("mmaction2-0.x", 10, 4, 1, 2)[:, 0].tolist() == [1, 5]
    assert views.frame_indices("mmaction2-1.x", 10, 4, 1, 3)[:, 0].tolist() == [0, 3, 6]
    last_four = views.frame_indices("pyslowfast", 300, 32, 2, 1, 30.0)[0, -4:]
    assert last_four.tolist() == [56, 58, 60, 63]


def test_what_a_rule_cannot_answer_is_refused() -> None:
    with pytest.raises(DataError, match="0 frames"):
        views.frame_indices("mmaction2-0.x", 0, 4, 16, 10)
    for rule in ("pyslowfast", "torchvision"):
        for fps in (None, 0, -25.0, float("nan"), float("inf")):
            with pytest.raises(DataError, match="fps is needed"):
                views.frame_indices(rule, 300, 8, 8, 10, fps)
    with pytest.raises(DataError, match="two clips"):
        views.frame_indices("gluoncv", 300, 8, 8, 1)
    with pytest.raises(DataError, match="two clips"):
        views.frame_indices("mmaction2-1.x", 300, 8, 8, 1, twice_sample=True)
    with pytest.raises(TypeError, match="target_fps"):
        views.frame_indices("mmaction2-0.x", 300, 8, 8, 1, target_fps=30)
    assert len(views.frame_indices("mmaction2-0.x", 300, 8, 8, 1, target_fps=None)) == 1
    with pytest.raises(ValueError, match="no rule 'mmaction2'; there are"):
        views.frame_indices("mmaction2", 300, 8, 8, 1)
    with pytest.raises(ValueError, match="clip_len=0"):
        views.frame_indices("mmaction2-0.x", 300, 0, 8, 1)
    with pytest.raises(ValueError, match="out_of_bound_opt"):
        views.frame_indices("mmaction2-0.x", 300, 8, 8, 1, out_of_bound_opt="wrap")


@pytest.mark.parametrize("rule", ["mmaction2-0.x", "mmaction2-1.x"])
def test_crops_of_mmaction2(rule: str, crops: dict[str, Any]) -> None:
    refused = set()
    for case in crops["crops"]:
        height, width = case["in_hw"]
        size, op = case["args"]["crop_size"], case["op"]
        num_crops = {"CenterCrop": 1, "ThreeCrop": 3, "TenCrop": 5}[op]
        if "error" in case or (op, size, height, width) in TOO_SMALL:
            refused.add((op, size, height, width))
            with pytest.raises(CropError):
                views.crop_boxes(rule, height, width, size, num_crops)
            continue
        found = views.crop_boxes(rule, height, width, size, num_crops)
        want = [out["box"] for out in case["out"] if out["frame"] == 0 and not out["flipped"]]
        assert [[left, top, left + w, top + h] for top, left, h, w in found] == want, case
        assert all(out["shape"][:2] == [size, size] for out in case["out"])
    assert refused >= TOO_SMALL


def test_order_of_views_of_mmaction2(crops: dict[str, Any]) -> None:
    for case in crops["format_shape"]:
        if case["crop"] is None:
            continue
        num_crops = {"ThreeCrop": 3, "TenCrop": 5, "CenterCrop": 1}[case["crop"]]
        boxes = views.crop_boxes("mmaction2-0.x", *case["in_hw"], case["crop_size"], num_crops)
        want = [view["x0"] for view in case["views"] if view["x0"] < view["x_last"]][:: case["num_clips"]]
        assert [left for _, left, _, _ in boxes] == want


@pytest.mark.parametrize("key", ["pyslowfast_uniform_crop", "pytorchvideo_uniform_crop"])
def test_crops_of_pyslowfast(key: str, others: dict[str, Any]) -> None:
    seen: Counter[str] = Counter()
    for case in others[key]:
        height, width, size, index = (case[name] for name in ("height", "width", "size", "spatial_idx"))
        if case["out_shape"] != [size, size]:
            seen["refused"] += 1
            with pytest.raises(CropError):
                views.crop_boxes("pyslowfast", height, width, size, 3)
            continue
        seen["agrees"] += 1
        assert views.crop_boxes("pyslowfast", height, width, size, 3)[index] == (case["y0"], case["x0"], size, size)
        if index == 1:
            assert views.crop_boxes("pyslowfast", height, width, size, 1) == [(case["y0"], case["x0"], size, size)]
    assert seen["agrees"] > len(others[key]) * 0.8


def test_crops_of_gluoncv(others: dict[str, Any]) -> None:
    for case in others["gluoncv_test_crops"]["cases"]:
        height, width = case["after_resize"]
        found = views.crop_boxes("gluoncv", height, width, case["crop"], len(case["starts"]))
        starts = [left if case["axis"] == "width" else top for top, left, _, _ in found]
        assert starts == case["starts"]


@given(height=st.integers(1, 600), width=st.integers(1, 600), size=st.integers(1, 600))
def test_crop_of_the_installed_torchvision(height: int, width: int, size: int) -> None:
    from torchvision.transforms.functional import center_crop

    if size > min(height, width):
        with pytest.raises(CropError, match=f"crop of {size}"):
            views.crop_boxes("torchvision", height, width, size, 1)
        return
    rows, columns = torch.arange(height)[:, None].expand(height, width), torch.arange(width).expand(height, width)
    picture = center_crop(torch.stack([rows, columns]), [size, size])
    top, left = picture[:, 0, 0].tolist()
    assert views.crop_boxes("torchvision", height, width, size, 1) == [(top, left, size, size)]


@given(
    rule=st.sampled_from(views.RULES),
    height=st.integers(1, 500),
    width=st.integers(1, 500),
    size=st.integers(1, 500),
    num_crops=st.sampled_from([1, 2, 3, 5, 10]),
)
@settings(max_examples=300)
def test_every_crop_is_whole(rule: str, height: int, width: int, size: int, num_crops: int) -> None:
    try:
        boxes = views.crop_boxes(rule, height, width, size, num_crops)
    except CropError:
        return
    assert len(boxes) == num_crops
    for top, left, box_height, box_width in boxes:
        assert 0 <= top <= top + box_height <= height
        assert 0 <= left <= left + box_width <= width
        assert box_height == box_width == size


def test_crops_that_no_rule_has_are_refused() -> None:
    for rule, num_crops in [("pyslowfast", 5), ("torchvision", 3), ("gluoncv", 1), ("mmaction2-0.x", 10)]:
        with pytest.raises(CropError, match=str(num_crops)):
            views.crop_boxes(rule, 256, 340, 256, num_crops)
    with pytest.raises(CropError, match="resize its short side to 224"):
        views.crop_boxes("mmaction2-0.x", 256, 340, 224, 3)
    with pytest.raises(CropError, match="short side"):
        views.crop_boxes("gluoncv", 256, 340, 224, 3)
    with pytest.raises(ValueError, match="no rule"):
        views.crop_boxes("mmaction", 256, 340, 224, 1)


@pytest.mark.parametrize("rule", ["mmaction2-0.x", "mmaction2-1.x"])
def test_sizes_of_mmaction2(rule: str, crops: dict[str, Any]) -> None:
    for case in crops["resize"]:
        scale = case["args"]["scale"]
        wanted: Any
        if not case["args"]["keep_ratio"]:
            wanted = (*scale, "stretch")
        elif scale == "inf,256" or (isinstance(scale, list) and -1 in scale):
            wanted = 256 if scale == "inf,256" else max(scale)
        else:
            wanted = scale if isinstance(scale, float) else tuple(scale)
        assert list(views.resized(rule, *case["in_hw"], wanted)) == case["out_hw"], case


def test_sizes_of_the_others(others: dict[str, Any]) -> None:
    for case in others["pyslowfast_short_side_resize"]["cases"]:
        assert list(views.resized("pyslowfast", case["height"], case["width"], case["short"])) == case["out"], case
    for case in others["pytorchvideo_short_side_scale"]:
        assert list(views.resized("pyslowfast", case["height"], case["width"], case["size"])) == case["out"], case
    for case in others["gluoncv_test_crops"]["cases"]:
        scale: Any = 256 if case["keep_aspect_ratio"] else (340, 256, "stretch")
        assert list(views.resized("gluoncv", *case["video_hw"], scale)) == case["after_resize"], case
    for case in others["pyslowfast_uniform_crop_scale_size"]:
        height, width = views.resized("pyslowfast", case["height"], case["width"], case["scale_size"])
        _, _, *out = views.crop_boxes("pyslowfast", height, width, case["size"], 3)[case["spatial_idx"]]
        assert out == case["out"]


@given(rule=st.sampled_from(views.RULES), short=st.integers(1, 600), more=st.integers(0, 900), portrait=st.booleans())
def test_a_frame_of_the_right_size_stays_as_it_is(rule: str, short: int, more: int, portrait: bool) -> None:
    # PySlowFast 287ec00 slowfast/datasets/transform.py:48-97 returns such frames before it computes a size: 115/112*112
    # is a little less than 115, and cutting it would lose a column.
    size = (short + more, short) if portrait else (short, short + more)
    assert views.resized(rule, *size, short) == size


def test_short_side_as_mmaction2_writes_it() -> None:
    for height, width in [(240, 320), (320, 240), (257, 1001), (100, 176)]:
        for rule in ("mmaction2-0.x", "mmaction2-1.x"):
            assert views.resized(rule, height, width, (-1, 256)) == views.resized(rule, height, width, 256)
            assert views.resized(rule, height, width, (256, -1)) == views.resized(rule, height, width, 256)


@given(height=st.integers(2, 2000), width=st.integers(2, 2000), size=st.integers(1, 512))
@settings(deadline=None)
def test_size_of_the_installed_torchvision(height: int, width: int, size: int) -> None:
    from torchvision.transforms.functional import _compute_resized_output_size

    want = _compute_resized_output_size((height, width), [size])
    assert list(views.resized("torchvision", height, width, size)) == want


def test_scales_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="stretch"):
        views.resized("mmaction2-0.x", 240, 320, (171, 128, "fit"))
    with pytest.raises(ValueError, match="short side"):
        views.resized("pyslowfast", 240, 320, (340, 256))
    with pytest.raises(ValueError, match="no rule"):
        views.resized("decord", 240, 320, 256)


def test_every_protocol_can_be_planned() -> None:
    for name in protocols.names():
        for mode in protocols.MODES:
            protocol = protocols.get(name, mode)
            indices = views.frame_indices(protocol.sampling, 300, 8, 2, protocol.num_clips, 30.0, **protocol.options)
            assert len(indices) >= protocol.num_clips
            height, width = views.resized(protocol.sampling, 240, 320, protocol.scale)
            crops = 5 if protocol.num_crops == 10 else protocol.num_crops
            boxes = views.crop_boxes(protocol.sampling, height, width, protocol.crop_px, crops)
            assert len(set(boxes)) == crops
