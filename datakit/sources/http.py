"""One file over HTTP, whole or not at all, however often the connection or this program dies on the way.

    name.part        the bytes so far; a later call goes on behind them
    name.part.json   what they are the beginning of: address, ETag or Last-Modified, size
    name             the whole file, after its size (and hash, where known) agreed and it was flushed to disk

Two processes that want the same file take turns: the second finds the first one's bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, urlsplit

from .. import files
from ..errors import BadManifest, Gone, ItemError, NeedsLogin, RateLimited, Retryable

CHUNK_BYTES = 1 << 18
LONGEST_PAUSE_S = 3600.0  # a server that asks for more is asked again by the next run
_LOGIN_CODES = {401, 403, 407}
_GONE_CODES = {404, 410}
_AGENT = {"User-Agent": "actionkit", "Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to go on asking: ``tries`` requests in a row that bring nothing, with pauses that double."""

    tries: int = 8
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloaded:
    """A file that is there. ``received_bytes`` came over the network in this call; 0 when it was there before."""

    path: Path
    bytes: int
    received_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    """What a ``.part`` file is the beginning of. ``total_bytes`` is ``None`` where the server did not say."""

    url: str
    etag: str = ""
    last_modified: str = ""
    total_bytes: int | None = None

    @property
    def validator(self) -> str:
        """What ``If-Range`` takes: a strong ETag, else the date."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


def download(
    url: str,
    path: Path,
    *,
    expected_bytes: int | None = None,
    sha256: str = "",
    patience: Patience | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Downloaded:
    """Have ``url`` at ``path``. A file that is already there is kept, whatever the server has by now.

    Raises ``Gone`` (404, 410), ``NeedsLogin`` (401, 403), ``RateLimited`` (429 again and again), ``Retryable`` (nothing
    came any more, or never the size that was promised; the ``.part`` stays), ``ItemError`` (``sha256`` is another).
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise BadManifest(f"{url}: only http and https are fetched")
    patience = patience or Patience()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _our_turn(path) as part:
        if part is None:
            return Downloaded(path=path, bytes=path.stat().st_size, received_bytes=0)
        received = 0
        failed = 0
        while True:
            before = part.seek(0, os.SEEK_END)
            try:
                new, complete = _request(url, path, part, expected_bytes, patience.timeout_s)
                received += new
                if complete:
                    break
                error: ItemError = Retryable(f"{url}: the connection ended early")
                wait_s = 0.0
            except _Pause as pause:
                received += pause.received_bytes
                error, wait_s = pause.error, pause.wait_s
            failed = failed + 1 if part.seek(0, os.SEEK_END) <= before else 1
            if failed >= patience.tries or wait_s > LONGEST_PAUSE_S:
                raise error
            backoff_s = min(patience.longest_pause_s, patience.first_pause_s * 2 ** (failed - 1))
            sleep(max(wait_s, backoff_s * random.uniform(0.5, 1.0)))
        _finish(path, part, sha256)
        return Downloaded(path=path, bytes=path.stat().st_size, received_bytes=received)


