"""RGB of YUV 4:2:0 pictures as swscale makes it by default, in integers: so that a GPU can do it for the decoder.

Half of what a reader does besides decoding is this conversion, and YUV is half the bytes. swscale's default path for
pictures with even sides repeats each chroma sample four times and multiplies in 16 bits (libswscale/x86/yuv_2_rgb.asm,
yuv2rgb.c: ff_yuv2rgb_coeffs, ff_yuv2rgb_c_init_tables). Other builds may take other paths, so every kind of picture is
tried on noise before it is trusted.

Shapes: n pictures, H x W.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

# Colour space -> how much of V is in red, of U in blue, of U and V in green, in 1/65536; unknown ones count as BT.601.
BT601 = (104597, 132201, 25675, 53279)
COEFFICIENTS = {
    1: (117489, 138438, 13975, 34925),  # BT.709
    4: (104448, 132798, 24759, 53109),  # FCC
    7: (117579, 136230, 16907, 35559),  # SMPTE 240M
    9: (110013, 140363, 12277, 42626),  # BT.2020
}
FULL_RANGE = 2
FORMATS = ("yuv420p", "yuvj420p")
ROWS_TRIED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Colours:
    """How to make RGB of the planes of a picture of ``height`` x ``width``, both even."""

    height: int
    width: int
    y: int
    y_offset: int
    v_to_r: int
    u_to_b: int
    u_to_g: int
    v_to_g: int

    @property
    def num_bytes(self) -> int:
        """Y, U and V of one picture, one after the other."""
        return self.height * self.width * 3 // 2

    def rgb(self, planes: Any) -> tuple[Any, Any, Any]:
        """int32 [n, num_bytes], an array of numpy or a tensor of torch -> red, green, blue [n, H, W] in 0..255."""
        num, h, w = len(planes), self.height // 2, self.width // 2
        y = planes[:, : 4 * h * w].reshape(num, h, 2, w, 2)
        u = planes[:, 4 * h * w : 5 * h * w].reshape(num, h, 1, w, 1) * 8 - 1024
        v = planes[:, 5 * h * w :].reshape(num, h, 1, w, 1) * 8 - 1024
        y = (y * 8 - self.y_offset) * self.y >> 16
        red = y + (v * self.v_to_r >> 16)
        green = y + ((u * self.u_to_g >> 16) + (v * self.v_to_g >> 16))
        blue = y + (u * self.u_to_b >> 16)
        red, green, blue = (each.clip(0, 255).reshape(num, self.height, self.width) for each in (red, green, blue))
        return red, green, blue

    def planes(self, frame: av.VideoFrame, out: np.ndarray[Any, np.dtype[np.uint8]]) -> bool:
        """Copy a picture's planes to ``out`` uint8 [num_bytes]; False where it is not of this kind."""
        if of(frame) != self:
            return False
        start = 0
        for plane in frame.planes:
            size = plane.width * plane.height
            stored = np.frombuffer(plane, np.uint8)[: plane.line_size * plane.height]  # type: ignore[call-overload]
            rows = stored.reshape(plane.height, plane.line_size)[:, : plane.width]
            out[start : start + size].reshape(plane.height, plane.width)[:] = rows
            start += size
        return True


def of(frame: av.VideoFrame) -> Colours | None:
    """The colours of a picture; ``None`` where only swscale itself can convert it."""
    if frame.format.name not in FORMATS or frame.width % 2 or frame.height % 2:
        return None
    return _tried(
        frame.format.name, frame.height, frame.width, int(frame.colorspace), int(frame.color_range),
        int(frame.color_primaries), int(frame.color_trc),
    )  # fmt: skip


@functools.lru_cache(maxsize=1024)
def _tried(
    name: str, height: int, width: int, space: int, color_range: int, primaries: int, transfer: int
) -> Colours | None:
    colours = _computed(height, width, space, full=color_range == FULL_RANGE or name == "yuvj420p")
    strip = _computed(ROWS_TRIED, width, space, full=color_range == FULL_RANGE or name == "yuvj420p")
    noise = np.random.default_rng(0).integers(0, 256, (1, strip.num_bytes), dtype=np.uint8)
    frame = av.VideoFrame(width, ROWS_TRIED, name)
    start = 0
    for plane in frame.planes:
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        size = plane.width * plane.height
        rows[:, : plane.width] = noise[0, start : start + size].reshape(plane.height, plane.width)
        plane.update(rows.tobytes().ljust(plane.buffer_size, b"\0")[: plane.buffer_size])
        start += size
    frame.colorspace, frame.color_range = space, color_range
    frame.color_primaries, frame.color_trc = primaries, transfer
    try:
        wanted = VideoReformatter().reformat(frame, format="rgb24").to_ndarray()
    except (OSError, ValueError):
        return None
    found = np.stack(strip.rgb(noise.astype(np.int32)), axis=-1)[0]
    return colours if np.array_equal(found, wanted) else None


def _computed(height: int, width: int, space: int, *, full: bool) -> Colours:
    red, blue, green_u, green_v = COEFFICIENTS.get(space, BT601)
    y, y_offset = 1 << 16, 0
    if full:
        red, blue, green_u, green_v = (each * 224 // 255 for each in (red, blue, green_u, green_v))
    else:
        y, y_offset = y * 255 // 219, 16 << 3
    return Colours(
        height=height,
        width=width,
        y=_to_13_bits(y),
        y_offset=y_offset,
        v_to_r=_to_13_bits(red),
        u_to_b=_to_13_bits(blue),
        u_to_g=_to_13_bits(-green_u),
        v_to_g=_to_13_bits(-green_v),
    )


def _to_13_bits(factor: int) -> int:
    return ((factor << 13) + (1 << 15)) >> 16
