"""yt-dlp for real against a loopback server, and what is made of everything that it may say."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import manifests
from datakit import catalog, errors, manifest
from datakit.annotations import JOURNAL, ClipSpec
from datakit.errors import KitError, Retryable, ToolMissing
from datakit.fetch import with_files
from datakit.journal import Journal, Outcome
from datakit.sources import Options, fetch_stage, http, youtube
from datakit.sources.gate import Gate
from tests.datakit.conftest import MakeVideo
from tests.datakit.server import Fault, Server, serving
from tests.datakit.test_sources import Site, tar

QUICK = http.Patience(tries=2, first_pause_s=0.001, longest_pause_s=0.002, timeout_s=5)
ROWS = youtube.messages()
ACTS = {"keep", "again", "slowly", "pause", "setup", "stop"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_of_the_table(row: youtube.Message) -> None:
    assert row.examples
    for text in row.examples:
        for spelling in (text, text.upper(), f"DownloadError: ERROR: {text}"):
            assert youtube.classify(spelling).name == row.name, spelling
    assert row.act in ACTS
    error = getattr(errors, row.error)
    assert issubclass(error, errors.ItemError)
    # whatever concerns all videos says nothing about one of them
    if row.act in ("pause", "setup", "again"):
        assert issubclass(error, Retryable)


def test_names_of_rows_differ() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert [row.pattern for row in ROWS if not row.pattern] == [""]
    assert ROWS[-1].pattern == ""


def test_the_setup_is_complete_here() -> None:
    if not youtube_setup_is_here():
        pytest.skip("needs yt-dlp[default,deno]")
    assert set(youtube.check_setup()) == {"yt-dlp", "days old", "yt-dlp-ejs", "deno"}


def test_a_setup_that_lacks_something_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def not_there(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patched:
        patched.setattr(importlib.metadata, "version", not_there)
        with pytest.raises(ToolMissing, match=r"pip install -U 'yt-dlp\[default,deno\]'"):
            youtube.check_setup()
    monkeypatch.setitem(sys.modules, "yt_dlp", None)
    with pytest.raises(ToolMissing, match="yt-dlp is not there"):
        youtube.check_setup()


def youtube_setup_is_here() -> bool:
    try:
        youtube.check_setup()
    except ToolMissing:
        return False
    return True


@pytest.fixture(scope="session")
def long_video(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> Path:
    """40 s at 25 frames a second with a keyframe every 4 s and B-frames."""
    path = tmp_path_factory.mktemp("long") / "v.mp4"
    return make_video(path, frames=1000, fps=25, after=("-c:v", "libx264", "-g", "100", "-movflags", "+faststart"))


@pytest.fixture
def server(tmp_path: Path, long_video: Path) -> Iterator[Server]:
    root = tmp_path / "www"
    root.mkdir()
    with serving(root) as one:
        yield one


def publish(server: Server, *ids: str, video: Path) -> None:
    """Each id below its own path, so that each can have its faults."""
    for name in ids:
        (server.root / f"{name}.mp4").hardlink_to(video)


def fetch(
    tmp_path: Path, server: Server, specs: list[ClipSpec], name: str = "k400", **options: object
) -> list[ClipSpec]:
    """Ask the generic extractor of yt-dlp, by the address of a file instead of the site's."""
    dataset = catalog.dataset(name)
    assert dataset is not None
    table = {**dataset.sources["youtube"], "url": "https://site.example/{video}.mp4"}
    dataset = type(dataset)(
        **{field: getattr(dataset, field) for field in dataset.__slots__} | {"sources": {"youtube": table}}
    )
    set_dir = tmp_path / "data" / name
    notes = set_dir / "notes"
    notes.mkdir(parents=True, exist_ok=True)
    given = Options(mirror=server.url, patience=QUICK, names=("youtube",), **options)  # type: ignore[arg-type]
    with Journal.open(set_dir / JOURNAL) as journal:
        return with_files({"val"}, specs, dataset, set_dir, None, journal, given, num_jobs=2, limit=None, notes=notes)


