from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import manifests
from datakit import fingerprint, manifest
from datakit.__main__ import main
from datakit.copies import ids_in
from datakit.errors import UsageError

CHECKOUT = Path(__file__).resolve().parents[2]


def clip_row(clip_id: str, there: bool, split: str = "val") -> dict[str, Any]:
    return {"id": clip_id, "label": "x", "label_index": 0, "split": split, "status": "ok" if there else "missing",
            "path": f"{split}/{clip_id}.mp4" if there else None}  # fmt: skip


def prepared(root: Path, there: Iterable[str], asked: Iterable[str], name: str = "k400") -> None:
    folder = root / name / "256p"
    (folder / "lists").mkdir(parents=True)
    (folder / "lists/classes.txt").write_text("x\n")
    there = set(there)
    manifest.write(folder, [clip_row(one, one in there) for one in sorted(asked)], {})


def test_bitmaps_and_hashes_come_back() -> None:
    keys = fingerprint.keys_in_order(f"id-{number}" for number in range(1000))
    places = frozenset(range(0, 1000, 7))
    assert fingerprint.places_of(fingerprint.bits_of(places, 1000)) == places
    hashes = fingerprint.hashes_of(fingerprint.packed_hashes(keys), 1000)
    assert list(hashes) == sorted(hashes)
    assert len(hashes) == 1000
    official = fingerprint.OfficialList(
        set_name="s", split="val", key="clip", num_ids=1000, sha256="", hashes=hashes, copies=()
    )
    assert official.places(keys) == {key: place for place, key in enumerate(keys)}
    strangers = official.places(f"other-{number}" for number in range(1000))
    assert len(strangers) < 5  # 1000 * 1000 / 2**24


def test_ids_whose_carried_hashes_are_equal_stay_apart() -> None:
    """Of 30 000 ids some thirty pairs share 24 bits: with one of a pair here, it is that one and no other."""
    keys = fingerprint.keys_in_order(f"id-{number}" for number in range(30_000))
    hashes = fingerprint.hashes_of(fingerprint.packed_hashes(keys), len(keys))
    tied = [place for place in range(1, len(keys)) if hashes[place] >> 16 == hashes[place - 1] >> 16]
    assert len(tied) > 10
    official = fingerprint.OfficialList(
        set_name="s", split="val", key="clip", num_ids=len(keys), sha256="", hashes=hashes, copies=()
    )
    assert all(official.places([keys[place]]) == {keys[place]: place} for place in (tied[0], tied[0] - 1, tied[-1]))
    assert official.places(keys) == {key: place for place, key in enumerate(keys)}


def test_every_carried_copy_is_consistent() -> None:
    lists = fingerprint.official_lists()
    assert {("k400", "val"), ("k600", "val"), ("k400", "train")} <= {(one.set_name, one.split) for one in lists}
    for official in lists:
        assert official.copies
        assert official.key in ("video", "clip")
        assert len(official.hashes) in (0, official.num_ids)
        for copy in official.copies:
            assert copy.num_ids <= official.num_ids
            if copy.lacking is not None:
                assert len(copy.lacking) == official.num_ids - copy.num_ids
                assert all(place < official.num_ids for place in copy.lacking)
    total = sum(path.stat().st_size for path in (manifests.ROOT / "copies").iterdir())
    assert total < 400_000


def test_published_lists_are_recognised_with_and_without_the_official_list(shared: Path) -> None:
    folder = shared / "annotations/kinetics400"
    official = ids_in(folder / "val.csv.xz")
    slowfast, mmaction = ids_in(folder / "nonlocal_vallist.txt.xz"), ids_in(folder / "text4vis_video_val_se320.txt.xz")
    vificlip = ids_in(folder / "vificlip_val.txt.xz")
    assert (len(official), len(slowfast), len(mmaction), len(vificlip)) == (19906, 19761, 19796, 19877)
    for names in (None, official):
        for ids, said in ((slowfast, "exactly PySlowFast's 19 761"), (mmaction, "exactly mmaction2's 19 796"),
                          (vificlip, "exactly ViFi-CLIP's 19 877")):  # fmt: skip
            # Without the names the set and split are found too; once is enough.
            known = {"set_name": "k400", "split": "val"} if names or ids is not mmaction else {}
            found = fingerprint.copies_matching(ids, names, **known)
            assert str(found[0]) == said
            if ids is mmaction:
                second = found[1]
        assert str(second) == "19 759 of PySlowFast's 19 761, 37 others"
        assert second.only_here == tuple(sorted(mmaction - slowfast))
        assert second.only_there == (tuple(sorted(slowfast - mmaction)) if names else None)
        assert second.largest_top1_shift == pytest.approx(100 * (1 - 19759 / 19796))
    uniformer = ids_in(shared / "annotations/kinetics600/uniformer_val.csv.xz")
    assert str(fingerprint.copies_matching(uniformer)[0]) == "exactly UniFormer's 28 736"


