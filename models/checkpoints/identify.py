"""Which network a foreign file holds, and how that is known.

In this order: the name typed by the caller; the training config inside the file; the first 8 digits of its sha256 among
the published files; its file name. Keys and shapes tell depth and channels, never the clip: where they fit one network
only, it is assumed and said aloud, and where they fit several the file is refused with the names to choose from.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from datakit.errors import CheckpointError, UsageError

from .. import zoo
from . import config
from .files import File

log = logging.getLogger(__name__)
NUM_KEYS_SHOWN = 20
OPTIONAL = "num_batches_tracked"
CLIP = ("clip_len", "frame_interval", "num_segments")
# Short forms in file names -> the words of our networks' names.
WHOLE = {"eg": ("embedded", "gaussian"), "gauss": ("gaussian",), "dot": ("product",)}


def foreign_spec(
    path: Path,
    state: Mapping[str, Tensor],
    file: File,
    *,
    name: str | None,
    families: Sequence[str],
    arguments: Mapping[str, Any],
    digest: str,
    origin: tuple[str, str],
    theirs: Mapping[str, str],
) -> zoo.ModelSpec:
    """The spec of ``state``, which has our keys and belongs to a network of ``families``.

    ``arguments``: of the network, as far as their keys and shapes tell them and as their program always has them.
    ``origin``: (framework and version, how it was known). ``theirs``: our keys -> the keys in the file, for messages.
    """
    num_classes = state["head.weight"].shape[0] if "head.weight" in state else 0
    choices = [name] if name else [choice for choice in zoo.names() if zoo.row_of(choice)["family"] in families]
    wrong = {choice: mismatches(expected(choice, num_classes, arguments), state) for choice in choices}
    fitting = [choice for choice in choices if not wrong[choice]]
    if not fitting:
        nearest = min(choices, key=lambda choice: wrong[choice].count)
        unused = tuple(theirs.get(key, key) for key in wrong[nearest].unused)
        raise CheckpointError(f"{path}: does not fit {nearest}: {dataclasses.replace(wrong[nearest], unused=unused)}")
    try:
        facts = config.facts(file.config_text)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    rows = [row for row in zoo.table()["published"] if row["network"] in fitting]
    by_hash = next((row for row in rows if row["sha8"] == digest), None)
    by_name = next((row for row in rows if published_stem(row["file"]) in path.name), None)
    chosen, how = choose(path, fitting, facts, by_hash, by_name, typed=name is not None)
    known = dict.fromkeys(("name", "clip_len", "frame_interval"), how)
    known |= {"input": "keys", "num_classes": "keys", "origin": origin[1]}
    known |= dict.fromkeys(("mean", "std"), "the network's default")
    spec = zoo.spec(chosen, num_classes=num_classes, **arguments_for(chosen, arguments))
    spec = dataclasses.replace(spec, origin=origin[0], known=known, published=by_hash)
    row = by_hash or by_name
    if row and "protocol" in row:
        known["protocol"] = "sha8 of a published file" if by_hash else "file name of a published file"
        spec = dataclasses.replace(spec, protocol=row["protocol"])
    return with_facts(spec, facts) if how == "config in the file" else spec


def choose(
    path: Path,
    fitting: Sequence[str],
    facts: Mapping[str, Any],
    by_hash: Mapping[str, Any] | None,
    by_name: Mapping[str, Any] | None,
    *,
    typed: bool,
) -> tuple[str, str]:
    """(name, how it was known) among the networks whose keys and shapes fit; ``by_...``: rows of published files."""
    if typed:
        return fitting[0], "name="
    if "clip_len" in facts:
        return min(fitting, key=lambda name: num_differences(name, facts)), "config in the file"
    if by_hash:
        return by_hash["network"], "sha8 of a published file"
    if by_name:
        return by_name["network"], "file name of a published file"
    words = re.split(r"[^a-z0-9]+", path.name.lower())
    words += [whole for word in words for whole in WHOLE.get(word, ())]
    named = [name for name in fitting if all(in_words(part, words) for part in name.split("_"))]
    if named:
        return max(named, key=len), "file name"
    clips = re.findall(r"\d+x\d+", path.name)
    if len(fitting) == 1 and (not clips or any(clip in fitting[0] for clip in clips)):
        log.warning("%s: taken for %s, the only network known here that has such keys", path, fitting[0])
        return fitting[0], "assumed: the only network known here that has such keys"
    raise CheckpointError(
        f"{path}: its keys fit {', '.join(fitting)}, and neither the file nor its name says which. "
        f"Type one: models.load(..., name={fitting[0]!r}), --name {fitting[0]}"
    )


def in_words(part: str, words: Sequence[str]) -> bool:
    """Whether a part of a network's name stands in a file name: "4x16" also as "4x16x1", "r50" also as "resnet50"."""
    return any(word in (part, f"{part}x1", part.replace("r", "resnet", 1)) for word in words)


def published_stem(file: str) -> str:
    """A published file name without its hash and ending: what is left of it when somebody stripped the hash."""
    return re.sub(r"-[0-9a-f]{8}\.\w+$", "", file)


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
    changed = dataclasses.replace(spec, known=known, network=spec.network | told, **values)
    if all(getattr(changed, key) == getattr(spec, key) for key in CLIP):
        return changed
    return dataclasses.replace(changed, name=re.sub(r"\d+(x\d+)+", clip_text(changed), spec.name))


def clip_text(spec: zoo.ModelSpec) -> str:
    """``4x16``, or ``1x1x8`` with segments: the clip as it stands in a network's name."""
    segments = () if spec.num_segments is None else (spec.num_segments,)
    return "x".join(map(str, (spec.clip_len, spec.frame_interval, *segments)))


def arguments_for(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``arguments`` that the network of a name has."""
    known = zoo.arguments_of(zoo.row_of(name)["family"])
    return {key: value for key, value in arguments.items() if key in known}


def expected(name: str, num_classes: int, arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a named network with ``arguments`` in place of its own."""
    try:
        return zoo.shapes(zoo.hollow(zoo.spec(name, num_classes=num_classes, **arguments_for(name, arguments))))
    except UsageError as error:
        raise CheckpointError(str(error)) from error


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
