"""What the headers of an H.264 stream prove: where decoding may begin, which pictures nobody refers to, the order.

Half of the pictures of a usual encode are B-frames with ``nal_ref_idc`` 0. No other picture depends on them (ITU-T
H.264 7.4.1), so a reader that does not want one need not decode it. That holds for streams that keep the standard;
here it is checked, packet by packet: the numbers of the reference pictures have no gap (8.2.5.2), so that a decoder
that has not seen the others makes up none, and every packet holds one whole picture. The order of display comes from
the pictures themselves (8.2.1), so that a container's wrong times are noticed.

Only what is common is understood: length-prefixed NAL units (mp4, mkv, flv), one SPS, whole frames, order by type 0
or 2. Anything else is ``Unproven``, which costs time and nothing else.
"""

from __future__ import annotations

import re
from typing import NamedTuple

SLICE, IDR_SLICE, SEI, SPS, PPS, DELIMITER, FILLER = 1, 5, 6, 7, 8, 9, 12
HIGH_PROFILES = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})
HEADER_BYTES = 24  # more than the fields up to the order of a slice's header can take
# ue(v): n zeros, a one, n more bits.
GOLOMB = "(?:" + "|".join(f"0{{{zeros}}}1.{{{zeros}}}" for zeros in range(17)) + ")"


class Unproven(Exception):
    """This stream is not of the kind whose headers are understood here, or breaks a rule."""


class Picture(NamedTuple):
    """``fresh``: nothing after it depends on anything before it. ``idle``: no other picture depends on it.

    ``order``: pictures are shown in this order.
    """

    fresh: bool
    idle: bool
    order: tuple[int, int]


