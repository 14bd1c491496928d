"""A real HTTP server on loopback that serves a folder and misbehaves as told: what the network does to downloads."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

CHUNK_BYTES = 1 << 14


@dataclass
class Fault:
    """What the next answers for one path do wrong; ``times`` of them, then the path is served as it should be.

    ``cut_after``      close the connection after so many bytes of the body
    ``status``         answer with this code, ``retry_after`` (seconds) in its header
    ``lie_bytes``      promise so many bytes more (or fewer) than are sent
    ``no_ranges``      ignore Range and send all of it
    ``stall``          close without an answer
    """

    times: int = 1_000_000
    cut_after: int | None = None
    status: int = 0
    retry_after: str = ""
    lie_bytes: int = 0
    no_ranges: bool = False
    stall: bool = False


@dataclass
class Server:
    root: Path
    url: str = ""
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    aliases: dict[str, str] = field(default_factory=dict)  # path with query -> file
    etags: bool = True
    bytes_per_s: int = 0  # 0: as fast as it goes
    # what was seen
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range
    sent: Counter[str] = field(default_factory=Counter)  # bytes of bodies by path
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, path: str) -> Fault | None:
        with self.lock:
            for one in self.faults.get(path, []):
                if one.times > 0:
                    one.times -= 1
                    return one
        return None


def handler(server: Server) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            self.close_connection = True
            path = unquote(urlsplit(self.path).path)
            with server.lock:
                server.requests.append((self.command, path, self.headers.get("Range", "")))
            fault = server.fault(path) or Fault()
            if fault.stall:
                return
            if fault.status:
                self.send_response(fault.status)
                if fault.retry_after:
                    self.send_header("Retry-After", fault.retry_after)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            file = server.root / server.aliases.get(self.path, path).lstrip("/")
            if not file.is_file():
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = file.read_bytes()
            etag = f'"{len(data):x}-{file.stat().st_mtime_ns:x}"'
            first = self.first_byte(len(data), etag, file.stat().st_mtime)
            if fault.no_ranges:
                first = 0
            if first >= len(data) > 0 and first:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if first else 200)
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - first + fault.lie_bytes))
            self.send_header("Content-Type", "video/mp4" if file.suffix == ".mp4" else "application/octet-stream")
            self.send_header("Last-Modified", formatdate(file.stat().st_mtime, usegmt=True))
            if not fault.no_ranges:
                self.send_header("Accept-Ranges", "bytes")
            if server.etags:
                self.send_header("ETag", etag)
            self.end_headers()
            if body:
                end = len(data) if fault.cut_after is None else min(len(data), first + fault.cut_after)
                self.send(path, data[first:end])

        def first_byte(self, size: int, etag: str, changed: float) -> int:
            wanted = self.headers.get("Range", "")
            if not wanted.startswith("bytes="):
                return 0
            condition = self.headers.get("If-Range")
            if condition and condition not in (etag if server.etags else "", formatdate(changed, usegmt=True)):
                return 0
            return int(wanted.removeprefix("bytes=").split("-")[0])

        def send(self, path: str, data: bytes) -> None:
            for start in range(0, len(data), CHUNK_BYTES):
                chunk = data[start : start + CHUNK_BYTES]
                try:
                    self.wfile.write(chunk)
                except OSError:
                    return
                with server.lock:
                    server.sent[path] += len(chunk)
                if server.bytes_per_s:
                    threading.Event().wait(len(chunk) / server.bytes_per_s)

    return Handler


@contextmanager
def serving(root: Path) -> Iterator[Server]:
    """``root`` on loopback. ``Server.url`` ends with a slash."""
    server = Server(root=root)
    listener = ThreadingHTTPServer(("127.0.0.1", 0), handler(server))
    listener.daemon_threads = True
    server.url = f"http://127.0.0.1:{listener.server_address[1]}/"
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()
