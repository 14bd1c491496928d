"""What a protocol looks at in one video: which frames, cut where, as numbers and drawn over the frames themselves.

All numbers are ``decode.plan``'s, which the engine asks as well, and it has them from ``views``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datakit import files, reader

from .decode import Spec, ViewPlan
from .decode import plan as plan_views
from .protocols import Protocol

if TYPE_CHECKING:
    from PIL import Image

COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#d55e00", "#cc79a7")  # of the crops: Okabe and Ito's, told apart by all
THUMB_PX = 168
COLUMNS = 8  # thumbnails side by side; of a longer clip so many of its frames
MOST_CLIPS = 30
GAP_PX = 8
LABEL_PX = 16
MARGIN_PX = 64
DIMMED = 0.35  # what no crop looks at


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """One video under one protocol. ``frames``: uint8 [n, H, W, C], those at ``indices`` (sorted) of the video."""

    path: Path
    protocol: Protocol
    num_frames: int
    fps: float
    height: int
    width: int
    views: ViewPlan
    indices: NDArray[np.int64]
    frames: NDArray[np.uint8]

    def to_dict(self) -> dict[str, Any]:
        """As JSON: boxes are top, left, height, width in the resized picture, clips are lists of frames."""
        size = self.views
        return {
            "video": {
                "path": str(self.path),
                "frames": self.num_frames,
                "fps": self.fps,
                "height": self.height,
                "width": self.width,
            },
            "resized": {"height": size.height, "width": size.width},
            "boxes": [list(box) for box in size.boxes],
            "mirrored": size.mirrored,
            "clips": size.frames.tolist(),
            "num_views": size.num_views,
            "frames_looked_at": len(self.indices),
            "share_of_picture": round(float(_seen(size).mean()), 4),
        }


def look(path: Path, spec: Spec, protocol: Protocol) -> Plan:
    """Plan a video as the engine does, and read the frames. ``spec``: clip length and so on, a network's.

    Raises ``CropError``, ``DataError``, ``Unreadable`` where the engine would give that as a reason.
    """
    plans: list[ViewPlan] = []
    num_frames = 0
    with reader.open(path, pixels="stored", kind="flow" if spec.input == "flow" else "rgb") as video:
        fps = float(video.fps or 0)

        def wanted(count: int) -> NDArray[np.int64]:
            nonlocal num_frames
            num_frames = count
            plans.append(plan_views(count, fps, video.height, video.width, spec, protocol))
            return plans[-1].frames

        indices, frames = video.frames_for(wanted)
        height, width = video.height, video.width
    return Plan(
        path=path, protocol=protocol, num_frames=num_frames, fps=fps, height=height, width=width, views=plans[-1],
        indices=indices, frames=frames,
    )  # fmt: skip


def describe(plan: Plan) -> list[str]:
    """Lines for the terminal: the video, the protocol, the crops, the frames of every clip."""
    size, protocol = plan.views, plan.protocol
    options = "".join(f" {name}={value}" for name, value in protocol.options.items())
    mirrored = f" ({len(size.boxes)}, each also mirrored)" if size.mirrored else ""
    lines = [
        f"video     {plan.path}: {plan.num_frames} frames, {plan.fps:.6g} a second, {plan.width} x {plan.height}",
        f"protocol  {protocol.name} {protocol.mode}: {protocol.views}, {protocol.sampling}{options}, "
        f"{protocol.aggregation}",
        f"views     {size.num_views}: {len(size.frames)} clips x {size.num_crops} crops{mirrored}",
        f"looks at  {len(plan.indices)} of {plan.num_frames} frames, {100 * _seen(size).mean():.1f} % of the picture",
        f"resized   to {size.width} x {size.height} (width x height)",
    ]
    for number, (top, left, height, width) in enumerate(size.boxes):
        lines.append(f"crop {number:<4} {width} x {height} at left {left}, top {top}")
    for number, row in enumerate(size.frames.tolist()):
        lines.append(f"clip {number:<4} {' '.join(map(str, row))}")
    return lines


def draw(plan: Plan) -> Image.Image:
    """The clips on the video's time line, then their frames as resized, with the crops as boxes."""
    from PIL import Image, ImageDraw, ImageFont

    font: Any = ImageFont.load_default(12)
    thumbs = _thumbnails(plan)
    thumb_height = thumbs[0][2].height
    head = describe(plan)[: 5 + len(plan.views.boxes)]
    clips = plan.views.frames[:MOST_CLIPS]
    width = 2 * GAP_PX + MARGIN_PX + COLUMNS * (THUMB_PX + GAP_PX)
    time_top = GAP_PX + LABEL_PX * len(head) + GAP_PX
    grid_top = time_top + LABEL_PX * (len(clips) + 1) + GAP_PX
    num_lines = 1 + max(line for line, *_ in thumbs)
    picture = Image.new("RGB", (width, grid_top + num_lines * (thumb_height + LABEL_PX + GAP_PX)), "white")
    pen = ImageDraw.Draw(picture)
    for number, text in enumerate(head):
        crop = number - 5
        colour = COLOURS[crop % len(COLOURS)] if crop >= 0 else "black"
        pen.text((GAP_PX, GAP_PX + LABEL_PX * number), text, fill=colour, font=font)

    left, right = GAP_PX + MARGIN_PX, width - GAP_PX
    for number, row in enumerate(clips.tolist()):
        middle = time_top + LABEL_PX * number + LABEL_PX // 2
        pen.text((GAP_PX, middle - 7), f"clip {number}", fill="black", font=font)
        pen.line([(left, middle), (right, middle)], fill="#cccccc")
        for index in row:
            x = left + (right - left) * index / max(1, plan.num_frames - 1)
            pen.line([(x, middle - 5), (x, middle + 5)], fill="#0072b2", width=2)
    more = len(plan.views.frames) - len(clips)
    note = f"frames 0 to {plan.num_frames - 1}" + (f"; {more} more clips are not drawn" if more else "")
    pen.text((left, time_top + LABEL_PX * len(clips)), note, fill="#666666", font=font)

    for line, column, thumb, text in thumbs:
        x, y = left + column * (THUMB_PX + GAP_PX), grid_top + line * (thumb_height + LABEL_PX + GAP_PX)
        picture.paste(thumb, (x, y))
        pen.text((x, y + thumb_height + 1), text, fill="black", font=font)
    return picture


