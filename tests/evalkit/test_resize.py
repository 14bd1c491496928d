"""The device's resize against OpenCV: golden pixels made with it, and the library itself over sizes of all kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit import resize

WITH_OPENCV = resize._opencv
side = st.one_of(st.integers(1, 6), st.integers(1, 60), st.integers(1, 300))


@pytest.fixture(scope="module", autouse=True)
def without_opencv() -> Iterator[None]:
    """What does the work where OpenCV is not installed, and on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resize, "_opencv", lambda: None)
        yield


def opencv(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    cv2 = pytest.importorskip("cv2", reason="needs opencv-python-headless")
    n, _, _, channels = frames.shape
    resized = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR) for frame in frames]
    return np.stack(resized).reshape(n, height, width, channels).transpose(0, 3, 1, 2)


def ours(frames: np.ndarray, height: int, width: int, **part: tuple[int, int]) -> np.ndarray:
    return resize.linear(torch.from_numpy(frames), height, width, **part).numpy()


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_golden_pixels(golden: Path) -> None:
    with np.load(golden / "mmaction2" / "resize_pixels.npz") as arrays:
        for case in range(5):
            wanted = arrays[f"out{case}"]
            assert np.array_equal(ours(arrays[f"in{case}"][None], *wanted.shape[:2])[0], wanted.transpose(2, 0, 1))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(side, side, side, side, st.sampled_from([1, 3]), st.integers(0, 1 << 32))
def test_any_size_up_and_down_equals_opencv_to_the_bit(
    stored_height: int, stored_width: int, height: int, width: int, channels: int, seed: int
) -> None:
    frames = noise(seed, 2, stored_height, stored_width, channels)
    assert np.array_equal(ours(frames, height, width), opencv(frames, height, width))


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ((512, 910), (256, 455)),  # both sides halve exactly: cv2 averages 2 x 2 pixels instead
        ((512, 910), (256, 454)),  # one of them
        ((512, 900), (255, 450)),
        ((2, 2), (1, 1)),
        ((256, 340), (256, 340)),  # nothing to do
        ((256, 340), (256, 341)),  # one pass only
        ((1, 1), (64, 64)),
        ((320, 568), (256, 454)),
        ((240, 320), (256, 341)),
        ((1080, 1920), (256, 455)),
    ],
)
def test_special_sizes_equal_opencv_to_the_bit(stored: tuple[int, int], wanted: tuple[int, int]) -> None:
    for channels in (1, 3, 4):
        frames = noise(0, 1, *stored, channels)
        assert np.array_equal(ours(frames, *wanted), opencv(frames, *wanted))


def test_extreme_pixels_do_not_overflow() -> None:
    frames = np.zeros((2, 97, 61, 3), np.uint8)
    frames[0] = 255
    frames[1, ::2, ::2] = 255
    assert np.array_equal(ours(frames, 64, 128), opencv(frames, 64, 128))


@pytest.mark.parametrize(("height", "width"), [(40, 50), (120, 160), (48, 64), (96, 128)])
def test_a_part_is_a_part_of_the_whole(height: int, width: int) -> None:
    frames = noise(1, 3, 96, 128, 3)
    part = ours(frames, height, width, rows=(3, 31), cols=(7, 49))
    assert np.array_equal(part, ours(frames, height, width)[:, :, 3:31, 7:49])


@pytest.mark.parametrize("size", [(40, 50), (48, 64), (96, 128), (120, 160)])
def test_with_opencv_installed_it_is_the_same(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = pytest.importorskip("cv2", reason="needs opencv-python-headless")
    assert WITH_OPENCV() is cv2  # found equal
    frames = noise(4, 3, 96, 128, 3)
    part = {"rows": (3, 31), "cols": (7, 49)}
    whole, cut, empty = ours(frames, *size), ours(frames, *size, **part), ours(frames[:0], *size)
    monkeypatch.setattr(resize, "_opencv", WITH_OPENCV)
    assert np.array_equal(ours(frames, *size), whole)
    assert np.array_equal(ours(frames, *size, **part), cut)
    assert np.array_equal(ours(frames[:0], *size), empty)
    turned = np.ascontiguousarray(frames.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)  # planar memory, as from a GPU
    assert np.array_equal(ours(turned, *size), whole)


def test_an_opencv_that_resizes_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = pytest.importorskip("cv2", reason="needs opencv-python-headless")
    exact = cv2.resize
    monkeypatch.setattr(cv2, "resize", lambda frame, size: exact(frame, size, interpolation=cv2.INTER_LINEAR_EXACT))
    assert WITH_OPENCV.__wrapped__() is None


def test_two_channels_are_two_pictures() -> None:
    """Flow was resized as x and y of one channel each; cv2 rounds a two-channel picture differently when it halves."""
    flow = noise(2, 4, 64, 96, 2)
    apart = np.concatenate([opencv(flow[..., :1], 32, 48), opencv(flow[..., 1:], 32, 48)], axis=1)
    assert np.array_equal(ours(flow, 32, 48), apart)


@pytest.mark.needs_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_bits() -> None:
    frames = torch.from_numpy(noise(3, 40, 320, 568, 3))
    for size in [(256, 454), (160, 284), (320, 568), (400, 700)]:
        assert torch.equal(resize.linear(frames.cuda(), *size).cpu(), resize.linear(frames, *size))
