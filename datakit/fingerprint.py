"""Short hashes of what a list names and of what its files hold; and which published copy of a data set a list is.

Row order never matters, every field does. Imports the standard library and ``manifests`` alone: ``evalkit`` may import
this module.

A published copy is an official list minus the clips that its makers did not get. It is carried as one bit a clip
(``manifests/copies/SET-SPLIT.toml``, written by ``scripts/copies.py``), over the official ids in the order of their
sha256; 24 bits of each of those hashes are carried too, so a copy is recognised without the official list (a foreign
id passes for one of 20 000 official ones once in 840 times):

    official id      sha256   place   carried   lacking in the copy
    0wR5jVB-WPk      00031f..     0    00031f    0
    xK8mCDfOvAM      0004c2..     1    0004c2    1
    3yaoNwz99xM      0009aa..     2    0009aa    0
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import manifests

NUM_DIGITS = 10
LEAST_SHARE = 0.9  # of a list's ids must be official for the list to be of that set
_TIMES = re.compile(r"_\d{6}_\d{6}$")


def list_id(pairs: Iterable[tuple[str, str]]) -> str:
    """Ten hex digits for the (clip id, class name) pairs of a list; an unlabelled clip has the class name "".

    Class *names* are hashed, so two label orders of the same classes agree and one changed label does not.
    A pair that occurs twice counts twice.
    """
    return _digest("list/1", pairs)


def media_id(pairs: Iterable[tuple[str, str]]) -> str:
    """Ten hex digits for the (clip id, sha256 of its file or of its decoded content) pairs of a copy."""
    return _digest("media/1", pairs)


def sha256_of(path: Path) -> str:
    """Of a file's bytes; of a folder of pictures, of its files' names and bytes in the order of the names."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    whole = hashlib.sha256()
    for part in sorted(path.iterdir()):
        whole.update(f"{part.name}\0{sha256_of(part)}\n".encode())
    return whole.hexdigest()