def test_a_list_of_another_set_matches_nothing_and_foreign_ids_are_named(shared: Path) -> None:
    assert fingerprint.copies_matching([f"mine-{number}" for number in range(500)]) == []
    slowfast = ids_in(shared / "annotations/kinetics400/nonlocal_vallist.txt.xz")
    found = fingerprint.copies_matching([*slowfast, "not-official", "also-not"], split="val", set_name="k400")[0]
    assert str(found) == "19 761 of PySlowFast's 19 761, 2 others"
    assert found.foreign == found.only_here == ("also-not", "not-official")


def test_the_bound_is_reached_by_the_worst_scores() -> None:
    """Brute force over all scores of small lists: the bound is the largest difference of top-1 there is."""
    copy = fingerprint.PublishedCopy(name="c", title="C", source="", num_ids=4, lacking=frozenset())
    for both, num_here in ((3, 5), (4, 6), (2, 3), (4, 4), (0, 2)):
        match = fingerprint.CopyMatch(
            set_name="s", split="val", copy=copy, num_official=10, num_here=num_here, num_both=both, only_here=(),
            only_there=(), foreign=(),
        )  # fmt: skip
        largest = max(
            abs((right + here) / num_here - (right + there) / 4)
            for right in range(both + 1)
            for here in range(num_here - both + 1)
            for there in range(4 - both + 1)
        )
        assert match.largest_top1_shift == pytest.approx(100 * largest)


def test_compare_names_what_differs(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared / "annotations/kinetics400"
    official = sorted(ids_in(folder / "val.csv.xz"))
    slowfast = ids_in(folder / "nonlocal_vallist.txt.xz")
    lacking = [one for one in official if fingerprint.video_of(one) in slowfast][:35]
    prepared(tmp_path, [one for one in official if one not in set(lacking)], official)
    assert main(["compare", "k400", "--with", "pyslowfast", "--data-root", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    one = report["splits"]["val"]["copies"]["pyslowfast"]
    assert (one["there"], one["both"], len(one["only_here"])) == (19761, 19761 - 35, 145)
    assert one["only_there"] == sorted(fingerprint.video_of(each) for each in lacking)
    assert one["largest_top1_shift_points"] == pytest.approx(100 * (1 - 19726 / 19871), abs=1e-4)
    assert main(["compare", "k400", "--with", "pyslowfast,gluoncv", "--data-root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "19871 clips; the official list has 19906" in said
    assert "35 of the official ones are not here" in said
    assert "0.18 points" in said
    assert "19 726 of PySlowFast's 19 761, 145 others" in said
    assert "19 871 beside GluonCV's 19 404 (which ones was not published)" in said


def test_compare_without_the_official_list_says_so(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = shared / "annotations/kinetics400/text4vis_rgb_val_se320.txt.xz"
    words = ["compare", "k400", "--split", "val", "--with", "pyslowfast", "--list", str(listed)]
    assert main(words) == 0
    assert "only there      2: which ones: type --annotations with the official list" in capsys.readouterr().out
    assert main([*words, "--annotations", str(shared / "annotations/kinetics400/val.csv.xz")]) == 0
    assert "only there      2: HUiafDe-xTo, kUfOBKJZczk" in capsys.readouterr().out


def test_a_training_list_has_no_top1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = tmp_path / "train.txt"
    listed.write_text("".join(f"abseiling/{number:011d}.mp4 0\n" for number in range(100)))
    words = ["compare", "k400", "--split", "train", "--with", "pyslowfast", "--list", str(listed)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "100 beside PySlowFast's 234 643" in said
    assert "top-1" not in said
    assert main([*words, "--json"]) == 0
    copy = json.loads(capsys.readouterr().out)["splits"]["train"]["copies"]["pyslowfast"]
    assert copy["largest_top1_shift_points"] is None


def test_compare_refuses_with_the_names_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gluoncv, .*pyslowfast"):
        main(["compare", "k400", "--with", "slowpast", "--data-root", str(tmp_path)])
    with pytest.raises(UsageError, match=r"no published copy of mine .*k400 val"):
        main(["compare", "mine", "--data-root", str(tmp_path)])
    with pytest.raises(UsageError, match="nothing was prepared"):
        main(["compare", "k400", "--data-root", str(tmp_path)])


def test_the_script_makes_the_same_bitmap_from_a_list(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "manifests/copies").mkdir(parents=True)
    for package in ("datakit", "manifests/__init__.py"):
        (tmp_path / package).symlink_to(CHECKOUT / package)
    (tmp_path / "scripts/copies.py").write_text((CHECKOUT / "scripts/copies.py").read_text())
    folder = shared / "annotations/kinetics400"
    command = [sys.executable, str(tmp_path / "scripts/copies.py"), "k400", "val", "--key", "video", "--official",
               str(folder / "val.csv.xz"), "--copy", "pyslowfast", str(folder / "nonlocal_vallist.txt.xz"),
               "--title", "PySlowFast", "--source", "here"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    made = tomllib.loads((tmp_path / "manifests/copies/k400-val.toml").read_text())
    carried = manifests.read("copies/k400-val")
    assert made["copies"]["pyslowfast"]["lacking"] == carried["copies"]["pyslowfast"]["lacking"]
    assert (made["sha256"], made["hashes"]) == (carried["sha256"], carried["hashes"])
