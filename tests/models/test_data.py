"""Training clips: frames, crops and what happens to clips that cannot be read. Each frame shows its own number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import zoo
from models.training import data, recipe

SPEC = zoo.spec("slowonly_tiny", num_classes=2, clip_len=4, frame_interval=3, train_crop_px=16)
HOW = dataclasses.replace(recipe.get("tiny"), batch=4, short_side_px=20, colour_mix=0.0)
Make = Callable[..., list[Any]]


class Fixed:
    """A generator whose integers are as large as they may be."""

    def integers(self, high: int) -> int:
        return high - 1


def test_indices_start_anywhere_and_short_videos_loop() -> None:
    rng = np.random.default_rng(0)
    starts = {int(data.train_indices(14, SPEC, rng)[0]) for _ in range(200)}
    assert starts == {0, 1, 2}
    assert data.train_indices(14, SPEC, Fixed()).tolist() == [2, 5, 8, 11]  # type: ignore[arg-type]
    assert data.train_indices(12, SPEC, rng).tolist() == [0, 3, 6, 9]
    assert data.train_indices(5, SPEC, rng).tolist() == [0, 3, 1, 4]
    assert data.train_indices(1, SPEC, rng).tolist() == [0, 0, 0, 0]


def test_differences_want_the_next_frame_too() -> None:
    spec = dataclasses.replace(SPEC, input="rgb-diff")
    assert data.train_indices(10, spec, np.random.default_rng(0)).tolist() == [0, 1, 3, 4, 6, 7, 9, 9]


def test_crops_are_of_the_asked_area_and_aspect_and_inside() -> None:
    how = dataclasses.replace(HOW, crop_area=(0.25, 0.5), crop_aspect=(0.8, 1.25))
    rng = np.random.default_rng(1)
    for _ in range(300):
        top, left, height, width = data.crop_box(60, 90, how, rng)
        assert 0 <= top <= 60 - height
        assert 0 <= left <= 90 - width
        assert 0.24 * 5400 <= height * width <= 0.51 * 5400
        assert 0.76 <= width / height <= 1.32
    assert data.crop_box(10, 1000, dataclasses.replace(how, crop_area=(1, 1)), rng) == (0, 495, 10, 10)


@pytest.mark.parametrize("cache_bytes", [0, 1e9], ids=["from files", "from memory"])
def test_the_same_draws_whatever_reads_them(make_clips: Make, cache_bytes: float) -> None:
    clips = make_clips(num_clips=10)
    reference = epoch_of(clips, cache_bytes=0, num_workers=0)
    again = epoch_of(clips, cache_bytes=cache_bytes, num_workers=2)
    assert [len(batch.labels) for batch in again] == [4, 3, 3]
    for one, other in zip(reference, again, strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.labels, other.labels)
    assert not torch.equal(reference[0].x, epoch_of(clips, cache_bytes=0, num_workers=0, epoch=1)[0].x)


def epoch_of(clips: list[Any], *, cache_bytes: float, num_workers: int, epoch: int = 0) -> list[data.Batch]:
    source = data.TrainingClips(clips, SPEC, HOW, seed=5, cache_bytes=cache_bytes)
    return list(source.batches(epoch, num_workers=num_workers))


def test_a_batch_holds_the_frames_in_order(make_clips: Make) -> None:
    """The videos' grey level grows by 4 a frame, so a clip's levels tell which frames it is made of."""
    clips = make_clips(num_clips=2, num_frames=30)
    (batch,) = epoch_of(clips, cache_bytes=0, num_workers=0)
    assert batch.x.shape == (2, 3, 4, 16, 16)
    assert batch.x.dtype == torch.uint8
    frames = batch.x.float().mean(dim=(1, 3, 4)) / 4
    assert torch.allclose(frames.diff(dim=1).abs(), torch.full((2, 3), 3.0), atol=0.5)


def test_unreadable_clips_are_named_and_nothing_takes_their_place(make_clips: Make, tmp_path: Path) -> None:
    clips = make_clips(num_clips=5)
    clips[1].path.write_bytes(b"no video")
    clips[3] = dataclasses.replace(clips[3], path=None)
    how = dataclasses.replace(HOW, batch=5)
    (batch,) = data.TrainingClips(clips, SPEC, how, seed=0, cache_bytes=0).batches(0, num_workers=2)
    assert len(batch.labels) == 3
    assert sorted(name for name, _ in batch.failed) == [clips[1].id, clips[3].id]
    assert all(reason for _, reason in batch.failed)


def test_memory_is_counted_before_it_is_taken(make_clips: Make) -> None:
    clips = make_clips(num_clips=3, num_frames=10)
    assert data.memory_needed(clips, 20) == 3 * 10 * 20 * 27 * 3
    assert data.memory_needed([dataclasses.replace(clips[0], width=None)], 20) == float("inf")


def test_colours_turn_about_grey_and_alike_in_all_frames() -> None:
    x = torch.randint(90, 166, (2, 3, 4, 5), dtype=torch.uint8)
    x[1] = x[0]
    assert torch.equal(data.recoloured(x, 0.0, np.random.default_rng(0)), x)
    grey = torch.full((1, 3, 2, 2), 128, dtype=torch.uint8)
    assert torch.equal(data.recoloured(grey, 1.0, np.random.default_rng(0)), grey)
    turned = data.recoloured(x, 1.0, np.random.default_rng(0))
    assert torch.equal(turned[0], turned[1])
    lengths = [(one.float() - 128).norm(dim=1) for one in (x, turned)]
    assert torch.allclose(*lengths, atol=1.0)  # a rotation keeps the distance to grey
    assert not torch.allclose(x.float(), turned.float(), atol=8.0)


def test_flip_mirrors_half_of_the_clips(make_clips: Make) -> None:
    clips = make_clips(num_clips=1, num_frames=14, bright_left=True)
    how = dataclasses.replace(HOW, flip=True, crop_area=(1, 1), crop_aspect=(1.3, 1.4))
    source = data.TrainingClips(clips, SPEC, how, seed=0, cache_bytes=1e9)
    left = 0
    for epoch in range(40):
        (batch,) = source.batches(epoch, num_workers=0)
        halves = batch.x.float().mean(dim=(0, 1, 3)).unflatten(1, (2, 8)).mean(dim=2)
        left += int(halves[0, 0] > halves[0, 1])
    assert 10 < left < 30
