"""Take files out of an archive that somebody on the network made, in one pass, trusting nothing that it says.

Whatever a member calls itself, it ends up below the folder it is meant for, under a name that the caller chose. Links,
devices and sparse files are refused; so are members that lead out of the folder, and an archive that swells while it is
read. What was not taken is in the result, by name.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol, cast

from .. import files
from ..errors import BadArchive

CHUNK_BYTES = 1 << 20
# Videos and JPEGs hardly shrink: an archive that unpacks to much more than was read of it is made to fill the disk.
MOST_SWELLING, FREE_BYTES = 20, 64 << 20
_GZIP, _TAR_AT, _TAR, _BLOCK = b"\x1f\x8b", 257, b"ustar", 512
_OTHERS = {b"PK\x03\x04": "a zip file", b"Rar!": "a rar file", b"7z\xbc\xaf": "a 7z file", b"BZh": "bzip2",
           b"\xfd7zXZ": "xz", b"<": "a web page (an error message, or a login?)"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One file that was taken out. ``name`` as the archive spells it, ``path`` where it is now."""

    name: str
    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedOver:
    """One member that was not taken. ``refused``: it would have done harm; else it is of no use to us."""

    name: str
    why: str
    refused: bool = False


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


Place = Callable[[PurePosixPath], Path | str]
Write = Callable[[BinaryIO, Path], tuple[int, str]]


def unpack(stream: Readable, name: str, place: Place, write: Write) -> Iterator[Member | PassedOver]:
    """Yield one entry for every member of the tar or tar.gz in ``stream``, told apart by its first bytes.

    ``place(member)`` says where a file goes, or in words why nowhere; ``write(content, path)`` puts it there and
    returns its size and sha256 (see ``write_whole``). ``name`` is the archive's, for messages.

    Raises ``BadArchive`` for what is no archive, is cut short, is broken, or swells.
    """
    counted = _Counted(stream)
    head = cast("io.BufferedReader[io.RawIOBase]", io.BufferedReader(counted, CHUNK_BYTES))
    start = head.peek(_TAR_AT + len(_TAR))
    if not start:
        raise BadArchive(f"{name} is empty")
    content: gzip.GzipFile | io.BufferedReader[io.RawIOBase]
    if start.startswith(_GZIP):
        content = gzip.GzipFile(fileobj=head)
    elif start[_TAR_AT:].startswith(_TAR):
        content = head
    else:
        what = next((what for magic, what in _OTHERS.items() if start.lstrip().startswith(magic)), "something else")
        raise BadArchive(f"{name} is no tar and no tar.gz but {what}")
    limited = _Limited(content, counted, name)
    with _named_errors(name), tarfile.open(fileobj=limited, mode="r|", bufsize=CHUNK_BYTES) as tar:
        for member in tar:
            entry = _judge(member)
            if entry is not None:
                if entry.why:
                    yield entry
                continue
            path = place(PurePosixPath(member.name))
            if isinstance(path, str):
                yield PassedOver(name=member.name, why=path)
                continue
            file = tar.extractfile(member)
            assert file is not None  # a regular file has content
            size, sha256 = write(cast(BinaryIO, file), path)
            if size != member.size:
                raise BadArchive(f"{name} ends in the middle of {member.name}")
            yield Member(name=member.name, path=path, bytes=size, sha256=sha256)
        # tarfile takes a broken header for the end; and reading on to the real end is what checks gzip's checksum.
        assert tar.fileobj is not None
        while rest := tar.fileobj.read(CHUNK_BYTES):
            if rest.strip(b"\0"):
                raise BadArchive(f"{name} is broken: data after the last member that can be read")
        if limited.tail.strip(b"\0"):
            raise BadArchive(f"{name} ends early: the mark of the end is not there")


def write_whole(content: BinaryIO, path: Path) -> tuple[int, str]:
    """Copy ``content`` to ``path``, which appears whole or not at all. Returns size and sha256."""
    digest = hashlib.sha256()
    size = 0
    with files.replacing(path) as part, part.open("wb") as out:
        while chunk := content.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            out.write(chunk)
    return size, digest.hexdigest()


def _judge(member: tarfile.TarInfo) -> PassedOver | None:
    """Why a member is not taken; with ``why`` empty when that is not worth a word; ``None`` when it may be taken."""
    parts = PurePosixPath(member.name).parts

    def refused(why: str) -> PassedOver:
        return PassedOver(name=member.name, why=why, refused=True)

    if member.isdir():
        return PassedOver(name=member.name, why="")
    if member.issym() or member.islnk():
        return refused(f"a link to {member.linkname}")
    if not member.isreg() or member.issparse():
        return refused("no plain file")
    if ".." in parts or member.name.startswith(("/", "\\")) or "\\" in member.name or "\0" in member.name:
        return refused("leads out of the folder")
    if not parts or len(parts[-1].encode(errors="surrogateescape")) > 255:
        return refused("no name for a file")
    if any(part.startswith("._") for part in parts) or "__MACOSX" in parts:
        return PassedOver(name=member.name, why="what macOS keeps beside a file")
    if member.size == 0:
        return PassedOver(name=member.name, why="empty")
    return None


@contextmanager
def _named_errors(name: str) -> Iterator[None]:
    try:
        yield
    except EOFError:
        raise BadArchive(f"{name} ends early") from None
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, UnicodeError, ValueError) as error:
        raise BadArchive(f"{name} is broken: {error}") from None


class _Counted(io.RawIOBase):
    """How much was read of the archive itself."""

    def __init__(self, stream: Readable) -> None:
        self.stream, self.bytes = stream, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        chunk = self.stream.read(len(buffer))
        buffer[: len(chunk)] = chunk
        self.bytes += len(chunk)
        return len(chunk)


class _Limited(io.RawIOBase):
    """The unpacked archive, which may not be much larger than what was read of it. tarfile sees nothing but this."""

    def __init__(self, content: gzip.GzipFile | io.BufferedReader[io.RawIOBase], source: _Counted, name: str) -> None:
        self.content, self.source, self.name, self.bytes = content, source, name, 0
        self.tail = b""

    def read(self, size: int = -1) -> bytes:
        # what is there, not all that was asked for: else the end of a cut archive takes the last sound clips with it
        chunk = self.content.read1(size if size >= 0 else CHUNK_BYTES)
        self.bytes += len(chunk)
        self.tail = (self.tail + chunk[-_BLOCK:])[-_BLOCK:]
        if self.bytes > FREE_BYTES + MOST_SWELLING * self.source.bytes:
            raise BadArchive(
                f"{self.name} unpacks to more than {MOST_SWELLING} times its size: refused, it would fill the disk"
            )
        return chunk
