from __future__ import annotations

import lzma
import os
from pathlib import Path

import pytest

from datakit import catalog
from datakit.annotations import class_folders, kinetics_csv, own_csv, safe_name, stem
from datakit.errors import BadManifest, UsageError
from datakit.sources import local


def test_the_whole_official_k400_validation_list_is_read(shared: Path, tmp_path: Path) -> None:
    table = tmp_path / "val.csv"
    table.write_bytes(lzma.decompress((shared / "annotations/kinetics400/val.csv.xz").read_bytes()))
    dataset = catalog.dataset("k400")
    assert dataset is not None
    specs = kinetics_csv(table, "val", dataset.classes)
    assert len(specs) == dataset.split("val").rows == 19906
    assert len({spec.label for spec in specs}) == 400
    first = next(spec for spec in specs if spec.video == "0wR5jVB-WPk")
    assert (first.id, first.label) == ("0wR5jVB-WPk_000417_000427", "abseiling")
    assert sum(spec.id.startswith("-") for spec in specs) == 644


def test_class_order_is_the_published_one(shared: Path) -> None:
    dataset = catalog.dataset("k400")
    assert dataset is not None
    published = (shared / "annotations/kinetics400/label_map_k400_mmaction2.txt").read_text().splitlines()
    assert list(dataset.classes) == published


def test_published_names_are_found(tmp_path: Path) -> None:
    table = tmp_path / "val.csv"
    table.write_text(
        "label,youtube_id,time_start,time_end,split,is_cc\n"
        "yoga,aaaaaaaaaaa,1,11,val,0\nyoga,-bbbbbbbbbb,2,12,val,0\nyoga,ccccccccccc,3,13,val,0\nyoga,ddddddddddd,4,14,val,0\n"
        "zumba,eeeeeeeeeee,5,15,val,0\nzumba,eeeeeeeeeee,50,60,val,0\nzumba,fffffffffff,7,17,val,0\n"
    )
    specs = kinetics_csv(table, "val", ["yoga", "zumba"])
    dataset = catalog.dataset("k400")
    assert dataset is not None
    raw = tmp_path / "raw"
    for name in (
        "yoga/aaaaaaaaaaa_000001_000011.mp4",
        "-bbbbbbbbbb.mp4.mkv",
        "deep/er/ccccccccccc.mp4.webm",
        "ddddddddddd.avi",
        "eeeeeeeeeee.mp4",  # two moments are listed: the whole video, or prepare refuses it (test_prepare)
        "._fffffffffff.mp4",  # an Apple double, not a video
    ):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(b"x")
    found = {spec.id: spec.source and spec.source.name for spec in local.find(specs, raw, dataset)}
    assert found == {
        "aaaaaaaaaaa_000001_000011": "aaaaaaaaaaa_000001_000011.mp4",
        "-bbbbbbbbbb_000002_000012": "-bbbbbbbbbb.mp4.mkv",
        "ccccccccccc_000003_000013": "ccccccccccc.mp4.webm",
        "ddddddddddd_000004_000014": "ddddddddddd.avi",
        "eeeeeeeeeee_000005_000015": "eeeeeeeeeee.mp4",
        "eeeeeeeeeee_000050_000060": "eeeeeeeeeee.mp4",
        "fffffffffff_000007_000017": None,
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("juggling cats,aaaaaaaaaaa,1,11,val", r"val\.csv:3: 'juggling cats' is none of the 1 classes"),
        ("yoga,aaaaaaaaaaa,one,11,val", r"val\.csv:3: time_start and time_end"),
        ("yoga,aaaaaaaaaaa,inf,11,val", r"val\.csv:3: time_start and time_end"),
        ("yoga,aaaaaaaaaaa,1,11,train", r"val\.csv:3: a row of split 'train' in the list of 'val'"),
        ("yoga,aaaaaaaaaaa", r"val\.csv:3: fewer columns"),
        ("yoga,in bed,aaaaaaaaaaa,1,11,val", r"val\.csv:3: more columns"),
        ("yoga,../aaaaaaaa,1,11,val", "'../aaaaaaaa' is no id of a video"),
        ("yoga,,1,11,val", "'' is no id of a video"),
    ],
)
def test_bad_rows_are_named_by_line(tmp_path: Path, row: str, message: str) -> None:
    table = tmp_path / "val.csv"
    table.write_text(f"label,youtube_id,time_start,time_end,split\nyoga,bbbbbbbbbbb,1,11,val\n{row}\n")
    with pytest.raises(BadManifest, match=message):
        kinetics_csv(table, "val", ["yoga"])


