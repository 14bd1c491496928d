"""A table of results as model zoos print it, with the published rows of the same networks, and which may be compared.

A published number stands beside ours when it is of the same network and data set; its row says what keeps the two
from being compared. What of a run is no number (speed, memory, where the checkpoint was) is read from the run.json that
python -m evalkit.run leaves beside the scores, how the checkpoint was trained from the training.json beside that.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import manifests
from datakit.errors import UsageError

from . import compare, metrics, published, scores
from .protocols import Protocol
from .scores import ScoreSet
from .signature import COPY, WHAT, fingerprinted

TITLES = {
    "configuration": "configuration", "dataset": "data set", "resolution": "resolution", "gpus": "GPUs",
    "backbone": "backbone", "input": "input", "pretraining": "pretraining", "omnisource": "OmniSource",
    "top1": "top-1", "top5": "top-5", "mean_class": "mean class", "protocol": "test protocol",
    "video_per_s": "video/s", "memory_mb": "memory (MB)", "gmacs": "multiply-adds (G)", "checkpoint": "checkpoint",
    "log": "log", "json": "json", "signature": "signature", "by": "measured by", "comparable": "comparable",
    "why": "why",
}  # fmt: skip
PRETRAINED = {"imagenet": "ImageNet", "kinetics": "Kinetics", "ig65m": "IG-65M", "sports1m": "Sports-1M"}
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "[": "{[}", "]": "{]}", "*": "{*}", '"': "''", "`": r"\textasciigrave{}",
    "×": r"$\times$", "–": "-", "→": r"$\to$", "…": r"\dots{}",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table, in words; "" where nothing is known. ``comparable``: "yes", "no" or "reference"."""

    configuration: str
    dataset: str
    resolution: str = ""
    gpus: str = ""
    backbone: str = ""
    input: str = ""
    pretraining: str = ""
    omnisource: str = ""
    top1: str = ""
    top5: str = ""
    mean_class: str = ""
    protocol: str = ""
    video_per_s: str = ""
    memory_mb: str = ""
    gmacs: str = ""
    checkpoint: str = ""
    log: str = ""
    json: str = ""
    signature: str = ""
    by: str = ""
    comparable: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run of ours: the folder, its scores, multiply-adds of a view where they are known."""

    path: Path
    scores: ScoreSet
    macs_per_view: float | None = None

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent


Macs = Callable[[str, Protocol], float | None]


def rows(runs: Sequence[Run], macs: Macs = lambda *_: None) -> list[Row]:
    """Ours in the order given, then the published ones of the same networks and data sets. ``macs``: multiply-adds of a
    video, of a network by its name under a protocol."""
    if not runs:
        raise UsageError("nothing to list; python -m evalkit table DIR... takes the folders of scores.npz files")
    found = [_ours(run, runs[0]) for run in runs]
    seen = set()
    counted: dict[str, float | None] = {}

    def once(network: str, protocol: Protocol) -> float | None:
        key = f"{network} {protocol}"
        if key not in counted:
            counted[key] = macs(network, protocol)
        return counted[key]

    for row in published.rows():
        beside = [run for run in runs if published.is_beside(row, run.scores)]
        if beside and row["file"] not in seen:
            seen.add(row["file"])
            found.append(_theirs(row, beside, once))
    return found


def markdown(table: Iterable[Row]) -> str:
    def line(cells: Iterable[str]) -> str:
        safe = (re.sub(r"([\\|<>*`\[\]])", r"\\\1", " ".join(cell.split())) or "–" for cell in cells)
        return f"| {' | '.join(safe)} |\n"

    body = "".join(line(asdict(row).values()) for row in table)
    return line(TITLES.values()) + "|" + " :-- |" * len(TITLES) + "\n" + body


def as_csv(table: Iterable[Row]) -> str:
    """With the names of the fields in front; empty where nothing is known."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in table)
    return text.getvalue()


def latex(table: Iterable[Row]) -> str:
    """A tabular that needs no package; letters that are not of Latin-1 become question marks."""

    def safe(cell: str) -> str:
        latin = (char if 31 < ord(char) < 127 or 160 < ord(char) < 256 or char in LATEX else "?" for char in cell)
        return "".join(LATEX.get(char, char) for char in latin).replace("--", "-{}-")

    def line(cells: Iterable[str]) -> str:
        return " & ".join(safe(" ".join(cell.split())) or "--" for cell in cells) + " \\\\\n"

    body = "".join(line(asdict(row).values()) for row in table)
    head = f"\\begin{{tabular}}{{{'l' * len(TITLES)}}}\n\\hline\n"
    return f"{head}{line(TITLES.values())}\\hline\n{body}\\hline\n\\end{{tabular}}\n"