class Headers:
    """The stream's parameters, from ``extradata`` (AVCDecoderConfigurationRecord, ISO/IEC 14496-15 5.3.3.1).

    ``picture`` is to be called with every packet of the stream in the order of the file. Both raise ``Unproven``.
    """

    def __init__(self, extradata: bytes) -> None:
        if len(extradata) < 7 or extradata[0] != 1:
            raise Unproven("no length-prefixed NAL units")
        self._prefix = (extradata[4] & 3) + 1
        self._two_orders: dict[int, bool] = {}  # PPS -> whether the two fields of a frame have each their own
        try:
            self._parameters = _parameter_sets(extradata)
            self._read_sps([one for one in self._parameters if one[0] & 31 == SPS])
            for one in self._parameters:
                if one[0] & 31 == PPS:
                    self._read_pps(one)
        except (IndexError, ValueError) as error:
            raise Unproven("parameter sets that end early") from error
        # First macroblock (0), slice type, PPS, number of the frame, whether a field, number of the IDR, order.
        field = "(.)" if self._may_be_fields else "()"
        order = f"(.{{{self._order_bits}}})({GOLOMB})?"
        fields = [f"1{GOLOMB}({GOLOMB})(.{{{self._frame_bits}}}){field}{number}{order}" for number in ("", GOLOMB)]
        self._shown, self._fresh = (re.compile(each) for each in fields)
        self._epoch = self._frame = self._msb = self._lsb = 0  # of the latest reference picture

    def _read_sps(self, found: list[bytes]) -> None:
        if len(found) != 1:
            raise Unproven(f"{len(found)} SPS")
        bits = _Fields(found[0][1:])
        profile = bits.fixed(8)
        bits.fixed(16)
        bits.golomb()
        if profile in HIGH_PROFILES:
            if bits.golomb() == 3 and bits.fixed(1):
                raise Unproven("colour planes apart")
            bits.golomb()
            bits.golomb()
            bits.fixed(1)
            if bits.fixed(1):
                raise Unproven("scaling matrices")
        self._frame_bits = bits.golomb() + 4
        order_type = bits.golomb()
        if order_type not in (0, 2):
            raise Unproven(f"order of type {order_type}")
        self._order_bits = bits.golomb() + 4 if order_type == 0 else 0  # 0: shown as decoded
        bits.golomb()
        if bits.fixed(1):
            raise Unproven("gaps in the frames' numbers are allowed")
        bits.golomb()
        bits.golomb()
        self._may_be_fields = not bits.fixed(1)

    def _read_pps(self, unit: bytes) -> None:
        bits = _Fields(unit[1:])
        number = bits.golomb()
        bits.golomb()
        bits.fixed(1)
        self._two_orders[number] = bool(bits.fixed(1))

    def picture(self, packet: bytes) -> Picture:
        """Of the next packet."""
        head = begin = at = 0
        while at < len(packet):
            start = at + self._prefix
            at = start + int.from_bytes(packet[at:start], "big")
            if not start < at <= len(packet):
                raise Unproven("units that do not fill their packet")
            kind = packet[start] & 31
            if kind in (SLICE, IDR_SLICE):
                if not begin:
                    head, begin = packet[start], start + 1
                elif packet[start] != head or packet[start + 1 : start + 2] >= b"\x80":
                    raise Unproven("two pictures in a packet")
            elif kind in (SPS, PPS):
                if packet[start:at] not in self._parameters:
                    raise Unproven("parameters that change")
            elif kind not in (SEI, DELIMITER, FILLER):
                raise Unproven(f"NAL units of type {kind}")
        if not begin:
            raise Unproven("a packet without a picture")
        return self._numbered(_bits(packet[begin : begin + HEADER_BYTES]), head & 31 == IDR_SLICE, head & 96 == 0)

    def _numbered(self, bits: str, fresh: bool, idle: bool) -> Picture:
        found = (self._fresh if fresh else self._shown).match(bits)
        if found is None:
            raise Unproven("a slice that ends early or does not begin its picture")
        pps, number, field, lsb, second = found.groups()
        if field == "1":
            raise Unproven("fields")
        if fresh:
            self._epoch += 1
            self._msb = self._lsb = 0
        if self._epoch == 0 or (fresh and idle):
            raise Unproven("a stream that does not begin with an IDR picture")
        frame = int(number, 2)
        if frame != (0 if fresh else (self._frame + 1) % (1 << self._frame_bits)):
            raise Unproven("a gap in the frames' numbers")
        if not idle:
            self._frame = frame
        if not lsb:
            order = self._lsb = self._lsb + 1
        else:
            order = self._count(int(lsb, 2), keep=not idle)
            two_orders = self._two_orders.get(int(pps, 2) - 1)
            if two_orders is None or (two_orders and second is None):
                raise Unproven("a slice that names no PPS or ends early")
            if two_orders:  # se(v): odd codes are positive; what is shown first counts
                code = int(second, 2) - 1
                order -= 0 if code % 2 else code // 2
        return Picture(fresh=fresh, idle=idle, order=(self._epoch, order))

    def _count(self, lsb: int, *, keep: bool) -> int:
        """8.2.1.1: the upper bits of the picture order count follow from the latest reference picture's."""
        whole = 1 << self._order_bits
        msb = self._msb
        if self._lsb - lsb >= whole // 2:
            msb += whole
        elif lsb - self._lsb > whole // 2:
            msb -= whole
        if keep:
            self._msb, self._lsb = msb, lsb
        return msb + lsb


def _bits(unit: bytes) -> str:
    """The bits of a NAL unit behind its first byte, without what only keeps start codes away (7.3.1)."""
    payload = unit.replace(b"\0\0\3", b"\0\0")
    return f"{int.from_bytes(payload, 'big'):0{8 * len(payload)}b}"


class _Fields:
    """One field after the other (7.2, 9.1)."""

    def __init__(self, unit: bytes) -> None:
        self._text = _bits(unit)
        self._at = 0

    def fixed(self, length: int) -> int:
        self._at += length
        if self._at > len(self._text):
            raise IndexError
        return int(self._text[self._at - length : self._at], 2)

    def golomb(self) -> int:
        one = self._text.index("1", self._at)
        length = one - self._at
        self._at = one
        return self.fixed(length + 1) - 1


def _parameter_sets(extradata: bytes) -> list[bytes]:
    """SPS and PPS, whole."""
    found, at = [], 5
    for mask in (31, 255):
        count = extradata[at] & mask
        at += 1
        for _ in range(count):
            start = at + 2
            at = start + int.from_bytes(extradata[at:start], "big")
            found.append(extradata[start:at])
    return found
