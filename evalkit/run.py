"""python -m evalkit.run: a checkpoint and a set of videos in, numbers with their signature out."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path

SUITE = Path(__file__).resolve().parents[1]


def hidden_by() -> str | None:
    """What in the current folder hides a package of the suite, with what to do; ``None`` when nothing does.

    ``python -m`` looks into the current folder first, and ``models`` is a common name.
    """
    for name in ("datakit", "manifests", "models"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or Path(spec.origin).resolve().parent != SUITE / name:
            found = Path(spec.origin) if spec and spec.origin else None
            if found is None:
                return f"the suite's package {name!r} is missing from {SUITE}; install the suite again: make setup"
            own = found.parent if found.name == "__init__.py" else found
            return (
                f"{own} hides the suite's {name!r}, which is {SUITE / name}: python -m looks into the current folder "
                f"first. Run from another folder, or type: python -P -m evalkit.run {shlex.join(sys.argv[1:])}"
            )
    return None


if __name__ == "__main__" and (complaint := hidden_by()):  # before the first import that could be the wrong one
    print(f"UsageError: {complaint}", file=sys.stderr)
    sys.exit(2)

import argparse  # noqa: E402
import dataclasses  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402
from contextlib import closing  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

from datakit import console, files  # noqa: E402
from datakit.errors import EXIT_DONE, EXIT_SOME_FAILED, DataError, UsageError  # noqa: E402

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from datakit.manifest import Clip, Manifest
    from models import ModelSpec, Recognizer

    from .infer import Outcome
    from .partial import Partial, Scored
    from .protocols import Protocol
    from .ranks import Ranks
    from .scores import ScoreSet

RUN_FILE = "run.json"
SHOWN = 10  # missing clips, class names: the first few say what is wrong
ESTIMATE_AFTER_S = 3.0
LONG_S = 3600.0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m evalkit.run",
        description="Test a checkpoint on a set of videos under a named protocol. Without --data or --list it takes "
        "the prepared set that fits. Run the same command again to go on after an interruption. Under torchrun "
        "(torchrun --nproc-per-node 4 -m evalkit.run ...) each process takes its share of the clips.",
    )
    top.add_argument("checkpoint", type=Path, metavar="CKPT", help="a checkpoint of ours or of mmaction2")
    top.add_argument("--mode", required=True, choices=("efficient", "accurate"), help="the protocol's row to test with")
    data = top.add_argument_group("data")
    data.add_argument("--data", type=Path, metavar="DIR", help="a prepared variant, such as data/k400/320p")
    data.add_argument("--list", type=Path, metavar="FILE", help="somebody else's list, lines of 'path label'")
    data.add_argument("--root", type=Path, metavar="DIR", help="the folder that the paths of --list start from")
    data.add_argument("--classes", type=Path, metavar="FILE", help="class names for --list, one a line in label order")
    data.add_argument("--split", default="val", help="split of a prepared set (default: val)")
    data.add_argument(
        "--data-root", type=Path, default=Path("data"), metavar="DIR", help="where prepared sets live (default: data)"
    )
    data.add_argument("--limit", type=int, metavar="N", help="only N of the clips that are there, spread over the list")
    data.add_argument(
        "--missing", choices=("wrong", "drop", "fail"), default="wrong",
        help="clips that cannot be scored count as wrong (default), are left out, or end the run",
    )  # fmt: skip
    how = top.add_argument_group("protocol and network")
    how.add_argument(
        "--protocol", metavar="ROW", help="a row of python -m evalkit protocols, in place of the network's"
    )
    how.add_argument("--views", metavar="5x1@224", help="clips x crops @ crop side, in place of the protocol's")
    how.add_argument("--sampling", metavar="RULE", help="mmaction2-0.x, mmaction2-1.x, ... in place of the protocol's")
    how.add_argument("--name", metavar="MODEL", help="which network it is, for a file that does not say")
    how.add_argument("--trust-checkpoint", action="store_true", help="let a pickled checkpoint run its code")
    work = top.add_argument_group("work")
    work.add_argument("--out", type=Path, metavar="DIR", help="default: runs/CKPT-SET-VARIANT-MODE")
    work.add_argument("--save-views", action="store_true", help="keep the scores of the single views, too")
    work.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    work.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32")
    work.add_argument("--compile", action="store_true", help="run the network through torch.compile")
    work.add_argument(
        "--batch-views", default="auto", metavar="N", help="views a batch (default: auto, what the memory holds)"
    )
    work.add_argument(
        "--workers", type=int, metavar="N", help="processes that decode, 0: none (default: 1 on a CPU, else one a core)"
    )
    work.add_argument(
        "--decoder", choices=("pyav", "torchcodec"), default="pyav",
        help="torchcodec where it is installed and shows the same pixels (default: pyav)",
    )  # fmt: skip
    work.add_argument(
        "--deterministic", action="store_true",
        help="equal to the bit whatever else is scored or killed; on a CPU with one thread a process (torchrun: many)",
    )  # fmt: skip
    work.add_argument(
        "--stop-when-decided", action="store_true",
        help="leave out views that cannot change top-1 and top-5 any more: the same numbers from partial scores",
    )  # fmt: skip
    work.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return top


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What is scored. ``classes``: its class names in the order of the network's outputs; ``labels``: id -> index."""

    manifest: Manifest
    clips: Sequence[Clip]
    classes: tuple[str, ...]
    labels: dict[str, int]
    set: str
    media: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A test: what was typed, and what was made of it."""

    args: argparse.Namespace
    net: Recognizer
    protocol: Protocol
    data: Data
    device: torch.device
    out: Path
    ranks: Ranks


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    check(args)
    import models

    from .ranks import joined

    with joined() as ranks:
        device = choose_device(args, ranks)
        net = models.load(args.checkpoint, name=args.name, trust=args.trust_checkpoint)
        protocol = choose_protocol(args, net.spec)
        data = choose_data(args, net.spec, protocol)
        out = args.out or default_out(args, protocol, data.manifest)
        job = Job(args=args, net=net, protocol=protocol, data=data, device=device, out=out, ranks=ranks)
        score_set = score(job)
    if score_set is None:
        return EXIT_DONE  # the first process has all results
    report(job, score_set)
    # torchrun takes any other code for a crash of its processes; what is missing was said.
    return EXIT_SOME_FAILED if score_set.missing and ranks.size == 1 else EXIT_DONE


def check(args: argparse.Namespace) -> None:
    """Raise ``UsageError`` for what is not there, contradicts itself or has no sense."""
    if not args.checkpoint.is_file():
        problem = "is a folder" if args.checkpoint.is_dir() else "is not there"
        raise UsageError(f"{args.checkpoint} {problem}; type the path of a checkpoint file")
    if args.data and args.list:
        raise UsageError("--data is a prepared set, --list somebody else's list; type one of them")
    if args.list and not args.root:
        raise UsageError(f"where do the paths of {args.list} start? type --list {args.list} --root DIR")
    if not args.list and (args.root or args.classes):
        raise UsageError("--root and --classes go with a list; type --list FILE --root DIR")
    for name, least in (("limit", 1), ("workers", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UsageError(f"--{name} {value}: type a number of at least {least}")
    if args.stop_when_decided and args.save_views:
        raise UsageError("--stop-when-decided leaves views out, --save-views keeps them all; type one of them")
    if args.batch_views != "auto" and not (args.batch_views.isdecimal() and int(args.batch_views) > 0):
        raise UsageError(f"--batch-views {args.batch_views}: type --batch-views auto or a number of at least 1")


def choose_protocol(args: argparse.Namespace, spec: ModelSpec) -> Protocol:
    from . import protocols
    from .aggregate import may_stop_early

    protocol = protocols.as_typed(protocols.for_network(spec, args.mode, args.protocol), args.views, args.sampling)
    if args.stop_when_decided and not may_stop_early(protocol):
        raise DataError(
            f"--stop-when-decided: under {protocol.aggregation} a single view can move a score by any amount, so "
            "nothing is certain before the last one; leave it out"
        )
    return protocol


# --- the data --------------------------------------------------------------------------------------------------------


def choose_data(args: argparse.Namespace, spec: ModelSpec, protocol: Protocol) -> Data:
    """The clips, with labels as the network counts them. Raises ``UsageError``, ``DataError``."""
    from datakit import manifest

    if args.list:
        table = manifest.from_list(args.list, args.root, args.classes)
        clips: Sequence[Clip] = table.clips
        name = table.name
        if all(clip.path is None for clip in clips):
            raise UsageError(
                f"none of the {len(clips)} files of {args.list} is there ({clips[0].reason}); type --root DIR, the "
                "folder that its paths start from"
            )
    else:
        folder = args.data or find_prepared(args, spec, protocol)
        if variants := [] if (folder / "manifest.parquet").is_file() else sorted(folder.glob("*/manifest.parquet")):
            choices = "".join(f"\n  --data {path.parent}" for path in variants)
            raise UsageError(f"{folder} is a set, not one of its variants. Type one of{choices}")
        table = manifest.read(folder)
        if manifest.is_flow(folder) and spec.input != "flow":
            raise UsageError(f"{folder} holds optical flow, {args.checkpoint} looks at frames; type --data with those")
        clips = table.split(args.split)
        name = f"{table.name}-{args.split}"
    where = args.list or args.data or folder
    classes, place = network_order(table.classes, spec, named=not args.list or bool(args.classes), where=str(where))
    if args.limit is not None:
        clips = [clip for clip in clips if clip.path is not None] or clips  # a trial is of what is there
        step = max(1.0, len(clips) / args.limit)
        clips = [clips[int(number * step)] for number in range(min(args.limit, len(clips)))]
    return Data(
        manifest=table,
        clips=clips,
        classes=classes,
        labels={clip.id: place[clip.label_index] if clip.label_index >= 0 else -1 for clip in clips},
        set=name,
        media=f"{table.variant}-{table.media_id(clips)}",
    )


def network_order(
    classes: Sequence[str], spec: ModelSpec, *, named: bool, where: str
) -> tuple[tuple[str, ...], list[int]]:
    """(class names in the order of the network's outputs, data's label index -> network's output).

    Names are compared as class folders are written (spaces and underscores are the same). ``named``: the data names its
    classes; without that, and when the network names none, label numbers are taken at their word. Outputs beyond the
    data's classes stay in as "unused N": published networks have them, their numbers were made with the largest of all
    outputs, and leaving them out would make better ones.
    Raises ``DataError`` when the classes are not the same.
    """
    if not named:
        if len(classes) > spec.num_classes:
            by_one = len(classes) == spec.num_classes + 1
            raise DataError(
                f"{where} has labels up to {len(classes) - 1}, the checkpoint has {spec.num_classes} classes, 0 to "
                f"{spec.num_classes - 1}: "
                + ("does it count from 1? Labels count from 0" if by_one else "this list is of another set")
            )
        return spec.classes or tuple(map(str, range(spec.num_classes))), list(range(len(classes)))
    if spec.classes is None and len(classes) < spec.num_classes:
        note(
            f"{where} has {len(classes)} classes, the checkpoint {spec.num_classes} outputs and no names for them: the "
            f"first {len(classes)} are taken for the classes in their order, the others are 'unused N' and wrong "
            "wherever they are highest"
        )
        unused = (f"unused {number}" for number in range(len(classes), spec.num_classes))
        return (*classes, *unused), list(range(len(classes)))
    if difference := class_difference(classes, spec):
        raise DataError(f"{where} and the checkpoint have different classes: {difference}")
    if spec.classes is None:
        return tuple(classes), list(range(len(classes)))
    output = {folded(name): number for number, name in enumerate(spec.classes)}
    place = [output[folded(name)] for name in classes]
    if place != sorted(place):
        note(f"{where} lists its classes in another order than the checkpoint; joined by name")
    names = dict(zip(place, classes, strict=True))
    return tuple(names[number] for number in range(len(classes))), place


def class_difference(classes: Sequence[str], spec: ModelSpec) -> str:
    """In words, why these are not the classes of the network; "" when they are."""
    if len(classes) != spec.num_classes:
        return f"{len(classes)} classes, not {spec.num_classes}"
    if spec.classes is None:
        return ""
    theirs, ours = {folded(name): name for name in classes}, {folded(name): name for name in spec.classes}
    alone, lacking = sorted(theirs.keys() - ours.keys()), sorted(ours.keys() - theirs.keys())
    if not alone and not lacking:
        return ""
    return f"{few([theirs[name] for name in alone])} in place of {few([ours[name] for name in lacking])}"


def folded(name: str) -> str:
    from datakit.annotations import safe_name

    return safe_name(name).casefold()


def few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def find_prepared(args: argparse.Namespace, spec: ModelSpec, protocol: Protocol) -> Path:
    """The prepared variant below ``--data-root`` that has the checkpoint's classes, the split and the protocol's size.

    Raises ``UsageError`` that says what was looked for, what is there and what to type.
    """
    wanted = f"{spec.num_classes} classes" + (f" ({few(spec.classes)})" if spec.classes else "")
    looked = f"{args.checkpoint} has {wanted}; looked in {args.data_root.absolute()} for a prepared set with them"
    fitting: list[tuple[Path, dict[str, Any]]] = []
    others: list[str] = []
    for lock_file in sorted(args.data_root.glob("*/*/manifest.lock")):
        try:
            lock = json.loads(lock_file.read_text(encoding="utf-8"))
            classes = (lock_file.parent / "lists" / "classes.txt").read_text(encoding="utf-8").splitlines()
            splits, definition = sorted(lock["splits"]), lock["definition"]
        except (OSError, ValueError, KeyError) as error:
            others.append(f"{lock_file.parent}: not whole ({error})")
            continue
        own = (spec.published or {}).get("dataset", "").casefold() == lock_file.parts[-3].casefold()
        fewer = spec.classes is None and len(classes) < spec.num_classes
        if not (own and fewer) and (difference := class_difference(classes, spec)):
            others.append(f"{lock_file.parent}: {difference}")
        elif ("flow_of" in definition) != (spec.input == "flow"):
            held, wanted_kind = ("flow", "frames") if "flow_of" in definition else ("frames", "flow")
            others.append(f"{lock_file.parent}: {held}, the network looks at {wanted_kind}")
        elif args.split not in splits:
            others.append(f"{lock_file.parent}: no split {args.split}, only {', '.join(splits)}")
        else:
            fitting.append((lock_file.parent, definition))
    if not fitting:
        there = "".join(f"\n  {line}" for line in others) or " There is none at all."
        raise UsageError(
            f"{looked} and split {args.split}.{there}\nType --data DIR, or --list FILE --root DIR, or prepare it: "
            "python -m datakit prepare NAME --raw DIR --variant 256p"
        )
    if len(fitting) > 1 and len({folder.parent for folder, _ in fitting}) == 1:
        fitting = [(folder, made) for folder, made in fitting if has_size(made, protocol)] or fitting
    if len(fitting) > 1:
        choices = "".join(f"\n  --data {folder}" for folder, _ in fitting)
        raise UsageError(f"{looked}: several fit. Type one of{choices}")
    note(f"{looked}; taking {fitting[0][0]}")
    return fitting[0][0]


def has_size(definition: dict[str, Any], protocol: Protocol) -> bool:
    """Whether a variant was made with just the size that the protocol resizes to."""
    if protocol.resize_px is not None:
        return (definition.get("width_px"), definition.get("height_px")) == protocol.resize_px
    return bool(definition.get("short_side_px") == protocol.short_side_px)


def default_out(args: argparse.Namespace, protocol: Protocol, table: Manifest) -> Path:
    """runs/CKPT-SET-VARIANT-MODE; whatever else was typed that moves the numbers is in the name, too."""
    parts = [args.checkpoint.stem, table.name, table.variant if not args.list else "", protocol.mode]
    parts += [args.split if args.split != "val" else "", args.protocol, args.sampling]
    parts += [args.dtype if args.dtype != "fp32" else ""]
    parts += [f"limit{args.limit}" if args.limit else "", "decided" if args.stop_when_decided else ""]
    return Path("runs", "-".join(part for part in parts if part))


# --- scoring ---------------------------------------------------------------------------------------------------------


def score(job: Job) -> ScoreSet | None:
    """Score what an earlier run of the same kind has not, and write ``out/scores.npz`` and ``out/metrics.json``.

    Of several processes each scores its share; the first one writes, the others return ``None``.
    """
    from . import decode
    from .partial import Partial, run_key

    clips, ranks, out = job.data.clips, job.ranks, job.out
    if job.args.decoder == "torchcodec":
        decode.check_torchcodec(clips)
    key = run_key(facts(job))
    stamps = {clip.id: stamp(clip) for clip in clips}
    if ranks.rank:
        asked = set(ranks.told(None))  # after the first one has cleared the folder
        with closing(Partial(out, key, ranks.rank)) as partial:
            share = ranks.share([clip for clip in clips if clip.id in asked])
            reasons = score_share(job, share, stamps, partial)
        ranks.collected(reasons)
        return None
    with closing(Partial(out, key)) as partial:
        for stale in out.glob("*.*.part"):
            stale.unlink()  # of a run that was killed while it wrote; the lock says that no other is writing
        partial.absorb()
        done = partial.load(stamps, len(job.data.classes))
        left = [clip for clip in clips if clip.id not in done]
        announce(job, num_done=len(done))
        began, num_before = time.monotonic(), len(done)
        ranks.told([clip.id for clip in left])
        reasons = score_share(job, ranks.share(left), stamps, partial)
        for others in ranks.collected(reasons):
            reasons |= others
        seconds = time.monotonic() - began
        partial.absorb()
        done = partial.load(stamps, len(job.data.classes))
        if not done:
            first = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3])
            flow = "; python -m datakit flow makes what this network looks at" if job.net.spec.input == "flow" else ""
            raise DataError(f"none of the {len(clips)} clips could be scored ({first}){flow}")
        if len(done) > num_before or not (out / RUN_FILE).exists():  # else the run before measured it
            text = json.dumps(measured(job, len(done) - num_before, seconds), indent=1)
            files.write_text(out / RUN_FILE, f"{text}\n")
        score_set = collect(job, done, reasons)
        write(job, score_set)
        partial.finish()
    return score_set


def choose_device(args: argparse.Namespace, ranks: Ranks) -> torch.device:
    import torch

    name = args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{ranks.local}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {args.device}: type auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {args.device}: torch {torch.__version__} finds no GPU; type --device cpu")
    if device.type == "cuda" and (count := torch.cuda.device_count()) <= (device.index or 0):
        raise UsageError(
            f"--device {device}: GPUs here are cuda:0 to cuda:{count - 1}; start {count} processes at most"
        )
    return device


def score_share(job: Job, clips: Sequence[Clip], stamps: dict[str, str], partial: Partial) -> dict[str, str]:
    """Score these clips into ``partial``; returns the reasons of those that could not be, by id."""
    import numpy as np

    from . import infer
    from .partial import Scored

    args, ranks = job.args, job.ranks
    workers = args.workers
    if workers is None and ranks.local_size > 1 and job.device.type != "cpu":
        workers = max(1, (os.cpu_count() or 1) // ranks.local_size)  # the cores are for all of them
    reasons: dict[str, str] = {}
    outcomes = infer.score(
        clips,
        job.net.to(job.device),
        job.protocol,
        device=job.device,
        dtype=args.dtype,
        batch_views=args.batch_views if args.batch_views == "auto" else int(args.batch_views),
        workers=workers,
        decoder=args.decoder,
        deterministic=args.deterministic,
        keep_views=args.save_views,
        compile=args.compile,
        stop_when_decided=args.stop_when_decided,
        labels=job.data.labels,
    )
    with closing(outcomes):  # its workers end with it
        for outcome in shown(outcomes, len(clips), reasons):
            if outcome.scores is None:
                reasons[outcome.id] = outcome.reason or "unknown"
                if args.missing == "fail":
                    raise DataError(f"{outcome.id}: {outcome.reason}; --missing wrong goes on without it")
                continue
            scored = Scored(
                scores=outcome.scores,
                views=None if outcome.views is None else outcome.views.astype(np.float16),
                num_views=outcome.num_views,
                num_planned=outcome.num_planned,
            )
            partial.add(outcome.id, stamps[outcome.id], scored)
    return reasons


def write(job: Job, score_set: ScoreSet) -> None:
    from . import metrics, scores
    from . import published as theirs

    score_set.save(job.out / scores.FILE_NAME)
    document = metrics.document(score_set, *metrics.rules(score_set))
    document |= {"protocol": dataclasses.asdict(job.protocol), "published": job.net.spec.published}
    document["beside"] = [one.to_dict() for one in theirs.beside(score_set)]
    if score_set.meta.get("partial"):
        document |= {key: score_set.meta[key] for key in ("partial", "views_saved")}
    files.write_text(job.out / "metrics.json", json.dumps(document, indent=1, allow_nan=False) + "\n")


def measured(job: Job, num_clips: int, seconds: float) -> dict[str, Any]:
    """What a table says of a run and no number depends on: ``video_per_s`` with decoding, ``memory_mb`` of the first
    process (of its GPU, where there is one), and where the checkpoint was."""
    import resource

    import torch

    if job.device.type == "cuda":
        name, peak = torch.cuda.get_device_name(job.device), torch.cuda.max_memory_allocated(job.device)
    else:
        name, peak = job.device.type, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "video_per_s": round(num_clips / seconds, 3) if num_clips else None,
        "memory_mb": round(peak / 2**20),
        "device": f"{job.ranks.size} x {name}",
        "checkpoint": str(job.args.checkpoint.absolute()),
    }


def facts(job: Job) -> dict[str, Any]:
    """Everything that a clip's scores depend on, but for its file."""
    import av
    import torch

    from datakit import __version__

    args, data = job.args, job.data
    return {
        "spec": job.net.spec.to_dict(),
        "protocol": dataclasses.asdict(job.protocol),
        "set": data.set,
        "classes": data.classes,
        "device": job.device.type,
        "dtype": args.dtype,
        "deterministic": args.deterministic,
        "batch_views": args.batch_views if args.deterministic else "",
        "views": args.save_views,
        "compile": args.compile,
        "decoder": args.decoder,
        "decided": data.labels if args.stop_when_decided else None,  # a label says how many views it takes
        "versions": [__version__, av.__version__, torch.__version__],
    }


def stamp(clip: Clip) -> str:
    """Changes when the clip's file does: its recorded hash, else size and time."""
    if clip.sha256 is not None:
        return clip.sha256
    try:
        stat = clip.path.stat() if clip.path else None
    except OSError:
        stat = None
    return f"{stat.st_size} {stat.st_mtime_ns}" if stat else ""


def collect(job: Job, done: dict[str, Scored], reasons: dict[str, str]) -> ScoreSet:
    """Rows in the order of the clips, so that a run with interruptions writes what one without does."""
    import numpy as np

    from datakit import __version__

    from .aggregate import views_hold
    from .scores import ScoreSet
    from .signature import Signature

    args, spec, protocol, data = job.args, job.net.spec, job.protocol, job.data
    scored = [clip for clip in data.clips if clip.id in done]
    size = protocol.short_side_px or "x".join(map(str, protocol.resize_px or ()))
    signature = Signature(
        set=data.set,
        labels=data.manifest.name,
        model=spec.name,
        clip=f"{spec.clip_len}x{spec.frame_interval}",
        views=protocol.views,
        sampling=",".join([protocol.sampling, *map(option, sorted(protocol.options.items()))]),
        resize=f"{size}-cv2",
        input=spec.input,
        agg=protocol.aggregation + ("-until-decided" if args.stop_when_decided else ""),
        missing="drop" if args.missing == "drop" else "wrong",
        weights=spec.weights,
        media=data.manifest.variant,
        dec=decoder(args.decoder, scored),
        dtype=args.dtype,
        kit=__version__,
    )
    missing = [
        {
            "id": clip.id,
            "label": data.classes[data.labels[clip.id]] if data.labels[clip.id] >= 0 else None,
            "reason": reasons[clip.id],
        }
        for clip in data.clips
        if clip.id not in done
    ]
    meta: dict[str, Any] = {"protocol": dataclasses.asdict(protocol), "spec": spec.to_dict()}
    if args.save_views:
        meta["views_hold"] = views_hold(protocol.aggregation)
    if args.stop_when_decided:
        looked, planned = (sum(getattr(one, field) for one in done.values()) for field in ("num_views", "num_planned"))
        meta |= {"partial": True, "views_saved": 1 - looked / planned}
    return ScoreSet(
        ids=[clip.id for clip in scored],
        labels=np.array([data.labels[clip.id] for clip in scored], dtype=np.int64),
        scores=np.stack([done[clip.id].scores for clip in scored]),
        views=stacked([done[clip.id].views for clip in scored]) if args.save_views else None,
        files=hashes(scored),
        classes=data.classes,
        kind="prob",
        signature=signature,
        missing=missing,
        meta=meta,
    )


def hashes(clips: Sequence[Clip]) -> list[str]:
    """The sha256 of each clip's file as it lies there now, whatever a manifest says of it."""
    from concurrent.futures import ThreadPoolExecutor

    from datakit import fingerprint

    paths = [clip.path for clip in clips if clip.path is not None]  # what was scored has one
    try:
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            return list(pool.map(fingerprint.sha256_of, paths))
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror} after it was scored; run the same command again") from None


