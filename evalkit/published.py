"""Published numbers of the same network and data set, and what keeps ours from standing beside them.

A number is comparable where weights, clips, resolution of the videos and protocol are the same; of everything else it
is said what is not. Whether the files were the same nobody can check: no publication has fingerprints of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

import manifests
from datakit.errors import UsageError

from . import copies, protocols
from .protocols import Protocol
from .scores import ScoreSet

FEW = 3  # rows of other networks that are shown where there is none of the same
UNCHECKED = "whether their files were the same as ours cannot be checked"
NUMBERS = {"top1": "top-1", "top5": "top-5", "mean_class": "mean class"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """A published row, in words its numbers, and why ours are not comparable; no reasons where they are."""

    row: dict[str, Any]
    numbers: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        why = f"not comparable: {'; '.join(self.reasons)}" if self.reasons else f"comparable; {UNCHECKED}"
        return f"{self.numbers}, {self.row['of']}; {why}"

    def to_dict(self) -> dict[str, Any]:
        return {"published": self.row, "comparable": not self.reasons, "reasons": list(self.reasons)}


def beside(found: ScoreSet) -> list[Beside]:
    """The published rows of the same data set and network (of a fusion: of the same kinds of input), nearest first.

    Where there is none of that network those of other networks that look at the same kind of input, if they are few.
    """
    if "fused" in found.meta:
        near = [row for row in fusions() if _same_set(row["dataset"], found.signature.set)
                and sorted(row["inputs"]) == sorted(found.signature.input.split("+"))]  # fmt: skip
        told = [_beside(row, tuple(_fusion_reasons(row, found))) for row in near]
    else:
        near = [row for row in rows() if is_beside(row, found)]
        if not near:
            near = [row for row in rows() if _same_set(str(row.get("dataset", "")), found.signature.set)
                    and _network(row).get("input") == found.signature.input]  # fmt: skip
            near = near if len(near) <= FEW else []
        told = [_beside(row, tuple(reasons(row, protocol_of(row, _network(row)), found))) for row in near]
    return sorted(told, key=lambda one: len(one.reasons))


def lines(found: ScoreSet) -> list[str]:
    """The same for the terminal."""
    told = beside(found)
    more = [f"published   and {len(told) - FEW} more: python -m evalkit table"] if len(told) > FEW else []
    return [f"published   {one}" for one in told[:FEW]] + more


def said(row: dict[str, Any]) -> str:
    """``top-1 73.02, top-5 90.77 on Kinetics-400 (short-side 320)``: what the authors of a row say."""
    numbers = ", ".join(f"{text} {row[key]:.2f}" for key, text in NUMBERS.items() if key in row)
    copy = f" ({row['copy']})" if "copy" in row else ""
    return f"{numbers} on {row.get('dataset', 'an unnamed set')}{copy}"


def fusions() -> list[dict[str, Any]]:
    """Published mixtures of several files; of each also its kinds of input, and the data set and copy of the files."""
    files = {row["file"]: row for row in rows()}
    found = []
    for entry in manifests.read("published").get("fusion", []):
        parts = [files[name] for name in entry["files"]]
        shared = {key: parts[0][key] for key in ("dataset", "copy", "origin") if key in parts[0]}
        found.append({**shared, **entry, "parts": parts, "inputs": [_network(part)["input"] for part in parts]})
    return found


def _beside(row: dict[str, Any], why: tuple[str, ...]) -> Beside:
    ratio = ":".join(f"{weight:g}" for weight in row.get("weights", ()))
    name = f"{' + '.join(row['inputs'])} {ratio}" if "inputs" in row else row["file"]
    plain = {key: value for key, value in row.items() if key != "parts"}
    return Beside(row={**plain, "of": name}, numbers=said(row), reasons=why)


def _fusion_reasons(row: dict[str, Any], found: ScoreSet) -> list[str]:
    """From the signature alone: a fusion keeps those of its parts."""
    signature = found.signature
    why = []
    if signature.weights.split("+") != [part["sha8"] for part in row["parts"]]:
        why.append(f"other weights ({signature.weights or 'not known'} here)")
    ours = [part["weight"] for part in found.meta["fused"]]
    theirs = row["weights"]
    if [one * sum(theirs) for one in ours] != [one * sum(ours) for one in theirs]:  # the same ratio
        why.append(f"fused {':'.join(f'{weight:g}' for weight in ours)} here")
    why += _other_clips(row, found)
    copy = re.findall(r"\d+", str(row.get("copy", "")))
    if any(re.findall(r"\d+", media.rpartition("-")[0]) != copy for media in signature.media.split("+")):
        why.append(f"videos of {row.get('copy', 'a size that is not known')} there, {signature.media} here")
    rules = [protocol_of(part, _network(part)) for part in row["parts"]]
    views = "+".join(dict.fromkeys(rule.views for rule in rules if rule))
    sampling = "+".join(dict.fromkeys(rule.sampling for rule in rules if rule))
    for name, there, here in (("views", views, signature.views), ("sampling", sampling, signature.sampling)):
        if there != here:
            why.append(f"{name} {there} there, {here or 'not known'} here")
    if found.missing:
        why.append(f"{len(found.missing)} clips are missing here")
    return why


def _network(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifests.read("models")["networks"].get(row["network"], {})
    return found


def _of_official(found: ScoreSet) -> str:
    """``8 300 of the official list's 8 521``, where a manifest pins that list."""
    name, _, split = found.signature.set.rpartition("-")
    splits = manifests.read(f"datasets/{name}").get("splits", {}) if manifests.exists(f"datasets/{name}") else {}
    pinned = splits.get(split, {})
    if not pinned.get("rows"):
        return f"{len(found.ids)}"
    if found.signature.list == pinned.get("list_id"):
        return f"the whole official list, {pinned['rows']}"
    other = "" if len(found.ids) < pinned["rows"] else ", but another list"
    return f"{len(found.ids)} where the official list has {pinned['rows']}{other}"


