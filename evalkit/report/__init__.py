"""One self-contained HTML page about score sets: opens offline, needs no script, diffs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import jinja2

from datakit import files

from . import page

TEMPLATE = "page.html.j2"


def write(dirs: Sequence[str | Path], out: str | Path, *, across_copies: bool = False) -> Path:
    """Write a page about the ``scores.npz`` of each folder (or score file) and return its path.

    ``out`` is the page's file, or a folder that gets a ``report.html``. The same inputs give the same bytes.
    ``across_copies``: compare although the files were not the same, as ``compare`` does.
    Raises ``UsageError`` when there is nothing to report on, ``BadManifest`` when a folder holds no scores.
    """
    out = Path(out)
    if out.is_dir():
        out = out / "report.html"
    html = render(page.gather(dirs, across_copies=across_copies))
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
