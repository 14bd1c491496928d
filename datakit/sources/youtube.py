"""Videos from the site itself, by yt-dlp: the parts that are needed, with a margin, to be cut once by us.

    [sources.youtube]
    url = "https://www.youtube.com/watch?v={video}"
    unit = "clip"            what is fetched in one piece: clip, event or video
    margin_s = 5.0           before and after it
    short_side_px = 480      the smallest picture that will do, where there is a choice

Nobody is let through faster than the site allows, and when it asks for a pause all wait (``gate``). What it says is
looked up in ``manifests/youtube.toml``: a rate limit says nothing about a video, a private video is gone. Parts are
copied, not encoded again, and keep the clock of the whole video, so a cut finds the same pictures in both.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import Any

import manifests

from .. import console, encode, probe, runner
from ..annotations import VIDEO_SUFFIXES, ClipSpec, safe_name
from ..errors import Gone, ItemError, Missing, NeedsLogin, Retryable, ToolMissing
from ..journal import Outcome
from . import Order, http
from .gate import Gate

MOST_AT_ONCE = 4
BYTES_PER_S = 150_000  # of video at 480 lines, for the estimate
UNITS = ("clip", "event", "video")
_SETUP = "type: pip install -U 'yt-dlp[default,deno]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One row of the table: what the site says, and what is to be done about it."""

    name: str
    pattern: str
    error: str
    act: str
    short: bool = False
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Seconds of a video that are fetched in one piece, or, with both ``None``, all of it."""

    from_s: float | None
    to_s: float | None
    name: str
    clips: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """One video to ask for."""

    id: str
    url: str
    sections: tuple[Section, ...]
    folder: Path
    gate: Gate
    limits: dict[str, Any]
    options: dict[str, Any]
    patience: http.Patience


@cache
def messages() -> tuple[Message, ...]:
    rows = manifests.read("youtube")["message"]
    return tuple(Message(**{**row, "examples": tuple(row["examples"])}) for row in rows)


def classify(text: str) -> Message:
    """The first row of the table whose pattern is in ``text``; the last one takes anything."""
    return next(row for row in messages() if re.search(row.pattern, text, re.IGNORECASE))


def fetch(specs: Sequence[ClipSpec], order: Order) -> Iterator[list[Outcome]]:
    """Ask for the videos of ``specs`` that may still come. Raises ``ToolMissing`` when the tools for that lack."""
    limits = manifests.read("youtube")["limits"]
    known = order.journal.outcomes(order.stage)
    asked = [spec for spec in specs if not _final(known.get(spec.id), order)]
    without_times = [spec for spec in asked if order.table["unit"] != "video" and spec.start_s is None]
    if without_times:
        what = "the list does not say when it starts"
        yield [
            Outcome(id=spec.id, stage=order.stage, status="failed", error=Missing.__name__, message=what)
            for spec in without_times
        ]
    videos = _videos([spec for spec in asked if spec not in set(without_times)], order, limits)
    if not videos:
        return
    check_setup(warn=True)
    videos[0].gate.open(limits["pause_s"])
    at_once = min(max(1, order.num_jobs), MOST_AT_ONCE)
    enough = order.limit if order.limit is not None else len(specs)
    while videos and enough > 0:
        batch, videos = videos[:enough], videos[enough:]
        by_id = {video.id: video for video in batch}
        outcomes = runner.run(
            get, batch, name=lambda one: one.id, stage=order.stage, num_jobs=at_once, notes=order.notes
        )
        for outcome in console.progress(outcomes, total=len(batch), what=f"{order.name} videos"):
            rows = _clips(outcome, by_id[outcome.id], known, order, limits)
            enough -= sum(row.status == "ok" for row in rows)
            yield rows
        if why := batch[0].gate.stopped():
            print(f"note: {order.name} stopped: {why}", file=sys.stderr)
            return


def effort(specs: Sequence[ClipSpec], order: Order) -> tuple[int, float, int]:
    """(videos to ask for, seconds that takes at the pace that is allowed, about how many bytes)."""
    known = order.journal.outcomes(order.stage)
    asked = [spec for spec in specs if not _final(known.get(spec.id), order)]
    videos = _videos(asked, order, manifests.read("youtube")["limits"])
    seconds = sum((one.to_s or 600.0) - (one.from_s or 0.0) for video in videos for one in video.sections)
    pace_s = videos[0].gate.pace_s if videos else 0.0
    return len(videos), len(videos) * pace_s, int(seconds * BYTES_PER_S)


def check_setup(*, warn: bool = False) -> dict[str, str]:
    """Versions of what is needed. Raises ``ToolMissing`` saying what to type; ``warn``: say what is merely old."""
    try:
        import yt_dlp
        from yt_dlp.version import __version__ as version
    except ImportError:
        raise ToolMissing(f"yt-dlp is not there; {_SETUP}") from None
    try:
        from importlib.metadata import version as version_of

        solver = version_of("yt-dlp-ejs")
    except ImportError:
        raise ToolMissing(f"yt-dlp-ejs, which yt-dlp needs for YouTube, is not there; {_SETUP}") from None
    manifest = manifests.read("youtube")
    oldest = str(manifest["deno"]["oldest"])
    with yt_dlp.YoutubeDL({"quiet": True, "no_warnings": True}) as downloader:
        runtime = downloader._js_runtimes.get("deno")
        info = runtime.info if runtime is not None else None
    if info is None:
        raise ToolMissing(f"deno, the JavaScript runtime that yt-dlp needs for YouTube, is not there; {_SETUP}")
    if not info.supported:
        raise ToolMissing(f"deno {info.version} at {info.path} is older than {oldest}; {_SETUP}")
    old_days = (datetime.now(UTC).date() - date(*map(int, version.split(".")[:3]))).days
    if warn and old_days > manifest["limits"]["old_days"]:
        print(f"note: this yt-dlp is {old_days} days old and likely to fail; {_SETUP}", file=sys.stderr)
    return {"yt-dlp": version, "days old": str(old_days), "yt-dlp-ejs": solver, "deno": info.version}


def get(video: Video) -> Outcome:
    """In a worker: fetch the parts of one video that are not here yet."""
    for number in range(1, video.limits["tries"] + 1):
        while True:
            entered = video.gate.enter()
            try:
                facts = _download(video)
            except _Said as error:
                said = error.text
                row = classify(said)
                if row.act != "pause":
                    break
                pause_s = video.limits["pause_short_s" if row.short else "pause_s"]
                video.gate.pause(entered, pause_s, f"{row.name}: {_short(said)}")
            else:
                video.gate.worked()
                return Outcome(id=video.id, stage="", status="ok", data=facts)
        if row.act != "again":
            break
        if number < video.limits["tries"]:
            time.sleep(min(video.patience.longest_pause_s, video.patience.first_pause_s * 2**number))
    if row.act == "stop":
        video.gate.stop(f"{row.name}: {_short(said)}")
    if row.act == "setup":
        video.gate.setup_error(f"{row.name}: {_short(said)}; {_SETUP}")
    return Outcome(
        id=video.id,
        stage="",
        status="failed",
        # What stopped everybody says nothing about this video.
        error=Retryable.__name__ if row.act == "stop" else row.error,
        message=f"{row.name}: {_short(said)}",
        data={"reason": row.name, "act": row.act, "said": said, "yt_dlp": _version()},
    )


class _Said(Exception):
    """What yt-dlp said instead of bringing a video, as one text with the names of the exceptions in it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class _Listener:
    """yt-dlp's logger: warnings may say why there is an error."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def debug(self, message: str) -> None:
        pass

    def warning(self, message: str) -> None:
        self.lines.append(message)

    def error(self, message: str) -> None:
        pass  # comes as an exception as well


def _download(video: Video) -> dict[str, Any]:
    """Have the files of all sections; returns what to remember of them. Raises ``_Said``, ``OSError`` for our disk."""
    import yt_dlp
    from yt_dlp.networking.exceptions import RequestError
    from yt_dlp.postprocessor.ffmpeg import FFmpegPostProcessor
    from yt_dlp.utils import YoutubeDLError

    unfinished = video.folder / "unfinished" / safe_name(video.id)
    unfinished.mkdir(parents=True, exist_ok=True)
    listener = _Listener()
    with (unfinished / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a worker whose run was killed may still be at it
        waiting = [one for one in video.sections if _file_of(one, video.folder) is None]
        facts: dict[str, Any] = {"yt_dlp": _version()}
        if waiting:
            cookies = video.options["cookiefile"] and shutil.copy(
                video.options["cookiefile"], unfinished / "cookies.txt"
            )
            # yt-dlp writes cookies back: everybody into a file of their own
            options = {
                **video.options,
                "cookiefile": cookies,
                "logger": listener,
                "outtmpl": str(unfinished / "%(section_number|0)s.%(ext)s"),
            }
            if waiting[0].from_s is not None:
                ranges = [
                    {"start_time": one.from_s, "end_time": one.to_s, "index": number}
                    for number, one in enumerate(waiting, start=1)
                ]
                options["download_ranges"] = lambda info, ydl: ranges
            FFmpegPostProcessor._ffmpeg_location.set(
                options["ffmpeg_location"]
            )  # the option alone does not reach sections
            try:
                with yt_dlp.YoutubeDL(options) as downloader:
                    info = downloader.extract_info(video.url, download=True)
            except (YoutubeDLError, RequestError) as error:
                raise _Said(_whole_text(error, listener.lines)) from None
            facts |= {key: info.get(key) for key in ("format_id", "width", "height", "fps", "vcodec", "upload_date",
                                                     "availability", "duration")}  # fmt: skip
            for section, one in zip(waiting, info["requested_downloads"], strict=True):
                part = Path(one["filepath"])
                try:
                    probe.media_info(part)
                except ItemError as error:
                    part.unlink(missing_ok=True)
                    raise _Said(f"ffmpeg exited with code 0, but the file is none: {error}") from None
                suffix = part.suffix if part.suffix in VIDEO_SUFFIXES else ".mkv"
                part.replace(video.folder / f"{section.name}{suffix}")
    shutil.rmtree(unfinished, ignore_errors=True)
    files = {one.name: _file_of(one, video.folder) for one in video.sections}
    facts["files"] = {name: [path.name, encode.sha256_file(path)] for name, path in files.items() if path is not None}
    return facts


def _file_of(section: Section, folder: Path) -> Path | None:
    named = (folder / f"{section.name}{suffix}" for suffix in sorted(VIDEO_SUFFIXES))
    return next((path for path in named if path.is_file()), None)


def _whole_text(error: BaseException, warnings: Sequence[str]) -> str:
    """The message, with the name of the exception that it wraps; and the warnings where it says nothing itself."""
    inner = error.exc_info[1] if getattr(error, "exc_info", None) else None  # type: ignore[attr-defined]
    cause = getattr(inner, "cause", None)
    names = [type(one).__name__ for one in (inner, cause) if one is not None]
    text = ": ".join([*names, str(error).removeprefix("ERROR: ")])
    return text if classify(text).pattern else "; ".join([text, *warnings])


def _videos(specs: Sequence[ClipSpec], order: Order, limits: dict[str, Any]) -> list[Video]:
    by_video: dict[str, list[ClipSpec]] = defaultdict(list)
    for spec in specs:
        by_video[spec.video].append(spec)
    if order.options.sleep_s is not None:
        pace_s = order.options.sleep_s
    elif order.options.mirror:
        pace_s = 0.0
    else:
        rate = limits["account_videos_per_hour" if order.options.cookies else "guest_videos_per_hour"]
        pace_s = 3600.0 / rate
    gate = Gate(
        folder=order.folder,
        pace_s=pace_s,
        most_pauses=limits["most_pauses"],
        most_setup_errors=limits["most_setup_errors"],
    )
    return [
        Video(
            id=video,
            url=http.mirrored(order.table["url"].format(video=video), order.options.mirror),
            sections=_sections(video, clips, order.table),
            folder=order.folder,
            gate=gate,
            limits=limits,
            options=_options(order),
            patience=order.options.patience,
        )
        for video, clips in sorted(by_video.items())
    ]


def _sections(video: str, specs: Sequence[ClipSpec], table: dict[str, Any]) -> tuple[Section, ...]:
    """The pieces of one video that hold its clips. Elements of an event share a piece, even those that end after it."""
    if table["unit"] == "video":
        return (Section(from_s=None, to_s=None, name=safe_name(video), clips=tuple(spec.id for spec in specs)),)
    pieces: dict[str, list[ClipSpec]] = defaultdict(list)
    for spec in specs:
        pieces[spec.event if table["unit"] == "event" and spec.event else spec.id].append(spec)
    sections = []
    for clips in pieces.values():
        moments = [(spec.start_s or 0.0, spec.end_s or 0.0) for spec in clips]
        moments += [spec.event_s for spec in clips if spec.event_s is not None and table["unit"] == "event"]
        from_s = max(0.0, min(start for start, _ in moments) - table["margin_s"])
        to_s = max(end for _, end in moments) + table["margin_s"]
        name = f"{safe_name(video)}_{from_s:010.3f}_{to_s:010.3f}"
        sections.append(Section(from_s=from_s, to_s=to_s, name=name, clips=tuple(spec.id for spec in clips)))
    return tuple(sections)


def _options(order: Order) -> dict[str, Any]:
    patience = order.options.patience
    options: dict[str, Any] = {
        "format": "bv*/b",  # sound is not needed
        "format_sort": [f"res:{order.table['short_side_px']}", "vcodec:h264", "ext:mp4:m4a"],
        "ffmpeg_location": encode.ffmpeg_program(),
        # A part keeps the clock of its video: so where it is cut does not depend on which keyframe it begins with.
        "external_downloader_args": {"ffmpeg_o": ["-loglevel", "error", "-copyts", "-avoid_negative_ts", "disabled"]},
        "fixup": "never",
        "noplaylist": True,
        "quiet": True,
        "noprogress": True,
        "retries": 2,
        "fragment_retries": 5,
        "extractor_retries": 1,
        "file_access_retries": 1,
        "socket_timeout": patience.timeout_s,
        "retry_sleep_functions": {"http": _wait, "fragment": _wait, "extractor": _wait},
        "continuedl": True,
        "overwrites": False,
        "cachedir": str(order.folder / "cache"),
        "cookiefile": str(order.options.cookies) if order.options.cookies else None,
        "js_runtimes": {"deno": {}},
    }
    if order.options.proxy:
        options["proxy"] = order.options.proxy
    return options


def _wait(n: int) -> float:
    return float(min(60, 2**n))


def _clips(
    outcome: Outcome, video: Video, known: dict[str, Outcome], order: Order, limits: dict[str, Any]
) -> list[Outcome]:
    """One row for each clip of a video."""
    rows = []
    data = {key: value for key, value in outcome.data.items() if key != "files"}
    for section in video.sections:
        got = outcome.data.get("files", {}).get(section.name)
        for clip in section.clips:
            if got is not None:
                path = (order.folder / got[0]).relative_to(order.set_dir)
                row = Outcome(id=clip, stage=order.stage, key=got[1], status="ok", seconds=outcome.seconds,
                              data={**data, "path": str(path), "from_s": 0.0})  # fmt: skip
            else:
                row = replace(outcome, id=clip, stage=order.stage, data=data)
                if data.get("act") in ("slowly", "keep"):
                    row = _dated(row, known.get(clip), limits["days"])
            rows.append(row)
    return rows


def _dated(row: Outcome, before: Outcome | None, most_days: int) -> Outcome:
    """Remember on which days a video was found to be gone; one that may come back is gone after several of them."""
    days = sorted({*(before.data.get("days", []) if before is not None else []), _today()})
    row = replace(row, message=f"{row.message} (since {days[0]})", data={**row.data, "days": days})
    if row.data["act"] == "slowly" and len(days) < most_days:
        return replace(row, error=Retryable.__name__)
    return row


def _final(known: Outcome | None, order: Order) -> bool:
    """Whether what the site said before still stands without asking again."""
    if known is None or order.options.retry_gone:
        return False
    if known.error == NeedsLogin.__name__:
        return order.options.cookies is None and not order.options.proxy
    return known.error == Gone.__name__


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


@cache
def _version() -> str:
    from yt_dlp.version import __version__

    return str(__version__)
