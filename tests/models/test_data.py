"""Training clips: frames, crops and what happens to clips that cannot be read. Each frame shows its own number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datakit import reader
from models import zoo
from models.training import data, recipe
from models.training.multigrid import Grid

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


def test_another_clip_takes_the_place_of_one_that_cannot_be_read(make_clips: Make) -> None:
    clips = make_clips(num_clips=5)
    clips[1].path.write_bytes(b"no video")
    clips[3] = dataclasses.replace(clips[3], path=None)
    how = dataclasses.replace(HOW, batch=5)
    (batch,) = data.TrainingClips(clips, SPEC, how, seed=0, cache_bytes=0).batches(0, num_workers=2)
    (again,) = data.TrainingClips(clips, SPEC, how, seed=0, cache_bytes=0).batches(0, num_workers=0)
    assert batch.x.shape == (5, 3, 4, 16, 16)
    assert torch.equal(batch.x, again.x)
    assert set(dict(batch.failed)) == {clips[1].id, clips[3].id}
    assert all(reason for _, reason in batch.failed)


def test_where_nothing_can_be_read_the_batch_is_empty(make_clips: Make) -> None:
    clips = [dataclasses.replace(clip, path=None) for clip in make_clips(num_clips=2)]
    (batch,) = data.TrainingClips(clips, SPEC, HOW, seed=0, cache_bytes=0).batches(0, num_workers=0)
    assert len(batch.labels) == 0
    assert set(dict(batch.failed)) == {clip.id for clip in clips}


def test_memory_is_counted_before_it_is_taken(make_clips: Make) -> None:
    clips = make_clips(num_clips=3, num_frames=10)
    assert data.memory_needed(clips, 20) == 3 * 10 * 20 * 27 * 3
    assert data.memory_needed([dataclasses.replace(clips[0], width=None)], 20) == float("inf")


def as_pictures(folder: Path, frames: Any) -> Path:
    """uint8 [n, H, W, 3] as frames, [n, H, W, 2] as flow."""
    folder.mkdir()
    for number, frame in enumerate(frames, start=1):
        if frame.shape[-1] == 3:
            Image.fromarray(frame).save(folder / f"img_{number:05}.jpg", quality=100)
        else:
            for plane, axis in enumerate("xy"):
                Image.fromarray(frame[..., plane]).save(folder / f"flow_{axis}_{number:05}.jpg", quality=100)
    return folder


def test_folders_of_pictures_are_read_like_videos(make_clips: Make, tmp_path: Path) -> None:
    clips = make_clips(num_clips=3, num_frames=30)
    folders = []
    for clip in clips:
        with reader.open(clip.path, num_frames=30) as video:
            folder = as_pictures(tmp_path / clip.id, video.frames(np.arange(30)))
        folders.append(dataclasses.replace(clip, path=folder))
    for one, other in zip(
        epoch_of(clips, cache_bytes=0, num_workers=0), epoch_of(folders, cache_bytes=0, num_workers=0), strict=True
    ):
        assert torch.equal(one.labels, other.labels)
        assert (one.x.float() - other.x.float()).abs().mean() < 2


def test_flow_is_mirrored_with_its_sign(make_clips: Make, tmp_path: Path) -> None:
    """To the right on the left half, everywhere down: in the mirror to the left on the right half, and down."""
    frames = np.full((12, 48, 64, 2), 128, np.uint8)
    frames[:, :, :32, 0], frames[..., 1] = 200, 160
    folder = as_pictures(tmp_path / "flow", frames)
    clips = [dataclasses.replace(make_clips(num_clips=1)[0], path=folder)]
    spec = zoo.spec("slowonly_tiny_flow", num_classes=2, clip_len=4, frame_interval=3, train_crop_px=16)
    how = dataclasses.replace(
        HOW, flip=True, crop_area=(1, 1), crop_aspect=(1.3, 1.4), colour_jitter=(0.4, 0.4, 0.4, 0.1)
    )
    source = data.TrainingClips(clips, spec, how, seed=0, cache_bytes=0)
    seen = set()
    for epoch in range(20):
        (batch,) = source.batches(epoch, num_workers=0)
        assert batch.x.shape == (1, 2, 4, 16, 16)
        left, right = (
            batch.x[0, 0, :, :, columns].float().mean().round().item() for columns in (slice(6), slice(10, 16))
        )
        assert abs(batch.x[0, 1].float().mean() - 160) < 1
        seen.add((left, right))
    assert seen == {(200, 128), (127, 55)}


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


# mmaction2 v0.24.1 SampleFrames(clip_len=1, frame_interval=1, num_clips=8) in training, from its rule by hand.
@pytest.mark.parametrize(
    ("num_frames", "lowest", "highest"),
    [
        (80, [0, 10, 20, 30, 40, 50, 60, 70], [9, 19, 29, 39, 49, 59, 69, 79]),
        (17, [0, 2, 4, 6, 8, 10, 12, 14], [1, 3, 5, 7, 9, 11, 13, 15]),
        (5, [0, 1, 1, 2, 2, 3, 4, 4], [0, 1, 1, 2, 2, 3, 4, 4]),
        (1, [0] * 8, [0] * 8),
    ],
)
def test_each_segment_has_its_own_part(num_frames: int, lowest: list[int], highest: list[int]) -> None:
    spec = zoo.spec("tsn_tiny", num_classes=2)
    draws = np.stack([data.train_indices(num_frames, spec, np.random.default_rng(seed)) for seed in range(300)])
    assert draws.min(axis=0).tolist() == lowest
    assert draws.max(axis=0).tolist() == highest


def test_2d_networks_get_their_segments_as_time(make_clips: Make) -> None:
    spec = zoo.spec("tsn_tiny", num_classes=2, train_crop_px=16)
    clips = make_clips(num_clips=2, num_frames=40)
    how = dataclasses.replace(HOW, batch=2)
    (batch,) = data.TrainingClips(clips, spec, how, seed=0, cache_bytes=0).batches(0, num_workers=0)
    assert batch.x.shape == (2, 3, 8, 16, 16)
    levels = batch.x.float().mean(dim=(1, 3, 4)) / 4
    assert bool((levels.diff(dim=1).abs() >= 0.5).all())


def test_several_clips_of_one_reading(make_clips: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = make_clips(num_clips=4, num_frames=40)
    opened: list[str] = []
    really = data.reader.open

    def counted(path: Any, **options: Any) -> Any:
        opened.append(path.stem)
        return really(path, **options)

    monkeypatch.setattr(data.reader, "open", counted)
    how = dataclasses.replace(HOW, batch=6, repeats=3)
    source = data.TrainingClips(clips, SPEC, how, seed=0, cache_bytes=0)
    first, second = source.batches(0, num_workers=0)
    assert (len(source), source.num_steps, len(first.labels), len(second.labels)) == (12, 2, 6, 6)
    assert sorted(opened) == sorted(clip.id for clip in clips)
    assert first.labels[:3].unique().numel() == first.labels[3:].unique().numel() == 1
    assert not torch.equal(first.x[0], first.x[1])


def test_shapes_of_multigrid_and_the_shares_of_processes(make_clips: Make) -> None:
    clips = make_clips(num_clips=6, num_frames=40)
    source = data.TrainingClips(clips, SPEC, HOW, seed=0, cache_bytes=0)
    grids = [
        Grid(num_clips=4, clip_len=2, crop_px=8, max_interval=6),
        Grid(num_clips=2, clip_len=4, crop_px=16, max_interval=3),
    ]
    shapes = [tuple(batch.x.shape) for batch in source.batches(0, num_workers=2, grids=grids)]
    assert shapes == [(4, 3, 2, 8, 8), (2, 3, 4, 16, 16)]
    whole = list(source.batches(0, num_workers=0, grids=grids))
    parts = [list(source.batches(0, num_workers=0, grids=grids, rank=rank, num_ranks=2)) for rank in range(2)]
    for number, batch in enumerate(whole):
        assert torch.equal(batch.x[0::2], parts[0][number].x)
        assert torch.equal(batch.x[1::2], parts[1][number].x)


def test_a_mirrored_clip_has_the_label_of_the_other_direction(make_clips: Make) -> None:
    clips = [
        dataclasses.replace(clip, label_index=0) for clip in make_clips(num_clips=1, num_frames=14, bright_left=True)
    ]
    how = dataclasses.replace(HOW, flip=True, crop_area=(1, 1), crop_aspect=(1.3, 1.4))
    swaps = data.flip_labels([["left", "right"]], ["left", "right", "up"])
    assert swaps == {0: 1, 1: 0}
    source = data.TrainingClips(clips, SPEC, how, seed=0, cache_bytes=1e9, flip_labels=swaps)
    seen = set()
    for epoch in range(20):
        (batch,) = source.batches(epoch, num_workers=0)
        halves = batch.x.float().mean(dim=(0, 1, 2, 3)).unflatten(0, (2, 8)).mean(dim=1)
        assert int(batch.labels[0]) == int(halves[1] > halves[0])
        seen.add(int(batch.labels[0]))
    assert seen == {0, 1}


def test_a_mixed_batch_has_shares_for_labels(make_clips: Make) -> None:
    how = dataclasses.replace(HOW, mixup_alpha=1.0)
    sources = [data.TrainingClips(make_clips(num_clips=4), SPEC, how, seed=seed, cache_bytes=0) for seed in (0, 0, 1)]
    (one,), (same,), (other,) = (source.batches(0, num_workers=0) for source in sources)
    assert one.labels.shape == (4, 2)
    assert torch.allclose(one.labels.sum(dim=1), torch.ones(4))
    assert torch.equal(one.x, same.x)
    assert not torch.equal(one.labels, other.labels)


def test_several_data_sets_with_outputs_of_their_own(make_clips: Make) -> None:
    clips = make_clips(num_clips=8)
    main, web = clips[:4], [dataclasses.replace(clip, label_index=2) for clip in clips[4:]]
    spec = dataclasses.replace(SPEC, num_classes=5)
    others = [data.Source(clips=web, num_classes=3, ratio=0.5)]
    how = dataclasses.replace(HOW, batch=6)
    source = data.TrainingClips(main, spec, how, seed=0, cache_bytes=0, others=others)
    assert len(source) == 6
    (batch,) = source.batches(0, num_workers=0)
    assert sorted(batch.labels.tolist()) == [0, 0, 1, 1, 4, 4]
    assert batch.outputs is not None
    assert {(label, *own) for label, own in zip(batch.labels.tolist(), batch.outputs.tolist(), strict=True)} == {
        (0, 0, 2), (1, 0, 2), (4, 2, 5)
    }  # fmt: skip
    with pytest.raises(data.UsageError, match="no mixup"):
        data.TrainingClips(main, spec, dataclasses.replace(how, mixup_alpha=1.0), seed=0, cache_bytes=0, others=others)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_each_data_set_has_a_softmax_of_its_own(smoothing: float) -> None:
    logits, labels = torch.randn(3, 5), torch.tensor([1, 4, 2])
    outputs = torch.tensor([[0, 2], [2, 5], [2, 5]])
    wanted = [
        torch.nn.functional.cross_entropy(row[None, first:end], (label - first)[None], label_smoothing=smoothing)
        for row, label, (first, end) in zip(logits, labels, outputs.tolist(), strict=True)
    ]
    found = data.cross_entropy(logits.requires_grad_(), labels, outputs, smoothing)
    assert torch.allclose(found, torch.stack(wanted).sum())
    found.backward()
    assert bool(logits.grad.isfinite().all())  # type: ignore[union-attr]
