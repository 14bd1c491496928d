"""Named, versioned ways to turn a video into one row of scores. The rows are in ``manifests/protocols.toml``."""

from __future__ import annotations

import difflib
import re
import typing
from dataclasses import dataclass, field, replace
from typing import Any

import manifests
from datakit.errors import BadManifest, CropError, DataError, UsageError

from . import views
from .views import RULES

MODES = ("efficient", "accurate")
NUM_CROPS = (1, 3, 5, 10)
AGGREGATIONS = ("prob-mean", "prob-sum", "prob-max", "logit-mean", "segment-logit-mean")

_ROW_KEYS = {
    "version",
    "sampling",
    "num_clips",
    "segments",
    "num_crops",
    "short_side_px",
    "resize_px",
    "crop_px",
    "aggregation",
    "options",
}
_ABOUT_KEYS = {"about", "source", "like", "origin", "in_place_of"}
_SIZES = {"short_side_px", "resize_px"}  # one of the two: whoever sets one unsets the other


class Network(typing.Protocol):
    """What of a network decides how it is tested (``models.ModelSpec`` is one)."""

    @property
    def protocol(self) -> str: ...
    @property
    def origin(self) -> str: ...
    @property
    def num_segments(self) -> int | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How a video is tested. Clip length and frame interval are the network's, everything else is here.

    ``short_side_px`` (aspect kept) or ``resize_px`` = (width, height) (aspect lost): one of the two is given.
    ``num_clips`` of a 2D network are its segments; with ``segments`` they are as many as the network has
    (``for_network``), whatever is written here.
    ``num_crops``: 1, 3, 5, or 10 = the five, each followed by its mirror image. ``options`` go to
    ``views.frame_indices``.
    ``aggregation``: how the views of a video become its row of scores; a row of sampled frames is a view unless said
        prob-mean            softmax of each view, mean (mmaction2's 3D networks, torchvision and PySlowFast, whose sums
                             are this times the number of views)
        prob-sum, prob-max   softmax of each view, sum or element-wise maximum (PySlowFast's ENSEMBLE_METHOD)
        logit-mean           mean over all views, then one softmax: TSN, whose averaged features give the same logits
                             through a linear classifier; GluonCV
        segment-logit-mean   TSM: ``num_segments`` rows of the network are one view, whose logits the network averages;
                             softmax of each view, mean
    """

    name: str
    mode: str
    version: int
    sampling: str
    num_clips: int
    num_crops: int
    crop_px: int
    aggregation: str
    short_side_px: int | None = None
    resize_px: tuple[int, int] | None = None
    segments: bool = False
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        where = f"protocol {self.name} {self.mode}"
        if (self.short_side_px is None) == (self.resize_px is None):
            raise BadManifest(f"{where}: give short_side_px or resize_px, one of them")
        if self.sampling not in RULES:
            raise BadManifest(f"{where}: sampling {self.sampling!r} is none of {', '.join(RULES)}")
        if self.aggregation not in AGGREGATIONS:
            raise BadManifest(f"{where}: aggregation {self.aggregation!r} is none of {', '.join(AGGREGATIONS)}")
        if self.num_crops not in NUM_CROPS:
            raise BadManifest(f"{where}: {self.num_crops} crops; possible are {', '.join(map(str, NUM_CROPS))}")
        if self.num_clips < 1 or self.crop_px < 1:
            raise BadManifest(f"{where}: num_clips and crop_px are at least 1")

    @property
    def scale(self) -> int | tuple[int, int, str]:
        """The ``scale`` argument of ``views.resized``."""
        if self.resize_px is not None:
            return (*self.resize_px, "stretch")
        assert self.short_side_px is not None
        return self.short_side_px

    @property
    def views(self) -> str:
        """``10x3@256``: clips x crops @ crop side."""
        return f"{self.num_clips}x{self.num_crops}@{self.crop_px}"


def names() -> list[str]:
    """The protocols there are, sorted."""
    return sorted(manifests.read("protocols"))


def modes(name: str) -> list[str]:
    """The modes of a protocol, in the order of the file."""
    return list(_rows(manifests.read("protocols"), name))


def get(name: str, mode: str) -> Protocol:
    """``get("slowonly", "accurate")``. Raises ``UsageError`` with the choices when there is no such row."""
    table = manifests.read("protocols")
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"no protocol {name!r}{hint}; python -m evalkit protocols lists them")
    rows = _rows(table, name)
    if mode not in rows:
        raise UsageError(f"protocol {name!r} has no mode {mode!r}; type --mode {' or --mode '.join(rows)}")
    return _protocol(name, mode, rows[mode])


def everything() -> list[tuple[Protocol, dict[str, str]]]:
    """Every protocol, sorted by name, with what the file says ``about`` it, its ``source`` and what it is ``like``."""
    table = manifests.read("protocols")
    return [
        (_protocol(name, mode, row), {key: table[name].get(key, "") for key in ("about", "source", "like")})
        for name in sorted(table)
        for mode, row in _rows(table, name).items()
    ]


def for_network(spec: Network, mode: str, row: str | None = None) -> Protocol:
    """The protocol of a network: the row it names or, where the program that it comes from tests such networks in
    another way, that program's row; with as many segments as the network has, where the row leaves that to it.

    ``row``: this one in place of the network's, as it is, whatever program the network comes from.
    """
    protocol = get(row or name_for(spec.protocol, spec.origin), mode)
    if protocol.segments and spec.num_segments:
        return replace(protocol, num_clips=spec.num_segments)
    return protocol


def name_for(name: str, origin: str) -> str:
    """The row that stands in place of ``name`` for files of ``origin``: ``("tsn", "mmaction2-1.x")`` -> tsn-tencrop."""
    for other, row in manifests.read("protocols").items():
        if origin in row.get("origin", ()) and name in row["in_place_of"]:
            return str(other)
    return name


def _protocol(name: str, mode: str, row: dict[str, Any]) -> Protocol:
    sizes = {"resize_px": tuple(row["resize_px"])} if "resize_px" in row else {}
    return Protocol(name=name, mode=mode, **{**row, **sizes})


def _rows(table: dict[str, Any], name: str, *above: str) -> dict[str, dict[str, Any]]:
    """mode -> row: those of the row that ``name`` is ``like``, then what it says of all modes, then of one."""
    where = f"protocols.toml [{name}]"
    if name in above or name not in table:
        raise BadManifest(f"protocols.toml: {' is like '.join([*above, name])}, " + (
            "which is a circle" if name in above else "which is not there"))  # fmt: skip
    row = table[name]
    own = {key: value for key, value in row.items() if key not in _ABOUT_KEYS | _ROW_KEYS and isinstance(value, dict)}
    shared = {key: value for key, value in row.items() if key not in _ABOUT_KEYS and key not in own}
    base = _rows(table, row["like"], *above, name) if "like" in row else {}
    rows = {}
    for mode in dict.fromkeys([*base, *own]):
        rows[mode] = base.get(mode, {})
        for part in (shared, own.get(mode, {})):
            try:
                manifests.check_keys(part, _ROW_KEYS, f"{where} {mode}")
            except KeyError as error:
                raise BadManifest(str(error.args[0])) from None
            kept = {key: value for key, value in rows[mode].items() if key not in _SIZES or not _SIZES & part.keys()}
            rows[mode] = kept | part
    return rows


def as_typed(base: Protocol, views: str | None = None, sampling: str | None = None) -> Protocol:
    """The base with other views, other rules or both; everything else stays the base's.

    views     ``5x1@224`` (clips x crops @ crop side). Three crops lie along the longer side, so the short side becomes
              the crop's side; one, five and ten crops leave it as it is unless the crop is larger
    sampling  one of ``views.RULES``; options of the base stay only where both rules have them

    Raises ``UsageError`` for what is not of this form, and when the rule knows no such views.
    """
    found = base
    if sampling is not None:
        if sampling not in RULES:
            raise UsageError(f"--sampling {sampling}: type one of {', '.join(RULES)}")
        kin = sampling == base.sampling or {sampling, base.sampling} == {"mmaction2-0.x", "mmaction2-1.x"}
        found = replace(base, sampling=sampling, options=base.options if kin else {})
    if views is not None:
        found = _with_views(found, views)
    if found is not base:
        words = (("views", views), ("sampling", sampling))
        _try(found, " ".join(f"--{key} {value}" for key, value in words if value is not None))
    return found


def _with_views(base: Protocol, text: str) -> Protocol:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)@([1-9]\d*)", text.strip())
    if match is None or int(match[2]) not in NUM_CROPS:
        raise UsageError(
            f"--views {text!r}: write clips x crops @ side, for example --views 5x1@224; "
            f"crops are {', '.join(map(str, NUM_CROPS[:-1]))} or {NUM_CROPS[-1]}"
        )
    num_clips, num_crops, crop_px = (int(group) for group in match.groups())
    short_side_px = base.short_side_px
    if short_side_px is not None:
        short_side_px = crop_px if num_crops == 3 else max(short_side_px, crop_px)
    return replace(
        base,
        mode=match[0],
        num_clips=num_clips,
        num_crops=num_crops,
        crop_px=crop_px,
        short_side_px=short_side_px,
        segments=False,
    )


def _try(protocol: Protocol, typed: str) -> None:
    """Raise ``UsageError`` if every video of usual size would fail under this protocol."""
    num_boxes = 5 if protocol.num_crops == 10 else protocol.num_crops
    try:
        views.frame_indices(protocol.sampling, 300, 8, 2, protocol.num_clips, 30.0, **protocol.options)
        height, width = views.resized(protocol.sampling, 480, 640, protocol.scale)
        views.crop_boxes(protocol.sampling, height, width, protocol.crop_px, num_boxes)
    except (CropError, DataError) as error:
        raise UsageError(f"{typed}: not under protocol {protocol.name}: {error}") from None
