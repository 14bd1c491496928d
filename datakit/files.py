"""Files appear under their final name whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and takes the name, on an error it goes.

    with replacing("scores.npz") as part:
        numpy.savez(part.open("wb"), ...)
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    part = final.with_name(f"{final.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        sync(part)
        part.replace(final)
    except OSError as error:
        if error.filename is None:  # a full disk names no file
            error.filename = str(final)
        raise
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` (UTF-8, Unix line ends) so that a reader sees the old file or the new one."""
    with replacing(path) as part:
        part.write_bytes(text.encode())


def sync(path: Path) -> None:
    """Have the bytes on the disk before the name changes: a rename may outlive a power cut that they do not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
