from __future__ import annotations

import io
import json
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path

import pytest

from datakit import catalog, disk, doctor, encode, estimate
from datakit.__main__ import main
from datakit.errors import DataError, ToolMissing, UsageError


def findings(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "datakit-doctor/1"
    return {one["what"]: one for one in report["findings"]}


def test_this_machine_is_fit_and_a_set_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "k400", "--json", "--data-root", str(tmp_path / "not/there")]) == 0
    found = findings(capsys)
    for what in ("Python", "av", "yt-dlp", "torch", "ffmpeg", "ffmpeg encoders", "ffmpeg filters", "trial encode"):
        assert found[what]["verdict"] in ("ok", "note"), found[what]
    assert found["torch"]["verdict"] == "ok"  # the one that was asked last: torch and torchvision fit
    assert "days old" in found["yt-dlp"]["found"]
    assert found["trial encode"]["found"] == "12 frames in, 12 out"
    assert "305125 clips" in found["k400 as fetched"]["found"]
    assert {"k400 256p", "k400 320p", "k400 340x256", "k400 in all"} <= set(found)
    assert not (tmp_path / "not").exists()


def test_an_ffmpeg_that_is_none_is_broken_and_ends_with_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "ffmpeg"
    fake.write_text("#!/bin/sh\necho 'ffmpeg version 3.0 Copyright (c) 2000-2016'\n")
    fake.chmod(0o755)
    monkeypatch.setattr(encode, "ffmpeg_program", lambda: str(fake))
    monkeypatch.setattr(doctor, "torch_pair", lambda: doctor.Finding(what="torch", verdict="ok", found=""))
    assert main(["doctor", "--data-root", str(tmp_path)]) == ToolMissing.exit_code
    said = capsys.readouterr().out
    assert "broken   ffmpeg encoders: lacks libx264, mjpeg" in said
    assert "ffmpeg version 3.0, of 2016" in said
    assert "not fit for work: ffmpeg filters, ffmpeg encoders, trial encode" in said


def test_a_torchvision_of_another_torch_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = doctor.torch_pair()
    assert found.verdict == "broken"
    assert "operator torchvision::nms does not exist" in found.found
    assert "one release" in found.advice


def test_a_version_that_is_a_date_has_an_age(monkeypatch: pytest.MonkeyPatch) -> None:
    old = datetime.now(UTC).date() - timedelta(days=200)
    version = f"{old.year}.{old.month:02}.{old.day:02}"
    assert doctor.days_old(version) == 200
    assert doctor.days_old("18.1.0") is doctor.days_old("2026.8") is doctor.days_old("2026.13.45") is None
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: version if name == "yt-dlp" else "999.0")
    found = {one.what: one for one in doctor.packages()}
    assert found["yt-dlp"].verdict == "broken"  # older than pyproject.toml asks for
    monkeypatch.setattr(doctor, "_project", lambda: {"dependencies": ["yt-dlp>=2020.1.1", "nobody-has-this>=1"]})
    monkeypatch.setitem(doctor.OLD_DAYS, "yt-dlp", 90)
    found = {one.what: one for one in doctor.packages()}
    assert (found["yt-dlp"].verdict, found["yt-dlp"].found) == ("note", f"{version}, 200 days old")


@pytest.mark.parametrize(
    ("version", "clause", "fits"),
    [("3.11.7", ">=3.11", True), ("3.14.0", "<3.14", False), ("3.13.9", "<3.14", True), ("0.17.5", "==0.17.5", True),
     ("2.15.0+cu132", ">=2.11", True), ("18.1.0", ">=17", True), ("19.0", "<19", False)],
)  # fmt: skip
def test_versions_are_compared_by_their_numbers(version: str, clause: str, fits: bool) -> None:
    assert doctor._compare(version, clause) == fits


def test_a_network_disk_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "file_system", lambda path: "nfs4")
    found = {one.what: one for one in doctor.folder(tmp_path)}
    assert found["journal"].verdict == "note"
    assert "nfs4 is a network disk, where SQLite is not safe" in found["journal"].found
    monkeypatch.setattr(os, "link", lambda first, second: (_ for _ in ()).throw(OSError("no links")))
    assert "stored twice" in {one.what: one for one in doctor.folder(tmp_path)}["links"].advice


