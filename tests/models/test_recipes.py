"""The published recipes: whole, with a result and its source, for networks that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import manifests
from datakit.errors import BadManifest
from models import zoo
from models.training import recipe

ROWS = recipe.rows()
OURS = {"tiny"}


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_recipe_says_where_it_is_from(name: str) -> None:
    row = ROWS[name]
    recipe.get(name)
    assert row["about"]
    assert row["source"]
    if row["source"] == "ours":
        return
    for result in row.get("published", []):
        zoo.row_of(result["network"])
        assert 0 < result["top1"] < 100
        assert result["set"]


def test_every_network_has_its_recipe() -> None:
    assert {zoo.recipe_name(name) for name in zoo.names()} <= set(ROWS)


def test_likeness_is_followed_and_results_are_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "a": {"epochs": 3, "published": [1], "source": "x"},
        "b": {"like": "a", "lr": 1.0},
        "c": {"like": "b", "epochs": 5},
    }
    monkeypatch.setattr(manifests, "read", lambda name: table)
    assert recipe.rows()["c"] == {"epochs": 5, "lr": 1.0, "like": "b"}
    table["a"]["like"] = "c"
    with pytest.raises(BadManifest, match="no other row"):
        recipe.rows()


@pytest.mark.parametrize(
    ("name", "epochs", "lr", "real_batch"),
    [("slowonly", 256, 0.2, 128), ("slowonly_imagenet", 150, 0.02, 128), ("slowonly_nl", 256, 0.01, 128),
     ("slowonly_r101", 196, 0.2, 128), ("slowonly_flow", 256, 0.06, 192), ("gym99-rgb", 120, 0.03, 192),
     ("gym99-flow", 120, 0.03, 192), ("jester", 64, 0.1, 64), ("sthv1", 64, 0.1, 64), ("slowfast_sthv1", 22, 0.06, 32),
     ("slowfast", 256, 0.1, 64), ("tsn", 100, 0.01, 256), ("tsm", 50, 0.02, 128), ("i3d", 100, 0.01, 64),
     ("slowonly_k600", 256, 0.15, 96), ("slowonly_k700", 256, 0.15, 96), ("gluoncv", 196, 0.1, 64),
     ("slowonly_data_benchmark", 256, 0.6, 128), ("r2plus1d", 180, 0.01, 64), ("pyslowfast", 196, 0.1, 64)],
)  # fmt: skip
def test_published_epochs_rates_and_batches(name: str, epochs: int, lr: float, real_batch: int) -> None:
    """On eight processes each has the published rate; on one with the same batch an eighth of it."""
    how = recipe.get(name, processes=8)
    assert (how.epochs, how.batch) == (epochs, real_batch)
    assert how.scaled_lr == pytest.approx(lr)
    assert recipe.get(name).scaled_lr == pytest.approx(lr / 8)


def test_torchvisions_rate_is_for_64_processes() -> None:
    assert recipe.get("torchvision", processes=64).scaled_lr == pytest.approx(0.64)
    assert recipe.get("torchvision", processes=8).scaled_lr == pytest.approx(0.08)


def test_a_typed_rate_is_for_the_real_batch() -> None:
    assert recipe.get("slowonly", processes=4, batch=2, lr=0.7).scaled_lr == pytest.approx(0.7)
    assert recipe.get("slowonly", processes=4, batch=2).batch == 8


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if "v0.24.1, configs" in row["source"]])
def test_every_row_of_mmaction2_says_what_its_file_says(shared: Path, name: str) -> None:
    text = (shared / "notes" / "mmaction2_0x_configs.md").read_text()
    files = dict(part.split("\n", 1) for part in text.split("\n## ")[1:] if "- opt: SGD" in part)
    how = recipe.get(name)
    named = [body for path, body in files.items() if Path(path).stem in ROWS[name]["source"]]
    assert named or name == "slowonly_omnisource"  # its file is one of Python code
    for body in named:
        said = re.search(
            r"lr(?P<lr>\S+) m(?P<m>\S+) wd(?P<wd>\S+)(?P<nesterov> nesterov)? clip(?P<clip>\S+); "
            r"epochs (?P<epochs>\d+); bs/gpu (?P<batch>\d+); sched (?P<schedule>.*)", body,
        )  # fmt: skip
        assert said
        assert how.lr / how.lr_batch == pytest.approx(float(said["lr"]) / (8 * int(said["batch"])))
        assert (how.batch, how.epochs, how.nesterov) == (
            int(said["batch"]),
            int(said["epochs"]),
            bool(said["nesterov"]),
        )
        assert (how.momentum, how.weight_decay) == (float(said["m"]), float(said["wd"]))
        assert how.clip_grad_norm == float(said["clip"])
        schedule = ast.literal_eval(said["schedule"])
        assert how.schedule == {"CosineAnnealing": "cosine", "step": "step"}[schedule["policy"]]
        assert how.lr_changes == ("epoch" if schedule.get("by_epoch", True) else "step")
        if how.schedule == "step":
            assert list(how.milestones) == schedule["step"]
        warmup = schedule.get("warmup_iters", 0)
        assert (how.warmup_epochs, how.warmup_steps) == (
            (warmup, 0) if schedule.get("warmup_by_epoch") else (0, warmup)
        )
        if warmup:
            assert (how.warmup_start, how.warmup_rule) == (schedule.get("warmup_ratio", 0.1), "times-schedule")
        train = re.search(r"- train: (.*)", body)[1]  # type: ignore[index]
        resize = re.search(r"R\(-1,(\d+)\)", train)
        assert how.short_side_px == (int(resize[1]) if resize else 0)
        assert how.flip == ("Flip" in train)
        assert bool(how.colour_jitter) == ("ColorJitter" in train)
        assert how.crop == ("multi-scale" if "MSC" in train else "random-resized")
        if crop := re.search(r"MSC\((\(.*?\)),gap(\d),fix(\d+)\)", train):
            assert how.crop_scales == ast.literal_eval(crop[1])
            assert (how.crop_scale_gap, how.crop_positions) == (int(crop[2]), int(crop[3]))


@pytest.mark.parametrize(
    "name", ["pyslowfast", "pyslowfast_multigrid", "c2d", "torchvision", "torchvision_s3d", "gluoncv_i3d"]
)
def test_programs_that_clip_no_gradients(name: str) -> None:
    """What a row is like clips at 40, as mmaction2 does; these programs do not."""
    assert not recipe.get(name).clip_grad_norm