def outcomes(tmp_path: Path, name: str = "k400") -> dict[str, Outcome]:
    with Journal.read(tmp_path / "data" / name / JOURNAL) as journal:
        return journal.outcomes(fetch_stage("youtube"))


def clip(video: str, start_s: float = 12.0, end_s: float = 15.0, **more: object) -> ClipSpec:
    name = f"{video}_{int(start_s):06d}_{int(end_s):06d}"
    return ClipSpec(id=name, video=video, split="val", label="archery", start_s=start_s, end_s=end_s, **more)  # type: ignore[arg-type]


needs_setup = pytest.mark.skipif(not youtube_setup_is_here(), reason="needs yt-dlp[default,deno]")


@needs_setup
def test_sections_hold_what_a_cut_of_the_whole_video_gives(
    tmp_path: Path, server: Server, long_video: Path, make_video: MakeVideo
) -> None:
    publish(server, "-aaaaaaaaaa", video=long_video)
    odd = make_video(tmp_path / "odd.mp4", frames=1000, fps=25, after=("-c:v", "libx264", "-g", "77", "-bf", "3"))
    publish(server, "bbbbbbbbbbb", video=odd)
    specs = [
        clip("-aaaaaaaaaa", 12.0, 15.0), clip("-aaaaaaaaaa", 30.0, 33.0), clip("bbbbbbbbbbb", 7.32, 9.0),
        clip("bbbbbbbbbbb", 0.0, 2.0),
    ]  # fmt: skip
    found = fetch(tmp_path, server, specs)
    assert [spec.source is not None for spec in found] == [True] * 4
    for spec in found:
        assert spec.cut_s == (spec.start_s, spec.end_s)
        assert spec.source is not None
        whole = long_video if spec.video.startswith("-") else odd
        assert spec.source.stat().st_size < 0.7 * whole.stat().st_size
        assert shown(spec.source, spec) == shown(whole, spec)
        assert len(shown(whole, spec)) == round(25 * ((spec.end_s or 0) - (spec.start_s or 0)))


def shown(path: Path, spec: ClipSpec) -> list[bytes]:
    """The pictures of a moment, by the clock of the file."""
    import av

    assert spec.start_s is not None
    assert spec.end_s is not None
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [
            frame.to_ndarray().tobytes()
            for frame in container.decode(stream)
            if spec.start_s - 1e-6 <= float(frame.pts * stream.time_base) < spec.end_s - 1e-6
        ]


@needs_setup
def test_elements_share_the_piece_of_their_event(tmp_path: Path, server: Server, long_video: Path) -> None:
    publish(server, "aaaaaaaaaaa", video=long_video)
    elements = [
        ClipSpec(id=f"aaaaaaaaaaa_E_000010_000020_A_{n:04d}_{n + 1:04d}", video="aaaaaaaaaaa", split="val", label=None,
                 start_s=10.0 + n, end_s=end, event="aaaaaaaaaaa_E_000010_000020", event_s=(10.0, 20.0))
        for n, end in ((1, 12.0), (4, 15.5), (9, 20.7))
    ]  # fmt: skip
    found = fetch(tmp_path, server, elements, name="gym99")
    assert len({spec.source for spec in found}) == 1
    assert [spec.cut_s for spec in found] == [(11.0, 12.0), (14.0, 15.5), (19.0, 20.7)]
    source = found[0].source
    assert source is not None
    assert len(shown(source, found[2])) == 43  # it ends after its event, and is whole all the same
    asked = len(server.requests)
    assert fetch(tmp_path, server, elements, name="gym99") == found
    assert len(server.requests) == asked


