"""Which network a foreign file holds, and how that is known.

In this order: the name typed by the caller; the training config inside the file; the first 8 digits of its sha256 among
the published files; its file name. Keys and shapes tell depth and channels, never the clip: where they fit one network
only, or its program has one clip that nearly all files have, that is assumed and said aloud; where they fit several the
file is refused with the names to choose from.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from datakit.errors import CheckpointError, UsageError

from .. import zoo
from . import keys, published
from .files import File

log = logging.getLogger(__name__)
NUM_KEYS_SHOWN = 20
OPTIONAL = "num_batches_tracked"
CLIP = ("clip_len", "frame_interval", "num_segments")
CLIP_WORD = r"\d+x\d+(x\d+)?"
# Short forms in file names -> the words of our networks' names.
WHOLE = {"eg": ("embedded", "gaussian"), "gauss": ("gaussian",), "dot": ("product",)}


def foreign_spec(
    path: Path,
    state: Mapping[str, Tensor],
    file: File,
    *,
    name: str | None,
    adapter: ModuleType,
    digests: Sequence[str],
) -> zoo.ModelSpec:
    """The spec of ``state``, which has our keys and came out of ``adapter``.

    ``digests``: of the file, any of which may name it among the published ones.
    """
    num_classes = state["head.weight"].shape[0] if "head.weight" in state else 0
    arguments: dict[str, Any] = adapter.arguments(file.state)
    families: Sequence[str] = adapter.families(file.state)
    typed = name is not None and name in zoo.names()
    choices = [name] if name and (typed or not families) else alike(families, arguments) or alike(families, {})
    wrong = {choice: mismatches(expected(choice, num_classes, arguments), state) for choice in choices}
    having_keys = [choice for choice in choices if not wrong[choice]]
    fitting = distinct(having_keys, arguments)
    unnamed: dict[str, Any] = {}
    if not fitting and not typed:  # perhaps a depth or a pattern that no name stands for
        unnamed = keys.structure(state)
        similar = alike(families, arguments | unnamed)
        similar = [each for each in similar if "_r50_" in each] or similar  # names of one depth
        fitting = [each for each in similar if not mismatches(expected(each, num_classes, arguments | unnamed), state)]
        fitting = distinct(fitting, arguments | unnamed)
    if not fitting:
        nearest = min(choices, key=lambda choice: wrong[choice].count)
        theirs = {ours: key for key, ours in adapter.names(file.state).items()}
        unused = tuple(theirs.get(key, key) for key in wrong[nearest].unused)
        raise CheckpointError(f"{path}: does not fit {nearest}: {dataclasses.replace(wrong[nearest], unused=unused)}")
    arguments |= unnamed
    called = {with_depth(each, unnamed): each for each in fitting}
    try:
        facts = adapter.facts(file)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    origin, how_origin = adapter.origin(file.top, path.name)
    rows = [row for row in published.of(origin) if row.get("network") in having_keys]
    by_hash = published.with_digest(rows, digests)
    foreign = None if typed else name  # not a name of ours, but perhaps its origin's: read like that of a file
    by_name = published.named(rows, foreign or path.name, num_classes)
    chosen, how = choose(
        path,
        called,
        {} if foreign else facts,
        None if foreign else by_hash,
        by_name,
        typed=typed,
        text=foreign or path.name,
        words=adapter.WORDS,
        priors={} if unnamed else adapter.PRIORS,
        must_be_named=bool(foreign) or families[0] in adapter.MUST_BE_NAMED,
    )
    how = "name=" if foreign else how
    named = called.get(chosen, chosen)  # of published files the row says which, and may say another clip
    spec = zoo.spec(named, num_classes=num_classes, **arguments_for(named, arguments))
    known = dict.fromkeys(("name", "clip_len", "frame_interval"), how)
    known |= {"input": "keys", "num_classes": "keys", "origin": how_origin}
    known |= dict.fromkeys(("mean", "std"), f"all of {origin}" if "mean" in arguments else "the network's default")
    row = by_hash or by_name
    if row and "protocol" in row:
        known["protocol"] = "sha8 of a published file" if by_hash else "file name of a published file"
    number = by_hash or (by_name if by_name and published.is_whole_name(by_name, path.name, origin) else None)
    spec = dataclasses.replace(spec, name=chosen, origin=origin, known=known, published=number)
    if row:
        pooling = {key: row[key] for key in ("head_pool",) if key in row}
        spec = dataclasses.replace(spec, protocol=row.get("protocol", spec.protocol), network=spec.network | pooling)
        published.greet(path, spec, row, digests)
    if how == "config in the file":
        return with_facts(spec, facts)
    for key in (key for key in adapter.ASSUMED if key in arguments):
        log.warning("%s: %s is taken for %s, as most of its origin have", path, key, arguments[key])
        known[key] = "assumed: as most of its origin have"
    return spec


def alike(families: Sequence[str], arguments: Mapping[str, Any]) -> list[str]:
    """Networks of the families, with non-local blocks if ``arguments`` name some and without where they do not."""
    found = []
    for name in zoo.names():
        row = zoo.row_of(name)
        has = any(map(bool, row.get("network", {}).get("non_local", ())))
        if row["family"] in families and ("non_local" not in arguments or has):
            found.append(name)
    return found


def distinct(fitting: Sequence[str], arguments: Mapping[str, Any]) -> list[str]:
    """Of names that are the same network and input once ``arguments`` are in place, the one that has most of them."""
    kept: dict[str, tuple[int, str]] = {}
    for name in fitting:
        row = zoo.row_of(name)
        network = {**zoo.arguments_of(row["family"]), **row.get("network", {})}
        given = {key: value for key, value in arguments_for(name, arguments).items() if key in network}
        overridden = sum(plain(network[key]) != plain(value) for key, value in given.items())
        final = network | given
        same = str(sorted((key, plain(value)) for key, value in final.items()))
        same += str([row.get(key) for key in CLIP] + [arguments.get(key, row.get(key)) for key in ("mean", "std")])
        if same not in kept or overridden < kept[same][0]:
            kept[same] = (overridden, name)
    return [name for _, name in kept.values()]


def choose(
    path: Path,
    called: Mapping[str, str],
    facts: Mapping[str, Any],
    by_hash: Mapping[str, Any] | None,
    by_name: Mapping[str, Any] | None,
    *,
    typed: bool,
    text: str | None = None,
    words: Sequence[tuple[str, str]] = (),
    priors: Mapping[str, str] | None = None,
    must_be_named: bool = False,
) -> tuple[str, str]:
    """(name, how it was known) among the networks whose keys and shapes fit; ``by_...``: rows of published files.

    ``called``: what each of them is called -> the named network that it is, or that it is but for its depth.

    ``text``: what is read as a file name; ``words``: (pattern, what to read for it) in it. ``priors``: the clip to
    assume of names that start so where nothing tells it, but with ``must_be_named`` only if the text speaks of them.
    """
    fitting = [*called]
    if typed:
        return fitting[0], "name="
    if "clip_len" in facts:
        return min(fitting, key=lambda name: num_differences(called[name], facts)), "config in the file"
    if by_hash:
        return by_hash["network"], "sha8 of a published file"
    if by_name:
        return by_name["network"], "file name of a published file"
    said = words_of(text or path.name, words)
    named = named_in(said, fitting)
    if named:
        return max(named, key=len), "file name"
    clips = [word for word in said if re.fullmatch(CLIP_WORD, word)]
    spoken_of = not must_be_named or any(name.split("_")[0] in said for name in fitting)
    starts = [start for start in priors or {} if all(name.startswith(f"{start}_") for name in fitting)]
    prior = priors[starts[0]] if priors and starts else None
    exact = [name for name in fitting if re.fullmatch(rf"[a-z0-9]+_r\d+(_nl)?_{prior}", name)]
    assumed = exact or [name for name in fitting if name.endswith(f"_{prior}")] or fitting
    if len(assumed) == 1 and spoken_of and (not clips or any(clip in assumed[0] for clip in clips)):
        only = (
            "the only network known here that has such keys" if len(fitting) == 1 else "as most files of its origin are"
        )
        log.warning("%s: taken for %s, %s", path, assumed[0], only)
        return assumed[0], f"assumed: {only}"
    raise CheckpointError(
        f"{path}: its keys fit {', '.join(fitting)}, and neither the file nor its name says which"
        f"{' or that it is one of them' if must_be_named else ''}. "
        f"Type one: models.load(..., name={fitting[0]!r}), --name {fitting[0]}"
    )


def words_of(text: str, words: Sequence[tuple[str, str]]) -> list[str]:
    text = text.lower()
    for pattern, replacement in words:
        text = re.sub(pattern, replacement, text)
    found = re.split(r"[^a-z0-9]+", text)
    return found + [whole for word in found for whole in WHOLE.get(word, ())]


def named_in(said: Sequence[str], fitting: Sequence[str]) -> list[str]:
    """Names whose every part is said, but for what they have in common; a name that is nothing else is to be said."""
    parts = {name: name.split("_") for name in fitting}
    common = set.intersection(*map(set, parts.values()))
    told = {part for part in common if not re.fullmatch(CLIP_WORD, part)}
    to_say = {name: [part for part in each if part not in told] or each for name, each in parts.items()}
    return [name for name, each in to_say.items() if all(in_words(part, said) for part in each)]


def plain(value: Any) -> Any:
    """Tuples as lists, to compare what was written in code with what was written in a manifest."""
    return [*map(plain, value)] if isinstance(value, list | tuple) else value


def in_words(part: str, words: Sequence[str]) -> bool:
    """Whether a part of a network's name stands in a file name: "4x16" also as "4x16x1", "r50" also as "resnet50"."""
    return any(word in (part, f"{part}x1", part.replace("r", "resnet", 1)) for word in words)


