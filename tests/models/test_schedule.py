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


@pytest.mark.parametrize("name", ["SLOW_8x8_R50", "SLOWFAST_8x8_R50", "SLOWFAST_8x8_R50_stepwise", "X3D_S"])
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
        cosine_from="start",
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
    assert learning_rate(recipe.get(name), 0) > 0


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="--recipe slowonly"):
        recipe.get("slowonlyy")
    with pytest.raises(UsageError, match="at least 1"):
        recipe.get("slowonly", epochs=0)
    with pytest.raises(BadManifest, match="schedule is 'exp'"):
        dataclasses.replace(BASE, schedule="exp")  # type: ignore[arg-type]