@needs_setup
def test_what_became_of_each(
    tmp_path: Path, server: Server, long_video: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = [f"{letter * 11}" for letter in "abcd"]
    publish(server, *names, video=long_video)
    server.faults["/bbbbbbbbbbb.mp4"] = [Fault(status=410)]
    server.faults["/ccccccccccc.mp4"] = [Fault(status=503)]
    server.faults["/ddddddddddd.mp4"] = [Fault(times=2, status=500)]
    specs = [clip(name) for name in [*names, "eeeeeeeeeee"]] + [ClipSpec(id="x", video="x", split="val", label=None)]
    found = {spec.video[0]: spec.source is not None for spec in fetch(tmp_path, server, specs)}
    assert found == {"a": True, "b": False, "c": False, "d": True, "e": False, "x": False}
    rows = outcomes(tmp_path)
    assert {one.id[0]: one.error for one in rows.values()} == {
        "a": "", "b": "Gone", "c": "Retryable", "d": "", "e": "Gone", "x": "Missing",
    }  # fmt: skip
    gone = rows[clip("bbbbbbbbbbb").id]
    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert gone.data["days"] == [today]
    assert "410" in gone.data["said"]
    assert gone.data["yt_dlp"]
    assert f"(since {today})" in gone.message
    # what is gone is not asked for again, unless that is said
    server.faults.clear()
    server.requests.clear()
    fetch(tmp_path, server, specs)
    assert {path for _, path, _ in server.requests} == {"/ccccccccccc.mp4"}
    server.requests.clear()
    found = {spec.video[0]: spec.source is not None for spec in fetch(tmp_path, server, specs, retry_gone=True)}
    assert found == {"a": True, "b": True, "c": True, "d": True, "e": False, "x": False}


@needs_setup
def test_a_rate_limit_pauses_all_and_marks_none(
    tmp_path: Path, server: Server, long_video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{letter * 11}" for letter in "abcdef"]
    publish(server, *names, video=long_video)
    for name in names[:3]:
        server.faults[f"/{name}.mp4"] = [Fault(times=1, status=429)]
    table = manifests.read("youtube")
    limits = {**table["limits"], "pause_short_s": 1.0}
    monkeypatch.setattr(
        manifests, "read", lambda name: {**table, "limits": limits} if name == "youtube" else READ(name)
    )
    start = time.monotonic()
    found = fetch(tmp_path, server, [clip(name) for name in names])
    assert all(spec.source is not None for spec in found)
    assert time.monotonic() - start > 1.0
    assert {one.status for one in outcomes(tmp_path).values()} == {"ok"}


READ = manifests.read


def gate(folder: Path, pace_s: float = 0.0) -> Gate:
    return Gate(folder=folder, pace_s=pace_s, most_pauses=2, most_setup_errors=2)


def test_gate_paces_all_who_come(tmp_path: Path) -> None:
    one, other = gate(tmp_path, pace_s=0.2), gate(tmp_path, pace_s=0.2)
    entered = [one.enter(), other.enter(), one.enter()]
    assert entered[1] - entered[0] >= 0.2
    assert entered[2] - entered[1] >= 0.2


def test_gate_counts_a_pause_once_and_gives_up_after_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = gate(tmp_path)
    first, second = one.enter(), one.enter()
    one.pause(first, 0.2, "rate limit")
    one.pause(second, 0.2, "rate limit")  # came in before the pause: the same limit
    assert json.loads((tmp_path / "gate.json").read_text())["num_pauses"] == 1
    before = time.time()
    entered = one.enter()
    assert entered - before >= 0.15
    assert "everybody waits until" in capsys.readouterr().err
    one.worked()
    for _ in range(3):
        one.pause(time.time(), 0.0, "rate limit")
    with pytest.raises(Retryable, match="rate limit, 3 times in a row"):
        one.enter()
    one.open(longest_pause_s=1.0)  # the next run
    one.enter()
    one.setup_error("no runtime")
    one.worked()
    one.setup_error("no runtime")
    one.enter()
    one.setup_error("no runtime")
    with pytest.raises(Retryable, match="no runtime"):
        one.enter()


def test_gate_keeps_a_pause_over_a_restart_but_not_for_ever(tmp_path: Path) -> None:
    one = gate(tmp_path)
    one.pause(one.enter(), 10_000.0, "rate limit")
    one.open(longest_pause_s=0.3)
    start = time.time()
    one.enter()
    assert 0.1 < time.time() - start < 5


class Voice:
    """Instead of the site: says of each video what the test wants it to say."""

    def __init__(self, said: dict[str, list[str]]) -> None:
        self.said, self.asked = said, list[str]()

    def __call__(self, video: youtube.Video) -> dict[str, object]:
        self.asked.append(video.id)
        if self.said.get(video.id):
            raise youtube._Said(self.said[video.id].pop(0))
        return {"files": {}}


def video(tmp_path: Path, name: str) -> youtube.Video:
    limits = {**manifests.read("youtube")["limits"], "pause_s": 0.01, "pause_short_s": 0.01}
    return youtube.Video(id=name, url="", sections=(), folder=tmp_path, gate=gate(tmp_path), limits=limits, options={},
                         patience=QUICK)  # fmt: skip


@pytest.mark.parametrize(
    ("said", "error", "num_asked"),
    [
        (["Private video"], "Gone", 1),
        (["HTTP Error 503"], "", 2),
        (["HTTP Error 503"] * 9, "Retryable", 3),
        (["something new"] * 9, "Retryable", 3),
        (["HTTP Error 429", "rate-limited by YouTube"], "", 3),
        (["Sign in to confirm your age"], "NeedsLogin", 1),
        (["Sign in to confirm you’re not a bot"], "Retryable", 1),  # it is not the video that is asked to log in
        (["Requested format is not available"], "Retryable", 1),
        (["Video unavailable"], "Gone", 1),
    ],
)
def test_what_is_done_about_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str], error: str, num_asked: int
) -> None:
    site = Voice({"v": list(said)})
    monkeypatch.setattr(youtube, "_download", site)
    assert youtube.get(video(tmp_path, "v")).error == error
    assert len(site.asked) == num_asked


