"""Archives over HTTP, end to end: a copy of the published layout on loopback, every clip of the list accounted for."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from datakit import catalog
from datakit.__main__ import main
from datakit.annotations import JOURNAL
from datakit.errors import BadArchive, UsageError
from datakit.journal import Journal, Outcome
from datakit.prepare import Request, fetch_only, prepare
from datakit.sources import Options, archive_stage, fetch_stage, http, unpack
from tests.datakit.conftest import MakeVideo
from tests.datakit.server import Fault, Server, serving

QUICK = http.Patience(tries=4, first_pause_s=0.001, longest_pause_s=0.002, timeout_s=5)
BASE = "https://s3.amazonaws.com/kinetics/400"
Members = Iterable[tuple[str, bytes]]


def tar(members: Members, *, extra: Iterable[tarfile.TarInfo] = (), compress: bool = True) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in extra:
            archive.addfile(info)
    return gzip.compress(out.getvalue(), 1) if compress else out.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> list[bytes]:
    """A few different small videos as bytes."""
    folder = tmp_path_factory.mktemp("clips")
    return [make_video(folder / f"{seed}.mp4", seed=seed).read_bytes() for seed in range(6)]


class Site:
    """The published layout of one split, on disk, and what its list asks for."""

    def __init__(self, root: Path, clips: list[bytes], split: str = "val") -> None:
        self.root, self.clips, self.split = root / "kinetics/400", clips, split
        self.rows: list[str] = []
        self.content: dict[str, bytes] = {}
        self.lines: list[str] = []
        (self.root / split).mkdir(parents=True)
        (self.root / "annotations").mkdir()

    def ask(self, num: int) -> list[tuple[str, bytes]]:
        """``num`` more clips on the list, as (file name, bytes)."""
        members = []
        for number in range(len(self.rows), len(self.rows) + num):
            video = f"-v{number:09d}"[:11]
            self.rows.append(f"archery,{video},{number},{number + 10},{self.split}")
            name = f"{video}_{number:06d}_{number + 10:06d}"
            self.content[name] = self.clips[number % len(self.clips)]
            members.append((f"{name}.mp4", self.content[name]))
        return members

    def publish(self, name: str, data: bytes | None) -> None:
        if data is not None:
            (self.root / self.split / name).write_bytes(data)
        self.lines.append(f"{BASE}/{self.split}/{name}")
        (self.root / self.split / f"k400_{self.split}_path.txt").write_text("\n".join([*self.lines, "", ""]))
        header = "label,youtube_id,time_start,time_end,split"
        (self.root / "annotations" / f"{self.split}.csv").write_text("\n".join([header, *self.rows, ""]))


def request(data: Path, server: Server, split: str = "val", **more: object) -> Request:
    limit, raw = more.pop("limit", None), more.pop("raw", None)
    options = Options(mirror=server.url, patience=QUICK, **more)  # type: ignore[arg-type]
    return Request(name="k400", data_root=data, raw=raw, labels=None, annotations=None, splits=(split,), variants=(),
                   num_jobs=2, limit=limit, allow_damaged=2.0, retry_failed=False, fetching=options)  # type: ignore[arg-type]  # fmt: skip


def outcomes(data: Path, stage: str) -> dict[str, Outcome]:
    with Journal.read(data / "k400" / JOURNAL) as journal:
        return journal.outcomes(stage)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "www").mkdir()
    with serving(tmp_path / "www") as one:
        yield one


def test_every_clip_is_accounted_for(
    tmp_path: Path, server: Server, clips: list[bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    site = Site(tmp_path / "www", clips)
    site.publish("part_0.tar.gz", tar((f"./{name}", data) for name, data in site.ask(40)))
    # a plain tar under the name of a tar.gz, with the folders of whoever made it
    deep = [(f"home/somebody/tmp/{name}", data) for name, data in site.ask(40)]
    site.publish("part_1.tar.gz", tar(deep, compress=False))
    listed = site.ask(40)
    empty = site.ask(1)[0][0]
    rubbish = [(f"./._{name}", b"apple") for name, _ in listed] + [
        (empty, b""),
        ("unlisted_000001_000011.mp4", clips[0]),
    ]
    site.publish("part_2.tar.gz", tar([*rubbish, *listed, ("readme.txt", b"x")]))
    evil = [("../../../evil_000000_000010.mp4", clips[0]), ("/tmp/evil_000000_000010.mp4", clips[0])]
    links = [link("a.mp4", "/etc/passwd"), link("b.mp4", "part.mp4", tarfile.LNKTYPE), link("c", "", tarfile.FIFOTYPE)]
    site.publish("part_3.tar.gz", tar([*evil, *site.ask(40)], extra=links))
    for number in (4, 5, 6, 7):
        site.publish(f"part_{number}.tar.gz", tar(site.ask(40)))
    server.faults["/kinetics/400/val/part_3.tar.gz"] = [Fault(times=2, lie_bytes=-700)]  # less than there is
    server.faults["/kinetics/400/val/part_4.tar.gz"] = [Fault(times=3, cut_after=20_000)]
    server.faults["/kinetics/400/val/part_5.tar.gz"] = [
        Fault(times=1, status=500),
        Fault(times=1, status=429, retry_after="0"),
    ]
    server.faults["/kinetics/400/val/part_6.tar.gz"] = [
        Fault(times=1, cut_after=20_000),
        Fault(times=2, no_ranges=True),
    ]
    server.faults["/kinetics/400/val/part_7.tar.gz"] = [Fault(times=1, lie_bytes=777), Fault(times=1, stall=True)]
    site.publish("mountain climber (exercise).tar.gz", tar((f"mountain climber/{n}", d) for n, d in site.ask(20)))
    # published cut short, not there at all, a page with an error, a bomb
    site.ask(20)
    whole = tar([(name, data * 30) for name, data in [(f"{k}.mp4", v) for k, v in list(site.content.items())[-20:]]])
    site.publish("cut.tar.gz", whole[: len(whole) // 2])
    cut = list(site.content)[-20:]
    site.publish("nowhere.tar.gz", None)
    site.publish("page.tar.gz", b"<html>Access denied</html>" * 100)
    site.publish("bomb.tar.gz", tar([("bomb_000000_000010.mp4", bytes(200 << 20))]))

    counts = fetch_only(request(tmp_path / "data", server))
    said = capfd.readouterr().err

    rows = outcomes(tmp_path / "data", fetch_stage("cvdf"))
    archives = outcomes(tmp_path / "data", archive_stage("cvdf"))
    in_cut = [name for name in cut if rows[name].status == "ok"]
    assert 0 < len(in_cut) < 20  # what came before the end is good
    lacking = {Path(empty).stem, *cut} - set(in_cut)
    assert len(site.content) == 361
    assert counts == {"ok": 361 - len(lacking), "missing": len(lacking)}
    for name, data in site.content.items():
        row = rows[name]
        if name in lacking:
            assert (row.status, row.error) == ("failed", "Missing")
            assert "in none of the 13 archives" in row.message
            continue
        file = tmp_path / "data/k400" / row.data["path"]
        assert file.read_bytes() == (data * 30 if name in cut else data)
        assert row.key
        assert row.data["member"].endswith(f"{name}.mp4")
        assert row.data["archive"].startswith("val/")
    assert {one.id: one.error for one in archives.values() if one.status != "ok"} == {
        "val/cut.tar.gz": "BadArchive", "val/nowhere.tar.gz": "Gone", "val/page.tar.gz": "BadArchive",
        "val/bomb.tar.gz": "BadArchive",
    }  # fmt: skip
    refused = [one for one in archives["val/part_3.tar.gz"].data["passed_over"] if one[2]]
    assert [one[0] for one in refused] == [*(name for name, _ in evil), "a.mp4", "b.mp4", "c"]
    for words in ("refused '../../../evil", "web page", "20 times its size", "ends early", "404"):
        assert words in said
    assert not [path for pattern in ("*evil*", "bomb_*", "*.part*") for path in tmp_path.rglob(pattern)]
    assert rows["unlisted_000001_000011"].status == "ok"  # on no list, but known

    failed = subprocess.run([sys.executable, "-m", "datakit", "failed", "k400", "--data-root", str(tmp_path / "data")],
                            capture_output=True, text=True, check=True).stdout  # fmt: skip
    assert {line.split()[0] for line in failed.splitlines()} == lacking

    # Nothing is asked for again, but for the list of archives.
    before = len(server.requests)
    assert fetch_only(request(tmp_path / "data", server)) == counts
    assert {path for _, path, _ in server.requests[before:]} <= {"/kinetics/400/val/k400_val_path.txt"}


def test_archives_need_not_stay_and_lost_clips_come_again(tmp_path: Path, server: Server, clips: list[bytes]) -> None:
    site = Site(tmp_path / "www", clips)
    for number in range(3):
        site.publish(f"part_{number}.tar.gz", tar(site.ask(5)))
    data = tmp_path / "data"
    assert fetch_only(request(data, server, keep_archives=False)) == {"ok": 15}
    assert not list(data.rglob("*.tar.gz"))
    lost = next(data.rglob("part_1/*.mp4"))
    lost.unlink()
    before = len(server.requests)
    assert fetch_only(request(data, server, keep_archives=False)) == {"ok": 15}
    assert lost.is_file()
    asked = {path for _, path, _ in server.requests[before:]}
    assert "/kinetics/400/val/part_1.tar.gz" in asked
    assert "/kinetics/400/val/part_0.tar.gz" not in asked


@pytest.mark.parametrize(("known", "asked"), [(False, 2), (True, 1)])
def test_a_broken_archive_comes_twice_whoever_is_killed(
    tmp_path: Path, server: Server, clips: list[bytes], known: bool, asked: int
) -> None:
    site = Site(tmp_path / "www", clips)
    site.publish("part_0.tar.gz", tar(site.ask(3))[:-20])
    note = tmp_path / "data/k400/raw/cvdf/archives/val/part_0.tar.gz.broken"
    if known:  # a run before us saw it, and was killed
        note.parent.mkdir(parents=True)
        note.touch()
    fetch_only(request(tmp_path / "data", server))
    gets = [path for method, path, _ in server.requests if method == "GET" and path.endswith("part_0.tar.gz")]
    assert len(gets) == asked
    assert not note.exists()


def test_limit_stops_early(
    tmp_path: Path, server: Server, clips: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    site = Site(tmp_path / "www", clips)
    for number in range(6):
        site.publish(f"part_{number}.tar.gz", tar(site.ask(5)))
    counts = fetch_only(request(tmp_path / "data", server, limit=4))
    assert counts["ok"] == 10  # two archives at once are the least
    assert counts["pending"] == 20
    assert len({path for _, path, _ in server.requests if path.endswith(".gz")}) == 2
    # Of a trial: what nobody was asked for is not missing.
    variant = catalog.variant("256p")
    some = replace(request(tmp_path / "data", server, limit=1), variants=(variant,))
    assert prepare(some) == {"256p": {"ok": 1, "pending": 29}}
    capsys.readouterr()
    assert main(["failed", "k400", "--data-root", str(tmp_path / "data")]) == 0
    assert capsys.readouterr().out == "k400: nothing failed, nothing is missing\n"
    assert fetch_only(request(tmp_path / "data", server)) == {"ok": 30}


def test_replacements_count_whatever_comes_first(tmp_path: Path, server: Server, clips: list[bytes]) -> None:
    site = Site(tmp_path / "www", clips, split="train")
    members = site.ask(6)
    site.publish("part_0.tar.gz", tar([(name, b"broken") for name, _ in members]))
    better = tar((f"replacement_for_corrupted_k400/{name}", data) for name, data in members[:3])
    (site.root / "replacement_for_corrupted_k400.tgz").write_bytes(better)
    server.faults["/kinetics/400/replacement_for_corrupted_k400.tgz"] = [Fault(times=2, cut_after=500)]
    data = tmp_path / "data"
    assert fetch_only(request(data, server, split="train")) == {"ok": 6}
    rows = outcomes(data, fetch_stage("cvdf"))
    for number, (name, content) in enumerate(members):
        row = rows[Path(name).stem]
        assert (data / "k400" / row.data["path"]).read_bytes() == (content if number < 3 else b"broken")
        assert row.data["archive"] == ("train/replacement.tgz" if number < 3 else "train/part_0.tar.gz")


def test_a_folder_fills_what_the_archives_lack(tmp_path: Path, server: Server, clips: list[bytes]) -> None:
    site = Site(tmp_path / "www", clips)
    here = site.ask(4)
    there = site.ask(3)
    site.publish("part_0.tar.gz", tar(here))
    raw = tmp_path / "mine"
    raw.mkdir()
    for name, data in there:
        (raw / f"{Path(name).stem[:11]}.mp4.mkv").write_bytes(data)  # as the non-local copy has them
    data = tmp_path / "data"
    assert fetch_only(request(data, server, names=("cvdf",))) == {"ok": 4, "missing": 3}
    assert fetch_only(request(data, server, names=("cvdf", "local"), raw=raw)) == {"ok": 7}
    with Journal.read(data / "k400" / JOURNAL) as journal:
        found = {spec.id: spec.source for spec in journal.clips()}
    assert {path.parent == raw for name, path in found.items() if path and f"{name}.mp4" in dict(there)} == {True}


def test_sources_that_are_not_there_are_named(tmp_path: Path, server: Server, clips: list[bytes]) -> None:
    site = Site(tmp_path / "www", clips)
    site.publish("part_0.tar.gz", tar(site.ask(1)))
    with pytest.raises(UsageError, match="cvdf, youtube, local"):
        fetch_only(request(tmp_path / "data", server, names=("archive",)))
    with pytest.raises(UsageError, match="--raw DIR"):
        fetch_only(request(tmp_path / "data", server, names=("local",)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"PK\x03\x04" + bytes(600), "zip"),
        (b"  <!DOCTYPE html>", "web page"),
        (bytes(10_000), "something else"),
        (tar([("a.mp4", b"x" * 5000)])[:-20], "ends early"),
        (tar([("a.mp4", b"x" * 5000)], compress=False)[:5000], "broken|early"),
        (tar([("a.mp4", b"x" * 512)], compress=False)[:1024], "early"),  # cut between two members
        (tar([("a.mp4", b"x" * 512)], compress=False)[:1024] + b"garbage!" * 128, "after the last member"),
        (tar([("a.mp4", b"x" * 5000)])[:-8] + b"12345678", "broken"),  # gzip's checksum
    ],
)
def test_what_is_no_archive_says_so(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(BadArchive, match=message):
        list(unpack.unpack(io.BytesIO(data), "x.tar.gz", lambda member: tmp_path / member.name, unpack.write_whole))