FORMATS = {".md": markdown, ".csv": as_csv, ".tex": latex}


# --- ours ------------------------------------------------------------------------------------------------------------


def _ours(run: Run, first: Run) -> Row:
    found, signature = run.scores, run.scores.signature
    missing, rule = metrics.rules(found)
    numbers = metrics.summary(found, missing, rule)
    spec, protocol = found.meta.get("spec", {}), published.tested_with(found)
    file = str((spec.get("published") or {}).get("file", ""))
    differing = compare.differences(first.scores, found, (*WHAT, *COPY))
    reasons = [f"{part.key} is {part.b or 'not known'}, not {part.a or 'not known'}" for part in differing]
    if not reasons and not fingerprinted(signature.media):
        reasons = ["nobody hashed the files: whether they are the same copy is not known"]
    measured = _json(run.folder / "run.json")
    trained_in = Path(measured["checkpoint"]).parent if "checkpoint" in measured else run.folder.parent
    training, rate = _json(trained_in / "training.json"), measured.get("video_per_s")
    zoo = _zoo(file)
    num_views = None if protocol is None else protocol.num_clips * protocol.num_crops
    if found.views is not None:
        num_views = found.views.shape[1]
    return Row(
        configuration=spec.get("name") or signature.model or run.folder.name,
        dataset=signature.set,
        resolution=published.variant(found),
        gpus=_gpus(training.get("gpus"), training.get("batch")) or _gpus(zoo.get("gpus"), zoo.get("videos_per_gpu")),
        backbone=_backbone(spec.get("name", "") or signature.model, spec.get("network", {})),
        input=_input(signature.clip, signature.input, spec.get("num_segments")),
        pretraining=_first_weights(training) if training else _pretraining(file) if file else "",
        omnisource=("yes" if training["others"] else "no") if training else _omnisource(file) if file else "",
        top1=metrics.percent(numbers["top1"], numbers["top1_se"]).strip(),
        top5=metrics.percent(numbers["top5"], numbers["top5_se"]).strip(),
        mean_class=metrics.percent(numbers["mean_class"], numbers["mean_class_se"]).strip(),
        protocol=_views(protocol) if protocol else signature.views,
        video_per_s=f"{_number(rate)} (with decoding, {measured.get('device', '')})" if rate else "",
        memory_mb=f"{_number(measured['memory_mb'])} (testing)" if "memory_mb" in measured else "",
        gmacs=_number(run.macs_per_view * num_views / 1e9 if run.macs_per_view and num_views else None),
        checkpoint=file or measured.get("checkpoint", "") or signature.weights,
        log=_there(trained_in / "log.jsonl") or zoo.get("log", ""),
        json=_there(run.folder / "metrics.json"),
        signature=str(signature),
        by="us",
        comparable="reference" if run is first else "no" if reasons else "yes",
        why="the others are measured against it" if run is first else "; ".join(reasons) or "same clips and copy",
    )


def _there(path: Path) -> str:
    return str(path) if path.is_file() else ""


