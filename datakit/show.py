"""A clip as one picture: the same instants in each variant, and its flow in colours with their scale."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

import manifests

from . import files, manifest, reader
from .errors import ItemError, UsageError

Picture = npt.NDArray[np.uint8]

ROW_PX = 150  # height of a frame on the sheet; the width follows from its own aspect
GAP_PX = 6
TEXT_PX = 13
WHEEL_PX = 165
INK, PAPER, FRAME = (30, 30, 30), (250, 250, 250), (200, 200, 200)
NICE_PX = (0.5, 1, 2, 3, 5, 8, 10, 15, 20)  # ends of the colour scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One stored form of the clip: what it is called, and its frames at the instants."""

    title: str
    kind: reader.Kind
    num_frames: int
    frames: reader.Frames
    indices: tuple[int, ...]
    fps: float


def show(clip: str, data_root: Path, out: Path | None, num_instants: int) -> Path:
    """Write the contact sheet of ``clip`` (a file, a folder, an id, or NAME/id) and return where it is."""
    forms = _forms(clip, data_root)
    rows: list[Row] = []
    broken = []
    for title, path, num_frames in forms:
        try:
            rows.append(_row(title, path, num_frames, num_instants, rows[0] if rows else None))
        except ItemError as error:
            broken.append(str(error))
    if not rows:
        raise UsageError(f"nothing of {clip} can be read ({'; '.join(broken)}); type: python -m datakit verify NAME")
    name = Path(clip).resolve().stem if Path(clip).exists() else clip.rpartition("/")[2]
    target = out if out is not None else Path(f"{name}.png")
    with files.replacing(target) as part:
        _sheet(rows).save(part, "PNG")
    return target


def _forms(clip: str, data_root: Path) -> list[tuple[str, Path, int | None]]:
    """(title, path, number of frames) of every stored form of a clip."""
    path = Path(clip)
    if path.exists():
        return [(path.name, path, None)]
    wanted_set, _, wanted = clip.rpartition("/")
    sets: dict[str, list[tuple[str, Path, int | None]]] = {}
    for variant_dir in sorted(found.parent for found in data_root.glob("*/*/manifest.parquet")):
        name = variant_dir.parent.name
        if wanted_set in ("", name):
            for one in manifest.read(variant_dir).clips:
                if one.id == wanted and one.path is not None:
                    sets.setdefault(name, []).append((variant_dir.name, one.path, one.frames))
    if not sets:
        raise UsageError(
            f"{clip} is no file, and no prepared clip in {data_root} has that id; "
            f"type python -m datakit show with a path, an id, or NAME/ID"
        )
    if len(sets) > 1:
        raise UsageError(f"{wanted} is in several sets; type one of: {', '.join(f'{name}/{wanted}' for name in sets)}")
    forms = next(iter(sets.values()))
    return sorted(forms, key=lambda form: (form[0].endswith("-flow"), form[0]))  # the flow below the pictures


