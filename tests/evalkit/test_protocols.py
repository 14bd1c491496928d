from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import manifests
from datakit.errors import BadManifest, UsageError
from evalkit import protocols


def test_every_row_is_a_protocol() -> None:
    for name in protocols.names():
        for mode in protocols.MODES:
            found = protocols.get(name, mode)
            assert (found.name, found.mode) == (name, mode)
            assert found.version >= 1
            hash(found)


def test_slowonly_is_what_the_published_numbers_used() -> None:
    efficient, accurate = (protocols.get("slowonly", mode) for mode in protocols.MODES)
    assert efficient.views == "1x1@224"
    assert accurate.views == "10x3@256"
    assert efficient.scale == accurate.scale == 256
    assert efficient.sampling == accurate.sampling == "mmaction2-0.x"
    assert accurate.aggregation == "prob-mean"
    assert protocols.get("slowonly-flow", "accurate").views == "10x1@256"


def test_unknown_names_are_refused_with_the_choices() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'slowonly'\?"):
        protocols.get("slowonli", "accurate")
    with pytest.raises(UsageError, match="--mode efficient or --mode accurate"):
        protocols.get("slowonly", "fast")


def test_views_free_hand() -> None:
    base = protocols.get("slowonly", "accurate")
    found = protocols.parse_views("5x1@224", base)
    assert (found.num_clips, found.num_crops, found.crop_px, found.short_side_px) == (5, 1, 224, 256)
    assert found.mode == found.views == "5x1@224"
    assert found.sampling == base.sampling
    assert protocols.parse_views("10x3@224", base).short_side_px == 224
    assert protocols.parse_views("1x1@320", base).short_side_px == 320
    assert protocols.parse_views("1x10@224", base).short_side_px == 256


@pytest.mark.parametrize("text", ["", "5", "5x1", "0x1@224", "5x2@224", "5x1@", "5x1@224px", "-1x1@224", "5 x 1 @ 224"])
def test_views_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--views 5x1@224"):
        protocols.parse_views(text, protocols.get("slowonly", "accurate"))


def test_fixed_sides() -> None:
    base = protocols.get("slowonly", "efficient")
    fixed = replace(base, short_side_px=None, resize_px=(171, 128), crop_px=112)
    assert fixed.scale == (171, 128, "stretch")
    assert protocols.parse_views("5x1@112", fixed).scale == (171, 128, "stretch")


@pytest.mark.parametrize(
    "change",
    [
        {"resize_px": (171, 128)},
        {"short_side_px": None},
        {"sampling": "mmaction2"},
        {"aggregation": "mean"},
        {"num_crops": 2},
        {"num_clips": 0},
    ],
)
def test_rows_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadManifest, match="protocol slowonly accurate"):
        replace(protocols.get("slowonly", "accurate"), **change)


def test_misspelt_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    table = manifests.read("protocols")
    table["slowonly"]["accurate"]["num_crop"] = 3
    monkeypatch.setattr(manifests, "read", lambda name: table)
    with pytest.raises(BadManifest, match="did you mean 'num_crops'"):
        protocols.get("slowonly", "accurate")


@pytest.mark.parametrize(
    ("name", "efficient", "accurate"),
    [
        ("slowonly", (256, "1x1@224"), (256, "10x3@256")),
        ("slowonly-flow", (256, "1x1@256"), (256, "10x1@256")),
        ("slowonly-flow-k400", (256, "1x1@256"), (256, "10x3@256")),
        ("slowonly-jester", (256, "1x1@256"), (256, "10x3@256")),
        ("slowonly-sthv1", (128, "1x1@112"), (128, "10x3@128")),
        ("slowfast", (256, "1x1@224"), (256, "10x3@256")),
        ("slowfast-sthv1", (256, "1x1@256"), (256, "1x1@256")),
        ("i3d", (256, "1x1@224"), (256, "10x3@256")),
        ("r2plus1d", (256, "1x1@224"), (256, "10x3@256")),
        ("csn", (256, "1x1@224"), (256, "10x3@256")),
    ],
)
def test_rows_of_mmaction2(name: str, efficient: tuple[int, str], accurate: tuple[int, str]) -> None:
    # Read off the pipelines of the configuration files that each row names.
    for mode, want in (("efficient", efficient), ("accurate", accurate)):
        found = protocols.get(name, mode)
        assert (found.short_side_px, found.views, found.sampling) == (*want, "mmaction2-0.x")
