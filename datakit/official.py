"""The lists that a data set's makers published, as clips. The manifest says which format and what to expect.

kinetics   CSV or JSON: label, video, start, end               (annotations.kinetics_csv, kinetics_json)
gym        lines ``VIDEO_E_start_end_A_start_end label``, times of events and elements in a second file
rows       lines ``id;label``, ``id frames number``, ``folder/file number``, ``folder/file`` or ``id``
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

from . import encode, fingerprint, labels
from .annotations import ClipSpec, Spelling, kinetics_csv, kinetics_json, safe_name, stem
from .catalog import Dataset, Split
from .errors import BadManifest

# The id of a YouTube video has eleven characters, "_" and "-" among them: only its length says where it ends.
_ELEMENT = re.compile(r"(?P<video>.{11})_(?P<event>E_\d{6}_\d{6})_(?P<element>A_\d{4}_\d{4})")

Seconds = tuple[float, float]


def read(path: Path, dataset: Dataset, split: Split, times: Path | None = None) -> list[ClipSpec]:
    """The clips of one list, sorted by id. ``times``: where the format keeps them in a file of its own.

    Raises ``BadManifest`` with file and line.
    """
    if dataset.annotation == "kinetics":
        kinetics = kinetics_json if path.suffix == ".json" else kinetics_csv
        specs = kinetics(path, split.name, dataset.classes)
    elif dataset.annotation == "gym":
        specs = gym(path, split.name, dataset.classes, times)
    elif dataset.annotation == "rows":
        specs = rows(path, split.name, dataset)
    else:
        raise BadManifest(
            f"datasets/{dataset.name}.toml: annotation = {dataset.annotation!r}; known: kinetics, gym, rows"
        )
    if not specs:
        raise BadManifest(f"{path} lists no clip of {split.name}")
    return specs


def say_differences(specs: list[ClipSpec], path: Path, split: Split) -> None:
    """Say aloud when a list is not the published one: official files have shrunk without a word before."""
    if split.rows and len(specs) != split.rows:
        print(f"note: {path} has {len(specs)} clips, the official list {split.rows}", file=sys.stderr)
    elif (
        split.list_id and (found := fingerprint.list_id((spec.id, spec.label or "") for spec in specs)) != split.list_id
    ):
        print(
            f"note: {path} has {len(specs)} clips like the official list, but not the same (list id {found}, official "
            f"{split.list_id})",
            file=sys.stderr,
        )
    if split.sha256 and path.name == split.files[0] and encode.sha256_file(path) != split.sha256:
        print(f"note: {path} is not byte for byte the file that was published", file=sys.stderr)


def gym(path: Path, split: str, classes: tuple[str, ...], times: Path | None) -> list[ClipSpec]:
    """Elements of FineGym: ``{id} {label number}`` a line, their seconds from ``times``.

    An element that its makers saw in several stages (a vault: three) is one clip, from the first start to the last end.
    Without ``times`` the clips have no seconds: they can be found as files, but not be cut.
    """
    seconds = gym_times(times) if times else {}
    found: dict[str, ClipSpec] = {}
    for line, text in _lines(path):
        words = text.split()
        match = _ELEMENT.fullmatch(words[0])
        if match is None or len(words) != 2 or not words[1].isdecimal() or int(words[1]) >= len(classes):
            raise BadManifest(f"{path}:{line}: VIDEO_E_start_end_A_start_end and a label below {len(classes)} expected")
        clip_s, event_s = seconds.get(match[0], (None, None))
        spec = ClipSpec(
            id=match[0],
            video=match["video"],
            split=split,
            label=classes[int(words[1])],
            start_s=clip_s and clip_s[0],
            end_s=clip_s and clip_s[1],
            event=f"{match['video']}_{match['event']}",
            event_s=event_s,
        )
        if found.setdefault(spec.id, spec) != spec:
            raise BadManifest(f"{path}:{line}: {spec.id} stands here twice with different labels")
    if times and (without := sum(spec.start_s is None for spec in found.values())):
        print(f"note: {times} has no times for {without} of the {len(found)} elements in {path}", file=sys.stderr)
    return sorted(found.values(), key=lambda spec: spec.id)


def gym_times(path: Path) -> dict[str, tuple[Seconds, Seconds]]:
    """(element's, event's) seconds of the video by element id, from FineGym's JSON or a CSV made from it.

    In the JSON an element counts from the start of its event, which its makers gave to 1/25 s; ids are rounded down.
    """
    try:
        if path.suffix == ".csv":
            return _gym_csv(path)
        found = {}
        for video, events in json.loads(path.read_text(encoding="utf-8")).items():
            for event_name, event in events.items():
                event_s = _outer(event["timestamps"])
                for name, element in (event["segments"] or {}).items():
                    start, end = _outer(element["timestamps"])
                    clip_s = (_seconds(event_s[0] + start), _seconds(event_s[0] + end))
                    found[f"{video}_{event_name}_{name}"] = (clip_s, event_s)
        return found
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise BadManifest(f"{path} holds no times of events and elements: {type(error).__name__}: {error}") from None


def _gym_csv(path: Path) -> dict[str, tuple[Seconds, Seconds]]:
    found = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            clip_s = (_seconds(float(row["Subaction_start"])), _seconds(float(row["Subaction_end"])))
            event_s = (_seconds(float(row["Event_start_time"])), _seconds(float(row["Event_end_time"])))
            found[row["full_id"]] = (clip_s, event_s)
    return found


def _outer(stages: list[list[float]]) -> Seconds:
    return float(stages[0][0]), float(stages[-1][1])


def _seconds(value: float) -> float:
    """Without the dust of binary sums: 2184.24 + 35.37 is 2219.61."""
    return round(value, 6)


def rows(path: Path, split: str, dataset: Dataset) -> list[ClipSpec]:
    """Plain rows: ``id;label name``, or words ``id [frames] number``, or the id (or path) alone.

    Numbers count as ``dataset.rows`` says. Where a row names its class twice (folder and number) both must agree.
    """
    spelling = Spelling(dataset.classes)
    by_number = labels.ordered(dataset.classes, dataset.rows.number_order, dataset)
    found: dict[str, ClipSpec] = {}
    for line, text in _lines(path):
        where = f"{path}:{line}"
        name, semicolon, label_text = text.partition(";")
        words = [name] if semicolon else text.split()
        said = []
        if semicolon and label_text.strip():
            said.append((label_text.strip(), spelling.find(label_text.strip())))
        if len(words) > 1:
            said.append((words[-1], _numbered(words[-1], by_number, dataset.rows.first_number)))
        if dataset.rows.folder_is_label and "/" in words[0]:
            folder = words[0].split("/")[-2]
            said.append((folder, spelling.find(folder)))
        for published, label in said:
            if label is None:
                raise BadManifest(
                    f"{where}: {published!r} is none of the {dataset.num_classes} classes of this data set"
                )
        if len({label for _, label in said}) > 1:
            raise BadManifest(f"{where}: {said[0][0]!r} and {said[1][0]!r} are different classes: another label order?")
        clip_id = safe_name(stem(words[0].split("/")[-1].strip()))
        spec = ClipSpec(id=clip_id, video=clip_id, split=split, label=said[0][1] if said else None)
        if found.setdefault(clip_id, spec) != spec:
            raise BadManifest(f"{where}: {clip_id} stands here twice with different labels")
    return sorted(found.values(), key=lambda spec: spec.id)


def _numbered(word: str, classes: tuple[str, ...], first: int) -> str | None:
    if not word.isdecimal() or not first <= int(word) < first + len(classes):
        return None
    return classes[int(word) - first]


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise BadManifest(f"{path} is not a list in UTF-8: {error}") from None
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