def read_text(url: str, *, patience: Patience | None = None, sleep: Callable[[float], None] = time.sleep) -> str:
    """A small text file, such as a list of archives. Same errors as ``download``."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return download(url, Path(folder) / "text", patience=patience, sleep=sleep).path.read_text(encoding="utf-8-sig")


def size_of(url: str, patience: Patience | None = None) -> int | None:
    """How many bytes ``url`` has, from one HEAD request; ``None`` when the server does not say."""
    request = urllib.request.Request(url, method="HEAD", headers=_AGENT)
    try:
        with urllib.request.urlopen(request, timeout=(patience or Patience()).timeout_s) as answer:
            return _number(answer.headers.get("Content-Length"))
    except (OSError, http.client.HTTPException):
        return None


def quoted(url: str) -> str:
    """A line of a list as an address: spaces and parentheses encoded, what is encoded already left alone."""
    return re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", quote(url.strip(), safe="/,:%?&="))


def mirrored(url: str, mirror: str) -> str:
    """``url`` with ``mirror`` in the place of its scheme and host, unless it is below ``mirror`` already."""
    if not mirror or url.startswith(mirror):
        return url
    return mirror.rstrip("/") + urlsplit(url)._replace(scheme="", netloc="").geturl()


class _Pause(Exception):
    """A request brought less than all of it. ``wait_s``: what the server asked for."""

    def __init__(self, error: ItemError, wait_s: float = 0.0, received_bytes: int = 0) -> None:
        super().__init__(str(error))
        self.error, self.wait_s, self.received_bytes = error, wait_s, received_bytes


@contextmanager
def _our_turn(path: Path) -> Iterator[BinaryIO | None]:
    """The ``.part`` file of ``path``, locked, for going on with; ``None`` when the whole file is there."""
    part_path = _part(path)
    while True:
        if path.is_file():
            yield None
            return
        with part_path.open("ab", buffering=0) as part:
            fcntl.flock(part, fcntl.LOCK_EX)
            # Who had it before us may have given it its final name meanwhile.
            if part_path.is_file() and part_path.stat().st_ino == os.fstat(part.fileno()).st_ino:
                try:
                    yield part
                finally:
                    if part_path.is_file() and part_path.stat().st_size == 0:
                        part_path.unlink()
                return


def _request(url: str, path: Path, part: BinaryIO, expected_bytes: int | None, timeout_s: float) -> tuple[int, bool]:
    """One request, its body appended to ``part``. Returns (bytes received, whether the file is complete)."""
    begun = _read_begun(path, url)
    have = part.seek(0, os.SEEK_END)
    if begun is None:
        have = 0
        part.truncate(0)
    if begun is not None and have and have == (begun.total_bytes or expected_bytes):
        return 0, True
    headers = dict(_AGENT)
    if have:
        headers["Range"] = f"bytes={have}-"
        if begun is not None and begun.validator:
            headers["If-Range"] = begun.validator
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and _total(error.headers.get("Content-Range")) == have:
                return 0, True  # all of it was here; the length that was promised first was wrong
            if error.code == 416:
                part.truncate(0)
            raise _refusal(url, error) from None
    except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, no such host, no HTTP at all
        raise _Pause(Retryable(f"{url}: {_reason(error)}")) from None
    with answer:
        return _receive(answer, url, path, part, begun, have, expected_bytes)


def _receive(
    answer: http.client.HTTPResponse,
    url: str,
    path: Path,
    part: BinaryIO,
    begun: _Begun | None,
    have: int,
    expected_bytes: int | None,
) -> tuple[int, bool]:
    length = _number(answer.headers.get("Content-Length"))
    skip = 0
    now = _Begun(
        url=url,
        etag=answer.headers.get("ETag", ""),
        last_modified=answer.headers.get("Last-Modified", ""),
        total_bytes=length,
    )
    if answer.status == 206:
        content_range = answer.headers.get("Content-Range")
        now = replace(now, total_bytes=_total(content_range))
        if _start(content_range) != have or not _same(begun, now):
            part.truncate(0)
            raise _Pause(Retryable(f"{url}: the file changed on the server; starting again"))
        begun = now if begun is None else replace(begun, total_bytes=now.total_bytes)
    elif begun is not None and begun.validator and _same(begun, now) and length is not None and have <= length:
        # A server that knows no ranges, or not always: what is here stays, should it break off before it is new.
        skip, begun = have, replace(begun, total_bytes=length)
    else:  # the whole file, from the start: a first request, or a changed file
        part.truncate(0)
        have, begun = 0, now
    if expected_bytes is not None and begun.total_bytes not in (None, expected_bytes):
        raise _Pause(Retryable(f"{url}: has {begun.total_bytes} bytes where {expected_bytes} are expected"))
    _write_begun(path, begun)
    received = 0
    while True:
        try:
            chunk = answer.read1(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _Pause(Retryable(f"{url}: {_reason(error)}"), received_bytes=received) from None
        if not chunk:
            break
        part.write(chunk[max(0, skip - received) :])
        received += len(chunk)
    total = begun.total_bytes or expected_bytes
    return received, total is None or have - skip + received == total


def _refusal(url: str, error: urllib.error.HTTPError) -> Exception:
    """What an answer that is no file means: final errors as they are, others to be waited for."""
    what = f"{url}: {error.code} {error.reason}"
    if error.code in _GONE_CODES:
        return Gone(what)
    if error.code in _LOGIN_CODES:
        return NeedsLogin(what)
    wait_s = _retry_after_s(error.headers.get("Retry-After"))
    if error.code == 429:
        return _Pause(RateLimited(f"{what} (too many requests)"), wait_s)
    if error.code >= 500 or error.code in (408, 416, 425):
        return _Pause(Retryable(what), wait_s)
    return ItemError(what)


def _finish(path: Path, part: BinaryIO, sha256: str) -> None:
    part_path = _part(path)
    if sha256:
        with part_path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            part.truncate(0)
            raise ItemError(f"{path.name}: sha256 is {found}, should be {sha256}; what came is not the published file")
    files.sync(part_path)
    part_path.replace(path)
    _begun_path(path).unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _begun_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.part.json")


def _read_begun(path: Path, url: str) -> _Begun | None:
    try:
        begun = _Begun(**json.loads(_begun_path(path).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return begun if begun.url == url else None


def _write_begun(path: Path, begun: _Begun) -> None:
    if _read_begun(path, begun.url) != begun:
        files.write_text(_begun_path(path), json.dumps(asdict(begun)))


def _same(begun: _Begun | None, now: _Begun) -> bool:
    """Whether the bytes we have and the bytes that come are of one file, as far as the server lets us know."""
    if begun is None:
        return True
    if begun.etag and now.etag:
        return begun.etag == now.etag
    if begun.last_modified and now.last_modified:
        return begun.last_modified == now.last_modified
    return None in (begun.total_bytes, now.total_bytes) or begun.total_bytes == now.total_bytes


def _retry_after_s(value: str | None) -> float:
    """``Retry-After``: seconds, or a date."""
    if value is None:
        return 0.0
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdigit() else None


def _start(content_range: str | None) -> int | None:
    match = re.match(r"bytes (\d+)-", content_range or "")
    return int(match[1]) if match else None


def _total(content_range: str | None) -> int | None:
    """The file's size in ``bytes 100-199/1000`` or ``bytes */1000``."""
    match = re.search(r"/(\d+)$", content_range or "")
    return int(match[1]) if match else None


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", "") or error) or type(error).__name__
