from __future__ import annotations

import csv
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import manifests
from datakit.errors import UsageError
from datakit.fingerprint import CopyMatch, PublishedCopy
from evalkit import __main__ as main
from evalkit import copies, protocols, scores, table
from evalkit import published as theirs
from evalkit.scores import ScoreSet
from evalkit.signature import Signature

FILE = "slowonly_r50_4x16x1_256e_kinetics400_rgb_20200704-a69556c6.pth"


def make(**changes: Any) -> ScoreSet:
    """A run that could be the published one: slowonly_r50_4x16 on short-side 320, 10 clips x 3 crops."""
    protocol = protocols.get("slowonly", "accurate")
    labels = np.arange(40) % 4
    values: dict[str, Any] = {
        "ids": [f"clip {number}" for number in range(40)], "labels": labels,
        "scores": np.eye(4, dtype=np.float32)[np.where(np.arange(40) < 30, labels, (labels + 1) % 4)],
        "classes": tuple("abcd"), "kind": "prob",
        "signature": Signature(
            set="k400-val", labels="k400", model="slowonly_r50_4x16", clip="4x16", views="10x3@256", input="rgb",
            sampling="mmaction2-0.x", agg="prob-mean", weights="a69556c6", media="320p-9f3c0a1b2c",
        ),
        "meta": {
            "protocol": json.loads(json.dumps(asdict(protocol))),
            "spec": {"name": "slowonly_r50_4x16", "published": {"file": FILE}, "network": {"depth": 50}},
        },
    }  # fmt: skip
    return ScoreSet(**(values | changes))


def exactly(name: str = "mmaction2", lacking: int = 0) -> CopyMatch:
    copy = PublishedCopy(name=name, title=name, source="", num_ids=40 + lacking, lacking=frozenset())
    return CopyMatch(
        set_name="k400", split="val", copy=copy, num_official=60, num_here=40, num_both=40, only_here=(),
        only_there=None, foreign=(),
    )  # fmt: skip


def rows(*sets: ScoreSet) -> list[table.Row]:
    return table.rows([table.Run(path=Path(f"run{number}"), scores=one) for number, one in enumerate(sets)])


def published(found: list[table.Row], file: str = FILE) -> table.Row:
    return next(row for row in found if row.checkpoint == file and row.by != "us")


def test_ours_has_every_column_that_is_known() -> None:
    found = table.rows([table.Run(path=Path("x"), scores=make(), macs_per_view=2e9)])[0]
    assert (found.configuration, found.dataset, found.resolution) == ("slowonly_r50_4x16", "k400-val", "320p")
    assert (found.backbone, found.input, found.pretraining, found.omnisource) == ("ResNet50", "4x16 rgb", "None", "no")
    assert (found.top1, found.top5, found.protocol) == ("75.00 ± 6.85", "100.00 ± 0.00", "10 clips x 3 crops @256")
    assert (found.gmacs, found.checkpoint, found.comparable) == ("60", FILE, "reference")
    assert found.signature == str(make().signature)


def test_the_published_row_of_the_very_file_is_comparable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "nearest", lambda _: exactly())
    row = published(rows(make()))
    assert row.comparable == "yes"
    assert row.why == (
        "same weights, clips, resolution and protocol; whether their files were the same as ours cannot be checked"
    )
    assert (row.top1, row.top5, row.resolution) == ("73.02", "90.77", "short-side 320")
    assert (row.video_per_s, row.memory_mb) == ("4", "3168")
    assert row.input == "4x16 rgb"
    assert (row.gpus, row.pretraining) == ("16 x 8 clips", "None")
    assert row.json.endswith("/slowonly_r50_4x16x1_256e_kinetics400_rgb/slowonly_r50_4x16_73.02_90.77.log.json")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weights": "00000000"}, "other weights"),
        ({"media": "256p-9f3c0a1b2c"}, "videos of short-side 320 there, 256p here"),
        ({"media": ""}, "videos of short-side 320 there, not known here"),
    ],
)
def test_why_a_published_row_is_not(monkeypatch: pytest.MonkeyPatch, change: dict[str, str], reason: str) -> None:
    monkeypatch.setattr(copies, "nearest", lambda _: exactly())
    row = published(rows(make(signature=replace(make().signature, **change))))
    assert row.comparable == "no"
    assert reason in row.why


def test_other_clips_and_other_protocols_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "which clips they scored is not known" in published(rows(make())).why
    monkeypatch.setattr(copies, "nearest", lambda _: exactly("mmaction2", lacking=3))
    assert "ours are 40 of mmaction2's 43" in published(rows(make())).why
    monkeypatch.setattr(copies, "nearest", lambda _: exactly("pyslowfast"))
    assert "theirs mmaction2's own list" in published(rows(make())).why
    monkeypatch.setattr(copies, "nearest", lambda _: exactly())
    efficient = make()
    efficient.meta["protocol"] = json.loads(json.dumps(asdict(protocols.get("slowonly", "efficient"))))
    why = published(rows(efficient)).why
    assert "num_clips 10 there, 1 here" in why
    assert "crop_px 256 there, 224 here" in why
    lost = make(missing=[{"id": "lost", "label": "a", "reason": "gone"}])
    assert "1 clips are missing here" in published(rows(lost)).why