def tested_with(found: ScoreSet) -> Protocol | None:
    table = found.meta.get("protocol")
    if not table:
        return None
    sizes = {"resize_px": tuple(table["resize_px"])} if table.get("resize_px") else {}
    return Protocol(**{**table, **sizes})


def variant(found: ScoreSet) -> str:
    """``320p`` of ``320p-9f3c...``."""
    return found.signature.media.rpartition("-")[0] or found.signature.media


def rows() -> list[dict[str, Any]]:
    """Every published checkpoint with its origin and source, as the manifests have them."""
    found = [
        {**row, "origin": program["origin"], "source": program["source"]}
        for program in manifests.read("published")["program"]
        for row in program["files"]
    ]
    for row in found:
        digits = re.search(r"-([0-9a-f]{8})\.\w+$", row["file"])
        row.setdefault("sha8", digits[1] if digits else "")
    return [row for row in found if "network" in row]


def is_beside(row: dict[str, Any], found: ScoreSet) -> bool:
    """Of the same network, or the very file; on the same data set."""
    signature = found.signature
    same_file = bool(row["sha8"]) and row["sha8"] == signature.weights
    return (same_file or row["network"] == signature.model) and _same_set(str(row.get("dataset", "")), signature.set)


def _same_set(title: str, set_and_split: str) -> bool:
    name = set_and_split.rpartition("-")[0]
    if not title or not name:
        return False
    own = manifests.read(f"datasets/{name}").get("title", "") if manifests.exists(f"datasets/{name}") else ""
    plain, *others = (re.sub(r"[^a-z0-9]", "", text.lower()) for text in (title, name, own))
    return plain in others or any(word.lower() == title.lower() for word in own.split())


def protocol_of(row: dict[str, Any], network: dict[str, Any]) -> Protocol | None:
    name = row.get("protocol") or network.get("protocol") or network.get("family")
    if not name:
        return None
    try:
        return protocols.get(protocols.name_for(name, row["origin"]), "accurate")
    except UsageError:
        return None


def reasons(row: dict[str, Any], protocol: Protocol | None, found: ScoreSet) -> list[str]:
    """In words, what keeps our number and theirs from standing side by side."""
    said = []
    if not row["sha8"] or row["sha8"] != found.signature.weights:
        said.append(f"other weights ({found.signature.weights or 'not known'} here)")
    said += _other_clips(row, found)
    theirs, ours = str(row.get("copy", "")), variant(found)
    if not theirs:
        said.append("the resolution of their videos is not known")
    elif re.findall(r"\d+", theirs) != re.findall(r"\d+", ours):
        said.append(f"videos of {theirs} there, {ours or 'not known'} here")
    mine = tested_with(found)
    if protocol is None or mine is None:
        said.append(f"how {'they' if protocol is None else 'we'} tested is not known")
    else:
        skipped = ("name", "mode", "version", "segments")
        for field in fields(Protocol):
            one, two = getattr(protocol, field.name), getattr(mine, field.name)
            if field.name not in skipped and one != two and not (field.name == "num_clips" and protocol.segments):
                said.append(f"{field.name} {one} there, {two} here")
    if found.missing:
        said.append(f"{len(found.missing)} clips are missing here")
    return said


def _other_clips(row: dict[str, Any], found: ScoreSet) -> list[str]:
    match = copies.nearest(found)
    program = row["origin"].partition("-")[0]
    if match is None:
        return [f"which clips they scored is not known; ours are {_of_official(found)}"]
    if match.copy.name != program:
        return [f"ours are {match}, theirs {program}'s own list"]
    return [] if match.num_different == 0 else [f"ours are {match}"]
