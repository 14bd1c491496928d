from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import manifests
from datakit import reader, tvl1

GOLDEN = Path(__file__).parent / "tvl1_opencv.npz"


def parameters(name: str) -> tvl1.Parameters:
    return tvl1.Parameters(**manifests.read("flow")["tvl1"][name])


def scene(time: float, height: int = 72, width: int = 104) -> np.ndarray:
    """A background that turns and drifts behind a square that moves the other way, grey uint8."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    turn = 0.02 * time
    a = np.cos(turn) * (x - width / 2) - np.sin(turn) * (y - height / 2) + 1.5 * time
    b = np.sin(turn) * (x - width / 2) + np.cos(turn) * (y - height / 2) - 0.75 * time
    picture = 128 + 40 * np.sin(a / 3.1) * np.cos(b / 4.3) + 30 * np.sin(a / 9 + b / 7) + 12 * np.cos(a * b / 150)
    inside = (abs(x - 60 - 3 * time) < 13) & (abs(y - 36 - 2 * time) < 11)
    picture[inside] = (128 + 90 * np.sin((x - 3 * time) / 2.3) * np.sin((y - 2 * time) / 2.9))[inside]
    return np.rint(picture).clip(0, 255).astype(np.uint8)


def flow(first: np.ndarray, second: np.ndarray, how: tvl1.Parameters) -> np.ndarray:
    """[H, W, 2] of one pair, or [B, H, W, 2]."""
    pair = [torch.from_numpy(np.atleast_3d(one) if one.ndim == 3 else one[None]) for one in (first, second)]
    found = tvl1.flow(pair[0], pair[1], how).permute(0, 2, 3, 1).numpy()
    return found if first.ndim == 3 else found[0]


def end_point_error(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.linalg.norm(one - other, axis=-1)


def test_flow_is_that_of_opencv_on_a_made_scene() -> None:
    """tvl1_opencv.npz: what cv2.optflow.DualTVL1OpticalFlow (5.0.0) with its defaults says of scene(0) and scene(1)."""
    with np.load(GOLDEN, allow_pickle=False) as stored:
        wanted = stored["flow"].astype(np.float32)
    error = end_point_error(flow(scene(0), scene(1), parameters("opencv")), wanted)
    assert wanted[36, 60] == pytest.approx([3, 2], abs=0.2)  # the square; and the reference is no zeros
    assert error.mean() < 0.02
    assert np.percentile(error, 95) < 0.1


def cuda_reference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """OpenCV's cudaoptflow (src/tvl1flow.cpp, src/cuda/tvl1flow.cu, cudawarping/src/cuda/resize.cu), kernel by kernel.

    Written from those files for one pair in float64, with none of the ways in which ours saves work.
    """
    tau, lambda_, theta, epsilon = 0.25, 0.15, 0.3, 0.01

    def resized(picture: np.ndarray, height: int, width: int, y_step: float, x_step: float) -> np.ndarray:
        y, x = np.meshgrid(np.arange(height) * y_step, np.arange(width) * x_step, indexing="ij")
        top, left = np.floor(y).astype(int), np.floor(x).astype(int)
        below, right = np.minimum(top + 1, picture.shape[0] - 1), np.minimum(left + 1, picture.shape[1] - 1)
        upper = picture[top, left] * (left + 1 - x) + picture[top, right] * (x - left)
        lower = picture[below, left] * (left + 1 - x) + picture[below, right] * (x - left)
        return np.asarray(upper * (top + 1 - y) + lower * (y - top))

    def weight(distance: np.ndarray) -> np.ndarray:
        x = np.abs(distance)
        return np.where(x <= 1, x * x * (1.5 * x - 2.5) + 1, np.where(x < 2, x * (x * (-0.5 * x + 2.5) - 4) + 2, 0))

    def warped(picture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        total, weights = np.zeros_like(x), np.zeros_like(x)
        for row in range(5):
            for column in range(5):
                at_y, at_x = np.ceil(y - 2) + row, np.ceil(x - 2) + column
                share = weight(x - at_x) * weight(y - at_y)
                inside = at_y.astype(int).clip(0, x.shape[0] - 1), at_x.astype(int).clip(0, x.shape[1] - 1)
                total, weights = total + share * picture[inside], weights + share
        return np.asarray(total / weights)

    def ahead(u: np.ndarray, axis: int) -> np.ndarray:
        return np.diff(u, axis=axis, append=np.take(u, [-1], axis=axis))

    def divergence(x_dual: np.ndarray, y_dual: np.ndarray) -> np.ndarray:
        return np.asarray(np.diff(x_dual, axis=1, prepend=0) + np.diff(y_dual, axis=0, prepend=0))

    levels = [(first.astype(np.float64), second.astype(np.float64))]
    while len(levels) < 5:
        height, width = (round(side * 0.8) for side in levels[-1][0].shape)
        if min(height, width) < 16:
            break
        levels.append(tuple(resized(one, height, width, 1.25, 1.25) for one in levels[-1]))  # type: ignore[arg-type]
    u = np.zeros((2, *levels[-1][0].shape))
    for number in reversed(range(len(levels))):
        one, other = levels[number]
        goal = epsilon**2 * one.size
        wide = np.pad(other, 1, mode="edge")
        x_slope, y_slope = (wide[1:-1, 2:] - wide[1:-1, :-2]) / 2, (wide[2:, 1:-1] - wide[:-2, 1:-1]) / 2
        duals = np.zeros((2, 2, *one.shape))
        y_here, x_here = np.indices(one.shape)
        for _ in range(5):
            x, y = x_here + u[0], y_here + u[1]
            g = np.stack([warped(x_slope, x, y), warped(y_slope, x, y)])
            steep = (g**2).sum(0)
            constant = warped(other, x, y) - (g * u).sum(0) - one
            error, before, n = np.inf, 0.0, 0
            while error > goal and n < 300:
                look = n % 2 == 1 and before < goal
                rho = constant + (g * u).sum(0)
                most = lambda_ * theta
                share = np.where(
                    rho < -most * steep, most,
                    np.where(rho > most * steep, -most, np.where(steep > 1.19e-7, -rho / np.maximum(steep, 1e-30), 0)),
                )  # fmt: skip
                new = u + share * g + theta * np.stack([divergence(*duals[0]), divergence(*duals[1])])
                if look:
                    error = before = ((new - u) ** 2).sum()
                else:
                    error, before = np.inf, before - goal
                u = new
                for component in (0, 1):
                    slopes = np.stack([ahead(u[component], 1), ahead(u[component], 0)])
                    duals[component] += tau / theta * slopes
                    duals[component] /= 1 + tau / theta * np.hypot(*slopes)
                n += 1
        if number:
            height, width = levels[number - 1][0].shape
            steps = one.shape[0] / height, one.shape[1] / width
            u = np.stack([resized(component, height, width, *steps) for component in u]) / 0.8
    return np.moveaxis(u, 0, -1)


@pytest.mark.parametrize(("height", "width"), [(27, 35), (21, 17)])
def test_cuda_set_is_what_opencvs_kernels_say(height: int, width: int) -> None:
    first, second = scene(0)[20 : 20 + height, 30 : 30 + width], scene(1)[20 : 20 + height, 30 : 30 + width]
    wanted = cuda_reference(first, second)
    error = end_point_error(flow(first, second, parameters("opencv-cuda")), wanted)
    assert np.abs(wanted).max() > 2
    assert error.mean() < 0.01
    assert np.percentile(error, 95) < 0.05


def test_cuda_set_finds_the_same_motion() -> None:
    with np.load(GOLDEN, allow_pickle=False) as stored:
        wanted = stored["flow"].astype(np.float32)
    error = end_point_error(flow(scene(0), scene(1), parameters("opencv-cuda")), wanted)
    assert np.median(error) < 0.1  # the filter that it lacks moves edges, so no more than that can be asked


@pytest.mark.parametrize("name", ["opencv", "opencv-cuda", "fast"])
def test_known_motion_is_found(name: str) -> None:
    rng = np.random.default_rng(1)
    spectrum = np.fft.rfft2(rng.normal(size=(96, 128))) * np.exp(-60 * np.add.outer(
        np.fft.fftfreq(96) ** 2, np.fft.rfftfreq(128) ** 2))  # fmt: skip

    def moved(x: float, y: float) -> np.ndarray:
        phase = np.exp(-2j * np.pi * np.add.outer(np.fft.fftfreq(96) * y, np.fft.rfftfreq(128) * x))
        picture = np.fft.irfft2(spectrum * phase)
        return np.asarray(np.rint(128 + 45 * picture / picture.std()).clip(0, 255), np.uint8)

    found = flow(moved(0, 0), moved(4.25, -2.5), parameters(name))[12:-12, 12:-12]
    assert np.median(end_point_error(found, np.array([4.25, -2.5]))) < 0.1


@pytest.mark.parametrize(("name", "patience"), [("opencv", 1), ("opencv", 7), ("opencv-cuda", 7)])
def test_pairs_of_a_batch_do_not_change_one_another(name: str, patience: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stop at different iterations; one stands still from the start. On a GPU the batch is looked at seldom."""
    pairs = [(0.0, 1.0), (0.0, 0.0), (1.0, 0.7)]
    first, second = (np.stack([scene(pair[side], 44, 60) for pair in pairs]) for side in (0, 1))
    alone = [flow(one, other, parameters(name)) for one, other in zip(first, second, strict=True)]
    monkeypatch.setitem(tvl1.PATIENCE, "cpu", patience)
    together = flow(first, second, parameters(name))
    for number in range(len(pairs)):
        assert np.array_equal(together[number], alone[number]), number
    assert not together[1].any()


