"""Manifests as values: what a variant is, what a data set is. Facts stay in the TOML files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from typing import Any

import manifests

from .errors import BadManifest, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to re-encode a video (``manifests/variants.toml``).

    Either ``short_side_px`` (aspect kept) or both ``width_px`` and ``height_px`` (aspect lost) or none (size kept).
    """

    name: str
    short_side_px: int = 0
    width_px: int = 0
    height_px: int = 0
    container: str
    codec: str
    crf: int
    preset: str
    x264: tuple[str, ...]
    gop_frames: int
    pixel_format: str
    scaler: str
    scaler_flags: tuple[str, ...]
    frame_timing: str
    rotation: str
    pixel_aspect: str
    colour_matrix: str
    colour_range: str
    hdr: str
    interlaced: str
    upscale: bool
    threads: int
    cpu_independent: bool

    def __post_init__(self) -> None:
        allowed = {
            "container": {"mp4"},
            "codec": {"libx264"},
            "frame_timing": {"passthrough"},
            "rotation": {"apply"},
            "pixel_aspect": {"apply"},
            "colour_matrix": {"keep"},
            "colour_range": {"limited"},
            "hdr": {"refuse"},
            "interlaced": {"keep"},
        }
        for key, values in allowed.items():
            if getattr(self, key) not in values:
                raise BadManifest(
                    f"variants.toml [{self.name}]: {key} = {getattr(self, key)!r}; "
                    f"this version knows {', '.join(sorted(values))}"
                )
        if bool(self.width_px) != bool(self.height_px) or (self.short_side_px and self.width_px):
            raise BadManifest(f"variants.toml [{self.name}]: give short_side_px, or width_px and height_px, or none")
        for key in ("short_side_px", "width_px", "height_px"):
            if getattr(self, key) % 2:
                raise BadManifest(f"variants.toml [{self.name}]: {key} must be even for {self.pixel_format}")

    def size(self, displayed_width: Fraction, displayed_height: Fraction) -> tuple[int, int]:
        """Width and height of the output for a displayed picture, both even.

        >>> short side 256 of 640x360 -> (456, 256); of 360x640 -> (256, 456)
        """
        if self.width_px:
            return self.width_px, self.height_px
        short = min(displayed_width, displayed_height)
        target = Fraction(self.short_side_px) if self.short_side_px else short
        if not self.upscale:
            target = min(target, short)
        scale = target / short
        return _even(displayed_width * scale), _even(displayed_height * scale)

    def definition(self) -> dict[str, Any]:
        """Every field but the name, as it is hashed."""
        table = asdict(self)
        del table["name"]
        return table

    @property
    def hash(self) -> str:
        """First 12 hex digits of the sha256 of the definition."""
        return digest(self.definition())

    def encode_key(self, size: tuple[int, int]) -> str:
        """What the encoder does for one source: equal keys of two variants mean one encode serves both."""
        table = self.definition()
        for key in ("short_side_px", "width_px", "height_px", "upscale"):
            del table[key]
        return digest({**table, "size": list(size)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One annotation file of a data set: its names, how many rows it has, where it comes from.

    ``rows`` is 0 where nobody published the count. ``member`` is the file's name where ``url`` is an archive.
    """

    name: str
    files: tuple[str, ...]
    rows: int = 0
    url: str = ""
    member: str = ""
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a data set lies on disk: ``split/class/id.mp4`` or ``split/id.mp4``; what its sources are.

    ``frame_names`` ("{:05}.jpg", counted from 1) where a source is a folder of pictures, with their rate.
    """

    class_folders: bool = True
    frame_names: str = ""
    fps: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """One data set (``manifests/datasets/*.toml``).

    ``clip_names``, ``event_names`` and ``video_names`` are the published names, best first, of a file that holds the
    clip, the event it is part of, and the whole video. ``sources`` are tables that only the source of that name reads.
    """

    name: str
    title: str
    annotation: str
    clip_names: tuple[str, ...]
    event_names: tuple[str, ...] = ()
    video_names: tuple[str, ...] = ()
    classes: tuple[str, ...]
    splits: tuple[Split, ...]
    layout: Layout = Layout()
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    label_orders: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    flip_labels: tuple[tuple[str, str], ...] = ()
    licence: str
    access: str

    def split(self, name: str) -> Split:
        for split in self.splits:
            if split.name == name:
                return split
        known = ", ".join(split.name for split in self.splits)
        raise UsageError(f"{self.name} has no split {name!r}; type --split with one of: {known}")


def variant(name: str) -> Variant:
    """The variant of that name, defaults filled in. Raises ``UsageError`` with the names there are."""
    table = manifests.read("variants")
    defaults = table.pop("defaults")
    if name not in table:
        raise UsageError(f"no variant {name!r}; type --variant with one of: {', '.join(table)}")
    entry = {**defaults, **table[name]}
    _check(entry, Variant, f"variants.toml [{name}]")
    for key in ("scaler_flags", "x264"):
        entry[key] = tuple(entry[key])
    return Variant(name=name, **entry)


def variant_names() -> list[str]:
    return [name for name in manifests.read("variants") if name != "defaults"]


def dataset(name: str) -> Dataset | None:
    """The data set of that name, or ``None`` when no manifest describes it (then it is somebody's own videos)."""
    if not manifests.exists(f"datasets/{name}"):
        return None
    table = manifests.read(f"datasets/{name}")
    where = f"datasets/{name}.toml"
    _check(table, Dataset, where)
    splits = []
    for split_name, entry in table.pop("splits").items():
        _check(entry, Split, f"{where} [splits.{split_name}]")
        splits.append(Split(name=split_name, **{**entry, "files": tuple(entry["files"])}))
    _check(layout := table.pop("layout", {}), Layout, f"{where} [layout]")
    for key in ("clip_names", "event_names", "video_names", "classes"):
        table[key] = tuple(table.get(key, ()))
    return Dataset(name=name, splits=tuple(splits), layout=Layout(**layout), **table)


def digest(value: object) -> str:
    """12 hex digits that stand for a JSON-able value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _even(value: Fraction) -> int:
    """Nearest even number, at least 2: what ffmpeg's ``-2`` does."""
    return max(2, 2 * round(value / 2))


def _check(table: dict[str, Any], kind: type, where: str) -> None:
    try:
        manifests.check_keys(table, {one.name for one in fields(kind)} - {"name"}, where)
    except KeyError as error:
        raise BadManifest(error.args[0]) from error
