"""Learning rates against the published programs' own: PySlowFast's by file, mmengine's by its rule."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

import manifests
from datakit.errors import BadManifest, UsageError
from models.training import recipe
from models.training.schedule import learning_rate

BASE = recipe.get("slowonly")


CASES = ["SLOW_8x8_R50", "SLOWFAST_8x8_R50", "SLOWFAST_8x8_R50_stepwise", "X3D_S", "MVITv2_S_16x4"]


@pytest.mark.parametrize("name", CASES)
def test_pyslowfast(golden: Path, name: str) -> None:
    table = json.loads((golden / "others" / "schedules.json").read_text())[name]
    steps = table["policy"] != "cosine"
    how = dataclasses.replace(
        BASE,
        epochs=table["MAX_EPOCH"],
        lr=table["BASE_LR"],
        batch=table["BATCH"],
        lr_batch=table["BATCH"],
        warmup_epochs=table["WARMUP_EPOCHS"],
        warmup_start=table["WARMUP_START_LR"] / table["BASE_LR"],
        lr_changes="step",
        schedule="step" if steps else "cosine",
        cosine_from="warmup-end" if table["COSINE_AFTER_WARMUP"] else "start",
        min_lr=table["COSINE_END_LR"],
        lr_factors=tuple(table["LRS"][: len(table["STEPS"])]),
        milestones=tuple(table["STEPS"][1:]),
    )
    for epoch, lr in table["lr"]:
        assert learning_rate(how, epoch) == pytest.approx(lr, rel=1e-9), epoch


def test_mmengine_linear_then_cosine_by_epoch() -> None:
    """LinearLR(start_factor=0.1, begin=0, end=34) is at the full rate in epoch 33; then cosine over 222."""
    how = dataclasses.replace(BASE, batch=128)
    assert how.scaled_lr == 0.2
    assert learning_rate(how, 0) == pytest.approx(0.02)
    assert learning_rate(how, 0.99) == pytest.approx(0.02)
    assert learning_rate(how, 1) == pytest.approx(0.2 * (0.1 + 0.9 / 33))
    assert learning_rate(how, 33) == pytest.approx(0.2)
    assert learning_rate(how, 34) == pytest.approx(0.2)
    assert learning_rate(how, 35) == pytest.approx(0.2 * 0.5 * (1 + math.cos(math.pi / 222)))
    assert learning_rate(how, 255) == pytest.approx(0.2 * 0.5 * (1 + math.cos(math.pi * 221 / 222)))


def test_the_rate_follows_the_batch_unless_it_is_typed() -> None:
    assert recipe.get("slowonly", batch=32).scaled_lr == pytest.approx(0.05)
    assert recipe.get("slowonly", batch=32, lr=0.3).scaled_lr == pytest.approx(0.3)
    assert recipe.get("slowonly", lr=0.3).scaled_lr == pytest.approx(0.3)


def test_other_epochs_stretch_the_recipe() -> None:
    short, whole = recipe.get("slowonly", epochs=64), dataclasses.replace(BASE, lr_changes="step")
    short = dataclasses.replace(short, lr_changes="step")
    for epoch in (0, 3, 8.5, 20, 63):
        assert learning_rate(short, epoch) == pytest.approx(learning_rate(whole, 4 * epoch))
    assert learning_rate(recipe.get("tiny", epochs=1), 0.5) > 0


@pytest.mark.parametrize("name", list(manifests.read("recipes")))
def test_every_recipe_is_whole(name: str) -> None:
    how = recipe.get(name)
    rates = [learning_rate(how, epoch / 4, 100) for epoch in range(4 * how.epochs)]
    assert all(0 < rate <= how.scaled_lr * (1 + 1e-9) for rate in rates)
    assert max(rates) > 0.85 * how.scaled_lr  # a long warm-up hides the top of the cosine


@pytest.mark.parametrize("name", ["pyslowfast", "pyslowfast_stepwise"])
def test_the_rows_of_pyslowfast_are_its_schedules(golden: Path, name: str) -> None:
    tables = json.loads((golden / "others" / "schedules.json").read_text())
    table = tables["SLOW_8x8_R50" if name == "pyslowfast" else "SLOWFAST_8x8_R50_stepwise"]
    how = recipe.get(name, processes=8)
    assert (how.batch, how.weight_decay, how.nesterov) == (table["BATCH"], table["wd"], table["NESTEROV"])
    for epoch, lr in table["lr"]:
        assert learning_rate(how, epoch) == pytest.approx(lr, rel=1e-9), epoch


def test_milestones_count_from_where_the_scheduler_begins() -> None:
    """mmengine 0.10.7: MultiStepLR(begin=10, milestones=[90, 130]) drops at 100 and 140; TSM's at 25 and 45."""
    how = recipe.get("slowonly_imagenet", processes=8)
    drops = [learning_rate(how, epoch) for epoch in (9, 10, 99, 100, 139, 140, 149)]
    assert drops == pytest.approx([0.02, 0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002])
    tsm = recipe.get("tsm", processes=8)
    rates = [learning_rate(tsm, epoch) for epoch in (0, 4, 5, 24, 25, 44, 45)]
    assert rates == pytest.approx([0.002, 0.02, 0.02, 0.02, 0.002, 0.002, 0.0002])