def test_the_price_of_a_clip_grows_with_its_pictures_and_equal_variants_cost_once() -> None:
    variants = [catalog.variant(name) for name in ("256p", "320p", "340x256")]

    def price(names: slice, width: int, height: int, frames: int) -> tuple[float, float]:
        chosen = variants[names]
        sizes = [one.size(Fraction(width), Fraction(height)) for one in chosen]
        return estimate.of_clip(width * height, frames, chosen, sizes)

    small, large = price(slice(1), 340, 256, 300), price(slice(1), 1280, 720, 300)
    assert large[0] > small[0]
    assert price(slice(3), 1280, 720, 300)[0] > large[0]
    # 256p of a 340x256 source is 340x256
    assert price(slice(0, 3, 2), 340, 256, 300) == small
    # ten seconds of Kinetics: seconds of a processor and a third of a megabyte, not minutes and not kilobytes
    cpu_s, num_bytes = price(slice(3), 480, 320, 290)
    assert 1 < cpu_s < 10
    assert 0.5e6 < num_bytes < 3e6


def test_the_effort_is_judged_from_the_sources(tmp_path: Path, make_video) -> None:  # type: ignore[no-untyped-def]
    video = make_video(tmp_path / "a.mp4", width=320, height=240, frames=48)
    variants = (catalog.variant("256p"),)
    whole = estimate.Source(path=video, variants=variants)
    one = estimate.of_encoding([whole])
    many = estimate.of_encoding([whole] * 1000)
    half = estimate.of_encoding([estimate.Source(path=video, variants=variants, seconds=2.0)] * 1000)
    assert one is not None
    assert many is not None
    assert half is not None
    assert many.cpu_s == pytest.approx(1000 * one.cpu_s)
    assert half.num_bytes == pytest.approx(many.num_bytes / 2)
    (tmp_path / "broken.mp4").touch()
    assert estimate.of_encoding([estimate.Source(path=tmp_path / "broken.mp4", variants=variants)]) is None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def ask(num_bytes: float, seconds: float, folder: Path, *, yes: bool = False) -> None:
    estimate.ask_before("mine: 3 clips", seconds, num_bytes, folder, yes=yes, instead="--limit N makes a few")


def test_before_much_work_a_person_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(1e6, 60, tmp_path)
    assert capsys.readouterr().err == ""  # small things go without a word
    ask(6e9, 60, tmp_path)
    assert "mine: 3 clips; 6.0 GB of disk, " in capsys.readouterr().err  # nobody is there: said, not asked
    said = Terminal()
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(sys, "stdin", Terminal("no\n"))
    with pytest.raises(UsageError, match=r"nothing was begun; --limit N makes a few, --yes does not ask"):
        ask(1e6, 7200, tmp_path)
    assert said.getvalue().endswith("go on? [y/N] ")
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    ask(1e6, 7200, tmp_path)
    monkeypatch.setattr(sys, "stdin", Terminal(""))
    ask(1e6, 7200, tmp_path, yes=True)


def test_a_disk_that_is_too_small_is_refused_before_it_is_full(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"disk seems too small.*--yes goes on all the same"):
        ask(1e18, 60, tmp_path)
    ask(1e18, 60, tmp_path, yes=True)


def test_prepare_asks_before_much_and_yes_goes_on(
    tmp_path: Path, class_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimate, "LARGE_BYTES", 1000)
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    monkeypatch.setattr(sys, "stderr", Terminal())
    words = ["prepare", "mine", "--raw", str(class_folders), "--variant", "256p", "--data-root", str(tmp_path / "data")]
    with pytest.raises(UsageError, match="nothing was begun"):
        main([*words, "--jobs", "2"])
    said = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"mine: 6 clips into 256p: about \d s with 2 at once; 0 MB of disk, \d+", said), said
    assert not list((tmp_path / "data").rglob("*.mp4"))
    assert main([*words, "--yes", "--jobs", "2"]) == 5
    assert len(list((tmp_path / "data").rglob("*.mp4"))) == 5
