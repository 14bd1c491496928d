from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models
from datakit.errors import UsageError
from evalkit import infer, protocols
from models import features, zoo

Clips = Callable[..., list[Any]]


@pytest.fixture
def listed(make_clips: Clips, tmp_path: Path) -> list[str]:
    """--list ... --root ... of four videos, one of which is not there."""
    clips = make_clips(num_clips=3, num_frames=20, bright_left=True)
    lines = [f"{clip.path.name} {clip.label_index}" for clip in clips] + ["gone.mp4 1"]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    return ["--list", str(tmp_path / "list.txt"), "--root", str(tmp_path / "videos"), "--workers", "0"]


def checkpoint(tmp_path: Path, name: str) -> Path:
    torch.manual_seed(0)
    net = models.create(name, num_classes=3).eval()
    with torch.no_grad():  # or every clip looks the same to it
        net.body.head.weight.normal_()
    models.save(tmp_path / f"{name}.pth", net)
    return tmp_path / f"{name}.pth"


@pytest.mark.parametrize("name", ["slowonly_tiny", "tsm_tiny", "tsn_tiny"])
def test_the_classifier_makes_the_scores_of_the_pooled_features(
    name: str, listed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = checkpoint(tmp_path, name), tmp_path / "f.npz"
    assert features.main([str(path), *listed, "--out", str(out), "--views", "8x3@64"]) == 5
    assert "gone" in capsys.readouterr().out
    with np.load(out, allow_pickle=False) as file:
        ids, means, views = file["ids"], file["features"], file["views"]
        missing, meta = json.loads(str(file["missing"])), json.loads(str(file["meta"]))
        assert file["labels"].tolist() == [0, 1, 0]
    assert ids.tolist() == [f"clip_{number}" for number in range(3)]
    assert [each["id"] for each in missing] == ["gone"]
    assert (meta["network"], meta["layer"]) == (name, "pool")
    assert np.allclose(views.mean(axis=1), means, atol=1e-6)

    net = models.load(path)
    from datakit import manifest

    clips = manifest.from_list(Path(listed[1]), Path(listed[3])).clips
    protocol = protocols.as_typed(protocols.for_network(net.spec, "accurate"), "8x3@64")
    outcomes = list(infer.score(clips, net, protocol, workers=0, deterministic=True, keep_views=True))
    by_id = {outcome.id: outcome for outcome in outcomes}
    with torch.inference_mode():
        for number, clip_id in enumerate(ids):
            logits = net.body.head(torch.from_numpy(views[number]))
            if protocol.aggregation != "logit-mean":
                logits = logits.softmax(dim=1)
            assert np.allclose(logits.numpy(), by_id[clip_id].views, atol=1e-4)


def test_the_same_command_gives_the_same_bytes(listed: list[str], tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "slowonly_tiny")
    arguments = [str(path), *listed, "--mode", "efficient"]
    for name in ("a", "b"):
        features.main([*arguments, "--out", str(tmp_path / f"{name}.npz")])
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    features.main([*arguments, "--out", str(tmp_path / "few.npz"), "--limit", "1", "--no-views"])
    with np.load(tmp_path / "few.npz") as few, np.load(tmp_path / "a.npz") as all_of_them:
        assert "views" not in few
        assert np.array_equal(
            few["features"][0], all_of_them["features"][0]
        )  # to the bit, whatever the other clips are


def test_other_layers(listed: list[str], tmp_path: Path) -> None:
    path, out = checkpoint(tmp_path, "slowonly_tiny"), tmp_path / "f.npz"
    widths = {}
    for layer in ("stem", "res2", "res5", "res5.0.conv1", "pool", "head"):
        features.main([str(path), *listed, "--mode", "efficient", "--layer", layer, "--out", str(out)])
        with np.load(out) as file:
            widths[layer] = file["features"].shape[1]
    assert widths == {"stem": 8, "res2": 8, "res5": 64, "res5.0.conv1": 64, "pool": 64, "head": 3}
    features.main([str(path), *listed, "--mode", "efficient", "--layer", "res5", "--out", str(tmp_path / "res5.npz")])
    features.main([str(path), *listed, "--mode", "efficient", "--layer", "pool", "--out", str(tmp_path / "pool.npz")])
    with np.load(tmp_path / "res5.npz") as stage, np.load(tmp_path / "pool.npz") as pool:
        assert np.allclose(stage["features"], pool["features"], atol=1e-5)


def test_what_is_refused(listed: list[str], tmp_path: Path) -> None:
    path, out = checkpoint(tmp_path, "slowonly_tiny"), str(tmp_path / "f.npz")
    with pytest.raises(UsageError, match=r"has no layer 'res9'; type --layer with pool, stem, res2"):
        features.main([str(path), *listed, "--layer", "res9", "--out", out])
    with pytest.raises(UsageError, match="--data"):
        features.main([str(path), "--out", out])
    with pytest.raises(UsageError, match="--root"):
        features.main([str(path), "--out", out, *listed[:2]])
    assert not Path(out).exists()


def test_above_the_training_crop_a_feature_is_the_mean_of_the_windows() -> None:
    net = models.create("slowonly_tiny", num_classes=3, head_pool="softmax", train_crop_px=32).eval()
    x = torch.randn(2, 3, 8, 64, 64)
    with features.tapped(net, "pool") as tap, torch.inference_mode():
        tap(x)
    assert tap.taken[0].shape == (2, 64)


def test_every_network_has_a_pool() -> None:
    for name in models.list("*_tiny*"):
        spec = zoo.spec(name, num_classes=3)
        net = zoo.build(spec).eval()
        x = torch.randn(1, spec.network["in_channels"], spec.num_segments or spec.clip_len, 32, 32)
        with features.tapped(net, "pool") as tap, torch.inference_mode():
            tap(x)
            assert torch.allclose(net.body.head(tap.taken[0]), net(x), atol=1e-4), name


def test_help_is_quick() -> None:
    code = "import sys, models.features; models.features.parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
