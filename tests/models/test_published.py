"""Every published file is known by its hash and by its name, however much of the name is left."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import manifests
import models
from datakit.errors import CheckpointError
from models import convert, zoo
from models.checkpoints import caffe2, identify, mmaction2, published, pytorchvideo, torchvision
from models.checkpoints.files import File

ROWS = published.rows()
OURS = [row for row in ROWS if "network" in row]
ELSEWHERE = [row for row in ROWS if "network" not in row]
NUM_CLASSES = {"Kinetics-400": 400, "Kinetics-600": 600, "Kinetics-700": 700}


def file_name(row: dict[str, Any]) -> str:
    return str(row["file"])


def test_rows_are_whole() -> None:
    keys = {"file", "network", "backbone", "protocol", "dataset", "copy", "classes", "config", "head_pool",
            "top1", "top5", "mean_class", "map"}  # fmt: skip
    for program in manifests.read("published")["program"]:
        manifests.check_keys(program, {"origin", "source", "files"}, "published.toml")
        for line in program["files"]:
            manifests.check_keys(line, keys, f"published.toml, {line['file']}")
            assert ("network" in line) != ("backbone" in line), line
    assert len(ROWS) > 250
    assert sum(bool(row["sha8"]) for row in ROWS) > 230
    for row in OURS:
        assert row["network"] in models.list(), row
        assert row.get("protocol", "slowonly") in manifests.read("protocols")
        assert 0 < row.get("top1", 50) < 100


def test_the_list_of_the_facts(shared: Path) -> None:
    """Every file that the fact sheet lists with a hash, and its numbers, stand in the manifest."""
    import csv

    with (shared / "notes" / "published_checkpoints.csv").open() as sheet:
        facts = [fact for fact in csv.DictReader(sheet) if fact["sha8"]]
    numbers = {(row["sha8"], row.get("top1"), row.get("top5"), row.get("mean_class")) for row in ROWS}
    left_out = []
    for fact in facts:
        each = (float(fact[key]) if fact[key] else None for key in ("top1", "top5", "mean_class"))
        if (fact["sha8"], *each) not in numbers:
            left_out.append(fact["name"])
    # Two networks stand beside the same file there.
    assert left_out == ["tsn_imagenet-pretrained-swin-transformer_32xb8-1x1x8-50e_kinetics400-rgb"]


@pytest.mark.parametrize("row", OURS, ids=file_name)
def test_a_name_gives_its_network(row: dict[str, Any]) -> None:
    """Whole, without the hash, without date and hash, with something in front and behind."""
    rows = [other for other in published.of(row["origin"]) if "network" in other]
    num_classes = row.get("classes", 400)
    whole = row["file"]
    undated = f"{published.stem(whole)}.pth"
    for name in (whole, re.sub(r"-[0-9a-f]{8}\.", ".", whole), undated, f"best_{undated}", f"my_{whole}.pth"):
        found = published.named(rows, name, num_classes)
        assert found is not None
        assert found["network"] == row["network"], name
    found = published.named(rows, whole, num_classes)
    assert found is not None
    assert found["file"] == whole
    if row["sha8"]:
        same = published.with_digest(rows, ("00000000", row["sha8"]))
        assert same is not None
        assert same["sha8"] == row["sha8"]


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Keys and shapes of each network made once."""
    made: dict[str, dict[str, tuple[int, ...]]] = {}
    slow = identify.expected

    def expected(name: str, num_classes: int, arguments: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        key = f"{name} {num_classes} {identify.arguments_for(name, arguments)}"
        if key not in made:
            made[key] = slow(name, num_classes, arguments)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identify, "expected", expected)
        yield


