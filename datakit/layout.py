"""Where things are below the data root (DESIGN section 4), and what the journal calls them."""

from __future__ import annotations

from pathlib import Path

from . import catalog
from .annotations import ClipSpec, safe_name
from .catalog import Dataset, Variant

SOURCE_STAGE = "source"
FILE_STAGE = "file"  # a file that holds several clips: hashed and measured once, its id is its path


def stage_of(variant: str) -> str:
    return f"encode:{variant}"


def final_path(spec: ClipSpec, variant: Variant, dataset: Dataset | None) -> Path:
    """Where a clip's file or folder lies below the folder of its variant: ``split/class/id.mp4``, or without class."""
    in_class = dataset is None or dataset.layout.class_folders
    name = safe_name(spec.id) + ("" if variant.container == "frames" else f".{variant.container}")
    return Path(spec.split, *([safe_name(spec.label)] if spec.label and in_class else []), name)


def key(source_sha256: str, variant: Variant, spec: ClipSpec) -> str:
    """Names what a file is made from: this moment of this source, by this definition."""
    moment = spec.cut_s if spec.start_s is None or spec.cut_s is not None else (spec.start_s, spec.end_s)
    return catalog.digest([source_sha256, variant.hash, *([list(moment)] if moment else [])])