def test_own_csv(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text('path,label,split,note\na/1.mp4,NA,train,x\n"b/00,2.avi","say ""hi""",validation,y\n')
    specs = own_csv(table, tmp_path, "val")
    assert [(s.id, s.label, s.split) for s in specs] == [("00,2", 'say "hi"', "val"), ("1", "NA", "train")]
    table.write_text("path,label\na/1.mp4,wave\na/1.mp4,jump\n")
    with pytest.raises(BadManifest, match=r"labels\.csv:3: a/1\.mp4 stood in line 2 with another label"):
        own_csv(table, tmp_path, "val")
    table.write_text("file,label\na/1.mp4,wave\n")
    with pytest.raises(BadManifest, match="path is not there"):
        own_csv(table, tmp_path, "val")


def test_own_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_bytes('\ufeffpath , label,\r\n a/1.mp4 , wave ,\r\n\r\n"b\u20282.mp4","stand\nup",\r\n'.encode())
    specs = own_csv(table, tmp_path, "val")
    assert [(s.source and s.source.name, s.label) for s in specs] == [("1.mp4", "wave"), ("b\u20282.mp4", "stand up")]
    for content, message in (
        ('a/1.mp4,"wave\na/2.mp4,jump\n', "is a quotation mark not closed"),  # else the second row is gone
        ("a/1,2.mp4,wave\n", r"labels\.csv:2: more columns than the first line names"),
        ("", "lists no video"),
    ):
        table.write_text(f"path,label\n{content}")
        with pytest.raises(BadManifest, match=message):
            own_csv(table, tmp_path, "val")


def test_a_name_that_is_no_text_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "ok.mp4").touch()
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")).touch()
    except OSError:
        pytest.skip("this disk takes no such name")
    with pytest.raises(BadManifest, match=r"caf.*is not UTF-8; rename it"):
        class_folders(tmp_path, "val")


def test_class_folders_and_names_that_collide(tmp_path: Path) -> None:
    for name in ("train/wave/x.mp4", "val/jump/x.mp4", "val/jump/x.avi", "loose.mkv", "val/jump/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    specs, passed_over = class_folders(tmp_path, "val")
    assert passed_over == 1
    assert [(s.id, s.label, s.split) for s in specs] == [
        ("loose", None, "val"),
        ("train__wave__x.mp4", "wave", "train"),
        ("val__jump__x.mp4", "jump", "val"),
        ("x.avi", "jump", "val"),
    ]
    with pytest.raises(UsageError, match="no video below"):
        class_folders(tmp_path / "train" / "nothing", "val")


def test_linked_folders_do_not_rename_what_they_point_at(tmp_path: Path) -> None:
    for name in ("raw/wave/a.mp4", "elsewhere/b.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "raw/also wave").symlink_to(tmp_path / "raw/wave")
    (tmp_path / "raw/jump").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/up").symlink_to(tmp_path / "raw")
    specs, _ = class_folders(tmp_path / "raw", "val")
    assert [(s.id, s.label) for s in specs] == [("a", "wave"), ("b", "jump")]


def test_names_for_the_disk() -> None:
    assert safe_name('passing "American" football (in game)') == "passing_American_football_(in_game)"
    assert safe_name("a/b\tc") == "a_b_c"
    assert safe_name("..") == "_.."
    assert stem("id.mp4.mkv") == "id"
    assert stem("v1.2 take.MOV") == "v1.2 take"