def _digest(kind: str, pairs: Iterable[tuple[str, str]]) -> str:
    # JSON quotes every string, so ("a", "bc") and ("ab", "c") stay apart whatever the characters are.
    digest = hashlib.sha256(kind.encode())
    for first, second in sorted(pairs):
        digest.update(json.dumps([first, second]).encode())
    return digest.hexdigest()[:NUM_DIGITS]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedCopy:
    """One published copy. ``lacking``: places, in the official list's order, of the ids that it does not have;
    ``None`` where only the count was published."""

    name: str
    title: str
    source: str
    note: str = ""
    num_ids: int
    lacking: frozenset[int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialList:
    """One split of a data set with the copies of it that were published.

    ``key``: "video" where no video occurs twice, so that lists without times can be told apart; else "clip".
    ``sha256`` of the sorted keys, one a line, and ``hashes`` (see ``hashes_of``), ascending; empty where the list was
    not at hand.
    """

    set_name: str
    split: str
    key: str
    num_ids: int
    sha256: str
    hashes: tuple[int, ...]
    copies: tuple[PublishedCopy, ...]

    def key_of(self, clip_id: str) -> str:
        return video_of(clip_id) if self.key == "video" else clip_id

    def places(self, keys: Iterable[str]) -> dict[str, int]:
        """The place of each of ``keys`` in the official list, judged by the carried hashes; others are left out."""
        groups: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for place, carried in enumerate(self.hashes):
            groups[carried >> 16].append((carried & 0xFFFF, place))
        found = {}
        for key in keys:
            first, more = _carried(key)
            group = groups.get(first, [])
            for carried_more, place in group:
                if len(group) == 1 or more == carried_more:
                    found[key] = place
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyMatch:
    """A list of clips beside a published copy of the same split.

    ``num_both`` is ``None`` where only the count of the copy was published. ``only_here`` and ``only_there`` name the
    ids; ``only_there`` is ``None`` where that needs the official list and it is not at hand. ``foreign`` are the ids
    that are not official; they are among the ``num_here`` and ``only_here`` as well.
    """

    set_name: str
    split: str
    copy: PublishedCopy
    num_official: int
    num_here: int
    num_both: int | None
    only_here: tuple[str, ...]
    only_there: tuple[str, ...] | None
    foreign: tuple[str, ...]

    @property
    def num_different(self) -> int:
        """Clips that one has and the other has not; the fewest possible where only the count is known."""
        if self.num_both is None:
            return abs(self.num_here - self.copy.num_ids)
        return self.num_here + self.copy.num_ids - 2 * self.num_both

    @property
    def largest_top1_shift(self) -> float:
        """How far top-1 of one network can differ between the two lists, in points, either way: it is right on every
        clip that only one of them has and wrong on every clip that only the other has. ``1 - both / longer``."""
        both = self.num_both
        if both is None:  # as different as two lists of these lengths can be
            both = max(0, self.num_here - len(self.foreign) + self.copy.num_ids - self.num_official)
        return 100 * (1 - both / max(1, self.num_here, self.copy.num_ids))

    def __str__(self) -> str:
        """``19 759 of PySlowFast's 19 761, 37 others``"""
        theirs = f"{self.copy.title}'s {_spaced(self.copy.num_ids)}"
        if self.num_both is None:
            return f"{_spaced(self.num_here)} beside {theirs} (which ones was not published)"
        others = self.num_here - self.num_both
        if not others and self.num_both == self.copy.num_ids:
            return f"exactly {theirs}"
        return f"{_spaced(self.num_both)} of {theirs}" + (f", {_spaced(others)} others" if others else "")


def copies_matching(
    ids: Collection[str],
    official_ids: Collection[str] | None = None,
    *,
    set_name: str | None = None,
    split: str | None = None,
) -> list[CopyMatch]:
    """``ids`` beside every published copy of the data set they are of, the nearest copy first.

    ``official_ids`` (clip ids, with or without times) name what is lacking and make the counts exact; they are used
    where they are the very list that the copies were compared with. Without them, places are judged by hashes.
    Without ``set_name`` and ``split`` every list of which at least nine tenths of ``ids`` are is taken.
    """
    matches = []
    for official in official_lists(set_name, split):
        keys = {official.key_of(one): one for one in ids}
        names = _names_in_order(official, official_ids)
        if names:
            order = {name: place for place, name in enumerate(names)}
            places = {key: order[key] for key in keys if key in order}
        else:
            places = official.places(keys)
        known = bool(names or official.hashes)  # else only counts can be compared
        if set_name is None and len(places) < LEAST_SHARE * len(keys):
            continue
        foreign = tuple(sorted(keys[key] for key in keys.keys() - places)) if known else ()
        for copy in official.copies:
            both = there = None
            here: tuple[str, ...] = ()
            if copy.lacking is not None:
                here = tuple(sorted(keys[key] for key in keys if key not in places or places[key] in copy.lacking))
                both = len(keys) - len(here)
                if names:
                    lacking = copy.lacking | set(places.values())
                    there = tuple(sorted(key for place, key in enumerate(names) if place not in lacking))
            matches.append(
                CopyMatch(
                    set_name=official.set_name, split=official.split, copy=copy, num_official=official.num_ids,
                    num_here=len(keys), num_both=both, only_here=here, only_there=there, foreign=foreign,
                )
            )  # fmt: skip
    return sorted(matches, key=lambda match: (match.num_both is None, match.num_different))


def official_lists(set_name: str | None = None, split: str | None = None) -> list[OfficialList]:
    """The lists whose copies are known; of one set and split where they are named."""
    lists = []
    for name in manifests.names("copies"):
        of_set, _, of_split = name.rpartition("-")
        if set_name in (None, of_set) and split in (None, of_split):
            lists.append(_official_list(name, of_set, of_split))
    return lists


def _official_list(name: str, set_name: str, split: str) -> OfficialList:
    table = manifests.read(f"copies/{name}")
    manifests.check_keys(table, {"key", "num_ids", "sha256", "hashes", "copies"}, f"copies/{name}.toml")
    copies = []
    for copy_name, entry in table["copies"].items():
        manifests.check_keys(
            entry, {"title", "source", "note", "num_ids", "lacking"}, f"copies/{name}.toml [copies.{copy_name}]"
        )
        bits = entry.pop("lacking", None)
        copies.append(PublishedCopy(name=copy_name, lacking=None if bits is None else places_of(bits), **entry))
    return OfficialList(
        set_name=set_name, split=split, key=table["key"], num_ids=table["num_ids"], sha256=table.get("sha256", ""),
        hashes=hashes_of(table.get("hashes", ""), table["num_ids"]), copies=tuple(copies),
    )  # fmt: skip


def video_of(clip_id: str) -> str:
    """A clip's id without its times: ``0wR5jVB-WPk_000417_000427`` -> ``0wR5jVB-WPk``."""
    return _TIMES.sub("", clip_id)


def keys_in_order(keys: Iterable[str]) -> list[str]:
    """Keys in the order that bitmaps and hashes are in."""
    return sorted(set(keys), key=_order)


def keys_sha256(keys: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{key}\n" for key in sorted(set(keys))).encode()).hexdigest()


def bits_of(places: Collection[int], num_ids: int) -> str:
    """Places as a bitmap, packed: base64 of zlib."""
    bits = bytearray((num_ids + 7) // 8)
    for place in places:
        bits[place // 8] |= 1 << place % 8
    return _packed(bytes(bits))


def places_of(packed: str) -> frozenset[int]:
    """The reverse of ``bits_of``."""
    bits = _unpacked(packed)
    return frozenset(8 * number + bit for number, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1)


def packed_hashes(ordered: Sequence[str]) -> str:
    """The first 24 bits of the hashes of keys in order, as differences: first all their high bytes, then the middle and
    the low ones, which zlib packs to about 11 bits an id. Two more bytes follow for each that equals a neighbour."""
    firsts = [_carried(key)[0] for key in ordered]
    steps = [after - before for before, after in zip([0, *firsts], firsts, strict=False)]
    planes = bytes(step >> shift & 255 for shift in (16, 8, 0) for step in steps)
    return _packed(planes + b"".join(_carried(ordered[place])[1].to_bytes(2) for place in _ties(firsts)))


def hashes_of(packed: str, num_ids: int) -> tuple[int, ...]:
    """The reverse of ``packed_hashes``: 40 bits an id, of which the last 16 are 0 unless they are needed."""
    raw = _unpacked(packed)
    if not raw:
        return ()
    planes = (raw[start * num_ids : (start + 1) * num_ids] for start in range(3))
    firsts = list(accumulate(high << 16 | middle << 8 | low for high, middle, low in zip(*planes, strict=True)))
    more = raw[3 * num_ids :]
    extra = {place: int.from_bytes(more[2 * n : 2 * n + 2]) for n, place in enumerate(_ties(firsts))}
    return tuple(first << 16 | extra.get(place, 0) for place, first in enumerate(firsts))


def _carried(key: str) -> tuple[int, int]:
    digest = _order(key)
    return int.from_bytes(digest[:3]), int.from_bytes(digest[3:5])


def _ties(firsts: Sequence[int]) -> list[int]:
    """Places whose value a neighbour has as well; values ascend."""
    return [
        place
        for place, first in enumerate(firsts)
        if first in (firsts[place - 1] if place else None, *firsts[place + 1 : place + 2])
    ]


def _names_in_order(official: OfficialList, official_ids: Collection[str] | None) -> list[str]:
    if not official_ids or not official.sha256:
        return []
    keys = {official.key_of(one) for one in official_ids}
    return keys_in_order(keys) if keys_sha256(keys) == official.sha256 else []


def _order(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _packed(raw: bytes) -> str:
    return base64.b64encode(zlib.compress(raw, 9)).decode()


def _unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text)) if text.strip() else b""


def _spaced(number: int) -> str:
    return f"{number:,}".replace(",", " ")
