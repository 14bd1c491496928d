"""Clip ids from any list: what somebody's copy, or an official list, has."""

from __future__ import annotations

import csv
import io
import lzma
from pathlib import Path

from .annotations import stem
from .errors import BadManifest, UsageError


def ids_in(path: Path) -> set[str]:
    """The ids that a list names: a Kinetics CSV, or one clip a line with its path or id first; packed with xz or not.

    ``val_256/abseiling/0wR5jVB-WPk.mp4 0`` -> ``0wR5jVB-WPk``. Raises ``UsageError``, ``BadManifest``.
    """
    try:
        packed = path.read_bytes()
        text = (lzma.decompress(packed) if path.suffix == ".xz" else packed).decode("utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{path} is not there; type the file that lists the clips") from None
    except (UnicodeDecodeError, lzma.LZMAError, IsADirectoryError) as error:
        raise BadManifest(f"{path} is no list in UTF-8: {error}") from None
    first, _, _ = text.partition("\n")
    columns = [name.strip() for name in first.split(",")]
    if {"youtube_id", "time_start", "time_end"} <= set(columns):
        rows = csv.DictReader(io.StringIO(text), skipinitialspace=True)
        try:
            return {f"{r['youtube_id']}_{int(r['time_start']):06d}_{int(r['time_end']):06d}" for r in rows}
        except (TypeError, ValueError):
            raise BadManifest(f"{path}: time_start and time_end must be whole seconds in every row") from None
    ids = {stem(Path(line.replace(",", " ").split()[0]).name) for line in text.splitlines() if line.strip(", \t")}
    if not ids:
        raise BadManifest(f"{path} lists no clip")
    return ids