def _json(path: Path) -> dict[str, Any]:
    """What stands in a file that may be there; an empty one where it is not, or is no JSON of ours."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _first_weights(training: dict[str, Any]) -> str:
    """What our own training started from: nothing, or a file by its sha8, with its data set where it is published."""
    sha8 = str(training["weights"])
    row = next((row for row in published.rows() if sha8 and row["sha8"] == sha8), None)
    return f"{row['dataset']} ({sha8})" if row and "dataset" in row else sha8 or "None"


# --- theirs ----------------------------------------------------------------------------------------------------------


def _theirs(row: dict[str, Any], beside: Sequence[Run], macs: Macs) -> Row:
    config = row.get("config") or re.sub(r"(_\d{8})?(-[0-9a-f]{8})?\.\w+$", "", row["file"])
    network = manifests.read("models")["networks"].get(row["network"], {})
    protocol = published.protocol_of(row, network)
    reasons, run = min(
        ((published.reasons(row, protocol, run.scores), run) for run in beside), key=lambda pair: len(pair[0])
    )  # fmt: skip
    measured, zoo = _measured(row), _zoo(row["file"])
    video_macs = macs(row["network"], protocol) if protocol else None
    against = "" if len(beside) == 1 else f" (against {run.path})"
    return Row(
        configuration=config,
        dataset=str(row.get("dataset", "")),
        resolution=str(row.get("copy", "")),
        gpus=_gpus(zoo.get("gpus"), zoo.get("videos_per_gpu"))
        or ((match := re.search(r"(\d+)xb(\d+)", config)) and _gpus(int(match[1]), int(match[2])))
        or "",
        backbone=_backbone(row["network"], network.get("network", {})),
        input=_input(
            f"{network['clip_len']}x{network['frame_interval']}" if "clip_len" in network else "",
            network.get("input", ""),
            network.get("num_segments"),
        ),
        pretraining=_pretraining(row["file"]),
        omnisource=_omnisource(row["file"]),
        **{key: f"{row[key]:.2f}" for key in ("top1", "top5", "mean_class") if key in row},
        protocol=_views(protocol) if protocol else "",
        video_per_s=_number(measured.get("video_per_s")),
        memory_mb=_number(measured.get("memory_mb")),
        gmacs=_number(None if video_macs is None else video_macs / 1e9),
        checkpoint=row["file"],
        log=zoo.get("log", ""),
        json=zoo.get("json", ""),
        by=row.get("source", row["origin"]),
        comparable="no" if reasons else "yes",
        why=("; ".join(reasons) or f"same weights, clips, resolution and protocol; {published.UNCHECKED}") + against,
    )


@functools.cache
def _zoos() -> dict[str, Any]:
    return manifests.read("zoos")


def _zoo(file: str) -> dict[str, Any]:
    """What a model zoo says of a file besides its numbers; log and json as addresses."""
    zoos = _zoos()
    found = dict(zoos["files"].get(file, {}))
    return found | {key: zoos["base"] + found[key] for key in ("log", "json") if key in found}


def _gpus(num: int | None, num_clips: int | None) -> str:
    """``8 x 8 clips``, ``none`` for a training on CPUs, "" where it is not known."""
    if num is None:
        return ""
    return f"{num} x {num_clips} clips" if num and num_clips else str(num or "none")


def _measured(row: dict[str, Any]) -> dict[str, Any]:
    """What the authors of a file measured of its network, where that is known."""
    if not manifests.exists("speeds"):
        return {}
    program = row["origin"].partition("-")[0]
    blocks = [block for block in manifests.read("speeds")["measured"] if block["source"].startswith(f"{program},")]
    figures = [one for block in blocks for one in block["figures"] if one["network"] == row["network"]]
    return figures[0] if figures else {}


# --- in words --------------------------------------------------------------------------------------------------------


def _backbone(name: str, network: dict[str, Any]) -> str:
    depths = re.findall(r"_r(\d+)", name)
    if depths:
        return " + ".join(f"ResNet{depth}" for depth in depths)
    if "mobilenet" in name:
        return "MobileNetV2"
    return f"ResNet{network['depth']}" if "depth" in network else name


def _input(clip: str, kind: str, num_segments: int | None) -> str:
    size = f"{clip}x{num_segments}" if clip and num_segments else clip
    return f"{size} {kind}".strip()


def _pretraining(file: str) -> str:
    if told := _zoo(file).get("pretraining"):
        return str(told)
    match = re.search(r"([a-z0-9]+)[_-]pretrained", file)
    word = match[1] if match else "ig65m" if "ig65m" in file else ""
    if manifests.exists(f"datasets/{word}"):
        return str(manifests.read(f"datasets/{word}")["title"])
    return PRETRAINED.get(word, word or "None")


def _omnisource(file: str) -> str:
    return "yes" if "omni" in file and "without_omni" not in file else "no"


def _views(protocol: Protocol) -> str:
    crops = "centre crop" if protocol.num_crops == 1 else f"{protocol.num_crops} crops"
    clips = f"{protocol.num_clips} clip{'s' if protocol.num_clips > 1 else ''}"
    return f"{clips} x {crops} @{protocol.crop_px}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}".removesuffix(".0")


def load(dirs: Sequence[str | Path]) -> list[Run]:
    return [
        Run(path=Path(path), scores=(found := scores.load(path)), macs_per_view=found.meta.get("macs_per_view"))
        for path in dirs
    ]