def test_published_rows_are_those_of_the_network_and_the_data_set() -> None:
    found = [row for row in rows(make()) if row.by != "us"]
    assert {row.dataset for row in found} == {"Kinetics-400"}
    omni = published(found, "slowonly_r50_omni_4x16x1_kinetics400_rgb_20200926-51b1f7ea.pth")
    assert (omni.omnisource, omni.top1) == ("yes", "76.80")
    imagenet = next(row for row in found if "imagenet_pretrained_r50_4x16" in row.configuration)
    assert imagenet.pretraining == "ImageNet"
    assert len({row.checkpoint for row in found}) == len(found)
    assert len(rows(make(signature=replace(make().signature, set="own-val", weights="1")))) == 1


def test_every_published_file_makes_a_row() -> None:
    for row in theirs.rows():
        made = table._theirs(row, [table.Run(path=Path("x"), scores=make())], lambda *_: 3e12)
        assert made.comparable == "no" or row["sha8"] == "a69556c6"
        assert made.protocol, row["file"]
    without = next(row for row in theirs.rows() if "without_omni" in row["file"])
    assert table._omnisource(without["file"]) == "no"
    assert made.gmacs == "3000"
    assert manifests.read("zoos")["files"].keys() <= {row["file"] for row in theirs.rows()}


def test_what_run_and_training_left_behind_is_listed(tmp_path: Path) -> None:
    run, trained = tmp_path / "run", tmp_path / "trained"
    make(meta={}).save(run / scores.FILE_NAME)
    trained.mkdir()
    (trained / "log.jsonl").touch()
    (trained / "training.json").write_text('{"gpus": 4, "batch": 16, "weights": "a69556c6", "others": []}')
    told = {"video_per_s": 12.34, "memory_mb": 900, "device": "1 x cpu", "checkpoint": str(trained / "ckpt.pth")}
    (run / "run.json").write_text(json.dumps(told))
    (found,) = (row for row in table.rows(table.load([run])) if row.by == "us")
    assert (found.gpus, found.pretraining, found.omnisource) == ("4 x 16 clips", "Kinetics-400 (a69556c6)", "no")
    assert (found.video_per_s, found.memory_mb) == ("12.3 (with decoding, 1 x cpu)", "900 (testing)")
    assert (found.checkpoint, found.log) == (str(trained / "ckpt.pth"), str(trained / "log.jsonl"))
    (run / "run.json").write_text("no JSON")
    assert table.rows(table.load([run / scores.FILE_NAME]))[0].video_per_s == ""


def test_files_that_nobody_hashed_are_not_called_the_same_copy() -> None:
    unknown = make(signature=replace(make().signature, media="foreign-unverified"))
    assert rows(unknown, unknown)[1].comparable == "no"
    assert "whether they are the same copy is not known" in rows(unknown, unknown)[1].why


def test_latex_compiles_whatever_the_names_are() -> None:
    odd = '[a] *b* "c" `d` --e~^ <f> 漢\x07'
    text = table.latex(rows(make(meta={}, signature=replace(make().signature, model=odd))))
    line = text.splitlines()[4]
    assert line.startswith("{[}a{]} {*}b{*} ''c'' \\textasciigrave{}d\\textasciigrave{} -{}-e\\textasciitilde{}")
    assert "? \\textbar" in line or "\\textgreater{} ??" in line
    assert line.isascii() or "±" not in line


def test_our_own_runs_are_comparable_or_not() -> None:
    other = make(signature=replace(make().signature, media="256p-000"))
    found = rows(make(), make(), other)
    assert [row.comparable for row in found[:3]] == ["reference", "yes", "no"]
    assert found[2].why == "media is 256p-000, not 320p-9f3c0a1b2c"


def test_the_three_forms_hold_the_same_cells() -> None:
    found = rows(make(meta={}, signature=replace(make().signature, model="50% & more_{x}|y\\z")))
    lines = table.markdown(found).splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert {len(line) for line in cells} == {len(table.TITLES)}
    again = list(csv.DictReader(table.as_csv(found).splitlines()))
    assert again[0] == asdict(found[0])
    text = table.latex(found)
    assert r"50\% \& more\_\{x\}" in text
    assert len(re.findall(r"(?<!\\)&", text.splitlines()[4])) == len(table.TITLES) - 1
    assert not re.search(r"(?<!\\)[%#_]", text)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = make(meta={}, signature=replace(make().signature, set="own-val"))  # nothing published of it
    own.save(tmp_path / "run" / scores.FILE_NAME)
    for suffix in (".md", ".csv", ".tex"):
        assert main.main(["table", str(tmp_path / "run"), "--out", str(tmp_path / f"t{suffix}")]) == 0
        assert "set:own-val" in (tmp_path / f"t{suffix}").read_text()
    capsys.readouterr()
    assert main.main(["table", str(tmp_path / "run"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "evalkit-table/1"
    assert document["rows"][0]["signature"] == str(own.signature)
    assert main.main(["table", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.startswith("| configuration |")
    with pytest.raises(UsageError, match=r"ends with \.md, \.csv, \.tex"):
        main.main(["table", str(tmp_path / "run"), "--out", "t.xls"])
