"""Multigrid against PySlowFast's own schedule, and that training follows it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from datakit.errors import UsageError
from models import zoo
from models.training import loop, multigrid, recipe
from models.training.schedule import learning_rate
from tests.models.train_worker import HOW, MemoryClips, small

SPEC = zoo.spec("slowfast_r50_8x8", num_classes=400)


def test_the_long_cycle_is_pyslowfasts(golden: Path) -> None:
    table = json.loads((golden / "others" / "schedules.json").read_text())["multigrid_SLOWFAST_8x8_R50_stepwise"]
    cycle = multigrid.cycle(recipe.get("pyslowfast_multigrid", processes=8), SPEC)
    found = [[part.step, [part.factor, part.clip_len, part.crop_px], part.end] for part in cycle.phases]
    assert found == table["schedule"]
    assert [0, *cycle.recipe.milestones] == table["STEPS"]
    assert list(cycle.recipe.lr_factors) == pytest.approx(table["LRS"])
    assert cycle.recipe.epochs == table["MAX_EPOCH"]
    for change in table["changes"]:
        assert learning_rate(cycle.recipe, change["epoch"]) == pytest.approx(change["lr"])
        whole = cycle.grids(change["epoch"], 10_000)[2]
        assert whole == multigrid.Grid(
            num_clips=change["BATCH_SIZE"],
            clip_len=change["NUM_FRAMES"],
            crop_px=change["TRAIN_CROP_SIZE"],
            max_interval=change["LONG_CYCLE_SAMPLING_RATE"],
        )


def test_the_short_cycle_takes_turns_and_keeps_the_work_of_a_step() -> None:
    how = dataclasses.replace(recipe.get("pyslowfast_stepwise", processes=8), multigrid="short")
    cycle = multigrid.cycle(how, SPEC)
    assert cycle.recipe.epochs == 358
    assert cycle.recipe.milestones == (141, 231, 294)
    grids = cycle.grids(0, 64 * 7 + 64 + 63)
    assert [(grid.num_clips, grid.crop_px) for grid in grids] == [(256, 112), (128, 158), (64, 224)]
    work = [grid.num_clips * grid.crop_px**2 for grid in grids]
    assert max(work) / min(work) < 1.01
    assert len(cycle.grids(0, 64 * 14)) == 6


def test_without_multigrid_all_clips_are_taken_in_even_batches() -> None:
    cycle = multigrid.cycle(dataclasses.replace(HOW, batch=8), SPEC)
    assert [grid.num_clips for grid in cycle.grids(0, 21)] == [7, 7, 7]
    assert [grid.num_clips for grid in cycle.grids(0, 22)] == [8, 7, 7]


def test_the_long_cycle_says_what_it_needs() -> None:
    with pytest.raises(UsageError, match="--multigrid short"):
        multigrid.cycle(recipe.get("slowonly", multigrid="long"), SPEC)
    with pytest.raises(UsageError, match="--multigrid short"):
        multigrid.cycle(recipe.get("tsm", multigrid="both"), zoo.spec("tsm_r50_1x1x8", num_classes=2))


def test_batch_norm_sees_eight_clips_at_a_time() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))
    keys = [*net.state_dict()]
    x = torch.randn(24, 3, 2, 4, 4)
    with torch.no_grad():
        features = net[0](x)
        wanted = torch.cat([nn.BatchNorm3d(4)(part) for part in features.split(8)])
        multigrid.split_batch_norms(net)
        assert torch.allclose(net(x), wanted, atol=1e-6)
        assert [*net.state_dict()] == keys
        net.eval()
        assert torch.allclose(net(x)[:3], net(x[:3]), atol=1e-6)


@pytest.mark.parametrize("kind", ["short", "long", "both"])
def test_training_follows_the_grids(tmp_path: Path, kind: str) -> None:
    how = dataclasses.replace(
        HOW, epochs=3, schedule="step", milestones=(1.0, 2.0), warmup_epochs=0.0, batch=2, lr_batch=2, multigrid=kind
    )
    net = small(clip_len=4)
    cycle = multigrid.cycle(how, net.spec)
    clips = MemoryClips(36)
    seen: list[tuple[int, ...]] = []
    net.body.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    steps = list(loop.train(net, clips, how, out=tmp_path, arguments={}, device=torch.device("cpu")))
    planned = [grid for epoch in range(cycle.recipe.epochs) for grid in cycle.grids(epoch, len(clips))]
    shapes = [(grid.num_clips, 3, grid.clip_len, grid.crop_px, grid.crop_px) for grid in planned]
    assert seen == shapes
    assert len(set(shapes)) >= 2
    assert [step.step for step in steps] == list(range(len(planned)))
    assert [step.lr for step in steps] == [learning_rate(cycle.recipe, step.epoch) for step in steps]
