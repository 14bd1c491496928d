"""Downloads against a real server that breaks off, lies, refuses and changes its mind."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datakit.errors import BadManifest, Gone, ItemError, NeedsLogin, RateLimited, Retryable
from datakit.sources import http
from tests.datakit.server import Fault, Server, serving

QUICK = http.Patience(tries=4, first_pause_s=0.001, longest_pause_s=0.002, timeout_s=3)
BODY = random.Random(1).randbytes(700_001)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "www").mkdir()
    (tmp_path / "www/f.bin").write_bytes(BODY)
    with serving(tmp_path / "www") as one:
        yield one


def fetch(server: Server, folder: Path, **options: object) -> http.Downloaded:
    return http.download(f"{server.url}f.bin", folder / "f.bin", patience=QUICK, **options)  # type: ignore[arg-type]


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "www")


@pytest.mark.parametrize(
    ("faults", "most_bytes"),
    [
        ([], len(BODY)),
        ([Fault(times=3, cut_after=100_000)], len(BODY)),  # a cut connection goes on where it was
        ([Fault(times=30, cut_after=30_000)], len(BODY)),  # any number of cuts, as long as something comes
        ([Fault(times=1, cut_after=100_000), Fault(times=1, no_ranges=True)], len(BODY) + 100_000),
        ([Fault(times=2, status=500)], len(BODY)),
        ([Fault(times=2, status=503, retry_after="0")], len(BODY)),
        ([Fault(times=2, status=429, retry_after="0")], len(BODY)),
        ([Fault(times=2, stall=True)], len(BODY)),
        ([Fault(times=1, lie_bytes=5000)], len(BODY)),  # says more than it has: 416 on the rest tells the truth
    ],
)
def test_whole_file_comes_whatever_happens(
    server: Server, tmp_path: Path, faults: list[Fault], most_bytes: int
) -> None:
    server.faults["/f.bin"] = faults
    got = fetch(server, tmp_path)
    assert got.path.read_bytes() == BODY
    assert got.bytes == len(BODY)
    assert got.received_bytes == server.sent["/f.bin"] <= most_bytes
    assert left_over(tmp_path) == ["f.bin"]


def test_what_is_here_outlives_a_server_that_forgets_ranges(server: Server, tmp_path: Path) -> None:
    server.faults["/f.bin"] = [
        Fault(times=1, cut_after=600_000, lie_bytes=77),
        Fault(times=2, cut_after=100, no_ranges=True),
        Fault(times=1, cut_after=650_000, no_ranges=True),
    ]
    got = fetch(server, tmp_path)
    assert got.path.read_bytes() == BODY
    assert server.requests[-1][2] == "bytes=650000-"


def test_second_call_asks_nothing(server: Server, tmp_path: Path) -> None:
    fetch(server, tmp_path)
    asked = len(server.requests)
    assert fetch(server, tmp_path).received_bytes == 0
    assert len(server.requests) == asked


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(status=404), Gone),
        (Fault(status=410), Gone),
        (Fault(status=403), NeedsLogin),
        (Fault(status=401), NeedsLogin),
        (Fault(status=429), RateLimited),
        (Fault(status=500), Retryable),
        (Fault(status=503, retry_after="99999"), Retryable),
        (Fault(status=400), ItemError),
        (Fault(stall=True), Retryable),
        (Fault(lie_bytes=10, no_ranges=True), Retryable),  # never the length it promises
    ],
)
def test_what_does_not_work_has_a_name(server: Server, tmp_path: Path, fault: Fault, error: type[Exception]) -> None:
    server.faults["/f.bin"] = [fault]
    with pytest.raises(error) as caught:
        fetch(server, tmp_path)
    assert type(caught.value) is error
    assert server.url in str(caught.value)
    assert not (tmp_path / "f.bin").exists()


def test_nobody_there(tmp_path: Path, server: Server) -> None:
    url = "http://127.0.0.1:9/x"  # discard: nothing listens
    with pytest.raises(Retryable):
        http.download(url, tmp_path / "x", patience=QUICK)
    for bad in ("file:///etc/passwd", "ftp://127.0.0.1/x"):
        with pytest.raises(BadManifest):
            http.download(bad, tmp_path / "x")


def test_retry_after_is_honoured(server: Server, tmp_path: Path) -> None:
    slept: list[float] = []
    server.faults["/f.bin"] = [Fault(times=1, status=429, retry_after="7"), Fault(times=1, status=503, retry_after="2")]
    fetch(server, tmp_path, sleep=slept.append)
    assert slept == [7.0, 2.0]


@pytest.mark.parametrize("etags", [True, False])
def test_a_file_that_changed_is_not_mixed(server: Server, tmp_path: Path, etags: bool) -> None:
    server.etags = etags
    server.faults["/f.bin"] = [Fault(cut_after=100_000, times=1), Fault(status=500)]
    with pytest.raises(Retryable):
        fetch(server, tmp_path)
    assert (tmp_path / "f.bin.part").stat().st_size == 100_000
    other = random.Random(2).randbytes(650_000)
    (tmp_path / "www/f.bin").write_bytes(other)
    os.utime(tmp_path / "www/f.bin", (1e9, 1e9))
    server.faults.clear()
    assert fetch(server, tmp_path).path.read_bytes() == other


def test_size_and_hash_are_checked(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Retryable, match="where 5 are expected"):
        fetch(server, tmp_path, expected_bytes=5)
    with pytest.raises(ItemError, match="sha256"):
        fetch(server, tmp_path, sha256="0" * 64)
    assert not (tmp_path / "f.bin").exists()
    fetch(server, tmp_path, expected_bytes=len(BODY), sha256=hashlib.sha256(BODY).hexdigest())


def test_empty_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "www/f.bin").write_bytes(b"")
    assert fetch(server, tmp_path).bytes == 0


def test_addresses_of_lists_are_quoted() -> None:
    line = "https://host/600/val/mountain climber (exercise).tar.gz "
    assert http.quoted(line) == "https://host/600/val/mountain%20climber%20%28exercise%29.tar.gz"
    assert http.quoted("https://host/a%20b+c.tar.gz?x=1&y=2") == "https://host/a%20b%2Bc.tar.gz?x=1&y=2"
    assert http.quoted("https://host/100% cotton.tgz") == "https://host/100%25%20cotton.tgz"


def _download(url: str, path: Path) -> None:
    http.download(url, path, patience=QUICK)


def test_killed_downloads_go_on(server: Server, tmp_path: Path) -> None:
    server.bytes_per_s = 300_000
    context = multiprocessing.get_context("spawn")
    for _ in range(3):
        process = context.Process(target=_download, args=(f"{server.url}f.bin", tmp_path / "f.bin"))
        process.start()
        before = server.sent["/f.bin"]
        while server.sent["/f.bin"] < before + 60_000:
            time.sleep(0.01)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert not (tmp_path / "f.bin").exists()
    server.bytes_per_s = 0
    assert fetch(server, tmp_path).path.read_bytes() == BODY
    # what was on its way in the sockets when the process died comes again, no more
    assert server.sent["/f.bin"] - len(BODY) < 3 * 64_000


def test_two_at_once_share_one_download(server: Server, tmp_path: Path) -> None:
    server.bytes_per_s = 2_000_000
    context = multiprocessing.get_context("spawn")
    pair = [context.Process(target=_download, args=(f"{server.url}f.bin", tmp_path / "f.bin")) for _ in range(2)]
    for one in pair:
        one.start()
    for one in pair:
        one.join()
    assert [one.exitcode for one in pair] == [0, 0]
    assert (tmp_path / "f.bin").read_bytes() == BODY
    assert server.sent["/f.bin"] == len(BODY)
    assert left_over(tmp_path) == ["f.bin"]