ADAPTERS = {"mmaction2": mmaction2, "pytorchvideo": pytorchvideo, "torchvision": torchvision}
FOR_NETWORK = {(row["network"], row["origin"]): row for row in OURS if row["origin"].partition("-")[0] in ADAPTERS}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row["file"], marks=[pytest.mark.slow] if re.search("r101|r152", row["network"]) else [])
        for row in FOR_NETWORK.values()
    ],
)
def test_a_file_of_that_name(row: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """Keys and shapes of that network under that name: one file of every network and program."""
    caplog.set_level(logging.INFO)
    target = row["origin"].partition("-")[0]
    adapter = ADAPTERS[target]
    num_classes = row.get("classes", NUM_CLASSES.get(row["dataset"], 174))
    known: dict[str, Any] = {}
    if target == "pytorchvideo" and row["network"].startswith("slowfast"):
        known = {"lateral_norm": True}
    if row["network"] == "r2plus1d_r50_16x4" or target != "mmaction2":
        known |= {"eps": 1e-5} if "csn" in row["network"] else {}
    spec = zoo.spec(row["network"], num_classes=num_classes, **known)
    body = zoo.hollow(spec)
    state = convert.theirs(body.state_dict(), body, spec, target)
    path = Path(row["file"])
    top = {"meta": {"mmengine_version": "0.7"}} if row["origin"] == "mmaction2-1.x" else {}
    file = File(state=state, top=top, how="top level", config_text=None)
    found = identify.foreign_spec(
        path, adapter.adapt(state), file, name=None, adapter=adapter, digests=("00000000", "11111111")
    )
    assert (found.name, found.origin) == (row["network"], row["origin"])
    assert found.protocol == row.get("protocol", spec.protocol)
    assert (found.published is None) == bool(row["sha8"])  # without a hash the name is all there is
    assert published.numbers(row) in caplog.text
    if row["sha8"]:
        assert "it is another file or damaged" in caplog.text
        renamed = identify.foreign_spec(
            Path("renamed.pth"), adapter.adapt(state), file, name=None, adapter=adapter, digests=(row["sha8"], "0")
        )
        assert (renamed.name, renamed.known["name"]) == (row["network"], "sha8 of a published file")
        assert renamed.published is not None
        assert renamed.published["sha8"] == row["sha8"]
        assert renamed.published["source"]
        assert f"renamed.pth is the published {renamed.published['file']}" in caplog.text


@pytest.mark.usefixtures("quick")
def test_gluoncv_hashes_by_sha1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    net = models.create("tsn_r18_1x1x7", num_classes=5)
    state = {}
    for key, value in net.body.state_dict().items():  # the keys of torchvision's image ResNets
        renamed = re.sub(r"res(\d)\.", lambda found: f"layer{int(found[1]) - 1}.", key).replace("stem.", "conv1.")
        renamed = re.sub(r"conv(\d)\.conv\.", r"conv\1.", renamed).replace("conv1.conv.", "conv1.")
        renamed = re.sub(r"conv(\d)\.bn\.", r"bn\1.", renamed).replace("head.", "fc.")
        renamed = renamed.replace("shortcut.conv.", "downsample.0.").replace("shortcut.bn.", "downsample.1.")
        state[renamed] = value.squeeze(2) if value.ndim == 5 else value
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    sha1 = hashlib.sha1(path.read_bytes()).hexdigest()[:8]
    row = next(row for row in OURS if row["network"] == "tsn_r18_1x1x7")
    patched = tuple(row | {"sha8": sha1} if each is row else each for each in ROWS)
    monkeypatch.setattr(published, "rows", lambda: patched)
    spec = models.load(path).spec
    assert (spec.name, spec.protocol) == ("tsn_r18_1x1x7", "gluoncv-tsn-tencrop")
    assert spec.published is not None
    assert spec.published["top1"] == 66.73
    assert "top-1 66.73 on Kinetics-400" in caplog.text


def test_caffe2_files_are_known_by_name_and_classes() -> None:
    rows = published.of("pyslowfast-caffe2")
    for num_classes, dataset in ((174, "SthV2"), (157, "Charades")):
        row = published.named(rows, "SLOWFAST_16x8_R50_multigrid.pkl", num_classes)
        assert row is not None
        assert row["dataset"] == dataset
        assert published.is_whole_name(row, "SLOWFAST_16x8_R50_multigrid.pkl", "pyslowfast-caffe2")
        assert not published.is_whole_name(row, "SLOWFAST_16x8_R50_multigrid.pyth", "pyslowfast")  # trained by somebody
    assert published.named(rows, "SLOWFAST_8x8_R50.pkl", 7) is None
    longest = published.named(rows, "SLOWFAST_8x8_R50_stepwise_multigrid.pkl", 400)
    assert longest is not None
    assert longest["top1"] == 76.6
    assert not published.is_whole_name(longest, "SLOWFAST_8x8_R50_stepwise_multigrid_mine.pkl", "pyslowfast-caffe2")
    assert caffe2.PRIORS  # and without a name there is one


@pytest.mark.parametrize("row", ELSEWHERE, ids=file_name)
def test_networks_that_are_not_built_here_are_refused_by_name(row: dict[str, Any], tmp_path: Path) -> None:
    state = {"backbone.patch_embed.proj.weight": torch.zeros(2, 2), "cls_head.fc_cls.weight": torch.zeros(400, 8)}
    path = tmp_path / row["file"]
    torch.save({"state_dict": state}, path)
    with pytest.raises(
        CheckpointError, match=rf"the published {re.escape(row['file'])} .*is built on {row['backbone']}"
    ):
        models.load(path)


def test_numbers() -> None:
    row = {"dataset": "GYM99", "copy": "short-side 256", "top1": 79.3, "mean_class": 70.2}
    assert published.numbers(row) == "top-1 79.30, mean class 70.20 on GYM99 (short-side 256)"
    assert published.numbers({"dataset": "MMiT"}) == "no number on MMiT"
