"""Folders of JPEG files that stand for one clip: written whole, checked by reading them, renamed as one."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from pathlib import Path
from stat import S_ISDIR

from PIL import Image

from . import files, fingerprint, reader
from .errors import Unreadable
from .probe import Checked

FRAMES_AT_ONCE = 32
PATTERN, NAMES = "img_%05d.jpg", "img_{:05}.jpg"  # as ffmpeg and as Python say it


def save_jpeg(picture: reader.Frames, path: Path, quality: int, tag: str = "") -> None:
    """uint8 [H, W] grey or [H, W, 3]; ``tag`` goes into the JPEG comment, for ``read_tag`` to find in a first file."""
    Image.fromarray(picture).save(path, "JPEG", quality=quality, **({"comment": tag.encode()} if tag else {}))


def check(folder: Path) -> Checked:
    """Decode every file of ``folder`` and say what is in it. Raises ``Unreadable``: then it is no finished clip.

    ``sha256`` is that of the files' names and bytes in the order of the names, ``content_sha256`` of the pixels.
    """
    content = hashlib.sha256()
    with reader.open(folder) as video:
        for start in range(0, video.num_frames, FRAMES_AT_ONCE):
            content.update(video.frames(range(start, min(start + FRAMES_AT_ONCE, video.num_frames))).tobytes())
        return Checked(
            frames=video.num_frames,
            width=video.width,
            height=video.height,
            fps=0.0,
            duration_s=0.0,
            keyframes=(),
            bytes=sum(path.stat().st_size for path in folder.iterdir()),
            sha256=fingerprint.sha256_of(folder),
            content_sha256=content.hexdigest(),
            tag=read_tag(folder),
        )


def read_tag(folder: Path) -> str:
    """What the first file by name says in its comment; empty when there is none."""
    first = min(folder.glob("*.jpg"), default=None)
    if first is None:
        return ""
    try:
        with Image.open(first) as image:
            comment = image.info.get("comment", b"")
    except OSError:
        return ""
    return comment.decode(errors="replace") if isinstance(comment, bytes) else str(comment)


def write_tag(folder: Path, tag: str) -> None:
    """Put ``tag`` into the comment of the first JPEG file by name, behind its header; its picture stays as it is."""
    first = min(folder.glob("*.jpg"), default=None)
    if first is None:
        raise Unreadable(f"{folder.name}: no frame was written")
    data = first.read_bytes()
    # FF D8, then segments of FF, kind, length: JFIF wants its own (E0) to be the first.
    at = 4 + int.from_bytes(data[4:6], "big") if data[2:4] == b"\xff\xe0" else 2
    text = tag.encode()
    first.write_bytes(data[:at] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + data[at:])


def numbered_links(folder: Path, work: Path) -> Path:
    """A folder in ``work`` whose links name the frames of ``folder`` as ``PATTERN`` does, whatever their own names."""
    links = work / f"{uuid.uuid4().hex}.part"
    links.mkdir()
    for number, path in enumerate(frame_files(folder), start=1):
        (links / (PATTERN % number)).symlink_to(path.absolute())
    return links


def frame_files(folder: Path) -> list[Path]:
    """The frames of a folder of pictures in their order; flow beside them does not count. Raises ``Unreadable``."""
    with reader.open(folder, kind="rgb") as video:
        assert isinstance(video, reader.JpegFolder)
        return [folder / name for (name,) in video.files]


def copy(folder: Path, part: Path, names: str) -> None:
    """Have the frames of ``folder`` in the new folder ``part`` as ``names`` ("{:05}.jpg") counts them, from 1: as hard
    links, or as copies where the disk is another one."""
    part.mkdir(parents=True)
    for number, path in enumerate(frame_files(folder), start=1):
        _link(path, part / names.format(number))


def frames_sha256(folder: Path, fps: float) -> str:
    """Of the frames in their order, whatever they are called, shown at a rate."""
    digest = hashlib.sha256(f"{fps:g} frames a second".encode())
    for path in frame_files(folder):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def twin(folder: Path, other: Path) -> None:
    """``other``, a new folder of the same files: hard links, or copies where the disk is another one."""
    other.mkdir()
    for path in folder.iterdir():
        _link(path, other / path.name)


def _link(path: Path, target: Path) -> None:
    try:
        target.hardlink_to(path.resolve())
    except OSError:
        shutil.copyfile(path, target)


def stat(path: Path) -> list[int]:
    """What changes when a file does: bytes, time stamp; of a folder bytes in all, newest time stamp, how many."""
    one = path.stat()
    if not S_ISDIR(one.st_mode):
        return [one.st_size, one.st_mtime_ns]
    found = [entry.stat() for entry in os.scandir(path) if entry.is_file()]
    newest = max((one.st_mtime_ns for one in found), default=0)
    return [sum(one.st_size for one in found), newest, len(found)]


def place(part: Path, final: Path) -> None:
    """Rename ``part``, a folder on the same disk, to ``final``; an older folder or file there goes first."""
    for path in part.iterdir():
        files.sync(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        old = part.with_name(f"{uuid.uuid4().hex}.part")  # a folder cannot be renamed over another
        final.rename(old)
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink()
    files.sync(part)
    part.rename(final)
    files.sync(final.parent)