def save(plan: Plan, out: Path) -> None:
    """Write the picture as PNG."""
    with files.replacing(out) as part, part.open("wb") as file:
        draw(plan).save(file, format="PNG")


def _thumbnails(plan: Plan) -> list[tuple[int, int, Image.Image, str]]:
    """(line, column, thumbnail, text) of the frames that are drawn. A clip of more than half a line has its own."""
    place = {int(index): number for number, index in enumerate(plan.indices)}
    clips = plan.views.frames[:MOST_CLIPS]
    own_line = clips.shape[1] > COLUMNS // 2
    found = []
    count = 0
    for clip, row in enumerate(clips.tolist()):
        chosen = np.unique(np.linspace(0, len(row) - 1, min(COLUMNS, len(row))).round().astype(int))
        for column, number in enumerate(chosen.tolist()):
            line, column = (clip, column) if own_line else divmod(count, COLUMNS)
            found.append((line, column, _thumbnail(plan, place[row[number]]), f"clip {clip}: frame {row[number]}"))
            count += 1
    return found


def _thumbnail(plan: Plan, number: int) -> Image.Image:
    from PIL import Image, ImageDraw

    size = plan.views
    scale = THUMB_PX / size.width
    height = max(1, round(size.height * scale))
    pixels = plan.frames[number]
    if pixels.shape[-1] == 2:  # flow: x is red, y is green
        pixels = np.concatenate([pixels, np.full_like(pixels[..., :1], 128)], axis=-1)
    thumb = Image.fromarray(pixels).resize((THUMB_PX, height), Image.Resampling.BILINEAR)
    seen = Image.fromarray(_seen(size)).resize((THUMB_PX, height), Image.Resampling.NEAREST)
    thumb = Image.composite(thumb, Image.blend(thumb, Image.new("RGB", thumb.size), 1 - DIMMED), seen)
    pen = ImageDraw.Draw(thumb)
    for crop, (top, left, box_height, box_width) in enumerate(size.boxes):
        inset = 2 * (crop % len(COLOURS))  # so that edges that coincide are seen side by side
        edges = (left * scale, top * scale, (left + box_width) * scale - 1, (top + box_height) * scale - 1)
        box = (edges[0] + inset, edges[1] + inset, edges[2] - inset, edges[3] - inset)
        if box[0] < box[2] and box[1] < box[3]:
            pen.rectangle(box, outline=COLOURS[crop % len(COLOURS)], width=2)
    return thumb


def _seen(size: ViewPlan) -> NDArray[np.bool_]:
    """bool [height, width] of the resized picture: what any crop looks at."""
    seen = np.zeros((size.height, size.width), dtype=np.bool_)
    for top, left, height, width in size.boxes:
        seen[top : top + height, left : left + width] = True
    return seen
