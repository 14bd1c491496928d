"""Where things are below the data root (DESIGN section 4), and what the journal calls them."""

from __future__ import annotations

from pathlib import Path

from . import catalog
from .annotations import ClipSpec, safe_name
from .catalog import Variant

SOURCE_STAGE = "source"


def stage_of(variant: str) -> str:
    return f"encode:{variant}"


def final_path(spec: ClipSpec) -> Path:
    """Where a clip's file lies below the folder of its variant: ``split/class/id.mp4``."""
    parts = [spec.split, *([safe_name(spec.label)] if spec.label else []), f"{safe_name(spec.id)}.mp4"]
    return Path(*parts)


def key(source_sha256: str, variant: Variant) -> str:
    """Names what a file is made from: this source, by this definition."""
    return catalog.digest([source_sha256, variant.hash])
