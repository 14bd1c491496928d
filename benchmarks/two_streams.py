"""A data set in the shape of GYM99 through both streams, made of short clips of real motion.

    python benchmarks/two_streams.py CLIPS [--out runs/two-streams] [--seeds 3] [--limit N] [--quick] [--json FILE]

CLIPS is a folder with ``labels.csv`` (path, label, split). Its clips are strung together to long videos with pauses, a
few clips to an event, and the official files are written as FineGym has them:

    video   |  pause | element | pause | element | pause |  pause | element | ...
            |        E_000001_000007                     |        E_000008_...
    ids       VIDEO_E_000001_000007_A_0000_0002 (whole seconds), times in a JSON as floats, labels as numbers

with a TOML that differs from that of GYM99 in its facts alone. From there on every step is a command that a user types:
prepare (which cuts the elements out of the videos), flow, train, test and fuse. Each seed has a network of each
stream, tested and fused in ``OUT/seed0``, ``OUT/seed1``...; numbers are means, and intervals allow for other seeds and
other videos. The flow of the validation clips is stored as video, too, and the networks that were trained on JPEG are
tested on both: what the video costs, without the chance of another training. The error of what is stored is measured
against the flow computed anew.

Run again, it goes on: every command does, and what is finished is left alone. The published rows stand beside the
numbers with the reason why they cannot be compared.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

import manifests
from datakit import files, flow, manifest, reader
from evalkit import groups, metrics, published, scores, seeds

CHECKOUT = Path(__file__).resolve().parents[1]
LIKE = "gym99"  # whose TOML is taken
NAME = "two-streams"
VARIANT = "256p"
FLOW = f"{VARIANT}-flow"
CLIPS_A_VIDEO, CLIPS_AN_EVENT = 6, 3
PAUSE_FRAMES = (20, 31, 17)  # between elements, in turn; an event begins and ends in the middle of a pause
NETWORKS = {"rgb": "slowonly_tiny", "flow": "slowonly_tiny_flow"}
PAIRS = (("rgb", "fused"), ("flow", "fused"), ("flow", "flow-video"), ("fused", "fused-video"))
ACCEPTED = (0, 5)  # 5: finished, some clips failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A clip to be strung. ``label``: its number."""

    path: Path
    label: int
    split: str


# ---- a data set in the shape of GYM99 ----


def read_sources(folder: Path, limit: int | None) -> tuple[list[str], dict[str, list[Source]]]:
    """(class names, the clips of each split in an order that mixes the classes); ``limit``: clips a class and split."""
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    classes = sorted({row["label"] for row in rows})
    of_class: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        of_class[row["split"], row["label"]].append(row)
    mixed: dict[str, list[tuple[float, int, Source]]] = defaultdict(list)
    for (split, label), members in of_class.items():
        number = classes.index(label)
        chosen = members[:limit]
        for rank, row in enumerate(chosen):
            source = Source(path=folder / row["path"], label=number, split=split)
            mixed[split].append((rank / len(chosen), number, source))
    return classes, {
        split: [source for *_, source in sorted(found, key=lambda entry: entry[:2])] for split, found in mixed.items()
    }