def num_differences(name: str, facts: Mapping[str, Any]) -> int:
    """In how many things a network of the zoo differs from what a config says."""
    row = zoo.row_of(name)
    network = {**zoo.arguments_of(row["family"]), **row.get("network", {})}
    told = {key: value for key, value in facts["network"].items() if key in network}
    # The architecture changes every number, the clip only the input: a wrong clip is put right afterwards.
    wrong_network = [key for key, value in told.items() if network[key] != value]
    wrong_clip = [key for key in CLIP if key in facts and row.get(key) != facts[key]]
    return 10 * len(wrong_network) + len(wrong_clip)


def with_facts(spec: zoo.ModelSpec, facts: Mapping[str, Any]) -> zoo.ModelSpec:
    """The spec with what the file's own config says; a clip that no named network has makes a name of its own."""
    values = {key: value for key, value in facts.items() if key != "network"}
    for key in ("mean", "std"):
        if len(values.get(key, ())) != len(spec.mean):
            values.pop(key, None)
    told = {key: value for key, value in facts["network"].items() if key in zoo.arguments_of(spec.family)}
    known = spec.known | dict.fromkeys(values, "config in the file")
    if "train_crop_px" in values:
        told["train_crop_px"] = values["train_crop_px"]
    changed = dataclasses.replace(spec, known=known, network=spec.network | told, **values)
    if all(getattr(changed, key) == getattr(spec, key) for key in CLIP):
        return changed
    return dataclasses.replace(changed, name=re.sub(r"\d+(x\d+)+", clip_text(changed), spec.name))


