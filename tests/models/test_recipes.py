"""The published recipes: whole, with a result and its source, for networks that there are."""

from __future__ import annotations

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
     ("slowonly_k600", 256, 0.15, 96), ("slowonly_k700", 256, 0.15, 96), ("gluoncv", 196, 0.1, 64)],
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