def string_together(sources: Sequence[Source], path: Path, video: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Write one long video; returns its events as FineGym's JSON has them, and label by element id.

    Times lie between two frames, so that rounding cannot move a cut to another frame.
    """
    events: dict[str, Any] = {}
    labels: dict[str, int] = {}
    spans: list[tuple[int, int]] = []
    with av.open(str(sources[0].path)) as container:
        first_stream = container.streams.video[0]
        fps = first_stream.average_rate or Fraction(25)
        size = first_stream.width, first_stream.height
    with files.replacing(path) as part, av.open(str(part), "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=fps, options={"crf": "12", "preset": "veryfast"})
        (stream.width, stream.height), stream.pix_fmt, stream.thread_count = size, "yuv420p", 1
        frame_number = 0
        for place, source in enumerate(sources):
            with av.open(str(source.path)) as container:
                pictures = [frame.reformat(*size, format="yuv420p") for frame in container.decode(video=0)]
            pause = pictures[:1] * PAUSE_FRAMES[place % len(PAUSE_FRAMES)]
            spans.append((frame_number + len(pause), frame_number + len(pause) + len(pictures)))
            for picture in [*pause, *pictures]:
                picture.pts, picture.time_base = frame_number, 1 / fps
                output.mux(stream.encode(picture))
                frame_number += 1
        output.mux(stream.encode())
    for first in range(0, len(spans), CLIPS_AN_EVENT):
        members = spans[first : first + CLIPS_AN_EVENT]
        event_s = ((members[0][0] - 5.5) / float(fps), (members[-1][1] + 4.5) / float(fps))
        event = f"E_{int(event_s[0]):06d}_{int(event_s[1]):06d}"
        segments = {}
        for offset, (begin, end) in enumerate(members):
            element_s = [(frame - 0.5) / float(fps) - event_s[0] for frame in (begin, end)]
            element = f"A_{int(element_s[0]):04d}_{int(element_s[1]):04d}"
            segments[element] = {"stages": 1, "timestamps": [element_s]}
            labels[f"{video}_{event}_{element}"] = sources[first + offset].label
        events[event] = {"event": 1, "timestamps": [list(event_s)], "segments": segments}
    return events, labels


def make_set(clips: Path, out: Path, limit: int | None) -> None:
    """``out/raw``: videos, lists and times; ``out/manifests``: the TOML of the data set. Made once."""
    if (out / "raw" / "made.json").is_file():
        return
    classes, splits = read_sources(clips, limit)
    raw, annotations = out / "raw", out / "raw" / "annotations"
    annotations.mkdir(parents=True, exist_ok=True)
    times: dict[str, Any] = {}
    of_element: dict[str, str] = {}
    for split, sources in splits.items():
        lines = []
        for number, first in enumerate(range(0, len(sources), CLIPS_A_VIDEO)):
            members = sources[first : first + CLIPS_A_VIDEO]
            video = f"{split:_<6.6}-{number:04d}"  # eleven characters, as on YouTube
            times[video], labels = string_together(members, raw / f"{video}.mp4", video)
            lines += [f"{element} {label}\n" for element, label in labels.items()]
            of_element |= {element: str(one.path) for element, one in zip(labels, members, strict=True)}
        files.write_text(annotations / f"{split}_element.txt", "".join(lines))
    files.write_text(annotations / "info.json", json.dumps(times, indent=1))
    write_toml(out / "manifests" / "datasets", classes, list(splits), f"{clips.name} in the shape of FineGym")
    files.write_text(raw / "made.json", json.dumps(of_element, indent=1))


def write_toml(folder: Path, classes: Sequence[str], splits: Sequence[str], title: str) -> None:
    like = manifests.read(f"datasets/{LIKE}")
    kept = {key: like[key] for key in ("annotation", "clip_names", "event_names", "video_names", "source_video")}
    facts = {
        "title": title,
        "licence": "that of the clips",
        "access": "nobody: it is made",
        "num_classes": len(classes),
        "classes": f"{NAME}.classes.txt",
        **kept,
        "variants": [VARIANT],
        "flow": [VARIANT],
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in facts.items()]
    lines += ["[layout]", f"class_folders = {json.dumps(like['layout']['class_folders'])}"]
    lines += ["[times]", 'files = ["info.json"]']
    for split in splits:
        lines += [f"[splits.{split}]", f'files = ["{split}_element.txt"]']
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / f"{NAME}.classes.txt", "".join(f"{name}\n" for name in classes))
    files.write_text(folder / f"{NAME}.toml", "\n".join(lines) + "\n")


# ---- the commands ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """``python -m`` with these arguments, unless ``result`` is there; ``name`` is that of its processor time."""

    name: str
    arguments: tuple[str, ...]
    result: Path | None = None


def stages(out: Path, how: argparse.Namespace) -> Iterator[Stage]:
    data = out / "data"
    jobs = ("--jobs", str(how.jobs))
    root = ("--data-root", str(data))
    yield Stage(
        name="prepare",
        arguments=("datakit", "prepare", NAME, "--raw", str(out / "raw"), "--variant", VARIANT, *root, *jobs),
    )
    yield Stage(name="flow jpeg", arguments=(*flow_command(how), *root, *jobs))
    if not how.quick:
        yield Stage(
            name="flow video",
            arguments=(
                *(*flow_command(how), "--container", "mp4", "--split", "val"),
                *("--data-root", str(out / "data-video"), *jobs),
            ),
        )
    for seed in range(how.seeds):
        yield from trained_and_tested(out, out / f"seed{seed}", seed, how)


def trained_and_tested(out: Path, results: Path, seed: int, how: argparse.Namespace) -> Iterator[Stage]:
    for stream, network, folder in streams(out):
        trained = results / "trained" / stream
        train = ("models.train", network, "--data", str(folder), "--out", str(trained), "--seed", str(seed))
        much = ("--recipe", how.recipe, *(("--epochs", str(how.epochs)) if how.epochs else ()))
        yield Stage(name=f"train {stream}", arguments=(*train, *much), result=trained / "ckpt.pth")
    for name, stream, folder in tests(out, how):
        checkpoint = results / "trained" / stream / "ckpt.pth"
        test = ("evalkit.run", str(checkpoint), "--mode", "accurate", "--data", str(folder), "--out")
        where = results / name
        yield Stage(name=f"test {name}", arguments=(*test, str(where)), result=where / "metrics.json")
    for name, _, _ in tests(out, how)[1:]:
        fused = results / name.replace("flow", "fused")
        both = [str(results / one / "scores.npz") for one in ("rgb", name)]
        fuse = ("evalkit", "fuse", *both, "--weights", "1:1", "--out", str(fused))
        yield Stage(name=fused.name, arguments=fuse, result=fused / "metrics.json")


def flow_command(how: argparse.Namespace) -> tuple[str, ...]:
    return ("datakit", "flow", NAME, "--variant", VARIANT, "--method", how.method, "--params", how.params)


def streams(out: Path) -> list[tuple[str, str, Path]]:
    """(stream, network, prepared variant) of each."""
    folder = out / "data" / NAME
    return [("rgb", NETWORKS["rgb"], folder / VARIANT), ("flow", NETWORKS["flow"], folder / FLOW)]


def tests(out: Path, how: argparse.Namespace) -> list[tuple[str, str, Path]]:
    """(name, which network, what it is tested on) of each."""
    found = [(stream, stream, folder) for stream, _, folder in streams(out)]
    return found if how.quick else [*found, ("flow-video", "flow", out / "data-video" / NAME / FLOW)]


def run(stage: Stage, environment: dict[str, str], seconds: dict[str, float]) -> None:
    """Run one command unless it is done; adds its processor time to ``seconds``."""
    if stage.result is not None and stage.result.is_file():
        return
    print(f"\n$ python -m {shlex.join(stage.arguments)}", flush=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = subprocess.run(
        [sys.executable, "-m", *stage.arguments], env=environment, cwd=CHECKOUT, check=False
    ).returncode
    if code not in ACCEPTED:
        sys.exit(f"{stage.name} ended with exit code {code}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds[stage.name] = round(seconds.get(stage.name, 0.0) + used, 1)


def second_set(out: Path) -> None:
    """The prepared RGB variant again, the videos as links: a set has one flow of a variant, and two are compared."""
    first, second = out / "data" / NAME, out / "data-video" / NAME
    if not second.is_dir():
        shutil.copytree(first, out / "copy.part", copy_function=link, ignore=shutil.ignore_patterns("*-flow", ".work"))
        second.parent.mkdir(parents=True, exist_ok=True)
        (out / "copy.part").rename(second)


def link(source: str, target: str) -> str:
    """A video as a link; what will be written to as a copy."""
    if source.endswith(".mp4"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)
    return target


# ---- what came out ----


def cut_shifts(out: Path, count: int) -> list[int]:
    """Of ``count`` moving clips: by how many frames the cut is off, from the pictures alone."""
    of_element = json.loads((out / "raw" / "made.json").read_text(encoding="utf-8"))
    clips = [clip for clip in manifest.read(out / "data" / NAME / VARIANT).clips if clip.path is not None]
    shifts = []
    for clip in clips[:: max(1, len(clips) // count)][:count]:
        assert clip.path is not None
        cut, source = (small(Path(path)) for path in (clip.path, of_element[clip.id]))
        if len(cut) != len(source) or np.abs(np.diff(source, axis=0)).mean() < 0.2:
            shifts += [len(cut) - len(source)] if len(cut) != len(source) else []
            continue
        middle = slice(3, len(source) - 3)
        errors = {shift: np.abs(cut[middle] - np.roll(source, shift, axis=0)[middle]).mean() for shift in range(-3, 4)}
        shifts.append(min(errors, key=lambda shift: errors[shift]))
    return shifts


def small(path: Path) -> Any:
    """float32 [n, 64, 80]: grey pictures."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(width=80, height=64, format="gray") for frame in container.decode(video=0)]
    return np.stack(frames).astype(np.float32)


def stored_errors(out: Path, how: argparse.Namespace, count: int) -> dict[str, Any]:
    """What JPEG and video make of the flow: against the bytes computed anew, of ``count`` clips."""
    bound = manifests.read("flow")["storage"]["bound_px"]
    estimate = flow.estimator(how.method, how.params, "cpu", None)
    rgb = manifest.read(out / "data" / NAME / VARIANT).split("val")
    stored = {
        name: manifest.read(out / root / NAME / FLOW) for name, root in (("jpeg", "data"), ("video", "data-video"))
    }
    kept = {name: {clip.id: clip.path for clip in table.clips} for name, table in stored.items()}
    distances: dict[str, list[Any]] = defaultdict(list)
    for clip in rgb[:: max(1, len(rgb) // count)][:count]:
        if clip.path is None or any(paths[clip.id] is None for paths in kept.values()):
            continue
        with reader.open(clip.path) as video:
            wanted = flow.quantised(estimate(video.frames(range(video.num_frames))), bound).astype(np.float32)
        for name, paths in kept.items():
            with reader.open(paths[clip.id] or "") as video:
                found = video.frames(range(video.num_frames)).astype(np.float32)
            levels = np.abs(found - wanted)
            distances[name].append((levels.mean(), np.linalg.norm(found - wanted, axis=-1) * 2 * bound / 255,
                                    np.abs(wanted - 128).max(axis=-1) >= 2))  # fmt: skip
    return {
        name: {
            "clips": len(parts),
            "mean_levels": float(np.mean([levels for levels, _, _ in parts])),
            "mean_px": float(np.mean([error.mean() for _, error, _ in parts])),
            "p95_px": float(np.percentile(np.concatenate([error.ravel() for _, error, _ in parts]), 95)),
            "moving_share": float(np.mean([moving.mean() for *_, moving in parts])),
            "moving_mean_px": float(np.concatenate([error[moving] for _, error, moving in parts]).mean()),
        }
        for name, parts in distances.items()
    }


def bytes_of(folder: Path) -> dict[str, Any]:
    """Bytes of the validation clips of a prepared variant, and how many files they are."""
    sizes = []
    for clip in manifest.read(folder).split("val"):
        if clip.path is not None:
            parts = [clip.path] if clip.path.is_file() else sorted(clip.path.iterdir())
            sizes += [part.stat().st_size for part in parts]
    return {"bytes": sum(sizes), "files": len(sizes)}


def right(folders: Sequence[Path]) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64] | None]:
    """Of one kind of result, a folder a seed: bool [seeds, clips] right or not, int64 [clips] labels, their videos.

    Clips in the order of their ids; one that was not scored is wrong.
    """
    results = [scores.load(folder) for folder in folders]
    table, label_of = [], dict[str, int]()
    for result in results:
        names, labels, ranks = metrics.outcomes(result)
        label_of |= dict(zip(names, labels.tolist(), strict=True))
        first = {name: rank == 0 for name, rank in zip(names, ranks.tolist(), strict=True)}
        table.append([first[name] for name in sorted(label_of)])
    ids = sorted(label_of)
    return np.array(table), np.array([label_of[name] for name in ids]), groups.units(ids, groups.of(results[0]))


def by_class(table: NDArray[np.bool_], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """The table so weighted that its mean is mean-class accuracy."""
    counts = np.bincount(labels)
    weights: NDArray[np.float64] = len(labels) / (np.count_nonzero(counts) * counts[labels])
    return table * weights


def numbers(folders: Sequence[Path]) -> dict[str, Any]:
    table, labels, units = right(folders)
    signature = json.loads((folders[0] / "metrics.json").read_text(encoding="utf-8"))["signature"]
    return {
        "clips": len(labels),
        "videos": None if units is None else int(units.max()) + 1,
        "signature": signature,
        "top1_by_seed": table.mean(axis=1).tolist(),
        "top1": asdict(seeds.mean(table, units)),
        "mean_class": asdict(seeds.mean(by_class(table, labels), units)),
    }


def compared(names: Sequence[str], folders: dict[str, list[Path]]) -> list[dict[str, Any]]:
    """Pairs of kinds of results: the difference in top-1, second less first, of the same networks.

    What they are made of is the same seed by seed, so the differences of each seed are what is drawn.
    """
    tables = {name: right(found)[0].astype(float) for name, found in folders.items()}
    pairs = [pair for pair in PAIRS if set(pair) <= set(names)]
    differences = {" ".join(pair): tables[pair[1]] - tables[pair[0]] for pair in pairs}
    nothing = {"": np.zeros_like(tables["rgb"])}
    units = right(folders["rgb"])[2]
    found = seeds.compare_all(nothing | differences, [("", name) for name in differences], units=units)
    return [asdict(one) | {"names": pair, "differs": one.differs} for one, pair in zip(found, pairs, strict=True)]


def lines_of(result: dict[str, Any]) -> list[str]:
    """The numbers beside the published rows."""
    rows = [("", "top-1", "95 %", "mean class", "95 %", "of each seed")]
    for name, one in result["scores"].items():
        cells = []
        for key in ("top1", "mean_class"):
            low, value, high = (100 * one[key][end] for end in ("low", "value", "high"))
            cells += [f"{value:.1f}", f"{low:.1f} to {high:.1f}"]
        rows.append((name, *cells, " ".join(f"{100 * value:.1f}" for value in one["top1_by_seed"])))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    rgb = result["scores"]["rgb"]
    lines.append(f"{rgb['clips']} clips of {rgb['videos']} videos")
    for one in result["compared"]:
        value, low, high, smallest = (
            100 * number for number in (*(one["difference"][key] for key in ("value", "low", "high")), one["smallest"])
        )
        verdict = "differ" if one["differs"] else "no more than chance"
        lines.append(
            f"{one['names'][1]} - {one['names'][0]}: {value:+.1f} ({low:.1f} to {high:.1f}), p {one['p_holm']:.2g} "
            f"of {one['num_comparisons']}: {verdict}; {smallest:.1f} would have been seen"
        )
    return [*lines, *(f"published, {name}: {said}" for name, said in result["published"].items())]


def published_rows() -> dict[str, str]:
    """The rows of both streams and their fusion, and why ours do not stand beside them."""
    found: dict[str, str] = {}
    for row in published.fusions():
        if row["dataset"].casefold() == LIKE:
            parts = zip(row["inputs"], row["parts"], strict=True)
            found |= {kind: published.said(part) for kind, part in parts} | {"fused 1:1": published.said(row)}
    why = "the clips are of another data set and the networks are small ones"
    return found | {"not comparable": why}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    top.add_argument("clips", type=Path, metavar="CLIPS")
    top.add_argument("--out", type=Path, default=Path("runs/two-streams"))
    top.add_argument("--limit", type=int, metavar="N", help="clips a class and split")
    top.add_argument("--seeds", type=int, default=1, metavar="N", help="networks of each stream")
    top.add_argument("--recipe", default="benchmark-tiny")
    top.add_argument("--epochs", type=int, help="instead of the recipe's")
    top.add_argument("--method", default="dis")
    top.add_argument("--params", default="medium")
    top.add_argument("--jobs", type=int, default=1)
    top.add_argument("--quick", action="store_true", help="without flow as video")
    top.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    return top


def main() -> None:
    how = parser().parse_args()
    out: Path = how.out.absolute()
    environment = {**os.environ, "MANIFESTS": str(out / "manifests"), "OMP_NUM_THREADS": str(how.jobs)}
    os.environ["MANIFESTS"] = environment["MANIFESTS"]
    make_set(how.clips.absolute(), out, how.limit)
    record = out / "seconds.json"
    seconds: dict[str, float] = json.loads(record.read_text()) if record.is_file() else {}
    for stage in stages(out, how):
        if stage.name == "flow video":
            second_set(out)
        run(stage, environment, seconds)
        files.write_text(record, json.dumps(seconds, indent=1))
    kinds = [name for name, _, _ in tests(out, how)]
    kinds += [name.replace("flow", "fused") for name in kinds[1:]]
    folders = {kind: [out / f"seed{seed}" / kind for seed in range(how.seeds)] for kind in kinds}
    result: dict[str, Any] = {
        "clips": str(how.clips.name),
        "flow": [how.method, how.params],
        "training": [how.recipe, how.epochs],
        "cpu_seconds": seconds,
        "published": published_rows(),
        "scores": {kind: numbers(found) for kind, found in folders.items()},
        "compared": compared(kinds, folders),
        "bytes": {name: bytes_of(folder) for name, _, folder in tests(out, how)},
        "cut_shifts": cut_shifts(out, 4 if how.quick else 40),
    }
    if not how.quick:
        result["stored"] = stored_errors(out, how, 40)
    text = json.dumps(result, indent=1)
    files.write_text(how.json or out / "two-streams.json", text + "\n")
    print("\n" + "\n".join(lines_of(result)))
    print(f"written {how.json or out / 'two-streams.json'}")


if __name__ == "__main__":
    main()