def test_a_bot_check_stops_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(youtube, "_download", Voice({"v": ["Sign in to confirm you're not a bot"]}))
    youtube.get(video(tmp_path, "v"))
    with pytest.raises(KitError, match="not asked for: bot check"):
        youtube.get(video(tmp_path, "w"))


def test_unavailable_without_a_reason_is_gone_after_days(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Outcome(
        id="v", stage="fetch:youtube", status="failed", error="Gone", message="unavailable", data={"act": "slowly"}
    )
    known = None
    for day, expected in (("01", "Retryable"), ("01", "Retryable"), ("02", "Retryable"), ("05", "Gone")):
        monkeypatch.setattr(youtube, "_today", lambda day=day: f"2026-11-{day}")
        known = youtube._dated(row, known, 3)
        assert known.error == expected
        assert known.message == "unavailable (since 2026-11-01)"


@needs_setup
def test_the_site_fills_what_the_archives_lack(
    tmp_path: Path, server: Server, long_video: Path, make_video: MakeVideo
) -> None:
    """The whole command: archives, then the site, one cut, one encode; what nobody has is named with its reason."""
    clip_bytes = make_video(tmp_path / "c.mp4", frames=25, fps=25).read_bytes()
    site = Site(server.root, [clip_bytes])
    site.publish("part_0.tar.gz", tar(site.ask(3)))
    site.rows += ["archery,zzzzzzzzzzz,12,15,val", "archery,yyyyyyyyyyy,12,15,val"]
    site.publish("part_1.tar.gz", tar(site.ask(1)))
    (server.root / "v.mp4").hardlink_to(long_video)
    server.aliases["/watch?v=zzzzzzzzzzz"] = "/v.mp4"
    command = [sys.executable, "-m", "datakit", "prepare", "k400", "--split", "val", "--variant", "256p", "--json",
               "--data-root", str(tmp_path / "data"), "--mirror", server.url, "--source", "cvdf,youtube"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == errors.EXIT_SOME_FAILED, done.stderr
    assert json.loads(done.stdout)["variants"]["256p"] == {"gone": 1, "ok": 5}
    clips = {one.id: one for one in manifest.read(tmp_path / "data/k400/256p").clips}
    assert clips["zzzzzzzzzzz_000012_000015"].frames == 75
    assert "404" in (clips["yyyyyyyyyyy_000012_000015"].reason or "")
    # the same without --source: the sources of the run before, and nothing to do
    asked = len(server.requests)
    again = [word for word in command if word not in ("--source", "cvdf,youtube")]
    assert json.loads(subprocess.run(again, capture_output=True, text=True).stdout) == json.loads(done.stdout)
    assert {path for _, path, _ in server.requests[asked:]} == {"/kinetics/400/val/k400_val_path.txt"}
