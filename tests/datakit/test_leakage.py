from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datakit.__main__ import main
from datakit.copies import ids_in
from datakit.errors import UsageError

HEADER = "label,youtube_id,time_start,time_end,split\n"


def kinetics(folder: Path, split: str, rows: list[tuple[str, int]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"yoga,{video},{start},{start + 10},{split}\n" for video, start in rows]
    (folder / f"{split}.csv").write_text(HEADER + "".join(lines))


def report(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[tuple[str, str], dict[str, Any]]:
    capsys.readouterr()
    assert main(["leakage", *words, "--json"]) == 0
    shared = json.loads(capsys.readouterr().out)["shared"]
    return {(pair["first"], pair["second"]): pair for pair in shared}


def test_clips_and_videos_that_splits_and_sets_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists = tmp_path / "lists"
    kinetics(lists / "k400", "train", [("aaaaaaaaaaa", 0), ("bbbbbbbbbbb", 0)])
    kinetics(lists / "k400", "val", [("bbbbbbbbbbb", 30), ("ccccccccccc", 0)])
    kinetics(lists / "k600", "val", [("ccccccccccc", 0), ("aaaaaaaaaaa", 5), ("ddddddddddd", 0)])
    words = ["k400", "k600", "--annotations", str(lists), "--data-root", str(tmp_path / "data")]
    pairs = report(words, capsys)
    assert set(pairs) == {("k400 train", "k400 val"), ("k400 train", "k600 val"), ("k400 val", "k600 val")}
    inside = pairs["k400 train", "k400 val"]
    assert (inside["clips"], inside["videos"]) == ([], ["bbbbbbbbbbb"])
    assert pairs["k400 val", "k600 val"]["clips"] == ["ccccccccccc_000000_000010"]
    assert pairs["k400 train", "k600 val"]["videos"] == ["aaaaaaaaaaa"]
    assert main(["leakage", *words]) == 0
    said = capsys.readouterr().out
    assert "k600 val: 3 clips of 3 videos" in said
    assert "they have 1 clips of k400 train, 1 of k400 val" in said
    assert main(["leakage", "k600", "--annotations", str(lists), "--data-root", str(tmp_path / "data")]) == 0
    assert "nothing in common" in capsys.readouterr().out


def test_a_prepared_set_shows_files_that_are_the_same(
    tmp_path: Path, class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = class_folders / "val/wave/other name.mp4"
    twin.write_bytes((class_folders / "train/wave/a.mp4").read_bytes())
    root = ["--data-root", str(tmp_path / "data")]
    main(["prepare", "mine", "--raw", str(class_folders), "--variant", "256p", *root])
    assert report(["mine", *root], capsys)["mine train", "mine val"]["files"] == [["a", "other_name"]]


def test_numbered_clips_of_two_sets_are_not_the_same_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text("1 12 0\n2 15 3\n")
    root = ["--data-root", str(tmp_path)]
    one, two = str(tmp_path / "one.txt"), str(tmp_path / "two.txt")
    assert report([one, two, *root], capsys)[f"{one} list", f"{two} list"]["videos"] is None
    assert main(["leakage", one, two, *root]) == 0
    assert "equal numbers say nothing" in capsys.readouterr().out


def test_what_is_nowhere_is_said(tmp_path: Path) -> None:
    root = ["--data-root", str(tmp_path)]
    with pytest.raises(UsageError, match=r"no official list of Kinetics-400 .*--annotations DIR"):
        main(["leakage", "k400", *root])
    with pytest.raises(UsageError, match=r"nothing was prepared in .*no manifest describes it, and it is no list"):
        main(["leakage", "mine", *root])


def test_the_official_lists_share_what_is_known_to_be_shared(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import lzma

    for name, folder in (("k400", "kinetics400"), ("k600", "kinetics600")):
        (tmp_path / name).mkdir()
        packed = (shared / "annotations" / folder / "val.csv.xz").read_bytes()
        (tmp_path / name / "val.csv").write_bytes(lzma.decompress(packed))
    pairs = report(["k400", "k600", "--annotations", str(tmp_path), "--data-root", str(tmp_path / "data")], capsys)
    assert len(pairs["k400 val", "k600 val"]["videos"]) == 13569
    assert len(ids_in(tmp_path / "k600/val.csv")) == 30000