def test_small_pictures_have_fewer_levels() -> None:
    first, second = scene(0)[:20, :30], scene(1)[:20, :30]
    five = flow(first, second, parameters("opencv"))
    one_more = replace(parameters("opencv"), scales=2)
    assert five.shape == (20, 30, 2)
    assert np.array_equal(five, flow(first, second, one_more))  # 0.8 of 20 is 16, 0.64 would be 13


def test_median_is_the_median() -> None:
    picture = torch.randn(2, 2, 17, 23, generator=torch.Generator().manual_seed(0))
    picture[0, 0, :5] = 1.5  # many equal values
    padded = torch.nn.functional.pad(picture, (2, 2, 2, 2), mode="replicate")
    wanted = padded.unfold(2, 5, 1).unfold(3, 5, 1).flatten(4).median(-1).values
    assert torch.equal(tvl1._median_5x5(picture), wanted)


def test_warp_is_that_of_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    picture = rng.uniform(0, 255, (40, 50)).astype(np.float32)
    u = rng.normal(0, 4, (2, 40, 50)).astype(np.float32)
    x, y = u[0] + np.arange(50, dtype=np.float32), u[1] + np.arange(40, dtype=np.float32)[:, None]
    wanted = cv2.remap(picture, x, y, cv2.INTER_CUBIC)
    found = tvl1._warped(torch.from_numpy(picture)[None, None], torch.from_numpy(u)[None], "cubic")[0, 0].numpy()
    if int(cv2.__version__.split(".")[0]) >= 5:  # before, positions were rounded to 1/32 pixel
        assert np.abs(found - wanted).max() < 1e-3
    assert np.abs(found - wanted).mean() < 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bikes.mp4", "vid1.mp4", "carphone_pristine.mp4", "fire2.mp4"])
def test_flow_of_real_videos_is_that_of_opencv(videos: Path, name: str) -> None:
    """Needs opencv-contrib-python-headless, in an environment of its own."""
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2, "optflow"):
        pytest.skip("needs opencv-contrib-python-headless")
    with reader.open(videos / "fixtures" / name) as video:
        frames = video.frames([10, 11])
    grey: list[Any] = []
    for frame in frames:
        scale = 120 / min(frame.shape[:2])
        small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        grey.append(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))
    wanted = cv2.optflow.DualTVL1OpticalFlow_create().calc(grey[0], grey[1], None)
    error = end_point_error(flow(grey[0], grey[1], parameters("opencv")), wanted)
    asked = np.linalg.norm(wanted, axis=-1) < 20
    assert error[asked].mean() <= 0.1
    assert np.percentile(error[asked], 95) <= 0.5