def with_depth(name: str, unnamed: Mapping[str, Any]) -> str:
    """A name with the depth that keys tell in place of its own, for a network that has no name."""
    if "depth" not in unnamed:
        return name
    depths = dict.fromkeys(unnamed[key] for key in ("depth", "fast_depth") if key in unnamed)
    return re.sub(r"(_r\d+)+", "".join(f"_r{depth}" for depth in depths), name)


def clip_text(spec: zoo.ModelSpec) -> str:
    """``4x16``, or ``1x1x8`` with segments: the clip as it stands in a network's name."""
    segments = () if spec.num_segments is None else (spec.num_segments,)
    return "x".join(map(str, (spec.clip_len, spec.frame_interval, *segments)))


def arguments_for(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``arguments`` that the network of a name has, and those that its spec has."""
    known = {*zoo.arguments_of(zoo.row_of(name)["family"]), "mean", "std"}
    return {key: value for key, value in arguments.items() if key in known}


def expected(name: str, num_classes: int, arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a named network with ``arguments`` in place of its own; none if it cannot have them."""
    try:
        spec = zoo.spec(name, num_classes=num_classes, **arguments_for(name, arguments))
        return shapes(spec.family, json.dumps({"num_classes": num_classes} | spec.network, sort_keys=True))
    except UsageError as error:
        raise CheckpointError(str(error)) from error
    except ValueError:  # another depth than the blocks that the arguments name, flow with the statistics of RGB
        return {}


@functools.lru_cache(maxsize=128)
def shapes(family: str, network: str) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a network; many names, those of its clips, are the same one."""
    with torch.device("meta"):
        return zoo.shapes(zoo.BUILDERS[family](**json.loads(network)))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mismatches:
    """What keeps a state from being a network's; false when nothing does."""

    missing: tuple[str, ...]
    unused: tuple[str, ...]
    reshaped: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.missing) + len(self.unused) + len(self.reshaped)

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        parts = [("missing", self.missing), ("unused", self.unused), ("of another shape", self.reshaped)]
        return "; ".join(f"{len(keys)} {what}: {shown(keys)}" for what, keys in parts if keys)


def shown(keys: Sequence[str]) -> str:
    more = f", ... and {len(keys) - NUM_KEYS_SHOWN} more" if len(keys) > NUM_KEYS_SHOWN else ""
    return ", ".join(keys[:NUM_KEYS_SHOWN]) + more


def mismatches(expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> Mismatches:
    """Compare key -> shape of a network with a state; only ``num_batches_tracked`` may be absent."""
    return Mismatches(
        missing=tuple(key for key in expected if key not in state and not key.endswith(OPTIONAL)),
        unused=tuple(key for key in state if key not in expected),
        reshaped=tuple(
            f"{key} {list(state[key].shape)} instead of {list(shape)}"
            for key, shape in expected.items()
            if key in state and tuple(state[key].shape) != shape
        ),
    )
