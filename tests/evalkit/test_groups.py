from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import manifests
from datakit.errors import BadManifest, DataError, UsageError
from evalkit import groups
from evalkit.scores import ScoreSet
from evalkit.signature import Signature

IDS = ["a-b_E_000001_000009_A_0001_0002", "a-b_E_000011_000019_A_0001_0002", "c_E_000001_000009_A_0003_0004"]


def make(ids: list[str], name: str = "", missing: str | None = None) -> ScoreSet:
    return ScoreSet(
        ids=ids,
        labels=np.zeros(len(ids), dtype=np.int64),
        scores=np.ones((len(ids), 2), dtype=np.float32),
        classes=("x", "y"),
        kind="prob",
        signature=Signature(set=name),
        missing=[{"id": missing, "label": "x", "reason": "gone"}] if missing else [],
    )


def test_the_manifest_says_which_sets_cut_several_clips_of_a_video() -> None:
    cut = [name for name in manifests.names("datasets") if manifests.read(f"datasets/{name}").get("source_video")]
    assert cut == ["gym288", "gym99", "gym99-v1.1", "ucf101"]
    for name in ("gym99-val", "gym99-v1.1-val", "gym288-train", "gym99-val+gym99-val"):
        found = groups.of(make(IDS[:2], name, missing=IDS[2]))
        assert found == {IDS[0]: "a-b", IDS[1]: "a-b", IDS[2]: "c"}
    assert groups.of(make(["v_Walk_g01_c02", "v_Walk_g01_c05"], "ucf101-val")) == dict.fromkeys(
        ["v_Walk_g01_c02", "v_Walk_g01_c05"], "v_Walk_g01"
    )
    for name in ("k400-val", "", "mine", "gym99-val+k400-val"):
        assert groups.of(make(IDS, name)) is None
    assert groups.of(make(IDS, "gym99-val"), "none") is None


def test_ids_of_another_kind_are_said_and_counted_as_clips(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert groups.of(make(["clip 1"], "gym99-val")) is None
    assert "no source video in 1 ids: 'clip 1'" in caplog.text


def test_a_pattern_or_a_table(tmp_path: Path) -> None:
    assert groups.of(make(IDS), "(.+)_E_") == dict(zip(IDS, ["a-b", "a-b", "c"], strict=True))
    rows = dict(zip(IDS, ["one", "one", "two"], strict=True))
    table = tmp_path / "videos.csv"
    table.write_text("video,id\n" + "".join(f"{video},{clip}\n" for clip, video in rows.items()))
    assert groups.of(make(IDS), str(table)) == rows
    columns = pa.table({"id": list(rows), "video": list(rows.values()), "more": [1, 2, 3]})
    pq.write_table(columns, tmp_path / "manifest.parquet")
    assert groups.of(make(IDS[:1], missing=IDS[2]), str(tmp_path / "manifest.parquet")) == {
        IDS[0]: "one", IDS[2]: "two"}  # fmt: skip


def test_what_says_nothing_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "videos.csv"
    with pytest.raises(UsageError, match="is not there"):
        groups.of(make(IDS), str(table))
    table.write_text("name,video\n")
    with pytest.raises(BadManifest, match="id and video are needed, there are name, video"):
        groups.of(make(IDS), str(table))
    table.write_text(f"id,video\n{IDS[0]},one\n")
    with pytest.raises(DataError, match="no source video is given for 2 clips"):
        groups.of(make(IDS), str(table))
    with pytest.raises(UsageError, match="in parentheses"):
        groups.of(make(IDS), "_E_")
    with pytest.raises(UsageError, match="no pattern"):
        groups.of(make(IDS), "(.+_E_")
    with pytest.raises(DataError, match="finds no source video in 3 ids"):
        groups.of(make(IDS), "v_(.+)")


def test_units_number_the_videos() -> None:
    assert groups.units(IDS, None) is None
    found = groups.units(IDS, {IDS[0]: "b", IDS[1]: "a", IDS[2]: "b", "other": "z"})
    assert found is not None
    assert found.tolist() == [1, 0, 1]


def test_of_several_runs() -> None:
    assert groups.of_all([make(IDS[:1], "gym99-val"), make(IDS, "gym99-val")]) == groups.of(make(IDS, "gym99-val"))
    assert groups.of_all([make(IDS, "gym99-val"), make(IDS)]) is None
