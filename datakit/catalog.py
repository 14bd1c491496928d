"""Manifests as values: what a variant is, what a data set is. Facts stay in the TOML files."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from fractions import Fraction
from functools import cache
from typing import Any, get_type_hints

import manifests

from .annotations import SPLIT_NAMES
from .errors import BadManifest, UsageError

FRAMES_SUFFIX = "-frames"
_ONLY_IN_MP4 = ("crf", "preset", "x264", "gop_frames", "threads", "cpu_independent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to re-encode a video (``manifests/variants.toml``).

    Either ``short_side_px`` (aspect kept) or both ``width_px`` and ``height_px`` (aspect lost) or none (size kept).
    ``container`` "mp4" is one file a clip, "frames" a folder of JPEG files; its name then ends in ``-frames``.
    """

    name: str
    short_side_px: int = 0
    width_px: int = 0
    height_px: int = 0
    container: str
    codec: str
    crf: float
    preset: str
    x264: tuple[str, ...]
    gop_frames: int
    pixel_format: str
    scaler: str
    scaler_library: str
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
    jpeg_qscale: int = 0

    def __post_init__(self) -> None:
        allowed = {
            "container": {"mp4", "frames"},
            "codec": {"mjpeg" if self.container == "frames" else "libx264"},
            "scaler_library": {"swscale"} if self.container == "frames" else {"zimg", "swscale"},
            "frame_timing": {"passthrough"},
            "rotation": {"apply"},
            "pixel_aspect": {"apply"},
            "colour_matrix": {"bt601" if self.container == "frames" else "keep"},
            "colour_range": {"full" if self.container == "frames" else "limited"},
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
        """Every field that says something about this container's files, as it is hashed."""
        table = asdict(self)
        for key in ("name", *(_ONLY_IN_MP4 if self.container == "frames" else ("jpeg_qscale",))):
            del table[key]
        return table

    @property
    def hash(self) -> str:
        """First 12 hex digits of the sha256 of the definition."""
        return _hash_of(self)

    def encode_key(self, size: tuple[int, int]) -> str:
        """What the encoder does for one source: equal keys of two variants mean one encode serves both."""
        table = self.definition()
        for key in ("short_side_px", "width_px", "height_px", "upscale"):
            del table[key]
        return digest({**table, "size": list(size)})


@cache
def _hash_of(variant: Variant) -> str:
    return digest(variant.definition())  # asked for once a clip: a third of a run that finds nothing to do


@dataclass(frozen=True, slots=True, kw_only=True)
class ListFile:
    """One annotation file of a data set: the names it goes by and where it comes from.

    ``urls`` are tried in turn; behind a ``#`` stands the file's name inside an archive.
    """

    files: tuple[str, ...]
    urls: tuple[str, ...] = ()
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split(ListFile):
    """The list of a split. ``rows`` and ``list_id`` (datakit.fingerprint) as published; 0 and "" where nobody knows.

    ``labelled``: whether it says what its clips show. The others are only fetched when asked for by name.
    """

    name: str
    rows: int = 0
    list_id: str = ""
    labelled: bool = True

    def __post_init__(self) -> None:
        known = sorted(set(SPLIT_NAMES.values()))
        if self.name not in known:
            raise BadManifest(f"[splits.{self.name}]: a split is one of {', '.join(known)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a data set lies on disk: ``split/class/id.mp4`` or ``split/id.mp4``; what its sources are.

    ``frame_names`` ("{:05}.jpg", counted from 1) where a source is a folder of pictures, with their rate.
    """

    class_folders: bool = True
    frame_names: str = ""
    fps: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """How a list of plain rows is meant: the number of its first class, the order its numbers count in.

    ``folder_is_label``: rows are paths whose folder names the class.
    """

    first_number: int = 0
    number_order: str = "official"
    folder_is_label: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """One data set (``manifests/datasets/*.toml``).

    ``annotation`` is the format of its lists (see ``official``): "kinetics", "gym" or "rows".
    ``classes`` are the names in official order, () where only the annotation has them; ``classes_sha256`` is of the
    sorted names. ``label_orders`` are other orders: a rule of ``labels`` or, for each index, the official one.
    ``flip_labels`` are the classes that a mirrored picture swaps.
    ``clip_names``, ``event_names`` and ``video_names`` are the published names, best first, of a file that holds the
    clip, the event it is part of, and the whole video. ``source_video``: where several clips are of one video, the
    pattern whose first group finds that video in a clip's id: such clips are not independent. ``sources`` are tables
    that only the source of that name reads.
    ``variants`` are what ``make NAME`` prepares, and of those in ``flow`` it computes the optical flow.
    """

    name: str
    title: str
    licence: str
    access: str
    annotation: str
    num_classes: int
    classes: tuple[str, ...] = ()
    classes_sha256: str = ""
    splits: tuple[Split, ...]
    times: ListFile | None = None
    rows: Rows = Rows()
    clip_names: tuple[str, ...]
    variants: tuple[str, ...]
    flow: tuple[str, ...] = ()
    event_names: tuple[str, ...] = ()
    video_names: tuple[str, ...] = ()
    source_video: str = ""
    layout: Layout = Layout()
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    label_orders: dict[str, str | tuple[int, ...]] = field(default_factory=dict)
    flip_labels: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        where = f"datasets/{self.name}.toml"
        if self.classes:
            self.check_classes(self.classes, where)
        for pattern in (*self.clip_names, *self.event_names, *self.video_names):
            try:
                pattern.format(id="", video="", event="", start=0, end=0)
            except (ValueError, LookupError) as error:
                raise BadManifest(
                    f"{where}: {pattern!r} is no name of a file made of id, video, event, start and end: {error}"
                ) from None
        unknown = {name for pair in self.flip_labels for name in pair} - set(self.classes)
        if unknown:
            raise BadManifest(f"{where}: flip_labels names {min(unknown)!r}, which is no class")
        for name, order in self.label_orders.items():
            if not isinstance(order, str) and sorted(order) != list(range(self.num_classes)):
                raise BadManifest(f"{where}: label_orders.{name} is no order of the {self.num_classes} classes")

    def check_classes(self, classes: Sequence[str], where: str) -> None:
        """Raise ``BadManifest`` unless these are the names of this data set, by count and hash."""
        if len(set(classes)) != self.num_classes or len(classes) != self.num_classes:
            raise BadManifest(
                f"{where}: {len(set(classes))} different class names, {self.title} has {self.num_classes}"
            )
        found = class_list_sha256(classes)
        if self.classes_sha256 and found != self.classes_sha256:
            raise BadManifest(f"{where}: the class names are not those of {self.title}: sha256 {found[:12]}...")

    def split(self, name: str) -> Split:
        for split in self.splits:
            if split.name == name:
                return split
        known = ", ".join(split.name for split in self.splits)
        raise UsageError(f"{self.name} has no split {name!r}; type --split with one of: {known}")


def variant(name: str) -> Variant:
    """The variant of that name, defaults filled in; ``256p-frames`` is 256p as folders of JPEG files.

    Raises ``UsageError`` with the names there are.
    """
    table = manifests.read("variants")
    defaults = table.pop("defaults")
    as_frames = {"container": "frames", **defaults.pop("frames")}
    base = name.removesuffix(FRAMES_SUFFIX)
    if base not in table:
        raise UsageError(f"no variant {name!r}; type --variant with one of: {', '.join(table)}")
    entry = {**defaults, **table[base], **(as_frames if base != name else {})}
    _check(entry, Variant, f"variants.toml [{base}]")
    for key in ("scaler_flags", "x264"):
        entry[key] = tuple(entry[key])
    return Variant(name=name, **entry)


def in_container(name: str, container: str | None, dataset: Dataset | None) -> str:
    """The variant's name with the suffix of its container. ``None``: frames where the data set's sources are folders of
    pictures and the variant is just them, else mp4."""
    base = name.removesuffix(FRAMES_SUFFIX)
    if container == "mp4" and base != name:
        raise UsageError(f"{name} is folders of pictures; type --variant {base}, or --container frames")
    keeps_size = not {"short_side_px", "width_px"} & manifests.read("variants").get(base, {}).keys()
    its_own = container is None and dataset is not None and bool(dataset.layout.frame_names) and keeps_size
    return f"{base}{FRAMES_SUFFIX}" if container == "frames" or its_own else name


def variant_names() -> list[str]:
    return [name for name in manifests.read("variants") if name != "defaults"]


def dataset(name: str) -> Dataset | None:
    """The data set of that name, or ``None`` when no manifest describes it (then it is somebody's own videos)."""
    if not manifests.exists(f"datasets/{name}"):
        return None
    where = f"datasets/{name}.toml"
    try:
        table = manifests.read(f"datasets/{name}")
        if isinstance(table.get("classes"), str):
            table["classes"] = manifests.lines(f"datasets/{table['classes']}")
    except (tomllib.TOMLDecodeError, FileNotFoundError) as error:
        raise BadManifest(f"{where}: {error}") from None
    _check(table, Dataset, where)
    splits = [
        _tuples(Split, {**entry, "name": split}, f"{where} [splits.{split}]")
        for split, entry in table.pop("splits").items()
    ]
    for key, kind in (("times", ListFile), ("layout", Layout), ("rows", Rows)):
        if key in table:
            table[key] = _tuples(kind, table[key], f"{where} [{key}]")
    orders = {key: _tuple(order) for key, order in table.pop("label_orders", {}).items()}
    flips = tuple(tuple(pair) for pair in table.pop("flip_labels", []))
    table = {**table, "splits": splits, "label_orders": orders, "flip_labels": flips}
    made = Dataset(name=name, **{key: _tuple(value) for key, value in table.items()})
    unknown = {one.removesuffix(FRAMES_SUFFIX) for one in (*made.variants, *made.flow)} - set(variant_names())
    if unknown:
        raise BadManifest(f"{where}: no variant {min(unknown)!r}; there are: {', '.join(variant_names())}")
    return made


def class_list_sha256(classes: Iterable[str]) -> str:
    """Hash of a list of class names, whatever their order: the sorted names in UTF-8, a newline between them."""
    return hashlib.sha256("\n".join(sorted(classes)).encode()).hexdigest()


def digest(value: object) -> str:
    """12 hex digits that stand for a JSON-able value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _even(value: Fraction) -> int:
    """Nearest even number, at least 2: what ffmpeg's ``-2`` does."""
    return max(2, 2 * round(value / 2))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _tuples(kind: type, entry: dict[str, Any], where: str) -> Any:
    """A table of a TOML as one of our types, its keys checked and its arrays frozen."""
    _check({key: value for key, value in entry.items() if key != "name"}, kind, where)
    return kind(**{key: _tuple(value) for key, value in entry.items()})


def _check(table: dict[str, Any], kind: type, where: str) -> None:
    """Raise ``BadManifest`` for a key that is not known, one that is needed and not there, a value of another type."""
    needed = [one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING]
    lacking = [name for name in needed if name not in table and name != "name"]
    if lacking:
        raise BadManifest(f"{where}: {lacking[0]} is not there")
    try:
        manifests.check_keys(table, {one.name for one in fields(kind)} - {"name"}, where)
    except KeyError as error:
        raise BadManifest(error.args[0]) from error
    hints = get_type_hints(kind)
    for key, value in table.items():
        words, fits = _AS_TOML.get(hints[key], ("", lambda value: True))
        if not fits(value):
            raise BadManifest(f"{where}: {key} = {value!r} should be {words}")


_AS_TOML: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    str: ("a text", lambda value: isinstance(value, str)),
    int: ("a whole number", lambda value: type(value) is int),
    float: ("a number", lambda value: type(value) in (int, float)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    tuple[str, ...]: (
        "a list of texts",
        lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
    ),
}
