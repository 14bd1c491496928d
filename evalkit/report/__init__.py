"""One self-contained HTML page about score sets: opens offline, needs no script, diffs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import jinja2

from datakit import files

from . import page, thumbnails

TEMPLATE = "page.html.j2"


def write(
    dirs: Sequence[str | Path],
    out: str | Path,
    *,
    across_copies: bool = False,
    groups: str = "auto",
    videos: Path | None = None,
    data_root: Path = Path("data"),
    macs: page.Macs = lambda score_set: score_set.meta.get("macs_per_view"),
) -> Path:
    """Write a page about the ``scores.npz`` of each folder (or score file) and return its path.

    ``out`` is the page's file, or a folder that gets a ``report.html``. The same inputs give the same bytes.
    ``across_copies``: compare although the files were not the same, as ``compare`` does; ``groups``: which clips are
    of one video, as ``groups.of`` is asked. ``videos``, ``data_root``: where pictures of clips are made from
    (``thumbnails.of``); ``macs``: multiply-adds of a view of a run, where known.
    Raises ``UsageError`` when there is nothing to report on, ``BadManifest`` when a folder holds no scores.
    """
    out = Path(out)
    if out.is_dir():
        out = out / "report.html"
    pictures = functools.partial(thumbnails.of, videos=videos, data_root=data_root)
    html = render(page.gather(dirs, across_copies=across_copies, groups=groups, pictures=pictures, macs=macs))
    with files.replacing(out) as part:
        part.write_bytes(html.encode(errors="backslashreplace"))  # file names that were no UTF-8 hold lone surrogates
    return out


def render(content: page.Page) -> str:
    """The page as HTML text. Whatever comes from the data is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": page.percent, "thousands": page.thousands}
    source = (resources.files(__package__) / TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(page=content)
