"""What is done to training clips: crops, colours, RandAugment against torchvision's own, mixing."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from datakit import reader
from models.training import augment, recipe

HOW = recipe.get("tiny")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_crops_are_of_the_asked_area_and_aspect_and_inside() -> None:
    how = dataclasses.replace(HOW, crop_area=(0.25, 0.5), crop_aspect=(0.8, 1.25))
    random = rng(1)
    for _ in range(300):
        top, left, height, width = augment.crop_box(60, 90, how, 16, random)
        assert 0 <= top <= 60 - height
        assert 0 <= left <= 90 - width
        assert 0.24 * 5400 <= height * width <= 0.51 * 5400
        assert 0.76 <= width / height <= 1.32
    assert augment.crop_box(10, 1000, dataclasses.replace(how, crop_area=(1, 1)), 16, random) == (0, 495, 10, 10)


def test_multi_scale_crops_are_those_that_the_recipe_names() -> None:
    how = dataclasses.replace(HOW, crop="multi-scale", crop_scales=(1.0, 0.875, 0.75, 0.66), crop_scale_gap=1)
    boxes = {augment.crop_box(256, 340, how, 224, rng(seed)) for seed in range(2000)}
    sizes = {(height, width) for _, _, height, width in boxes}
    each = [256, 224, 192, 168]
    assert sizes == {(a, b) for i, a in enumerate(each) for j, b in enumerate(each) if abs(i - j) <= 1}
    whole = {box[:2] for box in boxes if box[2:] == (256, 256)}
    assert whole == {(0, 0), (0, 84), (0, 42)}
    assert len({box[:2] for box in boxes if box[2:] == (192, 192)}) == 5
    wide = dataclasses.replace(how, crop_positions=13, crop_scale_gap=0)
    assert len({augment.crop_box(256, 340, wide, 224, rng(seed)) for seed in range(2000)}) == 13 * 3 + 5
    anywhere = dataclasses.replace(how, crop_positions=0)
    assert len({augment.crop_box(256, 340, anywhere, 224, rng(seed)) for seed in range(500)}) > 300


def test_short_side_crops_see_what_a_resized_picture_would_show() -> None:
    how = dataclasses.replace(HOW, crop="short-side", crop_short_side_px=(256, 320))
    sides = [augment.crop_box(512, 600, how, 224, rng(seed))[2:] for seed in range(400)]
    assert all(height == width for height, width in sides)
    assert (min(sides)[0], max(sides)[0]) == (pytest.approx(512 * 224 / 320, abs=2), pytest.approx(448, abs=2))


def test_colours_turn_about_grey_and_alike_in_all_frames() -> None:
    x = torch.randint(90, 166, (2, 3, 4, 5), dtype=torch.uint8)
    x[1] = x[0]
    assert torch.equal(augment.recoloured(x, 0.0, np.random.default_rng(0)), x)
    grey = torch.full((1, 3, 2, 2), 128, dtype=torch.uint8)
    assert torch.equal(augment.recoloured(grey, 1.0, np.random.default_rng(0)), grey)
    turned = augment.recoloured(x, 1.0, np.random.default_rng(0))
    assert torch.equal(turned[0], turned[1])
    lengths = [(one.float() - 128).norm(dim=1) for one in (x, turned)]
    assert torch.allclose(*lengths, atol=1.0)  # a rotation keeps the distance to grey
    assert not torch.allclose(x.float(), turned.float(), atol=8.0)


def test_frames_are_resized_alike_however_many_there_are() -> None:
    x = torch.randint(0, 256, (11, 48, 64, 3), dtype=torch.uint8).permute(0, 3, 1, 2)  # as decoded
    whole = torch.nn.functional.interpolate(x.float(), (30, 40), mode="bilinear", align_corners=False)
    assert torch.equal(augment.resized(x, 30, 40), whole.round().to(torch.uint8))


def test_mirrored_flow_is_what_the_reader_says() -> None:
    frames = rng().integers(0, 256, (3, 5, 7, 2), dtype=np.uint8)
    ours = augment.mirrored(torch.from_numpy(frames).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(ours, reader.mirrored(frames))


def test_every_operation_of_randaugment_is_torchvisions() -> None:
    theirs = v2.RandAugment()
    x = torch.randint(0, 256, (2, 3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    space: Any = theirs._AUGMENTATION_SPACE
    assert set(space) == set(augment.RANDAUGMENT_OPERATIONS)
    assert {name for name, (_, signed) in space.items() if signed} == set(augment.SIGNED)
    for name, (magnitudes, signed) in space.items():
        for magnitude in (0, 9, 30):
            for sign in (1, -1) if signed else (1,):
                amounts = magnitudes(augment.RANDAUGMENT_BINS, 40, 60)
                amount = sign * float(amounts[magnitude]) if amounts is not None else 0.0
                wanted: Any = theirs._apply_image_or_video_transform(
                    x, name, amount, interpolation=InterpolationMode.NEAREST, fill={}
                )
                found = augment.rand_augment_operation(x, name, magnitude, sign)
                assert (found.int() - wanted.int()).abs().max() <= 1, (name, magnitude, sign)


@pytest.mark.parametrize(
    "changes",
    [
        {"colour_jitter": (0.4, 0.4, 0.4, 0.1)},
        {"randaugment": (2, 9)},
        {"erasing": 1.0},
        {"colour_jitter": (0.8, 0.0, 0.0, 0.0), "randaugment": (3, 20), "erasing": 0.5},
    ],
)
def test_all_frames_of_a_clip_get_the_same_draw(changes: dict[str, Any]) -> None:
    """torch's own generator is left alone: the network's dropout draws from it."""
    frame = torch.randint(0, 256, (1, 3, 24, 32), dtype=torch.uint8)
    how = dataclasses.replace(HOW, **changes)
    before = torch.get_rng_state()
    results = [augment.changed(frame.repeat(4, 1, 1, 1), how, (1.0, 2.0, 3.0), rng(seed)) for seed in (*range(8), 3)]
    assert torch.equal(torch.get_rng_state(), before)
    for x in results:
        assert x.dtype == torch.uint8
        assert all(torch.equal(x[0], other) for other in x[1:])
    assert torch.equal(results[3], results[-1])
    assert len({x.numpy().tobytes() for x in results}) > 4


def test_flow_is_erased_but_not_recoloured() -> None:
    flow = torch.randint(0, 256, (2, 2, 24, 32), dtype=torch.uint8)
    how = dataclasses.replace(HOW, colour_jitter=(0.4, 0.4, 0.4, 0.1), randaugment=(2, 9))
    assert torch.equal(augment.changed(flow, how, (128.0, 128.0), rng()), flow)
    erased = augment.changed(flow, dataclasses.replace(how, erasing=1.0), (128.0, 128.0), rng())
    hole = (erased != flow).any(dim=1)
    assert 0.01 < float(hole.float().mean()) < 0.4
    assert bool((erased.movedim(1, -1)[hole] == 128).all())


@pytest.mark.parametrize("kind", ["mixup_alpha", "cutmix_alpha"])
def test_labels_are_mixed_as_the_pixels_are(kind: str) -> None:
    levels = torch.tensor([0, 100, 200], dtype=torch.uint8)
    x = levels.view(3, 1, 1, 1, 1).expand(3, 3, 4, 40, 50).contiguous()
    how = dataclasses.replace(HOW, **{kind: 1.0})
    shares = []
    for seed in range(50):
        mixed, targets = augment.mixed(x, torch.tensor([0, 1, 2]), 3, how, rng(seed))
        assert torch.allclose(targets.sum(dim=1), torch.ones(3))
        wanted = targets @ levels.float()
        assert torch.allclose(mixed.float().mean(dim=(1, 2, 3, 4)), wanted, atol=0.51)
        shares.append(float(targets[0, 0]))
    assert min(shares) < 0.4
    assert max(shares) > 0.8
    assert torch.equal(x[:, 0, 0, 0, 0], levels)  # what came in is left alone


def test_augmentations_have_names() -> None:
    assert augment.named(["mixup", "randaugment"]) == {"mixup_alpha": 1.0, "randaugment": (2, 9)}
    with pytest.raises(augment.UsageError, match=r"--augment with one of: .*cutmix"):
        augment.named(["blur"])
