"""Small pictures of clips for the page: the middle frame, as JPEG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from datakit.errors import DataError, ItemError, UsageError
from evalkit.scores import ScoreSet

WIDTH_PX = 240
QUALITY = 65


def of(score_set: ScoreSet, ids: Sequence[str], videos: Path | None, data_root: Path) -> dict[str, str]:
    """Clip id -> ``data:`` URI of its middle frame, of those whose video is found and can be read.

    ``videos``: a prepared variant, or any folder with files (or folders of frames) named after the clips; ``None``: the
    variant below ``data_root`` that the signature names.
    """
    if score_set.signature.input == "flow":
        return {}
    made = {}
    for clip_id, path in _find(score_set, set(ids), videos, data_root).items():
        try:
            made[clip_id] = f"data:image/jpeg;base64,{base64.b64encode(_middle(path)).decode()}"
        except (ItemError, DataError, OSError, ValueError):
            continue  # a picture is no part of the result
    return made


def _find(score_set: ScoreSet, ids: set[str], videos: Path | None, data_root: Path) -> dict[str, Path]:
    from datakit import manifest

    signature = score_set.signature
    name, variant = (text.rpartition("-")[0] for text in (signature.set, signature.media))
    folder = videos if videos is not None else data_root / name / variant if name and variant else None
    if folder is None or not folder.is_dir():
        return {}
    if (folder / "manifest.parquet").is_file():
        try:
            clips = manifest.read(folder).clips
        except (DataError, UsageError):
            return {}
        return {clip.id: clip.path for clip in clips if clip.id in ids and clip.path is not None}
    if videos is None:
        return {}
    return {path.stem: path for path in sorted(folder.rglob("*"), reverse=True) if path.stem in ids}


def _middle(path: Path) -> bytes:
    from PIL import Image

    from datakit import reader

    with reader.open(path) as video:
        frame = video.frames([video.num_frames // 2])[0]
    if frame.shape[2] != 3:
        raise ValueError(f"{path} holds no pictures")
    height, width = frame.shape[:2]
    picture = Image.fromarray(frame).resize((WIDTH_PX, max(1, round(height * WIDTH_PX / width))))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY, optimize=True)
    return out.getvalue()
