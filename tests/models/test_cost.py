from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import manifests
import models
from evalkit import protocols
from models import cost, zoo

# The networks of the golden counts, as PySlowFast builds them.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "SLOW_4x16_R50.yaml": ("slowonly_r50_4x16", {}),
    "SLOW_8x8_R50.yaml": ("slowonly_r50_8x8", {}),
    "SLOWFAST_4x16_R50.yaml": ("slowfast_r50_4x16", {"lateral_norm": True, "slow_frames": "spread"}),
    "SLOWFAST_8x8_R50.yaml": ("slowfast_r50_8x8", {"lateral_norm": True, "slow_frames": "spread"}),
    "I3D_8x8_R50.yaml": ("i3d_r50_8x8", {}),
    "C2D_8x8_R50.yaml": ("c2d_r50_8x8", {"pool1_padding": 1}),
    "c2/SLOWFAST_8x8_R101_101_101.yaml": ("slowfast_r101_8x8", {"lateral_norm": True}),
}


def test_multiply_adds_are_those_of_fvcore(golden: Path) -> None:
    rows = json.loads((golden / "others" / "flops.json").read_text())["rows"]
    seen = set()
    for row in rows:
        if row["config"] not in NETWORKS:  # X3D is not built here
            continue
        name, arguments = NETWORKS[row["config"]]
        body = zoo.hollow(zoo.spec(name, num_classes=400, **arguments))
        found = cost.multiply_adds(body, (1, 3, row["frames"], row["crop"], row["crop"]))
        assert found / 1e9 == pytest.approx(row["gflops_fvcore"], rel=5e-4), row
        assert sum(parameter.numel() for parameter in body.parameters()) == row["params"]
        seen.add(row["config"])
    assert seen == set(NETWORKS)


def test_multiply_adds_by_hand() -> None:
    linear = torch.nn.Linear(10, 7, device="meta")
    assert cost.multiply_adds(linear, (4, 10)) == 4 * 10 * 7
    conv = torch.nn.Conv3d(4, 6, (3, 1, 1), groups=2, bias=False, device="meta")
    assert cost.multiply_adds(conv, (1, 4, 5, 2, 2)) == 3 * 2 * 2 * 6 * (3 * 2)
    norm = torch.nn.BatchNorm3d(3, device="meta")
    assert cost.multiply_adds(norm, (1, 3, 2, 2, 2)) == 2 * 24


def test_live_bytes_are_of_what_lives() -> None:
    """Input and output of one layer live together, what came before is gone; in place nothing is added."""
    linear = [torch.nn.Linear(100, 100, bias=False, device="meta") for _ in range(5)]
    body = torch.nn.Sequential(linear[0], torch.nn.ReLU(inplace=True), *linear[1:])
    assert cost.live_bytes(body, (8, 100)) in (2 * 4 * 800, 3 * 4 * 800)  # the caller may hold the input to the end
    assert cost.kept_bytes(body, (8, 100)) >= 5 * 4 * 800


def test_what_training_keeps_is_near_the_published_memory() -> None:
    spec = zoo.spec("slowonly_r50_4x16", num_classes=400)
    found = cost.cost(spec, protocols.get("slowonly", "accurate"))
    (figure,) = (row for row in cost.published(spec.name) if row.get("video_per_s"))
    assert figure["videos_per_gpu"] == cost.TRAIN_CLIPS
    assert found.train_bytes / 1e6 == pytest.approx(figure["memory_mb"], rel=0.1)
    assert (found.num_views, found.view, found.video_per_s) == (30, (1, 3, 4, 256, 256), None)


@pytest.mark.parametrize(
    ("name", "views", "shape"),
    [
        ("tsn_r50_1x1x8", 75, (1, 3, 1, 256, 256)),
        ("tsn_r50_flow_5x1x8", 75, (1, 10, 1, 256, 256)),
        ("tsm_r50_1x1x8", 6, (1, 3, 8, 256, 256)),
        ("tsm_mobilenetv2_1x1x8", 30, (1, 3, 8, 256, 256)),
        ("slowonly_r50_flow_4x16", 10, (1, 2, 4, 256, 256)),
        ("slowonly_tiny_diff", 30, (1, 3, 8, 72, 72)),
        ("r3d_18", 5, (1, 3, 16, 112, 112)),
    ],
)
def test_views_of_a_video(name: str, views: int, shape: tuple[int, ...]) -> None:
    spec = zoo.spec(name, num_classes=400)
    found = cost.cost(spec, protocols.for_network(spec, "accurate"))
    assert (found.num_views, found.view) == (views, shape)
    assert found.macs_per_video == views * found.macs_per_view


def test_every_network_can_be_counted() -> None:
    for name in models.list("*_tiny*"):
        spec = zoo.spec(name, num_classes=4)
        found = cost.cost(spec, protocols.for_network(spec, "accurate"))
        assert 0 < found.macs_per_view < 1e9
        assert 0 < found.activations_bytes < found.train_bytes


def test_speed_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "MEASURE_S", 0.2)
    spec = zoo.spec("tsn_tiny", num_classes=4)
    found = cost.cost(spec, protocols.for_network(spec, "accurate"), device="cpu")
    assert found.video_per_s is not None
    assert found.video_per_s > 0
    assert found.device is not None
    assert found.device.startswith("cpu")


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cost.main(["slowonly_r50_4x16", "--views", "10x3@256", "--device", "none", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["macs_per_view"] / 1e9 == pytest.approx(27.378, rel=5e-3)
    assert table["macs_per_video"] == 30 * table["macs_per_view"]
    assert table["params"] == 32454096
    assert any(row.get("video_per_s") == 4.0 for row in table["published"])
    assert cost.main(["slowonly_tiny", "--device", "none"]) == 0
    assert "multiply-adds" in capsys.readouterr().out


def test_help_is_quick() -> None:
    code = "import sys, models.cost; models.cost.parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_figures_of_others_name_networks_that_exist() -> None:
    known = {"network", "crop_px", "videos_per_gpu", *cost.FIGURES}
    for block in manifests.read("speeds")["measured"]:
        manifests.check_keys(block, {"source", "note", "figures"}, "speeds.toml")
        for figure in block["figures"]:
            manifests.check_keys(figure, known, "speeds.toml")
            assert figure["network"] in models.list()
            assert cost.in_words(figure | {"source": "s", "note": "n"}).endswith("(s: n)")