def _row(title: str, path: Path, num_frames: int | None, num_instants: int, first: Row | None) -> Row:
    with reader.open(path, num_frames=num_frames) as video:
        count = video.num_frames
        if first is None:
            indices = instants(count, num_instants)
        elif first.num_frames in (count, count + 1):  # flow i belongs to frame i; the last frame has none
            indices = [min(index, count - 1) for index in first.indices]
        else:  # another frame rate
            indices = [index * count // first.num_frames for index in first.indices]
        what = "flows" if video.kind == "flow" else "frames"
        return Row(
            title=f"{title}   {video.width}x{video.height}, {count} {what}",
            kind=video.kind,
            num_frames=count,
            frames=video.frames(indices),
            indices=tuple(indices),
            fps=video.fps or (first.fps if first else 0.0),
        )


def instants(num_frames: int, count: int) -> list[int]:
    """Middles of ``count`` equal parts of a clip, each frame once.

    10 frames, 3    0123456789
                     ^   ^  ^         -> 1, 5, 8
    """
    count = min(count, num_frames)
    return [(2 * number + 1) * num_frames // (2 * count) for number in range(count)]


def coloured(flow_NHW2: npt.NDArray[np.floating], longest_px: float) -> Picture:
    """Flow in pixels as RGB: the hue is the direction, white is no motion, full colour ``longest_px`` or more."""
    x, y = flow_NHW2[..., 0], flow_NHW2[..., 1]
    turn = (np.arctan2(y, x) / (2 * np.pi)) % 1
    strength = np.minimum(np.hypot(x, y) / longest_px, 1)[..., None]
    wheel = np.array([colorsys.hsv_to_rgb(step / 360, 1, 0.95) for step in range(360)])
    return np.asarray(255 * (1 - strength * (1 - wheel[(turn * 360).astype(int) % 360])), np.uint8)


def scale(flow_NHW2: npt.NDArray[np.floating]) -> float:
    """The end of the colour scale for these flows: one in a hundred pixels may move farther."""
    longest = float(np.percentile(np.hypot(flow_NHW2[..., 0], flow_NHW2[..., 1]), 99))
    return next((nice for nice in NICE_PX if nice >= longest), NICE_PX[-1])


def _sheet(rows: Sequence[Row]) -> Image.Image:
    widest = max(row.frames.shape[2] / row.frames.shape[1] for row in rows)
    blocks = [_block(row, max(round(ROW_PX * widest), 6 * TEXT_PX) + GAP_PX) for row in rows]
    width = max(block.width for block in blocks) + 2 * GAP_PX
    sheet = Image.new("RGB", (width, sum(block.height + GAP_PX for block in blocks) + GAP_PX), PAPER)
    top = GAP_PX
    for block in blocks:
        sheet.paste(block, (GAP_PX, top))
        top += block.height + GAP_PX
    return sheet


def _block(row: Row, step: int) -> Image.Image:
    """One row of the sheet: its title, its pictures ``step`` apart, their numbers below, for flow the colour wheel."""
    pictures, longest_px = row.frames, 0.0
    if row.kind == "flow":
        bound_px = manifests.read("flow")["storage"]["bound_px"]
        flow = (row.frames.astype(np.float32) - 128) * (2 * bound_px / 255)  # 128 is meant as no motion
        longest_px = scale(flow)
        pictures = coloured(flow, longest_px)
    shown_px = max(1, round(pictures.shape[2] * ROW_PX / pictures.shape[1])), ROW_PX
    shown = [Image.fromarray(one).resize(shown_px) for one in pictures]
    wheel_px = WHEEL_PX + GAP_PX if longest_px else 0
    line = TEXT_PX + 5
    width = max(step * len(shown) + wheel_px, len(row.title) * TEXT_PX // 2)
    block = Image.new("RGB", (width, ROW_PX + 2 * line), PAPER)
    draw, font = ImageDraw.Draw(block), ImageFont.load_default(TEXT_PX)
    draw.text((0, 1), row.title, INK, font)
    for number, (picture, index) in enumerate(zip(shown, row.indices, strict=True)):
        block.paste(picture, (number * step, line))
        draw.rectangle((number * step, line, number * step + picture.width - 1, line + ROW_PX - 1), outline=FRAME)
        when = f"{index}: {index / row.fps:.2f} s" if row.fps else f"{index}"
        draw.text((number * step, line + ROW_PX + 1), when, INK, font)
    if longest_px:
        block.paste(_wheel(longest_px), (step * len(shown), line))
    return block


def _wheel(longest_px: float) -> Image.Image:
    """The colours of all directions, up to ``longest_px`` at the edge."""
    radius = (ROW_PX - 2 * TEXT_PX) // 2
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1] / radius
    colours = coloured(np.stack([x, y], axis=-1) * longest_px, longest_px)
    colours[np.hypot(x, y) > 1] = PAPER
    picture = Image.new("RGB", (WHEEL_PX, ROW_PX), PAPER)
    picture.paste(Image.fromarray(colours), (2, 0))
    draw = ImageDraw.Draw(picture)
    draw.line((2 + radius, radius, 2 + 2 * radius, radius), INK)
    draw.text((radius, 2 * radius + 4), f"{longest_px:g} px to the right", INK, ImageFont.load_default(TEXT_PX - 2))
    return picture