def option(item: tuple[str, Any]) -> str:
    """``twice_sample`` of a switch that is on, ``sampler=dense`` of anything else."""
    key, value = item
    return key if value is True else f"{key}={value}"


def decoder(name: str, clips: Sequence[Clip]) -> str:
    """What read the files: ``pyav-18.1.0``, or ``pillow-12.0.0`` for folders of pictures."""
    if clips[0].path is not None and clips[0].path.is_dir():
        import PIL

        return f"pillow-{PIL.__version__}"
    if name == "torchcodec":
        import torchcodec

        return f"torchcodec-{torchcodec.__version__}"
    import av

    return f"pyav-{av.__version__}"


def stacked(views: Sequence[NDArray[np.float16] | None]) -> NDArray[np.float16]:
    """[N, V, C]; a clip of fewer views than another (a rule may find fewer in a short video) is filled up with NaN."""
    import numpy as np

    there = [one for one in views if one is not None]
    most = max(len(one) for one in there)
    filled = [np.pad(one, ((0, most - len(one)), (0, 0)), constant_values=np.nan) for one in there]
    return np.stack(filled)


# --- what is said ----------------------------------------------------------------------------------------------------


def note(text: str) -> None:
    """One line on stderr; of several processes the first one speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {text}", file=sys.stderr)


def shown(outcomes: Iterator[Outcome], total: int, reasons: dict[str, str]) -> Iterator[Outcome]:
    """Pass outcomes on and say how far they are; of several processes the first one speaks."""
    if os.environ.get("RANK", "0") != "0":
        return outcomes
    return console.progress(
        estimated(outcomes, total),
        total=total,
        what="score",
        note=lambda: f"({len(reasons)} missing)" if reasons else "",
    )


def announce(job: Job, num_done: int) -> None:
    spec, protocol, data = job.net.spec, job.protocol, job.data
    known = ", ".join(f"{field} by {how}" for field, how in spec.known.items())
    lines = [
        f"{spec.name}, {spec.clip_len}x{spec.frame_interval} {spec.input}, weights {spec.weights}"
        + (f" ({known})" if known else ""),
        f"{job.args.mode}: {protocol.views} views, {protocol.sampling}, {protocol.aggregation}, {job.args.dtype} on "
        f"{job.device.type}",
        f"{data.set} ({data.media}): {len(data.clips)} clips"
        + (f", {num_done} of them scored before; going on" if num_done else "")
        + (f", shared by {job.ranks.size} processes" if job.ranks.size > 1 else ""),
    ]
    if pending := sum(clip.status == "pending" for clip in data.clips):
        lines.append(
            f"{pending} of them are not encoded yet: python -m datakit prepare goes on, --missing drop leaves them out"
        )
    print("\n".join(lines), file=sys.stderr)


def estimated(outcomes: Iterator[Outcome], total: int) -> Iterator[Outcome]:
    """Pass outcomes on; as soon as the first ones tell, say once how long the rest will take."""
    start, said = time.monotonic(), False
    for number, outcome in enumerate(outcomes, start=1):
        yield outcome
        elapsed = time.monotonic() - start
        if not said and elapsed >= ESTIMATE_AFTER_S and number < total:
            said = True
            left = elapsed / number * (total - number)
            hint = ""
            if left > LONG_S and (num_trial := int(600 / (elapsed / number))) >= 10:
                hint = f"; --limit {num_trial} gives a first number in 10 minutes"
            print(
                f"{number} clips in {console.duration(elapsed)}: about {console.duration(left)} for the other "
                f"{total - number}{hint}",
                file=sys.stderr,
                flush=True,
            )


def report(job: Job, score_set: ScoreSet) -> None:
    """Print the numbers."""
    from . import groups, metrics, remarks
    from . import published as theirs

    out, published = job.out, job.net.spec.published
    if job.args.json:
        document = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        console.print_json("evalkit-run", {**document, "out": str(out)})
        return
    rules, videos = metrics.rules(score_set), groups.of(score_set)
    intervals = metrics.intervals(score_set, *rules, videos) if videos else None
    print(metrics.describe(metrics.summary(score_set, *rules, videos), score_set.signature, intervals))
    if score_set.meta.get("partial"):
        saved = 100 * score_set.meta["views_saved"]
        print(f"views       {saved:.1f} % left out: they could not change these numbers")
    beside = theirs.beside(score_set)
    if published and all(one.row["file"] != published.get("file") for one in beside):
        print(f"published   {theirs.said(published)}")  # of a set that this one does not name itself after
    for line in [*theirs.lines(score_set), *remarks.lines(score_set)]:
        print(line)
    for entry in score_set.missing[:SHOWN]:
        print(f"missing     {entry['id']}: {entry['reason']}")
    if len(score_set.missing) > SHOWN:
        print(f"missing     and {len(score_set.missing) - SHOWN} more, all in {out / 'metrics.json'}")
    print(f"written     {out / 'scores.npz'}, {out / 'metrics.json'}")


if __name__ == "__main__":
    console.run(main)
