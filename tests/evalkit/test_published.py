"""Published rows beside ours: which, and with what reason."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import manifests
from evalkit import __main__ as command
from evalkit import fuse, protocols, published
from evalkit.scores import ScoreSet
from evalkit.signature import Signature

RGB = "slowonly_r50_4x16"
FLOW = "slowonly_r50_flow_4x16"
GYM = manifests.read("datasets/gym99")["splits"]["val"]


def run(network: str, row: str, **changes: Any) -> ScoreSet:
    """A run on eight elements of two videos, under the accurate row of protocols.toml."""
    protocol = protocols.get(row, "accurate")
    spec = manifests.read("models")["networks"].get(network, {"input": "rgb"})
    labels = np.arange(8) % 4
    signature = Signature(
        set="gym99-val", labels="gym99", model=network, clip="4x16", views=protocol.views, input=spec["input"],
        sampling=protocol.sampling, agg="prob-mean", media="256p-9f3c0a1b2c", weights="00000000",
    )  # fmt: skip
    return ScoreSet(
        ids=[f"video______{place % 2}_E_000001_000020_A_{place:04d}_0009" for place in range(8)],
        labels=labels,
        scores=np.eye(4, dtype=np.float32)[labels],
        classes=tuple("abcd"),
        kind="prob",
        signature=replace(signature, **changes),
        meta={"protocol": json.loads(json.dumps(asdict(protocol)))},
    )


def test_a_run_stands_beside_the_row_of_its_network() -> None:
    (rgb,) = published.beside(run(RGB, "slowonly"))
    assert (rgb.row["top1"], rgb.row["mean_class"]) == (79.3, 70.2)
    assert rgb.reasons == (
        "other weights (00000000 here)",
        f"which clips they scored is not known; ours are 8 where the official list has {GYM['rows']}",
    )
    (flow,) = published.beside(run(FLOW, "slowonly-flow"))
    assert (flow.row["top1"], flow.row["mean_class"]) == (80.3, 71.0)


def test_the_very_weights_on_another_copy_and_protocol() -> None:
    (row,) = published.beside(run(RGB, "slowonly-tiny", weights="a9c34b54", media="320p-9f3c0a1b2c"))
    assert "other weights" not in str(row)
    assert "videos of short-side 256 there, 320p here" in row.reasons
    assert "crop_px 256 there, 72 here" in row.reasons


def test_a_network_that_nobody_published_stands_beside_the_few_rows_of_the_set() -> None:
    (row,) = published.beside(run("slowonly_tiny", "slowonly-tiny"))
    assert row.row["network"] == RGB
    assert published.beside(run("slowonly_tiny", "slowonly-tiny", set="k400-val")) == []  # there are dozens
    assert published.beside(run("slowonly_tiny", "slowonly-tiny", set="mine-val")) == []


def test_a_fusion_stands_beside_the_published_fusion() -> None:
    parts = [run(RGB, "slowonly", weights="a9c34b54"), run(FLOW, "slowonly-flow", media="256p-flow-0123456789")]
    (row,) = published.beside(fuse.fuse(parts, (1, 1)))
    assert (row.row["top1"], row.row["mean_class"], row.row["of"]) == (83.7, 74.8, "rgb + flow 1:1")
    assert len(row.reasons) == 2
    assert "other weights (a9c34b54+00000000 here)" in row.reasons
    (row,) = published.beside(fuse.fuse(parts, (2, 1)))
    assert "fused 2:1 here" in row.reasons
    (row,) = published.beside(fuse.fuse(parts, (1, -1)))  # weights that add up to 0
    assert "fused 1:-1 here" in row.reasons
    (row,) = published.beside(fuse.fuse([run(RGB, "slowonly"), run(FLOW, "slowonly-tiny-flow")], (1, 1)))
    assert "views 10x3@256+10x1@256 there, 10x3@256+10x1@72 here" in row.reasons
    assert published.beside(fuse.fuse([parts[0], parts[0]], (1, 1))) == []


def test_the_whole_official_list_is_said_to_be_that(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(RGB, "slowonly", weights="a9c34b54")
    pinned = {"splits": {"val": {"rows": 8, "list_id": found.signature.list}}, "title": "GYM99"}
    read = manifests.read
    monkeypatch.setattr(manifests, "read", lambda name: pinned if name == "datasets/gym99" else read(name))
    (row,) = published.beside(found)
    assert row.reasons == ("which clips they scored is not known; ours are the whole official list, 8",)


def test_fuse_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, part in (("rgb", run(RGB, "slowonly")), ("flow", run(FLOW, "slowonly-flow"))):
        part.save(tmp_path / name / "scores.npz")
    files = [str(tmp_path / name / "scores.npz") for name in ("rgb", "flow")]
    assert command.main(["fuse", *files, "--weights", "1:1"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"published   top-1 83.70, mean class 74.80 on GYM99 .*, rgb \+ flow 1:1; not comparable: ", text)
    assert "2 source videos" in text
    assert command.main(["show", files[1], "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [one["published"]["top1"] for one in shown["beside"]] == [80.3]
    assert not shown["beside"][0]["comparable"]