def test_slowfasts_warm_up_by_steps_times_a_cosine_from_the_start() -> None:
    """mmengine: LinearLR(0.1, end=34, convert_to_iter_based) is full at its last step; cosine by epoch, T_max 256."""
    how, num_steps = recipe.get("slowfast", processes=8), 50
    total = 34 * num_steps
    for step in (0, 1, 777, total - 1, total, total + 60):
        cosine = 0.5 * (1 + math.cos(math.pi * (step // num_steps) / 256))
        ramp = 0.1 + 0.9 * min(step / (total - 1), 1)
        assert learning_rate(how, step / num_steps, num_steps) == pytest.approx(0.1 * cosine * ramp)


def test_mmcv_warms_up_times_the_schedule() -> None:
    """mmcv runner/hooks/lr_updater.py: rate(epoch) * (1 - (1 - step / steps) * (1 - 0.1)), here for 34 epochs."""
    how, num_steps = recipe.get("slowonly_flow", processes=8), 20
    for step in (0, 5, 333, 34 * 20 - 1, 34 * 20, 1000):
        regular = 0.06 * 0.5 * (1 + math.cos(math.pi * (step // num_steps) / 256))
        ramp = 1 - (1 - step / (34 * num_steps)) * 0.9 if step < 34 * num_steps else 1
        assert learning_rate(how, step / num_steps, num_steps) == pytest.approx(regular * ramp)


def test_warm_up_counted_in_steps() -> None:
    how = recipe.get("slowfast_sthv1", processes=8)
    for num_steps in (100, 300):
        assert learning_rate(how, 0, num_steps) == pytest.approx(0.006)
        assert learning_rate(how, 255 / num_steps, num_steps) == pytest.approx(0.06 * 0.55)
        assert learning_rate(how, 511 / num_steps, num_steps) == pytest.approx(0.06)
    with pytest.raises(ValueError, match="510 steps"):
        learning_rate(how, 1)


def test_cosine_by_epoch_and_by_step() -> None:
    by_step, by_epoch = recipe.get("jester", processes=8), recipe.get("slowonly_k600", processes=8)
    assert learning_rate(by_step, 10.5) == pytest.approx(0.1 * 0.5 * (1 + math.cos(math.pi * 10.5 / 64)))
    assert learning_rate(by_epoch, 10.5) == pytest.approx(0.15 * 0.5 * (1 + math.cos(math.pi * 10 / 256)))
    ends = dataclasses.replace(by_step, min_lr=0.02)
    assert learning_rate(ends, 64) == pytest.approx(0.02)


def test_torchvisions_milestones_count_from_the_start() -> None:
    how = recipe.get("torchvision", processes=64)
    rates = [learning_rate(how, epoch) for epoch in (0, 5, 10, 19.9, 20, 30, 44)]
    assert rates == pytest.approx([0.00064, 0.64 * 0.5005, 0.64, 0.64, 0.064, 0.0064, 0.00064])


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="--recipe slowonly"):
        recipe.get("slowonlyy")
    with pytest.raises(UsageError, match="at least 1"):
        recipe.get("slowonly", epochs=0)
    with pytest.raises(BadManifest, match="schedule is 'exp'"):
        dataclasses.replace(BASE, schedule="exp")  # type: ignore[arg-type]
